//! Names that sessions ask for, and those that they know.

use super::*;

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
fn a_sessions_files_name_it_and_its_resolver() {
    let address = Ipv4Addr::new(10, 213, 0, 2);
    assert_eq!(
        hosts_file([("db", Ipv4Addr::new(10, 213, 0, 9)), ("ada", address)]),
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.213.0.9\tdb\n10.213.0.2\tada\n"
    );
    assert_eq!(resolv_conf(Ipv4Addr::new(10, 213, 0, 1)), "nameserver 10.213.0.1\n");
    assert!(matches!(Upstreams::new(&[IpAddr::V4(address)]), Upstreams::Fixed(s) if s[0].port() == 53));
}
