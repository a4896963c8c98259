//! Home directories that outlive sessions: `state.homes_dir/<user>`, one for each user, shared by all of the user's sessions
//! whose mode is `persistent`.
//!
//! On disk the ids are those that sessions see: their user is 1000, and what root has made in one is root's, set-user-id
//! bits included. So nobody but the host's root may get to them by another way than a session, and each session gets to its
//! own user's alone. Each is a directory of its own, which may have a project quota or a file system of its own.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, open, openat},
    sys::stat::{Mode, fstat, mkdirat},
};

use super::volumes::Prepared;
use crate::{protocol, runtime, sys::mount_api::open_tree_clone};

/// Why a user cannot have the home directory.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error("the home directory {} cannot be used", .0.display())]
    Unusable(PathBuf, #[source] io::Error),
    #[error(
        "others than root can get into {} (owner {owner}, mode {mode:04o}), and so to programs in homes that run as root; \
         chown it to root and chmod it to 0700", .directory.display()
    )]
    Open { directory: PathBuf, owner: u32, mode: u32 },
    #[error("the home directory {} cannot be removed", .0.display())]
    Remove(PathBuf, #[source] runtime::rootfs::RootfsError),
}

/// Makes the home directory if it is not there, and its mount.
pub(super) fn prepare(home: &Path) -> Result<Prepared, HomeError> {
    let directory = open_home(home)?;
    let mount = open_tree_clone(directory.as_fd(), c"").map_err(|error| HomeError::Unusable(home.to_owned(), error))?;
    let volume =
        protocol::Volume { path: "the home directory".to_owned(), read_only: false, kind: protocol::VolumeKind::Home };
    Ok(Prepared { mounts: vec![mount], volumes: vec![volume], sources: vec![home.to_owned()] })
}

fn open_home(home: &Path) -> Result<OwnedFd, HomeError> {
    let failed = |error: io::Error| HomeError::Unusable(home.to_owned(), error);
    let (Some(parent), Some(name)) = (home.parent(), home.file_name()) else {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
    // The administrator may have put a link there.
    let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let parent_fd = open(parent, directory, Mode::empty()).map_err(|errno| failed(errno.into()))?;
    let stat = fstat(&parent_fd).map_err(|errno| failed(errno.into()))?;
    if stat.st_uid != 0 || stat.st_mode & 0o077 != 0 {
        let (owner, mode) = (stat.st_uid, stat.st_mode & 0o7777);
        return Err(HomeError::Open { directory: parent.to_owned(), owner, mode });
    }
    match mkdirat(&parent_fd, name, Mode::from_bits_truncate(0o755)) {
        Err(errno) if errno != nix::errno::Errno::EEXIST => return Err(failed(errno.into())),
        _ => {}
    }
    openat(&parent_fd, name, directory | OFlag::O_NOFOLLOW, Mode::empty()).map_err(|errno| failed(errno.into()))
}

/// Removes a home directory with everything in it; returns whether there was one. No session may use it.
pub fn remove(home: &Path) -> Result<bool, HomeError> {
    if std::fs::symlink_metadata(home).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(false);
    }
    runtime::rootfs::remove(home).map_err(|error| HomeError::Remove(home.to_owned(), error))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    };

    use super::*;

    #[test]
    fn homes_are_made_where_only_root_gets() {
        let host = tempfile::tempdir().unwrap();
        let homes = host.path().join("var/homes");
        for _ in 0..2 {
            open_home(&homes.join("ada")).unwrap();
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(&homes), mode(&homes.join("ada"))), (0o700, 0o755));
        symlink("/etc", homes.join("bob")).unwrap();
        assert!(matches!(open_home(&homes.join("bob")), Err(HomeError::Unusable(..))));
        fs::set_permissions(&homes, fs::Permissions::from_mode(0o711)).unwrap();
        assert!(matches!(open_home(&homes.join("ada")), Err(HomeError::Open { mode: 0o711, .. })));
    }

    #[test]
    fn a_home_is_removed_with_all_that_is_in_it() {
        let host = tempfile::tempdir().unwrap();
        let home = host.path().join("ada");
        fs::create_dir_all(home.join("a/b")).unwrap();
        fs::write(home.join("a/file"), "x").unwrap();
        assert!(remove(&home).unwrap());
        assert!(!home.exists());
        assert!(!remove(&home).unwrap());
    }
}
