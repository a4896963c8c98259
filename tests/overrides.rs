//! What the administrator says about single users.

mod common;

use std::fs;

use common::{GitServer, Host, Image, eventually};

fn say(host: &Host, user: &str, text: &str) {
    let directory = host.root.join("etc/podspawn/users");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join(format!("{user}.yaml")), text).unwrap();
}

#[test]
fn a_users_own_settings_win_over_defaults_and_change_nothing_for_others() {
    let host = Host::new().user("ada").user("bob").config("defaults:\n  shell: /bin/sh").start();
    let text = "shell: /bin/ash\nenv: {WHO: \"${PODSPAWN_USER}\", ONE: \"1\"}\npids: 12\nmode: grace-period\n";
    say(&host, "ada", text);
    let print = "echo $SHELL $WHO $ONE";
    host.ssh("ada", print).run().ok().stdout("/bin/ash ada 1\n");
    host.ssh("bob", print).run().ok().stdout("/bin/sh\n");
    let many = "for i in $(seq 16); do sleep 60 > /dev/null 2>&1 & done; echo all";
    host.ssh("ada", many).run().status(2).stderr_has("can't fork");
    host.ssh("bob", many).run().ok().stdout("all\n");
    eventually("only ada's session is left, in grace", || {
        let sessions = host.sessions();
        sessions.len() == 1 && sessions[0]["user"] == "ada" && sessions[0]["status"] == "grace"
    });
    // A change counts for the next session.
    say(&host, "ada", "user: root\n");
    host.ssh("ada", "id -u").run().ok().stdout("1000\n");
    host.podspawn(["stop", "ada"]).run().ok();
    eventually("it is removed", || host.sessions().is_empty());
    host.ssh("ada", "id -u").run().ok().stdout("0\n");
    host.assert_no_session_left();
}

#[test]
fn a_users_own_settings_win_over_a_podfile_but_its_image_and_mode_stay() {
    let host = Host::new().user("ada").start();
    let git = GitServer::start();
    let podfile = "base: localhost/busybox:test\nshell: /bin/sh\nmode: destroy-on-disconnect\nenv: {A: podfile, B: podfile, C: podfile}\n";
    let repository = git.repository("web", &[("podfile.yaml", podfile)]);
    host.podspawn(["add-project", "web", "--repo", &repository.url]).run().ok();
    say(
        &host,
        "ada",
        "image: localhost/other:1\nshell: /bin/ash\nmode: grace-period\nenv: {B: ada, C: \"\", D: ada}\n",
    );
    host.ssh("ada+web", "echo $SHELL $A $B [$C] $D").run().ok().stdout("/bin/ash podfile ada [] ada\n");
    host.assert_no_session_left();

    // The list of projects has the last word on the mode.
    let list = host.root.join("etc/podspawn/projects.yaml");
    let text = fs::read_to_string(&list).unwrap();
    fs::write(&list, format!("{text}  mode: grace-period\n")).unwrap();
    host.ssh("ada+web", "true").run().ok();
    eventually("it is in grace", || host.sessions().first().is_some_and(|session| session["status"] == "grace"));
}

#[test]
fn a_users_image_is_that_of_sessions_without_a_project() {
    let host = Host::new().user("ada").user("bob").start();
    let tar = host.scratch().join("busybox.tar");
    let reference = Image::Busybox.reference();
    host.podspawn(["image", "export", reference, tar.to_str().unwrap()]).run().ok();
    host.podspawn(["image", "import", tar.to_str().unwrap(), "localhost/adas:1"]).run().ok();
    say(&host, "ada", "image: localhost/adas:1\nmode: grace-period\n");
    host.ssh("ada", "true").run().ok();
    assert_eq!(host.sessions()[0]["image"], "localhost/adas:1");
    let plain = host.ssh("ada+unknown", "echo $PODSPAWN_PROJECT").run();
    plain.ok().stdout("unknown\n").stderr_has("project unknown is not registered here");
    assert!(host.sessions().iter().all(|session| session["image"] == "localhost/adas:1"), "{:?}", host.sessions());
}

#[test]
fn settings_that_are_not_valid_end_the_login_and_only_the_log_says_why() {
    let host = Host::new().user("ada").user("bob").start();
    let ada = |text: &str, why: &str| {
        say(&host, "ada", text);
        let output = host.ssh("ada", "true").run();
        output.status(125).stderr_has("its log tells the administrator why");
        assert!(!output.stderr.contains(why), "{output}");
        eventually("the log says why", || host.log().contains(why));
        host.podspawn(["config", "check"]).run().status(1).stderr_has(why);
    };
    ada("memroy: 1g\n", "ada.yaml:1:1: memroy: unknown field; did you mean memory?");
    ada("disk: 5k\n", "ada.yaml:1:7: disk: \"5k\" is not between 16m and 16t");
    let file = host.root.join("etc/podspawn/users/ada.yaml");
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/etc/shadow", &file).unwrap();
    host.ssh("ada", "true").run().status(125);
    host.ssh("bob", "true").run().ok();
}
