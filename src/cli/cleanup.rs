//! `cleanup`

use std::{
    io::{self, Write},
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;

use super::Session;
use crate::{
    api::{client::ClientError, types::Cleaned},
    config::units::parse_duration,
    errors::printable,
    supervisor,
};

#[derive(Debug, Args)]
pub struct Cleanup {
    /// Go on for ever
    #[arg(long)]
    daemon: bool,
    /// How often, such as 30s
    #[arg(long, value_name = "TIME", requires = "daemon", default_value = "30s", value_parser = interval)]
    interval: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Once a second is often enough for anybody.
fn interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Err(error) => Err(error.to_string()),
        Ok(time) if time < Duration::from_secs(1) => Err("it is shorter than 1s".to_owned()),
        Ok(time) => Ok(time),
    }
}

impl Cleanup {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        loop {
            let done = self.once(session);
            if !self.daemon {
                return done;
            }
            if let Err(error) = done {
                // A server that is just being restarted is there the next time.
                writeln!(io::stderr(), "podspawn: {}", printable(&format!("{error:#}")))?;
            }
            thread::sleep(self.interval);
        }
    }

    fn once(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let cleaned = match session.client().clean_up() {
            Err(ClientError::NotRunning(_)) => {
                supervisor::clean_up(session.config).map(Cleaned::from).context("cannot clean up without a server")?
            }
            other => other?,
        };
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(&cleaned)?)?;
        } else {
            for id in &cleaned.sessions {
                writeln!(out, "removed what was left of session {id}")?;
            }
            if cleaned.unfinished > 0 {
                writeln!(out, "removed {} unfinished parts of images", cleaned.unfinished)?;
            }
        }
        if !cleaned.failures.is_empty() {
            bail!("{}", cleaned.failures.join("; "));
        }
        Ok(())
    }
}
