//! Images made by hand: archives with entries that no well-behaved program would write, and OCI layouts of them.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// The name of this machine's architecture in images.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// An archive, entry by entry.
#[derive(Clone, Default)]
pub struct Archive(pub Vec<u8>);

impl Archive {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn raw(
        mut self,
        kind: tar::EntryType,
        name: &str,
        link: &str,
        data: &[u8],
        edit: impl FnOnce(&mut tar::Header),
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        if !link.is_empty() {
            header.set_link_name_literal(link).unwrap();
        }
        header.set_entry_type(kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        edit(&mut header);
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, data: impl AsRef<[u8]>) -> Self {
        self.raw(tar::EntryType::Regular, name, "", data.as_ref(), |_| {})
    }

    pub fn directory(self, name: &str) -> Self {
        self.raw(tar::EntryType::Directory, name, "", b"", |_| {})
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(tar::EntryType::Symlink, name, target, b"", |_| {})
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.raw(tar::EntryType::Link, name, target, b"", |_| {})
    }

    /// Records for the entry that follows.
    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions(records.iter().copied()).unwrap();
        let mut bytes = builder.into_inner().unwrap();
        bytes.truncate(bytes.len() - 1024);
        self.0.extend(bytes);
        self
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// How a layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Plain,
    Gzip,
    Zstd,
}

/// A layer to be.
pub struct Layer {
    pub diff_id: String,
    pub blob: Vec<u8>,
    pub media_type: String,
}

impl Layer {
    pub fn new(tar: &[u8], form: Form) -> Self {
        let (suffix, blob) = match form {
            Form::Plain => ("", tar.to_vec()),
            Form::Gzip => ("+gzip", gzip(tar)),
            Form::Zstd => ("+zstd", zstd::encode_all(tar, 1).unwrap()),
        };
        Self { diff_id: digest(tar), blob, media_type: format!("application/vnd.oci.image.layer.v1.tar{suffix}") }
    }

    pub fn gzip(archive: Archive) -> Self {
        Self::new(&archive.end(), Form::Gzip)
    }
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Data that does not compress: blobs of it have about its size.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut next = || {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(length).collect()
}

/// An OCI image layout.
pub struct Layout {
    pub path: PathBuf,
    manifests: Vec<Value>,
}

impl Layout {
    pub fn new(path: &Path) -> Self {
        fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { path: path.to_owned(), manifests: Vec::new() }
    }

    /// A layout with one image of these layers, the lowest first.
    pub fn of(path: &Path, layers: &[Layer]) -> Self {
        let mut layout = Self::new(path);
        layout.image("latest", layers);
        layout
    }

    /// What `podspawn pull` calls it.
    pub fn reference(&self) -> String {
        format!("oci:{}", self.path.display())
    }

    pub fn blob_path(&self, digest: &str) -> PathBuf {
        self.path.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())
    }

    /// Adds a blob. Returns a descriptor of it.
    pub fn blob(&self, media_type: &str, content: &[u8]) -> Value {
        let digest = digest(content);
        fs::write(self.blob_path(&digest), content).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": content.len()})
    }

    pub fn config(&self, layers: &[Layer]) -> Value {
        let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
        let config = json!({
            "architecture": architecture(), "os": "linux",
            "config": {"Env": ["PATH=/usr/bin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes())
    }

    /// Adds a manifest without naming it. Returns a descriptor of it.
    pub fn manifest(&self, layers: &[Layer]) -> Value {
        let blobs: Vec<_> = layers.iter().map(|layer| self.blob(&layer.media_type, &layer.blob)).collect();
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": self.config(layers), "layers": blobs});
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    /// Adds an image under a name. Returns the digest of its manifest.
    pub fn image(&mut self, tag: &str, layers: &[Layer]) -> String {
        let manifest = self.manifest(layers);
        self.name(tag, manifest)
    }

    /// Names what a descriptor describes.
    pub fn name(&mut self, tag: &str, mut descriptor: Value) -> String {
        let digest = descriptor["digest"].as_str().unwrap().to_owned();
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        self.manifests.push(descriptor);
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": self.manifests});
        fs::write(self.path.join("index.json"), index.to_string()).unwrap();
        digest
    }
}
