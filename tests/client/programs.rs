//! After `podspawn setup`: ssh and all that is built on it, used as ever, with a project's host name.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    process::Child,
};

use crate::{
    common::{Host, Image, eventually},
    person::Person,
};

/// Sessions that are still there for the next program.
const LASTING: &str = "session:\n  mode: grace-period";

fn projects(host: &Host) -> Vec<String> {
    host.sessions().iter().map(|session| session["project"].as_str().unwrap_or("none").to_owned()).collect()
}

/// Ends when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

#[test]
fn ssh_scp_sftp_rsync_and_git_reach_a_project_by_its_host_name() {
    let host = Host::new().image(Image::Debian).user("ada").config(LASTING).start();
    let person = Person::set_up(&host);
    person
        .ssh("ada@web.pod", "id -un; echo $PODSPAWN_PROJECT; cat >&2; exit 7")
        .input("error")
        .run()
        .status(7)
        .stdout("ada\nweb\n")
        .stderr("podspawn: project web is not registered here (podspawn add-project); this is a plain session\nerror");
    person.write("sent", "by scp\n");
    person.run("scp").args(["-q", "sent", "ada@web.pod:a"]).run().ok();
    person.run("scp").args(["-q", "-O", "sent", "ada@web.pod:b"]).run().ok();
    person.run("sftp").args(["-q", "-b", "-", "ada@web.pod"]).input("get a got\n").run().ok();
    assert_eq!(person.read("got"), "by scp\n");
    person.run("rsync").args(["-a", "-e", "ssh", "ada@web.pod:b", "synced"]).run().ok();
    assert_eq!(person.read("synced"), "by scp\n");
    let commit = "git init -qb main repo && cd repo && git config user.name a && git config user.email a@b \
                  && echo text >file && git add . && git commit -qm one";
    person.ssh("ada@web.pod", commit).run().ok();
    person.run("git").args(["clone", "-q", "ssh://ada@web.pod/home/ada/repo"]).run().ok();
    assert_eq!(person.read("repo/file"), "text\n");
    // All of them were in the one session.
    assert_eq!(projects(&host), ["web"]);
    person.podspawn(&["ssh", "-T", "ada@web", "--", "cat", "a", "b"]).run().ok().stdout("by scp\nby scp\n");
    person.podspawn(&["ssh", "-q", "ada@api", "echo $PODSPAWN_PROJECT; exit 42"]).run().status(42).stdout("api\n");
    person.podspawn(&["ssh", "-p", "22"]).run().status(2).stderr_has("there is no destination");
    // The login name goes before.
    person.ssh("ada+db@web.pod", "echo $PODSPAWN_PROJECT").run().ok().stdout("db\n");
}

#[test]
fn user_names_of_any_form_reach_their_sessions() {
    let host = Host::new().user("ada").user("agent-run-4829").start();
    let person = Person::set_up(&host);
    fs::copy(host.key("agent-run-4829"), person.file(".ssh/id_ed25519")).unwrap();
    let who = "echo $PODSPAWN_USER $PODSPAWN_PROJECT";
    person.ssh("agent-run-4829@backend.pod", who).run().ok().stdout("agent-run-4829 backend\n");
    person.ssh("agent-run-4829@a_b.c-d.pod", who).run().ok().stdout("agent-run-4829 a_b.c-d\n");
    person.ssh("agent-run-4829@BACKEND.POD", who).run().status(255);
    for bad in ["agent-run-4829@1st.pod", "agent-run-4829@a..b.pod"] {
        person.ssh(bad, who).run().status(255).stderr_has("is not the host of a project");
    }
    // A shell reads the command that ssh makes of these.
    for evil in ["$(touch /root/evil)", "`touch /root/evil`", "a;touch /root/evil", "a b", "a|touch /root/evil"] {
        let output = person.ssh(&format!("{evil}@web.pod"), who).run();
        output.status(255);
    }
    assert!(!person.file("evil").exists());
}

#[test]
fn forwarding_alone_is_in_the_project_too() {
    let host = Host::new().image(Image::Debian).user("ada").config(LASTING).start();
    let person = Person::set_up(&host);
    // Something in the project that tells which one it is, for as long as somebody is connected.
    let mut serves = person.ssh("ada@web.pod", "python3 -m http.server 8000 & echo; wait");
    let _serves = Running(serves.spawn());
    let forward = format!("{}:7005:localhost:8000", host.address);
    let _forwards = Running(person.run("ssh").args(["-N", "-L", &forward, "ada@web.pod"]).spawn());
    let answer = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect((host.address, 7005))?;
        stream.write_all(b"GET /proc/self/../../etc/hostname HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    eventually("the forward leads to the project's server", || answer().is_ok_and(|text| text.contains("HTTP/1.0")));
    assert_eq!(projects(&host), ["web"]);
}

#[test]
fn a_master_connection_serves_later_commands_of_the_same_project_and_no_other() {
    let host = Host::new().user("ada").start();
    let person = Person::set_up(&host);
    let own = "Host *.pod\n  ControlMaster auto\n  ControlPersist 60\n  ControlPath ~/.ssh/%C\n";
    let config = person.read(".ssh/config") + own;
    person.write(".ssh/config", &config);
    let who = "echo $PODSPAWN_PROJECT $SSH_CONNECTION";
    // ControlPersist keeps what it has of our pipes open.
    let ssh = |host: &str| person.run("sh").args(["-c", "ssh \"$0\" \"$1\" 2>/dev/null </dev/null", host, who]).run();
    let first = ssh("ada@web.pod").ok().text();
    assert!(first.starts_with("web "), "{first}");
    assert_eq!(ssh("ada@web.pod").ok().text(), first);
    let other = ssh("ada@api.pod").ok().text();
    assert!(other.starts_with("api ") && other["api ".len()..] != first["web ".len()..], "{other}");
    assert_eq!(projects(&host), ["api", "web"]);
    for name in ["ada@web.pod", "ada@api.pod"] {
        person.run("ssh").args(["-O", "exit", name]).run().ok();
    }
    host.assert_no_session_left();
}

#[test]
fn much_data_goes_through_unchanged_both_ways_and_each_way_ends_on_its_own() {
    let host = Host::new().user("ada").start();
    let person = Person::set_up(&host);
    let noise: Vec<u8> = (0..40_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let output = person.ssh("ada@web.pod", "cat").input(noise.clone()).run();
    assert!(output.ok().stdout == noise, "{} bytes came back", output.stdout.len());
}

#[test]
fn an_editor_gets_the_full_host_name_and_a_path() {
    let host = Host::new().user("ada").start();
    let person = Person::set_up(&host);
    for editor in ["code", "cursor"] {
        person.write(&format!("bin/{editor}"), "#!/bin/sh\necho \"${0##*/}\" \"$@\"\nexit 3\n");
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(person.file(&format!("bin/{editor}")), executable).unwrap();
    }
    let path = format!("/root/bin:{}", std::env::var("PATH").unwrap());
    let open = |arguments: &[&str]| person.podspawn(arguments).env("PATH", &path).run();
    open(&["open", "ada@web"]).status(3).stdout("code --remote ssh-remote+ada@web.pod /workspace\n");
    open(&["open", "--cursor", "ada@web.pod", "/srv"])
        .status(3)
        .stdout("cursor --remote ssh-remote+ada@web.pod /srv\n");
    open(&["open", "ada@web", "srv"]).status(1).stderr("podspawn: \"srv\" is not an absolute path\n");
    person.podspawn(&["open", "ada@web"]).run().status(1).stderr("podspawn: code is not installed, or not in PATH\n");
}
