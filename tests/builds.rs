//! Images of Podfiles: what is built, what is not built again, and what a build leaves.

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    process::Child,
    sync::{Arc, Mutex},
    thread,
};

use common::{GitServer, Host, Image, Output, Run, command::finish, eventually};
use nix::sys::signal::Signal;

const BUSYBOX: &str = "localhost/busybox:test";

/// Writes a Podfile for the host.
fn podfile(host: &Host, name: &str, text: &str) -> PathBuf {
    let file = host.scratch().join(format!("{name}.yaml"));
    fs::write(&file, text).unwrap();
    file
}

/// A Podfile on busybox with these commands.
fn commands(host: &Host, name: &str, commands: &[&str]) -> PathBuf {
    let list: Vec<String> = commands.iter().map(|command| format!("  - {command:?}\n")).collect();
    podfile(host, name, &format!("base: {BUSYBOX}\nextra_commands:\n{}", list.concat()))
}

fn prebuild(host: &Host, file: &std::path::Path, more: &[&str]) -> Output {
    host.podspawn(["prebuild", "--podfile"]).arg(file).args(more).run()
}

/// Starts a build and does not wait for it.
fn begin(host: &Host, file: &std::path::Path) -> Child {
    host.podspawn(["prebuild", "--podfile"]).arg(file).spawn()
}

/// What the files of an image are, as `tar` lists them.
fn listing(host: &Host, image: &str) -> String {
    let tar = host.scratch().join("exported.tar");
    host.podspawn(["image", "export", image]).arg(&tar).run().ok();
    Run::new("tar").args(["--numeric-owner", "-tvf"]).arg(&tar).run().ok().text()
}

fn built(host: &Host) -> Vec<String> {
    let images = host.json(["image", "ls", "--all"]);
    let steps = images.as_array().unwrap().iter().filter_map(|image| image["step"].as_str().map(str::to_owned));
    steps.collect()
}

#[test]
fn a_step_is_done_once_and_a_change_counts_from_there_on() {
    let host = Host::new().start();
    let first = prebuild(&host, &commands(&host, "a", &["echo 1 > /one", "echo 2 > /two", "echo 3 > /three"]), &[]);
    first.ok().stderr_has("step 1/3: run echo 1").stderr_has("step 3/3: run echo 3");
    let image = first.text();

    // A comment, or something that is not in the image, changes nothing.
    let text = fs::read_to_string(host.scratch().join("a.yaml")).unwrap();
    let same = podfile(&host, "b", &format!("# Why.\n{text}\non_start: date\n"));
    prebuild(&host, &same, &[]).ok().stdout(&image).stderr("");

    let changed = commands(&host, "c", &["echo 1 > /one", "echo zwei > /two", "echo 3 > /three"]);
    let second = prebuild(&host, &changed, &[]);
    second.ok().stderr_has("step 2/3: run echo zwei").stderr_has("step 3/3: run echo 3");
    assert!(!second.stderr.contains("step 1/3"), "{second}");
    assert_ne!(second.text(), image);
    assert_eq!(built(&host).len(), 5);
    host.podspawn(["image", "ls"]).run().ok();
    assert_eq!(host.json(["image", "ls"]).as_array().unwrap().len(), 1);
}

#[test]
fn a_session_gets_what_was_built_and_nothing_of_the_build() {
    let host = Host::new().user("ada").start();
    let steps = [
        "mkdir /opt && echo kept > /opt/file && chmod 4755 /bin/busybox",
        "echo $HOME $A \"${PODSPAWN_USER-none}\" > /opt/environment; id -u >> /opt/environment; pwd >> /opt/environment",
        "rm /opt/file /etc/group && mkdir /opt/other && chown 33:44 /opt/other && ln /opt/environment /opt/link",
    ];
    let file = commands(&host, "made", &steps);
    let text = fs::read_to_string(&file).unwrap() + "env:\n  A: b c\n";
    fs::write(&file, text).unwrap();
    prebuild(&host, &file, &["--tag", "localhost/made:1"]).ok();
    let images = host.json_of(["image", "inspect", "localhost/made:1"]);
    let first = images["layers"][2]["name"].as_str().unwrap();
    let etc = fs::read_dir(host.images().join("layers").join(first).join("etc"));
    assert_eq!(etc.into_iter().flatten().count(), 0, "the step has changed nothing there");

    let config = fs::read_to_string(host.config_file()).unwrap();
    fs::write(host.config_file(), config.replace(BUSYBOX, "localhost/made:1")).unwrap();

    let command =
        "cat /opt/environment; stat -c '%a %u' /bin/busybox; stat -c %u:%g /opt/other; ls /opt; stat -c %h /opt/link";
    let seen = "/root b c none\n0\n/\n4755 0\n33:44\nenvironment\nlink\nother\n2\n";
    host.ssh("ada", command).run().ok().stdout(seen);

    let listing = listing(&host, "localhost/made:1");
    for runtime in
        ["etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/group", " ./dev", " ./proc", " ./sys", "opt/file"]
    {
        assert!(!listing.contains(runtime), "{runtime} in\n{listing}");
    }
    assert!(listing.contains("33/44") && listing.contains("-rwsr-xr-x 0/0"), "{listing}");
}

#[test]
fn a_step_that_fails_shows_its_end_and_leaves_nothing() {
    let host = Host::new().start();
    let steps = ["echo 1 > /one", "for i in $(seq 30); do echo line $i; done; echo why >&2; exit 7", "echo 3 > /three"];
    let file = commands(&host, "fails", &steps);
    let output = prebuild(&host, &file, &[]);
    output
        .status(1)
        .stderr_has("step 2/3: run for i in")
        .stderr_has("it ended with status 7")
        .stderr_has("| line 30\n");
    output.stderr_has("| why\n");
    assert!(!output.stderr.contains("line 3\n") && !output.stderr.contains("step 3/3: run echo 3\n"), "{output}");
    assert_eq!(built(&host), ["run echo 1 > /one"]);
    host.assert_no_session_left();
    let layers = || fs::read_dir(host.images().join("layers")).unwrap().count();
    assert_eq!(layers(), 2);
    // What a shell or a signal says is passed on as well.
    prebuild(&host, &commands(&host, "killed", &["kill -9 $$"]), &[]).status(1).stderr_has("it was ended by signal 9");
    let file = podfile(&host, "shell", &format!("base: {BUSYBOX}\nshell: /bin/no\nextra_commands: [id]\n"));
    prebuild(&host, &file, &[]).status(1).stderr_has("/bin/no");
    assert_eq!(layers(), 2);
}

#[test]
fn a_step_has_its_time_and_its_limits() {
    let config = "builds:\n  step_timeout: 2s\ndefaults:\n  memory: 64m\nsecurity:\n  pids_limit: 32";
    let host = Host::new().config(config).start();
    let output = prebuild(&host, &commands(&host, "slow", &["echo first; sleep 1000"]), &[]);
    output.status(1).stderr_has("it was ended after 2s").stderr_has("| first\n");
    let output =
        prebuild(&host, &commands(&host, "large", &["x=$(head -c 200m /dev/zero | tr '\\\\0' x); echo $?"]), &[]);
    output.status(1).stderr_has("step 1/1");
    host.assert_no_session_left();
    assert!(built(&host).is_empty());
}

#[test]
fn who_comes_while_it_is_built_waits_for_the_same_build() {
    let host = Host::new().start();
    // Two builds would not be the same.
    let file = commands(&host, "shared", &["cat /proc/sys/kernel/random/uuid > /once; sleep 2", "echo 2 > /two"]);
    let builds: Vec<Child> = (0..3).map(|_| begin(&host, &file)).collect();
    let outputs: Vec<Output> = builds.into_iter().map(|build| finish("a build", build)).collect();
    for output in &outputs {
        output.ok().stdout(&outputs[0].text()).stderr_has("step 1/2").stderr_has("step 2/2");
    }
    // Other plans that begin with the same step wait for it as well.
    let step = "cat /proc/sys/kernel/random/uuid > /twice; sleep 2";
    let files = ["echo a > /a", "echo b > /b"].map(|last| commands(&host, &last[5..6], &[step, last]));
    let builds = files.map(|file| begin(&host, &file));
    for build in builds {
        finish("a build", build).ok();
    }
    let steps = built(&host);
    assert_eq!(steps.iter().filter(|step| step.contains("/twice")).count(), 1);
    let same = |text: &str| {
        let images = host.json(["image", "ls", "--all"]);
        let images = images.as_array().unwrap();
        let image = images.iter().find(|image| image["step"] == *format!("run echo {text} > /{text}")).unwrap();
        image["layers"].as_array().unwrap()[1..].to_vec()
    };
    assert_eq!(same("a"), same("b"), "both are on top of one layer");
}

#[test]
fn a_build_goes_on_without_those_who_wait_for_it() {
    let host = Host::new().start();
    let file = commands(&host, "left", &["sleep 2; echo 1 > /one"]);
    let mut left = begin(&host, &file);
    eventually("the step runs", || host.sql("select count(*) from sessions where kind = 'build'").trim() == "1");
    left.kill().unwrap();
    left.wait().unwrap();
    eventually("it is built", || !built(&host).is_empty());
    host.assert_no_session_left();
}

#[test]
fn a_server_that_dies_over_a_build_leaves_nothing_to_the_next() {
    let mut host = Host::new().start();
    let file = commands(&host, "cut", &["echo 1 > /one", "echo 2 > /two; sleep 1000"]);
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT] {
        let build = begin(&host, &file);
        eventually("the second step runs", || {
            let inits = common::leaks::inits(&podspawn::names::InstanceTag::of_root(&host.root));
            inits.len() == 1 && built(&host).len() == 1
        });
        host.end(signal);
        let output = finish("a build whose server has ended", build);
        assert_ne!(output.status, Some(0), "{output}");
        if signal != Signal::SIGKILL {
            host.assert_no_session_left();
        }
        host.serve();
        host.assert_no_session_left();
    }
    assert_eq!(built(&host), ["run echo 1 > /one"]);
    // What is unfinished is in nobody's way.
    let other = commands(&host, "after", &["echo 1 > /one", "echo 2 > /two"]);
    let output = prebuild(&host, &other, &[]);
    output.ok().stderr_has("step 2/2");
    assert!(!output.stderr.contains("step 1/2"), "{output}");
    host.podspawn(["doctor"]).run().ok();
}

#[test]
fn without_a_server_nothing_is_built() {
    let host = Host::new().prepare();
    let file = commands(&host, "x", &["id"]);
    prebuild(&host, &file, &[]).status(1).stderr_has("podspawn is not running").stderr_has("podspawn serve");
    let file = podfile(&host, "bad", "bas: x\n");
    prebuild(&host, &file, &[]).status(1).stderr_has("bad.yaml:1:1: ").stderr_has("is not valid");
    let tag = ["--tag", "oci:/x"];
    prebuild(&host, &commands(&host, "y", &["id"]), &tag).status(1).stderr_has("cannot be the name of a new one");
}

/// A host with Debian's image in a store of its own, where others do not find what is built.
fn debian() -> Host {
    // The host's package mirror may have a private address.
    let host = Host::new().user("ada").image(Image::Debian).config("network:\n  egress: open").prepare();
    host.own_images();
    host
}

/// Runs a command in a new session of the image that was built last.
fn in_image(host: &Host, name: &str, command: &str) -> Output {
    let config = fs::read_to_string(host.config_file()).unwrap();
    let image = config.lines().find(|line| line.trim_start().starts_with("image:")).unwrap();
    let changed = config.replace(image, &format!("  image: {name}"));
    fs::write(host.config_file(), changed).unwrap();
    host.ssh("ada", command).run()
}

#[test]
fn packages_come_from_the_image_s_own_package_manager() {
    let mut host = debian();
    host.serve();
    let base = Image::Debian.reference();
    let text = format!("base: {base}\npackages: [tree, libcap2-bin]\nextra_commands:\n");
    let text = text + "  - setcap cap_net_bind_service+ep /usr/bin/tree\n  - apt-get remove -y libcap2-bin\n";
    let file = podfile(&host, "packages", &text);
    let output = prebuild(&host, &file, &["--tag", "localhost/made:1"]);
    output.ok().stderr_has("getting the package lists").stderr_has("step 1/4: install tree");
    assert_eq!(output.stderr.matches("package lists").count(), 1, "once for all packages: {output}");
    // Nothing of it is done again, but for what is new.
    let more = podfile(&host, "more", &text.replace("libcap2-bin]", "jq@1.6, libcap2-bin]"));
    let output = prebuild(&host, &more, &[]);
    output.ok().stderr_has("step 2/5: install jq@1.6");
    assert!(!output.stderr.contains("install tree") && !output.stderr.contains("package lists"), "{output}");

    let command =
        "tree --version >&2 && command -v setcap; getcap /usr/bin/tree; ls /var/lib/apt/lists /var/cache/apt/archives";
    let seen = in_image(&host, "localhost/made:1", command);
    let text = seen.text();
    assert!(!text.contains("setcap") && !text.contains("tree_"), "{text}");
    let capability = "python3 -c 'import os; print(os.getxattr(\"/usr/bin/tree\", \"security.capability\").hex())'";
    let seen = host.ssh("ada", capability).run();
    // Revision 2 in a layer; a container's root sees it as its own.
    seen.ok().stdout_has("000400000000000000000000000000");
    let layers = host.images().join("layers");
    let debs = Run::new("find").arg(&layers).args(["-name", "*.deb", "-newer"]).arg(host.config_file()).run();
    assert_eq!(debs.text(), "");

    for (package, why) in
        [("nosuchpackage", "Unable to locate package"), ("jq@99", "there is no version 99 of jq; there are: 1.6")]
    {
        let bad = podfile(&host, "bad", &format!("base: {base}\npackages: [tree, {package}]\n"));
        let output = prebuild(&host, &bad, &[]);
        output.status(1).stderr_has(&format!("step 2/2: install {package}")).stderr_has(why);
    }
    host.assert_no_session_left();
}

#[test]
fn an_image_without_a_package_manager_says_so() {
    let host = Host::new().start();
    let file = podfile(&host, "none", &format!("base: {BUSYBOX}\npackages: [jq]\n"));
    prebuild(&host, &file, &[]).status(1).stderr_has("the image has none of the known package managers");
}

/// A web server with these pages, by path without what is behind a question mark.
struct Makers {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Makers {
    fn start(pages: Vec<(&'static str, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let record = asked.clone();
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = String::new();
                let mut reader = BufReader::new(&stream);
                while !request.ends_with("\r\n\r\n") && reader.read_line(&mut request).unwrap() > 0 {}
                let path =
                    request.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
                let (status, body) = match pages.iter().find(|(page, _)| *page == path) {
                    Some((_, body)) => ("200 OK", body.as_slice()),
                    None => ("404 Not Found", &b""[..]),
                };
                record.lock().unwrap().push(path);
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                // A client that has seen enough.
                let _ = stream.write_all(&[head.as_bytes(), body].concat());
            }
        });
        Self { address, asked }
    }

    fn asked_for(&self, path: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == path).count()
    }
}

/// A gzipped tar with one program in it, and its checksum.
fn archive(program: &str, says: &str) -> (Vec<u8>, String) {
    let tree = tempfile::tempdir().unwrap();
    let file = tree.path().join("tree").join(program);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, format!("#!/bin/sh\necho {says}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    let tar = tree.path().join("archive.tar.gz");
    let top = program.split('/').next().unwrap();
    Run::new("tar")
        .args(["--owner=4711", "--group=4711", "-C"])
        .arg(tree.path().join("tree"))
        .arg("-czf")
        .arg(&tar)
        .arg(top)
        .run()
        .ok();
    let sum = Run::new("sha256sum").arg(&tar).run().ok().text();
    (fs::read(&tar).unwrap(), sum.split(' ').next().unwrap().to_owned())
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_language_that_the_image_does_not_have_comes_from_its_makers_verified() {
    let (go, go_sum) = archive("go/bin/go", "this is go");
    let (node, node_sum) = archive("node-v22.3.0-linux-x64/bin/node", "this is node");
    let list = format!(
        r#"[{{"version": "go1.24.3", "files": [{{"filename": "go1.24.3.linux-amd64.tar.gz", "os": "linux", "arch": "amd64",
            "kind": "archive", "sha256": "{go_sum}"}}]}}]"#
    );
    let python = "cpython-3.12.1+20240107-x86_64-unknown-linux-gnu-install_only.tar.gz";
    let wrong = format!("{}  {python}\n", "0".repeat(64));
    let makers = Makers::start(vec![
        ("/go/", list.into_bytes()),
        ("/go/go1.24.3.linux-amd64.tar.gz", go),
        ("/node/index.json", br#"[{"version": "v22.3.0"}, {"version": "v20.1.0"}]"#.to_vec()),
        ("/node/v22.3.0/SHASUMS256.txt", format!("{node_sum}  node-v22.3.0-linux-x64.tar.gz\n").into_bytes()),
        ("/node/v22.3.0/node-v22.3.0-linux-x64.tar.gz", node.clone()),
        ("/python/SHA256SUMS", wrong.into_bytes()),
        ("/python/cpython-3.12.1%2B20240107-x86_64-unknown-linux-gnu-install_only.tar.gz", node),
    ]);
    let address = &makers.address;
    let mirrors = format!("    go: {address}/go\n    nodejs: {address}/node/\n    python: {address}/python\n");
    let host = Host::new().user("ada").config(&format!("builds:\n  mirrors:\n{mirrors}")).start();
    let text = |packages: &str| podfile(&host, "languages", &format!("base: {BUSYBOX}\npackages: [{packages}]\n"));

    let output = prebuild(&host, &text("go@1.24, nodejs@22"), &["--tag", "localhost/made:1"]);
    output.ok().stderr_has("getting go 1.24 from its makers").stderr_has("getting nodejs 22 from its makers");
    let command = "go; node; stat -c %u:%g /usr/local/go/bin/go /usr/local/bin/node";
    in_image(&host, "localhost/made:1", command).ok().stdout("this is go\nthis is node\n0:0\n0:0\n");

    // What was fetched once is kept.
    prebuild(&host, &text("go@1.24.3"), &[]).ok();
    assert_eq!((makers.asked_for("/go/"), makers.asked_for("/go/go1.24.3.linux-amd64.tar.gz")), (2, 1));
    let cache = || fs::read_dir(host.root.join("var/lib/podspawn/cache")).unwrap().count();
    assert_eq!(cache(), 2);

    let output = prebuild(&host, &text("python@3.12"), &[]);
    output.status(1).stderr_has("does not have the checksum that is published for it");
    assert_eq!(cache(), 2);
    prebuild(&host, &text("go@1.25"), &[]).status(1).stderr_has("there is no go 1.25 for x86_64 with gnu at");
    host.assert_no_session_left();
}

#[test]
fn two_users_who_connect_at_once_get_one_build_and_a_container_each() {
    let host = Host::new().user("ada").user("bob").start();
    let git = GitServer::start();
    // Two builds would not write the same.
    let steps = "extra_commands:\n  - cat /proc/sys/kernel/random/uuid > /once; sleep 3\n";
    let repository = git.repository("backend", &[("podfile.yaml", &format!("base: {BUSYBOX}\n{steps}"))]);
    host.podspawn(["add-project", "backend", "--repo", &repository.url]).run().ok();
    let command = "cat /once; echo $PODSPAWN_SESSION";
    let clients = ["ada+backend", "bob+backend"].map(|login| host.ssh(login, command).spawn());
    let outputs = clients.map(|client| finish("a client", client));
    let lines: Vec<Vec<String>> =
        outputs.iter().map(|output| output.ok().text().lines().map(str::to_owned).collect()).collect();
    assert_eq!(lines[0][0], lines[1][0]);
    assert_ne!(lines[0][1], lines[1][1]);
    assert!(outputs.iter().all(|output| output.stderr.contains("podspawn: step 1/1: run cat")), "{}", outputs[0]);
    // From here on nobody waits, nor hears of it.
    let again = host.ssh("ada+backend", "cat /once").run();
    again.ok().stdout(&format!("{}\n", lines[0][0]));
    assert!(!again.stderr.contains("step"), "{again}");

    repository.commit(&[("podfile.yaml", &format!("base: {BUSYBOX}\n{steps}  - echo so it is; exit 3\n"))]);
    host.podspawn(["update-project", "backend"]).run().ok();
    let failed = host.ssh("ada+backend", "true").run();
    failed
        .status(125)
        .stdout("")
        .stderr_has("step 2/2: run echo so it is; exit 3: it ended with status 3\n  | so it is\n");
    host.ssh("ada", "echo elsewhere").run().ok().stdout("elsewhere\n");
}

/// What the script for packages would do in an image that has this package manager, and its exit status.
fn with_manager(manager: &str, answers: &str, package: [&str; 2]) -> (String, i32) {
    const SCRIPT: &str = include_str!("../src/session/build/package.sh");
    let path = tempfile::tempdir().unwrap();
    for applet in ["sort", "tr", "ln"] {
        symlink("/bin/busybox", path.path().join(applet)).unwrap();
    }
    let fake = path.path().join(manager);
    fs::write(&fake, format!("#!/bin/sh\ncase \"$*\" in\n{answers}\n*) echo \"{manager} $*\" ;;\nesac\n")).unwrap();
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
    let run = Run::new("/bin/busybox").args(["sh", "-c", SCRIPT, "podspawn", "install"]).args(package);
    let output = run.env("PATH", path.path()).run();
    (output.text(), output.status.unwrap())
}

#[test]
fn apk_and_dnf_are_asked_for_the_version_that_is_wanted() {
    let apk = "'list --available nodejs') echo 'nodejs-22.11.0-r0 x86_64 {nodejs} (MIT)'; echo 'nodejs-current-23.2.0-r1 x86_64' ;;\n\
               'list --available jq') echo 'jq-1.7.1-r0 x86_64 {jq} (MIT)' ;;";
    let dnf = "'-q repoquery --queryformat %{version}-%{release}\n nodejs') printf '22.4.1-1.el9\\n22.10.2-1.el9\\n' ;;\n\
               '-q repoquery --queryformat %{version}-%{release}\n jq') echo 1.6-16.el9 ;;";
    let options = "-y --setopt=install_weak_deps=False --setopt=tsflags=nodocs";
    let table = [
        ("apk", apk, ["jq", ""], "apk add jq\n".to_owned(), 0),
        ("apk", apk, ["jq", "1.7"], "apk add jq=1.7.1-r0\n".to_owned(), 0),
        ("apk", apk, ["jq", "1"], "apk add jq=1.7.1-r0\n".to_owned(), 0),
        ("apk", apk, ["jq", "1.6"], String::new(), 1),
        ("apk", apk, ["nodejs", ""], "apk add nodejs npm\n".to_owned(), 0),
        ("apk", apk, ["nodejs", "22"], "apk add nodejs=22.11.0-r0 npm\n".to_owned(), 0),
        ("apk", apk, ["nodejs", "2"], "podspawn: elsewhere gnu\n".to_owned(), 64),
        ("apk", apk, ["go", "1.24"], "podspawn: elsewhere gnu\n".to_owned(), 64),
        ("dnf", dnf, ["jq", ""], format!("dnf install {options} jq\n"), 0),
        ("dnf", dnf, ["jq", "1.6"], format!("dnf install {options} jq-1.6-16.el9\n"), 0),
        ("dnf", dnf, ["jq", "1.5"], String::new(), 1),
        ("dnf", dnf, ["nodejs", "22"], format!("dnf install {options} nodejs-22.10.2-1.el9 nodejs-npm\n"), 0),
        ("dnf", dnf, ["nodejs", "20"], "podspawn: elsewhere gnu\n".to_owned(), 64),
        ("dnf", dnf, ["python", ""], format!("dnf install {options} python3\n"), 0),
    ];
    for (manager, answers, package, expected, status) in table {
        assert_eq!(with_manager(manager, answers, package), (expected, status), "{manager} {package:?}");
    }
}
