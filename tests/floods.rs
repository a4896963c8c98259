//! Strangers who keep the server busy: they are turned away, and users of other addresses get in.

mod common;

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    os::fd::OwnedFd,
};

use common::{Host, Output, Run, command::finish, eventually, ssh};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};

/// Where the strangers are.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 66, 0, 1);

/// What is said to whom is not let in.
const REFUSAL: &str = "Not allowed at this time\r\n";

fn connect_from(source: Ipv4Addr, host: &Host) -> TcpStream {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrIn::from(SocketAddrV4::new(source, 0))).unwrap();
    let server = SockaddrIn::from(SocketAddrV4::new(host.address, Host::PORT));
    connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &server).unwrap();
    OwnedFd::into(socket)
}

/// What the server says first: its banner, or why it does not want the client.
fn greeting(stream: &mut TcpStream) -> String {
    let mut line = Vec::new();
    // Without a word if it was in a hurry: then it resets the connection.
    if BufReader::new(stream).read_until(b'\n', &mut line).is_err() {
        return String::new();
    }
    String::from_utf8(line).unwrap()
}

/// Logs in, or tries to, from `source`.
fn login(host: &Host, source: Ipv4Addr) -> Output {
    host.ssh("ada", "echo hello").args(["-b", &source.to_string()]).run()
}

/// How many connections have been dropped because of `setting`.
fn dropped(host: &Host, setting: &str) -> usize {
    let log = host.log();
    let counts = log.lines().filter(|line| line.contains(setting)).filter_map(|line| line.split("dropped ").nth(1));
    counts.map(|rest| rest.split(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}

/// The server has never had 64 MiB of memory.
fn assert_small(host: &Host) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")).unwrap();
    assert!(peak.trim().parse::<u64>().unwrap() < 64 << 10, "the server took {peak} KiB");
}

#[test]
fn silent_connections_of_one_address_make_room_for_users_of_others() {
    let host = Host::new().user("ada").config("auth:\n  max_startups: \"10:30:20\"").start();
    let mut silent: Vec<_> = (0..300).map(|_| connect_from(ELSEWHERE, &host)).collect();
    eventually("most are dropped", || dropped(&host, "auth.max_startups") >= 280);
    for _ in 0..3 {
        login(&host, Ipv4Addr::LOCALHOST).ok().stdout("hello\n");
    }
    let refused = silent.iter_mut().rev().map(greeting).filter(|said| said == REFUSAL).count();
    assert!(refused >= 270, "{refused}");
    assert_small(&host);
    host.assert_no_session_left();
}

#[test]
fn garbage_of_one_address_is_soon_not_read_any_more() {
    let host = Host::new().user("ada").config("auth:\n  per_source_penalties: {noauth: 60s, min: 200s}").start();
    let garbage = vec![b'x'; 1 << 20];
    eventually("they are turned away", || {
        let mut stranger = connect_from(ELSEWHERE, &host);
        // It is cut before all is written.
        let _ = stranger.write_all(&garbage);
        dropped(&host, "auth.per_source_penalties") > 0
    });
    login(&host, Ipv4Addr::LOCALHOST).ok().stdout("hello\n");
    assert_small(&host);
    host.assert_no_session_left();
}

#[test]
fn guessing_is_penalised_where_it_comes_from() {
    let config = "auth:\n  per_source_penalties: {authfail: 60s, noauth: 0s, min: 200s}";
    let host = Host::new().user("ada").config(config).start();
    let right = std::fs::read(host.key("ada")).unwrap();
    ssh::make_key(&host.scratch().join("wrong"), &["-t", "ed25519"]);
    // To offer ada's public key without her private one is an attempt too.
    std::fs::copy(host.scratch().join("wrong"), host.key("ada")).unwrap();
    login(&host, ELSEWHERE).status(255).stderr_has("Permission denied");
    std::fs::remove_file(host.key("ada").with_extension("key.pub")).unwrap();
    // Three are forgiven.
    eventually("they add up", || !login(&host, ELSEWHERE).stderr.contains("Permission denied"));
    let mut stranger = connect_from(ELSEWHERE, &host);
    assert_eq!(greeting(&mut stranger), REFUSAL);
    std::fs::write(host.key("ada"), right).unwrap();
    login(&host, Ipv4Addr::LOCALHOST).ok().stdout("hello\n");
    let penalties: Vec<_> = host.audit().into_iter().filter(|event| event["event"] == "auth.penalty").collect();
    assert_eq!(penalties.len(), 1, "{penalties:?}");
    assert_eq!((&penalties[0]["remote"], &penalties[0]["reason"]), (&"127.66.0.1".into(), &"authfail".into()));
    assert_eq!(host.audit().iter().filter(|event| event["event"] == "auth.fail").count(), 3);
    host.assert_no_session_left();
}

#[test]
fn wrong_keys_from_many_addresses_at_once_keep_nobody_out() {
    const STRANGERS: u8 = 40;
    let host = Host::new().user("ada").start();
    let wrong = host.scratch().join("wrong");
    ssh::make_key(&wrong, &["-t", "ed25519"]);
    let guess = |last: u8| {
        let source = Ipv4Addr::new(127, 66, 1, last).to_string();
        let keys = ["-F", "none", "-o", "IdentitiesOnly=yes", "-i", wrong.to_str().unwrap()];
        let mut guess = Run::new("ssh").args(keys).args(["-b", &source, "-p", &Host::PORT.to_string()]);
        guess =
            guess.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"]);
        guess.arg(format!("ada@{}", host.address)).arg("true").spawn()
    };
    let strangers: Vec<_> = (1..=STRANGERS).map(guess).collect();
    login(&host, Ipv4Addr::LOCALHOST).ok().stdout("hello\n");
    for stranger in strangers {
        assert_ne!(finish("a stranger", stranger).status, Some(0));
    }
    login(&host, Ipv4Addr::LOCALHOST).ok().stdout("hello\n");
    let failed = host.audit().into_iter().filter(|event| event["event"] == "auth.fail").count();
    assert_eq!(failed, usize::from(STRANGERS), "each was heard");
    assert_small(&host);
    host.assert_no_session_left();
}

#[test]
fn who_logs_in_is_not_penalised_for_the_keys_before_the_right_one() {
    let host = Host::new().user("ada").config("auth:\n  per_source_penalties: {authfail: 10s, min: 1s}").start();
    let wrong = host.scratch().join("wrong");
    ssh::make_key(&wrong, &["-t", "ed25519"]);
    for _ in 0..4 {
        let source = ELSEWHERE.to_string();
        host.ssh("ada", "echo hello").args(["-b", &source, "-i", wrong.to_str().unwrap()]).run().ok().stdout("hello\n");
    }
    assert!(host.audit().iter().any(|event| event["event"] == "auth.fail"), "the wrong key was offered");
    host.assert_no_session_left();
}

#[test]
fn exempt_addresses_have_no_penalties() {
    let config = "auth:\n  per_source_penalties: {noauth: 10s, min: 1s, exempt: [127.66.0.0/16]}";
    let host = Host::new().user("ada").config(config).start();
    let (exempt, other) = (ELSEWHERE, Ipv4Addr::new(127, 67, 0, 1));
    eventually("another is penalised", || greeting(&mut connect_from(other, &host)) == REFUSAL);
    for _ in 0..20 {
        assert!(greeting(&mut connect_from(exempt, &host)).starts_with("SSH-2.0-"));
    }
    host.assert_no_session_left();
}

#[test]
fn a_network_has_no_more_connections_that_have_not_logged_in_than_configured() {
    let config = "auth:\n  per_source_max_startups: 2\n  per_source_net_block_size: \"24\"";
    let host = Host::new().user("ada").config(config).start();
    let address = |last: u8| Ipv4Addr::new(127, 66, 0, last);
    let mut first = [connect_from(address(1), &host), connect_from(address(2), &host)];
    assert!(first.iter_mut().all(|stream| greeting(stream).starts_with("SSH-2.0-")));
    assert_eq!(greeting(&mut connect_from(address(3), &host)), REFUSAL);
    assert!(greeting(&mut connect_from(Ipv4Addr::new(127, 66, 1, 1), &host)).starts_with("SSH-2.0-"));
    drop(first);
    eventually("there is room again", || greeting(&mut connect_from(address(3), &host)).starts_with("SSH-2.0-"));
    eventually("it is logged", || dropped(&host, "auth.per_source_max_startups") > 0);
    host.assert_no_session_left();
}
