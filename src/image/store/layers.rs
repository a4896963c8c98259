//! Unpacked layers: who may use one, and who makes it.
//!
//! `layers/NAME/fs` is the lowerdir, `layers/NAME/contents.json` what is known of it; both become visible by one rename.
//! Whoever needs a layer to stay holds a shared lock (flock(2)) on its directory; `prune` needs an exclusive one.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{
    Store,
    files::{is_at, lock, lock_file, read_json},
    scratch::Scratch,
};
use crate::image::{Contents, Digest, ImageError, pack::Packed};

/// How much of a diff id names a layer's directory: short, as up to 128 of them have to fit into the 4,096 bytes of mount
/// options, and long enough that no two are the same.
const NAME_DIGITS: usize = 26;

/// The directory that holds a layer's files.
const FS: &str = "fs";

const CONTENTS: &str = "contents.json";

/// What it was last pushed as.
const PACKED: &str = "packed.json";

/// `contents.json`
#[derive(Serialize, Deserialize)]
struct Description {
    diff_id: Digest,
    #[serde(flatten)]
    contents: Contents,
}

/// A layer that is there and stays as long as this lives.
pub(in crate::image) struct Layer {
    /// Relative to [`Store::layers_root`], as it is stacked.
    pub lowerdir: String,
    pub diff_id: Digest,
    pub contents: Contents,
    _lease: Flock<File>,
}

/// The right to make a layer.
pub(in crate::image) struct Turn {
    _lock: Flock<File>,
}

impl Store {
    /// The directory that all layers are in.
    pub fn layers_root(&self) -> PathBuf {
        self.path("layers")
    }

    /// The layer of this diff id, if it is there and whole.
    pub(in crate::image) fn layer(&self, diff_id: &Digest) -> Result<Option<Layer>, ImageError> {
        let name = layer_name(diff_id);
        let path = self.layers_root().join(&name);
        let Some(lease) = self.lease(&name)? else { return Ok(None) };
        match read_json::<Description>(&path.join(CONTENTS)) {
            Ok(Some(known)) if known.diff_id == *diff_id => {
                let lowerdir = format!("{name}/{FS}");
                Ok(Some(Layer { lowerdir, diff_id: known.diff_id, contents: known.contents, _lease: lease }))
            }
            // A disk has lost it: to be made again.
            Ok(_) | Err(ImageError::Damaged { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Keeps the layer from being removed; `None` if it is not there.
    fn lease(&self, name: &str) -> Result<Option<Flock<File>>, ImageError> {
        let path = self.layers_root().join(name);
        let failed = |error| ImageError::Store(path.clone(), error);
        let directory = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed)?,
        };
        // Whoever has it exclusively is renaming it away.
        let lease = lock(directory, FlockArg::LockShared).map_err(failed)?;
        match lease {
            Some(lease) if is_at(&lease, &path).map_err(failed)? => Ok(Some(lease)),
            _ => Ok(None),
        }
    }

    /// Keeps the layers of these lowerdirs from being removed.
    pub(in crate::image) fn lease_all(&self, lowerdirs: &[String]) -> Result<Vec<Flock<File>>, ImageError> {
        let lease = |lowerdir: &String| {
            self.lease(name_in(lowerdir))?.ok_or_else(|| ImageError::NotFound(format!("layer {lowerdir}")))
        };
        lowerdirs.iter().map(lease).collect()
    }

    /// Waits until nobody else makes this layer; calls `waiting` if somebody does.
    pub(in crate::image) fn layer_turn(&self, diff_id: &Digest, waiting: impl FnOnce()) -> Result<Turn, ImageError> {
        self.turn(&layer_name(diff_id), waiting)
    }

    /// Waits until nobody else does what is called `name`; calls `waiting` if somebody does.
    pub(in crate::image) fn turn(&self, name: &str, waiting: impl FnOnce()) -> Result<Turn, ImageError> {
        let path = self.path("locks").join(name);
        let free = match lock_file(&path, FlockArg::LockExclusiveNonblock)? {
            Some(lock) => Some(lock),
            None => {
                waiting();
                lock_file(&path, FlockArg::LockExclusive)?
            }
        };
        let lock = free.ok_or_else(|| ImageError::Store(path, io::ErrorKind::WouldBlock.into()))?;
        Ok(Turn { _lock: lock })
    }

    /// Makes a layer visible that has been unpacked into `scratch`. The caller has the turn, and there is no such layer.
    pub(in crate::image) fn publish_layer(
        &self,
        diff_id: &Digest,
        scratch: Scratch<'_>,
        contents: Contents,
    ) -> Result<Layer, ImageError> {
        let name = layer_name(diff_id);
        let place = self.layers_root().join(&name);
        let failed = |path: &Path, error: io::Error| ImageError::Store(path.to_owned(), error);
        let known = Description { diff_id: diff_id.clone(), contents };
        let file = scratch.path().join(CONTENTS);
        let written = serde_json::to_vec(&known).map_err(io::Error::from).and_then(|json| fs::write(&file, json));
        written.map_err(|error| failed(&file, error))?;
        // All of it to the disk before it can be seen: once for the file system rather than once for each file.
        let synced = File::open(scratch.path()).and_then(|directory| Ok(nix::unistd::syncfs(&directory)?));
        synced.map_err(|error| failed(scratch.path(), error))?;
        self.remove_damaged(&place).map_err(|error| failed(&place, error))?;
        let lease = scratch.publish(&place).map_err(|error| failed(&place, error))?;
        let lowerdir = format!("{name}/{FS}");
        Ok(Layer { lowerdir, diff_id: known.diff_id, contents: known.contents, _lease: lease })
    }

    /// What is in a new layer's place was found to be damaged.
    fn remove_damaged(&self, place: &Path) -> io::Result<()> {
        let away = self.scratch()?;
        match fs::rename(place, away.path().join("damaged")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => away.discard(),
        }
    }

    /// What the layer was packed to, if it was.
    pub(in crate::image) fn packed_before(&self, layer: &Layer) -> Result<Option<Packed>, ImageError> {
        match read_json(&self.layers_root().join(name_in(&layer.lowerdir)).join(PACKED)) {
            // It is packed again.
            Err(ImageError::Damaged { .. }) => Ok(None),
            other => other,
        }
    }

    /// Notes what the layer was packed to.
    pub(in crate::image) fn keep_packed(&self, layer: &Layer, packed: &Packed) -> Result<(), ImageError> {
        self.write_record(&self.layers_root().join(name_in(&layer.lowerdir)).join(PACKED), packed)
    }

    /// What is known of the layer with this lowerdir.
    pub(super) fn read_contents(&self, lowerdir: &str) -> Result<Contents, ImageError> {
        let path = self.layers_root().join(name_in(lowerdir)).join(CONTENTS);
        match read_json::<Description>(&path)? {
            Some(known) => Ok(known.contents),
            None => Err(ImageError::Damaged { path, what: "it is not there".to_owned() }),
        }
    }
}

impl Scratch<'_> {
    /// Makes the directory for a layer's files.
    pub(in crate::image) fn layer_root(&self) -> Result<PathBuf, ImageError> {
        let root = self.path().join(FS);
        let make = || {
            fs::DirBuilder::new().mode(0o755).create(&root)?;
            // Whatever the umask and the group of the directory above are.
            std::os::unix::fs::chown(&root, Some(0), Some(0))?;
            fs::set_permissions(&root, fs::Permissions::from_mode(0o755))
        };
        make().map_err(|error| ImageError::Store(root.clone(), error))?;
        Ok(root)
    }
}

/// The name of a layer's directory.
pub(super) fn layer_name(diff_id: &Digest) -> String {
    diff_id.hex()[..NAME_DIGITS].to_owned()
}

/// The layer's directory of a lowerdir.
pub(super) fn name_in(lowerdir: &str) -> &str {
    lowerdir.split('/').next().unwrap_or(lowerdir)
}
