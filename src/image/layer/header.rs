//! The fields of one header block, and the records of an extended one (pax(1), POSIX.1-2017; GNU tar manual, "Basic Tar
//! Format").

use std::collections::BTreeMap;

use tar::{EntryType, Header};

use super::reader::{BLOCK, Kind, TarError};

/// Records of an extended header, by keyword.
pub(super) type Records = BTreeMap<String, Vec<u8>>;

/// Reads a header block; `None` for the block of zeros that ends an archive.
pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Option<Header>, TarError> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let header = Header::from_byte_slice(block).clone();
    // The checksum counts its own field as blanks. Old programs have added up signed bytes.
    let (mut unsigned, mut signed) = (0, 0);
    for (at, byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&at) { b' ' } else { *byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    let sum = number(&header.as_old().cksum).ok_or(TarError::Checksum)?;
    if sum == unsigned || sum == signed { Ok(Some(header)) } else { Err(TarError::Checksum) }
}

/// A number: octal digits between blanks, or, if the first bit is set, the bytes of a signed number (GNU). The `tar`
/// crate's own functions cut off what does not fit.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // Seven bits of the first byte, of which the uppermost is the sign.
        let start = i64::from((first << 1).cast_signed() >> 1);
        return rest.iter().try_fold(start, |value, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    if text.is_empty() {
        return Some(0);
    }
    text.bytes().try_fold(0_i64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

/// What cannot be negative.
pub(super) fn unsigned(field: &[u8]) -> Option<u64> {
    number(field)?.try_into().ok()
}

/// Decimal digits and nothing else.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    // `parse` would take a sign, too.
    let digits = text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

/// Seconds with an optional fraction.
pub(super) fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (seconds, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    let (negative, digits) = seconds.strip_prefix(b"-").map_or((false, seconds), |digits| (true, digits));
    let seconds: i64 = decimal(digits)?.try_into().ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |at: usize| fraction.get(at).map_or(0, |digit| u32::from(digit - b'0'));
    let nanoseconds = (0..9).fold(0, |value, at| value * 10 + digit(at));
    match (negative, nanoseconds) {
        (false, _) => Some((seconds, nanoseconds)),
        (true, 0) => Some((-seconds, 0)),
        // Before the epoch the fraction counts backwards.
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanoseconds)),
    }
}

/// What the header says the entry is, apart from the old convention that a directory is a file whose name ends in a slash.
pub(super) fn kind(header: &Header) -> Result<Kind, TarError> {
    let device = |character| {
        let field = |field: &[u8]| unsigned(field).and_then(|n| n.try_into().ok()).ok_or(TarError::Field("device"));
        let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
            (Some(ustar), _) => (&ustar.dev_major, &ustar.dev_minor),
            (_, Some(gnu)) => (&gnu.dev_major, &gnu.dev_minor),
            (None, None) => return Err(TarError::Field("device")),
        };
        Ok(Kind::Device { character, major: field(major)?, minor: field(minor)? })
    };
    match header.entry_type() {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Ok(Kind::File),
        EntryType::Directory => Ok(Kind::Directory),
        EntryType::Symlink => Ok(Kind::Symlink),
        EntryType::Link => Ok(Kind::HardLink),
        EntryType::Fifo => Ok(Kind::Fifo),
        EntryType::Char => device(true),
        EntryType::Block => device(false),
        other => Ok(Kind::Unknown(other.as_byte())),
    }
}

/// The records of an extended header: `LENGTH KEYWORD=VALUE` and a newline each, where the value may have any bytes.
pub(super) fn records(mut data: &[u8]) -> Result<Records, TarError> {
    let mut records = Records::new();
    let mut old_map: Vec<&[u8]> = Vec::new();
    while !data.is_empty() {
        let (key, value, rest) = record(data).ok_or(TarError::Field("extended record"))?;
        match key {
            // Form 0.0 of sparse files repeats these two for each piece, in order; it is turned into form 0.1.
            "GNU.sparse.offset" | "GNU.sparse.numbytes" => old_map.push(value),
            _ => drop(records.insert(key.to_owned(), value.to_owned())),
        }
        data = rest;
    }
    if !old_map.is_empty() {
        records.entry("GNU.sparse.map".to_owned()).or_insert_with(|| old_map.join(&b','));
    }
    Ok(records)
}

/// Splits the first record off: keyword, value, and what follows.
fn record(data: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    let blank = data.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&data[..blank])?).ok()?;
    let (record, rest) = data.split_at_checked(length)?;
    let pair = record.get(blank + 1..)?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|byte| *byte == b'=')?;
    let key = std::str::from_utf8(&pair[..equals]).ok().filter(|key| !key.is_empty())?;
    Some((key, &pair[equals + 1..], rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary_and_never_cut_off() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"  644 \0\0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"+000644\0"), None);
        assert_eq!(number(b"000648\0\0"), None);
        assert_eq!(number(b"644 644\0"), None);
        assert_eq!(number(b"777777777777"), Some((1 << 36) - 1));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 1, 0, 0]), Some(65_536));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]), Some(-2));
        let beyond = [0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 5];
        assert_eq!(number(&beyond), None, "more than 64 bits");
        assert_eq!(unsigned(&[0xff; 8]), None);
    }

    #[test]
    fn times_have_fractions_and_may_be_before_the_epoch() {
        assert_eq!(time(b"12"), Some((12, 0)));
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"12.1234567899"), Some((12, 123_456_789)));
        assert_eq!(time(b"-0.25"), Some((-1, 750_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        for bad in [&b""[..], b"+1", b"1.x", b"1-", b"--1", b"99999999999999999999"] {
            assert_eq!(time(bad), None);
        }
    }

    #[test]
    fn values_of_records_may_have_any_bytes() {
        let parsed = records(b"12 path=a\nb\n19 SCHILY.xattr.x=\n10 k=a\0\n=\n").unwrap();
        assert_eq!(parsed["path"], b"a\nb");
        assert_eq!(parsed["SCHILY.xattr.x"], b"");
        assert_eq!(parsed["k"], b"a\0\n=");
        let map = b"23 GNU.sparse.offset=1\n25 GNU.sparse.numbytes=2\n";
        assert_eq!(records(&map[..]).unwrap()["GNU.sparse.map"], b"1,2");
        for bad in
            [&b"5 a=b\n"[..], b"7 a=b\n", b"6 a=bb", b"6 ab \n", b"5 =b\n", b"x a=b\n", b"+6 a=b\n", b"6 a=b\n\0"]
        {
            assert!(records(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
