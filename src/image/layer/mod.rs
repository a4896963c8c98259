//! Unpacking a layer: a tar stream becomes a directory that overlayfs can stack (OCI image spec, layer.md; kernel
//! documentation, overlayfs.rst).
//!
//! Layers are unpacked on their own, without the ones below, so that all of an image's can be unpacked at once and each
//! only once for all images. What of a layer depends on the ones below is noted in its [`Contents`] and put right when
//! layers are stacked. Ids stay as the image has them; sessions see them through idmapped mounts.

mod budget;
mod contents;
mod header;
pub(super) mod links;
pub(super) mod reader;
mod sparse;
pub(super) mod tree;

use std::{
    collections::BTreeSet,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

pub use self::{
    budget::{Budget, Limits},
    contents::{Contents, EntryPath},
    links::TreeError,
    reader::TarError,
};
use self::{
    budget::{Exceeded, Metered},
    reader::{Entry, Kind, Streamed, TarReader},
    tree::{Attributes, Tree},
};

/// Ids of a container: 0..65536.
const MAX_ID: u64 = 65_535;

/// The longest path of an entry. No kernel takes a longer one.
const MAX_PATH: usize = 4095;

/// Memory for what has to be kept of entries until the layer's end; enough for half a million directories.
const MAX_NOTES: usize = 64 << 20;

/// What is written of a file at once.
const BUFFER: usize = 256 << 10;

/// Why a layer was refused.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error("cannot make {}", .0.display())]
    Unpack(PathBuf, #[source] io::Error),
    #[error("{}: {why}", .path.display())]
    Hostile { path: PathBuf, why: &'static str },
    #[error("{}: an entry of the unknown type {:?}", .path.display(), char::from(*.kind))]
    UnknownType { path: PathBuf, kind: u8 },
    #[error("{}: its owner {uid}:{gid} is beyond 65535, the last id that a container has", .path.display())]
    Owner { path: PathBuf, uid: u64, gid: u64 },
    #[error("{}: the image has more than {limit} {what} (images.{setting})", .path.display())]
    TooMuch { path: PathBuf, limit: u64, what: &'static str, setting: &'static str },
    #[error("{}: more directories in one layer than are supported", .0.display())]
    TooManyDirectories(PathBuf),
}

/// Unpacks a tar stream into the empty directory `root`. Reads the stream to its end.
///
/// # Errors
/// The first entry that cannot or must not be unpacked, by name. The directory is then for the caller to remove; nothing
/// outside it has been touched.
pub fn unpack(stream: impl Read, root: &Path, budget: &Budget) -> Result<Contents, LayerError> {
    let tree = Tree::open(root).map_err(|error| refused(root, error))?;
    let mut tar = TarReader::new(Streamed(Metered { stream, budget }));
    let mut unpacking = Unpacking {
        tree,
        budget,
        contents: Contents::default(),
        skipped: BTreeSet::new(),
        directories: Vec::new(),
        notes: 0,
        buffer: Vec::new(),
    };
    let mut path = PathBuf::new();
    // The limit may be hit anywhere in the archive: at the latest entry, then.
    let limited = |path: &Path, error| match error {
        TarError::Read(error) if is_exceeded(&error) => too_many_bytes(path, budget),
        other => other.into(),
    };
    loop {
        let entry = match tar.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(error) => return Err(limited(&path, error)),
        };
        path = checked_path(&entry.path)?;
        match unpacking.entry(&mut tar, &entry, &path) {
            Err(LayerError::Tar(error)) => return Err(limited(&path, error)),
            other => other?,
        }
    }
    tar.drain().map_err(|error| limited(&path, error))?;
    unpacking.finish()
}

fn refused(path: &Path, error: TreeError) -> LayerError {
    match error {
        TreeError::Io(error) => LayerError::Unpack(path.to_owned(), error),
        TreeError::Hostile(why) => LayerError::Hostile { path: path.to_owned(), why },
    }
}

fn is_exceeded(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(inner, Some(Exceeded))
}

fn too_many_bytes(path: &Path, budget: &Budget) -> LayerError {
    let limit = budget.limits.max_bytes;
    LayerError::TooMuch { path: path.to_owned(), limit, what: "bytes", setting: "max_size" }
}

/// A layer that is being unpacked.
struct Unpacking<'a> {
    tree: Tree,
    budget: &'a Budget,
    contents: Contents,
    /// Devices that were left out; they may have further names.
    skipped: BTreeSet<PathBuf>,
    /// Times to set at the end, of directories by their path without links.
    directories: Vec<(PathBuf, (i64, u32))>,
    /// Bytes that these lists take.
    notes: usize,
    buffer: Vec<u8>,
}

impl Unpacking<'_> {
    fn entry<R: Read>(&mut self, tar: &mut Tar<'_, R>, entry: &Entry, path: &Path) -> Result<(), LayerError> {
        self.budget.has_bytes(entry.size).map_err(|Exceeded| too_many_bytes(path, self.budget))?;
        // The rest of it is counted as it is read.
        let holes = entry.size.saturating_sub(entry.stored);
        self.budget.take_bytes(holes).map_err(|Exceeded| too_many_bytes(path, self.budget))?;
        self.contents.bytes = self.contents.bytes.saturating_add(entry.size);
        let made = match whiteout(path)? {
            Some(whiteout) => self.hide(&whiteout).map_err(|error| refused(path, error)).map(|()| Made::Nothing)?,
            None => self.make(tar, entry, path)?,
        };
        if !matches!(made, Made::Nothing) {
            let attributes = attributes(entry, path)?;
            let xattrs = entry.xattrs.iter().filter(|(name, _)| is_for_containers(name));
            self.tree.set_attributes(path, &attributes, xattrs).map_err(|error| refused(path, error))?;
        }
        if let Made::Directory(real) = made {
            self.note(path, &real)?;
            self.directories.push((real, entry.mtime));
        }
        let implied = self.tree.take_made();
        for _ in 0..implied {
            self.note(path, path)?;
        }
        self.contents.entries += 1 + implied;
        self.budget.take_entries(1 + implied).map_err(|Exceeded| LayerError::TooMuch {
            path: path.to_owned(),
            limit: self.budget.limits.max_entries,
            what: "entries",
            setting: "max_entries",
        })
    }

    /// Makes room for a path that is kept.
    fn note(&mut self, entry: &Path, kept: &Path) -> Result<(), LayerError> {
        self.notes = self.notes.saturating_add(kept.as_os_str().len() + NOTE);
        if self.notes > MAX_NOTES { Err(LayerError::TooManyDirectories(entry.to_owned())) } else { Ok(()) }
    }

    fn hide(&mut self, whiteout: &Whiteout) -> Result<(), TreeError> {
        match whiteout {
            Whiteout::Of(hidden) => self.tree.make_whiteout(hidden),
            Whiteout::Opaque(directory) => {
                // For the root of a layer overlayfs knows no such mark.
                self.contents.opaque |= directory.as_os_str().is_empty();
                self.tree.make_opaque(directory)
            }
            Whiteout::Nothing => Ok(()),
        }
    }

    /// Makes what the entry describes.
    fn make<R: Read>(&mut self, tar: &mut Tar<'_, R>, entry: &Entry, path: &Path) -> Result<Made, LayerError> {
        let failed = |error| refused(path, error);
        if path.as_os_str().is_empty() {
            // The root itself: only its attributes.
            return match entry.kind {
                Kind::Directory => Ok(Made::Directory(PathBuf::new())),
                _ => Err(LayerError::Hostile { path: "/".into(), why: "the root is not a directory" }),
            };
        }
        match entry.kind {
            Kind::Directory => return self.tree.make_directory(path).map(Made::Directory).map_err(failed),
            Kind::File => {
                let mut file = self.tree.make_file(path).map_err(failed)?;
                self.copy(tar, entry, &mut file, path)?;
            }
            Kind::Symlink => self.tree.make_symlink(path, &entry.link).map_err(failed)?,
            Kind::HardLink => {
                self.hard_link(entry, path)?;
                // The attributes are the target's.
                return Ok(Made::Nothing);
            }
            Kind::Fifo => self.tree.make_fifo(path).map_err(failed)?,
            // A character device 0:0 would even be a whiteout that the image does not declare.
            Kind::Device { .. } => {
                self.tree.remove(path).map_err(failed)?;
                self.skip(path)?;
                return Ok(Made::Nothing);
            }
            Kind::Unknown(kind) => return Err(LayerError::UnknownType { path: path.to_owned(), kind }),
        }
        Ok(Made::File)
    }

    fn skip(&mut self, path: &Path) -> Result<(), LayerError> {
        if self.skipped.insert(path.to_owned()) {
            self.note(path, path)?;
        }
        Ok(())
    }

    fn hard_link(&mut self, entry: &Entry, path: &Path) -> Result<(), LayerError> {
        let target = checked_path(&entry.link)
            .map_err(|_| LayerError::Hostile { path: path.to_owned(), why: "a hard link to the outside" })?;
        if self.skipped.contains(&target) {
            self.tree.remove(path).map_err(|error| refused(path, error))?;
            return self.skip(path);
        }
        if !self.tree.make_hard_link(path, &target).map_err(|error| refused(path, error))? {
            self.note(path, path)?;
            self.note(path, &target)?;
            self.contents.outer_links.push((path.to_owned().into(), target.into()));
        }
        Ok(())
    }

    /// Writes the data, with holes where the entry has them.
    fn copy<R: Read>(
        &mut self,
        tar: &mut Tar<'_, R>,
        entry: &Entry,
        file: &mut std::fs::File,
        path: &Path,
    ) -> Result<(), LayerError> {
        let failed = |error| LayerError::Unpack(path.to_owned(), error);
        let whole = [(0, entry.size)];
        let pieces = entry.pieces.as_deref().unwrap_or(&whole);
        self.buffer.resize(BUFFER, 0);
        for (offset, length) in pieces {
            if *offset > 0 {
                file.seek(SeekFrom::Start(*offset)).map_err(failed)?;
            }
            let mut left = *length;
            while left > 0 {
                let wanted = BUFFER.min(usize::try_from(left).unwrap_or(usize::MAX));
                let length = tar.read_data(&mut self.buffer[..wanted])?;
                if length == 0 {
                    return Err(TarError::CutOff.into());
                }
                file.write_all(&self.buffer[..length]).map_err(failed)?;
                left -= length as u64;
            }
        }
        if entry.pieces.is_some() {
            file.set_len(entry.size).map_err(failed)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Contents, LayerError> {
        // Nobody has said when these were changed; always the same, so that the same layer gives the same directory.
        self.directories.extend(self.tree.timeless().map(|path| (path.clone(), (0, 0))));
        for (path, mtime) in &self.directories {
            self.tree.set_directory_times(path, *mtime).map_err(|error| refused(path, error))?;
        }
        self.contents.implied = self.tree.implied().iter().cloned().map(EntryPath::from).collect();
        self.contents.skipped_devices = self.skipped.into_iter().map(EntryPath::from).collect();
        Ok(self.contents)
    }
}

/// What has become of an entry.
enum Made {
    /// Nothing that has attributes of its own.
    Nothing,
    File,
    /// By its path without links.
    Directory(PathBuf),
}

type Tar<'a, R> = TarReader<Streamed<Metered<'a, R>>>;

/// What a path in a list takes beyond its bytes.
const NOTE: usize = 64;

fn attributes(entry: &Entry, path: &Path) -> Result<Attributes, LayerError> {
    let id = |id: u64| u32::try_from(id).ok().filter(|id| u64::from(*id) <= MAX_ID);
    match (id(entry.uid), id(entry.gid)) {
        (Some(uid), Some(gid)) => Ok(Attributes { mode: entry.mode, uid, gid, mtime: entry.mtime }),
        _ => Err(LayerError::Owner { path: path.to_owned(), uid: entry.uid, gid: entry.gid }),
    }
}

/// Attributes that mean something to overlayfs or to the host's own policies are not the image's to set.
pub(super) fn is_for_containers(name: &str) -> bool {
    (name.starts_with("user.") && !name.starts_with("user.overlay."))
        || name == "security.capability"
        || name.starts_with("system.posix_acl_")
}

/// The path of an entry below the root: relative, without `.`; refuses `..` and absolute paths.
pub(super) fn checked_path(bytes: &[u8]) -> Result<PathBuf, LayerError> {
    let given = Path::new(std::ffi::OsStr::from_bytes(&bytes[..bytes.len().min(MAX_PATH)]));
    let hostile = |why| LayerError::Hostile { path: given.to_owned(), why };
    if bytes.len() > MAX_PATH {
        return Err(hostile("a name of more than 4095 bytes"));
    }
    if bytes.is_empty() {
        return Err(hostile("an entry without a name"));
    }
    if bytes.contains(&0) {
        return Err(hostile("a name with a NUL in it"));
    }
    // Some programs write the root itself so.
    if bytes.iter().all(|byte| *byte == b'/') {
        return Ok(PathBuf::new());
    }
    let mut path = PathBuf::new();
    for component in given.components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir => return Err(hostile("a name with .. in it")),
            Component::RootDir | Component::Prefix(_) => return Err(hostile("an absolute name")),
        }
    }
    Ok(path)
}

enum Whiteout {
    Of(PathBuf),
    Opaque(PathBuf),
    /// Bookkeeping of aufs.
    Nothing,
}

fn whiteout(path: &Path) -> Result<Option<Whiteout>, LayerError> {
    const PREFIX: &[u8] = b".wh.";
    let hostile = |why| LayerError::Hostile { path: path.to_owned(), why };
    let Some(name) = path.file_name().map(OsStrExt::as_bytes) else { return Ok(None) };
    let parent = path.parent().unwrap_or(Path::new(""));
    for component in parent {
        match component.as_bytes().strip_prefix(PREFIX) {
            None => {}
            Some(inner) if inner.starts_with(PREFIX) => return Ok(Some(Whiteout::Nothing)),
            Some(_) => return Err(hostile("a directory with the name of a whiteout")),
        }
    }
    let Some(hidden) = name.strip_prefix(PREFIX) else { return Ok(None) };
    match hidden {
        b".wh..opq" => Ok(Some(Whiteout::Opaque(parent.to_owned()))),
        b"" | b"." | b".." => Err(hostile("a whiteout of nothing or of ..")),
        _ if hidden.starts_with(PREFIX) => Ok(Some(Whiteout::Nothing)),
        _ => Ok(Some(Whiteout::Of(parent.join(std::ffi::OsStr::from_bytes(hidden))))),
    }
}

#[cfg(test)]
mod tests;
