//! Registries on loopback: Debian's docker-registry, and one of our own that misbehaves as told.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use super::{Run, eventually, own_address};

/// `testuser` with the password `testpassword` (htpasswd -B).
const HTPASSWD: &str = "testuser:$2b$05$FiNw0/C50G4RJpkcSyBrx.51Fa0i4DrdRJJwiZbv3rWudSJ4qNJSW\n";

/// docker-registry.
pub struct Registry {
    /// Where it listens, which is its name in references.
    pub name: String,
    child: Child,
    directory: tempfile::TempDir,
}

/// What the registry asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Open,
    /// A user name and a password.
    Password,
    /// TLS, with a certificate of [`Registry::authority`].
    Tls,
}

impl Registry {
    pub fn start(access: Access) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let address = SocketAddr::from((own_address(), 5000));
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: {address}\n",
            path("storage")
        );
        match access {
            Access::Open => {}
            Access::Password => {
                fs::write(path("htpasswd"), HTPASSWD).unwrap();
                config.push_str(&format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", path("htpasswd")));
            }
            Access::Tls => {
                let name = format!("subjectAltName=IP:{}", address.ip());
                Run::new("openssl")
                    .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
                    .args(["-days", "2", "-subj", "/CN=test", "-addext", &name])
                    .args(["-addext", "basicConstraints=critical,CA:FALSE"])
                    .args(["-keyout", &path("key"), "-out", &path("cert")])
                    .run()
                    .ok();
                config.push_str(&format!("  tls: {{certificate: {}, key: {}}}\n", path("cert"), path("key")));
            }
        }
        fs::write(path("config.yml"), config).unwrap();
        // It ends with this test, also if that is killed.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve", &path("config.yml")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { name: address.to_string(), child, directory };
        eventually("the registry listens", || TcpStream::connect(address).is_ok());
        registry
    }

    /// The certificate that its own is made by.
    pub fn authority(&self) -> std::path::PathBuf {
        self.directory.path().join("cert")
    }

    /// Copies an image into it.
    pub fn push(&self, from: &str, to: &str, options: &[&str]) {
        Run::new("skopeo")
            .args(["copy", "-q", "--dest-tls-verify=false"])
            .args(options)
            .arg(from)
            .arg(format!("docker://{}/{to}", self.name))
            .run()
            .ok();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// With its query.
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// A door that is opened once.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let mut open = self.0.0.lock().unwrap();
        while !*open {
            open = self.0.1.wait(open).unwrap();
        }
    }
}

/// What is answered.
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The connection breaks after so much of the body.
    pub cut: Option<usize>,
    /// After so much of the body nothing comes until the gate is opened.
    pub pause: Option<(usize, Gate)>,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut: None, pause: None }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn cut(mut self, after: usize) -> Self {
        self.cut = Some(after);
        self
    }

    pub fn pause(mut self, after: usize, gate: &Gate) -> Self {
        self.pause = Some((after, gate.clone()));
        self
    }

    pub fn redirect(to: impl Into<String>) -> Self {
        Self::new(307, "").header("Location", to)
    }
}

/// Answers as a registry that has the layout's images under any name; knows ranges.
pub fn serve(layout: &Path, request: &Request) -> Reply {
    let path = request.path.split('?').next().unwrap();
    let mut parts = path.rsplitn(3, '/');
    let (name, kind) = (parts.next().unwrap(), parts.next().unwrap_or_default());
    let blob = |digest: &str| {
        let hex = digest.strip_prefix("sha256:")?;
        fs::read(layout.join("blobs/sha256").join(hex)).ok()
    };
    let found = match kind {
        "manifests" if name.starts_with("sha256:") => blob(name),
        "manifests" => {
            let index = fs::read(layout.join("index.json")).unwrap();
            let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
            let manifests = index["manifests"].as_array().unwrap();
            let tag = |entry: &&serde_json::Value| entry["annotations"]["org.opencontainers.image.ref.name"] == name;
            manifests.iter().find(tag).and_then(|entry| blob(entry["digest"].as_str()?))
        }
        "blobs" => blob(name),
        _ => None,
    };
    let Some(body) = found else { return Reply::new(404, "{}") };
    if kind == "manifests" {
        let document: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let media_type = document["mediaType"].as_str().unwrap_or("application/json").to_owned();
        return Reply::new(200, body).header("Content-Type", media_type);
    }
    let from = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match from {
        None => Reply::new(200, body),
        Some(from) => {
            let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
            Reply::new(206, &body[from..]).header("Content-Range", range)
        }
    }
}

/// A registry that answers whatever a function says.
pub struct Fake {
    pub name: String,
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    stopped: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Fake {
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST, answer)
    }

    /// Listens on any port of `address`, in the network namespace of the calling thread.
    pub fn start_at(address: Ipv4Addr, answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stopped = Arc::new(AtomicBool::new(false));
        let (log, stop, answer) = (requests.clone(), stopped.clone(), Arc::new(answer));
        let listener = thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let (log, answer) = (log.clone(), answer.clone());
                // A client that goes away ends the connection, and with it the thread.
                thread::spawn(move || drop(converse(stream.unwrap(), &log, &*answer)));
            }
        });
        Self { name: address.to_string(), address, requests, stopped, listener: Some(listener) }
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// How many requests there were for paths with `part` in them.
    pub fn count(&self, part: &str) -> usize {
        self.requests().iter().filter(|request| request.path.contains(part)).count()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // Wakes the listener.
        drop(TcpStream::connect(self.address));
        self.listener.take().unwrap().join().unwrap();
    }
}

/// One request and its answer.
fn converse(
    mut stream: TcpStream,
    log: &Mutex<Vec<Request>>,
    answer: &dyn Fn(&Request) -> Reply,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    lines.read_line(&mut first)?;
    let mut words = first.split(' ');
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(()) };
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        lines.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = Vec::new();
    lines.take(length).read_to_end(&mut body)?;
    let body = String::from_utf8_lossy(&body).into_owned();
    let request = Request { method: method.to_owned(), path: path.to_owned(), headers, body };
    log.lock().unwrap().push(request.clone());
    let reply = answer(&request);
    let mut head =
        format!("HTTP/1.1 {} X\r\nConnection: close\r\nContent-Length: {}\r\n", reply.status, reply.body.len());
    for (name, value) in reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    let mut body = &reply.body[..reply.cut.unwrap_or(reply.body.len())];
    if let Some((after, gate)) = reply.pause {
        let (now, later) = body.split_at(after);
        stream.write_all(now)?;
        gate.wait();
        body = later;
    }
    stream.write_all(body)
}
