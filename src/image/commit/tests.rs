//! What comes out is looked at with the file system's own calls.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink},
};

use nix::{
    sys::stat::{Mode, SFlag, mknod},
    unistd::mkfifo,
};

use super::*;
use crate::image::{Image, ImportOptions, Reference, store::Settings};

const BASE: u32 = 1_000_000_000;

/// A store, and an upperdir that belongs to the container.
struct World {
    directory: tempfile::TempDir,
    store: Store,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("images"), settings()).unwrap();
        let world = Self { directory, store };
        fs::create_dir(world.upper()).unwrap();
        world.give("");
        world
    }

    fn upper(&self) -> PathBuf {
        self.directory.path().join("upper")
    }

    /// Gives a file to the container's root.
    fn give(&self, path: &str) {
        self.give_to(path, 0);
    }

    fn give_to(&self, path: &str, id: u32) {
        std::os::unix::fs::lchown(self.upper().join(path), Some(BASE + id), Some(BASE + id)).unwrap();
    }

    fn file(&self, path: &str, content: &str) {
        fs::write(self.upper().join(path), content).unwrap();
        self.give(path);
    }

    fn make_directory(&self, path: &str) {
        fs::create_dir(self.upper().join(path)).unwrap();
        self.give(path);
    }

    fn commit(&self, left_out: &[&str]) -> Result<PathBuf, ImageError> {
        let directory = self.upper();
        let upper = Upper { directory: &directory, id_base: BASE, left_out, source: "a step" };
        let (layer, _) = self.store.commit_upper(&upper, &Budget::new(self.store.settings.limits))?;
        Ok(self.store.layers_root().join(&layer.lowerdir))
    }

    /// What is wrong with the upperdir.
    fn refusal(&self) -> String {
        let refusal = crate::errors::chain(self.commit(&[]).unwrap_err());
        let left = fs::read_dir(self.store.layers_root()).unwrap().count();
        assert_eq!(left, 0, "nothing is kept of what is refused");
        refusal
    }
}

fn settings() -> Settings {
    let config = "images: {max_size: 64m, max_entries: 1000}";
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.yaml");
    fs::write(&file, config).unwrap();
    let options = crate::config::Options { root: Some(directory.path().to_owned()), config: Some(file) };
    Settings::from(&crate::config::Config::load(&options).unwrap().images)
}

/// linux/capability.h, `VFS_CAP_REVISION_2` and `_3` with `VFS_CAP_FLAGS_EFFECTIVE`: cap_net_bind_service.
fn capability(root: Option<u32>) -> Vec<u8> {
    let magic: u32 = if root.is_some() { 0x0300_0001 } else { 0x0200_0001 };
    let mut bytes = magic.to_le_bytes().to_vec();
    bytes.extend(1024_u32.to_le_bytes());
    bytes.extend([0; 12]);
    bytes.extend(root.into_iter().flat_map(u32::to_le_bytes));
    bytes
}

#[test]
fn a_layer_is_what_the_container_saw() {
    let world = World::new();
    let path = |name: &str| world.upper().join(name);
    world.make_directory("d");
    world.file("d/a", "text");
    world.give_to("d/a", 33);
    fs::set_permissions(path("d/a"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::hard_link(path("d/a"), path("d/b")).unwrap();
    symlink("/etc/shadow", path("d/link")).unwrap();
    world.give("d/link");
    mkfifo(&path("d/fifo"), Mode::from_bits_truncate(0o640)).unwrap();
    world.give("d/fifo");
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 123_456_789);
    File::open(path("d")).unwrap().set_modified(time).unwrap();

    let layer = world.commit(&[]).unwrap();
    let meta = |name: &str| fs::symlink_metadata(layer.join(name)).unwrap();
    assert_eq!((meta("d/a").uid(), meta("d/a").gid(), meta("d/a").mode()), (33, 33, 0o106_755));
    assert_eq!(fs::read(layer.join("d/a")).unwrap(), b"text");
    assert_eq!(meta("d/a").ino(), meta("d/b").ino());
    assert_eq!(fs::read_link(layer.join("d/link")).unwrap(), Path::new("/etc/shadow"));
    assert_eq!((meta("d/fifo").mode(), meta("d/fifo").uid()), (0o10640, 0));
    assert_eq!((meta("d").mtime(), meta("d").mtime_nsec()), (1_700_000_000, 123_456_789));
}

#[test]
fn what_was_removed_stays_removed() {
    let world = World::new();
    world.make_directory("d");
    mknod(&world.upper().join("d/gone"), SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
    world.make_directory("new");
    xattr::set(world.upper().join("new"), "trusted.overlay.opaque", b"y").unwrap();
    let layer = world.commit(&[]).unwrap();
    let gone = fs::symlink_metadata(layer.join("d/gone")).unwrap();
    assert_eq!((SFlag::from_bits_truncate(gone.mode()) & SFlag::S_IFMT, gone.rdev()), (SFlag::S_IFCHR, 0));
    assert_eq!(xattr::get(layer.join("new"), "trusted.overlay.opaque").unwrap().as_deref(), Some(&b"y"[..]));
}

#[test]
fn attributes_are_the_containers_and_no_others() {
    let world = World::new();
    world.file("plain", "");
    world.file("bound", "");
    world.file("foreign", "");
    let set = |file: &str, name: &str, value: &[u8]| xattr::set(world.upper().join(file), name, value).unwrap();
    set("bound", "security.capability", &capability(Some(BASE)));
    set("foreign", "security.capability", &capability(Some(BASE + 7)));
    set("plain", "user.mine", b"kept");
    set("plain", "user.overlay.opaque", b"y");
    set("plain", "trusted.overlay.origin", b"x");
    // user::rw- user:1000:r-- group::r-- mask::r-- other::---
    let list = |id: u32| {
        let entries = [(1, 6, u32::MAX), (2, 4, id), (4, 4, u32::MAX), (0x10, 4, u32::MAX), (0x20, 0, u32::MAX)];
        let mut bytes = 2_u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            bytes.extend([tag, 0, permissions, 0]);
            bytes.extend(u32::to_le_bytes(id));
        }
        bytes
    };
    set("plain", "system.posix_acl_access", &list(BASE + 1000));
    let layer = world.commit(&[]).unwrap();
    let get = |file: &str, name: &str| xattr::get(layer.join(file), name).unwrap();
    assert_eq!(get("bound", "security.capability"), Some(capability(None)));
    assert_eq!(get("foreign", "security.capability"), None);
    assert_eq!(get("plain", "user.mine").as_deref(), Some(&b"kept"[..]));
    assert_eq!(get("plain", "user.overlay.opaque"), None);
    assert_eq!(get("plain", "trusted.overlay.origin"), None);
    assert_eq!(get("plain", "system.posix_acl_access"), Some(list(1000)));
}

#[test]
fn holes_stay_holes_and_sockets_stay_behind() {
    let world = World::new();
    let sparse = File::create(world.upper().join("sparse")).unwrap();
    sparse.set_len(32 << 20).unwrap();
    sparse.write_all_at(b"in the middle", 16 << 20).unwrap();
    drop(sparse);
    world.give("sparse");
    world.file("dense", "x");
    let _socket = std::os::unix::net::UnixListener::bind(world.upper().join("socket")).unwrap();
    world.give("socket");
    world.make_directory("skipped");
    world.file("skipped/file", "");

    let layer = world.commit(&["skipped"]).unwrap();
    let meta = fs::metadata(layer.join("sparse")).unwrap();
    assert_eq!(meta.len(), 32 << 20);
    assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
    let mut middle = [0; 13];
    File::open(layer.join("sparse")).unwrap().read_exact_at(&mut middle, 16 << 20).unwrap();
    assert_eq!(&middle, b"in the middle");
    let mut names: Vec<_> = fs::read_dir(&layer).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["dense", "sparse"]);
}

#[test]
fn what_cannot_be_a_layer_is_refused_by_name() {
    let world = World::new();
    world.file(".wh.passwd", "");
    assert!(world.refusal().contains(".wh.passwd: no layer can have a file of this name"), "{}", world.refusal());

    let world = World::new();
    fs::write(world.upper().join("hosts-own"), "").unwrap();
    chown(world.upper().join("hosts-own"), Some(0), Some(0)).unwrap();
    assert!(world.refusal().contains("hosts-own: its owner is not one of the container's"), "{}", world.refusal());

    let world = World::new();
    File::create(world.upper().join("huge")).unwrap().set_len(1 << 40).unwrap();
    world.give("huge");
    assert!(world.refusal().contains("huge: the image has more than 67108864 bytes (images.max_size)"));

    let world = World::new();
    (0..1001).for_each(|number| world.file(&number.to_string(), ""));
    assert!(world.refusal().contains("the image has more than 1000 entries (images.max_entries)"));
}

#[test]
fn a_name_that_looks_compressed_is_a_name() {
    use std::os::unix::ffi::OsStrExt;
    let world = World::new();
    let name = std::ffi::OsStr::from_bytes(b"\x1f\x8b\x08");
    let file = world.upper().join(name);
    fs::write(&file, "x").unwrap();
    chown(&file, Some(BASE), Some(BASE)).unwrap();
    assert_eq!(fs::read(world.commit(&[]).unwrap().join(name)).unwrap(), b"x");
}

mod steps {
    use super::*;
    use crate::image::Digest;

    /// An image with one file.
    fn base(world: &World) -> Image {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append_data(&mut header, "etc/base", io::empty()).unwrap();
        let tar = tar.into_inner().unwrap();
        let reference: Reference = "base".parse().unwrap();
        world.store.import(&tar[..], "a test", &reference, &ImportOptions::default()).unwrap()
    }

    fn step(world: &World, key: &Digest, on: &Image) -> Image {
        let directory = world.upper();
        let upper = Upper { directory: &directory, id_base: BASE, left_out: &[], source: "run x" };
        world.store.commit_step(key, on, &upper).unwrap()
    }

    fn in_use(image: Option<&Image>) -> std::collections::HashSet<Digest> {
        image.map(|image| image.id.clone()).into_iter().collect()
    }

    const WEEK: std::time::Duration = std::time::Duration::from_secs(7 * 86_400);

    #[test]
    fn steps_are_found_by_the_longest_list_that_was_done() {
        let world = World::new();
        let keys: Vec<Digest> = ["one", "two", "three"].map(|text| Digest::of(text.as_bytes())).to_vec();
        assert!(world.store.built(&keys).unwrap().is_none());
        let base = base(&world);
        world.file("first", "");
        let one = step(&world, &keys[0], &base);
        world.file("second", "");
        let two = step(&world, &keys[1], &one);
        let (done, found) = world.store.built(&keys).unwrap().unwrap();
        assert_eq!((done, &found.id), (2, &two.id));
        assert_eq!(found.layers.len(), 3);
        assert_eq!(found.layers[1..], one.layers);
        let diff_ids = found.config.rootfs().diff_ids();
        assert_eq!(diff_ids.len(), 3);
        // The same step once more is the same layer, which is stacked once.
        let again = step(&world, &keys[2], &two);
        assert_eq!(again.layers, two.layers);
    }

    #[test]
    fn prune_takes_steps_that_are_old_and_not_in_use() {
        let world = World::new();
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        let image = step(&world, &one, &base(&world));
        world.file("more", "");
        step(&world, &two, &image);
        let age = |key: &Digest| {
            let file = world.directory.path().join("images/builds").join(format!("{}.json", key.hex()));
            let old = std::time::SystemTime::now() - WEEK * 2;
            File::options().write(true).open(file).unwrap().set_modified(old).unwrap();
        };
        let found = |key: &Digest| world.store.built(std::slice::from_ref(key)).unwrap().is_some();
        world.store.prune(WEEK, || Ok(in_use(None))).unwrap();
        assert!(found(&one) && found(&two));
        age(&one);
        age(&two);
        world.store.prune(WEEK, || Ok(in_use(Some(&image)))).unwrap();
        assert!(found(&one) && !found(&two));
        // It was used just now, by being found.
        world.store.prune(WEEK, || Ok(in_use(None))).unwrap();
        assert!(found(&one));
        world.store.prune(std::time::Duration::ZERO, || Ok(in_use(None))).unwrap();
        assert!(!found(&one));
        assert_eq!(world.store.list().unwrap().0.len(), 1, "the base has a name");
    }

    #[test]
    fn a_tagged_step_is_an_image_like_any_other() {
        let world = World::new();
        let image = step(&world, &Digest::of(b"one"), &base(&world));
        let name: Reference = "mine:1".parse().unwrap();
        world.store.tag(&image, &name).unwrap();
        world.store.prune(std::time::Duration::ZERO, || Ok(in_use(None))).unwrap();
        let found = world.store.lookup(&name).unwrap().unwrap();
        assert_eq!(found.id, image.id);
        world.store.export(&found, io::sink()).unwrap();
    }
}
