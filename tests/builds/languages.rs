//! Languages in a version that an image's own packages do not have.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    sync::{Arc, Mutex},
    thread,
};

use crate::{
    BUSYBOX,
    common::{Host, Run},
    packages::in_image,
    podfile, prebuild,
};

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
    let cache = || fs::read_dir(host.root.join("var/lib/podspawn/cache/languages")).unwrap().count();
    assert_eq!(cache(), 2);

    let output = prebuild(&host, &text("python@3.12"), &[]);
    output.status(1).stderr_has("does not have the checksum that is published for it");
    assert_eq!(cache(), 2);
    prebuild(&host, &text("go@1.25"), &[]).status(1).stderr_has("there is no go 1.25 for x86_64 with gnu at");
    host.assert_no_session_left();
}
