//! What is known of a session when it is gone: little, bounded, and nobody's but the administrator's.

mod common;

use std::fs;

use common::{GitServer, Host, Stream, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// The records of sessions that are gone, the latest first, once there are so many.
fn records(host: &Host, count: usize) -> Vec<Value> {
    let list = || host.json(["records"]).as_array().unwrap().clone();
    eventually(&format!("{count} records"), || list().len() == count);
    list()
}

/// The only record.
fn record(host: &Host) -> Value {
    let id = records(host, 1)[0]["id"].as_str().unwrap().to_owned();
    host.json(["records", &id])
}

/// The changes of a record as `podspawn diff` shows them.
fn diff(host: &Host, session: &str) -> Vec<String> {
    host.podspawn(["diff", session]).run().ok().text().lines().map(str::to_owned).collect()
}

#[test]
fn a_session_that_is_gone_is_known_by_its_commands_its_changes_and_what_it_has_used() {
    let host = Host::new().user("ada").config("defaults:\n  memory: 64m").start();
    let git = GitServer::start();
    let podfile = "base: localhost/busybox:test\non_create: echo made; echo of hooks\nservices:\n  - name: web\n    \
                   image: localhost/busybox:test\n    ports: [80]\n    command: [sh, -c, 'echo serving; exec httpd -f -p 80']\n";
    let repository = git.repository("shop", &[("podfile.yaml", podfile)]);
    host.podspawn(["add-project", "shop", "--repo", &repository.url]).run().ok();

    let stream = Stream::start(&host, "ada+shop");
    let script = "echo x > new; sudo true 2> /dev/null; head -c 20000000 /dev/zero | tail > /dev/null; wget -qO- http://web/; exit 3";
    host.ssh("ada+shop", script).run().status(3);
    assert_eq!(records(&host, 0), [] as [Value; 0], "it lives");
    let live = diff(&host, "ada@shop");
    stream.finish();
    host.assert_no_session_left();

    let record = record(&host);
    let id = record["id"].as_str().unwrap();
    for (field, value) in [("user", "ada"), ("project", "shop"), ("reason", "disconnect")] {
        assert_eq!(record[field], value, "{record:#}");
    }
    let commands = record["commands"].as_array().unwrap();
    let command = commands.iter().find(|command| command["command"] == script).unwrap_or_else(|| panic!("{record:#}"));
    assert_eq!((&command["exit_code"], &record["commands_complete"]), (&json!(3), &json!(true)), "{command}");
    let logged = host.audit().into_iter().find(|event| event["command"] == script).unwrap();
    assert_eq!((&logged["duration_ms"], &logged["remote"]), (&command["duration_ms"], &command["remote"]));

    let used = &record["used"];
    let peak = used["memory_peak_bytes"].as_u64().unwrap();
    assert!((20_000_000..64 << 20).contains(&peak), "{used}");
    assert_eq!((&used["memory_limit_bytes"], &used["oom_kills"]), (&json!(64 << 20), &json!(0)));
    assert_eq!(used["pids_limit"], 512, "{used}");
    assert!(used["cpu_us"].as_u64() > Some(0) && used["pids_peak"].as_u64() > Some(3), "{used}");
    assert!(used["rx_bytes"].as_u64() > Some(0) && used["tx_bytes"].as_u64() > Some(0), "{used}");
    let service = &record["services"][0];
    assert_eq!(service["name"], "web");
    assert!(service["used"]["memory_peak_bytes"].as_u64() < used["memory_peak_bytes"].as_u64(), "{record:#}");

    assert!(live.contains(&"A /workspace/shop/new".to_owned()) && live.contains(&"C /etc".to_owned()), "{live:#?}");
    assert_eq!(diff(&host, id), live);
    assert_eq!(record["changes"]["complete"], true);
    let logs = |source: &[&str]| host.podspawn([&["logs", id], source].concat()).run().ok().text();
    assert_eq!(logs(&["on_create"]), "made\nof hooks\n");
    assert!(logs(&[]).contains("web | serving\n"), "{}", logs(&[]));
    let shown = host.podspawn(["records", id]).run().ok().text();
    assert!(shown.contains("memory peak") && shown.contains("wget -qO- http://web/"), "{shown}");
    let told = host.podspawn(["logs", "ada@shop"]).run();
    told.status(1).stderr_has(&format!("there is no session of ada@shop; its last one was {id}"));
}

#[test]
fn whatever_ends_a_session_leaves_its_record() {
    let config = "session:\n  mode: grace-period\n  grace_period: 10m";
    let mut host = Host::new().user("ada").user("bob").user("eve").user("dan").config(config).start();
    for user in ["ada", "bob", "eve", "dan"] {
        host.ssh(user, &format!("echo {user}; exit 1")).run().status(1);
    }
    host.podspawn(["stop", "ada"]).run().ok();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(host.init("bob")), Signal::SIGKILL).unwrap();
    let init = host.init("eve");
    records(&host, 2);
    // One dies while there is no server, and another lives on.
    host.end(Signal::SIGKILL);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(init), Signal::SIGKILL).unwrap();
    host.serve();
    records(&host, 3);
    host.end(Signal::SIGINT);
    host.serve();
    let records = records(&host, 4);
    let mut reasons: Vec<_> =
        records.iter().map(|one| (one["user"].as_str().unwrap(), one["reason"].as_str().unwrap())).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, [("ada", "stop"), ("bob", "container-died"), ("dan", "shutdown"), ("eve", "reconcile")]);
    for one in &records {
        let record = host.json(["records", one["id"].as_str().unwrap()]);
        let command = &record["commands"][0];
        let expected = format!("echo {}; exit 1", one["user"].as_str().unwrap());
        assert_eq!((&command["command"], &command["exit_code"]), (&json!(expected), &json!(1)), "{record:#}");
    }
    host.assert_no_session_left();
}

#[test]
fn a_hostile_session_makes_its_record_neither_big_nor_false() {
    let host = Host::new().user("ada").start();
    let script = "n=$(printf %0200d 0); i=0; while [ $i -lt 500 ]; do mkdir -p flood/$i; \
                  touch flood/$i/$n-0 flood/$i/$n-1 flood/$i/$n-2 flood/$i/$n-3; i=$((i+1)); done; \
                  ln -s / root; ln -s /etc/shadow shadow";
    host.ssh("ada", script).run().ok();
    host.assert_no_session_left();
    let first = record(&host);
    assert_eq!(first["changes"]["complete"], false);
    let file = host.root.join(format!("var/lib/podspawn/records/{}.json", first["id"].as_str().unwrap()));
    assert!(file.metadata().unwrap().len() < 1 << 20);
    let shown = host.podspawn(["diff", first["id"].as_str().unwrap()]).run();
    shown.ok().stderr_has("these are not all");
    assert!(shown.text().contains("A /home/ada/root\n"), "a link is told, and not followed");

    let forge = "touch \"$(printf 'a\\nD /etc/\\033[2J' | tr / _)\"; printf 'x\\n'; : \"\nD /etc/passwd\"";
    host.ssh("ada", forge).run().ok();
    host.assert_no_session_left();
    let id = records(&host, 2)[0]["id"].as_str().unwrap().to_owned();
    let lines = diff(&host, &id);
    assert!(lines.contains(&"A /home/ada/a\\nD _etc_\\u{1b}[2J".to_owned()), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.starts_with("D ")), "{lines:#?}");
    let shown = host.podspawn(["records", &id]).run().ok().text();
    assert!(shown.lines().any(|line| line.contains("\\nD /etc/passwd")), "{shown}");
}

#[test]
fn no_record_is_kept_longer_than_is_wanted() {
    let mut host = Host::new().user("ada").start();
    host.ssh("ada", "true").run().ok();
    host.assert_no_session_left();
    let id = records(&host, 1)[0]["id"].as_str().unwrap().to_owned();
    let file = host.root.join(format!("var/lib/podspawn/records/{id}.json"));
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(8 * 24 * 3600);
    fs::File::options().write(true).open(&file).unwrap().set_modified(old).unwrap();
    host.end(Signal::SIGTERM);
    host.serve();
    records(&host, 0);
    assert!(!file.exists());

    let config = fs::read_to_string(host.config_file()).unwrap();
    assert!(config.contains("destroy-on-disconnect"), "{config}");
    let none = config.replace("destroy-on-disconnect", "destroy-on-disconnect\n  keep_records: 0");
    fs::write(host.config_file(), none).unwrap();
    host.ssh("ada", "true").run().ok();
    host.assert_no_session_left();
    assert_eq!(host.json(["records"]), json!([]));
    host.podspawn(["records", &id]).run().status(1).stderr_has(&format!("there is no record of a session {id}"));
    host.podspawn(["diff", "ada"]).run().status(1).stderr_has("there is no session of ada");
}
