//! The store's directory: what is in it, and who may change it when.

mod builds;
mod configure;
mod files;
mod layers;
mod prune;
mod room;
mod scratch;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::fcntl::{Flock, FlockArg};
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use self::files::{lock_file, names, read_json};
pub use self::{
    builds::Built,
    configure::{ConfigChanges, ConfigError},
    prune::{InUse, KEEP_BUILT, Pruned},
    room::{Needed, Removed, Room},
    scratch::listing,
};
pub(super) use self::{
    configure::check_env,
    layers::Layer,
    room::{Roomy, is_for_room},
};
use super::{Contents, Digest, ImageError, Limits, Reference, manifest::Resolved};
use crate::{config, http::Timeouts};

/// How long a cancelled pull has to stop by itself: as long as it takes to unpack one file.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the configuration says about images.
#[derive(Debug, Clone)]
pub struct Settings {
    pub default_registry: String,
    pub mirrors: BTreeMap<String, Vec<String>>,
    pub insecure: Vec<String>,
    pub limits: Limits,
    pub timeouts: Timeouts,
}

impl From<&config::Images> for Settings {
    fn from(images: &config::Images) -> Self {
        Self {
            default_registry: images.default_registry.clone(),
            mirrors: images.mirrors.clone(),
            insecure: images.insecure.clone(),
            limits: Limits { max_bytes: images.max_bytes, max_entries: images.max_entries },
            timeouts: Timeouts::default(),
        }
    }
}

/// The store.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    pub(super) settings: Settings,
    /// What this process is making.
    scratches: Mutex<BTreeSet<PathBuf>>,
    cancelled: AtomicBool,
    /// Bytes of layers that this process has fetched.
    fetched: AtomicU64,
    room: Option<Room>,
}

/// While it lives nothing is removed from the store.
#[derive(Debug)]
pub struct StoreLease(#[expect(dead_code, reason = "held for its lock")] Flock<File>);

/// An image that is ready to be used.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of its manifest.
    pub id: Digest,
    /// The name that it was pulled as.
    pub reference: String,
    /// Directories below [`Store::layers_root`], uppermost first.
    pub layers: Vec<String>,
    pub config: ImageConfiguration,
    /// Bytes of all files.
    pub bytes: u64,
    pub pulled_at: SystemTime,
}

/// `refs/NAME.json`
#[derive(Debug, Clone, Serialize, Deserialize)]
struct RefRecord {
    reference: String,
    image: Digest,
    pulled_at: u64,
    /// It came from a registry under this name, which has it still.
    #[serde(default)]
    refetchable: bool,
}

/// `images/HEX.json`
#[derive(Debug, Clone, Serialize, Deserialize)]
struct ImageRecord {
    manifest: Digest,
    config: Digest,
    /// Lowerdirs, uppermost first.
    layers: Vec<String>,
    bytes: u64,
}

impl Store {
    /// Opens the store in `directory`, making it if need be, and removes what interrupted processes have left.
    pub fn open(directory: &Path, settings: Settings) -> Result<Self, ImageError> {
        let store = Self::look(directory, settings);
        for part in ["", "blobs/sha256", "images", "refs", "builds", "layers", "locks", "tmp"] {
            let path = store.directory.join(part);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|error| ImageError::Store(path.clone(), error))?;
        }
        store.sweep()?;
        Ok(store)
    }

    /// The store in `directory` as it is, if there is one: for who only looks.
    pub fn look(directory: &Path, settings: Settings) -> Self {
        Self {
            directory: directory.to_owned(),
            settings,
            scratches: Mutex::default(),
            cancelled: AtomicBool::new(false),
            fetched: AtomicU64::new(0),
            room: None,
        }
    }

    fn path(&self, part: &str) -> PathBuf {
        self.directory.join(part)
    }

    /// The image of this name, if it has been pulled.
    pub fn lookup(&self, reference: &Reference) -> Result<Option<Image>, ImageError> {
        match read_json(&self.ref_path(reference))? {
            None => Ok(None),
            Some(record) => self.load(record).map(Some),
        }
    }

    /// The directories below [`Store::layers_root`], uppermost first, of the image whose manifest has this digest, whatever it
    /// is called now.
    pub fn layers(&self, image: &str) -> Result<Vec<String>, ImageError> {
        let path = self.path("images");
        let damaged = |what: String| ImageError::Damaged { path: path.clone(), what };
        let digest: Digest = image.parse().map_err(|_| damaged(format!("{image:?} is no digest")))?;
        let record: Option<ImageRecord> = read_json(&self.image_path(&digest))?;
        record.map(|record| record.layers).ok_or_else(|| damaged(format!("{digest} is not there")))
    }

    /// Keeps images from being removed, from the moment that one is found until the database says that it is in use.
    pub fn hold(&self) -> Result<StoreLease, ImageError> {
        self.lock(FlockArg::LockShared).map(StoreLease)
    }

    /// All images, by name, and what is wrong with those that cannot be read.
    pub fn list(&self) -> Result<(Vec<Image>, Vec<ImageError>), ImageError> {
        let (mut images, mut damaged) = (Vec::new(), Vec::new());
        for record in self.refs()? {
            match record.and_then(|record| self.load(record)) {
                Ok(image) => images.push(image),
                Err(error) => damaged.push(error),
            }
        }
        images.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok((images, damaged))
    }

    /// What is known of each layer of an image, uppermost first.
    pub fn contents(&self, image: &Image) -> Result<Vec<Contents>, ImageError> {
        image.layers.iter().map(|layer| self.read_contents(layer)).collect()
    }

    /// The image's manifest and configuration, as they came.
    pub(super) fn documents(&self, image: &Image) -> Result<(Vec<u8>, Vec<u8>), ImageError> {
        let path = self.image_path(&image.id);
        let record: ImageRecord =
            read_json(&path)?.ok_or_else(|| ImageError::Damaged { path, what: "it is not there".to_owned() })?;
        Ok((self.read_blob(&record.manifest)?, self.read_blob(&record.config)?))
    }

    /// Stops what this process is fetching or unpacking, and removes what is unfinished of it. What waits for a lock or a
    /// registry does not notice, and must not be waited for: the process is to end now.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        let end = Instant::now() + PATIENCE;
        while self.has_scratches() && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
        self.remove_scratches();
    }

    /// Counts the bytes of a layer that has arrived.
    pub(super) fn fetched(&self, bytes: u64) {
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of layers that this process has fetched from registries and archives, compressed as they came.
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    fn lock(&self, kind: FlockArg) -> Result<Flock<File>, ImageError> {
        let path = self.path("lock");
        lock_file(&path, kind)?.ok_or_else(|| ImageError::Store(path, std::io::ErrorKind::WouldBlock.into()))
    }

    /// Makes an image visible, if there is room. `layers` are uppermost first, and stay as they are held.
    pub(super) fn commit(
        &self,
        reference: &Reference,
        (resolved, refetchable): (&Resolved, bool),
        layers: &[Layer],
    ) -> Result<Image, ImageError> {
        self.keep_room()?;
        let pulled_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let image = ImageRecord {
            manifest: resolved.digest.clone(),
            config: resolved.config_digest.clone(),
            layers: layers.iter().map(|layer| layer.lowerdir.clone()).collect(),
            bytes: layers.iter().map(|layer| layer.contents.bytes).sum(),
        };
        let record =
            RefRecord { reference: reference.to_string(), image: image.manifest.clone(), pulled_at, refetchable };
        let _lock = self.lock(FlockArg::LockExclusive)?;
        self.write_blob(&resolved.digest, &resolved.manifest)?;
        self.write_blob(&resolved.config_digest, &resolved.config)?;
        self.write_record(&self.image_path(&image.manifest), &image)?;
        self.write_record(&self.ref_path(reference), &record)?;
        self.load(record)
    }

    fn write_record(&self, path: &Path, record: &impl Serialize) -> Result<(), ImageError> {
        let json =
            serde_json::to_vec_pretty(record).map_err(|error| ImageError::Store(path.to_owned(), error.into()))?;
        self.write(path, &json)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path("blobs/sha256").join(digest.hex())
    }

    fn write_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), ImageError> {
        // Written again only if it is damaged.
        if self.read_blob(digest).is_ok() {
            return Ok(());
        }
        self.write(&self.blob_path(digest), bytes)
    }

    /// A manifest or configuration, verified.
    fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let path = self.blob_path(digest);
        let bytes = fs::read(&path).map_err(|error| ImageError::Store(path.clone(), error))?;
        if Digest::of(&bytes) == *digest {
            Ok(bytes)
        } else {
            Err(ImageError::Damaged { path, what: "it does not have the digest that it is named after".to_owned() })
        }
    }

    fn image_path(&self, digest: &Digest) -> PathBuf {
        self.path("images").join(format!("{}.json", digest.hex()))
    }

    /// Names are escaped to be file names: every byte that is not a letter, a digit, `.`, `_` or `-` as `%XX`.
    fn ref_path(&self, reference: &Reference) -> PathBuf {
        let mut name = String::new();
        for byte in reference.canonical(&self.settings.default_registry).bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-') {
                name.push(char::from(byte));
            } else {
                name.push_str(&format!("%{byte:02X}"));
            }
        }
        // A path to an archive can be longer than a file name.
        if name.len() > 200 {
            name = format!("{}-{}", &name[..100], Digest::of(name.as_bytes()).short());
        }
        self.path("refs").join(format!("{name}.json"))
    }

    /// All names, and what is wrong with those that cannot be read.
    fn refs(&self) -> Result<Vec<Result<RefRecord, ImageError>>, ImageError> {
        let refs = self.path("refs");
        let read = |name: String| read_json(&refs.join(name)).transpose();
        Ok(names(&refs)?.into_iter().filter(|name| name.ends_with(".json")).filter_map(read).collect())
    }

    fn load(&self, record: RefRecord) -> Result<Image, ImageError> {
        let path = self.image_path(&record.image);
        let image: ImageRecord = read_json(&path)?
            .ok_or_else(|| ImageError::Damaged { path: path.clone(), what: "it is not there".to_owned() })?;
        let config = self.read_blob(&image.config)?;
        let config = ImageConfiguration::from_reader(&config[..])
            .map_err(|error| ImageError::Damaged { path, what: error.to_string() })?;
        Ok(Image {
            id: image.manifest,
            reference: record.reference,
            layers: image.layers,
            config,
            bytes: image.bytes,
            pulled_at: UNIX_EPOCH + Duration::from_secs(record.pulled_at),
        })
    }
}
