//! Where a session may connect to, and as whom.

use super::*;

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
