//! Clients of a session that nobody uses are disconnected, and people are warned before the server ends anything by itself.

mod common;

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use common::{Host, command::finish, eventually};

const TOLD: &str = "podspawn: disconnected: nobody has used the session for 3s";
const WARNED: &str = "podspawn: nobody uses the session; its connections are closed in ";

fn ends(host: &Host) -> Vec<String> {
    let audit = host.audit();
    let ends = audit.iter().filter(|event| event["event"] == "container.destroy");
    ends.map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_session_that_nobody_uses_loses_its_connections_and_people_are_warned() {
    let config = "session:\n  mode: destroy-on-disconnect\n  idle_timeout: 3s";
    let host = Host::new().user("ada").config(config).start();
    let start = Instant::now();
    let script = host.ssh("ada", "sleep 1000").spawn();
    let person = host.ssh("ada", "sleep 1000").args(["-tt"]).run();
    assert!(start.elapsed() >= Duration::from_secs(3), "too early");
    assert_ne!(person.status, Some(0), "{person}");
    person.stderr_has(WARNED).stderr_has(TOLD);
    let script = finish("the script's client", script);
    script.stderr_has(&format!("{TOLD}\n"));
    assert!(!script.stderr.contains(WARNED), "{script}");
    host.assert_no_session_left();
    assert_eq!(ends(&host), ["idle-timeout"]);
    let told = |event: &&serde_json::Value| event["event"] == "session.disconnect";
    let reasons: Vec<_> = host.audit().iter().filter(told).map(|event| event["reason"].clone()).collect();
    assert!(reasons.len() == 2 && reasons.iter().all(|reason| TOLD.ends_with(reason.as_str().unwrap())), "{reasons:?}");
}

#[test]
fn bytes_and_cpu_time_are_use_and_afterwards_the_mode_decides() {
    let config = "session:\n  mode: grace-period\n  grace_period: 10m\n  idle_timeout: 3s";
    let host = Host::new().user("ada").user("bob").config(config).start();
    // It says nothing and works; it works and has an end.
    let busy = "end=$(($(date +%s) + 8)); while [ $(date +%s) -lt $end ]; do :; done; exit 7";
    let busy = host.ssh("ada", busy).spawn();
    // What is typed is not read, and costs the session no time.
    let mut typed = host.ssh("bob", "sleep 8; exit 7").command();
    let typed = typed.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut typed = typed.spawn().unwrap();
    let mut keyboard = typed.stdin.take().unwrap();
    let typing = std::thread::spawn(move || {
        for _ in 0..16 {
            // Its end is asserted below.
            if std::io::Write::write_all(&mut keyboard, b"x").is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    });
    finish("the busy one", busy).status(7).stderr("");
    finish("the typist", typed).status(7).stderr("");
    typing.join().unwrap();
    // The shell's own processes end with it: a connection alone is no use.
    let alone = host.ssh("ada", "sleep 1000").run();
    alone.stderr_has(TOLD);
    eventually("the session is in grace", || {
        let sessions = host.sessions();
        sessions.iter().any(|session| session["user"] == "ada" && session["status"] == "grace")
    });
    assert_eq!(ends(&host), [] as [String; 0]);
    host.podspawn(["stop", "--all"]).run().ok();
    host.assert_no_session_left();
}

#[test]
fn people_are_warned_before_the_lifetime_of_their_session_is_over() {
    let config = "session:\n  mode: grace-period\n  max_lifetime: 16s";
    let host = Host::new().user("ada").config(config).start();
    let warned = "podspawn: the session reaches its maximum lifetime in ";
    let script = host.ssh("ada", "sleep 1000").spawn();
    let person = host.ssh("ada", "sleep 1000").args(["-tt"]).spawn();
    // Who comes between the warning and the end is warned, too.
    std::thread::sleep(Duration::from_secs(9));
    let late = host.ssh("ada", "sleep 1000").args(["-tt"]).run();
    for output in [finish("the person's client", person), late] {
        output.stderr_has(warned).stderr_has("podspawn: the session has reached its maximum lifetime");
    }
    let script = finish("the script's client", script);
    script.stderr_has("podspawn: the session has reached its maximum lifetime");
    assert!(!script.stderr.contains(warned), "{script}");
    host.assert_no_session_left();
}
