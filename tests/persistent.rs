//! Sessions that live until they are stopped, and homes that outlive them.

mod common;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
};

use common::{Host, Image, Run, Stream, eventually};
use nix::sys::signal::Signal;

const PERSISTENT: &str = "session:\n  mode: persistent\n  max_lifetime: 2s";

fn home(host: &Host, user: &str) -> PathBuf {
    host.root.join("var/lib/podspawn/homes").join(user)
}

/// The session that nobody is connected to any more, and that stays all the same.
fn left_alone(host: &Host) -> serde_json::Value {
    let alone = || {
        let sessions = host.sessions();
        sessions.into_iter().find(|session| session["connections"] == 0 && session["status"] == "running")
    };
    eventually("nobody is connected", || alone().is_some());
    alone().unwrap()
}

fn stop(host: &Host, session: &str) {
    host.podspawn(["stop", session]).run().ok();
    host.assert_no_session_left();
}

#[test]
fn a_persistent_session_stays_until_it_is_stopped_and_its_home_after_that() {
    let mut host = Host::new().user("ada").config(PERSISTENT).start();
    let id = host.ssh("ada", "echo 1 > kept; echo 1 > /tmp/lost; echo $PODSPAWN_SESSION").run().ok().text();
    let session = left_alone(&host);
    assert_eq!(session["id"], id.trim());
    assert_eq!((&session["mode"], &session["lifetime_seconds"]), (&"persistent".into(), &serde_json::Value::Null));
    // Longer than others may live.
    host.ssh("ada", "sleep 3; cat kept /tmp/lost; echo $PODSPAWN_SESSION").run().ok().stdout(&format!("1\n1\n{id}"));
    // The next server finds it, with nobody connected.
    host.end(Signal::SIGTERM);
    host.serve();
    assert_eq!(left_alone(&host)["id"], id.trim());
    host.ssh("ada", "cat /tmp/lost; echo $PODSPAWN_SESSION").run().ok().stdout(&format!("1\n{id}"));
    stop(&host, "ada");

    host.ssh("ada", "cat kept; cat /tmp/lost; chmod 700 .").run().status(0).stdout("1\n").stderr_has("/tmp/lost");
    left_alone(&host);
    // The next boot finds no process of it.
    host.end(Signal::SIGKILL);
    host.sql("update sessions set boot_id = 'of another boot'");
    host.serve();
    host.assert_no_session_left();
    host.ssh("ada", "cat kept; stat -c %a .").run().ok().stdout("1\n700\n");
    stop(&host, "ada");
}

#[test]
fn a_users_sessions_share_the_home_and_nobody_else_gets_to_it() {
    let host = Host::new().image(Image::Debian).user("ada").user("bob").config(PERSISTENT).start();
    // Both are the first to come.
    let both = [Stream::start(&host, "ada"), Stream::start(&host, "ada+web")];
    let skel = host.ssh("ada", "cmp .bashrc /etc/skel/.bashrc; ls -A; stat -c %U:%G . .bashrc").run().ok().text();
    assert!(skel.contains(".bashrc\n") && skel.ends_with("ada:ada\nada:ada\n"), "{skel}");
    host.ssh("ada", "echo secret > kept; chmod 600 kept; sudo touch roots; sudo chmod 4755 roots").run().ok();
    host.ssh("ada+web", "cat kept; stat -c %U roots").run().ok().stdout("secret\nroot\n");
    let bobs = host.ssh("bob", "ls /home; sudo cat /home/ada/kept").run();
    bobs.stdout_has("bob\n").stderr_has("No such file or directory");
    both.into_iter().for_each(Stream::finish);
    for (name, owner) in [("kept", 1000), ("roots", 0), (".bashrc", 1000), ("", 1000)] {
        assert_eq!(fs::metadata(home(&host, "ada").join(name)).unwrap().uid(), owner, "{name:?}");
    }
    let mode = fs::metadata(home(&host, "ada").parent().unwrap()).unwrap().mode() & 0o7777;
    assert_eq!(mode, 0o700, "no user of the server gets to a set-user-id program");
    host.podspawn(["stop", "--all"]).run().ok();
    host.assert_no_session_left();
    assert!(!home(&host, "bob").join("kept").exists());
}

#[test]
fn only_persistent_sessions_have_the_home_and_a_user_may_be_the_only_one() {
    let host = Host::new().user("ada").user("bob").start();
    let users = host.root.join("etc/podspawn/users");
    fs::create_dir_all(&users).unwrap();
    fs::write(users.join("ada.yaml"), "mode: persistent\n").unwrap();
    host.ssh("ada", "echo 1 > kept").run().ok();
    host.ssh("bob", "echo 1 > kept").run().ok();
    host.assert_only_left(&["ada"]);
    assert!(!home(&host, "bob").exists());
    stop(&host, "ada");
    fs::write(users.join("ada.yaml"), "mode: destroy-on-disconnect\n").unwrap();
    host.ssh("ada", "ls").run().ok().stdout("");
    fs::write(users.join("ada.yaml"), "mode: persistent\nuser: root\n").unwrap();
    host.assert_no_session_left();
    host.ssh("ada", "pwd; cat kept; echo 2 > kept").run().ok().stdout("/root\n1\n");
    stop(&host, "ada");
    fs::write(users.join("ada.yaml"), "mode: persistent\n").unwrap();
    host.ssh("ada", "cat kept; touch more").run().ok().stdout("2\n");
    stop(&host, "ada");
}

#[test]
fn a_home_may_have_a_limit_and_homes_that_others_can_enter_are_not_used() {
    let host = Host::new().user("ada").config(PERSISTENT).start();
    let home = home(&host, "ada");
    fs::create_dir_all(&home).unwrap();
    fs::set_permissions(home.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    let refused = host.ssh("ada", "true").run();
    refused
        .status(125)
        .stderr("podspawn: your home directory cannot be used; the server's log tells the administrator why\n");
    eventually("the log says why", || host.log().contains("chown it to root and chmod it to 0700"));
    host.assert_no_session_left();
    fs::set_permissions(home.parent().unwrap(), fs::Permissions::from_mode(0o700)).unwrap();
    Run::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "podspawn-test"]).arg(&home).run().ok();
    let full = host.ssh("ada", "head -c 2m /dev/zero > big; stat -c %s big").run();
    full.ok().stdout(&format!("{}\n", 1 << 20)).stderr_has("head: standard output: ");
    stop(&host, "ada");
    Run::new("umount").arg(&home).run().ok();
}
