//! Images of the store, and what is kept for builds.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::image::{self, Contents, KeptFile};

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub reference: String,
    /// Of its manifest.
    pub digest: String,
    /// Of all files.
    pub bytes: u64,
    /// Their names in the store, uppermost first.
    pub layers: Vec<String>,
    /// RFC 3339.
    pub pulled_at: String,
    /// Of an image that a step of a Podfile has led to: that step.
    pub step: Option<String>,
}

impl Image {
    pub fn of(image: &image::Image) -> Self {
        Self {
            reference: image.reference.clone(),
            digest: image.id.to_string(),
            bytes: image.bytes,
            layers: image.layers.clone(),
            pulled_at: shown(image.pulled_at),
            step: None,
        }
    }

    pub fn of_step(built: &image::Built) -> Self {
        Self { step: Some(built.step.clone()), ..Self::of(&built.image) }
    }
}

/// All that is known of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageDetails {
    pub reference: String,
    pub digest: String,
    pub bytes: u64,
    /// Uppermost first.
    pub layers: Vec<Layer>,
    pub pulled_at: String,
    /// As the OCI image specification has it.
    pub config: Value,
}

/// A layer, unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    pub name: String,
    pub entries: u64,
    pub bytes: u64,
    /// Paths of device nodes that it has and containers have not.
    pub skipped_devices: Vec<String>,
}

impl ImageDetails {
    /// `contents` are those of the image's layers, in their order.
    pub fn of(image: &image::Image, contents: &[Contents]) -> Result<Self, serde_json::Error> {
        let layer = |(name, contents): (&String, &Contents)| Layer {
            name: name.clone(),
            entries: contents.entries,
            bytes: contents.bytes,
            skipped_devices: contents.skipped_devices.iter().map(|path| path.to_string_lossy().into_owned()).collect(),
        };
        let Image { reference, digest, bytes, pulled_at, .. } = Image::of(image);
        let layers = image.layers.iter().zip(contents).map(layer).collect();
        Ok(Self { reference, digest, bytes, layers, pulled_at, config: serde_json::to_value(&image.config)? })
    }
}

/// An image that there is now, or is somewhere else now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageId {
    /// Of its manifest.
    pub digest: String,
}

/// What was removed because no image needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    pub layers: usize,
    /// Of the files in them.
    pub bytes: u64,
}

/// A file that is kept for builds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedFile {
    /// `language` for the archive of one, `package` for a package that a build has downloaded.
    pub kind: String,
    pub digest: String,
    pub bytes: u64,
    /// When it was used last, RFC 3339.
    pub used_at: String,
}

impl CachedFile {
    pub fn of(kind: &str, file: &KeptFile) -> Self {
        Self { kind: kind.to_owned(), digest: file.digest.to_string(), bytes: file.bytes, used_at: shown(file.used) }
    }
}

fn shown(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
