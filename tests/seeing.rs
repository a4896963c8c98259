//! What an administrator sees of sessions.

mod common;

use common::{Host, Run, eventually};
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
