//! A layer of the store as the tar that it could have been unpacked from: changes, with whiteouts (OCI image spec, layer.md).
//!
//! The store keeps layers unpacked only. The same layer gives the same bytes, so whoever has them already is not sent them
//! again; they are hardly ever those that the layer was pulled as, for which there are too many ways to write a tar.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufWriter, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use flate2::{Compression, write::GzEncoder};
use nix::sys::stat::{FileStat, SFlag};
use serde::{Deserialize, Serialize};

use super::{
    Contents, Digest, ImageError, Store,
    digest::Hashing,
    layer::tree::{is_whiteout, kind},
    side_by_side::Stoppable,
    store::Layer,
    tarball::{Entry, TarWriter},
    view::{Attributes, LayerFiles},
};

/// What marks an entry that takes away what lower layers have.
const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// What a layer was packed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Packed {
    /// Of the tar.
    pub diff_id: Digest,
    /// Of the tar, compressed with gzip.
    pub digest: Digest,
    /// Its size.
    pub size: u64,
}

impl Store {
    /// Writes the layer to the new file `to`, as a tar compressed with gzip.
    pub(super) fn pack(&self, layer: &Layer, to: &Path, stop: &AtomicBool) -> Result<Packed, ImageError> {
        let root = self.layers_root().join(&layer.lowerdir);
        let files = LayerFiles::open(&root).map_err(|error| ImageError::Store(root, error))?;
        let unwritten = |error| ImageError::Store(to.to_owned(), error);
        let file = BufWriter::new(File::create_new(to).map_err(unwritten)?);
        let mut compressed = Hashing::new(Stoppable { stream: file, store: self, stop });
        let mut gzip = GzEncoder::new(&mut compressed, Compression::default());
        let mut plain = Hashing::new(&mut gzip);
        pack(&files, &layer.contents, &mut plain).map_err(|(path, error)| ImageError::Export(path, error))?;
        let (diff_id, _) = plain.finish();
        gzip.finish().map_err(unwritten)?;
        compressed.flush().map_err(unwritten)?;
        let (digest, size) = compressed.finish();
        Ok(Packed { diff_id, digest, size })
    }
}

/// Writes the layer's entries, each directory's behind it and sorted. The error is with the path that it is about.
fn pack(files: &LayerFiles, contents: &Contents, to: impl Write) -> Result<(), (PathBuf, io::Error)> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| (path, error)
    };
    let mut packing = Packing { files, contents, tar: TarWriter::new(to), links: HashMap::new() };
    // The next one is the last.
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        if packing.append(&path).map_err(at(&path))? {
            let names = files.names(&path).map_err(at(&path))?;
            pending.extend(names.into_iter().rev().map(|name| path.join(name)));
        }
    }
    // The files that they are names of are in layers further below, or were written by now.
    for (path, target) in &contents.outer_links {
        packing.tar.append(path, &Attributes::made_up(), Entry::HardLink(target.to_path_buf())).map_err(at(path))?;
    }
    packing.tar.finish().map(drop).map_err(at(Path::new("/")))
}

struct Packing<'a, W: Write> {
    files: &'a LayerFiles,
    contents: &'a Contents,
    tar: TarWriter<W>,
    /// The first name of each file that has several, by inode.
    links: HashMap<u64, PathBuf>,
}

impl<W: Write> Packing<'_, W> {
    /// Writes what is at `path`; whether that is a directory.
    fn append(&mut self, path: &Path) -> io::Result<bool> {
        let stat = self.files.stat(path)?.ok_or(io::ErrorKind::NotFound)?;
        let name = path.file_name().unwrap_or_default();
        if name.as_bytes().starts_with(WHITEOUT.as_bytes()) {
            // Whoever unpacks it would take away another file instead.
            return Err(io::Error::other("a name that has a meaning of its own in an image"));
        }
        if is_whiteout(&stat) {
            let mut marker = std::ffi::OsString::from(WHITEOUT);
            marker.push(name);
            self.mark(&path.with_file_name(marker))?;
            return Ok(false);
        }
        if kind(&stat) == SFlag::S_IFDIR {
            self.directory(path)?;
            return Ok(true);
        }
        let first = self.first_name(path, &stat);
        let entry = match (first, kind(&stat)) {
            (Some(first), _) => Entry::HardLink(first),
            (None, SFlag::S_IFLNK) => Entry::Symlink(self.files.link_target(path)?),
            (None, SFlag::S_IFIFO) => Entry::Fifo,
            (None, SFlag::S_IFREG) => {
                Entry::File { size: stat.st_size.cast_unsigned(), content: self.files.file(path)? }
            }
            // A socket, which is of nobody's image but a build's; and tars have no entries for them.
            (None, _) => return Ok(false),
        };
        self.tar.append(path, &self.files.attributes(path)?, entry)?;
        Ok(false)
    }

    fn directory(&mut self, path: &Path) -> io::Result<()> {
        // Without an entry it keeps the attributes that it has below.
        if !self.contents.implies(path) {
            self.tar.append(path, &self.files.attributes(path)?, Entry::Directory)?;
        }
        let root = path.as_os_str().is_empty();
        if if root { self.contents.opaque } else { self.files.is_opaque(path)? } {
            self.mark(&path.join(OPAQUE))?;
        }
        Ok(())
    }

    /// An empty file that says something by its name.
    fn mark(&mut self, path: &Path) -> io::Result<()> {
        let attributes = Attributes { mode: 0o600, ..Attributes::made_up() };
        self.tar.append(path, &attributes, Entry::Empty)
    }

    /// The name that the file has had already, if this is another one.
    fn first_name(&mut self, path: &Path, stat: &FileStat) -> Option<PathBuf> {
        if stat.st_nlink < 2 {
            return None;
        }
        let first = self.links.entry(stat.st_ino).or_insert_with(|| path.to_owned());
        Some(first.clone()).filter(|first| first != path)
    }
}
