//! A layer of the store as the tar that it could have been unpacked from: changes, with whiteouts (OCI image spec, layer.md).
//!
//! The store keeps layers unpacked only. The same layer gives the same bytes, so whoever has them already is not sent them
//! again; they are hardly ever those that the layer was pulled as, for which there are too many ways to write a tar.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use flate2::{Compression, write::GzEncoder};
use serde::{Deserialize, Serialize};

use super::{
    Contents, Digest, ImageError, Store,
    changes::{self, ChangesError, Rules},
    digest::Hashing,
    side_by_side::Stoppable,
    store::Layer,
    tarball::{Entry, TarWriter},
    view::{Attributes, LayerFiles},
};

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

/// Writes the layer's entries. The error is with the path that it is about.
fn pack(files: &LayerFiles, contents: &Contents, to: impl Write) -> Result<(), (PathBuf, io::Error)> {
    let mut tar = TarWriter::new(to);
    changes::write(files, contents, &mut tar).map_err(|error| match error {
        ChangesError::Io(path, error) => (path, error),
        ChangesError::Refused(path, why) => (path, io::Error::other(why)),
        ChangesError::TooMany(path) => (path, io::Error::other("too many entries")),
    })?;
    // The files that they are names of are in layers further below, or were written by now.
    for (path, target) in &contents.outer_links {
        let link = Entry::HardLink(target.to_path_buf());
        tar.append(path, &Attributes::made_up(), link).map_err(|error| (path.to_path_buf(), error))?;
    }
    tar.finish().map(drop).map_err(|error| (PathBuf::from("/"), error))
}

impl Rules for Contents {
    fn describes(&self, directory: &Path, _attributes: &Attributes) -> bool {
        !self.implies(directory)
    }

    fn is_opaque(&self, directory: &Path, found: bool) -> bool {
        if directory.as_os_str().is_empty() { self.opaque } else { found }
    }
}
