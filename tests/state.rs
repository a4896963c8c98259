//! A state database that is damaged, or cannot be written, is said to be so, and what sessions have left is still removed.

mod common;

use std::{fs, path::PathBuf};

use common::{Host, Run, command::finish};
use nix::sys::signal::Signal;

fn database(host: &Host) -> PathBuf {
    host.root.join("var/lib/podspawn/state.db")
}

/// Garbage in the middle of the database, of which nothing is left in the log.
fn spoil(host: &Host) {
    host.sql("pragma wal_checkpoint(truncate)");
    let mut bytes = fs::read(database(host)).unwrap();
    bytes[4096..].fill(0xa5);
    fs::write(database(host), bytes).unwrap();
}

#[test]
fn a_damaged_database_is_put_aside_and_its_sessions_are_removed() {
    let config = "session:\n  mode: grace-period\n  grace_period: 1h";
    let mut host = Host::new().user("ada").user("bob").config(config).start();
    host.ssh("ada", "echo kept > file").run().ok();
    host.end(Signal::SIGTERM);
    // It knows of ada now, and never of bob.
    host.serve();
    host.ssh("bob", "true").run().ok();
    common::eventually("there is a copy", || {
        let copy = database(&host).with_extension("db.backup");
        copy.exists() && Run::new("sqlite3").arg(copy).arg("select user from sessions").run().ok().text() == "ada\n"
    });
    host.end(Signal::SIGKILL);
    spoil(&host);
    host.serve();
    assert!(host.log().contains("the state database was damaged ("), "{}", host.log());
    assert!(host.log().contains("state.db.damaged, and the copy of the last start takes its place"), "{}", host.log());
    assert!(database(&host).with_extension("db.damaged").exists());
    host.ssh("ada", "cat file").run().ok().stdout("kept\n");
    host.assert_only_left(&["ada"]);

    // Without the copy all of them are removed, and new ones made.
    host.end(Signal::SIGKILL);
    spoil(&host);
    fs::remove_file(database(&host).with_extension("db.backup")).unwrap();
    host.serve();
    assert!(host.log().contains("and an empty one takes its place"), "{}", host.log());
    host.assert_no_session_left();
    host.ssh("bob", "hostname").run().ok().stdout("bob\n");
    host.podspawn(["stop", "bob"]).run().ok();
    host.assert_no_session_left();
}

#[test]
fn a_database_that_cannot_be_written_is_named_in_one_line() {
    let mut host = Host::new().user("ada").start();
    host.end(Signal::SIGINT);
    let start = |mount: &str, why: &str| {
        let script = format!("{mount}; exec {} --root \"$1\" serve", common::binary().display());
        let state = host.root.join("var/lib/podspawn");
        let mut command = std::process::Command::new("unshare");
        command.args(["-m", "sh", "-ec", &script, "sh"]).arg(&host.root).arg(state);
        let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        let output = finish("podspawn serve", child);
        output.status(1).stdout("").stderr_has(why);
        let said: Vec<_> = output.stderr.lines().filter(|line| !line.contains(" WARN sessions get ")).collect();
        assert!(said.len() == 1 && said[0].starts_with("podspawn: "), "{output}");
        assert!(!output.stderr.contains("panic"), "{output}");
    };
    start("mount --bind \"$2\" \"$2\"; mount -o remount,bind,ro \"$2\"", "cannot write");
    let full = "cp -a \"$2\" /tmp/podspawn-state-$$; mount -t tmpfs -o size=1m none \"$2\"; \
                cp /tmp/podspawn-state-$$/state.db* \"$2\"; rm -r /tmp/podspawn-state-$$; \
                mkdir \"$2/sessions\" \"$2/spool\" \"$2/images\"; cat /dev/zero > \"$2/hog\" 2>/dev/null || true";
    start(full, "state.db: its file system is full, read-only or broken");
    host.serve();
    host.ssh("ada", "true").run().ok();
    host.assert_no_session_left();
}
