//! Reading a tar stream entry by entry: ustar, PAX and GNU, with bounds on what a header may make us keep.
//!
//! The `tar` crate decodes the fields of headers; the walk from header to header is here, because for hostile archives it
//! matters which of several statements about an entry wins: a PAX record over a GNU long name over the header (pax(1),
//! POSIX.1-2017; GNU tar manual, "Basic Tar Format").

use std::{collections::BTreeMap, io, io::Read};

use tar::{EntryType, Header, PaxExtensions};

const BLOCK: usize = 512;

/// PAX records and long names of one entry.
const MAX_EXTENSION: u64 = 1 << 20;

/// Pieces of one sparse file.
const MAX_PIECES: usize = 1 << 16;

/// Why a tar stream could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("cannot read the layer")]
    Read(#[source] io::Error),
    #[error("a header's checksum is wrong")]
    Checksum,
    #[error("the archive ends in the middle of an entry")]
    CutOff,
    #[error("a header's {0} is not valid")]
    Field(&'static str),
    #[error("extended headers of one entry are larger than 1 MiB")]
    ExtensionTooLarge,
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
    /// Something that only other programs know: skipped, as tar(1) does.
    Other,
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
    /// Offset and length of each piece that the data consists of; `None` for a file without holes.
    pub pieces: Option<Vec<(u64, u64)>>,
}

/// A tar stream.
pub struct TarReader<R> {
    stream: R,
    /// What is left of the entry's data and of its padding.
    data: u64,
    padding: u64,
    global: BTreeMap<String, Vec<u8>>,
}

type Records = BTreeMap<String, Vec<u8>>;

impl<R: Read> TarReader<R> {
    pub fn new(stream: R) -> Self {
        Self { stream, data: 0, padding: 0, global: BTreeMap::new() }
    }

    /// The next entry; `None` at the end. Whatever of the last one's data has not been read is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut records: Records = self.global.clone();
        let (mut long_path, mut long_link) = (None, None);
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size().map_err(|_| TarError::Field("size"))?;
            match header.entry_type() {
                EntryType::XHeader => records.extend(parse_records(&self.extension(size)?)?),
                EntryType::XGlobalHeader => {
                    let global = parse_records(&self.extension(size)?)?;
                    self.global.extend(global.clone());
                    records.extend(global);
                }
                EntryType::GNULongName => long_path = Some(text(self.extension(size)?)),
                EntryType::GNULongLink => long_link = Some(text(self.extension(size)?)),
                _ => return self.entry(&header, size, records, long_path, long_link).map(Some),
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

    /// Reads what follows the end of the archive: it belongs to the layer's digest.
    pub fn drain(mut self) -> Result<(), TarError> {
        self.skip_rest()?;
        io::copy(&mut self.stream, &mut io::sink()).map(drop).map_err(TarError::Read)
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let rest = self.data + self.padding;
        (self.data, self.padding) = (0, 0);
        let skipped = io::copy(&mut (&mut self.stream).take(rest), &mut io::sink()).map_err(TarError::Read)?;
        if skipped == rest { Ok(()) } else { Err(TarError::CutOff) }
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
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

    /// The next header; `None` at the end of the archive: a block of zeros, or simply nothing more.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        // The checksum counts its own field as blanks.
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { u32::from(b' ') } else { u32::from(*byte) })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(TarError::Checksum);
        }
        Ok(Some(header))
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

    fn set_size(&mut self, size: u64) {
        self.data = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn entry(
        &mut self,
        header: &Header,
        header_size: u64,
        records: Records,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        let number = |name: &str| records.get(name).map(|value| parse_number(value));
        let required = |name: &'static str, fallback: io::Result<u64>| match number(name) {
            Some(value) => value.ok_or(TarError::Field(name)),
            None => fallback.map_err(|_| TarError::Field(name)),
        };
        let kind = kind(header)?;
        let stored = match number("size") {
            Some(value) => value.ok_or(TarError::Field("size"))?,
            None => header_size,
        };
        // Links and directories have no data, whatever their size field says (pax(1)).
        let stored = if matches!(kind, Kind::File | Kind::Other) { stored } else { 0 };
        self.set_size(stored);
        let path = records.get("path").cloned().or(long_path).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = records.get("linkpath").cloned().or(long_link);
        let link = link.or_else(|| header.link_name_bytes().map(Into::into)).unwrap_or_default();
        let mtime = match records.get("mtime") {
            Some(value) => parse_time(value).ok_or(TarError::Field("mtime"))?,
            None => (i64::try_from(header.mtime().map_err(|_| TarError::Field("mtime"))?).unwrap_or(0), 0),
        };
        let xattrs = records.iter().filter_map(|(key, value)| {
            let name = key.strip_prefix("SCHILY.xattr.").or_else(|| key.strip_prefix("LIBARCHIVE.xattr-raw."))?;
            Some((name.to_owned(), value.clone()))
        });
        let mut entry = Entry {
            path,
            link,
            kind,
            mode: header.mode().map_err(|_| TarError::Field("mode"))? & 0o7777,
            uid: required("uid", header.uid())?,
            gid: required("gid", header.gid())?,
            mtime,
            xattrs: xattrs.collect(),
            size: stored,
            pieces: None,
        };
        self.read_sparse(header, &records, &mut entry)?;
        Ok(entry)
    }

    /// Finds the map of a sparse file, in the old GNU form and in PAX forms 0.0, 0.1 and 1.0 (GNU tar manual, "Storing
    /// Sparse Files").
    fn read_sparse(&mut self, header: &Header, records: &Records, entry: &mut Entry) -> Result<(), TarError> {
        let number = |name: &str| records.get(name).and_then(|value| parse_number(value));
        let pieces = if header.entry_type() == EntryType::GNUSparse {
            let gnu = header.as_gnu().ok_or(TarError::SparseMap)?;
            entry.size = gnu.real_size().map_err(|_| TarError::SparseMap)?;
            Some(self.old_map(gnu)?)
        } else if records.contains_key("GNU.sparse.major") {
            entry.size = number("GNU.sparse.realsize").ok_or(TarError::SparseMap)?;
            Some(self.map_in_data()?)
        } else if let Some(map) = records.get("GNU.sparse.map") {
            entry.size = number("GNU.sparse.size").ok_or(TarError::SparseMap)?;
            let numbers: Option<Vec<u64>> = map.split(|byte| *byte == b',').map(parse_number).collect();
            Some(pairs(&numbers.ok_or(TarError::SparseMap)?)?)
        } else {
            None
        };
        let Some(pieces) = pieces else { return Ok(()) };
        if let Some(name) = records.get("GNU.sparse.name") {
            entry.path.clone_from(name);
        }
        // In order, inside the file, and as much as there is data.
        let (mut end, mut sum) = (0_u64, 0_u64);
        for (offset, length) in &pieces {
            let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= entry.size);
            end = next.ok_or(TarError::SparseMap)?;
            sum += length;
        }
        if sum != self.data {
            return Err(TarError::SparseMap);
        }
        entry.pieces = Some(pieces);
        Ok(())
    }

    fn old_map(&mut self, gnu: &tar::GnuHeader) -> Result<Vec<(u64, u64)>, TarError> {
        let mut pieces = Vec::new();
        let mut add = |sparse: &tar::GnuSparseHeader| -> Result<(), TarError> {
            if !sparse.is_empty() {
                let offset = sparse.offset().map_err(|_| TarError::SparseMap)?;
                let length = sparse.length().map_err(|_| TarError::SparseMap)?;
                pieces.push((offset, length));
            }
            if pieces.len() > MAX_PIECES { Err(TarError::SparseMap) } else { Ok(()) }
        };
        gnu.sparse.iter().try_for_each(&mut add)?;
        let mut extended = gnu.is_extended();
        while extended {
            let block = self.block()?.ok_or(TarError::CutOff)?;
            let mut more = tar::GnuExtSparseHeader::new();
            more.as_mut_bytes().copy_from_slice(&block);
            more.sparse.iter().try_for_each(&mut add)?;
            extended = more.is_extended();
        }
        Ok(pieces)
    }

    /// PAX form 1.0: decimal numbers, a line each, before the data, padded to a block.
    fn map_in_data(&mut self) -> Result<Vec<(u64, u64)>, TarError> {
        let mut numbers = Vec::new();
        let mut wanted = 1;
        let mut line = Vec::new();
        while numbers.len() < wanted {
            let mut block = [0; BLOCK];
            let mut filled = 0;
            while filled < BLOCK {
                match self.read_data(&mut block[filled..])? {
                    0 => return Err(TarError::SparseMap),
                    length => filled += length,
                }
            }
            for byte in block {
                if numbers.len() == wanted {
                    break;
                }
                if byte != b'\n' {
                    line.push(byte);
                    continue;
                }
                let number = parse_number(&line).ok_or(TarError::SparseMap)?;
                line.clear();
                if numbers.is_empty() && wanted == 1 {
                    let count = usize::try_from(number).unwrap_or(usize::MAX);
                    if count > MAX_PIECES {
                        return Err(TarError::SparseMap);
                    }
                    wanted = 1 + 2 * count;
                }
                numbers.push(number);
            }
            if line.len() > 20 {
                return Err(TarError::SparseMap);
            }
        }
        pairs(&numbers[1..])
    }
}

fn pairs(numbers: &[u64]) -> Result<Vec<(u64, u64)>, TarError> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() || pairs.len() > MAX_PIECES {
        return Err(TarError::SparseMap);
    }
    Ok(pairs.iter().map(|[offset, length]| (*offset, *length)).collect())
}

fn read_some(stream: &mut impl Read, buffer: &mut [u8]) -> Result<usize, TarError> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map_err(TarError::Read),
        }
    }
}

fn kind(header: &Header) -> Result<Kind, TarError> {
    let device = |character| {
        let number = |field: io::Result<Option<u32>>| field.ok().flatten().ok_or(TarError::Field("device number"));
        Ok(Kind::Device { character, major: number(header.device_major())?, minor: number(header.device_minor())? })
    };
    match header.entry_type() {
        // In an old archive a directory is a file whose name ends in a slash.
        EntryType::Regular if header.path_bytes().ends_with(b"/") => Ok(Kind::Directory),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Ok(Kind::File),
        EntryType::Directory => Ok(Kind::Directory),
        EntryType::Symlink => Ok(Kind::Symlink),
        EntryType::Link => Ok(Kind::HardLink),
        EntryType::Fifo => Ok(Kind::Fifo),
        EntryType::Char => device(true),
        EntryType::Block => device(false),
        _ => Ok(Kind::Other),
    }
}

fn parse_records(data: &[u8]) -> Result<Records, TarError> {
    let mut records = Records::new();
    let mut old_map: Vec<Vec<u8>> = Vec::new();
    for record in PaxExtensions::new(data) {
        let record = record.map_err(|_| TarError::Field("PAX record"))?;
        let key = record.key().map_err(|_| TarError::Field("PAX record"))?;
        match key {
            // Form 0.0 repeats these two for each piece, in order; it is turned into form 0.1.
            "GNU.sparse.offset" | "GNU.sparse.numbytes" => old_map.push(record.value_bytes().to_vec()),
            _ => drop(records.insert(key.to_owned(), record.value_bytes().to_vec())),
        }
    }
    if !old_map.is_empty() {
        records.entry("GNU.sparse.map".to_owned()).or_insert_with(|| old_map.join(&b','));
    }
    Ok(records)
}

fn parse_number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with an optional fraction.
fn parse_time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: u32 = format!("{fraction:0<9}")[..9].parse().ok()?;
    // Before the epoch the fraction counts backwards.
    if text.starts_with('-') && nanoseconds > 0 {
        Some((seconds - 1, 1_000_000_000 - nanoseconds))
    } else {
        Some((seconds, nanoseconds))
    }
}

/// A GNU long name ends at its first NUL.
fn text(mut data: Vec<u8>) -> Vec<u8> {
    if let Some(end) = data.iter().position(|byte| *byte == 0) {
        data.truncate(end);
    }
    data
}
