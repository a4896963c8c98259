//! Removing directory trees whose names, modes and depth somebody hostile has chosen.
//!
//! Works by descriptor, never follows a link, never leaves the file system, and needs memory that does not grow with the
//! breadth of the tree.

use std::{
    ffi::{CStr, CString, OsStr},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, openat},
    sys::stat::{FileStat, Mode, SFlag, fstat, fstatat},
    unistd::{UnlinkatFlags, unlinkat},
};

use super::inode_flags;

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Subdirectories of one directory that are looked up at a time.
const BATCH: usize = 64;

/// Removes the directory `path` and everything below it. Succeeds if it is not there.
///
/// # Errors
/// The first thing that resisted; the rest is gone. It may be called again.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    remove_tree_at(AT_FDCWD, path.as_os_str())
}

/// As [`remove_tree`], for `name` in the open directory `parent`.
pub fn remove_tree_at(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let top = match openat(parent, name, DIRECTORY, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(()),
        other => other?,
    };
    let mut removal = Removal { device: fstat(&top)?.st_dev, first: None };
    removal.empty(top)?;
    match removal.first {
        Some(first) => Err(first.into()),
        None => Ok(unlinkat(parent, name, UnlinkatFlags::RemoveDir)?),
    }
}

/// A directory that we are in or below of. Only the deepest one is open, so that depth costs no descriptors.
struct Level {
    /// Device and inode, to recognise it on the way up.
    identity: (u64, u64),
    /// Its name in the one above.
    name: CString,
    /// Subdirectories found and not yet visited.
    pending: Vec<CString>,
    /// Whether anything was removed in this pass.
    progress: bool,
}

impl Level {
    fn of(dir: &OwnedFd, name: CString) -> nix::Result<Self> {
        Ok(Self { identity: identity(&fstat(dir)?), name, pending: Vec::new(), progress: true })
    }
}

struct Removal {
    device: u64,
    /// The first failure, which is the deepest: those above follow from it.
    first: Option<Errno>,
}

impl Removal {
    fn failed(&mut self, error: Errno) {
        self.first.get_or_insert(error);
    }

    /// Empties `top`. An error is one of finding the way; entries that resist are noted.
    fn empty(&mut self, top: OwnedFd) -> nix::Result<()> {
        let mut current = top;
        let mut levels = vec![Level::of(&current, CString::default())?];
        while let Some(level) = levels.last_mut() {
            if let Some(name) = level.pending.pop() {
                match self.descend(current.as_fd(), &name) {
                    Ok(child) => {
                        levels.push(Level::of(&child, name)?);
                        current = child;
                    }
                    Err(error) => self.failed(error),
                }
                continue;
            }
            // A pass that removed something may have left subdirectories beyond its batch.
            if self.pass(current.as_fd(), level)? || !level.pending.is_empty() {
                continue;
            }
            let Some(done) = levels.pop() else { break };
            let Some(above) = levels.last_mut() else { break };
            let parent = openat(&current, c"..", DIRECTORY, Mode::empty())?;
            if identity(&fstat(&parent)?) != above.identity {
                return Err(Errno::ESTALE); // somebody moves directories about; nobody should be left to do so
            }
            current = parent;
            match remove_entry(current.as_fd(), &done.name, UnlinkatFlags::RemoveDir) {
                Ok(()) => above.progress = true,
                Err(error) => self.failed(error),
            }
        }
        Ok(())
    }

    fn descend(&self, parent: BorrowedFd<'_>, name: &CStr) -> nix::Result<OwnedFd> {
        let child = openat(parent, name, DIRECTORY, Mode::empty())?;
        if fstat(&child)?.st_dev == self.device { Ok(child) } else { Err(Errno::EXDEV) }
    }

    /// Removes what is not a directory from `dir`, and notes the first subdirectories. False if the last pass and its
    /// subdirectories removed nothing, so that another would be the same.
    fn pass(&mut self, dir: BorrowedFd<'_>, level: &mut Level) -> nix::Result<bool> {
        if !level.progress {
            return Ok(false);
        }
        level.progress = false;
        let mut removed = false;
        let mut batch = Vec::new();
        for entry in Dir::openat(dir, c".", DIRECTORY, Mode::empty())?.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let is_directory = match entry.file_type() {
                Some(kind) => kind == nix::dir::Type::Directory,
                None => {
                    let mode = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?.st_mode;
                    SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == SFlag::S_IFDIR
                }
            };
            if !is_directory {
                match remove_entry(dir, name, UnlinkatFlags::NoRemoveDir) {
                    Ok(()) => removed = true,
                    Err(error) => self.failed(error),
                }
            } else if batch.len() < BATCH {
                batch.push(name.to_owned());
            }
        }
        let more = !batch.is_empty();
        level.pending = batch;
        Ok(more || removed)
    }
}

fn identity(stat: &FileStat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// Removes one entry; if it is immutable or append-only, or its directory is, that is taken away first.
fn remove_entry(dir: BorrowedFd<'_>, name: &CStr, flag: UnlinkatFlags) -> nix::Result<()> {
    match unlinkat(dir, name, flag) {
        Err(Errno::EPERM) => {
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            // Best effort: whether it helped is seen by the second attempt.
            if let Err(_unsupported) = inode_flags::clear(dir) {}
            if let Ok(entry) = openat(dir, name, flags, Mode::empty())
                && let Err(_unsupported) = inode_flags::clear(entry.as_fd())
            {}
            unlinkat(dir, name, flag)
        }
        other => other,
    }
}
