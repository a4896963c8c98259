//! `podspawn cleanup`: what belongs to no session goes, and sessions go on.

mod common;

use std::fs;

use common::{Host, Stream, eventually};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

/// What nobody's session could have left.
fn leave_stray(host: &Host) {
    fs::create_dir_all(host.root.join("var/lib/podspawn/sessions/2abcdefg/upper/directory")).unwrap();
    fs::create_dir_all(host.root.join("run/podspawn/sessions/2abcdefg")).unwrap();
}

fn stray_is_there(host: &Host) -> bool {
    let parts = ["var/lib/podspawn/sessions/2abcdefg", "run/podspawn/sessions/2abcdefg"];
    parts.iter().any(|part| host.root.join(part).exists())
}

/// Cleanups that were asked for.
fn asked(host: &Host) -> Vec<Value> {
    let asked = |event: &Value| event["event"] == "cleanup.run" && event["reason"] == "command";
    host.audit().into_iter().filter(asked).collect()
}

#[test]
fn a_server_removes_what_belongs_to_no_session() {
    let host = Host::new().user("ada").start();
    let ada = Stream::start(&host, "ada");
    host.podspawn(["cleanup"]).run().ok().stdout("").stderr("");
    leave_stray(&host);
    fs::create_dir_all(host.images().join("tmp/unfinished/part")).unwrap();
    let cleaned = host.podspawn(["cleanup", "--json"]).run().ok().text();
    let cleaned: Value = serde_json::from_str(&cleaned).unwrap();
    assert_eq!(cleaned, json!({"sessions": ["2abcdefg"], "unfinished": 1, "failures": []}));
    assert!(!stray_is_there(&host) && !host.images().join("tmp/unfinished").exists());
    let events = asked(&host);
    assert_eq!((events.len(), &events[1]["strays"], &events[1]["unfinished"]), (2, &json!(1), &json!(1)), "{events:?}");

    leave_stray(&host);
    host.podspawn(["cleanup"]).run().ok().stdout("removed what was left of session 2abcdefg\n");
    let mut daemon = host.podspawn(["cleanup", "--daemon", "--interval", "1s"]).spawn();
    for _ in 0..2 {
        leave_stray(&host);
        eventually("it is removed again", || !stray_is_there(&host));
    }
    assert!(daemon.try_wait().unwrap().is_none(), "it goes on");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    host.podspawn(["cleanup", "--daemon", "--interval", "0s"]).run().status(2).stderr_has("shorter than 1s");
    ada.flows();
    ada.finish();
    host.assert_no_session_left();
}

#[test]
fn without_a_server_what_is_dead_goes_and_what_lives_stays() {
    let config = "session:\n  mode: grace-period\n  grace_period: 1h";
    let mut host = Host::new().user("ada").user("bob").config(config).start();
    host.ssh("ada", "true").run().ok();
    host.ssh("bob", "echo kept > file").run().ok();
    let id =
        host.sessions().iter().find(|session| session["user"] == "ada").unwrap()["id"].as_str().unwrap().to_owned();
    let end_init = |host: &Host, user: &str| kill(Pid::from_raw(host.init(user)), Signal::SIGKILL).unwrap();
    let (ada, bob) = (host.init("ada"), host.init("bob"));
    host.end(Signal::SIGKILL);
    kill(Pid::from_raw(ada), Signal::SIGKILL).unwrap();
    leave_stray(&host);
    let output = host.podspawn(["cleanup"]).run();
    output.ok().stdout(&format!("removed what was left of session {id}\nremoved what was left of session 2abcdefg\n"));
    assert!(!stray_is_there(&host));
    assert_eq!((asked(&host).len(), &asked(&host)[0]["strays"]), (1, &json!(2)));
    let ended = host.audit().into_iter().find(|event| event["event"] == "container.destroy").unwrap();
    assert_eq!(
        (&ended["user"], &ended["session_id"], &ended["reason"]),
        (&json!("ada"), &json!(id), &json!("reconcile"))
    );
    assert_eq!(host.podspawn(["cleanup"]).run().ok().text(), "");

    // The one that lives is the next server's.
    host.serve();
    host.ssh("bob", "cat file").run().ok().stdout("kept\n");
    assert_eq!(host.init("bob"), bob);
    end_init(&host, "bob");
    host.assert_no_session_left();
    host.ssh("ada", "true").run().ok();
    let ada = host.init("ada");
    host.end(Signal::SIGKILL);
    kill(Pid::from_raw(ada), Signal::SIGKILL).unwrap();
    // Nothing needs what the instance has as a whole either: the end of the test looks for it.
    host.podspawn(["cleanup"]).run().ok().stdout_has("removed what was left of session");
}
