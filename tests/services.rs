//! Companion services of a session: ready before anybody works in it, reached by name, nobody else's, gone with it.

mod common;

use std::{fs, path::PathBuf};

use common::{GitServer, Host, Output, Stream, command::finish, eventually};
use nix::sys::signal::Signal;

/// A service that serves what it was told over HTTP.
fn web(name: &str, says: &str, more: &str) -> String {
    format!(
        "  - name: {name}\n    image: localhost/busybox:test\n    ports: [80]\n    env: {{SAYS: \"{says}\"}}\n    command: [sh, -c, \
         'mkdir /srv; echo $SAYS > /srv/index.html; exec httpd -f -p 80 -h /srv']\n{more}"
    )
}

fn podfile(services: &str) -> String {
    format!("base: localhost/busybox:test\nservices:\n{services}")
}

/// Makes a project of a repository that has this Podfile.
fn project(host: &Host, git: &GitServer, name: &str, podfile: &str) {
    let repository = git.repository(name, &[("podfile.yaml", podfile)]);
    host.podspawn(["add-project", name, "--repo", &repository.url]).run().ok();
}

fn refused(output: &Output, message: &str) {
    output.status(125).stdout("").stderr_has(message);
}

#[test]
fn services_are_ready_and_have_names_when_a_session_begins() {
    let host = Host::new().user("ada").start();
    let git = GitServer::start();
    let slow = "    ready: {exec: 'test -e /tmp/is-ready', timeout: 30s}\n";
    let services = [
        web("front", "front", "    needs: [Back-end]\n"),
        web("Back-end", "back", slow).replace("mkdir /srv;", "mkdir /srv; (sleep 1; touch /tmp/is-ready) &"),
    ];
    project(&host, &git, "shop", &podfile(&services.concat()));
    let script = "wget -qO- http://front/; wget -qO- http://Back-end/; hostname; cat /etc/hosts";
    let said = host.ssh("ada+shop", script).run().ok().text();
    assert!(said.starts_with("front\nback\nshop\n"), "{said}");
    let names: Vec<_> = said.lines().skip(5).map(|line| line.split_once('\t').unwrap()).collect();
    assert_eq!(names.iter().map(|(_, name)| *name).collect::<Vec<_>>(), ["front", "Back-end", "shop"]);
    let addresses: std::collections::BTreeSet<_> = names.iter().map(|(address, _)| *address).collect();
    assert_eq!(addresses.len(), 3, "{said}");
    host.assert_no_session_left();

    // Nobody looks any of it up outside.
    host.ssh("ada", "grep -c front /etc/hosts; nslookup front > /dev/null; echo $?").run().ok().stdout("0\n1\n");
    host.assert_no_session_left();
}

#[test]
fn a_service_that_ends_too_early_says_why_and_nothing_is_left() {
    let host = Host::new().user("ada").start();
    let git = GitServer::start();
    let broken = "  - name: broken\n    image: localhost/busybox:test\n    ports: [99]\n    command: [sh, -c, 'echo one; \
                  echo \"two\\ttabs\" >&2; exit 3']\n";
    project(&host, &git, "shop", &podfile(&(web("front", "front", "") + broken)));
    let output = host.ssh("ada+shop", "true").run();
    refused(&output, "podspawn: service broken has ended with exit status 3");
    output.stderr_has("| one").stderr_has("| two");
    host.assert_no_session_left();

    let missing = broken.replace("[sh, -c,", "[/bin/missing,");
    project(&host, &git, "shop2", &podfile(&missing));
    refused(&host.ssh("ada+shop2", "true").run(), "service broken cannot be started: /bin/missing: No such file");
    host.assert_no_session_left();
}

#[test]
fn a_service_that_does_not_get_ready_is_not_waited_for_for_ever() {
    let host = Host::new().user("ada").start();
    let git = GitServer::start();
    let services = web("front", "front", "    ready: {timeout: 2s}\n").replace("ports: [80]", "ports: [80, 81]");
    project(&host, &git, "shop", &podfile(&services));
    let output = host.ssh("ada+shop", "true").run();
    refused(&output, "podspawn: service front is not ready after 2s (port 81: Connection refused");
    host.assert_no_session_left();
    let checked = web("front", "front", "    ready: {exec: [\"false\"], timeout: 1s}\n");
    project(&host, &git, "shop2", &podfile(&checked));
    refused(&host.ssh("ada+shop2", "true").run(), "is not ready after 1s (its check ends with exit status 1)");
    host.assert_no_session_left();
}

#[test]
fn sessions_have_services_of_their_own_and_reach_nobody_elses() {
    let host = Host::new().user("ada").user("bob").start();
    let git = GitServer::start();
    project(&host, &git, "shop", &podfile(&web("front", "${PODSPAWN_USER}", "")));
    let address = "wget -qO- http://front/; grep front /etc/hosts | cut -f1";
    let stream = Stream::start(&host, "ada+shop");
    let ada = host.ssh("ada+shop", address).run().ok().text();
    let (name, ada) = ada.trim().split_once('\n').unwrap();
    assert_eq!(name, "ada");
    let bob = host.ssh("bob+shop", "wget -qO- http://front/").run().ok().text();
    assert_eq!(bob, "bob\n");
    host.ssh("bob+shop", &format!("nc -w 3 {ada} 80 < /dev/null")).run().status(1).stderr_has("refused");
    host.ssh("bob", &format!("nc -w 3 {ada} 80 < /dev/null")).run().status(1).stderr_has("refused");
    let from_host = std::net::TcpStream::connect_timeout(
        &std::net::SocketAddr::new(ada.parse().unwrap(), 80),
        std::time::Duration::from_millis(500),
    );
    assert!(from_host.is_err(), "the host is no client of a session's services");
    host.assert_only_left(&["ada"]);
    stream.finish();
    host.assert_no_session_left();
}

#[test]
fn a_session_and_its_services_share_its_limits() {
    let host = Host::new().user("ada").start();
    let git = GitServer::start();
    let many = "  - name: many\n    image: localhost/busybox:test\n    ports: [80]\n    resources: {pids: 12}\n    \
                command: [sh, -c, 'for i in $(seq 20); do sleep 99 & done; httpd -f -p 80']\n    ready: {timeout: 3s}\n";
    project(&host, &git, "few", &podfile(many));
    let output = host.ssh("ada+few", "true").run();
    output.status(125).stderr_has("can't fork");
    let whole = format!("resources: {{pids: 20}}\n{}", podfile(&web("front", "front", "")));
    project(&host, &git, "whole", &whole);
    let forks = "for i in $(seq 16); do sleep 60 > /dev/null 2>&1 & done; echo all";
    host.ssh("ada+whole", forks).run().ok().stdout("all\n");
    let forks = "for i in $(seq 19); do sleep 60 > /dev/null 2>&1 & done; echo all";
    host.ssh("ada+whole", forks).run().status(2).stderr_has("can't fork");
    host.assert_no_session_left();
}

#[test]
fn a_server_killed_while_services_start_leaves_nothing() {
    let mut host = Host::new().user("ada").start();
    let git = GitServer::start();
    let never = "    ready: {exec: ['false'], timeout: 300s}\n";
    let services: String = ["one", "two", "three"].iter().map(|name| web(name, name, never)).collect();
    project(&host, &git, "shop", &podfile(&services));
    for inits in 1..=4 {
        let client = host.ssh("ada+shop", "true").spawn();
        eventually("some containers are there", || common::leaks::inits(&tag(&host)).len() >= inits);
        host.end(Signal::SIGKILL);
        host.serve();
        host.assert_no_session_left();
        finish("ssh", client);
    }
}

#[test]
fn everybody_is_told_once_when_a_service_ends() {
    let mut host = Host::new().user("ada").start();
    let git = GitServer::start();
    let services = web("front", "front", "").replace("exec httpd", "echo one; echo two; httpd")
        + &web("kept", "kept", "    restart: on-failure\n").replace("exec httpd", "echo three; httpd");
    project(&host, &git, "shop", &podfile(&services));
    let client = host.ssh("ada+shop", "echo ready; exec sleep 1000").spawn();
    eventually("it is there", || host.sessions().len() == 1 && host.sessions()[0]["status"] == "running");
    // One that is started again is nobody's business.
    for service in ["kept", "front"] {
        // What it ends takes everything in its container along, this too.
        host.podspawn(["exec", "ada@shop", "--service", service, "--", "killall", "httpd"]).run();
    }
    eventually("it is in the log", || {
        host.podspawn(["logs", "ada@shop", "front"]).run().text().contains("service front was ended by signal 15")
    });
    // Init tells each server of it.
    let session = host.root.join("var/lib/podspawn/sessions").join(host.sessions()[0]["id"].as_str().unwrap());
    let mut containers = fs::read_dir(session.join("services")).unwrap().map(|found| found.unwrap().path());
    let front =
        containers.find(|path| fs::read_to_string(path.join("log")).unwrap().contains("service front")).unwrap();
    eventually("it is told", || front.join("over").exists());
    host.end(Signal::SIGKILL);
    host.serve();
    // A new connection asks nobody for what is over, and a program that transfers files hears nothing.
    host.ssh("ada+shop", "true").run().ok().stderr("");
    host.podspawn(["stop", "ada@shop"]).run().ok();
    let output = finish("ssh", client);
    let told = "podspawn: service front was ended by signal 15\n  | one\n  | two\n";
    output.stdout("ready\n").stderr_has(told);
    assert!(!output.stderr.contains("three"), "{output}");
    assert_eq!(output.stderr.matches("service front").count(), 1, "{output}");
    host.assert_no_session_left();
}

fn tag(host: &Host) -> podspawn::names::InstanceTag {
    podspawn::names::InstanceTag::of_root(&host.root)
}

#[test]
fn services_go_on_while_the_server_is_killed_and_started_again() {
    let mut host = Host::new().user("ada").start();
    let git = GitServer::start();
    let talking = web("front", "front", "    restart: on-failure\n").replace(
        "mkdir /srv;",
        "(while :; do echo talk; sleep 0.1; done) & mkdir /srv; cp /proc/sys/kernel/random/uuid /srv/id;",
    );
    project(&host, &git, "shop", &podfile(&talking));
    let stream = Stream::start(&host, "ada+shop");
    let id = || host_id(&host);
    let before = id();
    assert_eq!(before.len(), 37, "{before:?}");
    host.end(Signal::SIGKILL);
    host.serve();
    assert_eq!(host_id(&host), before, "it was not started again");
    let log = log_of(&host);
    let size = fs::metadata(&log).unwrap().len();
    eventually("the next server hears it", || fs::metadata(&log).unwrap().len() > size);

    // And it is still kept.
    host.ssh("ada+shop", "wget -qO- http://front/ > /dev/null").run().ok();
    kill_service(&host);
    eventually("it is started again", || {
        let output = host.ssh("ada+shop", "wget -qO- http://front/id").run();
        output.status == Some(0) && output.text() != before
    });
    stream.flows();
    stream.finish();
    host.assert_no_session_left();
}

fn host_id(host: &Host) -> String {
    host.ssh("ada+shop", "wget -qO- http://front/id").run().ok().text()
}

/// Where the output of the only service is kept.
fn log_of(host: &Host) -> PathBuf {
    let id = host.sessions()[0]["id"].as_str().unwrap().to_owned();
    let services = host.root.join("var/lib/podspawn/sessions").join(&id).join("services");
    services.join(format!("{id}a")).join("log")
}

/// Kills the main process of the only service.
fn kill_service(host: &Host) {
    let pid: i32 = host.sql("select init_pid from services").trim().parse().unwrap();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let main = children.split(' ').next().unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(main), Signal::SIGKILL).unwrap();
}

#[test]
fn what_a_service_uses_is_shown_as_a_part_of_its_session() {
    let host = Host::new().user("ada").config("defaults:\n  memory: 64m").start();
    let git = GitServer::start();
    let busy = web("front", "front", "")
        .replace("mkdir /srv;", "mkdir /srv; head -c 4m /dev/zero > /big; while :; do :; done &");
    project(&host, &git, "shop", &podfile(&busy));
    let stream = Stream::start(&host, "ada+shop");
    let number = |value: &serde_json::Value, field: &str| value[field].as_u64().unwrap_or(0);
    host.ssh("ada+shop", "wget -qO- http://front/").run().ok().stdout("front\n");
    eventually("the service is busy, and has written", || {
        let stats = &host.json(["stats"])[0];
        number(&stats["services"][0], "cpu_us") > 200_000 && number(&stats["services"][0], "disk_bytes") >= 4 << 20
    });
    let stats = &host.json(["stats"])[0];
    let service = &stats["services"][0];
    assert_eq!((&service["name"], &stats["memory_limit_bytes"]), (&"front".into(), &(64 << 20).into()), "{stats}");
    // Init, httpd and the loop; and in the session init and cat too.
    assert_eq!((number(service, "pids"), number(stats, "pids")), (3, 5), "{stats}");
    for field in ["cpu_us", "memory_bytes", "disk_bytes", "rx_bytes", "tx_bytes"] {
        assert!(number(service, field) <= number(stats, field) && number(service, field) > 0, "{field}: {stats}");
    }
    host.podspawn(["stats"]).run().ok().stdout_has("- front");
    stream.finish();
    host.assert_no_session_left();
}

#[test]
fn an_administrator_runs_programs_in_a_session_and_in_its_services() {
    let host = Host::new().user("ada").start();
    let git = GitServer::start();
    project(&host, &git, "shop", &podfile(&web("front", "front", "    user: \"7:8\"\n").replace("/srv", "/tmp/srv")));
    let stream = Stream::start(&host, "ada+shop");
    let exec = |arguments: &[&str]| host.podspawn(["exec", "ada@shop"]).args(arguments);
    exec(&["--", "wc", "-c"]).input("not asked for\n").run().ok().stdout("0\n");
    let no_terminal = exec(&["-it", "--", "true"]).input("in\n").run();
    no_terminal.status(1).stderr_has("podspawn: standard input is not a terminal; leave out --tty");
    exec(&["-t", "--", "tty"]).run().ok().stdout("/dev/pts/0\r\n");
    let said = exec(&["-i", "--", "sh", "-c", "id -un; echo $PODSPAWN_PROJECT; echo err >&2; cat; exit 7"])
        .input("in\n")
        .run();
    said.status(7).stdout("ada\nshop\nin\n").stderr("err\n");
    let said =
        exec(&["--service", "front", "--", "sh", "-c", "id -u; id -g; hostname; echo $SAYS$PODSPAWN_PROJECT"]).run();
    said.ok().stdout("7\n8\nfront\nfront\n");
    exec(&["--service", "front", "--", "sh", "-c", "kill -9 $$"]).run().status(137);
    exec(&["--", "/missing"]).run().status(127).stderr_has("podspawn: /missing: No such file");
    let big = exec(&["--", "head", "-c", "3000000", "/dev/zero"]).run();
    assert_eq!(big.ok().stdout.len(), 3_000_000);
    let none = exec(&["--service", "back", "--", "true"]).run();
    none.status(1).stderr_has("the session of ada@shop has no service \"back\"; it has front");
    host.podspawn(["exec", "bob", "--", "true"]).run().status(1).stderr_has("there is no session of bob");
    let session = &host.sessions()[0];
    assert_eq!(session["services"][0]["name"], "front", "{session}");
    let audited: Vec<_> = host.audit().into_iter().filter(|event| event["event"] == "admin.exec").collect();
    assert_eq!(audited.len(), 2 * 7, "what has run, and nothing else: {audited:#?}");
    let [begun, ended] = &audited[8..10] else { unreachable!() };
    for (event, outcome) in [(begun, "begun"), (ended, "failure")] {
        let told = [&event["user"], &event["project"], &event["service"], &event["command"], &event["outcome"]];
        assert_eq!(told, ["ada", "shop", "front", "sh -c kill -9 $$", outcome], "{event}");
        assert_eq!(event["session_id"], session["id"], "{event}");
    }
    assert_eq!((&ended["signal"], begun["signal"].is_null()), (&9.into(), true), "{ended}");
    assert!(ended["duration_ms"].is_u64() && begun["duration_ms"].is_null(), "{ended}");
    stream.finish();
    host.assert_no_session_left();
}
