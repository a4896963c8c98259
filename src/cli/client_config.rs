//! `config show` and `config set`: the user's own file.

use std::io::{self, Write};

use clap::Args;
use serde_json::json;

use super::{setup::Confirmation, table};
use crate::client::{
    config::{ClientConfig, SUFFIX},
    files::Home,
    host_keys::HostKeys,
    known_hosts,
};

/// Show the client's configuration, ~/.podspawn/config.yaml.
#[derive(Debug, Args)]
pub struct Show {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Show {
    pub fn run(&self) -> anyhow::Result<()> {
        let config = ClientConfig::load(&Home::find()?)?;
        let default = config.default.as_ref().map(ToString::to_string);
        let mappings = config.mappings.iter().map(|(project, mapped)| (format!("{project}{SUFFIX}"), mapped));
        if self.json {
            let one = |(host, mapped): (String, &crate::client::config::Mapped)| {
                let server = &mapped.server;
                (host, json!({"host": server.host, "port": server.port, "mode": mapped.mode}))
            };
            let mappings: serde_json::Map<_, _> = mappings.map(one).collect();
            let all = json!({"servers": {"default": default, "mappings": mappings}});
            writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&all)?)?;
            return Ok(());
        }
        let mut rows = vec![["servers.default".to_owned(), default.unwrap_or_else(|| "-".to_owned())]];
        for (host, mapped) in mappings {
            rows.push([format!("servers.mappings.{host}"), mapped.server.to_string()]);
            if let Some(mode) = mapped.mode {
                let mode = serde_json::to_value(mode)?;
                rows.push([format!("servers.mappings.{host}.mode"), mode.as_str().unwrap_or_default().to_owned()]);
            }
        }
        Ok(table::print(["KEY", "VALUE"], &rows)?)
    }
}

/// Change a setting of the client's configuration, ~/.podspawn/config.yaml. The key of a new server has to be confirmed.
#[derive(Debug, Args)]
pub struct Set {
    /// servers.default, servers.mappings.PROJECT.pod, or the latter's .host, .port or .mode
    key: String,
    /// HOST[:PORT], HOST, PORT, or ephemeral or persistent
    value: String,
    #[command(flatten)]
    confirmation: Confirmation,
}

impl Set {
    pub fn run(&self, quiet: bool) -> anyhow::Result<()> {
        let home = Home::find()?;
        let (config, server) = ClientConfig::load(&home)?.with(&self.key, &self.value)?;
        let mut keys = HostKeys::load(&home)?;
        self.confirmation.pin(&server, &mut keys, quiet)?;
        keys.save()?;
        config.save()?;
        Ok(known_hosts::refresh(&home, &config, &keys)?)
    }
}
