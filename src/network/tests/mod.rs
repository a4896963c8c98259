//! The network for real: a namespace plays the host, another one the internet behind it. Judged by `ip`, `nft` and what
//! arrives at sockets.

mod companions;
mod egress;
mod instances;
mod names;

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns, unshare};

use super::{dns::Forwarder, dns::Upstreams, *};
use crate::names::{ServicePlace, SessionId};

/// Addresses of the internet: public, private, metadata.
const PUBLIC: &str = "198.51.100.2";
const PRIVATE: &str = "10.9.9.9";
const METADATA: &str = "169.254.169.254";
/// The host's own address towards the internet.
const HOST: &str = "198.51.100.1";

fn tag(name: &str) -> InstanceTag {
    InstanceTag::of_root(std::path::Path::new(name))
}

fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{script}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Runs `work` in the network namespace `netns`, on a thread of its own.
fn inside<T: Send>(netns: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A TCP server on all addresses of the caller's namespace that tells each client its own address, for the test's life.
fn greeter(port: u16) -> Arc<AtomicUsize> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    let greeted = Arc::new(AtomicUsize::new(0));
    let count = greeted.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            let peer = stream.peer_addr().unwrap().ip();
            // The client may have gone again.
            let _ = write!(stream, "{peer}");
        }
    });
    greeted
}

/// What the greeter at `to` says, or why it cannot be reached.
fn greeting(to: &str, port: u16) -> io::Result<String> {
    let mut stream =
        TcpStream::connect_timeout(&SocketAddr::new(to.parse().unwrap(), port), Duration::from_millis(400))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// That `to` is refused, rather than silent.
fn refused(to: &str, port: u16) {
    let error = greeting(to, port).expect_err(to);
    assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED), "{to}: {error}");
}

/// A host with one network card and the internet behind it. The test runs on the host.
struct World {
    internet: OwnedFd,
}

impl World {
    /// Runs `test` on a fresh host.
    fn with(test: impl FnOnce(&World) + Send) {
        thread::scope(|scope| {
            let host = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                let (internet, _links) = new_namespace().unwrap();
                let path = format!("/proc/{}/fd/{}", std::process::id(), internet.as_raw_fd());
                // The stricter of the settings that are found on hosts.
                sh("echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter");
                sh(&format!(
                    "ip link set lo up
                     ip link add up0 type veth peer name net0 netns {path}
                     ip addr add {HOST}/24 dev up0; ip link set up0 up
                     ip route add default via {PUBLIC}"
                ));
                inside(&internet, || {
                    sh(&format!(
                        "ip link set lo up; ip addr add {PUBLIC}/24 dev net0; ip link set net0 up
                         ip addr add {PRIVATE}/32 dev lo; ip addr add {METADATA}/32 dev lo
                         ip route add 10.128.0.0/9 via {HOST}"
                    ));
                    greeter(80);
                });
                test(&World { internet });
            });
            host.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
    }
}

fn settings(name: &str, egress: Egress) -> Settings {
    Settings { tag: tag(name), pool: None, former_pool: None, egress }
}

fn lease(network: &Network, slot: u32) -> Lease {
    let session = SessionId::from_bits(0x1234_5678 + u64::from(slot) * 0x1_0000_0001);
    Lease { container: session.into(), address: network.address(slot).unwrap(), egress: None }
}

/// A session in slot `slot`, with a greeter of its own on port 7000.
fn session(network: &Network, slot: u32) -> (Lease, OwnedFd) {
    let lease = lease(network, slot);
    let netns = network.create(&lease, false).unwrap().netns;
    inside(&netns, || greeter(7000));
    (lease, netns)
}

fn assert_nothing_left(tag: &InstanceTag) {
    let ours = format!("ps{}", tag.as_str());
    eventually("veth pairs go with their namespaces", || !sh("ip -j link").contains(&ours));
    assert!(!sh("nft list tables").contains(&tag.object_name()));
    assert_eq!(Network::listing(tag).unwrap(), Vec::<String>::new());
}
