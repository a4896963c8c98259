//! Images that steps of a Podfile have led to, by the key of the step.
//!
//! `builds/HEX.json` says which image; when it was used last is the time of the file. A key cannot be written as the name of
//! an image, so nobody can have one pulled into its place.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::fcntl::FlockArg;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Image, ImageRecord, RefRecord, Store,
    files::{names, read_json, remove_file},
};
use crate::image::{Digest, ImageError, Reference, assemble::MAX_LAYERS, commit::Upper, layer::Budget};

/// `builds/HEX.json`
#[derive(Serialize, Deserialize)]
struct BuildRecord {
    image: Digest,
    /// What was done, for people.
    step: String,
    built_at: u64,
}

/// An image that a step has led to.
#[derive(Debug, Clone)]
pub struct Built {
    pub image: Image,
    pub step: String,
    pub used_at: SystemTime,
}

impl Store {
    fn build_path(&self, key: &Digest) -> PathBuf {
        self.path("builds").join(format!("{}.json", key.hex()))
    }

    /// How many of these steps, each on top of the ones before it, have been done, and the image that the last of them led
    /// to. All of them count as used now.
    pub fn built(&self, keys: &[Digest]) -> Result<Option<(usize, Image)>, ImageError> {
        for (place, key) in keys.iter().enumerate().rev() {
            let Some(built) = self.read_build(key)? else { continue };
            for used in &keys[..=place] {
                touch(&self.build_path(used))?;
            }
            return Ok(Some((place + 1, built.image)));
        }
        Ok(None)
    }

    fn read_build(&self, key: &Digest) -> Result<Option<Built>, ImageError> {
        let path = self.build_path(key);
        let Some(record) = read_json::<BuildRecord>(&path)? else { return Ok(None) };
        let used_at = match fs::metadata(&path).and_then(|meta| meta.modified()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| ImageError::Store(path, error))?,
        };
        let reference = format!("build:{}", key.short());
        let image =
            self.load(RefRecord { reference, image: record.image, pulled_at: record.built_at, refetchable: false })?;
        Ok(Some(Built { image, step: record.step, used_at }))
    }

    /// All of them, those that were used last at the end, and what is wrong with those that cannot be read.
    pub fn list_built(&self) -> Result<(Vec<Built>, Vec<ImageError>), ImageError> {
        let (mut built, mut damaged) = (Vec::new(), Vec::new());
        for key in self.build_keys()? {
            match self.read_build(&key) {
                Ok(found) => built.extend(found),
                Err(error) => damaged.push(error),
            }
        }
        built.sort_by_key(|built| built.used_at);
        Ok((built, damaged))
    }

    /// The file of each that can be read, and the image's id.
    pub(super) fn build_files(&self) -> Result<Vec<(PathBuf, Digest)>, ImageError> {
        let mut files = Vec::new();
        for key in self.build_keys()? {
            let path = self.build_path(&key);
            match read_json::<BuildRecord>(&path) {
                Ok(record) => files.extend(record.map(|record| (path, record.image))),
                Err(ImageError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(files)
    }

    fn build_keys(&self) -> Result<Vec<Digest>, ImageError> {
        let names = names(&self.path("builds"))?;
        let key = |name: &String| format!("sha256:{}", name.strip_suffix(".json")?).parse().ok();
        Ok(names.iter().filter_map(key).collect())
    }

    /// Makes the image of the step `key` out of what a container on top of `base` has changed. The container is gone.
    ///
    /// # Errors
    /// If that cannot be a layer. Nothing of it is kept.
    pub fn commit_step(&self, key: &Digest, base: &Image, upper: &Upper<'_>) -> Result<Image, ImageError> {
        let invalid =
            |what: &'static str, why: String| ImageError::Invalid { image: base.reference.clone(), what, why };
        let _leases = self.lease_all(&base.layers)?;
        let (layer, size) = self.commit_upper(upper, &Budget::new(self.settings.limits))?;
        let mut layers = vec![layer.lowerdir.clone()];
        // The same changes once more: all of the older ones are hidden, and overlayfs takes no directory twice.
        layers.extend(base.layers.iter().filter(|lowerdir| **lowerdir != layer.lowerdir).cloned());
        if layers.len() > MAX_LAYERS {
            return Err(invalid("the list of layers", format!("{} layers; {MAX_LAYERS} fit", layers.len())));
        }
        let below: ImageRecord = read_json(&self.image_path(&base.id))?
            .ok_or_else(|| ImageError::NotFound(format!("image {}", base.reference)))?;
        let document = |digest: &Digest| -> Result<Value, ImageError> {
            let json = serde_json::from_slice(&self.read_blob(digest)?);
            json.map_err(|error| invalid("a document", error.to_string()))
        };
        let built_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut config = document(&below.config)?;
        let added = push(&mut config["rootfs"]["diff_ids"], json!(layer.diff_id))
            && push(&mut config["history"], json!({"created_by": upper.source, "comment": "podspawn"}));
        let config = config.to_string().into_bytes();
        let mut manifest = document(&below.manifest)?;
        manifest["mediaType"] = json!("application/vnd.oci.image.manifest.v1+json");
        manifest["config"] = json!({
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::of(&config),
            "size": config.len(),
        });
        let described = json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": layer.diff_id,
            "size": size,
        });
        if !added || !push(&mut manifest["layers"], described) {
            return Err(invalid("its manifest or configuration", "it has no list of layers".to_owned()));
        }
        let manifest = manifest.to_string().into_bytes();
        let image = ImageRecord {
            manifest: Digest::of(&manifest),
            config: Digest::of(&config),
            layers,
            bytes: below.bytes + layer.contents.bytes,
        };
        self.keep_room()?;
        let record = BuildRecord { image: image.manifest.clone(), step: upper.source.to_owned(), built_at };
        let _lock = self.lock(FlockArg::LockExclusive)?;
        self.write_blob(&image.manifest, &manifest)?;
        self.write_blob(&image.config, &config)?;
        self.write_record(&self.image_path(&image.manifest), &image)?;
        self.write_record(&self.build_path(key), &record)?;
        let reference = format!("build:{}", key.short());
        self.load(RefRecord { reference, image: record.image, pulled_at: built_at, refetchable: false })
    }

    /// Gives an image one more name; an image that has it loses it.
    pub fn tag(&self, image: &Image, reference: &Reference) -> Result<Image, ImageError> {
        let pulled_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let record =
            RefRecord { reference: reference.to_string(), image: image.id.clone(), pulled_at, refetchable: false };
        let _lock = self.lock(FlockArg::LockExclusive)?;
        let named = self.load(record.clone())?;
        self.write_record(&self.ref_path(reference), &record)?;
        Ok(named)
    }

    /// Forgets the steps that nobody has used for so long. Returns the images of the others. The caller has the store's lock.
    pub(super) fn forget_builds(
        &self,
        unused_for: Duration,
        in_use: impl Fn(&Digest) -> bool,
    ) -> Result<Vec<Digest>, ImageError> {
        let now = SystemTime::now();
        let mut kept = Vec::new();
        for key in self.build_keys()? {
            let built = match self.read_build(&key) {
                Ok(built) => built,
                // Without what it needs it is of no use.
                Err(ImageError::Damaged { .. }) => None,
                Err(error) => return Err(error),
            };
            let old = |built: &Built| now.duration_since(built.used_at).is_ok_and(|age| age >= unused_for);
            match built {
                Some(built) if in_use(&built.image.id) || !old(&built) => kept.push(built.image.id),
                _ => remove_file(&self.build_path(&key))?,
            }
        }
        Ok(kept)
    }
}

/// Adds to a JSON array; one that is not there is made. False if it is something else.
fn push(list: &mut Value, value: Value) -> bool {
    match list {
        Value::Array(values) => values.push(value),
        Value::Null => *list = Value::Array(vec![value]),
        _ => return false,
    }
    true
}

/// Says that a file is used now.
pub(super) fn touch(path: &Path) -> Result<(), ImageError> {
    match File::options().write(true).open(path).and_then(|file| file.set_modified(SystemTime::now())) {
        // An older step may have been forgotten; its layer is a part of the later ones.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImageError::Store(path.to_owned(), error)),
        _ => Ok(()),
    }
}
