//! Room on the store's file system: `images.keep_free` bytes of it stay free, for which what nobody needs goes, what was
//! used longest ago first.
//!
//! What may go is what can be had again: images that came from a registry, and what steps of Podfiles have led to. When a name
//! or a step was used last is the time of its file. Who is about to use an image [says so](Store::need), by a shared lock
//! (flock(2)) on `locks/ref-HEX`, so that other processes know it as well; a build's steps are left alone for as
//! long as a step may take.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    error::Error,
    fs,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;

use super::{
    ImageRecord, RefRecord, Store,
    builds::touch,
    files::{lock_file, names, read_json, remove_file},
    layers::name_in,
    prune::InUse,
};
use crate::{
    image::{Digest, ImageError, Reference},
    sys::free_space::free_bytes,
};

/// How long after its last use what was built is not removed for room: a build has no record between two of its steps.
const STEP: Duration = Duration::from_secs(3600);

/// How many bytes may be unpacked until it is looked again.
const LOOK_EVERY: u64 = 8 << 20;

/// How much stays free, and what has to be asked and told for it.
pub struct Room {
    /// Bytes; 0 is none.
    keep_free: AtomicU64,
    /// What stays although nobody uses it now.
    default_image: Mutex<Option<Reference>>,
    in_use: Box<dyn Fn() -> InUse + Send + Sync>,
    told: Box<dyn Fn(&Removed) + Send + Sync>,
    /// One at a time removes.
    turn: Mutex<()>,
}

/// What was removed for room.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Names of images.
    pub images: Vec<String>,
    /// What steps of Podfiles had led to.
    pub builds: usize,
    pub layers: usize,
    /// Of the files in the layers.
    pub bytes: u64,
}

impl Removed {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl std::fmt::Display for Removed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { images, builds, layers, bytes } = self;
        write!(f, "{layers} layers ({} MiB)", bytes >> 20)?;
        if !images.is_empty() {
            write!(f, ", {}", images.join(", "))?;
        }
        if *builds > 0 {
            write!(f, ", {builds} steps of builds")?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Room").field("keep_free", &self.keep_free).finish_non_exhaustive()
    }
}

impl Room {
    /// `in_use` is asked while no session can start to use an image; `told` hears of what was removed.
    pub fn new(
        in_use: impl Fn() -> InUse + Send + Sync + 'static,
        told: impl Fn(&Removed) + Send + Sync + 'static,
    ) -> Self {
        Self {
            keep_free: AtomicU64::new(0),
            default_image: Mutex::default(),
            in_use: Box::new(in_use),
            told: Box::new(told),
            turn: Mutex::default(),
        }
    }

    /// What the configuration says.
    pub fn configure(&self, keep_free: u64, default_image: Option<Reference>) {
        self.keep_free.store(keep_free, Ordering::Relaxed);
        *self.default_image.lock().unwrap_or_else(PoisonError::into_inner) = default_image;
    }
}

/// An image's name that is not removed for room.
pub struct Needed {
    _lock: Option<Flock<File>>,
}

/// What could go.
struct Candidate {
    used: SystemTime,
    file: PathBuf,
    /// `None` of a step.
    name: Option<String>,
    layers: BTreeSet<String>,
}

impl Store {
    /// With room that is kept.
    #[must_use]
    pub fn with_room(mut self, room: Room) -> Self {
        self.room = Some(room);
        self
    }

    /// What is kept free, if anything is.
    pub fn room(&self) -> Option<&Room> {
        self.room.as_ref()
    }

    /// Says that this image is about to be used: it counts as used now, and stays until the return value is dropped.
    pub fn need(&self, reference: &Reference) -> Result<Needed, ImageError> {
        let lock = lock_file(&self.need_path(&self.ref_path(reference)), FlockArg::LockShared)?;
        touch(&self.ref_path(reference))?;
        Ok(Needed { _lock: lock })
    }

    fn need_path(&self, ref_path: &Path) -> PathBuf {
        let name = ref_path.file_name().unwrap_or_default().as_encoded_bytes();
        self.path("locks").join(format!("ref-{}", Digest::of(name).short()))
    }

    /// Bytes that are free on the store's file system for those who are not root: the others must not run into the end.
    pub fn free_bytes(&self) -> Result<u64, ImageError> {
        free_bytes(&self.directory).map_err(|error| ImageError::Store(self.directory.clone(), error))
    }

    /// Bytes of the files in all layers.
    pub fn layer_bytes(&self) -> Result<u64, ImageError> {
        // Of one that is damaged, or that somebody has just removed, that is not known.
        let bytes = |name: &String| self.read_contents(name).map_or(0, |contents| contents.bytes);
        Ok(names(&self.layers_root())?.iter().map(bytes).sum())
    }

    /// Says of images that are in use that they are used now.
    pub fn touch_used(&self) -> Result<(), ImageError> {
        let Some(room) = &self.room else { return Ok(()) };
        let in_use = (room.in_use)().map_err(ImageError::UseUnknown)?;
        for (path, record) in self.ref_files()? {
            if in_use.contains(&record.image) {
                touch(&path)?;
            }
        }
        Ok(())
    }

    /// Has `keep_free` bytes free, if that is wanted: otherwise removes what nobody needs until they are.
    ///
    /// # Errors
    /// [`ImageError::NoRoom`] if all of that is not enough.
    pub fn keep_room(&self) -> Result<(), ImageError> {
        let Some(room) = &self.room else { return Ok(()) };
        let keep_free = room.keep_free.load(Ordering::Relaxed);
        if keep_free == 0 || self.free_bytes()? >= keep_free {
            return Ok(());
        }
        let _turn = room.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut removed = Removed::default();
        let made = self.make_room(room, keep_free, &mut removed);
        if !removed.is_empty() {
            (room.told)(&removed);
        }
        made?;
        match self.free_bytes()? {
            free if free >= keep_free => Ok(()),
            free => Err(ImageError::NoRoom { directory: self.directory.clone(), free, keep_free }),
        }
    }

    fn make_room(&self, room: &Room, keep_free: u64, removed: &mut Removed) -> Result<(), ImageError> {
        // First what no image needs at all.
        let mut forget = false;
        while self.free_bytes()? < keep_free {
            let away = self.new_scratch()?;
            let pruned = {
                let _lock = self.lock(FlockArg::LockExclusive)?;
                let mut kept = (room.in_use)().map_err(ImageError::UseUnknown)?;
                if forget {
                    match self.oldest(&kept, room)? {
                        None => return away.discard().map_err(|error| ImageError::Store(self.path("tmp"), error)),
                        Some(oldest) => {
                            remove_file(&oldest.file)?;
                            match oldest.name {
                                Some(name) => removed.images.push(name),
                                None => removed.builds += 1,
                            }
                        }
                    }
                }
                for record in self.refs()? {
                    kept.insert(record?.image);
                }
                kept.extend(self.forget_builds(Duration::MAX, |_| true)?);
                self.take_unneeded_away(&kept, away.path())?
            };
            away.discard().map_err(|error| ImageError::Store(self.path("tmp"), error))?;
            removed.layers += pruned.layers;
            removed.bytes += pruned.bytes;
            forget = true;
        }
        Ok(())
    }

    /// Removes the layers that no image needs, after something that did not fit.
    pub(in crate::image) fn drop_unneeded_layers(&self) -> Result<(), ImageError> {
        match &self.room {
            Some(room) => self.prune(Duration::MAX, || (room.in_use)()).map(drop),
            None => Ok(()),
        }
    }

    /// What is to go next: what was used longest ago of all whose going gives back a layer, or of all if none does. The caller
    /// has the store's lock.
    fn oldest(&self, in_use: &HashSet<Digest>, room: &Room) -> Result<Option<Candidate>, ImageError> {
        let mut needed: BTreeMap<String, usize> = BTreeMap::new();
        let mut candidates = Vec::new();
        let stays = room.default_image.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let stays = stays.map(|reference| self.ref_path(&reference));
        let used = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
        let mut found = Vec::new();
        for (path, record) in self.ref_files()? {
            let free = record.refetchable && stays.as_ref() != Some(&path) && !self.is_needed(&path)?;
            found.push((path, record.image, Some(record.reference), free));
        }
        for (path, image) in self.build_files()? {
            let rested = used(&path).and_then(|used| used.elapsed().ok()).is_some_and(|age| age >= STEP);
            found.push((path, image, None, rested));
        }
        for image in in_use {
            self.layers_of(image)?.into_iter().for_each(|layer| *needed.entry(layer).or_default() += 1);
        }
        for (file, image, name, free) in found {
            let layers = self.layers_of(&image)?;
            for layer in &layers {
                *needed.entry(layer.clone()).or_default() += 1;
            }
            if free
                && !in_use.contains(&image)
                && let Some(used) = used(&file)
            {
                candidates.push(Candidate { used, file, name, layers });
            }
        }
        candidates.sort_by(|a, b| (a.used, &a.file).cmp(&(b.used, &b.file)));
        let gives = |candidate: &Candidate| candidate.layers.iter().any(|layer| needed.get(layer) == Some(&1));
        let place = candidates.iter().position(gives).unwrap_or(0);
        Ok((place < candidates.len()).then(|| candidates.swap_remove(place)))
    }

    fn is_needed(&self, ref_path: &Path) -> Result<bool, ImageError> {
        Ok(lock_file(&self.need_path(ref_path), FlockArg::LockExclusiveNonblock)?.is_none())
    }

    /// The names of layers of an image; none of one that is not here.
    fn layers_of(&self, image: &Digest) -> Result<BTreeSet<String>, ImageError> {
        let record: Option<ImageRecord> = read_json(&self.image_path(image))?;
        Ok(record.iter().flat_map(|record| &record.layers).map(|lowerdir| name_in(lowerdir).to_owned()).collect())
    }

    /// The files of all names that can be read.
    fn ref_files(&self) -> Result<Vec<(PathBuf, RefRecord)>, ImageError> {
        let mut files = Vec::new();
        for name in names(&self.path("refs"))? {
            let path = self.path("refs").join(name);
            match read_json(&path) {
                Ok(record) => files.extend(record.map(|record| (path, record))),
                Err(ImageError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(files)
    }
}

/// A stream of what is unpacked, which ends with an error when there is no room for more.
pub(in crate::image) struct Roomy<'a, S> {
    stream: S,
    store: &'a Store,
    left: u64,
    refusal: &'a mut Option<ImageError>,
}

impl<'a, S> Roomy<'a, S> {
    /// Why the stream has ended, if that is for want of room, is then in `refusal`.
    pub(in crate::image) fn new(stream: S, store: &'a Store, refusal: &'a mut Option<ImageError>) -> Self {
        Self { stream, store, left: 0, refusal }
    }
}

impl<S: Read> Read for Roomy<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            self.left = LOOK_EVERY;
            if let Err(error) = self.store.keep_room() {
                *self.refusal = Some(error);
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
        }
        let length = self.stream.read(buffer)?;
        self.left = self.left.saturating_sub(length as u64);
        Ok(length)
    }
}

/// Whether an image could not be had for want of room.
pub(in crate::image) fn is_for_room(error: &ImageError) -> bool {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        let full = |error: &io::Error| error.kind() == io::ErrorKind::StorageFull;
        if error.downcast_ref().is_some_and(full) || matches!(error.downcast_ref(), Some(ImageError::NoRoom { .. })) {
            return true;
        }
        next = error.source();
    }
    false
}
