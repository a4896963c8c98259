//! `scripts/package`, with dpkg and tar as those who judge what it makes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podspawn");

/// What the command says on stdout. It must succeed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn script() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/package"))
}

/// Packages the program under test into `output`: the paths of the `.deb` and of the tarball.
fn package(output: &Path, temporary: &Path) -> (PathBuf, PathBuf) {
    fs::create_dir(temporary).unwrap();
    run(script().args(["--program", PROGRAM, "--output"]).arg(output).env("TMPDIR", temporary));
    assert_eq!(fs::read_dir(temporary).unwrap().count(), 0, "it leaves nothing behind");
    let made = |end: &str| {
        let mut paths = fs::read_dir(output).unwrap().map(|entry| entry.unwrap().path());
        paths.find(|path| path.to_str().unwrap().ends_with(end)).unwrap()
    };
    (made(".deb"), made(".tar.gz"))
}

#[test]
fn packages_are_the_same_bytes_each_time_and_can_be_installed_and_purged() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (deb, tarball) = package(&at("one"), &at("one-temporary"));
    let (other_deb, other_tarball) = package(&at("another"), &at("another-temporary"));
    assert!(fs::read(&deb).unwrap() == fs::read(other_deb).unwrap(), "the .debs differ");
    assert!(fs::read(&tarball).unwrap() == fs::read(other_tarball).unwrap(), "the tarballs differ");

    // The tarball: everything is root's, and the program in it runs.
    let list = run(Command::new("tar").args(["--numeric-owner", "-tvzf"]).arg(&tarball));
    assert!(list.lines().all(|line| line.contains(" 0/0 ")), "{list}");
    fs::create_dir(at("unpacked")).unwrap();
    run(Command::new("tar").arg("-xzf").arg(&tarball).args(["--strip-components=1", "-C"]).arg(at("unpacked")));
    let version = run(Command::new(PROGRAM).arg("version"));
    assert_eq!(run(Command::new(at("unpacked/podspawn")).arg("version")), version);
    for name in
        ["systemd/podspawn.socket", "man/man1/podspawn-add-user.1", "completions/zsh/vendor-completions/_podspawn"]
    {
        assert!(at("unpacked").join(name).exists(), "{name}");
    }

    // The .deb, in a root of its own, where what it depends on is not.
    let root = at("root");
    for name in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "var/log"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    for name in ["status", "available"] {
        fs::write(root.join("var/lib/dpkg").join(name), "").unwrap();
    }
    let dpkg = || {
        let mut command = Command::new("dpkg");
        command.arg("--root").arg(&root).arg("--force-depends");
        command
    };
    run(dpkg().arg("--install").arg(&deb));
    assert_eq!(run(Command::new(root.join("usr/bin/podspawn")).arg("version")), version);
    for name in ["lib/systemd/system/podspawn.service", "usr/share/man/man1/podspawn.1.gz"] {
        assert!(root.join(name).exists(), "{name}");
    }
    // What bash completes with what was installed.
    let completed = "COMP_WORDS=(podspawn add-); COMP_CWORD=1; . \"$1\"; _podspawn podspawn add- podspawn; echo \"${COMPREPLY[*]}\"";
    let script = root.join("usr/share/bash-completion/completions/podspawn");
    assert_eq!(run(Command::new("bash").args(["-c", completed, "bash"]).arg(script)), "add-user add-project\n");
    assert_eq!(run(dpkg().args(["--verify", "podspawn"])), "", "what is installed has the checksums it should have");
    run(dpkg().args(["--purge", "podspawn"]));
    let left = run(Command::new("find").arg(&root).args(["-name", "*podspawn*"]));
    assert_eq!(left, "");
}

#[test]
fn what_is_no_program_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    for (arguments, status, says) in [
        (vec!["--program", "/etc/passwd"], 1, "/etc/passwd is for neither x86_64 nor aarch64"),
        (vec!["--program", "/nowhere"], 1, "/nowhere is not a file"),
        (vec!["--program"], 2, "--program needs a value"),
        (vec!["--colour", "red"], 2, "unknown argument --colour"),
    ] {
        let output = script().args(["--output"]).arg(directory.path()).args(&arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}
