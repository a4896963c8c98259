//! What is known of an unpacked layer.

use std::{
    ffi::OsString,
    ops::Deref,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Kept beside the layer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    pub entries: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Device nodes that the archive has and the directory has not: a container has its own `/dev`.
    pub skipped_devices: Vec<EntryPath>,
    /// Directories without an entry of their own. Their owner and mode are those of a lower layer, if it has them.
    pub implied: Vec<EntryPath>,
    /// Hard links, each with its target, which is in a layer further below.
    pub outer_links: Vec<(EntryPath, EntryPath)>,
    /// Nothing of the layers below shows.
    pub opaque: bool,
}

impl Contents {
    /// Whether `path` is a directory without an entry of its own.
    pub fn implies(&self, path: &Path) -> bool {
        // They are sorted.
        self.implied.binary_search_by(|implied| (**implied).cmp(path)).is_ok()
    }
}

/// The path of an entry: any bytes but NUL, which JSON has no strings for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct EntryPath(PathBuf);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<PathBuf> for EntryPath {
    fn from(path: PathBuf) -> Self {
        Self(path)
    }
}

impl Deref for EntryPath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl From<EntryPath> for Written {
    fn from(path: EntryPath) -> Self {
        match path.0.into_os_string().into_string() {
            Ok(text) => Self::Text(text),
            Err(bytes) => Self::Bytes(bytes.as_bytes().to_owned()),
        }
    }
}

impl From<Written> for EntryPath {
    fn from(written: Written) -> Self {
        match written {
            Written::Text(text) => Self(text.into()),
            Written::Bytes(bytes) => Self(OsString::from_vec(bytes).into()),
        }
    }
}
