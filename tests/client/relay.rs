//! `podspawn connect`, between a test that is ssh and a test that is the server.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    process::{Child, Stdio},
};

use crate::common::{DEADLINE, Output, Run, binary, command::finish};

const PODSPAWN: &[u8] = b"SSH-2.0-podspawn_9.9 of a test\r\n";
const SSH: &[u8] = b"SSH-2.0-test\r\n";

/// A server, and the home of somebody whose default it is.
struct World {
    listener: TcpListener,
    home: tempfile::TempDir,
}

impl World {
    fn new(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let home = tempfile::tempdir().unwrap();
        let world = Self { listener, home };
        world.configure(&format!("servers:\n  default: '{}'\n", world.listener.local_addr().unwrap()));
        world
    }

    fn configure(&self, yaml: &str) {
        std::fs::create_dir_all(self.home.path().join(".podspawn")).unwrap();
        std::fs::write(self.home.path().join(".podspawn/config.yaml"), yaml).unwrap();
    }

    fn connect(&self, host: &str, port: &str) -> Run {
        Run::new(binary()).args(["connect", "--", "ada", host, port]).env("HOME", self.home.path())
    }

    /// A relay with its server's end.
    fn relay(&self, host: &str) -> (Child, TcpStream) {
        let child = self.connect(host, "22").spawn();
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        (child, stream)
    }
}

/// What has come when that many bytes have.
fn exactly(stream: &mut impl Read, bytes: &[u8]) {
    let mut got = vec![0; bytes.len()];
    stream.read_exact(&mut got).unwrap();
    assert!(got == bytes, "{}", got.escape_ascii());
}

fn to_end(mut stream: impl Read) -> Vec<u8> {
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    got
}

fn end(child: Child) -> Output {
    finish("podspawn connect", child)
}

#[test]
fn only_a_podspawn_server_is_told_the_project_and_before_anything_else() {
    let announcement = b"PODSPAWN/1 project=web\r\n";
    for (address, host, first, told) in [
        ("127.0.0.1:0", "web.pod", PODSPAWN, &announcement[..]),
        ("[::1]:0", "WEB.pod", PODSPAWN, announcement),
        ("127.0.0.1:0", "web.pod", b"SSH-2.0-OpenSSH_9.2p1\r\n", b""),
        ("127.0.0.1:0", "web.pod", b"Welcome\r\nSSH-2.0-podspawn_9.9\r\n", b""),
        ("127.0.0.1:0", "web.pod", &[b'x'; 5000], b""),
    ] {
        let world = World::new(address);
        let (mut child, mut server) = world.relay(host);
        let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        // ssh does not wait for the server's word, and has to be kept back.
        to.write_all(SSH).unwrap();
        server.write_all(first).unwrap();
        exactly(&mut from, first);
        exactly(&mut server, &[told, SSH].concat());
        // Each direction ends on its own, in either order.
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(to_end(&mut from), b"");
        to.write_all(b"still here").unwrap();
        exactly(&mut server, b"still here");
        drop(to);
        assert_eq!(to_end(&mut server), b"");
        end(child).ok().stderr_has("whose key is not pinned");
    }
}

#[test]
fn what_ssh_has_no_more_to_say_ends_only_its_own_direction() {
    let world = World::new("127.0.0.1:0");
    let (mut child, mut server) = world.relay("web.pod");
    server.write_all(PODSPAWN).unwrap();
    child.stdin.take().unwrap().write_all(SSH).unwrap();
    assert_eq!(to_end(&mut server), [b"PODSPAWN/1 project=web\r\n", SSH].concat());
    server.write_all(b"the answer").unwrap();
    drop(server);
    end(child).ok().stdout("SSH-2.0-podspawn_9.9 of a test\r\nthe answer");
}

#[test]
fn a_relay_ends_with_ssh_also_while_the_server_says_nothing() {
    let world = World::new("127.0.0.1:0");
    let (mut child, mut server) = world.relay("web.pod");
    drop(child.stdin.take());
    assert_eq!(to_end(&mut server), b"");
    end(child).ok().stdout("");
    // And with the server.
    let (child, server) = world.relay("web.pod");
    drop(server);
    end(child).ok().stdout("");
    // Also if ssh is gone when there is more to say to it.
    let mut gone = world.connect("web.pod", "22");
    gone.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = gone.command.spawn().unwrap();
    let (mut server, _) = world.listener.accept().unwrap();
    server.write_all(PODSPAWN).unwrap();
    exactly(child.stdout.as_mut().unwrap(), PODSPAWN);
    drop(child.stdout.take());
    let _stdin = child.stdin.take();
    while server.write_all(&[0; 4096]).is_ok() {}
    end(child).ok();
}

#[test]
fn this_machine_is_a_server_of_its_own_and_has_no_project() {
    let world = World::new("127.0.0.1:0");
    world.configure(&format!("servers: {{mappings: {{localhost.pod: '{}'}}}}\n", world.listener.local_addr().unwrap()));
    let (mut child, mut server) = world.relay("localhost.pod");
    server.write_all(PODSPAWN).unwrap();
    child.stdin.take().unwrap().write_all(SSH).unwrap();
    assert_eq!(to_end(&mut server), SSH);
    drop(server);
    end(child).ok();
}

#[test]
fn a_port_that_ssh_was_told_counts_and_what_does_not_answer_is_named() {
    let world = World::new("127.0.0.1:0");
    let port = world.listener.local_addr().unwrap().port().to_string();
    world.configure("servers: {default: '127.0.0.1:1'}\n");
    let output = world.connect("web.pod", "22").run();
    output.status(1).stderr_has("podspawn: cannot connect to 127.0.0.1:1: Connection refused");
    let child = world.connect("web.pod", &port).spawn();
    drop(world.listener.accept().unwrap());
    end(child).ok();
    world.configure("servers: {default: 'no-such-host.invalid'}\n");
    world.connect("web.pod", "22").run().status(1).stderr_has("cannot find the address of no-such-host.invalid");
}
