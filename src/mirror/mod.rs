//! Mirrors of public repositories, so that the second session that clones one fetches next to nothing.
//!
//! ```text
//! STATE/mirrors/SHA256-OF-URL/            locked (flock(2), on the directory) by whoever works in it
//!   url                                   of what; as old as the mirror
//!   used                                  as old as its last use
//!   writing                               there while git writes: what it is found in later is thrown away
//!   refused                               it has been too large, or too slow, and is not tried for a while
//!   refs                                  what its server has said to have when that was just what the repository has
//!   repository/                           git's own, a bare repository: packs, and refs in one file
//! ```
//!
//! A mirror is brought up to date for one session, over that session's network and within its limits, by git without rights
//! ([`crate::git`]) that has nobody's credentials and sends none. Only if that succeeds now is its content given, and to that
//! session alone: so nobody gets from a mirror what the server would not have given to just that session, at just that
//! moment, without any credentials.
//!
//! What is given is a [`Snapshot`], a small repository of hard links to the mirror's packs, which never change. If the mirror
//! has just what the server has at that moment, there is all in it that a clone needs, and the server is not asked again. A mirror
//! may be updated, packed anew and removed while sessions still read what they were given. Nothing depends on a mirror: what
//! cannot be had from one is cloned from the server.

mod limits;
mod listing;
mod lock;
mod snapshot;
mod source;
mod update;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio::sync::Semaphore;

use self::lock::Locked;
pub use self::{
    limits::Limits,
    snapshot::Snapshot,
    source::{Source, Unsuitable},
    update::Reach,
};
use crate::{errors::chain, git::GitError, image::Digest, sys::remove_tree::remove_tree};

/// Mirrors that are worked in, or waited for, at once. Whoever finds no room clones from the server.
const AT_ONCE: usize = 32;

/// For how long one is not tried that was too large or too slow.
const REFUSED_FOR: Duration = Duration::from_secs(3600);

/// How long another session's update is waited for. It goes on at that session's pace.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a repository is not to be had from a mirror.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error(transparent)]
    Unsuitable(#[from] Unsuitable),
    #[error("other mirrors are being worked on")]
    Busy,
    #[error("the session has ended")]
    Ended,
    #[error("another session has been updating the mirror for too long")]
    Locked,
    #[error("cannot use the mirror {}", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    #[error("the server does not give it to everybody, or cannot be reached")]
    Refused(#[source] GitError),
    #[error("the mirror cannot be made")]
    Git(#[source] GitError),
    #[error("it is larger than {0} bytes, a part of mirrors.size")]
    TooLarge(u64),
    #[error("it was too large or too slow within the last hour")]
    GivenUp,
    #[error("it is empty")]
    Empty,
}

impl MirrorError {
    /// Whether this is how things are, rather than something to be mended.
    pub fn is_ordinary(&self) -> bool {
        !matches!(self, Self::Directory(..) | Self::Git(_))
    }
}

/// All mirrors of an instance.
pub struct Mirrors {
    directory: PathBuf,
    turns: Semaphore,
}

impl Mirrors {
    /// Those in `directory`, which is made if it is not there. Removes what processes that were killed have left half done.
    pub fn open(directory: &Path) -> Result<Self, MirrorError> {
        use std::os::unix::fs::DirBuilderExt;
        let failed = |error| MirrorError::Directory(directory.to_owned(), error);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let mirrors = Self { directory: directory.to_owned(), turns: Semaphore::new(AT_ONCE) };
        for path in half_done(directory).map_err(failed)? {
            if let Err(error) = (Mirror { path }).remove_unused() {
                // It stays in the listing; there is a server without it.
                tracing::error!("{}", chain(error));
            }
        }
        Ok(mirrors)
    }

    /// Brings the mirror of `source` up to date, or makes it, and gives what it has to a session: at `place`, which is made,
    /// for a clone of all branches or of just one. Blocks, perhaps for minutes.
    pub fn give(
        &self,
        source: &Source,
        branch: Option<&str>,
        reach: &Reach<'_>,
        limits: Limits,
        place: &Path,
    ) -> Result<Snapshot, MirrorError> {
        let _turn = self.turns.try_acquire().map_err(|_taken| MirrorError::Busy)?;
        let mirror = Mirror { path: self.place(source) };
        let lock = Locked::wait(&mirror.path, PATIENCE, reach.wanted).map_err(|error| mirror.failed(error))?;
        let listing = if lock.is_some() {
            let updated = mirror.update(source, reach, limits);
            if updated.is_err() && !mirror.repository().exists() && !mirror.marked("refused") {
                // Nothing would ever be found in it.
                mirror.remove()?;
            }
            updated?
        } else if !(reach.wanted)() {
            return Err(MirrorError::Ended);
        } else if mirror.marked("url") {
            // What it has is good at any moment, and the rest comes from the server.
            mirror.ask(source, reach, limits)?;
            None
        } else {
            return Err(MirrorError::Locked);
        };
        let beginning = listing.and_then(|listing| listing.beginning(source.url(), branch));
        let snapshot = Snapshot::take(&mirror.repository(), reach.uid, beginning.as_ref(), place)?;
        mirror.mark("used").map_err(|error| mirror.failed(error))?;
        Ok(snapshot)
    }

    /// Whether there is one of `source`.
    pub fn has(&self, source: &Source) -> bool {
        Mirror { path: self.place(source) }.marked("url")
    }

    /// Throws the mirror of `source` away, since something is wrong with what it has given.
    pub fn distrust(&self, source: &Source) -> Result<(), MirrorError> {
        Mirror { path: self.place(source) }.remove_unused().map(drop)
    }

    /// Removes those that are too old, and what was used least lately beyond the size of all. None that is in use.
    pub fn prune(&self, limits: Limits) -> Result<(), MirrorError> {
        let mut all = Vec::new();
        let mut sum = 0;
        for path in entries(&self.directory).map_err(|error| MirrorError::Directory(self.directory.clone(), error))? {
            let used = age_of(&path.join("used")).unwrap_or(SystemTime::UNIX_EPOCH);
            let made = age_of(&path.join("url"));
            let old = made.is_none_or(|made| limits.is_too_old(made)) && !recently(&path.join("refused"), REFUSED_FOR);
            let bytes = limits::measure(&path, usize::MAX).bytes;
            sum += bytes;
            all.push((!old, used, bytes, path));
        }
        // Those that are too old first.
        all.sort();
        for (good, _, bytes, path) in all {
            if good && sum <= limits.bytes {
                break;
            }
            if (Mirror { path }).remove_unused()? {
                sum -= bytes;
            }
        }
        Ok(())
    }

    fn place(&self, source: &Source) -> PathBuf {
        self.directory.join(Digest::of(source.url().as_bytes()).hex())
    }
}

/// What dead processes have left half done in `directory`.
pub fn listing(directory: &Path) -> io::Result<Vec<String>> {
    Ok(half_done(directory)?.iter().map(|path| path.display().to_string()).collect())
}

/// What is no complete mirror, although nobody works on it.
fn half_done(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in entries(directory)? {
        let odd = || path.join("writing").exists() || !(path.join("url").exists() || path.join("refused").exists());
        if odd() && Locked::try_existing(&path)?.is_some() && odd() {
            found.push(path);
        }
    }
    Ok(found)
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.path())).collect(),
    }
}

fn age_of(path: &Path) -> Option<SystemTime> {
    fs::symlink_metadata(path).and_then(|meta| meta.modified()).ok()
}

/// Whether there is a file that was written less than `limit` ago.
fn recently(path: &Path, limit: Duration) -> bool {
    age_of(path).is_some_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age < limit))
}

/// One of them. Whoever changes it has its lock.
struct Mirror {
    path: PathBuf,
}

impl Mirror {
    fn repository(&self) -> PathBuf {
        self.path.join("repository")
    }

    fn failed(&self, error: io::Error) -> MirrorError {
        MirrorError::Directory(self.path.clone(), error)
    }

    /// Removes it unless somebody works in it; whether it is gone.
    fn remove_unused(&self) -> Result<bool, MirrorError> {
        match Locked::try_existing(&self.path).map_err(|error| self.failed(error))? {
            Some(_locked) => self.remove().map(|()| true),
            None => Ok(!self.path.exists()),
        }
    }

    fn remove(&self) -> Result<(), MirrorError> {
        match remove_tree(&self.path) {
            // No mirror at all.
            Err(error) if error.raw_os_error() == Some(libc::ENOTDIR) => fs::remove_file(&self.path),
            removed => removed,
        }
        .map_err(|error| self.failed(error))
    }

    /// Writes an empty file, which is new then.
    fn mark(&self, name: &str) -> io::Result<()> {
        fs::write(self.path.join(name), "")?;
        fs::File::options().write(true).open(self.path.join(name))?.set_modified(SystemTime::now())
    }

    fn marked(&self, name: &str) -> bool {
        self.path.join(name).exists()
    }

    fn unmark(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
