//! The process that git runs in on the host, as `podspawn git` directly: what it can reach, and that nothing of it stays.

mod common;

use std::{
    fs::{self, File},
    os::fd::OwnedFd,
    os::unix::fs::chown,
    path::Path,
    process::{Child, Command, Stdio},
};

use common::{GitServer, Output, Run, binary, eventually};
use podspawn::sys::spawn::give_fds;

const NOBODY: u32 = 65_534;

struct Sandbox {
    directory: tempfile::TempDir,
    /// A network namespace and what `/etc/resolv.conf` is to be in it.
    network: Option<(OwnedFd, &'static str)>,
    /// What `/etc/hosts` is to be.
    hosts: Option<&'static str>,
}

impl Sandbox {
    fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("podspawn-test-").tempdir().unwrap();
        let work = directory.path().join("work");
        fs::create_dir(&work).unwrap();
        chown(&work, Some(NOBODY), Some(NOBODY)).unwrap();
        Self { directory, network: None, hosts: None }
    }

    fn work(&self) -> std::path::PathBuf {
        self.directory.path().join("work")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.arg("git").arg(NOBODY.to_string());
        let mut fds = vec![OwnedFd::from(File::open(self.work()).unwrap())];
        if let Some((netns, resolv_conf)) = &self.network {
            fds.push(netns.try_clone().unwrap());
            command.args(["resolv-conf", resolv_conf]);
        }
        command.args(self.hosts.into_iter().flat_map(|hosts| ["hosts", hosts]));
        command.arg("--").args(arguments);
        give_fds(&mut command, fds);
        command
    }

    fn git(&self, arguments: &[&str]) -> Output {
        let mut run = Run::new(binary());
        run.command = self.command(arguments);
        run.run()
    }

    /// A shell where git would be.
    fn shell(&self, script: &str) -> Output {
        self.git(&["-c", &format!("alias.x=!{script}"), "x"])
    }
}

#[test]
fn git_is_nobody_and_writes_its_directory_only() {
    let sandbox = Sandbox::new();
    sandbox.shell("id -u; id -g; id -G").ok().stdout("65534\n65534\n65534\n");
    let status = sandbox.shell("cat /proc/self/status").ok().text();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".to_owned(), "2".to_owned()));
    sandbox.shell("pwd; touch mine; ls").ok().stdout("/tmp/work\nmine\n");
    assert!(sandbox.work().join("mine").exists());
    // Where everybody may write otherwise, with and without a sticky bit.
    for place in ["/tmp", "/var/tmp", "/dev/shm", "/tmp/home"] {
        sandbox.shell(&format!("touch {place}/mine")).status(1);
    }
    let secret = sandbox.directory.path().join("secret");
    fs::write(&secret, "x").unwrap();
    sandbox.shell(&format!("cat {}", secret.display())).status(1).stderr_has("No such file");
}

#[test]
fn git_sees_no_other_process_and_no_way_to_more_rights() {
    let sandbox = Sandbox::new();
    let own = sandbox.shell("ls -d /proc/[0-9]* | wc -l").ok().text().trim().parse::<u32>().unwrap();
    assert!(own < 10, "{own} processes");
    sandbox.shell("unshare --user id").status(1).stderr_has("Operation not permitted");
    let environment = sandbox.shell("env").ok().text();
    assert!(environment.contains("HOME=/tmp/home\n") && !environment.contains("CARGO"), "{environment}");
    sandbox.shell("ls /proc/self/fd").ok().stdout("0\n1\n2\n3\n");
}

#[test]
fn git_has_no_transport_that_runs_programs_or_reads_the_hosts_files() {
    let sandbox = Sandbox::new();
    for url in ["file:///etc", "ext::id", "fd::7"] {
        let output = sandbox.git(&["clone", "--", url, "."]);
        output.status(128).stderr_has("not allowed");
    }
}

#[test]
fn all_that_git_has_started_ends_with_whoever_started_it() {
    let sandbox = Sandbox::new();
    let mark = sandbox.work().join("pid");
    // Out of its process group, and with a parent that is not waited for.
    let script = "alias.x=!(setsid sleep 4321 &) ; touch pid; sleep 4321";
    let mut command = sandbox.command(&["-c", script, "x"]);
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    eventually("it runs", || mark.exists() && sleepers(&sandbox) == 2);
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("nothing of it is left", || sleepers(&sandbox) == 0);
}

/// Processes that work in the sandbox's directory.
fn sleepers(sandbox: &Sandbox) -> usize {
    use std::os::unix::fs::MetadataExt;
    let inode = fs::metadata(sandbox.work()).unwrap().ino();
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let works_there = |path: &Path| {
        let there = fs::metadata(path.join("cwd")).is_ok_and(|meta| meta.ino() == inode);
        there && fs::read(path.join("cmdline")).is_ok_and(|line| line.starts_with(b"sleep\0"))
    };
    processes.filter(|path| works_there(path)).count()
}

/// `git daemon` in a network namespace of its own, which is what keeps it there.
struct Apart(Child);

impl Apart {
    fn start(repositories: &Path) -> Self {
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "sh", "-c"])
            // Not by way of git, which would be its parent and die alone.
            .arg(
                "ip link set lo up
                exec \"$(git --exec-path)/git-daemon\" --export-all --reuseaddr --listen=127.0.0.1 --base-path=. .",
            )
            .current_dir(repositories)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn netns(&self) -> OwnedFd {
        File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap().into()
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn in_a_network_namespace_git_reaches_what_that_reaches() {
    let git = GitServer::start();
    let repository = git.repository("web", &[("file", "content")]);
    let apart = Apart::start(repository.path().parent().unwrap());
    let listening = || {
        let tcp = fs::read_to_string(format!("/proc/{}/net/tcp", apart.0.id())).unwrap_or_default();
        tcp.contains(" 0100007F:24CA ") // 127.0.0.1:9418
    };
    eventually("git daemon listens there", listening);
    let mut sandbox = Sandbox::new();
    sandbox.network = Some((apart.netns(), "nameserver 192.0.2.1\n"));
    sandbox.shell("cat /etc/resolv.conf").ok().stdout("nameserver 192.0.2.1\n");
    sandbox.git(&["ls-remote", &repository.url]).status(128);
    sandbox.git(&["clone", "-q", "git://127.0.0.1/web", "."]).ok();
    assert_eq!(fs::read_to_string(sandbox.work().join("file")).unwrap(), "content");
}

#[test]
fn git_may_be_given_the_only_names_that_it_knows() {
    let mut sandbox = Sandbox::new();
    sandbox.hosts = Some("192.0.2.7\tgit.example\n");
    sandbox.shell("getent ahostsv4 git.example | head -n 1 | cut -d ' ' -f 1").ok().stdout("192.0.2.7\n");
    sandbox.shell("getent hosts localhost").status(2);
    sandbox.shell("id -un").ok().stdout("nobody\n");
}

#[test]
fn git_is_gone_when_what_it_was_started_by_has_ended_as_asked() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.command(&["-c", "alias.x=!touch pid; sleep 4322", "x"]);
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    eventually("it runs", || sandbox.work().join("pid").exists() && sleepers(&sandbox) == 1);
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(sleepers(&sandbox), 0);
}
