//! The store's directory: what is in it, and who may change it when.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use super::{Contents, Digest, ImageError, Limits, Reference};
use crate::{config, sys::remove_tree::remove_tree};

/// How much of a diff id names a layer's directory: short, as up to 128 of them have to fit into the 4,096 bytes of mount
/// options, and long enough that no two are the same.
const NAME_DIGITS: usize = 26;

/// What the configuration says about images.
#[derive(Debug, Clone)]
pub struct Settings {
    pub default_registry: String,
    pub mirrors: BTreeMap<String, Vec<String>>,
    pub insecure: Vec<String>,
    pub limits: Limits,
}

impl From<&config::Images> for Settings {
    fn from(images: &config::Images) -> Self {
        Self {
            default_registry: images.default_registry.clone(),
            mirrors: images.mirrors.clone(),
            insecure: images.insecure.clone(),
            limits: Limits { max_bytes: images.max_bytes, max_entries: images.max_entries },
        }
    }
}

/// The store.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    pub(super) settings: Settings,
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
pub(super) struct Record {
    pub reference: String,
    pub manifest: Digest,
    pub config: Digest,
    /// Uppermost first.
    pub layers: Vec<String>,
    pub pulled_at: u64,
}

impl Store {
    /// Opens the store in `directory`, making it if need be, and removes what interrupted pulls have left.
    pub fn open(directory: &Path, settings: Settings) -> Result<Self, ImageError> {
        let store = Self { directory: directory.to_owned(), settings };
        for part in ["", "blobs/sha256", "refs", "layers", "contents", "locks", "tmp"] {
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

    /// The directory that all layers are in.
    pub fn layers_root(&self) -> PathBuf {
        self.directory.join("layers")
    }

    pub(super) fn path(&self, part: &str) -> PathBuf {
        self.directory.join(part)
    }

    /// The image of this name, if it has been pulled.
    pub fn lookup(&self, reference: &Reference) -> Result<Option<Image>, ImageError> {
        let path = self.record_path(reference);
        match read_record(&path)? {
            None => Ok(None),
            Some(record) => self.load(record).map(Some),
        }
    }

    /// Keeps images from being removed, from the moment that one is found until the database says that it is in use.
    pub fn hold(&self) -> Result<StoreLease, ImageError> {
        self.lock(FlockArg::LockShared).map(StoreLease)
    }

    /// All images, by name.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let mut images = self.records()?.into_iter().map(|record| self.load(record)).collect::<Result<Vec<_>, _>>()?;
        images.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(images)
    }

    /// What is known of each layer of an image, uppermost first.
    pub fn contents(&self, image: &Image) -> Result<Vec<Contents>, ImageError> {
        image.layers.iter().map(|layer| self.read_contents(layer)).collect()
    }

    /// Forgets the image of this name. Its layers stay until [`Store::prune`].
    pub fn remove(&self, reference: &Reference, in_use: &HashSet<Digest>) -> Result<(), ImageError> {
        let _lock = self.lock(FlockArg::LockExclusive)?;
        let path = self.record_path(reference);
        let Some(record) = read_record(&path)? else {
            return Err(ImageError::NotFound(reference.to_string()));
        };
        let others = self.records()?.into_iter().filter(|other| other.manifest == record.manifest).count();
        if others == 1 && in_use.contains(&record.manifest) {
            return Err(ImageError::InUse { image: reference.to_string() });
        }
        fs::remove_file(&path).map_err(|error| ImageError::Store(path, error))
    }

    /// Removes layers and blobs that no image refers to. Returns the names of the layers.
    pub fn prune(&self, in_use: &HashSet<Digest>) -> Result<Vec<String>, ImageError> {
        let _lock = self.lock(FlockArg::LockExclusive)?;
        let mut layers = BTreeSet::new();
        let mut blobs = BTreeSet::new();
        for record in self.records()? {
            layers.extend(record.layers);
            blobs.extend([record.manifest.hex().to_owned(), record.config.hex().to_owned()]);
        }
        // An image in use is one that has a record: removing that is refused above.
        debug_assert!(in_use.iter().all(|digest| blobs.contains(digest.hex())));
        let mut removed = Vec::new();
        for name in names(&self.layers_root())? {
            if layers.contains(&name) {
                continue;
            }
            let Some(_unpacking) = self.try_lock_layer(&name)? else { continue };
            self.remove_layer(&name)?;
            removed.push(name);
        }
        for name in names(&self.path("blobs/sha256"))? {
            if !blobs.contains(&name) {
                let path = self.path("blobs/sha256").join(name);
                fs::remove_file(&path).map_err(|error| ImageError::Store(path, error))?;
            }
        }
        Ok(removed)
    }

    fn remove_layer(&self, name: &str) -> Result<(), ImageError> {
        let path = self.layers_root().join(name);
        // Out of sight first: half a layer must never be found.
        let away = self.temporary_path();
        fs::rename(&path, &away).map_err(|error| ImageError::Store(path, error))?;
        remove_tree(&away).map_err(|error| ImageError::Store(away, error))?;
        let contents = self.contents_path(name);
        fs::remove_file(&contents).map_err(|error| ImageError::Store(contents, error))
    }

    /// What interrupted pulls have left and nobody is working on any more.
    pub fn listing(&self) -> Result<Vec<String>, ImageError> {
        let mut left = Vec::new();
        for name in names(&self.path("tmp"))? {
            if abandoned(&name) {
                left.push(self.path("tmp").join(name).display().to_string());
            }
        }
        Ok(left)
    }

    fn sweep(&self) -> Result<(), ImageError> {
        for name in names(&self.path("tmp"))? {
            if abandoned(&name) {
                let path = self.path("tmp").join(&name);
                remove_tree(&path).map_err(|error| ImageError::Store(path, error))?;
            }
        }
        Ok(())
    }

    /// A path for something unfinished, named after this process.
    pub(super) fn temporary_path(&self) -> PathBuf {
        let pid = std::process::id();
        let start = start_time(pid).unwrap_or_default();
        let random = getrandom::u64().unwrap_or_default();
        self.path("tmp").join(format!("{pid}-{start}-{random:016x}"))
    }

    fn lock(&self, kind: FlockArg) -> Result<Flock<File>, ImageError> {
        flock(&self.path("lock"), kind)
    }

    /// Takes the right to unpack a layer; waits while somebody else does.
    pub(super) fn lock_layer(&self, name: &str) -> Result<Flock<File>, ImageError> {
        flock(&self.path("locks").join(name), FlockArg::LockExclusive)
    }

    fn try_lock_layer(&self, name: &str) -> Result<Option<Flock<File>>, ImageError> {
        match flock(&self.path("locks").join(name), FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err(ImageError::Store(_, error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a layer is there, completely.
    pub(super) fn has_layer(&self, name: &str) -> bool {
        self.layers_root().join(name).is_dir()
    }

    /// Makes a layer visible that has been unpacked into `unpacked`.
    pub(super) fn commit_layer(&self, name: &str, unpacked: &Path, contents: &Contents) -> Result<(), ImageError> {
        let json =
            serde_json::to_vec(contents).map_err(|error| ImageError::Store(unpacked.to_owned(), error.into()))?;
        self.write(&self.contents_path(name), &json)?;
        // All of it to the disk before it can be seen: once for the file system rather than once for each file.
        let failed = |error: io::Error| ImageError::Store(unpacked.to_owned(), error);
        let directory = File::open(unpacked).map_err(failed)?;
        nix::unistd::syncfs(&directory).map_err(|errno| failed(errno.into()))?;
        fs::rename(unpacked, self.layers_root().join(name)).map_err(failed)
    }

    pub(super) fn read_contents(&self, name: &str) -> Result<Contents, ImageError> {
        let path = self.contents_path(name);
        let json = fs::read(&path).map_err(|error| ImageError::Store(path.clone(), error))?;
        serde_json::from_slice(&json).map_err(|error| ImageError::Damaged { path, what: error.to_string() })
    }

    fn contents_path(&self, name: &str) -> PathBuf {
        self.path("contents").join(format!("{name}.json"))
    }

    pub(super) fn write_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), ImageError> {
        self.write(&self.path("blobs/sha256").join(digest.hex()), bytes)
    }

    /// A manifest or configuration, verified.
    pub fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let path = self.path("blobs/sha256").join(digest.hex());
        let bytes = fs::read(&path).map_err(|error| ImageError::Store(path.clone(), error))?;
        if Digest::of(&bytes) == *digest {
            Ok(bytes)
        } else {
            Err(ImageError::Damaged { path, what: "it does not have the digest that it is named after".to_owned() })
        }
    }

    /// Makes an image visible, if all its layers are there still; false if a prune came in between.
    pub(super) fn commit_image(&self, reference: &Reference, record: &Record) -> Result<bool, ImageError> {
        let _lock = self.lock(FlockArg::LockExclusive)?;
        let blobs = self.path("blobs/sha256");
        let complete = record.layers.iter().all(|layer| self.has_layer(layer))
            && [&record.manifest, &record.config].iter().all(|digest| blobs.join(digest.hex()).exists());
        if complete {
            let json = serde_json::to_vec_pretty(record)
                .map_err(|error| ImageError::Store(self.record_path(reference), error.into()))?;
            self.write(&self.record_path(reference), &json)?;
        }
        Ok(complete)
    }

    /// Names are escaped to be file names: every byte that is not a letter, a digit, `.`, `_` or `-` as `%XX`.
    fn record_path(&self, reference: &Reference) -> PathBuf {
        let mut name = String::new();
        for byte in reference.to_string().bytes() {
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

    fn records(&self) -> Result<Vec<Record>, ImageError> {
        let refs = self.path("refs");
        let mut records = Vec::new();
        for name in names(&refs)? {
            if name.ends_with(".json") {
                records.extend(read_record(&refs.join(name))?);
            }
        }
        Ok(records)
    }

    fn load(&self, record: Record) -> Result<Image, ImageError> {
        let config = self.read_blob(&record.config)?;
        let config = ImageConfiguration::from_reader(&config[..]).map_err(|error| ImageError::Damaged {
            path: self.path("blobs/sha256").join(record.config.hex()),
            what: error.to_string(),
        })?;
        let mut bytes = 0;
        for layer in &record.layers {
            bytes += self.read_contents(layer)?.bytes;
        }
        Ok(Image {
            id: record.manifest,
            reference: record.reference,
            layers: record.layers,
            config,
            bytes,
            pulled_at: UNIX_EPOCH + std::time::Duration::from_secs(record.pulled_at),
        })
    }

    /// Writes a file so that it is there completely or not at all.
    fn write(&self, path: &Path, content: &[u8]) -> Result<(), ImageError> {
        let temporary = self.temporary_path();
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        };
        write().map_err(|error| ImageError::Store(path.to_owned(), error))
    }
}

/// The name of a layer's directory.
pub(super) fn layer_name(diff_id: &Digest) -> String {
    diff_id.hex()[..NAME_DIGITS].to_owned()
}

fn names(directory: &Path) -> Result<Vec<String>, ImageError> {
    let failed = |error| ImageError::Store(directory.to_owned(), error);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

fn flock(path: &Path, kind: FlockArg) -> Result<Flock<File>, ImageError> {
    let failed = |error| ImageError::Store(path.to_owned(), error);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    loop {
        match Flock::lock(file, kind) {
            Ok(lock) => return Ok(lock),
            Err((again, Errno::EINTR)) => file = again,
            Err((_, errno)) => return Err(failed(errno.into())),
        }
    }
}

/// Whether the process that a temporary directory is named after has ended.
fn abandoned(name: &str) -> bool {
    let mut parts = name.split('-');
    let process = parts
        .next()
        .zip(parts.next())
        .and_then(|(pid, start)| Some((pid.parse::<u32>().ok()?, start.parse::<u64>().ok()?)));
    process.is_none_or(|(pid, start)| start_time(pid) != Some(start))
}

fn read_record(path: &Path) -> Result<Option<Record>, ImageError> {
    let json = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| ImageError::Store(path.to_owned(), error))?,
    };
    let record = serde_json::from_slice(&json);
    record.map(Some).map_err(|error| ImageError::Damaged { path: path.to_owned(), what: error.to_string() })
}

/// When a process was started, in ticks since boot; `None` if it has ended (proc_pid_stat(5), field 22).
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    (state != "Z").then(|| fields.nth(18)?.parse().ok()).flatten()
}
