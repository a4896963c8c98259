//! An upperdir becomes a layer: what a container has changed is written as a tar, which goes through the same door as the
//! layers of strangers.
//!
//! The container had every right in its upperdir, so all of it is hostile: it is read by descriptors, below its own root and
//! without following a link ([`LayerFiles`]). Nobody may be writing to it any more. On the way
//!
//! - ids come back from the container's range to 0..65536, also those in access control lists;
//! - capabilities of files, which the kernel has bound to the container's root, become those of any root (capabilities(7),
//!   "Namespaced file capabilities");
//! - whiteouts and opaque directories get the form that they have in archives;
//! - sockets and device nodes are left out, as are attributes that mean something to overlayfs or to the host.

use std::{
    collections::HashMap,
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use nix::sys::stat::{FileStat, SFlag};

use super::{
    ImageError, LayerError, Store,
    holes::Sparse,
    layer::{
        Budget,
        tree::{is_directory, is_whiteout, kind},
    },
    store::Layer,
    tarball::{Entry, TarWriter},
    view::{Attributes, LayerFiles},
};

/// Ids of a container.
const IDS: u32 = 65_536;

/// What is written to the pipe at once.
const BUFFER: usize = 128 << 10;

/// What a container has changed.
#[derive(Debug, Clone, Copy)]
pub struct Upper<'a> {
    /// The upperdir of its overlay.
    pub directory: &'a Path,
    /// The host's id of the container's root.
    pub id_base: u32,
    /// Relative paths of what is not to be in the layer, with all that is in it.
    pub left_out: &'a [&'a str],
    /// For messages.
    pub source: &'a str,
}

impl Store {
    /// Makes a layer of an upperdir. Also returns how many bytes its tar has.
    pub(super) fn commit_upper(&self, upper: &Upper<'_>, budget: &Budget) -> Result<(Layer, u64), ImageError> {
        let (reader, writer) = io::pipe().map_err(|error| ImageError::Source(upper.source.to_owned(), error))?;
        let complete = AtomicBool::new(false);
        thread::scope(|scope| {
            let written = scope.spawn(|| write(upper, budget, writer, &complete));
            let unpacked = self.unpack_new_layer(Whole { reader, complete: &complete }, upper.source, budget);
            let refused = |source| ImageError::Layer { layer: upper.source.to_owned(), source };
            match written.join() {
                // Nobody reads the rest of what is refused.
                Ok(Err(LayerError::Unpack(_, error))) if error.kind() == io::ErrorKind::BrokenPipe => unpacked,
                Ok(Err(error)) => Err(refused(error)),
                Ok(Ok(())) => unpacked,
                Err(_panic) => Err(refused(LayerError::Unpack(PathBuf::from("/"), io::Error::other("a bug")))),
            }
        })
    }
}

/// A tar whose end counts only if its writer has come to it: a tar may be cut off between two entries unnoticed.
struct Whole<'a> {
    reader: io::PipeReader,
    complete: &'a AtomicBool,
}

impl Read for Whole<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.reader.read(buffer)? {
            0 if !buffer.is_empty() && !self.complete.load(Ordering::Acquire) => {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            length => Ok(length),
        }
    }
}

/// Writes the tar. Sets `complete` before the pipe is closed if all of it is written.
fn write(upper: &Upper<'_>, budget: &Budget, to: io::PipeWriter, complete: &AtomicBool) -> Result<(), LayerError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| LayerError::Unpack(path, error)
    };
    let root = Path::new("");
    let mut commit = Commit {
        files: LayerFiles::open(upper.directory).map_err(at(root))?,
        id_base: upper.id_base,
        tar: TarWriter::new(BufWriter::with_capacity(BUFFER, to)),
        links: HashMap::new(),
    };
    commit.root()?;
    // What is in a directory comes right after it; taken from the end.
    let mut pending: Vec<PathBuf> = commit.inside(root, budget)?;
    while let Some(path) = pending.pop() {
        if upper.left_out.iter().any(|left_out| path == Path::new(left_out)) {
            continue;
        }
        if commit.append(&path)? {
            let mut inside = commit.inside(&path, budget)?;
            pending.append(&mut inside);
        }
        // What is pending is in the layer, if there is room for it.
        if pending.len() as u64 > budget.limits().max_entries {
            return Err(too_many(&path, budget));
        }
    }
    // Closed after the word.
    let _open = commit.tar.finish().map_err(at(root))?;
    complete.store(true, Ordering::Release);
    Ok(())
}

fn too_many(path: &Path, budget: &Budget) -> LayerError {
    let limit = budget.limits().max_entries;
    LayerError::TooMuch { path: path.to_owned(), limit, what: "entries", setting: "max_entries" }
}

struct Commit<W: Write> {
    files: LayerFiles,
    id_base: u32,
    tar: TarWriter<W>,
    /// The first name of each file that has several, by inode.
    links: HashMap<u64, PathBuf>,
}

impl<W: Write> Commit<W> {
    /// The root is there in any case; an entry is for one that was changed.
    fn root(&mut self) -> Result<(), LayerError> {
        let attributes = self.attributes(Path::new(""))?;
        let made = Attributes { mtime: attributes.mtime, ..Attributes::made_up() };
        if attributes == made { Ok(()) } else { self.write(Path::new(""), &attributes, Entry::Directory) }
    }

    /// What is in a directory, the last first.
    fn inside(&self, directory: &Path, budget: &Budget) -> Result<Vec<PathBuf>, LayerError> {
        let names = self.files.names(directory).map_err(|error| LayerError::Unpack(directory.to_owned(), error))?;
        if names.len() as u64 > budget.limits().max_entries {
            return Err(too_many(directory, budget));
        }
        Ok(names.into_iter().rev().map(|name| directory.join(name)).collect())
    }

    /// Writes the entry of `path`; whether it is a directory.
    fn append(&mut self, path: &Path) -> Result<bool, LayerError> {
        let failed = |error| LayerError::Unpack(path.to_owned(), error);
        let stat = self.files.stat(path).map_err(failed)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        if name.starts_with(b".wh.") {
            return Err(LayerError::Hostile { path: path.to_owned(), why: "no layer can have a file of this name" });
        }
        if is_whiteout(&stat) {
            let mut hidden = std::ffi::OsString::from(".wh.");
            hidden.push(path.file_name().unwrap_or_default());
            self.write(&path.with_file_name(hidden), &Attributes::made_up(), Entry::Empty)?;
            return Ok(false);
        }
        let attributes = self.attributes(path)?;
        if is_directory(&stat) {
            self.write(path, &attributes, Entry::Directory)?;
            if self.files.is_opaque(path).map_err(failed)? {
                self.write(&path.join(".wh..wh..opq"), &Attributes::made_up(), Entry::Empty)?;
            }
            return Ok(true);
        }
        self.append_file(path, &stat, &attributes)?;
        Ok(false)
    }

    fn append_file(&mut self, path: &Path, stat: &FileStat, attributes: &Attributes) -> Result<(), LayerError> {
        let failed = |error| LayerError::Unpack(path.to_owned(), error);
        let kind = kind(stat);
        if !matches!(kind, SFlag::S_IFREG | SFlag::S_IFLNK | SFlag::S_IFIFO) {
            return Ok(());
        }
        if stat.st_nlink > 1 {
            let first = self.links.entry(stat.st_ino).or_insert_with(|| path.to_owned()).clone();
            if first != path {
                return self.write(path, attributes, Entry::HardLink(first));
            }
        }
        match kind {
            SFlag::S_IFLNK => {
                let target = self.files.link_target(path).map_err(failed)?;
                self.write(path, attributes, Entry::Symlink(target))
            }
            SFlag::S_IFIFO => self.write(path, attributes, Entry::Fifo),
            _ => {
                let file = self.files.file(path).map_err(failed)?;
                let entry = match Sparse::of(file).map_err(failed)? {
                    Ok(sparse) => Entry::Sparse(sparse),
                    Err(content) => Entry::File { size: stat.st_size.cast_unsigned(), content },
                };
                self.write(path, attributes, entry)
            }
        }
    }

    fn write(&mut self, path: &Path, attributes: &Attributes, entry: Entry) -> Result<(), LayerError> {
        self.tar.append(path, attributes, entry).map_err(|error| LayerError::Unpack(path.to_owned(), error))
    }

    /// The attributes of an entry as the container saw them.
    fn attributes(&self, path: &Path) -> Result<Attributes, LayerError> {
        let mut attributes = self.files.attributes(path).map_err(|error| LayerError::Unpack(path.to_owned(), error))?;
        let owner = self.inside_id(attributes.uid).zip(self.inside_id(attributes.gid));
        let (uid, gid) = owner
            .ok_or(LayerError::Hostile { path: path.to_owned(), why: "its owner is not one of the container's" })?;
        (attributes.uid, attributes.gid) = (uid, gid);
        attributes.xattrs = std::mem::take(&mut attributes.xattrs)
            .into_iter()
            .filter_map(|(name, value)| {
                let value = match name.as_str() {
                    "security.capability" => plain_capability(value, self.id_base)?,
                    _ if name.starts_with("system.posix_acl_") => self.inside_acl(value)?,
                    _ => value,
                };
                Some((name, value))
            })
            .collect();
        Ok(attributes)
    }

    /// The container's id for one of the host's.
    fn inside_id(&self, id: u32) -> Option<u32> {
        id.checked_sub(self.id_base).filter(|id| *id < IDS)
    }

    /// An access control list with the ids of the container: a version, then tag, permissions and id of each entry
    /// (linux/posix_acl_xattr.h). `None` for what the kernel would not have made.
    fn inside_acl(&self, mut acl: Vec<u8>) -> Option<Vec<u8>> {
        const HEADER: usize = 4;
        const ENTRY: usize = 8;
        /// `ACL_USER` and `ACL_GROUP`; others have no id.
        const WITH_ID: [u16; 2] = [0x02, 0x08];
        let entries = acl.get_mut(HEADER..).filter(|entries| entries.len() % ENTRY == 0)?;
        for entry in entries.chunks_exact_mut(ENTRY) {
            let (tag, id) = (u16::from_le_bytes(entry[..2].try_into().ok()?), &mut entry[4..]);
            if WITH_ID.contains(&tag) {
                let inside = self.inside_id(u32::from_le_bytes((&*id).try_into().ok()?))?;
                id.copy_from_slice(&inside.to_le_bytes());
            }
        }
        Some(acl)
    }
}

/// A file's capabilities without the root that they are bound to (linux/capability.h): revision 3 with the id of a root
/// behind it becomes revision 2. `None` if that root is another one than the container's: they mean nothing to it.
fn plain_capability(mut capability: Vec<u8>, root: u32) -> Option<Vec<u8>> {
    const REVISION_MASK: u32 = 0xff00_0000;
    const REVISION_2: u32 = 0x0200_0000;
    const REVISION_3: u32 = 0x0300_0000;
    let magic = u32::from_le_bytes(capability.get(..4)?.try_into().ok()?);
    match (magic & REVISION_MASK, capability.len()) {
        (REVISION_2, 20) => Some(capability),
        (REVISION_3, 24) if capability[20..] == root.to_le_bytes() => {
            capability.truncate(20);
            capability[..4].copy_from_slice(&(magic & !REVISION_MASK | REVISION_2).to_le_bytes());
            Some(capability)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
