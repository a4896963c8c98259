//! Against the real kernel: two sessions' namespaces, and a namespace that plays the internet.

use std::process::{Command, Output, Stdio};

use nix::sched::setns;

use super::*;

/// An instance's network on this host, and a veth pair to a namespace with a public address.
struct World {
    tag: InstanceTag,
    network: Network,
    gateway: Ipv4Addr,
    sockets: Option<dns::Sockets>,
}

impl World {
    fn new(name: &str, egress: Egress) -> Self {
        let tag = InstanceTag::of_root(&std::path::Path::new("/test/network").join(name));
        let (pool, sockets) = Network::choose_pool(&tag, None, None).unwrap();
        let network = Network::open(Settings { tag: tag.clone(), pool, egress }, &[]).unwrap();
        Self { tag, gateway: network.gateway(), network, sockets: Some(sockets) }
    }

    fn lease(&self, slot: u32) -> Lease {
        Lease { session: SessionId::from_bits(u64::from(slot)), address: self.network.address(slot).unwrap() }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.network.close().unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let left = Network::listing(&self.tag).unwrap();
            if left.is_empty() {
                break;
            }
            // The kernel removes devices of a dead namespace in the background.
            assert!(std::time::Instant::now() < end || thread::panicking(), "left behind: {left:?}");
            thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// Runs a shell script in the namespace.
fn inside(netns: &OwnedFd, script: &str) -> Output {
    thread::scope(|scope| {
        let run = || {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            Command::new("sh").args(["-c", script]).stdin(Stdio::null()).output().unwrap()
        };
        scope.spawn(run).join().unwrap()
    })
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Whether a TCP connection can be made; a refusal by the other end counts, a silent drop does not.
fn reaches(netns: &OwnedFd, address: impl fmt::Display, port: u16) -> bool {
    let python = format!(
        "import socket\ns=socket.socket(); s.settimeout(0.7)\ntry:\n s.connect(('{address}',{port})); print('yes')\n\
         except ConnectionRefusedError: print('yes')\nexcept OSError as e: print('no', e)"
    );
    let output = text(&inside(netns, &format!("python3 -c \"{python}\"")));
    assert!(output.starts_with("yes") || output.starts_with("no"), "{output}");
    output.starts_with("yes")
}

use std::fmt;

#[test]
fn a_session_reaches_neither_the_host_nor_another_session() {
    let world = World::new("isolation", Egress::Open);
    let (a, b) = (world.lease(0), world.lease(1));
    let (ns_a, ns_b) = (world.network.create(&a).unwrap().netns, world.network.create(&b).unwrap().netns);
    let host = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = host.local_addr().unwrap().port();

    let own = text(&inside(&ns_a, "ip -4 -o addr show eth0; ip -4 route; ip -6 -o addr show eth0"));
    assert!(own.contains(&a.address.to_string()) && own.contains("default via"), "{own}");
    assert!(!own.contains("inet6"), "{own}");
    assert!(reaches(&ns_a, a.address, 9), "its own address");
    assert!(!reaches(&ns_a, b.address, 9), "another session");
    assert!(!reaches(&ns_a, world.gateway, port), "the host by its gateway address");
    assert!(!reaches(&ns_a, "169.254.169.254", 80), "cloud metadata");
    let addresses = text(&Command::new("hostname").arg("-I").output().unwrap());
    for address in addresses.split_whitespace().filter(|address| address.contains('.')) {
        assert!(!reaches(&ns_a, address, port), "the host by {address}");
    }
    drop((ns_a, ns_b));
    world.network.destroy(&a).unwrap();
    world.network.destroy(&b).unwrap();
    world.network.destroy(&b).expect("removing twice is fine");
}

#[test]
fn a_false_source_address_goes_nowhere() {
    let mut world = World::new("spoof", Egress::Open);
    let a = world.lease(0);
    let netns = world.network.create(&a).unwrap().netns;
    let sockets = world.sockets.take().unwrap();
    sockets.udp.set_nonblocking(false).unwrap();
    sockets.udp.set_read_timeout(Some(std::time::Duration::from_millis(700))).unwrap();
    let send = |source: &str| {
        let python = format!(
            "import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind(('{source}',0)); \
             s.sendto(b'hello',('{}',53))",
            world.gateway
        );
        let output = inside(&netns, &format!("ip addr add {source}/32 dev eth0 2>/dev/null; python3 -c \"{python}\""));
        assert!(output.status.success(), "{}", text(&output));
    };
    let mut buffer = [0; 16];
    send(&a.address.to_string());
    assert_eq!(sockets.udp.recv(&mut buffer).unwrap(), 5);
    send("10.99.99.99");
    assert!(sockets.udp.recv(&mut buffer).is_err(), "a packet with another's address arrived");
    drop(netns);
    world.network.destroy(&a).unwrap();
}

#[test]
fn the_outside_is_reached_with_the_hosts_address_and_private_networks_are_not() {
    let world = World::new("egress", Egress::Public);
    let a = world.lease(0);
    let netns = world.network.create(&a).unwrap().netns;
    // The internet: a namespace with a public and a private address, which knows only the host.
    let (internet, links) = new_namespace().unwrap();
    let outer = format!("tt{}", world.tag.as_str());
    world.network.links.add_veth(&outer, "eth0", internet.as_fd()).unwrap();
    links.set_up(link::LOOPBACK).unwrap();
    let host = format!("ip addr add 203.0.113.1/24 dev {outer}; ip link set {outer} up; \
                        ip route add 192.168.77.7/32 via 203.0.113.7 dev {outer}");
    let far = "ip addr add 203.0.113.7/24 dev eth0; ip addr add 192.168.77.7/32 dev lo; ip link set eth0 up";
    assert!(Command::new("sh").args(["-c", &host]).status().unwrap().success());
    let server = "python3 -c \"
import socket,threading
l=socket.create_server(('0.0.0.0',8080))
for _ in range(1):
    c,a=l.accept(); c.send(a[0].encode()); c.close()\" >/dev/null 2>&1 & sleep 0.5";
    let output = inside(&internet, &format!("{far}; {server}"));
    assert!(output.status.success(), "{}", text(&output));
    let ask = "python3 -c \"
import socket
s=socket.create_connection(('203.0.113.7',8080),3); print(s.recv(99).decode())\"";
    assert_eq!(text(&inside(&netns, ask)).trim(), "203.0.113.1");
    assert!(!reaches(&netns, "192.168.77.7", 9), "a private network");
    drop((netns, internet));
    world.network.destroy(&a).unwrap();
}

#[test]
fn a_restart_keeps_the_leases_of_live_sessions() {
    let world = World::new("restart", Egress::Public);
    let a = world.lease(0);
    let netns = world.network.create(&a).unwrap().netns;
    let settings = world.network.settings.clone();
    let again = Network::open(settings.clone(), std::slice::from_ref(&a)).unwrap();
    let listed = Network::listing(&world.tag).unwrap();
    assert!(listed.iter().any(|line| line.contains("element") && line.contains(a.session.as_str())), "{listed:?}");
    again.destroy(&a).unwrap();
    drop(netns);
}

#[test]
fn two_instances_choose_different_pools() {
    let world = World::new("pools", Egress::Public);
    let other = Network::choose_pool(&world.tag, None, None).unwrap();
    assert_ne!(other.0, world.network.settings.pool);
}
