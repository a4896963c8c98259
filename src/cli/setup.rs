//! `setup`, and the confirmation of a server's key.

use std::{
    io::{self, BufRead, IsTerminal, Read, Write},
    path::PathBuf,
};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::client::{
    config::ClientConfig,
    files::{self, Home},
    host_keys::{self, HostKeys},
    known_hosts,
    server::Server,
    ssh_config,
};

/// Longer than any sensible answer.
const MAX_ANSWER: u64 = 1024;

/// Let ssh find projects by host names that end in .pod.
///
/// Pins the key of the server and writes a block for `Host *.pod` into ~/.ssh/config. Then ssh, scp, sftp, rsync, git and editors
/// reach project backend as backend.pod. May be repeated at any time.
#[derive(Debug, Args)]
pub struct Setup {
    /// Make this the server of projects without a mapping
    #[arg(long, value_name = "HOST[:PORT]")]
    server: Option<String>,
    #[command(flatten)]
    confirmation: Confirmation,
    /// Print the block, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// How a server's key is confirmed where nobody is asked.
#[derive(Debug, Args)]
pub struct Confirmation {
    /// Pin the server's key if it has this fingerprint
    #[arg(long, value_name = "SHA256:...", conflicts_with = "yes")]
    fingerprint: Option<String>,
    /// Pin the key of a new server without asking
    #[arg(long, short)]
    yes: bool,
}

impl Setup {
    pub fn run(&self, quiet: bool) -> anyhow::Result<()> {
        let home = Home::find()?;
        let block = ssh_config::block(&home, &own_path()?)?;
        if self.dry_run {
            io::stdout().write_all(block.as_bytes())?;
            return Ok(());
        }
        let mut config = ClientConfig::load(&home)?;
        let mut keys = HostKeys::load(&home)?;
        match &self.server {
            Some(server) => {
                let (changed, server) = config.with("servers.default", server)?;
                config = changed;
                self.confirmation.pin(&server, &mut keys, quiet)?;
                config.save()?;
                keys.save()?;
            }
            None => self.pin_missing(&config, &mut keys, quiet)?,
        }
        known_hosts::refresh(&home, &config, &keys)?;
        let path = home.ssh_config();
        let current = files::read(&path)?;
        let installed = ssh_config::install(&current, &block).with_context(|| path.display().to_string())?;
        for line in ssh_config::others(&current) {
            writeln!(
                io::stderr(),
                "podspawn: warning: {}, line {line}: another block for *.pod; remove it, or its settings count for what \
                 podspawn's block does not set",
                path.display()
            )?;
        }
        if installed != current {
            files::write(&path, &installed)?;
        }
        if !quiet {
            let what = if installed == current { "has podspawn's block already" } else { "has podspawn's block now" };
            writeln!(io::stderr(), "{} {what}", path.display())?;
            if config.default.is_none() && config.mappings.is_empty() {
                writeln!(io::stderr(), "No server is configured yet: podspawn setup --server HOST[:PORT]")?;
            }
        }
        Ok(())
    }

    /// Pins keys of servers that the configuration has and nobody has been asked about, say as it came from another machine.
    fn pin_missing(&self, config: &ClientConfig, keys: &mut HostKeys, quiet: bool) -> anyhow::Result<()> {
        let mut servers: Vec<&Server> = config.default.iter().collect();
        servers.extend(config.mappings.values().map(|mapped| &mapped.server));
        servers.sort();
        servers.dedup();
        for server in servers.into_iter().filter(|server| keys.of(server).is_none()).collect::<Vec<_>>() {
            self.confirmation.pin(server, keys, quiet)?;
            keys.save()?;
        }
        Ok(())
    }
}

impl Confirmation {
    /// Sees to it that `keys` has the key of `server`, as it is now and as somebody has confirmed it.
    pub fn pin(&self, server: &Server, keys: &mut HostKeys, quiet: bool) -> anyhow::Result<()> {
        let key = host_keys::fetch(server)?;
        let fingerprint = key.fingerprint.clone();
        if let Some(expected) = &self.fingerprint {
            if *expected != fingerprint {
                bail!("the key of {server} is not the expected one: its fingerprint is {fingerprint}");
            }
        } else if let Some(pinned) = keys.of(server) {
            if *pinned == key {
                return Ok(());
            }
            let (line, old) = ("@".repeat(59), &pinned.fingerprint);
            writeln!(
                io::stderr(),
                "{line}\n@    WARNING: THE HOST KEY OF A PODSPAWN SERVER HAS CHANGED   @\n{line}\n\
                 Either {server} has a new key, or somebody answers in its place.\n  pinned: {old}\n  now:    {fingerprint}"
            )?;
            bail!(
                "the host key of {server} has changed; if its administrator confirms the new one, pin that: \
                 podspawn setup --server {server} --fingerprint {fingerprint}"
            );
        } else if !self.yes {
            ask(server, &fingerprint)?;
        }
        if !quiet {
            writeln!(io::stderr(), "Pinned the key of {server}: {fingerprint}")?;
        }
        keys.pin(server, key);
        Ok(())
    }
}

fn ask(server: &Server, fingerprint: &str) -> anyhow::Result<()> {
    if !io::stdin().is_terminal() {
        bail!(
            "nobody has confirmed the key of {server}; if its fingerprint is right, pass --fingerprint {fingerprint}"
        );
    }
    write!(
        io::stderr(),
        "The key of {server} has the fingerprint {fingerprint}\n\
         Its administrator can compare: ssh-keygen -lf /etc/podspawn/host_keys/ssh_host_ed25519_key.pub\n\
         Is it the right one (yes/no)? "
    )?;
    let mut answer = String::new();
    io::stdin().lock().take(MAX_ANSWER).read_line(&mut answer).context("cannot read the answer")?;
    if answer.trim() != "yes" && answer.trim() != fingerprint {
        bail!("the key of {server} is not confirmed");
    }
    Ok(())
}

/// The path by which this program is run, with the links that an update keeps pointing to the right file.
fn own_path() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find podspawn's own path")?;
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::env::split_paths(&in_path).filter(|directory| directory.is_absolute());
    let same = |path: &PathBuf| path.canonicalize().is_ok_and(|real| real == own);
    Ok(candidates.map(|directory| directory.join("podspawn")).find(same).unwrap_or(own))
}
