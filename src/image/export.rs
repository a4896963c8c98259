//! An image's root file system as one tar in the POSIX format, with the layers merged as overlayfs merges them.

use std::{
    collections::HashMap,
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use nix::sys::stat::SFlag;
use tar::{Builder, EntryType, Header};

use super::{
    Contents, Image, ImageError, Store,
    assemble::described,
    layer::tree::kind,
    view::{Shown, View},
};

/// The largest size and id that a header has room for.
const MAX_SIZE: u64 = (1 << 33) - 1;

impl Store {
    /// Writes the image's root file system as a tar: owners, modes, times to the nanosecond, extended attributes and hard
    /// links are kept.
    pub fn export(&self, image: &Image, to: impl Write) -> Result<(), ImageError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| ImageError::Export(path, error)
        };
        let _leases = self.lease_all(&image.layers)?;
        let contents = self.contents(image)?;
        let view = View::open(&self.layers_root(), image.layers.iter()).map_err(failed(Path::new("/")))?;
        let mut export =
            Export { tar: Builder::new(to), contents: contents.iter().collect(), view: &view, links: HashMap::new() };
        // What is in a directory comes right after it: programs that unpack set its time when they leave it.
        let mut pending = vec![(PathBuf::new(), view.root().map_err(failed(Path::new("/")))?)];
        while let Some((path, shown)) = pending.pop() {
            export.append(&path, &shown).map_err(failed(&path))?;
            if !shown.is_directory() {
                continue;
            }
            // Taken from the end.
            for name in view.names(&shown.layers, &path).map_err(failed(&path))?.into_iter().rev() {
                let inner = path.join(name);
                if let Some(shown) = view.child(&shown.layers, &inner).map_err(failed(&inner))? {
                    pending.push((inner, shown));
                }
            }
        }
        export.tar.into_inner().and_then(|mut to| to.flush()).map_err(failed(Path::new("/")))
    }
}

struct Export<'a, W: Write> {
    tar: Builder<W>,
    view: &'a View,
    contents: Vec<&'a Contents>,
    /// The first name of each file that has several, by layer (whose files may be on any file system) and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Export<'_, W> {
    fn append(&mut self, path: &Path, shown: &Shown) -> io::Result<()> {
        let layer = self.view.layer(shown.layers[0]);
        let stat = &shown.stat;
        let kind = kind(stat);
        let directory = shown.is_directory();
        let first = if stat.st_nlink > 1 && !directory {
            let first = self.links.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| path.to_owned());
            Some(first.clone()).filter(|first| first != path)
        } else {
            None
        };
        let attributes =
            if directory { described(self.view, &self.contents, path, shown)? } else { layer.attributes(path)? };
        let (entry_type, link, size) = match kind {
            _ if first.is_some() => (EntryType::Link, first, 0),
            SFlag::S_IFDIR => (EntryType::Directory, None, 0),
            SFlag::S_IFLNK => (EntryType::Symlink, Some(layer.link_target(path)?), 0),
            SFlag::S_IFIFO => (EntryType::Fifo, None, 0),
            _ => (EntryType::Regular, None, stat.st_size.cast_unsigned()),
        };
        let mut name = if path.as_os_str().is_empty() { b".".to_vec() } else { path.as_os_str().as_bytes().to_vec() };
        if directory {
            name.push(b'/');
        }
        let mut header = Header::new_ustar();
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        let fields = header.as_ustar_mut().ok_or_else(|| io::Error::other("a header of another form"))?;
        if !put(&mut fields.name, &name) {
            records.push(("path".to_owned(), name));
        }
        if let Some(link) = link {
            let link = link.into_os_string();
            if !put(&mut fields.linkname, link.as_bytes()) {
                records.push(("linkpath".to_owned(), link.as_bytes().to_vec()));
            }
        }
        header.set_entry_type(entry_type);
        header.set_mode(attributes.mode);
        header.set_uid(attributes.uid.into());
        header.set_gid(attributes.gid.into());
        header.set_size(size.min(MAX_SIZE));
        if size > MAX_SIZE {
            records.push(("size".to_owned(), size.to_string().into_bytes()));
        }
        let (seconds, nanoseconds) = attributes.mtime;
        header.set_mtime(seconds.clamp(0, MAX_SIZE.cast_signed()).cast_unsigned());
        if nanoseconds > 0 || header.mtime()?.cast_signed() != seconds {
            records.push(("mtime".to_owned(), decimal(seconds, nanoseconds).into_bytes()));
        }
        // A hard link has those of its first name.
        if entry_type != EntryType::Link {
            let xattrs = attributes.xattrs.into_iter();
            records.extend(xattrs.map(|(name, value)| (format!("SCHILY.xattr.{name}"), value)));
        }
        header.set_cksum();
        if !records.is_empty() {
            let records = records.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
            self.tar.append_pax_extensions(records)?;
        }
        if entry_type == EntryType::Regular {
            self.tar.append(&header, layer.file(path)?)
        } else {
            self.tar.append(&header, io::empty())
        }
    }
}

/// Fills a field; false if the value is too long for it. Then its start is there, for programs that know nothing of
/// extended headers.
fn put(field: &mut [u8; 100], value: &[u8]) -> bool {
    let length = value.len().min(field.len());
    field[..length].copy_from_slice(&value[..length]);
    length == value.len()
}

/// Seconds with their fraction; before the epoch it counts backwards.
fn decimal(seconds: i64, nanoseconds: u32) -> String {
    match (seconds, nanoseconds) {
        (..0, 1..) => {
            let (whole, fraction) = (-(seconds + 1), 1_000_000_000 - nanoseconds);
            format!("-{whole}.{fraction:09}")
        }
        _ => format!("{seconds}.{nanoseconds:09}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_count_backwards() {
        assert_eq!(decimal(5, 30), "5.000000030");
        assert_eq!(decimal(-1, 750_000_000), "-0.250000000");
        assert_eq!(decimal(-3, 0), "-3.000000000");
        assert_eq!(decimal(-3, 900_000_000), "-2.100000000");
    }
}
