//! Git repositories, and a server for them on loopback.

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::{
    Internet, Run, eventually, own_address,
    world::{self, World},
};

/// `git daemon` with a directory of repositories.
pub struct GitServer {
    pub address: Ipv4Addr,
    child: Child,
    directory: tempfile::TempDir,
}

/// A repository that is changed by the test.
pub struct Repository {
    path: PathBuf,
    /// Where it is cloned from.
    pub url: String,
}

impl GitServer {
    pub const PORT: u16 = 9418;

    pub fn start() -> Self {
        Self::run(own_address(), Command::new("setpriv"))
    }

    /// One in the internet, where sessions may connect to.
    pub fn start_in(world: &World) -> Self {
        Self::run(world::PUBLIC.parse().unwrap(), world.enter_with("setpriv"))
    }

    /// On one machine of it.
    pub fn start_on(internet: &Internet) -> Self {
        Self::run(internet.address, internet.command("setpriv"))
    }

    /// The daemon ends with this test, also if that is killed.
    fn run(address: Ipv4Addr, mut setpriv: Command) -> Self {
        let directory = tempfile::Builder::new().prefix("podspawn-test-git-").tempdir().unwrap();
        // Not by way of git, which would be its parent and die alone.
        let programs = Run::new("git").arg("--exec-path").run().ok().text();
        let child = setpriv
            .args(["--pdeathsig", "KILL", &format!("{}/git-daemon", programs.trim()), "--export-all", "--reuseaddr"])
            .arg(format!("--listen={address}"))
            .arg(format!("--base-path={}", directory.path().display()))
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { address, child, directory };
        eventually("git daemon listens", || TcpStream::connect((address, Self::PORT)).is_ok());
        server
    }

    /// A repository with these files (path and content), and one commit on `main`.
    pub fn repository(&self, name: &str, files: &[(&str, &str)]) -> Repository {
        let path = self.directory.path().join(name);
        Run::new("git").args(["init", "-q", "-b", "main"]).arg(&path).run().ok();
        let repository = Repository { path, url: format!("git://{}/{name}", self.address) };
        repository.commit(files);
        repository
    }
}

impl Repository {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `git ARGUMENTS` in it.
    pub fn git(&self, arguments: &[&str]) -> String {
        let identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"];
        let run = Run::new("git").arg("-C").arg(&self.path).args(identity).args(arguments);
        let output = run.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1").run();
        output.ok().text().trim().to_owned()
    }

    /// Writes the files and commits everything. Returns the commit.
    pub fn commit(&self, files: &[(&str, &str)]) -> String {
        for (name, content) in files {
            let file = self.path.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, content).unwrap();
        }
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", "change"]);
        self.git(&["rev-parse", "HEAD"])
    }
}

impl Drop for GitServer {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
