//! Which session a connection gets: by login name, variable, or announcement. Judged inside it, and by `podspawn list`.

use std::{
    fs,
    io::Read,
    process::Child,
    time::{Duration, Instant},
};

use crate::common::{Host, Master, Ssh, eventually};

/// What a session says of itself. Those of the tests are of projects that the server has not registered, and so have the
/// default image.
const WHO: &str = "echo ${PODSPAWN_PROJECT-none}";

/// A host that has projects, so that it waits for a client's variable.
fn with_projects() -> Host {
    let host = Host::new().user("ada").config("session:\n  mode: destroy-on-disconnect").prepare();
    fs::write(host.root.join("etc/podspawn/projects.yaml"), "{}\n").unwrap();
    serve(host)
}

fn serve(mut host: Host) -> Host {
    host.serve();
    host
}

fn set(ssh: Ssh, project: &str) -> Ssh {
    ssh.args(["-o", &format!("SetEnv=PODSPAWN_PROJECT={project}")])
}

/// The same, in the one way that a connection's later sessions can: if its master has the option too.
fn send(ssh: Ssh, project: &str) -> Ssh {
    ssh.args(["-o", "SendEnv=PODSPAWN_PROJECT"]).env("PODSPAWN_PROJECT", project)
}

/// A ProxyCommand that announces a project.
fn announcing(host: &Host, project: &str) -> String {
    let (address, port) = (host.address, Host::PORT);
    format!(r#"ProxyCommand=sh -c "{{ printf 'PODSPAWN/1 project={project}\r\n'; cat; }} | nc {address} {port}""#)
}

/// Projects of the sessions that there are.
fn projects(host: &Host) -> Vec<Option<String>> {
    host.sessions().iter().map(|session| session["project"].as_str().map(str::to_owned)).collect()
}

/// Waits until the command has said something.
fn first_line(child: &mut Child) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while child.stdout.as_mut().unwrap().read(&mut byte).unwrap() == 1 && byte != *b"\n" {
        line.extend(byte);
    }
    String::from_utf8(line).unwrap()
}

#[test]
fn the_login_name_goes_before_the_variable_and_that_before_the_announcement() {
    let host = with_projects();
    host.ssh("ada", WHO).run().ok().stdout("none\n");
    set(host.ssh("ada", WHO), "web").run().ok().stdout("web\n");
    set(host.ssh("ada", WHO), "web.pod").run().ok().stdout("web\n");
    set(host.ssh("ada", WHO), "").run().ok().stdout("none\n");
    host.ssh("ada+api", WHO).run().ok().stdout("api\n");
    set(host.ssh("ada+api", WHO), "web").run().ok().stdout("api\n");
    let announced = announcing(&host, "db");
    host.ssh("ada", WHO).args(["-o", &announced]).run().ok().stdout("db\n");
    set(host.ssh("ada", WHO).args(["-o", &announced]), "db.pod").run().ok().stdout("db\n");
    host.ssh("ada+api", WHO).args(["-o", &announced]).run().ok().stdout("api\n");
    // Judged from outside too: list, and the audit log, of whose sessions none was made that nobody was in.
    let mut child = set(host.ssh("ada", "echo; exec cat"), "web").spawn();
    first_line(&mut child);
    assert_eq!(projects(&host), [Some("web".to_owned())]);
    drop(child.stdin.take());
    child.wait().unwrap();
    let made: Vec<_> = host.audit().into_iter().filter(|event| event["event"] == "container.create").collect();
    let projects: Vec<_> = made.iter().map(|event| event["project"].as_str().unwrap_or("none")).collect();
    assert_eq!(projects, ["none", "web", "web", "none", "api", "api", "db", "db", "api", "web"]);
    let connected: Vec<_> = host.audit().into_iter().filter(|event| event["event"] == "session.connect").collect();
    assert_eq!(connected.last().unwrap()["project"], "web");
}

#[test]
fn a_variable_that_cannot_be_followed_is_refused_with_a_line_and_status_125() {
    let host = with_projects();
    let refused = |ssh: Ssh, why: &str| {
        ssh.run().status(125).stdout("").stderr(&format!("podspawn: PODSPAWN_PROJECT{why}\n"));
    };
    refused(
        set(host.ssh("ada", WHO), "../../etc"),
        ": project name \"../../etc\" is not valid: it must match [a-z_][a-z0-9_.-]{0,31} and not contain \"..\"",
    );
    refused(
        set(host.ssh("ada", WHO).args(["-o", &announcing(&host, "db")]), "web"),
        " names project web, but this connection is already in project db",
    );
    let output = set(host.ssh("ada", WHO).args(["-tt"]), "No").run();
    output.status(125).stdout("").stderr_has("podspawn: PODSPAWN_PROJECT: project name \"No\" is not valid");
    assert!(output.stderr.ends_with("\r\n"), "{output}");
    host.assert_no_session_left();

    let host = Host::new().user("ada").start();
    refused(set(host.ssh("ada", WHO), "web"), " names project web, but this server has no projects");
    host.ssh("ada+web", WHO).run().ok().stdout("web\n");
}

#[test]
fn all_channels_of_a_connection_are_in_the_session_of_the_first() {
    let host = with_projects();
    let master = Master::start(&host, "ada", &["-o", "SendEnv=PODSPAWN_PROJECT"]);
    assert!(host.sessions().is_empty(), "nothing has been asked for yet");
    send(master.ssh(WHO), "web").run().ok().stdout("web\n");
    master.ssh(WHO).run().ok().stdout("web\n");
    send(master.ssh(WHO), "web.pod").run().ok().stdout("web\n");
    let other = send(master.ssh(WHO), "api").run();
    other.status(125).stderr_has("names project api, but this connection is already in project web");
    assert_eq!(projects(&host), [Some("web".to_owned())]);
    master.end();
    host.assert_no_session_left();
}

#[test]
fn a_client_that_is_logged_in_may_take_its_time_to_ask_for_something() {
    let host = Host::new().user("ada").config("auth:\n  login_grace_time: 3s\n  max_startups: 1").prepare();
    fs::write(host.root.join("etc/podspawn/projects.yaml"), "{}\n").unwrap();
    let host = serve(host);
    let master = Master::start(&host, "ada", &["-o", "SendEnv=PODSPAWN_PROJECT"]);
    // It does not count among those that have not logged in: there is room for one more, which comes and goes.
    set(host.ssh("ada", WHO), "api").run().ok().stdout("api\n");
    // Nor does the time to log in count for it any more, of which the server adds ten seconds for its own process.
    let logged_in = Instant::now();
    while logged_in.elapsed() < Duration::from_secs(15) {
        master.control(&["check"]).ok();
        std::thread::sleep(Duration::from_millis(500));
    }
    send(master.ssh(WHO), "web").run().ok().stdout("web\n");
}

#[test]
fn forwarding_alone_is_routed_by_login_name_and_announcement() {
    let host = with_projects();
    for (login, options, project) in
        [("ada", vec![], None), ("ada+web", vec![], Some("web")), ("ada", vec![announcing(&host, "db")], Some("db"))]
    {
        let options = options.iter().flat_map(|option| ["-o", option]);
        let mut child =
            host.ssh(login, "").args(["-N", "-R", "7001:localhost:7001"]).args(options.collect::<Vec<_>>()).spawn();
        eventually("there is a session", || projects(&host) == [project.map(str::to_owned)]);
        child.kill().unwrap();
        child.wait().unwrap();
        host.assert_no_session_left();
    }
    // A session channel's variable comes too late then.
    let late = set(host.ssh("ada", WHO).args(["-R", "7001:localhost:7001"]), "web").run();
    late.status(125).stderr_has("this connection is already in a session without a project");
}
