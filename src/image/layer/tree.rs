//! The directory that a layer is unpacked into, changed by descriptors only.
//!
//! Every path is resolved below the directory's own descriptor by the kernel (`openat2(2)`, `RESOLVE_BENEATH`): whatever
//! `..`, absolute link or magic link an archive contains, nothing outside can be reached. The last component is never
//! followed. Files are always made anew, never written into.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlinkat},
    sys::{
        stat::{
            FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstat, fstatat, mkdirat, mknodat, utimensat,
        },
        time::TimeSpec,
    },
    unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat},
};

use super::links::{TreeError, resolve};
use crate::sys::remove_tree::remove_tree_at;

type Result<T> = std::result::Result<T, TreeError>;

/// A directory tree by its root's descriptor.
pub(in crate::image) struct Tree {
    root: OwnedFd,
    /// Where that is, for recognising paths below it.
    root_path: PathBuf,
    /// The directory that was used last: entries come in order of their directories.
    last: Option<Place>,
    /// Directories that no entry has described (yet).
    implied: BTreeSet<PathBuf>,
    /// The same, but these are not those of lower layers: the archive has a whiteout for them.
    anew: BTreeSet<PathBuf>,
    /// How many of them were made.
    made: u64,
}

/// An open directory.
struct Place {
    /// As the archive says it.
    given: PathBuf,
    /// With its links resolved.
    real: PathBuf,
    fd: OwnedFd,
}

/// Owner, permissions and times, as an entry gives them.
#[derive(Debug, Clone, Copy)]
pub(in crate::image) struct Attributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
}

impl Tree {
    pub(in crate::image) fn open(root: &Path) -> Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let root = open(root, flags, Mode::empty())?;
        let root_path = path_of(&root)?;
        // Nobody has described the root either.
        Ok(Self {
            root,
            root_path,
            last: None,
            implied: BTreeSet::from([PathBuf::new()]),
            anew: BTreeSet::new(),
            made: 0,
        })
    }

    /// The directories that were made only because something is in them, and the root if no entry is for it.
    pub(in crate::image) fn implied(&self) -> &BTreeSet<PathBuf> {
        &self.implied
    }

    /// All directories whose time nobody has given.
    pub(in crate::image) fn timeless(&self) -> impl Iterator<Item = &PathBuf> {
        self.implied.iter().chain(&self.anew)
    }

    /// How many directories were made without an entry of their own since the last call.
    pub(in crate::image) fn take_made(&mut self) -> u64 {
        std::mem::take(&mut self.made)
    }

    /// Opens the directory `path`, making what is missing of it when `make` says so.
    fn directory(&mut self, path: &Path, make: bool) -> Result<&Place> {
        if self.last.as_ref().is_none_or(|place| place.given != path) {
            let fd = self.open_directory(path, make)?;
            let full = path_of(&fd)?;
            let real =
                full.strip_prefix(&self.root_path).map_err(|_| TreeError::Hostile("it is elsewhere"))?.to_owned();
            self.last = Some(Place { given: path.to_owned(), real, fd });
        }
        self.last.as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound).into())
    }

    /// The directory that `path` is in, and its name there.
    fn parent<'a>(&mut self, path: &'a Path, make: bool) -> Result<(&Place, &'a OsStr)> {
        let (parent, name) = split(path)?;
        Ok((self.directory(parent, make)?, name))
    }

    fn open_directory(&mut self, path: &Path, make: bool) -> Result<OwnedFd> {
        match self.resolve(path) {
            Err(TreeError::Io(error)) if make && matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            }
            other => return other,
        }
        let (parent, name) = split(path)?;
        let above = self.open_directory(parent, true)?;
        let opaque = match fstatat(&above, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => false,
            Err(error) => return Err(error.into()),
            // It was removed from below and made anew: nothing of what is below may show.
            Ok(stat) if is_whiteout(&stat) => {
                unlinkat(&above, name, UnlinkatFlags::NoRemoveDir)?;
                true
            }
            Ok(stat) if kind(&stat) == SFlag::S_IFLNK => {
                return Err(TreeError::Hostile("through a link that leads nowhere, or to the outside"));
            }
            Ok(_) => return Err(Errno::ENOTDIR.into()),
        };
        mkdirat(&above, name, Mode::from_bits_truncate(0o755))?;
        self.made += 1;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = openat(&above, name, flags, Mode::empty())?;
        // The umask has cut the mode, and a directory with the setgid bit passes on its group.
        fchownat(&above, name, Some(Uid::from_raw(0)), Some(Gid::from_raw(0)), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        fchmodat(&above, name, Mode::from_bits_truncate(0o755), FchmodatFlags::FollowSymlink)?;
        if opaque {
            mark_opaque(made.as_fd())?;
        }
        let full = path_of(&made)?;
        let list = if opaque { &mut self.anew } else { &mut self.implied };
        list.extend(full.strip_prefix(&self.root_path).ok().map(Path::to_owned));
        Ok(made)
    }

    /// Opens a directory that is there.
    fn resolve(&self, path: &Path) -> Result<OwnedFd> {
        let how = |extra| {
            OpenHow::new()
                .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
                .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS | extra)
        };
        match openat2(&self.root, or_dot(path), how(ResolveFlag::empty())) {
            // An absolute link, which may be honest, or one that climbs above the root.
            Err(Errno::EXDEV) => {
                let real = resolve(path, |path| self.link_target(path))?;
                Ok(openat2(&self.root, or_dot(&real), how(ResolveFlag::RESOLVE_NO_SYMLINKS))?)
            }
            Err(Errno::ELOOP) => Err(TreeError::Hostile("through a loop of links")),
            other => Ok(other?),
        }
    }

    fn link_target(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let entry = match openat2(&self.root, path, how) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
            other => other?,
        };
        if kind(&fstat(&entry)?) != SFlag::S_IFLNK {
            return Ok(None);
        }
        Ok(Some(readlinkat(&entry, "")?.into()))
    }

    /// What is there under this name.
    fn stat(&mut self, path: &Path) -> Result<Option<FileStat>> {
        let (parent, name) = match self.parent(path, false) {
            Err(TreeError::Io(error)) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
                return Ok(None);
            }
            other => other?,
        };
        match fstatat(&parent.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => Ok(None),
            other => Ok(Some(other?)),
        }
    }

    /// Removes what is there under this name, a directory with all that is in it.
    pub(super) fn remove(&mut self, path: &Path) -> Result<()> {
        let Some(stat) = self.stat(path)? else { return Ok(()) };
        let (parent, name) = self.parent(path, false)?;
        if kind(&stat) == SFlag::S_IFDIR {
            let real = parent.real.join(name);
            remove_tree_at(parent.fd.as_fd(), name)?;
            for list in [&mut self.implied, &mut self.anew] {
                // What is in a directory comes right after it.
                let gone = list.range(real.clone()..).take_while(|known| known.starts_with(&real));
                for path in gone.cloned().collect::<Vec<_>>() {
                    list.remove(&path);
                }
            }
        } else {
            unlinkat(&parent.fd, name, UnlinkatFlags::NoRemoveDir)?;
        }
        Ok(())
    }

    /// Makes the directory `path`, or keeps the one that is there. Returns its path without links.
    pub(in crate::image) fn make_directory(&mut self, path: &Path) -> Result<PathBuf> {
        let stat = self.stat(path)?;
        let there = stat.is_some_and(|stat| kind(&stat) == SFlag::S_IFDIR);
        if !there {
            self.remove(path)?;
        }
        let (parent, name) = self.parent(path, true)?;
        let real = parent.real.join(name);
        if !there {
            mkdirat(&parent.fd, name, Mode::from_bits_truncate(0o755))?;
            // It was removed from below and made anew: nothing of what is below may show.
            if stat.is_some_and(|stat| is_whiteout(&stat)) {
                self.make_opaque(path)?;
            }
        }
        self.implied.remove(&real);
        self.anew.remove(&real);
        Ok(real)
    }

    /// Makes an empty file in the place of whatever is there.
    pub(in crate::image) fn make_file(&mut self, path: &Path) -> Result<File> {
        self.remove(path)?;
        let (parent, name) = self.parent(path, true)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(&parent.fd, name, flags, Mode::from_bits_truncate(0o600))?.into())
    }

    pub(in crate::image) fn make_symlink(&mut self, path: &Path, target: &[u8]) -> Result<()> {
        self.remove(path)?;
        let (parent, name) = self.parent(path, true)?;
        Ok(symlinkat(OsStr::from_bytes(target), &parent.fd, name)?)
    }

    /// Gives the file `target` another name. Neither is followed. False if there is no such file in this layer; then what was
    /// at `path` is removed.
    pub(in crate::image) fn make_hard_link(&mut self, path: &Path, target: &Path) -> Result<bool> {
        let (from, old) = split(target)?;
        let found = match self.resolve(from) {
            Ok(from) => match fstatat(&from, old, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) => Some((from, stat)),
                Err(Errno::ENOENT) => None,
                Err(error) => return Err(error.into()),
            },
            Err(TreeError::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if path == target {
            return Ok(found.is_some());
        }
        let Some((from, stat)) = found.filter(|(_, stat)| !is_whiteout(stat)) else {
            self.remove(path)?;
            return Ok(false);
        };
        if kind(&stat) == SFlag::S_IFDIR {
            return Err(TreeError::Hostile("a hard link to a directory"));
        }
        self.remove(path)?;
        let (parent, name) = self.parent(path, true)?;
        linkat(&from, old, &parent.fd, name, LinkatFlags::empty())?;
        Ok(true)
    }

    /// Gives the file `name` of another layer's directory a name here.
    pub(in crate::image) fn adopt(&mut self, path: &Path, directory: &OwnedFd, name: &OsStr) -> Result<()> {
        self.remove(path)?;
        let (parent, new) = self.parent(path, true)?;
        Ok(linkat(directory, name, &parent.fd, new, LinkatFlags::empty())?)
    }

    /// Makes the directory `path` and those above it, without describing them.
    pub(in crate::image) fn make_implied(&mut self, path: &Path) -> Result<()> {
        self.directory(path, true).map(drop)
    }

    pub(in crate::image) fn make_fifo(&mut self, path: &Path) -> Result<()> {
        self.make_node(path, SFlag::S_IFIFO)
    }

    /// Hides what lower layers have under this name: for overlayfs a character device 0:0. What this layer itself has there
    /// stays, with nothing of the lower layers showing through.
    pub(super) fn make_whiteout(&mut self, path: &Path) -> Result<()> {
        match self.stat(path)? {
            None => self.make_node(path, SFlag::S_IFCHR),
            Some(stat) if kind(&stat) == SFlag::S_IFDIR => self.make_opaque(path),
            Some(_) => Ok(()),
        }
    }

    /// Hides all that lower layers have in this directory.
    pub(in crate::image) fn make_opaque(&mut self, path: &Path) -> Result<()> {
        let directory = self.directory(path, true)?;
        Ok(mark_opaque(directory.fd.as_fd())?)
    }

    fn make_node(&mut self, path: &Path, node: SFlag) -> Result<()> {
        self.remove(path)?;
        let (parent, name) = self.parent(path, true)?;
        Ok(mknodat(&parent.fd, name, node, Mode::from_bits_truncate(0o600), 0)?)
    }

    /// Sets owner, permissions, extended attributes and times, in the order in which none undoes another: a change of owner
    /// drops setuid bits and capabilities, everything else changes times.
    pub(in crate::image) fn set_attributes<'a>(
        &mut self,
        path: &Path,
        attributes: &Attributes,
        xattrs: impl Iterator<Item = (&'a String, &'a Vec<u8>)>,
    ) -> Result<()> {
        let (parent, name) = if path.as_os_str().is_empty() {
            self.implied.remove(path);
            (self.root.as_fd(), OsStr::new("."))
        } else {
            let (parent, name) = self.parent(path, false)?;
            (parent.fd.as_fd(), name)
        };
        let no_follow = AtFlags::AT_SYMLINK_NOFOLLOW;
        let Attributes { mode, uid, gid, .. } = *attributes;
        fchownat(parent, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), no_follow)?;
        let kind = kind(&fstatat(parent, name, no_follow)?);
        if kind != SFlag::S_IFLNK {
            // Not a link, and nobody but us changes the tree.
            fchmodat(parent, name, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)?;
        }
        for (key, value) in xattrs {
            // Only files and directories can have attributes of users (xattr(7)).
            if matches!(kind, SFlag::S_IFREG | SFlag::S_IFDIR) || !key.starts_with("user.") {
                set_xattr(parent, name, key, value)?;
            }
        }
        Ok(set_times(parent, name, attributes.mtime)?)
    }

    /// Sets the times of a directory again, after all that was made in it. `real` is a path without links in it.
    pub(in crate::image) fn set_directory_times(&self, real: &Path, mtime: (i64, u32)) -> Result<()> {
        match self.resolve(real) {
            Ok(directory) => Ok(set_times(directory.as_fd(), OsStr::new("."), mtime)?),
            // Replaced by something else later in the archive.
            Err(TreeError::Io(error)) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn set_times(parent: BorrowedFd<'_>, name: &OsStr, (seconds, nanoseconds): (i64, u32)) -> io::Result<()> {
    let time = TimeSpec::new(seconds, i64::from(nanoseconds));
    Ok(utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)?)
}

fn mark_opaque(directory: BorrowedFd<'_>) -> io::Result<()> {
    set_xattr(directory, OsStr::new("."), OPAQUE, b"y")
}

/// What makes overlayfs take a directory for opaque.
pub(in crate::image) const OPAQUE: &str = "trusted.overlay.opaque";

/// lsetxattr(2) by a path through the parent's descriptor: there is no call that takes both.
fn set_xattr(parent: BorrowedFd<'_>, name: &OsStr, key: &str, value: &[u8]) -> io::Result<()> {
    xattr::set(fd_path(parent).join(name), key, value)
}

fn fd_path(fd: BorrowedFd<'_>) -> PathBuf {
    Path::new("/proc/self/fd").join(fd.as_raw_fd().to_string())
}

fn path_of(fd: &OwnedFd) -> io::Result<PathBuf> {
    fs::read_link(fd_path(fd.as_fd()))
}

pub(in crate::image) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

pub(in crate::image) fn is_directory(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFDIR
}

pub(in crate::image) fn is_file(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFREG
}

pub(in crate::image) fn is_whiteout(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    path.parent().zip(path.file_name()).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn or_dot(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}
