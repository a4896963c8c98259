//! `podspawn push`, judged by skopeo, umoci and another store of our own.

use std::{
    fs,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

use super::{
    exactness::{entangled, forget_times, make_tree},
    *,
};
use common::{
    Output,
    registry::{Access, Fake, Registry, Reply, Request},
};

/// A store that speaks to this registry without TLS.
fn host_of(registry: &str) -> Host {
    Host::new().no_image().config(&format!("images:\n  insecure: [{registry:?}]\n")).prepare()
}

/// Pushes with nobody's login data.
fn push(host: &Host, reference: &str, destination: &str) -> Run {
    host.podspawn(["push", reference, destination]).env("REGISTRY_AUTH_FILE", "/nonexistent")
}

#[track_caller]
fn assert_refused(output: &Output, parts: &[&str]) {
    output.status(1).stdout("");
    for part in parts {
        output.stderr_has(part);
    }
}

/// The digest that a registry has for a tag, by skopeo.
fn digest_in(registry: &Registry, image: &str) -> String {
    let name = format!("docker://{}/{image}", registry.name);
    let digest = Run::new("skopeo").args(["inspect", "--tls-verify=false", "--format={{.Digest}}", &name]).run();
    digest.ok().text()
}

/// An image whose layers lead into one another, in the host's store.
fn pulled(host: &Host) -> String {
    let layout = Layout::of(&host.scratch().join("layout"), &entangled());
    host.podspawn(["-q", "pull", &layout.reference()]).run().ok();
    layout.reference()
}

#[test]
fn what_is_pushed_is_the_same_image_for_everybody() {
    let registry = Registry::start(Access::Open);
    let (host, other) = (host_of(&registry.name), host_of(&registry.name));
    let destination = format!("{}/team/tangle:1", registry.name);
    let reference = pulled(&host);
    let digest = push(&host, &reference, &destination).run().ok().text();
    assert_eq!(digest_in(&registry, "team/tangle:1"), digest);
    // Applied one by one, the layers are what the image was.
    let copy = host.scratch().join("copy");
    let (from, to) = (format!("docker://{destination}"), format!("oci:{}:t", copy.display()));
    Run::new("skopeo").args(["copy", "-q", "--src-tls-verify=false", &from, &to]).run().ok();
    let mut expected = snapshot::of(&exported(&host, &reference, "out"));
    let mut found = snapshot::of(&unpacked_by_umoci(&host, &copy, "t"));
    forget_times(&mut [&mut expected, &mut found]);
    snapshot::assert_same("umoci", &expected, &found);
    // And for us.
    assert_eq!(other.podspawn(["-q", "pull", &destination]).run().ok().text(), digest);
    let export = |host: &Host, name: &str| host.podspawn(["image", "export", name, "-"]).run().ok().stdout.clone();
    assert!(export(&host, &reference) == export(&other, &destination));
}

#[test]
fn everything_that_a_file_system_has_survives_a_push() {
    let registry = Registry::start(Access::Open);
    let (host, other) = (host_of(&registry.name), host_of(&registry.name));
    let tree = host.scratch().join("tree");
    make_tree(&tree);
    let tar = host.scratch().join("tree.tar");
    let mut archive =
        Run::new("tar").args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "--format=posix", "-S"]);
    archive = archive.arg("-C").arg(&tree).arg("-cf").arg(&tar).arg(".");
    archive.run().ok();
    host.podspawn(["image", "import", "--cmd", "sh", "--env", "A=b"]).arg(&tar).arg("tree").run().ok();
    let destination = format!("{}/tree", registry.name);
    push(&host, "tree", &destination).run().ok();
    other.podspawn(["-q", "pull", &destination]).run().ok();
    snapshot::assert_same("pulled", &snapshot::of(&tree), &snapshot::of(&exported(&other, &destination, "out")));
    let config = other.json_of(["image", "inspect", &destination])["config"]["config"].clone();
    assert_eq!(config["Cmd"], json!(["sh"]));
    assert!(config["Env"].as_array().unwrap().contains(&"A=b".into()));
}

#[test]
fn the_same_image_is_packed_to_the_same_bytes_and_uploaded_once() {
    let registry = Registry::start(Access::Open);
    let (host, other) = (host_of(&registry.name), host_of(&registry.name));
    let reference = pulled(&host);
    let first = push(&host, &reference, &format!("{}/x:1", registry.name)).run();
    let layers = entangled().len();
    let count = |output: &Output, words: &str| output.ok().stderr.matches(words).count();
    assert_eq!((count(&first, " done\n"), count(&first, "is there already")), (layers, 0), "{first}");
    let again = push(&host, &reference, &format!("{}/x:2", registry.name)).run();
    assert_eq!((count(&again, " done\n"), count(&again, "is there already")), (0, layers), "{again}");
    // By somebody who has never pushed it.
    let elsewhere = push(&other, &pulled(&other), &format!("{}/y:1", registry.name)).run();
    assert_eq!((first.text(), first.text()), (again.text(), elsewhere.text()));
    assert_eq!(fs::read_dir(host.images().join("tmp")).unwrap().count(), 0);
    // What was noted of the layers goes with them.
    host.podspawn(["image", "rm", &reference]).run().ok();
    host.podspawn(["image", "prune"]).run().ok();
    assert_eq!(fs::read_dir(host.images().join("layers")).unwrap().count(), 0);
}

#[test]
fn an_image_keeps_its_digest_where_its_layers_are() {
    let registry = Registry::start(Access::Open);
    let host = host_of(&registry.name);
    let layers: Vec<Layer> = entangled().into_iter().chain([Layer::gzip(Archive::new().file("f", "f"))]).collect();
    let layout = Layout::of(&host.scratch().join("layout"), &layers);
    registry.push(&format!("oci:{}:latest", layout.path.display()), "from/x:1", &[]);
    let reference = format!("{}/from/x:1", registry.name);
    let digest = host.podspawn(["-q", "pull", &reference]).run().ok().text();
    // Another tag, and another repository.
    for image in ["from/x:2", "to/x:1"] {
        let output = push(&host, &reference, &format!("{}/{image}", registry.name)).run();
        output.ok().stdout(&digest);
        assert_eq!(output.stderr.matches("is there already").count(), layers.len(), "{output}");
        assert_eq!(digest_in(&registry, image), digest);
    }
    // Without a destination to where it comes from.
    host.podspawn(["-q", "push", &reference]).run().ok().stdout(&digest);
}

#[test]
fn a_registry_with_a_password_wants_the_right_one() {
    let registry = Registry::start(Access::Password);
    let host = host_of(&registry.name);
    let reference = pulled(&host);
    let destination = format!("{}/team/x:1", registry.name);
    let denied = ["refuses access to team/x", "login"];
    assert_refused(&push(&host, &reference, &destination).run(), &denied);
    let push_as = |password: &str| {
        let file = host.scratch().join("auth.json");
        let login = STANDARD.encode(format!("testuser:{password}"));
        fs::write(&file, json!({"auths": {&registry.name: {"auth": login}}}).to_string()).unwrap();
        host.podspawn(["-q", "push", &reference, &destination]).env("REGISTRY_AUTH_FILE", file).run()
    };
    assert_refused(&push_as("wrong"), &denied);
    push_as("testpassword").ok().stderr("");
}

#[test]
fn a_registry_is_spoken_to_with_tls_unless_it_is_configured_as_insecure() {
    let (secure, plain) = (Registry::start(Access::Tls), Registry::start(Access::Open));
    let host = host();
    let reference = pulled(&host);
    assert_refused(&push(&host, &reference, &format!("{}/x", plain.name)).run(), &["cannot be reached"]);
    let destination = format!("{}/x", secure.name);
    assert_refused(&push(&host, &reference, &destination).run(), &["cannot be reached", "certificate"]);
    push(&host, &reference, &destination).env("SSL_CERT_FILE", secure.authority()).run().ok();
}

#[test]
fn what_cannot_be_pushed_is_said_in_one_line() {
    let host = host();
    let reference = pulled(&host);
    let pinned = format!("x@sha256:{}", "0".repeat(64));
    for destination in ["oci:/tmp/x", "docker-archive:/x.tar", "bootstrap:debian/bookworm", &reference, &pinned] {
        let output = push(&host, &reference, destination).run();
        assert_refused(&output, &["is not a place to push to; write a registry's name and a tag"]);
        assert_eq!(output.stderr.lines().count(), 1);
    }
    assert_refused(&push(&host, "nobody/has:it", "x").run(), &["there is no image nobody/has:it"]);
    push(&host, &reference, "UPPER").run().status(1).stderr_has("is not an image name");
    assert_refused(&push(&host, &reference, "127.0.0.1:1/x").run(), &["registry 127.0.0.1:1 cannot be reached"]);
}

/// A registry that takes whatever it is given, as far as `fault` lets it.
fn taking(fault: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> Fake {
    let have = Mutex::new(Vec::<String>::new());
    Fake::start(move |request| {
        if let Some(reply) = fault(request) {
            return reply;
        }
        let mut have = have.lock().unwrap();
        match request.method.as_str() {
            "HEAD" if have.iter().any(|digest| request.path.ends_with(digest)) => Reply::new(200, ""),
            "HEAD" => Reply::new(404, ""),
            "POST" => Reply::new(202, "").header("Location", "/uploads/1?state=a%2Fb"),
            "PUT" => {
                have.extend(request.path.split_once("digest=").map(|(_, digest)| digest.to_owned()));
                Reply::new(201, "")
            }
            _ => Reply::new(405, ""),
        }
    })
}

#[test]
fn an_upload_that_fails_is_begun_again() {
    let failures = AtomicUsize::new(0);
    let fake = taking(move |request| {
        let upload = request.method == "PUT" && request.path.starts_with("/uploads/");
        (upload && failures.fetch_add(1, Ordering::Relaxed) < 2).then(|| Reply::new(503, ""))
    });
    let host = host_of(&fake.name);
    push(&host, &pulled(&host), &format!("{}/x:1", fake.name)).run().ok();
    let of = |method: &str| fake.requests().into_iter().filter(|request| request.method == method).collect::<Vec<_>>();
    let (begun, sent) = (of("POST"), of("PUT"));
    // Each with a session of its own, and the manifest with none.
    assert_eq!(begun.len() + 1, sent.len(), "{begun:?}");
    assert!(sent[0].path.starts_with("/uploads/1?state=a%2Fb&digest=sha256:"), "{:?}", sent[0]);
    let manifest = sent.last().unwrap();
    assert_eq!(manifest.path, "/v2/x/manifests/1");
    assert_eq!(manifest.header("content-type"), Some(common::oci::MANIFEST));
    // Registries want to know beforehand how much comes.
    assert!(begun.iter().chain(&sent).all(|request| request.header("content-length").is_some()));
}

#[test]
fn what_a_registry_says_no_to_is_told_with_its_reason() {
    let says = json!({"errors": [{"code": "TOOBIG", "message": "not\u{1b}[31m that much"}]}).to_string();
    let fake = taking(move |request| {
        (request.method == "PUT" && request.path.contains("digest=")).then(|| Reply::new(413, says.clone()))
    });
    let host = host_of(&fake.name);
    let output = push(&host, &pulled(&host), &format!("{}/x:1", fake.name)).run();
    assert_refused(&output, &["answered 413 to the upload of sha256:", "(TOOBIG not", "that much)"]);
    assert!(!output.stderr.contains('\u{1b}'), "{output}");
    // No tag for an image that is not all there.
    assert_eq!(fake.count("/manifests/"), 0);
    assert_eq!(fs::read_dir(host.images().join("tmp")).unwrap().count(), 0);
}

#[test]
fn a_token_for_a_push_is_good_for_pulling_what_it_takes_over() {
    let fake = taking(|request| match request.header("authorization") {
        _ if request.path.starts_with("/token") => Some(Reply::new(200, r#"{"token": "good"}"#)),
        Some("Bearer good") => None,
        _ => {
            let realm = format!("http://{}/token", request.header("host").unwrap());
            Some(Reply::new(401, "").header("WWW-Authenticate", format!("Bearer realm=\"{realm}\",service=\"s\"")))
        }
    });
    let host = host_of(&fake.name);
    push(&host, &pulled(&host), &format!("{}/team/x:1", fake.name)).run().ok();
    let tokens: Vec<_> = fake.requests().into_iter().filter(|request| request.path.starts_with("/token")).collect();
    assert_eq!(tokens[0].path, "/token?scope=repository:team/x:pull%2Cpush&service=s");
}

#[test]
fn a_registry_cannot_send_an_upload_to_where_it_should_not_go() {
    // In https a registry would have to stay; here it must not see the login of another server.
    let elsewhere = taking(|_| None);
    let target = format!("http://{}/uploads/1", elsewhere.name);
    let fake = taking(move |request| match (request.method.as_str(), request.header("authorization")) {
        (_, None) => Some(Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\"")),
        ("POST", _) => Some(Reply::new(202, "").header("Location", &target)),
        _ => None,
    });
    let host = host_of(&fake.name);
    let file = host.scratch().join("auth.json");
    let auth = STANDARD.encode("ada:secret");
    fs::write(&file, json!({"auths": {&fake.name: {"auth": auth}}}).to_string()).unwrap();
    let destination = format!("{}/x:1", fake.name);
    host.podspawn(["push", &pulled(&host), &destination]).env("REGISTRY_AUTH_FILE", file).run().ok();
    let requests = elsewhere.requests();
    assert!(requests.len() >= 2 && requests.iter().all(|request| request.header("authorization").is_none()));
}
