//! What cannot be done is said in one clear line, and changes nothing.

mod common;

use std::{
    fs,
    net::TcpListener,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Stdio,
};

use common::{Host, Run, Stream, binary, command::finish};

/// `podspawn serve` that is expected to end by itself.
#[track_caller]
fn assert_not_started(host: &Host, reason: &str) {
    let before = files(&host.root);
    let mut command = host.server_command();
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = finish("podspawn serve", child);
    output.status(1).stdout("");
    // What the machine lacks is not what is refused.
    let said: Vec<_> = output.stderr.lines().filter(|line| !line.contains(" WARN sessions get ")).collect();
    assert!(said.len() == 1 && said[0].starts_with("podspawn: "), "one line expected: {output}");
    assert!(said[0].contains(reason), "{reason:?} expected: {output}");
    assert_eq!(files(&host.root), before, "something was changed");
}

/// Every file below `directory`, and what a change of it would change. The lock names whoever tried last.
fn files(directory: &Path) -> Vec<String> {
    let mut find = Run::new("find").arg(directory);
    find = find.args(["(", "-name", "podspawn.lock", "-o", "-type", "d", "-printf", "%p %m %U\n", ")", "-o"]);
    let output = find.args(["-printf", "%p %m %U %s %T@\n"]).run();
    let mut lines: Vec<_> = output.ok().text().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// A host whose server has run, so that everything is there.
fn used_host() -> Host {
    let mut host = Host::new().user("ada").start();
    host.ssh("ada", "true").run().ok();
    host.assert_no_session_left();
    host.end(nix::sys::signal::Signal::SIGINT);
    host
}

fn edit(host: &Host, from: &str, to: &str) {
    let config = fs::read_to_string(host.config_file()).unwrap();
    assert!(config.contains(from), "{config}");
    fs::write(host.config_file(), config.replace(from, to)).unwrap();
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused_with_file_and_field() {
    let host = used_host();
    let config = fs::read_to_string(host.config_file()).unwrap();
    let last = config.lines().count() + 1;
    let misspelt =
        format!("security: unknown field `pids_limits` at line {last} column 12; did you mean `pids_limit`?");
    for (line, reason) in [
        ("sesion: {}", "unknown field `sesion` at line"),
        ("security: {pids_limits: 5}", misspelt.as_str()),
        ("security: {pids_limit: many}", "security.pids_limit: invalid type: string \"many\""),
        ("security: {pids_limit: 2}", "security.pids_limit is not valid: no session works with fewer than 8 processes"),
        ("security: {cap_add: [SYS_ADMIN]}", "security.cap_add is not valid"),
        ("resources: {max_per_user: -1}", "resources.max_per_user: invalid type"),
        ("network: {pool: 10.0.0.1/8}", "network.pool is not valid: \"10.0.0.1/8\" is not an IPv4 network"),
        ("network: {dns: [localhost]}", "network.dns is not valid"),
        ("network: {egress: everywhere}", "network.egress is not valid: \"everywhere\" is not one of"),
        ("builds: {step_timeout: soon}", "builds.step_timeout is not valid: \"soon\" is not a duration"),
        ("metrics: [", "config.yaml: "),
        ("listen: 1.2.3.4", "duplicate"),
    ] {
        fs::write(host.config_file(), format!("{config}{line}\n")).unwrap();
        assert_not_started(&host, reason);
        // Everything else that reads it says the same.
        let check = host.podspawn(["config", "check"]).run();
        check.status(1).stderr_has(reason);
    }
    fs::remove_file(host.config_file()).unwrap();
    fs::create_dir(host.config_file()).unwrap();
    assert_not_started(&host, "cannot read the configuration");
    let absent = host.podspawn(["serve", "--config", "/nonexistent"]).run();
    absent
        .status(1)
        .stderr("podspawn: cannot read the configuration /nonexistent: No such file or directory (os error 2)\n");
    fs::remove_dir(host.config_file()).unwrap();
}

#[test]
fn a_port_in_use_is_named() {
    let host = used_host();
    let _taken = TcpListener::bind((host.address, Host::PORT)).unwrap();
    assert_not_started(&host, &format!("cannot listen on {}:{}: Address already in use", host.address, Host::PORT));
}

#[test]
fn a_second_server_on_the_same_root_is_refused_and_the_first_one_goes_on() {
    let host = Host::new().user("ada").start();
    let ada = Stream::start(&host, "ada");
    let second = finish("podspawn serve", host.server_command().stderr(Stdio::piped()).spawn().unwrap());
    let expected =
        format!("podspawn: another podspawn (pid {}) already runs with {}\n", host.pid(), host.root.display());
    second.status(1).stderr_has(&expected);
    ada.flows();
    host.ssh("ada", "hostname").run().ok().stdout("ada\n");
    ada.finish();
    host.assert_no_session_left();
}

#[test]
fn somebody_who_is_not_root_is_told() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // A copy, as the built one may be where nobody else can reach it.
    let program = directory.path().join("podspawn");
    fs::copy(binary(), &program).unwrap();
    let root = directory.path().join("root");
    fs::create_dir_all(&root).unwrap();
    let mut run = Run::new(&program).arg("--root").arg(&root).arg("serve");
    run.command.uid(65_534).gid(65_534).current_dir("/");
    run.run().status(1).stderr("podspawn: podspawn serve must run as root\n");
    assert_eq!(fs::read_dir(root).unwrap().count(), 0);
}

#[test]
fn a_host_key_that_others_can_read_or_that_is_none_is_refused() {
    let host = used_host();
    let key = host.root.join("etc/podspawn/host_keys/ssh_host_ed25519_key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert_not_started(
        &host,
        &format!("{} is readable for others than root (mode 644); run: chmod 600", key.display()),
    );
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&key, "nothing of the kind").unwrap();
    assert_not_started(&host, &format!("{} is not an unencrypted private key", key.display()));
}

#[test]
fn a_database_of_a_newer_version_is_refused() {
    let host = used_host();
    host.sql("pragma user_version = 99");
    assert_not_started(&host, "was written by a newer podspawn (schema 99");
    fs::remove_file(host.root.join("var/lib/podspawn/state.db")).unwrap();
}

/// A file system of its own, unmounted when it goes out of scope.
struct Mount(PathBuf);

impl Mount {
    fn new(arguments: &[&str], at: &Path) -> Self {
        Run::new("mount").args(arguments).arg(at).run().ok();
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        Run::new("umount").arg(&self.0).run().ok();
    }
}

#[test]
fn a_state_directory_that_cannot_be_written_is_named() {
    let host = used_host();
    let state = host.root.join("var/lib/podspawn");
    let _mount = Mount::new(&["--bind", &state.display().to_string()], &state);
    Run::new("mount").args(["-o", "remount,bind,ro"]).arg(&state).run().ok();
    assert_not_started(&host, &state.display().to_string());
}

#[test]
fn an_image_that_is_absent_or_no_name_ends_the_login_with_one_line() {
    let host = Host::new().no_image().user("ada").config("defaults:\n  image: localhost:1/absent:1").start();
    let refused = host.ssh("ada", "true").run();
    refused
        .status(125)
        .stdout("")
        .stderr_has("podspawn: image localhost:1/absent:1 is not here and cannot be pulled: ");
    edit(&host, "localhost:1/absent:1", "\"no image\"");
    host.ssh("ada", "true")
        .run()
        .status(125)
        .stderr_has("podspawn: image name \"no image\" in the configuration is not valid: ");
    // An image without a shell.
    let tree = host.scratch().join("tree");
    fs::create_dir_all(tree.join("bin")).unwrap();
    let tar = host.scratch().join("empty.tar");
    Run::new("tar").args(["--owner=0", "--group=0", "-C"]).arg(&tree).arg("-cf").arg(&tar).arg(".").run().ok();
    host.podspawn(["image", "import"]).arg(&tar).arg("localhost/empty:1").run().ok();
    edit(&host, "\"no image\"", "localhost/empty:1");
    host.ssh("ada", "true").run().status(127).stderr_has("podspawn: /bin/sh: No such file or directory");
    assert_eq!(host.ssh("ada", "true").run().stderr.lines().count(), 1);
    host.assert_no_session_left();
}

#[test]
fn a_full_disk_ends_a_login_with_one_line_and_no_other_session() {
    let directory = tempfile::tempdir().unwrap();
    let _disk = Mount::new(&["-t", "tmpfs", "-o", "size=40m", "podspawn-test"], directory.path());
    let mut host = Host::new().root(&directory.path().join("root")).user("ada").user("bob").start();
    let bob = Stream::start(&host, "bob");
    let hog = directory.path().join("hog");
    Run::new("sh").args(["-c", "cat /dev/zero > \"$1\"; true", "sh"]).arg(&hog).run().ok();
    let refused = host.ssh("ada", "true").run();
    refused.status(125).stdout("");
    assert!(refused.stderr.starts_with("podspawn: ") && refused.stderr.lines().count() == 1, "{refused}");
    assert!(refused.stderr.contains("full") || refused.stderr.contains("No space left on device"), "{refused}");
    let import = host.podspawn(["image", "import"]).arg(common::images::busybox_tar()).arg("localhost/other:1").run();
    import.status(1).stderr_has("No space left on device");
    bob.flows();
    host.assert_only_left(&["bob"]);
    fs::remove_file(&hog).unwrap();
    host.ssh("ada", "hostname").run().ok().stdout("ada\n");
    // A session that fills the disk itself is removed like any other.
    host.ssh("ada", "cat /dev/zero > hog").run().status(1).stderr_has("No space left on device");
    host.assert_only_left(&["bob"]);
    bob.finish();
    host.assert_no_session_left();
    host.end(nix::sys::signal::Signal::SIGINT);
    drop(host);
}
