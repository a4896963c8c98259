//! The recipes in images/, and what scripts/build-images makes of them. Images of services are as the official ones, by the
//! variables that they understand, to the clients that everybody has.

mod common;

use std::{fs, path::Path, time::Duration};

use common::{
    GitServer, Host, Image, Run, binary,
    registry::{Access, Registry},
};

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

#[test]
fn every_recipe_says_what_is_built() {
    let host = Host::new().no_image().prepare();
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("images");
    let files = fs::read_dir(images).unwrap().map(|entry| entry.unwrap().path());
    let (services, templates): (Vec<_>, Vec<_>) = files.partition(|path| path.is_dir());
    assert!(services.len() >= 3 && templates.len() >= 9, "{services:?} {templates:?}");
    let check = |file: &Path| {
        let checked = host.podspawn(["podfile", "check", "--json"]).arg(file).run();
        let checked: serde_json::Value = serde_json::from_str(&checked.ok().text()).unwrap();
        assert_eq!(checked["warnings"], serde_json::json!([]), "{}", file.display());
        checked["podfile"].clone()
    };
    for template in &templates {
        let podfile = check(template);
        assert_eq!(podfile["base"], "ubuntu:24.04", "{}", template.display());
        let packages: Vec<&str> = podfile["packages"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
        assert!(packages.contains(&"git"), "{}: {packages:?}", template.display());
        let name = template.file_stem().unwrap().to_str().unwrap();
        for (language, users) in [
            ("nodejs@", ["node", "fullstack"]),
            ("python@", ["python", "data-science"]),
            ("go@", ["go", "fullstack"]),
            ("rust@", ["rust", "rust"]),
        ] {
            let is_there = packages.iter().any(|package| package.starts_with(language));
            assert_eq!(is_there, users.contains(&name), "{language} in {name}: {packages:?}");
        }
    }
    for service in &services {
        assert_eq!(check(&service.join("podfile.yaml"))["base"], "bootstrap:debian/bookworm");
        let config: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(service.join("config.json")).unwrap()).unwrap();
        assert!(config["ExposedPorts"].is_object() && service.join("entrypoint.sh").is_file(), "{}", service.display());
    }
}

#[test]
fn a_recipe_is_built_on_the_side_and_pushed() {
    let registry = Registry::start(Access::Open);
    let side = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/build-images");
    let build = |arguments: &[&str]| {
        let run = Run::new(&script).args(arguments).env("PODSPAWN", binary()).env("TMPDIR", side.path());
        run.deadline(Duration::from_secs(900)).run()
    };
    build(&["minimal"]).status(1).stderr_has("say --push REGISTRY");
    build(&["--push", &registry.name, "nosuch"]).status(1).stderr_has("there is no recipe nosuch; there are agent");
    let built = build(&["--push", &registry.name, "minimal"]);
    built.ok().stderr_has("==> minimal").stdout_has("minimal ").stdout_has("sha256:");
    assert_eq!(fs::read_dir(side.path()).unwrap().count(), 0, "the instance that built it is left");

    // Whoever pulls it has what it says.
    let name = format!("{}/minimal:latest", registry.name);
    let config = format!("images:\n  insecure: [{:?}]\ndefaults:\n  image: {name}", registry.name);
    let host = Host::new().no_image().config(&config).user("ada").start();
    let seen = host.ssh("ada", "git --version; curl --version; ls /etc/ssl/certs/ca-certificates.crt").run();
    seen.ok().stdout_has("git version 2.").stdout_has("curl 7.").stdout_has("/ca-certificates.crt");
    let digest = host.json_of(["image", "inspect", &name])["digest"].as_str().unwrap().to_owned();
    built.stdout_has(&digest);
}
