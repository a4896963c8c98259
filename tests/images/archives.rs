use std::{fs, os::unix::fs::symlink};

use serde_json::json;

use super::*;

fn skopeo(from: &str, to: &str) {
    Run::new("skopeo").args(["copy", "-q", from, to]).run().ok();
}

fn layers() -> Vec<Layer> {
    let first = Archive::new().directory("d").file("d/one", "1").file("d/two", "2");
    let second = Archive::new().file("d/.wh.two", "").file("d/three", "3");
    [first, second].map(Layer::gzip).into()
}

#[test]
fn layouts_and_archives_of_other_tools_are_images() {
    let host = host();
    let mut layout = Layout::new(&host.scratch().join("layout"));
    layout.image("v1", &layers());
    let here = layout.path.display().to_string();
    let archive = host.scratch().join("oci.tar").display().to_string();
    let docker = host.scratch().join("docker.tar").display().to_string();
    skopeo(&format!("oci:{here}:v1"), &format!("oci-archive:{archive}:v1"));
    skopeo(&format!("oci:{here}:v1"), &format!("docker-archive:{docker}:localhost/x:v1"));
    let expected = host.scratch().join("expected");
    fs::create_dir_all(expected.join("d")).unwrap();
    for name in [
        format!("oci:{here}"),
        format!("oci:{here}:v1"),
        format!("oci-archive:{archive}"),
        format!("docker-archive:{docker}"),
    ] {
        host.podspawn(["-q", "pull", &name]).run().ok().stderr("");
        let out = exported(&host, &name, &name.replace('/', "_"));
        let files: Vec<_> = snapshot::of(&out).into_keys().collect();
        assert_eq!(files, ["", "d", "d/one", "d/three"].map(PathBuf::from), "{name}");
    }
    // All of them share their layers.
    let images = host.json(["image", "ls"]);
    let images = images.as_array().unwrap();
    assert_eq!(images.len(), 4);
    assert!(images.iter().all(|image| image["layers"] == images[0]["layers"]), "{images:?}");
}

#[test]
fn an_old_docker_archive_may_link_its_layers() {
    let host = host();
    let tree = host.scratch().join("saved");
    let layer = Archive::new().file("f", "data").end();
    fs::create_dir_all(tree.join("aaa")).unwrap();
    fs::create_dir_all(tree.join("bbb")).unwrap();
    fs::write(tree.join("aaa/layer.tar"), &layer).unwrap();
    symlink("../aaa/layer.tar", tree.join("bbb/layer.tar")).unwrap();
    let diff_id = common::oci::digest(&layer);
    let config = json!({"architecture": common::oci::architecture(), "os": "linux", "config": {},
                        "rootfs": {"type": "layers", "diff_ids": [diff_id, diff_id]}});
    fs::write(tree.join("config.json"), config.to_string()).unwrap();
    let manifest =
        json!([{"Config": "config.json", "RepoTags": ["x:1"], "Layers": ["aaa/layer.tar", "bbb/layer.tar"]}]);
    fs::write(tree.join("manifest.json"), manifest.to_string()).unwrap();
    let archive = host.scratch().join("saved.tar");
    Run::new("tar")
        .arg("-C")
        .arg(&tree)
        .arg("-cf")
        .arg(&archive)
        .args(["aaa", "bbb", "config.json", "manifest.json"])
        .run()
        .ok();
    let name = format!("docker-archive:{}", archive.display());
    host.podspawn(["pull", &name]).run().ok();
    assert_eq!(fs::read_to_string(exported(&host, &name, "out").join("f")).unwrap(), "data");
}

#[test]
fn what_is_no_image_is_said_in_one_line() {
    let host = host();
    let mut two = Layout::new(&host.scratch().join("two"));
    two.image("a", &layers());
    two.image("b", &layers()[..1]);
    let empty = host.scratch().join("empty");
    fs::create_dir(&empty).unwrap();
    let garbage = host.scratch().join("garbage");
    fs::write(&garbage, "no archive at all, but long enough for a header; ".repeat(20)).unwrap();
    let packed = host.scratch().join("packed.tar.gz");
    fs::write(&packed, common::oci::gzip(b"x")).unwrap();
    let path = |path: &Path| path.display().to_string();
    let table = [
        (two.reference(), "name one: a, b"),
        (format!("{}:c", two.reference()), "there is: a, b"),
        (format!("oci:{}", path(&empty)), "index.json: No such file"),
        (format!("oci:{}/nowhere", path(&empty)), "No such file"),
        (format!("oci-archive:{}", path(&garbage)), "checksum"),
        (format!("docker-archive:{}", path(&packed)), "decompress it first"),
        ("docker-archive:/dev/null".to_owned(), "it is not a file"),
        ("UPPER:1".to_owned(), "is not an image name"),
        ("bootstrap:plan9/4".to_owned(), "possible is bootstrap:debian/SUITE"),
    ];
    for (name, expected) in table {
        let output = host.podspawn(["-q", "pull", &name]).run();
        output.status(1).stderr_has(expected).stdout("");
        assert_eq!(output.stderr.lines().count(), 1, "{output}");
    }
    host.podspawn(["image", "ls", "--json"]).run().ok().stdout("[]\n");
}

#[test]
fn devices_are_left_out_and_reported() {
    let host = host();
    let device = |header: &mut tar::Header| {
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
    };
    let archive = Archive::new()
        .raw(tar::EntryType::Char, "dev/null", "", b"", device)
        .raw(tar::EntryType::Block, "dev/\u{1b}disk", "", b"", device)
        .raw(tar::EntryType::Char, "dev/whiteout", "", b"", |header| {
            header.set_device_major(0).unwrap();
            header.set_device_minor(0).unwrap();
        })
        .file("f", "x");
    let layout = Layout::of(&host.scratch().join("layout"), &[Layer::gzip(archive)]);
    host.podspawn(["pull", &layout.reference()]).run().ok();
    let inspected = host.json_of(["image", "inspect", &layout.reference()]);
    assert_eq!(inspected["layers"][0]["skipped_devices"], json!(["dev/\u{1b}disk", "dev/null", "dev/whiteout"]));
    let out = exported(&host, &layout.reference(), "out");
    assert_eq!(snapshot::of(&out).into_keys().collect::<Vec<_>>(), ["", "f"].map(PathBuf::from));
}

#[test]
fn an_import_takes_what_comes_and_an_export_replaces_only_when_complete() {
    let host = host();
    let tar = Archive::new().file("f", "x").end();
    let import = || host.podspawn(["image", "import", "--env", "A=b", "--cmd", "sh", "-", "x:1"]);
    import().input(common::oci::gzip(&tar)).run().ok();
    let inspected = host.json_of(["image", "inspect", "x:1"]);
    assert_eq!(inspected["config"]["config"]["Cmd"], json!(["sh"]));
    assert_eq!(inspected["config"]["config"]["Env"][1], "A=b");
    // The same name, written otherwise.
    host.podspawn(["image", "inspect", "docker.io/library/x:1"]).run().ok();
    import().input(&b"no tar"[..]).run().status(1).stderr_has("cannot unpack standard input: ");
    host.podspawn(["image", "import", "--env", "nothing", "-", "x:1"]).run().status(1).stderr_has("is not NAME=value");
    let out = host.scratch().join("out.tar");
    fs::write(&out, "precious").unwrap();
    host.podspawn(["image", "export", "y:1"]).arg(&out).run().status(1).stderr_has("podspawn pull y:1");
    assert_eq!(fs::read_to_string(&out).unwrap(), "precious");
    host.podspawn(["image", "export", "x:1"]).arg(&out).run().ok();
    let piped = host.podspawn(["image", "export", "x:1", "-"]).run();
    assert_eq!(fs::read(&out).unwrap(), piped.ok().stdout);
    host.podspawn(["image", "export", "x:1", "/dev/full"]).run().status(1).stderr_has("No space left");
}

#[test]
fn debian_is_built_from_the_mirror_of_the_host() {
    let host = Host::new().image(common::Image::Debian).user("ada").start();
    let script = ". /etc/os-release; echo $VERSION_CODENAME; dpkg -s ca-certificates | grep Status; \
                  stat -c %a /tmp; test -e /etc/resolv.conf && test ! -L /etc/resolv.conf && echo resolver";
    let output = host.ssh("ada", script).run();
    output.ok().stdout_has("bookworm\nStatus: install ok installed\n1777\n");
    host.assert_no_session_left();
}

#[test]
fn a_configuration_is_changed_and_the_files_are_not() {
    let host = host();
    let layout = Layout::of(&host.scratch().join("layout"), &[Layer::gzip(Archive::new().file("f", "data"))]);
    let reference = layout.reference();
    let old = host.podspawn(["-q", "pull", &reference]).run().ok().text();
    let change = |json: &str, to: &[&str]| {
        let command = [&["image", "config", &reference, "-"], to].concat();
        host.podspawn(command).input(json).run()
    };
    let json = r#"{"Entrypoint": ["/e"], "Cmd": ["a b"], "User": "7:8", "Env": ["A=b"], "StopSignal": "SIGINT",
        "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/v": {}}, "WorkingDir": "/w", "Labels": {"l": "m"}}"#;
    let new = change(json, &["--tag", "new:1"]).ok().text();
    assert_ne!(new, old);
    let mut expected: serde_json::Value = serde_json::from_str(json).unwrap();
    expected["Env"] = serde_json::json!(["PATH=/usr/bin:/bin", "A=b"]);
    let (before, after) = (host.json_of(["image", "inspect", &reference]), host.json_of(["image", "inspect", "new:1"]));
    assert_eq!(after["config"]["config"], expected);
    assert_eq!(after["layers"], before["layers"]);
    assert_eq!(before["digest"], old.trim());
    // Twice the same is the same image; without a name it takes the place of the old one.
    change(json, &[]).ok().stdout(&new);
    assert_eq!(host.json_of(["image", "inspect", &reference])["digest"], new.trim());
    for (json, reason) in [("{", "standard input is not valid"), (r#"{"Cmdd": []}"#, "unknown field `Cmdd`")] {
        let output = change(json, &[]);
        output.status(1).stdout("").stderr_has(reason);
        assert_eq!(output.stderr.lines().count(), 1, "{output}");
    }
    host.podspawn(["image", "config", "nobody/has:it", "-"])
        .input("{}")
        .run()
        .status(1)
        .stderr_has("there is no image");
}
