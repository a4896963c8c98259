//! How long a session lives, who may have one, and who ends it.

mod common;

use std::{fs, time::Duration};

use common::{DEADLINE, Host, Run, Stream, command::finish, eventually, within};

/// What the audit log says that sessions ended of.
fn ends(host: &Host) -> Vec<String> {
    let audit = host.audit();
    let ends = audit.iter().filter(|event| event["event"] == "container.destroy");
    ends.map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
}

fn status(host: &Host, user: &str) -> String {
    let sessions = host.sessions();
    let session = sessions.iter().find(|session| session["user"] == user);
    session.map_or("none", |session| session["status"].as_str().unwrap()).to_owned()
}

#[test]
fn a_session_ends_with_its_last_connection() {
    let host = Host::new().user("ada").start();
    let first = Stream::start(&host, "ada");
    host.ssh("ada", "echo 1 > kept").run().ok();
    host.ssh("ada", "cat kept").run().ok().stdout("1\n");
    first.finish();
    host.assert_no_session_left();
    host.ssh("ada", "cat kept").run().status(1);
    host.assert_no_session_left();
    assert_eq!(ends(&host), ["disconnect", "disconnect"]);
}

#[test]
fn a_reconnect_within_the_grace_period_finds_the_same_container() {
    let host = Host::new().user("ada").config("session:\n  mode: grace-period\n  grace_period: 10m").start();
    host.ssh("ada", "echo 1 > kept; echo $PODSPAWN_SESSION > id").run().ok();
    eventually("the session is in grace", || status(&host, "ada") == "grace");
    host.ssh("ada", "cat kept; test $PODSPAWN_SESSION = $(cat id)").run().ok().stdout("1\n");
    let stream = Stream::start(&host, "ada");
    assert_eq!(status(&host, "ada"), "running");
    stream.finish();
    eventually("the session is in grace again", || status(&host, "ada") == "grace");
    let session = &host.sessions()[0];
    assert!(session["grace_seconds"].as_u64().unwrap() > 500, "{session}");
    assert_eq!(session["connections"], 0);
    host.podspawn(["stop", "ada"]).run().ok();
    host.assert_no_session_left();
    assert_eq!(ends(&host), ["stop"]);
}

#[test]
fn a_session_ends_when_its_grace_period_does() {
    let host = Host::new().user("ada").config("session:\n  mode: grace-period\n  grace_period: 1s").start();
    host.ssh("ada", "true").run().ok();
    eventually("the session is removed", || host.sessions().is_empty());
    host.assert_no_session_left();
    assert_eq!(ends(&host), ["grace-expired"]);
}

#[test]
fn a_grace_period_of_nothing_is_none() {
    let host = Host::new().user("ada").config("session:\n  mode: grace-period\n  grace_period: 0s").start();
    host.ssh("ada", "true").run().ok();
    host.assert_no_session_left();
    assert_eq!(ends(&host), ["disconnect"]);
}

#[test]
fn the_maximum_lifetime_ends_a_session_in_use_and_says_so() {
    let config = "session:\n  mode: grace-period\n  grace_period: 10m\n  max_lifetime: 3s";
    let host = Host::new().user("ada").user("bob").config(config).start();
    host.ssh("bob", "true").run().ok();
    let ada = host.ssh("ada", "sleep 1000").run();
    assert_ne!(ada.status, Some(0), "{ada}");
    ada.stderr_has("podspawn: the session has reached its maximum lifetime and is being removed\n");
    eventually("bob's, in grace, is removed too", || host.sessions().is_empty());
    host.assert_no_session_left();
    assert_eq!(ends(&host), ["max-lifetime", "max-lifetime"]);
}

#[test]
fn a_user_has_as_many_sessions_as_the_limit_says() {
    let host = Host::new().user("ada").user("bob").config("resources:\n  max_per_user: 2").start();
    let (first, second) = (Stream::start(&host, "ada"), Stream::start(&host, "ada+web"));
    // One more connection is not one more session.
    host.ssh("ada+web", "hostname").run().ok().stdout("web\n");
    let refused = host.ssh("ada+db", "true").run();
    refused.status(125).stdout("").stderr(
        "podspawn: you already have 2 of at most 2 sessions (resources.max_per_user); close one, or ask the \
         administrator to run: podspawn stop ada\n",
    );
    host.ssh("bob", "true").run().ok();
    second.finish();
    host.ssh("ada+db", "hostname").run().ok().stdout("db\n");
    first.finish();
    host.assert_no_session_left();
    let refusals = host.audit().into_iter().filter(|event| event["event"] == "limit.refused");
    assert_eq!(refusals.map(|event| event["reason"].clone()).collect::<Vec<_>>(), ["max_per_user"]);
}

#[test]
fn the_server_has_as_many_sessions_as_the_limit_says() {
    let host = Host::new().user("ada").user("bob").config("resources:\n  max_containers: 1").start();
    let ada = Stream::start(&host, "ada");
    let refused = host.ssh("bob", "true").run();
    refused
        .status(125)
        .stderr_has("podspawn: the server already runs 1 of at most 1 sessions (resources.max_containers)");
    ada.finish();
    eventually("there is room again", || host.sessions().is_empty());
    host.ssh("bob", "hostname").run().ok().stdout("bob\n");
    host.assert_no_session_left();
}

#[test]
fn an_administrator_ends_one_session_or_all_and_its_users_are_told() {
    let host = Host::new().user("ada").user("bob").start();
    let told = "podspawn: the session was stopped by the administrator\n";
    let (plain, project) = (host.ssh("ada", "sleep 1000").spawn(), Stream::start(&host, "ada+web"));
    eventually("both are connected", || host.connections("ada").len() == 2);
    host.podspawn(["stop", "ada"]).run().ok().stdout("").stderr("");
    finish("ada's client", plain).stderr_has(told);
    project.flows();
    project.finish();
    let clients = ["ada", "bob", "ada+web"].map(|login| host.ssh(login, "sleep 1000").spawn());
    eventually("all are connected", || host.connections("ada").len() + host.connections("bob").len() == 3);
    host.podspawn(["stop", "ada@web"]).run().ok();
    eventually("two are left", || host.sessions().len() == 2);
    host.podspawn(["stop", "--all"]).run().ok();
    for client in clients {
        finish("a client", client).stderr_has(told);
    }
    host.assert_no_session_left();
    host.podspawn(["stop", "ada"]).run().status(1).stderr("podspawn: cannot stop ada: there is no session of ada\n");
}

#[test]
fn sessions_are_listed_with_what_they_do() {
    let mut host = Host::new().user("ada").user("bob").config("session:\n  mode: grace-period").start();
    host.ssh("bob", "true").run().ok();
    let ada = Stream::start(&host, "ada+web");
    eventually("bob is in grace", || status(&host, "bob") == "grace");
    let text = host.podspawn(["list"]).run().ok().text();
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0][..5], ["USER", "PROJECT", "CONTAINER", "STATUS", "CONNS"]);
    assert_eq!((rows[1][0], rows[1][1], rows[1][3], rows[1][4]), ("ada", "web", "running", "1"), "{text}");
    assert_eq!((rows[2][0], rows[2][1], rows[2][3]), ("bob", "(default)", "grace"), "{text}");
    let status = host.json(["status"]);
    assert_eq!(
        (&status["sessions"], &status["running"], &status["grace"], &status["connections"]),
        (&2.into(), &1.into(), &1.into(), &1.into()),
        "{status}"
    );
    host.podspawn(["status"]).run().ok().stdout_has("sessions     2 (1 running, 1 in grace)");
    ada.finish();
    host.end(nix::sys::signal::Signal::SIGINT);
    let socket = host.root.join("run/podspawn/podspawn.sock");
    let answer = format!(
        "podspawn: podspawn is not running: nothing answers on {}; start it with: podspawn serve\n",
        socket.display()
    );
    host.podspawn(["list"]).run().status(1).stderr(&answer);
}

#[test]
fn a_removed_user_is_out_at_once() {
    let host = Host::new().user("ada").user("bob").start();
    let (ada, bob) = (host.ssh("ada", "sleep 1000").spawn(), Stream::start(&host, "bob"));
    eventually("ada is connected", || host.connections("ada").len() == 1);
    let refused = host.podspawn(["remove-user", "ada"]).run();
    refused.status(1).stderr("podspawn: ada has 1 session running; end them with --force\n");
    host.podspawn(["remove-user", "ada", "--force"]).run().ok();
    finish("ada's client", ada).stderr_has("podspawn: the session was stopped by the administrator");
    host.ssh("ada", "true").run().status(255).stderr_has("Permission denied");
    bob.flows();
    bob.finish();
    host.assert_no_session_left();
}

/// Drops every packet from and to a host's address, until it goes out of scope.
struct Cut(String);

impl Cut {
    fn off(host: &Host) -> Self {
        let table = format!("test-{}", host.address).replace('.', "-");
        let rules = format!(
            "table inet {table} {{ chain cut {{ type filter hook output priority raw; policy accept;
             ip daddr {0} drop; ip saddr {0} drop; }}; }}",
            host.address
        );
        Run::new("nft").args(["-f", "-"]).input(rules).run().ok();
        Self(table)
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        Run::new("nft").args(["delete", "table", "inet", &self.0]).run().ok();
    }
}

#[test]
fn a_client_whose_network_is_gone_is_noticed() {
    let config = "session:\n  mode: destroy-on-disconnect\n  client_alive_interval: 1s\n  client_alive_count_max: 2";
    let host = Host::new().user("ada").user("bob").config(config).start();
    // One that is silent, and one that was just being sent something.
    let mut clients = [host.ssh("ada", "sleep 1000").spawn(), host.ssh("bob", "cat /dev/zero").spawn()];
    eventually("both are connected", || host.connections("ada").len() + host.connections("bob").len() == 2);
    let cut = Cut::off(&host);
    // The listing of sessions goes over a Unix socket.
    eventually("both sessions are removed", || host.sessions().is_empty());
    host.assert_no_session_left();
    drop(cut);
    for client in &mut clients {
        client.kill().unwrap();
        client.wait().unwrap();
    }
    assert_eq!(ends(&host), ["disconnect", "disconnect"]);
}

#[test]
fn a_changed_configuration_holds_from_the_next_session_on_and_a_broken_one_never() {
    let host = Host::new().user("ada").start();
    let config = fs::read_to_string(host.config_file()).unwrap();
    fs::write(host.config_file(), config.replace("destroy-on-disconnect", "grace-period")).unwrap();
    host.ssh("ada", "echo 1 > kept").run().ok();
    fs::write(host.config_file(), "listen: nonsense").unwrap();
    host.ssh("ada", "cat kept").run().ok().stdout("1\n");
    assert!(within(DEADLINE, || host.log().contains("the changed configuration is not used")), "{}", host.log());
    fs::write(host.config_file(), config).unwrap();
    host.podspawn(["stop", "ada"]).run().ok();
    eventually("it is removed", || host.sessions().is_empty());
    host.ssh("ada", "true").run().ok();
    host.assert_no_session_left();
}

#[test]
fn clients_that_have_not_logged_in_are_ended_with_the_server() {
    let mut host = Host::new().user("ada").start();
    let clients: Vec<_> = (0..3).map(|_| std::net::TcpStream::connect((host.address, Host::PORT)).unwrap()).collect();
    for client in &clients {
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut banner = [0; 4];
        std::io::Read::read_exact(&mut &*client, &mut banner).unwrap();
        assert_eq!(&banner, b"SSH-");
    }
    host.end(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(host.processes("connection"), [] as [i32; 0]);
}
