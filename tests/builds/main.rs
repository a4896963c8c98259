//! Images of Podfiles: what is built, what is not built again, and what a build leaves.

mod apk;
#[path = "../common/mod.rs"]
mod common;
mod dnf;
mod languages;
mod packages;
mod shared;

use std::{fs, path::PathBuf, process::Child};

use common::{GitServer, Host, Output, Run, command::finish, eventually};
use nix::sys::signal::Signal;

const BUSYBOX: &str = "localhost/busybox:test";

/// Writes a Podfile for the host.
fn podfile(host: &Host, name: &str, text: &str) -> PathBuf {
    let file = host.scratch().join(format!("{name}.yaml"));
    fs::write(&file, text).unwrap();
    file
}

/// A Podfile on busybox with these commands.
fn commands(host: &Host, name: &str, commands: &[&str]) -> PathBuf {
    let list: Vec<String> = commands.iter().map(|command| format!("  - {command:?}\n")).collect();
    podfile(host, name, &format!("base: {BUSYBOX}\nextra_commands:\n{}", list.concat()))
}

fn prebuild(host: &Host, file: &std::path::Path, more: &[&str]) -> Output {
    host.podspawn(["prebuild", "--podfile"]).arg(file).args(more).run()
}

/// Starts a build and does not wait for it.
fn begin(host: &Host, file: &std::path::Path) -> Child {
    host.podspawn(["prebuild", "--podfile"]).arg(file).spawn()
}

/// What the files of an image are, as `tar` lists them.
fn listing(host: &Host, image: &str) -> String {
    let tar = host.scratch().join("exported.tar");
    host.podspawn(["image", "export", image]).arg(&tar).run().ok();
    Run::new("tar").args(["--numeric-owner", "-tvf"]).arg(&tar).run().ok().text()
}

fn built(host: &Host) -> Vec<String> {
    let images = host.json(["image", "ls", "--all"]);
    let steps = images.as_array().unwrap().iter().filter_map(|image| image["step"].as_str().map(str::to_owned));
    steps.collect()
}

#[test]
fn a_step_is_done_once_and_a_change_counts_from_there_on() {
    let host = Host::new().start();
    let first = prebuild(&host, &commands(&host, "a", &["echo 1 > /one", "echo 2 > /two", "echo 3 > /three"]), &[]);
    first.ok().stderr_has("step 1/3: run echo 1").stderr_has("step 3/3: run echo 3");
    let image = first.text();

    // A comment, or something that is not in the image, changes nothing.
    let text = fs::read_to_string(host.scratch().join("a.yaml")).unwrap();
    let same = podfile(&host, "b", &format!("# Why.\n{text}\non_start: date\n"));
    prebuild(&host, &same, &[]).ok().stdout(&image).stderr("");

    let changed = commands(&host, "c", &["echo 1 > /one", "echo zwei > /two", "echo 3 > /three"]);
    let second = prebuild(&host, &changed, &[]);
    second.ok().stderr_has("step 2/3: run echo zwei").stderr_has("step 3/3: run echo 3");
    assert!(!second.stderr.contains("step 1/3"), "{second}");
    assert_ne!(second.text(), image);
    assert_eq!(built(&host).len(), 5);
    host.podspawn(["image", "ls"]).run().ok();
    assert_eq!(host.json(["image", "ls"]).as_array().unwrap().len(), 1);
}

#[test]
fn a_session_gets_what_was_built_and_nothing_of_the_build() {
    let host = Host::new().user("ada").start();
    let steps = [
        "mkdir /opt && echo kept > /opt/file && chmod 4755 /bin/busybox",
        "echo $HOME $A \"${PODSPAWN_USER-none}\" > /opt/environment; id -u >> /opt/environment; pwd >> /opt/environment",
        "rm /opt/file /etc/group && mkdir /opt/other && chown 33:44 /opt/other && ln /opt/environment /opt/link",
    ];
    let file = commands(&host, "made", &steps);
    let text = fs::read_to_string(&file).unwrap() + "env:\n  A: b c\n";
    fs::write(&file, text).unwrap();
    prebuild(&host, &file, &["--tag", "localhost/made:1"]).ok();
    let images = host.json_of(["image", "inspect", "localhost/made:1"]);
    let first = images["layers"][2]["name"].as_str().unwrap();
    let etc = fs::read_dir(host.images().join("layers").join(first).join("etc"));
    assert_eq!(etc.into_iter().flatten().count(), 0, "the step has changed nothing there");

    let config = fs::read_to_string(host.config_file()).unwrap();
    fs::write(host.config_file(), config.replace(BUSYBOX, "localhost/made:1")).unwrap();

    let command =
        "cat /opt/environment; stat -c '%a %u' /bin/busybox; stat -c %u:%g /opt/other; ls /opt; stat -c %h /opt/link";
    let seen = "/root b c none\n0\n/\n4755 0\n33:44\nenvironment\nlink\nother\n2\n";
    host.ssh("ada", command).run().ok().stdout(seen);

    let listing = listing(&host, "localhost/made:1");
    for runtime in
        ["etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/group", " ./dev", " ./proc", " ./sys", "opt/file"]
    {
        assert!(!listing.contains(runtime), "{runtime} in\n{listing}");
    }
    assert!(listing.contains("33/44") && listing.contains("-rwsr-xr-x 0/0"), "{listing}");
}

#[test]
fn a_step_that_fails_shows_its_end_and_leaves_nothing() {
    let host = Host::new().start();
    let steps = ["echo 1 > /one", "for i in $(seq 30); do echo line $i; done; echo why >&2; exit 7", "echo 3 > /three"];
    let file = commands(&host, "fails", &steps);
    let output = prebuild(&host, &file, &[]);
    output
        .status(1)
        .stderr_has("step 2/3: run for i in")
        .stderr_has("it ended with status 7")
        .stderr_has("| line 30\n");
    output.stderr_has("| why\n");
    assert!(!output.stderr.contains("line 3\n") && !output.stderr.contains("step 3/3: run echo 3\n"), "{output}");
    assert_eq!(built(&host), ["run echo 1 > /one"]);
    host.assert_no_session_left();
    let layers = || fs::read_dir(host.images().join("layers")).unwrap().count();
    assert_eq!(layers(), 2);
    // What a shell or a signal says is passed on as well.
    prebuild(&host, &commands(&host, "killed", &["kill -9 $$"]), &[]).status(1).stderr_has("it was ended by signal 9");
    let file = podfile(&host, "shell", &format!("base: {BUSYBOX}\nshell: /bin/no\nextra_commands: [id]\n"));
    prebuild(&host, &file, &[]).status(1).stderr_has("/bin/no");
    assert_eq!(layers(), 2);
}

#[test]
fn a_step_has_its_time_and_its_limits() {
    let config = "builds:\n  step_timeout: 2s\ndefaults:\n  memory: 64m\nsecurity:\n  pids_limit: 32";
    let host = Host::new().config(config).start();
    let output = prebuild(&host, &commands(&host, "slow", &["echo first; sleep 1000"]), &[]);
    output.status(1).stderr_has("it was ended after 2s").stderr_has("| first\n");
    // One process, so that there is no other for the kernel to choose.
    let output = prebuild(&host, &commands(&host, "large", &["dd if=/dev/zero of=/dev/null bs=200M count=1"]), &[]);
    output.status(1).stderr_has("step 1/1");
    host.assert_no_session_left();
    assert!(built(&host).is_empty());
}

#[test]
fn who_comes_while_it_is_built_waits_for_the_same_build() {
    let host = Host::new().start();
    // Two builds would not be the same.
    let file = commands(&host, "shared", &["cat /proc/sys/kernel/random/uuid > /once; sleep 2", "echo 2 > /two"]);
    let builds: Vec<Child> = (0..3).map(|_| begin(&host, &file)).collect();
    let outputs: Vec<Output> = builds.into_iter().map(|build| finish("a build", build)).collect();
    for output in &outputs {
        output.ok().stdout(&outputs[0].text()).stderr_has("step 1/2").stderr_has("step 2/2");
    }
    // Other plans that begin with the same step wait for it as well.
    let step = "cat /proc/sys/kernel/random/uuid > /twice; sleep 2";
    let files = ["echo a > /a", "echo b > /b"].map(|last| commands(&host, &last[5..6], &[step, last]));
    let builds = files.map(|file| begin(&host, &file));
    for build in builds {
        finish("a build", build).ok();
    }
    let steps = built(&host);
    assert_eq!(steps.iter().filter(|step| step.contains("/twice")).count(), 1);
    let same = |text: &str| {
        let images = host.json(["image", "ls", "--all"]);
        let images = images.as_array().unwrap();
        let image = images.iter().find(|image| image["step"] == *format!("run echo {text} > /{text}")).unwrap();
        image["layers"].as_array().unwrap()[1..].to_vec()
    };
    assert_eq!(same("a"), same("b"), "both are on top of one layer");
}

#[test]
fn a_build_goes_on_without_those_who_wait_for_it() {
    let host = Host::new().start();
    let file = commands(&host, "left", &["sleep 2; echo 1 > /one"]);
    let mut left = begin(&host, &file);
    eventually("the step runs", || host.sql("select count(*) from sessions where kind = 'build'").trim() == "1");
    left.kill().unwrap();
    left.wait().unwrap();
    eventually("it is built", || !built(&host).is_empty());
    host.assert_no_session_left();
}

#[test]
fn a_server_that_dies_over_a_build_leaves_nothing_to_the_next() {
    let mut host = Host::new().start();
    let file = commands(&host, "cut", &["echo 1 > /one", "echo 2 > /two; sleep 1000"]);
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT] {
        let build = begin(&host, &file);
        eventually("the second step runs", || {
            let inits = common::leaks::inits(&podspawn::names::InstanceTag::of_root(&host.root));
            inits.len() == 1 && built(&host).len() == 1
        });
        host.end(signal);
        let output = finish("a build whose server has ended", build);
        assert_ne!(output.status, Some(0), "{output}");
        if signal != Signal::SIGKILL {
            host.assert_no_session_left();
        }
        host.serve();
        host.assert_no_session_left();
    }
    assert_eq!(built(&host), ["run echo 1 > /one"]);
    // What is unfinished is in nobody's way.
    let other = commands(&host, "after", &["echo 1 > /one", "echo 2 > /two"]);
    let output = prebuild(&host, &other, &[]);
    output.ok().stderr_has("step 2/2");
    assert!(!output.stderr.contains("step 1/2"), "{output}");
    host.podspawn(["doctor"]).run().ok();
}

#[test]
fn without_a_server_nothing_is_built() {
    let host = Host::new().prepare();
    let file = commands(&host, "x", &["id"]);
    prebuild(&host, &file, &[]).status(1).stderr_has("podspawn is not running").stderr_has("podspawn serve");
    let file = podfile(&host, "bad", "bas: x\n");
    prebuild(&host, &file, &[]).status(1).stderr_has("bad.yaml:1:1: ").stderr_has("is not valid");
    let tag = ["--tag", "oci:/x"];
    prebuild(&host, &commands(&host, "y", &["id"]), &tag).status(1).stderr_has("cannot be the name of a new one");
}

#[test]
fn two_users_who_connect_at_once_get_one_build_and_a_container_each() {
    let host = Host::new().user("ada").user("bob").start();
    let git = GitServer::start();
    // Two builds would not write the same.
    let steps = "extra_commands:\n  - cat /proc/sys/kernel/random/uuid > /once; sleep 3\n";
    let repository = git.repository("backend", &[("podfile.yaml", &format!("base: {BUSYBOX}\n{steps}"))]);
    host.podspawn(["add-project", "backend", "--repo", &repository.url]).run().ok();
    let command = "cat /once; echo $PODSPAWN_SESSION";
    let clients = ["ada+backend", "bob+backend"].map(|login| host.ssh(login, command).spawn());
    let outputs = clients.map(|client| finish("a client", client));
    let lines: Vec<Vec<String>> =
        outputs.iter().map(|output| output.ok().text().lines().map(str::to_owned).collect()).collect();
    assert_eq!(lines[0][0], lines[1][0]);
    assert_ne!(lines[0][1], lines[1][1]);
    assert!(outputs.iter().all(|output| output.stderr.contains("podspawn: step 1/1: run cat")), "{}", outputs[0]);
    // From here on nobody waits, nor hears of it.
    let again = host.ssh("ada+backend", "cat /once").run();
    again.ok().stdout(&format!("{}\n", lines[0][0]));
    assert!(!again.stderr.contains("step"), "{again}");

    repository.commit(&[("podfile.yaml", &format!("base: {BUSYBOX}\n{steps}  - echo so it is; exit 3\n"))]);
    host.podspawn(["update-project", "backend"]).run().ok();
    let failed = host.ssh("ada+backend", "true").run();
    failed
        .status(125)
        .stdout("")
        .stderr_has("step 2/2: run echo so it is; exit 3: it ended with status 3\n  | so it is\n");
    host.ssh("ada", "echo elsewhere").run().ok().stdout("elsewhere\n");
}
