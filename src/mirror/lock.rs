//! The lock of a mirror: flock(2) on its directory. It ends with the process that has it, however that ends.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

/// How often one is tried that somebody else has.
const AGAIN: Duration = Duration::from_millis(50);

pub(super) struct Locked(#[expect(dead_code, reason = "it is there for as long as it is held")] Flock<File>);

impl Locked {
    /// Locks the directory `path`, making it if need be. `None` if it takes longer than `limit`, or is not wanted any more.
    pub(super) fn wait(path: &Path, limit: Duration, wanted: &dyn Fn() -> bool) -> io::Result<Option<Self>> {
        let deadline = Instant::now() + limit;
        loop {
            match fs::DirBuilder::new().mode(0o700).create(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            if let Some(locked) = Self::try_existing(path)? {
                return Ok(Some(locked));
            }
            if Instant::now() >= deadline || !wanted() {
                return Ok(None);
            }
            thread::sleep(AGAIN);
        }
    }

    /// Locks the directory `path` if it is there and nobody else has it.
    pub(super) fn try_existing(path: &Path) -> io::Result<Option<Self>> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = match File::options().read(true).custom_flags(flags).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => return Ok(None),
            Err((_, errno)) => return Err(errno.into()),
        };
        // Whoever has removed it meanwhile had the lock: the next one locks another directory.
        let own = lock.metadata()?;
        let same = fs::symlink_metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == (own.dev(), own.ino()));
        Ok(same.then_some(Self(lock)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it_at_a_time_and_one_that_was_removed_is_nobodys() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("mirror");
        assert!(Locked::try_existing(&path).unwrap().is_none());
        let first = Locked::wait(&path, Duration::ZERO, &|| true).unwrap().unwrap();
        assert!(Locked::try_existing(&path).unwrap().is_none());
        assert!(Locked::wait(&path, Duration::from_millis(1), &|| true).unwrap().is_none());
        assert!(Locked::wait(&path, Duration::from_secs(3600), &|| false).unwrap().is_none());
        let waiting = thread::spawn({
            let path = path.clone();
            move || Locked::wait(&path, Duration::from_secs(60), &|| true).unwrap().is_some()
        });
        fs::remove_dir(&path).unwrap();
        drop(first);
        assert!(waiting.join().unwrap());
        assert!(path.exists(), "it has made another one");
    }
}
