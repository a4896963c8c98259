//! `add-user`, `remove-user` and `list-users`: they change files only, and take effect at the next login.

use std::{
    fs,
    io::{self, Read, Write},
    path::PathBuf,
};

use anyhow::{Context as _, bail};
use clap::Args;

use super::{Session, table};
use crate::{access::users, api::client::ClientError, names::UserName, session::SessionKey};

#[derive(Debug, Args)]
pub struct AddUser {
    /// Name of the user, as in ssh NAME@host
    name: String,
    /// A public key, as in authorized_keys, with options if need be
    #[arg(long, value_name = "KEY", required_unless_present = "key_file")]
    key: Vec<String>,
    /// A file with public keys; - reads standard input
    #[arg(long, value_name = "FILE")]
    key_file: Vec<PathBuf>,
}

impl AddUser {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let name: UserName = self.name.parse()?;
        let mut texts: Vec<_> = self.key.iter().map(|key| ("--key".to_owned(), key.clone())).collect();
        for file in &self.key_file {
            let text = if file.as_os_str() == "-" {
                let mut text = String::new();
                io::stdin().take(1 << 20).read_to_string(&mut text).context("cannot read standard input")?;
                text
            } else {
                fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?
            };
            texts.push((file.display().to_string(), text));
        }
        let added = users::add(&session.config.paths.key_dir, &name, &texts)?;
        session.remark(&format!("{name}: {added} key{} added", if added == 1 { "" } else { "s" }))
    }
}

#[derive(Debug, Args)]
pub struct RemoveUser {
    /// Name of the user
    name: String,
    /// End the user's sessions instead of refusing while there are some
    #[arg(long)]
    force: bool,
}

impl RemoveUser {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let name: UserName = self.name.parse()?;
        let key_dir = &session.config.paths.key_dir;
        if !users::exists(key_dir, &name) {
            bail!("there is no user {name} in {}", key_dir.display());
        }
        let client = session.client();
        let sessions = match client.sessions() {
            Ok(sessions) => sessions,
            Err(ClientError::NotRunning(_)) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let live: Vec<_> =
            sessions.iter().filter(|session| session.user == name.as_str() && session.status != "stopping").collect();
        if !live.is_empty() && !self.force {
            bail!("{name} has {} running; end them with --force", count(live.len(), "session"));
        }
        // First the key, then the sessions: the other way round a client could come back in between.
        users::remove(key_dir, &name)?;
        for session in live {
            let project = session.project.as_deref().map(str::parse).transpose()?;
            let key = SessionKey { user: name.clone(), project };
            match client.stop(&key) {
                // It has ended by itself.
                Ok(()) | Err(ClientError::Refused(_)) => {}
                Err(error) => return Err(error).with_context(|| format!("cannot stop {key}")),
            }
        }
        Ok(())
    }
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[derive(Debug, Args)]
pub struct ListUsers {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl ListUsers {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let (users, warnings) = users::list(&session.config.access())?;
        for warning in warnings {
            writeln!(io::stderr(), "podspawn: warning: {warning}")?;
        }
        if self.json {
            writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&users)?)?;
        } else {
            let rows: Vec<_> = users.iter().map(|user| [user.name.to_string(), user.keys.to_string()]).collect();
            table::print(["USER", "KEYS"], &rows)?;
        }
        Ok(())
    }
}
