//! Who gets in with a key, and what the key's options let them do. With the real ssh and ssh-keygen.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use common::{
    Host, Output, Run, Ssh,
    fido::{Agent, Kind},
    ssh::make_key,
};

/// The user's key file.
fn key_file(host: &Host, user: &str) -> PathBuf {
    host.root.join("etc/podspawn/keys").join(user)
}

fn public_key(key: &Path) -> String {
    fs::read_to_string(format!("{}.pub", key.display())).unwrap().trim().to_owned()
}

/// Makes the user's key file consist of these lines.
fn write_lines(host: &Host, user: &str, lines: &[String]) {
    fs::write(key_file(host, user), lines.join("\n") + "\n").unwrap();
}

/// Makes the user's key file one line: the user's own key with these options.
fn set_options(host: &Host, user: &str, options: &str) {
    write_lines(host, user, &[format!("{options} {}", public_key(&host.key(user)))]);
}

fn with_key(host: &Host, user: &str, key: &Path) -> Ssh {
    host.ssh(user, "echo in").key(key)
}

#[track_caller]
fn assert_refused(output: &Output) {
    output.status(255).stdout("").stderr_has("Permission denied (publickey).");
}

/// Reasons of refusals in the audit log.
fn refusals(host: &Host) -> Vec<String> {
    let events = host.audit();
    let refused = events.iter().filter(|event| event["event"] == "auth.fail");
    refused.map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_wrong_key_an_unknown_user_and_a_revoked_key_get_the_same_answer() {
    let mut host = Host::new().user("ada").user("eve").config("auth:\n  revoked_keys: /nowhere").prepare();
    let revoked = host.scratch().join("revoked");
    let config = fs::read_to_string(host.config_file()).unwrap();
    fs::write(host.config_file(), config.replace("/nowhere", revoked.to_str().unwrap())).unwrap();
    fs::write(&revoked, public_key(&host.key("eve"))).unwrap();
    host.serve();
    // What the server said, as the client saw it.
    let conversation = |login: &str, key: &Path| {
        let output = with_key(&host, login, key).args(["-o", "LogLevel=DEBUG3"]).run();
        output.status(255);
        let lines = output.stderr.lines();
        let said = lines.filter(|line| line.contains("receive packet") || line.contains("can continue"));
        said.map(str::to_owned).collect::<Vec<_>>()
    };
    let wrong = host.scratch().join("wrong");
    make_key(&wrong, &["-t", "ed25519"]);
    let answer = conversation("ada", &wrong);
    assert!(answer.iter().any(|line| line.contains("can continue: publickey")), "{answer:?}");
    assert_eq!(conversation("nobody", &wrong), answer);
    assert_eq!(conversation("nobody", &host.key("ada")), answer);
    assert_eq!(conversation("../keys/ada", &host.key("ada")), answer);
    assert_eq!(conversation("eve", &host.key("eve")), answer);
    // But the administrator can tell them apart.
    assert_eq!(
        refusals(&host),
        [
            "the user's key file does not have it",
            "the user has no key file",
            "the user has no key file",
            "it is not for a valid login name",
            "it is revoked"
        ]
    );
    host.ssh("ada", "echo in").run().ok().stdout("in\n");
}

#[test]
fn while_the_list_of_revoked_keys_cannot_be_read_nobody_logs_in() {
    let host = Host::new().user("ada").config("auth:\n  revoked_keys: /nowhere/revoked").start();
    assert_refused(&host.ssh("ada", "true").run());
    assert!(refusals(&host)[0].starts_with("whether it is revoked cannot be told: the list of revoked keys /nowhere/"));
    host.podspawn(["config", "check"])
        .run()
        .status(1)
        .stderr_has("the list of revoked keys /nowhere/revoked is not there");
}

#[test]
fn keys_added_and_removed_count_from_the_next_login_on() {
    let host = Host::new().user("ada").start();
    let second = host.scratch().join("second");
    make_key(&second, &["-t", "ed25519"]);
    assert_refused(&with_key(&host, "ada", &second).run());
    host.podspawn(["add-user", "ada", "--key", &public_key(&second)]).run().ok();
    with_key(&host, "ada", &second).run().ok();
    host.ssh("ada", "true").run().ok();
    fs::remove_file(key_file(&host, "ada")).unwrap();
    assert_refused(&host.ssh("ada", "true").run());
    assert_refused(&with_key(&host, "ada", &second).run());
}

#[test]
fn restrict_takes_the_terminal_away_and_pty_gives_it_back() {
    let host = Host::new().user("ada").start();
    let terminal = || host.ssh("ada", "tty").args(["-tt"]).run();
    for (options, permitted) in
        [("restrict", false), ("no-pty", false), ("pty,restrict", false), ("restrict,pty", true), ("", true)]
    {
        set_options(&host, "ada", options);
        let output = terminal();
        if permitted {
            output.ok().stdout_has("/dev/pts/");
        } else {
            // With -tt the client gives up, with -t it goes on without.
            output.status(255).stderr_has("PTY allocation request failed");
        }
    }
}

#[test]
fn a_forced_command_runs_whatever_the_client_asks_for() {
    let host = Host::new().user("ada").start();
    set_options(&host, "ada", r#"command="echo \"forced, $SSH_ORIGINAL_COMMAND\"; exit 7""#);
    host.ssh("ada", "rm -rf /").run().status(7).stdout("forced, rm -rf /\n");
    host.ssh("ada", "").input("echo a shell\n").run().status(7).stdout("forced, \n");
    host.ssh("ada", "sftp").args(["-s"]).run().status(7).stdout("forced, internal-sftp\n");
}

#[test]
fn the_environment_of_the_key_file_is_set() {
    let host = Host::new().user("ada").start();
    set_options(&host, "ada", r#"environment="TEAM=a b",environment="TEAM=c",environment="LANG=C.UTF-8""#);
    let ssh = host.ssh("ada", "echo $TEAM $LANG").args(["-o", "SendEnv=LANG"]).env("LANG", "de_DE.UTF-8");
    ssh.run().ok().stdout("a b C.UTF-8\n");
}

#[test]
fn from_and_expiry_time_decide_whether_a_line_applies() {
    let host = Host::new().user("ada").start();
    let from = |address: &str| host.ssh("ada", "true").args(["-b", address]).run();
    set_options(&host, "ada", r#"from="127.0.1.0/24,!127.0.1.9,127.0.2.?""#);
    for address in ["127.0.1.1", "127.0.2.5"] {
        from(address).ok();
    }
    for address in ["127.0.1.9", "127.0.3.1", "127.0.2.50"] {
        assert_refused(&from(address));
    }
    for (time, valid) in [("20200101", false), ("202001010000Z", false), ("29990101", true), ("29990101120000Z", true)]
    {
        set_options(&host, "ada", &format!("expiry-time=\"{time}\""));
        assert_eq!(host.ssh("ada", "true").run().status == Some(0), valid, "{time}");
    }
}

#[test]
fn the_first_line_that_applies_counts() {
    let host = Host::new().user("ada").start();
    let key = public_key(&host.key("ada"));
    let other = host.scratch().join("other");
    make_key(&other, &["-t", "ed25519"]);
    let line = |options: &str| format!("{options} {key}");
    let lines = [
        "# comment".to_owned(),
        public_key(&other),
        line(r#"from="10.0.0.0/8",command="echo far""#),
        line(r#"expiry-time="20200101",command="echo late""#),
        line(r#"command="echo this""#),
        line(r#"command="echo that""#),
    ];
    write_lines(&host, "ada", &lines);
    host.ssh("ada", "true").run().ok().stdout("this\n");
    with_key(&host, "ada", &other).run().ok().stdout("in\n");
}

#[test]
fn an_option_that_is_not_supported_makes_the_line_unusable_and_is_logged() {
    let host = Host::new().user("ada").start();
    for (options, complaint) in [
        ("tunnel=\"0\"", "option \"tunnel\" is not supported"),
        ("verify-required", "option \"verify-required\" is not supported"),
        ("from=\"gateway.example.org\"", "option \"from\" has no valid value"),
        ("command=unquoted", "option \"command\" has no valid value"),
        ("cert-authority", "option \"cert-authority\" is for servers where auth.trusted_user_ca_keys is set"),
    ] {
        set_options(&host, "ada", options);
        assert_refused(&host.ssh("ada", "true").run());
        let line = format!("{}:1: the key is not used: {complaint}", key_file(&host, "ada").display());
        assert!(host.log().contains(&line), "{line}\n{}", host.log());
        host.podspawn(["list-users"]).run().ok().stderr_has(&line);
    }
    set_options(
        &host,
        "ada",
        "no-touch-required,no-user-rc,user-rc,agent-forwarding,no-x11-forwarding,port-forwarding",
    );
    host.ssh("ada", "true").run().ok();
}

#[test]
fn a_key_file_that_others_can_write_or_that_is_a_link_lets_nobody_in() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let host = Host::new().user("ada").start();
    let file = key_file(&host, "ada");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o664)).unwrap();
    assert_refused(&host.ssh("ada", "true").run());
    assert!(host.log().contains("others than root can change it"), "{}", host.log());
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    host.ssh("ada", "true").run().ok();
    fs::rename(&file, file.with_file_name("elsewhere")).unwrap();
    symlink("elsewhere", &file).unwrap();
    assert_refused(&host.ssh("ada", "true").run());
}

#[test]
fn every_type_of_key_that_is_strong_enough_logs_in() {
    let host = Host::new().user("ada").start();
    for (index, kind) in
        [["rsa", "2048"], ["ecdsa", "256"], ["ecdsa", "384"], ["ecdsa", "521"], ["ed25519", "256"]].iter().enumerate()
    {
        let key = host.scratch().join(format!("key-{index}"));
        make_key(&key, &["-t", kind[0], "-b", kind[1]]);
        host.podspawn(["add-user", "ada", "--key", &public_key(&key)]).run().ok();
        with_key(&host, "ada", &key).run().ok().stdout("in\n");
    }
    let short = host.scratch().join("short");
    make_key(&short, &["-t", "rsa", "-b", "1024"]);
    let complaint = "RSA keys must have between 2048 and 8192 bits, this one has 1024";
    host.podspawn(["add-user", "ada", "--key", &public_key(&short)]).run().status(1).stderr_has(complaint);
    write_lines(&host, "ada", &[public_key(&short)]);
    assert_refused(&with_key(&host, "ada", &short).run());
    assert_eq!(refusals(&host), [complaint]);
}

#[test]
fn fido_keys_log_in() {
    let host = Host::new().user("ada").start();
    for kind in [Kind::Ed25519, Kind::Ecdsa] {
        let agent = Agent::start(host.scratch(), kind);
        let ssh = || host.ssh("ada", "echo in").agent(&agent.socket);
        write_lines(&host, "ada", &[]);
        assert_refused(&ssh().run());
        host.podspawn(["add-user", "ada", "--key", &agent.line()]).run().ok();
        ssh().run().ok().stdout("in\n");
    }
}

/// A key that is only offered gives nothing to the one that is proved (CVE-2024-45337).
#[test]
fn the_options_are_those_of_the_key_that_was_proved() {
    let host = Host::new().user("ada").start();
    let (offered, proved) = (host.scratch().join("offered"), host.scratch().join("proved"));
    for key in [&offered, &proved] {
        make_key(key, &["-t", "ed25519"]);
    }
    let forced = format!("restrict,command=\"echo forced\" {}", public_key(&proved));
    write_lines(&host, "ada", &[public_key(&offered), forced]);
    let both = || host.ssh("ada", "echo free").key(&proved).args(["-i", offered.to_str().unwrap()]).run();
    both().ok().stdout("free\n");
    // The server is asked about it first, and says that it would do; the client has another private one.
    let other = host.scratch().join("other");
    make_key(&other, &["-t", "ed25519"]);
    fs::copy(&other, &offered).unwrap();
    both().ok().stdout("forced\n");
    host.assert_no_session_left();
}

/// As sshd does: the first `none` is free, and the last permitted attempt may be the right one.
#[test]
fn six_keys_may_be_tried_and_no_seventh() {
    let host = Host::new().user("ada").start();
    let agent = SshAgent::start(&host);
    let wrong = |number: u32| {
        let key = host.scratch().join(format!("wrong-{number}"));
        make_key(&key, &["-t", "ed25519"]);
        agent.add(&key);
    };
    let ssh = || host.ssh("ada", "true").agent(&agent.socket).run();
    (1..=5).for_each(wrong);
    agent.add(&host.key("ada"));
    ssh().ok();
    agent.remove(&host.key("ada"));
    wrong(6);
    agent.add(&host.key("ada"));
    ssh().status(255).stderr_has("Too many authentication");
    assert_eq!(refusals(&host).len(), 5 + 6);
}

/// ssh-agent(1), which offers keys in the order in which they were added.
struct SshAgent {
    socket: PathBuf,
    child: Child,
}

impl SshAgent {
    fn start(host: &Host) -> Self {
        let socket = host.scratch().join("agent");
        let child = Command::new("ssh-agent").args(["-D", "-a"]).arg(&socket).stdout(Stdio::null()).spawn().unwrap();
        common::eventually("the agent listens", || socket.exists());
        Self { socket, child }
    }

    fn add(&self, key: &Path) {
        Run::new("ssh-add").env("SSH_AUTH_SOCK", &self.socket).arg("-q").arg(key).run().ok();
    }

    fn remove(&self, key: &Path) {
        Run::new("ssh-add").env("SSH_AUTH_SOCK", &self.socket).arg("-qd").arg(key).run().ok();
    }
}

impl Drop for SshAgent {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn no_other_method_than_public_keys_is_offered() {
    let host = Host::new().user("ada").start();
    for method in ["password", "keyboard-interactive", "hostbased", "gssapi-with-mic", "none"] {
        let output = host.ssh("ada", "true").args(["-o", &format!("PreferredAuthentications={method}")]).run();
        assert_refused(&output);
    }
}
