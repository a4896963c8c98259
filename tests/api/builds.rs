//! Builds.

use super::*;
use common::GitServer;

#[test]
fn an_image_is_built_of_a_podfile_and_of_a_project() {
    let host = Host::new().user("ada").start();
    let git = GitServer::start();
    let podfile = "base: localhost/busybox:test\nextra_commands: [\"echo made > /made\"]\n";
    let repository = git.repository("web", &[("podfile.yaml", podfile)]);
    host.podspawn(["add-project", "web", "--repo", &repository.url]).run().ok();
    let build = |request: Value| host.api("POST", "/v1/builds", Some(&request));

    let built = last(build(json!({"podfile": podfile, "tag": "mine:1"})));
    let images = host.json(["image", "ls"]);
    let mine = images.as_array().unwrap().iter().find(|image| image["reference"] == "mine:1").unwrap().clone();
    assert_eq!(built["done"]["digest"], mine["digest"], "{built}");
    // The project's is the same, and is there already.
    assert_eq!(last(build(json!({"project": "web"}))), built);
    host.ssh("ada+web", "cat /made").run().ok().stdout("made\n");

    assert_refused(build(json!({})), 400, "one of plan, podfile and project");
    assert_refused(build(json!({"podfile": podfile, "project": "web"})), 400, "one of plan, podfile and project");
    assert_refused(build(json!({"project": "other"})), 404, "there is no project other");
    assert_refused(build(json!({"podfile": podfile, "tag": "oci:/x"})), 400, "cannot be the name of a new one");
    assert_eq!(build(json!({"podfle": podfile})).0, 422);
    let failed = last(build(json!({"podfile": "base: x y\nfoo: 1\n"})));
    assert_eq!(failed["failed"]["output"].as_array().unwrap().len(), 2, "{failed}");
    let failed = last(build(json!({"podfile": "extends: ./../../etc/base.yaml\n"})));
    let why = failed["failed"]["output"][0].as_str().unwrap();
    assert!(why.contains("the Podfile came without other files"), "{failed}");
    let failed = last(build(json!({"podfile": podfile.replace("echo made > /made", "echo no; exit 7")})));
    assert!(failed["failed"]["output"].to_string().contains("no"), "{failed}");
    host.assert_no_session_left();
}
