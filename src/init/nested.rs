//! Namespaces inside the container (`security.nested`): what a sandbox needs to make them, and how many there may be.
//!
//! The kernel lets a user namespace mount a procfs of its own only where one is mounted already that hides nothing
//! (`mount_too_revealing` in fs/namespace.c), as a new one would show what an old one hides. The container's `/proc` has
//! paths masked, so a second one without masks is mounted beside it: below `/dev/shm`, which is then mounted on top. No path
//! leads there, and in a namespace that is made from the container's, the mount on top is locked to what it covers
//! (mount_namespaces(7)).

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};

use super::{
    files,
    filesystems::{INERT, new_mount},
};
use crate::sys::mount_api::{attr, mount_setattr, move_mount};

/// Where the unmasked procfs is, before something is mounted over it.
const COVERED: &str = "/dev/shm";

/// Namespaces of each kind that each user of the container may have (namespaces(7)); a sandbox takes one or two of each.
/// Without this a single session could use up what the host allows to all of them.
const MAX_NAMESPACES: [(&str, u32); 8] = [
    ("user", 128),
    ("mnt", 128),
    ("pid", 128),
    ("net", 64),
    ("uts", 128),
    ("ipc", 128),
    ("cgroup", 128),
    ("time", 128),
];

/// Mounts `proc` where it is about to be covered.
pub(super) fn mount_unmasked(proc: &OwnedFd) -> io::Result<()> {
    let below = new_mount(c"tmpfs", &[(c"size", c"4k"), (c"mode", c"700")], &[], INERT)?;
    move_mount(below.as_fd(), files::mount_point(COVERED)?.as_fd())?;
    move_mount(proc.as_fd(), files::mount_point(&format!("{COVERED}/proc"))?.as_fd())?;
    mount_setattr(below.as_fd(), attr::RDONLY)
}

/// Limits how many namespaces may be made inside: without `nested` no user namespaces, which the seccomp filter refuses too,
/// and which all others need.
///
/// `proc` is the container's procfs, whose `/proc/sys` is still writable.
pub(super) fn limit(proc: &OwnedFd, nested: bool) -> io::Result<()> {
    let limits: &[_] = if nested { &MAX_NAMESPACES } else { &[("user", 0)] };
    for (kind, max) in limits {
        let file = format!("sys/user/max_{kind}_namespaces");
        let file = match openat(proc, file.as_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()) {
            // A kernel without namespaces of this kind.
            Err(Errno::ENOENT) => continue,
            other => other?,
        };
        File::from(file).write_all(max.to_string().as_bytes())?;
    }
    Ok(())
}
