//! `records` and `diff`: what is known of sessions that are gone, and which files a session has changed.

use std::{
    io::{self, Write},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::bail;
use clap::Args;

use super::{Session, table};
use crate::{
    api::{
        client::Client,
        types::{Change, ChangeKind, Changes, Record, RecordSummary, Used},
    },
    names::{ProjectName, SessionId},
    session::SessionKey,
};

/// A session as somebody has named it.
pub enum Named {
    Live(SessionKey),
    Gone(Box<Record>),
}

impl Named {
    /// Finds the session that `text` names: by its user and project if it lives, by its id whether or not it does.
    pub fn find(client: &Client, text: &str) -> anyhow::Result<Self> {
        let sessions = client.sessions()?;
        if let Ok(id) = text.parse::<SessionId>() {
            return match sessions.iter().find(|session| session.id.as_deref() == Some(text)) {
                Some(session) => Ok(Self::Live(SessionKey {
                    user: session.user.parse()?,
                    project: session.project.as_deref().map(str::parse).transpose()?,
                })),
                None => Ok(Self::Gone(Box::new(client.record(&id)?))),
            };
        }
        let key: SessionKey = text.parse()?;
        let of_key = |user: &str, project: Option<&str>| {
            user == key.user.as_str() && project == key.project.as_ref().map(ProjectName::as_str)
        };
        if sessions.iter().any(|session| of_key(&session.user, session.project.as_deref())) {
            return Ok(Self::Live(key));
        }
        let records = client.records()?;
        match records.iter().find(|record| of_key(&record.session.user, record.session.project.as_deref())) {
            None => bail!("there is no session of {key}"),
            Some(last) => {
                bail!("there is no session of {key}; its last one was {}, which can be named instead", last.session.id)
            }
        }
    }
}

#[derive(Debug, Args)]
pub struct Records {
    /// Show all of what is kept of this one
    #[arg(value_name = "ID")]
    session: Option<SessionId>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Records {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let client = session.client();
        match &self.session {
            None => {
                let records = client.records()?;
                if self.json {
                    writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&records)?)?;
                } else {
                    let rows: Vec<_> = records.iter().map(row).collect();
                    table::print(
                        ["USER", "PROJECT", "CONTAINER", "ENDED", "REASON", "LIVED", "COMMANDS", "CHANGES"],
                        &rows,
                    )?;
                }
            }
            Some(id) => {
                let record = client.record(id)?;
                let mut out = io::stdout().lock();
                if self.json {
                    writeln!(out, "{}", serde_json::to_string_pretty(&record)?)?;
                } else {
                    out.write_all(described(&record).as_bytes())?;
                }
            }
        }
        Ok(())
    }
}

fn row(record: &RecordSummary) -> [String; 8] {
    let session = &record.session;
    [
        session.user.clone(),
        session.project.clone().unwrap_or_else(|| "(default)".to_owned()),
        session.id.clone(),
        ago(session.ended_ms),
        session.reason.clone(),
        table::duration(session.ended_ms.saturating_sub(session.created_ms) / 1000),
        record.commands.to_string(),
        record.changes.to_string(),
    ]
}

fn ago(time_ms: u64) -> String {
    let then = UNIX_EPOCH + std::time::Duration::from_millis(time_ms);
    format!("{} ago", table::duration(SystemTime::now().duration_since(then).unwrap_or_default().as_secs()))
}

fn described(record: &Record) -> String {
    let session = &record.session;
    let mut rows = vec![
        ["session".to_owned(), session.id.clone()],
        ["user".to_owned(), session.user.clone()],
        ["project".to_owned(), session.project.clone().unwrap_or_else(|| "(default)".to_owned())],
        ["image".to_owned(), session.image.clone()],
        ["ended".to_owned(), format!("{} ({})", ago(session.ended_ms), session.reason)],
        ["lived".to_owned(), table::duration(session.ended_ms.saturating_sub(session.created_ms) / 1000)],
        ["used".to_owned(), used(&record.used)],
    ];
    rows.extend(record.services.iter().map(|service| [format!("- {}", service.name), used(&service.used)]));
    let counted = |number: usize, complete: bool, command: &str| {
        let more = if complete { "" } else { "+" };
        format!("{number}{more} (podspawn {command} {})", session.id)
    };
    rows.push(["changes".to_owned(), counted(record.changes.changes.len(), record.changes.complete, "diff")]);
    rows.push(["output".to_owned(), counted(record.output.len(), true, "logs")]);
    let facts = table::lines(["", ""], &rows);
    // Without the line for the names of the columns, which have none.
    let mut text = facts.split_once('\n').map_or("", |(_, facts)| facts).to_owned();
    if !record.commands.is_empty() {
        let missing = if record.commands_complete { "" } else { "Earlier ones are not kept.\n" };
        let rows: Vec<_> = record
            .commands
            .iter()
            .map(|command| {
                let status = match (command.exit_code, command.signal) {
                    (Some(code), _) => code.to_string(),
                    (None, Some(signal)) => format!("signal {signal}"),
                    (None, None) => "unknown".to_owned(),
                };
                let took = command.duration_ms.map_or_else(|| "-".to_owned(), |ms| table::duration(ms / 1000));
                [
                    command.ended_ms.map_or_else(|| "-".to_owned(), ago),
                    took,
                    status,
                    command.command.clone().unwrap_or_else(|| "(shell)".to_owned()),
                ]
            })
            .collect();
        text.push_str(&format!("\n{missing}{}", table::lines(["ENDED", "TOOK", "STATUS", "COMMAND"], &rows)));
    }
    text
}

fn used(used: &Used) -> String {
    let of = |peak: Option<String>, limit: Option<String>| match (peak, limit) {
        (None, _) => "-".to_owned(),
        (Some(peak), None) => peak,
        (Some(peak), Some(limit)) => format!("{peak} / {limit}"),
    };
    let number = |number: Option<u64>| number.map(|number| number.to_string());
    let bytes = |bytes: Option<u64>| bytes.map(table::bytes);
    let cpu = used
        .cpu_us
        .map_or_else(|| "-".to_owned(), |us| format!("{:.1}s", std::time::Duration::from_micros(us).as_secs_f64()));
    format!(
        "cpu {cpu}, memory peak {}, pids peak {}, received {}, sent {}, killed for memory {}",
        of(bytes(used.memory_peak_bytes), bytes(used.memory_limit_bytes)),
        of(number(used.pids_peak), number(used.pids_limit)),
        of(bytes(used.rx_bytes), None),
        of(bytes(used.tx_bytes), None),
        of(number(used.oom_kills), None),
    )
}

#[derive(Debug, Args)]
pub struct Diff {
    /// Whose session, or the id of one, which may be gone
    #[arg(value_name = "USER[@PROJECT]|ID")]
    session: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Diff {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let client = session.client();
        let changes = match Named::find(&client, &self.session)? {
            Named::Live(key) => client.changes(&key)?,
            Named::Gone(record) => record.changes,
        };
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&changes)?)?;
            return Ok(());
        }
        let Changes { changes, complete } = changes;
        for Change { kind, path } in changes {
            let letter = match kind {
                ChangeKind::Added => 'A',
                ChangeKind::Changed => 'C',
                ChangeKind::Deleted => 'D',
            };
            writeln!(out, "{letter} {path}")?;
        }
        if !complete {
            session.remark("podspawn: these are not all: there are too many to look at them all")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_described_with_what_is_not_known_as_a_dash() {
        let shown = used(&Used {
            cpu_us: Some(1_500_000),
            memory_peak_bytes: Some(64 << 20),
            memory_limit_bytes: Some(1 << 30),
            ..Used::default()
        });
        assert_eq!(shown, "cpu 1.5s, memory peak 64MiB / 1GiB, pids peak -, received -, sent -, killed for memory -");
    }
}
