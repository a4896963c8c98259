//! Containers for real: the spawner of the built binary, on a busybox layer made here.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{MetadataExt, PermissionsExt, symlink},
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
struct Host {
    root: tempfile::TempDir,
    tag: InstanceTag,
    spawner: Spawner,
    next: AtomicU32,
}

impl Host {
    fn new() -> Self {
        let root = tempfile::Builder::new().prefix("podspawn-runtime-").tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let tag = InstanceTag::of_root(root.path());
        let spawner =
            Spawner::start_program(Path::new(env!("CARGO_BIN_EXE_podspawn")), &root.path().join("run/spawner"), &tag)
                .unwrap();
        let host = Self { root, tag, spawner, next: AtomicU32::new(0) };
        busybox_layer(&host.layer("busybox"));
        host
    }

    fn layer(&self, name: &str) -> PathBuf {
        let path = self.root.path().join("layers").join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn spec(&self, user: Option<&str>) -> ContainerSpec {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let session = SessionId::from_bits(u64::from(number) + 1);
        let dir = self.session_dir(&session);
        ContainerSpec {
            session,
            hostname: "greenhouse".to_owned(),
            id_base: 1_900_000_000 + number * 65_536,
            layers_root: self.root.path().join("layers"),
            layers: vec!["busybox".to_owned()],
            upperdir: dir.join("upper"),
            workdir: dir.join("work"),
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
            },
            rlimits: Rlimits { nofile_soft: 1024, nofile_hard: 65_536, core: 0, memlock: 8 << 20 },
            shm_bytes: 64 << 20,
        }
    }

    fn session_dir(&self, session: &SessionId) -> PathBuf {
        self.root.path().join("sessions").join(session.as_str())
    }

    fn try_create(&self, spec: &ContainerSpec, cgroup_fds: &[OwnedFd]) -> Result<Guest<'_>, RuntimeError> {
        let dir = self.session_dir(&spec.session);
        rootfs::prepare(&dir, spec.id_base).unwrap();
        let socket = self.root.path().join("run").join(format!("{}.sock", spec.session));
        let listener = seqpacket::listen(&socket, 16).unwrap();
        let cgroup_fds: Vec<_> = cgroup_fds.iter().map(AsFd::as_fd).collect();
        let started = Instant::now();
        let container = self.spawner.create(spec, new_netns().as_fd(), listener.as_fd(), &cgroup_fds);
        let took = started.elapsed();
        match container {
            Ok(container) => {
                println!("created {} in {took:?}", spec.session);
                let init = seqpacket::connect(&socket).unwrap();
                Ok(Guest {
                    host: self,
                    session: spec.session.clone(),
                    container,
                    socket,
                    init,
                    next: AtomicU32::new(1),
                })
            }
            Err(error) => {
                rootfs::remove(&dir).unwrap();
                Err(error)
            }
        }
    }

    fn create(&self, spec: &ContainerSpec) -> Guest<'_> {
        self.try_create(spec, &[]).unwrap()
    }

    fn ada(&self) -> Guest<'_> {
        self.create(&self.spec(Some("ada")))
    }

    fn assert_clean(&self) {
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

/// A container and a client's socket to its init.
struct Guest<'a> {
    host: &'a Host,
    session: SessionId,
    container: Container,
    socket: PathBuf,
    init: OwnedFd,
    next: AtomicU32,
}

/// What a process said and how it ended.
#[derive(Debug, PartialEq, Eq)]
struct Output {
    stdout: String,
    stderr: String,
    status: ExitStatus,
}

impl Guest<'_> {
    fn receive(&self) -> (FromInit, Vec<OwnedFd>) {
        receive(&self.init).expect("init is there")
    }

    fn start(
        &self,
        program: Program,
        pty: Option<Pty>,
        env: &[(&str, &str)],
    ) -> (u32, Result<Vec<OwnedFd>, (u8, String)>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let env = env.iter().map(|(n, v)| (n.as_bytes().to_vec().into(), v.as_bytes().to_vec().into())).collect();
        wire::send(self.init.as_fd(), &ToInit::Exec(Box::new(Exec { id, program, pty, env })), &[]).unwrap();
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

    fn exited(&self, id: u32) -> ExitStatus {
        match self.receive() {
            (FromInit::Exited { id: exited, status }, _) if exited == id => status,
            other => panic!("{other:?}"),
        }
    }

    fn run_with(&self, program: Program, stdin: &[u8], env: &[(&str, &str)]) -> Output {
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

    fn run(&self, command: &str) -> Output {
        self.run_with(Program::Command(command.as_bytes().to_vec().into()), b"", &[])
    }

    /// Standard output of a command that must succeed.
    fn out(&self, command: &str) -> String {
        let output = self.run(command);
        assert_eq!(output.status, ExitStatus::Code(0), "{command}: {output:?}");
        output.stdout
    }

    fn end(self) {
        self.container.kill().unwrap();
        assert!(self.container.wait(Duration::from_secs(10)));
        rootfs::remove(&self.host.session_dir(&self.session)).unwrap();
        fs::remove_file(&self.socket).unwrap();
    }
}

fn receive(socket: &OwnedFd) -> Option<(FromInit, Vec<OwnedFd>)> {
    let ready = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], PollTimeout::try_from(15_000).unwrap());
    assert_eq!(ready, Ok(1), "no word from init");
    wire::recv(socket.as_fd()).unwrap()
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn command(text: &str) -> Program {
    Program::Command(text.as_bytes().to_vec().into())
}

fn terminal() -> Pty {
    Pty { term: "vt220".to_owned(), columns: 91, rows: 17, width_px: 0, height_px: 0, modes: vec![(3, 8)] }
}

#[test]
fn a_user_s_container_is_what_the_user_expects() {
    let host = Host::new();
    let guest = host.ada();
    assert_eq!(guest.out("id"), "uid=1000(ada) gid=1000(ada) groups=1000(ada),4(adm)\n");
    assert_eq!(guest.out("hostname; cat /etc/hostname"), "greenhouse\ngreenhouse\n");
    assert_eq!(guest.out("pwd; echo $HOME $USER $LOGNAME $SHELL"), "/home/ada\n/home/ada ada ada /bin/sh\n");
    assert_eq!(guest.out("cat /etc/resolv.conf; [ -L /etc/resolv.conf ] || echo file"), "nameserver 10.1.2.3\nfile\n");
    assert_eq!(guest.out("grep -c ubuntu /etc/passwd || true; umask; cat /proc/1/comm").lines().next(), Some("0"));
    assert_eq!(
        guest.out("echo hi > /tmp/x; cat /tmp/x; touch ~/y; stat -c %U:%G:%a ~ ~/y"),
        "hi\nada:ada:755\nada:ada:644\n"
    );
    assert_eq!(guest.out("echo a >/dev/shm/a; cat /dev/shm/a; head -c 4 /dev/zero | wc -c"), "a\n4\n");
    assert_eq!(guest.out("echo again > /dev/stdout; echo x > /proc/self/fd/1"), "again\nx\n");
    let env = guest.run_with(
        command("echo $FROM_IMAGE-$FROM_CLIENT-$PODSPAWN_USER-$PODSPAWN_SESSION-$PATH"),
        b"",
        &[("FROM_CLIENT", "hello"), ("HOME", "/elsewhere"), ("", "x")],
    );
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(env.stdout, format!("yes-hello-ada-{}-{path}\n", guest.session));
    guest.end();
    host.assert_clean();
}

#[test]
fn root_s_container_has_a_root_that_is_nobody_outside() {
    let host = Host::new();
    let spec = host.spec(None);
    let guest = host.create(&spec);
    assert_eq!(guest.out("id -u; echo $HOME $USER"), "0\n/root root\n");
    let map: Vec<String> = guest.out("cat /proc/self/uid_map").split_ascii_whitespace().map(str::to_owned).collect();
    assert_eq!(map, ["0", &spec.id_base.to_string(), "65536"]);
    guest.out("touch /mine; chown 33:33 /mine; chmod 4755 /bin/busybox; rm /bin/vi; mkdir /bin/vi");
    let upper = fs::metadata(spec.upperdir.join("mine")).unwrap();
    assert_eq!(upper.uid(), spec.id_base + 33);
    assert_eq!(
        fs::metadata(spec.upperdir.join("bin/busybox")).unwrap().uid(),
        spec.id_base,
        "no host-root setuid file"
    );
    assert_eq!(fs::metadata(host.layer("busybox").join("bin/busybox")).unwrap().mode() & 0o7777, 0o755);
    guest.end();
    host.assert_clean();
}

#[test]
fn privileges_are_the_profile_s() {
    let host = Host::new();
    let mut spec = host.spec(None);
    spec.security.no_new_privileges = true;
    let (plain, locked) = (host.ada(), host.create(&spec));
    for (guest, effective, no_new_privs) in [(&plain, "0000000000000000", "0"), (&locked, "00000000800405fb", "1")] {
        let status = guest.out("cat /proc/self/status");
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
            line.split_once(':').unwrap().1.trim().to_owned()
        };
        assert_eq!(field("CapBnd"), "00000000800405fb");
        assert_eq!((field("CapEff").as_str(), field("CapPrm").as_str()), (effective, effective));
        assert_eq!((field("CapInh").as_str(), field("CapAmb").as_str()), ("0000000000000000", "0000000000000000"));
        assert_eq!(field("NoNewPrivs"), no_new_privs);
        assert_eq!(field("Seccomp"), "2");
        assert_eq!(field("SigIgn"), "0000000000000000");
        assert_eq!(field("SigBlk"), "0000000000000000");
        assert_eq!(guest.out("ulimit -n; ulimit -Hn; ulimit -c").lines().next(), Some("1024"));
        assert_eq!(
            guest.out("ls -l /proc/self/fd | wc -l").trim(),
            "5",
            "0 to 2, the listing itself, and a total line"
        );
        assert_eq!(guest.out("cat /proc/self/oom_score_adj"), "200\n");
    }
    for denied in [
        "unshare -m true",
        "unshare -r true",
        "mount -t tmpfs none /tmp",
        "umount /proc/kcore",
        "mknod /tmp/null c 1 3",
        "chroot /tmp /x",
        "hostname other",
        "readlink /proc/1/exe",
        "cat /proc/1/environ",
        "ls /proc/1/fd/",
        "ls /proc/1/root/",
        "echo 1 > /proc/sys/kernel/sysrq",
        "echo x > /proc/sysrq-trigger",
        "echo x > /proc/1/oom_score_adj",
        "touch /sys/x",
        "kill -9 1 && sleep 1 && false",
        "dmesg",
        "ip link set lo up",
    ] {
        let output = locked.run(denied);
        assert_ne!(output.status, ExitStatus::Code(0), "{denied}: {output:?}");
    }
    assert_eq!(locked.out("cat /proc/kcore /proc/keys /proc/timer_list | wc -c; ls /sys/firmware | wc -l"), "0\n0\n");
    let mounts = locked.out("cat /proc/self/mountinfo");
    println!("{mounts}");
    assert!(!mounts.contains(host.root.path().to_str().unwrap()), "host paths show: {mounts}");
    assert!(mounts.lines().any(|line| line.contains(" / / rw,nodev")), "{mounts}");
    locked.out("kill -TERM 1; kill -HUP 1; kill -CHLD 1; true");
    assert_eq!(locked.out("echo alive"), "alive\n");
    plain.end();
    locked.end();
    host.assert_clean();
}

#[test]
fn ends_are_told_exactly() {
    let host = Host::new();
    let guest = host.ada();
    for (text, status) in [
        ("exit 42", ExitStatus::Code(42)),
        ("kill -TERM $$", ExitStatus::Signal { signal: 15, core_dumped: false }),
        ("kill -KILL $$", ExitStatus::Signal { signal: 9, core_dumped: false }),
        ("kill -40 $$", ExitStatus::Signal { signal: 40, core_dumped: false }),
        ("absent-command", ExitStatus::Code(127)),
        ("/etc/passwd", ExitStatus::Code(126)),
        ("sleep 0 & exec true", ExitStatus::Code(0)),
    ] {
        assert_eq!(guest.run(text).status, status, "{text}");
    }
    let both = guest.run("echo out; echo err >&2; exit 3");
    assert_eq!(both, Output { stdout: "out\n".into(), stderr: "err\n".into(), status: ExitStatus::Code(3) });
    let script = guest.run_with(Program::Shell, b"echo $0; exit 7\n", &[]);
    assert_eq!((script.stdout.as_str(), script.status), ("-sh\n", ExitStatus::Code(7)));
    assert_eq!(guest.run_with(command("cat; cat"), b"to the end", &[]).stdout, "to the end");
    let (_, refused) = guest.start(command("a\0b"), None, &[]);
    assert_eq!(refused.unwrap_err().0, 125);
    guest.end();
    host.assert_clean();
}

#[test]
fn a_terminal_works() {
    let host = Host::new();
    let guest = host.ada();
    let (id, started) = guest.start(Program::Shell, Some(terminal()), &[]);
    let mut leader = fs::File::from(started.unwrap().pop().unwrap());
    leader
        .write_all(
            b"echo $TERM $SSH_TTY; tty; stat -c %U:%a $(tty); stty size; stty -a | grep -o 'erase = ^H'; sleep 100 &\n",
        )
        .unwrap();
    leader.write_all(b"jobs; kill %1; cat\nechoed\n\x03").unwrap();
    leader.write_all(b"exit 5\n").unwrap();
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    // EIO: the last follower is closed.
    while let Ok(length) = leader.read(&mut buffer) {
        if length == 0 {
            break;
        }
        said.extend_from_slice(&buffer[..length]);
    }
    let said = String::from_utf8_lossy(&said).into_owned();
    for part in ["vt220 /dev/pts/0", "\n/dev/pts/0", "ada:620", "17 91", "erase = ^H", "Running", "echoed\r\nechoed"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert!(!said.contains("job control turned off"), "{said}");
    assert_eq!(guest.exited(id), ExitStatus::Code(5));
    guest.end();
    host.assert_clean();
}

#[test]
fn a_closed_socket_hangs_up_what_runs_and_spares_what_was_left() {
    let host = Host::new();
    let guest = host.ada();
    guest.out("nohup sleep 1000 >/dev/null 2>&1 </dev/null & true");
    let second = Guest {
        host: &host,
        session: guest.session.clone(),
        container: Container::adopt(guest.container.pid(), guest.container.starttime().unwrap()).unwrap(),
        socket: guest.socket.clone(),
        init: seqpacket::connect(&guest.socket).unwrap(),
        next: AtomicU32::new(1),
    };
    let (_, polite) =
        second.start(command("trap 'echo hup > /tmp/hup; exit' HUP; while :; do sleep 0.1; done"), None, &[]);
    let (_, stubborn) = second.start(command("trap '' HUP; exec sleep 2000"), None, &[]);
    let (_, terminal) = second.start(command("exec sleep 3000"), Some(terminal()), &[]);
    let ends = (polite.unwrap(), stubborn.unwrap(), terminal.unwrap());
    eventually("all run", || guest.out("ps").matches("sleep ").count() >= 4);
    drop(second);
    eventually("the polite one was told", || guest.run("cat /tmp/hup").stdout == "hup\n");
    eventually("the terminal's is gone", || !guest.out("ps").contains("sleep 3000"));
    assert!(guest.out("ps").contains("sleep 2000"), "not before its time");
    eventually("the stubborn one is killed", || !guest.out("ps").contains("sleep 2000"));
    assert!(guest.out("ps").contains("sleep 1000"), "what a finished command left stays");
    drop(ends);
    guest.end();
    host.assert_clean();
}

#[test]
fn signals_and_releases_reach_their_process_only() {
    let host = Host::new();
    let guest = host.ada();
    let (first, a) = guest.start(command("exec sleep 1000"), None, &[]);
    let (second, b) = guest.start(command("exec sleep 1000"), None, &[]);
    wire::send(guest.init.as_fd(), &ToInit::Signal { id: first, signal: 12 }, &[]).unwrap();
    assert_eq!(guest.exited(first), ExitStatus::Signal { signal: 12, core_dumped: false });
    wire::send(guest.init.as_fd(), &ToInit::Signal { id: second, signal: 999 }, &[]).unwrap();
    wire::send(guest.init.as_fd(), &ToInit::Release { id: second }, &[]).unwrap();
    assert_eq!(guest.exited(second), ExitStatus::Signal { signal: 1, core_dumped: false });
    drop((a, b));
    guest.end();
    host.assert_clean();
}

#[test]
fn a_broken_peer_loses_its_socket_and_nothing_else() {
    let host = Host::new();
    let guest = host.ada();
    let broken = seqpacket::connect(&guest.socket).unwrap();
    seqpacket::send(broken.as_fd(), b"\xff\xff nonsense", &[guest.init.as_fd()]).unwrap();
    assert!(receive(&broken).is_none());
    let clients: Vec<_> = (0..63).map(|_| seqpacket::connect(&guest.socket).unwrap()).collect();
    assert_eq!(guest.out("echo still"), "still\n");
    drop(clients);
    // One that never reads: its processes end, its messages pile up, and it is dropped.
    let deaf = seqpacket::connect(&guest.socket).unwrap();
    for id in 0..2000 {
        let exec = Exec { id, program: command("exit"), pty: None, env: Vec::new() };
        let message = wire::encode(&ToInit::Exec(Box::new(exec))).unwrap();
        nix::fcntl::fcntl(&deaf, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
        if seqpacket::send(deaf.as_fd(), &message, &[]).is_err() {
            break;
        }
    }
    assert_eq!(guest.out("echo still"), "still\n");
    guest.end();
    host.assert_clean();
}

#[test]
fn a_fork_bomb_leaves_init_alive() {
    let host = Host::new();
    let mut spec = host.spec(Some("ada"));
    let cgroup = PathBuf::from(format!("/sys/fs/cgroup/pids/podspawn-test-{}", std::process::id()));
    fs::create_dir(&cgroup).expect("a v1 pids controller");
    fs::write(cgroup.join("pids.max"), "20").unwrap();
    spec.cgroup = CgroupJoin::V1 { count: 1 };
    let tasks = fs::OpenOptions::new().write(true).open(cgroup.join("tasks")).unwrap();
    let guest = host.try_create(&spec, &[tasks.into()]).unwrap();
    assert_eq!(fs::read_to_string(cgroup.join("tasks")).unwrap().lines().count(), 1);
    assert_eq!(guest.out("grep pids: /proc/self/cgroup").trim().rsplit(':').next(), Some("/"), "a cgroup namespace");
    let (bomb, ends) = guest.start(
        command("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19; do sleep 1000 & done; wait"),
        None,
        &[],
    );
    eventually("the limit is reached", || fs::read_to_string(cgroup.join("pids.current")).unwrap().trim() == "20");
    let (_, refused) = guest.start(command("true"), None, &[]);
    let (status, message) = refused.unwrap_err();
    assert_eq!(status, 125);
    assert!(message.contains("limit on processes"), "{message}");
    wire::send(guest.init.as_fd(), &ToInit::Signal { id: bomb, signal: 9 }, &[]).unwrap();
    guest.exited(bomb);
    drop(ends);
    assert_eq!(guest.out("echo alive"), "alive\n");
    guest.end();
    eventually("the cgroup is empty", || fs::remove_dir(&cgroup).is_ok());
    host.assert_clean();
}

#[test]
fn a_hundred_layers_and_an_image_without_etc() {
    let host = Host::new();
    let bare = host.layer("bare");
    fs::create_dir_all(bare.join("bin")).unwrap();
    fs::copy("/bin/busybox", bare.join("bin/sh")).unwrap();
    let mut spec = host.spec(Some("ada"));
    spec.layers = (0..99).map(|n| format!("sha256-0123456789abcdef-{n}")).collect();
    for (n, layer) in spec.layers.iter().enumerate() {
        fs::write(host.layer(layer).join(format!("from-{n}")), n.to_string()).unwrap();
    }
    spec.layers.push("bare".to_owned());
    let guest = host.create(&spec);
    assert_eq!(guest.out("cat /from-0 /from-57 /from-98"), "05798");
    assert_eq!(
        guest.out("id -u; cat /etc/passwd"),
        "1000\nroot:*:0:0:root:/root:/bin/sh\nada:*:1000:1000::/home/ada:/bin/sh\n"
    );
    guest.end();
    host.assert_clean();
}

#[test]
fn hostile_images_are_refused_or_contained() {
    let host = Host::new();
    let canary = host.root.path().join("canary");
    fs::create_dir(&canary).unwrap();
    for (name, path) in [("proc", "proc"), ("sys", "sys"), ("dev", "dev")] {
        let layer = host.layer(&format!("hostile-{name}"));
        symlink(&canary, layer.join(path)).unwrap();
        let mut spec = host.spec(Some("ada"));
        spec.layers.insert(0, format!("hostile-{name}"));
        let error = host.try_create(&spec, &[]).err().expect("refused");
        assert!(error.to_string().contains(&format!("/{path}")), "{error}");
    }
    let layer = host.layer("hostile-etc");
    fs::create_dir(layer.join("etc")).unwrap();
    for file in ["hosts", "hostname", "passwd", "group", "shadow"] {
        symlink(canary.join(file), layer.join("etc").join(file)).unwrap();
    }
    nix::unistd::mkfifo(&layer.join("etc/gshadow"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink(&canary, layer.join("home")).unwrap();
    let mut spec = host.spec(Some("ada"));
    spec.layers.insert(0, "hostile-etc".to_owned());
    match host.try_create(&spec, &[]) {
        Ok(guest) => {
            assert_eq!(guest.out("id -un; cat /etc/hostname"), "ada\ngreenhouse\n");
            guest.end();
        }
        Err(error) => assert!(matches!(error, RuntimeError::Create { .. }), "{error}"),
    }
    assert_eq!(fs::read_dir(&canary).unwrap().count(), 0, "nothing outside is touched");
    for layers in [vec![], vec!["../busybox".to_owned()], vec!["a:b".to_owned()], vec!["/etc".to_owned()]] {
        let mut spec = host.spec(Some("ada"));
        spec.layers = layers;
        assert!(host.try_create(&spec, &[]).is_err());
    }
    host.ada().end();
    host.assert_clean();
}

#[test]
fn a_read_only_root_and_extra_tmpfs() {
    let host = Host::new();
    let mut spec = host.spec(Some("ada"));
    spec.security.readonly_rootfs = true;
    spec.security.tmpfs.insert("/tmp".to_owned(), "size=1m,mode=1777,noexec".to_owned());
    spec.security.tmpfs.insert("/var/cache/deep".to_owned(), String::new());
    let guest = host.create(&spec);
    assert_ne!(guest.run("touch ~/x").status, ExitStatus::Code(0));
    assert_eq!(guest.out("touch /tmp/x; grep -c 'tmpfs /var/cache/deep' /proc/mounts; echo x > /dev/shm/x"), "1\n");
    guest.end();
    let mut spec = host.spec(Some("ada"));
    spec.security.tmpfs.insert("/tmp".to_owned(), "evil=1".to_owned());
    assert!(host.try_create(&spec, &[]).err().unwrap().to_string().contains("evil"));
    host.assert_clean();
}

#[test]
fn a_killed_init_takes_everything_along() {
    let host = Host::new();
    let guest = host.ada();
    let (_, ends) = guest.start(command("sleep 1000 & exec sleep 1000"), None, &[]);
    let adopted = Container::adopt(guest.container.pid(), guest.container.starttime().unwrap()).unwrap();
    let status = Command::new("/bin/kill").args(["-9", &guest.container.pid().to_string()]).status().unwrap();
    assert!(status.success());
    assert!(adopted.wait(Duration::from_secs(10)) && guest.container.has_ended());
    drop(ends);
    guest.end();
    host.assert_clean();
}

#[test]
fn a_killed_spawner_is_replaced_and_containers_stay() {
    let host = Host::new();
    let guest = host.ada();
    let before = host.spawner.pid().unwrap();
    assert!(Command::new("/bin/kill").args(["-9", &before.to_string()]).status().unwrap().success());
    eventually("it is gone", || {
        fs::read_to_string(format!("/proc/{before}/stat")).map_or(true, |stat| stat.contains(") Z "))
    });
    let next = host.ada();
    assert_ne!(host.spawner.pid().unwrap(), before);
    assert_eq!(guest.out("echo alive"), "alive\n");
    next.end();
    guest.end();
    host.assert_clean();
}

#[test]
fn creation_is_fast() {
    let host = Host::new();
    let mut times = Vec::new();
    for _ in 0..30 {
        let spec = host.spec(Some("ada"));
        rootfs::prepare(&host.session_dir(&spec.session), spec.id_base).unwrap();
        let socket = host.root.path().join("run").join(format!("{}.sock", spec.session));
        let listener = seqpacket::listen(&socket, 16).unwrap();
        let netns = new_netns();
        let started = Instant::now();
        let container = host.spawner.create(&spec, netns.as_fd(), listener.as_fd(), &[]).unwrap();
        times.push(started.elapsed());
        container.kill().unwrap();
        assert!(container.wait(Duration::from_secs(10)));
        rootfs::remove(&host.session_dir(&spec.session)).unwrap();
    }
    times.sort();
    println!("create: min {:?}, median {:?}, max {:?}", times[0], times[15], times[29]);
    host.assert_clean();
}
