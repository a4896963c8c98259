//! Images.

use std::{
    fs,
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    time::Duration,
};

use super::*;
use common::{
    oci::{self, Archive, Layer, Layout},
    registry::{Access, Fake, Gate, Registry, serve},
};

fn image(name: &str) -> String {
    format!("/v1/images/{}", name.replace('/', "%2F"))
}

fn host_of(registry: &str) -> Host {
    Host::new().no_image().config(&format!("images:\n  insecure: [{registry:?}]\n")).start()
}

fn names(host: &Host) -> Vec<String> {
    let images = host.json(["image", "ls"]);
    images.as_array().unwrap().iter().map(|image| image["reference"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn images_come_and_go_over_the_api_as_they_do_by_commands() {
    let registry = Registry::start(Access::Open);
    let host = host_of(&registry.name);
    let layout = Layout::of(&host.scratch().join("layout"), &[Layer::gzip(Archive::new().file("one", "1"))]);
    let reference = layout.reference();

    let pulled = last(host.api("POST", &format!("{}/pull", image(&reference)), None));
    let listed = host.json(["image", "ls"]);
    assert_eq!(pulled, json!({"done": {"digest": listed[0]["digest"]}}));
    assert_eq!(host.api("GET", "/v1/images", None), (200, listed));
    let inspected = host.json_of(["image", "inspect", &reference]);
    assert_eq!(host.api("GET", &image(&reference), None), (200, inspected));

    let to = format!("{}/team/one:1", registry.name);
    let pushed = last(host.api("POST", &format!("{}/push?to={to}", image(&reference)), None));
    let again = last(host.api("POST", &format!("{}/pull", image(&to)), None));
    assert_eq!((&pushed, pushed["done"]["digest"].is_string()), (&again, true));

    let changes = json!({"Env": ["A=b"], "Cmd": ["sh"]});
    let (status, changed) = host.api("POST", &format!("{}/config?tag=mine:1", image(&to)), Some(&changes));
    let config = host.json_of(["image", "inspect", "mine:1"]);
    assert_eq!((status, &changed["digest"]), (200, &config["digest"]));
    assert_eq!(config["config"]["config"]["Cmd"], json!(["sh"]));

    for name in [&reference, &to, "mine:1"] {
        assert_eq!(host.api("DELETE", &image(name), None).0, 204);
    }
    assert_eq!(names(&host), Vec::<String>::new());
    let (status, pruned) = host.api("POST", "/v1/prune?all=true", None);
    assert_eq!((status, pruned["layers"].as_u64() > Some(0)), (200, true), "{pruned}");
    assert_eq!(fs::read_dir(host.images().join("layers")).unwrap().count(), 0);
}

#[test]
fn a_tar_goes_in_and_comes_out_as_it_went_in() {
    let host = Host::new().no_image().start();
    let big = oci::noise(1, 3_000_000);
    let tar = host.scratch().join("in.tar");
    fs::write(&tar, Archive::new().directory("d").file("d/big", &big).file("small", "x").end()).unwrap();
    let upload = format!("@{}", tar.display());
    let path = format!("{}/import?cmd=sh&cmd=-l&env=A=b", image("made/here:1"));
    let arguments = ["-H", "Content-Type: application/x-tar", "--data-binary", &upload];
    let answer: Value = serde_json::from_str(&host.curl(&arguments, &path).run().ok().text()).unwrap();
    let inspected = host.json_of(["image", "inspect", "made/here:1"]);
    assert_eq!(answer, json!({"digest": inspected["digest"]}));
    assert_eq!(inspected["config"]["config"]["Cmd"], json!(["sh", "-l"]));

    let by_command = host.scratch().join("command.tar");
    host.podspawn(["image", "export", "made/here:1"]).arg(&by_command).run().ok();
    let by_api = host.curl(&["-f"], &format!("{}/export", image("made/here:1"))).run();
    assert!(by_api.ok().stdout == fs::read(&by_command).unwrap(), "the same to the byte");
}

#[test]
fn what_cannot_be_done_says_why_and_changes_nothing() {
    let host = Host::new().user("ada").config("session:\n  mode: grace-period").start();
    host.ssh("ada", "true").run().ok();
    let before = names(&host);
    let used = "localhost/busybox:test";
    assert_refused(host.api("GET", &image("NoName"), None), 400, "is not an image name");
    assert_refused(host.api("GET", &image("none:1"), None), 404, "image none:1 is not there");
    assert_refused(host.api("GET", &format!("{}/export", image("none:1")), None), 404, "is not there");
    assert_refused(host.api("DELETE", &image("none:1"), None), 404, "is not there");
    assert_refused(host.api("DELETE", &image(used), None), 409, "is in use by a session");
    let push = |path: &str| host.api("POST", &format!("{}/push{path}", image(used)), None);
    assert_refused(push("?to=oci:/tmp/x"), 400, "is not a place to push to");
    assert_refused(host.api("POST", &format!("{}/push", image("none:1")), None), 404, "is not there");
    let pull = |name: &str| host.api("POST", &format!("{}/pull", image(name)), None);
    assert_refused(pull("oci:layout"), 400, "layout is not an absolute path");
    let failed = last(pull("oci:/nonexistent/layout"));
    assert!(failed["failed"]["error"].as_str().unwrap().contains("/nonexistent/layout"), "{failed}");
    let config = |changes: Value| host.api("POST", &format!("{}/config", image(used)), Some(&changes));
    assert_refused(config(json!({"Env": ["x"]})), 400, "is not NAME=value");
    assert_eq!(config(json!({"Shell": "x"})).0, 422);
    let import = |query: &str, body: &str| {
        let arguments = ["-w", "\n%{http_code}", "-H", "Content-Type: application/x-tar", "-d", body];
        let text = host.curl(&arguments, &format!("{}/import{query}", image("made:1"))).run().ok().text();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), serde_json::from_str(body).unwrap())
    };
    assert_refused(import("?env=x", ""), 400, "is not NAME=value");
    assert_refused(import("?evn=x=y", ""), 400, "there is no option \"evn\"");
    assert_refused(import("", &"no tar ".repeat(200)), 400, "cannot unpack the request's body");
    assert_eq!(names(&host), before);
    assert_eq!(fs::read_dir(host.images().join("tmp")).unwrap().count(), 0);
    host.podspawn(["stop", "ada"]).run().ok();
    eventually("the session is gone", || host.sessions().is_empty());
    host.assert_no_session_left();
}

#[test]
fn a_client_that_goes_ends_its_pull_and_nothing_is_left_of_that() {
    let directory = tempfile::tempdir().unwrap();
    let layers = [Layer::gzip(Archive::new().file("f0", oci::noise(0, 900_000)))];
    let layout = Layout::of(&directory.path().join("layout"), &layers);
    let (gate, path) = (Gate::default(), layout.path.clone());
    let wait = gate.clone();
    let fake = Fake::start(move |request| {
        let reply = serve(&path, request);
        if request.path.contains("/blobs/") && reply.body.len() > 300_000 && request.header("range").is_none() {
            reply.pause(200_000, &wait)
        } else {
            reply
        }
    });
    let host = host_of(&fake.name);
    let reference = format!("{}/x:latest", fake.name);
    let unfinished = || fs::read_dir(host.images().join("tmp")).unwrap().count();
    let mut client = UnixStream::connect(host.root.join("run/podspawn/podspawn.sock")).unwrap();
    let head = format!("POST {}/pull HTTP/1.1\r\nHost: podspawn\r\n\r\n", image(&reference));
    client.write_all(head.as_bytes()).unwrap();
    eventually("a layer is being unpacked", || unfinished() > 0);
    // To the server it has gone; we still hear when the server has noticed.
    client.shutdown(Shutdown::Write).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut said = String::new();
    client.read_to_string(&mut said).unwrap();
    assert!(said.contains("pulling") && !said.contains("done"), "{said}");
    gate.open();
    eventually("what is unfinished is removed", || unfinished() == 0);
    assert_eq!(names(&host), Vec::<String>::new());
    assert_eq!(fs::read_dir(host.images().join("layers")).unwrap().count(), 0);
    // And the next one gets all of it.
    let pulled = last(host.api("POST", &format!("{}/pull", image(&reference)), None));
    assert!(pulled["done"]["digest"].is_string(), "{pulled}");
}

#[test]
fn a_tar_that_is_cut_off_makes_no_image() {
    let host = Host::new().no_image().start();
    let tar = Archive::new().file("f", oci::noise(2, 500_000)).end();
    let unfinished = || fs::read_dir(host.images().join("tmp")).unwrap().count();
    let mut client = UnixStream::connect(host.root.join("run/podspawn/podspawn.sock")).unwrap();
    let head =
        format!("POST /v1/images/cut:1/import HTTP/1.1\r\nHost: podspawn\r\nContent-Length: {}\r\n\r\n", tar.len());
    client.write_all(head.as_bytes()).unwrap();
    client.write_all(&tar[..300_000]).unwrap();
    eventually("it is being unpacked", || unfinished() > 0);
    drop(client);
    eventually("what is unfinished is removed", || unfinished() == 0);
    assert_eq!(names(&host), Vec::<String>::new());
    assert_eq!(fs::read_dir(host.images().join("layers")).unwrap().count(), 0);
}
