//! `ping` and `servers`.

use std::{
    io::{self, Write},
    time::Duration,
};

use anyhow::bail;
use clap::Args;
use serde_json::json;

use super::{client_runtime, table};
use crate::{
    client::{
        config::{ClientConfig, Mode, SUFFIX},
        files::Home,
        host_keys::HostKeys,
        server::{Identity, Probe, ProbeError, Server, probe},
    },
    errors::chain,
};

const PING_LIMIT: Duration = Duration::from_secs(5);

/// How long `servers` waits for each of the two steps, for all servers at once.
const LIST_LIMIT: Duration = Duration::from_secs(3);

/// Ask a server whether it is there, what it is, and how long that takes.
#[derive(Debug, Args)]
pub struct Ping {
    /// A project's host name, or HOST[:PORT]; the default server if there is none
    server: Option<String>,
}

impl Ping {
    pub fn run(&self) -> anyhow::Result<()> {
        let server = self.find()?;
        let answer = client_runtime()?.block_on(probe(&server, PING_LIMIT))?;
        let Probe { address, identity, connected, identified } = &answer;
        let what = match identity {
            Identity::Podspawn { version } => format!("podspawn {version}"),
            Identity::Other(identification) => bail!("{server} ({address}) is not podspawn: {identification}"),
            Identity::NotSsh => bail!("{server} ({address}) is no SSH server"),
        };
        let (connected, identified) = (millis(*connected), millis(*identified));
        writeln!(io::stdout(), "{server} ({address}): {what}; connected in {connected}, answered in {identified}")?;
        Ok(())
    }

    fn find(&self) -> anyhow::Result<Server> {
        match &self.server {
            Some(name) if !name.ends_with(SUFFIX) => Ok(name.parse()?),
            Some(name) => Ok(ClientConfig::load(&Home::find()?)?.destination(name)?.server),
            None => match ClientConfig::load(&Home::find()?)?.default {
                Some(server) => Ok(server),
                None => bail!("there is no default server: podspawn ping HOST[:PORT]"),
            },
        }
    }
}

/// List the servers that host names lead to, and whether they answer.
#[derive(Debug, Args)]
pub struct Servers {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Servers {
    pub fn run(&self) -> anyhow::Result<()> {
        let home = Home::find()?;
        let servers = ClientConfig::load(&home)?.servers();
        let keys = HostKeys::load(&home)?;
        let answers = client_runtime()?.block_on(probe_all(servers.iter().map(|(_, server, _)| server)));
        let (mut rows, mut objects) = (Vec::new(), Vec::new());
        for ((name, server, mode), answer) in servers.iter().zip(answers) {
            let key = keys.of(server).map(|key| key.fingerprint.clone());
            let mode = mode.map(|mode| match mode {
                Mode::Ephemeral => "ephemeral",
                Mode::Persistent => "persistent",
            });
            let time = answer.as_ref().ok().map(|probe| probe.connected + probe.identified);
            let status = match answer.map(|probe| probe.identity) {
                Ok(Identity::Podspawn { version }) => format!("podspawn {version}"),
                Ok(Identity::Other(identification)) => format!("not podspawn: {identification}"),
                Ok(Identity::NotSsh) => "no SSH server".to_owned(),
                Err(error) => chain(error),
            };
            if self.json {
                objects.push(json!({
                    "name": name, "server": server.to_string(), "mode": mode, "status": status,
                    "milliseconds": time.map(|time| time.as_secs_f64() * 1e3), "key": key,
                }));
            }
            let dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
            let (mode, time) = (dash(mode.map(str::to_owned)), dash(time.map(millis)));
            rows.push([name.clone(), server.to_string(), mode, time, dash(key), status]);
        }
        if self.json {
            writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&objects)?)?;
        } else {
            table::print(["NAME", "SERVER", "MODE", "TIME", "KEY", "STATUS"], &rows)?;
        }
        Ok(())
    }
}

/// Asks all of them at once; the answers are in the same order.
async fn probe_all(servers: impl Iterator<Item = &Server>) -> Vec<Result<Probe, ProbeError>> {
    let ask = |server: Server| tokio::spawn(async move { probe(&server, LIST_LIMIT).await });
    let asked: Vec<_> = servers.cloned().map(ask).collect();
    let mut answers = Vec::new();
    for answer in asked {
        match answer.await {
            Ok(answer) => answers.push(answer),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
    answers
}

fn millis(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}
