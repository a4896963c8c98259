//! What is unfinished: directories in `tmp`, each locked as long as its maker lives.
//!
//! The lock (flock(2), shared, on the directory itself) ends with the process however that ends. So what is not locked is a
//! leftover, and goes when the next process opens the store. A directory that is renamed to its place keeps its lock.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::PoisonError,
};

use nix::fcntl::{Flock, FlockArg};

use super::{
    Store,
    files::{is_at, lock, names, sync_parent},
};
use crate::{image::ImageError, sys::remove_tree::remove_tree};

/// How often a new directory may be swept away before it is locked.
const ATTEMPTS: usize = 100;

/// An empty directory of one's own in `tmp`.
pub(in crate::image) struct Scratch<'a> {
    store: &'a Store,
    path: PathBuf,
    /// `None` once it is published or removed.
    lock: Option<Flock<File>>,
}

impl Store {
    pub(super) fn scratch(&self) -> io::Result<Scratch<'_>> {
        for _ in 0..ATTEMPTS {
            let path = self.path("tmp").join(format!("{:016x}", getrandom::u64().map_err(io::Error::other)?));
            DirBuilder::new().mode(0o700).create(&path)?;
            let directory = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            if let Some(lock) = lock(directory, FlockArg::LockSharedNonblock)?
                && is_at(&lock, &path)?
            {
                self.scratches.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone());
                return Ok(Scratch { store: self, path, lock: Some(lock) });
            }
        }
        Err(io::Error::other("whatever is made in tmp is removed at once"))
    }

    pub(in crate::image) fn new_scratch(&self) -> Result<Scratch<'_>, ImageError> {
        self.scratch().map_err(|error| ImageError::Store(self.path("tmp"), error))
    }

    /// Removes what dead processes have left, and returns how much that was. What resists stays, and is in the [`listing()`].
    pub fn sweep(&self) -> Result<usize, ImageError> {
        let removed = abandoned(&self.path("tmp"))?.iter().filter(|(path, _lock)| remove(path).is_ok()).count();
        Ok(removed)
    }

    /// Removes what this process has not finished, as it is about to end.
    pub(super) fn remove_scratches(&self) {
        let paths: Vec<_> = self.scratches.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        for path in paths {
            // What resists is swept by the next process.
            if let Err(_resisted) = remove(&path) {}
        }
    }

    /// Whether this process has something unfinished.
    pub(super) fn has_scratches(&self) -> bool {
        !self.scratches.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

impl Scratch<'_> {
    pub(in crate::image) fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the directory to `place` for good. The lock stays on it.
    pub(super) fn publish(mut self, place: &Path) -> io::Result<Flock<File>> {
        fs::rename(&self.path, place)?;
        sync_parent(place)?;
        self.lock.take().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Removes it.
    pub(super) fn discard(mut self) -> io::Result<()> {
        let removed = remove(&self.path);
        self.lock = None;
        removed
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        if self.lock.is_some() {
            // After an error, which is what the caller wants to hear of; what resists is swept by the next process.
            if let Err(_resisted) = remove(&self.path) {}
        }
        self.store.scratches.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.path);
    }
}

/// What dead processes have left in the store in `directory`.
pub fn listing(directory: &Path) -> Result<Vec<String>, ImageError> {
    let tmp = directory.join("tmp");
    if !tmp.exists() {
        return Ok(Vec::new());
    }
    Ok(abandoned(&tmp)?.iter().map(|(path, _)| path.display().to_string()).collect())
}

/// Unlocked entries of `tmp`, locked now: two processes do not remove the same.
fn abandoned(tmp: &Path) -> Result<Vec<(PathBuf, Flock<File>)>, ImageError> {
    let mut abandoned = Vec::new();
    for name in names(tmp)? {
        let path = tmp.join(name);
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = match File::options().read(true).custom_flags(flags).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(|error| ImageError::Store(path.clone(), error))?,
        };
        let failed = |error| ImageError::Store(path.clone(), error);
        if let Some(lock) = lock(file, FlockArg::LockExclusiveNonblock).map_err(failed)? {
            abandoned.push((path, lock));
        }
    }
    Ok(abandoned)
}

fn remove(path: &Path) -> io::Result<()> {
    match remove_tree(path) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTDIR) => fs::remove_file(path),
        other => other,
    }
}
