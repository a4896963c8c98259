//! Images made here, from nothing but what the distribution has.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{LazyLock, OnceLock},
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};

use super::{Host, Run, binary};

/// What Debian's image has beyond mmdebstrap's minbase: what people do in a session.
const DEBIAN_PACKAGES: &[&str] = &[
    "ca-certificates",
    "curl",
    "git",
    "iproute2",
    "iputils-ping",
    "less",
    "netcat-openbsd",
    "openssh-client",
    "procps",
    "python3",
    "rsync",
    "socat",
    "strace",
    "sudo",
    "tmux",
    "vim-tiny",
    "xauth",
];

/// The image's name: podspawn makes it itself.
static DEBIAN: LazyLock<String> =
    LazyLock::new(|| format!("bootstrap:debian/bookworm?include={}", DEBIAN_PACKAGES.join(",")));

/// An image that tests use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// busybox alone, statically linked. Made anew for each host, in a moment.
    Busybox,
    /// Debian 12 with [`DEBIAN_PACKAGES`]. Made once, and shared by all hosts: they must not remove it.
    Debian,
    /// Debian 12 without anything, and localhost/postgres, localhost/redis and localhost/nginx. As above.
    Services,
}

impl Image {
    pub fn reference(self) -> &'static str {
        match self {
            Self::Busybox => "localhost/busybox:test",
            Self::Debian => DEBIAN.as_str(),
            Self::Services => "bootstrap:debian/bookworm",
        }
    }

    pub(super) fn install(self, host: &Host) {
        match self {
            Self::Busybox => {
                let tar = busybox_tar();
                host.podspawn(["-q", "image", "import"]).arg(tar).arg(self.reference()).run().ok();
            }
            Self::Debian => share(&debian_store(), host),
            Self::Services => share(&services_store(), host),
        }
    }
}

/// Gives the host a store that is there for all.
fn share(store: &Path, host: &Host) {
    let state = host.root.join("var/lib/podspawn");
    fs::create_dir_all(&state).unwrap();
    symlink(store, state.join("images")).unwrap();
}

/// Where images stay between runs.
pub fn cache() -> PathBuf {
    let beside_the_binary = binary().parent().unwrap().join("test-images");
    let cache = std::env::var_os("PODSPAWN_TEST_IMAGES").map_or(beside_the_binary, PathBuf::from);
    fs::create_dir_all(&cache).unwrap();
    cache
}

/// A tar with busybox and a link for each of its applets.
pub fn busybox_tar() -> &'static Path {
    static TAR: OnceLock<PathBuf> = OnceLock::new();
    TAR.get_or_init(|| {
        let cache = cache();
        let tar = cache.join("busybox.tar");
        let _lock = lock(&cache.join("busybox.lock"));
        if !tar.exists() {
            let tree = tempfile::tempdir().unwrap();
            busybox_tree(tree.path());
            let new = cache.join("busybox.new");
            Run::new("tar")
                .args(["--owner=0", "--group=0", "-C"])
                .arg(tree.path())
                .arg("-cf")
                .arg(&new)
                .arg(".")
                .run()
                .ok();
            fs::rename(new, &tar).unwrap();
        }
        tar
    })
}

/// Makes a root file system of busybox in an empty directory.
pub fn busybox_tree(tree: &Path) {
    for directory in ["bin", "etc", "root", "tmp", "usr/bin", "var/tmp"] {
        fs::create_dir_all(tree.join(directory)).unwrap();
    }
    for directory in ["tmp", "var/tmp"] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
        fs::set_permissions(tree.join(directory), mode).unwrap();
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    let applets = Run::new("/bin/busybox").arg("--list").run();
    for applet in applets.ok().text().lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", tree.join("bin").join(applet)).unwrap();
    }
    fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    fs::write(tree.join("etc/group"), "root:x:0:\ntty:x:5:\n").unwrap();
}

/// An image store with the Debian image in it.
fn debian_store() -> PathBuf {
    let cache = cache();
    // Its content is part of the name, so that a longer list makes another image; and so is the form of the store.
    let root = cache.join(format!("debian-{:08x}-2", hash(&DEBIAN)));
    let store = root.join("var/lib/podspawn/images");
    let _lock = lock(&cache.join("debian.lock"));
    if !root.join("complete").exists() {
        if root.exists() {
            fs::remove_dir_all(&root).unwrap();
        }
        Run::new(binary())
            .arg("--root")
            .arg(&root)
            .args(["-q", "pull", &DEBIAN])
            .deadline(Duration::from_secs(600))
            .run()
            .ok();
        fs::write(root.join("complete"), "").unwrap();
    }
    store
}

/// An image store with what scripts/build-images makes for services.
fn services_store() -> PathBuf {
    let recipes = ["postgres", "redis", "nginx"];
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    // What they are made by is part of the name, so that other recipes make other images.
    let mut text = fs::read_to_string(project.join("scripts/build-images")).unwrap();
    for recipe in recipes {
        for part in ["podfile.yaml", "entrypoint.sh", "config.json"] {
            text.push_str(&fs::read_to_string(project.join("images").join(recipe).join(part)).unwrap());
        }
    }
    let cache = cache();
    let root = cache.join(format!("services-{:08x}", hash(&text)));
    let _lock = lock(&cache.join("services.lock"));
    if !root.join("complete").exists() {
        if root.exists() {
            fs::remove_dir_all(&root).unwrap();
        }
        Run::new(project.join("scripts/build-images"))
            .arg("--root")
            .arg(&root)
            .args(recipes)
            .env("PODSPAWN", binary())
            // Some hundred megabytes from the distribution's mirror, once.
            .deadline(Duration::from_secs(900))
            .run()
            .ok();
        fs::write(root.join("complete"), "").unwrap();
    }
    root.join("var/lib/podspawn/images")
}

pub fn lock(path: &Path) -> Flock<fs::File> {
    let file = fs::File::create(path).unwrap();
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap()
}

/// FNV-1a
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
