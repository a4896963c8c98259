use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::*;
use common::registry::{Fake, Reply, Request, serve};

/// The n-th call of each path, from 0.
#[derive(Default)]
struct Calls(std::sync::Mutex<std::collections::HashMap<String, usize>>);

impl Calls {
    fn next(&self, request: &Request) -> usize {
        let mut calls = self.0.lock().unwrap();
        let calls = calls.entry(request.path.clone()).or_default();
        *calls += 1;
        *calls - 1
    }
}

/// A layout in a directory of its own, and a registry that has it and answers as `answer` says.
fn fake(
    sizes: &[usize],
    answer: impl Fn(&Request, usize, Reply) -> Reply + Send + Sync + 'static,
) -> (tempfile::TempDir, Layout, Fake) {
    let directory = tempfile::tempdir().unwrap();
    let layout = noisy(&directory.path().join("layout"), sizes);
    let (path, calls) = (layout.path.clone(), Calls::default());
    let fake = Fake::start(move |request| answer(request, calls.next(request), serve(&path, request)));
    (directory, layout, fake)
}

fn is_layer(request: &Request, reply: &Reply) -> bool {
    request.path.contains("/blobs/") && reply.body.len() > 10_000
}

fn files(sizes: &[usize]) -> Vec<(String, Vec<u8>)> {
    sizes.iter().enumerate().map(|(at, size)| (format!("f{at}"), oci::noise(at as u64, *size))).collect()
}

#[test]
fn a_blob_that_breaks_off_is_continued_where_it_was() {
    let sizes = [400_000, 200_000];
    let (_directory, _layout, fake) = fake(&sizes, |request, call, reply| {
        let cut = is_layer(request, &reply) && call < 3;
        if cut { reply.cut(60_000) } else { reply }
    });
    let host = host_of(&[&fake.name], "");
    let reference = format!("{}/x:latest", fake.name);
    pull(&host, &reference).ok();
    assert_eq!(content(&host, &reference), files(&sizes));
    let ranges: Vec<_> =
        fake.requests().iter().filter_map(|request| request.header("range").map(str::to_owned)).collect();
    for from in ["bytes=60000-", "bytes=120000-", "bytes=180000-"] {
        assert_eq!(ranges.iter().filter(|range| *range == from).count(), 2, "{ranges:?}");
    }
}

#[test]
fn a_server_without_ranges_or_with_wrong_ones_does_not_spoil_a_blob() {
    let sizes = [400_000];
    let (_directory, layout, fake) = fake(&sizes, |request, call, reply| match call {
        0 | 1 if is_layer(request, &reply) => reply.cut(100_000),
        _ => reply,
    });
    let plain = layout.path.clone();
    // All of it again, and once a range that nobody has asked for.
    let calls = Calls::default();
    let ignorant = Fake::start(move |request| {
        let mut request = request.clone();
        let range = request.headers.remove("range");
        let reply = serve(&plain, &request);
        match (is_layer(&request, &reply), calls.next(&request)) {
            (true, 0) => reply.cut(100_000),
            (true, 1) if range.is_some() => {
                let mut reply = reply.header("Content-Range", "bytes 7-9/400000");
                reply.status = 206;
                reply
            }
            _ => reply,
        }
    });
    let host = host_of(&[&fake.name, &ignorant.name], "");
    for fake in [&fake, &ignorant] {
        let reference = format!("{}/x:latest", fake.name);
        pull(&host, &reference).ok();
        assert_eq!(content(&host, &reference), files(&sizes));
        host.podspawn(["image", "rm", &reference]).run().ok();
        host.podspawn(["image", "prune"]).run().ok();
    }
}

#[test]
fn a_server_that_is_unwell_is_asked_again_and_one_that_refuses_is_not() {
    let sizes = [20_000];
    let (_directory, _layout, sick) = fake(&sizes, |_, call, reply| match call {
        0 => Reply::new(500, "oops"),
        1 => Reply::new(429, "").header("Retry-After", "0"),
        2 => Reply::new(503, ""),
        _ => reply,
    });
    let host = host_of(&[&sick.name], "");
    let reference = format!("{}/x:latest", sick.name);
    pull(&host, &reference).ok();
    assert_eq!(content(&host, &reference), files(&sizes));
    assert_eq!(sick.count("/manifests/"), 4);

    for (status, expected) in
        [(401, "refuses access"), (403, "refuses access"), (404, "is not there"), (400, "answered 400")]
    {
        let (_directory, _layout, stubborn) = fake(&sizes, move |_, _, _| Reply::new(status, ""));
        let host = host_of(&[&stubborn.name], "");
        assert_refused(&pull(&host, &format!("{}/x:latest", stubborn.name)), &[expected]);
        assert_eq!(stubborn.requests().len(), 1, "{status}");
        assert_nothing_there(&host);
    }
    let (_directory, _layout, dead) = fake(&sizes, |_, _, _| Reply::new(502, ""));
    let host = host_of(&[&dead.name], "");
    assert_refused(&pull(&host, &format!("{}/x:latest", dead.name)), &["answered 502 to manifest latest"]);
    assert_eq!(dead.requests().len(), 5);
}

#[test]
fn what_does_not_have_its_digest_never_shows() {
    let sizes = [30_000, 20_000];
    let spoiled = |what: &'static str, spoil: fn(&mut Reply)| {
        let (_directory, _layout, fake) = fake(&sizes, move |request, _, mut reply| {
            if request.path.contains(what) {
                spoil(&mut reply);
            }
            reply
        });
        let host = host_of(&[&fake.name], "");
        let output = pull(&host, &format!("{}/x:latest", fake.name));
        assert_nothing_there(&host);
        output
    };
    let flip = |reply: &mut Reply| *reply.body.last_mut().unwrap() ^= 1;
    assert_refused(&spoiled("/blobs/", flip), &["configuration", "does not have this digest"]);
    assert_refused(&spoiled("/blobs/", |reply| reply.body.push(0)), &["is not", "bytes long"]);
    let shorten = |reply: &mut Reply| reply.body.truncate(reply.body.len().saturating_sub(1));
    assert_refused(&spoiled("/blobs/", shorten), &["unexpected end of file"]);
    // Of the layers only.
    let layers = |spoil: fn(&mut Reply)| {
        let (_directory, _layout, fake) = fake(&sizes, move |request, _, mut reply| {
            if is_layer(request, &reply) {
                spoil(&mut reply);
            }
            reply
        });
        let host = host_of(&[&fake.name], "");
        let output = pull(&host, &format!("{}/x:latest", fake.name));
        assert_nothing_there(&host);
        output
    };
    assert_refused(&layers(flip), &["layer sha256:", "does not have this digest"]);
    assert_refused(&layers(|reply| reply.body[5000] ^= 1), &["layer sha256:", "does not have this digest"]);
    assert_refused(&layers(|reply| reply.body.push(0)), &["layer sha256:", "bytes long"]);
    assert_refused(&layers(|reply| reply.status = 404), &["layer sha256:", "is not there"]);
}

#[test]
fn a_layer_that_unpacks_to_something_else_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut layer = Layer::gzip(Archive::new().file("f", "x"));
    layer.diff_id = oci::digest(b"something else");
    let layout = Layout::of(&directory.path().join("layout"), &[layer]);
    let host = host_of(&[], "");
    assert_refused(&pull(&host, &layout.reference()), &["unpacks to something else", "diff id"]);
    assert_nothing_there(&host);
}

#[test]
fn mirrors_are_asked_first_and_the_registry_itself_when_they_fail() {
    let sizes = [50_000, 30_000];
    // What the mirror makes of a good answer, and whether it is enough.
    type Mirror = (&'static str, fn(&Request, Reply) -> Reply, bool);
    let mirror_answers: [Mirror; 5] = [
        ("good", |_, reply| reply, true),
        ("empty", |_, _| Reply::new(404, ""), false),
        ("closed", |_, _| Reply::new(401, ""), false),
        ("half", |request, reply| if is_layer(request, &reply) { Reply::new(404, "") } else { reply }, false),
        (
            "wrong",
            |request, mut reply| {
                if request.path.contains("/blobs/") {
                    *reply.body.last_mut().unwrap() ^= 1;
                }
                reply
            },
            false,
        ),
    ];
    for (what, answer, alone) in mirror_answers {
        let (_directory, layout, mirror) = fake(&sizes, move |request, _, reply| answer(request, reply));
        let path = layout.path.clone();
        let registry = Fake::start(move |request| serve(&path, request));
        let mirrors = format!("  mirrors: {{\"{}\": [\"{}/cache\"]}}\n", registry.name, mirror.name);
        let host = host_of(&[&mirror.name, &registry.name], &mirrors);
        let reference = format!("{}/team/x:latest", registry.name);
        pull(&host, &reference).ok();
        assert_eq!(content(&host, &reference), files(&sizes), "{what}");
        assert!(mirror.count("/v2/cache/team/x/manifests/latest") == 1, "{what}");
        assert_eq!(registry.requests().is_empty(), alone, "{what}");
    }
}

#[test]
fn a_mirror_that_dies_in_the_middle_of_a_blob_is_relieved_by_the_registry() {
    let sizes = [400_000];
    let (_directory, layout, mirror) = fake(&sizes, |request, call, reply| match call {
        0 if is_layer(request, &reply) => reply.cut(100_000),
        _ if is_layer(request, &reply) => Reply::new(404, ""),
        _ => reply,
    });
    let path = layout.path.clone();
    let registry = Fake::start(move |request| serve(&path, request));
    let mirrors = format!("  mirrors: {{\"{}\": [\"{}\"]}}\n", registry.name, mirror.name);
    let host = host_of(&[&mirror.name, &registry.name], &mirrors);
    let reference = format!("{}/x:latest", registry.name);
    pull(&host, &reference).ok();
    assert_eq!(content(&host, &reference), files(&sizes));
    let asked = registry.requests();
    assert!(asked.len() == 1 && asked[0].header("range") == Some("bytes=100000-"), "{asked:?}");
}

#[test]
fn no_server_and_no_document_can_make_us_keep_too_much() {
    let answers: [(&str, Reply); 4] = [
        ("larger than 4 MiB", Reply::new(200, vec![b' '; 5 << 20])),
        ("EOF while parsing", Reply::new(200, "{")),
        ("neither an image nor an index", Reply::new(200, "{}")),
        ("recursion limit", Reply::new(200, "[".repeat(100_000))),
    ];
    for (expected, reply) in answers {
        let body = reply.body;
        let fake = Fake::start(move |_| Reply::new(200, body.clone()));
        let host = host_of(&[&fake.name], "");
        assert_refused(&pull(&host, &format!("{}/x:latest", fake.name)), &["manifest", expected]);
    }
    // Redirects without an end, and ones that lead away from TLS or from HTTP.
    let hops = Arc::new(AtomicUsize::new(0));
    let counter = hops.clone();
    let fake = Fake::start(move |_| Reply::redirect(format!("/again/{}", counter.fetch_add(1, Ordering::Relaxed))));
    let host = host_of(&[&fake.name], "");
    assert_refused(&pull(&host, &format!("{}/x:latest", fake.name)), &["more than 5 redirects"]);
    assert_eq!(hops.load(Ordering::Relaxed), 6);
    for target in ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher:x", ""] {
        let fake = Fake::start(move |_| Reply::redirect(target));
        let host = host_of(&[&fake.name], "");
        assert_refused(&pull(&host, &format!("{}/x:latest", fake.name)), &["not allowed"]);
        assert_eq!(fake.requests().len(), 1);
    }
}

#[test]
fn foreign_layers_are_fetched_from_the_registry_only() {
    let elsewhere = Fake::start(|_| Reply::new(200, "elsewhere"));
    let directory = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(&directory.path().join("layout"));
    let layers = [Layer::gzip(Archive::new().file("f", "x"))];
    let mut blob = layout.blob("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", &layers[0].blob);
    blob["urls"] = serde_json::json!([format!("http://{}/layer", elsewhere.name)]);
    let manifest = serde_json::json!({"schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json", "layers": [blob],
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json",
                   "digest": layout.config(&layers)["digest"], "size": layout.config(&layers)["size"]}});
    let descriptor =
        layout.blob("application/vnd.docker.distribution.manifest.v2+json", manifest.to_string().as_bytes());
    layout.name("latest", descriptor);
    let path = layout.path.clone();
    let fake = Fake::start(move |request| serve(&path, request));
    let host = host_of(&[&fake.name, &elsewhere.name], "");
    let reference = format!("{}/x:latest", fake.name);
    pull(&host, &reference).ok();
    fs::remove_file(layout.blob_path(&oci::digest(&layers[0].blob))).unwrap();
    host.podspawn(["image", "rm", &reference]).run().ok();
    host.podspawn(["image", "prune"]).run().ok();
    assert_refused(&pull(&host, &reference), &["is not there"]);
    assert_eq!(elsewhere.requests().len(), 0);
}
