//! The audit log has all of it, whatever happens.

mod common;

use std::fs;

use common::{Host, Stream, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// The events of this kind, once there are as many.
fn events(host: &Host, name: &str, count: usize) -> Vec<Value> {
    let found = || host.audit().into_iter().filter(|event| event["event"] == name).collect::<Vec<_>>();
    eventually(&format!("{count} events {name}"), || found().len() >= count);
    let found = found();
    assert_eq!(found.len(), count, "{found:#?}");
    found
}

#[test]
fn a_connection_is_told_from_its_login_to_its_end() {
    let host = Host::new().user("ada").start();
    host.ssh("ada+web", "exit 3").args(["-R", "0:127.0.0.1:9"]).run().status(3);
    host.assert_no_session_left();
    let names: Vec<_> = host.audit().into_iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect();
    let expected = [
        "cleanup.run",
        "auth.ok",
        "container.create",
        "session.connect",
        "forward.open",
        "session.command",
        "session.disconnect",
        "container.destroy",
    ];
    let mut sorted = names.clone();
    // What is told by two processes may come in either order.
    sorted.sort_by_key(|name| expected.iter().position(|known| known == name));
    assert_eq!(sorted, expected, "{names:?}");

    let login = &events(&host, "auth.ok", 1)[0];
    let id = events(&host, "container.create", 1)[0]["session_id"].clone();
    for name in ["session.connect", "forward.open", "session.command", "session.disconnect"] {
        let event = &events(&host, name, 1)[0];
        for field in ["user", "project", "remote", "fingerprint"] {
            assert_eq!(event[field], login[field], "{field}: {event}");
            assert!(event[field].is_string(), "{field}: {event}");
        }
        assert_eq!(event["session_id"], id, "{event}");
    }
    let command = &events(&host, "session.command", 1)[0];
    assert_eq!((&command["command"], &command["exit_code"]), (&json!("exit 3"), &json!(3)), "{command}");
    assert!(command["outcome"] == "failure" && command["duration_ms"].is_u64(), "{command}");
    assert_eq!(events(&host, "session.connect", 1)[0]["connections"], 1);
    assert_eq!(events(&host, "session.disconnect", 1)[0]["remaining_connections"], 0);
    assert_eq!(events(&host, "container.destroy", 1)[0]["reason"], "disconnect");
}

#[test]
fn a_command_whose_client_leaves_is_recorded_all_the_same() {
    let host = Host::new().user("ada").start();
    let mut client = host.ssh("ada", "sleep 1000").spawn();
    eventually("it runs", || host.podspawn(["stats"]).arg("--json").run().text().contains("\"pids\": 2"));
    client.kill().unwrap();
    client.wait().unwrap();
    let command = &events(&host, "session.command", 1)[0];
    assert_eq!((&command["command"], &command["outcome"]), (&json!("sleep 1000"), &json!("unknown")), "{command}");
    assert_eq!((&command["exit_code"], &command["signal"]), (&Value::Null, &Value::Null));
    events(&host, "session.disconnect", 1);
    host.assert_no_session_left();
}

#[test]
fn what_the_server_ends_is_told_with_the_reason() {
    let host = Host::new().user("ada").user("bob").config("resources:\n  max_containers: 1").start();
    let ada = host.ssh("ada", "sleep 1000").spawn();
    eventually("ada is connected", || host.connections("ada").len() == 1);
    host.ssh("bob", "true").run().status(125);
    let refused = &events(&host, "limit.refused", 1)[0];
    assert_eq!((&refused["user"], &refused["reason"]), (&json!("bob"), &json!("max_containers")), "{refused}");
    assert!(refused["remote"].is_string() && refused["fingerprint"].is_string(), "{refused}");
    let told = &events(&host, "session.refused", 1)[0];
    assert!(told["reason"].as_str().unwrap().contains("resources.max_containers"), "{told}");

    host.podspawn(["stop", "ada"]).run().ok();
    common::command::finish("ada's client", ada);
    let end = &events(&host, "session.disconnect", 1)[0];
    assert_eq!(end["reason"], "the session was stopped by the administrator", "{end}");
    assert_eq!(events(&host, "container.destroy", 1)[0]["reason"], "stop");
    host.assert_no_session_left();
}

#[test]
fn a_restart_tells_what_it_has_found_and_connections_are_told_to_their_end() {
    let mut host = Host::new().user("ada").start();
    let stream = Stream::start(&host, "ada");
    host.end(Signal::SIGKILL);
    host.serve();
    let starts = events(&host, "cleanup.run", 2);
    assert_eq!((&starts[0]["adopted"], &starts[1]["adopted"]), (&json!(0), &json!(1)), "{starts:?}");
    stream.finish();
    let end = &events(&host, "session.disconnect", 1)[0];
    assert_eq!((&end["user"], &end["remaining_connections"]), (&json!("ada"), &json!(0)), "{end}");
    assert_eq!(end["fingerprint"], events(&host, "auth.ok", 1)[0]["fingerprint"]);
    host.assert_no_session_left();
}

#[test]
fn a_log_that_was_moved_away_goes_on_in_a_new_file() {
    let host = Host::new().user("ada").start();
    host.ssh("ada", "echo before").run().ok();
    host.assert_no_session_left();
    let old = host.scratch().join("audit.log.1");
    fs::rename(host.audit_log(), &old).unwrap();
    // What logrotate's configuration of many daemons has.
    host.signal(Signal::SIGHUP);
    host.ssh("ada", "echo after").run().ok();
    host.assert_no_session_left();
    assert!(fs::read_to_string(&old).unwrap().contains("echo before"));
    let new = fs::read_to_string(host.audit_log()).unwrap();
    assert!(new.contains("echo after") && !new.contains("echo before"), "{new}");
}
