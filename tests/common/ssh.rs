//! The real ssh client.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command},
};

use super::{Host, Output, Run};

/// Options that keep the client away from the files and agents of whoever runs the tests, for `-o` of ssh, scp, sftp.
pub fn options(host: &Host) -> Vec<String> {
    [
        "BatchMode=yes".to_owned(),
        "IdentitiesOnly=yes".to_owned(),
        "LogLevel=ERROR".to_owned(),
        "StrictHostKeyChecking=yes".to_owned(),
        "GlobalKnownHostsFile=/dev/null".to_owned(),
        format!("UserKnownHostsFile={}", host.known_hosts().display()),
        format!("Port={}", Host::PORT),
    ]
    .into()
}

/// Makes a key pair without a passphrase; `kind` are options of ssh-keygen(1).
pub fn make_key(path: &Path, kind: &[&str]) {
    Run::new("ssh-keygen").args(["-q", "-N", "", "-C", "test"]).args(kind).arg("-f").arg(path).run().ok();
}

/// One call of ssh.
pub struct Ssh {
    run: Run,
    /// After those of the test: of two values ssh takes the first.
    options: Vec<String>,
    /// The private key, unless an agent holds it.
    identity: Option<PathBuf>,
    destination: String,
    command: String,
}

impl Ssh {
    pub(super) fn new(host: &Host, login: &str, command: &str) -> Self {
        let user = login.split_once('+').map_or(login, |(user, _)| user);
        let mut run = Run::new("ssh").args(["-F", "none"]);
        run.command.env_remove("SSH_AUTH_SOCK").env_remove("LANG").env_remove("LC_ALL");
        let identity = Some(host.key(user));
        Self {
            run,
            options: options(host),
            identity,
            destination: format!("{login}@{}", host.address),
            command: command.to_owned(),
        }
    }

    /// Logs in with another key than the user's own.
    pub fn key(mut self, private: &Path) -> Self {
        self.identity = Some(private.to_owned());
        self
    }

    /// Logs in with the keys of the agent at this socket.
    pub fn agent(mut self, socket: &Path) -> Self {
        self.identity = None;
        self.run = self.run.args(["-o", "IdentitiesOnly=no", "-o", "IdentityFile=none"]).env("SSH_AUTH_SOCK", socket);
        self
    }

    /// Goes to another server than the host's own.
    pub fn at(mut self, address: std::net::Ipv4Addr) -> Self {
        let user = self.destination.split('@').next().unwrap_or_default();
        self.destination = format!("{user}@{address}");
        self
    }

    /// Options of ssh, before the destination.
    pub fn args<I: IntoIterator<Item: AsRef<std::ffi::OsStr>>>(mut self, arguments: I) -> Self {
        self.run = self.run.args(arguments);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.run = self.run.env(name, value);
        self
    }

    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.run = self.run.input(input);
        self
    }

    pub fn deadline(mut self, deadline: std::time::Duration) -> Self {
        self.run = self.run.deadline(deadline);
        self
    }

    fn complete(mut self) -> Run {
        for option in &self.options {
            self.run = self.run.args(["-o", option]);
        }
        if let Some(key) = &self.identity {
            self.run = self.run.arg("-i").arg(key);
        }
        self.run = self.run.arg(&self.destination);
        if !self.command.is_empty() {
            self.run = self.run.arg(&self.command);
        }
        self.run
    }

    #[track_caller]
    pub fn run(self) -> Output {
        self.complete().run()
    }

    /// Starts it with pipes for all three streams; the caller ends it.
    pub fn spawn(self) -> Child {
        self.complete().spawn()
    }

    /// The command itself, for other arrangements.
    pub fn command(self) -> Command {
        self.complete().command
    }
}
