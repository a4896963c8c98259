//! A session and its services against their neighbours: attempts from a session of somebody else, by what programs can do there
//! and by what somebody could do who had its network interface to himself. That the attempts are good ones is shown by rules
//! that are weakened on purpose.

#[path = "../common/mod.rs"]
mod common;

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, UdpSocket},
    sync::mpsc,
};

use common::{
    GitServer, Host, Image, Run, Stream, eventually,
    world::{HOST, World, greeter_on_host, sh},
};
use podspawn::names::InstanceTag;

const ATTACKS: &str = include_str!("attacks.py");

const PORT: u16 = 99;

/// Serves connections and datagrams, and says from whom it has heard what.
const LISTENER: &str = "
import socket, threading
def serve():
    listener = socket.create_server((\"\", 99))
    while True:
        stream, _ = listener.accept()
        stream.sendall(b\"victim\")
        stream.close()
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind((\"\", 99))
threading.Thread(target=serve).start()
while True:
    data, source = udp.recvfrom(2000)
    print(data.decode().strip(), source[0], sep=\"|\", flush=True)
";

/// Somebody's session and its service, which listen, and talk to each other all the time.
struct Victim<'a> {
    host: &'a Host,
    session: String,
    service: String,
    listener: std::process::Child,
    talker: std::process::Child,
}

impl<'a> Victim<'a> {
    fn start(host: &'a Host, git: &GitServer) -> Self {
        let base = Image::Debian.reference();
        let indented = LISTENER.replace('\n', "\n      ");
        let podfile = format!(
            "base: {base}\nservices:\n  - name: front\n    image: {base}\n    ports: [99]\n    command:\n    - python3\n    \
             - -c\n    - |{indented}\n"
        );
        let repository = git.repository("shop", &[("podfile.yaml", &podfile)]);
        host.podspawn(["add-project", "shop", "--repo", &repository.url]).run().ok();
        let listener = host.ssh("bob+shop", &format!("exec python3 -c '{LISTENER}' > /tmp/heard")).spawn();
        let talk = "while :; do echo secret > /dev/udp/front/99; sleep 0.02; done";
        let talker = host.ssh("bob+shop", &format!("exec bash -c '{talk}'")).spawn();
        let hosts = host.ssh("bob+shop", "cat /etc/hosts").run().ok().text();
        let address = |name: &str| {
            let line = hosts.lines().find(|line| line.split_whitespace().nth(1) == Some(name));
            line.and_then(|line| line.split_whitespace().next()).unwrap_or_else(|| panic!("{name}: {hosts}")).to_owned()
        };
        let victim = Self { host, session: address("shop"), service: address("front"), listener, talker };
        eventually("they hear each other", || victim.heard().iter().any(|(what, _)| what == "secret"));
        let into = victim.host.podspawn(["exec", "bob@shop", "--service", "front", "--", "bash", "-c"]);
        into.arg(format!("echo hello > /dev/udp/{}/{PORT}", victim.session)).run().ok();
        eventually("and the other way", || victim.heard().contains(&("hello".to_owned(), victim.service.clone())));
        victim
    }

    /// What they have heard, and from which addresses.
    fn heard(&self) -> BTreeSet<(String, String)> {
        let service = self.host.podspawn(["logs", "bob@shop", "front"]).run().ok().text();
        let session = self.host.ssh("bob+shop", "cat /tmp/heard").run().ok().text();
        let words = |line: &str| {
            let (what, source) = line.rsplit_once('|')?;
            Some((what.to_owned(), source.to_owned()))
        };
        service.lines().chain(session.lines()).filter_map(words).collect()
    }

    /// What they have heard of somebody else.
    fn attacked(&self) -> BTreeSet<String> {
        self.heard()
            .into_iter()
            .filter_map(|(what, _)| what.split_once("attack ").map(|(_, of)| of.to_owned()))
            .collect()
    }

    fn end(mut self) {
        for client in [&mut self.talker, &mut self.listener] {
            client.kill().unwrap();
            client.wait().unwrap();
        }
    }
}

/// Datagrams that reach any address of the host, its loopback included.
fn host_listens() -> mpsc::Receiver<String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
    let (heard, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok((length, _)) = socket.recv_from(&mut buffer) {
            if heard.send(String::from_utf8_lossy(&buffer[..length]).into_owned()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Attempts of ada's session on it all; what has come of them, also at the receivers.
fn attack(host: &Host, victim: &Victim<'_>, on_host: &mpsc::Receiver<String>) -> BTreeSet<String> {
    let inside = host.ssh("ada", "hostname -I; cat /etc/resolv.conf").run().ok().text();
    let own = inside.lines().next().unwrap().trim().to_owned();
    let gateway = inside.lines().find_map(|line| line.strip_prefix("nameserver ")).unwrap().to_owned();
    let arguments = [&gateway, HOST, &own, &victim.session, &victim.service].map(str::to_owned);
    let inside = host.ssh("ada", &format!("python3 - inside {}", arguments.join(" "))).input(ATTACKS).run();
    let init = host.init("ada").to_string();
    let wire =
        Run::new("nsenter").args(["-t", &init, "-n", "python3", "-", "wire"]).args(arguments).input(ATTACKS).run();
    let heard = wire.ok().text();
    assert!(heard.contains("heard own words"), "the interface is listened to: {wire}");
    let reached = inside.ok().text() + &heard;
    let reached = reached.lines().filter(|line| *line != "heard own words").map(str::to_owned);
    let on_host = on_host.try_iter().filter_map(|text| text.strip_prefix("attack ").map(str::to_owned));
    reached.chain(on_host).chain(victim.attacked()).collect()
}

/// Lets everything through, with as many rules as before, so that nobody repairs them.
fn weaken(host: &Host) {
    let tag = InstanceTag::of_root(&host.root);
    let (table, ours) = (format!("inet {}", tag.object_name()), format!("\"ps{}*\"", tag.as_str()));
    let handle = |chain: &str, rule: usize| {
        let listing = sh(&format!("nft -a list chain {table} {chain}"));
        let rules: Vec<_> =
            listing.lines().filter(|line| line.contains("ifname") && line.contains("# handle")).collect();
        rules[rule].rsplit(' ').next().unwrap().to_owned()
    };
    for (chain, rule, instead) in [
        ("prerouting", 0, format!("iifname {ours} accept")),
        ("input", 0, format!("iifname {ours} accept")),
        ("forward", 1, format!("iifname {ours} oifname {ours} accept")),
        ("output", 2, format!("oifname {ours} accept")),
    ] {
        sh(&format!("nft 'replace rule {table} {chain} handle {} {instead}'", handle(chain, rule)));
    }
}

#[test]
fn a_session_reaches_nothing_of_its_neighbours_and_the_host_by_no_packet_it_can_send() {
    let _world = World::enter();
    greeter_on_host(PORT);
    let on_host = host_listens();
    let host = Host::new().image(Image::Debian).user("ada").user("bob").config("defaults:\n  user: root").start();
    let git = GitServer::start();
    let victim = Victim::start(&host, &git);
    let stream = Stream::start(&host, "ada");
    let reached = attack(&host, &victim, &on_host);
    assert!(reached.is_empty(), "{reached:#?}");

    weaken(&host);
    let reached = attack(&host, &victim, &on_host);
    let expected = [
        format!("connect {}", victim.service),
        format!("connect {}", victim.session),
        format!("datagram {}", victim.service),
        "wire forged by a session".to_owned(),
        "wire forged by a service".to_owned(),
        "wire own address".to_owned(),
        format!("connect host {HOST}"),
        format!("host {HOST}"),
        "wire host".to_owned(),
        "wire host address".to_owned(),
    ];
    let missed: Vec<_> = expected.iter().filter(|name| !reached.contains(*name)).collect();
    assert!(missed.is_empty(), "not reached without rules: {missed:?} of {reached:#?}");
    stream.finish();
    victim.end();
    host.assert_no_session_left();
}
