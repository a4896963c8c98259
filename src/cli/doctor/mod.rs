//! `doctor`: whether this host and this configuration are fit for sessions, and whether anything was left behind.
//!
//! Looks, and changes nothing. What it cannot see from the host (whether names and the internet are reached from inside a
//! session) is left to the first session.

mod host;
mod instance;

use std::io::{self, Write};

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use super::{Session, one_line};
use crate::{
    api::client::ClientError,
    errors::printable,
    session::{Leak, leaks},
};

#[derive(Debug, Args)]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was looked at, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    /// Why it matters; only of what is not as it should be.
    why: Option<&'static str>,
    /// The command that mends it.
    mend: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Pass,
    Warn,
    Fail,
}

impl Check {
    fn pass(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Pass, found: found.into(), why: None, mend: None }
    }

    /// Sessions work, but not as well as they could.
    fn warn(name: &'static str, found: impl Into<String>, why: &'static str) -> Self {
        Self { name, verdict: Verdict::Warn, found: found.into(), why: Some(why), mend: None }
    }

    /// Sessions, or some of them, do not work.
    fn fail(name: &'static str, found: impl Into<String>, why: &'static str) -> Self {
        Self { name, verdict: Verdict::Fail, found: found.into(), why: Some(why), mend: None }
    }

    fn mend(mut self, command: impl Into<String>) -> Self {
        self.mend = Some(command.into());
        self
    }

    /// One line, and a second one if something is wrong.
    fn lines(&self) -> String {
        let word = match self.verdict {
            Verdict::Pass => "pass",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        let mut text = format!("[{word}] {}: {}\n", self.name, printable(&self.found));
        if let Some(why) = self.why {
            text.push_str(&format!("       {why}\n"));
        }
        if let Some(mend) = &self.mend {
            text.push_str(&format!("       mend it: {}\n", printable(mend)));
        }
        text
    }
}

impl Doctor {
    /// `session` is what the configuration led to, which may be invalid.
    pub fn run(&self, session: anyhow::Result<Session<'_>>) -> anyhow::Result<()> {
        let mut checks = host::checks();
        let mut found = Vec::new();
        match session {
            Err(error) => {
                let why = "the server does not start, and one that runs goes on with the last valid configuration";
                checks.push(Check::fail("configuration", one_line(&error), why).mend("podspawn config check"));
            }
            Ok(session) => {
                let server_runs = match session.client().status() {
                    Ok(_) => true,
                    Err(ClientError::NotRunning(_)) => false,
                    Err(error) => return Err(error.into()),
                };
                checks.extend(instance::checks(session.config, server_runs));
                found = leaks(session.config, server_runs)?;
                checks.push(left_behind(&found));
            }
        }
        let mut out = io::stdout().lock();
        if self.json {
            let report = serde_json::json!({ "checks": checks, "leaks": found });
            writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        } else {
            for check in &checks {
                out.write_all(check.lines().as_bytes())?;
            }
            for leak in &found {
                writeln!(out, "[FAIL] {} without a session: {}", leak.kind, printable(&leak.name))?;
            }
        }
        let failed = checks.iter().filter(|check| check.verdict == Verdict::Fail).count();
        if failed > 0 {
            bail!("{failed} of {} checks have failed", checks.len());
        }
        Ok(())
    }
}

fn left_behind(leaks: &[Leak]) -> Check {
    if leaks.is_empty() {
        return Check::pass("leftovers", "nothing is left behind");
    }
    let found = format!("{} objects belong to no session", leaks.len());
    let why = "they take memory, disk or addresses; a start of the server removes them";
    Check::fail("leftovers", found, why).mend("podspawn serve")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_says_why_and_what_to_do() {
        let check = Check::fail("nft", "not\nfound", "no network").mend("apt-get install nftables");
        assert_eq!(
            check.lines(),
            "[FAIL] nft: not found\n       no network\n       mend it: apt-get install nftables\n"
        );
        assert_eq!(Check::pass("nft", "/usr/sbin/nft").lines(), "[pass] nft: /usr/sbin/nft\n");
    }
}
