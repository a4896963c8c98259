//! `stats`: what each session uses.

use std::{
    io::{self, IsTerminal, Write},
    thread,
    time::{Duration, Instant},
};

use clap::Args;

use super::{Session, table};
use crate::api::{
    client::Client,
    types::{Stats, Usage},
};

/// Between two looks of the live table.
const INTERVAL: Duration = Duration::from_secs(2);

/// Between the two looks that a single table needs to tell how busy a session is.
const GLANCE: Duration = Duration::from_millis(500);

/// Moves the cursor home and erases what is below it.
const HOME: &str = "\x1b[H\x1b[J";

#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Print JSON: one sample, whose counters are totals
    #[arg(long)]
    json: bool,
    /// Print one table, as is done anyway where the output is no terminal
    #[arg(long)]
    no_stream: bool,
}

/// The counters at one moment.
struct Sample {
    taken: Instant,
    sessions: Vec<Stats>,
}

impl Sample {
    fn take(client: &Client) -> anyhow::Result<Self> {
        let sessions = client.stats()?;
        Ok(Self { taken: Instant::now(), sessions })
    }
}

impl StatsArgs {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let client = session.client();
        let mut last = Sample::take(&client)?;
        if self.json {
            writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&last.sessions)?)?;
            return Ok(());
        }
        let live = !self.no_stream && io::stdout().is_terminal();
        thread::sleep(GLANCE);
        loop {
            let sample = Sample::take(&client)?;
            let rows: Vec<_> = sample.sessions.iter().flat_map(|stats| rows(stats, &last, sample.taken)).collect();
            let header = ["USER", "PROJECT", "CONTAINER", "CPU %", "MEMORY / LIMIT", "PIDS", "DISK", "NET RX / TX"];
            let table = table::lines(header, &rows);
            let mut out = io::stdout().lock();
            if !live {
                out.write_all(table.as_bytes())?;
                return Ok(());
            }
            write!(out, "{HOME}{table}")?;
            out.flush()?;
            drop(out);
            last = sample;
            thread::sleep(INTERVAL);
        }
    }
}

/// A session's row, which is about all of its containers, and below it one for each of its services.
fn rows(stats: &Stats, last: &Sample, now: Instant) -> Vec<[String; 8]> {
    let elapsed = now.duration_since(last.taken);
    let before = last.sessions.iter().find(|before| before.id == stats.id);
    let project = stats.project.clone().unwrap_or_else(|| "(default)".to_owned());
    let row = |container: String, usage: &Usage, before: Option<&Usage>| {
        let [cpu, memory, pids, disk, net] = cells(usage, before, elapsed);
        [stats.user.clone(), project.clone(), container, cpu, memory, pids, disk, net]
    };
    let services = stats.services.iter().map(|service| {
        let before = before.and_then(|before| before.services.iter().find(|before| before.name == service.name));
        row(format!("- {}", service.name), &service.usage, before.map(|before| &before.usage))
    });
    std::iter::once(row(stats.id.clone(), &stats.usage, before.map(|before| &before.usage))).chain(services).collect()
}

fn cells(usage: &Usage, before: Option<&Usage>, elapsed: Duration) -> [String; 5] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let size = |bytes: Option<u64>| or_dash(bytes.map(table::bytes));
    let limited = |used: String, limit: Option<String>| limit.map_or(used.clone(), |limit| format!("{used} / {limit}"));
    // More than what was counted, where not all was.
    let more = if usage.disk_bytes.is_some() && !usage.disk_complete { "+" } else { "" };
    [
        or_dash(before.and_then(|before| cpu_percent(usage, before, elapsed)).map(|percent| format!("{percent:.1}"))),
        limited(size(usage.memory_bytes), usage.memory_limit_bytes.map(table::bytes)),
        limited(or_dash(usage.pids.map(|pids| pids.to_string())), usage.pids_limit.map(|limit| limit.to_string())),
        limited(format!("{}{more}", size(usage.disk_bytes)), usage.disk_limit_bytes.map(table::bytes)),
        format!("{} / {}", size(usage.rx_bytes), size(usage.tx_bytes)),
    ]
}

/// Of one CPU, since an earlier sample.
fn cpu_percent(usage: &Usage, before: &Usage, elapsed: Duration) -> Option<f64> {
    let used = Duration::from_micros(usage.cpu_us?.saturating_sub(before.cpu_us?));
    let elapsed = elapsed.as_secs_f64();
    (elapsed > 0.0).then(|| used.as_secs_f64() / elapsed * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::ServiceStats;

    fn usage(cpu_us: Option<u64>) -> Usage {
        Usage {
            cpu_us,
            memory_bytes: Some(64 << 20),
            memory_limit_bytes: Some(2 << 30),
            pids: Some(3),
            disk_bytes: Some(4096),
            disk_limit_bytes: Some(1 << 30),
            rx_bytes: Some(0),
            ..Usage::default()
        }
    }

    fn sample(taken: Instant, session: u64, service: u64) -> Sample {
        let services = vec![ServiceStats { name: "db".to_owned(), usage: usage(Some(service)) }];
        let (user, id, usage) = ("ada".to_owned(), "2aaaaaaa".to_owned(), usage(Some(session)));
        Sample { taken, sessions: vec![Stats { user, project: None, id, usage, services }] }
    }

    #[test]
    fn how_busy_a_session_and_its_services_are_comes_from_two_samples() {
        let then = Instant::now();
        let (first, second) = (sample(then, 1_000_000, 0), sample(then + Duration::from_secs(2), 4_000_000, 500_000));
        let shown = rows(&second.sessions[0], &first, second.taken);
        assert_eq!(shown.iter().map(|row| row[2..4].join(" ")).collect::<Vec<_>>(), ["2aaaaaaa 150.0", "- db 25.0"]);
        assert_eq!(
            cpu_percent(&usage(Some(1)), &usage(None), Duration::from_secs(1)),
            None,
            "it was not counted before"
        );
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        let taken = Instant::now();
        let row = &rows(&sample(taken, 1, 1).sessions[0], &Sample { taken, sessions: Vec::new() }, taken)[0];
        assert_eq!(row[1..], ["(default)", "2aaaaaaa", "-", "64MiB / 2GiB", "3", "4KiB+ / 1GiB", "0B / -"]);
    }
}
