//! The images of services that scripts/build-images makes of the recipes in images/: as the official ones, by the variables that
//! they understand, to the clients that everybody has.

mod common;

use std::{fs, time::Duration};

use common::{GitServer, Host, Image};

/// On Debian, with the clients.
const CLIENTS: &str = "base: bootstrap:debian/bookworm
extra_commands:
  - apt-get update && apt-get install -y --no-install-recommends curl postgresql-client redis-tools
";

/// Makes a project of a repository that has these services. The clients are installed the first time only.
fn project(host: &Host, git: &GitServer, name: &str, rest: &str) {
    let file = host.scratch().join("clients.yaml");
    fs::write(&file, CLIENTS).unwrap();
    host.podspawn(["-q", "prebuild", "--podfile"]).arg(&file).deadline(Duration::from_secs(600)).run().ok();
    let repository = git.repository(name, &[("podfile.yaml", &format!("{CLIENTS}{rest}"))]);
    host.podspawn(["add-project", name, "--repo", &repository.url]).run().ok();
}

#[test]
fn databases_and_servers_are_used_by_name_in_on_create_at_once() {
    let host = Host::new().user("ada").image(Image::Services).start();
    let git = GitServer::start();
    let rest = r#"
services:
  - name: postgres
    image: localhost/postgres
    ports: [5432]
    env: {POSTGRES_PASSWORD: "it's secret", POSTGRES_USER: app, POSTGRES_DB: my data, POSTGRES_INITDB_ARGS: "--data-checksums"}
  - name: redis
    image: localhost/redis
    ports: [6379]
    command: --maxmemory 32mb
  - name: web
    image: localhost/nginx
    ports: [80]
env: {PGPASSWORD: "it's secret"}
on_create: |
  psql -h postgres -U app -d 'my data' -qtAc 'CREATE TABLE t (x int); INSERT INTO t VALUES (42)'
  redis-cli -h redis set key value
  curl -sS -o /dev/null -w '%{http_code}\n' http://web/
"#;
    project(&host, &git, "shop", rest);
    let script = "
        psql -h postgres -U app -d 'my data' -tAc 'SELECT x FROM t; SHOW data_checksums; SELECT current_user'
        redis-cli -h redis get key
        redis-cli -h redis config get maxmemory | tail -n 1
        curl -sS http://web/ | grep -o '<h1>.*</h1>'
        PGPASSWORD=wrong psql -h postgres -U app -d 'my data' -c '' 2>&1 | grep -o 'password authentication failed'";
    let output = host.ssh("ada+shop", script).run();
    output
        .ok()
        .stdout("42\non\napp\nvalue\n33554432\n<h1>Welcome to nginx!</h1>\npassword authentication failed\n")
        .stderr_has("\nOK\n200\n");
    host.assert_no_session_left();
}

#[test]
fn a_database_without_a_password_says_what_to_set() {
    let host = Host::new().user("ada").image(Image::Services).start();
    let git = GitServer::start();
    project(&host, &git, "shop", "services:\n  - {name: postgres, image: localhost/postgres, ports: [5432]}\n");
    let output = host.ssh("ada+shop", "true").run();
    output.status(125).stdout("").stderr_has("POSTGRES_PASSWORD is not set");
    host.assert_no_session_left();
}
