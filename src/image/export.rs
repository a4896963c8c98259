//! An image's root file system as one tar, with the layers merged as overlayfs merges them.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    fs::{self, File, Metadata},
    io::{self, Write},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tar::{Builder, EntryType, Header};

use super::{Image, ImageError, Store};

/// An entry of the merged tree: what shows, and for a directory what of each layer it is made of, uppermost first.
struct Merged {
    shown: PathBuf,
    meta: Metadata,
    parts: Vec<PathBuf>,
}

impl Store {
    /// Writes the image's root file system as a tar: owners, modes, times to the nanosecond, extended attributes and hard
    /// links are kept.
    pub fn export(&self, image: &Image, to: impl Write) -> Result<(), ImageError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| ImageError::Store(path, error)
        };
        let mut tar = Builder::new(to);
        let mut links = HashMap::new();
        let roots: Vec<_> = image.layers.iter().map(|layer| self.layers_root().join(layer)).collect();
        let mut pending = vec![(PathBuf::new(), roots)];
        while let Some((path, parts)) = pending.pop() {
            let mut below = Vec::new();
            for (name, entry) in merge(&parts).map_err(failed(&path))? {
                let inner = path.join(name);
                append(&mut tar, &inner, &entry, &mut links).map_err(failed(&inner))?;
                if entry.meta.is_dir() {
                    below.push((inner, entry.parts));
                }
            }
            // Taken from the end, so in order.
            pending.extend(below.into_iter().rev());
        }
        tar.into_inner().and_then(|mut to| to.flush()).map_err(failed(Path::new("/")))
    }
}

/// The entries of a directory that is made of these, by name.
fn merge(parts: &[PathBuf]) -> io::Result<BTreeMap<OsString, Merged>> {
    // What is `None` is hidden by a whiteout; what is closed shows nothing from further below.
    let mut entries: BTreeMap<OsString, Option<(Merged, bool)>> = BTreeMap::new();
    for part in parts {
        for entry in fs::read_dir(part)? {
            let entry = entry?;
            let path = entry.path();
            let meta = fs::symlink_metadata(&path)?;
            let closed = !meta.is_dir() || is_opaque(&path)?;
            match entries.get_mut(&entry.file_name()) {
                None => {
                    let whiteout = meta.file_type().is_char_device() && meta.rdev() == 0;
                    let parts = vec![path.clone()];
                    let shown = (!whiteout).then_some((Merged { shown: path, meta, parts }, closed));
                    entries.insert(entry.file_name(), shown);
                }
                Some(Some((above, above_closed))) if !*above_closed => {
                    if meta.is_dir() {
                        above.parts.push(path);
                    }
                    *above_closed = closed;
                }
                Some(_) => {}
            }
        }
    }
    Ok(entries.into_iter().filter_map(|(name, entry)| Some((name, entry?.0))).collect())
}

fn is_opaque(directory: &Path) -> io::Result<bool> {
    Ok(xattr::get(directory, "trusted.overlay.opaque")?.as_deref() == Some(b"y"))
}

fn append<W: Write>(
    tar: &mut Builder<W>,
    path: &Path,
    entry: &Merged,
    links: &mut HashMap<(u64, u64), PathBuf>,
) -> io::Result<()> {
    let Merged { shown, meta, .. } = entry;
    let mut header = Header::new_gnu();
    header.set_mode(meta.permissions().mode() & 0o7777);
    header.set_uid(meta.uid().into());
    header.set_gid(meta.gid().into());
    header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
    header.set_size(0);
    let kind = meta.file_type();
    if !meta.is_dir() && meta.nlink() > 1 {
        if let Some(first) = links.get(&(meta.dev(), meta.ino())) {
            header.set_entry_type(EntryType::Link);
            return tar.append_link(&mut header, path, first);
        }
        links.insert((meta.dev(), meta.ino()), path.to_owned());
    }
    let time = format!("{}.{:09}", meta.mtime(), meta.mtime_nsec());
    let mut records = vec![("mtime".to_owned(), time.into_bytes())];
    for name in xattr::list(shown)? {
        let Some(name) = name.to_str().filter(|name| !name.starts_with("trusted.")) else { continue };
        if let Some(value) = xattr::get(shown, name)? {
            records.push((format!("SCHILY.xattr.{name}"), value));
        }
    }
    tar.append_pax_extensions(records.iter().map(|(name, value)| (name.as_str(), value.as_slice())))?;
    if kind.is_symlink() {
        header.set_entry_type(EntryType::Symlink);
        tar.append_link(&mut header, path, fs::read_link(shown)?)
    } else if kind.is_dir() {
        header.set_entry_type(EntryType::Directory);
        tar.append_data(&mut header, path, io::empty())
    } else if kind.is_fifo() {
        header.set_entry_type(EntryType::Fifo);
        tar.append_data(&mut header, path, io::empty())
    } else {
        header.set_entry_type(EntryType::Regular);
        header.set_size(meta.len());
        let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(shown)?;
        tar.append_data(&mut header, path, file)
    }
}
