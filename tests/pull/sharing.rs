use std::{
    fs,
    process::{Child, Command},
    sync::atomic::{AtomicUsize, Ordering},
};

use super::*;
use common::{
    eventually,
    registry::{Fake, Gate, Reply, Request, serve},
};

fn is_big(request: &Request, reply: &Reply) -> bool {
    request.path.contains("/blobs/") && reply.body.len() > 300_000
}

/// A registry whose big blob stops in the middle until the gate is opened.
fn slow(directory: &std::path::Path, gate: &Gate) -> Fake {
    let (path, gate) = (directory.to_owned(), gate.clone());
    Fake::start(move |request| {
        let reply = serve(&path, request);
        if is_big(request, &reply) && request.header("range").is_none() { reply.pause(200_000, &gate) } else { reply }
    })
}

fn start(host: &Host, reference: &str) -> Child {
    quiet(host, reference).spawn()
}

/// Waits until the big layer is being unpacked.
fn wait_for_the_big_layer(host: &Host) {
    eventually("the big layer is being unpacked", || {
        let found = Run::new("find").arg(host.images().join("tmp")).args(["-name", "f0", "-size", "+0"]).run();
        !found.text().is_empty()
    });
}

fn layers_there(host: &Host) -> usize {
    fs::read_dir(host.images().join("layers")).map_or(0, Iterator::count)
}

#[test]
fn pulls_of_the_same_image_share_the_work() {
    let directory = tempfile::tempdir().unwrap();
    let layout = noisy(&directory.path().join("layout"), &[400_000, 5000, 6000]);
    let gate = Gate::default();
    let fake = slow(&layout.path, &gate);
    let host = host_of(&[&fake.name], "");
    let reference = format!("{}/x:latest", fake.name);
    let pulls: Vec<_> = (0..4).map(|_| start(&host, &reference)).collect();
    // All of them have read the configuration, and wait for the one that has the big layer.
    eventually("four pulls", || fake.count("/manifests/") == 4 && layers_there(&host) == 2);
    wait_for_the_big_layer(&host);
    gate.open();
    for pull in pulls {
        let output = pull.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let manifest: serde_json::Value = serde_json::from_slice(&serve(&layout.path, &fake.requests()[0]).body).unwrap();
    for layer in manifest["layers"].as_array().unwrap() {
        assert_eq!(fake.count(layer["digest"].as_str().unwrap()), 1, "each layer is fetched once");
    }
    assert_eq!(content(&host, &reference).len(), 3);
}

#[test]
fn a_pull_that_is_killed_at_any_moment_leaves_a_store_that_works() {
    let directory = tempfile::tempdir().unwrap();
    let layout = noisy(&directory.path().join("layout"), &[400_000, 5000, 6000]);
    // Each moment is the begin of an answer: the manifest, the configuration, a layer; and the middle of the big layer.
    for moment in 0..6 {
        let (path, gate, requests) = (layout.path.clone(), Gate::default(), AtomicUsize::new(0));
        let held = gate.clone();
        let fake = Fake::start(move |request| {
            let number = requests.fetch_add(1, Ordering::Relaxed);
            let reply = serve(&path, request);
            match moment {
                5 if is_big(request, &reply) => reply.pause(200_000, &held),
                moment if moment == number => reply.pause(0, &held),
                _ => reply,
            }
        });
        let host = host_of(&[&fake.name], "");
        let reference = format!("{}/x:latest", fake.name);
        let mut child = start(&host, &reference);
        if moment == 5 {
            wait_for_the_big_layer(&host);
        } else {
            eventually("it is asked", || fake.requests().len() > moment);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        gate.open();
        assert_nothing_there(&host);
        let there: Vec<_> =
            fs::read_dir(host.images().join("layers")).unwrap().map(|e| e.unwrap().file_name()).collect();
        let before = fake.requests().len();
        // What was complete is not fetched again.
        let path = layout.path.clone();
        let healthy = Fake::start(move |request| serve(&path, request));
        let root = host.config_file();
        let config = fs::read_to_string(&root).unwrap().replace(&fake.name, &healthy.name);
        fs::write(&root, config).unwrap();
        let reference = format!("{}/x:latest", healthy.name);
        pull(&host, &reference).ok();
        assert_eq!(healthy.count("/blobs/") + there.len(), 4, "moment {moment}");
        assert_eq!(content(&host, &reference).len(), 3);
        assert_eq!(fake.requests().len(), before);
    }
}

#[test]
fn an_interrupted_pull_ends_at_once_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let layout = noisy(&directory.path().join("layout"), &[400_000, 5000]);
    let gate = Gate::default();
    let fake = slow(&layout.path, &gate);
    let host = host_of(&[&fake.name], "");
    let reference = format!("{}/x:latest", fake.name);
    let child = start(&host, &reference);
    wait_for_the_big_layer(&host);
    // It waits for a server that sends nothing, which is not what it waits for now.
    Command::new("kill").args(["-s", "INT"]).arg(child.id().to_string()).status().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "podspawn: interrupted\n");
    assert_eq!(fs::read_dir(host.images().join("tmp")).unwrap().count(), 0);
    gate.open();
    pull(&host, &reference).ok();
}

#[test]
fn a_prune_takes_nothing_away_from_a_pull_that_is_under_way() {
    let directory = tempfile::tempdir().unwrap();
    let layout = noisy(&directory.path().join("layout"), &[400_000, 5000, 6000]);
    let gate = Gate::default();
    let fake = slow(&layout.path, &gate);
    let host = host_of(&[&fake.name], "");
    let reference = format!("{}/x:latest", fake.name);
    let child = start(&host, &reference);
    wait_for_the_big_layer(&host);
    eventually("the small layers are there", || layers_there(&host) == 2);
    host.podspawn(["image", "prune"]).run().ok().stderr_has("0 layers removed");
    gate.open();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(content(&host, &reference).len(), 3);
    // And it cleans up after one that has failed.
    host.podspawn(["image", "rm", &reference]).run().ok();
    host.podspawn(["image", "prune"]).run().ok().stderr_has("3 layers removed");
    assert_eq!(layers_there(&host), 0);
}

#[test]
fn sessions_fetch_their_image_and_share_that_with_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let busybox = fs::read(common::images::busybox_tar()).unwrap();
    let layers = [
        Layer::new(&Archive::new().file("f0", oci::noise(0, 400_000)).end(), Form::Gzip),
        Layer::new(&busybox, Form::Zstd),
    ];
    let layout = Layout::of(&directory.path().join("layout"), &layers);
    let gate = Gate::default();
    let fake = slow(&layout.path, &gate);
    let reference = format!("{}/x:latest", fake.name);
    let config = format!("defaults:\n  image: {reference}\nimages:\n  insecure: [\"{}\"]", fake.name);
    let host = Host::new().no_image().config(&config).user("ada").user("bob").start();
    let sessions = ["ada", "bob"].map(|user| host.ssh(user, "wc -c < /f0").spawn());
    let child = start(&host, &reference);
    eventually("two pulls, as both sessions wait for one", || fake.count("/manifests/") == 2);
    wait_for_the_big_layer(&host);
    gate.open();
    for session in sessions {
        let output = session.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "400000\n", "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(child.wait_with_output().unwrap().status.success());
    assert_eq!(fake.count(&oci::digest(&layers[0].blob)), 1);
    assert_eq!(fake.count(&oci::digest(&layers[1].blob)), 1);
    host.assert_no_session_left();
}
