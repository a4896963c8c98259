//! A directory of changes as overlayfs has them, an upperdir or an unpacked layer, as the tar that says the same (OCI image spec,
//! layer.md): each directory with what is in it behind it, sorted; files with names that mean it for what is hidden of lower
//! layers. Sockets and device nodes are left out: tars have no entries for the ones, and layers none for the others.

use std::{
    collections::HashMap,
    ffi::OsString,
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use nix::sys::stat::{FileStat, SFlag};

use super::{
    holes::Sparse,
    layer::tree::{is_whiteout, kind},
    tarball::{Entry, TarWriter},
    view::{Attributes, LayerFiles},
};

/// What marks an entry that takes away what lower layers have.
const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// Why they could not be written; each with the path that it is about.
#[derive(Debug)]
pub(super) enum ChangesError {
    Io(PathBuf, io::Error),
    Refused(PathBuf, &'static str),
    /// More entries than [`Rules::max_entries`].
    TooMany(PathBuf),
}

/// What is particular about the directory. Paths are relative to it; the empty one is its root.
pub(super) trait Rules {
    /// Whether what is at `path` is not written, with all that is in it.
    fn leaves_out(&self, _path: &Path) -> bool {
        false
    }

    /// The attributes that an entry has which has these on the disk, or why it cannot have any.
    fn attributes(&self, found: Attributes) -> Result<Attributes, &'static str> {
        Ok(found)
    }

    /// Whether a directory has an entry of its own. Without one it keeps the attributes that it has in lower layers.
    fn describes(&self, directory: &Path, attributes: &Attributes) -> bool;

    /// Whether nothing of lower layers shows in a directory; `found` is what overlayfs says.
    fn is_opaque(&self, _directory: &Path, found: bool) -> bool {
        found
    }

    /// Whether holes of files are told, rather than written as zeros.
    fn tells_holes(&self) -> bool {
        false
    }

    /// How many entries may be in a directory, or wait to be written.
    fn max_entries(&self) -> u64 {
        u64::MAX
    }
}

/// Writes the entries of all changes to `tar`, and leaves it open.
pub(super) fn write<W: Write>(
    files: &LayerFiles,
    rules: &impl Rules,
    tar: &mut TarWriter<W>,
) -> Result<(), ChangesError> {
    let mut writing = Writing { files, rules, tar, links: HashMap::new() };
    // The next one is the last.
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        if rules.leaves_out(&path) || !writing.append(&path)? {
            continue;
        }
        let names = files.names(&path).map_err(failed(&path))?;
        if names.len() as u64 + pending.len() as u64 > rules.max_entries() {
            return Err(ChangesError::TooMany(path));
        }
        pending.extend(names.into_iter().rev().map(|name| path.join(name)));
    }
    Ok(())
}

fn failed(path: &Path) -> impl Fn(io::Error) -> ChangesError {
    move |error| ChangesError::Io(path.to_owned(), error)
}

struct Writing<'a, R, W: Write> {
    files: &'a LayerFiles,
    rules: &'a R,
    tar: &'a mut TarWriter<W>,
    /// The first name of each file that has several, by inode.
    links: HashMap<u64, PathBuf>,
}

impl<R: Rules, W: Write> Writing<'_, R, W> {
    /// Writes what is at `path`; whether that is a directory.
    fn append(&mut self, path: &Path) -> Result<bool, ChangesError> {
        let stat = self.files.stat(path).and_then(|stat| stat.ok_or_else(|| io::ErrorKind::NotFound.into()));
        let stat = stat.map_err(failed(path))?;
        let name = path.file_name().unwrap_or_default();
        if name.as_bytes().starts_with(WHITEOUT.as_bytes()) {
            // Whoever unpacks it would take away another file instead.
            return Err(ChangesError::Refused(path.to_owned(), "no layer can have a file of this name"));
        }
        if is_whiteout(&stat) {
            let mut marker = OsString::from(WHITEOUT);
            marker.push(name);
            self.mark(&path.with_file_name(marker))?;
            return Ok(false);
        }
        match kind(&stat) {
            SFlag::S_IFDIR => self.directory(path).map(|()| true),
            SFlag::S_IFREG | SFlag::S_IFLNK | SFlag::S_IFIFO => self.file(path, &stat).map(|()| false),
            _ => Ok(false),
        }
    }

    fn directory(&mut self, path: &Path) -> Result<(), ChangesError> {
        let attributes = self.attributes(path)?;
        if self.rules.describes(path, &attributes) {
            self.tar.append(path, &attributes, Entry::Directory).map_err(failed(path))?;
        }
        let opaque = self.files.is_opaque(path).map_err(failed(path))?;
        if self.rules.is_opaque(path, opaque) { self.mark(&path.join(OPAQUE)) } else { Ok(()) }
    }

    fn file(&mut self, path: &Path, stat: &FileStat) -> Result<(), ChangesError> {
        let attributes = self.attributes(path)?;
        let entry = self.entry(path, stat).map_err(failed(path))?;
        self.tar.append(path, &attributes, entry).map_err(failed(path))
    }

    fn entry(&mut self, path: &Path, stat: &FileStat) -> io::Result<Entry> {
        if stat.st_nlink > 1 {
            let first = self.links.entry(stat.st_ino).or_insert_with(|| path.to_owned());
            if first != path {
                return Ok(Entry::HardLink(first.clone()));
            }
        }
        let size = stat.st_size.cast_unsigned();
        match kind(stat) {
            SFlag::S_IFLNK => Ok(Entry::Symlink(self.files.link_target(path)?)),
            SFlag::S_IFIFO => Ok(Entry::Fifo),
            _ if self.rules.tells_holes() => Ok(match Sparse::of(self.files.file(path)?)? {
                Ok(sparse) => Entry::Sparse(sparse),
                Err(content) => Entry::File { size, content },
            }),
            _ => Ok(Entry::File { size, content: self.files.file(path)? }),
        }
    }

    fn attributes(&self, path: &Path) -> Result<Attributes, ChangesError> {
        let found = self.files.attributes(path).map_err(failed(path))?;
        self.rules.attributes(found).map_err(|why| ChangesError::Refused(path.to_owned(), why))
    }

    /// An empty file that says something by its name.
    fn mark(&mut self, path: &Path) -> Result<(), ChangesError> {
        let attributes = Attributes { mode: 0o600, ..Attributes::made_up() };
        self.tar.append(path, &attributes, Entry::Empty).map_err(failed(path))
    }
}
