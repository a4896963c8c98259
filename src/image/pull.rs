//! Pulling: the layers of an image are fetched, verified and unpacked at once, several side by side, each only once.

use std::{
    io::{self, BufReader, Read},
    path::Path,
    sync::atomic::AtomicBool,
};

use flate2::bufread::MultiGzDecoder;

use super::{
    Contents, Digest, Image, ImageError, LayerError, Progress, Reference, Store,
    archive::{DockerArchive, Layout},
    assemble, bootstrap,
    digest::Hashing,
    layer::{self, Budget, TarError},
    manifest::{self, Layer, Source},
    registry::Registry,
    side_by_side::{self, Reporting, Stoppable},
    store::{Layer as Unpacked, Roomy, is_for_room},
};

/// The largest window that a zstd frame may ask for: 2^27 bytes (the zstd command's default limit).
const ZSTD_WINDOW_LOG: u32 = 27;

/// What is read of a compressed layer at once.
const BUFFER: usize = 128 << 10;

impl Store {
    /// Fetches the image, or only what of it is not here. Blocks, perhaps for minutes.
    ///
    /// # Errors
    /// Whatever is wrong with the source or its content; nothing of the image is then visible. What was complete of it
    /// stays, and is not fetched again, unless it was room that there was not enough of.
    pub fn pull(&self, reference: &Reference, progress: &dyn Progress) -> Result<Image, ImageError> {
        self.or_nothing(self.pull_unchecked(reference, progress))
    }

    /// Removes what is complete of something that did not fit.
    pub(super) fn or_nothing(&self, result: Result<Image, ImageError>) -> Result<Image, ImageError> {
        if let Err(error) = &result
            && is_for_room(error)
            && let Err(error) = self.drop_unneeded_layers()
        {
            tracing::warn!("what is left of an image that did not fit stays: {}", crate::errors::chain(error));
        }
        result
    }

    fn pull_unchecked(&self, reference: &Reference, progress: &dyn Progress) -> Result<Image, ImageError> {
        match reference {
            Reference::Registry(image) => {
                progress.line(&format!("pulling {reference}"));
                let registry = Registry::open(image, &self.settings)?;
                self.pull_from(&registry, reference, progress)
            }
            Reference::OciDir { path, tag } => {
                self.pull_from(&Layout::directory(path, tag.clone()), reference, progress)
            }
            Reference::OciArchive(path) => self.pull_from(&Layout::archive(path)?, reference, progress),
            Reference::DockerArchive(path) => self.pull_from(&DockerArchive::open(path)?, reference, progress),
            Reference::Bootstrap { suite, include } => bootstrap::build(self, reference, suite, include, progress),
        }
    }

    fn pull_from(
        &self,
        source: &dyn Source,
        reference: &Reference,
        progress: &dyn Progress,
    ) -> Result<Image, ImageError> {
        let resolved = manifest::resolve(source)?;
        let pull = Pull {
            store: self,
            source,
            progress,
            budget: Budget::new(self.settings.limits),
            stop: AtomicBool::new(false),
        };
        let layers = pull.layers(&resolved.layers)?;
        let stack = assemble::stack(self, &source.name(), layers)?;
        self.commit(reference, (&resolved, matches!(reference, Reference::Registry(_))), &stack)
    }

    /// Unpacks a stream of which nothing is known beforehand, compressed or not.
    pub(super) fn unpack_unknown_layer(
        &self,
        stream: impl Read,
        source: &str,
        budget: &Budget,
    ) -> Result<Unpacked, ImageError> {
        let plain =
            decompress(stream).map_err(|error| ImageError::Layer { layer: source.to_owned(), source: read(error) })?;
        Ok(self.unpack_new_layer(plain, source, budget)?.0)
    }

    /// Unpacks a tar of which nothing is known beforehand. Also returns how many bytes it has.
    pub(super) fn unpack_new_layer(
        &self,
        tar: impl Read,
        source: &str,
        budget: &Budget,
    ) -> Result<(Unpacked, u64), ImageError> {
        let scratch = self.new_scratch()?;
        let root = scratch.layer_root()?;
        let stop = AtomicBool::new(false);
        let mut refusal = None;
        let tar = Roomy::new(Stoppable { stream: tar, store: self, stop: &stop }, self, &mut refusal);
        let mut tar = Hashing::new(tar);
        let unpacked = layer::unpack(&mut tar, &root, budget);
        let (diff_id, size) = tar.finish();
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        let contents = unpacked.map_err(|error| ImageError::Layer { layer: source.to_owned(), source: error })?;
        let _turn = self.layer_turn(&diff_id, || {})?;
        let layer = match self.layer(&diff_id)? {
            Some(layer) => layer,
            None => self.publish_layer(&diff_id, scratch, contents)?,
        };
        Ok((layer, size))
    }
}

/// A pull that is under way.
struct Pull<'a> {
    store: &'a Store,
    source: &'a dyn Source,
    progress: &'a dyn Progress,
    budget: Budget,
    /// Set when one layer has failed: the others are not needed any more.
    stop: AtomicBool,
}

impl Pull<'_> {
    /// Fetches these layers; returned in the same order.
    fn layers(&self, layers: &[Layer]) -> Result<Vec<Unpacked>, ImageError> {
        // The biggest first, so that the last one running is a small one.
        let mut queue: Vec<(usize, &Layer)> = layers.iter().enumerate().collect();
        queue.sort_by_key(|(_, layer)| std::cmp::Reverse(layer.size));
        let unpacked = side_by_side::all(&queue, &self.stop, |(_, layer)| self.layer(layer))?;
        let mut placed: Vec<_> = queue.iter().map(|(place, _)| *place).zip(unpacked).collect();
        placed.sort_by_key(|(place, _)| *place);
        Ok(placed.into_iter().map(|(_, layer)| layer).collect())
    }

    /// Fetches and unpacks one layer, unless it is here or somebody else has just done it.
    fn layer(&self, layer: &Layer) -> Result<Unpacked, ImageError> {
        self.progress.start(&layer.digest, layer.size);
        let unpacked = match self.present(layer)? {
            Some(unpacked) => unpacked,
            None => {
                let waiting = || self.progress.line(&format!("layer {}: another pull has it", layer.digest.short()));
                let _turn = self.store.layer_turn(&layer.diff_id, waiting)?;
                match self.present(layer)? {
                    Some(unpacked) => unpacked,
                    None => self.download(layer)?,
                }
            }
        };
        self.progress.finish(&layer.digest);
        Ok(unpacked)
    }

    /// The layer if it is here. It counts as if it had been unpacked now.
    fn present(&self, layer: &Layer) -> Result<Option<Unpacked>, ImageError> {
        let Some(unpacked) = self.store.layer(&layer.diff_id)? else { return Ok(None) };
        let fits = self.budget.take_bytes(unpacked.contents.bytes);
        match fits.and_then(|()| self.budget.take_entries(unpacked.contents.entries)) {
            Ok(()) => Ok(Some(unpacked)),
            Err(_) => Err(ImageError::TooLarge(self.source.name())),
        }
    }

    /// Tries one place after the other while what comes is not what was promised.
    fn download(&self, layer: &Layer) -> Result<Unpacked, ImageError> {
        let mut place = 0;
        loop {
            let blob = self.source.blob(&layer.digest, layer.size, place)?;
            place = blob.place + 1;
            match self.unpack(layer, blob.stream) {
                Err(ImageError::DigestMismatch { .. } | ImageError::SizeMismatch { .. })
                    if place < self.source.places() => {}
                other => return other,
            }
        }
    }

    fn unpack(&self, layer: &Layer, stream: Box<dyn Read + Send + '_>) -> Result<Unpacked, ImageError> {
        let refused = |source| ImageError::Layer { layer: format!("layer {}", layer.digest), source };
        let scratch = self.store.new_scratch()?;
        let root = scratch.layer_root()?;
        let stream = Stoppable { stream, store: self.store, stop: &self.stop };
        let stream = Reporting { stream, layer: &layer.digest, progress: self.progress };
        // One byte more shows that there are too many.
        let mut blob = Hashing::new(stream.take(layer.size.saturating_add(1)));
        let mut refusal = None;
        let unpacked = unpack_plain(&mut blob, &root, &self.budget, (self.store, &mut refusal));
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        let unpacked = match unpacked {
            // Perhaps the data was damaged on its way: then that is what is wrong.
            Err(LayerError::Tar(error)) => Err(LayerError::Tar(error)),
            other => Ok(other.map_err(refused)?),
        };
        // What follows the compressed data is part of the blob, too.
        let drained = io::copy(&mut blob, &mut io::sink());
        if drained.is_ok() {
            let (found, size) = blob.finish();
            self.store.fetched(size);
            let digest = layer.digest.clone();
            if size != layer.size {
                return Err(ImageError::SizeMismatch { what: "layer", digest, expected: layer.size });
            }
            if found != digest {
                return Err(ImageError::DigestMismatch { what: "layer", digest });
            }
        }
        let (diff_id, contents) = unpacked.map_err(refused)?;
        drained.map_err(|error| refused(read(error)))?;
        if diff_id != layer.diff_id {
            return Err(ImageError::DiffIdMismatch { digest: layer.digest.clone(), expected: layer.diff_id.clone() });
        }
        self.store.publish_layer(&layer.diff_id, scratch, contents)
    }
}

/// Unpacks a layer, compressed or not, as long as there is room. Returns the digest of its tar and what is in it.
fn unpack_plain(
    stream: impl Read,
    root: &Path,
    budget: &Budget,
    (store, refusal): (&Store, &mut Option<ImageError>),
) -> Result<(Digest, Contents), LayerError> {
    let mut plain = Hashing::new(Roomy::new(decompress(stream).map_err(read)?, store, refusal));
    let contents = layer::unpack(&mut plain, root, budget)?;
    Ok((plain.finish().0, contents))
}

fn read(error: io::Error) -> LayerError {
    LayerError::Tar(TarError::Read(error))
}

/// Decompresses by what the data itself says; media types lie now and then.
fn decompress<'a, R: Read + 'a>(mut stream: R) -> io::Result<Box<dyn Read + 'a>> {
    // Enough to tell; it may come byte by byte.
    let mut start = Vec::new();
    stream.by_ref().take(7).read_to_end(&mut start)?;
    let kind = start.clone();
    let stream = BufReader::with_capacity(BUFFER, io::Cursor::new(start).chain(stream));
    match kind[..] {
        [0x1f, 0x8b, ..] => Ok(Box::new(MultiGzDecoder::new(stream))),
        // A frame, or one that is to be skipped, with more of them to follow.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut decoder = zstd::Decoder::with_buffer(stream)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Ok(Box::new(decoder))
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] | [b'B', b'Z', b'h', _, b'1', b'A', b'Y', ..] => {
            Err(io::Error::other("it is compressed with xz or bzip2; possible are gzip and zstd"))
        }
        _ => Ok(Box::new(stream)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Comes byte by byte.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = buffer.len().min(1);
            self.0.read(&mut buffer[..length])
        }
    }

    fn all(data: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompress(Trickle(data))?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn compressed_data_may_come_in_several_pieces_and_byte_by_byte() {
        use std::io::Write;
        let gzip = |text: &str| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.finish().unwrap()
        };
        let zstd = |text: &str| zstd::encode_all(text.as_bytes(), 1).unwrap();
        let skipped = [0x51, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        assert_eq!(all(&[gzip("one"), gzip("two")].concat()).unwrap(), b"onetwo");
        assert_eq!(all(&[zstd("one"), skipped.to_vec(), zstd("two")].concat()).unwrap(), b"onetwo");
        assert_eq!(all(&[skipped.to_vec(), zstd("two")].concat()).unwrap(), b"two");
        assert_eq!(all(b"plain").unwrap(), b"plain");
        assert_eq!(all(b"").unwrap(), b"");
        assert!(all(&[gzip("one"), b"garbage".to_vec()].concat()).is_err());
        assert!(all(&gzip("one")[..12]).is_err());
        assert!(all(b"BZh91AY&SY").is_err() && all(&[0xfd, b'7', b'z', b'X', b'Z', 0, 0]).is_err());
    }

    #[test]
    fn a_zstd_frame_cannot_ask_for_a_huge_window() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(28).unwrap();
        encoder.include_contentsize(false).unwrap();
        io::copy(&mut io::repeat(b'x').take(1 << 20), &mut encoder).unwrap();
        assert!(all(&encoder.finish().unwrap()).is_err());
    }
}
