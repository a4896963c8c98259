use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

use super::*;
use common::registry::{Access, Fake, Registry, Reply, Request, serve};

/// Writes an auth.json.
fn auth_file(host: &Host, auths: &serde_json::Value) -> PathBuf {
    let path = host.scratch().join("auth.json");
    fs::write(&path, json!({ "auths": auths }).to_string()).unwrap();
    path
}

fn login(user: &str, password: &str) -> serde_json::Value {
    json!({"auth": STANDARD.encode(format!("{user}:{password}"))})
}

#[test]
fn a_registry_with_a_password_wants_the_right_one() {
    let registry = Registry::start(Access::Password);
    let host = host_of(&[&registry.name], "");
    let layout = noisy(&host.scratch().join("layout"), &[1000]);
    let from = format!("oci:{}:latest", layout.path.display());
    registry.push(&from, "team/x:1", &["--dest-creds", "testuser:testpassword"]);
    let reference = format!("{}/team/x:1", registry.name);
    let denied = ["refuses access to team/x", "login"];
    assert_refused(&pull(&host, &reference), &denied);
    let pull_with = |auths: serde_json::Value| {
        let file = auth_file(&host, &auths);
        quiet(&host, &reference).env("REGISTRY_AUTH_FILE", file).run()
    };
    let name = &registry.name;
    assert_refused(&pull_with(json!({name: login("testuser", "wrong")})), &denied);
    assert_refused(&pull_with(json!({"other.example": login("testuser", "testpassword")})), &denied);
    assert_refused(&pull_with(json!({name: {"auth": "!"}})), &["the login data in", name]);
    assert_nothing_there(&host);
    // The longest name wins.
    let team = format!("{name}/team");
    pull_with(json!({name: login("testuser", "wrong"), team: login("testuser", "testpassword")})).ok();
    host.podspawn(["image", "inspect", &reference]).run().ok();
}

/// Gives out tokens that are good for two requests each.
#[derive(Default)]
struct Tokens(Mutex<Vec<usize>>);

impl Tokens {
    fn answer(&self, layout: &Path, request: &Request) -> Reply {
        let mut left = self.0.lock().unwrap();
        if request.path.starts_with("/token") {
            left.push(2);
            return Reply::new(200, json!({"token": format!("{}", left.len() - 1)}).to_string());
        }
        let token = request.header("authorization").and_then(|shown| shown.strip_prefix("Bearer ")?.parse().ok());
        match token.and_then(|token: usize| left.get_mut(token)) {
            Some(left) if *left > 0 => {
                *left -= 1;
                serve(layout, request)
            }
            _ => {
                let realm = format!("http://{}/token", request.header("host").unwrap());
                let challenge = format!("Bearer realm=\"{realm}\",service=\"the service\",scope=\"x\"");
                Reply::new(401, "").header("WWW-Authenticate", challenge)
            }
        }
    }
}

#[test]
fn tokens_come_from_the_realm_and_are_renewed() {
    let directory = tempfile::tempdir().unwrap();
    let layout = noisy(&directory.path().join("layout"), &[20_000, 10_000]);
    let path = layout.path.clone();
    let tokens = Tokens::default();
    let fake = Fake::start(move |request| tokens.answer(&path, request));
    let host = host_of(&[&fake.name], "");
    let file = auth_file(&host, &json!({&fake.name: login("ada", "secret")}));
    let reference = format!("{}/team/x:latest", fake.name);
    quiet(&host, &reference).env("REGISTRY_AUTH_FILE", file).run().ok();
    let requests = fake.requests();
    let tokens: Vec<_> = requests.iter().filter(|request| request.path.starts_with("/token")).collect();
    assert!(tokens.len() >= 2, "two requests, then another token");
    let basic = format!("Basic {}", STANDARD.encode("ada:secret"));
    for request in &tokens {
        assert_eq!(request.path, "/token?scope=repository:team/x:pull&service=the%20service");
        assert_eq!(request.header("authorization"), Some(&*basic));
    }
    // The password is shown to nobody else.
    let shown = requests.iter().filter(|request| request.header("authorization") == Some(&basic)).count();
    assert_eq!(shown, tokens.len());
}

#[test]
fn an_identity_token_is_exchanged_for_a_token() {
    let directory = tempfile::tempdir().unwrap();
    let layout = noisy(&directory.path().join("layout"), &[1000]);
    let path = layout.path.clone();
    let fake = Fake::start(move |request| match request.header("authorization") {
        _ if request.method == "POST" => Reply::new(200, r#"{"access_token": "exchanged"}"#),
        Some("Bearer exchanged") => serve(&path, request),
        _ => {
            let challenge = format!("Bearer realm=\"http://{}/oauth2\"", request.header("host").unwrap());
            Reply::new(401, "").header("WWW-Authenticate", challenge)
        }
    });
    let host = host_of(&[&fake.name], "");
    let file = auth_file(&host, &json!({&fake.name: {"auth": STANDARD.encode("0:"), "identitytoken": "r&=f"}}));
    quiet(&host, &format!("{}/x:latest", fake.name)).env("REGISTRY_AUTH_FILE", file).run().ok();
    let post = fake.requests().into_iter().find(|request| request.method == "POST").unwrap();
    for part in ["grant_type=refresh_token", "refresh_token=r%26%3Df", "scope=repository%3Ax%3Apull"] {
        assert!(post.body.contains(part), "{post:?}");
    }
}

#[test]
fn a_redirect_takes_no_credentials_along() {
    let directory = tempfile::tempdir().unwrap();
    let layout = noisy(&directory.path().join("layout"), &[20_000]);
    let path = layout.path.clone();
    let storage = Fake::start(move |request| serve(&path, request));
    let path = layout.path.clone();
    let elsewhere = storage.name.clone();
    let basic = format!("Basic {}", STANDARD.encode("ada:secret"));
    let expected = basic.clone();
    let fake = Fake::start(move |request| match request.header("authorization") {
        Some(shown) if shown == expected && request.path.contains("/blobs/") => {
            Reply::redirect(format!("http://{elsewhere}{}", request.path))
        }
        Some(shown) if shown == expected => serve(&path, request),
        _ => Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\""),
    });
    let host = host_of(&[&fake.name], "");
    let file = auth_file(&host, &json!({&fake.name: login("ada", "secret")}));
    quiet(&host, &format!("{}/x:latest", fake.name)).env("REGISTRY_AUTH_FILE", file).run().ok();
    assert_eq!(storage.count("/blobs/"), 2, "the configuration and the layer");
    assert!(storage.requests().iter().all(|request| request.header("authorization").is_none()));
}

/// In a network namespace of its own, a registry has an address that is not a loopback one.
#[test]
fn a_registry_elsewhere_cannot_send_us_to_this_machine() {
    thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        Run::new("ip").args(["link", "set", "lo", "up"]).run().ok();
        Run::new("ip").args(["addr", "add", "10.99.99.99/32", "dev", "lo"]).run().ok();
        Run::new("ip").args(["addr", "add", "169.254.169.254/32", "dev", "lo"]).run().ok();
        let outside = Ipv4Addr::new(10, 99, 99, 99);
        let secrets = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(169, 254, 169, 254)]
            .map(|address| Fake::start_at(address, |_| Reply::new(200, r#"{"token": "stolen"}"#)));
        for secret in &secrets {
            let target = format!("http://{}/latest/meta-data", secret.name);
            let challenge = format!("Bearer realm=\"{target}\"");
            let answers = [
                Reply::redirect(&target),
                Reply::redirect(target.replace("127.0.0.1", "localhost")),
                Reply::new(401, "").header("WWW-Authenticate", challenge),
            ];
            for answer in answers {
                let (status, headers) = (answer.status, answer.headers);
                let fake = Fake::start_at(outside, move |_| {
                    let mut reply = Reply::new(status, "");
                    reply.headers.clone_from(&headers);
                    reply
                });
                let host = host_of(&[&fake.name], "");
                assert_refused(&pull(&host, &format!("{}/x:latest", fake.name)), &["not allowed"]);
            }
            assert_eq!(secret.requests().len(), 0);
        }
    })
    .join()
    .unwrap();
}
