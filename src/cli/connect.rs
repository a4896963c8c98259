//! `connect`.

use std::{
    io::{self, Write},
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;

use super::client_runtime;
use crate::client::{
    config::{ClientConfig, Destination},
    files::Home,
    host_keys::HostKeys,
    known_hosts,
    relay::relay,
    server::dial,
};

/// What ssh passes when nobody has said a port.
const SSH_PORT: u16 = 22;

const DIAL_LIMIT: Duration = Duration::from_secs(10);

/// Relay ssh to the server of a project's host name.
///
/// ssh runs it for hosts that end in .pod, as `podspawn setup` has told it to.
#[derive(Debug, Args)]
pub struct Connect {
    /// The login name; it has no influence
    #[arg(value_name = "USER")]
    _user: String,
    /// The project's host name
    host: String,
    /// A port other than the server's; 22 means that ssh was not told one
    port: u16,
}

impl Connect {
    pub fn run(&self) -> anyhow::Result<()> {
        let home = Home::find()?;
        let config = ClientConfig::load(&home)?;
        let Destination { mut server, project } = config.destination(&self.host)?;
        let keys = HostKeys::load(&home)?;
        // ssh checks the key, and knows those of this file only; but an administrator can have told it others.
        if let Err(error) = known_hosts::refresh(&home, &config, &keys) {
            writeln!(io::stderr(), "podspawn: warning: {}", crate::errors::chain(error))?;
        }
        if keys.of(&server).is_none() {
            let host = &self.host;
            writeln!(io::stderr(), "podspawn: {host} leads to {server}, whose key is not pinned: podspawn setup")?;
        }
        if self.port != SSH_PORT {
            server.port = self.port;
        }
        let stream =
            client_runtime()?.block_on(async { dial(&server, DIAL_LIMIT).await?.into_std().context("socket") })?;
        stream.set_nonblocking(false).and_then(|()| stream.set_nodelay(true)).context("cannot use the socket")?;
        relay(stream, project.as_ref()).with_context(|| server.to_string())
    }
}
