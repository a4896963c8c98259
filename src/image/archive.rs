//! Images on disk: OCI layouts, as a directory or a tar, and what `docker save` writes.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::json;

use super::{
    Digest, ImageError,
    digest::Hashing,
    layer::reader::{Kind, TarReader},
    manifest::{Blob, Document, Source, invalid},
};

/// Files of an archive, and links in a row from one to another.
const MAX_FILES: usize = 65_536;
const MAX_LINKS: usize = 8;

/// The longest name of a file that is looked for.
const MAX_NAME: usize = 256;

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

/// Opens a file for reading, and nothing else that may be there.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let meta = file.metadata()?;
    if meta.is_file() { Ok((file, meta.len())) } else { Err(io::Error::other("it is not a file")) }
}

impl Files {
    fn tar(path: &Path) -> Result<Self, ImageError> {
        let failed = |error| ImageError::Source(path.display().to_string(), error);
        let (mut file, _) = open(path).map_err(failed)?;
        let mut start = [0; 4];
        let compressed = file.read_exact(&mut start).is_ok()
            && matches!(start, [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd] | [0xfd, b'7', b'z', b'X']);
        if compressed {
            return Err(failed(io::Error::other("it is compressed; decompress it first")));
        }
        file.rewind().map_err(failed)?;
        let mut tar = TarReader::new(file);
        let mut index = BTreeMap::new();
        while let Some(entry) = tar.next_entry().map_err(|error| failed(io::Error::other(error)))? {
            let place = match entry.kind {
                Kind::File if entry.pieces.is_none() => {
                    let offset = tar.stream_mut().stream_position().map_err(failed)?;
                    Place::At { offset, size: entry.size }
                }
                // Older dockers link a layer that is there twice.
                Kind::Symlink | Kind::HardLink => {
                    Place::Link(plain_name(&entry.link).trim_start_matches("../").to_owned())
                }
                _ => continue,
            };
            if entry.path.len() <= MAX_NAME && entry.link.len() <= MAX_NAME {
                index.insert(plain_name(&entry.path), place);
            }
            if index.len() > MAX_FILES {
                return Err(failed(io::Error::other("more files than an image archive can have")));
            }
        }
        Ok(Self::Tar { path: path.to_owned(), index })
    }

    fn open(&self, name: &str) -> io::Result<(Box<dyn Read + Send>, u64)> {
        match self {
            Self::Directory(path) => {
                let named = |error: io::Error| io::Error::new(error.kind(), format!("{name}: {error}"));
                let (file, size) = open(&path.join(name)).map_err(named)?;
                Ok((Box::new(file), size))
            }
            Self::Tar { path, index } => {
                let mut name = name;
                for _ in 0..MAX_LINKS {
                    match index.get(name) {
                        None => break,
                        Some(Place::Link(target)) => name = target,
                        Some(Place::At { offset, size }) => {
                            let (mut file, _) = open(path)?;
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

fn plain_name(name: &[u8]) -> String {
    String::from_utf8_lossy(name).trim_start_matches("./").to_owned()
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

    fn top(&self) -> Result<Document, ImageError> {
        const NAME: &str = "org.opencontainers.image.ref.name";
        let document = |bytes| Document { media_type: None, bytes };
        let bytes = self.files.read("index.json").map_err(self.failed())?;
        let damaged = |error: serde_json::Error| invalid(self, "the index", error.to_string());
        let mut index: serde_json::Value = serde_json::from_slice(&bytes).map_err(damaged)?;
        let Some(manifests) = index["manifests"].as_array_mut() else { return Ok(document(bytes)) };
        let tags = manifests.iter().filter_map(|manifest| manifest["annotations"][NAME].as_str());
        let tags = tags.map(str::to_owned).collect::<Vec<_>>().join(", ");
        match &self.tag {
            // A tag chooses one of the index's manifests.
            Some(tag) => {
                manifests.retain(|manifest| manifest["annotations"][NAME] == tag.as_str());
                if manifests.is_empty() {
                    return Err(ImageError::NotFound(format!("{}:{tag} (there is: {tags})", self.name)));
                }
            }
            // Of several images without a platform one has to be named.
            None if manifests.len() > 1 && manifests.iter().all(|manifest| manifest["platform"].is_null()) => {
                let why = format!("{} images in it; name one: {tags}", manifests.len());
                return Err(invalid(self, "the index", why));
            }
            None => {}
        }
        Ok(document(index.to_string().into_bytes()))
    }

    fn manifest(&self, digest: &Digest) -> Result<Document, ImageError> {
        let bytes = self.files.read(&blob_name(digest)).map_err(self.failed())?;
        Ok(Document { media_type: None, bytes })
    }

    fn blob(&self, digest: &Digest, _size: u64, _from: usize) -> Result<Blob<'_>, ImageError> {
        let (stream, _) = self.files.open(&blob_name(digest)).map_err(self.failed())?;
        Ok(Blob { place: 0, stream })
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
        let mut hashing = Hashing::new(stream);
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

    fn top(&self) -> Result<Document, ImageError> {
        Ok(Document { media_type: None, bytes: self.manifest.clone() })
    }

    fn manifest(&self, digest: &Digest) -> Result<Document, ImageError> {
        Err(ImageError::NotFound(format!("manifest {digest} in {}", self.name)))
    }

    fn blob(&self, digest: &Digest, _size: u64, _from: usize) -> Result<Blob<'_>, ImageError> {
        let file = self.blobs.get(digest).ok_or_else(|| ImageError::NotFound(format!("{digest} in {}", self.name)))?;
        let (stream, _) = self.files.open(file).map_err(self.failed())?;
        Ok(Blob { place: 0, stream })
    }
}
