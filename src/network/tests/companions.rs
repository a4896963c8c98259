//! The containers of one session among themselves.

use super::*;

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
