//! Clients other than OpenSSH: a command with its status and streams, files, a forward. A client that is not there fails
//! its test.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use common::{Host, Image, Run, eventually, ssh::make_key};

const PORT: &str = "2222";

/// What `scripts/test-clients` has installed.
fn installed(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients").join(path);
    assert!(path.exists(), "{} is not there; run scripts/test-deps", path.display());
    path
}

/// A script of ours that drives one of them.
fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

fn python() -> Run {
    Run::new(installed("python/bin/python"))
}

fn ada() -> Host {
    Host::new().user("ada").start()
}

/// For clients that connect several times and expect their files to be there still.
const LASTING: &str = "session:\n  mode: grace-period";

/// A file of random bytes.
fn random_file(host: &Host, name: &str) -> PathBuf {
    let path = host.scratch().join(name);
    let status = Command::new("sh").args(["-c", "head -c 3000000 /dev/urandom > \"$0\""]).arg(&path).status().unwrap();
    assert!(status.success());
    path
}

#[track_caller]
fn assert_same(one: &Path, other: &Path) {
    assert!(fs::read(one).unwrap() == fs::read(other).unwrap(), "{} {}", one.display(), other.display());
}

/// A program that runs until it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

/// Ends with status 42, having echoed its input and complained.
const COMMAND: &str = "cat; echo error >&2; exit 42";

#[test]
fn paramiko_does_the_basics_and_rsa_keys_sign_with_sha_2_only() {
    let host = ada();
    let rsa = host.scratch().join("rsa");
    make_key(&rsa, &["-t", "rsa", "-b", "2048", "-m", "PEM"]);
    let wrong = host.scratch().join("wrong");
    make_key(&wrong, &["-t", "ed25519"]);
    host.podspawn(["add-user", "ada", "--key-file"]).arg(rsa.with_extension("pub")).run().ok();
    let run = python().arg(script("with_paramiko.py")).args([&host.address.to_string(), PORT, "ada"]);
    run.arg(host.key("ada")).args([&rsa, &wrong]).run().ok();
}

#[test]
fn asyncssh_does_the_basics() {
    let host = ada();
    let run = python().arg(script("with_asyncssh.py")).args([&host.address.to_string(), PORT, "ada"]);
    run.arg(host.key("ada")).run().ok();
}

#[test]
fn nodes_ssh2_does_the_basics() {
    let host = ada();
    let run = Run::new("node").arg(script("with_ssh2.js")).arg(installed("node/node_modules"));
    run.args([&host.address.to_string(), PORT, "ada"]).arg(host.key("ada")).run().ok();
}

#[test]
fn dropbears_dbclient_does_the_basics() {
    let host = ada();
    let key = host.scratch().join("dropbear");
    Run::new("dropbearconvert").args(["openssh", "dropbear"]).arg(host.key("ada")).arg(&key).run().ok();
    let dbclient = || {
        // -y twice: the host key is not looked at.
        let run = Run::new("dbclient").env("HOME", host.scratch()).args(["-y", "-y", "-i"]).arg(&key);
        run.args(["-p", PORT])
    };
    let ada = format!("ada@{}", host.address);
    let output = dbclient().arg(&ada).arg(COMMAND).input("from here\n").run();
    output.status(42).stdout("from here\n").stderr_has("error");
    let tunnel = dbclient().args(["-L", &format!("{}:7004:localhost:7004", host.address), &ada]);
    let _tunnel = Running(tunnel.arg("nc -l -p 7004 -e cat").spawn());
    assert_echoes(&host, 7004);
}

/// Waits until something on the port of the host's own address echoes what is sent there.
#[track_caller]
fn assert_echoes(host: &Host, port: u16) {
    use std::{
        io::{Read, Write},
        net::{Shutdown, TcpStream},
    };
    let attempt = || {
        let mut stream = TcpStream::connect((host.address, port))?;
        stream.write_all(b"through the tunnel")?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    eventually("the forward echoes", || attempt().is_ok_and(|answer| answer == "through the tunnel"));
}

/// The host's key as PuTTY wants it on the command line.
fn fingerprint(host: &Host) -> String {
    let key = host.root.join("etc/podspawn/host_keys/ssh_host_ed25519_key.pub");
    let shown = Run::new("ssh-keygen").arg("-lf").arg(key).run();
    shown.text().split(' ').nth(1).unwrap().to_owned()
}

#[test]
fn puttys_plink_and_psftp_do_the_basics() {
    let host = ada();
    let key = host.scratch().join("ada.ppk");
    Run::new("puttygen").arg(host.key("ada")).args(["-O", "private", "-o"]).arg(&key).run().ok();
    let hostkey = fingerprint(&host);
    let putty = |program: &str| {
        let run = Run::new(program).env("HOME", host.scratch()).args(["-batch", "-P", PORT, "-i"]).arg(&key);
        run.args(["-hostkey", &hostkey])
    };
    let ada = format!("ada@{}", host.address);
    let output = putty("plink").args([&ada, COMMAND]).input("from here\n").run();
    output.status(42).stdout("from here\n").stderr_has("error");
    putty("plink").args(["-t", &ada, "tty"]).run().ok().stdout_has("/dev/pts/");
    let (mine, back) = (random_file(&host, "mine"), host.scratch().join("back"));
    let batch = host.scratch().join("batch");
    let (from, to) = (mine.display(), back.display());
    fs::write(&batch, format!("put {from} file\nget file {to}\nls\nrm file\n")).unwrap();
    putty("psftp").arg("-b").arg(&batch).arg(&ada).run().ok().stdout_has("file");
    assert_same(&mine, &back);
    let tunnel = putty("plink").args(["-L", &format!("{}:7005:localhost:7005", host.address), &ada]);
    let _tunnel = Running(tunnel.arg("nc -l -p 7005 -e cat").spawn());
    assert_echoes(&host, 7005);
}

#[test]
fn curl_carries_files() {
    let host = Host::new().user("ada").config(LASTING).start();
    let (mine, back) = (random_file(&host, "mine"), host.scratch().join("back"));
    let run = python().arg(script("with_pycurl.py")).args([&host.address.to_string(), PORT, "ada"]);
    run.arg(host.key("ada")).args([&mine, &back]).run().ok().stdout_has("libssh2/1.11");
    assert_same(&mine, &back);
}

/// Debian 12's libssh2 is 1.10.
#[test]
fn an_older_curl_carries_files_when_the_algorithms_are_compatible() {
    let host = Host::new().user("ada").config(LASTING).config("auth:\n  algorithms: compatible").start();
    let (mine, back) = (random_file(&host, "mine"), host.scratch().join("back"));
    let curl = |url: &str| {
        let url = format!("sftp://ada@{}:{PORT}{url}", host.address);
        let run = Run::new("curl").args(["--silent", "--show-error", "--insecure", "--key"]).arg(host.key("ada"));
        run.arg("--pubkey").arg(host.scratch().join("ada.key.pub")).arg(url)
    };
    curl("/~/file").arg("-T").arg(&mine).run().ok();
    curl("/~/file").arg("-o").arg(&back).run().ok();
    assert_same(&mine, &back);
    curl("/~/absent").run().status(78);
}

#[test]
fn sshfs_mounts_a_home_directory() {
    assert!(Path::new("/dev/fuse").exists(), "this machine has no /dev/fuse, so that sshfs cannot be tried");
    let host = ada();
    let mount = host.scratch().join("mount");
    fs::create_dir(&mount).unwrap();
    let mut sshfs = Command::new("sshfs");
    sshfs.arg(format!("ada@{}:", host.address)).arg(&mount).args([
        "-f",
        "-o",
        &format!("IdentityFile={}", host.key("ada").display()),
    ]);
    for option in common::ssh::options(&host) {
        sshfs.args(["-o", &option]);
    }
    // A command of its own, so that the session stays when sshfs is gone.
    let mounted = Running(sshfs.env_remove("SSH_AUTH_SOCK").stdout(Stdio::null()).spawn().unwrap());
    eventually("it is mounted", || fs::read_to_string("/proc/mounts").unwrap().contains(mount.to_str().unwrap()));
    let mine = random_file(&host, "mine");
    fs::copy(&mine, mount.join("copy")).unwrap();
    fs::rename(mount.join("copy"), mount.join("renamed")).unwrap();
    assert_same(&mine, &mount.join("renamed"));
    let sum = |output: common::Output| output.text().split(' ').next().unwrap().to_owned();
    let inside = sum(host.ssh("ada", "sha256sum renamed").run());
    assert_eq!(inside, sum(Run::new("sha256sum").arg(&mine).run()));
    fs::remove_file(mount.join("renamed")).unwrap();
    Run::new("fusermount3").arg("-u").arg(&mount).run().ok();
    drop(mounted);
}

/// ssh with its options as one word, for programs that start it themselves.
fn remote_shell(host: &Host) -> String {
    let options = common::ssh::options(host);
    let options: Vec<_> = options.iter().map(|option| format!("-o {option}")).collect();
    format!("ssh -F none -i {} {}", host.key("ada").display(), options.join(" "))
}

#[test]
fn rsync_and_git_work_where_the_image_has_them() {
    let host = Host::new().user("ada").image(Image::Debian).config(LASTING).start();
    let ada = format!("ada@{}", host.address);
    let shell = remote_shell(&host);
    let tree = host.scratch().join("tree");
    fs::create_dir(&tree).unwrap();
    let mine = random_file(&host, "tree/mine");
    let rsync = |from: &str, to: &str| Run::new("rsync").args(["-a", "-e", &shell, from, to]).run();
    rsync(&format!("{}/", tree.display()), &format!("{ada}:there/")).ok();
    rsync(&format!("{ada}:there/"), &format!("{}/back/", host.scratch().display())).ok();
    assert_same(&mine, &host.scratch().join("back/mine"));
    let git = |arguments: &[&str]| {
        let run = Run::new("git").env("GIT_SSH_COMMAND", &shell).env("GIT_CONFIG_GLOBAL", "/dev/null");
        let run = run.args(["-c", "user.name=ada", "-c", "user.email=ada@example.org", "-C"]).arg(&tree);
        run.args(arguments).run()
    };
    host.ssh("ada", "git init --quiet --bare origin.git").run().ok();
    git(&["init", "--quiet", "--initial-branch=main"]).ok();
    git(&["add", "mine"]).ok();
    git(&["commit", "--quiet", "--message=one"]).ok();
    git(&["push", "--quiet", &format!("{ada}:origin.git"), "main"]).ok();
    let clone = host.scratch().join("clone");
    git(&["clone", "--quiet", "--branch=main", &format!("{ada}:origin.git"), clone.to_str().unwrap()]).ok();
    assert_same(&mine, &clone.join("mine"));
}

#[test]
fn ansible_pings() {
    let host = Host::new().user("ada").image(Image::Debian).config(LASTING).start();
    let run = Run::new("ansible").args(["all", "--inventory", &format!("{},", host.address), "--module-name", "ping"]);
    let run = run.args(["--user", "ada", "--private-key"]).arg(host.key("ada"));
    let options: Vec<_> = common::ssh::options(&host).iter().map(|option| format!("-o {option}")).collect();
    let run = run.args(["--ssh-common-args", &format!("-F none {}", options.join(" "))]);
    // Its own files go there.
    let run = run.env("ANSIBLE_HOME", host.scratch()).env("ANSIBLE_LOCAL_TEMP", host.scratch().join("ansible"));
    let run = run.env("HOME", host.scratch()).env("ANSIBLE_SSH_ARGS", "");
    run.run().ok().stdout_has("\"ping\": \"pong\"");
}
