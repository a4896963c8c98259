//! `images.keep_free`: what goes for it, what stays, and what does not fit.

use std::fs;

use super::*;
use common::{
    Stream, eventually,
    registry::{Fake, serve},
};

/// A registry that has `x:NAME` for each of these, with files of its own.
fn registry(directory: &std::path::Path, images: &[(&str, Vec<Layer>)]) -> Fake {
    let mut layout = Layout::new(&directory.join("layout"));
    for (tag, layers) in images {
        layout.image(tag, layers);
    }
    let path = layout.path.clone();
    Fake::start(move |request| serve(&path, request))
}

fn noise(seed: u64, mib: usize) -> Layer {
    Layer::gzip(Archive::new().file("noise", oci::noise(seed, mib << 20)))
}

/// The tags of the images of `x` that the host has.
fn tags(host: &Host) -> Vec<String> {
    let images = host.json(["image", "ls"]);
    let names = images.as_array().unwrap().iter().map(|image| image["reference"].as_str().unwrap().to_owned());
    names.filter_map(|name| Some(name.rsplit_once("/x:")?.1.to_owned())).collect()
}

#[test]
fn what_was_used_longest_ago_goes_and_what_does_not_fit_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let images = [("one", 8), ("two", 8), ("three", 8), ("four", 8), ("big", 60)];
    let images: Vec<_> = (0..).zip(images).map(|(seed, (tag, mib))| (tag, vec![noise(seed, mib)])).collect();
    let fake = registry(directory.path(), &images);
    let root = directory.path().join("root");
    fs::create_dir(&root).unwrap();
    // A file system of its own, in a mount namespace of its own.
    let script = format!(
        r#"set -e
mount -t tmpfs -o size=48m none {root}
mkdir -p {root}/etc/podspawn
printf 'images: {{keep_free: 20m, insecure: ["{name}"]}}\nlog: {{audit_log: {root}/audit}}\n' >{root}/etc/podspawn/config.yaml
p() {{ {binary} --root {root} "$@"; }}
names() {{ p image ls --json | grep -o '/x:[a-z]*' | tr '\n' ' '; echo; }}
refs={root}/var/lib/podspawn/images/refs
for tag in one two three; do p -q pull {name}/x:$tag >/dev/null; done
names
touch -d '2 hours ago' $refs/*two*
touch -d '1 hour ago' $refs/*one*
p pull {name}/x:four 2>{root}/said >/dev/null
grep -c 'removed for images.keep_free: 1 layers (8 MiB), {name}/x:two' {root}/said
names
grep '"event":"cleanup.run"' {root}/audit | grep '"reason":"keep_free"' | grep '"bytes":8388608' | grep -c 'x:two"'
p -q pull {name}/x:big && exit 1
names
cd {root}/var/lib/podspawn/images && find tmp layers refs -mindepth 1 | wc -l"#,
        root = root.display(),
        name = fake.name,
        binary = common::binary().display(),
    );
    let output = Run::new("unshare").args(["-m", "sh", "-c", &script]).run();
    output.ok().stdout("/x:one /x:three /x:two \n1\n/x:four /x:one /x:three \n1\n\n0\n");
    output.stderr_has("there is no room for it").stderr_has("images.keep_free is 20 MiB");
    assert_eq!(output.stderr.lines().count(), 1, "{output}");
}

#[test]
fn what_a_session_or_the_default_needs_and_what_cannot_be_had_again_stays() {
    let directory = tempfile::tempdir().unwrap();
    let busybox = fs::read(common::images::busybox_tar()).unwrap();
    let image = |name: &str| vec![Layer::new(&busybox, Form::Plain), Layer::gzip(Archive::new().file("which", name))];
    let images = ["used", "default", "unused", "late"].map(|tag| (tag, image(tag)));
    let fake = registry(directory.path(), &images);
    let config = format!("defaults:\n  image: {name}/x:used\nimages:\n  insecure: [\"{name}\"]\n", name = fake.name);
    let mut host = Host::new().no_image().user("ada").config(&config).prepare();
    host.podspawn(["image", "import", "-", "localhost/x:own"]).input(Archive::new().file("own", "x").end()).run().ok();
    for tag in ["used", "default", "unused"] {
        pull(&host, &format!("{}/x:{tag}", fake.name)).ok();
    }
    host.serve();
    let session = Stream::start(&host, "ada");
    assert_eq!(tags(&host), ["default", "unused", "used", "own"]);
    // More than any disk has.
    let changed = fs::read_to_string(host.config_file()).unwrap();
    let changed = changed.replace("/x:used", "/x:default").replace("images:\n", "images:\n  keep_free: 1000t\n");
    fs::write(host.config_file(), changed).unwrap();
    eventually("what nobody needs is gone", || tags(&host) == ["default", "used", "own"]);
    let removal = |event: &serde_json::Value| event["reason"] == "keep_free";
    eventually("it is in the audit log", || host.audit().iter().any(removal));
    let audit = host.audit();
    let event = audit.iter().find(|event| removal(event)).unwrap();
    assert_eq!(event["images"], serde_json::json!([format!("{}/x:unused", fake.name)]), "{event}");
    assert_eq!(event["layers"], 1, "{event}");
    eventually("it is said that this is not enough", || host.log().contains("images.keep_free cannot be kept"));
    session.flows();
    host.ssh("ada", "cat /which").run().ok().stdout("used");
    session.finish();
    host.assert_no_session_left();

    // Another process keeps to it too.
    assert_refused(&pull(&host, &format!("{}/x:late", fake.name)), &["there is no room for it"]);
    eventually("what was used before is gone", || tags(&host) == ["default", "own"]);
    assert_eq!(fs::read_dir(host.images().join("tmp")).unwrap().count(), 0);
    host.ssh("ada", "cat /which").run().ok().stdout("default");
    host.assert_no_session_left();
}
