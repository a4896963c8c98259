//! `logs`: what the hooks and services of a session have said, or had said until it was gone.

use std::io::{self, Write};

use anyhow::{Context as _, bail};
use clap::Args;

use super::{Session, records::Named};
use crate::{api::types::LogLine, errors::printable};

#[derive(Debug, Args)]
pub struct Logs {
    /// Whose session, or the id of one, which may be gone
    #[arg(value_name = "USER[@PROJECT]|ID")]
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
        let client = session.client();
        let key = match Named::find(&client, &self.session)? {
            Named::Live(key) => key,
            Named::Gone(record) => {
                if self.follow {
                    bail!("session {} is gone; there is nothing to follow", record.session.id);
                }
                let wanted = |line: &&LogLine| self.source.as_ref().is_none_or(|source| *source == line.source);
                record.output.iter().filter(wanted).try_for_each(|line| self.show(line))?;
                return Ok(());
            }
        };
        let mut written = Ok(());
        let heard = |line: LogLine| {
            if written.is_ok() {
                written = self.show(&line);
            }
        };
        let read = client.logs(&key, self.source.as_deref(), self.follow, heard);
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
