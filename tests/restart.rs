//! The server is restarted and replaced, and nobody notices: who is connected goes on, and who comes meanwhile waits.

mod common;

use std::{
    fs,
    net::TcpListener,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, net::UnixDatagram},
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use common::{DEADLINE, Host, Run, Stream, binary, command::finish, eventually};
use nix::sys::signal::Signal;
use podspawn::{
    protocol::{self, FromConnection, ToConnection, wire},
    sys::{seqpacket, spawn::give_fds},
};

/// What holds the socket of a host while there is no server, as systemd does.
struct Activation(TcpListener);

impl Activation {
    fn new(host: &Host) -> Self {
        Self(TcpListener::bind((host.address, Host::PORT)).unwrap())
    }

    /// Starts the server as systemd would start `podspawn.service`.
    fn serve(&self, host: &mut Host) {
        let socket: OwnedFd = self.0.try_clone().unwrap().into();
        host.serve_with(|command| {
            let server = std::mem::replace(command, Command::new("sh"));
            // The pid is known only there.
            command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]).arg(server.get_program()).args(server.get_args());
            command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "podspawn.socket");
            give_fds(command, vec![socket]);
        });
    }
}

/// The program under another name, to be replaced there.
fn installed(host: &Host) -> PathBuf {
    let path = host.scratch().join("bin/podspawn");
    fs::create_dir(path.parent().unwrap()).unwrap();
    fs::copy(binary(), &path).unwrap();
    path
}

/// Starts the server from `program` instead.
fn serve_from(host: &mut Host, program: &Path) {
    host.serve_with(|command| {
        let mut other = Command::new(program);
        other.args(command.get_args());
        *command = other;
    });
}

/// Puts `new` in the place of `program`, as a package manager does.
fn replace(program: &Path, new: &Path) {
    let beside = program.with_extension("new");
    fs::copy(new, &beside).unwrap();
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(beside, program).unwrap();
}

/// How often a server of the host has come up.
fn starts(host: &Host) -> usize {
    host.log().matches(&format!("listening on {}:", host.address)).count()
}

/// Tells the server to become the program that is there now, and waits until it has.
fn upgrade(host: &Host) {
    let before = starts(host);
    host.signal(Signal::SIGUSR2);
    eventually("the new program serves", || starts(host) > before);
}

fn inode(path: impl AsRef<Path>) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).unwrap().ino()
}

#[test]
fn clients_that_come_while_there_is_no_server_wait_in_its_socket() {
    let mut host = Host::new().user("ada").user("bob").prepare();
    let activation = Activation::new(&host);
    activation.serve(&mut host);
    let bob = Stream::start(&host, "bob");
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        host.end(signal);
        let clients: Vec<_> = (0..3).map(|number| host.ssh("ada", &format!("echo {number}")).spawn()).collect();
        bob.flows();
        activation.serve(&mut host);
        for (number, client) in clients.into_iter().enumerate() {
            finish("a client that came meanwhile", client).ok().stdout(&format!("{number}\n"));
        }
        bob.flows();
    }
    bob.finish();
    host.assert_no_session_left();
}

#[test]
fn clients_in_the_middle_of_a_login_or_of_a_new_session_are_waited_for() {
    let mut host = Host::new().user("ada").user("bob").prepare();
    let activation = Activation::new(&host);
    activation.serve(&mut host);
    let bob = Stream::start(&host, "bob");
    for moment in 0..8 {
        let ada = host.ssh("ada", "hostname").spawn();
        std::thread::sleep(Duration::from_millis(40 * moment));
        host.end(Signal::SIGTERM);
        activation.serve(&mut host);
        finish(&format!("a client that came {moment} moments before the restart"), ada).ok().stdout("ada\n").stderr("");
        bob.flows();
    }
    bob.finish();
    host.assert_no_session_left();
}

#[test]
fn a_new_program_takes_over_in_the_same_process_and_clients_notice_nothing() {
    let mut host = Host::new().user("ada").user("bob").prepare();
    let program = installed(&host);
    serve_from(&mut host, &program);
    let (pid, bob) = (host.pid(), Stream::start(&host, "bob"));
    for _ in 0..2 {
        replace(&program, &binary());
        let ada: Vec<_> = (0..2).map(|_| host.ssh("ada", "hostname; sleep 1; hostname").spawn()).collect();
        upgrade(&host);
        assert_eq!(inode(format!("/proc/{pid}/exe")), inode(&program), "it is the new program");
        for client in ada {
            finish("a client that came during the upgrade", client).ok().stdout("ada\nada\n").stderr("");
        }
        bob.flows();
    }
    assert_eq!(host.pid(), pid);
    bob.finish();
    host.assert_no_session_left();
    let zombies = Run::new("ps").args(["-o", "stat=,args=", "--ppid", &pid.to_string()]).run().text();
    assert!(!zombies.contains('Z'), "children of the first program are reaped:\n{zombies}");
}

#[test]
fn a_program_that_could_not_serve_does_not_take_over() {
    let mut host = Host::new().user("ada").prepare();
    let program = installed(&host);
    serve_from(&mut host, &program);
    let ada = Stream::start(&host, "ada");
    let script = |text: &str| {
        let path = host.scratch().join("script");
        fs::write(&path, text).unwrap();
        path
    };
    let old = "#!/bin/sh\necho 'ok (protocol 1 to 1)'\n";
    let broken = "#!/bin/sh\necho 'podspawn: no' >&2; exit 1\n";
    for (text, said) in [("", "cannot run"), (broken, "podspawn: no"), (old, "does not speak version")] {
        replace(&program, &script(text));
        host.signal(Signal::SIGUSR2);
        eventually("it says why not", || host.log().contains("not upgraded") && host.log().contains(said));
        ada.flows();
        host.ssh("ada", "hostname").run().ok().stdout("ada\n");
    }
    assert_eq!(starts(&host), 1);
    // The configuration, which is tried too.
    replace(&program, &binary());
    let config = fs::read_to_string(host.config_file()).unwrap();
    fs::write(host.config_file(), format!("{config}no_such_field: 1\n")).unwrap();
    host.signal(Signal::SIGUSR2);
    eventually("it says why not", || host.log().contains("not upgraded") && host.log().contains("no_such_field"));
    fs::write(host.config_file(), config).unwrap();
    ada.finish();
}

#[test]
fn a_new_program_that_fails_to_start_goes_back_to_the_old_one() {
    let mut host = Host::new().user("ada").prepare();
    let program = installed(&host);
    let fault = host.scratch().join("fault");
    host.serve_with(|command| {
        let mut other = Command::new(&program);
        other.args(command.get_args()).env("PODSPAWN_FAULT", &fault);
        *command = other;
    });
    let (old, ada) = (inode(&program), Stream::start(&host, "ada"));
    fs::write(&fault, "fail start 1").unwrap();
    replace(&program, &binary());
    upgrade(&host);
    assert!(host.log().contains("going back to the previous version: a test makes start fail"), "{}", host.log());
    assert_eq!(inode(format!("/proc/{}/exe", host.pid())), old);
    ada.flows();
    host.ssh("ada", "hostname").run().ok().stdout("ada\n");
    // Which does not keep it from the next one.
    upgrade(&host);
    assert_eq!(inode(format!("/proc/{}/exe", host.pid())), inode(&program));
    ada.finish();
}

#[test]
fn a_server_that_is_replaced_opens_and_closes_the_sockets_that_the_configuration_says() {
    let mut host = Host::new().user("ada").prepare();
    host.serve();
    let other = common::own_address();
    let config = fs::read_to_string(host.config_file()).unwrap();
    let both = format!("listen: [\"{}:2222\", \"{other}:2222\"]\n", host.address);
    let line = config.lines().next().unwrap();
    fs::write(host.config_file(), config.replace(&format!("{line}\n"), &both)).unwrap();
    upgrade(&host);
    std::net::TcpStream::connect((other, 2222)).unwrap();
    fs::write(host.config_file(), &config).unwrap();
    upgrade(&host);
    assert!(std::net::TcpStream::connect((other, 2222)).is_err());
    host.ssh("ada", "hostname").run().ok().stdout("ada\n");
}

#[test]
fn descriptors_that_are_no_listening_sockets_are_refused() {
    let mut host = Host::new().prepare();
    let file: OwnedFd = fs::File::open("/dev/null").unwrap().into();
    let mut said = String::new();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        host.serve_with(|command| {
            let server = std::mem::replace(command, Command::new("sh"));
            command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]).arg(server.get_program()).args(server.get_args());
            command.env("LISTEN_FDS", "1");
            give_fds(command, vec![file]);
        });
    }));
    if let Err(panic) = result {
        said = panic.downcast_ref::<String>().cloned().unwrap_or_default();
    }
    assert!(said.contains("cannot listen on descriptor") && said.contains("not a TCP socket"), "{said}");
}

#[test]
fn a_service_manager_hears_how_it_goes() {
    let mut host = Host::new().prepare();
    let path = host.scratch().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let heard = || {
        let mut buffer = [0; 4096];
        let length = loop {
            match socket.recv(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => break other.unwrap(),
            }
        };
        String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
    };
    let next = || loop {
        match heard() {
            text if text == "WATCHDOG=1" => {}
            text => return text,
        }
    };
    host.serve_with(|command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000");
    });
    assert_eq!(next(), "READY=1");
    for _ in 0..3 {
        assert_eq!(heard(), "WATCHDOG=1");
    }
    host.signal(Signal::SIGUSR2);
    let reloading = next();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(next(), "READY=1");
    assert_eq!(heard(), "WATCHDOG=1");
    host.end(Signal::SIGTERM);
    assert_eq!(next(), "STOPPING=1");
}

#[test]
fn systemd_understands_the_units() {
    let directory = tempfile::tempdir().unwrap();
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd");
    for name in ["podspawn.service", "podspawn.socket"] {
        // It looks whether the program is there.
        let text = fs::read_to_string(units.join(name)).unwrap();
        let text = text.replace("/usr/bin/podspawn", binary().to_str().unwrap());
        fs::write(directory.path().join(name), text).unwrap();
    }
    let verify = Run::new("systemd-analyze").args(["verify", "--man=no"]);
    let output =
        verify.arg(directory.path().join("podspawn.service")).arg(directory.path().join("podspawn.socket")).run();
    let ours: Vec<_> = output.stderr.lines().filter(|line| line.contains("podspawn")).collect();
    // Known from systemd 254 on, and ignored before.
    let unknown: Vec<_> = ours.iter().filter(|line| !line.contains("DelegateSubgroup")).collect();
    assert!(unknown.is_empty(), "{output}");
}

#[test]
fn the_capabilities_that_the_unit_leaves_are_enough() {
    let mut host = Host::new().user("ada").prepare();
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd/podspawn.service");
    let unit = fs::read_to_string(unit).unwrap().replace("\\\n", "");
    let set = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let capabilities: Vec<_> = set.split_whitespace().map(|name| name.to_lowercase().replace("cap_", "+")).collect();
    host.serve_with(|command| {
        let server = std::mem::replace(command, Command::new("setpriv"));
        command.arg(format!("--bounding-set=-all,{}", capabilities.join(",")));
        command.arg(server.get_program()).args(server.get_args());
    });
    let ada = Stream::start(&host, "ada");
    host.end(Signal::SIGTERM);
    host.serve();
    ada.flows();
    ada.finish();
    host.assert_no_session_left();
}

#[test]
fn a_session_of_a_version_that_is_not_known_is_ended_and_its_users_told() {
    let mut host = Host::new().user("ada").user("bob").start();
    let bob = Stream::start(&host, "bob");
    let ada = host.ssh("ada", "sleep 1000").spawn();
    eventually("ada is connected", || host.connections("ada").len() == 1);
    host.end(Signal::SIGTERM);
    host.sql(&format!("update sessions set init_version = {} where user = 'ada'", protocol::VERSION + 1));
    host.serve();
    let ada = finish("a client whose session cannot be gone on with", ada);
    ada.stderr_has("podspawn: the server was replaced by a version that cannot go on with this session");
    host.assert_only_left(&["bob"]);
    let reasons: Vec<_> = host.audit().into_iter().filter(|event| event["event"] == "container.destroy").collect();
    assert_eq!(reasons[0]["reason"], "incompatible");
    bob.flows();
    bob.finish();
    host.assert_no_session_left();
}

#[test]
fn a_connection_of_a_version_that_is_not_known_is_told_so_and_ended() {
    let mut host = Host::new().user("ada").start();
    let ada = host.ssh("ada", "sleep 1000").spawn();
    eventually("ada is connected", || host.connections("ada").len() == 1);
    host.end(Signal::SIGTERM);
    // Between the next server and the connection process: says that this is one of another version.
    let id = host.sql("select id from connections");
    let socket = host.root.join(format!("run/podspawn/connections/{}.sock", id.trim()));
    let process = seqpacket::connect(&socket).unwrap();
    fs::remove_file(&socket).unwrap();
    let listener = seqpacket::listen(&socket, 1).unwrap();
    let relay = std::thread::spawn(move || {
        use std::os::fd::AsFd;
        let server = seqpacket::accept(listener.as_fd()).unwrap();
        let (message, _) = wire::recv::<ToConnection>(server.as_fd()).unwrap().unwrap();
        assert!(matches!(message, ToConnection::Adopt { version: protocol::VERSION }));
        // A newer one may say so and it is adopted nevertheless: what it understands is for itself to judge.
        wire::send(process.as_fd(), &ToConnection::Adopt { version: protocol::VERSION + 1 }, &[]).unwrap();
        let mut answer = None;
        common::eventually("the process answers", || {
            answer = wire::recv::<FromConnection>(process.as_fd()).ok().flatten();
            answer.is_some()
        });
        let Some((FromConnection::Adopted { version, connection, waiting }, _)) = answer else { panic!("{answer:?}") };
        assert_eq!(version, protocol::VERSION);
        let newer = FromConnection::Adopted { version: version + 1, connection, waiting };
        wire::send(server.as_fd(), &newer, &[]).unwrap();
        let (message, _) = wire::recv::<ToConnection>(server.as_fd()).unwrap().unwrap();
        wire::send(process.as_fd(), &message, &[]).unwrap();
        process
    });
    host.serve();
    let process = relay.join().unwrap();
    finish("a client whose connection cannot be gone on with", ada)
        .stderr_has("podspawn: the server was replaced by a version that cannot go on with this connection");
    drop(process);
    host.assert_no_session_left();
    let ends = host.audit().into_iter().filter(|event| event["event"] == "session.disconnect").count();
    assert_eq!(ends, 1);
}
