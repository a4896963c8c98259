//! The way that desktop agents and IDEs move in: a script on the standard input of a shell without a terminal, a server that
//! is uploaded and started in the background, and forwards to it, all over one connection. The server is Codex's, from npm:
//! one static program, so that it runs in any image.

mod common;

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Child,
    time::Duration,
};

use common::{Host, Image, Run, Ssh, eventually, images, ssh};

const PACKAGE: &str = "@openai/codex@0.169.0-linux-x64";

/// The server's program, fetched once.
fn codex() -> PathBuf {
    let cache = images::cache();
    let program = cache.join("codex-0.169.0");
    let _lock = images::lock(&cache.join("codex.lock"));
    if !program.exists() {
        let directory = tempfile::tempdir_in(&cache).unwrap();
        let at = directory.path();
        let packed = Run::new("npm").args(["pack", "--silent", PACKAGE, "--pack-destination"]).arg(at);
        packed.deadline(Duration::from_secs(300)).run().ok();
        let archive = fs::read_dir(at).unwrap().next().unwrap().unwrap().path();
        let inside = "package/vendor/x86_64-unknown-linux-musl/bin/codex";
        Run::new("tar").arg("-C").arg(at).arg("-xzf").arg(archive).arg(inside).run().ok();
        fs::rename(at.join(inside), &program).unwrap();
    }
    program
}

/// What an IDE's client does first.
const PROBE: &str = "\
set -e
echo \"system $(uname -s) $(uname -m)\"
echo \"home $HOME\"
test -x \"$SHELL\" && echo shell
command -v mkdir >/dev/null && echo tools
mkdir -p \"$HOME/.server\"
echo ready
";

struct Connection<'a> {
    host: &'a Host,
    master: Child,
    socket: PathBuf,
}

impl<'a> Connection<'a> {
    fn open(host: &'a Host) -> Self {
        let socket = host.scratch().join("ide");
        let master = host.ssh("ada", "").args(["-N", "-M", "-S", socket.to_str().unwrap()]).spawn();
        eventually("the connection is up", || socket.exists());
        Self { host, master, socket }
    }

    fn ssh(&self, command: &str) -> Ssh {
        self.host.ssh("ada", command).args(["-S", self.socket.to_str().unwrap()])
    }

    fn forward(&self, what: &[&str]) {
        self.ssh("").args(["-O", "forward"]).args(what).run().ok();
    }

    fn upload(&self, from: &Path, to: &str) {
        let mut scp = Run::new("scp").arg("-q").arg("-o").arg(format!("ControlPath={}", self.socket.display()));
        for option in ssh::options(self.host) {
            scp = scp.args(["-o", &option]);
        }
        let to = format!("ada@{}:{to}", self.host.address);
        scp.args(["-F", "none", "-i"]).arg(self.host.key("ada")).arg(from).arg(to).run().ok();
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        self.master.kill().unwrap();
        self.master.wait().unwrap();
    }
}

fn free_port(host: &Host) -> u16 {
    TcpListener::bind((host.address, 0)).unwrap().local_addr().unwrap().port()
}

fn moves_in(image: Image) {
    let codex = codex();
    let host =
        Host::new().image(image).user("ada").config("session:\n  mode: grace-period\n  grace_period: 10m").start();
    let ide = Connection::open(&host);
    let probed = ide.ssh("").args(["-T"]).input(PROBE).run();
    probed.ok().stdout(&format!("system Linux {}\nhome /home/ada\nshell\ntools\nready\n", std::env::consts::ARCH));

    ide.upload(&codex, ".server/codex");
    // In a subshell that ignores the hangup: not every image has nohup.
    let start = |listen: &str, log: &str| {
        let command = format!(
            "cd .server; (trap '' HUP; exec ./codex app-server --listen {listen} >{log} 2>&1 </dev/null) & echo started"
        );
        ide.ssh(&command).run().ok().stdout("started\n");
    };
    start("ws://127.0.0.1:4711", "tcp.log");
    start("unix:///home/ada/.server/rpc.sock", "unix.log");

    // As VS Code does: a SOCKS proxy whose far end is inside.
    let socks = format!("{}:{}", host.address, free_port(&host));
    ide.forward(&["-D", &socks]);
    let ready = || {
        Run::new("curl")
            .args(["-sS", "--max-time", "20", "-x", &format!("socks5h://{socks}")])
            .arg("http://localhost:4711/readyz")
            .run()
    };
    eventually("the server answers through the proxy", || ready().status == Some(0));
    // As Codex does: the server's Unix socket, forwarded to one here.
    let socket = host.scratch().join("rpc.sock");
    ide.forward(&["-L", &format!("{}:/home/ada/.server/rpc.sock", socket.display())]);
    let upgrade = || {
        let request = [
            "-H",
            "Connection: Upgrade",
            "-H",
            "Upgrade: websocket",
            "-H",
            "Sec-WebSocket-Version: 13",
            "-H",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ];
        let curl = Run::new("curl").args(["-sS", "--max-time", "3", "-i", "--unix-socket"]).arg(&socket).args(request);
        curl.arg("http://localhost/").run().text()
    };
    eventually("the server answers on its socket", || upgrade().contains("101 Switching Protocols"));

    // The client goes and comes back: the server is still there.
    drop(ide);
    let output = host.ssh("ada", "pidof codex | wc -w").run();
    output.ok().stdout("2\n");
    host.podspawn(["stop", "ada"]).run().ok();
    host.assert_no_session_left();
}

#[test]
fn an_agents_server_moves_into_a_debian_image() {
    moves_in(Image::Debian);
}

#[test]
fn an_agents_server_moves_into_an_image_with_nothing_but_busybox() {
    moves_in(Image::Busybox);
}
