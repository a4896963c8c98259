//! `list`, `ports`, `status`, `stop` and `down`.

use std::io::{self, Write};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;

use super::{Session, table};
use crate::{
    api::types,
    errors::printable,
    session::{ExposedPort, SessionKey},
};

#[derive(Debug, Args)]
pub struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl List {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let sessions = session.client().sessions()?;
        if self.json {
            writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&sessions)?)?;
        } else {
            let rows: Vec<_> = sessions.iter().map(row).collect();
            table::print(["USER", "PROJECT", "CONTAINER", "STATUS", "CONNS", "AGE", "LIFETIME LEFT", "MODE"], &rows)?;
        }
        Ok(())
    }
}

fn row(session: &types::Session) -> [String; 8] {
    let status = match session.grace_seconds {
        Some(left) => format!("{} ({} left)", session.status, table::duration(left)),
        None => session.status.clone(),
    };
    [
        session.user.clone(),
        session.project.clone().unwrap_or_else(|| "(default)".to_owned()),
        session.id.clone().unwrap_or_else(|| "-".to_owned()),
        status,
        session.connections.to_string(),
        table::duration(session.age_seconds),
        session.lifetime_seconds.map_or_else(|| "-".to_owned(), table::duration),
        session.mode.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}

#[derive(Debug, Args)]
pub struct Ports {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Ports {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let sessions = session.client().sessions()?;
        if self.json {
            let mut shown = Vec::new();
            for types::Session { user, project, ports, .. } in &sessions {
                for ExposedPort { port, host_port } in ports {
                    shown.push(json!({"user": user, "project": project, "port": port, "host_port": host_port}));
                }
            }
            writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&shown)?)?;
            return Ok(());
        }
        let rows = sessions.iter().flat_map(|session| {
            let project = session.project.clone().unwrap_or_else(|| "(default)".to_owned());
            let row = move |one: &ExposedPort| {
                [session.user.clone(), project.clone(), one.port.to_string(), format!("127.0.0.1:{}", one.host_port)]
            };
            session.ports.iter().map(row)
        });
        Ok(table::print(["USER", "PROJECT", "PORT", "ON THIS HOST"], &rows.collect::<Vec<_>>())?)
    }
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print everything that is counted, as text for Prometheus
    #[arg(long, conflicts_with = "json")]
    prometheus: bool,
}

impl StatusArgs {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        if self.prometheus {
            out.write_all(&session.client().metrics()?)?;
            return Ok(());
        }
        let status = session.client().status()?;
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&status)?)?;
            return Ok(());
        }
        let types::Status { version, sessions, running, grace, containers, connections, oldest_session_seconds } =
            status;
        let oldest = oldest_session_seconds.map_or_else(|| "-".to_owned(), table::duration);
        writeln!(out, "version      {version}")?;
        writeln!(out, "sessions     {sessions} ({running} running, {grace} in grace)")?;
        writeln!(out, "connections  {connections}")?;
        writeln!(out, "containers   {containers}")?;
        writeln!(out, "oldest       {oldest}")?;
        Ok(())
    }
}

#[derive(Debug, Args)]
pub struct Stop {
    /// Whose session to end
    #[arg(value_name = "USER[@PROJECT]", required_unless_present = "all")]
    session: Option<String>,
    /// End all sessions
    #[arg(long, conflicts_with = "session")]
    all: bool,
}

impl Stop {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let client = session.client();
        match &self.session {
            None => Ok(client.stop_all()?),
            Some(text) => {
                let key: SessionKey = text.parse()?;
                client.stop(&key).with_context(|| format!("cannot stop {key}"))
            }
        }
    }
}

#[derive(Debug, Args)]
pub struct Down {
    /// Whose session to end
    #[arg(value_name = "USER[@PROJECT]")]
    session: SessionKey,
    /// Remove the volumes that its services have kept, too
    #[arg(long)]
    clean: bool,
}

impl Down {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let key = &self.session;
        let down = session.client().down(key, self.clean).with_context(|| format!("cannot take {key} down"))?;
        if !down.stopped && down.volumes.is_empty() {
            bail!("there is no session of {key}{}", if self.clean { ", and no volumes" } else { "" })
        }
        if down.stopped {
            session.remark(&format!("ended the session of {key}"))?;
        }
        down.volumes.iter().try_for_each(|name| session.remark(&format!("removed its volume {}", printable(name))))
    }
}
