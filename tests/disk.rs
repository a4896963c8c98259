//! What a session writes has a bound, which it and nobody else notices, and takes no space when it has gone.

mod common;

use std::fs;

use common::{GitServer, Host, Run, Stream, eventually, leaks};
use nix::sys::signal::Signal;
use serde_json::Value;

/// The session's numbers, as `stats --json` shows them.
fn stats(host: &Host, user: &str) -> Value {
    let all = host.json(["stats"]);
    all.as_array().unwrap().iter().find(|stats| stats["user"] == user).cloned().unwrap_or_default()
}

/// The loop devices of the host's sessions.
fn loop_devices(host: &Host) -> Vec<String> {
    leaks::loop_devices(&host.root.join("var/lib/podspawn/sessions").display().to_string())
}

/// Bytes that the images of the host's sessions take.
fn taken(host: &Host) -> u64 {
    let sessions = host.root.join("var/lib/podspawn/sessions");
    let output = Run::new("find").arg(sessions).args(["-name", "disk.img", "-printf", "%b\n"]).run();
    output.ok().text().lines().map(|blocks| blocks.parse::<u64>().unwrap() * 512).sum()
}

#[test]
fn a_session_that_fills_its_disk_is_told_so_and_goes_on() {
    let host = Host::new().user("ada").user("bob").config("defaults:\n  disk: 64m").start();
    let (ada, bob) = (Stream::start(&host, "ada"), Stream::start(&host, "bob"));
    let full = host.ssh("ada", "cat /dev/zero > big; stat -c %s big").run();
    full.stderr_has("No space left on device");
    let written: u64 = full.text().trim().parse().unwrap();
    assert!((56 << 20..64 << 20).contains(&written), "{written}");
    host.ssh("bob", "head -c 40m /dev/zero > big; stat -c %s big").run().ok().stdout("41943040\n");
    eventually("it is seen", || stats(&host, "ada")["disk_bytes"].as_u64() > Some(56 << 20));
    let (of_ada, of_bob) = (stats(&host, "ada"), stats(&host, "bob"));
    let limit = of_ada["disk_limit_bytes"].as_u64().unwrap();
    assert!((60 << 20..=64 << 20).contains(&limit), "{of_ada}");
    assert!(of_bob["disk_bytes"].as_u64() < Some(48 << 20) && of_bob["disk_limit_bytes"] == limit, "{of_bob}");

    // What is removed can be written again, and is the host's again.
    host.ssh("ada", "rm big; head -c 40m /dev/zero > big && rm big && echo again > kept").run().ok();
    eventually("the space is given back", || taken(&host) < 60 << 20);
    // Files are limited too: one for 16 KiB.
    let many = "i=0; while true > f$i; do i=$((i+1)); done; echo $i; rm f*; cat kept";
    let many = host.ssh("ada", many).run();
    many.stderr_has("No space left on device").stdout_has("\nagain\n");
    let count: u64 = many.text().lines().next().unwrap().parse().unwrap();
    assert!((3000..=4096).contains(&count), "{count}");
    ada.flows();
    bob.flows();
    ada.finish();
    bob.finish();
    host.assert_no_session_left();
}

#[test]
fn what_runs_from_a_limited_disk_is_as_from_any_other() {
    let host = Host::new().user("ada").config("defaults:\n  disk: 32m").start();
    let script = "cp /bin/busybox ./busybox && ./busybox echo runs && ls -ld / && mkdir d && mv d e && ln busybox other && cat /proc/mounts";
    let output = host.ssh("ada", script).run();
    output.ok().stdout_has("runs\n");
    assert!(output.text().contains("drwxr-xr-x"), "{output}");
    // Where it is on the host does not show, nor is it anywhere on the host.
    assert!(!output.text().contains("loop") && !output.text().contains("sessions"), "{output}");
    host.assert_no_session_left();
}

#[test]
fn a_session_and_its_services_share_one_limit_that_its_podfile_asks_for() {
    let host = Host::new().user("ada").config("resources:\n  max_disk: 48m").start();
    let git = GitServer::start();
    let podfile = |disk: &str| {
        format!(
            "base: localhost/busybox:test\nresources: {{disk: {disk}}}\nservices:\n  - name: db\n    image: \
             localhost/busybox:test\n    ports: [80]\n    command: [sh, -c, 'head -c 20m /dev/zero > /big; exec httpd -f -p 80']\n"
        )
    };
    let repository = git.repository("shop", &[("podfile.yaml", &podfile("1g"))]);
    host.podspawn(["add-project", "shop", "--repo", &repository.url]).run().ok();
    let stream = Stream::start(&host, "ada+shop");
    let full = host.ssh("ada+shop", "cat /dev/zero > big; stat -c %s big").run();
    full.stderr_has("No space left on device");
    let written: u64 = full.text().trim().parse().unwrap();
    assert!((16 << 20..28 << 20).contains(&written), "{written}");
    eventually("both are seen", || {
        let stats = stats(&host, "ada");
        let service = stats["services"][0]["disk_bytes"].as_u64();
        service > Some(20 << 20) && service < Some(21 << 20) && stats["disk_bytes"].as_u64() > Some(40 << 20)
    });
    assert_eq!(loop_devices(&host).len(), 1);
    stream.finish();
    host.assert_no_session_left();

    // The administrator says more about the user than the Podfile.
    fs::create_dir_all(host.root.join("etc/podspawn/users")).unwrap();
    fs::write(host.root.join("etc/podspawn/users/ada.yaml"), "disk: 100m\n").unwrap();
    host.ssh("ada+shop", "head -c 60m /dev/zero > big").run().ok();
    host.assert_no_session_left();
    let repository = git.repository("tiny", &[("podfile.yaml", &podfile("1m"))]);
    let refused = host.podspawn(["add-project", "tiny", "--repo", &repository.url]).run();
    refused.status(1).stderr_has("resources.disk: \"1m\" is not between 16m and 16t");
}

#[test]
fn a_limited_session_outlives_its_server_and_leaves_nothing() {
    let config = "defaults:\n  disk: 32m\nsession:\n  mode: grace-period\n  grace_period: 1h";
    let mut host = Host::new().user("ada").user("bob").config(config).start();
    host.ssh("ada", "head -c 20m /dev/zero > big").run().ok();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        host.end(signal);
        host.serve();
        host.ssh("ada", "stat -c %s big").run().ok().stdout("20971520\n");
        host.ssh("ada", "head -c 20m /dev/zero > more; rm more").run().ok();
        eventually("it is measured", || stats(&host, "ada")["disk_bytes"].as_u64() > Some(20 << 20));
    }
    host.podspawn(["stop", "ada"]).run().ok();
    host.assert_no_session_left();
    // One whose init dies while no server runs.
    host.ssh("bob", "echo 1 > file").run().ok();
    let init = host.init("bob");
    host.end(Signal::SIGKILL);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(init), Signal::SIGKILL).unwrap();
    host.serve();
    host.assert_no_session_left();
}

#[test]
fn steps_of_a_build_have_the_limit_too() {
    let host = Host::new().user("ada").config("defaults:\n  disk: 32m").start();
    let git = GitServer::start();
    let add = |name: &str, command: &str| {
        let podfile = format!("base: localhost/busybox:test\nextra_commands: ['{command}']\n");
        let repository = git.repository(name, &[("podfile.yaml", &podfile)]);
        host.podspawn(["add-project", name, "--repo", &repository.url]).run().ok();
    };
    add("big", "cat /dev/zero > /big");
    host.ssh("ada+big", "true").run().status(125).stderr_has("No space left on device");
    add("small", "head -c 20m /dev/zero > /big; echo built > /built");
    let script = "cat /built; stat -c %s /big; head -c 20m /dev/zero > own; stat -c %s own";
    host.ssh("ada+small", script).run().ok().stdout("built\n20971520\n20971520\n");
    host.assert_no_session_left();
}

#[test]
fn without_what_limits_need_there_is_no_session_and_doctor_says_so() {
    let mut host = Host::new().user("ada").config("defaults:\n  disk: 32m").start();
    let checks = |host: &Host, path: &str| {
        let output = host.podspawn(["doctor", "--json"]).env("PATH", path).run();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = report["checks"].as_array().unwrap().clone();
        checks.into_iter().find(|check| check["name"] == "disk limits").unwrap()
    };
    let path = std::env::var("PATH").unwrap();
    let found = checks(&host, &path);
    assert!(found["verdict"] == "pass" && found["found"].as_str().unwrap().contains("mkfs.ext4"), "{found}");

    // A mkfs that cannot.
    let programs = host.scratch().join("bin");
    fs::create_dir(&programs).unwrap();
    let broken = programs.join("mkfs.ext4");
    fs::write(&broken, "#!/bin/sh\necho it is broken >&2\nexit 1\n").unwrap();
    Run::new("chmod").arg("755").arg(&broken).run().ok();
    host.end(Signal::SIGINT);
    host.serve_with(|command| {
        command.env("PATH", format!("{}:{path}", programs.display()));
    });
    let refused = host.ssh("ada", "true").run();
    refused.status(125).stdout("").stderr_has("cannot limit what the session writes: mkfs.ext4 failed for");
    refused.stderr_has("it is broken");
    assert_eq!(refused.stderr.lines().count(), 1, "{refused}");
    host.assert_no_session_left();
}
