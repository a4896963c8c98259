//! `podspawn inspect`.

use std::io::{self, Write};

use anyhow::Context as _;
use clap::Args;

use super::Session;
use crate::session::SessionKey;

#[derive(Debug, Args)]
pub struct Inspect {
    /// Whose session
    #[arg(value_name = "USER[@PROJECT]")]
    session: SessionKey,
    /// Print the container as a configuration of the OCI runtime specification
    #[arg(long)]
    oci: bool,
    /// With --oci: that of this service's container
    #[arg(long, value_name = "NAME", requires = "oci")]
    service: Option<String>,
}

impl Inspect {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let (client, key) = (session.client(), &self.session);
        let shown = if self.oci { client.oci(key, self.service.as_deref()) } else { client.inspect(key) };
        let shown = shown.with_context(|| format!("cannot inspect {key}"))?;
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&shown)?)?;
        Ok(())
    }
}
