//! Namespaces inside the container (`security.nested`): what a sandbox needs to make them, and how many there may be.
//!
//! The kernel lets a user namespace mount a procfs of its own only where one is mounted already that hides nothing
//! (`mount_too_revealing` in fs/namespace.c), as a new one would show what an old one hides. The container's `/proc` has
//! paths masked, so a second one without masks is mounted beside it: below `/dev/shm`, which is then mounted on top. No path
//! leads there, and in a namespace that is made from the container's, the mount on top is locked to what it covers
//! (mount_namespaces(7)).
//!
//! The kernel counts namespaces for each user id of a user namespace, and beyond that for whoever has made that one
//! (namespaces(7), user_namespaces(7)). So the container is put into a second user namespace inside its first, which has the
//! limits: there, all that its users make counts as the first one's root's, whatever ids they have.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sched::{CloneFlags, unshare},
    sys::{
        stat::Mode,
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, pipe2},
};

use super::{
    files,
    filesystems::{INERT, new_mount},
};
use crate::sys::{
    mount_api::{attr, mount_setattr, move_mount},
    process::{self, SingleThreaded},
};

/// Where the unmasked procfs is, before something is mounted over it.
const COVERED: &str = "/dev/shm";

/// Namespaces of each kind that the container may have (namespaces(7)); a sandbox takes one or two of each. Without this a
/// single session could use up what the host allows to all of them. One of the user's is the container's own.
const MAX_NAMESPACES: [(&str, u32); 8] = [
    ("user", 128 + 1),
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

/// Moves this process, and so all that will be in the container, into a user namespace inside its own, with the same ids.
/// Needs the capabilities of the container's root, and leaves it with all of them.
///
/// Whoever maps its ids has to be outside of it: a child does that.
pub(super) fn enclose(proof: SingleThreaded) -> io::Result<()> {
    const MAP: &str = "0 0 65536\n";
    let (there, tell) = pipe2(OFlag::O_CLOEXEC)?;
    match process::fork(proof)? {
        None => {
            drop(tell);
            let map = || {
                // At its end without a word, if the namespace could not be made.
                File::from(there).read_exact(&mut [0])?;
                fs::write("/proc/1/gid_map", MAP)?;
                fs::write("/proc/1/uid_map", MAP)
            };
            process::exit_now(map().map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0))
        }
        Some(child) => {
            drop(there);
            let mut tell = File::from(tell);
            let made = unshare(CloneFlags::CLONE_NEWUSER);
            if made.is_ok() {
                tell.write_all(&[0])?;
            }
            drop(tell);
            let ended = waitpid(Pid::from_raw(child), None)?;
            made?;
            match ended {
                WaitStatus::Exited(_, 0) => Ok(()),
                WaitStatus::Exited(_, errno) => Err(io::Error::from_raw_os_error(errno)),
                _ => Err(io::Error::other("the process that maps the ids was killed")),
            }
        }
    }
}
