use std::{
    fs::{self, File, FileTimes},
    os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink},
    time::{Duration, UNIX_EPOCH},
};

use super::*;

/// `cap_net_bind_service=ep`
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A tree with everything that a file system can have, except devices.
pub(super) fn make_tree(root: &Path) {
    let path = |name: &str| root.join(name);
    fs::create_dir(root).unwrap();
    fs::set_permissions(root, fs::Permissions::from_mode(0o751)).unwrap();
    for (name, mode) in [("tmp", 0o1777), ("closed", 0o000), ("group", 0o2775), ("empty", 0o755)] {
        fs::create_dir(path(name)).unwrap();
        fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::write(path("closed/inside"), "x").unwrap();
    fs::write(path("setuid"), "s").unwrap();
    chown(path("setuid"), Some(7), Some(65_535)).unwrap();
    fs::set_permissions(path("setuid"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::hard_link(path("setuid"), path("group/second name")).unwrap();
    fs::hard_link(path("setuid"), path("zz-third")).unwrap();
    for (name, target) in [("link", "../no/./where//"), ("absolute", "/etc/passwd"), ("long", &"t/".repeat(150))] {
        symlink(target, path(name)).unwrap();
        lchown(path(name), Some(1000), Some(1000)).unwrap();
    }
    fs::hard_link(path("link"), path("same link")).unwrap();
    fs::write(path(&"n".repeat(255)), "long name").unwrap();
    let deep = format!("{}/{}", "d".repeat(120), "e".repeat(200));
    fs::create_dir_all(path(&deep)).unwrap();
    fs::write(path(&deep).join("f".repeat(90)), "deep").unwrap();
    fs::write(root.join(std::ffi::OsString::from("new\nline \u{e4}\\")), "odd name").unwrap();
    let latin = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"caf\xe9");
    fs::create_dir(root.join(latin)).unwrap();
    fs::write(root.join(latin).join("in it"), "").unwrap();
    fs::write(path("attributes"), "a").unwrap();
    xattr::set(path("attributes"), "user.note", b"hello\0\nworld").unwrap();
    xattr::set(path("attributes"), "user.empty", b"").unwrap();
    xattr::set(path("attributes"), "security.capability", &CAPABILITY).unwrap();
    xattr::set(path("group"), "user.on", b"a directory").unwrap();
    // user::rwx, user:1000:rwx, group::r-x, mask::rwx, other::r-x (acl(5))
    let acl = [(1_u16, 7_u16, u32::MAX), (2, 7, 1000), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 5, u32::MAX)];
    let entry = |(tag, mode, id): (u16, u16, u32)| {
        [&tag.to_le_bytes()[..], &mode.to_le_bytes()[..], &id.to_le_bytes()[..]].concat()
    };
    let acl = [2_u32.to_le_bytes().to_vec(), acl.into_iter().flat_map(entry).collect()].concat();
    xattr::set(path("group"), "system.posix_acl_access", &acl).unwrap();
    Run::new("mkfifo").args(["-m", "640"]).arg(path("fifo")).run().ok();
    let sparse = File::options().write(true).create(true).truncate(true).mode(0o600).open(path("sparse")).unwrap();
    sparse.set_len(32 << 20).unwrap();
    for piece in 0..30_u64 {
        sparse.write_all_at(b"piece", piece * (1 << 20) + 4096).unwrap();
    }
    let times = FileTimes::new().set_modified(UNIX_EPOCH + Duration::new(981_173_106, 123_456_789));
    File::open(path("empty")).unwrap().set_times(times).unwrap();
    let times = FileTimes::new().set_modified(UNIX_EPOCH - Duration::from_millis(250));
    File::open(path("zz-third")).unwrap().set_times(times).unwrap();
}

#[test]
fn what_is_imported_is_exported_the_same() {
    let host = host();
    let tree = host.scratch().join("tree");
    make_tree(&tree);
    let expected = snapshot::of(&tree);
    for (format, options) in
        [("posix", &["--format=posix", "-S"][..]), ("old sparse", &["--format=posix", "-S", "--sparse-version=0.1"])]
    {
        let tar = host.scratch().join("tree.tar");
        Run::new("tar")
            .args(["--xattrs", "--xattrs-include=*", "--numeric-owner"])
            .args(options)
            .arg("-C")
            .arg(&tree)
            .arg("-cf")
            .arg(&tar)
            .arg(".")
            .run()
            .ok();
        host.podspawn(["image", "import"]).arg(&tar).arg("tree").run().ok();
        let name = format!("out {format}");
        let out = exported(&host, "tree", &name);
        snapshot::assert_same(format, &expected, &snapshot::of(&out));
        // Holes are holes in the store.
        let layers = host.json_of(["image", "inspect", "tree"]);
        let layer = layers["layers"][0]["name"].as_str().unwrap().to_owned();
        let stored = host.images().join("layers").join(layer).join("sparse");
        assert!(std::os::unix::fs::MetadataExt::blocks(&fs::metadata(stored).unwrap()) < 8192);
    }
}

#[test]
fn an_image_is_the_same_in_every_form() {
    let host = host();
    let archive = || Archive::new().directory("d").file("d/f", "data").end();
    let mut exports = Vec::new();
    for form in [Form::Plain, Form::Gzip, Form::Zstd] {
        let path = host.scratch().join(format!("{form:?}"));
        let layout = Layout::of(&path, &[Layer::new(&archive(), form)]);
        host.podspawn(["pull", &layout.reference()]).run().ok();
        let export = host.podspawn(["image", "export", &layout.reference(), "-"]).run();
        exports.push(export.ok().stdout.clone());
    }
    assert!(exports[0] == exports[1] && exports[1] == exports[2]);
    // It is one layer, once unpacked.
    assert_eq!(fs::read_dir(host.images().join("layers")).unwrap().count(), 1);
    // Several gzip members are one stream, and what follows the archive belongs to the layer.
    let mut tar = archive();
    tar.resize(tar.len() + 20_000, 0);
    let blob = [common::oci::gzip(&tar[..700]), common::oci::gzip(&tar[700..])].concat();
    let layer = Layer { diff_id: common::oci::digest(&tar), blob, media_type: Layer::gzip(Archive::new()).media_type };
    let layout = Layout::of(&host.scratch().join("members"), &[layer]);
    host.podspawn(["pull", &layout.reference()]).run().ok();
    assert_eq!(host.podspawn(["image", "export", &layout.reference(), "-"]).run().stdout, exports[0]);
}

/// Layers that lead into one another in every way; the second and third were not made on top of the first.
pub(super) fn entangled() -> Vec<Layer> {
    let owned = |header: &mut tar::Header| {
        header.set_uid(1000);
        header.set_gid(1000);
        header.set_mode(0o750);
        header.set_mtime(1_111_111_111);
    };
    let first = Archive::new()
        .directory("./")
        .directory("usr")
        .directory("usr/lib")
        .directory("usr/lib/sub")
        .file("usr/lib/sub/old", "old")
        .file("usr/lib/removed", "x")
        .file("usr/lib/linked", "linked")
        .symlink("lib", "usr/lib")
        .symlink("lib64", "lib")
        .directory("var")
        .directory("run")
        .symlink("var/run", "/run")
        .raw(tar::EntryType::Directory, "home", "", b"", owned)
        .raw(tar::EntryType::Directory, "home/bob", "", b"", owned)
        .directory("opaque")
        .file("opaque/old", "x")
        .directory("gone")
        .file("gone/old", "x")
        .file("replaced", "file")
        .directory("replaced2")
        .file("replaced2/x", "x")
        .file("etc/implied", "x");
    let second = Archive::new()
        .file("lib/new", "through a link")
        .file("lib64/sub/deep/new", "through two")
        .file("lib/.wh.removed", "")
        .file("var/run/pid", "through an absolute one")
        .file("home/bob/project/file", "x")
        .hard_link("hard", "usr/lib/linked")
        .hard_link("lib/hard2", "lib/linked")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/new", "x")
        .file(".wh.gone", "")
        .file("gone/new", "x")
        .directory("replaced")
        .file("replaced/now", "a directory")
        .file("replaced2", "now a file");
    let third = Archive::new()
        .file("lib/new2", "again")
        .file("usr/lib/sub/deep/.wh.new", "")
        .file("home/bob/project/.wh.file", "")
        .file("gone/newer", "x");
    [first, second, third].map(Layer::gzip).into()
}

/// umoci changes the times of directories that nobody has described.
pub(super) fn forget_times(snapshots: &mut [&mut std::collections::BTreeMap<PathBuf, String>]) {
    for path in ["", "etc", "home/bob", "home/bob/project", "usr/lib/sub", "usr/lib/sub/deep", "gone"] {
        for snapshot in &mut *snapshots {
            let line = snapshot.get_mut(Path::new(path)).unwrap_or_else(|| panic!("{path}"));
            let mut words: Vec<_> = line.split(' ').collect();
            words[2] = "-";
            *line = words.join(" ");
        }
    }
}

#[test]
fn layers_come_out_as_if_they_were_applied_one_by_one() {
    let host = host();
    let mut layout = Layout::new(&host.scratch().join("layout"));
    layout.image("t", &entangled());
    let expected = unpacked_by_umoci(&host, &layout.path, "t");
    let reference = format!("{}:t", layout.reference());
    host.podspawn(["pull", &reference]).run().ok();
    let found = exported(&host, &reference, "out");
    let [mut expected, mut found] = [expected, found].map(|tree| snapshot::of(&tree));
    forget_times(&mut [&mut expected, &mut found]);
    snapshot::assert_same("export", &expected, &found);
}

#[test]
fn a_session_sees_the_layers_as_they_were_meant() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("layout");
    let config = format!("defaults:\n  image: oci:{}", path.display());
    let mut host = Host::new().no_image().config(&config).user("ada").prepare();
    let busybox = fs::read(common::images::busybox_tar()).unwrap();
    let mut layers = vec![Layer::new(&busybox, Form::Plain)];
    layers.extend(entangled());
    let capable = Archive::new().directory("capable").pax(&[("SCHILY.xattr.security.capability", &CAPABILITY)]).raw(
        tar::EntryType::Regular,
        "capable/busybox",
        "",
        &fs::read("/bin/busybox").unwrap(),
        |header| {
            header.set_mode(0o755);
        },
    );
    layers.push(Layer::gzip(capable));
    let layout = Layout::of(&path, &layers);
    host.podspawn(["pull", &layout.reference()]).run().ok();
    host.serve();
    let script = "
        readlink /lib; cat /lib/new /usr/lib/new2 /run/pid; ls /opaque /gone /usr/lib/sub/deep; echo
        stat -c '%a %u:%g %Y %n' /home/bob/project /home/bob /opaque
        cat /hard /lib/hard2; echo; test -e /usr/lib/removed || echo removed
        /capable/busybox grep CapEff /proc/self/status; grep CapEff /proc/self/status; id -u";
    let output = host.ssh("ada", script).run();
    output.ok().stdout(
        "usr/lib\nthrough a linkagainthrough an absolute one/gone:\nnew\nnewer\n\n/opaque:\nnew\n\n/usr/lib/sub/deep:\n\n\
         755 0:0 0 /home/bob/project\n750 1000:1000 1111111111 /home/bob\n755 0:0 1000000000 /opaque\n\
         linkedlinked\nremoved\nCapEff:\t0000000000000400\nCapEff:\t0000000000000000\n1000\n",
    );
    host.assert_no_session_left();
}
