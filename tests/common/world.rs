//! A network of the test's own: the test's thread, and whatever it starts, is a host with one network card, and behind
//! that is an internet of one machine.

use std::{
    fs::File,
    io::Write,
    net::{Ipv4Addr, TcpListener},
    os::fd::AsFd,
    process::{Child, Command, Stdio},
};

use nix::sched::{CloneFlags, setns, unshare};

use super::{Run, eventually};

/// The host's address, and those of the machine in the internet: public, private, and the clouds' metadata.
pub const HOST: &str = "198.51.100.1";
pub const PUBLIC: &str = "198.51.100.2";
pub const PRIVATE: &str = "10.9.9.9";
pub const METADATA: &str = "169.254.169.254";

pub struct World {
    /// A process whose network namespace is the internet.
    internet: Child,
}

impl World {
    /// Moves the calling thread into a new network. What it spawns goes along.
    pub fn enter() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let mut internet = Command::new("unshare").args(["-n", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
        let world = {
            let pid = internet.id();
            let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
            eventually("the internet has a namespace of its own", || {
                internet.try_wait().unwrap().is_none()
                    && std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|link| link != own)
                    && std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "cat\n")
            });
            Self { internet }
        };
        sh(&format!(
            "ip link set lo up
             ip link add up0 type veth peer name net0 netns {pid}
             ip addr add {HOST}/24 dev up0; ip link set up0 up
             ip route add default via {PUBLIC}",
            pid = world.internet.id()
        ));
        world.sh(&format!(
            "ip link set lo up; ip addr add {PUBLIC}/24 dev net0; ip link set net0 up
             ip addr add {PRIVATE}/32 dev lo; ip addr add {METADATA}/32 dev lo
             ip route add 10.0.0.0/8 via {HOST}"
        ));
        world
    }

    /// Runs a script in the internet.
    pub fn sh(&self, script: &str) -> String {
        let target = self.internet.id().to_string();
        Run::new("nsenter").args(["-t", &target, "-n", "sh", "-ec", script]).run().ok().text()
    }

    /// A program that is to be started in the internet.
    pub fn enter_with(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.internet.id().to_string(), "-n", program]);
        command
    }

    /// Serves TCP on all addresses of the internet: each client is told the address that it came from.
    pub fn greeter(&self, port: u16) {
        let netns = File::open(format!("/proc/{}/ns/net", self.internet.id())).unwrap();
        let (ready, listening) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
            ready.send(()).unwrap();
            greet(listener);
        });
        listening.recv().unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.internet.kill().unwrap();
        self.internet.wait().unwrap();
    }
}

/// As [`World::greeter`], on all addresses of the host.
pub fn greeter_on_host(port: u16) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    std::thread::spawn(move || greet(listener));
}

fn greet(listener: TcpListener) {
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let peer = stream.peer_addr().unwrap().ip();
        // The client may have gone again.
        let _ = write!(stream, "{peer}");
    }
}

pub fn sh(script: &str) -> String {
    Run::new("sh").args(["-ec", script]).run().ok().text()
}
