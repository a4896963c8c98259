//! What is mounted into services: volumes with a name, and directories of the host that the administrator allows.
//!
//! ```text
//!   STATE/volumes/<user>/<project>/<name>     survives the session
//!   STATE/sessions/<id>/volumes/<name>        goes with a session that is destroyed on disconnect
//! ```
//!
//! On disk the ids are those that the services see, 0 to 65535, whichever range of the host's a session has: the mount
//! shifts them. Nobody but the host's root gets into these directories by another way.

use std::{
    io,
    os::{fd::AsFd, fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::Mode,
};

use super::steps::{Context, SessionKey};
use crate::{
    config,
    names::SessionId,
    podfile::{Service, Volume, VolumeSource},
    protocol,
    sys::mount_api::open_tree_clone,
};

/// The name of the directory for sessions without a project, which no project can have.
const NO_PROJECT: &str = "-";

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
}

/// Whether what the service writes to a volume outlives a session of this mode.
pub(super) fn outlives(volume: &Volume, mode: config::Mode) -> bool {
    match volume.source {
        VolumeSource::Host(_) => !volume.read_only,
        VolumeSource::Name(_) => !volume.read_only && (volume.keep || mode != config::Mode::DestroyOnDisconnect),
    }
}

/// A mount that is attached nowhere yet, and what init does with it.
pub(super) struct Prepared {
    pub mounts: Vec<OwnedFd>,
    pub volumes: Vec<protocol::Volume>,
}

impl Prepared {
    pub(super) fn none() -> Self {
        Self { mounts: Vec::new(), volumes: Vec::new() }
    }
}

impl Context {
    /// Makes the volumes of a service that are not there, and their mounts.
    pub(super) fn volumes(
        &self,
        key: &SessionKey,
        session: &SessionId,
        service: &Service,
        mode: config::Mode,
        allowed: &[PathBuf],
    ) -> Result<Prepared, VolumeError> {
        if service.volumes.len() > MAX_VOLUMES {
            return Err(VolumeError::TooMany(service.volumes.len()));
        }
        let (mut mounts, mut volumes) = (Vec::new(), Vec::new());
        for volume in &service.volumes {
            let directory = match &volume.source {
                VolumeSource::Host(path) => open_allowed(path, allowed)?,
                VolumeSource::Name(name) => {
                    let parent = if volume.keep || mode != config::Mode::DestroyOnDisconnect {
                        self.volumes_of(key)
                    } else {
                        self.state_dir.join(session.as_str()).join("volumes")
                    };
                    make(&parent, name).map_err(|error| VolumeError::Named(name.clone(), error))?
                }
            };
            let mount = open_tree_clone(directory.as_fd(), c"");
            mounts.push(mount.map_err(|error| VolumeError::Named(volume.path.clone(), error))?);
            volumes.push(protocol::Volume {
                path: volume.path.clone(),
                read_only: volume.read_only,
                named: matches!(volume.source, VolumeSource::Name(_)),
            });
        }
        Ok(Prepared { mounts, volumes })
    }

    fn volumes_of(&self, key: &SessionKey) -> PathBuf {
        let project = key.project.as_ref().map_or(NO_PROJECT, |project| project.as_str());
        self.volumes_dir.join(key.user.as_str()).join(project)
    }
}

/// Opens the directory of a named volume, making it, empty and the container's root's, if it is not there.
fn make(parent: &Path, name: &str) -> io::Result<OwnedFd> {
    // The Podfile has been checked to name no other directory; this is what files depend on.
    if name.contains('/') || name.starts_with('.') || name.is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    let path = parent.join(name);
    match std::fs::DirBuilder::new().mode(0o755).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(open(&path, flags, Mode::empty())?)
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
        make(&parent, "data").unwrap();
        make(&parent, "data").unwrap();
        symlink("/etc", parent.join("link")).unwrap();
        for bad in ["..", ".", "", "a/b", "../x", "link"] {
            assert!(make(&parent, bad).is_err(), "{bad}");
        }
    }
}
