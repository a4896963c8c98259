//! `stats`: what each session uses.

use std::{
    io::{self, IsTerminal, Write},
    thread,
    time::{Duration, Instant},
};

use clap::Args;

use super::{Session, table};
use crate::api::{client::Client, types::Stats};

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
            let rows: Vec<_> = sample.sessions.iter().map(|stats| row(stats, &last, sample.taken)).collect();
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

fn row(stats: &Stats, last: &Sample, now: Instant) -> [String; 8] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let size = |bytes: Option<u64>| or_dash(bytes.map(table::bytes));
    let limited = |used: String, limit: Option<String>| limit.map_or(used.clone(), |limit| format!("{used} / {limit}"));
    // More than what was counted, where not all was.
    let more = if stats.disk_bytes.is_some() && !stats.disk_complete { "+" } else { "" };
    [
        stats.user.clone(),
        stats.project.clone().unwrap_or_else(|| "(default)".to_owned()),
        stats.id.clone(),
        or_dash(cpu_percent(stats, last, now).map(|percent| format!("{percent:.1}"))),
        limited(size(stats.memory_bytes), stats.memory_limit_bytes.map(table::bytes)),
        limited(or_dash(stats.pids.map(|pids| pids.to_string())), stats.pids_limit.map(|limit| limit.to_string())),
        format!("{}{more}", size(stats.disk_bytes)),
        format!("{} / {}", size(stats.rx_bytes), size(stats.tx_bytes)),
    ]
}

/// Of one CPU, since the last sample; `None` for a session that was not in it.
fn cpu_percent(stats: &Stats, last: &Sample, now: Instant) -> Option<f64> {
    let before = last.sessions.iter().find(|before| before.id == stats.id)?.cpu_us?;
    let used = Duration::from_micros(stats.cpu_us?.saturating_sub(before));
    let elapsed = now.duration_since(last.taken).as_secs_f64();
    (elapsed > 0.0).then(|| used.as_secs_f64() / elapsed * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(id: &str, cpu_us: Option<u64>) -> Stats {
        Stats {
            user: "ada".to_owned(),
            project: None,
            id: id.to_owned(),
            cpu_us,
            memory_bytes: Some(64 << 20),
            memory_limit_bytes: Some(2 << 30),
            pids: Some(3),
            pids_limit: None,
            oom_kills: Some(0),
            disk_bytes: Some(4096),
            disk_complete: false,
            rx_bytes: Some(0),
            tx_bytes: None,
        }
    }

    #[test]
    fn how_busy_a_session_is_comes_from_two_samples() {
        let then = Instant::now();
        let last = Sample { taken: then, sessions: vec![stats("2aaaaaaa", Some(1_000_000)), stats("2bbbbbbb", None)] };
        let percent = |now: Stats| cpu_percent(&now, &last, then + Duration::from_secs(2));
        assert_eq!(percent(stats("2aaaaaaa", Some(4_000_000))), Some(150.0));
        assert_eq!(percent(stats("2bbbbbbb", Some(1))), None, "it was not counted before");
        assert_eq!(percent(stats("2ccccccc", Some(1))), None, "it is new");
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        let last = Sample { taken: Instant::now(), sessions: Vec::new() };
        let row = row(&stats("2aaaaaaa", Some(1)), &last, last.taken);
        assert_eq!(row[1..], ["(default)", "2aaaaaaa", "-", "64MiB / 2GiB", "3", "4KiB+", "0B / -"]);
    }
}
