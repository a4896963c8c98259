//! Maps of sparse files: the old GNU form and PAX forms 0.0, 0.1 and 1.0 (GNU tar manual, "Storing Sparse Files").

use tar::{EntryType, GnuExtSparseHeader, GnuHeader, GnuSparseHeader, Header};

use super::{
    header::{Records, decimal, unsigned},
    reader::{BLOCK, Input, Kind, TarError, TarReader},
};

/// Pieces of one sparse file.
const MAX_PIECES: usize = 1 << 16;

/// Offset and length of each piece that has data.
pub(super) type Pieces = Vec<(u64, u64)>;

/// A file with holes.
pub(super) struct Sparse {
    /// With its holes.
    pub size: u64,
    pub pieces: Pieces,
    /// Form 1.0 has the name here.
    pub name: Option<Vec<u8>>,
}

impl<R: Input> TarReader<R> {
    /// The map of the file that `header` and `records` describe, whose data comes next in the stream; `None` if it has no
    /// holes.
    pub(super) fn sparse(
        &mut self,
        kind: Kind,
        header: &Header,
        records: &Records,
    ) -> Result<Option<Sparse>, TarError> {
        if kind != Kind::File {
            return Ok(None);
        }
        let number = |name: &str| records.get(name).and_then(|value| decimal(value)).ok_or(TarError::SparseMap);
        let (size, pieces) = if header.entry_type() == EntryType::GNUSparse {
            let gnu = header.as_gnu().ok_or(TarError::SparseMap)?;
            (unsigned(&gnu.realsize).ok_or(TarError::SparseMap)?, self.old_map(gnu)?)
        } else if records.contains_key("GNU.sparse.major") {
            if (number("GNU.sparse.major")?, number("GNU.sparse.minor")?) != (1, 0) {
                return Err(TarError::SparseMap);
            }
            (number("GNU.sparse.realsize")?, self.map_in_data()?)
        } else if let Some(map) = records.get("GNU.sparse.map") {
            let numbers: Option<Vec<u64>> = map.split(|byte| *byte == b',').map(decimal).collect();
            (number("GNU.sparse.size")?, pairs(&numbers.ok_or(TarError::SparseMap)?)?)
        } else {
            return Ok(None);
        };
        // In order, inside the file, and as much as there is data.
        let (mut end, mut sum) = (0_u64, 0_u64);
        for (offset, length) in &pieces {
            let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= size);
            end = next.ok_or(TarError::SparseMap)?;
            sum += length;
        }
        if sum != self.data_left() {
            return Err(TarError::SparseMap);
        }
        Ok(Some(Sparse { size, pieces, name: records.get("GNU.sparse.name").cloned() }))
    }

    fn old_map(&mut self, gnu: &GnuHeader) -> Result<Pieces, TarError> {
        let mut pieces = Vec::new();
        let mut add = |sparse: &GnuSparseHeader| {
            if !sparse.is_empty() {
                let piece = unsigned(&sparse.offset).zip(unsigned(&sparse.numbytes));
                pieces.push(piece.ok_or(TarError::SparseMap)?);
            }
            if pieces.len() > MAX_PIECES { Err(TarError::SparseMap) } else { Ok(()) }
        };
        gnu.sparse.iter().try_for_each(&mut add)?;
        let mut extended = gnu.is_extended();
        // An extension without a piece in it would make a list without an end.
        while extended {
            let block = self.block()?.ok_or(TarError::CutOff)?;
            let mut more = GnuExtSparseHeader::new();
            more.as_mut_bytes().copy_from_slice(&block);
            if more.sparse[0].is_empty() {
                return Err(TarError::SparseMap);
            }
            more.sparse.iter().try_for_each(&mut add)?;
            extended = more.is_extended();
        }
        Ok(pieces)
    }

    /// Form 1.0: decimal numbers, a line each, before the data, padded to a block. The first says how many pairs follow.
    fn map_in_data(&mut self) -> Result<Pieces, TarError> {
        /// Digits of the largest number.
        const LINE: usize = 20;
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
                let number = decimal(&line).ok_or(TarError::SparseMap)?;
                if numbers.is_empty() {
                    let count = usize::try_from(number).ok().filter(|count| *count <= MAX_PIECES);
                    wanted = 1 + 2 * count.ok_or(TarError::SparseMap)?;
                }
                line.clear();
                numbers.push(number);
            }
            if line.len() > LINE {
                return Err(TarError::SparseMap);
            }
        }
        pairs(&numbers[1..])
    }
}

fn pairs(numbers: &[u64]) -> Result<Pieces, TarError> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() || pairs.len() > MAX_PIECES {
        return Err(TarError::SparseMap);
    }
    Ok(pairs.iter().map(|[offset, length]| (*offset, *length)).collect())
}
