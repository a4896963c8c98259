//! Layers that try to reach what is outside, or to fill the disk: each is refused by the name of its entry or unpacked
//! harmlessly, and a canary outside the store never changes.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use common::{
    Host, Output, Run,
    oci::{self, Archive, Form, Layer, Layout},
    snapshot,
};
use serde_json::json;

/// A host with a canary beside its root, in the store, and at `/`.
struct World {
    host: Host,
    canary: PathBuf,
    before: BTreeMap<PathBuf, String>,
}

impl World {
    fn new() -> Self {
        Self::with("")
    }

    fn with(images: &str) -> Self {
        let config = format!("images:\n  default_registry: docker.io\n{images}");
        let host = Host::new().no_image().config(&config).prepare();
        let canary = host.scratch().join("canary");
        for directory in [canary.clone(), host.root.join("var/lib/podspawn/canary")] {
            fs::create_dir_all(directory.join("sub")).unwrap();
            fs::write(directory.join("secret"), "untouched").unwrap();
            fs::write(directory.join("sub/other"), "untouched").unwrap();
        }
        let before = snapshot::of(&canary);
        Self { host, canary, before }
    }

    fn layout(&self, layers: Vec<Archive>) -> Layout {
        let name = format!("layout-{}", fs::read_dir(self.host.scratch()).unwrap().count());
        let layers: Vec<_> = layers.into_iter().map(Layer::gzip).collect();
        Layout::of(&self.host.scratch().join(name), &layers)
    }

    fn pull(&self, layers: Vec<Archive>) -> (Output, String) {
        let layout = self.layout(layers);
        (self.host.podspawn(["-q", "pull", &layout.reference()]).run(), layout.reference())
    }

    /// Neither the canaries nor anything else outside the layers has changed.
    #[track_caller]
    fn assert_untouched(&self, what: &str) {
        snapshot::assert_same(what, &self.before, &snapshot::of(&self.canary));
        let inner = self.host.root.join("var/lib/podspawn/canary");
        let content = |listing: BTreeMap<PathBuf, String>| -> Vec<_> { listing.into_keys().collect() };
        assert_eq!(content(snapshot::of(&inner)), content(self.before.clone()), "{what}");
        for name in ["secret", "sub/other"] {
            assert_eq!(fs::read_to_string(inner.join(name)).unwrap(), "untouched", "{what}");
        }
        assert!(!Path::new("/podspawn-canary").exists() && !Path::new("/tmp/podspawn-canary").exists(), "{what}");
        let images = fs::read_dir(self.host.images()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut images: Vec<_> = images.map(|name| name.into_string().unwrap()).collect();
        images.retain(|name| name != "lock");
        images.sort();
        assert_eq!(images, ["blobs", "builds", "images", "layers", "locks", "refs", "tmp"], "{what}");
        assert_eq!(fs::read_dir(self.host.images().join("tmp")).unwrap().count(), 0, "{what}");
    }

    #[track_caller]
    fn assert_refused(&self, what: &str, output: &Output, entry: &str) {
        assert!(output.status == Some(1), "{what}: {output}");
        assert!(output.stderr.contains(entry), "{what}: {entry:?} expected: {output}");
        assert!(output.stderr.lines().count() == 1 && !output.stderr.contains('\x1b'), "{what}: {output}");
        self.assert_untouched(what);
        self.host.podspawn(["image", "ls", "--json"]).run().ok().stdout("[]\n");
    }
}

/// What a layer does, the layers, and the entry that is refused.
type Case<'a> = (&'a str, Vec<Archive>, &'a str);

#[test]
fn layers_that_reach_for_the_outside_are_refused_by_the_name_of_the_entry() {
    let world = World::new();
    let canary = world.canary.display().to_string();
    let secret = format!("{canary}/secret");
    let up = format!("{}{}", "../".repeat(20), canary.trim_start_matches('/'));
    let new = Archive::new;
    let table: Vec<Case<'_>> = vec![
        ("dots", vec![new().file("../../canary/new", "x")], "../../canary/new"),
        ("dots in the middle", vec![new().file("a/../../../canary/new", "x")], "a/../../../canary/new"),
        ("dots at the end", vec![new().directory("a/..")], "a/.."),
        ("absolute", vec![new().file("/tmp/podspawn-canary", "x")], "/tmp/podspawn-canary"),
        ("many slashes", vec![new().file("//podspawn-canary", "x")], "//podspawn-canary"),
        ("long name", vec![new().pax(&[("path", up.as_bytes())]).file("x", "x")], "/canary"),
        ("absolute long name", vec![new().pax(&[("path", secret.as_bytes())]).file("x", "x")], &secret),
        (
            "gnu name",
            vec![
                new()
                    .raw(tar::EntryType::GNULongName, "x", "", format!("{up}/new\0").as_bytes(), |_| {})
                    .file("x", "x"),
            ],
            "/canary/new",
        ),
        (
            "sparse name",
            vec![
                new()
                    .pax(&[
                        ("GNU.sparse.major", b"1"),
                        ("GNU.sparse.minor", b"0"),
                        ("GNU.sparse.name", format!("{up}/new").as_bytes()),
                        ("GNU.sparse.realsize", b"0"),
                    ])
                    .file("x", [&b"0\n"[..], &[0; 510]].concat()),
            ],
            "/canary/new",
        ),
        ("through a link", vec![new().symlink("l", &up).file("l/new", "x")], "l/new"),
        ("through an absolute link", vec![new().symlink("l", &canary).file("l/new", "x")], "l/new"),
        ("directory through a link", vec![new().symlink("l", &canary).directory("l/sub")], "l/sub"),
        ("link through a link", vec![new().symlink("l", &canary).symlink("l/new", "x")], "l/new"),
        (
            "fifo through a link",
            vec![new().symlink("l", &canary).raw(tar::EntryType::Fifo, "l/new", "", b"", |_| {})],
            "l/new",
        ),
        (
            "through a chain",
            vec![new().symlink("a", "b").symlink("b", "c").symlink("c", "..").file("a/../new", "x")],
            "a/../new",
        ),
        ("through a climbing chain", vec![new().symlink("a", "b").symlink("b", "..").file("a/new", "x")], "a/new"),
        (
            "through proc",
            vec![new().symlink("p", "/proc/self/root/tmp").file("p/podspawn-canary", "x")],
            "p/podspawn-canary",
        ),
        ("hard link", vec![new().hard_link("h", &up).file("h", "x")], "h"),
        ("absolute hard link", vec![new().hard_link("h", &secret)], "h"),
        ("hard link through a link", vec![new().symlink("l", &canary).hard_link("h", "l/secret")], "h"),
        ("hard link beneath a link", vec![new().file("f", "x").symlink("l", &canary).hard_link("l/new", "f")], "l/new"),
        ("hard link to nothing", vec![new().hard_link("h", "nothing")], "h"),
        ("whiteout through a link", vec![new().symlink("l", &canary).file("l/.wh.secret", "")], "l/.wh.secret"),
        ("opaque through a link", vec![new().symlink("l", &canary).file("l/.wh..wh..opq", "")], "l/.wh..wh..opq"),
        ("whiteout of ..", vec![new().directory("d").file("d/.wh...", "")], "d/.wh..."),
        ("whiteout of .", vec![new().directory("d").file("d/.wh..", "")], "d/.wh.."),
        ("whiteout of nothing", vec![new().file(".wh.", "")], ".wh."),
        ("whiteout with dots", vec![new().file(".wh.x/../../canary/new", "")], ".wh.x/../../canary/new"),
        ("escape sequences", vec![new().file("../\u{1b}[2Jx\n", "x")], "\\u{1b}[2Jx"),
        // The same over several layers.
        ("link below", vec![new().symlink("l", &canary), new().file("l/new", "x")], "l/new"),
        ("climbing link below", vec![new().symlink("l", &up), new().file("l/sub/new", "x")], "l/sub/new"),
        ("whiteout and link below", vec![new().symlink("l", &canary), new().file("l/.wh.secret", "")], "l/.wh.secret"),
        ("hard link through a link below", vec![new().symlink("l", &canary), new().hard_link("h", "l/secret")], "h"),
        ("hard link to nothing below", vec![new().file("f", "x"), new().hard_link("h", "nothing")], "h"),
        ("hard link to a directory below", vec![new().directory("d"), new().hard_link("h", "d")], "h"),
        ("loop below", vec![new().symlink("a", "b").symlink("b", "a"), new().file("a/x", "x")], "a/x"),
    ];
    for (what, layers, entry) in table {
        let (output, _) = world.pull(layers);
        world.assert_refused(what, &output, entry);
    }
}

#[test]
fn headers_that_programs_read_differently_are_refused() {
    let world = World::new();
    let new = Archive::new;
    let file = tar::EntryType::Regular;
    let table: Vec<Case<'_>> = vec![
        ("owner", vec![new().raw(file, "f", "", b"", |header| header.set_uid(65_536))], "f: its owner 65536:0"),
        ("group", vec![new().pax(&[("gid", b"4294967295")]).file("f", "x")], "f: its owner 0:4294967295"),
        ("owner beyond numbers", vec![new().pax(&[("uid", b"99999999999999999999")]).file("f", "x")], "uid"),
        ("size beyond numbers", vec![new().pax(&[("size", b"99999999999999999999")]).file("f", "x")], "size"),
        ("size that overflows", vec![new().pax(&[("size", b"18446744073709551104")]).file("f", "x")], "size"),
        ("negative size", vec![new().raw(file, "f", "", b"", |header| header.as_old_mut().size = [0xff; 12])], "size"),
        ("checksum", vec![Archive([&b"x"[..], &new().file("f", "x").0[1..]].concat())], "checksum"),
        (
            "cut off",
            vec![Archive(new().raw(file, "f", "", b"", |header| header.set_size(100_000)).0)],
            "middle of an entry",
        ),
        (
            "large record",
            vec![new().raw(tar::EntryType::XHeader, "x", "", &[b'x'; 2 << 20], |_| {})],
            "larger than 1 MiB",
        ),
        (
            "record without end",
            vec![new().raw(tar::EntryType::XHeader, "x", "", b"99 path=x\n", |_| {}).file("f", "")],
            "record",
        ),
        (
            "unknown type",
            vec![new().raw(tar::EntryType::new(b'Q'), "q", "", b"", |_| {})],
            "q: an entry of the unknown type 'Q'",
        ),
        ("root as a link", vec![new().symlink(".", "/etc")], "/: the root is not a directory"),
        (
            "sparse overlap",
            vec![new().pax(&[("GNU.sparse.map", b"5,1,0,1"), ("GNU.sparse.size", b"9")]).file("f", "xy")],
            "sparse",
        ),
        (
            "sparse outside",
            vec![
                new().pax(&[("GNU.sparse.map", b"18446744073709551615,2"), ("GNU.sparse.size", b"9")]).file("f", "xy"),
            ],
            "sparse",
        ),
    ];
    for (what, layers, entry) in table {
        let (output, _) = world.pull(layers);
        world.assert_refused(what, &output, entry);
    }
}

#[test]
fn what_is_odd_but_harmless_stays_inside() {
    let world = World::new();
    let canary = world.canary.display().to_string();
    let secret = format!("{canary}/secret");
    let owned = |header: &mut tar::Header| {
        header.set_uid(7);
        header.set_mode(0o777);
    };
    let layers = vec![
        Archive::new()
            .symlink("file", &secret)
            .file("file", "over a link")
            .symlink("directory", &canary)
            .directory("directory")
            .file("directory/new", "in a directory over a link")
            .raw(tar::EntryType::Symlink, "attributes", &secret, b"", owned)
            .pax(&[
                ("SCHILY.xattr.user.overlay.redirect", canary.as_bytes()),
                ("SCHILY.xattr.trusted.overlay.redirect", canary.as_bytes()),
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("SCHILY.xattr.security.selinux", b"x"),
                ("SCHILY.xattr.user.good", b"kept"),
            ])
            .directory("overlay")
            .symlink("below", &canary)
            .raw(tar::EntryType::XGlobalHeader, "g", "", b"24 path=../../canary/new\n", |_| {})
            .file("plain", "x"),
        Archive::new().directory("below").file("below/new", "over a link below").file("overlay/x", "x"),
    ];
    let (output, reference) = world.pull(layers);
    output.ok();
    world.assert_untouched("harmless");
    let tar = world.host.scratch().join("out.tar");
    world.host.podspawn(["image", "export", &reference]).arg(&tar).run().ok();
    let out = world.host.scratch().join("out");
    fs::create_dir(&out).unwrap();
    Run::new("tar").args(["--xattrs", "--xattrs-include=*", "-xpf"]).arg(&tar).arg("-C").arg(&out).run().ok();
    world.assert_untouched("exported");
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    assert_eq!(read("file"), "over a link");
    assert_eq!(read("directory/new"), "in a directory over a link");
    assert_eq!(read("below/new"), "over a link below");
    assert_eq!(read("plain"), "x");
    let names: Vec<_> = xattr::list(out.join("overlay")).unwrap().collect();
    assert_eq!(names, ["user.good"]);
    // Nor do these have any effect where the layer is stored.
    let layer = world.host.json_of(["image", "inspect", &reference]);
    for layer in layer["layers"].as_array().unwrap() {
        let stored = world.host.images().join("layers").join(layer["name"].as_str().unwrap()).join("overlay");
        let names: Vec<_> = xattr::list(stored).map_or_else(|_| Vec::new(), Iterator::collect);
        assert!(names.iter().all(|name| name == "user.good"), "{names:?}");
    }
}

#[test]
fn a_hidden_layer_cannot_make_the_host_look_outside() {
    // Each of these was followed, on the host, when layers were stacked by path: what is below a directory that nobody has
    // described, when a further layer has a link in its place.
    let world = World::new();
    let canary = world.canary.display().to_string();
    let layers = vec![
        Archive::new().symlink("a", &canary).directory("b"),
        Archive::new().directory("a").file("a/sub/x", "x"),
        Archive::new().symlink("a", &canary),
        Archive::new().file(".wh.a", "").symlink("b", "a"),
        Archive::new().file("a/sub/y", "y"),
    ];
    let (output, reference) = world.pull(layers);
    output.ok();
    world.assert_untouched("stacked");
    let export = world.host.podspawn(["image", "export", &reference, "-"]).run();
    let list = Run::new("tar").arg("-t").input(export.ok().stdout.clone()).run();
    list.ok().stdout("./\na/\na/sub/\na/sub/y\nb\n");
    world.assert_untouched("exported");
}

#[test]
fn bombs_are_refused_where_they_hit_a_limit() {
    let world = World::with("  max_size: 8Mi\n  max_entries: 500\n");
    let new = Archive::new;
    let zeros = |size: usize| vec![0_u8; size];
    let many = (0..600).fold(new(), |archive, at| archive.file(&format!("f{at}"), ""));
    let whiteouts = (0..600).fold(new(), |archive, at| archive.file(&format!(".wh.f{at}"), ""));
    let links = (0..600).fold(new().file("f", ""), |archive, at| archive.hard_link(&format!("l{at}"), "f"));
    let deep = new().pax(&[("path", "d/".repeat(700).as_bytes())]).directory("x");
    let hole = new().pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"1099511627776")]).file("hole", "x");
    let mut tail = new().file("last", "x");
    tail.0.extend(zeros(32 << 20));
    let parts = || (0..3).map(|at| new().file(&format!("part{at}"), zeros(3 << 20))).collect::<Vec<_>>();
    let many_parts =
        || (0..3).map(|at| (0..200).fold(new(), |archive, n| archive.file(&format!("{at}-{n}"), ""))).collect();
    let records =
        (0..20).fold(new(), |archive, at| archive.pax(&[("comment", &zeros(1 << 19))]).file(&format!("noted{at}"), ""));
    let table: Vec<Case<'_>> = vec![
        ("one file", vec![new().file("big", zeros(32 << 20))], "big: the image has more than 8388608 bytes"),
        (
            "a file that is only announced",
            vec![new().raw(tar::EntryType::Regular, "huge", "", b"", |h| h.set_size(1 << 40))],
            "huge",
        ),
        ("holes", vec![hole], "hole: the image has more"),
        ("what follows", vec![tail], "last: the image has more"),
        ("records", vec![records], "more than 8388608 bytes"),
        ("entries", vec![many], "f500: the image has more than 500 entries"),
        ("whiteouts", vec![whiteouts], ".wh.f500: "),
        ("hard links", vec![links], "l499: "),
        ("directories nobody describes", vec![deep], "more than 500 entries"),
        ("layers together", parts(), "more than 8388608 bytes"),
        ("entries together", many_parts(), "more than 500 entries"),
    ];
    for (what, layers, entry) in table {
        let (output, _) = world.pull(layers);
        world.assert_refused(what, &output, entry);
    }
    // Layers that are here already count, too.
    for part in parts() {
        world.pull(vec![part]).0.ok();
    }
    let (output, _) = world.pull(parts());
    output.status(1).stderr_has("images.max_size");
    world.assert_untouched("known layers");
}

#[test]
fn compression_bombs_are_refused() {
    let world = World::with("  max_size: 8Mi\n");
    let media_type = |form| Layer::new(b"", form).media_type;
    let tar =
        |size: u64| Archive::new().raw(tar::EntryType::Regular, "bomb", "", b"", move |header| header.set_size(size)).0;
    // 64 MiB of zeros in a few kilobytes.
    let gzip = oci::gzip(&[tar(64 << 20), vec![0; 64 << 20]].concat());
    let nested = [oci::gzip(&tar(1 << 20)), oci::gzip(&vec![0; 32 << 20])].concat();
    let zstd = zstd::encode_all(&[tar(64 << 20), vec![0; 64 << 20]].concat()[..], 19).unwrap();
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(30).unwrap();
    encoder.include_contentsize(false).unwrap();
    encoder.write_all(&Archive::new().file("f", vec![b'x'; 3 << 20]).end()).unwrap();
    let window = encoder.finish().unwrap();
    for (what, form, blob, expected) in [
        ("gzip", Form::Gzip, gzip, "bomb: the image has more"),
        ("gzip in members", Form::Gzip, nested, "bomb: the image has more"),
        ("zstd", Form::Zstd, zstd, "bomb: the image has more"),
        ("zstd window", Form::Zstd, window, "memory"),
    ] {
        let layer = Layer { diff_id: oci::digest(b"whatever"), blob, media_type: media_type(form) };
        let layout = Layout::of(&world.host.scratch().join(what), &[layer]);
        let output = world.host.podspawn(["-q", "pull", &layout.reference()]).run();
        world.assert_refused(what, &output, expected);
    }
}

#[test]
fn documents_that_ask_for_too_much_are_refused() {
    let world = World::new();
    let layout = |name: &str| Layout::new(&world.host.scratch().join(name));
    let layers = |count: usize| -> Vec<_> {
        (0..count).map(|at| Layer::gzip(Archive::new().file(&format!("f{at}"), ""))).collect()
    };
    let mut many = layout("many");
    many.image("latest", &layers(129));
    let mut none = layout("none");
    none.image("latest", &[]);
    let mut config = layout("config");
    let huge = config.blob("application/vnd.oci.image.config.v1+json", &vec![b' '; 9 << 20]);
    let manifest = json!({"schemaVersion": 2, "config": huge, "layers": []});
    let manifest = config.blob(oci::MANIFEST, manifest.to_string().as_bytes());
    config.name("latest", manifest);
    let mut manifest = layout("manifest");
    let huge = manifest.blob(oci::MANIFEST, &vec![b' '; 5 << 20]);
    manifest.name("latest", huge);
    let mut traversal = layout("traversal");
    let outside = json!({"mediaType": oci::MANIFEST, "digest": "sha256:../../../../../../etc/passwd", "size": 1});
    traversal.name("latest", outside);
    for (layout, expected) in [
        (&many, "129 layers"),
        (&none, "0 layers"),
        (&config, "larger than 8 MiB"),
        (&manifest, "larger than 4 MiB"),
        (&traversal, "not valid"),
    ] {
        let output = world.host.podspawn(["-q", "pull", &layout.reference()]).run();
        world.assert_refused(expected, &output, expected);
    }
    // As many as there may be do work, and in a container.
    let path = world.host.scratch().join("full");
    let busybox = fs::read(common::images::busybox_tar()).unwrap();
    let mut full = vec![Layer::new(&busybox, Form::Plain)];
    full.extend(layers(127));
    let layout = Layout::of(&path, &full);
    let config = format!("defaults:\n  image: {}", layout.reference());
    let host = Host::new().no_image().config(&config).user("ada").start();
    host.ssh("ada", "ls / | grep -c ^f").run().ok().stdout("127\n");
    host.assert_no_session_left();
}
