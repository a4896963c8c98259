//! Users.

use std::{fs, path::PathBuf};

use super::*;
use common::registry::{Fake, Reply};

fn public_key(host: &Host, user: &str) -> String {
    fs::read_to_string(host.key(user).with_extension("key.pub")).unwrap()
}

fn belongings(host: &Host, user: &str) -> [PathBuf; 4] {
    ["var/lib/podspawn/homes/X", "var/lib/podspawn/volumes/X", "etc/podspawn/users/X.yaml", "etc/podspawn/keys/X"]
        .map(|path| host.root.join(path.replace('X', user)))
}

#[test]
fn keys_are_added_as_they_are_given_or_published() {
    let host = Host::new().user("ada").prepare();
    let published = public_key(&host, "ada");
    let github = Fake::start(move |request| match request.path.as_str() {
        "/octo.keys" => Reply::new(200, format!("{published}restrict {published}")),
        "/empty.keys" => Reply::new(200, ""),
        _ => Reply::new(404, "Not Found"),
    });
    let config = fs::read_to_string(host.config_file()).unwrap();
    fs::write(host.config_file(), config.replace("auth:\n", &format!("auth:\n  github_url: http://{}\n", github.name)))
        .unwrap();
    let mut host = host;
    host.serve();
    let add = |user: &str, keys: Value| host.api("POST", &format!("/v1/users/{user}"), Some(&keys));
    let (status, added) = add("octo", json!({"github": ["octo"], "keys": [public_key(&host, "ada")]}));
    assert_eq!((status, &added["added"]), (200, &json!(1)));
    assert!(added["warnings"][0].as_str().unwrap().contains("it has options"), "{added}");
    host.ssh("octo", "whoami").key(&host.key("ada")).run().ok().stdout("octo\n");

    assert_refused(add("eve", json!({})), 400, "neither keys nor logins");
    assert_refused(add("eve", json!({"github": ["empty"]})), 400, "empty has no usable public key");
    assert_refused(add("eve", json!({"github": ["nobody"]})), 400, "there is no user nobody");
    assert_refused(add("eve", json!({"github": ["../x"]})), 400, "is not the login of a GitHub user");
    let half = json!({"keys": [public_key(&host, "ada"), "nonsense"]});
    assert_refused(add("eve", half), 400, "no usable public key");
    assert_eq!(add("eve", json!({"kyes": []})).0, 422);
    assert!(!host.root.join("etc/podspawn/keys/eve").exists());
    host.assert_no_session_left();
}

#[test]
fn a_user_who_is_purged_is_gone_with_everything_when_the_answer_comes() {
    let host = Host::new().user("ada").user("bob").config("session:\n  mode: persistent").start();
    let users = host.root.join("etc/podspawn/users");
    fs::create_dir_all(&users).unwrap();
    for user in ["ada", "bob"] {
        fs::write(users.join(format!("{user}.yaml")), "pids: 100\n").unwrap();
        fs::create_dir_all(host.root.join("var/lib/podspawn/volumes").join(user).join("web/data")).unwrap();
        host.ssh(user, "echo 1 > kept").run().ok();
    }
    let remove = |user: &str, query: &str| host.api("DELETE", &format!("/v1/users/{user}{query}"), None);
    assert_refused(remove("ada", "?purge=true"), 409, "ada has 1 session running");
    assert!(belongings(&host, "ada").iter().all(|path| path.exists()));
    let (status, removed) = remove("ada", "?purge=true&force=true");
    let [home, _, settings, _] = belongings(&host, "ada");
    let expected = json!({"sessions": 1, "home": home, "settings": settings, "volumes": true, "records": 1});
    assert_eq!((status, removed), (200, expected));
    assert!(belongings(&host, "ada").iter().all(|path| !path.exists()));
    assert!(host.sessions().iter().all(|session| session["user"] == "bob"));
    assert!(belongings(&host, "bob").iter().all(|path| path.exists()));
    assert_refused(remove("ada", "?purge=true"), 404, "there is no user ada");
    assert_refused(remove("-x", ""), 400, "is not valid");

    // Without a purge only the keys and the sessions go.
    let (status, removed) = remove("bob", "?force=true");
    let nothing = json!({"sessions": 1, "home": null, "settings": null, "volumes": false, "records": 0});
    assert_eq!((status, removed), (200, nothing));
    eventually("bob's session is gone", || host.sessions().is_empty());
    assert_eq!(belongings(&host, "bob").map(|path| path.exists()), [true, true, true, false]);
    assert_eq!(remove("bob", "?purge=true").0, 200);
    assert_eq!(belongings(&host, "bob").map(|path| path.exists()), [false; 4]);
    host.assert_no_session_left();
}
