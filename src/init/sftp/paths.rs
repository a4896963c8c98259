//! Requests that name files.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, readlink, renameat},
    sys::stat::{self, Mode, SFlag},
    unistd::{UnlinkatFlags, linkat, mkdir, symlinkat, unlink, unlinkat},
};

use super::{
    attributes::{self, Attributes},
    names,
    realpath::realpath,
    reply::{Reply, Status},
};

pub(super) fn stat(path: &Path) -> Result<Reply, Status> {
    Ok(Reply::Attributes(Attributes::from(&stat::stat(path)?)))
}

pub(super) fn lstat(path: &Path) -> Result<Reply, Status> {
    Ok(Reply::Attributes(Attributes::from(&stat::lstat(path)?)))
}

pub(super) fn remove(path: &Path) -> Status {
    unlink(path).into()
}

pub(super) fn make_directory(path: &Path, attributes: &Attributes) -> Status {
    let mode = attributes.permissions.map_or(Mode::from_bits_truncate(0o777), attributes::mode);
    mkdir(path, mode).into()
}

pub(super) fn remove_directory(path: &Path) -> Status {
    unlinkat(AT_FDCWD, path, UnlinkatFlags::RemoveDir).into()
}

pub(super) fn posix_rename(from: &Path, to: &Path) -> Status {
    renameat(AT_FDCWD, from, AT_FDCWD, to).into()
}

pub(super) fn hard_link(from: &Path, to: &Path) -> Status {
    linkat(AT_FDCWD, from, AT_FDCWD, to, AtFlags::empty()).into()
}

pub(super) fn symlink(target: &Path, link: &Path) -> Status {
    symlinkat(target, AT_FDCWD, link).into()
}

/// Renames without replacing anything. For a regular file that is safe from races: link(2) does not replace, rename(2)
/// does. What cannot be linked is renamed if there was nothing just before.
pub(super) fn rename(from: &Path, to: &Path) -> Status {
    let kind = match stat::lstat(from) {
        Ok(stat) => SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT,
        Err(error) => return error.into(),
    };
    if kind == SFlag::S_IFREG {
        match linkat(AT_FDCWD, from, AT_FDCWD, to, AtFlags::empty()) {
            Ok(()) => {
                let removed = unlink(from);
                if removed.is_err() {
                    // Back to one name; what the client is told is why it could not be moved.
                    if let Err(_two_names) = unlink(to) {}
                }
                return removed.into();
            }
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EXDEV) => {}
            Err(error) => return error.into(),
        }
    }
    match stat::stat(to) {
        Ok(_) => Status::Failure,
        Err(_) => posix_rename(from, to),
    }
}

pub(super) fn read_link(path: &Path) -> Result<Reply, Status> {
    Ok(Reply::path(readlink(path)?))
}

pub(super) fn real_path(path: &Path) -> Result<Reply, Status> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    Ok(Reply::path(realpath(path)?))
}

/// Resolves `path` after `~` and `~user` have been replaced.
pub(super) fn expand(path: &Path, home: &Path) -> Result<Reply, Status> {
    let Some(rest) = path.as_os_str().as_bytes().strip_prefix(b"~") else { return real_path(path) };
    let end = rest.iter().position(|&byte| byte == b'/').unwrap_or(rest.len());
    let (user, rest) = rest.split_at(end);
    let home = if user.is_empty() { Some(home.as_os_str().as_bytes().to_vec()) } else { names::home_of(user) };
    let Some(mut expanded) = home else { return Ok(Reply::Because(Status::NoSuchFile, "no such user")) };
    expanded.extend_from_slice(rest);
    real_path(Path::new(OsStr::from_bytes(&expanded)))
}

pub(super) fn home_directory(user: &[u8], home: &Path) -> Result<Reply, Status> {
    if user.is_empty() {
        return Ok(Reply::path(home.as_os_str().to_owned()));
    }
    let home = names::home_of(user).ok_or(Status::Failure)?;
    Ok(Reply::path(OsString::from_vec(home)))
}
