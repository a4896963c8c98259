//! Files of the store: written so that they are there completely or not at all, and locks on them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use serde::de::DeserializeOwned;

use super::Store;
use crate::image::ImageError;

/// How often a lock's file may have been removed between our opening and locking it.
const ATTEMPTS: usize = 100;

impl Store {
    /// Writes a file so that, also after a power failure, it is there completely or not at all.
    pub(super) fn write(&self, path: &Path, content: &[u8]) -> Result<(), ImageError> {
        let write = || {
            let scratch = self.scratch()?;
            let unfinished = scratch.path().join("file");
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&unfinished, path)?;
            sync_parent(path)?;
            scratch.discard()
        };
        write().map_err(|error| ImageError::Store(path.to_owned(), error))
    }
}

/// Makes a renaming last.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// A JSON file; `None` if it is not there.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ImageError> {
    let json = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| ImageError::Store(path.to_owned(), error))?,
    };
    let value = serde_json::from_slice(&json);
    value.map(Some).map_err(|error| ImageError::Damaged { path: path.to_owned(), what: error.to_string() })
}

/// The names in a directory, sorted. Those that are not text are not ours.
pub(super) fn names(directory: &Path) -> Result<Vec<String>, ImageError> {
    let failed = |error| ImageError::Store(directory.to_owned(), error);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// Removes a file; it may be gone already.
pub(super) fn remove_file(path: &Path) -> Result<(), ImageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImageError::Store(path.to_owned(), error)),
        _ => Ok(()),
    }
}

/// Locks the file `path`, making it if need be; `None` if `kind` says not to wait and somebody else has it.
pub(super) fn lock_file(path: &Path, kind: FlockArg) -> Result<Option<Flock<File>>, ImageError> {
    let failed = |error| ImageError::Store(path.to_owned(), error);
    for _ in 0..ATTEMPTS {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path).map_err(failed)?;
        match lock(file, kind).map_err(failed)? {
            None => return Ok(None),
            // Whoever has removed the file had the lock that we have waited for: the next one locks another file.
            Some(lock) if is_at(&lock, path).map_err(failed)? => return Ok(Some(lock)),
            Some(_) => {}
        }
    }
    Err(failed(io::Error::other("its lock is removed again and again")))
}

/// flock(2) on an open file or directory; `None` if `kind` says not to wait and somebody else has it.
pub(super) fn lock(mut file: File, kind: FlockArg) -> io::Result<Option<Flock<File>>> {
    loop {
        match Flock::lock(file, kind) {
            Ok(lock) => return Ok(Some(lock)),
            Err((again, Errno::EINTR)) => file = again,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, errno)) => return Err(errno.into()),
        }
    }
}

/// Whether `path` still leads to this file.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok((meta.dev(), meta.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
