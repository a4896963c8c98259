//! Processes as users expect them: what runs on in the background, and what ends with its client.

mod common;

use std::io::{BufRead, BufReader, Write};

use common::{Host, Image, eventually};

const GRACE: &str = "session:\n  mode: grace-period\n  grace_period: 10m";

#[test]
fn a_server_started_in_the_background_outlives_its_command_but_not_its_session() {
    let host = Host::new().image(Image::Debian).user("ada").config(GRACE).start();
    let start = "nohup sh -c 'echo $$ >pid; while :; do date >beat; sleep 0.1; done' >/dev/null 2>&1 &";
    host.ssh("ada", start).run().ok();
    let wait = "until test -s pid && test -s beat; do sleep 0.1; done";
    let again = &format!("{wait}; rm beat; {wait}; kill -0 $(cat pid) && echo beats");
    host.ssh("ada", again).run().ok().stdout("beats\n");
    host.podspawn(["stop", "ada"]).run().ok();
    host.assert_no_session_left();
}

#[test]
fn a_command_ends_with_its_client() {
    let host = Host::new().user("ada").config(GRACE).start();
    for terminal in ["-T", "-tt"] {
        let mut client = host.ssh("ada", "echo up; sleep 1000").args([terminal]).spawn();
        let mut line = String::new();
        BufReader::new(client.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "up");
        client.kill().unwrap();
        client.wait().unwrap();
        eventually("the command is gone", || host.ssh("ada", "pidof sleep").run().status == Some(1));
    }
}

#[test]
fn a_command_that_ignores_the_hangup_is_killed() {
    let host = Host::new().user("ada").config(GRACE).start();
    let mut client = host.ssh("ada", "trap '' HUP PIPE TERM; echo up; while :; do sleep 0.2; done").spawn();
    let mut line = String::new();
    BufReader::new(client.stdout.take().unwrap()).read_line(&mut line).unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    // Its arguments, and not those of the search itself.
    eventually("the command is gone", || host.ssh("ada", "ps | grep -q '[t]rap'").run().status == Some(1));
}

#[test]
fn signals_of_the_client_reach_the_command() {
    let host = Host::new().image(Image::Debian).user("ada").start();
    // OpenSSH's client sends none of its own accord; Ctrl-C on a terminal is a byte, which the terminal turns into one.
    let mut client =
        host.ssh("ada", "trap 'echo caught; exit 5' INT; echo ready; sleep 1000 & wait").args(["-tt"]).spawn();
    let (mut stdin, stdout) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
    let mut lines = BufReader::new(stdout).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap().trim(), "ready");
    stdin.write_all(b"\x03").unwrap();
    assert!(lines.any(|line| line.contains("caught")));
    assert_eq!(client.wait().unwrap().code(), Some(5));
}

#[test]
fn orphans_are_reaped() {
    let host = Host::new().user("ada").config(GRACE).start();
    host.ssh("ada", "for i in 1 2 3 4 5; do (sleep 0.01 &) ; done").run().ok();
    let no_zombie = "! grep -l '^State:.*Z' /proc/[0-9]*/status 2>/dev/null";
    eventually("no zombie is left", || host.ssh("ada", no_zombie).run().status == Some(0));
}
