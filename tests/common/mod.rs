//! The world of a black-box test: a private instance of the built binary, driven with the real clients.
//!
//! ```ignore
//! let host = Host::new().user("ada").start();
//! host.ssh("ada", "id -u").run().ok().stdout("1000\n");
//! ```
//!
//! Each host has its own `--root` and its own loopback address, so tests run side by side. When a host goes out of scope
//! its server is told to end, and whatever is left of it in the kernel or on disk fails the test; that is judged with
//! other tools than our own (see `leaks`).

#![allow(dead_code, unused_imports, reason = "each test file is a program of its own and uses a part of this")]

pub mod command;
pub mod fido;
pub mod git;
mod guardian;
pub mod images;
pub mod internet;
pub mod leaks;
pub mod master;
pub mod oci;
pub mod registry;
pub mod snapshot;
pub mod ssh;
pub mod sshd;
pub mod stream;
pub mod trees;
pub mod world;

use std::{
    fs,
    io::{BufRead, BufReader},
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use podspawn::names::InstanceTag;

pub use self::{
    command::{Output, Run},
    git::GitServer,
    images::Image,
    internet::Internet,
    master::Master,
    ssh::Ssh,
    sshd::Sshd,
    stream::Stream,
    trees::{tree, write_old},
};

/// How long anything may take that is waited for. Long, as several tests run at once on two slow cores.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The built program, or the one that `PODSPAWN_TEST_BINARY` names where tests run on another machine than they were built.
pub fn binary() -> PathBuf {
    std::env::var_os("PODSPAWN_TEST_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_podspawn").into(), PathBuf::from)
}

/// Waits until `condition` holds, or fails the test.
#[track_caller]
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    assert!(within(DEADLINE, condition), "not within {DEADLINE:?}: {what}");
}

/// Whether `condition` comes true within `limit`.
pub fn within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a host is going to be.
pub struct Builder {
    users: Vec<String>,
    image: Option<Image>,
    config: String,
    root: Option<PathBuf>,
}

/// A private instance.
pub struct Host {
    pub root: PathBuf,
    pub address: Ipv4Addr,
    /// Removed with the host.
    directory: tempfile::TempDir,
    server: Option<Server>,
    log: Arc<Mutex<String>>,
    /// Whether the end of the test is to find everything removed.
    checked: bool,
    // Last, since it is dropped last.
    _guardian: guardian::Guardian,
}

/// A server of a host that runs.
pub struct Server {
    child: Child,
    reader: std::thread::JoinHandle<()>,
}

impl Server {
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Ends it with `signal` and waits for it.
    pub fn end(mut self, signal: Signal, host: &Host) -> std::process::ExitStatus {
        self.signal(signal);
        let mut status = None;
        let ended = within(DEADLINE, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        if !ended {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
            panic!("the server did not end within {DEADLINE:?} of {signal}; its log:\n{}", host.log());
        }
        // The log's pipe may be held open by connection processes that outlive the server.
        drop(self.reader);
        status.unwrap()
    }
}

impl Host {
    pub const PORT: u16 = 2222;

    /// A host with the busybox image, whose sessions end with their last connection.
    #[allow(clippy::new_ret_no_self, reason = "reads as what a test declares")]
    pub fn new() -> Builder {
        Builder { users: Vec::new(), image: Some(Image::Busybox), config: String::new(), root: None }
    }

    /// Starts the server and waits until it listens.
    pub fn serve(&mut self) {
        if let Err(said) = self.try_serve() {
            panic!("the server did not start: {said}");
        }
    }

    /// Starts the server as `change` wants it.
    pub fn serve_with(&mut self, change: impl FnOnce(&mut Command)) {
        let mut command = self.server_command();
        change(&mut command);
        if let Err(said) = self.try_serve_as(command) {
            panic!("the server did not start: {said}");
        }
    }

    /// Starts the server; what it said if it ends instead of listening.
    pub fn try_serve(&mut self) -> Result<(), String> {
        self.try_serve_as(self.server_command())
    }

    fn try_serve_as(&mut self, command: Command) -> Result<(), String> {
        assert!(self.server.is_none(), "the server runs already");
        self.server = Some(self.start_server(command)?);
        Ok(())
    }

    /// The server, for a test that has others use the host meanwhile.
    pub fn take_server(&mut self) -> Server {
        self.server.take().expect("the server runs")
    }

    /// Gives it back.
    pub fn give_server(&mut self, server: Server) {
        self.server = Some(server);
    }

    /// Starts a server as `change` wants it, which is the caller's to end or to give back.
    pub fn start_server_with(&self, change: impl FnOnce(&mut Command)) -> Server {
        let mut command = self.server_command();
        change(&mut command);
        self.start_server(command).unwrap_or_else(|said| panic!("the server did not start: {said}"))
    }

    fn start_server(&self, mut command: Command) -> Result<Server, String> {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (listening, started) = mpsc::channel();
        let log = self.log.clone();
        let address = format!("listening on {}:", self.address);
        let reader = std::thread::spawn(move || {
            for line in stderr.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                if line.contains(&address) {
                    // Only the first is waited for.
                    let _ = listening.send(());
                }
                let mut log = log.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let said = |log: &Mutex<String>| log.lock().unwrap().clone();
        match started.recv_timeout(DEADLINE) {
            Ok(()) => {
                self.trust_host_keys();
                Ok(Server { child, reader })
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let status = child.wait().unwrap();
                Err(format!("{}{status}", said(&self.log)))
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                child.kill().unwrap();
                child.wait().unwrap();
                Err(format!("{}it does not listen after {DEADLINE:?}", said(&self.log)))
            }
        }
    }

    /// `podspawn serve` of this host, to be started by somebody else.
    pub fn server_command(&self) -> Command {
        let mut command = Command::new(binary());
        command.arg("--root").arg(&self.root).arg("serve").stdin(Stdio::null()).stdout(Stdio::null());
        command.env_remove("SSH_AUTH_SOCK");
        command
    }

    /// Lets clients know the host keys, which the server has made.
    pub fn trust_host_keys(&self) {
        let mut known = String::new();
        for entry in fs::read_dir(self.root.join("etc/podspawn/host_keys")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "pub") {
                let key = fs::read_to_string(path).unwrap();
                known.push_str(&format!("[{}]:{} {}\n", self.address, Self::PORT, key.trim()));
            }
        }
        // Clients may be reading it.
        if fs::read_to_string(self.known_hosts()).ok().as_ref() != Some(&known) {
            let beside = self.known_hosts().with_extension("new");
            fs::write(&beside, known).unwrap();
            fs::rename(beside, self.known_hosts()).unwrap();
        }
    }

    pub fn known_hosts(&self) -> PathBuf {
        self.directory.path().join("known_hosts")
    }

    /// The private key of a user.
    pub fn key(&self, user: &str) -> PathBuf {
        self.directory.path().join(format!("{user}.key"))
    }

    /// A directory for the test's own files, outside the instance's root.
    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    pub fn config_file(&self) -> PathBuf {
        self.root.join("etc/podspawn/config.yaml")
    }

    pub fn audit_log(&self) -> PathBuf {
        self.root.join("audit.log")
    }

    /// Makes a key pair and gives the user access.
    pub fn add_user(&self, user: &str) {
        ssh::make_key(&self.key(user), &["-t", "ed25519"]);
        let public = self.key(user).with_extension("key.pub");
        self.podspawn(["add-user", user, "--key-file", public.to_str().unwrap()]).run().ok();
    }

    /// `podspawn --root ROOT ARGUMENTS`
    pub fn podspawn<I: IntoIterator<Item: AsRef<std::ffi::OsStr>>>(&self, arguments: I) -> Run {
        Run::new(binary()).arg("--root").arg(&self.root).args(arguments)
    }

    /// The output of a command with `--json`, parsed.
    pub fn json<I: IntoIterator<Item: AsRef<std::ffi::OsStr>>>(&self, arguments: I) -> serde_json::Value {
        let output = self.podspawn(arguments).arg("--json").run();
        output.ok();
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The output of a command that prints JSON anyway.
    pub fn json_of<I: IntoIterator<Item: AsRef<std::ffi::OsStr>>>(&self, arguments: I) -> serde_json::Value {
        let output = self.podspawn(arguments).run();
        output.ok();
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// `curl ARGUMENTS http://podspawn/PATH` through the control socket.
    pub fn curl(&self, arguments: &[&str], path: &str) -> Run {
        let socket = self.root.join("run/podspawn/podspawn.sock");
        let url = format!("http://podspawn{path}");
        Run::new("curl").args(["-sS", "--unix-socket"]).arg(socket).args(arguments).arg(url)
    }

    /// What the control API answers: the status, and the body where it is JSON, or lines of JSON.
    pub fn api(&self, method: &str, path: &str, body: Option<&serde_json::Value>) -> (u16, serde_json::Value) {
        let body = body.map(ToString::to_string);
        let mut arguments = vec!["-X", method, "-w", "\n%{http_code}"];
        if let Some(body) = &body {
            arguments.extend(["-H", "Content-Type: application/json", "-d", body]);
        }
        let answer = self.curl(&arguments, path).run().ok().text();
        let (body, status) = answer.rsplit_once('\n').unwrap();
        let mut lines: Vec<serde_json::Value> =
            body.lines().map(|line| serde_json::from_str(line).unwrap_or(serde_json::Value::Null)).collect();
        let value = if lines.len() == 1 { lines.remove(0) } else { lines.into() };
        (status.parse().unwrap(), value)
    }

    /// The directory of the image store.
    pub fn images(&self) -> PathBuf {
        self.root.join("var/lib/podspawn/images")
    }

    /// Gives the host a store of its own with the images that it shares with others, so that they do not find what is built
    /// here. Before it serves.
    pub fn own_images(&self) {
        let shared = fs::read_link(self.images()).unwrap();
        fs::remove_file(self.images()).unwrap();
        Run::new("cp").arg("-al").arg(shared).arg(self.images()).run().ok();
        Run::new("rm").arg("-rf").arg(self.images().join("builds")).run().ok();
    }

    /// The sessions as `list --json` shows them.
    pub fn sessions(&self) -> Vec<serde_json::Value> {
        self.json(["list"]).as_array().unwrap().clone()
    }

    /// `ssh USER@host COMMAND`; an empty command asks for a shell.
    pub fn ssh(&self, login: &str, command: &str) -> Ssh {
        Ssh::new(self, login, command)
    }

    /// The server's pid.
    pub fn pid(&self) -> i32 {
        self.server.as_ref().expect("the server runs").pid()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Ends the server with `signal` and waits for it.
    pub fn end(&mut self, signal: Signal) -> std::process::ExitStatus {
        self.take_server().end(signal, self)
    }

    /// Whether the server has ended by itself; then another one may be started.
    pub fn has_ended(&mut self) -> bool {
        let ended = self.server.as_mut().is_none_or(|server| server.child.try_wait().unwrap().is_some());
        if ended {
            self.server = None;
        }
        ended
    }

    /// What the server has written to stderr so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The audit log's events.
    pub fn audit(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.audit_log()).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("an audit line is JSON")).collect()
    }

    /// Pids of processes of this host whose arguments contain `word`: `serve`, `connection` or `spawner`.
    pub fn processes(&self, word: &str) -> Vec<i32> {
        leaks::processes(&self.root, word)
    }

    /// The pid of the process that makes containers; `None` if it has died and none was made since.
    pub fn spawner(&self) -> Option<i32> {
        let pids = leaks::processes_named(&format!("ps{}spawner", InstanceTag::of_root(&self.root).as_str()));
        assert!(pids.len() < 2, "one spawner: {pids:?}");
        pids.first().copied()
    }

    /// The pid of the user's container's init.
    pub fn init(&self, user: &str) -> i32 {
        let sessions = self.sessions();
        let session = sessions.iter().find(|session| session["user"] == user);
        let pid = session.and_then(|session| session["pid"].as_i64());
        pid.unwrap_or_else(|| panic!("{user} has no container: {sessions:?}")) as i32
    }

    /// The pids of the user's connection processes.
    pub fn connections(&self, user: &str) -> Vec<i32> {
        let query =
            format!("select c.pid from connections c join sessions s on c.session = s.id where s.user = '{user}'");
        self.sql(&query).lines().map(|pid| pid.parse().unwrap()).collect()
    }

    /// Asks or changes the database with sqlite3(1).
    pub fn sql(&self, query: &str) -> String {
        let output = Run::new("sqlite3").arg(self.root.join("var/lib/podspawn/state.db")).arg(query).run();
        output.ok().text()
    }

    /// For a test that leaves something behind on purpose, or ends the host itself.
    pub fn unchecked(&mut self) {
        self.checked = false;
    }

    /// Waits until only these users' sessions are left, and asserts that nothing of another one is.
    #[track_caller]
    pub fn assert_only_left(&self, users: &[&str]) {
        let mut found = Vec::new();
        let gone = within(Duration::from_secs(5), || {
            let ids = self.sql("select id || ' ' || user from sessions");
            let kept: Vec<_> = ids.lines().filter_map(|line| line.split_once(' ')).collect();
            let of_kept = |line: &str| kept.iter().any(|(id, user)| users.contains(user) && line.contains(id));
            found = leaks::of_sessions(&self.root);
            found.retain(|line| !of_kept(line));
            found.is_empty()
        });
        assert!(gone, "left of sessions of others than {users:?}: {found:#?}");
    }

    /// Waits until no session is left, and asserts that nothing of one is.
    #[track_caller]
    pub fn assert_no_session_left(&self) {
        let mut found = Vec::new();
        let gone = within(Duration::from_secs(5), || {
            found = leaks::of_sessions(&self.root);
            found.is_empty()
        });
        assert!(gone, "left of sessions: {found:#?}");
    }
}

impl Builder {
    pub fn user(mut self, name: &str) -> Self {
        self.users.push(name.to_owned());
        self
    }

    pub fn image(mut self, image: Image) -> Self {
        self.image = Some(image);
        self
    }

    /// Without any image.
    pub fn no_image(mut self) -> Self {
        self.image = None;
        self
    }

    /// More of config.yaml: one section at a time, e.g. `"session:\n  mode: grace-period"`. `listen`, `defaults.image` and
    /// `log.audit_log` are set already; `session.mode` is destroy-on-disconnect unless a session section is given.
    pub fn config(mut self, yaml: &str) -> Self {
        self.config.push_str(yaml.trim_end());
        self.config.push('\n');
        self
    }

    /// Puts the instance's root there instead of into a directory of its own.
    pub fn root(mut self, root: &Path) -> Self {
        self.root = Some(root.to_owned());
        self
    }

    /// Everything but the server.
    pub fn prepare(self) -> Host {
        let directory = tempfile::Builder::new().prefix("podspawn-test-").tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let root = self.root.unwrap_or_else(|| directory.path().join("root"));
        fs::create_dir_all(root.join("etc/podspawn")).unwrap();
        let root = root.canonicalize().unwrap();
        let guardian = guardian::Guardian::watch(&root, directory.path());
        let host = Host {
            root,
            address: own_address(),
            directory,
            server: None,
            log: Arc::default(),
            checked: true,
            _guardian: guardian,
        };
        let mut config = format!("listen: \"{}:{}\"\n", host.address, Host::PORT);
        config.push_str(&format!("log:\n  audit_log: {}\n", host.audit_log().display()));
        let mut defaults = self.config.clone();
        if let Some(image) = self.image {
            let line = format!("defaults:\n  image: {}\n", image.reference());
            defaults = if defaults.contains("defaults:\n") {
                defaults.replace("defaults:\n", &line)
            } else {
                line + &defaults
            };
        }
        if !defaults.contains("per_source_penalties") {
            // All clients come from one address, and many fail on purpose.
            let line = "auth:\n  per_source_penalties: {enabled: false}\n";
            defaults = if defaults.contains("auth:\n") {
                defaults.replace("auth:\n", line)
            } else {
                line.to_owned() + &defaults
            };
        }
        if !defaults.contains("session:\n") {
            defaults.push_str("session:\n  mode: destroy-on-disconnect\n");
        }
        fs::write(host.config_file(), config + &defaults).unwrap();
        if let Some(image) = self.image {
            image.install(&host);
        }
        for user in &self.users {
            host.add_user(user);
        }
        host
    }

    pub fn start(self) -> Host {
        let mut host = self.prepare();
        host.serve();
        host
    }
}

/// A loopback address that no other test uses at the same time: of the process's pid and a counter.
pub fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(2);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high | 128, low, NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of the server at {} ----\n{}----", self.root.display(), self.log());
        }
        if self.server.is_some() {
            self.end(Signal::SIGINT);
        }
        if self.checked && !std::thread::panicking() {
            let mut found = Vec::new();
            within(Duration::from_secs(10), || {
                found = leaks::of_instance(&self.root);
                found.is_empty()
            });
            assert!(found.is_empty(), "left behind: {found:#?}\nlog of the server:\n{}", self.log());
            // It may complain about the host for good reasons.
            let doctor = self.podspawn(["doctor", "--json"]).run();
            let found: serde_json::Value = serde_json::from_str(&doctor.text()).unwrap();
            let leftovers = found["checks"].as_array().unwrap().iter().find(|check| check["name"] == "leftovers");
            assert!(leftovers.is_some_and(|check| check["verdict"] == "pass"), "{doctor}");
        }
    }
}
