//! The client's agent and display, inside.

mod common;

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
};

use common::{Host, Image, Master, Run, eventually, ssh};

/// An agent with one key.
struct Agent {
    socket: PathBuf,
    child: Child,
}

impl Agent {
    fn start(host: &Host) -> Self {
        let (socket, key) = (host.scratch().join("agent"), host.scratch().join("agent-key"));
        let child = Command::new("ssh-agent").args(["-D", "-a"]).arg(&socket).stdout(Stdio::null()).spawn().unwrap();
        let agent = Self { socket, child };
        eventually("the agent listens", || agent.socket.exists());
        ssh::make_key(&key, &["-t", "ed25519"]);
        Run::new("ssh-add").arg("-q").arg(&key).env("SSH_AUTH_SOCK", &agent.socket).run().ok();
        agent
    }

    fn keys(&self) -> String {
        Run::new("ssh-add").arg("-L").env("SSH_AUTH_SOCK", &self.socket).run().ok().text()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn the_agent_is_reached_over_a_socket_of_the_users_own() {
    let host = Host::new().image(Image::Debian).user("ada").start();
    let agent = Agent::start(&host);
    let with_agent = |command: &str| host.ssh("ada", command).args(["-A"]).env("SSH_AUTH_SOCK", &agent.socket);
    with_agent("ssh-add -L").run().ok().stdout(&agent.keys());
    with_agent("stat -c '%F %a %U' $SSH_AUTH_SOCK $(dirname $SSH_AUTH_SOCK)")
        .run()
        .ok()
        .stdout("socket 600 ada\ndirectory 700 ada\n");
    with_agent("for i in 1 2 3 4 5 6 7 8; do ssh-add -L & done; wait").run().ok().stdout(&agent.keys().repeat(8));
    // Also without a channel that runs something, and only if it is asked for.
    host.ssh("ada", "echo ${SSH_AUTH_SOCK-none}").env("SSH_AUTH_SOCK", &agent.socket).run().ok().stdout("none\n");
}

#[test]
fn the_agents_socket_goes_with_the_connection() {
    let host = Host::new().image(Image::Debian).user("ada").start();
    let agent = Agent::start(&host);
    let other = Master::start(&host, "ada", &[]);
    let shown = "ls /tmp | wc -l";
    let mut child =
        host.ssh("ada", "echo $SSH_AUTH_SOCK; cat").args(["-A"]).env("SSH_AUTH_SOCK", &agent.socket).spawn();
    let mut path = [0; 5];
    child.stdout.as_mut().unwrap().read_exact(&mut path).unwrap();
    assert_eq!(&path, b"/tmp/");
    other.ssh(shown).run().ok().stdout("1\n");
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the socket is gone", || other.ssh(shown).run().text() == "0\n");

    let ended = host.ssh("ada", "echo $SSH_AUTH_SOCK").args(["-A"]).env("SSH_AUTH_SOCK", &agent.socket).run();
    assert!(ended.ok().text().starts_with("/tmp/ssh-"));
    eventually("the socket is gone", || other.ssh(shown).run().text() == "0\n");
}

#[test]
fn channels_of_one_connection_share_the_agents_socket() {
    let host = Host::new().image(Image::Debian).user("ada").start();
    let agent = Agent::start(&host);
    let path = host.scratch().join("master");
    let shared = |command: &str| {
        let ssh = host.ssh("ada", command).args(["-A", "-o", "ControlMaster=auto", "-o", "ControlPersist=yes", "-S"]);
        ssh.args([&path]).env("SSH_AUTH_SOCK", &agent.socket)
    };
    // Its own stderr would be held open by the master that it leaves behind.
    assert!(shared("true").command().stderr(Stdio::null()).status().unwrap().success());
    let first = shared("echo $SSH_AUTH_SOCK").run().ok().text();
    shared("echo $SSH_AUTH_SOCK; ssh-add -L").run().ok().stdout(&format!("{first}{}", agent.keys()));
    shared("").args(["-O", "exit"]).run().ok();
}

#[test]
fn a_key_without_agent_forwarding_has_none() {
    let host = Host::new().image(Image::Debian).user("ada").start();
    let agent = Agent::start(&host);
    restrict(&host, "no-agent-forwarding");
    let command = "echo ${SSH_AUTH_SOCK-none}";
    host.ssh("ada", command).args(["-A"]).env("SSH_AUTH_SOCK", &agent.socket).run().ok().stdout("none\n");
}

fn restrict(host: &Host, options: &str) {
    let keys = host.root.join("etc/podspawn/keys/ada");
    let key = fs::read_to_string(&keys).unwrap();
    fs::write(&keys, format!("{options} {key}")).unwrap();
}

/// The user's display: takes one X11 client after the other, and answers with whether it knew the real cookie.
struct Display {
    name: String,
    authority: PathBuf,
}

const COOKIE: &str = "00112233445566778899aabbccddeeff";

impl Display {
    fn start(host: &Host) -> Self {
        // Displays that nobody has: their ports begin at 6000.
        let (number, listener) = (700..800)
            .find_map(|number| Some((number, TcpListener::bind((host.address, 6000 + number)).ok()?)))
            .expect("a free port");
        let name = format!("{}:{number}", host.address);
        let authority = host.scratch().join("Xauthority");
        fs::write(&authority, "").unwrap();
        let add = ["add", &name, "MIT-MAGIC-COOKIE-1", COOKIE];
        Run::new("xauth").arg("-f").arg(&authority).args(add).run().ok();
        thread::spawn(move || {
            // Until the test's process ends.
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut setup = [0; 48];
                let real: Vec<u8> =
                    (0..16).map(|i| u8::from_str_radix(&COOKIE[2 * i..2 * i + 2], 16).unwrap()).collect();
                let known = stream.read_exact(&mut setup).is_ok() && setup[32..] == real;
                stream.write_all(if known { b"welcome\n" } else { b"refused\n" }).unwrap();
            }
        });
        Self { name, authority }
    }

    fn ssh(&self, host: &Host, command: &str) -> common::Ssh {
        host.ssh("ada", command).args(["-Y"]).env("DISPLAY", &self.name).env("XAUTHORITY", &self.authority)
    }
}

/// An X11 client that connects to $DISPLAY with the cookie that it is given, and shows what it is told.
const CLIENT: &str = "python3 -c '
import os, socket, struct, sys
number = int(os.environ[\"DISPLAY\"].split(\":\")[1].split(\".\")[0])
cookie = bytes.fromhex(sys.argv[1])
s = socket.create_connection((\"localhost\", 6000 + number))
s.sendall(struct.pack(\"<BxHHHHxx\", 108, 11, 0, 18, 16) + b\"MIT-MAGIC-COOKIE-1\" + b\"xx\" + cookie)
print(s.recv(100).decode().strip() or \"closed\")
'";

#[test]
fn programs_inside_reach_the_users_display_with_a_cookie_of_their_own() {
    let host = Host::new().image(Image::Debian).user("ada").start();
    let display = Display::start(&host);
    let given = display.ssh(&host, "echo $DISPLAY; xauth list; stat -c %a .Xauthority").run();
    let text = given.ok().text();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() == 3 && lines[0] == "localhost:10.0" && lines[2] == "600", "{given}");
    assert!(lines[1].starts_with("ada/unix:10  MIT-MAGIC-COOKIE-1  ") && !lines[1].contains(COOKIE), "{given}");

    let client = format!("{CLIENT} $(xauth list | awk '{{print $3}}')");
    display.ssh(&host, &client).run().ok().stdout("welcome\n");
    // Who does not know the cookie does not get through the client.
    let stranger = format!("{CLIENT} {COOKIE}");
    display.ssh(&host, &stranger).run().ok().stdout("closed\n");
}

#[test]
fn each_channel_has_a_display_of_its_own_while_it_lives() {
    let host = Host::new().image(Image::Debian).user("ada").start();
    let display = Display::start(&host);
    let other = Master::start(&host, "ada", &[]);
    let mut first = display.ssh(&host, "echo $DISPLAY; cat").spawn();
    let mut name = [0; 15];
    first.stdout.as_mut().unwrap().read_exact(&mut name).unwrap();
    assert_eq!(&name, b"localhost:10.0\n");
    display.ssh(&host, "echo $DISPLAY").run().ok().stdout("localhost:11.0\n");
    other
        .ssh("ss -Hltn 'sport = :6010' | awk '{print $4}' | sort | xargs")
        .run()
        .ok()
        .stdout("127.0.0.1:6010 [::1]:6010\n");
    drop(first.stdin.take());
    first.wait().unwrap();
    eventually("the display is gone", || other.ssh("ss -Hltn 'sport = :6010' | wc -l").run().text() == "0\n");
}

#[test]
fn displays_are_refused_without_xauth_and_by_the_key() {
    let refused = "X11 forwarding request failed on channel 0\r\n";
    let host = Host::new().user("ada").start();
    let display = Display::start(&host);
    let loud = ["-o", "LogLevel=INFO"];
    display.ssh(&host, "echo ${DISPLAY-none}").args(loud).run().ok().stdout("none\n").stderr(refused);

    let host = Host::new().image(Image::Debian).user("ada").start();
    restrict(&host, "no-x11-forwarding");
    display.ssh(&host, "echo ${DISPLAY-none}").args(loud).run().ok().stdout("none\n").stderr(refused);
}
