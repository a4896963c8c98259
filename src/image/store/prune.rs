//! Removing images, and what no image needs.

use std::{
    collections::{BTreeSet, HashSet},
    error::Error,
    fs::{self, File},
    io,
    path::Path,
    time::Duration,
};

use nix::fcntl::FlockArg;

use super::{
    ImageRecord, RefRecord, Store,
    files::{is_at, lock, lock_file, names, read_json, remove_file},
    layers::name_in,
};
use crate::image::{Digest, ImageError, Reference};

/// How long what was built and is not used stays, unless it is said otherwise.
pub const KEEP_BUILT: Duration = Duration::from_secs(7 * 24 * 3600);

/// The images that sessions use, or why that is not known.
pub type InUse = Result<HashSet<Digest>, Box<dyn Error + Send + Sync>>;

/// What a prune has removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    pub layers: usize,
    /// Of the files in them.
    pub bytes: u64,
}

impl Store {
    /// Forgets the image of this name. Its layers stay until [`Store::prune`].
    ///
    /// `in_use` is asked while no session can start to use an image.
    pub fn remove(&self, reference: &Reference, in_use: impl FnOnce() -> InUse) -> Result<(), ImageError> {
        let _lock = self.lock(FlockArg::LockExclusive)?;
        let path = self.ref_path(reference);
        let record = match read_json::<RefRecord>(&path) {
            Ok(None) => return Err(ImageError::NotFound(format!("image {reference}"))),
            Ok(Some(record)) => record,
            // Removing it is one way to be rid of it.
            Err(ImageError::Damaged { .. }) => return remove_file(&path),
            Err(error) => return Err(error),
        };
        let refs = self.refs()?.into_iter().filter_map(Result::ok);
        let names = refs.filter(|other| other.image == record.image).count();
        if names == 1 && in_use().map_err(ImageError::UseUnknown)?.contains(&record.image) {
            return Err(ImageError::InUse { image: reference.to_string() });
        }
        remove_file(&path)
    }

    /// Removes images without a name that no session uses, what was built and has not been used for `unused_for`, and layers
    /// and documents that belong to no image. What another process is working on stays.
    ///
    /// `in_use` is asked while no session can start to use an image.
    pub fn prune(&self, unused_for: Duration, in_use: impl FnOnce() -> InUse) -> Result<Pruned, ImageError> {
        let away = self.new_scratch()?;
        let pruned = {
            let _lock = self.lock(FlockArg::LockExclusive)?;
            let mut kept = in_use().map_err(ImageError::UseUnknown)?;
            for record in self.refs()? {
                kept.insert(record?.image);
            }
            let built = self.forget_builds(unused_for, |image| kept.contains(image))?;
            kept.extend(built);
            self.take_unneeded_away(&kept, away.path())?
        };
        // Nobody has to wait for this.
        away.discard().map_err(|error| ImageError::Store(self.path("tmp"), error))?;
        Ok(pruned)
    }

    /// Removes all images but these, and moves the layers that none of these needs to `away`. The caller has the store's lock.
    pub(super) fn take_unneeded_away(&self, kept: &HashSet<Digest>, away: &Path) -> Result<Pruned, ImageError> {
        let (layers, blobs) = self.prune_images(kept)?;
        for name in names(&self.path("blobs/sha256"))?.iter().filter(|name| !blobs.contains(*name)) {
            remove_file(&self.path("blobs/sha256").join(name))?;
        }
        let mut pruned = Pruned::default();
        for name in names(&self.layers_root())?.iter().filter(|name| !layers.contains(*name)) {
            if let Some(bytes) = self.take_layer_away(name, &away.join(name))? {
                pruned.layers += 1;
                pruned.bytes += bytes;
            }
        }
        self.prune_locks()?;
        Ok(pruned)
    }

    /// Removes all images but these. Returns the names of the layers and documents that are still needed.
    fn prune_images(&self, kept: &HashSet<Digest>) -> Result<(BTreeSet<String>, BTreeSet<String>), ImageError> {
        let (mut layers, mut blobs) = (BTreeSet::new(), BTreeSet::new());
        for digest in kept {
            // An image in use that is not here any more needs nothing.
            if let Some(record) = read_json::<ImageRecord>(&self.image_path(digest))? {
                layers.extend(record.layers.iter().map(|lowerdir| name_in(lowerdir).to_owned()));
                blobs.extend([record.manifest.hex().to_owned(), record.config.hex().to_owned()]);
            }
        }
        for name in names(&self.path("images"))? {
            if !kept.iter().any(|digest| name.strip_suffix(".json") == Some(digest.hex())) {
                remove_file(&self.path("images").join(name))?;
            }
        }
        Ok((layers, blobs))
    }

    /// Renames a layer that nobody uses to `away`: half a layer must never be found. Returns how large it was, and `None` if
    /// somebody is using or making it.
    fn take_layer_away(&self, name: &str, away: &Path) -> Result<Option<u64>, ImageError> {
        let Some(_turn) = lock_file(&self.path("locks").join(name), FlockArg::LockExclusiveNonblock)? else {
            return Ok(None);
        };
        let place = self.layers_root().join(name);
        // Of a damaged one that is not known.
        let bytes = self.read_contents(name).map_or(0, |contents| contents.bytes);
        let take = || -> io::Result<bool> {
            let Some(lock) = lock(File::open(&place)?, FlockArg::LockExclusiveNonblock)? else { return Ok(false) };
            if is_at(&lock, &place)? {
                fs::rename(&place, away)?;
            }
            Ok(true)
        };
        let taken = take().map_err(|error| ImageError::Store(place.clone(), error))?;
        Ok(taken.then_some(bytes))
    }

    /// Removes the lock files of layers that are not there and not being made.
    fn prune_locks(&self) -> Result<(), ImageError> {
        for name in names(&self.path("locks"))? {
            let path = self.path("locks").join(&name);
            if !self.layers_root().join(&name).exists()
                && let Some(_lock) = lock_file(&path, FlockArg::LockExclusiveNonblock)?
            {
                remove_file(&path)?;
            }
        }
        Ok(())
    }
}
