//! What is mounted into services: volumes with a name, and directories of the host that the administrator allows.
//!
//! ```text
//!   STATE/volumes/<user>/<project>/<name>     survives the session, until it is ended for good (down.rs)
//!   STATE/sessions/<id>/volumes/<name>        goes with a session that is destroyed on disconnect
//! ```
//!
//! A new one with a name begins with what the image has in its place, and is there when all of that is.
//!
//! On disk the ids are those that the services see, 0 to 65535, whichever range of the host's a session has: the mount
//! shifts them. Nobody but the host's root gets into these directories by another way.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::Mode,
    unistd::syncfs,
};

use super::steps::{Context, SessionKey, new_id};
use crate::{
    config,
    image::{Image, ImageError},
    names::{SessionId, UserName},
    podfile::{Service, Volume, VolumeSource},
    protocol,
    sys::{mount_api::open_tree_clone, remove_tree::remove_tree},
};

/// The name of the directory for sessions without a project, which no project can have.
const NO_PROJECT: &str = "-";

/// The directory of what is being removed, which no user can have as a name.
const REMOVED: &str = ".removed";

/// The name of a volume that is being made, which none can have.
const NEW: &str = ".new";

/// Volumes of one service: their mounts travel in one message.
const MAX_VOLUMES: usize = 8;

/// Why a service cannot have a volume.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("a service has at most {MAX_VOLUMES} volumes, not {0}")]
    TooMany(usize),
    #[error("the administrator has not allowed {0} as a volume (volumes.allow)")]
    NotAllowed(String),
    #[error("{0} of the server is no directory, or there is a symbolic link on the way to it")]
    NoDirectory(String, #[source] io::Error),
    #[error("cannot use the volume {0}")]
    Named(String, #[source] io::Error),
    #[error("cannot begin the volume {0} with what the image has in its place")]
    Image(String, #[source] Box<ImageError>),
}

/// Whether what the service writes to a volume outlives a session of this mode.
pub(super) fn outlives(volume: &Volume, mode: config::Mode) -> bool {
    match volume.source {
        VolumeSource::Host(_) => !volume.read_only,
        VolumeSource::Name(_) => !volume.read_only && is_kept(volume, mode),
    }
}

/// Whether a volume with a name is there for the next session too.
fn is_kept(volume: &Volume, mode: config::Mode) -> bool {
    volume.keep || mode != config::Mode::DestroyOnDisconnect
}

/// A mount that is attached nowhere yet, and what init does with it.
pub(super) struct Prepared {
    pub mounts: Vec<OwnedFd>,
    pub volumes: Vec<protocol::Volume>,
    /// Where each comes from.
    pub sources: Vec<PathBuf>,
}

impl Prepared {
    pub(super) fn none() -> Self {
        Self { mounts: Vec::new(), volumes: Vec::new(), sources: Vec::new() }
    }

    pub(super) fn add(&mut self, source: PathBuf, mount: OwnedFd, volume: protocol::Volume) {
        self.sources.push(source);
        self.mounts.push(mount);
        self.volumes.push(volume);
    }
}

impl Context {
    /// Makes the volumes of a service that are not there, and their mounts. `image` is what it runs. Blocks, for as long as
    /// files are copied.
    pub(super) fn volumes(
        &self,
        key: &SessionKey,
        session: &SessionId,
        (service, image): (&Service, &Image),
        mode: config::Mode,
        allowed: &[PathBuf],
    ) -> Result<Prepared, VolumeError> {
        if service.volumes.len() > MAX_VOLUMES {
            return Err(VolumeError::TooMany(service.volumes.len()));
        }
        let mut prepared = Prepared::none();
        for volume in &service.volumes {
            let (directory, source) = match &volume.source {
                VolumeSource::Host(path) => (open_allowed(path, allowed)?, PathBuf::from(path)),
                VolumeSource::Name(name) => {
                    let kept = is_kept(volume, mode);
                    let parent =
                        if kept { self.volumes_of(key) } else { self.state_dir.join(session.as_str()).join("volumes") };
                    (self.named(&parent, name, image, &volume.path, kept)?, parent.join(name))
                }
            };
            let mount = open_tree_clone(directory.as_fd(), c"");
            prepared.mounts.push(mount.map_err(|error| VolumeError::Named(volume.path.clone(), error))?);
            prepared.sources.push(source);
            prepared.volumes.push(protocol::Volume {
                path: volume.path.clone(),
                read_only: volume.read_only,
                kind: match &volume.source {
                    VolumeSource::Host(_) => protocol::VolumeKind::Host,
                    VolumeSource::Name(_) => protocol::VolumeKind::Named,
                },
            });
        }
        Ok(prepared)
    }

    /// Opens the directory of a volume with a name, making it from what `image` has at `path` if it is not there. One that is
    /// `kept` is on the disk before it has its name: half of it would be taken for all when the power has failed.
    fn named(&self, parent: &Path, name: &str, image: &Image, path: &str, kept: bool) -> Result<OwnedFd, VolumeError> {
        let failed = |error| VolumeError::Named(name.to_owned(), error);
        if let Some(found) = find(parent, name).map_err(failed)? {
            return Ok(found);
        }
        let new = begin(parent).map_err(failed)?;
        let copied = self.store.copy_directory(image, Path::new(path), &new);
        copied.map_err(|error| VolumeError::Image(name.to_owned(), Box::new(error)))?;
        finish(&new, parent, name, kept).map_err(failed)
    }

    /// Takes all volumes of `key` away, so that the next session has new ones. The caller knows that no session uses them.
    pub(super) fn take_volumes(&self, key: &SessionKey) -> io::Result<RemovedVolumes> {
        let parent = self.volumes_of(key);
        let entries = match std::fs::read_dir(&parent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(RemovedVolumes::default()),
            other => other?,
        };
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<io::Result<Vec<_>>>()?;
        names.retain(|name| name != NEW);
        names.sort();
        let removed = self.volumes_dir.join(REMOVED);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&removed)?;
        let directory = removed.join(new_id().as_str());
        std::fs::rename(parent, &directory)?;
        Ok(RemovedVolumes { names, directory: Some(directory) })
    }

    /// Removes what an earlier server has taken away and not removed.
    pub fn sweep_volumes(&self) -> io::Result<()> {
        remove_tree(&self.volumes_dir.join(REMOVED))
    }

    fn volumes_of(&self, key: &SessionKey) -> PathBuf {
        let project = key.project.as_ref().map_or(NO_PROJECT, |project| project.as_str());
        self.volumes_dir.join(key.user.as_str()).join(project)
    }
}

/// Removes all volumes of a user, who has no session; returns whether there were any.
pub fn remove_all_of(volumes_dir: &Path, user: &UserName) -> io::Result<bool> {
    let directory = volumes_dir.join(user.as_str());
    let found = directory.exists();
    remove_tree(&directory)?;
    Ok(found)
}

/// Volumes that no session will find any more.
#[derive(Debug, Default)]
pub(super) struct RemovedVolumes {
    names: Vec<String>,
    directory: Option<PathBuf>,
}

impl RemovedVolumes {
    /// Removes them; returns their names.
    pub(super) fn finish(self) -> io::Result<Vec<String>> {
        self.directory.as_deref().map_or(Ok(()), remove_tree)?;
        Ok(self.names)
    }
}

/// Opens the directory of a named volume, if it is there.
fn find(parent: &Path, name: &str) -> io::Result<Option<OwnedFd>> {
    // The Podfile has been checked to name no other directory; this is what files depend on.
    if name.contains('/') || name.starts_with('.') || name.is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match open(&parent.join(name), flags, Mode::empty()) {
        Err(Errno::ENOENT) => Ok(None),
        other => Ok(Some(other?)),
    }
}

/// Makes an empty directory for a volume that is to come, the container's root's. What an earlier attempt has left is removed.
fn begin(parent: &Path) -> io::Result<PathBuf> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    let new = parent.join(NEW);
    remove_tree(&new)?;
    std::fs::DirBuilder::new().mode(0o755).create(&new)?;
    Ok(new)
}

/// Gives it its name, now that all is in it, and opens it.
fn finish(new: &Path, parent: &Path, name: &str, kept: bool) -> io::Result<OwnedFd> {
    if kept {
        syncfs(File::open(new)?)?;
    }
    std::fs::rename(new, parent.join(name))?;
    find(parent, name)?.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Opens a directory of the host, if it is one of those that are allowed or below one. Nothing on the way from there is
/// followed elsewhere, since who may write there would otherwise decide.
fn open_allowed(path: &str, allowed: &[PathBuf]) -> Result<OwnedFd, VolumeError> {
    let wanted = Path::new(path);
    let below = |allowed: &PathBuf| Some((allowed.clone(), wanted.strip_prefix(allowed).ok()?.to_owned()));
    let Some((allowed, rest)) = allowed.iter().find_map(below) else {
        return Err(VolumeError::NotAllowed(path.to_owned()));
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let opened = open(&allowed, flags, Mode::empty()).and_then(|top| {
        if rest.as_os_str().is_empty() {
            return Ok(top);
        }
        let resolve =
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        openat2(&top, &rest, OpenHow::new().flags(flags).resolve(resolve))
    });
    opened.map_err(|errno: Errno| VolumeError::NoDirectory(path.to_owned(), errno.into()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn directories_of_the_host_are_those_that_are_allowed() {
        let host = tempfile::tempdir().unwrap();
        let at = |path: &str| host.path().join(path);
        std::fs::create_dir_all(at("shared/in/deep")).unwrap();
        std::fs::create_dir_all(at("secret")).unwrap();
        std::fs::write(at("shared/file"), "").unwrap();
        symlink(at("secret"), at("shared/link")).unwrap();
        symlink("../../secret", at("shared/in/link")).unwrap();
        let allowed = [at("shared")];
        let opened = |path: &str| open_allowed(at(path).to_str().unwrap(), &allowed);
        for good in ["shared", "shared/in", "shared/in/deep"] {
            assert!(opened(good).is_ok(), "{good}");
        }
        for bad in ["secret", "shared2", "", "shared/../secret"] {
            let refused = opened(bad);
            assert!(
                matches!(refused, Err(VolumeError::NotAllowed(_) | VolumeError::NoDirectory(..))),
                "{bad}: {refused:?}"
            );
        }
        for bad in ["shared/link", "shared/in/link", "shared/file", "shared/missing", "shared/link/x"] {
            assert!(matches!(opened(bad), Err(VolumeError::NoDirectory(..))), "{bad}");
        }
        assert!(matches!(open_allowed("/etc", &[]), Err(VolumeError::NotAllowed(_))));
    }

    #[test]
    fn a_name_cannot_leave_the_directory_of_volumes() {
        let host = tempfile::tempdir().unwrap();
        let parent = host.path().join("ada/web");
        assert!(find(&parent, "data").unwrap().is_none());
        let new = begin(&parent).unwrap();
        std::fs::write(new.join("half"), "").unwrap();
        finish(&begin(&parent).unwrap(), &parent, "data", true).unwrap();
        assert!(find(&parent, "data").unwrap().is_some());
        assert_eq!(std::fs::read_dir(parent.join("data")).unwrap().count(), 0, "an interrupted attempt does not show");
        symlink("/etc", parent.join("link")).unwrap();
        for bad in ["..", ".", "", "a/b", "../x", "link"] {
            assert!(find(&parent, bad).is_err(), "{bad}");
        }
    }
}
