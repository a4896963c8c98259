//! What is done in a session before anybody works in it: dotfiles, repositories, hooks.

mod common;

use std::{
    fs,
    io::Read,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use common::{
    GitServer, Host, Image, Run,
    command::finish,
    eventually, ssh,
    world::{PUBLIC, World},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Adds the project `web`, whose Podfile is of busybox and has these lines.
fn add_project(host: &Host, git: &GitServer, lines: &str) {
    let podfile = format!("base: localhost/busybox:test\n{lines}");
    let repository = git.repository("web", &[("podfile.yaml", &podfile)]);
    host.podspawn(["add-project", "web", "--repo", &repository.url]).run().ok();
}

/// Runs a script in the container that is being set up, as somebody from outside.
fn inside(host: &Host, script: &str) {
    let pid = host.init("ada").to_string();
    Run::new("nsenter").args(["-t", &pid, "-U", "-m", "sh", "-c", script]).run().ok();
}

/// Waits until a client has shown `text` on its stderr; returns everything up to there.
fn shown(client: &mut Child, text: &str) -> String {
    let mut said = Vec::new();
    let mut byte = [0];
    let stderr = client.stderr.as_mut().unwrap();
    while !String::from_utf8_lossy(&said).contains(text) {
        assert_eq!(stderr.read(&mut byte).unwrap(), 1, "it ended: {}", String::from_utf8_lossy(&said));
        said.push(byte[0]);
    }
    String::from_utf8(said).unwrap()
}

/// What was said on stderr, without the lines about progress, which appear when something takes long.
fn said(stderr: &str) -> String {
    let progress = |line: &&str| {
        let text = line.strip_prefix("podspawn: ").unwrap_or_default();
        ["cloning ", "running ", "installing "].iter().any(|word| text.starts_with(word))
    };
    stderr.split_inclusive('\n').filter(|line| !progress(line)).collect()
}

/// What every client of a project is told whose image has no git.
const NO_GIT: &str = "podspawn: the image has no git, so nothing is cloned; add it: packages: [git]\n";

/// A hook that waits for a file which the test makes.
const WAITS: &str = "echo waiting >&2; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo went on";

const GRACE: &str = "session:\n  mode: grace-period\n  grace_period: 10m";

#[test]
fn hooks_run_as_the_user_before_the_command_and_are_heard_on_stderr() {
    let host = Host::new().user("ada").config(GRACE).start();
    let git = GitServer::start();
    let hooks = "env: {GIVEN: yes}\n\
         on_create: |\n  echo created by $(id -un) in $(pwd) of $PODSPAWN_PROJECT, $GIVEN\n  echo oops >&2\n  echo 1 > ~/created\n\
         on_start: |\n  echo started\n  echo 1 >> ~/started\n";
    add_project(&host, &git, hooks);
    let output = host.ssh("ada+web", "wc -l < ~/created; wc -l < ~/started; echo mine >&2").run();
    output.ok().stdout("1\n1\n");
    let created = "created by ada in /workspace/web of web, yes\noops\n";
    assert_eq!(said(&output.stderr), format!("{NO_GIT}{created}started\nmine\n"));
    let again = host.ssh("ada+web", "wc -l < ~/created; wc -l < ~/started").run();
    assert_eq!(said(&again.ok().stdout("1\n2\n").stderr), "started\n");
    let logs = |arguments: &[&str]| host.podspawn([&["logs", "ada@web"], arguments].concat()).run().ok().text();
    let all = "repos | warning: the image has no git, so nothing is cloned; add it: packages: [git]\n\
               on_create | created by ada in /workspace/web of web, yes\non_create | oops\n\
               on_start | started\non_start | started\n";
    assert_eq!(logs(&[]), all);
    assert_eq!(logs(&["on_start"]), "started\nstarted\n");
    let mut following = host.podspawn(["logs", "-f", "ada@web", "on_start"]).spawn();
    let mut kept = [0; "started\nstarted\n".len()];
    following.stdout.as_mut().unwrap().read_exact(&mut kept).unwrap();
    host.ssh("ada+web", "true").run().ok();
    host.podspawn(["stop", "ada@web"]).run().ok();
    finish("logs -f", following).ok().stdout("started\n");
    host.podspawn(["logs", "ada@web"]).run().status(1).stderr_has("there is no session of ada@web");
}

#[test]
fn a_failing_on_create_ends_the_session_with_its_output() {
    let host = Host::new().user("ada").config(GRACE).start();
    let git = GitServer::start();
    add_project(&host, &git, "on_create: echo installing; echo no such package >&2; exit 3\non_start: echo never\n");
    for _ in 0..2 {
        let output = host.ssh("ada+web", "echo never").run();
        let told = "podspawn: on_create failed with exit status 3; the session is removed\n";
        output.status(125).stdout("");
        assert_eq!(said(&output.stderr), format!("{NO_GIT}installing\nno such package\n{told}"));
        host.assert_no_session_left();
    }
    let reasons: Vec<_> = host.audit().into_iter().filter(|event| event["event"] == "container.destroy").collect();
    assert!(reasons.len() == 2 && reasons.iter().all(|event| event["reason"] == "set-up-failed"), "{reasons:?}");
    let terminal = host.ssh("ada+web", "").args(["-tt"]).run();
    terminal.status(125).stderr_has("installing\r\n").stderr_has("status 3; the session is removed\r\n");
}

#[test]
fn what_else_fails_is_told_and_gone_on_with() {
    let host = Host::new().user("ada").start();
    let git = GitServer::start();
    add_project(&host, &git, "on_create: kill -9 $$\n");
    host.ssh("ada+web", "true").run().status(125).stderr_has("on_create was ended by signal 9");
    let repository = git.repository(
        "other",
        &[("podfile.yaml", "base: localhost/busybox:test\non_start: echo hm; exit 4\nworkspace: /proc/nowhere\n")],
    );
    host.podspawn(["add-project", "other", "--repo", &repository.url]).run().ok();
    let output = host.ssh("ada+other", "echo here").run();
    output.ok().stdout("here\n").stderr_has("hm\n").stderr_has("podspawn: on_start failed with exit status 4\n");
    output.stderr_has(&format!("podspawn: cannot make /proc/nowhere for {}: ", repository.url));
}

#[test]
fn first_connections_share_one_set_up_and_all_of_them_see_it() {
    let host = Host::new().user("ada").start();
    let git = GitServer::start();
    add_project(&host, &git, &format!("on_create: {WAITS}; echo 1 >> ~/created\non_start: echo 1 >> ~/started\n"));
    let mut first = host.ssh("ada+web", "echo first; cat ~/created").spawn();
    shown(&mut first, "waiting\n");
    assert_eq!(host.sessions()[0]["status"], "creating");
    let mut second = host.ssh("ada+web", "echo second; cat ~/created").spawn();
    assert_eq!(said(&shown(&mut second, "waiting\n")), format!("{NO_GIT}waiting\n"), "from its beginning");
    inside(&host, "touch /tmp/go");
    for (name, client) in [("first", first), ("second", second)] {
        let output = finish(name, client);
        output.ok().stdout(&format!("{name}\n1\n"));
        assert_eq!(said(&output.stderr), "went on\n");
    }
    host.assert_no_session_left();
}

#[test]
fn a_set_up_goes_on_for_those_who_may_come_back() {
    let host = Host::new().user("ada").config(GRACE).start();
    let git = GitServer::start();
    add_project(&host, &git, &format!("on_create: {WAITS}; echo 1 >> ~/created\n"));
    let mut client = host.ssh("ada+web", "true").spawn();
    shown(&mut client, "waiting\n");
    let before = host.init("ada");
    client.kill().unwrap();
    client.wait().unwrap();
    eventually("nobody is connected", || host.sessions()[0]["connections"] == 0);
    inside(&host, "touch /tmp/go");
    eventually("it is in grace", || host.sessions()[0]["status"] == "grace");
    let output = host.ssh("ada+web", "cat ~/created").run();
    output.ok().stdout("1\n");
    assert_eq!(said(&output.stderr), "");
    assert_eq!(host.init("ada"), before);
    host.podspawn(["stop", "ada@web"]).run().ok();
}

#[test]
fn a_set_up_ends_with_its_last_client_where_sessions_do() {
    let host = Host::new().user("ada").start();
    let git = GitServer::start();
    add_project(&host, &git, &format!("on_create: {WAITS}\n"));
    let mut client = host.ssh("ada+web", "true").spawn();
    shown(&mut client, "waiting\n");
    client.kill().unwrap();
    client.wait().unwrap();
    host.assert_no_session_left();
    // One that is stopped says so.
    let mut client = host.ssh("ada+web", "true").spawn();
    shown(&mut client, "waiting\n");
    host.podspawn(["stop", "ada@web"]).run().ok();
    finish("a client", client).status(125).stderr_has("the session was stopped by the administrator");
    host.assert_no_session_left();
}

#[test]
fn file_transfers_wait_for_the_set_up_and_hear_nothing_of_it() {
    let host = Host::new().user("ada").start();
    let git = GitServer::start();
    add_project(&host, &git, "on_create: echo noise; echo content > ~/file\non_start: echo more noise\n");
    for old_protocol in [false, true] {
        let target = host.scratch().join("copied");
        let mut scp = Run::new("scp").args(["-F", "none", "-q", "-i"]).arg(host.key("ada"));
        if old_protocol {
            scp = scp.arg("-O");
        }
        for option in ssh::options(&host) {
            scp = scp.args(["-o", &option]);
        }
        let output = scp.arg(format!("ada+web@{}:/home/ada/file", host.address)).arg(&target).run();
        output.ok().stdout("").stderr("");
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "content\n");
        host.assert_no_session_left();
    }
}

#[test]
fn what_a_hook_leaves_running_goes_on_running() {
    let host = Host::new().user("ada").start();
    let git = GitServer::start();
    add_project(&host, &git, "on_create: (while :; do echo tick || exit; sleep 0.05; done) & echo $! > ~/pid\n");
    let alive = "i=0; while [ $i -lt 40 ]; do sleep 0.05; kill -0 $(cat ~/pid) || exit 1; i=$((i+1)); done; echo alive";
    host.ssh("ada+web", alive).run().ok().stdout("alive\n");
}

#[test]
fn a_server_that_dies_over_a_set_up_leaves_nothing_and_its_clients_are_told() {
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let mut host = Host::new().user("ada").config(GRACE).start();
        let git = GitServer::start();
        add_project(&host, &git, &format!("on_create: {WAITS}\n"));
        let mut client = host.ssh("ada+web", "true").spawn();
        shown(&mut client, "waiting\n");
        let server = Pid::from_raw(host.processes("serve")[0]);
        // Told once to leave, it waits for those who wait; told again, it does not.
        eventually("the server leaves", || host.has_ended() || kill(server, signal).is_err());
        host.serve();
        let output = finish("a client", client);
        output.status(125).stderr_has("the server was restarted before the session was ready; connect again");
        host.assert_no_session_left();
    }
}

#[test]
fn after_a_restart_on_start_runs_for_new_connections_and_for_those_that_wait_for_it() {
    let mut host = Host::new().user("ada").config(GRACE).start();
    let git = GitServer::start();
    let hooks = format!("on_create: echo 1 > ~/created\non_start: |\n  echo 1 >> ~/started; {WAITS}\n");
    add_project(&host, &git, &hooks);
    let mut client = host.ssh("ada+web", "wc -l < ~/created").spawn();
    shown(&mut client, "waiting\n");
    let before = host.init("ada");
    host.end(Signal::SIGKILL);
    host.serve();
    shown(&mut client, "waiting\n");
    inside(&host, "touch /tmp/go");
    let output = finish("a client", client);
    output.ok().stdout("1\n");
    assert_eq!(said(&output.stderr), "went on\n");
    let output = host.ssh("ada+web", "wc -l < ~/started").run();
    output.ok().stdout("3\n");
    assert_eq!(said(&output.stderr), "waiting\nwent on\n");
    assert_eq!(host.init("ada"), before);
    host.podspawn(["stop", "ada@web"]).run().ok();
}

/// A program that ends with the test.
struct Service(Child);

impl Service {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// An sshd in the internet, on port 22, that gives out the repository at `path` to the key `public`, and nothing else.
fn git_over_ssh(world: &World, host: &Host, public: &str, path: &Path) -> Service {
    let at = |name: &str| host.scratch().join(name);
    ssh::make_key(&at("sshd-key"), &["-t", "ed25519"]);
    fs::write(at("sshd-users"), format!("restrict,command=\"git-upload-pack {}\" {public}", path.display())).unwrap();
    let config = format!(
        "Port 22\nListenAddress {PUBLIC}\nHostKey {}\nPidFile none\nUsePAM no\nStrictModes no\nAuthorizedKeysFile {}\n\
         PermitRootLogin prohibit-password\nPasswordAuthentication no\n",
        at("sshd-key").display(),
        at("sshd-users").display(),
    );
    fs::write(at("sshd-config"), config).unwrap();
    fs::create_dir_all("/run/sshd").unwrap();
    let mut sshd = world.enter_with("setpriv");
    sshd.args(["--pdeathsig", "KILL", "/usr/sbin/sshd", "-D", "-e", "-f"]).arg(at("sshd-config"));
    let service = Service::start(&mut sshd);
    eventually("sshd listens", || TcpStream::connect((PUBLIC, 22)).is_ok());
    service
}

#[test]
fn dotfiles_and_repositories_are_the_users_own_clones() {
    let world = World::enter();
    let host = Host::new().image(Image::Debian).user("ada").start();
    let git = GitServer::start_in(&world);
    let tools = git.repository("tools.git", &[("tool", "one\n")]);
    tools.git(&["checkout", "-q", "-b", "next"]);
    let next = tools.commit(&[("tool", "two\n")]);
    tools.git(&["checkout", "-q", "main"]);
    let install = "#!/bin/sh\ncp profile ~/.mine\necho installed for $USER in $PWD\n";
    let dotfiles = git.repository("dotfiles", &[("profile", "mine\n"), ("install.sh", install)]);
    let podfile = format!(
        "base: \"{base}\"\n\
         dotfiles: {{repo: \"{dotfiles}\", install: sh install.sh}}\n\
         repos:\n- {{url: \"{tools}\", path: /opt/deep/tools, branch: next}}\n- {{url: \"git://{PUBLIC}/absent\", path: /srv/absent}}\n\
         on_create: cat ~/.mine /opt/deep/tools/tool; pwd\n",
        base = Image::Debian.reference(),
        dotfiles = dotfiles.url,
        tools = tools.url,
    );
    let web = git.repository("web", &[("podfile.yaml", &podfile), ("code", "here\n")]);
    host.podspawn(["add-project", "web", "--repo", &web.url]).run().ok();
    let script = "cat code; stat -c '%U %n' /workspace /workspace/web /opt /opt/deep /opt/deep/tools/tool ~/dotfiles
        cd /opt/deep/tools; git rev-parse HEAD; git branch -a; git remote get-url origin; git status --short
        git -C /workspace/web fetch && git -C /workspace/web log --format=%s";
    let output = host.ssh("ada+web", script).run();
    output.ok().stdout(&format!(
        "here\nada /workspace\nada /workspace/web\nroot /opt\nada /opt/deep\nada /opt/deep/tools/tool\n\
         ada /home/ada/dotfiles\n{next}\n* next\n  remotes/origin/next\n{}\nchange\n",
        tools.url
    ));
    let stderr = said(&output.stderr);
    let (before, after) = stderr.split_once("installed for ada in /home/ada/dotfiles\n").unwrap();
    assert_eq!(before, "");
    assert!(after.ends_with("mine\ntwo\n/workspace/web\n"), "{output}");
    let failed = format!("podspawn: git://{PUBLIC}/absent is not cloned: git failed with exit status 128\n");
    assert!(after.contains("fatal: ") && after.contains(&failed), "{output}");
}

#[test]
fn a_private_repository_is_cloned_with_the_clients_agent() {
    let world = World::enter();
    let host = Host::new().image(Image::Debian).user("ada").start();
    let git = GitServer::start_in(&world);
    let secret = git.repository("secret", &[("secret", "for ada\n")]);
    let (socket, key) = (host.scratch().join("agent"), host.scratch().join("agent-key"));
    let _agent = Service::start(Command::new("ssh-agent").args(["-D", "-a"]).arg(&socket));
    eventually("the agent listens", || socket.exists());
    ssh::make_key(&key, &["-t", "ed25519"]);
    Run::new("ssh-add").arg("-q").arg(&key).env("SSH_AUTH_SOCK", &socket).run().ok();
    let public = fs::read_to_string(key.with_extension("pub")).unwrap();
    let _sshd = git_over_ssh(&world, &host, &public, &secret.path().join(".git"));
    let podfile = format!(
        "base: \"{}\"\nrepos: [{{url: \"root@{PUBLIC}:secret\", path: /workspace/secret}}]\n\
         on_create: ssh-add -L | wc -l\non_start: ssh-add -L | wc -l\n",
        Image::Debian.reference()
    );
    let web = git.repository("web", &[("podfile.yaml", &podfile)]);
    host.podspawn(["add-project", "web", "--repo", &web.url]).run().ok();
    let with_agent = |command| host.ssh("ada+web", command).args(["-A"]).env("SSH_AUTH_SOCK", &socket);

    let output = with_agent("cat /workspace/secret/secret").run();
    output.ok().stdout("for ada\n");
    assert!(said(&output.stderr).ends_with("1\n1\n"), "on_create and on_start have the agent: {output}");
    host.assert_no_session_left();

    // A listener holds up the connection, but not what it needs for its set-up.
    let output = with_agent("cat /workspace/secret/secret").args(["-R", "0:localhost:22"]).run();
    output.ok().stdout("for ada\n");
    host.assert_no_session_left();

    // Without one nobody waits for a password.
    let output = host.ssh("ada+web", "ls -A /workspace/secret").run();
    output.ok().stdout("").stderr_has("Permission denied (publickey");
    output.stderr_has(&format!("podspawn: root@{PUBLIC}:secret is not cloned: git failed with exit status 128\n"));
}
