//! The configuration, and the host.

use std::fs;

use super::*;

#[test]
fn the_configuration_in_force_is_shown_and_the_files_are_checked_as_they_are_now() {
    let host = Host::new().user("ada").config("session:\n  mode: grace-period\n  grace_period: 7s").start();
    let (status, settings) = host.api("GET", "/v1/config", None);
    assert_eq!((status, &settings), (200, &host.json(["config", "check"])));
    let has = |setting: Value| settings.as_array().unwrap().contains(&setting);
    assert!(has(json!({"field": "session.grace_period", "value": "7s", "origin": "file"})), "{settings}");
    assert!(has(json!({"field": "session.max_lifetime", "value": "8h", "origin": "default"})), "{settings}");

    let check = || host.api("GET", "/v1/config/check", None).1;
    let valid = json!({"file": host.config_file(), "error": null, "warnings": []});
    assert_eq!(check(), valid);
    fs::write(host.root.join("etc/podspawn/keys/eve"), "ssh-ed25519 AAAA\n").unwrap();
    assert_eq!(check()["warnings"].as_array().unwrap().len(), 1);
    fs::remove_file(host.root.join("etc/podspawn/keys/eve")).unwrap();

    let projects = host.root.join("etc/podspawn/projects.yaml");
    fs::write(&projects, "web: {repo: github.com/o/web, brnch: x}\n").unwrap();
    assert!(check()["error"].as_str().unwrap().contains("did you mean `branch`?"), "{}", check());
    fs::remove_file(&projects).unwrap();
    let good = fs::read_to_string(host.config_file()).unwrap();
    fs::write(host.config_file(), good.replace("grace_period: 7s", "grace_period: soon")).unwrap();
    assert!(check()["error"].as_str().unwrap().contains("\"soon\" is not a duration"), "{}", check());
    // What is in force is what was valid last.
    assert_eq!(host.api("GET", "/v1/config", None).1, settings);
    fs::write(host.config_file(), good).unwrap();
    assert_eq!(check(), valid);
    host.assert_no_session_left();
}

#[test]
fn the_doctor_says_the_same_over_the_api() {
    let host = Host::new().user("ada").start();
    let names = |report: &Value| -> Vec<Value> {
        report["checks"].as_array().unwrap().iter().map(|check| check["name"].clone()).collect()
    };
    let by_command = host.podspawn(["doctor", "--json"]).run();
    let by_command: Value = serde_json::from_slice(&by_command.stdout).unwrap();
    let (status, by_api) = host.api("GET", "/v1/doctor", None);
    assert_eq!((status, names(&by_api), &by_api["leaks"]), (200, names(&by_command), &json!([])));
    // Something that belongs to no session is found.
    fs::create_dir_all(host.root.join("run/podspawn/sessions/2abcdefg")).unwrap();
    let leaks = host.api("GET", "/v1/doctor", None).1["leaks"].clone();
    assert!(leaks[0]["name"].as_str().is_some_and(|name| name.contains("2abcdefg")), "{leaks}");
    fs::remove_dir(host.root.join("run/podspawn/sessions/2abcdefg")).unwrap();
    host.assert_no_session_left();
}
