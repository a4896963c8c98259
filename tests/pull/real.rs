use super::*;
use common::registry::{Access, Registry};

fn tars() -> [Vec<u8>; 3] {
    [
        Archive::new().directory("d").file("d/one", "1").file("d/two", "2").end(),
        Archive::new().file("d/.wh.two", "").end(),
        Archive::new().file("d/three", oci::noise(3, 300_000)).end(),
    ]
}

fn layout(host: &Host) -> Layout {
    let forms = [Form::Zstd, Form::Plain, Form::Gzip].into_iter();
    let layers: Vec<_> = tars().iter().zip(forms).map(|(tar, form)| Layer::new(tar, form)).collect();
    Layout::of(&host.scratch().join("layout"), &layers)
}

fn expected() -> Vec<(String, Vec<u8>)> {
    vec![("d/one".to_owned(), b"1".to_vec()), ("d/three".to_owned(), oci::noise(3, 300_000))]
}

#[test]
fn images_of_all_kinds_come_from_a_registry() {
    let registry = Registry::start(Access::Open);
    let name = &registry.name;
    let host = host_of(&[name], "");
    let layout = layout(&host);
    let from = format!("oci:{}:latest", layout.path.display());
    registry.push(&from, "a/oci:1", &[]);
    registry.push(&from, "zstd:1", &["--dest-compress-format", "zstd"]);
    // Docker's formats know no zstd.
    let layers = tars().map(|tar| Layer::new(&tar, Form::Gzip));
    let gzipped = Layout::of(&host.scratch().join("gzipped"), &layers);
    registry.push(&format!("oci:{}:latest", gzipped.path.display()), "docker:1", &["--format", "v2s2"]);
    for image in ["a/oci:1", "zstd:1", "docker:1"] {
        let reference = format!("{name}/{image}");
        let digest = pull(&host, &reference).ok().text();
        assert_eq!(content(&host, &reference), expected(), "{image}");
        let inspected = host.json_of(["image", "inspect", &reference]);
        assert_eq!(inspected["digest"], digest.trim());
        // And by its digest, which names the same image.
        let (repository, _) = reference.rsplit_once(':').unwrap();
        let pinned = format!("{repository}@{}", digest.trim());
        pull(&host, &pinned).ok().stdout(&digest);
    }
    let shared: Vec<_> = host.json(["image", "ls"]).as_array().unwrap().iter().map(|i| i["layers"].clone()).collect();
    assert!(shared.windows(2).all(|pair| pair[0] == pair[1]), "a layer is unpacked once: {shared:?}");
    let absent = format!("{name}/docker@sha256:{}", "0".repeat(64));
    assert_refused(&pull(&host, &absent), &["is not there"]);
    assert_refused(&pull(&host, &format!("{name}/a/oci:2")), &["a/oci:2 is not there"]);
    assert_refused(&pull(&host, &format!("{name}/none:1")), &["none:1 is not there"]);
}

#[test]
fn an_index_gives_the_image_of_this_machine() {
    let registry = Registry::start(Access::Open);
    let host = host_of(&[&registry.name], "");
    let mut layout = Layout::new(&host.scratch().join("layout"));
    let layer = |text: &str| [Layer::gzip(Archive::new().file("f", text))];
    let entry = |descriptor: serde_json::Value, architecture: &str, os: &str| {
        let mut entry = descriptor;
        entry["platform"] = serde_json::json!({"architecture": architecture, "os": os});
        entry
    };
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": oci::INDEX, "manifests": [
        entry(layout.manifest(&layer("attestation")), "unknown", "unknown"),
        entry(layout.manifest(&layer("windows")), oci::architecture(), "windows"),
        entry(layout.manifest(&layer("ours")), oci::architecture(), "linux"),
    ]});
    let index = layout.blob(oci::INDEX, index.to_string().as_bytes());
    layout.name("latest", index);
    registry.push(&format!("oci:{}:latest", layout.path.display()), "index:1", &["--all"]);
    let reference = format!("{}/index:1", registry.name);
    pull(&host, &reference).ok();
    assert_eq!(content(&host, &reference), [("f".to_owned(), b"ours".to_vec())]);
}

#[test]
fn a_registry_is_spoken_to_with_tls_unless_it_is_configured_as_insecure() {
    let plain = Registry::start(Access::Open);
    let secure = Registry::start(Access::Tls);
    let host = host_of(&[], "");
    let from = format!("oci:{}:latest", layout(&host).path.display());
    plain.push(&from, "x:1", &[]);
    secure.push(&from, "x:1", &[]);
    assert_refused(&pull(&host, &format!("{}/x:1", plain.name)), &["cannot be reached"]);
    let reference = format!("{}/x:1", secure.name);
    // Nobody vouches for it.
    assert_refused(&pull(&host, &reference), &["cannot be reached", "certificate"]);
    assert_nothing_there(&host);
    quiet(&host, &reference).env("SSL_CERT_FILE", secure.authority()).run().ok();
    assert_eq!(content(&host, &reference), expected());
}

#[test]
fn progress_is_lines_on_a_pipe_and_bars_on_a_terminal() {
    let registry = Registry::start(Access::Open);
    let host = host_of(&[&registry.name], "");
    registry.push(&format!("oci:{}:latest", layout(&host).path.display()), "x:1", &[]);
    let reference = format!("{}/x:1", registry.name);
    let output = host.podspawn(["pull", &reference]).run();
    output.ok().stderr_has(&format!("pulling {reference}\n"));
    assert_eq!(output.stderr.matches(" done\n").count(), 3, "{output}");
    assert!(!output.stderr.contains('\x1b') && !output.stderr.contains('\r'), "{output}");
    pull(&host, &reference).ok().stderr("");

    host.podspawn(["image", "rm", &reference]).run().ok();
    host.podspawn(["image", "prune"]).run().ok();
    let command = format!("{} --root {} pull {reference}", common::binary().display(), host.root.display());
    let output = Run::new("script").args(["-qec", &command, "/dev/null"]).env("TERM", "xterm").run();
    // On the terminal bars are drawn and taken away again; what stays is the digest.
    output.ok().stdout_has("\x1b[").stdout_has("sha256:");
}
