//! `events`: what happens, as it happens.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufRead, BufReader, Write},
    ops::ControlFlow,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::Value;

use super::Session;
use crate::{
    api::client::{ClientError, Heard},
    errors::printable,
    names::{ProjectName, UserName},
};

/// Of the log's last lines, how many are remembered: they may be told by the server a second time.
const REMEMBERED: usize = 1024;

#[derive(Debug, Args)]
pub struct Events {
    /// Only what is about this user
    #[arg(long)]
    user: Option<UserName>,
    /// Only what is about this project
    #[arg(long)]
    project: Option<ProjectName>,
    /// Only events of this name, or whose name begins with it: container, session.command; may be given several times
    #[arg(long, value_name = "NAME")]
    event: Vec<String>,
    /// Begin with what the audit log has of the last 30m, 2h, ...
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
    /// Print JSON, an object on each line, as in the audit log
    #[arg(long)]
    json: bool,
}

impl Events {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let (mut told, mut failed) = (HashSet::new(), None);
        let listening = session.client().events(|heard| {
            let shown = match heard {
                Heard::Listening => self.past(session).map(|lines| told = lines),
                // The log had it already.
                Heard::Event(line) if told.remove(line) => Ok(()),
                Heard::Event(line) => self.show(line),
            };
            match shown {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        match listening {
            // A server that ends does so in the middle of its answer.
            Ok(()) | Err(ClientError::Http(_)) => {}
            Err(error) => return Err(error.into()),
        }
        bail!("the server has ended the stream of events: it is ending itself, or they came faster than they were read")
    }

    /// Shows what the audit log has, when listening has begun, so that nothing is missed between. Returns the last lines.
    fn past(&self, session: &Session<'_>) -> anyhow::Result<HashSet<String>> {
        let mut last = std::collections::VecDeque::new();
        let Some(since) = self.since else { return Ok(HashSet::new()) };
        let Some(path) = &session.config.log.audit_log else {
            bail!("--since reads the audit log, and the configuration has none (log.audit_log)");
        };
        let from = SystemTime::now().checked_sub(since).unwrap_or(SystemTime::UNIX_EPOCH);
        let from = humantime::format_rfc3339_millis(from).to_string();
        let read = || format!("cannot read {}", path.display());
        for line in BufReader::new(File::open(path).with_context(read)?).lines() {
            let line = line.with_context(read)?;
            let event: Value = serde_json::from_str(&line).with_context(read)?;
            // Times of one form and zone are in the order of their texts.
            if event["time"].as_str().is_some_and(|time| time >= from.as_str()) {
                self.show(&line)?;
                if last.len() == REMEMBERED {
                    last.pop_front();
                }
                last.push_back(line);
            }
        }
        Ok(last.into_iter().collect())
    }

    fn show(&self, line: &str) -> anyhow::Result<()> {
        let event: Value = serde_json::from_str(line).context("an event is not JSON")?;
        if self.wants(&event) {
            let mut out = io::stdout().lock();
            if self.json {
                writeln!(out, "{line}")?;
            } else {
                writeln!(out, "{}", described(&event))?;
            }
            // Somebody may wait for it at the other end of a pipe.
            out.flush()?;
        }
        Ok(())
    }

    fn wants(&self, event: &Value) -> bool {
        let is = |field: &str, wanted: Option<&str>| wanted.is_none_or(|wanted| event[field] == wanted);
        let name = event["event"].as_str().unwrap_or_default();
        let named = |wanted: &String| {
            name.strip_prefix(wanted.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        // A refused login has no user yet, only what the client has called itself.
        let user = self.user.as_ref().map(UserName::as_str);
        (is("user", user) || event["user"].is_null() && user.is_some() && is("login", user))
            && is("project", self.project.as_ref().map(ProjectName::as_str))
            && (self.event.is_empty() || self.event.iter().any(named))
    }
}

/// One line for people: when, what, about whom, and the rest as NAME=VALUE.
fn described(event: &Value) -> String {
    let text = |field: &str| event[field].as_str().unwrap_or("-").to_owned();
    let whose = match (event["user"].as_str(), event["project"].as_str()) {
        (Some(user), Some(project)) => format!("{user}@{project}"),
        (Some(user), None) => user.to_owned(),
        (None, _) => "-".to_owned(),
    };
    let mut line = format!("{} {} {whose}", text("time"), text("event"));
    for (name, value) in event.as_object().into_iter().flatten() {
        let shown = match value {
            Value::Null => continue,
            Value::String(word) if is_plain(word) => word.clone(),
            other => other.to_string(),
        };
        if !["time", "event", "user", "project"].contains(&name.as_str()) {
            line.push_str(&format!(" {name}={shown}"));
        }
    }
    printable(&line)
}

/// Whether a value is told from what is around it without quotes.
fn is_plain(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "._:@/+-[]".contains(c))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn events(user: Option<&str>, project: Option<&str>, event: &[&str]) -> Events {
        Events {
            user: user.map(|name| name.parse().unwrap()),
            project: project.map(|name| name.parse().unwrap()),
            event: event.iter().map(|name| (*name).to_owned()).collect(),
            since: None,
            json: false,
        }
    }

    #[test]
    fn filters_are_about_users_projects_and_names() {
        let event = json!({"event": "container.create", "user": "ada", "project": "web"});
        for (wanted, user, project, names) in [
            (true, None, None, &[][..]),
            (true, Some("ada"), Some("web"), &["container"]),
            (true, None, None, &["auth", "container.create"]),
            (false, Some("bob"), None, &[]),
            (false, None, Some("api"), &[]),
            (false, None, None, &["contain"]),
        ] {
            assert_eq!(events(user, project, names).wants(&event), wanted, "{user:?} {project:?} {names:?}");
        }
        let refused = json!({"event": "auth.fail", "login": "ada"});
        assert!(events(Some("ada"), None, &[]).wants(&refused) && !events(Some("bob"), None, &[]).wants(&refused));
    }

    #[test]
    fn an_event_is_a_line_whatever_is_in_it() {
        let event = json!({
            "time": "T", "event": "session.command", "user": "ada", "project": "web", "command": "x\" exit_code=0\n\u{1b}[2J",
            "exit_code": 3, "signal": null, "remote": "[::1]:5",
        });
        let line = r#"T session.command ada@web command="x\" exit_code=0\n\u001b[2J" exit_code=3 remote=[::1]:5"#;
        assert_eq!(described(&event), line);
    }
}
