//! `doctor`: it looks itself, with and without a server.

use std::io::{self, Write};

use anyhow::bail;
use clap::Args;

use super::{Session, one_line};
use crate::{
    api::client::ClientError,
    doctor::{self, Check, Report, Verdict},
    errors::printable,
};

#[derive(Debug, Args)]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One line, and a second one if something is wrong.
fn lines(check: &Check) -> String {
    let word = match check.verdict {
        Verdict::Pass => "pass",
        Verdict::Warn => "warn",
        Verdict::Fail => "FAIL",
    };
    let mut text = format!("[{word}] {}: {}\n", check.name, printable(&check.found));
    if let Some(why) = check.why {
        text.push_str(&format!("       {why}\n"));
    }
    if let Some(mend) = &check.mend {
        text.push_str(&format!("       mend it: {}\n", printable(mend)));
    }
    text
}

impl Doctor {
    /// `session` is what the configuration led to, which may be invalid.
    pub fn run(&self, session: anyhow::Result<Session<'_>>) -> anyhow::Result<()> {
        let report = match session {
            Err(error) => {
                let why = "the server does not start, and one that runs goes on with the last valid configuration";
                let invalid = Check::fail("configuration", one_line(&error), why).mend("podspawn config check");
                let mut checks = doctor::host::checks();
                checks.push(invalid);
                Report { checks, leaks: Vec::new() }
            }
            Ok(session) => {
                let server_runs = match session.client().status() {
                    Ok(_) => true,
                    Err(ClientError::NotRunning(_)) => false,
                    Err(error) => return Err(error.into()),
                };
                doctor::examine(session.config, server_runs)?
            }
        };
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        } else {
            for check in &report.checks {
                out.write_all(lines(check).as_bytes())?;
            }
            for leak in &report.leaks {
                writeln!(out, "[FAIL] {} without a session: {}", leak.kind, printable(&leak.name))?;
            }
        }
        let failed = report.checks.iter().filter(|check| check.verdict == Verdict::Fail).count();
        if failed > 0 {
            bail!("{failed} of {} checks have failed", report.checks.len());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_says_why_and_what_to_do() {
        let check = Check::fail("nft", "not\nfound", "no network").mend("apt-get install nftables");
        assert_eq!(
            lines(&check),
            "[FAIL] nft: not found\n       no network\n       mend it: apt-get install nftables\n"
        );
        assert_eq!(lines(&Check::pass("nft", "/usr/sbin/nft")), "[pass] nft: /usr/sbin/nft\n");
    }
}
