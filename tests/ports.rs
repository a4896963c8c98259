//! Ports of a session on the loopback address of its host.

mod common;

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
};

use common::{GitServer, Host, Stream, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const ALLOWED: &str = "network:\n  expose_ports: true";

fn project(host: &Host, git: &GitServer, name: &str, ports: &str) {
    let podfile = format!("base: localhost/busybox:test\nports: {ports}\n");
    let repository = git.repository(name, &[("podfile.yaml", &podfile)]);
    host.podspawn(["add-project", name, "--repo", &repository.url]).run().ok();
}

/// A port that nobody had a moment ago.
fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

fn connects(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// The page of whoever serves at the port of the host; empty if nobody does.
fn page(port: u64) -> String {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", u16::try_from(port).unwrap())) else { return String::new() };
    let mut said = String::new();
    // A connection that nobody accepts inside is closed.
    let _ = stream.write_all(b"GET /name HTTP/1.0\r\n\r\n").and_then(|()| stream.shutdown(Shutdown::Write));
    let _ = stream.read_to_string(&mut said);
    said.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned()
}

fn ports(host: &Host) -> Vec<Value> {
    host.json(["ports"]).as_array().unwrap().clone()
}

/// A server in a session that has this on its page; on localhost alone, as those of developers are.
fn serve(name: &str, port: u16) -> String {
    format!("mkdir /tmp/www && echo {name} > /tmp/www/name && exec httpd -f -p 127.0.0.1:{port} -h /tmp/www")
}

#[test]
fn programs_of_the_host_reach_what_a_session_exposes_and_nobody_else_does() {
    let mut host = Host::new().user("ada").user("bob").config(ALLOWED).start();
    let git = GitServer::start();
    let port = free_port();
    project(&host, &git, "web", &format!("{{expose: [{port}]}}"));
    let (ada, bob) = (Stream::start(&host, "ada+web"), Stream::start(&host, "bob+web"));
    let all = ports(&host);
    let of = |user: &str| all.iter().find(|one| one["user"] == user).unwrap()["host_port"].as_u64().unwrap();
    assert_eq!(all[0], json!({"user": "ada", "project": "web", "port": port, "host_port": of("ada")}));
    assert_eq!(of("ada"), u64::from(port), "it was free");
    assert!(of("bob") > of("ada") && of("bob") <= of("ada") + 100, "the next one that is free");
    assert_eq!(page(of("ada")), "", "nobody listens inside yet");
    let servers = ["ada", "bob"].map(|user| host.ssh(&format!("{user}+web"), &serve(user, port)).spawn());
    for user in ["ada", "bob"] {
        eventually("it serves", || page(of(user)) == format!("{user}\n"));
    }
    // Only from this address, and not from inside.
    let gateway = host.ssh("bob", "cat /etc/resolv.conf").run().ok().text();
    let gateway = gateway.trim().strip_prefix("nameserver ").unwrap().to_owned();
    for address in [&gateway, "127.0.0.1"] {
        host.ssh("bob", &format!("nc -w 3 {address} {port} < /dev/null")).run().status(1).stderr_has("refused");
    }
    host.podspawn(["ports"]).run().ok().stdout_has(&format!("ada   web      {port}  127.0.0.1:{port}"));

    // The next server opens them again, for the sessions that live.
    host.end(Signal::SIGKILL);
    assert!(!connects(port));
    host.serve();
    assert_eq!(ports(&host), all);
    let told: Vec<_> = host.audit().into_iter().filter(|event| event["event"] == "port.open").collect();
    assert_eq!(told.len(), 2, "once for each, whatever server has it open: {told:#?}");
    for event in told {
        let user = event["user"].as_str().unwrap();
        assert_eq!((&event["port"], event["host_port"].as_u64()), (&json!(port), Some(of(user))), "{event}");
    }
    eventually("it serves again", || page(of("bob")) == "bob\n");
    ada.finish();
    host.podspawn(["down", "ada@web"]).run();
    eventually("the port is the host's again", || !connects(port));
    assert_eq!(ports(&host).len(), 1);
    host.podspawn(["stop", "bob@web"]).run().ok();
    for server in servers {
        common::command::finish("ssh", server);
    }
    drop(bob);
    host.assert_no_session_left();
}

#[test]
fn a_port_that_must_be_this_one_is_that_or_there_is_no_session() {
    let host = Host::new().user("ada").config(ALLOWED).start();
    let git = GitServer::start();
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    project(&host, &git, "this", &format!("{{expose: [{port}], strategy: expose}}"));
    let refused = host.ssh("ada+this", "true").run();
    let message = format!(
        "podspawn: port {port} of the server, which the session is to have (ports.strategy: expose), cannot be had"
    );
    refused.status(125).stdout("").stderr_has(&message);
    host.assert_no_session_left();
    drop(taken);
    for _ in 0..2 {
        host.ssh("ada+this", "true").run().ok();
    }
    project(&host, &git, "manual", &format!("{{expose: [{port}], strategy: manual}}"));
    let stream = Stream::start(&host, "ada+manual");
    assert!(ports(&host).is_empty() && !connects(port));
    stream.finish();
    host.assert_no_session_left();
}

#[test]
fn nothing_is_exposed_where_the_administrator_has_not_said_so() {
    let host = Host::new().user("ada").start();
    let git = GitServer::start();
    let port = free_port();
    project(&host, &git, "auto", &format!("{{expose: [{port}]}}"));
    let stream = Stream::start(&host, "ada+auto");
    assert!(ports(&host).is_empty() && !connects(port));
    stream.finish();
    project(&host, &git, "this", &format!("{{expose: [{port}], strategy: expose}}"));
    let told = format!(
        "this server exposes no ports (network.expose_ports), whatever ports.strategy says; to reach port {port}: ssh -L"
    );
    host.ssh("ada+this", "true").run().ok().stderr_has(&told);
    host.assert_no_session_left();
}
