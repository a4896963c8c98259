//! Archives good and bad, with a canary outside the directory that must not change.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    process::Command,
};

use super::*;

const LIMITS: Limits = Limits { max_bytes: 1 << 30, max_entries: 10_000 };

/// A directory with a victim beside the root that archives are unpacked into.
struct World {
    top: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("root")).unwrap();
        fs::create_dir(top.path().join("victim")).unwrap();
        fs::write(top.path().join("victim/secret"), "untouched").unwrap();
        fs::set_permissions(top.path().join("victim/secret"), fs::Permissions::from_mode(0o640)).unwrap();
        Self { top }
    }

    fn root(&self) -> PathBuf {
        self.top.path().join("root")
    }

    fn unpack(&self, archive: &[u8]) -> Result<Contents, LayerError> {
        let result = unpack(archive, &self.root(), &Budget::new(LIMITS));
        let victim = self.top.path().join("victim");
        let names: Vec<_> = fs::read_dir(&victim).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["secret"]);
        let secret = victim.join("secret");
        assert_eq!(fs::read_to_string(&secret).unwrap(), "untouched");
        let meta = fs::metadata(&secret).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.nlink()), (0o640, 0, 1));
        result
    }
}

fn paths(paths: &[EntryPath]) -> Vec<String> {
    paths.iter().map(|path| path.display().to_string()).collect()
}

/// Builds archives entry by entry, with names and links that no well-behaved program would write.
struct Archive(Vec<u8>);

impl Archive {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn raw(
        mut self,
        kind: tar::EntryType,
        name: &str,
        link: &str,
        data: &[u8],
        edit: impl FnOnce(&mut tar::Header),
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        if !link.is_empty() {
            header.set_link_name_literal(link).unwrap();
        }
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        edit(&mut header);
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, data: &str) -> Self {
        self.raw(tar::EntryType::Regular, name, "", data.as_bytes(), |_| {})
    }

    fn directory(self, name: &str) -> Self {
        self.raw(tar::EntryType::Directory, name, "", b"", |header| header.set_mode(0o755))
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(tar::EntryType::Symlink, name, target, b"", |_| {})
    }

    fn hard_link(self, name: &str, target: &str) -> Self {
        self.raw(tar::EntryType::Link, name, target, b"", |_| {})
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions(records.iter().copied()).unwrap();
        let mut bytes = builder.into_inner().unwrap();
        bytes.truncate(bytes.len() - 1024);
        let mut all = self;
        all.0.extend(bytes);
        all
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

#[test]
fn hostile_archives_are_refused_by_name_or_stay_inside() {
    let long_target = "../../../../../../../../victim";
    let table: Vec<(&str, Archive, Option<&str>)> = vec![
        ("dots", Archive::new().file("../victim/new", "x"), Some("../victim/new")),
        ("dots inside", Archive::new().file("a/../../victim/new", "x"), Some("a/../../victim/new")),
        ("absolute", Archive::new().file("/victim/new", "x"), Some("/victim/new")),
        ("through a link", Archive::new().symlink("l", "../victim").file("l/new", "x"), Some("l/new")),
        ("through a far link", Archive::new().symlink("l", long_target).file("l/new", "x"), Some("l/new")),
        ("through an absolute link", Archive::new().symlink("l", "/tmp").file("l/new", "x"), Some("l/new")),
        (
            "link chain",
            Archive::new().symlink("a", "b").symlink("b", "..").file("a/victim/new", "x"),
            Some("a/victim/new"),
        ),
        ("over a link", Archive::new().symlink("l", "../victim/secret").file("l", "x"), None),
        ("directory over a link", Archive::new().symlink("l", "../victim").directory("l").file("l/new", "x"), None),
        (
            "attributes through a link",
            Archive::new().symlink("l", "../victim/secret").raw(
                tar::EntryType::Symlink,
                "l",
                "../victim/secret",
                b"",
                |header| {
                    header.set_mode(0o777);
                    header.set_uid(7);
                },
            ),
            None,
        ),
        ("hard link out", Archive::new().hard_link("l", "../victim/secret").file("l", "x"), Some("l")),
        ("hard link absolute", Archive::new().hard_link("l", "/etc/passwd"), Some("l")),
        ("hard link through a link", Archive::new().symlink("d", "../victim").hard_link("l", "d/secret"), Some("l")),
        // It may be in a layer below.
        ("hard link to nothing", Archive::new().hard_link("l", "missing"), None),
        ("hard link to a directory", Archive::new().directory("d").hard_link("l", "d"), Some("l")),
        ("whiteout of ..", Archive::new().file(".wh...", ""), Some(".wh...")),
        ("whiteout of .", Archive::new().file("d/.wh..", ""), Some("d/.wh..")),
        ("whiteout of nothing", Archive::new().file(".wh.", ""), Some(".wh.")),
        (
            "whiteout through a link",
            Archive::new().symlink("l", "../victim").file("l/.wh.secret", ""),
            Some("l/.wh.secret"),
        ),
        (
            "opaque through a link",
            Archive::new().symlink("l", "../victim").file("l/.wh..wh..opq", ""),
            Some("l/.wh..wh..opq"),
        ),
        (
            "whiteout as a directory",
            Archive::new().directory("d").file("d/.wh.x/../../victim/new", ""),
            Some("d/.wh.x/../../victim/new"),
        ),
        ("file in a whiteout", Archive::new().file(".wh.x/new", ""), Some(".wh.x/new")),
        ("loop of links", Archive::new().symlink("a", "b").symlink("b", "a").file("a/x", ""), Some("a/x")),
        (
            "through a magic link",
            Archive::new().symlink("p", "/proc/self/root").file("p/tmp/new", ""),
            Some("p/tmp/new"),
        ),
    ];
    judge(table);
}

#[test]
fn headers_that_say_nonsense_are_refused() {
    let table: Vec<(&str, Archive, Option<&str>)> = vec![
        ("no name", Archive::new().file("", "x"), Some("without a name")),
        ("long name", Archive::new().pax(&[("path", &[b'x'; 5000])]).file("x", "x"), Some("4095")),
        ("unknown type", Archive::new().raw(tar::EntryType::new(b'Z'), "z", "", b"", |_| {}), Some("z")),
        ("directory with data", Archive::new().file("d/", "data"), Some("name")),
        (
            "two extended headers",
            Archive::new().pax(&[("path", b"a")]).pax(&[("path", b"b")]).file("x", "x"),
            Some("two"),
        ),
        (
            "two kinds of long names",
            Archive::new()
                .pax(&[("path", b"a")])
                .raw(tar::EntryType::GNULongName, "x", "", b"../victim/new\0", |_| {})
                .file("x", "x"),
            Some("two names"),
        ),
        ("negative owner", Archive::new().pax(&[("uid", b"-1")]).file("x", "x"), Some("uid")),
        ("owner in words", Archive::new().pax(&[("uid", b"+1")]).file("x", "x"), Some("uid")),
        ("owner too high in a record", Archive::new().pax(&[("gid", b"65536")]).file("x", "x"), Some("x")),
        ("size beyond all", Archive::new().pax(&[("size", b"18446744073709551615")]).file("x", "x"), Some("size")),
        ("root as a file", Archive::new().file(".", "x"), Some("/")),
        ("owner too high", Archive::new().raw(tar::EntryType::Regular, "f", "", b"", |h| h.set_uid(65_536)), Some("f")),
        (
            "long name with dots",
            Archive::new().pax(&[("path", b"../victim/new")]).file("x", "x"),
            Some("../victim/new"),
        ),
        (
            "long link with dots",
            Archive::new().pax(&[("linkpath", b"../victim/secret")]).hard_link("l", "x"),
            Some("l"),
        ),
        ("NUL in a name", Archive::new().pax(&[("path", b"a\0b")]).file("x", "x"), Some("a")),
        ("huge file", Archive::new().raw(tar::EntryType::Regular, "f", "", b"", |h| h.set_size(1 << 40)), Some("f")),
    ];
    judge(table);
}

/// What is refused, and the name that the message has to have; `None` is unpacked harmlessly.
fn judge(table: Vec<(&str, Archive, Option<&str>)>) {
    for (what, archive, refused) in table {
        let world = World::new();
        match (world.unpack(&archive.end()), refused) {
            (Err(error), Some(name)) => {
                let text = crate::errors::chain(error);
                assert!(text.contains(name), "{what}: {text}");
            }
            (Ok(_), None) => {}
            (result, _) => panic!("{what}: {result:?}"),
        }
    }
}

#[test]
fn damaged_archives_are_errors() {
    let good = Archive::new().file("f", "0123456789").end();
    let damaged = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        edit(&mut bytes);
        World::new().unpack(&bytes).map(drop)
    };
    assert!(matches!(damaged(&|bytes| bytes[0] ^= 1), Err(LayerError::Tar(TarError::Checksum))));
    assert!(matches!(damaged(&|bytes| bytes.truncate(515)), Err(LayerError::Tar(TarError::CutOff))));
    assert!(matches!(damaged(&|bytes| bytes.truncate(100)), Err(LayerError::Tar(TarError::CutOff))));
    let bomb = Archive::new().raw(tar::EntryType::XHeader, "x", "", b"", |header| header.set_size(2 << 20)).end();
    assert!(matches!(World::new().unpack(&bomb), Err(LayerError::Tar(TarError::ExtensionTooLarge))));
    let bomb = Archive::new().raw(tar::EntryType::GNULongName, "x", "", b"", |header| header.set_size(1 << 50)).end();
    assert!(matches!(World::new().unpack(&bomb), Err(LayerError::Tar(TarError::ExtensionTooLarge))));
}

#[test]
fn what_an_image_may_take_is_bounded() {
    let refused = |archive: Archive, limits: Limits| {
        crate::errors::chain(unpack(&archive.end()[..], &World::new().root(), &Budget::new(limits)).unwrap_err())
    };
    let few = Limits { max_entries: 10, ..LIMITS };
    let many = (0..20).fold(Archive::new(), |archive, i| archive.file(&format!("f{i}"), ""));
    assert!(refused(many, few).starts_with("f10: the image has more than 10 entries"));
    // Directories that no entry describes count.
    assert!(refused(Archive::new().file("1/2/3/4/5/6/7/8/9/10/11", ""), few).contains("more than 10 entries"));
    let small = Limits { max_bytes: 8192, ..LIMITS };
    assert!(refused(Archive::new().file("a", "x").file("big", &"x".repeat(9000)), small).starts_with("big: "));
    // So do holes,
    let hole = Archive::new().pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"99999")]).file("hole", "x");
    assert!(refused(hole, small).starts_with("hole: "));
    // and what is not of any file.
    let mut padded = Archive::new().file("last", "x");
    padded.0.extend([0; 9000]);
    assert!(refused(padded, small).starts_with("last: "));
    let records = Archive::new().pax(&[("comment", &[b'x'; 9000])]).file("x", "");
    assert!(refused(records, small).contains("more than 8192 bytes"));
    // The layers of an image share it.
    let budget = Budget::new(small);
    let layer = Archive::new().file("f", &"x".repeat(4000)).end();
    assert!(unpack(&layer[..], &World::new().root(), &budget).is_ok());
    assert!(unpack(&layer[..], &World::new().root(), &budget).is_err());
}

#[test]
fn links_inside_the_layer_are_followed() {
    let world = World::new();
    let archive = Archive::new()
        .directory("usr/lib")
        .symlink("lib", "usr/lib")
        .directory("run")
        .symlink("var/run", "/run")
        .file("lib/a", "a")
        .file("lib/new/b", "b")
        .file("var/run/new/c", "c")
        .directory("lib/new2/d")
        .directory("usr/lib/new2");
    let contents = world.unpack(&archive.end()).unwrap();
    for (path, data) in [("usr/lib/a", "a"), ("usr/lib/new/b", "b"), ("run/new/c", "c")] {
        assert_eq!(fs::read_to_string(world.root().join(path)).unwrap(), data);
    }
    assert_eq!(paths(&contents.implied), ["", "run/new", "usr", "usr/lib/new", "var"]);
    assert_eq!(contents.entries, 9 + 5, "{contents:?}");
}

#[test]
fn what_depends_on_other_layers_is_noted() {
    let world = World::new();
    let archive = Archive::new()
        .hard_link("d/one", "base/file")
        .raw(tar::EntryType::Char, "null", "", b"", |header| {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        })
        .hard_link("null2", "null")
        .file(".wh.gone", "")
        .file("gone/new", "x")
        .file(".wh..wh..opq", "");
    let contents = world.unpack(&archive.end()).unwrap();
    let links: Vec<_> = contents.outer_links.iter().map(|(path, target)| (path.to_str(), target.to_str())).collect();
    assert_eq!(links, [(Some("d/one"), Some("base/file"))]);
    assert_eq!(paths(&contents.skipped_devices), ["null", "null2"]);
    assert_eq!(paths(&contents.implied), [""], "gone is not the one of a lower layer");
    assert!(contents.opaque);
    let opaque = xattr::get(world.root().join("gone"), "trusted.overlay.opaque").unwrap();
    assert_eq!(opaque.as_deref(), Some(&b"y"[..]), "removed below and made anew");
    assert_eq!(fs::metadata(world.root().join("gone")).unwrap().mtime(), 0);
}

#[test]
fn names_and_attributes_may_have_any_bytes() {
    use std::os::unix::ffi::OsStringExt;
    let world = World::new();
    let latin = b"caf\xe9/new\nline";
    let archive = Archive::new()
        .pax(&[("path", latin), ("SCHILY.xattr.user.note", b"a\nb=\0"), ("SCHILY.xattr.user.empty", b"")])
        .file("x", "data")
        .pax(&[("path", b"")])
        .file("kept", "x");
    let contents = world.unpack(&archive.end()).unwrap();
    let path = world.root().join(std::ffi::OsString::from_vec(latin.to_vec()));
    assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    assert_eq!(xattr::get(&path, "user.note").unwrap().as_deref(), Some(&b"a\nb=\0"[..]));
    assert_eq!(xattr::get(&path, "user.empty").unwrap().as_deref(), Some(&b""[..]));
    assert!(world.root().join("kept").exists(), "an empty record is none");
    let again: Contents = serde_json::from_slice(&serde_json::to_vec(&contents).unwrap()).unwrap();
    assert_eq!(again, contents);
}

#[test]
fn attributes_links_and_holes_survive() {
    let source = tempfile::tempdir().unwrap();
    let dir = source.path().join("dir");
    fs::create_dir(&dir).unwrap();
    let path = |name: &str| dir.join(name);
    fs::write(path("setuid"), "s").unwrap();
    std::os::unix::fs::chown(path("setuid"), Some(7), Some(65_535)).unwrap();
    fs::set_permissions(path("setuid"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(path("setuid"), path("second")).unwrap();
    symlink("nowhere/\u{e4}", path("link")).unwrap();
    let long = "n".repeat(200);
    fs::write(path(&long), "long").unwrap();
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    fs::write(path("capable"), "c").unwrap();
    xattr::set(path("capable"), "security.capability", &capability).unwrap();
    xattr::set(path("capable"), "user.note", b"hello\0world").unwrap();
    xattr::set(path("capable"), "trusted.overlay.redirect", b"/etc").unwrap();
    Command::new("mkfifo").arg(path("fifo")).status().unwrap();
    Command::new("mknod").arg(path("device")).args(["c", "1", "3"]).status().unwrap();
    Command::new("mknod").arg(path("sly")).args(["c", "0", "0"]).status().unwrap();
    let sparse = File::create(path("sparse")).unwrap();
    use std::{fs::File, os::unix::fs::FileExt};
    sparse.set_len(64 << 20).unwrap();
    for piece in 0..50_u64 {
        sparse.write_all_at(b"piece", piece * (1 << 20) + 4096).unwrap();
    }
    Command::new("touch").args(["-d", "2001-02-03 04:05:06.123456789Z"]).arg(&dir).status().unwrap();

    for format in [
        &["--format=gnu"][..],
        &["--format=posix"],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
    ] {
        let world = World::new();
        let tar = Command::new("tar")
            .args(["-C".as_ref(), source.path().as_os_str(), "-cS".as_ref(), "--numeric-owner".as_ref()])
            .args(["--xattrs", "--xattrs-include=*"])
            .args(format)
            .arg("dir")
            .output()
            .unwrap();
        // xattrs are for the POSIX format only; GNU tar then uses it whatever was said.
        if format == ["--format=gnu"] && !tar.status.success() {
            continue;
        }
        let contents = world.unpack(&tar.stdout).unwrap();
        let out = |name: &str| world.root().join("dir").join(name);
        let meta = fs::metadata(out("setuid")).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.nlink()), (0o4755, 7, 65_535, 2), "{format:?}");
        assert_eq!(meta.ino(), fs::metadata(out("second")).unwrap().ino());
        assert_eq!(fs::read_link(out("link")).unwrap(), Path::new("nowhere/\u{e4}"));
        assert_eq!(fs::read_to_string(out(&long)).unwrap(), "long");
        assert_eq!(xattr::get(out("capable"), "security.capability").unwrap().as_deref(), Some(&capability[..]));
        assert_eq!(xattr::get(out("capable"), "user.note").unwrap().as_deref(), Some(&b"hello\0world"[..]));
        assert_eq!(xattr::get(out("capable"), "trusted.overlay.redirect").unwrap(), None);
        assert!(fs::metadata(out("fifo")).unwrap().file_type().is_fifo());
        assert_eq!(paths(&contents.skipped_devices), ["dir/device", "dir/sly"]);
        assert!(!out("device").exists() && fs::symlink_metadata(out("sly")).is_err());
        let holes = fs::metadata(out("sparse")).unwrap();
        assert!(holes.len() == 64 << 20 && holes.blocks() < 8192, "{format:?}: {} blocks", holes.blocks());
        assert!(fs::read(out("sparse")).unwrap() == fs::read(path("sparse")).unwrap(), "{format:?}");
        let time = fs::metadata(world.root().join("dir")).unwrap();
        assert_eq!(time.mtime(), 981_173_106);
        assert_eq!(paths(&contents.implied), [""]);
    }
}

#[test]
fn whiteouts_become_those_of_overlayfs() {
    let world = World::new();
    let archive = Archive::new()
        .file("a/.wh.gone", "")
        .directory("b")
        .file("b/.wh..wh..opq", "")
        .file("b/new", "x")
        .file(".wh.anew", "")
        .directory("anew")
        .file("kept", "x")
        .file(".wh.kept", "")
        .file(".wh..wh.plnk", "");
    let contents = world.unpack(&archive.end()).unwrap();
    let gone = fs::symlink_metadata(world.root().join("a/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let opaque = |name: &str| xattr::get(world.root().join(name), "trusted.overlay.opaque").unwrap();
    assert_eq!(opaque("b").as_deref(), Some(&b"y"[..]));
    assert_eq!(opaque("anew").as_deref(), Some(&b"y"[..]), "removed below and made anew");
    assert_eq!(opaque("a"), None);
    assert!(world.root().join("b/new").exists() && world.root().join("kept").is_file());
    assert_eq!(paths(&contents.implied), ["", "a"]);
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let world = World::new();
    let archive = Archive::new()
        .file("x", "file")
        .directory("x")
        .file("x/y", "in it")
        .file("x", "file again")
        .file("implied/z", "z")
        .directory("implied");
    let contents = world.unpack(&archive.end()).unwrap();
    assert_eq!(fs::read_to_string(world.root().join("x")).unwrap(), "file again");
    assert_eq!(paths(&contents.implied), [""]);
}
