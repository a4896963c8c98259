//! From whatever a source calls the image to the manifest for this machine (OCI image spec, manifest.md, image-index.md;
//! Docker image manifest version 2, schema 2).

use std::io::Read;

use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, Os};

use super::{Digest, ImageError};

/// Larger documents are refused.
const MAX_MANIFEST: u64 = 4 << 20;
const MAX_CONFIG: u64 = 8 << 20;

/// As many as overlayfs can stack with our names (docs/images.md).
const MAX_LAYERS: usize = 128;

/// How deep an index may lead to another.
const MAX_DEPTH: usize = 3;

/// Where an image is read from.
pub(super) trait Source: Sync {
    /// For messages.
    fn name(&self) -> String;

    /// The manifest or index that the reference points to.
    fn top(&self) -> Result<Vec<u8>, ImageError>;

    /// A manifest by its digest. The caller verifies it.
    fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, ImageError>;

    /// A blob of `size` bytes, read from its start. The caller verifies it.
    fn blob(&self, digest: &Digest, size: u64) -> Result<Box<dyn Read + Send + '_>, ImageError>;
}

/// What is needed to assemble an image.
pub(super) struct Resolved {
    pub digest: Digest,
    pub manifest: Vec<u8>,
    pub config_digest: Digest,
    pub config: Vec<u8>,
    /// Lowest first.
    pub layers: Vec<Layer>,
}

/// A layer as the manifest and the configuration describe it.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub digest: Digest,
    pub size: u64,
    pub diff_id: Digest,
}

/// Finds the manifest for this machine and reads the configuration. Everything is verified.
pub(super) fn resolve(source: &dyn Source) -> Result<Resolved, ImageError> {
    let mut bytes = source.top()?;
    for _ in 0..MAX_DEPTH {
        match parse(source, &bytes)? {
            Document::Image(manifest) => return complete(source, bytes, &manifest),
            Document::Index(index) => {
                let chosen = choose(source, &index)?;
                let digest = checked_digest(source, chosen)?;
                bytes = source.manifest(&digest)?;
                verify("manifest", &digest, chosen.size(), &bytes)?;
            }
        }
    }
    Err(invalid(source, "the index", "an index in an index in an index"))
}

enum Document {
    Image(Box<ImageManifest>),
    Index(Box<ImageIndex>),
}

fn parse(source: &dyn Source, bytes: &[u8]) -> Result<Document, ImageError> {
    if bytes.len() as u64 > MAX_MANIFEST {
        return Err(invalid(source, "the manifest", "larger than 4 MiB"));
    }
    let json: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|error| invalid(source, "the manifest", error.to_string()))?;
    // One document that is both could mean one thing to us and another to somebody else (CVE-2021-41190).
    match (json.get("layers").is_some(), json.get("manifests").is_some()) {
        (true, false) => ImageManifest::from_reader(bytes)
            .map(|manifest| Document::Image(Box::new(manifest)))
            .map_err(|error| invalid(source, "the manifest", error.to_string())),
        (false, true) => ImageIndex::from_reader(bytes)
            .map(|index| Document::Index(Box::new(index)))
            .map_err(|error| invalid(source, "the index", error.to_string())),
        (true, true) => Err(invalid(source, "the manifest", "both an image and an index")),
        (false, false) => {
            Err(invalid(source, "the manifest", "neither an image nor an index (schema 1 is not supported)"))
        }
    }
}

fn choose<'a>(source: &dyn Source, index: &'a ImageIndex) -> Result<&'a Descriptor, ImageError> {
    let architecture = Arch::default();
    let fits = |descriptor: &&Descriptor| match descriptor.platform() {
        Some(platform) => *platform.os() == Os::Linux && *platform.architecture() == architecture,
        // A layout with one image often says nothing of platforms.
        None => index.manifests().len() == 1,
    };
    index
        .manifests()
        .iter()
        .find(fits)
        .ok_or_else(|| ImageError::NoPlatform { image: source.name(), architecture: architecture.to_string() })
}

fn complete(source: &dyn Source, bytes: Vec<u8>, manifest: &ImageManifest) -> Result<Resolved, ImageError> {
    let config_digest = checked_digest(source, manifest.config())?;
    let size = manifest.config().size();
    if size > MAX_CONFIG {
        return Err(invalid(source, "the configuration", "larger than 8 MiB"));
    }
    let mut config = Vec::new();
    let blob = source.blob(&config_digest, size)?;
    blob.take(size + 1).read_to_end(&mut config).map_err(|error| ImageError::Source(source.name(), error))?;
    verify("configuration", &config_digest, size, &config)?;
    let parsed = ImageConfiguration::from_reader(&config[..])
        .map_err(|error| invalid(source, "the configuration", error.to_string()))?;
    let diff_ids = parsed.rootfs().diff_ids();
    let descriptors = manifest.layers();
    if descriptors.len() != diff_ids.len() {
        let why = format!("{} layers in the manifest and {} in the configuration", descriptors.len(), diff_ids.len());
        return Err(invalid(source, "the manifest", why));
    }
    if descriptors.is_empty() || descriptors.len() > MAX_LAYERS {
        let why = format!("{} layers; between 1 and {MAX_LAYERS} are supported", descriptors.len());
        return Err(invalid(source, "the manifest", why));
    }
    let layer = |(descriptor, diff_id): (&Descriptor, &String)| {
        let diff_id = diff_id.parse().map_err(|_| invalid(source, "the configuration", "a diff id is not a digest"))?;
        Ok(Layer { digest: checked_digest(source, descriptor)?, size: descriptor.size(), diff_id })
    };
    let layers = descriptors.iter().zip(diff_ids).map(layer).collect::<Result<_, _>>()?;
    Ok(Resolved { digest: Digest::of(&bytes), manifest: bytes, config_digest, config, layers })
}

/// Whether the bytes are what was announced.
pub(super) fn verify(what: &'static str, digest: &Digest, size: u64, bytes: &[u8]) -> Result<(), ImageError> {
    if bytes.len() as u64 != size {
        return Err(ImageError::SizeMismatch { what, digest: digest.clone(), expected: size });
    }
    if Digest::of(bytes) != *digest {
        return Err(ImageError::DigestMismatch { what, digest: digest.clone() });
    }
    Ok(())
}

fn checked_digest(source: &dyn Source, descriptor: &Descriptor) -> Result<Digest, ImageError> {
    let digest = descriptor.digest().to_string();
    digest.parse().map_err(|_| invalid(source, "the manifest", format!("{digest:?} is not a sha256 digest")))
}

pub(super) fn invalid(source: &dyn Source, what: &'static str, why: impl Into<String>) -> ImageError {
    ImageError::Invalid { image: source.name(), what, why: why.into() }
}
