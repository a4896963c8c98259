//! Pushing: an image of the store is put into a registry, its layers several at once.

use std::{fs::File, io::Read, sync::atomic::AtomicBool};

use oci_spec::image::MediaType;
use serde_json::{Value, json};

use super::{
    Digest, Image, ImageError, Progress, Reference, Store,
    digest::DigestError,
    pack::Packed,
    registry::Upload,
    side_by_side::{self, Reporting, Stoppable},
    store::Layer,
};

impl Store {
    /// Uploads the image to where `to` says. Returns the digest that it has there. Blocks, perhaps for minutes.
    ///
    /// Where the registry has all layers as they were pulled, or takes them over from the repository that they were pulled
    /// from, the image is the same to the byte. Otherwise its layers are packed anew, which gives it another digest.
    ///
    /// # Errors
    /// Also if `to` is not a tag of a registry. Nothing has that tag then, though blobs may have been uploaded.
    pub fn push(&self, image: &Image, to: &Reference, progress: &dyn Progress) -> Result<Digest, ImageError> {
        let destination = match to {
            Reference::Registry(destination) if to.can_be_pushed_to() => destination,
            _ => return Err(ImageError::NoDestination(to.to_string())),
        };
        progress.line(&format!("pushing {} to {to}", image.reference));
        let from = match image.reference.parse() {
            Ok(Reference::Registry(from)) => Some(from),
            // It was made here.
            _ => None,
        };
        let upload = Upload::open(destination, from.as_ref(), &self.settings)?;
        let push = Push { store: self, upload, progress, stop: AtomicBool::new(false) };
        let documents = match push.as_pulled(image)? {
            Some(documents) => documents,
            None => push.packed(image)?,
        };
        push.document(&documents.config)?;
        push.upload.manifest(&documents.media_type, &documents.manifest)?;
        Ok(Digest::of(&documents.manifest))
    }
}

/// A push that is under way.
struct Push<'a> {
    store: &'a Store,
    upload: Upload,
    progress: &'a dyn Progress,
    /// Set when one layer has failed: the others are not needed any more.
    stop: AtomicBool,
}

struct Documents {
    media_type: String,
    manifest: Vec<u8>,
    config: Vec<u8>,
}

impl Push<'_> {
    /// The image's own documents, if the registry has all layers that they name.
    fn as_pulled(&self, image: &Image) -> Result<Option<Documents>, ImageError> {
        let (manifest, config) = self.store.documents(image)?;
        let parsed: Value = serde_json::from_slice(&manifest).unwrap_or_default();
        let layers = parsed["layers"].as_array().map(Vec::as_slice).unwrap_or_default();
        for layer in layers {
            let Some(digest) = layer["digest"].as_str().and_then(|text| text.parse().ok()) else { return Ok(None) };
            if !self.upload.has(&digest)? && !self.upload.mount(&digest)? {
                return Ok(None);
            }
            self.progress.line(&format!("layer {} is there already", digest.short()));
        }
        let media_type = parsed["mediaType"].as_str().unwrap_or(MediaType::ImageManifest.as_ref()).to_owned();
        Ok(Some(Documents { media_type, manifest, config }))
    }

    /// Documents for the layers as they are packed here, which are uploaded.
    fn packed(&self, image: &Image) -> Result<Documents, ImageError> {
        let layers = self.layers(image)?;
        let layers = side_by_side::all(&layers, &self.stop, |layer| self.layer(layer))?;
        let (_, config) = self.store.documents(image)?;
        let invalid = |error: serde_json::Error| ImageError::Invalid {
            image: image.reference.clone(),
            what: "the configuration",
            why: error.to_string(),
        };
        let mut config: Value = serde_json::from_slice(&config).map_err(invalid)?;
        let diff_ids: Vec<&Digest> = layers.iter().map(|layer| &layer.diff_id).collect();
        config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
        // It tells of each layer what made it, which holds only if they are still as many.
        let told = config["history"]
            .as_array()
            .map_or(0, |history| history.iter().filter(|entry| entry["empty_layer"].as_bool() != Some(true)).count());
        if told != layers.len()
            && let Some(config) = config.as_object_mut()
        {
            config.remove("history");
        }
        let config = config.to_string().into_bytes();
        let descriptor = |media_type: MediaType, digest: &Digest, size: u64| json!({"mediaType": media_type.as_ref(), "digest": digest, "size": size});
        let media_type = MediaType::ImageManifest.as_ref();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": descriptor(MediaType::ImageConfig, &Digest::of(&config), config.len() as u64),
            "layers": layers
                .iter()
                .map(|layer| descriptor(MediaType::ImageLayerGzip, &layer.digest, layer.size))
                .collect::<Vec<_>>(),
        });
        Ok(Documents { media_type: media_type.to_owned(), manifest: manifest.to_string().into_bytes(), config })
    }

    /// The layers that the image's maker has made, lowest first. Those that put links and directories right are ours, and are
    /// made anew by whoever stacks them; and what an opaque layer hides need not be here.
    fn layers(&self, image: &Image) -> Result<Vec<Layer>, ImageError> {
        let mut layers = Vec::new();
        for diff_id in image.config.rootfs().diff_ids() {
            let diff_id = diff_id.parse().map_err(|error: DigestError| ImageError::Invalid {
                image: image.reference.clone(),
                what: "the configuration",
                why: error.to_string(),
            })?;
            match self.store.layer(&diff_id)?.filter(|layer| image.layers.contains(&layer.lowerdir)) {
                Some(layer) => layers.push(layer),
                None if layers.is_empty() => {}
                None => return Err(ImageError::NotFound(format!("layer {diff_id} of {}", image.reference))),
            }
        }
        Ok(layers)
    }

    /// Packs a layer and uploads it, unless it was packed before and the registry has that.
    fn layer(&self, layer: &Layer) -> Result<Packed, ImageError> {
        if let Some(packed) = self.store.packed_before(layer)?
            && self.upload.has(&packed.digest)?
        {
            self.progress.line(&format!("layer {} is there already", packed.digest.short()));
            return Ok(packed);
        }
        let scratch = self.store.new_scratch()?;
        let file = scratch.path().join("layer.tar.gz");
        let packed = self.store.pack(layer, &file, &self.stop)?;
        self.store.keep_packed(layer, &packed)?;
        self.progress.start(&packed.digest, packed.size);
        if !self.upload.has(&packed.digest)? {
            self.upload.blob(&packed.digest, packed.size, &|| {
                let stream = Stoppable { stream: File::open(&file)?, store: self.store, stop: &self.stop };
                Ok(Box::new(Reporting { stream, layer: &packed.digest, progress: self.progress }) as Box<dyn Read>)
            })?;
        }
        self.progress.finish(&packed.digest);
        Ok(packed)
    }

    /// Uploads something small.
    fn document(&self, bytes: &[u8]) -> Result<(), ImageError> {
        let digest = Digest::of(bytes);
        if self.upload.has(&digest)? {
            return Ok(());
        }
        self.upload.blob(&digest, bytes.len() as u64, &|| Ok(Box::new(bytes) as Box<dyn Read>))
    }
}
