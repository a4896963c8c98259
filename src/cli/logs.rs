//! `logs`: what the hooks and services of a session have said.

use std::io::{self, Write};

use anyhow::Context as _;
use clap::Args;

use super::Session;
use crate::{api::types::LogLine, errors::printable, session::SessionKey};

#[derive(Debug, Args)]
pub struct Logs {
    /// Whose session
    #[arg(value_name = "USER[@PROJECT]")]
    session: String,
    /// Only what this one says: dotfiles, repos, on_create, on_start, or a service
    source: Option<String>,
    /// Go on with what is said from now on, until the session is gone
    #[arg(short, long)]
    follow: bool,
    /// Print JSON, an object on each line
    #[arg(long)]
    json: bool,
}

impl Logs {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let key: SessionKey = self.session.parse()?;
        let mut written = Ok(());
        let heard = |line: LogLine| {
            if written.is_ok() {
                written = self.show(&line);
            }
        };
        let read = session.client().logs(&key, self.source.as_deref(), self.follow, heard);
        read.with_context(|| format!("cannot read the log of {key}"))?;
        Ok(written?)
    }

    fn show(&self, line: &LogLine) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            serde_json::to_writer(&mut out, line)?;
            return writeln!(out);
        }
        // It comes from inside a container, and may be read on a terminal.
        let text = printable(&line.text);
        match &self.source {
            Some(_) => writeln!(out, "{text}"),
            None => writeln!(out, "{} | {text}", line.source),
        }
    }
}
