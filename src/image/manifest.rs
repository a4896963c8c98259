//! From whatever a source calls the image to the manifest for this machine (OCI image spec, manifest.md, image-index.md;
//! Docker image manifest version 2, schema 2).

use std::io::Read;

use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, Os};

use super::{Digest, ImageError};

/// Larger documents are refused.
const MAX_MANIFEST: u64 = 4 << 20;
const MAX_CONFIG: u64 = 8 << 20;

/// As many as overlayfs can stack with our names.
const MAX_LAYERS: usize = 128;

/// How deep an index may lead to another.
const MAX_DEPTH: usize = 3;

const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// What the types of all layers start with, those that may not be distributed included: a registry that has them anyway
/// may be asked.
const LAYER_TYPES: [&str; 2] = ["application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."];

/// Where an image is read from.
pub(super) trait Source: Sync {
    /// For messages.
    fn name(&self) -> String;

    /// The manifest or index that the reference points to.
    fn top(&self) -> Result<Document, ImageError>;

    /// A manifest by its digest. The caller verifies it.
    fn manifest(&self, digest: &Digest) -> Result<Document, ImageError>;

    /// How many places have its blobs, or may have them.
    fn places(&self) -> usize {
        1
    }

    /// A blob of `size` bytes, read from its start, from the first place that has it, starting with number `from`. The caller
    /// verifies it.
    fn blob(&self, digest: &Digest, size: u64, from: usize) -> Result<Blob<'_>, ImageError>;
}

/// A manifest or index, and what its source says it is.
pub(super) struct Document {
    pub media_type: Option<String>,
    pub bytes: Vec<u8>,
}

/// A blob that is being read, and the number of the place that it comes from.
pub(super) struct Blob<'a> {
    pub place: usize,
    pub stream: Box<dyn Read + Send + 'a>,
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
    let mut document = source.top()?;
    for _ in 0..MAX_DEPTH {
        match parse(source, &document)? {
            Parsed::Image(manifest) => return complete(source, document.bytes, &manifest),
            Parsed::Index(index) => {
                let chosen = choose(source, &index)?;
                let digest = checked_digest(source, chosen)?;
                document = source.manifest(&digest)?;
                verify("manifest", &digest, chosen.size(), &document.bytes)?;
                // Whoever has chosen the entry has chosen it for what it is said to be.
                document.media_type = Some(chosen.media_type().to_string());
            }
        }
    }
    Err(invalid(source, "the index", "an index in an index in an index"))
}

enum Parsed {
    Image(Box<ImageManifest>),
    Index(Box<ImageIndex>),
}

fn parse(source: &dyn Source, document: &Document) -> Result<Parsed, ImageError> {
    let bytes = &document.bytes[..];
    if bytes.len() as u64 > MAX_MANIFEST {
        return Err(invalid(source, "the manifest", "larger than 4 MiB"));
    }
    let json: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|error| invalid(source, "the manifest", error.to_string()))?;
    let said = json.get("mediaType").and_then(serde_json::Value::as_str);
    // One document that is both could mean one thing to us and another to somebody else (CVE-2021-41190).
    let index = match (json.get("layers").is_some(), json.get("manifests").is_some()) {
        (true, false) => false,
        (false, true) => true,
        (true, true) => return Err(invalid(source, "the manifest", "both an image and an index")),
        (false, false) => {
            return Err(invalid(source, "the manifest", "neither an image nor an index (schema 1 is not supported)"));
        }
    };
    for media_type in [said, document.media_type.as_deref()].into_iter().flatten() {
        let index_type = media_type.contains("manifest.list.") || media_type.contains("image.index.");
        let manifest_type = media_type.contains("manifest.v");
        // A server that knows nothing of types may say anything else.
        if (index_type || manifest_type) && index_type != index {
            return Err(invalid(source, "the manifest", format!("it is no {media_type}")));
        }
    }
    let why = |error: oci_spec::OciSpecError| error.to_string();
    if index {
        let parsed = ImageIndex::from_reader(bytes).map_err(|error| invalid(source, "the index", why(error)))?;
        Ok(Parsed::Index(Box::new(parsed)))
    } else {
        let parsed = ImageManifest::from_reader(bytes).map_err(|error| invalid(source, "the manifest", why(error)))?;
        Ok(Parsed::Image(Box::new(parsed)))
    }
}

/// The entry that suits this machine best.
fn choose<'a>(source: &dyn Source, index: &'a ImageIndex) -> Result<&'a Descriptor, ImageError> {
    let architecture = Arch::default();
    let mut best = None;
    for descriptor in index.manifests() {
        let fit = match descriptor.platform() {
            Some(platform) if *platform.os() == Os::Linux && *platform.architecture() == architecture => {
                fit(&architecture, platform.variant().as_deref())
            }
            // Another platform, or none at all: attestations are `unknown/unknown`.
            Some(_) => None,
            // A layout with one image often says nothing of platforms.
            None => (index.manifests().len() == 1).then_some(0),
        };
        // The first of those that fit equally well.
        if let Some(fit) = fit
            && best.is_none_or(|(known, _)| fit > known)
        {
            best = Some((fit, descriptor));
        }
    }
    best.map(|(_, descriptor)| descriptor)
        .ok_or_else(|| ImageError::NoPlatform { image: source.name(), architecture: architecture.to_string() })
}

/// How well a variant of our architecture fits, `None` if it may use instructions that this machine has not.
fn fit(architecture: &Arch, variant: Option<&str>) -> Option<u8> {
    match (architecture, variant) {
        (_, None | Some("")) => Some(0),
        (Arch::Amd64, Some("v1")) | (Arch::ARM64, Some("v8")) => Some(1),
        (Arch::ARM, Some(variant)) => match variant {
            "v5" => Some(1),
            "v6" => Some(2),
            "v7" => Some(3),
            _ => None,
        },
        _ => None,
    }
}

fn complete(source: &dyn Source, bytes: Vec<u8>, manifest: &ImageManifest) -> Result<Resolved, ImageError> {
    let config_type = manifest.config().media_type().to_string();
    if !CONFIG_TYPES.contains(&config_type.as_str()) {
        return Err(invalid(source, "the manifest", format!("of something else than an image ({config_type})")));
    }
    let config_digest = checked_digest(source, manifest.config())?;
    let config = small_blob(source, &config_digest, manifest.config().size())?;
    let parsed = ImageConfiguration::from_reader(&config[..])
        .map_err(|error| invalid(source, "the configuration", error.to_string()))?;
    let architecture = Arch::default();
    if *parsed.os() != Os::Linux || *parsed.architecture() != architecture {
        return Err(ImageError::NoPlatform { image: source.name(), architecture: architecture.to_string() });
    }
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
        let media_type = descriptor.media_type().to_string();
        if !LAYER_TYPES.iter().any(|known| media_type.starts_with(known)) {
            return Err(invalid(source, "the manifest", format!("a layer of the unknown type {media_type}")));
        }
        let diff_id = diff_id.parse().map_err(|_| invalid(source, "the configuration", "a diff id is not a digest"))?;
        Ok(Layer { digest: checked_digest(source, descriptor)?, size: descriptor.size(), diff_id })
    };
    let layers = descriptors.iter().zip(diff_ids).map(layer).collect::<Result<_, _>>()?;
    Ok(Resolved { digest: Digest::of(&bytes), manifest: bytes, config_digest, config, layers })
}

/// Reads the configuration, from one place after the other while what comes is not what was promised.
fn small_blob(source: &dyn Source, digest: &Digest, size: u64) -> Result<Vec<u8>, ImageError> {
    if size > MAX_CONFIG {
        return Err(invalid(source, "the configuration", "larger than 8 MiB"));
    }
    let mut place = 0;
    loop {
        let blob = source.blob(digest, size, place)?;
        place = blob.place + 1;
        let mut bytes = Vec::new();
        let read = blob.stream.take(size + 1).read_to_end(&mut bytes);
        read.map_err(|error| ImageError::Source(source.name(), error))?;
        match verify("configuration", digest, size, &bytes) {
            Ok(()) => return Ok(bytes),
            Err(_) if place < source.places() => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether the bytes are what was announced.
fn verify(what: &'static str, digest: &Digest, size: u64, bytes: &[u8]) -> Result<(), ImageError> {
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Documents by digest.
    struct Documents(Vec<Vec<u8>>, Option<String>);

    impl Source for Documents {
        fn name(&self) -> String {
            "test".to_owned()
        }

        fn top(&self) -> Result<Document, ImageError> {
            Ok(Document { media_type: self.1.clone(), bytes: self.0[0].clone() })
        }

        fn manifest(&self, digest: &Digest) -> Result<Document, ImageError> {
            let found = self.0.iter().find(|bytes| Digest::of(bytes) == *digest).cloned();
            let bytes = found.ok_or_else(|| ImageError::NotFound(digest.to_string()))?;
            Ok(Document { media_type: None, bytes })
        }

        fn blob(&self, digest: &Digest, _size: u64, _from: usize) -> Result<Blob<'_>, ImageError> {
            let stream = Box::new(std::io::Cursor::new(self.manifest(digest)?.bytes));
            Ok(Blob { place: 0, stream })
        }
    }

    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";

    fn bytes(value: &Value) -> Vec<u8> {
        value.to_string().into_bytes()
    }

    fn descriptor(media_type: &str, content: &[u8]) -> Value {
        json!({"mediaType": media_type, "digest": Digest::of(content), "size": content.len()})
    }

    fn config(architecture: &str) -> Vec<u8> {
        let diff_id = Digest::of(b"tar");
        bytes(&json!({
            "architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "config": {"Env": null, "Cmd": null, "Entrypoint": null, "Labels": null, "Volumes": null,
                       "ExposedPorts": null, "OnBuild": null, "User": "", "WorkingDir": "", "Hostname": "x"},
            "history": null, "container": "docker's", "docker_version": "1.9",
        }))
    }

    fn manifest(config: &[u8]) -> Value {
        json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor(CONFIG_TYPES[0], config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", b"layer")],
        })
    }

    fn ours() -> Vec<u8> {
        config(&Arch::default().to_string())
    }

    fn error_of(documents: Vec<Vec<u8>>) -> String {
        match resolve(&Documents(documents, None)) {
            Ok(_) => "none".to_owned(),
            Err(error) => crate::errors::chain(error),
        }
    }

    #[test]
    fn the_best_variant_of_our_platform_is_chosen_and_attestations_are_not() {
        let manifests: Vec<Vec<u8>> = (0..5)
            .map(|number| {
                let mut manifest = manifest(&ours());
                manifest["annotations"] = json!({"number": number.to_string()});
                bytes(&manifest)
            })
            .collect();
        let entry = |at: usize, architecture: &str, os: &str, variant: Option<&str>| {
            let mut entry = descriptor(MANIFEST, &manifests[at]);
            entry["platform"] = json!({"architecture": architecture, "os": os});
            if let Some(variant) = variant {
                entry["platform"]["variant"] = variant.into();
            }
            entry
        };
        let (here, better) = (Arch::default().to_string(), if cfg!(target_arch = "x86_64") { "v1" } else { "v8" });
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
            entry(0, "unknown", "unknown", None),
            entry(1, "mips64le", "linux", None),
            entry(2, &here, "linux", Some("v99")),
            entry(3, &here, "linux", None),
            entry(4, &here, "linux", Some(better)),
        ]});
        let mut documents = vec![bytes(&index), ours()];
        documents.extend(manifests.clone());
        let resolved = resolve(&Documents(documents, Some(INDEX.to_owned()))).unwrap();
        assert_eq!(resolved.digest, Digest::of(&manifests[4]));

        let nothing = json!({"schemaVersion": 2, "manifests": [entry(0, "unknown", "unknown", None)]});
        assert!(error_of(vec![bytes(&nothing)]).contains("not available for linux/"));
    }

    #[test]
    fn documents_that_are_not_what_they_say_are_refused() {
        let good = manifest(&ours());
        let edit = |edit: &dyn Fn(&mut Value)| {
            let mut edited = good.clone();
            edit(&mut edited);
            error_of(vec![bytes(&edited), ours()])
        };
        assert_eq!(edit(&|_| {}), "none");
        type Edit = Box<dyn Fn(&mut Value)>;
        let table: Vec<(&str, Edit)> = vec![
            ("both an image and an index", Box::new(|m| m["manifests"] = json!([]))),
            ("it is no application/vnd.oci.image.index", Box::new(|m| m["mediaType"] = INDEX.into())),
            ("neither an image", Box::new(|m| drop(m.as_object_mut().unwrap().remove("layers")))),
            ("something else than an image", Box::new(|m| m["config"]["mediaType"] = "application/x".into())),
            ("of the unknown type", Box::new(|m| m["layers"][0]["mediaType"] = "application/x".into())),
            ("2 layers in the manifest and 1", Box::new(|m| m["layers"] = json!([m["layers"][0], m["layers"][0]]))),
            ("larger than 8 MiB", Box::new(|m| m["config"]["size"] = (9 << 20).into())),
            ("is not 5 bytes long", Box::new(|m| m["config"]["size"] = 5.into())),
            ("larger than 4 MiB", Box::new(|m| m["annotations"] = json!({"x": "x".repeat(5 << 20)}))),
        ];
        for (expected, change) in table {
            let error = edit(&*change);
            assert!(error.contains(expected), "{expected}: {error}");
        }
        let other = config("mips64le");
        assert!(error_of(vec![bytes(&manifest(&other)), other]).contains("not available for linux/"));
        let traversal = edit(&|m| m["layers"][0]["digest"] = "sha256:../../../../etc/passwd".into());
        assert!(traversal.contains("not valid") || traversal.contains("not a sha256"), "{traversal}");
    }

    #[test]
    fn an_index_may_lead_to_an_index_but_not_for_ever() {
        let image = bytes(&manifest(&ours()));
        let index = |of: &[u8], media_type: &str| {
            bytes(&json!({"schemaVersion": 2, "manifests": [descriptor(media_type, of)]}))
        };
        let inner = index(&image, MANIFEST);
        let outer = index(&inner, INDEX);
        assert_eq!(error_of(vec![outer.clone(), inner.clone(), image.clone(), ours()]), "none");
        let third = index(&outer, INDEX);
        assert!(error_of(vec![third, outer, inner.clone(), image.clone(), ours()]).contains("index in an index"));
        let confused = index(&image, INDEX);
        assert!(error_of(vec![confused, image, ours()]).contains("it is no"));
    }
}
