//! Reading and writing inside the root file system, all of whose contents are the image's.
//!
//! To be used after pivot_root only; every path is looked up with `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS` all the same.
//! Files are read whole and bounded, and written beside their place and renamed over it, which replaces a symbolic link
//! instead of following it.

use std::{
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2, renameat},
    sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, mkdirat},
    unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat},
};

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Who a file belongs to and what it may be used for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ownership {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
}

impl Ownership {
    pub(super) const ROOT_PUBLIC: Self = Self { uid: 0, gid: 0, mode: 0o644 };

    pub(super) fn of(stat: &FileStat) -> Self {
        Self { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o7777 }
    }

    pub(super) fn apply(self, fd: BorrowedFd<'_>) -> nix::Result<()> {
        fchown(fd, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        fchmod(fd, Mode::from_bits_truncate(self.mode)) // after the chown, which clears the set-id bits
    }
}

fn root() -> nix::Result<OwnedFd> {
    open("/", DIRECTORY, Mode::empty())
}

fn lookup(path: &Path, flags: OFlag, also: ResolveFlag) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS | also;
    openat2(root()?, path, OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve))
}

fn is_kind(stat: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == kind
}

/// Whether `fd` is a directory.
pub(super) fn is_directory(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(is_kind(&fstat(fd)?, SFlag::S_IFDIR))
}

/// Whether there is nothing in a directory.
pub(super) fn is_empty(directory: &OwnedFd) -> nix::Result<bool> {
    let mut listing = Dir::openat(directory, ".", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    // Itself and its parent.
    Ok(listing.iter().take(3).count() == 2)
}

/// Whether the directory `path` exists.
pub(super) fn directory_exists(path: &str) -> bool {
    lookup(Path::new(path), DIRECTORY, ResolveFlag::empty()).is_ok()
}

/// Whether `path` is a file that somebody may execute.
pub(super) fn is_executable(path: &str) -> bool {
    let stat = lookup(Path::new(path), OFlag::O_PATH, ResolveFlag::empty()).and_then(fstat);
    Path::new(path).is_absolute() && stat.is_ok_and(|stat| is_kind(&stat, SFlag::S_IFREG) && stat.st_mode & 0o111 != 0)
}

/// Tells a file apart from all others that exist at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

/// Which socket file `path` is.
///
/// # Errors
/// `ENOTSOCK` if it is something else, a symbolic link for instance.
pub(super) fn socket_identity(path: &Path) -> nix::Result<Identity> {
    let stat = fstat(lookup(path, OFlag::O_PATH | OFlag::O_NOFOLLOW, ResolveFlag::empty())?)?;
    if is_kind(&stat, SFlag::S_IFSOCK) {
        Ok(Identity { device: stat.st_dev, inode: stat.st_ino })
    } else {
        Err(Errno::ENOTSOCK)
    }
}

/// Removes the file `path`, which may not be a directory.
pub(super) fn unlink(path: &Path) -> nix::Result<()> {
    remove(path, UnlinkatFlags::NoRemoveDir)
}

/// Removes the empty directory `path`.
pub(super) fn remove_directory(path: &Path) -> nix::Result<()> {
    remove(path, UnlinkatFlags::RemoveDir)
}

fn remove(path: &Path, flags: UnlinkatFlags) -> nix::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::EINVAL) };
    unlinkat(lookup(parent, DIRECTORY, ResolveFlag::empty())?, name, flags)
}

/// Opens the directory `path` to mount on; made if it is missing.
///
/// # Errors
/// `ENOTDIR` or `ELOOP` if it, or anything on the way to it, is not a plain directory (CVE-2019-19921).
pub(super) fn mount_point(path: &str) -> io::Result<OwnedFd> {
    let path = Path::new(path);
    match lookup(path, DIRECTORY, ResolveFlag::RESOLVE_NO_SYMLINKS) {
        Err(Errno::ENOENT) => {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            let parent = lookup(parent, DIRECTORY, ResolveFlag::RESOLVE_NO_SYMLINKS)?;
            mkdirat(&parent, name, Mode::from_bits_truncate(0o755))?;
            Ok(lookup(path, DIRECTORY, ResolveFlag::RESOLVE_NO_SYMLINKS)?)
        }
        other => Ok(other?),
    }
}

/// Opens the directory `path`, making it and those on the way to it (0755, root) where they are missing.
pub(super) fn make_directories(path: &str) -> io::Result<OwnedFd> {
    make_directories_for(path, Ownership { uid: 0, gid: 0, mode: 0o755 })
}

/// Likewise, giving those that it makes to somebody.
pub(super) fn make_directories_for(path: &str, ownership: Ownership) -> io::Result<OwnedFd> {
    let path = Path::new(path);
    if !path.is_absolute() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an absolute path"));
    }
    let mut reached = root()?;
    let mut prefix = Path::new("/").to_owned();
    for part in path.components().skip(1) {
        prefix.push(part);
        reached = match lookup(&prefix, DIRECTORY, ResolveFlag::empty()) {
            Err(Errno::ENOENT) => {
                mkdirat(&reached, part.as_os_str(), Mode::from_bits_truncate(0o755))?;
                if ownership.uid != 0 {
                    // What has been made a moment ago, unless somebody who may do so has put another one in its place.
                    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                    let made = openat(&reached, part.as_os_str(), flags, Mode::empty())?;
                    if fstat(&made)?.st_uid == 0 {
                        ownership.apply(made.as_fd())?;
                    }
                }
                lookup(&prefix, DIRECTORY, ResolveFlag::empty())?
            }
            other => other?,
        };
    }
    Ok(reached)
}

/// Opens the directory `path` to mount a volume on; made if it is missing. It is on the root file system, so that nothing is
/// hidden that podspawn itself has mounted.
///
/// # Errors
/// `EXDEV` if it is not, `InvalidInput` for the root itself.
pub(super) fn volume_point(path: &str) -> io::Result<OwnedFd> {
    make_directories(path)?;
    let point = lookup(Path::new(path), DIRECTORY, ResolveFlag::RESOLVE_NO_XDEV)?;
    let (own, top) = (fstat(&point)?, fstat(root()?)?);
    if own.st_ino == top.st_ino {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is the root"));
    }
    Ok(point)
}

/// Reads the regular file `path`, which may be a symbolic link; `None` if there is no such thing.
///
/// # Errors
/// `InvalidData` if it is larger than `limit` bytes.
pub(super) fn read(path: &str, limit: u64) -> io::Result<Option<(Vec<u8>, Ownership)>> {
    // O_NONBLOCK: a FIFO must not hold us up before we see that it is one.
    let file = match lookup(Path::new(path), OFlag::O_RDONLY | OFlag::O_NONBLOCK, ResolveFlag::empty()) {
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO) => return Ok(None),
        other => other?,
    };
    let stat = fstat(&file)?;
    if !is_kind(&stat, SFlag::S_IFREG) {
        return Ok(None);
    }
    let mut contents = Vec::new();
    std::fs::File::from(file).take(limit + 1).read_to_end(&mut contents)?;
    if contents.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{path} is larger than {limit} bytes")));
    }
    Ok(Some((contents, Ownership::of(&stat))))
}

/// Writes `contents` to `directory`/`name`, replacing whatever is there unless it is a directory.
pub(super) fn write(directory: &str, name: &str, contents: &[u8], ownership: Ownership) -> io::Result<()> {
    let directory = make_directories(directory)?;
    let temporary = format!(".{name}.podspawn");
    match unlinkat(&directory, temporary.as_str(), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut file = std::fs::File::from(openat(&directory, temporary.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
    file.write_all(contents)?;
    ownership.apply(file.as_fd())?;
    Ok(renameat(&directory, temporary.as_str(), &directory, name)?)
}
