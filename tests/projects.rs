//! Projects: a repository's Podfile decides what a session of the project is.

mod common;

use std::{fs, os::unix::fs::symlink};

use common::{GitServer, Host, Run, eventually};

const MINIMAL: &str = "base: localhost/busybox:test\n";

/// What is left of projects on the host: entries of the list, and directories.
fn left(host: &Host) -> (Vec<String>, Vec<String>) {
    let listed = host.json(["list-projects"]).as_array().unwrap().clone();
    let listed = listed.iter().map(|project| project["name"].as_str().unwrap().to_owned()).collect();
    let directories = fs::read_dir(host.root.join("var/lib/podspawn/projects")).unwrap();
    let directories = directories.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    (listed, directories.filter(|name| name != ".lock").collect())
}

#[test]
fn a_session_of_a_project_is_what_its_podfile_says() {
    let host = Host::new().user("ada").config("defaults:\n  shell: /bin/ash").start();
    let git = GitServer::start();
    let podfile = "base: localhost/busybox:test\n\
                   shell: /bin/sh\n\
                   env: {WHO: \"${PODSPAWN_USER} in ${PODSPAWN_PROJECT}\", PATH: \"/opt/x:$PATH\", KEPT: \"$HOME\"}\n\
                   resources: {pids: 77, memory: 64m}\n\
                   mode: grace-period\n";
    let repository = git.repository("backend", &[("podfile.yaml", podfile)]);
    host.podspawn(["add-project", "backend", "--repo", &repository.url]).run().ok().stderr_has("backend: added at ");

    let print = "echo \"$WHO|$PATH|$KEPT|$SHELL|$PODSPAWN_PROJECT\"";
    let said = host.ssh("ada+backend", print).run().ok().text();
    assert!(said.starts_with("ada in backend|/opt/x:/"), "{said}");
    assert!(said.ends_with("bin|$HOME|/bin/sh|backend\n"), "{said}");
    host.ssh("ada", print).run().ok().stdout_has("|/bin/ash|");
    eventually("only the project's is left, in grace", || {
        let sessions = host.sessions();
        sessions.len() == 1 && sessions[0]["project"] == "backend" && sessions[0]["status"] == "grace"
    });
    host.podspawn(["stop", "ada@backend"]).run().ok();
    eventually("it is removed", || host.sessions().is_empty());
}

#[test]
fn the_limits_of_a_podfile_are_those_of_its_sessions() {
    let host = Host::new().user("ada").start();
    let git = GitServer::start();
    let podfile = format!("{MINIMAL}resources: {{pids: 12}}\n");
    let repository = git.repository("small", &[("podfile.yaml", &podfile)]);
    host.podspawn(["add-project", "small", "--repo", &repository.url]).run().ok();
    let many = "for i in $(seq 16); do sleep 60 > /dev/null 2>&1 & done; echo all";
    host.ssh("ada+small", many).run().status(2).stderr_has("can't fork");
    host.ssh("ada", many).run().ok().stdout("all\n");
}

#[test]
fn a_podfile_gets_no_more_than_the_administrator_allows_podfiles() {
    let host = Host::new().user("ada").config("resources:\n  max_pids: 12").start();
    let git = GitServer::start();
    let podfile = format!("{MINIMAL}resources: {{pids: 4096}}\n");
    let repository = git.repository("big", &[("podfile.yaml", &podfile)]);
    host.podspawn(["add-project", "big", "--repo", &repository.url]).run().ok();
    let many = "for i in $(seq 16); do sleep 60 > /dev/null 2>&1 & done; echo all";
    host.ssh("ada+big", many).run().status(2).stderr_has("can't fork");
    let users = host.root.join("etc/podspawn/users");
    fs::create_dir_all(&users).unwrap();
    fs::write(users.join("ada.yaml"), "pids: 100\n").unwrap();
    host.ssh("ada+big", many).run().ok().stdout("all\n");
}

#[test]
fn an_update_counts_for_the_next_session_and_a_bad_one_for_none() {
    let host = Host::new().user("ada").start();
    let git = GitServer::start();
    let podfile = |version: &str| format!("{MINIMAL}env: {{VERSION: {version}}}\n");
    let repository = git.repository("web", &[("podfile.yaml", &podfile("one"))]);
    host.podspawn(["add-project", "web", "--repo", &repository.url]).run().ok();
    let version = || host.ssh("ada+web", "echo $VERSION").run().ok().text();
    assert_eq!(version(), "one\n");

    let commit = repository.commit(&[("podfile.yaml", &podfile("two"))]);
    assert_eq!(version(), "one\n", "connecting fetches nothing");
    host.podspawn(["update-project", "web"]).run().ok().stderr_has("web: now at ");
    assert_eq!(host.json(["list-projects"])[0]["commit"], commit.as_str());
    assert_eq!(version(), "two\n");
    host.podspawn(["update-project", "web"]).run().ok().stderr_has("web: still at ");

    repository.commit(&[("podfile.yaml", "base: Nonsense\n")]);
    let output = host.podspawn(["update-project", "web"]).run();
    output.status(1).stderr_has("podfile.yaml:1:7: base: ").stderr_has("the Podfile of web is not valid: 1 error");
    assert_eq!(host.json(["list-projects"])[0]["commit"], commit.as_str());
    assert_eq!(version(), "two\n");
    assert_eq!(left(&host), (vec!["web".to_owned()], vec!["web".to_owned()]));
}

#[test]
fn the_branch_that_was_asked_for_is_used() {
    let host = Host::new().prepare();
    let git = GitServer::start();
    let repository = git.repository("web", &[("podfile.yaml", MINIMAL)]);
    repository.git(&["checkout", "-q", "-b", "other"]);
    let commit = repository.commit(&[("more", "x")]);
    repository.git(&["checkout", "-q", "main"]);
    host.podspawn(["add-project", "web", "--repo", &repository.url, "--branch", "other"]).run().ok();
    let listed = host.json(["list-projects"]);
    assert_eq!((&listed[0]["branch"], &listed[0]["commit"]), (&"other".into(), &commit.as_str().into()));
    let gone = host.podspawn(["add-project", "web2", "--repo", &repository.url, "--branch", "gone"]).run();
    gone.status(1).stderr_has("cannot clone the repository of project web2").stderr_has("gone not found");
    let option = host.podspawn(["add-project", "web2", "--repo", &repository.url, "--branch=-x"]).run();
    option.status(1).stderr_has("is not a name of a branch");
}

#[test]
fn what_cannot_be_used_leaves_nothing_behind() {
    let host = Host::new().prepare();
    let git = GitServer::start();
    let good = git.repository("good", &[("podfile.yaml", MINIMAL)]);
    let none = git.repository("none", &[("README", "x")]);
    let bad = git.repository("bad", &[("podfile.yaml", "base: x y\nshell: sh\nfoo: 1\n")]);
    let disk = git.repository(
        "disk",
        &[("podfile.yaml", &format!("{MINIMAL}services: [{{name: a, image: b, resources: {{disk: 5g}}}}]\n"))],
    );
    let add = |name: &str, url: &str| host.podspawn(["add-project", name, "--repo", url]).run();
    add("none", &none.url).status(1).stderr_has("has none of .podspawn/podfile.yaml, podfile.yaml");
    let output = add("bad", &bad.url);
    output.status(1).stderr_has("podfile.yaml:1:7: base").stderr_has("podfile.yaml:2:8: shell");
    output.stderr_has("podfile.yaml:3:1: foo: unknown field").stderr_has("the Podfile of bad is not valid: 3 errors");
    add("disk", &disk.url).status(1).stderr_has("resources.disk of service a is not supported by this version");
    add("gone", &format!("{}/gone", good.url)).status(1).stderr_has("cannot clone the repository of project gone");
    for url in ["/etc", "file:///etc", "ext::sh -c id", "host:x", "../x"] {
        add("x", url).status(1).stderr_has("is not a URL of a git repository");
    }
    add("../x", &good.url).status(1).stderr_has("project name \"../x\" is not valid");
    assert_eq!(left(&host), (vec![], vec![]));

    add("good", &good.url).ok();
    add("good", &good.url).status(1).stderr_has("there is a project good already");
    host.podspawn(["update-project", "other"]).run().status(1).stderr_has("there is no project other");
    host.podspawn(["remove-project", "other"]).run().status(1).stderr_has("there is no project other");
    assert_eq!(left(&host), (vec!["good".to_owned()], vec!["good".to_owned()]));
}

#[test]
fn a_hostile_repository_reads_and_runs_nothing_of_the_host() {
    let host = Host::new().prepare();
    let git = GitServer::start();
    let add = |name: &str, url: &str| host.podspawn(["add-project", name, "--repo", url]).run();
    let secret = host.scratch().join("secret.yaml");
    fs::write(&secret, "base: the.secret/x\n").unwrap();

    let link = git.repository("link", &[]);
    symlink("/etc/shadow", link.path().join("podfile.yaml")).unwrap();
    link.commit(&[]);
    add("link", &link.url).status(1).stderr_has("podfile.yaml is refused: it is a symbolic link");

    let inner = git.repository("inner", &[("podfile.yaml", "extends: up/secret.yaml\n")]);
    symlink(host.scratch(), inner.path().join("up")).unwrap();
    inner.commit(&[]);
    add("inner", &inner.url).status(1).stderr_has("it is a symbolic link, or behind one");

    let path = format!("extends: {}\n", secret.display());
    let absolute = git.repository("absolute", &[("podfile.yaml", &path)]);
    add("absolute", &absolute.url).status(1).stderr_has("it is outside the repository");
    let parent = git.repository("parent", &[("podfile.yaml", "extends: ../../../../../../etc/passwd.yaml\n")]);
    add("parent", &parent.url).status(1).stderr_has("it is outside the repository");

    let huge = git.repository("huge", &[("podfile.yaml", &"#".repeat((1 << 20) + 1))]);
    add("huge", &huge.url).status(1).stderr_has("it is larger than 1 MiB");
    assert_eq!(left(&host), (vec![], vec![]));

    // Hooks of the server's side are not sent, and a submodule and a filter are only what somebody else would follow.
    let mark = host.scratch().join("mark");
    let modules = format!("[submodule \"x\"]\n\tpath = x\n\turl = ext::sh -c touch% {}\n", mark.display());
    let runs = git.repository(
        "runs",
        &[("podfile.yaml", MINIMAL), (".gitmodules", &modules), (".gitattributes", "* filter=evil diff=evil\n")],
    );
    runs.git(&["config", "filter.evil.smudge", &format!("touch {}", mark.display())]);
    let hook = runs.path().join(".git/hooks/post-checkout");
    fs::write(&hook, format!("#!/bin/sh\ntouch {}\n", mark.display())).unwrap();
    Run::new("chmod").arg("755").arg(&hook).run().ok();
    add("runs", &runs.url).ok();
    assert!(!mark.exists());
}

#[test]
fn a_clone_is_nobodys_and_for_nobody_else_to_see() {
    use std::os::unix::fs::MetadataExt;
    let host = Host::new().prepare();
    let git = GitServer::start();
    let repository = git.repository("web", &[("podfile.yaml", MINIMAL)]);
    host.podspawn(["add-project", "web", "--repo", &repository.url]).run().ok();
    let clone = host.root.join("var/lib/podspawn/projects/web/repository");
    let owner = fs::metadata(clone.join("podfile.yaml")).unwrap().uid();
    assert_ne!(owner, 0);
    assert_eq!(fs::metadata(clone.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(host.root.join("etc/podspawn/projects.yaml")).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn a_project_with_sessions_is_removed_with_force_only() {
    let host = Host::new().user("ada").config("session:\n  mode: grace-period").start();
    let git = GitServer::start();
    let repository = git.repository("web", &[("podfile.yaml", MINIMAL)]);
    host.podspawn(["add-project", "web", "--repo", &repository.url]).run().ok();
    host.ssh("ada+web", "true").run().ok();
    host.podspawn(["remove-project", "web"])
        .run()
        .status(1)
        .stderr_has("web has sessions of ada; end them with --force");
    assert_eq!(host.sessions().len(), 1);
    host.podspawn(["remove-project", "web", "--force"]).run().ok().stderr_has("image prune");
    eventually("its session is removed", || host.sessions().is_empty());
    assert_eq!(left(&host), (vec![], vec![]));
}

#[test]
fn a_list_of_projects_that_cannot_be_read_is_the_administrators_to_mend() {
    let host = Host::new().user("ada").start();
    let list = host.root.join("etc/podspawn/projects.yaml");
    fs::write(&list, "web: {repo: github.com/o/web, brnch: x}\n").unwrap();
    let output = host.ssh("ada+web", "true").run();
    output.status(125).stderr_has("its log tells the administrator why");
    assert!(!output.stderr.contains("brnch"), "{output}");
    eventually("the log says why", || host.log().contains("unknown field `brnch`"));
    host.ssh("ada", "true").run().ok();
    host.podspawn(["list-projects"]).run().status(1).stderr_has("did you mean `branch`?");
}
