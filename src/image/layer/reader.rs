//! Reading a tar entry by entry: ustar, PAX and GNU, with bounds on what a header may make us keep.
//!
//! The `tar` crate knows where a header's fields are; the walk from header to header is here, because for hostile archives
//! it matters which of several statements about an entry wins. A record of an extended header wins over the header. Two
//! extended headers, two long names, or a long name in both the PAX and the GNU form are an error: programs differ in what
//! they make of that. Global extended headers say nothing about entries: so the Go library, which nearly all that reads and
//! writes layers is built on.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

use tar::{EntryType, Header};

use super::{
    header::{self, Records},
    sparse::Pieces,
};

pub(super) const BLOCK: usize = 512;

/// Records or a long name of one entry.
const MAX_EXTENSION: u64 = 1 << 20;

/// Why a tar could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    #[error("a header's checksum is wrong")]
    Checksum,
    #[error("the archive ends in the middle of an entry")]
    CutOff,
    #[error("a header's {0} is not valid")]
    Field(&'static str),
    #[error("an extended header is larger than 1 MiB")]
    ExtensionTooLarge,
    #[error("an entry has two {0}")]
    Twice(&'static str),
    #[error("the map of a sparse file is not valid")]
    SparseMap,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
    Device {
        character: bool,
        major: u32,
        minor: u32,
    },
    /// By its letter.
    Unknown(u8),
}

/// One entry. Its data is read with [`TarReader::read_data`] before the next entry.
#[derive(Debug, Clone)]
pub struct Entry {
    pub path: Vec<u8>,
    /// Target of a symbolic or hard link.
    pub link: Vec<u8>,
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds and nanoseconds since the epoch.
    pub mtime: (i64, u32),
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Size of the file, holes included.
    pub size: u64,
    /// How much of it comes from the archive.
    pub stored: u64,
    /// Offset and length of each piece that the data consists of; `None` for a file without holes.
    pub pieces: Option<Pieces>,
}

/// What a tar is read from.
pub trait Input: Read {
    /// Passes over that many bytes; false if there are fewer.
    fn skip(&mut self, bytes: u64) -> io::Result<bool>;
}

/// A tar that comes from elsewhere: what is skipped is read, as it belongs to the digest.
pub struct Streamed<R>(pub R);

impl<R: Read> Read for Streamed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> Input for Streamed<R> {
    fn skip(&mut self, bytes: u64) -> io::Result<bool> {
        Ok(io::copy(&mut (&mut self.0).take(bytes), &mut io::sink())? == bytes)
    }
}

impl Input for File {
    fn skip(&mut self, bytes: u64) -> io::Result<bool> {
        let position = self.stream_position()?;
        match position.checked_add(bytes).filter(|end| self.metadata().is_ok_and(|meta| *end <= meta.len())) {
            Some(end) => self.seek(SeekFrom::Start(end)).map(|_| true),
            None => Ok(false),
        }
    }
}

/// A tar.
pub struct TarReader<R> {
    stream: R,
    /// What is left of the entry's data and of its padding.
    data: u64,
    padding: u64,
}

/// What precedes an entry's own header.
#[derive(Default)]
struct Extensions {
    records: Option<Records>,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: Input> TarReader<R> {
    pub fn new(stream: R) -> Self {
        Self { stream, data: 0, padding: 0 }
    }

    /// The next entry; `None` at the end. Whatever of the last one's data has not been read is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        fn once<T>(what: &'static str, slot: &mut Option<T>, value: T) -> Result<(), TarError> {
            if slot.replace(value).is_some() { Err(TarError::Twice(what)) } else { Ok(()) }
        }
        let mut before = Extensions::default();
        loop {
            self.skip_rest()?;
            // An archive may simply end, too.
            let Some(block) = self.block()? else { return Ok(None) };
            let Some(header) = header::parse(&block)? else { return Ok(None) };
            // As large as an offset into a file may be.
            let size = header::unsigned(&header.as_old().size).ok_or(TarError::Field("size"))?;
            match header.entry_type() {
                EntryType::XHeader => {
                    let records = header::records(&self.extension(size)?)?;
                    once("extended headers", &mut before.records, records)?;
                }
                EntryType::GNULongName => once("long names", &mut before.path, text(self.extension(size)?))?,
                EntryType::GNULongLink => once("long link targets", &mut before.link, text(self.extension(size)?))?,
                // Skipped like a file, together with the label of a tape.
                EntryType::XGlobalHeader => self.set_size(size),
                other if other.as_byte() == b'V' => self.set_size(size),
                _ => return self.entry(&header, size, before).map(Some),
            }
        }
    }

    /// Reads data of the current entry; 0 at its end.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let wanted = buffer.len().min(usize::try_from(self.data).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let length = read_some(&mut self.stream, &mut buffer[..wanted])?;
        if length == 0 {
            return Err(TarError::CutOff);
        }
        self.data -= length as u64;
        Ok(length)
    }

    /// What of the current entry's data has not been read.
    pub(super) fn data_left(&self) -> u64 {
        self.data
    }

    /// What is read from; right after [`TarReader::next_entry`] the entry's data is next.
    pub fn stream_mut(&mut self) -> &mut R {
        &mut self.stream
    }

    /// Reads what follows the end of the archive: it belongs to the layer's digest.
    pub fn drain(mut self) -> Result<(), TarError> {
        self.skip_rest()?;
        io::copy(&mut self.stream, &mut io::sink()).map(drop).map_err(TarError::Read)
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let rest = self.data + self.padding;
        (self.data, self.padding) = (0, 0);
        let there = rest == 0 || self.stream.skip(rest).map_err(TarError::Read)?;
        if there { Ok(()) } else { Err(TarError::CutOff) }
    }

    /// The next block; `None` at the end of the stream.
    pub(super) fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match read_some(&mut self.stream, &mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(TarError::CutOff),
                length => filled += length,
            }
        }
        Ok(Some(block))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENSION {
            return Err(TarError::ExtensionTooLarge);
        }
        self.set_size(size);
        let mut data = vec![0; size as usize];
        let mut filled = 0;
        while filled < data.len() {
            filled += self.read_data(&mut data[filled..])?;
        }
        Ok(data)
    }

    /// `size` is at most an `i64`'s: with its padding it does not overflow.
    fn set_size(&mut self, size: u64) {
        self.data = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn entry(&mut self, header: &Header, size: u64, before: Extensions) -> Result<Entry, TarError> {
        let records = before.records.unwrap_or_default();
        // An empty value means that there is none (pax(1)).
        let record = |name: &str| records.get(name).filter(|value| !value.is_empty());
        let field = |name: &'static str, fallback: &[u8]| {
            let value = record(name).map_or_else(|| header::unsigned(fallback), |value| header::decimal(value));
            value.filter(|value| i64::try_from(*value).is_ok()).ok_or(TarError::Field(name))
        };
        let name = |what, record: Option<&Vec<u8>>, long: Option<Vec<u8>>, short: &[u8]| match (record, long) {
            (Some(_), Some(_)) => Err(TarError::Twice(what)),
            (Some(record), None) => Ok(record.clone()),
            (None, Some(long)) => Ok(long),
            (None, None) => Ok(short.to_owned()),
        };
        let old = header.as_old();
        let mut path = name("names", record("path"), before.path, &header.path_bytes())?;
        let link = header.link_name_bytes().unwrap_or_default();
        let link = name("link targets", record("linkpath"), before.link, &link)?;
        let mut kind = header::kind(header)?;
        let size = if record("size").is_some() { field("size", b"")? } else { size };
        // Everything else has no data, whatever its size field says (pax(1)).
        let stored = if matches!(kind, Kind::File | Kind::Unknown(_)) { size } else { 0 };
        self.set_size(stored);
        if kind == Kind::File && path.ends_with(b"/") {
            // In old archives a directory is a file of that name. With data in it, opinions differ.
            if stored > 0 {
                return Err(TarError::Field("name"));
            }
            kind = Kind::Directory;
        }
        let sparse = self.sparse(kind, header, &records)?;
        if let Some(name) = sparse.as_ref().and_then(|sparse| sparse.name.as_ref()) {
            path.clone_from(name);
        }
        let mtime = match record("mtime") {
            Some(value) => header::time(value),
            None => header::number(&old.mtime).map(|seconds| (seconds, 0)),
        };
        let mode = header::unsigned(&old.mode).ok_or(TarError::Field("mode"))?;
        let (uid, gid) = (field("uid", &old.uid)?, field("gid", &old.gid)?);
        let stored = self.data;
        let (size, pieces) = sparse.map_or((stored, None), |sparse| (sparse.size, Some(sparse.pieces)));
        let xattrs = records.into_iter().filter_map(|(key, value)| {
            let name = key.strip_prefix("SCHILY.xattr.")?.to_owned();
            Some((name, value))
        });
        Ok(Entry {
            path,
            link,
            kind,
            mode: (mode & 0o7777) as u32,
            uid,
            gid,
            mtime: mtime.ok_or(TarError::Field("mtime"))?,
            xattrs: xattrs.collect(),
            size,
            stored,
            pieces,
        })
    }
}

fn read_some(stream: &mut impl Read, buffer: &mut [u8]) -> Result<usize, TarError> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map_err(TarError::Read),
        }
    }
}

/// A GNU long name ends at its first NUL.
fn text(mut data: Vec<u8>) -> Vec<u8> {
    if let Some(end) = data.iter().position(|byte| *byte == 0) {
        data.truncate(end);
    }
    data
}
