//! What a session does to stay does not help it.

mod common;

use std::path::PathBuf;

use common::{Host, Image, Run, eventually, within};

/// The upper directory of the only session, on the host.
fn upper(host: &Host) -> PathBuf {
    let id = host.sessions()[0]["id"].as_str().unwrap().to_owned();
    host.root.join("var/lib/podspawn/sessions").join(id).join("upper")
}

#[test]
fn processes_that_ignore_every_signal_end_with_their_session() {
    let host = Host::new().user("ada").start();
    let stubborn = "(trap '' HUP INT TERM QUIT USR1 USR2 PIPE; while :; do sleep 1; done) >/dev/null 2>&1 </dev/null &";
    host.ssh("ada", &stubborn.repeat(5)).run().ok();
    host.assert_no_session_left();
    // And one that forks faster than it can be looked at.
    let ada = host.ssh("ada", "f() { f & f & wait; }; trap '' HUP TERM; echo go; f").spawn();
    eventually("it runs", || host.sessions().len() == 1 && host.sessions()[0]["status"] == "running");
    host.podspawn(["stop", "ada"]).run().ok();
    host.assert_no_session_left();
    common::command::finish("its client", ada);
}

#[test]
fn a_mountain_of_files_is_removed_and_nobody_waits_for_it() {
    let host = Host::new().user("ada").start();
    let deep = "mkdir deep; cd deep; for i in $(seq 1500); do mkdir -p dd/dd; cd dd; done; cd;";
    let modes = "mkdir closed; touch closed/file; chmod 000 closed; ln -s /etc link; mkfifo pipe;";
    let many = "seq 100000 | (mkdir many; cd many; xargs touch)";
    host.ssh("ada", &format!("{deep} {modes} {many}")).deadline(common::DEADLINE * 3).run().ok();
    host.ssh("ada", "ls").run().ok().stdout("");
    let gone = within(common::DEADLINE, || host.sessions().is_empty());
    assert!(gone, "the files are still being removed");
    host.assert_no_session_left();
}

#[test]
fn immutable_files_are_removed_too() {
    let host = Host::new().user("ada").config("session:\n  mode: grace-period").start();
    host.ssh("ada", "mkdir box; touch box/file").run().ok();
    let home = upper(&host).join("home/ada");
    // No container can do this, but a host's administrator can.
    Run::new("chattr").arg("+i").args([home.join("box/file"), home.join("box"), home]).run().ok();
    host.podspawn(["stop", "ada"]).run().ok();
    host.assert_no_session_left();
}

#[test]
fn a_removal_that_fails_is_tried_again_until_it_succeeds() {
    let mut host = Host::new().user("ada").config("session:\n  mode: grace-period").start();
    host.ssh("ada", "mkdir box").run().ok();
    let home = upper(&host).join("home/ada/box");
    Run::new("mount").args(["-t", "tmpfs", "podspawn-test"]).arg(&home).run().ok();
    host.podspawn(["stop", "ada"]).run().ok();
    eventually("it fails", || host.log().contains("could not be removed completely"));
    assert_eq!(host.sessions()[0]["status"], "stopping");
    // Nobody else is kept waiting by it, the user neither.
    host.ssh("ada", "hostname").run().ok().stdout("ada\n");
    host.podspawn(["stop", "ada"]).run().ok();
    // It is not forgotten by the next server.
    host.end(nix::sys::signal::Signal::SIGKILL);
    host.serve();
    eventually("it fails again", || host.sessions().len() == 1 && host.sessions()[0]["status"] == "stopping");
    Run::new("umount").arg(&home).run().ok();
    host.assert_no_session_left();
}

#[test]
fn a_session_of_a_full_distribution_leaves_nothing_either() {
    let host = Host::new().image(Image::Debian).user("ada").start();
    let script = "tmux new -d 'sleep 1000'; setsid nohup sleep 1000 >/dev/null 2>&1 </dev/null & \
                  python3 -m http.server 8000 >/dev/null 2>&1 </dev/null & sudo -n id -u";
    host.ssh("ada", script).run().ok().stdout("0\n");
    host.assert_no_session_left();
}
