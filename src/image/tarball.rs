//! Writing tars in the POSIX format (pax), which say everything of an entry: owners, modes, times to the nanosecond, extended
//! attributes and hard links. The same entries give the same bytes.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use tar::{Builder, EntryType, Header};

use super::{holes::Sparse, view::Attributes};

/// The largest size and time that a header has room for.
const MAX_SIZE: u64 = (1 << 33) - 1;

pub(super) struct TarWriter<W: Write>(Builder<W>);

/// What is at a path.
pub(super) enum Entry {
    Directory,
    Symlink(PathBuf),
    /// Another name of an entry that came before.
    HardLink(PathBuf),
    Fifo,
    File {
        size: u64,
        content: File,
    },
    Sparse(Sparse),
    /// A file without content.
    Empty,
}

impl<W: Write> TarWriter<W> {
    pub(super) fn new(to: W) -> Self {
        Self(Builder::new(to))
    }

    /// Appends an entry; the empty path is the root.
    pub(super) fn append(&mut self, path: &Path, attributes: &Attributes, entry: Entry) -> io::Result<()> {
        let (entry_type, link, content) = match entry {
            Entry::Directory => (EntryType::Directory, None, None),
            Entry::Symlink(target) => (EntryType::Symlink, Some(target), None),
            Entry::HardLink(target) => (EntryType::Link, Some(target), None),
            Entry::Fifo => (EntryType::Fifo, None, None),
            Entry::File { size, content } => {
                (EntryType::Regular, None, Some(Content { size, holes: None, stream: Box::new(content) }))
            }
            Entry::Sparse(sparse) => {
                let (size, holes) = (sparse.length, Some(sparse.size));
                (EntryType::Regular, None, Some(Content { size, holes, stream: Box::new(sparse) }))
            }
            Entry::Empty => (EntryType::Regular, None, None),
        };
        let mut name = if path.as_os_str().is_empty() { b".".to_vec() } else { path.as_os_str().as_bytes().to_vec() };
        if entry_type == EntryType::Directory {
            name.push(b'/');
        }
        let mut header = Header::new_ustar();
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        let fields = header.as_ustar_mut().ok_or_else(|| io::Error::other("a header of another form"))?;
        if let Some(size) = content.as_ref().and_then(|content| content.holes) {
            let version = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")];
            records.extend(version.map(|(name, value)| (name.to_owned(), value.into())));
            records.push(("GNU.sparse.realsize".to_owned(), size.to_string().into_bytes()));
            records.push(("GNU.sparse.name".to_owned(), name));
            // For those who know nothing of holes.
            put(&mut fields.name, b"GNUSparseFile.0/file");
        } else if !put(&mut fields.name, &name) {
            records.push(("path".to_owned(), name));
        }
        if let Some(link) = link {
            let link = link.into_os_string();
            if !put(&mut fields.linkname, link.as_bytes()) {
                records.push(("linkpath".to_owned(), link.as_bytes().to_vec()));
            }
        }
        let size = content.as_ref().map_or(0, |content| content.size);
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
            let xattrs = attributes.xattrs.iter();
            records.extend(xattrs.map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.clone())));
        }
        header.set_cksum();
        if !records.is_empty() {
            let records = records.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
            self.0.append_pax_extensions(records)?;
        }
        match content {
            Some(content) => self.0.append(&header, content.stream),
            None => self.0.append(&header, io::empty()),
        }
    }

    /// Ends the archive. Returns where it was written to.
    pub(super) fn finish(self) -> io::Result<W> {
        let mut to = self.0.into_inner()?;
        to.flush()?;
        Ok(to)
    }
}

/// The data of an entry.
struct Content {
    size: u64,
    /// The size of the file, if its data is that of one with holes.
    holes: Option<u64>,
    stream: Box<dyn Read>,
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
