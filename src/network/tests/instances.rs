//! What instances and their restarts make of each other's, and of the host's, network.

use super::*;

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
