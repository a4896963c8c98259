//! `add-user`, `remove-user` and `list-users`: they change files only, and take effect at the next login.

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args;

use super::{Session, github, table};
use crate::{
    access::{published, users},
    api::client::{Client, ClientError},
    config::Config,
    names::UserName,
    session::{SessionKey, evidence::Records, homes, remove_volumes_of},
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

/// How long sessions may take to be gone, and how often to look.
const GONE_LIMIT: Duration = Duration::from_secs(60);
const GONE_POLL: Duration = Duration::from_millis(100);

impl RemoveUser {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let name: UserName = self.name.parse()?;
        let belongings = Belongings::of(session.config, &name);
        let key_dir = &session.config.paths.key_dir;
        let has_keys = users::exists(key_dir, &name);
        let is_known = has_keys || (self.purge && belongings.exist());
        if !is_known {
            bail!("there is no user {name} in {}", key_dir.display());
        }
        let client = session.client();
        let sessions = match client.sessions() {
            Ok(sessions) => sessions,
            Err(ClientError::NotRunning(_)) => {
                if self.purge {
                    no_session_left_behind(&session.config.paths.db, &name)?;
                }
                Vec::new()
            }
            Err(error) => return Err(error.into()),
        };
        let live: Vec<_> =
            sessions.iter().filter(|session| session.user == name.as_str() && session.status != "stopping").collect();
        if !live.is_empty() && !self.force {
            bail!("{name} has {} running; end them with --force", count(live.len(), "session"));
        }
        // First the key, then the sessions: the other way round a client could come back in between.
        if has_keys {
            users::remove(key_dir, &name)?;
        }
        for session in live {
            let project = session.project.as_deref().map(str::parse).transpose()?;
            let key = SessionKey { user: name.clone(), project };
            match client.stop(&key) {
                // It has ended by itself.
                Ok(()) | Err(ClientError::Refused(_)) => {}
                Err(error) => return Err(error).with_context(|| format!("cannot stop {key}")),
            }
        }
        if self.purge {
            if sessions.iter().any(|session| session.user == name.as_str()) {
                wait_until_gone(&client, &name)?;
            }
            belongings.remove(session)?;
            // Those of the sessions that have just ended, too.
            let records =
                Records::new(&session.config.paths.state_dir.join("records"), session.config.session.keep_records);
            let forgotten = records.forget(&name).context("cannot remove the records of the user's sessions")?;
            if forgotten > 0 {
                session.remark(&format!("{name}: removed {} of past sessions", count(forgotten, "record")))?;
            }
        }
        Ok(())
    }
}

/// What there is of a user beside keys and sessions.
struct Belongings {
    name: UserName,
    home: PathBuf,
    volumes: PathBuf,
    settings: PathBuf,
}

impl Belongings {
    fn of(config: &Config, name: &UserName) -> Self {
        let paths = &config.paths;
        Self {
            name: name.clone(),
            home: paths.homes.join(name.as_str()),
            volumes: paths.state_dir.join("volumes"),
            settings: paths.users_dir.join(format!("{name}.yaml")),
        }
    }

    fn exist(&self) -> bool {
        self.home.exists() || self.volumes.join(self.name.as_str()).exists() || self.settings.exists()
    }

    fn remove(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let name = &self.name;
        if homes::remove(&self.home)? {
            session.remark(&format!("{name}: removed the home directory {}", self.home.display()))?;
        }
        if remove_volumes_of(&self.volumes, name).with_context(|| format!("cannot remove the volumes of {name}"))? {
            session.remark(&format!("{name}: removed the volumes"))?;
        }
        match fs::remove_file(&self.settings) {
            Ok(()) => session.remark(&format!("{name}: removed {}", self.settings.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot remove {}", self.settings.display())),
        }
    }
}

/// Sessions outlive the server, and what they use is not to be removed under them.
fn no_session_left_behind(db: &Path, name: &UserName) -> anyhow::Result<()> {
    if db.exists() && State::open(db)?.sessions()?.iter().any(|session| session.user == *name) {
        bail!("a session of {name} may still run, and podspawn does not; start it with: podspawn serve");
    }
    Ok(())
}

fn wait_until_gone(client: &Client, name: &UserName) -> anyhow::Result<()> {
    let end = Instant::now() + GONE_LIMIT;
    while client.sessions()?.iter().any(|session| session.user == name.as_str()) {
        if Instant::now() >= end {
            bail!("the sessions of {name} are still being removed; try again");
        }
        std::thread::sleep(GONE_POLL);
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
