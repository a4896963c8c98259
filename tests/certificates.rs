//! User certificates and revocation, made by the real ssh-keygen and used by the real ssh.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use common::{Host, Output, Run, command::finish, eventually, ssh::make_key};

/// A host that trusts a CA, whose list of revoked keys is empty.
struct Town {
    host: Host,
    ca: PathBuf,
}

impl Town {
    fn new(ca_kind: &[&str]) -> Self {
        let files = "auth:\n  trusted_user_ca_keys: /unset/cas\n  revoked_keys: /unset/revoked";
        let mut host = Host::new().user("ada").config(files).prepare();
        let config = fs::read_to_string(host.config_file()).unwrap();
        let scratch = host.scratch().display().to_string();
        fs::write(host.config_file(), config.replace("/unset", &scratch)).unwrap();
        let ca = host.scratch().join("ca");
        make_key(&ca, ca_kind);
        fs::copy(ca.with_extension("pub"), host.scratch().join("cas")).unwrap();
        fs::write(host.scratch().join("revoked"), "").unwrap();
        host.serve();
        Self { host, ca }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.host.scratch().join(name)
    }

    /// A new key that is in no file of the server.
    fn key(&self, name: &str) -> PathBuf {
        let key = self.path(name);
        if !key.exists() {
            make_key(&key, &["-t", "ed25519"]);
        }
        key
    }

    /// A new key with a certificate, made with these options of `ssh-keygen -s`.
    fn certificate(&self, name: &str, options: &[&str]) -> PathBuf {
        sign(&self.ca, &self.key(name), options)
    }

    fn log_in(&self, user: &str, key: &Path) -> Output {
        self.host.ssh(user, "echo in").key(key).run()
    }

    /// Makes the list of revoked keys a KRL of this specification (ssh-keygen(1), KEY REVOCATION LISTS), or of keys.
    fn revoke(&self, arguments: &[&str]) {
        Run::new("ssh-keygen").args(["-q", "-k", "-f"]).arg(self.path("revoked")).args(arguments).run().ok();
    }

    fn revoke_spec(&self, specification: &str) {
        fs::write(self.path("spec"), specification).unwrap();
        self.revoke(&["-s", self.ca.with_extension("pub").to_str().unwrap(), self.path("spec").to_str().unwrap()]);
    }

    fn last_refusal(&self) -> String {
        let events = self.host.audit();
        // The client goes on to try the key by itself; the certificate is what has an entry of its own.
        let refused = events.iter().rfind(|event| event["event"] == "auth.fail" && !event["certificate"].is_null());
        refused.map_or_else(String::new, |event| event["reason"].as_str().unwrap().to_owned())
    }
}

/// Makes a certificate for the key with these options of `ssh-keygen -s`, and gives the key back.
fn sign(ca: &Path, key: &Path, options: &[&str]) -> PathBuf {
    let mut sign = Run::new("ssh-keygen").args(["-q", "-s"]).arg(ca);
    if !options.contains(&"-I") {
        sign = sign.args(["-I", "run"]);
    }
    sign.args(options).arg(key.with_extension("pub")).run().ok();
    key.to_owned()
}

#[track_caller]
fn assert_refused(output: &Output) {
    output.status(255).stdout("").stderr_has("Permission denied (publickey).");
}

fn public(key: &Path) -> String {
    fs::read_to_string(format!("{}.pub", key.display())).unwrap().trim().to_owned()
}

#[test]
fn a_certificate_logs_in_whoever_it_names_without_a_key_file() {
    let town = Town::new(&["-t", "ed25519"]);
    let key = town.certificate("run", &["-I", "run 4829", "-z", "17", "-n", "agent-1,agent-2", "-V", "+10m"]);
    town.log_in("agent-1", &key).ok().stdout("in\n");
    town.log_in("agent-2+web", &key).ok().stdout("in\n");
    assert_refused(&town.log_in("agent-3", &key));
    assert_eq!(town.last_refusal(), "it does not name the user as a principal");
    // Keys go on to work.
    town.host.ssh("ada", "true").run().ok();
    let events = town.host.audit();
    let ok = events.iter().find(|event| event["event"] == "auth.ok").unwrap();
    let fingerprint = |key: &Path| {
        let shown = Run::new("ssh-keygen").arg("-lf").arg(key.with_extension("pub")).run();
        shown.text().split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(ok["fingerprint"], fingerprint(&key));
    let certificate = &ok["certificate"];
    assert_eq!((&certificate["key_id"], &certificate["serial"]), (&"run 4829".into(), &17.into()));
    assert_eq!(certificate["ca_fingerprint"], fingerprint(&town.ca));
}

#[test]
fn certificates_that_are_not_valid_are_refused() {
    let town = Town::new(&["-t", "ed25519"]);
    make_key(&town.path("other-ca"), &["-t", "ed25519"]);
    let table: &[(&str, &[&str], &str)] = &[
        ("unnamed", &[], "it does not name the user as a principal"),
        ("expired", &["-n", "ada", "-V", "-2h:-1h"], ""),
        ("early", &["-n", "ada", "-V", "+1h:+2h"], ""),
        (
            "critical",
            &["-n", "ada", "-O", "critical:two-people@example.org=x"],
            "critical option \"two-people@example.org\"",
        ),
        ("verify", &["-n", "ada", "-O", "verify-required"], "critical option \"verify-required\""),
        ("elsewhere", &["-n", "ada", "-O", "source-address=10.0.0.0/8,::1/128"], "it is for other addresses"),
        ("pattern", &["-n", "ada", "-O", "critical:source-address=127.*"], "\"source-address\" has no valid value"),
    ];
    for (name, options, reason) in table {
        assert_refused(&town.log_in("ada", &town.certificate(name, options)));
        let refusal = town.last_refusal();
        // russh refuses those by itself, and the supervisor does not hear of them.
        assert!(refusal.contains(reason) || reason.is_empty(), "{name}: {refusal}");
    }
    assert_refused(&town.log_in("ada", &sign(&town.path("other-ca"), &town.key("foreign"), &["-n", "ada"])));
    assert_eq!(town.last_refusal(), "its CA is not trusted");
    // Another principal's name put into a good certificate, without the CA's consent.
    let key = town.certificate("forged", &["-n", "bob"]);
    let path = town.path("forged-cert.pub");
    let text = fs::read_to_string(&path).unwrap();
    let mut words: Vec<_> = text.split(' ').map(str::to_owned).collect();
    let blob = base64(&words[1], true);
    let at = blob.windows(7).position(|window| window == b"\0\0\0\x03bob").unwrap();
    let forged = [&blob[..at], b"\0\0\0\x03ada", &blob[at + 7..]].concat();
    words[1] = String::from_utf8(base64(&forged, false)).unwrap().trim().to_owned();
    fs::write(&path, words.join(" ")).unwrap();
    assert_refused(&town.log_in("ada", &key));
}

/// With coreutils' base64(1).
fn base64(input: impl AsRef<[u8]>, decode: bool) -> Vec<u8> {
    let arguments: &[&str] = if decode { &["-d"] } else { &["-w0"] };
    let output = Run::new("base64").args(arguments).input(input.as_ref()).run();
    output.ok();
    output.stdout
}

#[test]
fn critical_options_and_extensions_decide_what_a_certificate_may_do() {
    let town = Town::new(&["-t", "ed25519"]);
    let ssh = |key: &Path, command: &str| town.host.ssh("ada", command).key(key);
    let forced = town.certificate("forced", &["-n", "ada", "-O", "force-command=echo forced $SSH_ORIGINAL_COMMAND"]);
    ssh(&forced, "id").run().ok().stdout("forced id\n");
    let here = town.certificate("here", &["-n", "ada", "-O", "source-address=127.0.9.0/24"]);
    ssh(&here, "true").args(["-b", "127.0.9.1"]).run().ok();
    assert_refused(&ssh(&here, "true").args(["-b", "127.0.8.1"]).run());
    let plain = town.certificate("plain", &["-n", "ada"]);
    ssh(&plain, "tty").args(["-tt"]).run().ok().stdout_has("/dev/pts/");
    for options in [&["-n", "ada", "-O", "no-pty"][..], &["-n", "ada", "-O", "clear"]] {
        let key = town.certificate(&format!("bare-{}", options.concat()), options);
        ssh(&key, "tty").args(["-tt"]).run().status(255).stderr_has("PTY allocation request failed");
        ssh(&key, "echo in").run().ok().stdout("in\n");
    }
    // Nothing listens there: what is told is whether it was tried.
    let forward = |key: &Path| ssh(key, "").args(["-W", "127.0.0.1:1", "-o", "LogLevel=INFO"]).run();
    forward(&plain).status(255).stderr_has("connect failed");
    let walled = town.certificate("walled", &["-n", "ada", "-O", "no-port-forwarding"]);
    forward(&walled).status(255).stderr_has("administratively prohibited");
}

#[test]
fn every_kind_of_ca_and_key_makes_certificates_but_none_with_sha_1() {
    for kind in [&["-t", "rsa", "-b", "2048"][..], &["-t", "ecdsa", "-b", "384"]] {
        let town = Town::new(kind);
        let key = town.path("key");
        make_key(&key, kind);
        town.log_in("ada", &sign(&town.ca, &key, &["-n", "ada"])).ok().stdout("in\n");
        if kind.contains(&"rsa") {
            assert_refused(&town.log_in("ada", &town.certificate("old", &["-n", "ada", "-t", "ssh-rsa"])));
            assert_eq!(town.last_refusal(), "its CA signed with SHA-1");
            make_key(&town.path("weak-ca"), &["-t", "rsa", "-b", "1024"]);
            fs::copy(town.path("weak-ca.pub"), town.path("cas")).unwrap();
            assert_refused(&town.log_in("ada", &sign(&town.path("weak-ca"), &town.key("weak"), &["-n", "ada"])));
            assert!(town.last_refusal().starts_with("its CA's key: RSA keys must have"), "{}", town.last_refusal());
        }
    }
}

#[test]
fn what_a_krl_lists_is_refused_from_the_next_login_on() {
    let town = Town::new(&["-t", "ed25519"]);
    let key = town.certificate("key", &["-n", "ada", "-I", "run 7", "-z", "7"]);
    let other = town.certificate("other", &["-n", "ada", "-I", "run 8", "-z", "8"]);
    let own = public(&town.host.key("ada"));
    let certificate = town.path("key-cert.pub").display().to_string();
    let check = |what: &str, key_in: bool, other_in: bool| {
        for (key, expected) in [(&key, key_in), (&other, other_in)] {
            let output = town.log_in("ada", key);
            assert_eq!(output.status == Some(0), expected, "{what}: {output}");
        }
    };
    check("an empty list", true, true);
    for specification in ["serial: 7", "serial: 1-7", "serial: 7\nserial: 90\nserial: 95-99\nserial: 300", "id: run 7"]
    {
        town.revoke_spec(specification);
        check(specification, false, true);
        assert_eq!(town.last_refusal(), "it is revoked");
        // Other keys are none of its business.
        town.host.ssh("ada", "true").run().ok();
    }
    for (what, prefix) in [("key", "key: "), ("hash", "sha256: "), ("SHA-1 hash", "sha1: ")] {
        town.revoke_spec(&format!("{prefix}{}", public(&key)));
        check(what, false, true);
        town.revoke_spec(&format!("{prefix}{own}"));
        check(what, true, true);
        assert_refused(&town.host.ssh("ada", "true").run());
    }
    town.revoke(&[&certificate]);
    check("a certificate", false, true);
    town.revoke(&[town.ca.with_extension("pub").to_str().unwrap()]);
    check("the CA", false, false);
    town.host.ssh("ada", "true").run().ok();
    fs::write(town.path("revoked"), format!("# lost\n{}\n", public(&key))).unwrap();
    check("a list of keys", false, true);
    fs::write(town.path("revoked"), public(&town.ca)).unwrap();
    check("a list with the CA", false, false);
    let krl = fs::read(town.path("revoked")).unwrap();
    town.revoke_spec("serial: 7");
    let whole = fs::read(town.path("revoked")).unwrap();
    fs::write(town.path("revoked"), &whole[..whole.len() - 1]).unwrap();
    check("half a KRL", false, false);
    assert_refused(&town.host.ssh("ada", "true").run());
    fs::write(town.path("revoked"), krl).unwrap();
}

#[test]
fn a_ca_may_be_trusted_for_one_user_and_its_line_limits_the_certificates() {
    let town = Town::new(&["-t", "ed25519"]);
    make_key(&town.path("team-ca"), &["-t", "ed25519"]);
    let member = |name: &str, options: &[&str]| sign(&town.path("team-ca"), &town.key(name), options);
    let file = town.host.root.join("etc/podspawn/keys/bob");
    let line = |options: &str| {
        fs::write(&file, format!("cert-authority{options} {}\n", public(&town.path("team-ca")))).unwrap();
    };
    let bob = member("bob", &["-n", "bob"]);
    line("");
    town.log_in("bob", &bob).ok();
    assert_refused(&town.log_in("ada", &bob));
    // The CA's own key is none that logs in.
    assert_refused(&town.log_in("bob", &town.path("team-ca")));
    let team = member("team", &["-n", "team-red"]);
    assert_refused(&town.log_in("bob", &team));
    line(",principals=\"team-blue,team-red\"");
    town.log_in("bob", &team).ok();
    assert_refused(&town.log_in("bob", &bob));
    line(",from=\"10.0.0.0/8\"");
    assert_refused(&town.log_in("bob", &bob));
    line(",command=\"echo the line\",no-pty");
    town.log_in("bob", &bob).ok().stdout("the line\n");
    let forced = member("forced", &["-n", "bob", "-O", "force-command=echo the certificate"]);
    assert_refused(&town.log_in("bob", &forced));
    line(",environment=\"A=b\"");
    town.log_in("bob", &forced).ok().stdout("the certificate\n");
    town.host.ssh("bob", "echo $A").key(&bob).run().ok().stdout("b\n");
}

#[test]
fn a_certificate_for_nobody_gets_the_same_answer_as_one_that_is_not_trusted() {
    let town = Town::new(&["-t", "ed25519"]);
    make_key(&town.path("other-ca"), &["-t", "ed25519"]);
    let foreign = sign(&town.path("other-ca"), &town.key("foreign"), &["-n", "ada,eve"]);
    let for_bob = town.certificate("for-bob", &["-n", "bob"]);
    let answer = |user: &str, key: &Path| {
        let output = town.host.ssh(user, "true").key(key).args(["-o", "LogLevel=DEBUG3"]).run();
        output.status(255);
        let lines = output.stderr.lines();
        let said = lines.filter(|line| line.contains("receive packet") || line.contains("can continue"));
        said.map(str::to_owned).collect::<Vec<_>>()
    };
    let first = answer("ada", &foreign);
    assert!(first.len() > 5, "{first:?}");
    assert_eq!(answer("eve", &foreign), first);
    assert_eq!(answer("ada", &for_bob), first);
    assert_eq!(answer("eve", &for_bob), first);
}

#[test]
fn a_missing_file_of_cas_is_reported_and_lets_no_certificate_in() {
    let town = Town::new(&["-t", "ed25519"]);
    let key = town.certificate("key", &["-n", "ada"]);
    fs::rename(town.path("cas"), town.path("gone")).unwrap();
    assert_refused(&town.log_in("ada", &key));
    town.host.ssh("ada", "true").run().ok();
    let complaint = format!("{}: no key in it is used: there is no such file", town.path("cas").display());
    assert!(town.host.log().contains(&complaint), "{}", town.host.log());
    town.host.podspawn(["config", "check"]).run().ok().stderr_has(&complaint);
    fs::write(town.path("cas"), format!("restrict {}\n{}\n", public(&town.ca), public(&town.ca))).unwrap();
    town.log_in("ada", &key).ok();
    assert!(town.host.log().contains("cas:1: the key is not used"), "{}", town.host.log());
}

#[test]
fn revoking_a_certificate_ends_the_connections_that_it_has_logged_in() {
    let town = Town::new(&["-t", "ed25519"]);
    let (key, other) = (town.certificate("key", &["-n", "ada", "-z", "7"]), town.certificate("other", &["-n", "ada"]));
    let [revoked, stays] = [&key, &other].map(|key| town.host.ssh("ada", "sleep 1000").key(key).spawn());
    eventually("both are connected", || town.host.connections("ada").len() == 2);
    // Nobody can log in by a list that is broken, and nobody is thrown out by it.
    fs::write(town.path("revoked"), b"SSHKRL\n\0broken").unwrap();
    eventually("the list is looked at", || town.host.log().contains("of connections that are open: "));
    town.revoke_spec("serial: 7");
    finish("its client", revoked).stderr_has("podspawn: disconnected: your key is not accepted any more\n");
    eventually("the other is left alone", || town.host.connections("ada").len() == 1);
    town.host.podspawn(["stop", "ada"]).run().ok();
    finish("the other's client", stays).stderr_has("stopped by the administrator");
    let audit = town.host.audit();
    let ended = audit.iter().find(|event| event["event"] == "auth.revoked").unwrap();
    assert_eq!(ended["reason"], "it is revoked");
}
