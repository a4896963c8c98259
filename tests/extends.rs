//! Podfiles that extend one of another server, which a test plays with openssl.

mod common;

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use common::{GitServer, Host, Output, Run, eventually, own_address};

/// An https server whose answers are files, header included.
struct Https {
    address: Ipv4Addr,
    child: Option<Child>,
    directory: tempfile::TempDir,
}

impl Https {
    const PORT: u16 = 8443;

    fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("podspawn-test-https-").tempdir().unwrap();
        let address = own_address();
        let path = |name: &str| directory.path().join(name).display().to_string();
        Run::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=test", "-addext", &format!("subjectAltName=IP:{address}")])
            .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", &path("key"), "-out", &path("cert")])
            .run()
            .ok();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "openssl", "s_server", "-quiet", "-HTTP", "-accept"])
            .arg(format!("{address}:{}", Self::PORT))
            .args(["-key", "key", "-cert", "cert"])
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { address, child: Some(child), directory };
        eventually("the https server listens", || TcpStream::connect((address, Self::PORT)).is_ok());
        server
    }

    fn serve(&self, name: &str, status: &str, body: &str) -> String {
        let answer = format!("HTTP/1.0 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        fs::write(self.directory.path().join(name), answer).unwrap();
        format!("https://{}:{}/{name}", self.address, Self::PORT)
    }

    fn certificate(&self) -> PathBuf {
        self.directory.path().join("cert")
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Https {
    fn drop(&mut self) {
        self.stop();
    }
}

fn add(host: &Host, https: &Https, git: &GitServer, name: &str, podfile: &str) -> Output {
    let repository = git.repository(name, &[("podfile.yaml", podfile)]);
    let run = host.podspawn(["add-project", name, "--repo", &repository.url]);
    run.env("SSL_CERT_FILE", https.certificate()).run()
}

fn sha256(text: &str) -> String {
    Run::new("sha256sum").input(text).run().ok().text().split(' ').next().unwrap().to_owned()
}

#[test]
fn what_is_fetched_when_a_project_is_added_is_kept_for_its_sessions() {
    let mut https = Https::start();
    let git = GitServer::start();
    let config = format!("podfile:\n  private_hosts: [\"{}\"]", https.address);
    let host = Host::new().user("ada").config(&config).start();
    let base = "base: localhost/busybox:test\nenv: {FROM: base}\n";
    let url = https.serve("base.yaml", "200 OK", base);
    let pinned = format!("extends: {url}#sha256:{}\n", sha256(base));
    add(&host, &https, &git, "web", &pinned).ok();

    let wrong = format!("extends: {url}#sha256:{}\n", sha256("something else"));
    add(&host, &https, &git, "wrong", &wrong).status(1).stderr_has("is not what is pinned");
    let gone = https.serve("gone.yaml", "404 Not Found", "");
    add(&host, &https, &git, "gone", &format!("extends: {gone}\n")).status(1).stderr_has("the server answers 404");
    let huge = https.serve("huge.yaml", "200 OK", &"#".repeat((1 << 20) + 1));
    add(&host, &https, &git, "huge", &format!("extends: {huge}\n")).status(1).stderr_has("it is larger than 1 MiB");
    let local = https.serve("local.yaml", "200 OK", "extends: ./podfile.yaml\n");
    add(&host, &https, &git, "local", &format!("extends: {local}\n"))
        .status(1)
        .stderr_has("what extends it is not a file");

    https.stop();
    host.ssh("ada+web", "echo $FROM").run().ok().stdout("base\n");
    let update = host.podspawn(["update-project", "web"]).run();
    update.status(1).stderr_has(&format!("cannot fetch {url}"));
    host.ssh("ada+web", "echo $FROM").run().ok().stdout("base\n");
}

#[test]
fn a_podfile_cannot_send_the_server_to_addresses_that_are_not_public() {
    let https = Https::start();
    let git = GitServer::start();
    let url = https.serve("base.yaml", "200 OK", "base: localhost/busybox:test\n");
    let host = Host::new().prepare();
    add(&host, &https, &git, "direct", &format!("extends: {url}\n")).status(1).stderr_has("is no public address");
    for address in ["169.254.169.254", "10.0.0.1", "[::1]", "localhost"] {
        let extends = format!("extends: https://{address}/latest/meta-data\n");
        let name = format!("p{}", address.len());
        add(&host, &https, &git, &name, &extends).status(1).stderr_has("is no public address");
    }

    // Neither does one that may be asked lead further.
    let config = format!("podfile:\n  private_hosts: [\"{}\"]", https.address);
    let host = Host::new().config(&config).prepare();
    for (name, to) in [("meta", "https://169.254.169.254/x"), ("plain", "http://8.8.8.8/x")] {
        let redirect = https.serve(&format!("{name}.yaml"), &format!("302 Found\r\nLocation: {to}"), "");
        let output = add(&host, &https, &git, name, &format!("extends: {redirect}\n"));
        output.status(1).stderr_has(&format!("cannot fetch {redirect}"));
        let why = if name == "meta" { "is no public address" } else { "which is not allowed" };
        output.stderr_has(why);
    }
}
