//! Repositories that are cloned a second time come from this host; nobody gets from it what the server does not give.

mod common;

use std::{
    fs,
    os::unix::fs::{FileExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, SystemTime},
};

use common::{
    GitServer, Host, Image, Run,
    command::finish,
    eventually,
    git::Repository,
    world::{PUBLIC, World},
};
use nix::sys::signal::Signal;

/// What the repository of the tests has of noise, which no compression makes smaller.
const NOISE: u64 = 3 << 20;

/// The project `web` with a large file, on a server in the internet.
fn add_project(host: &Host, git: &GitServer, podfile: &str) -> Repository {
    let podfile = format!("base: \"{}\"\n{podfile}", Image::Debian.reference());
    let repository = git.repository("web", &[("podfile.yaml", &podfile), ("docs/readme", "one\n")]);
    let noise = Run::new("sh").args(["-c", "head -c \"$1\" /dev/urandom > \"$2\"", "sh", &NOISE.to_string()]);
    noise.arg(repository.path().join("noise")).run().ok();
    repository.commit(&[]);
    repository.git(&["tag", "v1"]);
    host.podspawn(["add-project", "web", "--repo", &repository.url]).run().ok();
    repository
}

/// How many bytes the host has received from the internet.
fn received() -> u64 {
    let links = Run::new("ip").args(["-j", "-s", "link", "show", "up0"]).run().ok().text();
    let links: serde_json::Value = serde_json::from_str(&links).unwrap();
    links[0]["stats64"]["rx"]["bytes"].as_u64().unwrap()
}

fn mirrors(host: &Host) -> Vec<PathBuf> {
    let entries = fs::read_dir(host.root.join("var/lib/podspawn/mirrors")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// The packs of the only mirror.
fn packs(host: &Host) -> Vec<PathBuf> {
    let [mirror] = &mirrors(host)[..] else { panic!("{:?}", mirrors(host)) };
    let entries = fs::read_dir(mirror.join("repository/objects/pack")).unwrap();
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "pack")).collect()
}

/// Everything that tells one clone from another, but for what git numbers by the time.
const LOOK: &str = "git fsck --strict && git for-each-ref && git status --porcelain=v2 --branch && git config --local --list \
                    && sha256sum noise docs/readme && ls .git/objects/info && ls .git && git count-objects -v | grep in-pack \
                    && cat .git/objects/info/alternates";

#[test]
fn a_second_session_clones_what_is_new_and_nothing_else_and_has_the_same() {
    let world = World::enter();
    let host = Host::new().image(Image::Debian).user("ada").user("bob").user("eve").start();
    let git = GitServer::start_in(&world);
    let repository = add_project(&host, &git, "");

    let before = received();
    let first = host.ssh("ada+web", LOOK).run();
    first.status(1).stdout_has("refs/tags/v1").stderr_has("alternates: No such file");
    assert!(received() - before > NOISE, "{} bytes", received() - before);
    host.assert_no_session_left();

    let new = repository.commit(&[("docs/readme", "two\n")]);
    let look = format!("git rev-parse HEAD; cat docs/readme; {LOOK}");
    let before = received();
    let second = host.ssh("bob+web", &look).run();
    second.status(1).stdout_has(&format!("{new}\ntwo\n"));
    assert!(received() - before < NOISE / 10, "{} bytes", received() - before);
    host.assert_no_session_left();

    // Nothing is new.
    let before = received();
    let third = host.ssh("ada+web", &look).run();
    assert_eq!(third.text(), second.text());
    assert!(received() - before < NOISE / 100, "{} bytes", received() - before);
    host.assert_no_session_left();

    // One that is cloned without a mirror is the same.
    without_mirrors(&host);
    let before = received();
    let direct = host.ssh("eve+web", &look).run();
    assert!(received() - before > NOISE, "{} bytes", received() - before);
    assert_eq!(second.text(), direct.text());
    assert_eq!(packs(&host).len(), 2);
}

#[test]
fn a_second_clone_of_one_branch_has_the_refs_and_the_settings_of_the_first() {
    let world = World::enter();
    let host = Host::new().image(Image::Debian).user("ada").start();
    let git = GitServer::start_in(&world);
    let fix = format!("repos: [{{url: \"git://{PUBLIC}/web\", path: /srv/fix, branch: fix/it}}]\n");
    let repository = add_project(&host, &git, &fix);
    repository.git(&["branch", "fix/it"]);
    repository.commit(&[("docs/readme", "two\n")]);
    repository.git(&["tag", "v2"]);
    repository.git(&["tag", "--annotate", "--message", "three", "v3"]);
    let look = "cd /srv/fix && git for-each-ref && git status --porcelain=v2 --branch && git config --local --list && \
                sha256sum noise docs/readme && git fetch --quiet && git branch --all && git reflog | wc -l";
    let [first, second, third] = [(); 3].map(|()| {
        let before = received();
        let output = host.ssh("ada+web", look).run();
        host.assert_no_session_left();
        output.ok();
        (output.text(), received() - before)
    });
    assert!(first.0.contains("# branch.upstream origin/fix/it\n"), "{}", first.0);
    assert!(first.0.contains("refs/tags/v1\n") && !first.0.contains("refs/tags/v2"), "{}", first.0);
    assert_eq!((&second.0, &third.0), (&first.0, &first.0));
    assert!(third.1 < NOISE / 100, "{} bytes", third.1);
    without_mirrors(&host);
    assert_eq!(host.ssh("ada+web", look).run().text(), first.0);
}

#[test]
fn where_git_inside_asks_another_server_it_gets_what_that_one_has() {
    let world = World::enter();
    let host = Host::new().image(Image::Debian).user("ada").start();
    let git = GitServer::start_in(&world);
    let variables = [
        "GIT_CONFIG_COUNT: \"1\"".to_owned(),
        format!("GIT_CONFIG_KEY_0: url.git://{PUBLIC}/fork.insteadOf"),
        format!("GIT_CONFIG_VALUE_0: git://{PUBLIC}/web"),
    ];
    let repository = add_project(&host, &git, "");
    let fork = git.repository("fork", &[("docs/readme", "forked\n")]);
    let clone = |content: &str| {
        host.ssh("ada+web", "cat docs/readme").run().ok().stdout(content);
        host.assert_no_session_left();
    };
    // There is a mirror, of what is at the address.
    clone("one\n");
    assert_eq!(packs(&host).len(), 1);
    let podfile = fs::read_to_string(repository.path().join("podfile.yaml")).unwrap();
    repository.commit(&[("podfile.yaml", &format!("{podfile}env:\n  {}\n", variables.join("\n  ")))]);
    host.podspawn(["update-project", "web"]).run().ok();
    clone("forked\n");
    fork.commit(&[("docs/readme", "forked again\n")]);
    clone("forked again\n");
}

fn without_mirrors(host: &Host) {
    let config = fs::read_to_string(host.config_file()).unwrap();
    fs::write(host.config_file(), format!("{config}\nmirrors:\n  size: 0\n")).unwrap();
}

#[test]
fn nobody_gets_from_a_mirror_what_the_server_does_not_give() {
    let world = World::enter();
    let mut host = Host::new().image(Image::Debian).user("ada").user("bob").start();
    let git = GitServer::start_in(&world);
    let repository = add_project(&host, &git, "");
    host.ssh("ada+web", "cat docs/readme").run().ok().stdout("one\n");
    assert_eq!(packs(&host).len(), 1);
    host.assert_no_session_left();

    // His network does not lead there.
    let users = host.root.join("etc/podspawn/users");
    fs::create_dir_all(&users).unwrap();
    for egress in ["none", "[192.0.2.0/24]"] {
        fs::write(users.join("bob.yaml"), format!("egress: {egress}\n")).unwrap();
        let output = host.ssh("bob+web", "ls -A; ls -A /run/podspawn/mirrors").run();
        output.stdout("").stderr_has(&format!("{} is not cloned", repository.url));
        host.assert_no_session_left();
    }
    // The server gives it to nobody any more.
    fs::rename(repository.path(), repository.path().with_file_name("hidden")).unwrap();
    let output = host.ssh("ada+web", "ls -A; ls -A /run/podspawn/mirrors").run();
    output.ok().stdout("").stderr_has("is not cloned: git failed with exit status 128");
    host.assert_no_session_left();
    assert_eq!(packs(&host).len(), 1, "it may come back");

    // Too old, it goes without anybody asking for it.
    let config = fs::read_to_string(host.config_file()).unwrap();
    fs::write(host.config_file(), format!("{config}\nmirrors:\n  max_age: 1h\n")).unwrap();
    let made = fs::File::options().write(true).open(mirrors(&host)[0].join("url")).unwrap();
    made.set_modified(SystemTime::now() - Duration::from_secs(2 * 3600)).unwrap();
    host.end(Signal::SIGINT);
    host.serve();
    eventually("it is gone", || mirrors(&host).is_empty());
}

#[test]
fn a_sessions_root_reads_its_snapshot_and_cannot_change_it() {
    let world = World::enter();
    let host = Host::new().image(Image::Debian).user("ada").config("security:\n  nested: true").start();
    let git = GitServer::start_in(&world);
    add_project(&host, &git, "user: root\nmode: grace-period\n");
    host.ssh("ada+web", "ls -A /run/podspawn/mirrors").run().ok().stdout("");
    // What it is given while it clones, once more.
    let [pack] = &packs(&host)[..] else { panic!("{:?}", packs(&host)) };
    let session = fs::read_dir(host.root.join("var/lib/podspawn/sessions")).unwrap().next().unwrap().unwrap().path();
    let snapshot = session.join("mirrors/0");
    fs::create_dir(&snapshot).unwrap();
    fs::set_permissions(&snapshot, fs::Permissions::from_mode(0o755)).unwrap();
    fs::hard_link(pack, snapshot.join("pack")).unwrap();
    fs::write(snapshot.join("program"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(snapshot.join("program"), fs::Permissions::from_mode(0o4755)).unwrap();
    chown(snapshot.join("program"), Some(0), Some(0)).unwrap();
    let content = fs::read(pack).unwrap();

    let script = "cd /run/podspawn/mirrors/0; id -u; head -c 4 pack; echo
        findmnt -no OPTIONS -T . | grep -o -E '^ro|nosuid|nodev|noexec'
        stat -c '%U' pack; ./program 2> /dev/null || echo no exec
        mount -o remount,rw,bind /run/podspawn/mirrors 2> /dev/null
        for attempt in 'touch new' 'rm pack' 'sh -c \": >> pack\"' 'chmod 666 pack' 'chown 0 pack' 'ln pack other' \
            'mv pack other' 'truncate -s 0 pack' 'mkdir ../1'; do
            eval \"$attempt\" 2> /dev/null && echo \"done: $attempt\"
        done; echo end";
    let output = host.ssh("ada+web", script).run();
    output.ok().stdout("0\nPACK\nro\nnosuid\nnodev\nnoexec\nnobody\nno exec\nend\n");
    assert_eq!(fs::read(pack).unwrap(), content);
    host.podspawn(["stop", "ada@web"]).run().ok();
    host.assert_no_session_left();
    assert_eq!(fs::read(pack).unwrap(), content);
}

#[test]
fn a_damaged_mirror_is_made_anew_and_fails_no_clone() {
    let world = World::enter();
    let host = Host::new().image(Image::Debian).user("ada").start();
    let git = GitServer::start_in(&world);
    let repository = add_project(&host, &git, "");
    let clone = || {
        let output = host.ssh("ada+web", "git fsck && git log --format=%s | wc -l && sha256sum < noise").run();
        let sum = Run::new("sha256sum").input(fs::read(repository.path().join("noise")).unwrap()).run().text();
        output.ok().stdout(&format!("2\n{sum}"));
        assert!(!output.stderr.contains("not cloned"), "{output}");
        host.assert_no_session_left();
    };
    clone();
    let [pack] = &packs(&host)[..] else { panic!("{:?}", packs(&host)) };
    let file = fs::File::options().write(true).open(pack).unwrap();
    file.write_all_at(&[0x55; 4096], NOISE / 2).unwrap();
    clone();
    assert_eq!(mirrors(&host), Vec::<PathBuf>::new(), "what has been of no use is thrown away");
    clone();
    let index = packs(&host)[0].with_extension("idx");
    fs::remove_file(index).unwrap();
    clone();
    clone();
    assert_eq!(packs(&host).len(), 1);
    // What it was half done with.
    fs::write(mirrors(&host)[0].join("writing"), "").unwrap();
    fs::write(mirrors(&host)[0].join("repository/packed-refs.lock"), "").unwrap();
    let before = received();
    clone();
    assert!(received() - before > NOISE, "it is made anew");
    assert!(!mirrors(&host)[0].join("writing").exists());
}

#[test]
fn sessions_that_start_at_once_share_a_mirror() {
    let world = World::enter();
    let users = ["ada", "bob", "eve"];
    let host = users.iter().fold(Host::new().image(Image::Debian), |host, user| host.user(user)).start();
    let git = GitServer::start_in(&world);
    add_project(&host, &git, "");
    let before = received();
    let clients = users.map(|user| (user, host.ssh(&format!("{user}+web"), "git fsck && cat docs/readme").spawn()));
    for (user, client) in clients {
        finish(user, client).ok().stdout("one\n");
    }
    assert!(received() - before < 2 * NOISE, "{} bytes", received() - before);
    assert_eq!(packs(&host).len(), 1);
}

#[test]
fn a_repository_that_is_too_large_for_a_mirror_is_cloned_without_one() {
    let world = World::enter();
    let host = Host::new().image(Image::Debian).user("ada").config("mirrors: {size: 4m}").start();
    let git = GitServer::start_in(&world);
    add_project(&host, &git, "");
    host.ssh("ada+web", "git fsck && cat docs/readme").run().ok().stdout("one\n");
    host.assert_no_session_left();
    let names =
        |path: &Path| -> Vec<_> { fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect() };
    assert_eq!(names(&mirrors(&host)[0]), ["refused"], "it is not tried again and again");
    let before = received();
    host.ssh("ada+web", "cat docs/readme").run().ok().stdout("one\n");
    assert!(received() - before < NOISE * 3 / 2, "{} bytes", received() - before);
}

/// A server in the internet that takes connections and says nothing.
fn silent(world: &World) -> Child {
    let script =
        "import socket, time; s = socket.create_server(('0.0.0.0', 9419)); print('up', flush=True); time.sleep(600)";
    let mut command = world.enter_with("setpriv");
    let mut child =
        command.args(["--pdeathsig", "KILL", "python3", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
    child
}

#[test]
fn nothing_is_left_of_an_update_whose_session_or_server_ends() {
    let world = World::enter();
    let mut host = Host::new().image(Image::Debian).user("ada").start();
    let git = GitServer::start_in(&world);
    let mut server = silent(&world);
    add_project(&host, &git, &format!("repos: [{{url: \"git://{PUBLIC}:9419/slow\", path: /srv/slow}}]\n"));
    let at_work = |host: &Host| host.processes("git").into_iter().any(|_| true);
    let slow = |host: &Host| {
        let slow = mirrors(host)
            .into_iter()
            .find(|path| fs::read_to_string(path.join("url")).is_ok_and(|url| url.ends_with("/slow")));
        slow.filter(|path| path.join("writing").exists())
    };

    let client = host.ssh("ada+web", "true").spawn();
    eventually("it is fetched", || slow(&host).is_some());
    host.podspawn(["stop", "ada@web"]).run().ok();
    finish("a client", client).status(125);
    host.assert_no_session_left();
    eventually("nothing is left of it", || slow(&host).is_none() && mirrors(&host).len() == 1 && !at_work(&host));

    let client = host.ssh("ada+web", "true").spawn();
    eventually("it is fetched", || slow(&host).is_some());
    host.end(Signal::SIGKILL);
    let left = slow(&host).unwrap().display().to_string();
    eventually("git has ended with the server", || host.podspawn(["doctor"]).run().text().contains(&left));
    host.serve();
    assert_eq!(mirrors(&host).len(), 1);
    finish("a client", client).status(125);
    host.assert_no_session_left();
    server.kill().unwrap();
    server.wait().unwrap();
}
