//! `doctor`: for now, whether anything was left behind.

use std::io::{self, Write};

use anyhow::bail;
use clap::Args;

use super::Session;
use crate::{api::client::ClientError, session::leaks};

#[derive(Debug, Args)]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let server_runs = match session.client().status() {
            Ok(_) => true,
            Err(ClientError::NotRunning(_)) => false,
            Err(error) => return Err(error.into()),
        };
        let leaks = leaks(session.config, server_runs)?;
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&serde_json::json!({ "leaks": leaks }))?)?;
        } else if leaks.is_empty() {
            writeln!(out, "[pass] nothing is left behind")?;
        } else {
            for leak in &leaks {
                writeln!(out, "[FAIL] {} without a session: {}", leak.kind, leak.name)?;
            }
        }
        if leaks.is_empty() {
            Ok(())
        } else {
            bail!("{} objects are left behind; a start of the server removes them", leaks.len())
        }
    }
}
