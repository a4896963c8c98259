//! The layers of an image as one tree, as overlayfs shows them (kernel documentation, overlayfs.rst).
//!
//! Everything is reached by the descriptor of its layer's root, below it, and without following links.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2, readlinkat},
    sys::stat::{FileStat, Mode, SFlag, fstatat},
};

use super::layer::{
    TreeError, is_for_containers,
    links::resolve,
    tree::{OPAQUE, is_whiteout, kind},
};

/// One layer's files.
pub(super) struct LayerFiles(OwnedFd);

/// What of an entry is not its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Attributes {
    /// Of a directory that nobody has described.
    pub(super) fn made_up() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), xattrs: BTreeMap::new() }
    }
}

impl LayerFiles {
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(Self(open(root, flags, Mode::empty())?))
    }

    fn open_at(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        openat2(&self.0, if path.as_os_str().is_empty() { Path::new(".") } else { path }, how)
    }

    /// The directory that `path` is in, and its name there; `.` for the root.
    pub(super) fn parent<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let (parent, name) = path.parent().zip(path.file_name()).unwrap_or((path, OsStr::new(".")));
        Ok((self.open_at(parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?, name))
    }

    /// What is at `path`, if anything.
    pub(super) fn stat(&self, path: &Path) -> io::Result<Option<FileStat>> {
        match self.parent(path) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => Ok(None),
            Err(error) => Err(error),
            Ok((parent, name)) => match fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Err(Errno::ENOENT) => Ok(None),
                other => Ok(Some(other?)),
            },
        }
    }

    /// The names in a directory.
    pub(super) fn names(&self, directory: &Path) -> io::Result<BTreeSet<OsString>> {
        let mut directory = Dir::from_fd(self.open_at(directory, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?)?;
        let mut names = BTreeSet::new();
        for entry in directory.iter() {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.insert(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Opens a file for reading.
    pub(super) fn file(&self, path: &Path) -> io::Result<File> {
        Ok(self.open_at(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?.into())
    }

    pub(super) fn link_target(&self, path: &Path) -> io::Result<PathBuf> {
        let (parent, name) = self.parent(path)?;
        Ok(readlinkat(&parent, name)?.into())
    }

    /// Whether nothing of the layers below shows in a directory.
    pub(super) fn is_opaque(&self, directory: &Path) -> io::Result<bool> {
        self.with_path(directory, |path| Ok(xattr::get(path, OPAQUE)?.as_deref() == Some(b"y")))
    }

    pub(super) fn attributes(&self, path: &Path) -> io::Result<Attributes> {
        let stat = self.stat(path)?.ok_or(io::ErrorKind::NotFound)?;
        let xattrs = self.with_path(path, |path| {
            let mut xattrs = BTreeMap::new();
            for name in xattr::list(path)? {
                if let Some(name) = name.to_str().filter(|name| is_for_containers(name))
                    && let Some(value) = xattr::get(path, name)?
                {
                    xattrs.insert(name.to_owned(), value);
                }
            }
            Ok(xattrs)
        })?;
        Ok(Attributes {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
            xattrs,
        })
    }

    /// Calls that take a path only get one through the parent's descriptor.
    fn with_path<T>(&self, path: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
        let (parent, name) = self.parent(path)?;
        act(&Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name))
    }
}

/// The layers, uppermost first.
pub(super) struct View(Vec<LayerFiles>);

/// An entry of the merged tree.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    pub stat: FileStat,
    /// The layer that it is of, by its place in the view; for a directory all that it is made of, uppermost first.
    pub layers: Vec<usize>,
}

impl Shown {
    pub(super) fn is_directory(&self) -> bool {
        kind(&self.stat) == SFlag::S_IFDIR
    }

    pub(super) fn is_symlink(&self) -> bool {
        kind(&self.stat) == SFlag::S_IFLNK
    }
}

impl View {
    /// Of these lowerdirs, uppermost first.
    pub(super) fn open<'a>(root: &Path, lowerdirs: impl Iterator<Item = &'a String>) -> io::Result<Self> {
        lowerdirs.map(|lowerdir| LayerFiles::open(&root.join(lowerdir))).collect::<io::Result<_>>().map(Self)
    }

    pub(super) fn layer(&self, index: usize) -> &LayerFiles {
        &self.0[index]
    }

    /// The root, which is made of all layers.
    pub(super) fn root(&self) -> io::Result<Shown> {
        self.root_from(0)
    }

    fn root_from(&self, first: usize) -> io::Result<Shown> {
        let layers: Vec<usize> = (first..self.0.len()).collect();
        let top = self.0.get(first).ok_or(io::ErrorKind::NotFound)?;
        let stat = top.stat(Path::new(""))?.ok_or(io::ErrorKind::NotFound)?;
        Ok(Shown { stat, layers })
    }

    /// What shows at `path`, whose parent directory is made of `parts`.
    pub(super) fn child(&self, parts: &[usize], path: &Path) -> io::Result<Option<Shown>> {
        let mut shown: Option<Shown> = None;
        for (at, part) in parts.iter().enumerate() {
            let Some(stat) = self.0[*part].stat(path)? else { continue };
            let directory = kind(&stat) == SFlag::S_IFDIR;
            match &mut shown {
                None if is_whiteout(&stat) => return Ok(None),
                None => shown = Some(Shown { stat, layers: vec![*part] }),
                Some(above) if directory => above.layers.push(*part),
                Some(_) => {}
            }
            // Where there is nothing further below it does not matter.
            if !directory || (at + 1 < parts.len() && self.0[*part].is_opaque(path)?) {
                break;
            }
        }
        Ok(shown)
    }

    /// The names that may show in a directory that is made of `parts`.
    pub(super) fn names(&self, parts: &[usize], directory: &Path) -> io::Result<BTreeSet<OsString>> {
        let mut names = BTreeSet::new();
        for part in parts {
            names.append(&mut self.0[*part].names(directory)?);
        }
        Ok(names)
    }

    /// What shows at `path`; no link on the way to it is followed.
    pub(super) fn find(&self, path: &Path) -> io::Result<Option<Shown>> {
        Walk::new(self).find(path)
    }

    /// What would show at `path` if there was nothing but the layers below number `layer`.
    pub(super) fn find_below(&self, layer: usize, path: &Path) -> io::Result<Option<Shown>> {
        if layer + 1 >= self.0.len() {
            return Ok(None);
        }
        let trail = vec![(PathBuf::new(), Some(self.root_from(layer + 1)?))];
        Walk { view: self, trail }.find(path)
    }

    /// Where `path` leads when every link in it is followed, inside the image.
    pub(super) fn resolve(&self, path: &Path) -> Result<PathBuf, TreeError> {
        resolve(path, |path| match self.find(path)? {
            Some(shown) if shown.is_symlink() => self.0[shown.layers[0]].link_target(path).map(Some),
            _ => Ok(None),
        })
    }
}

/// A walk through the tree that remembers the way: paths that are looked up in order cost little.
pub(super) struct Walk<'a> {
    view: &'a View,
    /// The directories down to where we are, from the root.
    trail: Vec<(PathBuf, Option<Shown>)>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(view: &'a View) -> Self {
        Self { view, trail: Vec::new() }
    }

    /// As [`View::find`].
    pub(super) fn find(&mut self, path: &Path) -> io::Result<Option<Shown>> {
        if self.trail.is_empty() {
            self.trail.push((PathBuf::new(), Some(self.view.root()?)));
        }
        loop {
            let Some((here, shown)) = self.trail.last() else { return Ok(None) };
            let Ok(rest) = path.strip_prefix(here) else {
                self.trail.pop();
                continue;
            };
            let Some(next) = rest.iter().next() else { return Ok(shown.clone()) };
            let Some(shown) = shown.as_ref().filter(|shown| shown.is_directory()) else { return Ok(None) };
            let next = here.join(next);
            let found = self.view.child(&shown.layers, &next)?;
            self.trail.push((next, found));
        }
    }
}
