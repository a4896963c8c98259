//! Taking a user's key away ends the connections that it has logged in.

mod common;

use std::fs;

use common::{Host, Run, Stream, command::finish, eventually, ssh::make_key};
use nix::sys::signal::Signal;

const TOLD: &str = "podspawn: disconnected: your key is not accepted any more\n";

#[test]
fn a_key_that_is_removed_ends_its_own_connections_and_no_others() {
    let mut host = Host::new().user("ada").user("bob").start();
    let second = host.scratch().join("second");
    make_key(&second, &["-t", "ed25519"]);
    let public = fs::read_to_string(second.with_extension("pub")).unwrap();
    host.podspawn(["add-user", "ada", "--key", &public]).run().ok();
    let bob = Stream::start(&host, "bob");
    let first = host.ssh("ada", "sleep 1000").spawn();
    let other = host.ssh("ada", "echo 1 > kept; sleep 1000").key(&second).spawn();
    eventually("both are connected", || host.connections("ada").len() == 2);

    let file = host.root.join("etc/podspawn/keys/ada");
    fs::write(&file, &public).unwrap();
    finish("the first key's client", first).stderr_has(TOLD);
    host.ssh("ada", "cat kept").key(&second).run().ok().stdout("1\n");
    let audit = host.audit();
    let revoked: Vec<_> = audit.iter().filter(|event| event["event"] == "auth.revoked").collect();
    let shown = Run::new("ssh-keygen").arg("-lf").arg(host.key("ada")).run().text();
    assert_eq!(revoked.len(), 1, "{revoked:?}");
    assert_eq!(
        (&revoked[0]["user"], &revoked[0]["reason"]),
        (&"ada".into(), &"the user's key file does not have it".into())
    );
    assert!(shown.contains(revoked[0]["fingerprint"].as_str().unwrap()), "{shown}");
    let left = audit.iter().rfind(|event| event["event"] == "session.disconnect" && !event["reason"].is_null());
    assert_eq!(left.unwrap()["reason"], "disconnected: your key is not accepted any more");

    // What happens while there is no server is seen by the next one.
    host.end(Signal::SIGTERM);
    fs::remove_file(&file).unwrap();
    host.serve();
    finish("the second key's client", other).stderr_has(TOLD);
    eventually("ada's session is gone", || host.sessions().len() == 1);
    bob.flows();
    bob.finish();
    host.assert_no_session_left();
}

#[test]
fn a_line_that_allows_less_than_before_ends_connections_and_an_edit_that_changes_nothing_does_not() {
    let host = Host::new().user("ada").start();
    let ada = Stream::start(&host, "ada");
    let file = host.root.join("etc/podspawn/keys/ada");
    let key = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("# a comment\n{key}")).unwrap();
    let client = host.ssh("ada", "sleep 1000").spawn();
    eventually("both are connected", || host.connections("ada").len() == 2);
    // As long as a look or two take.
    std::thread::sleep(std::time::Duration::from_secs(5));
    ada.flows();
    fs::write(&file, format!("from=\"192.0.2.1\" {key}")).unwrap();
    finish("the client", client).stderr_has(TOLD);
    drop(ada);
    eventually("the session is gone", || host.sessions().is_empty());
    assert_eq!(host.audit().iter().filter(|event| event["event"] == "auth.revoked").count(), 2);
    host.assert_no_session_left();
}
