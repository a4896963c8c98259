//! Databases beside sessions: each session has its own, as large as work needs it.

mod common;

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdout},
    time::Duration,
};

use common::{GitServer, Host, Image};

/// How long a database may take that is one of twenty which begin at once.
const LONG: Duration = Duration::from_secs(600);

/// A project with postgres, in whose image the clients are too, and without passwords.
fn project(host: &Host, git: &GitServer, name: &str) {
    let podfile = "base: localhost/postgres
env: {PGHOST: postgres, PGUSER: postgres}
services:
  - name: postgres
    image: localhost/postgres
    ports: [5432]
    env: {POSTGRES_HOST_AUTH_METHOD: trust, POSTGRES_INITDB_ARGS: --no-sync}
    volumes: ['data:/var/lib/postgresql/data']
    ready: {timeout: 10m}
";
    let repository = git.repository(name, &[("podfile.yaml", podfile)]);
    host.podspawn(["add-project", name, "--repo", &repository.url]).run().ok();
}

#[test]
fn a_hundred_clients_of_a_session_use_its_database_at_once() {
    let host = Host::new().user("ada").image(Image::Services).start();
    let git = GitServer::start();
    project(&host, &git, "bench");
    let script = "
        pgbench --quiet --initialize --scale=2 2> /dev/null
        pgbench --no-vacuum --client=100 --jobs=2 --transactions=10 2>&1
        psql -tAc 'select count(*) from pgbench_history'";
    let output = host.ssh("ada+bench", script).deadline(LONG).run();
    output
        .ok()
        .stdout_has("number of clients: 100\n")
        .stdout_has("transactions actually processed: 1000/1000\nnumber of failed transactions: 0 (0.000%)\n")
        .stdout_has("\n1000\n");
    host.assert_no_session_left();
}

/// A client that writes a row, and waits for a word until it counts the rows.
fn client(host: &Host, user: &str) -> (Child, BufReader<ChildStdout>) {
    let script = "psql -qc 'create table who (name text)' -c \"insert into who values ('$USER')\" && echo written && \
                  read go && psql -tAc 'select count(*), min(name) from who'";
    let mut client = host.ssh(&format!("{user}+many"), script).spawn();
    let said = BufReader::new(client.stdout.take().unwrap());
    (client, said)
}

#[test]
fn twenty_sessions_of_one_project_have_twenty_databases() {
    let users: Vec<String> = (1..=20).map(|number| format!("user{number}")).collect();
    let host = users.iter().fold(Host::new().image(Image::Services), |host, user| host.user(user)).start();
    let git = GitServer::start();
    project(&host, &git, "many");
    let mut clients: Vec<_> = users.iter().map(|user| client(&host, user)).collect();
    let next = |said: &mut BufReader<ChildStdout>| {
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        line
    };
    for (user, (client, said)) in users.iter().zip(&mut clients) {
        let said = next(said);
        let mut errors = String::new();
        if said != "written\n" {
            client.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        }
        assert_eq!(said, "written\n", "{user}: {errors}");
    }
    assert_eq!(host.sessions().len(), 20, "all are there at once");
    for (user, (client, said)) in users.iter().zip(&mut clients) {
        client.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert_eq!(next(said), format!("1|{user}\n"));
        assert!(client.wait().unwrap().success());
    }
    // Databases, their volumes and all that made segments of them went with the last connections.
    host.assert_no_session_left();
    assert!(!host.root.join("var/lib/podspawn/volumes").exists());
}
