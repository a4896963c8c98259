//! Images on disk: OCI layouts, as a directory or a tar, and what `docker save` writes.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::json;

use super::{
    Digest, ImageError,
    digest::Hashing,
    manifest::{Source, invalid},
};

/// Files of an archive, and links in a row from one to another.
const MAX_FILES: usize = 65_536;
const MAX_LINKS: usize = 8;

/// Documents that are read whole.
const MAX_DOCUMENT: u64 = 8 << 20;

/// An OCI image layout (OCI image spec, image-layout.md).
pub(super) struct Layout {
    name: String,
    files: Files,
    tag: Option<String>,
}

/// Named files: below a directory, or in a tar.
enum Files {
    Directory(PathBuf),
    Tar { path: PathBuf, index: BTreeMap<String, Place> },
}

/// Where a file is in a tar.
enum Place {
    At { offset: u64, size: u64 },
    Link(String),
}

impl Files {
    fn tar(path: &Path) -> Result<Self, ImageError> {
        let failed = |error| ImageError::Source(path.display().to_string(), error);
        let mut archive = tar::Archive::new(File::open(path).map_err(failed)?);
        let mut index = BTreeMap::new();
        for entry in archive.entries_with_seek().map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.path().map_err(failed)?.to_string_lossy().trim_start_matches("./").to_owned();
            let place = match entry.header().entry_type() {
                tar::EntryType::Regular => Place::At { offset: entry.raw_file_position(), size: entry.size() },
                // Older dockers link a layer that is there twice.
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    let target = entry.link_name().map_err(failed)?.unwrap_or_default();
                    Place::Link(target.to_string_lossy().trim_start_matches("../").to_owned())
                }
                _ => continue,
            };
            index.insert(name, place);
            if index.len() > MAX_FILES {
                return Err(failed(io::Error::other("more files than an image archive can have")));
            }
        }
        Ok(Self::Tar { path: path.to_owned(), index })
    }

    fn open(&self, name: &str) -> io::Result<(Box<dyn Read + Send>, u64)> {
        match self {
            Self::Directory(path) => {
                let file = File::open(path.join(name))?;
                let size = file.metadata()?.len();
                Ok((Box::new(file), size))
            }
            Self::Tar { path, index } => {
                let mut name = name;
                for _ in 0..MAX_LINKS {
                    match index.get(name) {
                        None => break,
                        Some(Place::Link(target)) => name = target,
                        Some(Place::At { offset, size }) => {
                            let mut file = File::open(path)?;
                            file.seek(SeekFrom::Start(*offset))?;
                            return Ok((Box::new(file.take(*size)), *size));
                        }
                    }
                }
                Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no {name} in it")))
            }
        }
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let (stream, size) = self.open(name)?;
        if size > MAX_DOCUMENT {
            return Err(io::Error::other(format!("{name} is larger than 8 MiB")));
        }
        let mut bytes = Vec::new();
        stream.take(MAX_DOCUMENT).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

impl Layout {
    pub(super) fn directory(path: &Path, tag: Option<String>) -> Self {
        Self { name: format!("oci:{}", path.display()), files: Files::Directory(path.to_owned()), tag }
    }

    pub(super) fn archive(path: &Path) -> Result<Self, ImageError> {
        Ok(Self { name: format!("oci-archive:{}", path.display()), files: Files::tar(path)?, tag: None })
    }

    fn failed(&self) -> impl Fn(io::Error) -> ImageError + '_ {
        |error| ImageError::Source(self.name.clone(), error)
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

impl Source for Layout {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn top(&self) -> Result<Vec<u8>, ImageError> {
        const NAME: &str = "org.opencontainers.image.ref.name";
        let bytes = self.files.read("index.json").map_err(self.failed())?;
        let Some(tag) = &self.tag else { return Ok(bytes) };
        // A tag chooses one of the index's manifests.
        let mut index: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|error| invalid(self, "the index", error.to_string()))?;
        if let Some(manifests) = index["manifests"].as_array_mut() {
            manifests.retain(|manifest| manifest["annotations"][NAME] == tag.as_str());
            if manifests.is_empty() {
                return Err(ImageError::NotFound(format!("{}:{tag}", self.name)));
            }
        }
        Ok(index.to_string().into_bytes())
    }

    fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        self.files.read(&blob_name(digest)).map_err(self.failed())
    }

    fn blob(&self, digest: &Digest, _size: u64) -> Result<Box<dyn Read + Send + '_>, ImageError> {
        self.files.open(&blob_name(digest)).map(|(stream, _)| stream as _).map_err(self.failed())
    }
}

/// What `docker save` and `podman save` write: `manifest.json`, the configuration, and layers as plain tars.
pub(super) struct DockerArchive {
    name: String,
    files: Files,
    manifest: Vec<u8>,
    /// The file of each blob.
    blobs: BTreeMap<Digest, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    layers: Vec<String>,
}

impl DockerArchive {
    /// Reads the archive's table of contents and makes a manifest of it; for that, every layer is read once.
    pub(super) fn open(path: &Path) -> Result<Self, ImageError> {
        let name = format!("docker-archive:{}", path.display());
        let mut archive = Self { name, files: Files::tar(path)?, manifest: Vec::new(), blobs: BTreeMap::new() };
        let saved = archive.files.read("manifest.json").map_err(archive.failed())?;
        let saved: Vec<SavedImage> =
            serde_json::from_slice(&saved).map_err(|error| invalid(&archive, "manifest.json", error.to_string()))?;
        let [image] = &saved[..] else {
            return Err(invalid(&archive, "manifest.json", format!("{} images in it; one is supported", saved.len())));
        };
        let (config, config_size) = archive.add(&image.config)?;
        let mut layers = Vec::new();
        for layer in &image.layers {
            let (digest, size) = archive.add(layer)?;
            let media_type = "application/vnd.oci.image.layer.v1.tar";
            layers.push(json!({"mediaType": media_type, "digest": digest, "size": size}));
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size
            },
            "layers": layers,
        });
        archive.manifest = manifest.to_string().into_bytes();
        Ok(archive)
    }

    fn add(&mut self, file: &str) -> Result<(Digest, u64), ImageError> {
        let (stream, _) = self.files.open(file).map_err(self.failed())?;
        let mut hashing = Hashing::new(stream, u64::MAX);
        io::copy(&mut hashing, &mut io::sink()).map_err(self.failed())?;
        let (digest, size) = hashing.finish();
        self.blobs.insert(digest.clone(), file.to_owned());
        Ok((digest, size))
    }

    fn failed(&self) -> impl Fn(io::Error) -> ImageError + '_ {
        |error| ImageError::Source(self.name.clone(), error)
    }
}

impl Source for DockerArchive {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn top(&self) -> Result<Vec<u8>, ImageError> {
        Ok(self.manifest.clone())
    }

    fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        Err(ImageError::NotFound(format!("manifest {digest} in {}", self.name)))
    }

    fn blob(&self, digest: &Digest, _size: u64) -> Result<Box<dyn Read + Send + '_>, ImageError> {
        let file = self.blobs.get(digest).ok_or_else(|| ImageError::NotFound(format!("{digest} in {}", self.name)))?;
        self.files.open(file).map(|(stream, _)| stream as _).map_err(self.failed())
    }
}
