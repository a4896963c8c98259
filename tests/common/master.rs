//! A connection that several calls of ssh share (ControlMaster), and that can be told to forward more.

use std::{io::Read, path::PathBuf, process::Child};

use super::{Host, Output, Ssh, eventually};

pub struct Master<'a> {
    host: &'a Host,
    login: String,
    /// Whose server it goes to, if not the host's.
    address: Option<std::net::Ipv4Addr>,
    socket: PathBuf,
    child: Child,
}

impl<'a> Master<'a> {
    /// Logs in, with more options of ssh.
    pub fn start(host: &'a Host, login: &str, options: &[&str]) -> Self {
        Self::start_at(host, login, None, options)
    }

    pub fn start_at(host: &'a Host, login: &str, address: Option<std::net::Ipv4Addr>, options: &[&str]) -> Self {
        let number = std::fs::read_dir(host.scratch()).unwrap().count();
        let socket = host.scratch().join(format!("m{number}"));
        let mut ssh = host.ssh(login, "");
        if let Some(address) = address {
            ssh = ssh.at(address);
        }
        let child = ssh.args(["-M", "-N", "-S"]).args([&socket]).args(options).spawn();
        let master = Self { host, login: login.to_owned(), address, socket, child };
        eventually("the master is connected", || master.control(&["check"]).status == Some(0));
        master
    }

    fn through(&self, command: &str) -> Ssh {
        let ssh = self.host.ssh(&self.login, command).args(["-S"]).args([&self.socket]);
        match self.address {
            Some(address) => ssh.at(address),
            None => ssh,
        }
    }

    /// `ssh COMMAND` over this connection.
    pub fn ssh(&self, command: &str) -> Ssh {
        self.through(command).args(["-o", "ControlMaster=no"])
    }

    /// `ssh -O ARGUMENTS`: `check`, `forward -L ...`, `cancel -R ...`.
    pub fn control(&self, arguments: &[&str]) -> Output {
        self.through("").args(["-O"]).args(arguments).run()
    }

    /// Ends the connection; returns what the client wrote to stderr.
    pub fn end(mut self) -> String {
        self.exit();
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }

    /// The client dies without a word.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Not by a signal: the client of Debian 12 may first wait for the server's next word after one.
    fn exit(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            // It may be on its way out already.
            self.control(&["exit"]);
            eventually("the master ends", || self.child.try_wait().unwrap().is_some());
        }
    }
}

impl Drop for Master<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        } else {
            self.exit();
        }
    }
}
