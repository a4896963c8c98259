//! References, manifests and layers, as anybody may have made them (see [`crate::fuzzing`]).

use std::{io::Cursor, path::Component};

use super::{
    Digest, ImageError, Reference,
    layer::{
        checked_path,
        reader::{Streamed, TarReader},
    },
    manifest::{self, Blob, Document, Source},
};

/// More entries and bytes than a mutated corpus has; holes and sizes promise what is not there.
const MAX_ENTRIES: usize = 10_000;

/// A name of an image: what is understood can be written, and is then the same.
pub(crate) fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(reference) = text.parse::<Reference>() else { return };
    // A tag that is left out is written.
    let written = reference.to_string();
    assert_eq!(written.parse::<Reference>().map(|again| again.to_string()).ok(), Some(written));
    let canonical = reference.canonical("docker.io");
    let again: Reference = canonical.parse().expect("a canonical name is a name");
    assert_eq!(again.canonical("registry.test"), canonical, "and the same wherever it is used");
}

/// A registry whose every document is the same, but for an empty line between two: the second is then that of the configuration.
struct Registry<'a> {
    top: &'a [u8],
    config: &'a [u8],
}

impl Source for Registry<'_> {
    fn name(&self) -> String {
        "it".to_owned()
    }

    fn top(&self) -> Result<Document, ImageError> {
        Ok(Document { media_type: None, bytes: self.top.to_vec() })
    }

    fn manifest(&self, _: &Digest) -> Result<Document, ImageError> {
        self.top()
    }

    fn blob(&self, _: &Digest, _: u64, _: usize) -> Result<Blob<'_>, ImageError> {
        Ok(Blob { place: 0, stream: Box::new(Cursor::new(self.config)) })
    }
}

/// A manifest or index, and a configuration.
pub(crate) fn manifest(data: &[u8]) {
    let end = data.windows(2).position(|pair| pair == b"\n\n").map_or(data.len(), |at| at + 2);
    let (top, config) = data.split_at(end);
    if let Ok(resolved) = manifest::resolve(&Registry { top, config }) {
        assert_eq!((&resolved.manifest[..], &resolved.config[..]), (top, config));
        assert_eq!(resolved.config_digest, Digest::of(config), "it was verified");
    }
}

/// A tar, read to its end or to its first fault.
pub(crate) fn layer(data: &[u8]) {
    let mut reader = TarReader::new(Streamed(data));
    let mut buffer = [0; 4096];
    let mut read = 0;
    for _ in 0..MAX_ENTRIES {
        let Ok(Some(entry)) = reader.next_entry() else { return };
        if let Ok(path) = checked_path(&entry.path) {
            let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
            assert!(plain && !entry.path.contains(&0), "{}: it leads nowhere else", path.display());
        }
        while let Ok(length @ 1..) = reader.read_data(&mut buffer) {
            read += length;
        }
        assert!(read <= data.len(), "no more is read than there is");
    }
    unreachable!("each entry takes a block");
}
