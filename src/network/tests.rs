//! The network for real: a namespace plays the host, another one the internet behind it. Judged by `ip`, `nft` and what
//! arrives at sockets.

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

#[test]
fn a_session_reaches_the_internet_and_nothing_else() {
    World::with(|world| {
        let network = Network::open(&settings("/public", Egress::Public), &[]).unwrap();
        assert_eq!(sh("cat /proc/sys/net/ipv4/ip_forward"), "1\n");
        greeter(8080);
        let (ada, ada_netns) = session(&network, 0);
        let (bob, bob_netns) = session(&network, 1);
        let (ada_ip, bob_ip) = (ada.address.to_string(), bob.address.to_string());
        let gateway = network.gateway().to_string();

        inside(&ada_netns, || {
            assert_eq!(greeting(PUBLIC, 80).unwrap(), HOST, "behind the host's address");
            assert_eq!(greeting("127.0.0.1", 7000).unwrap(), "127.0.0.1");
            assert_eq!(greeting(&ada_ip, 7000).unwrap(), ada_ip);
            for (to, port) in [(PRIVATE, 80), (METADATA, 80), (bob_ip.as_str(), 7000), (&gateway, 8080), (HOST, 8080)] {
                refused(to, port);
            }
            let ping = |to: &str| Command::new("busybox").args(["ping", "-c1", "-W1", to]).output().unwrap().status;
            assert!(ping(PUBLIC).success());
            for to in [bob_ip.as_str(), HOST, &gateway, METADATA] {
                assert!(!ping(to).success(), "{to}");
            }
            let links: serde_json::Value = serde_json::from_str(&sh("ip -j addr show dev eth0")).unwrap();
            assert_eq!(links[0]["addr_info"].as_array().unwrap().len(), 1, "no IPv6: {links}");
            let neighbours = sh("ip neigh");
            assert!(neighbours.lines().all(|line| line.trim_end().ends_with("PERMANENT")), "{neighbours}");
            assert_eq!(
                sh("cd /proc/sys/net/ipv4; cat ping_group_range ip_unprivileged_port_start"),
                "0\t2147483647\n0\n"
            );
        });
        // Nobody can open a connection to a session: not its neighbour, the internet, or the host.
        assert!(inside(&bob_netns, || greeting(&ada_ip, 7000)).is_err());
        assert!(inside(&world.internet, || greeting(&ada_ip, 7000)).is_err());
        assert!(greeting(&ada_ip, 7000).is_err());
        // The things that were refused exist.
        assert_eq!(inside(&world.internet, || greeting(HOST, 8080)).unwrap(), PUBLIC);
        assert_eq!(inside(&world.internet, || greeting(METADATA, 80)).unwrap(), METADATA);

        network.destroy(&ada).unwrap();
        inside(&ada_netns, || assert!(greeting(PUBLIC, 80).is_err(), "cut off though the namespace lives"));
        inside(&bob_netns, || assert_eq!(greeting(PUBLIC, 80).unwrap(), HOST));
        network.destroy(&bob).unwrap();
        network.destroy(&bob).unwrap();
        network.close().unwrap();
        network.close().unwrap();
        assert_nothing_left(&tag("/public"));
    });
}

#[test]
fn egress_is_what_the_administrator_says() {
    World::with(|_| {
        // In the name server's place.
        greeter(53);
        let cases = [
            (Egress::Public, true, false),
            (Egress::Open, true, true),
            (Egress::None, false, false),
            (Egress::Only(vec!["10.9.0.0/16".parse().unwrap(), "10.0.0.0/8".parse().unwrap()]), false, true),
            (Egress::Only(vec![]), false, false),
            (Egress::Only(vec!["0.0.0.0/0".parse().unwrap()]), true, true),
        ];
        for (egress, public, private) in cases {
            let network = Network::open(&settings("/egress", egress.clone()), &[]).unwrap();
            let (ada, ada_netns) = session(&network, 0);
            let (bob, _bob_netns) = session(&network, 1);
            inside(&ada_netns, || {
                assert_eq!(greeting(PUBLIC, 80).is_ok(), public, "{egress:?}");
                assert_eq!(greeting(PRIVATE, 80).is_ok(), private, "{egress:?}");
                refused(METADATA, 80);
                assert_eq!(greeting(&network.gateway().to_string(), 53).is_ok(), egress != Egress::None, "{egress:?}");
                refused(&bob.address.to_string(), 7000);
            });
            network.destroy(&ada).unwrap();
            network.destroy(&bob).unwrap();
            network.close().unwrap();
        }
    });
}

#[test]
fn each_container_may_have_an_egress_of_its_own() {
    World::with(|_| {
        greeter(53);
        let only = |networks: &[&str]| Egress::Only(networks.iter().map(|network| network.parse().unwrap()).collect());
        let private = format!("{PRIVATE}/32");
        let cases = [
            (None, true, false),
            (Some(Egress::None), false, false),
            (Some(Egress::Open), true, true),
            (Some(only(&[&private])), false, true),
            (Some(only(&[&private])), false, true),
            (Some(only(&["198.51.100.0/24", "203.0.113.0/24"])), true, false),
            (Some(Egress::Public), true, false),
        ];
        let mut network = Network::open(&settings("/each", Egress::Public), &[]).unwrap();
        let sessions: Vec<_> = (0..)
            .zip(&cases)
            .map(|(slot, (egress, ..))| {
                let lease = Lease { egress: egress.clone(), ..lease(&network, slot) };
                let segment = network.create(&lease, false).unwrap();
                (lease, segment.netns)
            })
            .collect();
        let gateway = network.gateway().to_string();
        let check = |default: Option<(bool, bool)>| {
            for ((lease, netns), (egress, public, private)) in sessions.iter().zip(&cases) {
                let (public, private) = default.filter(|_| egress.is_none()).unwrap_or((*public, *private));
                inside(netns, || {
                    assert_eq!(greeting(PUBLIC, 80).is_ok(), public, "{egress:?}");
                    assert_eq!(greeting(PRIVATE, 80).is_ok(), private, "{egress:?}");
                    let names = lease.egress != Some(Egress::None);
                    assert_eq!(greeting(&gateway, 53).is_ok(), names, "{egress:?}");
                    refused(METADATA, 80);
                });
            }
        };
        let rules = || sh("nft list ruleset | grep -cE '^\\s+(ip|iifname|oifname|ct|meta|fib|goto|accept|reject) '");
        check(None);
        let before = rules();
        // Only those that have none of their own get another one.
        network.set_egress(&Egress::Open).unwrap();
        check(Some((true, true)));
        assert_eq!(rules(), before, "rules for each session");
        network.set_egress(&Egress::Public).unwrap();
        // The next supervisor, and somebody who removes the table.
        let leases: Vec<_> = sessions.iter().map(|(lease, _)| lease.clone()).collect();
        network = Network::open(&settings("/each", Egress::Public), &leases).unwrap();
        check(None);
        sh("nft flush ruleset");
        network.check().unwrap();
        check(None);
        for lease in &leases {
            network.destroy(lease).unwrap();
        }
        let left = sh(&format!("nft -j list table inet {}", tag("/each").object_name()));
        for lease in &leases {
            assert!(!left.contains(&format!("\"{}\"", lease.address)), "{left}");
        }
        network.close().unwrap();
        assert_nothing_left(&tag("/each"));
    });
}

#[test]
fn ports_that_others_publish_on_the_host_are_closed_to_sessions() {
    World::with(|world| {
        // As Docker does for `-p 9090:80`.
        sh(&format!(
            "nft 'table ip other {{ chain pre {{ type nat hook prerouting priority dstnat; }}; }}'
             nft 'add rule ip other pre tcp dport 9090 dnat to {PRIVATE}:80'
             nft 'table ip other {{ chain post {{ type nat hook postrouting priority srcnat; }}; }}'
             nft 'add rule ip other post oifname up0 masquerade'"
        ));
        let network = Network::open(&settings("/dnat", Egress::Open), &[]).unwrap();
        let (_ada, ada_netns) = session(&network, 0);
        inside(&world.internet, || assert_eq!(greeting(HOST, 9090).unwrap(), HOST));
        inside(&ada_netns, || {
            assert_eq!(greeting(PRIVATE, 80).unwrap(), HOST);
            refused(HOST, 9090);
            refused(&network.gateway().to_string(), 9090);
        });
        network.close().unwrap();
    });
}

/// The service number `index` of the session that has `lease`, in slot `slot`, with a greeter of its own.
fn service(network: &Network, of: &Lease, index: usize, slot: u32) -> (Lease, OwnedFd) {
    let container = ContainerId::of_service(&of.container.session, ServicePlace::new(index).unwrap());
    let lease = Lease { container, address: network.address(slot).unwrap(), egress: None };
    let netns = network.create(&lease, true).unwrap().netns;
    inside(&netns, || greeter(7000));
    (lease, netns)
}

/// Takes one connection on port 9000 and returns whether all of `expected` has come by it.
fn sink(expected: &'static [u8]) -> thread::JoinHandle<bool> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9000)).unwrap();
    thread::spawn(move || {
        let mut arrived = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut arrived).unwrap();
        arrived == expected
    })
}

#[test]
fn large_packets_arrive_whole_at_companions_and_behind_the_host() {
    World::with(|world| {
        let network = Network::open(&settings("/large", Egress::Public), &[]).unwrap();
        let ada = lease(&network, 0);
        let ada_netns = network.create(&ada, true).unwrap().netns;
        let (db, db_netns) = service(&network, &ada, 0, 2);
        let sent: Vec<u8> = (0..32 << 20_u32).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect();
        let sent: &'static [u8] = sent.leak();
        for (netns, address) in [(&db_netns, db.address.to_string()), (&world.internet, PUBLIC.to_owned())] {
            let arrived = inside(netns, || sink(sent));
            inside(&ada_netns, || TcpStream::connect((address.as_str(), 9000)).unwrap().write_all(sent).unwrap());
            assert!(arrived.join().unwrap(), "{address}");
        }
        network.destroy(&db).unwrap();
        network.destroy(&ada).unwrap();
        network.close().unwrap();
    });
}

fn pairs(tag: &InstanceTag) -> usize {
    let set = sh(&format!("nft -j list set inet {} pairs", tag.object_name()));
    let set: serde_json::Value = serde_json::from_str(&set).unwrap();
    set["nftables"][1]["set"]["elem"].as_array().map_or(0, Vec::len)
}

#[test]
fn containers_of_one_session_reach_each_other_and_nobody_elses() {
    World::with(|world| {
        let tag = tag("/segment");
        let network = Network::open(&settings("/segment", Egress::Public), &[]).unwrap();
        let (ada, ada_netns) = session(&network, 0);
        let (bob, bob_netns) = session(&network, 1);
        let (db, db_netns) = service(&network, &ada, 0, 2);
        let (cache, cache_netns) = service(&network, &ada, 1, 3);
        let (bobs_db, bobs_db_netns) = service(&network, &bob, 0, 4);
        let reach = |from: &OwnedFd, to: &Lease| inside(from, || greeting(&to.address.to_string(), 7000).is_ok());
        let adas = [(&ada, &ada_netns), (&db, &db_netns), (&cache, &cache_netns)];
        let bobs = [(&bob, &bob_netns), (&bobs_db, &bobs_db_netns)];
        let all_is_well = || {
            for (from, to) in adas.iter().flat_map(|a| adas.iter().map(move |b| (a, b))) {
                assert!(reach(from.1, to.0), "{:?} {:?}", from.0, to.0);
            }
            assert!(reach(&bob_netns, &bobs_db) && reach(&bobs_db_netns, &bob));
            for (one, other) in adas.iter().flat_map(|a| bobs.iter().map(move |b| (a, b))) {
                inside(one.1, || refused(&other.0.address.to_string(), 7000));
                inside(other.1, || refused(&one.0.address.to_string(), 7000));
            }
            assert_eq!(pairs(&tag), 6 + 2);
        };
        all_is_well();
        let peer = inside(&ada_netns, || greeting(&db.address.to_string(), 7000)).unwrap();
        assert_eq!(peer, ada.address.to_string(), "as itself");
        assert_eq!(inside(&db_netns, || greeting(PUBLIC, 80)).unwrap(), HOST);
        assert!(greeting(&db.address.to_string(), 7000).is_err(), "from the host");
        assert!(inside(&world.internet, || greeting(&db.address.to_string(), 7000)).is_err());

        // Bob's packets with an address of ada's reach neither her nor her services.
        let sink = inside(&db_netns, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 9)).unwrap());
        sink.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        inside(&bob_netns, || {
            sh(&format!("ip addr add {}/32 dev lo", ada.address));
            UdpSocket::bind((ada.address, 0)).unwrap().send_to(b"forged", (db.address, 9)).unwrap();
            sh(&format!("ip addr del {}/32 dev lo", ada.address));
        });
        inside(&ada_netns, || {
            UdpSocket::bind((ada.address, 0)).unwrap().send_to(b"honest", (db.address, 9)).unwrap();
        });
        let mut buffer = [0; 16];
        let length = sink.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"honest", "and nothing before it");
        assert!(sink.recv(&mut buffer).is_err());

        // Whatever makes the table anew makes it whole.
        sh("nft flush ruleset");
        network.check().unwrap();
        all_is_well();
        let (before, live) = (network.pool(), [&ada, &db, &cache, &bob, &bobs_db].map(Clone::clone));
        drop(network); // kill -9
        let again = Settings { former_pool: Some(before), ..settings("/segment", Egress::Public) };
        let network = Network::open(&again, &live).unwrap();
        all_is_well();

        // Who is gone has left no way to the next owner of its address.
        network.destroy(&db).unwrap();
        assert_eq!(pairs(&tag), 2 + 2);
        let (_carol, carol_netns) = {
            let lease = Lease { container: SessionId::from_bits(99).into(), address: db.address, egress: None };
            let netns = network.create(&lease, false).unwrap().netns;
            inside(&netns, || greeter(7000));
            (lease, netns)
        };
        inside(&carol_netns, || refused(&ada.address.to_string(), 7000));
        inside(&ada_netns, || refused(&db.address.to_string(), 7000));
        assert!(reach(&ada_netns, &cache));
        // One element that is gone already keeps none of the others.
        sh(&format!("nft delete element inet {} pairs '{{ {} . {} }}'", tag.object_name(), ada.address, cache.address));
        network.destroy(&ada).unwrap();
        assert_eq!(pairs(&tag), 2);
        for lease in [&cache, &bob, &bobs_db] {
            network.destroy(lease).unwrap();
            network.destroy(lease).unwrap();
        }
        assert_eq!(pairs(&tag), 0);
        network.close().unwrap();
    });
}

#[test]
fn a_session_may_have_as_many_services_as_there_are_letters() {
    World::with(|_| {
        let tag = tag("/big");
        let network = Network::open(&settings("/big", Egress::Public), &[]).unwrap();
        let (ada, ada_netns) = session(&network, 0);
        let services: Vec<_> = (0..52).map(|index| service(&network, &ada, index, 1 + index as u32)).collect();
        assert_eq!(pairs(&tag), 53 * 52);
        let (last, _) = &services[51];
        assert!(inside(&ada_netns, || greeting(&last.address.to_string(), 7000)).is_ok());
        for (lease, _) in &services {
            network.destroy(lease).unwrap();
        }
        network.destroy(&ada).unwrap();
        assert_eq!(pairs(&tag), 0);
        network.close().unwrap();
        drop((services, ada_netns));
        assert_nothing_left(&tag);
    });
}

#[test]
fn forged_source_addresses_and_ipv6_do_not_leave_a_session() {
    World::with(|world| {
        let network = Network::open(&settings("/forged", Egress::Open), &[]).unwrap();
        let (_ada, ada_netns) = session(&network, 0);
        let (bob, _bob_netns) = session(&network, 1);
        let sink = inside(&world.internet, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 9)).unwrap());
        sink.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let host_sink = UdpSocket::bind("[::]:9").unwrap();
        host_sink.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let forged = [bob.address, "192.0.2.77".parse().unwrap(), network.gateway()];
        inside(&ada_netns, || {
            for source in forged {
                sh(&format!("ip addr add {source}/32 dev lo"));
                let socket = UdpSocket::bind((source, 0)).unwrap();
                socket.send_to(b"forged", (PUBLIC, 9)).unwrap();
            }
            sh("ip addr add fd99::2/64 dev eth0 nodad");
        });
        let veth = tag("/forged").veth_name(&lease(&network, 0).container);
        sh(&format!("ip addr add fd99::1/64 dev {veth} nodad"));
        inside(&ada_netns, || {
            let socket = UdpSocket::bind("[fd99::2]:0").unwrap();
            socket.send_to(b"six", "[fd99::1]:9").unwrap();
            UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"honest", (PUBLIC, 9)).unwrap();
        });
        let mut buffer = [0; 16];
        let length = sink.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"honest", "and nothing before it");
        assert!(sink.recv(&mut buffer).is_err());
        assert!(host_sink.recv(&mut buffer).is_err());
        network.close().unwrap();
        assert_nothing_left(&tag("/forged"));
    });
}

/// A question for the A record of `name`.
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

fn ask_over_udp(server: Ipv4Addr, question: &[u8]) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(6))).unwrap();
    socket.connect((server, 53)).unwrap();
    socket.send(question)?;
    let mut answer = vec![0; 4096];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

fn ask_over_tcp(server: Ipv4Addr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(server.into(), 53), Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(6))).unwrap();
    stream.write_all(&u16::try_from(question.len()).unwrap().to_be_bytes())?;
    stream.write_all(question)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

/// Serves DNS on the caller's host, until the end of the test process.
fn serve_dns(network: &Network, upstreams: Upstreams) {
    let (gateway, pool) = (network.gateway(), network.pool());
    let (bound, is_bound) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let forwarder = Forwarder::bind(gateway, pool).unwrap();
            bound.send(()).unwrap();
            forwarder.serve(upstreams).await
        })
    });
    is_bound.recv().unwrap();
}

/// Ends a program when the test ends.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn names_resolve_through_a_resolver_on_the_hosts_loopback() {
    World::with(|world| {
        let dnsmasq = Command::new("dnsmasq")
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"])
            .args(["--listen-address=127.0.0.1", "--user=root", "--pid-file=", "--local=/test/"])
            .arg("--host-record=box.test,192.0.2.55")
            .spawn();
        let _dnsmasq = Running(dnsmasq.unwrap());
        eventually("dnsmasq answers", || ask_over_tcp(Ipv4Addr::LOCALHOST, &question(1, "box.test")).is_ok());

        let directory = tempfile::tempdir().unwrap();
        let resolv_conf = directory.path().join("resolv.conf");
        // The first resolver is dead: the second one must be asked in time.
        std::fs::write(&resolv_conf, "nameserver 127.0.0.9\nnameserver 127.0.0.1\n").unwrap();
        let network = Network::open(&settings("/dns", Egress::Public), &[]).unwrap();
        serve_dns(&network, Upstreams::ResolvConf(resolv_conf.clone()));
        let (_ada, ada_netns) = session(&network, 0);
        let gateway = network.gateway();
        inside(&ada_netns, || {
            for (id, ask) in [(0x1234, ask_over_udp as fn(_, &_) -> _), (0x4321, ask_over_tcp)] {
                let answer = ask(gateway, &question(id, "box.test")).unwrap();
                assert_eq!(answer[..2], id.to_be_bytes());
                assert_eq!(answer[3] & 15, 0, "NOERROR");
                assert_eq!(answer[answer.len() - 4..], [192, 0, 2, 55]);
            }
            let lookup = sh(&format!("busybox nslookup box.test {gateway}"));
            assert!(lookup.contains("192.0.2.55"), "{lookup}");
        });
        // Nobody else is served, whether or not rules keep them away.
        assert!(ask_over_tcp(gateway, &question(1, "box.test")).is_err());
        assert!(inside(&world.internet, || ask_over_tcp(gateway, &question(1, "box.test"))).is_err());

        std::fs::write(&resolv_conf, "# none\n").unwrap();
        inside(&ada_netns, || {
            let answer = ask_over_udp(gateway, &question(7, "box.test")).unwrap();
            assert_eq!(answer, [0, 7, 0x81, 0x82, 0, 0, 0, 0, 0, 0, 0, 0], "SERVFAIL");
        });
        network.close().unwrap();
    });
}

#[test]
fn one_session_cannot_use_up_the_name_server() {
    World::with(|_| {
        let network = Network::open(&settings("/flood", Egress::Public), &[]).unwrap();
        // A resolver that never answers.
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        serve_dns(&network, Upstreams::Fixed(vec![silent.local_addr().unwrap()]));
        let (_ada, ada_netns) = session(&network, 0);
        let (_bob, bob_netns) = session(&network, 1);
        let gateway = network.gateway();
        let refusals = inside(&ada_netns, || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect((gateway, 53)).unwrap();
            for id in 0..200 {
                socket.send(&question(id, "slow.test")).unwrap();
            }
            socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            let mut buffer = [0; 512];
            std::iter::from_fn(|| socket.recv(&mut buffer).ok()).count()
        });
        assert!(refusals >= 130, "64 of 200 are waiting, {refusals} were refused");
        inside(&bob_netns, || {
            UdpSocket::bind("0.0.0.0:0").unwrap().send_to(&question(1, "fast.test"), (gateway, 53)).unwrap();
        });
        silent.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut buffer = [0; 512];
        eventually("the other session's question is passed on", || {
            let length = silent.recv(&mut buffer).unwrap();
            buffer[..length].windows(4).any(|w| w == b"fast")
        });
        network.close().unwrap();
    });
}

#[test]
fn a_restart_keeps_live_sessions_and_removes_the_others() {
    World::with(|_| {
        let network = Network::open(&settings("/restart", Egress::Public), &[]).unwrap();
        let (ada, ada_netns) = session(&network, 0);
        let (_bob, bob_netns) = session(&network, 1);
        let mut stream = inside(&ada_netns, || TcpStream::connect((PUBLIC, 80)).unwrap());
        let before = network.pool();
        drop(network); // kill -9: nothing is undone

        // The configured pool waits until the sessions have gone that have addresses of the former one.
        let other = Some("10.200.0.0/24".parse().unwrap());
        let moved = Settings { pool: other, former_pool: Some(before), ..settings("/restart", Egress::Public) };
        let network = Network::open(&moved, std::slice::from_ref(&ada)).unwrap();
        assert_eq!(network.pool(), before);
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, HOST);
        inside(&ada_netns, || assert_eq!(greeting(PUBLIC, 80).unwrap(), HOST));
        inside(&bob_netns, || assert!(greeting(PUBLIC, 80).is_err()));
        let listing = Network::listing(&tag("/restart")).unwrap();
        let veth = tag("/restart").veth_name(&ada.container);
        let name = tag("/restart").object_name();
        assert_eq!(
            listing,
            [
                format!("veth {veth}"),
                format!("nft table inet {name}"),
                format!("nft lease {veth} {} in {name}", ada.address)
            ]
        );

        let stray = Settings { pool: other, ..settings("/restart", Egress::Public) };
        let error = Network::open(&stray, std::slice::from_ref(&ada)).err().unwrap();
        assert!(matches!(error, NetworkError::StrayLease { .. }), "{error}");
        inside(&ada_netns, || assert_eq!(greeting(PUBLIC, 80).unwrap(), HOST));
        network.destroy(&ada).unwrap();
        network.close().unwrap();
        let network = Network::open(&moved, &[]).unwrap();
        assert_eq!(Some(network.pool()), other);
        network.close().unwrap();
    });
}

#[test]
fn rules_that_somebody_removes_are_made_anew() {
    World::with(|_| {
        greeter(7000);
        let network = Network::open(&settings("/flushed", Egress::Public), &[]).unwrap();
        let (ada, ada_netns) = session(&network, 0);
        let table = tag("/flushed").object_name();
        let works = || {
            inside(&ada_netns, || {
                assert_eq!(greeting(PUBLIC, 80).unwrap(), HOST);
                refused(HOST, 7000);
            });
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let watch = network.watch().unwrap();
            for removal in
                ["flush ruleset", &format!("flush table inet {table}"), &format!("delete table inet {table}")]
            {
                sh(&format!("nft {removal}"));
                tokio::time::timeout(Duration::from_secs(10), watch.removal()).await.unwrap().unwrap();
                network.check().unwrap();
                works();
            }
        });
        // Nobody was watching.
        sh("nft flush ruleset");
        let (bob, bob_netns) = session(&network, 1);
        works();
        inside(&bob_netns, || assert_eq!(greeting(PUBLIC, 80).unwrap(), HOST));
        sh("nft flush ruleset");
        network.destroy(&bob).unwrap();
        network.check().unwrap();
        works();
        inside(&bob_netns, || assert!(greeting(PUBLIC, 80).is_err()));

        network.set_egress(&Egress::None).unwrap();
        inside(&ada_netns, || refused(PUBLIC, 80));
        network.destroy(&ada).unwrap();
        network.close().unwrap();
        network.check().unwrap();
        assert_nothing_left(&tag("/flushed"));
    });
}

#[test]
fn interfaces_that_only_begin_like_ours_are_let_alone() {
    World::with(|_| {
        let name = format!("ps{}mine", tag("/alike").as_str());
        sh(&format!("ip link add {name} type veth peer name other"));
        let network = Network::open(&settings("/alike", Egress::Public), &[]).unwrap();
        network.close().unwrap();
        sh(&format!("ip link show {name}"));
    });
}

#[test]
fn instances_do_not_collide() {
    World::with(|_| {
        let one = Network::open(&settings("/one", Egress::Open), &[]).unwrap();
        let two = Network::open(&settings("/two", Egress::Open), &[]).unwrap();
        let default = Network::open(&settings("/", Egress::Open), &[]).unwrap();
        assert_eq!(default.pool().to_string(), "10.213.0.0/16");
        assert!(!one.pool().overlaps(&two.pool()));
        let (_, ada) = session(&one, 0);
        let (bob, _netns) = session(&two, 0);
        inside(&ada, || assert!(greeting(&bob.address.to_string(), 7000).is_err(), "another instance's session"));

        let configured = |name, pool: &str| Settings { pool: pool.parse().ok(), ..settings(name, Egress::Open) };
        for (pool, why) in [
            ("10.213.7.0/24", "10.213.0.0/16 of another podspawn"),
            ("198.51.0.0/16", "this host's route to 198.51.100.0/24 up0"),
        ] {
            let error = Network::open(&configured("/three", pool), &[]).err().unwrap().to_string();
            assert!(error.contains(why), "{error}");
        }
        let error = Network::open(&configured("/three", "10.50.0.0/31"), &[]).err().unwrap();
        assert!(matches!(error, NetworkError::PoolSize { .. }), "{error}");
        let three = Network::open(&configured("/three", "10.50.0.4/30"), &[]).unwrap();
        assert_eq!(three.gateway().to_string(), "10.50.0.5");
        assert_eq!((three.address(0), three.address(1)), (Some("10.50.0.6".parse().unwrap()), None));
        for network in [one, two, default, three] {
            network.close().unwrap();
        }
        assert_eq!(sh("nft list tables"), "");
    });
}

#[test]
fn instances_that_start_at_once_get_different_pools() {
    World::with(|_| {
        // All of their hashes lead to the one /20 that is left.
        sh("ip route add blackhole 10.128.0.0/9; ip route add blackhole 172.16.0.0/12
            ip route add blackhole 192.168.0.0/17; ip route add blackhole 192.168.192.0/18");
        let networks: Vec<_> = thread::scope(|scope| {
            let open = |n| move || Network::open(&settings(&format!("/race{n}"), Egress::Public), &[]);
            let threads: Vec<_> = (0..4).map(|n| scope.spawn(open(n))).collect();
            threads.into_iter().map(|t| t.join().unwrap().unwrap()).collect()
        });
        let error = Network::open(&settings("/race4", Egress::Public), &[]).err().unwrap();
        assert!(matches!(error, NetworkError::NoFreePool), "{error}");
        let mut pools: Vec<_> = networks.iter().map(|n| n.pool().to_string()).collect();
        pools.sort();
        assert_eq!(pools, ["192.168.128.0/20", "192.168.144.0/20", "192.168.160.0/20", "192.168.176.0/20"]);
        for network in networks {
            network.close().unwrap();
        }
    });
}

#[test]
fn a_failed_creation_leaves_nothing_behind() {
    World::with(|_| {
        let network = Network::open(&settings("/undo", Egress::Public), &[]).unwrap();
        let lease = lease(&network, 0);
        let veth = tag("/undo").veth_name(&lease.container);
        sh(&format!("ip link add {veth} type veth peer name other"));
        let error = network.create(&lease, false).unwrap_err();
        assert!(matches!(error, NetworkError::Netlink { source: Errno::EEXIST, .. }), "{error}");
        let table = format!("nft table inet {}", tag("/undo").object_name());
        assert_eq!(Network::listing(&tag("/undo")).unwrap(), [format!("veth {veth}"), table]);
        network.close().unwrap();
        assert_nothing_left(&tag("/undo"));
    });
}

#[test]
fn many_sessions_come_and_go_at_once() {
    const ROUNDS: u32 = 25;
    World::with(|_| {
        let network = Network::open(&settings("/many", Egress::Public), &[]).unwrap();
        let warm_up = lease(&network, 0);
        drop(network.create(&warm_up, false).unwrap());
        network.destroy(&warm_up).unwrap();
        let mut times: Vec<_> = (1..40)
            .map(|slot| {
                let lease = lease(&network, slot);
                let start = Instant::now();
                let segment = network.create(&lease, false).unwrap();
                let created = start.elapsed();
                let start = Instant::now();
                network.destroy(&lease).unwrap();
                let destroyed = start.elapsed();
                drop(segment);
                (created, destroyed)
            })
            .collect();
        times.sort();
        println!("create, destroy: min {:?}, median {:?}", times[0], times[times.len() / 2]);

        let start = Instant::now();
        thread::scope(|scope| {
            for worker in 0..8 {
                let network = &network;
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        // The same few slots again and again: an address is free as soon as `destroy` returns.
                        let id = SessionId::from_bits(u64::from(worker * ROUNDS + round) << 8 | 0xff);
                        let lease =
                            Lease { container: id.into(), address: network.address(worker).unwrap(), egress: None };
                        let netns = network.create(&lease, false).unwrap().netns;
                        inside(&netns, || assert_eq!(greeting(PUBLIC, 80).unwrap(), HOST));
                        network.destroy(&lease).unwrap();
                    }
                });
            }
        });
        println!("{} sessions with one connection each by 8 threads: {:?}", 8 * ROUNDS, start.elapsed());
        network.close().unwrap();
        assert_nothing_left(&tag("/many"));
    });
}

#[test]
fn a_sessions_files_name_it_and_its_resolver() {
    let address = Ipv4Addr::new(10, 213, 0, 2);
    assert_eq!(
        hosts_file([("db", Ipv4Addr::new(10, 213, 0, 9)), ("ada", address)]),
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.213.0.9\tdb\n10.213.0.2\tada\n"
    );
    assert_eq!(resolv_conf(Ipv4Addr::new(10, 213, 0, 1)), "nameserver 10.213.0.1\n");
    assert!(matches!(Upstreams::new(&[IpAddr::V4(address)]), Upstreams::Fixed(s) if s[0].port() == 53));
}
