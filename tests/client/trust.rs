//! Setting up, and whom ssh believes afterwards.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
};

use nix::sys::signal::Signal;

use crate::{
    common::{Host, Sshd},
    person::{Person, fingerprint, server},
};

const WHO: &str = "echo $PODSPAWN_PROJECT";

fn ada() -> Host {
    Host::new().user("ada").start()
}

/// Gives the server another key, as somebody in its place would have.
fn change_key(host: &mut Host) {
    host.end(Signal::SIGINT);
    fs::remove_dir_all(host.root.join("etc/podspawn/host_keys")).unwrap();
    host.serve();
}

/// The fingerprints that ssh finds for a host name.
fn known(person: &Person, name: &str) -> Vec<String> {
    let output = person.run("ssh-keygen").args(["-l", "-f", ".podspawn/known_hosts", "-F", name]).run();
    let lines = output.text();
    let lines = lines.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(' ').nth(2).unwrap().to_owned()).collect()
}

#[test]
fn setup_writes_its_block_once_and_keeps_all_else_of_the_file() {
    let host = ada();
    let person = Person::new(&host);
    let own = "# mine\r\nServerAliveInterval 30\n\nHost *\n\tStrictHostKeyChecking no\n  UserKnownHostsFile /dev/null";
    person.write(".ssh/config", own);
    let config = person.file(".ssh/config");
    fs::set_permissions(&config, fs::Permissions::from_mode(0o640)).unwrap();
    let dry = person.podspawn(&["setup", "--dry-run"]).run().ok().text();
    assert_eq!(person.read(".ssh/config"), own);
    let setup = ["setup", "--server", &server(&host), "--fingerprint", &fingerprint(&host)];
    person.podspawn(&setup).run().ok();
    assert_eq!(person.read(".ssh/config"), format!("{dry}{own}"));
    let before = config.metadata().unwrap();
    assert_eq!(before.permissions().mode() & 0o777, 0o640);
    person.podspawn(&setup).run().ok().stderr_has("has podspawn's block already");
    person.podspawn(&["setup"]).run().ok();
    assert_eq!((config.metadata().unwrap().ino(), person.read(".ssh/config")), (before.ino(), format!("{dry}{own}")));
    for (name, mode) in [(".podspawn", 0o700), (".podspawn/config.yaml", 0o600), (".podspawn/known_hosts", 0o600)] {
        assert_eq!(person.file(name).metadata().unwrap().permissions().mode() & 0o777, mode, "{name}");
    }
    // By ssh's own account, whatever the rest of the file says. What that says of other hosts counts for these.
    let effective = person.run("ssh").args(["-G", "ada@web.pod"]).run().ok().text();
    for line in
        ["stricthostkeychecking true", "userknownhostsfile /root/.podspawn/known_hosts", "serveraliveinterval 30"]
    {
        assert!(effective.lines().any(|effective| effective == line), "{line}: {effective}");
    }
    let other = person.run("ssh").args(["-G", "ada@elsewhere"]).run().ok().text();
    assert!(other.contains("serveraliveinterval 30") && !other.contains("proxycommand"), "{other}");
    person.ssh("ada@web.pod", WHO).run().ok().stdout("web\n");
}

#[test]
fn the_block_of_an_earlier_tool_is_pointed_out() {
    let host = ada();
    let person = Person::set_up(&host);
    let config = person.read(".ssh/config");
    let line = config.lines().count() + 2;
    person.write(".ssh/config", &(config + "\nHost *.pod\n  StrictHostKeyChecking no\n"));
    let output = person.podspawn(&["setup"]).run();
    output.ok().stderr_has(&format!("/root/.ssh/config, line {line}: another block for *.pod; remove it"));
    person.write(".ssh/config", "# >>> podspawn >>> x\nHost *.pod\n");
    person.podspawn(&["setup"]).run().status(1).stderr_has("line 1 begins podspawn's block, whose end is missing");
}

#[test]
fn a_key_that_nobody_has_confirmed_is_not_pinned() {
    let host = ada();
    let person = Person::new(&host);
    let setup = |more: &[&str]| person.podspawn(&[&["setup", "--server", &server(&host)], more].concat());
    let right = fingerprint(&host);
    setup(&[]).run().status(1).stderr_has(&format!("pass --fingerprint {right}\n"));
    setup(&["--fingerprint", "SHA256:x"]).run().status(1).stderr_has(&format!("its fingerprint is {right}\n"));
    // At a terminal one is asked.
    let asked = |answer: &str| {
        let command = format!("{} setup --server {}", crate::common::binary().display(), server(&host));
        person.run("script").args(["-qec", &command, "/dev/null"]).input(format!("{answer}\n")).run()
    };
    asked("no").status(1).stdout_has("is not confirmed");
    assert!(!person.file(".podspawn").exists() && !person.file(".ssh/config").exists());
    asked("yes").ok().stdout_has(&right);
    person.ssh("ada@web.pod", WHO).run().ok().stdout("web\n");
}

#[test]
fn a_server_with_another_key_is_refused_by_ssh_and_by_setup() {
    let mut host = ada();
    let person = Person::set_up(&host);
    person.ssh("ada@web.pod", WHO).run().ok();
    let old = fingerprint(&host);
    change_key(&mut host);
    let new = fingerprint(&host);
    for destination in ["ada@web.pod", "ada@other.pod"] {
        person.ssh(destination, WHO).run().status(255).stdout("").stderr_has("REMOTE HOST IDENTIFICATION HAS CHANGED");
    }
    for more in [&[][..], &["--yes"], &["--fingerprint", &old]] {
        let output = person.podspawn(&[&["setup", "--server", &server(&host)], more].concat()).run();
        output.status(1).stdout("").stderr_has(&new);
        if !more.contains(&old.as_str()) {
            output.stderr_has("THE HOST KEY OF A PODSPAWN SERVER HAS CHANGED").stderr_has(&old);
        }
    }
    person.ssh("ada@web.pod", WHO).run().status(255);
    person.podspawn(&["setup", "--server", &server(&host), "--fingerprint", &new]).run().ok();
    person.ssh("ada@web.pod", WHO).run().ok().stdout("web\n");
}

#[test]
fn projects_of_two_servers_are_told_apart_by_mapping() {
    let (one, two) = (ada(), Host::new().prepare());
    let mut two = two;
    two.serve();
    // The same person, with the same key.
    two.podspawn(["add-user", "ada", "--key-file"]).arg(one.key("ada").with_extension("key.pub")).run().ok();
    let person = Person::set_up(&one);
    let set = |key: &str, value: &str| {
        person.podspawn(&["config", "set", key, value, "--fingerprint", &fingerprint(&two)]).run()
    };
    set("servers.mappings.api.pod", &server(&two)).ok();
    person.ssh("ada@web.pod", WHO).run().ok().stdout("web\n");
    person.ssh("ada@api.pod", WHO).run().ok().stdout("api\n");
    let made = |host: &Host| {
        let events = host.audit();
        let made = events.iter().filter(|event| event["event"] == "container.create");
        made.map(|event| event["project"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!((made(&one), made(&two)), (vec!["web".to_owned()], vec!["api".to_owned()]));
    for (name, host) in [("web.pod", &one), ("[web.pod]:2200", &one), ("api.pod", &two), ("[api.pod]:2222", &two)] {
        assert_eq!(known(&person, name), [fingerprint(host)], "{name}");
    }
    assert!(known(&person, "localhost.pod").is_empty());
    // A mapping that is written by hand counts at once, and the key with it.
    let config = person.read(".podspawn/config.yaml");
    person.write(".podspawn/config.yaml", &config.replace("api.pod", "db.pod"));
    person.ssh("ada@db.pod", WHO).run().ok().stdout("db\n");
    person.ssh("ada@api.pod", WHO).run().ok().stdout("api\n");
    assert_eq!((made(&one).len(), made(&two).len()), (2, 2));
    // One whose key nobody has confirmed is not believed, although it has the default server's.
    person.write(".podspawn/config.yaml", &config.replace(&server(&two), &format!("localhost:{}", Host::PORT)));
    let refused = person.ssh("ada@api.pod", WHO).run();
    refused
        .status(255)
        .stdout("")
        .stderr_has("api.pod leads to localhost:2222, whose key is not pinned: podspawn setup");
}

#[test]
fn settings_are_shown_and_mistakes_are_named() {
    let host = ada();
    let person = Person::set_up(&host);
    let mapping = "servers.mappings.gpu.pod";
    let set = |key: &str, value: &str| person.podspawn(&["config", "set", key, value, "--yes"]).run();
    set(mapping, &server(&host)).ok();
    set("servers.mappings.gpu.mode", "persistent").ok();
    let shown = person.podspawn(&["config", "show"]).run().ok().text();
    let rows: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    let address = server(&host);
    let expected = [
        ["KEY", "VALUE"],
        ["servers.default", &address],
        [mapping, &address],
        ["servers.mappings.gpu.pod.mode", "persistent"],
    ];
    assert_eq!(rows, expected);
    let json = person.podspawn(&["config", "show", "--json"]).run().ok().text();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["servers"]["mappings"]["gpu.pod"]["port"], Host::PORT);
    for (key, value, message) in [
        ("servers.defualt", "x", "servers.defualt is no setting; did you mean servers.default?"),
        ("servers.default", "a b", "\"a b\" is not a server"),
        ("servers.default", "127.0.0.1:1", "cannot get the host key of 127.0.0.1:1"),
    ] {
        let output = set(key, value);
        output.status(1).stderr_has(message);
        assert_eq!(output.stderr.lines().count(), 1, "{output}");
    }
    assert_eq!(person.podspawn(&["config", "show"]).run().ok().text(), shown);
    person.write(".podspawn/config.yaml", "servers:\n  defalt: x\n");
    let wrong = "podspawn: /root/.podspawn/config.yaml: servers: unknown field `defalt` at line 2 column 3; did you mean \
                 `default`?\n";
    person.podspawn(&["config", "show"]).run().status(1).stderr(wrong);
    person.ssh("ada@web.pod", WHO).run().status(255).stderr_has(wrong);
}

#[test]
fn servers_are_listed_with_what_they_are() {
    let host = ada();
    let person = Person::set_up(&host);
    let mapping = |name: &str, value: &str| format!("    {name}: {value}\n");
    let sshd = Sshd::start(&host);
    let config = person.read(".podspawn/config.yaml") + "  mappings:\n" + &mapping("gone.pod", "127.0.0.1:1");
    person
        .write(".podspawn/config.yaml", &(config + &mapping("other.pod", &format!("{}:{}", sshd.address, Host::PORT))));
    let listed = person.podspawn(&["servers", "--json"]).run().ok().text();
    let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).unwrap();
    let of = |name: &str| listed.iter().find(|server| server["name"] == name).unwrap();
    let version = format!("podspawn {}", env!("CARGO_PKG_VERSION"));
    assert_eq!((&of("*.pod")["status"], &of("*.pod")["key"]), (&version.as_str().into(), &fingerprint(&host).into()));
    assert!(of("*.pod")["milliseconds"].as_f64().is_some_and(|time| time > 0.0));
    assert!(of("gone.pod")["status"].as_str().unwrap().contains("Connection refused"));
    assert!(of("other.pod")["status"].as_str().unwrap().starts_with("not podspawn: SSH-2.0-OpenSSH_"));
    assert!(of("gone.pod")["key"].is_null() && listed.iter().any(|server| server["name"] == "localhost.pod"));
    person.podspawn(&["servers"]).run().ok().stdout_has(&version);

    let ping = |name: &str| person.podspawn(&["ping", name]).run();
    ping("web.pod").ok().stdout_has(&format!("{0} ({0}): {version}; connected in ", server(&host)));
    assert_eq!(ping(&server(&host)).ok().text().lines().count(), 1);
    ping("gone.pod").status(1).stderr_has("cannot connect to 127.0.0.1:1: Connection refused");
    ping("other.pod").status(1).stderr_has("is not podspawn: SSH-2.0-OpenSSH_");
}
