//! Pulling: the layers of an image are fetched, verified and unpacked at once, several side by side, each only once.

use std::{
    io::{self, BufReader, Read},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use flate2::bufread::MultiGzDecoder;

use super::{
    Digest, Image, ImageError, LayerError, Progress, Reference, Store,
    archive::{DockerArchive, Layout},
    assemble, bootstrap,
    digest::Hashing,
    layer,
    manifest::{self, Layer, Resolved, Source},
    registry::Registry,
    store::{Record, layer_name},
};
use crate::sys::remove_tree::remove_tree;

/// Layers that are worked on at once: unpacking needs a core each.
const WORKERS: usize = 4;

/// The largest window that a zstd frame may ask for: 2^27 bytes (the zstd command's default limit).
const ZSTD_WINDOW_LOG: u32 = 27;

/// Headers and padding of a tar, for each entry, on top of the bytes of files.
const TAR_OVERHEAD: u64 = 4096;

/// How often a pull starts again when a prune has removed its layers meanwhile.
const ATTEMPTS: usize = 3;

impl Store {
    /// Fetches the image, or only what of it is not here. Blocks, perhaps for minutes.
    ///
    /// # Errors
    /// Whatever is wrong with the source or its content; nothing of the image is then visible. What was complete of it
    /// stays, and is not fetched again.
    pub fn pull(&self, reference: &Reference, progress: &dyn Progress) -> Result<Image, ImageError> {
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
        for _ in 0..ATTEMPTS {
            self.fetch_layers(source, &resolved.layers, progress)?;
            if let Some(image) = self.commit(reference, &resolved)? {
                return Ok(image);
            }
        }
        Err(ImageError::NotFound(format!("{reference}: its layers were pruned while it was pulled; try again")))
    }

    /// Makes an image of layers that are unpacked; `None` if one of them is gone.
    pub(super) fn commit(&self, reference: &Reference, resolved: &Resolved) -> Result<Option<Image>, ImageError> {
        self.write_blob(&resolved.digest, &resolved.manifest)?;
        self.write_blob(&resolved.config_digest, &resolved.config)?;
        let diff_ids: Vec<_> = resolved.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let Some(layers) = assemble::lowerdirs(self, &diff_ids)? else { return Ok(None) };
        let pulled_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let record = Record {
            reference: reference.to_string(),
            manifest: resolved.digest.clone(),
            config: resolved.config_digest.clone(),
            layers,
            pulled_at,
        };
        if self.commit_image(reference, &record)? { self.lookup(reference) } else { Ok(None) }
    }

    fn fetch_layers(&self, source: &dyn Source, layers: &[Layer], progress: &dyn Progress) -> Result<(), ImageError> {
        // The biggest first, so that the last one running is a small one.
        let mut queue: Vec<&Layer> = layers.iter().collect();
        queue.sort_by_key(|layer| std::cmp::Reverse(layer.size));
        queue.dedup_by(|a, b| a.diff_id == b.diff_id);
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let first_error = Mutex::new(None);
        let work = || {
            while !stop.load(Ordering::Relaxed)
                && let Some(layer) = queue.get(next.fetch_add(1, Ordering::Relaxed))
            {
                if let Err(error) = self.fetch_layer(source, layer, progress) {
                    stop.store(true, Ordering::Relaxed);
                    first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        };
        thread::scope(|scope| {
            let cores = thread::available_parallelism().map_or(2, usize::from);
            for _ in 1..queue.len().min(WORKERS).min(cores.max(2)) {
                scope.spawn(work);
            }
            work();
        });
        first_error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Fetches and unpacks one layer, unless it is here or somebody else has just done it.
    fn fetch_layer(&self, source: &dyn Source, layer: &Layer, progress: &dyn Progress) -> Result<(), ImageError> {
        let name = layer_name(&layer.diff_id);
        progress.start(&layer.digest, layer.size);
        if !self.has_layer(&name) {
            let _turn = self.lock_layer(&name)?;
            if !self.has_layer(&name) {
                let stream = source.blob(&layer.digest, layer.size)?;
                let stream = Reporting { stream, layer: &layer.digest, progress };
                self.unpack_layer(stream, Some((&layer.digest, layer.size)), Some(&layer.diff_id))?;
            }
        }
        progress.finish(&layer.digest);
        Ok(())
    }

    /// Unpacks a stream into a layer, verifying what is known of it beforehand. Returns its diff id. The caller holds the
    /// layer's lock if the diff id is known.
    pub(super) fn unpack_layer(
        &self,
        stream: impl Read,
        blob: Option<(&Digest, u64)>,
        diff_id: Option<&Digest>,
    ) -> Result<Digest, ImageError> {
        let limits = self.settings.limits;
        let placeholder = Digest::of(b"");
        let shown = blob.map_or(diff_id.unwrap_or(&placeholder), |(digest, _)| digest).clone();
        let root = self.temporary_path();
        std::fs::create_dir(&root).map_err(|error| ImageError::Store(root.clone(), error))?;
        let unpacked = (|| {
            let refused = |source| ImageError::Layer { digest: shown.clone(), source };
            let mut blob_stream = Hashing::new(stream, blob.map_or(u64::MAX, |(_, size)| size));
            let plain_limit = limits.max_bytes.saturating_add(limits.max_entries.saturating_mul(TAR_OVERHEAD));
            let (found_diff_id, contents) = {
                let decoder = decompress(&mut blob_stream)
                    .map_err(|error| refused(LayerError::Tar(layer::TarError::Read(error))))?;
                let mut plain = Hashing::new(decoder, plain_limit);
                let contents = layer::unpack(&mut plain, &root, limits).map_err(refused)?;
                (plain.finish().0, contents)
            };
            // What follows the compressed data is part of the blob.
            io::copy(&mut blob_stream, &mut io::sink())
                .map_err(|error| refused(LayerError::Tar(layer::TarError::Read(error))))?;
            let (found, size) = blob_stream.finish();
            if let Some((digest, expected)) = blob {
                let digest = digest.clone();
                if size != expected {
                    return Err(ImageError::SizeMismatch { what: "layer", digest, expected });
                }
                if found != digest {
                    return Err(ImageError::DigestMismatch { what: "layer", digest });
                }
            }
            if let Some(expected) = diff_id.filter(|expected| **expected != found_diff_id) {
                return Err(ImageError::DiffIdMismatch { digest: shown.clone(), expected: expected.clone() });
            }
            Ok((found_diff_id, contents))
        })();
        let committed = unpacked.and_then(|(found, contents)| {
            let name = layer_name(&found);
            // Without a diff id beforehand the layer may be here already.
            let _turn = if diff_id.is_none() { Some(self.lock_layer(&name)?) } else { None };
            if !self.has_layer(&name) {
                self.commit_layer(&name, &root, &contents)?;
            }
            Ok(found)
        });
        // What was not committed: a failure, or a layer that was here already.
        remove_tree(&root).map_err(|error| ImageError::Store(root, error))?;
        committed
    }
}

/// Passes on how much has arrived.
struct Reporting<'a, R> {
    stream: R,
    layer: &'a Digest,
    progress: &'a dyn Progress,
}

impl<R: Read> Read for Reporting<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.stream.read(buffer)?;
        self.progress.advance(self.layer, length as u64);
        Ok(length)
    }
}

/// Decompresses by what the data itself says; media types lie now and then.
fn decompress<'a, R: Read + 'a>(stream: R) -> io::Result<Box<dyn Read + 'a>> {
    let mut stream = BufReader::with_capacity(128 << 10, stream);
    let start = io::BufRead::fill_buf(&mut stream)?;
    if start.starts_with(&[0x1f, 0x8b]) {
        Ok(Box::new(MultiGzDecoder::new(stream)))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || (start.len() > 4 && start[1..4] == [0x2a, 0x4d, 0x18]) {
        let mut decoder = zstd::Decoder::with_buffer(stream)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG)?;
        Ok(Box::new(decoder))
    } else {
        Ok(Box::new(stream))
    }
}
