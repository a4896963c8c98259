//! `add-user`, `remove-user` and `list-users`: what they change are files, which count at the next login, and work without a
//! server too. Where there is one, it is that which removes users, as it has their sessions.

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Args;

use super::{Session, table};
use crate::{
    access::{published, users},
    api::{client::ClientError, types::RemovedUser},
    config::Config,
    http::github,
    names::UserName,
    session::belongings::{Belongings, Removed},
    state::State,
};

#[derive(Debug, Args)]
pub struct AddUser {
    /// Name of the user, as in ssh NAME@host
    name: String,
    /// A public key, as in authorized_keys, with options if need be
    #[arg(long, value_name = "KEY", required_unless_present_any = ["key_file", "github"])]
    key: Vec<String>,
    /// A file with public keys; - reads standard input
    #[arg(long, value_name = "FILE")]
    key_file: Vec<PathBuf>,
    /// A GitHub user whose public keys to add, as they are now
    #[arg(long, value_name = "LOGIN")]
    github: Vec<String>,
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
        for login in &self.github {
            let published = github::keys(&session.config.auth.github_url, login)?;
            let (keys, complaints) = published::keys(&published, &format!("{login}@github"));
            for complaint in complaints {
                writeln!(io::stderr(), "podspawn: warning: keys of {login} at GitHub: {complaint}")?;
            }
            if keys.is_empty() {
                bail!("{login} has no usable public key at GitHub");
            }
            texts.push((format!("--github {login}"), keys.join("\n")));
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
    /// Also remove the user's home, volumes, settings, and the records of past sessions
    #[arg(long)]
    purge: bool,
}

impl RemoveUser {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let name: UserName = self.name.parse()?;
        let removed = match session.client().remove_user(&name, self.force, self.purge) {
            Ok(RemovedUser { removed, .. }) => removed,
            Err(ClientError::NotRunning(_)) => self.without_server(session.config, &name)?,
            Err(ClientError::Conflict(error)) => bail!("{error}; end them with --force"),
            Err(error) => return Err(error.into()),
        };
        if let Some(home) = removed.home {
            session.remark(&format!("{name}: removed the home directory {}", home.display()))?;
        }
        if removed.volumes {
            session.remark(&format!("{name}: removed the volumes"))?;
        }
        if let Some(settings) = removed.settings {
            session.remark(&format!("{name}: removed {}", settings.display()))?;
        }
        if removed.records > 0 {
            session.remark(&format!("{name}: removed {} of past sessions", count(removed.records, "record")))?;
        }
        Ok(())
    }

    fn without_server(&self, config: &Config, name: &UserName) -> anyhow::Result<Removed> {
        let key_dir = &config.paths.key_dir;
        let belongings = self.purge.then(|| Belongings::of(config, name));
        if belongings.is_some() {
            no_session_left_behind(&config.paths.db, name)?;
        }
        if users::exists(key_dir, name) || !belongings.as_ref().is_some_and(Belongings::exist) {
            users::remove(key_dir, name)?;
        }
        Ok(belongings.map(|belongings| belongings.remove()).transpose()?.unwrap_or_default())
    }
}

/// Sessions outlive the server, and what they use is not to be removed under them.
fn no_session_left_behind(db: &Path, name: &UserName) -> anyhow::Result<()> {
    if db.exists() && State::open(db)?.sessions()?.iter().any(|session| session.user == *name) {
        bail!("a session of {name} may still run, and podspawn does not; start it with: podspawn serve");
    }
    Ok(())
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
