//! Where the commands of a page are run: as root, in a mount namespace that looks like the server and like a user's machine
//! at once, with what is written in the pages: /etc/podspawn, port 2222, hosts called `server` and `podspawn.example.com`.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{
    common::{GitServer, Host, Image, Run, binary, registry::Access, registry::Registry, ssh::make_key},
    pages::{blocks, commands, matches},
};

/// What the pages' names of servers are here.
const SERVERS: &str = "server podspawn.example.com gpu.example.com";

/// Runs in a mount namespace of its own. Directories are overlaid, so that nothing that is written to them stays; those
/// of the instance are where they are without `--root`.
const ENTER: &str = r#"
mount --make-rprivate /
mount -t tmpfs docs "$DOCS/layers"
for directory in etc root run usr/local var/lib; do
    mkdir -p "$DOCS/layers/$directory/upper" "$DOCS/layers/$directory/work"
    mount -t overlay -o "lowerdir=/$directory,upperdir=$DOCS/layers/$directory/upper,workdir=$DOCS/layers/$directory/work" docs "/$directory"
done
for directory in etc/podspawn var/lib/podspawn run/podspawn; do
    mkdir -p "/$directory"
    mount --bind "$PODSPAWN_ROOT/$directory" "/$directory"
done
install -m 755 "$PODSPAWN" /usr/local/bin/podspawn
cat "$DOCS/hosts" >> /etc/hosts
rm -rf /root/.ssh /root/.podspawn
cp -r "$DOCS/ssh" /root/.ssh
chmod 700 /root/.ssh
cd "$DOCS/work"
echo ready
exec cat
"#;

struct Page {
    host: Host,
    registry: Registry,
    git: GitServer,
    /// Its mount namespace is where commands run.
    inside: Child,
}

impl Drop for Page {
    fn drop(&mut self) {
        self.inside.kill().unwrap();
        self.inside.wait().unwrap();
    }
}

impl Page {
    fn new() -> Self {
        let registry = Registry::start(Access::Open);
        let git = GitServer::start();
        let config = format!(
            "images: {{mirrors: {{docker.io: [{name}]}}, insecure: [{name}]}}\ndefaults:\n  shell: /bin/sh",
            name = registry.name
        );
        let mut host = Host::new().config(&config).prepare();
        let authority = host.root.join("etc/podspawn/user_ca.pub");
        fs::write(&authority, "").unwrap();
        let written = fs::read_to_string(host.config_file()).unwrap();
        let with_authority = format!("auth:\n  trusted_user_ca_keys: {}\n", authority.display());
        fs::write(host.config_file(), written.replacen("auth:\n", &with_authority, 1)).unwrap();
        host.serve();
        fill(&host, &registry, &git);
        let mut inside = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "-m", "bash", "-ec", ENTER])
            .env("DOCS", host.scratch())
            .env("PODSPAWN", binary())
            .env("PODSPAWN_ROOT", &host.root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(inside.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n");
        Self { host, registry, git, inside }
    }

    /// A command with addresses of this test where it names the internet's.
    fn adapted(&self, command: &str) -> String {
        command
            .replace("github.com/org/backend", &format!("git://{}/backend", self.git.address))
            .replace("registry.example/", &format!("{}/", self.registry.name))
    }

    fn run(&self, command: &str) -> crate::common::Output {
        let directory: &Path = self.host.scratch();
        fs::write(
            directory.join("script"),
            format!("cd {}\n{}\n", directory.join("work").display(), self.adapted(command)),
        )
        .unwrap();
        Run::new("nsenter")
            .args(["-t", &self.inside.id().to_string(), "-m", "bash"])
            .arg(directory.join("script"))
            .env("HOME", "/root")
            .env("PODSPAWN_ROOT", &self.host.root)
            .deadline(Duration::from_secs(600))
            .run()
    }
}

/// What the pages take for granted.
fn fill(host: &Host, registry: &Registry, git: &GitServer) {
    let directory = host.scratch();
    for name in ["layers", "work", "ssh"] {
        fs::create_dir(directory.join(name)).unwrap();
    }
    // What a server of images has.
    let image = Image::Busybox.reference();
    for name in ["library/ubuntu:24.04", "library/debian:12"] {
        let to = format!("{}/{name}", registry.name);
        host.podspawn(["-q", "push", image, &to]).run().ok();
    }
    host.podspawn(["-q", "pull", "ubuntu:24.04"]).run().ok();
    // What a server of repositories has.
    git.repository("backend", &[("podfile.yaml", "base: ubuntu:24.04\n"), ("README.md", "backend\n")]);
    // A user with a key, and what their files are called in the pages.
    let key = directory.join("ssh/id_ed25519");
    make_key(&key, &["-t", "ed25519"]);
    let work = directory.join("work");
    for name in ["claude-agent-key.pub", "ada.pub", "key.pub"] {
        fs::copy(key.with_extension("pub"), work.join(name)).unwrap();
    }
    host.podspawn(["add-user", "ada", "--key-file", work.join("ada.pub").to_str().unwrap()]).run().ok();
    fs::create_dir(work.join("project")).unwrap();
    fs::write(work.join("project/file"), "text\n").unwrap();
    let trusted = fs::read_to_string(host.known_hosts()).unwrap();
    let keys = trusted.replace(&format!("[{}]", host.address), "[server]");
    fs::write(directory.join("ssh/known_hosts"), keys).unwrap();
    fs::write(directory.join("hosts"), format!("{} {SERVERS}\n", host.address)).unwrap();
}

/// Runs all commands of a page.
pub fn run_page(name: &str) {
    let page = Page::new();
    for block in blocks(name).into_iter().filter(|block| block.language == "console" && block.not_run.is_none()) {
        page.run(&block.before).ok();
        for shown in commands(&block) {
            let at = format!("{name}:{}: {}", block.line, shown.command);
            let output = page.run(&shown.command);
            let text = format!("{}{}", output.text(), output.stderr);
            let fails = shown.output.iter().any(|line| line.starts_with("podspawn: "));
            assert!((output.status == Some(0)) != fails, "{at}\n{output}\n{}", page.host.log());
            for line in &shown.output {
                assert!(text.lines().any(|said| matches(line, said)), "{at}\ndoes not say: {line}\nbut:\n{text}");
            }
        }
    }
}
