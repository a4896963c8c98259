//! Copies and synchronisation by programs that run something at our end: scp, rsync and git, with the real clients.

mod common;

use std::{fs, net::Ipv4Addr, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use common::{Host, Image, Run, Sshd, eventually, ssh, tree, write_old};

/// How scp is called: with SFTP, or with what it used before.
const MODES: [&[&str]; 2] = [&["-s"], &["-O"]];

/// A client with ada's key, in the directory `local`; `HOST` in arguments is where she logs in.
fn client(host: &Host, address: Ipv4Addr, local: &Path, program: &str, arguments: &[&str]) -> Run {
    let mut run = Run::new(program);
    let options = ssh::options(host).into_iter().flat_map(|option| ["-o".to_owned(), option]);
    let key = host.key("ada").display().to_string();
    let options: Vec<_> = ["-F", "none", "-i", &key].map(str::to_owned).into_iter().chain(options).collect();
    let ssh = format!("ssh {}", options.join(" "));
    match program {
        "scp" => run = run.args(options),
        "rsync" => run = run.args(["-e", &ssh]),
        _ => run = run.env("GIT_SSH_COMMAND", ssh),
    }
    run.command.current_dir(local).env_remove("SSH_AUTH_SOCK").env("HOME", local);
    let at = format!("ada@{address}");
    run.args(arguments.iter().map(|argument| argument.replace("HOST", &at)))
}

/// Files with old times and different modes, below `local`/`from`.
fn furnish(local: &Path) {
    fs::create_dir_all(local.join("from/dir/below")).unwrap();
    for (name, contents, mode) in [
        ("plain", "text\n".to_owned(), 0o644),
        ("empty", String::new(), 0o600),
        ("with space", "spaced".to_owned(), 0o640),
        ("star*", "starred".to_owned(), 0o644),
        ("dir/executable", "#!/bin/sh\n".repeat(50_000), 0o755),
        ("dir/below/unwritable", "deep".to_owned(), 0o444),
    ] {
        let path = local.join("from").join(name);
        write_old(&path, contents);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(local.join("from/dir/below"), fs::Permissions::from_mode(0o750)).unwrap();
}

/// A session is destroyed when its last connection ends; this one keeps it.
struct Held(std::process::Child);

impl Held {
    fn new(host: &Host) -> Self {
        Self(host.ssh("ada", "cat").spawn())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

#[test]
fn copies_come_out_as_with_sshd() {
    // What is copied there, and back; `TO` is an empty directory at the client's.
    const CALLS: &[&[&str]] = &[
        &["from/plain", "HOST:"],
        &["HOST:plain", "TO"],
        &["from/plain", "from/empty", "HOST:."],
        &["-p", "from/empty", "HOST:preserved"],
        &["-p", "HOST:preserved", "TO/named"],
        &["-r", "from/dir", "HOST:copied"],
        &["-r", "HOST:copied", "TO"],
        &["-r", "from/dir", "HOST:copied"],
        &["-rp", "from", "HOST:/home/ada/everything"],
        &["-rp", "HOST:everything", "TO"],
        &["-q", "HOST:everything/e*", "TO"],
        &["HOST:everything/*", "TO"],
        &["HOST:everything/with\\ space", "TO"],
        &["HOST:~/plain", "TO/tilde"],
        &["HOST:plain", "HOST:nothing", "HOST:empty", "TO"],
        &["HOST:everything/dir", "TO"],
        &["from/dir", "HOST:"],
        &["from/plain", "HOST:no/such/directory"],
        &["from/plain", "from/empty", "HOST:plain"],
        &["from/plain", "HOST:/etc/passwd"],
        &["HOST:*.nothing", "TO"],
        &["HOST:/dev/null", "TO"],
        &["-r", "HOST:everything/dir/below", "HOST:everything/empty", "TO"],
    ];
    let host = Host::new().user("ada").start();
    let sshd = Sshd::start(&host);
    let _held = Held::new(&host);
    for mode in MODES {
        let local = tempfile::tempdir().unwrap();
        furnish(local.path());
        for call in CALLS {
            let [ours, theirs] = [host.address, sshd.address].map(|address| {
                let to = local.path().join("to");
                fs::create_dir(&to).unwrap();
                let arguments: Vec<_> = mode.iter().chain(*call).map(|word| word.replace("TO", "to")).collect();
                let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
                let output = client(&host, address, local.path(), "scp", &arguments).run();
                let result = (output.status, output.stderr.replace(&address.to_string(), "ADDRESS"), tree(&to));
                fs::remove_dir_all(&to).unwrap();
                result
            });
            assert_eq!(ours, theirs, "podspawn first: scp {mode:?} {call:?}");
        }
        // What sshd's ada got from /etc/skel begins with a dot.
        let list =
            "cd && find [a-z]* -type f -exec sha256sum {} + | sort && find [a-z]* -exec stat -c '%n %A' {} + | sort";
        let ours = host.ssh("ada", list).run();
        ours.ok().stdout_has("everything/dir/below/unwritable -r--r--r--");
        host.ssh("ada", list).at(sshd.address).run().ok().stdout(&ours.text());
    }
}

#[test]
fn a_large_file_is_copied_by_both_modes() {
    let host = Host::new().user("ada").start();
    let _held = Held::new(&host);
    let local = tempfile::tempdir().unwrap();
    let contents: Vec<u8> = (0..100_000_000_u32).map(|n| (n % 255) as u8 ^ (n >> 16) as u8).collect();
    fs::write(local.path().join("large"), &contents).unwrap();
    for mode in MODES {
        let run = |call: [&str; 2]| {
            let arguments: Vec<_> = mode.iter().copied().chain(call).collect();
            client(&host, host.address, local.path(), "scp", &arguments)
                .deadline(Duration::from_secs(300))
                .run()
                .ok()
                .status
        };
        run(["large", "HOST:large"]);
        run(["HOST:large", "back"]);
        assert!(fs::read(local.path().join("back")).unwrap() == contents, "scp {mode:?} brings back another file");
        fs::remove_file(local.path().join("back")).unwrap();
    }
}

#[test]
fn what_the_image_has_not_is_named() {
    let host = Host::new().user("ada").start();
    let local = tempfile::tempdir().unwrap();
    fs::write(local.path().join("file"), "").unwrap();
    let run = |program: &str, arguments: &[&str]| client(&host, host.address, local.path(), program, arguments).run();
    let rsync = run("rsync", &["-a", "file", "HOST:"]);
    // rsync exits with 127 if it learns of that in time.
    assert!(matches!(rsync.status, Some(127 | 12)), "{rsync}");
    rsync.stderr_has("podspawn: the image of this session has no rsync: ");
    let clone = run("git", &["clone", "HOST:repo", "repo"]);
    clone.status(128).stderr_has("podspawn: the image of this session has no git: ");
    // Of ssh itself: one line, on stderr.
    for command in ["git-receive-pack '/repo'", "rsync --server -logDtpre.iLsfxCIvu . dir"] {
        let ssh = host.ssh("ada", command).run();
        ssh.status(127).stdout("");
        assert_eq!(ssh.stderr.lines().count(), 1, "{ssh}");
    }
    // Others are the shell's.
    host.ssh("ada", "git status").run().status(127).stderr_has("git: not found");
}

#[test]
fn an_scp_of_the_image_is_used() {
    let host = Host::new().user("ada").image(Image::Debian).start();
    let mut copying = host.ssh("ada", "scp -t file").spawn();
    let programs = || host.ssh("ada", "readlink /proc/[0-9]*/exe").run().text();
    eventually("the image's scp runs", || programs().lines().any(|program| program == "/usr/bin/scp"));
    drop(copying.stdin.take());
    assert!(copying.wait().unwrap().success());
}

#[test]
fn rsync_synchronises_in_both_directions() {
    let host = Host::new().user("ada").image(Image::Debian).start();
    let _held = Held::new(&host);
    let local = tempfile::tempdir().unwrap();
    furnish(local.path());
    let run = |arguments: &[&str]| client(&host, host.address, local.path(), "rsync", arguments).run();
    run(&["-az", "from/", "HOST:synced/"]).ok();
    run(&["-a", "--checksum", "HOST:synced/", "back/"]).ok();
    assert_eq!(tree(&local.path().join("from")), tree(&local.path().join("back")));
    fs::remove_file(local.path().join("from/plain")).unwrap();
    run(&["-a", "--delete", "--itemize-changes", "from/", "HOST:synced/"]).ok().stdout_has("*deleting   plain");
    host.ssh("ada", "ls synced").run().ok().stdout("dir\nempty\nstar*\nwith space\n");
}

#[test]
fn git_pushes_to_and_clones_from_a_session() {
    let host = Host::new().user("ada").image(Image::Debian).start();
    let _held = Held::new(&host);
    let local = tempfile::tempdir().unwrap();
    furnish(local.path());
    host.ssh("ada", "git init -q --bare -b main repo.git").run().ok();
    let git = |arguments: &[&str]| {
        let identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.invalid", "-c", "init.defaultBranch=main"];
        let arguments: Vec<_> = identity.iter().chain(arguments).copied().collect();
        client(&host, host.address, local.path(), "git", &arguments).run()
    };
    git(&["init", "-q", "from"]).ok();
    git(&["-C", "from", "add", "."]).ok();
    git(&["-C", "from", "commit", "-q", "-m", "all"]).ok();
    git(&["-C", "from", "push", "-q", "HOST:repo.git", "main"]).ok();
    git(&["clone", "-q", "HOST:repo.git", "back"]).ok();
    let read = |directory: &str| fs::read(local.path().join(directory).join("dir/executable")).unwrap();
    assert_eq!(read("from"), read("back"));
    git(&["-C", "back", "fetch", "-q", "HOST:nothing.git"]).status(128).stderr_has("'nothing.git'");
}
