//! Attempts to get out of a session, one after the other: none is to succeed. That they would if nothing stood against them
//! is shown on the host itself, and in a session that has been weakened on purpose.

#[path = "../common/mod.rs"]
mod common;

use std::{collections::BTreeMap, fs};

use common::{Host, Image, Output, Run};

const ATTACKS: &str = include_str!("attacks.py");

/// How many there are at least: a script that ends early is not to pass.
const MANY: usize = 55;

/// What came of each attempt.
fn outcomes(output: &Output) -> BTreeMap<String, String> {
    let text = output.ok().text();
    let outcomes: BTreeMap<_, _> = text
        .lines()
        .map(|line| line.split_once(": ").unwrap_or_else(|| panic!("{line}")))
        .map(|(name, outcome)| (name.to_owned(), outcome.to_owned()))
        .collect();
    assert!(outcomes.len() >= MANY, "{text}");
    outcomes
}

#[track_caller]
fn assert_all_refused(whose: &str, outcomes: &BTreeMap<String, String>) {
    let reached: Vec<_> = outcomes.iter().filter(|(_, outcome)| !outcome.starts_with("refused")).collect();
    assert!(reached.is_empty(), "{whose}: {reached:#?}");
}

/// A file of the host that nobody inside should find.
fn canary(host: &Host) -> String {
    let canary = host.scratch().join("canary");
    fs::write(&canary, "hunter2").unwrap();
    canary.to_str().unwrap().to_owned()
}

/// Runs the attempts in a session, `prefix` before the interpreter.
fn attack(host: &Host, prefix: &str) -> BTreeMap<String, String> {
    let canary = canary(host);
    let command = format!("cat >/tmp/attacks.py && {prefix} python3 /tmp/attacks.py {canary}");
    outcomes(&host.ssh("ada", &command).input(ATTACKS).run())
}

#[test]
fn no_attack_succeeds_as_the_user_nor_with_sudo() {
    let host = Host::new().image(Image::Debian).user("ada").start();
    assert_all_refused("user", &attack(&host, ""));
    assert_all_refused("sudo", &attack(&host, "sudo"));
    host.assert_no_session_left();
}

#[test]
fn no_attack_succeeds_as_the_root_of_a_container() {
    let host = Host::new().image(Image::Debian).user("ada").config("defaults:\n  user: root").start();
    assert_all_refused("root", &attack(&host, ""));
    host.assert_no_session_left();
}

#[test]
fn no_attack_succeeds_where_sandboxes_may_be_made_but_for_the_sandboxes() {
    let host = Host::new().image(Image::Debian).user("ada").config("security:\n  nested: true").start();
    for prefix in ["", "sudo"] {
        let mut outcomes = attack(&host, prefix);
        assert_eq!(outcomes.remove("make a user namespace").as_deref(), Some("reached"));
        assert_all_refused(prefix, &outcomes);
    }
    host.assert_no_session_left();
}

/// Root of the host, in namespaces so that nothing of the host is changed.
#[test]
fn root_of_the_host_succeeds_with_all_of_them() {
    let host = Host::new().user("ada").start();
    let script = host.scratch().join("attacks.py");
    fs::write(&script, ATTACKS).unwrap();
    // The shell is PID 1, so that there is somebody else to trace, and leaves a directory open.
    let command = format!("exec 3</; python3 {} {}; exit $?", script.display(), canary(&host));
    let namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--fork", "--mount-proc"];
    let outcomes = outcomes(&Run::new("unshare").args(namespaces).args(["sh", "-c", &command]).run());
    let refused: Vec<_> = outcomes.iter().filter(|(_, outcome)| outcome.starts_with("refused")).collect();
    // What this kernel does not have nobody can attack.
    let missing = |outcome: &str| ["ENOENT", "ENOSYS", "ENXIO", "ENODEV"].iter().any(|why| outcome.ends_with(why));
    assert!(refused.iter().all(|(_, outcome)| missing(outcome)) && refused.len() < 10, "{refused:#?}");
}

#[test]
fn a_weakened_session_lets_attacks_through() {
    let mut host = Host::new().image(Image::Debian).user("ada").prepare();
    let profile = host.scratch().join("everything.json");
    fs::write(&profile, r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
    let mut config = fs::read_to_string(host.config_file()).unwrap();
    config.push_str(&format!("security:\n  seccomp_profile: {}\n  nested: true\n", profile.display()));
    fs::write(host.config_file(), config).unwrap();
    host.serve();
    let inside = "unshare --map-root-user --mount --uts --ipc --net --pid --fork --mount-proc";
    let outcomes = attack(&host, inside);
    for name in [
        "mount a tmpfs",
        "mount a procfs",
        "mount an overlay",
        "bind a directory",
        "make a mount namespace",
        "make a network namespace",
        "configure a file system",
        "copy a mount",
        "set the hostname",
        "handle page faults",
        "look at keyrings",
        "add a key",
        "set up an io_uring",
        "open a raw socket",
        "open a packet socket",
        "open a socket to the hypervisor",
        "take the network down",
        "change packet filters",
    ] {
        assert!(outcomes[name].starts_with("reached"), "{name}: {}", outcomes[name]);
    }
    // And what protects without the filter.
    for name in [
        "find a file of the host",
        "break out of a chroot",
        "set where cores go",
        "set the clock",
        "open a disk",
        "mount a sysfs",
        "open a file by its handle",
        "set a release agent",
        "uncover what is below a mount",
    ] {
        assert!(outcomes[name].starts_with("refused"), "{name}: {}", outcomes[name]);
    }
    host.assert_no_session_left();
}
