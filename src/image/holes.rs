//! Files with holes in a tar (GNU tar manual, "Storing Sparse Files", form 1.0): a map of the pieces, then the pieces.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt},
};

use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};

/// Pieces of one file; one with more is taken for one without holes. Our own reader takes no more either.
const MAX_PIECES: usize = 1 << 16;

const BLOCK: usize = 512;

/// What is written of a file that has holes, as a stream.
pub(super) struct Sparse {
    file: File,
    map: io::Cursor<Vec<u8>>,
    /// Offset and length, the first one last.
    pieces: Vec<(u64, u64)>,
    /// Bytes of the file, its holes included.
    pub size: u64,
    /// Bytes of map and pieces.
    pub length: u64,
}

impl Sparse {
    /// `Err` gives the file back if it has no holes.
    pub(super) fn of(file: File) -> io::Result<Result<Self, File>> {
        let meta = file.metadata()?;
        let size = meta.size();
        // Less on the disk than there is to read.
        let pieces = if meta.blocks().saturating_mul(512) < size { pieces(&file, size)? } else { None };
        let Some(mut pieces) = pieces else {
            // It has been looked through.
            lseek(&file, 0, Whence::SeekSet)?;
            return Ok(Err(file));
        };
        // A hole at the end has a piece without bytes behind it.
        if pieces.last().is_none_or(|(offset, length)| offset + length < size) {
            pieces.push((size, 0));
        }
        let mut map = format!("{}\n", pieces.len());
        for (offset, length) in &pieces {
            map.push_str(&format!("{offset}\n{length}\n"));
        }
        let mut map = map.into_bytes();
        map.resize(map.len().next_multiple_of(BLOCK), 0);
        let length = map.len() as u64 + pieces.iter().map(|(_, length)| length).sum::<u64>();
        pieces.reverse();
        Ok(Ok(Self { file, map: io::Cursor::new(map), pieces, size, length }))
    }
}

impl Read for Sparse {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.map.read(buffer)? {
            0 => {}
            length => return Ok(length),
        }
        while let Some((offset, left)) = self.pieces.last_mut() {
            if *left == 0 {
                self.pieces.pop();
                continue;
            }
            let wanted = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
            let length = self.file.read_at(&mut buffer[..wanted], *offset)?;
            if length == 0 && !buffer.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            *offset += length as u64;
            *left -= length as u64;
            return Ok(length);
        }
        Ok(0)
    }
}

/// Where a file has data; `None` if it has no holes, or too many.
fn pieces(file: &File, size: u64) -> io::Result<Option<Vec<(u64, u64)>>> {
    let end = i64::try_from(size).map_err(io::Error::other)?;
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < end {
        let from = match lseek(file, at, Whence::SeekData) {
            Ok(from) => from,
            // Nothing but a hole follows.
            Err(Errno::ENXIO) => break,
            // A file system that knows nothing of holes.
            Err(Errno::EINVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let to = lseek(file, from, Whence::SeekHole)?.min(end);
        if from >= to || pieces.len() == MAX_PIECES - 1 {
            return Ok(None);
        }
        pieces.push((from.cast_unsigned(), (to - from).cast_unsigned()));
        at = to;
    }
    Ok((pieces != [(0, size)]).then_some(pieces))
}
