//! Volumes of services: what they begin with, how long they last, and which directories of the server may be among them.

mod common;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, lchown, symlink},
    path::Path,
};

use common::{GitServer, Host, Output, Run, eventually, images::busybox_tree, snapshot};

fn podfile(services: &str) -> String {
    format!("base: localhost/busybox:test\nservices:\n{services}")
}

/// Makes a project of a repository that has this Podfile.
fn project(host: &Host, git: &GitServer, name: &str, podfile: &str) {
    let repository = git.repository(name, &[("podfile.yaml", podfile)]);
    host.podspawn(["add-project", name, "--repo", &repository.url]).run().ok();
}

fn refused(output: &Output, message: &str) {
    output.status(125).stdout("").stderr_has(message);
}

/// A service that notes in its volume that it was started, and that it was asked to end.
fn noting(volume: &str) -> String {
    format!(
        "  - name: notes\n    image: localhost/busybox:test\n    ports: [80]\n    volumes: [{volume}]\n    \
         command: [sh, -c, 'trap \"echo ended >> /notes/all; exit\" TERM; echo started >> /notes/all; id >> /notes/all; \
         httpd -f -p 80 -h /notes & wait']\n"
    )
}

#[test]
fn a_volume_with_a_name_outlives_the_session_and_its_service_ends_in_peace() {
    let host = Host::new().user("ada").user("bob").start();
    let git = GitServer::start();
    let text = noting("{name: data, path: /notes}");
    project(&host, &git, "kept", &format!("mode: grace-period\n{}", podfile(&text)));
    let read = |user: &str| host.ssh(&format!("{user}+kept"), "wget -qO- http://notes/all").run().ok().text();
    assert_eq!(read("ada").lines().next(), Some("started"));
    host.podspawn(["stop", "ada@kept"]).run().ok();
    // At once: it waits for the one that ends.
    let again = read("ada");
    let lines: Vec<_> = again.lines().filter(|line| !line.starts_with("uid=")).collect();
    assert_eq!(lines, ["started", "ended", "started"]);
    assert!(again.contains("uid=0(root)"), "{again}");
    assert_eq!(read("bob").lines().filter(|line| *line == "started").count(), 1, "bob has one of his own");
    for user in ["ada", "bob"] {
        host.podspawn(["stop", &format!("{user}@kept")]).run().ok();
    }
    eventually("all are gone", || host.sessions().is_empty());
    host.assert_no_session_left();
    // Whichever ids the sessions had, on disk they are those inside.
    let file = host.root.join("var/lib/podspawn/volumes/ada/kept/data/all");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(file).unwrap()), 0);
}

#[test]
fn a_volume_goes_with_a_session_that_is_destroyed_unless_it_is_kept() {
    let host = Host::new().user("ada").start();
    let git = GitServer::start();
    let text = noting("{name: gone, path: /notes}, {name: kept, path: /kept, keep: true}")
        .replace("echo started", "echo started >> /kept/all; cp /kept/all /notes/kept; echo started");
    project(&host, &git, "some", &podfile(&text));
    let read = || host.ssh("ada+some", "wget -qO- http://notes/all; wget -qO- http://notes/kept").run().ok().text();
    let count = |text: String| text.matches("started").count();
    assert_eq!((count(read()), count(read())), (2, 3));
    host.assert_no_session_left();
    let volumes = host.root.join("var/lib/podspawn/volumes/ada/some");
    assert_eq!(entries(&volumes), ["kept"]);
}

#[test]
fn directories_of_the_server_are_mounted_where_the_administrator_allows_it() {
    let shared = tempfile::tempdir().unwrap();
    let path = shared.path().display().to_string();
    fs::create_dir(shared.path().join("notes")).unwrap();
    std::os::unix::fs::symlink("/etc", shared.path().join("link")).unwrap();
    let host = Host::new().user("ada").config(&format!("volumes:\n  allow: [{path}]")).start();
    let git = GitServer::start();
    let with = |volume: &str| podfile(&noting(volume));
    project(&host, &git, "allowed", &with(&format!("\"{path}/notes:/notes\"")));
    host.ssh("ada+allowed", "wget -qO- http://notes/all").run().ok().stdout_has("started");
    assert!(fs::read_to_string(shared.path().join("notes/all")).unwrap().starts_with("started"));
    for (name, volume, why) in [
        ("outside", "\"/etc:/notes\"".to_owned(), "the administrator has not allowed /etc as a volume"),
        ("through", format!("\"{path}/link:/notes\""), "there is a symbolic link on the way to it"),
        ("hidden", "\"data:/proc/x\"".to_owned(), "mount a volume on /proc/x"),
        ("whole", "\"data:/dev/shm\"".to_owned(), "mount a volume on /dev/shm"),
    ] {
        project(&host, &git, name, &with(&volume));
        refused(&host.ssh(&format!("ada+{name}"), "true").run(), why);
        host.assert_no_session_left();
    }
}

/// An image with busybox and something in `/data`, where a link leads.
fn install_filled(host: &Host) {
    let tree = host.scratch().join("tree");
    fs::create_dir(&tree).unwrap();
    busybox_tree(&tree);
    let data = tree.join("data");
    fs::create_dir_all(data.join("deep/er")).unwrap();
    fs::write(data.join("deep/er/file"), "from the image").unwrap();
    fs::write(data.join("setuid"), "s").unwrap();
    fs::hard_link(data.join("setuid"), data.join("deep/same")).unwrap();
    symlink("../elsewhere", data.join("link")).unwrap();
    for owned in [&data, &data.join("deep"), &data.join("setuid")] {
        chown(owned, Some(7), Some(8)).unwrap();
    }
    lchown(data.join("link"), Some(7), Some(8)).unwrap();
    fs::set_permissions(data.join("setuid"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o750)).unwrap();
    symlink("/data", tree.join("var/data")).unwrap();
    let tar = host.scratch().join("tree.tar");
    Run::new("tar")
        .args(["--numeric-owner", "--format=posix", "-C"])
        .arg(&tree)
        .arg("-cf")
        .arg(&tar)
        .arg(".")
        .run()
        .ok();
    host.podspawn(["-q", "image", "import"]).arg(&tar).arg("localhost/filled:test").run().ok();
}

#[test]
fn a_new_volume_begins_with_what_the_image_has_there() {
    let host = Host::new().user("ada").start();
    install_filled(&host);
    let git = GitServer::start();
    let service = |volumes: &str| {
        podfile(&format!(
            "  - name: web\n    image: localhost/filled:test\n    ports: [80]\n    user: '7:8'\n    volumes: [{volumes}]\n    \
             command: [sh, -c, 'cat $IN/deep/er/file >> $IN/deep/log; rm $IN/setuid; httpd -f -p 80 -h $IN']\n    env: {{IN: /var/data}}\n"
        ))
    };
    let read = |project: &str| host.ssh(&format!("ada+{project}"), "wget -qO- http://web/deep/log").run().ok().text();
    project(&host, &git, "kept", &service("{name: data, path: /var/data, keep: true}"));
    assert_eq!(read("kept"), "from the image");
    host.assert_no_session_left();
    // The second time it is the service's own, with what was removed from it.
    let volume = host.root.join("var/lib/podspawn/volumes/ada/kept/data");
    assert!(!volume.join("setuid").exists());
    assert_eq!(read("kept"), "from the imagefrom the image");
    host.assert_no_session_left();
    assert_eq!(entries(volume.parent().unwrap()), ["data"]);

    project(&host, &git, "gone", &service("'data:/var/data'"));
    assert_eq!(read("gone"), "from the image");
    assert_eq!(read("gone"), "from the image");
    host.assert_no_session_left();

    // Everything is as in the image, to the nanosecond.
    project(
        &host,
        &git,
        "same",
        &service("{name: data, path: /data, keep: true, read_only: true}, {name: bin, path: /new, keep: true}"),
    );
    host.ssh("ada+same", "true").run().ok();
    let volumes = host.root.join("var/lib/podspawn/volumes/ada/same");
    snapshot::assert_same(
        "data",
        &snapshot::of(&host.scratch().join("tree/data")),
        &snapshot::of(&volumes.join("data")),
    );
    assert_eq!(snapshot::of(&volumes.join("bin")).len(), 1, "it is not in the image");
}

fn entries(directory: &Path) -> Vec<std::ffi::OsString> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

#[test]
fn volumes_go_when_a_session_is_taken_down_for_good_and_nobody_elses_do() {
    let mut host = Host::new().user("ada").user("bob").start();
    let git = GitServer::start();
    let text = noting("{name: data, path: /notes}, {name: more, path: /more}");
    project(&host, &git, "kept", &format!("mode: grace-period\n{}", podfile(&text)));
    let started = |user: &str| {
        let all = host.ssh(&format!("{user}+kept"), "wget -qO- http://notes/all").run().ok().text();
        all.lines().filter(|line| *line == "started").count()
    };
    let volumes = host.root.join("var/lib/podspawn/volumes");
    assert_eq!((started("ada"), started("bob")), (1, 1));
    let down = |arguments: &[&str]| host.podspawn(["down", "ada@kept"]).args(arguments).run();
    down(&[]).ok().stdout("").stderr("ended the session of ada@kept\n");
    assert!(host.sessions().iter().all(|session| session["user"] == "bob"), "it is gone when that is said");
    assert_eq!(started("ada"), 2, "its volumes are not");
    down(&["--clean"]).ok().stderr("ended the session of ada@kept\nremoved its volume data\nremoved its volume more\n");
    assert_eq!(entries(&volumes.join(".removed")), [""; 0]);
    assert_eq!((started("ada"), started("bob")), (1, 1));
    down(&[]).ok();
    host.podspawn(["-q", "down", "ada@kept", "--clean"]).run().ok().stderr("");
    down(&[]).status(1).stderr("podspawn: there is no session of ada@kept\n");
    down(&["--clean"]).status(1).stderr("podspawn: there is no session of ada@kept, and no volumes\n");
    host.podspawn(["down", "bob@kept"]).run().ok();
    host.assert_no_session_left();

    // What a server has not come to remove, the next one does.
    host.end(nix::sys::signal::Signal::SIGINT);
    fs::create_dir_all(volumes.join(".removed/x/data")).unwrap();
    host.serve();
    assert!(!volumes.join(".removed").exists());
    assert!(volumes.join("bob/kept/data/all").exists());
}
