//! Unpacking a layer: a tar stream becomes a directory that overlayfs can stack (OCI image spec, layer.md; kernel
//! documentation, overlayfs.rst).
//!
//! Layers are unpacked on their own, without the ones below, so that all of an image's can be unpacked at once and each
//! only once for all images. Ids stay as the image has them; sessions see them through idmapped mounts.

mod reader;
mod tree;

use std::{
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use self::reader::TarError;
use self::{
    reader::{Entry, Kind, TarReader},
    tree::{Attributes, Tree},
};

/// Ids of a container: 0..65536.
const MAX_ID: u64 = 65_535;

/// What is written of a file at once.
const BUFFER: usize = 256 << 10;

/// What one image may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub max_bytes: u64,
    pub max_entries: u64,
}

/// What is known of an unpacked layer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    pub entries: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Device nodes that the archive has and the directory has not: a container has its own `/dev`.
    pub skipped_devices: Vec<PathBuf>,
    /// Directories without an entry of their own. Their owner and mode are those of a lower layer, if it has them.
    pub implied: Vec<PathBuf>,
}

/// Why a layer was refused.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error("cannot unpack {}", .0.display())]
    Unpack(PathBuf, #[source] io::Error),
    #[error("{}: {why}", .path.display())]
    Hostile { path: PathBuf, why: &'static str },
    #[error("{}: its owner {uid}:{gid} is beyond 65535, the last id that a container has", .path.display())]
    Owner { path: PathBuf, uid: u64, gid: u64 },
    #[error("{}: the image has more than {limit} {what} (images.max_size, images.max_entries)", .path.display())]
    TooMuch { path: PathBuf, limit: u64, what: &'static str },
}

/// Unpacks a tar stream into the empty directory `root`. Reads the stream to its end.
///
/// # Errors
/// The first entry that cannot or must not be unpacked, by name. The directory is then for the caller to remove; nothing
/// outside it has been touched.
pub fn unpack(stream: impl Read, root: &Path, limits: Limits) -> Result<Contents, LayerError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| LayerError::Unpack(path, error)
    };
    let mut tree = Tree::open(root).map_err(failed(root))?;
    let mut tar = TarReader::new(stream);
    let mut contents = Contents::default();
    let mut directory_times = Vec::new();
    while let Some(entry) = tar.next_entry()? {
        let path = checked_path(&entry.path)?;
        contents.entries += 1;
        if contents.entries > limits.max_entries {
            return Err(LayerError::TooMuch { path, limit: limits.max_entries, what: "entries" });
        }
        contents.bytes = contents.bytes.saturating_add(entry.size);
        if contents.bytes > limits.max_bytes {
            return Err(LayerError::TooMuch { path, limit: limits.max_bytes, what: "bytes" });
        }
        if let Some(whiteout) = whiteout(&path)? {
            match whiteout {
                Whiteout::Of(hidden) => tree.make_whiteout(&hidden),
                Whiteout::Opaque(directory) => tree.make_opaque(&directory),
                Whiteout::Nothing => Ok(()),
            }
            .map_err(failed(&path))?;
            continue;
        }
        if make(&mut tree, &mut tar, &entry, &path, &mut contents)? {
            let attributes = attributes(&entry, &path)?;
            let xattrs = entry.xattrs.iter().filter(|(name, _)| is_for_containers(name));
            tree.set_attributes(&path, &attributes, xattrs).map_err(failed(&path))?;
            if entry.kind == Kind::Directory {
                directory_times.push((path, entry.mtime));
            }
        }
    }
    for (path, mtime) in directory_times.into_iter().rev() {
        tree.set_directory_times(&path, mtime).map_err(failed(&path))?;
    }
    tar.drain()?;
    contents.implied = tree.into_implied();
    Ok(contents)
}

/// Makes what the entry describes; false if it has no attributes of its own or is skipped.
fn make<R: Read>(
    tree: &mut Tree,
    tar: &mut TarReader<R>,
    entry: &Entry,
    path: &Path,
    contents: &mut Contents,
) -> Result<bool, LayerError> {
    let failed = |error| LayerError::Unpack(path.to_owned(), error);
    if path.as_os_str().is_empty() {
        // The root itself: only its attributes.
        return match entry.kind {
            Kind::Directory => Ok(true),
            _ => Err(LayerError::Hostile { path: "/".into(), why: "the root is not a directory" }),
        };
    }
    match entry.kind {
        Kind::Directory => tree.make_directory(path).map_err(failed)?,
        Kind::File => {
            let mut file = tree.make_file(path).map_err(failed)?;
            copy(tar, entry, &mut file, path)?;
            tree::set_mode(&file, entry.mode).map_err(failed)?;
        }
        Kind::Symlink => tree.make_symlink(path, &entry.link).map_err(failed)?,
        Kind::HardLink => {
            let target = checked_path(&entry.link)
                .map_err(|_| LayerError::Hostile { path: path.to_owned(), why: "a hard link to the outside" })?;
            tree.make_hard_link(path, &target).map_err(failed)?;
            // The attributes are the target's.
            return Ok(false);
        }
        Kind::Fifo => tree.make_fifo(path).map_err(failed)?,
        // As a device 0:0 it would be a whiteout that the image does not declare.
        Kind::Device { character: true, major: 0, minor: 0 } | Kind::Other => return Ok(false),
        Kind::Device { .. } => {
            contents.skipped_devices.push(path.to_owned());
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes the data, with holes where the entry has them.
fn copy<R: Read>(
    tar: &mut TarReader<R>,
    entry: &Entry,
    file: &mut std::fs::File,
    path: &Path,
) -> Result<(), LayerError> {
    let failed = |error| LayerError::Unpack(path.to_owned(), error);
    let whole = [(0, entry.size)];
    let pieces = entry.pieces.as_deref().unwrap_or(&whole);
    let mut buffer = vec![0; BUFFER.min(usize::try_from(entry.size).unwrap_or(BUFFER)).max(1)];
    for (offset, length) in pieces {
        file.seek(SeekFrom::Start(*offset)).map_err(failed)?;
        let mut left = *length;
        while left > 0 {
            let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let length = tar.read_data(&mut buffer[..wanted])?;
            if length == 0 {
                return Err(TarError::CutOff.into());
            }
            file.write_all(&buffer[..length]).map_err(failed)?;
            left -= length as u64;
        }
    }
    if entry.pieces.is_some() {
        file.set_len(entry.size).map_err(failed)?;
    }
    Ok(())
}

fn attributes(entry: &Entry, path: &Path) -> Result<Attributes, LayerError> {
    let id = |id: u64| u32::try_from(id).ok().filter(|id| u64::from(*id) <= MAX_ID);
    match (id(entry.uid), id(entry.gid)) {
        (Some(uid), Some(gid)) => Ok(Attributes { mode: entry.mode, uid, gid, mtime: entry.mtime }),
        _ => Err(LayerError::Owner { path: path.to_owned(), uid: entry.uid, gid: entry.gid }),
    }
}

/// Attributes that mean something to overlayfs or to the host's own policies are not the image's to set.
fn is_for_containers(name: &str) -> bool {
    (name.starts_with("user.") && !name.starts_with("user.overlay."))
        || name == "security.capability"
        || name.starts_with("system.posix_acl_")
}

/// The path of an entry below the root: relative, without `.`; refuses `..` and absolute paths.
fn checked_path(bytes: &[u8]) -> Result<PathBuf, LayerError> {
    let given = Path::new(std::ffi::OsStr::from_bytes(bytes));
    let hostile = |why| LayerError::Hostile { path: given.to_owned(), why };
    if bytes.contains(&0) {
        return Err(hostile("a name with a NUL in it"));
    }
    let mut path = PathBuf::new();
    for component in given.components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir => return Err(hostile("a name with .. in it")),
            Component::RootDir | Component::Prefix(_) => return Err(hostile("an absolute name")),
        }
    }
    Ok(path)
}

enum Whiteout {
    Of(PathBuf),
    Opaque(PathBuf),
    /// Bookkeeping of aufs.
    Nothing,
}

fn whiteout(path: &Path) -> Result<Option<Whiteout>, LayerError> {
    let Some(name) = path.file_name().map(OsStrExt::as_bytes) else { return Ok(None) };
    let Some(hidden) = name.strip_prefix(b".wh.") else { return Ok(None) };
    let parent = path.parent().unwrap_or(Path::new(""));
    match hidden {
        b".wh..opq" => Ok(Some(Whiteout::Opaque(parent.to_owned()))),
        b"" | b"." | b".." => Err(LayerError::Hostile { path: path.to_owned(), why: "a whiteout of nothing or of .." }),
        _ if hidden.starts_with(b".wh.") => Ok(Some(Whiteout::Nothing)),
        _ => Ok(Some(Whiteout::Of(parent.join(std::ffi::OsStr::from_bytes(hidden))))),
    }
}

#[cfg(test)]
mod tests;
