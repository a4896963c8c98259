//! Somebody at a machine of their own: with a home directory that nobody else has, and programs that are used as they are.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::common::{Host, Run, binary};

pub struct Person {
    home: PathBuf,
}

impl Person {
    /// Has the key of ada on `host`, and nothing else.
    pub fn new(host: &Host) -> Self {
        Self::with_key_of(host, "ada")
    }

    fn with_key_of(host: &Host, user: &str) -> Self {
        let home = host.scratch().join("home");
        fs::create_dir_all(home.join(".ssh")).unwrap();
        fs::set_permissions(home.join(".ssh"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::copy(host.key(user), home.join(".ssh/id_ed25519")).unwrap();
        Self { home }
    }

    /// As [`Person::new`], and has run `podspawn setup` for the host.
    pub fn set_up(host: &Host) -> Self {
        Self::set_up_as(host, "ada")
    }

    /// As [`Person::set_up`], with the key of another user.
    pub fn set_up_as(host: &Host, user: &str) -> Self {
        let person = Self::with_key_of(host, user);
        person.podspawn(&["setup", "--server", &server(host), "--fingerprint", &fingerprint(host)]).run().ok();
        person
    }

    /// A file of theirs.
    pub fn file(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.file(name).parent().unwrap()).unwrap();
        fs::write(self.file(name), text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }

    /// A program of theirs. Tests run as root, and ssh asks nobody but the password database where root's home is; so
    /// theirs is put there, for this program alone.
    pub fn run(&self, program: impl AsRef<Path>) -> Run {
        let enter = r#"mount --bind "$0" /root && cd /root && exec "$@""#;
        let run = Run::new("unshare").args(["-m", "sh", "-c", enter]).arg(&self.home).arg(program.as_ref());
        without_agent(run.env("HOME", "/root"))
    }

    pub fn podspawn(&self, arguments: &[&str]) -> Run {
        self.run(binary()).args(arguments)
    }

    /// `ssh DESTINATION COMMAND`
    pub fn ssh(&self, destination: &str, command: &str) -> Run {
        self.run("ssh").args([destination, command])
    }
}

fn without_agent(mut run: Run) -> Run {
    for name in ["SSH_AUTH_SOCK", "PODSPAWN_PROJECT", "LANG", "LC_ALL"] {
        run.command.env_remove(name);
    }
    run
}

/// The host's address, as a person writes it.
pub fn server(host: &Host) -> String {
    format!("{}:{}", host.address, Host::PORT)
}

/// The fingerprint of its key, as its administrator finds it.
pub fn fingerprint(host: &Host) -> String {
    let key = host.root.join("etc/podspawn/host_keys/ssh_host_ed25519_key.pub");
    let output = Command::new("ssh-keygen").arg("-lf").arg(key).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').nth(1).unwrap().to_owned()
}
