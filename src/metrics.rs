//! What the server counts, in Prometheus' text format 0.0.4 (docs/metrics.md lists all of it).
//!
//! Label values are words of ours, never of a client, so the number of series is bounded by the source.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Upper bounds in seconds: from a warm session to the pull of a big image.
const READY_BUCKETS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];

/// Upper bounds in seconds: from a container alone to the build of an image before it.
const CREATION_BUCKETS: [f64; 12] = [0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 5.0, 60.0, 600.0];

/// Upper bounds in seconds: from a container alone to services that take their time to stop.
const REMOVAL_BUCKETS: [f64; 8] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.1, 1.0, 10.0];

/// Upper bounds in seconds: from `true` to a night's work.
const COMMAND_BUCKETS: [f64; 10] = [0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 14_400.0, 28_800.0];

/// Everything that is counted since the server started.
pub struct Metrics {
    started: SystemTime,
    logins: Labelled,
    refusals: Labelled,
    created: AtomicU64,
    ended: Labelled,
    commands: Labelled,
    forwards: Labelled,
    audit_errors: AtomicU64,
    ready: Histogram<12>,
    creation: Histogram<12>,
    removal: Histogram<8>,
    command_time: Histogram<10>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            started: SystemTime::now(),
            logins: Labelled::default(),
            refusals: Labelled::default(),
            created: AtomicU64::default(),
            ended: Labelled::default(),
            commands: Labelled::default(),
            forwards: Labelled::default(),
            audit_errors: AtomicU64::default(),
            ready: Histogram::new(READY_BUCKETS),
            creation: Histogram::new(CREATION_BUCKETS),
            removal: Histogram::new(REMOVAL_BUCKETS),
            command_time: Histogram::new(COMMAND_BUCKETS),
        }
    }
}

/// What is there at one moment.
#[derive(Debug, Clone, Default)]
pub struct Now {
    pub sessions: usize,
    pub running: usize,
    pub grace: usize,
    /// Sessions with a container, in any state.
    pub containers: usize,
    pub connections: usize,
    pub oldest_session_seconds: Option<u64>,
    /// Connections that have not logged in.
    pub startups: usize,
    /// Connections that were dropped before their login, by the limit; since the server started.
    pub dropped: Vec<(&'static str, u64)>,
    /// Bytes of image layers that the server has fetched.
    pub pulled_bytes: u64,
    /// What is on the disk.
    pub disk: Disk,
}

/// Bytes on the disk; `None` is not known.
#[derive(Debug, Clone, Copy, Default)]
pub struct Disk {
    /// Of the files in all layers of images.
    pub store: Option<u64>,
    /// That are free on the file system of the images.
    pub store_free: Option<u64>,
    /// That are free on the file system of what sessions write.
    pub sessions_free: Option<u64>,
    /// What sessions have written, as far as it is measured.
    pub sessions: u64,
}

impl Metrics {
    pub fn login(&self, result: &'static str) {
        self.logins.add(result);
    }

    /// A session was refused because of `limit`.
    pub fn refused(&self, limit: &'static str) {
        self.refusals.add(limit);
    }

    pub fn session_created(&self) {
        self.created.fetch_add(1, Ordering::Relaxed);
    }

    pub fn session_ended(&self, reason: &'static str) {
        self.ended.add(reason);
    }

    /// A command or shell has ended; how long it took, if that is known.
    pub fn command(&self, result: &'static str, time: Option<Duration>) {
        self.commands.add(result);
        if let Some(time) = time {
            self.command_time.observe(time);
        }
    }

    pub fn forward(&self, kind: &'static str) {
        self.forwards.add(kind);
    }

    pub fn audit_failed(&self) {
        self.audit_errors.fetch_add(1, Ordering::Relaxed);
    }

    /// A client that connected `time` ago has its session.
    pub fn ready(&self, time: Duration) {
        self.ready.observe(time);
    }

    /// The containers of a session were made within `time` of its first connection's request.
    pub fn created_in(&self, time: Duration) {
        self.creation.observe(time);
    }

    /// Nothing was left of a session `time` after its end was decided.
    pub fn removed_in(&self, time: Duration) {
        self.removal.observe(time);
    }

    /// The whole of it as text.
    pub fn render(&self, now: &Now) -> String {
        let count = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let whole = |value: usize| value.to_string();
        let mut text = Text::default();
        text.one("podspawn_build_info", "gauge", "The version that runs; the value is always 1.", |line| {
            line.sample(&[("version", env!("CARGO_PKG_VERSION"))], "1");
        });
        // A name that the original has: a gauge with the end of a counter's name, which must be told as neither.
        text.single("podspawn_sessions_total", "untyped", "Sessions there are.", whole(now.sessions));
        text.single(
            "podspawn_sessions_running",
            "gauge",
            "Sessions that somebody is connected to.",
            whole(now.running),
        );
        let help = "Sessions that nobody is connected to and that will be removed.";
        text.single("podspawn_sessions_grace", "gauge", help, whole(now.grace));
        // As above.
        text.single("podspawn_connections_total", "untyped", "Connections there are.", whole(now.connections));
        text.single("podspawn_containers", "gauge", "Containers there are.", whole(now.containers));
        let oldest = now.oldest_session_seconds.unwrap_or(0).to_string();
        text.single("podspawn_oldest_session_seconds", "gauge", "Age of the oldest session; 0 without any.", oldest);
        let help = "Connections that have not logged in.";
        text.single("podspawn_connections_unauthenticated", "gauge", help, now.startups.to_string());
        text.labelled("podspawn_logins_total", "Keys that were judged for a login.", "result", &self.logins.all());
        let help = "Connections and sessions that were refused, by the limit.";
        let mut refusals = self.refusals.all();
        refusals.extend(now.dropped.iter().copied());
        text.labelled("podspawn_refusals_total", help, "limit", &refusals);
        let created = count(&self.created).to_string();
        text.single("podspawn_sessions_created_total", "counter", "Sessions that were made.", created);
        text.labelled("podspawn_sessions_ended_total", "Sessions that were ended.", "reason", &self.ended.all());
        let commands = self.commands.all();
        text.labelled("podspawn_commands_total", "Commands and shells that have ended.", "result", &commands);
        let forwards = self.forwards.all();
        text.labelled("podspawn_forwards_total", "Ports, sockets and agents forwarded.", "kind", &forwards);
        let help = "Bytes of image layers that the server has fetched.";
        text.single("podspawn_pull_bytes_total", "counter", help, now.pulled_bytes.to_string());
        let unknown = || "NaN".to_owned();
        let gauge = |bytes: Option<u64>| bytes.map_or_else(unknown, |bytes| bytes.to_string());
        let Disk { store, store_free, sessions_free, sessions } = now.disk;
        let help = "Bytes of the files in layers of images.";
        text.single("podspawn_store_bytes", "gauge", help, gauge(store));
        let help = "Bytes that are free on the file system of the images.";
        text.single("podspawn_store_free_bytes", "gauge", help, gauge(store_free));
        let help = "Bytes that sessions and their services have written, as last measured.";
        text.single("podspawn_sessions_disk_bytes", "gauge", help, sessions.to_string());
        let help = "Bytes that are free on the file system of what sessions write.";
        text.single("podspawn_sessions_free_bytes", "gauge", help, gauge(sessions_free));
        let help = "Lines that could not be written to the audit log.";
        text.single("podspawn_audit_errors_total", "counter", help, count(&self.audit_errors).to_string());
        let help = "From the TCP connection to the session, for clients that log in with their first key.";
        text.histogram("podspawn_connect_to_ready_seconds", help, &self.ready);
        let help = "From the request for a session to its running containers and ready services, without hooks.";
        text.histogram("podspawn_session_creation_seconds", help, &self.creation);
        let help = "From the end of a session to nothing left of it.";
        text.histogram("podspawn_session_removal_seconds", help, &self.removal);
        let help = "How long commands and shells have run.";
        text.histogram("podspawn_command_duration_seconds", help, &self.command_time);
        self.process(&mut text);
        text.0
    }

    /// What Prometheus' own libraries tell of a process, under their names.
    fn process(&self, text: &mut Text) {
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().to_string();
        text.single("process_start_time_seconds", "gauge", "When the server started, since the epoch.", started);
        // Only where /proc is mounted.
        if let Some(pages) = std::fs::read_to_string("/proc/self/statm").ok().and_then(|statm| resident_pages(&statm)) {
            let bytes = (pages * 4096).to_string();
            text.single("process_resident_memory_bytes", "gauge", "Memory of the server itself.", bytes);
        }
        if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
            text.single(
                "process_open_fds",
                "gauge",
                "Descriptors that the server has open.",
                entries.count().to_string(),
            );
        }
    }
}

/// The second field of `/proc/PID/statm` (proc_pid_statm(5)).
fn resident_pages(statm: &str) -> Option<u64> {
    statm.split(' ').nth(1)?.parse().ok()
}

/// Counts by a word of ours.
#[derive(Default)]
struct Labelled(Mutex<BTreeMap<&'static str, u64>>);

impl Labelled {
    fn add(&self, label: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(label).or_default() += 1;
    }

    fn all(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How often values were at most each bound.
struct Histogram<const N: usize> {
    bounds: [f64; N],
    /// The last is for what is above all bounds.
    counts: Mutex<(Vec<u64>, f64)>,
}

impl<const N: usize> Histogram<N> {
    fn new(bounds: [f64; N]) -> Self {
        Self { bounds, counts: Mutex::new((vec![0; N + 1], 0.0)) }
    }

    fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = self.bounds.iter().position(|bound| seconds <= *bound).unwrap_or(N);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.0[bucket] += 1;
        counts.1 += seconds;
    }
}

/// The text, and how it is put together.
#[derive(Default)]
struct Text(String);

/// The samples of one metric.
struct Lines<'a> {
    text: &'a mut String,
    name: &'a str,
}

impl Lines<'_> {
    fn sample(&mut self, labels: &[(&str, &str)], value: &str) {
        self.suffixed("", labels, value);
    }

    fn suffixed(&mut self, suffix: &str, labels: &[(&str, &str)], value: &str) {
        let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        self.text.push_str(&format!("{}{suffix}{labels} {value}\n", self.name));
    }
}

impl Text {
    fn one(&mut self, name: &str, kind: &str, help: &str, samples: impl FnOnce(&mut Lines<'_>)) {
        self.0.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        samples(&mut Lines { text: &mut self.0, name });
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: String) {
        self.one(name, kind, help, |line| line.sample(&[], &value));
    }

    fn labelled(&mut self, name: &str, help: &str, label: &str, counts: &BTreeMap<&'static str, u64>) {
        self.one(name, "counter", help, |line| {
            for (value, count) in counts {
                line.sample(&[(label, value)], &count.to_string());
            }
        });
    }

    fn histogram<const N: usize>(&mut self, name: &str, help: &str, histogram: &Histogram<N>) {
        let (counts, sum) = histogram.counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.one(name, "histogram", help, |line| {
            let bounds = histogram.bounds.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
            let mut total = 0;
            for (bound, count) in bounds.zip(counts) {
                total += count;
                line.suffixed("_bucket", &[("le", &bound)], &total.to_string());
            }
            line.suffixed("_sum", &[], &sum.to_string());
            line.suffixed("_count", &[], &total.to_string());
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn full() -> Metrics {
        let metrics = Metrics::default();
        metrics.login("ok");
        metrics.refused("max_per_user");
        metrics.session_ended("stop");
        metrics.command("success", Some(Duration::from_millis(50)));
        metrics.command("unknown", None);
        metrics.forward("agent");
        metrics.ready(Duration::from_millis(30));
        metrics.ready(Duration::from_secs(1000));
        metrics
    }

    #[test]
    fn counts_are_shown() {
        let metrics = full();
        metrics.session_created();
        let text =
            metrics.render(&Now { sessions: 3, oldest_session_seconds: Some(60), pulled_bytes: 7, ..Now::default() });
        for line in [
            "podspawn_sessions_total 3",
            "podspawn_oldest_session_seconds 60",
            "podspawn_logins_total{result=\"ok\"} 1",
            "podspawn_pull_bytes_total 7",
            "podspawn_connect_to_ready_seconds_bucket{le=\"0.025\"} 0",
            "podspawn_connect_to_ready_seconds_bucket{le=\"0.05\"} 1",
            "podspawn_connect_to_ready_seconds_bucket{le=\"+Inf\"} 2",
            "podspawn_connect_to_ready_seconds_sum 1000.03",
            "podspawn_command_duration_seconds_count 1",
            "podspawn_commands_total{result=\"unknown\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn the_page_about_metrics_lists_them_all_and_no_other() {
        let text = full().render(&Now::default());
        let in_code: BTreeSet<(String, String)> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
            .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
            .collect();
        let page = include_str!("../docs/metrics.md");
        let in_page = page.lines().filter_map(|line| {
            let cells: Vec<_> = line.strip_prefix("| `")?.split('|').map(str::trim).collect();
            Some((cells[0].trim_end_matches('`').to_owned(), cells[1].to_owned()))
        });
        assert_eq!(in_page.collect::<BTreeSet<_>>(), in_code);
    }

    #[test]
    fn a_label_stays_within_its_quotes() {
        let mut text = Text::default();
        text.one("x", "gauge", "y", |line| line.sample(&[("a", "\\\"\n")], "1"));
        assert!(text.0.ends_with("x{a=\"\\\\\\\"\\n\"} 1\n"), "{}", text.0);
    }
}
