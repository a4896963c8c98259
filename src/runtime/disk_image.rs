//! A file system of a session's own in a file, so that what it writes has a bound.
//!
//! The file is sparse: it takes the space of what is in it, and gives it back when files are removed (`discard`). It is
//! attached to a loop device that the kernel detaches when the last mount of it has gone, and it is never mounted anywhere:
//! mounts are handed on detached. So all that can be left of it, whoever dies when, is the file.
//!
//! There is no journal. What is in it does not outlive the machine's crash, after which the session is removed.

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::sys::statvfs::fstatvfs;

use super::disk::DiskUse;
use crate::sys::{
    loop_device,
    mount_api::{attr, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen},
};

/// Its name in the session's directory.
pub const NAME: &str = "disk.img";

/// The smallest that there may be, in bytes.
pub const LEAST: u64 = 16 << 20;

const BLOCK: u32 = 4096;

/// Bytes for each file that there can be, at most.
const BYTES_PER_INODE: &str = "16384";

/// How often somebody else may be faster to use a free loop device.
const ATTEMPTS: usize = 100;

/// Why a session cannot have a file system of its own.
#[derive(Debug, thiserror::Error)]
pub enum DiskImageError {
    #[error("mkfs.ext4 is not installed; run: apt-get install e2fsprogs")]
    NoProgram,
    #[error("cannot make {}", .0.display())]
    Create(PathBuf, #[source] io::Error),
    #[error("mkfs.ext4 failed for {}: {said}", .image.display())]
    Mkfs { image: PathBuf, said: String },
    #[error("cannot attach {} to a loop device", .0.display())]
    Attach(PathBuf, #[source] io::Error),
    #[error("cannot mount {}", .0.display())]
    Mount(PathBuf, #[source] io::Error),
}

/// Makes the file `image` with an empty file system in it, which has `bytes` with what it needs itself: 2 %.
///
/// # Errors
/// There may be a file.
pub fn create(image: &Path, bytes: u64) -> Result<(), DiskImageError> {
    let program = mkfs()?;
    let make = || {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(image)?;
        file.set_len(bytes - bytes % u64::from(BLOCK))
    };
    make().map_err(|error| DiskImageError::Create(image.to_owned(), error))?;
    // Nothing is reserved for root, which is not in there, and nothing written that is zero anyway.
    let output = Command::new(program)
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-I", "256", "-i", BYTES_PER_INODE, "-b", &BLOCK.to_string()])
        .args(["-O", "^has_journal,^resize_inode", "-E", "nodiscard,lazy_itable_init=1"])
        .arg(image)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|error| DiskImageError::Create(image.to_owned(), error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(DiskImageError::Mkfs { image: image.to_owned(), said })
}

/// Finds mkfs.ext4(8). The directories of system programs are searched even if `PATH` lacks them.
pub fn mkfs() -> Result<PathBuf, DiskImageError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    directories.map(|d| d.join("mkfs.ext4")).find(|p| p.is_file()).ok_or(DiskImageError::NoProgram)
}

/// An image on its loop device, which stays as long as this lives or the file system is mounted.
#[derive(Debug)]
pub struct Attached {
    image: PathBuf,
    /// Held open, which keeps the file attached.
    _device: File,
    path: PathBuf,
}

impl Attached {
    /// Attaches the image to a free loop device. It must not be attached already.
    pub fn new(image: &Path) -> Result<Self, DiskImageError> {
        let attach = || {
            let backing = OpenOptions::new().read(true).write(true).open(image)?;
            let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
            for _ in 0..ATTEMPTS {
                let path = PathBuf::from(format!("/dev/loop{}", loop_device::get_free(control.as_fd())?));
                let device = OpenOptions::new().read(true).write(true).open(&path)?;
                match loop_device::configure(device.as_fd(), backing.as_fd(), BLOCK) {
                    Ok(()) => return Ok(Self { image: image.to_owned(), _device: device, path }),
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(io::Error::other("every free loop device is taken at once by somebody else"))
        };
        attach().map_err(|error| DiskImageError::Attach(image.to_owned(), error))
    }

    /// The image as it is attached, if it is.
    pub fn find(image: &Path) -> Result<Option<Self>, DiskImageError> {
        let failed = |error| DiskImageError::Attach(image.to_owned(), error);
        let meta = fs::metadata(image).map_err(failed)?;
        for (name, backing) in attached().map_err(failed)? {
            if backing != image {
                continue;
            }
            let path = Path::new("/dev").join(name);
            let Ok(device) = OpenOptions::new().read(true).write(true).open(&path) else { continue };
            // It may have gone, or got another file, before it was opened.
            if loop_device::backing(device.as_fd()).is_ok_and(|found| found == (meta.dev(), meta.ino())) {
                return Ok(Some(Self { image: image.to_owned(), _device: device, path }));
            }
        }
        Ok(None)
    }

    /// Mounts it, attached nowhere; however often that is done, it is one file system.
    pub fn mount(&self) -> Result<OwnedFd, DiskImageError> {
        let mount = || {
            let source = CString::new(self.path.as_os_str().as_encoded_bytes())?;
            let context = fsopen(c"ext4")?;
            fsconfig_set_string(context.as_fd(), c"source", &source)?;
            // The tables are zero, as everything in a new file is.
            for flag in [c"discard", c"noinit_itable"] {
                fsconfig_set_flag(context.as_fd(), flag)?;
            }
            fsconfig_create(context.as_fd())?;
            fsmount(context.as_fd(), attr::NODEV | attr::NOSUID | attr::NOEXEC)
        };
        mount().map_err(|error| DiskImageError::Mount(self.image.clone(), error))
    }

    /// How much of it is used, and how much there is.
    pub fn usage(&self) -> Result<DiskUse, DiskImageError> {
        let found = fstatvfs(self.mount()?).map_err(|error| DiskImageError::Mount(self.image.clone(), error.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
        let used = found.blocks().saturating_sub(found.blocks_free());
        Ok(DiskUse { bytes: bytes(used), complete: true, limit: Some(bytes(found.blocks())) })
    }
}

/// The loop devices and the files that are attached to them. The name of one that was removed ends in ` (deleted)`.
fn attached() -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with("loop") {
            continue;
        }
        // What is not attached has no such file.
        if let Ok(backing) = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")) {
            found.push((name, PathBuf::from(backing.trim_end_matches('\n'))));
        }
    }
    Ok(found)
}

/// The loop devices of images below `directory`, each with the file's name.
pub fn listing(directory: &Path) -> io::Result<Vec<String>> {
    let devices = match attached() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let ours = devices.into_iter().filter(|(_, backing)| backing.starts_with(directory));
    Ok(ours.map(|(name, backing)| format!("{name} of {}", backing.display())).collect())
}

#[cfg(test)]
mod tests {
    use std::{os::fd::AsRawFd, time::Duration};

    use super::*;

    #[test]
    fn a_file_system_in_a_file_is_full_when_it_is_full_and_gives_space_back() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join(NAME);
        create(&image, LEAST).unwrap();
        assert!(Attached::find(&image).unwrap().is_none());
        let attached = Attached::new(&image).unwrap();
        let mount = attached.mount().unwrap();
        let inside = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        let error = fs::write(inside.join("big"), vec![1; 32 << 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);

        // Another mount is the same file system, whoever finds it.
        let found = Attached::find(&image).unwrap().unwrap();
        let full = found.usage().unwrap();
        assert!(full.bytes > LEAST / 10 * 8 && full.limit.unwrap() <= LEAST, "{full:?}");
        let other = found.mount().unwrap();
        fs::remove_file(format!("/proc/self/fd/{}/big", other.as_raw_fd())).unwrap();
        nix::unistd::syncfs(File::open(&inside).unwrap()).unwrap();
        let left = attached.usage().unwrap().bytes;
        assert!(left < 1 << 20, "{left}");
        let blocks = || fs::metadata(&image).unwrap().blocks() * 512;
        // Blocks are given back when the removal is written.
        let end = std::time::Instant::now() + Duration::from_secs(30);
        while blocks() > 4 << 20 && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(blocks() <= 4 << 20, "{}", blocks());

        assert_eq!(listing(directory.path()).unwrap().len(), 1);
        drop((mount, other, attached, found));
        let end = std::time::Instant::now() + Duration::from_secs(30);
        while !listing(directory.path()).unwrap().is_empty() && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(listing(directory.path()).unwrap(), Vec::<String>::new(), "it stays attached");
    }
}
