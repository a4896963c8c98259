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
    io::{self, BufWriter, Read},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use super::{
    ImageError, LayerError, Store,
    changes::{self, ChangesError, Rules},
    layer::Budget,
    store::Layer,
    tarball::TarWriter,
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
    let at_root = |error| LayerError::Unpack(PathBuf::new(), error);
    let files = LayerFiles::open(upper.directory).map_err(at_root)?;
    let mut tar = TarWriter::new(BufWriter::with_capacity(BUFFER, to));
    let limit = budget.limits().max_entries;
    changes::write(&files, &Inside { upper, limit }, &mut tar).map_err(|error| match error {
        ChangesError::Io(path, error) => LayerError::Unpack(path, error),
        ChangesError::Refused(path, why) => LayerError::Hostile { path, why },
        ChangesError::TooMany(path) => LayerError::TooMuch { path, limit, what: "entries", setting: "max_entries" },
    })?;
    // Closed after the word.
    let _open = tar.finish().map_err(at_root)?;
    complete.store(true, Ordering::Release);
    Ok(())
}

/// The container's own view of what it has changed.
struct Inside<'a> {
    upper: &'a Upper<'a>,
    /// Of entries. What waits to be written is in the layer, if there is room for it.
    limit: u64,
}

impl Rules for Inside<'_> {
    fn leaves_out(&self, path: &Path) -> bool {
        self.upper.left_out.iter().any(|left_out| path == Path::new(left_out))
    }

    fn attributes(&self, mut attributes: Attributes) -> Result<Attributes, &'static str> {
        let owner = self.id(attributes.uid).zip(self.id(attributes.gid));
        (attributes.uid, attributes.gid) = owner.ok_or("its owner is not one of the container's")?;
        attributes.xattrs = std::mem::take(&mut attributes.xattrs)
            .into_iter()
            .filter_map(|(name, value)| {
                let value = match name.as_str() {
                    "security.capability" => plain_capability(value, self.upper.id_base)?,
                    _ if name.starts_with("system.posix_acl_") => self.acl(value)?,
                    _ => value,
                };
                Some((name, value))
            })
            .collect();
        Ok(attributes)
    }

    /// The root is there in any case; an entry is for one that was changed.
    fn describes(&self, directory: &Path, attributes: &Attributes) -> bool {
        let made = Attributes { mtime: attributes.mtime, ..Attributes::made_up() };
        !directory.as_os_str().is_empty() || *attributes != made
    }

    fn tells_holes(&self) -> bool {
        true
    }

    fn max_entries(&self) -> u64 {
        self.limit
    }
}

impl Inside<'_> {
    /// The container's id for one of the host's.
    fn id(&self, id: u32) -> Option<u32> {
        id.checked_sub(self.upper.id_base).filter(|id| *id < IDS)
    }

    /// An access control list with the ids of the container: a version, then tag, permissions and id of each entry
    /// (linux/posix_acl_xattr.h). `None` for what the kernel would not have made.
    fn acl(&self, mut acl: Vec<u8>) -> Option<Vec<u8>> {
        const HEADER: usize = 4;
        const ENTRY: usize = 8;
        /// `ACL_USER` and `ACL_GROUP`; others have no id.
        const WITH_ID: [u16; 2] = [0x02, 0x08];
        let entries = acl.get_mut(HEADER..).filter(|entries| entries.len() % ENTRY == 0)?;
        for entry in entries.chunks_exact_mut(ENTRY) {
            let (tag, id) = (u16::from_le_bytes(entry[..2].try_into().ok()?), &mut entry[4..]);
            if WITH_ID.contains(&tag) {
                let inside = self.id(u32::from_le_bytes((&*id).try_into().ok()?))?;
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
