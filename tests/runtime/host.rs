//! An instance without a server: a spawner, a busybox layer, and containers made by hand.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    ops::Deref,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use podspawn::{
    names::{InstanceTag, SessionId},
    protocol::{
        Account, CgroupJoin, ContainerSpec, Exec, ExitStatus, FromInit, Program, Pty, Rlimits, SecuritySpec, ToInit,
        wire,
    },
    runtime::{Container, RuntimeError, Spawner, listing, rootfs},
    sys::seqpacket,
};

use crate::guardian::Guardian;

/// How long anything may take that a test waits for.
const LIMIT: Duration = Duration::from_secs(30);

const CAPABILITIES: [&str; 11] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// An instance of its own: a directory tree, a spawner, and a layer named `busybox`.
pub(crate) struct Host {
    pub(crate) tag: InstanceTag,
    pub(crate) spawner: Spawner,
    next: AtomicU32,
    // Last, so that they are dropped last.
    root: tempfile::TempDir,
    _guardian: Guardian,
}

impl Host {
    pub(crate) fn new() -> Self {
        let root = tempfile::Builder::new().prefix("podspawn-runtime-").tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let tag = InstanceTag::of_root(root.path());
        let guardian = Guardian::watch(root.path(), root.path());
        let binary = std::env::var_os("PODSPAWN_TEST_BINARY").unwrap_or(env!("CARGO_BIN_EXE_podspawn").into());
        let spawner = Spawner::start_program(Path::new(&binary), &root.path().join("run/spawner"), &tag).unwrap();
        let host = Self { tag, spawner, next: AtomicU32::new(0), root, _guardian: guardian };
        busybox_layer(&host.layer("busybox"));
        host
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    pub(crate) fn layer(&self, name: &str) -> PathBuf {
        let path = self.root.path().join("layers").join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    pub(crate) fn spec(&self, user: Option<&str>) -> ContainerSpec {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let session = SessionId::from_bits(u64::from(number) + 1);
        let dir = self.session_dir(&session);
        ContainerSpec {
            container: session.into(),
            hostname: "greenhouse".to_owned(),
            id_base: 1_900_000_000 + number * 65_536,
            layers_root: self.root.path().join("layers"),
            layers: vec!["busybox".to_owned()],
            upperdir: dir.join("upper"),
            own_disk: false,
            workdir: dir.join("work"),
            volumes: Vec::new(),
            cgroup: CgroupJoin::V1 { count: 0 },
            account: Account {
                user: user.map(|user| user.parse().unwrap()),
                shell: "/bin/bash".to_owned(),
                sudo: true,
                owner: "ada".parse().unwrap(),
                project: None,
            },
            env: vec![("FROM_IMAGE".to_owned(), "yes".to_owned()), ("bad=name".to_owned(), "x".to_owned())],
            workdir_inside: None,
            resolv_conf: "nameserver 10.1.2.3\n".to_owned(),
            hosts: "127.0.0.1 localhost\n127.0.1.1 greenhouse\n".to_owned(),
            security: SecuritySpec {
                capabilities: CAPABILITIES.iter().map(|&name| name.to_owned()).collect(),
                no_new_privileges: false,
                readonly_rootfs: false,
                tmpfs: BTreeMap::new(),
                seccomp: true,
                seccomp_profile: None,
                nested: false,
            },
            rlimits: Rlimits { nofile_soft: 1024, nofile_hard: 65_536, core: 0, memlock: 8 << 20 },
            shm_bytes: 64 << 20,
        }
    }

    pub(crate) fn session_dir(&self, session: &SessionId) -> PathBuf {
        self.root.path().join("sessions").join(session.as_str())
    }

    pub(crate) fn try_create(&self, spec: &ContainerSpec, cgroup_fds: &[OwnedFd]) -> Result<Guest<'_>, RuntimeError> {
        let dir = self.session_dir(&spec.container.session);
        rootfs::prepare(&dir, spec.id_base).unwrap();
        let socket = self.root.path().join("run").join(format!("{}.sock", spec.container.session));
        let listener = seqpacket::listen(&socket, 16).unwrap();
        let cgroup_fds: Vec<_> = cgroup_fds.iter().map(AsFd::as_fd).collect();
        match self.spawner.create(spec, new_netns().as_fd(), listener.as_fd(), &cgroup_fds) {
            Ok(container) => {
                let client = Client::connect(&socket);
                Ok(Guest { host: self, session: spec.container.session.clone(), container, socket, client })
            }
            Err(error) => {
                rootfs::remove(&dir).unwrap();
                Err(error)
            }
        }
    }

    pub(crate) fn create(&self, spec: &ContainerSpec) -> Guest<'_> {
        self.try_create(spec, &[]).unwrap()
    }

    pub(crate) fn ada(&self) -> Guest<'_> {
        self.create(&self.spec(Some("ada")))
    }

    pub(crate) fn assert_clean(&self) {
        let left = listing(&self.tag, &self.root.path().join("sessions")).unwrap();
        assert!(left.is_empty(), "{left:?}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.root.path().to_str().unwrap()), "{mounts}");
    }
}

/// A network namespace that nobody lives in.
fn new_netns() -> OwnedFd {
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        fs::File::open("/proc/thread-self/ns/net").unwrap().into()
    })
    .join()
    .unwrap()
}

fn busybox_layer(dir: &Path) {
    for name in ["bin", "sbin", "usr/bin", "etc", "root", "home", "tmp", "var", "run", "proc", "sys", "dev"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", dir.join("bin/busybox")).unwrap();
    let applets = Command::new("/bin/busybox").arg("--list").output().unwrap().stdout;
    for applet in String::from_utf8(applets).unwrap().lines().filter(|&name| name != "busybox") {
        symlink("busybox", dir.join("bin").join(applet)).unwrap();
    }
    fs::set_permissions(dir.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(dir.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nubuntu:x:1000:1000::/home/ubuntu:/bin/sh\n")
        .unwrap();
    fs::write(dir.join("etc/group"), "root:x:0:\ntty:x:5:\nadm:x:4:ubuntu\nubuntu:x:1000:\n").unwrap();
    symlink("../run/systemd/resolve/stub-resolv.conf", dir.join("etc/resolv.conf")).unwrap();
}

/// A container, with one client.
pub(crate) struct Guest<'a> {
    host: &'a Host,
    pub(crate) session: SessionId,
    pub(crate) container: Container,
    pub(crate) socket: PathBuf,
    client: Client,
}

impl Deref for Guest<'_> {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Guest<'_> {
    pub(crate) fn end(self) {
        self.container.kill().unwrap();
        assert!(self.container.wait(LIMIT));
        rootfs::remove(&self.host.session_dir(&self.session)).unwrap();
        fs::remove_file(&self.socket).unwrap();
    }
}

/// A client's socket to an init.
pub(crate) struct Client {
    pub(crate) init: OwnedFd,
    next: AtomicU32,
}

/// What a process said and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Output {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) status: ExitStatus,
}

impl Client {
    pub(crate) fn connect(socket: &Path) -> Self {
        let deadline = Instant::now() + LIMIT;
        let init = loop {
            match seqpacket::connect(socket) {
                // The backlog is full, until init has its turn.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                other => break other.unwrap(),
            }
        };
        Self { init, next: AtomicU32::new(1) }
    }

    pub(crate) fn receive(&self) -> (FromInit, Vec<OwnedFd>) {
        receive(&self.init).expect("init is there")
    }

    pub(crate) fn start(
        &self,
        program: Program,
        pty: Option<Pty>,
        env: &[(&str, &str)],
    ) -> (u32, Result<Vec<OwnedFd>, (u8, String)>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let env = env.iter().map(|(n, v)| (n.as_bytes().to_vec().into(), v.as_bytes().to_vec().into())).collect();
        let exec = Exec { pty, env, ..Exec::new(id, program) };
        wire::send(self.init.as_fd(), &ToInit::Exec(Box::new(exec)), &[]).unwrap();
        match self.receive() {
            (FromInit::Started { id: started, .. }, fds) => {
                assert_eq!(started, id);
                (id, Ok(fds))
            }
            (FromInit::Refused { id: refused, status, message }, _) => {
                assert_eq!(refused, id);
                (id, Err((status, message)))
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn exited(&self, id: u32) -> ExitStatus {
        match self.receive() {
            (FromInit::Exited { id: exited, status }, _) if exited == id => status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn run_with(&self, program: Program, stdin: &[u8], env: &[(&str, &str)]) -> Output {
        let (id, started) = self.start(program, None, env);
        let mut ends = started.unwrap().into_iter().map(fs::File::from);
        let (mut input, mut output, mut errors) = (ends.next().unwrap(), ends.next().unwrap(), ends.next().unwrap());
        input.write_all(stdin).unwrap();
        drop(input);
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        output.read_to_end(&mut stdout).unwrap();
        errors.read_to_end(&mut stderr).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Output { stdout: text(&stdout), stderr: text(&stderr), status: self.exited(id) }
    }

    pub(crate) fn run(&self, command: &str) -> Output {
        self.run_with(Program::Command(command.as_bytes().to_vec().into()), b"", &[])
    }

    /// Standard output of a command that must succeed.
    pub(crate) fn out(&self, command: &str) -> String {
        let output = self.run(command);
        assert_eq!(output.status, ExitStatus::Code(0), "{command}: {output:?}");
        output.stdout
    }
}

pub(crate) fn receive(socket: &OwnedFd) -> Option<(FromInit, Vec<OwnedFd>)> {
    let ready = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], PollTimeout::try_from(LIMIT).unwrap());
    assert_eq!(ready, Ok(1), "no word from init");
    wire::recv(socket.as_fd()).unwrap()
}

pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn command(text: &str) -> Program {
    Program::Command(text.as_bytes().to_vec().into())
}

pub(crate) fn terminal() -> Pty {
    Pty { term: "vt220".to_owned(), columns: 91, rows: 17, width_px: 0, height_px: 0, modes: vec![(3, 8)] }
}
