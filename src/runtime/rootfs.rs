//! A session's directory on disk: `upper` and `work` of its overlay.
//!
//! What is in them was written by the container: names, modes and depth are hostile. Removal works by descriptor, never
//! follows a link, never leaves the file system, and needs memory that does not grow with the breadth of the tree.

use std::{
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{AT_FDCWD, OFlag, openat},
    sys::stat::{Mode, fchmod, mkdirat},
    unistd::{Gid, Uid, fchown},
};

use crate::sys::remove_tree::remove_tree;

/// Why a session's directory could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    #[error("cannot prepare {}", .dir.display())]
    Prepare { dir: PathBuf, source: io::Error },
    #[error("cannot remove {}", .dir.display())]
    Remove { dir: PathBuf, source: io::Error },
}

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Makes `dir` (0700, the host's root) with the empty directories `upper` and `work` in it, owned by `id_base`.
///
/// # Errors
/// [`RootfsError::Prepare`], with `AlreadyExists` if `dir` exists. Nothing is left behind.
pub fn prepare(dir: &Path, id_base: u32) -> Result<(), RootfsError> {
    let error = |source: io::Error| RootfsError::Prepare { dir: dir.to_owned(), source };
    if let Some(parent) = dir.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(error)?;
    }
    std::fs::DirBuilder::new().mode(0o700).create(dir).map_err(error)?;
    let fill = || -> io::Result<()> {
        let here = openat(AT_FDCWD, dir, DIRECTORY, Mode::empty())?;
        // The mode of the upper directory is that of `/` inside.
        for (name, mode) in [("upper", 0o755), ("work", 0o700)] {
            mkdirat(&here, name, Mode::S_IRWXU)?;
            let made = openat(&here, name, DIRECTORY, Mode::empty())?;
            fchown(&made, Some(Uid::from_raw(id_base)), Some(Gid::from_raw(id_base)))?;
            fchmod(&made, Mode::from_bits_truncate(mode))?;
        }
        Ok(())
    };
    fill().map_err(|source| {
        // The first failure is what the caller wants to hear; a directory that stays is found by the listing.
        if let Err(_stays) = remove(dir) {}
        error(source)
    })
}

/// Removes `dir` and everything below it. Succeeds if it is not there.
///
/// # Errors
/// [`RootfsError::Remove`] if some of it resisted; the rest is gone. It may be called again.
pub fn remove(dir: &Path) -> Result<(), RootfsError> {
    remove_tree(dir).map_err(|source| RootfsError::Remove { dir: dir.to_owned(), source })
}
