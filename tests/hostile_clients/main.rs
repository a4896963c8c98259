//! Clients that attack the server: whatever they do, they hurt only their own connection. Its process stays small, does
//! not panic, and leaves nothing; somebody else's connection answers meanwhile.

#[path = "../common/mod.rs"]
mod common;
mod peer;

use std::{
    io::{Read, Write},
    process::Child,
    time::Duration,
};

use common::{Host, eventually};
use nix::sys::signal::Signal;
use peer::{Packet, Peer, channel_of, message};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};

/// What a connection process may take at most, whatever these clients do. A debug build takes 18 MiB with the first login.
const MEMORY_KIB: u64 = 40 << 10;

/// A host and, on it, bob, who is not to notice anything.
struct Attacked {
    host: Host,
    bob: Child,
}

impl Attacked {
    fn new(config: &str) -> Self {
        let host = Host::new().user("ada").user("bob").config(config).start();
        let bob = host.ssh("bob", "exec cat").spawn();
        let mut attacked = Self { host, bob };
        attacked.bob_is_served();
        attacked
    }

    #[track_caller]
    fn bob_is_served(&mut self) {
        self.bob.stdin.as_mut().unwrap().write_all(b"hello\n").unwrap();
        let mut echo = [0; 6];
        self.bob.stdout.as_mut().unwrap().read_exact(&mut echo).unwrap();
        assert_eq!(&echo, b"hello\n");
    }

    /// Nobody has been hurt so far. To be asked while the attacker is still connected, since a process's peak ends with it.
    #[track_caller]
    fn unhurt(&mut self, during: &str) {
        self.bob_is_served();
        for pid in self.host.processes("connection") {
            // It may have ended meanwhile.
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
            let peak: u64 = peak.map_or(0, |kib| kib.trim().parse().unwrap());
            assert!(peak < MEMORY_KIB, "{during}: connection process {pid} took {peak} KiB");
        }
        let log = self.host.log();
        assert!(!log.contains("panicked"), "{during}: {log}");
    }

    /// The attackers' processes are gone: bob's is left, and those that wait for a client.
    #[track_caller]
    fn only_bob_is_left(&self) {
        eventually("the attackers' processes end", || self.host.processes("connection").len() <= 1 + 4);
    }
}

impl Drop for Attacked {
    fn drop(&mut self) {
        self.bob.kill().unwrap();
        self.bob.wait().unwrap();
    }
}

/// The same random bytes in each run.
fn random(length: usize) -> Vec<u8> {
    let mut runner = TestRunner::deterministic();
    proptest::collection::vec(any::<u8>(), length).new_tree(&mut runner).unwrap().current()
}

/// Whether `peer`'s connection serves: a command can still be run on it.
#[track_caller]
fn assert_serves(peer: &mut Peer, during: &str) {
    assert_eq!(peer.run(1_000_000, "echo still here"), "still here\n", "{during}");
}

#[test]
fn garbage_instead_of_a_banner_or_a_packet_ends_the_connection_it_comes_on() {
    let mut attacked = Attacked::new("auth:\n  login_grace_time: 5s");
    let raw = |length: u32, rest: &[u8]| [&length.to_be_bytes(), rest].concat();
    let packet = |payload: &[u8]| {
        let padding = 8 - (5 + payload.len() + 4) % 8 + 4;
        let mut bytes = raw((1 + payload.len() + padding) as u32, &[padding as u8]);
        bytes.extend(payload);
        bytes.resize(bytes.len() + padding, 0);
        bytes
    };
    let banner = b"SSH-2.0-x\r\n".as_slice();
    let lists = |length: u32| [&[message::KEXINIT], [7; 16].as_slice(), &length.to_be_bytes(), &random(500)].concat();
    let kexinit = packet(&peer::kexinit().0);
    let point = |bytes: &[u8]| packet(&Packet::new(message::KEX_ECDH_INIT).string(bytes).0);
    let cases = [
        ("random bytes", random(100_000)),
        ("a line without end", vec![b'A'; 1 << 20]),
        ("lines without end", b"hello\r\n".repeat(100_000)),
        ("a banner without end", [b"SSH-2.0-".as_slice(), &vec![b'A'; 1 << 20]].concat()),
        ("version 1", b"SSH-1.5-x\r\n".to_vec()),
        ("zeros", vec![0; 100_000]),
        ("random packets", [banner, &random(100_000)].concat()),
        ("the longest packet", [banner, &raw(u32::MAX, &random(100_000))].concat()),
        ("a negative length", [banner, &raw(0x8000_0000, &random(100_000))].concat()),
        ("a packet longer than any", [banner, &raw(300_000, &vec![0; 300_000])].concat()),
        ("no packet", [banner, &raw(0, &[0; 16])].concat()),
        ("more padding than packet", [banner, &raw(12, &[255; 12])].concat()),
        ("an empty packet", [banner, &packet(&[])].concat()),
        ("short lists of algorithms", [banner, &packet(&[message::KEXINIT])].concat()),
        ("long lists of algorithms", [banner, &packet(&lists(u32::MAX))].concat()),
        ("random lists of algorithms", [banner, &packet(&lists(400))].concat()),
        ("nothing in common", [banner, &packet(&[&[message::KEXINIT], [0; 61].as_slice()].concat())].concat()),
        ("the login before the key exchange", [banner, &packet(&[message::USERAUTH_REQUEST])].concat()),
        ("a channel before the key exchange", [banner, &packet(&[message::CHANNEL_OPEN])].concat()),
        ("no public key", [banner, &kexinit, &packet(&[message::KEX_ECDH_INIT])].concat()),
        ("an empty public key", [banner, &kexinit, &point(&[])].concat()),
        ("a long public key", [banner, &kexinit, &point(&random(30_000))].concat()),
        ("the zero point", [banner, &kexinit, &point(&[0; 32])].concat()),
        ("new keys that were not made", [banner, &kexinit, &packet(&[message::NEWKEYS])].concat()),
        ("random bytes for ciphertext", [banner, &kexinit, &point(&[9; 32]), &packet(&[21]), &random(999)].concat()),
    ];
    for (name, bytes) in cases {
        let mut peer = Peer::connect(&attacked.host);
        // It may be cut before all is written.
        let _ = peer.write(&bytes);
        attacked.unhurt(name);
        peer.wait_for_cut(name);
    }
    attacked.only_bob_is_left();
}

#[test]
fn packets_that_make_no_sense_before_the_login_end_the_connection_or_are_answered() {
    let mut attacked = Attacked::new("auth:\n  login_grace_time: 10s\n  max_startups: \"1000:30:1001\"");
    let runner = &mut TestRunner::new_with_rng(
        Config::default(),
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let bodies = proptest::collection::vec(any::<u8>(), 0..200);
    for kind in (0..=255).filter(|kind| *kind != message::KEXINIT) {
        let mut peer = Peer::encrypted(&attacked.host);
        if kind % 2 == 0 {
            peer.ask_for_service();
        }
        let body = bodies.new_tree(runner).unwrap().current();
        let packet = Packet([vec![kind], body].concat());
        // It may be cut after the first.
        let _ = peer.put(&packet).and_then(|()| peer.put(&packet)).and_then(|()| peer.flush());
        if kind % 16 == 0 {
            attacked.unhurt(&format!("message {kind}"));
        }
    }
    attacked.only_bob_is_left();
    attacked.unhurt("the end");
}

#[test]
fn user_names_of_any_bytes_are_refused_and_come_into_no_log_as_they_are() {
    let mut attacked = Attacked::new("auth:\n  max_auth_tries: 6");
    let long = vec![b'a'; 200_000];
    let names: [&[u8]; 9] = [
        b"",
        b"ada\0",
        b"ada\nFAKE LINE",
        b"\x1b[2J\x1b]0;owned\x07",
        b"\xff\xfe\xfd",
        b"../../etc/passwd",
        b"$(reboot)",
        "\u{202e}ada".as_bytes(),
        &long,
    ];
    for name in names {
        let shown = name[..name.len().min(20)].escape_ascii().to_string();
        let mut peer = Peer::encrypted(&attacked.host);
        peer.ask_for_service();
        let key = Packet(Vec::new()).string("ssh-ed25519").string([9; 32]);
        let offer = Packet::new(message::USERAUTH_REQUEST)
            .string(name)
            .string("ssh-connection")
            .string("publickey")
            .byte(0)
            .string("ssh-ed25519")
            .string(&key.0);
        peer.send(&offer);
        // Refused, or, where it is no name at all, cut.
        while let Some(payload) = peer.receive() {
            assert_ne!(payload[0], message::USERAUTH_SUCCESS, "{shown}");
            if payload[0] == message::USERAUTH_FAILURE {
                break;
            }
        }
        attacked.unhurt(&shown);
    }
    let audit = std::fs::read_to_string(attacked.host.audit_log()).unwrap();
    for log in [audit, attacked.host.log()] {
        let raw = |c: char| c.is_control() && c != '\n' && c != '\t';
        assert!(!log.contains(raw), "{}", log.escape_debug());
        assert!(!log.lines().any(|line| line.starts_with("FAKE LINE")), "{log}");
        assert!(!log.contains(&"a".repeat(1000)), "a name of 200,000 bytes is in a log");
    }
}

#[test]
fn connections_that_never_speak_are_bounded_and_ended_and_users_get_in() {
    let mut attacked = Attacked::new("auth:\n  max_startups: \"6:100:6\"\n  login_grace_time: 3s");
    let mut silent: Vec<Peer> = (0..20).map(|_| Peer::connect(&attacked.host)).collect();
    let dropped = |log: String| -> u32 {
        let counts =
            log.lines().filter_map(|line| line.split("dropped ").nth(1)?.split(' ').next()?.parse::<u32>().ok());
        counts.sum()
    };
    eventually("the surplus is dropped", || dropped(attacked.host.log()) >= 14);
    assert!(attacked.host.processes("connection").len() <= 1 + 6 + 4);
    attacked.unhurt("20 silent connections");
    eventually("ada gets in", || attacked.host.ssh("ada", "true").run().status == Some(0));
    for peer in &mut silent {
        peer.wait_for_cut("silence");
    }
    attacked.only_bob_is_left();
}

#[test]
fn a_channel_whose_output_nobody_takes_holds_up_nothing_else() {
    let mut attacked = Attacked::new("");
    let mut peer = Peer::logged_in(&attacked.host, "ada");
    let stuck: Vec<u32> = (0..5).map(|ours| peer.open(ours, 100_000)).collect();
    let never: Vec<u32> = (5..10).map(|ours| peer.open(ours, 0)).collect();
    for theirs in stuck.iter().chain(&never) {
        peer.send(&Packet::exec(*theirs, "exec cat /dev/zero"));
    }
    let mut taken = 0;
    peer.wait_for(|payload| {
        if payload[0] == message::CHANNEL_DATA {
            taken += payload.len() - 9;
        }
        taken == 5 * 100_000
    });
    assert_serves(&mut peer, "ten channels with their windows used up");
    attacked.unhurt("ten channels with their windows used up");
    peer.send(&Packet::on(message::WINDOW_ADJUST, stuck[0]).number(0));
    assert_serves(&mut peer, "a window enlarged by nothing");
    attacked.unhurt("the end");
}

#[test]
fn a_client_that_reads_nothing_at_all_is_let_go_of() {
    let config = "session:\n  mode: destroy-on-disconnect\n  client_alive_interval: 2s\n  client_alive_count_max: 1";
    let mut attacked = Attacked::new(config);
    let mut peer = Peer::logged_in(&attacked.host, "ada");
    for ours in 0..10 {
        let theirs = peer.open(ours, u32::MAX);
        peer.put(&Packet::exec(theirs, "exec cat /dev/zero")).unwrap();
    }
    peer.flush().unwrap();
    attacked.unhurt("ten channels of zeros");
    attacked.only_bob_is_left();
    attacked.unhurt("the end");
}

#[test]
fn replies_that_nobody_reads_are_not_collected() {
    let mut attacked = Attacked::new("");
    let mut peer = Peer::logged_in(&attacked.host, "ada");
    let theirs = peer.open(0, 1 << 20);
    peer.set_patience(Duration::from_secs(2));
    let requests = [
        Packet::new(message::GLOBAL_REQUEST).string("unknown@example.com").byte(1),
        Packet::request(theirs, "env").string("LANG").string("C"),
        Packet::request(theirs, "unknown@example.com"),
        Packet::new(message::CHANNEL_OPEN).string("unknown").number(9).number(9).number(9),
        Packet::new(200),
    ];
    // Until the server reads no more, or a bound of its own is no longer in question.
    let mut sent = 0;
    while sent < 300_000 && requests.iter().all(|request| peer.put(request).is_ok()) {
        sent += requests.len();
    }
    attacked.unhurt(&format!("{sent} unread replies"));
    drop(peer);
    attacked.only_bob_is_left();
}

#[test]
fn a_thousand_channels_one_after_the_other_and_more_than_allowed_at_once() {
    let mut attacked = Attacked::new("auth:\n  max_sessions: 20");
    let mut peer = Peer::logged_in(&attacked.host, "ada");
    // Closed by the client, unused.
    for ours in 0..400 {
        let theirs = peer.open(ours, 1 << 20);
        peer.send(&Packet::on(message::CHANNEL_CLOSE, theirs));
    }
    // Closed by the client while something runs.
    for ours in 400..700 {
        let theirs = peer.open(ours, 1 << 20);
        peer.send(&Packet::exec(theirs, "exec cat"));
        peer.send(&Packet::on(message::CHANNEL_CLOSE, theirs));
    }
    assert_serves(&mut peer, "700 channels");
    attacked.unhurt("700 channels");
    // Closed by the server, at the end of what ran.
    for ours in 700..1000 {
        assert_eq!(peer.run(ours, "echo $((6 * 7))"), "42\n", "channel {ours}");
    }
    attacked.unhurt("1,000 channels");
    for ours in 0..200 {
        peer.ask_for_channel(ours, 1 << 20);
    }
    let mut refused = 0;
    let mut opened = Vec::new();
    while opened.len() + refused < 200 {
        let answer = peer.receive().unwrap();
        match answer[0] {
            message::CHANNEL_OPEN_CONFIRMATION => opened.push(channel_of(&answer[4..])),
            message::CHANNEL_OPEN_FAILURE => refused += 1,
            _ => {}
        }
    }
    assert_eq!((opened.len(), refused), (20, 180));
    attacked.unhurt("200 channels at once");
    for theirs in opened {
        peer.send(&Packet::on(message::CHANNEL_CLOSE, theirs));
    }
    assert_serves(&mut peer, "after 200 channels at once");
}

#[test]
fn requests_out_of_order_are_refused_or_ignored_and_the_connection_goes_on() {
    let mut attacked = Attacked::new("");
    let mut peer = Peer::logged_in(&attacked.host, "ada");
    // A second command, terminal or environment for a channel that runs something.
    let theirs = peer.open(1, 1 << 20);
    peer.send(&Packet::data(theirs, "before "));
    peer.send(&Packet::exec(theirs, "exec cat"));
    assert!(peer.answer(1));
    let pty = Packet::request(theirs, "pty-req").string("vt100").number(80).number(24).number(0).number(0).string("");
    let env = Packet::request(theirs, "env").string("LANG").string("C");
    let shell = Packet::request(theirs, "shell");
    let sftp = Packet::request(theirs, "subsystem").string("sftp");
    for late in [Packet::exec(theirs, "echo twice"), pty, env, shell, sftp, Packet::request(theirs, "x@example.com")] {
        peer.send(&late);
        assert!(!peer.answer(1));
    }
    // Windows beyond what a window can be.
    for _ in 0..3 {
        peer.send(&Packet::on(message::WINDOW_ADJUST, theirs).number(u32::MAX));
    }
    peer.send(&Packet::new(message::CHANNEL_EXTENDED_DATA).number(theirs).number(1).string("not for stdin"));
    peer.send(&Packet::data(theirs, "running"));
    for _ in 0..2 {
        peer.send(&Packet::on(message::CHANNEL_EOF, theirs));
        peer.send(&Packet::data(theirs, "after the end"));
    }
    assert_eq!(peer.output(1), b"before running");
    // All of it again for a channel that is closed, and for one that never was.
    for gone in [theirs, 77, u32::MAX] {
        for _ in 0..2 {
            peer.send(&Packet::on(message::CHANNEL_CLOSE, gone));
            peer.send(&Packet::on(message::CHANNEL_EOF, gone));
            peer.send(&Packet::data(gone, "nobody"));
            peer.send(&Packet::on(message::WINDOW_ADJUST, gone).number(1));
            peer.send(&Packet::exec(gone, "echo nobody"));
            peer.send(&Packet::request(gone, "signal").string("KILL"));
        }
    }
    assert_serves(&mut peer, "messages for channels that are not there");
    // The two ends close at once, or before anything runs, or while it is being started.
    for command in ["true", "exec sleep 1000", "cat /dev/zero"] {
        let theirs = peer.open(2, 1 << 20);
        peer.put(&Packet::exec(theirs, command)).unwrap();
        peer.put(&Packet::on(message::CHANNEL_CLOSE, theirs)).unwrap();
        peer.put(&Packet::on(message::CHANNEL_CLOSE, theirs)).unwrap();
        peer.flush().unwrap();
    }
    assert_serves(&mut peer, "channels closed twice");
    for kind in ["direct-nonsense", "auth-agent@openssh.com", "tun@openssh.com", ""] {
        peer.send(&Packet::new(message::CHANNEL_OPEN).string(kind).number(3).number(1 << 20).number(1 << 15));
        let answer = peer.wait_for(|payload| (91..=92).contains(&payload[0]) && channel_of(payload) == 3);
        assert_eq!(answer[0], message::CHANNEL_OPEN_FAILURE, "{kind}");
    }
    for number in 0..1000 {
        peer.send(&Packet::new(message::GLOBAL_REQUEST).string(format!("unknown{number}")).byte(1));
        peer.wait_for(|payload| payload[0] == message::REQUEST_FAILURE);
    }
    assert_serves(&mut peer, "unknown requests");
    attacked.unhurt("the end");
}

#[test]
fn random_packets_after_the_login_hurt_nobody_else() {
    let mut attacked = Attacked::new("");
    let runner = &mut TestRunner::deterministic();
    let bodies = proptest::collection::vec(any::<u8>(), 0..64);
    for kind in (0..=255).filter(|kind| *kind != message::KEXINIT) {
        let mut peer = Peer::logged_in(&attacked.host, "ada");
        let theirs = peer.open(0, 1 << 20);
        for _ in 0..5 {
            let body = bodies.new_tree(runner).unwrap().current();
            // It may be cut after any of them.
            let sent = peer.put(&Packet([vec![kind], theirs.to_be_bytes().to_vec(), body.clone()].concat()));
            let _ = sent.and_then(|()| peer.put(&Packet([vec![kind], body].concat()))).and_then(|()| peer.flush());
        }
        if kind % 16 == 0 {
            attacked.unhurt(&format!("message {kind}"));
        }
    }
    attacked.only_bob_is_left();
}

#[test]
fn data_for_a_command_that_does_not_read_takes_little_memory_however_it_is_cut_up() {
    let mut attacked = Attacked::new("");
    for (name, size, count) in [("empty", 0, 1_000_000), ("one byte", 1, 300_000), ("as large as can be", 200_000, 300)]
    {
        let mut peer = Peer::logged_in(&attacked.host, "ada");
        let theirs = peer.open(0, 1 << 20);
        peer.send(&Packet::exec(theirs, "exec sleep 1000"));
        let packet = Packet::data(theirs, vec![b'x'; size]);
        for _ in 0..count {
            peer.put(&packet).unwrap();
        }
        peer.flush().unwrap();
        assert_serves(&mut peer, name);
        attacked.unhurt(name);
    }
    attacked.only_bob_is_left();
}

#[test]
fn floods_of_requests_are_dropped_or_refused_and_the_connection_goes_on() {
    let mut attacked = Attacked::new("");
    let mut peer = Peer::logged_in(&attacked.host, "ada");
    let theirs = peer.open(0, 1 << 20);
    let mut granted = 0;
    for number in 0..5000 {
        peer.send(&Packet::request(theirs, "env").string(format!("LC_{number}")).string(vec![b'x'; 4000]));
        granted += usize::from(peer.answer(0));
    }
    assert_eq!(granted, 64);
    peer.send(&Packet::request(theirs, "env").string("LC_X").string(vec![b'x'; 200_000]));
    assert!(!peer.answer(0));
    let pty = Packet::request(theirs, "pty-req").string(vec![b'x'; 100_000]).number(u32::MAX).number(u32::MAX);
    peer.send(&pty.number(u32::MAX).number(u32::MAX).string([1, 255, 255, 255, 255].repeat(100)));
    peer.answer(0);
    peer.send(&Packet::exec(theirs, "trap : HUP INT TERM; echo ready; while :; do sleep 1; done"));
    assert!(peer.answer(0));
    let unanswered = |name: &str| Packet::new(message::CHANNEL_REQUEST).number(theirs).string(name).byte(0);
    for number in 0..20_000 {
        let size = unanswered("window-change").number(number).number(number).number(number).number(number);
        peer.put(&size).unwrap();
        peer.put(&unanswered("signal").string(["HUP", "INT", "NONSENSE"][number as usize % 3])).unwrap();
    }
    peer.flush().unwrap();
    assert_serves(&mut peer, "signals and window sizes");
    attacked.unhurt("signals and window sizes");
    for _ in 0..50 {
        peer.exchange_keys();
    }
    assert_serves(&mut peer, "50 key exchanges");
    attacked.unhurt("50 key exchanges");
}

#[test]
fn commands_as_long_as_a_packet_are_refused_and_the_connection_goes_on() {
    let mut attacked = Attacked::new("");
    let mut peer = Peer::logged_in(&attacked.host, "ada");
    let cases = [
        ("longer than Linux takes", vec![b'#'; 250_000]),
        ("not UTF-8, as long as Linux takes", [b"true #".as_slice(), &vec![0xff; 131_000]].concat()),
        ("not UTF-8, longer than Linux takes", vec![0xff; 250_000]),
        ("with a NUL", b"echo a\0b".to_vec()),
        ("empty", Vec::new()),
    ];
    for (name, command) in &cases {
        for full in [false, true] {
            let theirs = peer.open(0, 1 << 20);
            if full {
                for number in 0..64 {
                    peer.send(&Packet::request(theirs, "env").string(format!("LC_{number}")).string(vec![b'x'; 4000]));
                    assert!(peer.answer(0));
                }
            }
            peer.send(&Packet::exec(theirs, command));
            peer.answer(0);
            peer.output(0);
            peer.send(&Packet::on(message::CHANNEL_CLOSE, theirs));
            assert_serves(&mut peer, name);
        }
    }
    attacked.unhurt("long commands");
    // The supervisor still hears of what is run.
    eventually("the last command is in the audit log", || {
        attacked.host.audit().iter().filter(|event| event["command"] == "echo still here").count() == 2 * cases.len()
    });
}

#[test]
fn a_client_that_takes_its_leave_and_stays_is_let_go_of() {
    let mut attacked = Attacked::new("");
    let mut peer = Peer::logged_in(&attacked.host, "ada");
    peer.open(0, 1 << 20);
    peer.send(&Packet::new(message::DISCONNECT).number(11).string("").string(""));
    attacked.only_bob_is_left();
    attacked.unhurt("the end");
    drop(peer);
}

#[test]
fn a_server_that_ends_does_not_wait_for_hostile_clients() {
    let mut attacked = Attacked::new("");
    let mut peer = Peer::logged_in(&attacked.host, "ada");
    let theirs = peer.open(0, u32::MAX);
    peer.send(&Packet::exec(theirs, "exec cat /dev/zero"));
    let silent = Peer::encrypted(&attacked.host);
    attacked.unhurt("a client that does not read");
    assert!(attacked.host.end(Signal::SIGINT).success());
    drop((peer, silent));
}
