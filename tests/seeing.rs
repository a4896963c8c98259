//! What an administrator sees of sessions.

mod common;

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use common::{Host, Run, Stream, eventually};
use nix::sys::signal::Signal;
use podspawn::names::{ContainerId, InstanceTag};
use serde_json::Value;

fn stats(host: &Host) -> Value {
    host.json(["stats"])[0].clone()
}

/// What `ip` has counted at the host's end of the session's veth pair.
fn traffic(host: &Host, session: &str) -> (u64, u64) {
    let veth = InstanceTag::of_root(&host.root).veth_name(&session.parse::<ContainerId>().unwrap());
    let output = Run::new("ip").args(["-s", "-j", "link", "show", &veth]).run();
    let links: Value = serde_json::from_slice(&output.ok().stdout).unwrap();
    let counter = |direction: &str| links[0]["stats64"][direction]["bytes"].as_u64().unwrap();
    (counter("rx"), counter("tx"))
}

#[test]
fn what_a_session_uses_is_shown() {
    let host =
        Host::new().user("ada").config("defaults:\n  memory: 64m").config("security:\n  pids_limit: 100").start();
    assert_eq!(host.json(["stats"]), serde_json::json!([]));
    let script =
        "dd if=/dev/zero of=written bs=1M count=8; sync; nslookup nothing.invalid; sleep 1000 & while :; do :; done";
    let mut busy = host.ssh("ada+web", script).spawn();
    eventually("it has used some CPU time", || stats(&host)["cpu_us"].as_u64() > Some(200_000));
    let shown = stats(&host);
    assert_eq!((&shown["user"], &shown["project"]), (&"ada".into(), &"web".into()), "{shown}");
    assert_eq!(shown["id"], host.sessions()[0]["id"]);
    assert_eq!((&shown["memory_limit_bytes"], &shown["pids_limit"]), (&(64 << 20).into(), &100.into()), "{shown}");
    assert!(shown["memory_bytes"].as_u64().unwrap() < 64 << 20, "{shown}");
    // Init, the shell and the sleep.
    assert_eq!(shown["pids"], 3, "{shown}");
    assert_eq!(shown["oom_kills"], 0, "{shown}");

    let (received, sent) = traffic(&host, shown["id"].as_str().unwrap());
    assert!(received > 0 && shown["tx_bytes"] == received && shown["rx_bytes"] == sent, "{shown} {received} {sent}");

    eventually("what it has written is measured", || stats(&host)["disk_bytes"].as_u64() >= Some(8 << 20));
    let shown = stats(&host);
    assert!(shown["disk_bytes"].as_u64() < Some(9 << 20) && shown["disk_complete"] == true, "{shown}");

    let table = host.podspawn(["stats"]).run().ok().text();
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0][..5], ["USER", "PROJECT", "CONTAINER", "CPU", "%"], "{table}");
    assert_eq!(rows[1][..3], ["ada", "web", shown["id"].as_str().unwrap()], "{table}");
    assert!(rows[1][3].parse::<f64>().unwrap() > 1.0, "{table}");
    assert_eq!(rows[1][5..7], ["/", "64MiB"], "{table}");
    busy.kill().unwrap();
    busy.wait().unwrap();
    host.assert_no_session_left();
}

#[test]
fn processes_that_the_kernel_kills_for_their_memory_are_counted() {
    let host = Host::new().user("ada").config("defaults:\n  memory: 32m").start();
    let output = host.ssh("ada", "tail /dev/zero; echo $?; sleep 1000").spawn();
    let mut output = output;
    eventually("it was killed", || stats(&host)["oom_kills"] == 1);
    output.kill().unwrap();
    output.wait().unwrap();
}

/// The value of a sample that counts, named with its labels.
fn sample(metrics: &str, name: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} in {metrics}")).parse().unwrap()
}

#[test]
fn metrics_count_what_happens_and_prometheus_understands_them() {
    let listen = |host: &Host| format!("{}:9464", host.address);
    let mut host = Host::new().user("ada").config("resources:\n  max_per_user: 1").prepare();
    let config = std::fs::read_to_string(host.config_file()).unwrap();
    std::fs::write(host.config_file(), format!("{config}metrics:\n  listen: {}\n", listen(&host))).unwrap();
    host.serve();
    let stream = Stream::start(&host, "ada");
    host.ssh("ada", "exit 3").run().status(3);
    host.ssh("ada+web", "true").run().status(125);
    host.ssh("nobody", "true").key(&host.key("ada")).run().status(255);
    let metrics = || host.podspawn(["status", "--prometheus"]).run().ok().text();
    eventually("the command has been counted", || metrics().contains("podspawn_commands_total{result=\"failure\"} 1"));
    host.ssh("ada", "head -c 8m /dev/zero >written").run().ok();
    eventually("what it has written is measured", || sample(&metrics(), "podspawn_sessions_disk_bytes") >= 8 << 20);
    eventually("both commands have been counted", || {
        sample(&metrics(), "podspawn_command_duration_seconds_count") == 2
    });
    let text = metrics();
    for (name, value) in [
        ("podspawn_sessions_total", 1),
        ("podspawn_sessions_running", 1),
        ("podspawn_containers", 1),
        ("podspawn_connections_total", 1),
        ("podspawn_sessions_created_total", 1),
        ("podspawn_refusals_total{limit=\"max_per_user\"}", 1),
        ("podspawn_refusals_total{limit=\"max_startups\"}", 0),
        ("podspawn_logins_total{result=\"ok\"}", 4),
        ("podspawn_connect_to_ready_seconds_count", 3),
        ("podspawn_command_duration_seconds_count", 2),
    ] {
        assert_eq!(sample(&text, name), value, "{name}: {text}");
    }
    assert!(sample(&text, "podspawn_logins_total{result=\"failed\"}") >= 1, "{text}");
    // The image of the session, and file systems that have room for this test.
    assert!(sample(&text, "podspawn_store_bytes") > 1 << 16, "{text}");
    for name in ["podspawn_store_free_bytes", "podspawn_sessions_free_bytes"] {
        assert!(sample(&text, name) > 1 << 20, "{text}");
    }

    // The same for Prometheus, which reads it without a complaint.
    let scraped = Run::new("curl").args(["-sS", "-i", &format!("http://{}/metrics", listen(&host))]).run().ok().text();
    assert!(scraped.contains("content-type: text/plain; version=0.0.4"), "{scraped}");
    assert_eq!(sample(&scraped, "podspawn_sessions_created_total"), 1);
    let promtool = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/promtool");
    assert!(promtool.exists(), "{} is missing; run: scripts/test-deps", promtool.display());
    let judged = Run::new(promtool).args(["check", "metrics"]).input(text.clone()).run();
    judged.ok().stdout("").stderr("");

    // Nothing else is there over TCP.
    let status = |path: &str| {
        let url = format!("http://{}{path}", listen(&host));
        Run::new("curl").args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", &url]).run().ok().text()
    };
    assert_eq!(
        (status("/healthz"), status("/v1/sessions"), status("/v1/stop-all")),
        ("200".into(), "404".into(), "404".into())
    );
    stream.finish();
    eventually("its end has been counted", || {
        metrics().contains("podspawn_sessions_ended_total{reason=\"disconnect\"} 1")
    });
    host.assert_no_session_left();
}

#[test]
fn events_are_shown_as_they_happen_and_those_of_before() {
    let mut host = Host::new().user("ada").user("bob").start();
    host.ssh("ada", "echo before").run().ok();
    host.assert_no_session_left();
    let listen = |arguments: &[&str]| {
        let mut run = host.podspawn([&["events"], arguments].concat());
        let mut child = run.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        (child, lines)
    };
    let (mut json, mut objects) = listen(&["--since", "1h", "--user", "ada", "--json"]);
    let (mut people, mut lines) = listen(&["--since", "1h", "--event", "session.command"]);
    // What is first is what was before, and then they listen.
    let mut heard: Vec<Value> = Vec::new();
    let mut until = |name: &str, objects: &mut dyn Iterator<Item = String>| {
        while heard.last().is_none_or(|event| event["event"] != name) {
            heard.push(serde_json::from_str(&objects.next().expect("it goes on")).unwrap());
        }
        heard.clone()
    };
    until("container.destroy", &mut objects);
    assert!(lines.next().unwrap().contains(" session.command ada command=\"echo before\" "));
    host.ssh("bob", "true").run().ok();
    host.ssh("ada+web", "exit 3").run().status(3);
    until("auth.ok", &mut objects);
    let heard = until("container.destroy", &mut objects);
    let logged: Vec<Value> = host.audit().into_iter().filter(|event| event["user"] == "ada").collect();
    assert_eq!(heard, logged, "each once, and nobody else's");
    assert!(lines.next().unwrap().contains(" session.command bob command=true "));
    let line = lines.next().unwrap();
    assert!(line.contains(" session.command ada@web command=\"exit 3\" ") && line.contains(" exit_code=3 "), "{line}");

    // Whoever wants no more of it is no error, and an end that nobody wanted is one.
    drop(lines);
    host.ssh("bob", "true").run().ok();
    assert!(people.wait().unwrap().success());
    host.end(Signal::SIGTERM);
    assert_eq!(json.wait().unwrap().code(), Some(1));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut json.stderr.take().unwrap(), &mut said).unwrap();
    assert!(said.contains("the server has ended the stream of events"), "{said}");
    host.serve();
}
