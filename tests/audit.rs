//! The audit log has all of it, whatever happens.

mod common;

use std::{fs, io::Read};

use common::{Host, Master, Stream, eventually};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
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

/// Runs `command` until it has said `ready`, and then kills its client.
fn abandon(host: &Host, login: &str, command: &str) {
    // What the shell says about its jobs has no reader any more by then.
    let script = format!("exec 2> /dev/null; {command} & echo ready; wait $!; exit $?");
    let mut client = host.ssh(login, &script).spawn();
    let mut said = [0; 6];
    client.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"ready\n");
    client.kill().unwrap();
    client.wait().unwrap();
}

#[test]
fn how_a_command_ends_whose_client_leaves_is_recorded_all_the_same() {
    let host = Host::new().user("ada").start();
    for (command, outcome, exit_code, signal) in [
        ("sleep 1000", "failure", json!(null), json!(1)),
        ("trap 'exit 7' HUP; sleep 1000", "failure", json!(7), json!(null)),
        ("trap 'exit 0' HUP; sleep 1000", "success", json!(0), json!(null)),
        // It has longer than the session waits for it.
        ("trap '' HUP; sleep 1000", "unknown", json!(null), json!(null)),
    ] {
        abandon(&host, "ada", command);
        host.assert_no_session_left();
        let commands: Vec<_> = host.audit().into_iter().filter(|event| event["event"] == "session.command").collect();
        let event = commands.last().unwrap();
        assert!(event["command"].as_str().unwrap().contains(command), "{event}");
        assert_eq!(
            (&event["outcome"], &event["exit_code"], &event["signal"]),
            (&json!(outcome), &exit_code, &signal),
            "{event}"
        );
        assert!(event["duration_ms"].is_u64(), "{event}");
    }
    events(&host, "session.command", 4);
    events(&host, "session.disconnect", 4);
}

#[test]
fn a_command_whose_channel_is_closed_is_recorded_while_its_connection_goes_on() {
    let host = Host::new().user("ada").start();
    let master = Master::start(&host, "ada", &[]);
    let mut client = master.ssh("exec 2> /dev/null; trap 'sleep 1; exit 9' HUP; echo ready; sleep 1000 & wait").spawn();
    client.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    let is_told = || host.audit().iter().any(|event| event["event"] == "session.command");
    eventually("the command's end is told", || {
        // The master may close the channel only when something else wakes it.
        master.control(&["check"]);
        is_told()
    });
    let command = &events(&host, "session.command", 1)[0];
    assert_eq!((&command["exit_code"], &command["outcome"]), (&json!(9), &json!("failure")), "{command}");
    assert!(host.audit().iter().all(|event| event["event"] != "session.disconnect"));
    drop(master);
    host.assert_no_session_left();
}

#[test]
fn a_command_is_told_from_its_beginning_whatever_becomes_of_the_server_meanwhile() {
    let mut host = Host::new().user("ada").start();
    let mut client = host.ssh("ada", "echo ready; sleep 1000").spawn();
    client.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    let stream = Stream::start(&host, "ada");
    host.end(Signal::SIGKILL);
    host.serve();
    client.kill().unwrap();
    client.wait().unwrap();
    let command = &events(&host, "session.command", 1)[0];
    assert_eq!((&command["command"], &command["signal"]), (&json!("echo ready; sleep 1000"), &json!(1)), "{command}");
    assert!(command["duration_ms"].is_u64(), "{command}");
    // Nobody is left that could say how this one ends.
    eventually("the client's connection has ended", || host.connections("ada").len() == 1);
    kill(Pid::from_raw(host.connections("ada")[0]), Signal::SIGKILL).unwrap();
    drop(stream);
    let command = &events(&host, "session.command", 2)[1];
    assert_eq!(command["outcome"], "unknown", "{command}");
    assert!(command["command"].is_string() && command["duration_ms"].is_u64(), "{command}");
    assert_eq!(events(&host, "session.disconnect", 2)[1]["remaining_connections"], 0);
    assert_eq!(events(&host, "container.destroy", 1)[0]["reason"], "disconnect");
    host.assert_no_session_left();
}

/// Why the user's session has ended, once it has.
fn reason(host: &Host, user: &str) -> String {
    let ended = || {
        let of_user = |event: &Value| event["event"] == "container.destroy" && event["user"] == user;
        host.audit().into_iter().filter(of_user).collect::<Vec<_>>()
    };
    eventually(&format!("the session of {user} has ended"), || !ended().is_empty());
    assert_eq!(ended().len(), 1, "{:#?}", ended());
    ended()[0]["reason"].as_str().unwrap().to_owned()
}

#[test]
fn whatever_ends_a_session_its_end_is_told_once_with_the_reason() {
    let users = ["ada", "bob", "dan", "eve", "fay"];
    let config = "session:\n  mode: grace-period\n  grace_period: 10m";
    let mut host = users.iter().fold(Host::new(), |host, user| host.user(user)).config(config).start();
    // What is connected when its session ends is told why.
    let ada = host.ssh("ada", "sleep 1000").spawn();
    let bob = host.ssh("bob", "sleep 1000").spawn();
    for user in ["dan", "eve", "fay"] {
        host.ssh(user, "true").run().ok();
    }
    eventually("both run", || host.connections("ada").len() == 1 && host.connections("bob").len() == 1);
    kill(Pid::from_raw(host.init("ada")), Signal::SIGKILL).unwrap();
    host.podspawn(["stop", "bob"]).run().ok();
    assert_eq!((reason(&host, "ada"), reason(&host, "bob")), ("container-died".into(), "stop".into()));
    common::command::finish("ada's client", ada);
    common::command::finish("bob's client", bob);
    for (user, told) in
        [("ada", "the session's container has died"), ("bob", "the session was stopped by the administrator")]
    {
        let find =
            || host.audit().into_iter().find(|event| event["event"] == "session.disconnect" && event["user"] == user);
        eventually("the end of the connection is told", || find().is_some());
        assert_eq!(find().unwrap()["reason"], told);
    }
    fs::remove_file(host.root.join("etc/podspawn/keys/fay")).unwrap();
    host.ssh("fay", "true").run().status(255);
    assert!(events(&host, "auth.fail", 1)[0]["login"] == "fay");

    let eve = host.init("eve");
    host.end(Signal::SIGKILL);
    kill(Pid::from_raw(eve), Signal::SIGKILL).unwrap();
    host.serve();
    assert_eq!(reason(&host, "eve"), "reconcile");
    host.end(Signal::SIGINT);
    assert_eq!((reason(&host, "dan"), reason(&host, "fay")), ("shutdown".into(), "shutdown".into()));
    host.serve();
    host.assert_no_session_left();
    for user in users {
        reason(&host, user);
    }
}

#[test]
fn a_session_that_a_timer_ends_is_told_with_which() {
    let config = "session:\n  mode: grace-period\n  grace_period: 1s\n  max_lifetime: 4s";
    let host = Host::new().user("ada").user("bob").config(config).start();
    let bob = host.ssh("bob", "sleep 1000").spawn();
    host.ssh("ada", "true").run().ok();
    assert_eq!((reason(&host, "ada"), reason(&host, "bob")), ("grace-expired".into(), "max-lifetime".into()));
    common::command::finish("bob's client", bob);
    let end = events(&host, "session.disconnect", 2).into_iter().find(|event| event["user"] == "bob").unwrap();
    assert!(end["reason"].as_str().unwrap().contains("maximum lifetime"), "{end}");
    let command = events(&host, "session.command", 2).into_iter().find(|event| event["user"] == "bob").unwrap();
    assert_eq!(command["outcome"], "unknown", "it was killed with its session: {command}");
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
    let mut host = Host::new().user("ada").user("bob").start();
    let stream = Stream::start(&host, "ada");
    let mut bob = host.ssh("bob", "echo ready; sleep 1000").spawn();
    bob.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    let lost = Pid::from_raw(host.connections("bob")[0]);
    host.end(Signal::SIGKILL);
    kill(lost, Signal::SIGKILL).unwrap();
    common::command::finish("bob's client", bob);
    host.serve();
    let starts = events(&host, "cleanup.run", 2);
    assert_eq!((&starts[0]["adopted"], &starts[1]["adopted"]), (&json!(0), &json!(2)), "{starts:?}");
    // Who has gone meanwhile, and with what.
    let command = &events(&host, "session.command", 1)[0];
    let told = [&command["user"], &command["command"], &command["outcome"]];
    assert_eq!(told, ["bob", "echo ready; sleep 1000", "unknown"], "{command}");
    assert!(command["duration_ms"].is_u64() && command["fingerprint"].is_string(), "{command}");
    stream.finish();
    let ends = events(&host, "session.disconnect", 2);
    for (end, user, login) in [(&ends[0], "bob", 1), (&ends[1], "ada", 0)] {
        assert_eq!((&end["user"], &end["remaining_connections"]), (&json!(user), &json!(0)), "{end}");
        assert_eq!(end["fingerprint"], events(&host, "auth.ok", 2)[login]["fingerprint"]);
    }
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
