//! `podspawn doctor` says what is wrong, why that matters, and what mends it.

mod common;

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt};

use common::Host;
use serde_json::Value;

/// The findings of this name, whatever the exit status.
fn findings(host: &Host, name: &str) -> Vec<Value> {
    let output = host.podspawn(["doctor", "--json"]).run();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"));
    let checks = report["checks"].as_array().unwrap().clone();
    let failed = checks.iter().any(|check| check["verdict"] == "fail");
    output.status(i32::from(failed));
    for check in &checks {
        assert_eq!(check["why"].is_null(), check["verdict"] == "pass", "only what is wrong has a reason: {check}");
    }
    checks.into_iter().filter(|check| check["name"] == name).collect()
}

fn verdict(host: &Host, name: &str) -> String {
    let findings = findings(host, name);
    assert_eq!(findings.len(), 1, "{findings:?}");
    findings[0]["verdict"].as_str().unwrap().to_owned()
}

#[test]
fn a_host_that_serves_is_fit_for_it() {
    let mut host = Host::new().user("ada").start();
    for name in
        ["user", "kernel", "nftables", "forwarding", "file system", "database", "host keys", "listen", "leftovers"]
    {
        assert_eq!(verdict(&host, name), "pass", "{name}");
    }
    assert_eq!(verdict(&host, "default image"), "pass");
    let text = host.podspawn(["doctor"]).run().ok().text();
    assert!(
        text.contains("[pass] configuration: ") && text.contains("[pass] leftovers: nothing is left behind"),
        "{text}"
    );
    host.end(nix::sys::signal::Signal::SIGINT);
    assert_eq!(verdict(&host, "listen"), "pass");
}

#[test]
fn what_is_wrong_is_told_with_what_mends_it() {
    let mut host = Host::new().user("ada").start();
    host.end(nix::sys::signal::Signal::SIGINT);
    let key = host.root.join("etc/podspawn/host_keys/ssh_host_ed25519_key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let found = &findings(&host, "host keys")[0];
    assert_eq!(found["verdict"], "fail", "{found}");
    let mend = found["mend"].as_str().unwrap();
    common::Run::new("sh").args(["-ec", mend]).run().ok();
    assert_eq!(verdict(&host, "host keys"), "pass");

    let keys = host.root.join("etc/podspawn/keys");
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o777)).unwrap();
    let found = findings(&host, "users' keys");
    assert!(found.iter().any(|check| check["verdict"] == "fail"), "{found:?}");
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o700)).unwrap();

    let taken = TcpListener::bind((host.address, Host::PORT)).unwrap();
    assert_eq!(verdict(&host, "listen"), "fail");
    drop(taken);
    assert_eq!(verdict(&host, "listen"), "pass");

    let config = fs::read_to_string(host.config_file()).unwrap();
    fs::write(host.config_file(), config.replace("defaults:\n  image: ", "defaults:\n  image: localhost:1/not-"))
        .unwrap();
    let found = &findings(&host, "default image")[0];
    assert_eq!(found["verdict"], "warn", "{found}");
    assert!(found["mend"].as_str().unwrap().starts_with("podspawn pull localhost:1/not-"), "{found}");

    fs::write(host.config_file(), "listen: nowhere\n").unwrap();
    let found = &findings(&host, "configuration")[0];
    assert!(found["found"].as_str().unwrap().contains("listen is not valid"), "{found}");
    host.podspawn(["doctor"]).run().status(1).stdout_has("[FAIL] configuration: ").stderr_has("checks have failed");
    fs::write(host.config_file(), config).unwrap();
}
