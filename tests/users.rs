//! Users who come with keys that they have published, and users who go with all that they had.

mod common;

use std::fs;

use common::{
    Host, Stream, eventually,
    registry::{Fake, Reply},
    ssh::make_key,
};
use nix::sys::signal::Signal;

#[test]
fn a_users_keys_are_taken_from_where_they_are_published() {
    let keys = tempfile::tempdir().unwrap();
    let key = keys.path().join("octo.key");
    make_key(&key, &["-t", "ed25519", "-C", "secret of octo"]);
    let public = fs::read_to_string(key.with_extension("key.pub")).unwrap();
    let published = format!("{public}restrict {public}ssh-dss AAAA\n");
    let github = Fake::start(move |request| match request.path.as_str() {
        "/octo-cat.keys" => Reply::new(200, published.clone()),
        "/empty.keys" => Reply::new(200, ""),
        "/unusable.keys" => Reply::new(200, "cert-authority ssh-ed25519 AAAA\n"),
        "/broken.keys" => Reply::new(500, "no"),
        _ => Reply::new(404, "Not Found"),
    });
    let config = format!("auth:\n  github_url: http://{}", github.name);
    let host = Host::new().user("ada").config(&config).start();
    let add = |user: &str, login: &str| host.podspawn(["add-user", user, "--github", login]).run();
    let added = add("octo", "octo-cat");
    added.ok().stderr_has("line 2 is left out: it has options").stderr_has("line 3 is left out: ");
    added.stderr_has("octo: 1 key added");
    host.ssh("octo", "whoami").key(&key).run().ok().stdout("octo\n");
    let file = fs::read_to_string(host.root.join("etc/podspawn/keys/octo")).unwrap();
    assert_eq!(file, format!("{} octo-cat@github\n", public.rsplitn(4, ' ').last().unwrap()));
    // Together with keys that are known, and with an earlier state of the same ones.
    let ada = fs::read_to_string(host.key("ada").with_extension("key.pub")).unwrap();
    host.podspawn(["add-user", "octo", "--github", "octo-cat", "--key", &ada]).run().ok().stderr_has("1 key added");

    add("eve", "empty").status(1).stderr("podspawn: empty has no usable public key at GitHub\n");
    add("eve", "unusable").status(1).stderr_has("unusable has no usable public key at GitHub");
    add("eve", "nobody").status(1).stderr_has("there is no user nobody");
    add("eve", "broken").status(1).stderr_has("the server answers 500");
    for bad in ["../octo", "a/b", "", "-x", "a?b", &"x".repeat(40)] {
        let option = format!("--github={bad}");
        host.podspawn(["add-user", "eve", &option]).run().status(1).stderr_has("is not the login of a GitHub user");
    }
    host.podspawn(["add-user", "eve"]).run().status(2);
    assert!(!host.root.join("etc/podspawn/keys/eve").exists());
    assert_eq!(github.requests().len(), 6);
    host.assert_no_session_left();
}

#[test]
fn a_user_who_is_purged_leaves_nothing_and_nobody_else_loses_anything() {
    let mut host = Host::new().user("ada").user("bob").config("session:\n  mode: persistent").start();
    let users = host.root.join("etc/podspawn/users");
    fs::create_dir_all(&users).unwrap();
    for user in ["ada", "bob"] {
        fs::write(users.join(format!("{user}.yaml")), "pids: 100\n").unwrap();
        fs::create_dir_all(host.root.join("var/lib/podspawn/volumes").join(user).join("web/data/deep")).unwrap();
        host.ssh(user, "echo 1 > kept").run().ok();
    }
    let of = |host: &Host, user: &str| {
        ["var/lib/podspawn/homes/X", "var/lib/podspawn/volumes/X", "etc/podspawn/users/X.yaml", "etc/podspawn/keys/X"]
            .map(|path| host.root.join(path.replace('X', user)).exists())
    };
    let stream = Stream::start(&host, "ada+web");
    let refused = host.podspawn(["remove-user", "ada", "--purge"]).run();
    refused.status(1).stderr("podspawn: ada has 2 sessions running; end them with --force\n");
    stream.finish();
    assert_eq!(of(&host, "ada"), [true; 4]);

    // Sessions go on without a server.
    host.end(Signal::SIGTERM);
    host.podspawn(["remove-user", "ada", "--purge", "--force"]).run().status(1).stderr_has("may still run");
    assert_eq!(of(&host, "ada"), [true; 4]);
    host.serve();

    let purged = host.podspawn(["remove-user", "ada", "--purge", "--force"]).run();
    purged.ok().stderr_has("removed the home directory").stderr_has("removed the volumes").stderr_has("ada.yaml");
    assert_eq!((of(&host, "ada"), of(&host, "bob")), ([false; 4], [true; 4]));
    host.assert_only_left(&["bob"]);
    purged.stderr_has("removed 2 records of past sessions");
    assert_eq!(host.json(["records"]), serde_json::json!([]));
    host.podspawn(["remove-user", "ada", "--purge"]).run().status(1).stderr_has("there is no user ada");
    // The keys may have gone before the rest.
    host.podspawn(["remove-user", "bob", "--force"]).run().ok();
    eventually("bob's session is gone", || host.sessions().is_empty());
    assert_eq!(of(&host, "bob"), [true, true, true, false]);
    host.podspawn(["remove-user", "bob", "--purge"]).run().ok();
    assert_eq!(of(&host, "bob"), [false; 4]);
    host.assert_no_session_left();
}
