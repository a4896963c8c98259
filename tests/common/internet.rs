//! One machine in the internet: a network namespace of the test's own, with one address, beside the host's network.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::Ipv4Addr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use super::{Run, eventually};

/// Networks for benchmarks (RFC 2544), of which each machine gets the four addresses of a link: 198.18.0.0/15.
const FIRST: u32 = 0xc612_0000;
const LINKS: u32 = 1 << 15;

/// Ends with the test, also if that is killed, and with it the namespace and the link.
pub struct Internet {
    machine: Child,
    pub address: Ipv4Addr,
}

impl Internet {
    pub fn start() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let link = (std::process::id() * 4 + NEXT.fetch_add(1, Ordering::Relaxed)) % LINKS;
        let (host, address) = (Ipv4Addr::from(FIRST + link * 4 + 1), Ipv4Addr::from(FIRST + link * 4 + 2));
        let alive = ["--pdeathsig", "KILL", "unshare", "-n", "sh", "-c", "echo; exec cat"];
        let mut machine =
            Command::new("setpriv").args(alive).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // It speaks from inside the namespace.
        BufReader::new(machine.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        let internet = Self { machine, address };
        let name = format!("inet{link}");
        let pid = internet.machine.id();
        let outside = format!(
            "ip link add {name} type veth peer name net0 netns {pid}
             ip addr add {host}/30 dev {name}; ip link set {name} up"
        );
        Run::new("sh").args(["-ec", &outside]).run().ok();
        let inside = format!(
            "ip link set lo up; ip addr add {address}/30 dev net0; ip link set net0 up; ip route add default via {host}"
        );
        internet.command("sh").args(["-ec", &inside]).status().unwrap();
        internet
    }

    /// A program on the machine.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        let target = self.machine.id().to_string();
        command.args(["--pdeathsig", "KILL", "nsenter", "-t", &target, "-n", program]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Serves the files of a directory; where.
    pub fn serve_files(&mut self, directory: &Path) -> String {
        let mut command = self.command("python3");
        command.args(["-m", "http.server", "80", "--bind", &self.address.to_string(), "--directory"]).arg(directory);
        let server = command.spawn().unwrap();
        let address = self.address;
        eventually("the files are served", || std::net::TcpStream::connect((address, 80)).is_ok());
        // It ends with the thread that started it, or when its namespace's machine has gone.
        drop(server);
        format!("http://{address}")
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        let namespace = fs::read_link(format!("/proc/{}/ns/net", self.machine.id())).unwrap();
        // What was started on it keeps it alive.
        let of_machine = |pid: &i32| fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|other| other == namespace);
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        for pid in pids.filter(of_machine) {
            // It may end by itself.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        self.machine.wait().unwrap();
    }
}
