//! The directory that a layer is unpacked into, changed by descriptors only.
//!
//! Every path is resolved below the directory's own descriptor by the kernel (`openat2(2)`, `RESOLVE_BENEATH`): whatever
//! `..`, absolute link or magic link an archive contains, nothing outside can be reached. The last component is never
//! followed. Files are always made anew, never written into.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::{
        stat::{
            FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, mkdirat, mknodat,
            utimensat,
        },
        time::TimeSpec,
    },
    unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat},
};

use crate::sys::remove_tree::remove_tree_at;

/// A directory tree by its root's descriptor.
pub(super) struct Tree {
    root: OwnedFd,
    /// The directory that was used last: entries come in order of their directories.
    last: Option<(PathBuf, OwnedFd)>,
    /// Directories that no entry has described (yet).
    implied: BTreeSet<PathBuf>,
}

/// Owner, permissions and times, as an entry gives them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
}

impl Tree {
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let root = nix::fcntl::open(root, flags, Mode::empty())?;
        Ok(Self { root, last: None, implied: BTreeSet::new() })
    }

    /// The directories that were made only because something is in them.
    pub(super) fn into_implied(self) -> Vec<PathBuf> {
        self.implied.into_iter().collect()
    }

    /// Opens the directory `path`, making what is missing of it when `make` says so.
    fn directory(&mut self, path: &Path, make: bool) -> io::Result<BorrowedFd<'_>> {
        if self.last.as_ref().is_none_or(|(known, _)| known != path) {
            let fd = self.open_directory(path, make)?;
            self.last = Some((path.to_owned(), fd));
        }
        match &self.last {
            Some((_, fd)) => Ok(fd.as_fd()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn open_directory(&mut self, path: &Path, make: bool) -> io::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        match openat2(&self.root, path, how) {
            Err(Errno::ENOENT) if make => {}
            other => return Ok(other?),
        }
        let (parent, name) = split(path)?;
        let above = self.open_directory(parent, true)?;
        mkdirat(&above, name, Mode::from_bits_truncate(0o755))?;
        self.implied.insert(path.to_owned());
        Ok(openat2(&self.root, path, how)?)
    }

    /// What is there under this name.
    fn stat(&mut self, path: &Path) -> io::Result<Option<FileStat>> {
        let (parent, name) = split(path)?;
        let parent = match self.directory(parent, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => Ok(None),
            other => Ok(Some(other?)),
        }
    }

    /// Removes what is there under this name, a directory with all that is in it.
    fn remove(&mut self, path: &Path) -> io::Result<()> {
        let Some(stat) = self.stat(path)? else { return Ok(()) };
        let (parent, name) = split(path)?;
        let name = name.to_owned();
        let is_directory = kind(&stat) == SFlag::S_IFDIR;
        if is_directory {
            // The descriptor kept may be of something below.
            self.last = None;
            self.implied.retain(|known| !known.starts_with(path));
        }
        let parent = self.directory(parent, false)?;
        if is_directory {
            remove_tree_at(parent, &name)
        } else {
            Ok(unlinkat(parent, name.as_os_str(), UnlinkatFlags::NoRemoveDir)?)
        }
    }

    /// Makes the directory `path`, or keeps the one that is there.
    pub(super) fn make_directory(&mut self, path: &Path) -> io::Result<()> {
        let mut opaque = false;
        match self.stat(path)? {
            Some(stat) if kind(&stat) == SFlag::S_IFDIR => {
                self.implied.remove(path);
                return Ok(());
            }
            // It was removed from below and made anew: nothing of what is below may show.
            Some(stat) if is_whiteout(&stat) => opaque = true,
            _ => {}
        }
        self.remove(path)?;
        let (parent, name) = split(path)?;
        let name = name.to_owned();
        mkdirat(self.directory(parent, true)?, name.as_os_str(), Mode::from_bits_truncate(0o755))?;
        if opaque { self.make_opaque(path) } else { Ok(()) }
    }

    /// Makes an empty file in the place of whatever is there.
    pub(super) fn make_file(&mut self, path: &Path) -> io::Result<File> {
        self.remove(path)?;
        let (parent, name) = split(path)?;
        let name = name.to_owned();
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let parent = self.directory(parent, true)?;
        Ok(openat(parent, name.as_os_str(), flags, Mode::from_bits_truncate(0o600))?.into())
    }

    pub(super) fn make_symlink(&mut self, path: &Path, target: &[u8]) -> io::Result<()> {
        self.remove(path)?;
        let (parent, name) = split(path)?;
        let name = name.to_owned();
        Ok(symlinkat(OsStr::from_bytes(target), self.directory(parent, true)?, name.as_os_str())?)
    }

    /// Gives the file `target` another name. Neither is followed.
    pub(super) fn make_hard_link(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        if path == target {
            return Ok(());
        }
        let (from, old) = split(target)?;
        let from = self.open_directory(from, false)?;
        let stat = fstatat(&from, old, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if kind(&stat) == SFlag::S_IFDIR || is_whiteout(&stat) {
            return Err(io::Error::other("its target is not a file"));
        }
        self.remove(path)?;
        let (parent, name) = split(path)?;
        let name = name.to_owned();
        Ok(linkat(&from, old, self.directory(parent, true)?, name.as_os_str(), LinkatFlags::empty())?)
    }

    pub(super) fn make_fifo(&mut self, path: &Path) -> io::Result<()> {
        self.make_node(path, SFlag::S_IFIFO)
    }

    /// Hides what lower layers have under this name: for overlayfs a character device 0:0. What this layer itself has there
    /// stays, with nothing of the lower layers showing through.
    pub(super) fn make_whiteout(&mut self, path: &Path) -> io::Result<()> {
        match self.stat(path)? {
            None => self.make_node(path, SFlag::S_IFCHR),
            Some(stat) if kind(&stat) == SFlag::S_IFDIR => self.make_opaque(path),
            Some(_) => Ok(()),
        }
    }

    /// Hides all that lower layers have in this directory.
    pub(super) fn make_opaque(&mut self, path: &Path) -> io::Result<()> {
        let directory = self.directory(path, true)?;
        set_xattr(directory, OsStr::new("."), "trusted.overlay.opaque", b"y")
    }

    fn make_node(&mut self, path: &Path, node: SFlag) -> io::Result<()> {
        self.remove(path)?;
        let (parent, name) = split(path)?;
        let name = name.to_owned();
        Ok(mknodat(self.directory(parent, true)?, name.as_os_str(), node, Mode::from_bits_truncate(0o600), 0)?)
    }

    /// Sets owner, permissions, extended attributes and times, in the order in which none undoes another: a change of owner
    /// drops setuid bits and capabilities, everything else changes times.
    pub(super) fn set_attributes<'a>(
        &mut self,
        path: &Path,
        attributes: &Attributes,
        xattrs: impl Iterator<Item = (&'a String, &'a Vec<u8>)>,
    ) -> io::Result<()> {
        let (parent, name) = if path.as_os_str().is_empty() {
            (self.root.as_fd(), OsString::from("."))
        } else {
            let (parent, name) = split(path)?;
            let name = name.to_owned();
            (self.directory(parent, false)?, name)
        };
        let Attributes { mode, uid, gid, .. } = *attributes;
        fchownat(
            parent,
            name.as_os_str(),
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )?;
        let stat = fstatat(parent, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let symlink = kind(&stat) == SFlag::S_IFLNK;
        if !symlink {
            // Not a link, and nobody but us changes the tree.
            fchmodat(parent, name.as_os_str(), Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)?;
        }
        for (key, value) in xattrs {
            // Links cannot have attributes of users (xattr(7)).
            if !(symlink && key.starts_with("user.")) {
                set_xattr(parent, &name, key, value)?;
            }
        }
        set_times(parent, &name, attributes.mtime)
    }

    /// Sets the times of a directory again, after all that was made in it.
    pub(super) fn set_directory_times(&mut self, path: &Path, mtime: (i64, u32)) -> io::Result<()> {
        let directory = match self.open_directory(path, false) {
            // Replaced by something else later in the archive.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Ok(()),
            other => other?,
        };
        set_times(directory.as_fd(), OsStr::new("."), mtime)
    }
}

/// Sets owner and permissions of an open file; see [`Tree::set_attributes`] for the rest.
pub(super) fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    Ok(fchmod(file, Mode::from_bits_truncate(mode))?)
}

fn set_times(parent: BorrowedFd<'_>, name: &OsStr, (seconds, nanoseconds): (i64, u32)) -> io::Result<()> {
    let time = TimeSpec::new(seconds, i64::from(nanoseconds));
    Ok(utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)?)
}

/// lsetxattr(2) by a path through the parent's descriptor: there is no call that takes both.
fn set_xattr(parent: BorrowedFd<'_>, name: &OsStr, key: &str, value: &[u8]) -> io::Result<()> {
    let path = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name);
    xattr::set(path, key, value)
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn is_whiteout(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    let (parent, name) = path.parent().zip(path.file_name()).ok_or(io::ErrorKind::InvalidInput)?;
    Ok((parent, name))
}
