//! A session's share of the host: its cgroup, on v2 and on v1 controllers alike.
//!
//! ```text
//!   v2              <delegated subtree, or root>/podspawn-<tag>/<session>[/<container>]
//!   v1 or hybrid    /sys/fs/cgroup/{cpu,cpuacct,memory,pids}/podspawn-<tag>/<session>[/<container>]
//! ```
//!
//! A session that has services has a cgroup for each of its containers below its own, which bounds them all together. One
//! that has none needs no second level.
//!
//! Owns: these directories, their limits and counters, and the end of every process in them. Leaves to the spawner how init gets in
//! ([`CgroupJoin`]): on v2 by clone3(2), on v1 by its own write to `tasks`, never through `cgroup.procs`, which takes a
//! global lock and 10 ms.
//!
//! Invariant: limits are written before the first process joins. A cgroup is used for one session only, since a v2
//! cgroup that has seen `cgroup.kill` kills whatever is cloned into it.

mod layout;
mod limits;
#[cfg(test)]
mod tests;
mod usage;

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use self::{
    layout::{Layout, read, write},
    limits::Version,
};
pub use self::{
    limits::Limits,
    usage::{Peaks, Usage},
};
use crate::{
    names::{ContainerId, InstanceTag, SessionId},
    protocol::CgroupJoin,
    sys::pidfd::Held,
};

/// How long killed processes may take to be gone. A hundred take 4 ms; one that is stuck in the kernel, forever.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a cgroup may stay busy after its last process was seen: the kernel lets go of it a little later.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(1);

/// Why a cgroup could not be made, used or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("this host has no cgroup controller {0:?}, neither v1 nor v2; sessions need it for their limits")]
    NoController(&'static str),
    #[error("cannot make the cgroup {}", .path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("cannot set a limit of the cgroup {}", .path.display())]
    Limit { path: PathBuf, source: cgroups_rs::error::Error },
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {value:?} to {}", .path.display())]
    Write { path: PathBuf, value: String, source: io::Error },
    #[error("processes {pids:?} of the cgroup {} do not end", .path.display())]
    Stuck { path: PathBuf, pids: Vec<i32> },
    #[error("cannot remove the cgroup {}", .path.display())]
    Remove { path: PathBuf, source: io::Error },
}

/// The cgroups of one instance.
#[derive(Debug, Clone)]
pub struct Cgroups {
    layout: Layout,
}

impl Cgroups {
    /// Finds out how this host does it, and makes the parent directories; those of an earlier run are fine.
    ///
    /// On v2 they are in the subtree that systemd has delegated to us, if it has put us into a leaf of that
    /// (`DelegateSubgroup=`, systemd 254), and else below the root.
    ///
    /// # Errors
    /// [`CgroupError::NoController`] without memory or pids.
    pub fn open(tag: &InstanceTag) -> Result<Self, CgroupError> {
        let layout = Layout::detect(tag)?;
        layout.prepare()?;
        Ok(Self { layout })
    }

    /// Whether this host has cgroup v2 with the controllers that sessions need, and not v1's.
    ///
    /// # Errors
    /// [`CgroupError::NoController`] if it has neither.
    pub fn unified() -> Result<bool, CgroupError> {
        // Where an instance's cgroups would be does not matter.
        let layout = Layout::detect(&InstanceTag::of_root(Path::new("/")))?;
        Ok(matches!(layout, Layout::V2 { .. }))
    }

    /// Makes the cgroup of a session, with its limits.
    ///
    /// # Errors
    /// [`CgroupError::NoController`] if `limits.cpus` is set and there is no cpu controller; others name the file.
    /// Either way nothing is left behind.
    pub fn create(&self, id: &SessionId, limits: &Limits) -> Result<Cgroup, CgroupError> {
        let cgroup = self.adopt(id);
        cgroup.make(limits)?;
        Ok(cgroup)
    }

    /// The cgroup that a session has from an earlier run, or had.
    pub fn adopt(&self, id: &SessionId) -> Cgroup {
        let (version, paths) = match &self.layout {
            Layout::V2 { parent, .. } => {
                (Version::V2, vec![(parent.join(id.as_str()), ["cpu", "memory", "pids"].into())])
            }
            Layout::V1 { parents } => {
                (Version::V1, parents.iter().map(|(p, c)| (p.join(id.as_str()), c.clone())).collect())
            }
        };
        Cgroup { version, paths }
    }

    /// Removes the parent directories; for when no session is left, otherwise an error. None being there is fine.
    pub fn close(&self) -> Result<(), CgroupError> {
        self.layout.parents().into_iter().map(|path| remove(path.to_owned(), Duration::ZERO)).fold(Ok(()), Result::and)
    }

    /// The directories that the instance `tag` has, one line each; a session's ends with its id.
    pub fn listing(tag: &InstanceTag) -> Result<Vec<String>, CgroupError> {
        let mut lines = Vec::new();
        for parent in Layout::detect(tag)?.parents() {
            let entries = match fs::read_dir(parent) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(|source| CgroupError::Read { path: parent.to_owned(), source })?,
            };
            lines.push(format!("cgroup {}", parent.display()));
            for entry in entries {
                let entry = entry.map_err(|source| CgroupError::Read { path: parent.to_owned(), source })?;
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    lines.push(format!("cgroup {}", entry.path().display()));
                }
            }
        }
        Ok(lines)
    }
}

/// The cgroup of one session: one directory on v2, one for each hierarchy on v1.
#[derive(Debug)]
pub struct Cgroup {
    version: Version,
    /// With the controllers that each is for.
    paths: Vec<(PathBuf, BTreeSet<&'static str>)>,
}

impl Cgroup {
    /// The directory of the controller `name`.
    fn path(&self, name: &'static str) -> Result<&PathBuf, CgroupError> {
        let mut paths = self.paths.iter();
        paths.find(|(_, c)| c.contains(name)).map(|(path, _)| path).ok_or(CgroupError::NoController(name))
    }

    /// Makes the cgroup of one of the session's containers below this one, which may then hold no process itself.
    ///
    /// # Errors
    /// As of [`Cgroups::create`], and if there are processes in this one. Nothing is left behind.
    pub fn child(&self, id: &ContainerId, limits: &Limits) -> Result<Self, CgroupError> {
        for (path, _) in &self.paths {
            layout::make_inner(path, self.version)?;
        }
        let child = self.below(id);
        child.make(limits)?;
        Ok(child)
    }

    /// The cgroup of one of the session's containers, if it has one of its own.
    #[must_use]
    pub fn below(&self, id: &ContainerId) -> Self {
        let below = |(path, controllers): &(PathBuf, BTreeSet<_>)| (path.join(id.to_string()), controllers.clone());
        Self { version: self.version, paths: self.paths.iter().map(below).collect() }
    }

    /// Makes the directories and writes the limits, or leaves nothing behind.
    fn make(&self, limits: &Limits) -> Result<(), CgroupError> {
        for (made, (path, _)) in self.paths.iter().enumerate() {
            if let Err(source) = fs::create_dir(path) {
                // Those from here on are not ours: one that exists already belongs to a session with the same id.
                Self { version: self.version, paths: self.paths[..made].to_vec() }.undo();
                return Err(CgroupError::Create { path: path.clone(), source });
            }
        }
        self.limit(limits).inspect_err(|_| self.undo())
    }

    fn limit(&self, limits: &Limits) -> Result<(), CgroupError> {
        if let Some(cpus) = limits.cpus {
            limits::limit_cpus(self.path("cpu")?, self.version, cpus)?;
        }
        if let Some(bytes) = limits.memory_max {
            limits::limit_memory(self.path("memory")?, self.version, bytes)?;
        }
        if let Some(count) = limits.pids_max {
            limits::limit_pids(self.path("pids")?, self.version, count)?;
        }
        Ok(())
    }

    /// What a new init needs to get in: how, and the descriptors for it.
    pub fn join(&self) -> Result<(CgroupJoin, Vec<OwnedFd>), CgroupError> {
        let open = |path: PathBuf, options: &OpenOptions| {
            options.open(&path).map(OwnedFd::from).map_err(|source| CgroupError::Read { path, source })
        };
        let mut fds = Vec::new();
        match self.version {
            Version::V2 => {
                for (path, _) in &self.paths {
                    fds.push(open(path.clone(), OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY))?);
                }
                Ok((CgroupJoin::V2, fds))
            }
            Version::V1 => {
                for (path, _) in &self.paths {
                    fds.push(open(path.join("tasks"), OpenOptions::new().write(true))?);
                }
                let count = u32::try_from(fds.len()).unwrap_or(u32::MAX);
                Ok((CgroupJoin::V1 { count }, fds))
            }
        }
    }

    /// Files by which a process gets in that is of one thread: it writes `0` to each.
    pub fn tasks(&self) -> Result<Vec<OwnedFd>, CgroupError> {
        let name = match self.version {
            Version::V2 => "cgroup.procs",
            Version::V1 => "tasks",
        };
        let open = |path: PathBuf| {
            OpenOptions::new().write(true).open(&path).map_err(|source| CgroupError::Write {
                path,
                value: "0".to_owned(),
                source,
            })
        };
        self.paths.iter().map(|(path, _)| open(path.join(name)).map(OwnedFd::from)).collect()
    }

    /// The processes in it and in those below it, as far as our pid namespace has numbers for them. None if it is gone.
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        let path = self.path("pids")?;
        let mut pids = Vec::new();
        for directory in below(path)?.iter().chain([path]) {
            match read(&directory.join("cgroup.procs")) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse().ok()).filter(|pid: &i32| *pid > 0)),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pids)
    }

    /// Kills every process in it and below it, and returns when they are gone. Nothing can join it afterwards.
    ///
    /// # Errors
    /// [`CgroupError::Stuck`] if some are still there after 5 s.
    pub fn kill(&self) -> Result<(), CgroupError> {
        let path = self.path("pids")?;
        // v2 kills all at once. v1 can only be asked who is there; with no process allowed, nobody new appears between
        // that question and the signal, however fast they fork.
        let stop = match self.version {
            Version::V2 => write(&path.join("cgroup.kill"), "1"),
            Version::V1 => write(&path.join("pids.max"), "0"),
        };
        match stop {
            Err(error) if is_gone(&error) => return Ok(()),
            other => other?,
        }
        let deadline = Instant::now() + KILL_TIMEOUT;
        loop {
            let pids = self.pids()?;
            if pids.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(CgroupError::Stuck { path: path.clone(), pids });
            }
            if self.version == Version::V1 {
                self.signal(&pids)?;
            }
            thread::sleep(POLL);
        }
    }

    /// Sends SIGKILL to those of `pids` that are still in here once we hold them by descriptor: a number alone may by
    /// then be the name of somebody else's process.
    fn signal(&self, pids: &[i32]) -> Result<(), CgroupError> {
        let held: Vec<_> = pids.iter().filter_map(|pid| Held::open(*pid).ok()).collect();
        let present = self.pids()?;
        for process in held.into_iter().filter(|process| present.contains(&process.pid())) {
            // Whatever goes wrong, the caller sees that it is still there.
            let _ = process.kill();
        }
        Ok(())
    }

    /// Removes the directories and those below them; none being there is fine. The processes must be gone
    /// ([`Cgroup::kill`]).
    ///
    /// # Errors
    /// [`CgroupError::Remove`] if one is still busy after 2 s, after all have been tried.
    pub fn destroy(&self) -> Result<(), CgroupError> {
        let mut result = Ok(());
        for (path, _) in &self.paths {
            for directory in below(path)?.into_iter().chain([path.clone()]) {
                result = result.and(remove(directory, REMOVE_TIMEOUT));
            }
        }
        result
    }

    /// Destroys what a failed creation has made; the caller has a more important error to tell.
    fn undo(&self) {
        if let Err(error) = self.destroy() {
            tracing::warn!(%error, "undoing a failed cgroup");
        }
    }
}

/// The cgroups right below `path`: a session's containers cannot make any.
fn below(path: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let failed = |source| CgroupError::Read { path: path.to_owned(), source };
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) if entry.file_type().is_ok_and(|kind| kind.is_dir()) => found.push(entry.path()),
            Ok(_) => {}
            // Removed while we read it.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(found)
}

/// Whether the cgroup that a file belongs to has been removed: before the file was opened, or after.
fn is_gone(error: &CgroupError) -> bool {
    let (CgroupError::Read { source, .. } | CgroupError::Write { source, .. }) = error else { return false };
    matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// Removes a directory, waiting while it is busy.
fn remove(path: PathBuf, timeout: Duration) -> Result<(), CgroupError> {
    let deadline = Instant::now() + timeout;
    loop {
        match fs::remove_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => thread::sleep(POLL),
            other => return other.map_err(|source| CgroupError::Remove { path, source }),
        }
    }
}
