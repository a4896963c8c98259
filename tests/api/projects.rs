//! Projects.

use std::fs;

use super::*;
use common::GitServer;

const MINIMAL: &str = "base: localhost/busybox:test\n";

#[test]
fn projects_come_and_go_over_the_api() {
    let host = Host::new().user("ada").config("session:\n  mode: grace-period").start();
    let git = GitServer::start();
    let repository = git.repository("web", &[("podfile.yaml", MINIMAL)]);
    let add = |name: &str, project: Value| host.api("POST", &format!("/v1/projects/{name}"), Some(&project));
    let update = |name: &str| host.api("POST", &format!("/v1/projects/{name}/update"), None);
    let remove = |name: &str| host.api("DELETE", &format!("/v1/projects/{name}"), None);
    let listed = || host.json(["list-projects"]);

    let added = last(add("web", json!({"repo": repository.url})));
    assert_eq!(added, json!({"done": {"project": listed()[0], "before": null, "warnings": []}}));
    host.ssh("ada+web", "echo $PODSPAWN_PROJECT").run().ok().stdout("web\n");

    let before = listed()[0].clone();
    let commit = repository.commit(&[("podfile.yaml", &format!("{MINIMAL}shell: /bin/sh\n"))]);
    let updated = last(update("web"));
    assert_eq!(updated["done"]["before"], before);
    assert_eq!((&updated["done"]["project"]["commit"], &listed()[0]["commit"]), (&json!(commit), &json!(commit)));

    // What is not valid is told in full, and changes nothing.
    repository.commit(&[("podfile.yaml", "base: x y\nfoo: 1\n")]);
    let failed = last(update("web"));
    assert!(failed["failed"]["error"].as_str().unwrap().contains("its Podfile is not valid"), "{failed}");
    assert_eq!(failed["failed"]["output"].as_array().unwrap().len(), 2, "{failed}");
    let gone = last(add("gone", json!({"repo": format!("{}/gone", repository.url)})));
    assert!(gone["failed"]["error"].as_str().unwrap().contains("cannot clone"), "{gone}");
    assert_refused(add("web", json!({"repo": repository.url})), 409, "there is a project web already");
    assert_refused(add("..%2Fx", json!({"repo": repository.url})), 400, "is not valid");
    assert_refused(add("-x", json!({"repo": repository.url})), 400, "is not valid");
    assert_refused(add("x", json!({"repo": "file:///etc"})), 400, "is not a URL of a git repository");
    assert_refused(add("x", json!({"repo": repository.url, "branch": "-x"})), 400, "is not a name of a branch");
    assert_eq!(add("x", json!({"repo": repository.url, "brnch": "x"})).0, 422);
    assert_refused(update("other"), 404, "there is no project other");
    assert_refused(remove("other"), 404, "there is no project other");
    assert_refused(remove("web"), 409, "web has sessions of ada");
    assert_eq!((listed().as_array().unwrap().len(), &listed()[0]["commit"]), (1, &json!(commit)));

    assert_eq!(host.api("DELETE", "/v1/projects/web?force=true", None).0, 204);
    assert_eq!(listed(), json!([]));
    let left = fs::read_dir(host.root.join("var/lib/podspawn/projects")).unwrap();
    assert!(left.map(|entry| entry.unwrap().file_name()).all(|name| name == ".lock"));
    eventually("its session is gone", || host.sessions().is_empty());
    host.assert_no_session_left();
}
