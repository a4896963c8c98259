//! Whether this host and this configuration are fit for sessions, and whether anything was left behind.
//!
//! Looks, and changes nothing. What it cannot see from the host (whether names and the internet are reached from inside a
//! session) is left to the first session.

pub mod host;
mod instance;

use serde::Serialize;

use crate::{
    config::Config,
    session::{Leak, LeaksError, leaks},
};

/// What was looked at, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub verdict: Verdict,
    pub found: String,
    /// Why it matters; only of what is not as it should be.
    pub why: Option<&'static str>,
    /// The command that mends it.
    pub mend: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Pass,
    Warn,
    Fail,
}

impl Check {
    pub(crate) fn pass(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Pass, found: found.into(), why: None, mend: None }
    }

    /// Sessions work, but not as well as they could.
    pub(crate) fn warn(name: &'static str, found: impl Into<String>, why: &'static str) -> Self {
        Self { name, verdict: Verdict::Warn, found: found.into(), why: Some(why), mend: None }
    }

    /// Sessions, or some of them, do not work.
    pub(crate) fn fail(name: &'static str, found: impl Into<String>, why: &'static str) -> Self {
        Self { name, verdict: Verdict::Fail, found: found.into(), why: Some(why), mend: None }
    }

    pub(crate) fn mend(mut self, command: impl Into<String>) -> Self {
        self.mend = Some(command.into());
        self
    }
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    pub checks: Vec<Check>,
    /// What belongs to no session.
    pub leaks: Vec<Leak>,
}

/// Looks at the host and at what this configuration needs of it.
///
/// # Errors
/// What was left behind could not be listed.
pub fn examine(config: &Config, server_runs: bool) -> Result<Report, LeaksError> {
    let mut checks = host::checks();
    checks.extend(instance::checks(config, server_runs));
    let leaks = leaks(config, server_runs)?;
    checks.push(left_behind(&leaks));
    Ok(Report { checks, leaks })
}

fn left_behind(leaks: &[Leak]) -> Check {
    if leaks.is_empty() {
        return Check::pass("leftovers", "nothing is left behind");
    }
    let found = format!("{} objects belong to no session", leaks.len());
    let why = "they take memory, disk or addresses; a start of the server removes them";
    Check::fail("leftovers", found, why).mend("podspawn serve")
}
