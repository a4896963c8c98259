//! The lines of the protocol that announce files.

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record<'a> {
    /// Of the file that comes next, in seconds since 1970; `None` for times that do not exist.
    Times(Option<Times>),
    Entry {
        kind: Kind,
        mode: u32,
        size: u64,
        name: &'a [u8],
    },
    /// The directory is complete.
    End,
    /// The peer could not read something, or anything (`fatal`).
    Error {
        fatal: bool,
    },
    /// Not a line of the protocol.
    Unknown(&'a [u8]),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) modified: i64,
    pub(super) accessed: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
}

impl<'a> Record<'a> {
    /// Parses a line without its end.
    ///
    /// # Errors
    /// What is wrong with it, in scp's words.
    pub(super) fn parse(line: &'a [u8]) -> Result<Self, &'static str> {
        let Some((first, rest)) = line.split_first() else { return Err("unexpected <newline>") };
        match first {
            1 | 2 => Ok(Self::Error { fatal: *first == 2 }),
            b'E' => Ok(Self::End),
            b'T' => parse_times(rest).map(Self::Times),
            b'C' => parse_entry(Kind::File, rest),
            b'D' => parse_entry(Kind::Directory, rest),
            _ => Ok(Self::Unknown(line)),
        }
    }
}

/// `<mtime> <microseconds> <atime> <microseconds>`
fn parse_times(text: &[u8]) -> Result<Option<Times>, &'static str> {
    let (modified, rest) = number(text).ok_or("mtime.sec not present")?;
    let rest = rest.strip_prefix(b" ").ok_or("mtime.sec not delimited")?;
    let rest = microseconds(rest).and_then(|rest| rest.strip_prefix(b" ")).ok_or("mtime.usec not delimited")?;
    let (accessed, rest) = number(rest).ok_or("atime.sec not present")?;
    let rest = rest.strip_prefix(b" ").ok_or("atime.sec not delimited")?;
    match microseconds(rest) {
        Some([]) => {}
        _ => return Err("atime.usec not delimited"),
    }
    let times = i64::try_from(modified).ok().zip(i64::try_from(accessed).ok());
    Ok(times.map(|(modified, accessed)| Times { modified, accessed }))
}

/// `<four octal digits> <size> <name>`
fn parse_entry(kind: Kind, text: &[u8]) -> Result<Record<'_>, &'static str> {
    let (digits, rest) = text.split_at_checked(4).ok_or("bad mode")?;
    if !digits.iter().all(|digit| matches!(digit, b'0'..=b'7')) {
        return Err("bad mode");
    }
    let mode = digits.iter().fold(0, |mode, digit| mode << 3 | u32::from(digit - b'0'));
    let rest = rest.strip_prefix(b" ").ok_or("mode not delimited")?;
    let (size, rest) = number(rest).ok_or("size not present")?;
    let name = rest.strip_prefix(b" ").ok_or("size not delimited")?;
    if i64::try_from(size).is_err() {
        return Err("size out of range");
    }
    // A line of C ends at a NUL.
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    Ok(Record::Entry { kind, mode, size, name })
}

/// A decimal number and what follows; one that is too large for its type is the largest one.
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let add = |number: u64, digit: &u8| number.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    (!digits.is_empty()).then(|| (digits.iter().fold(0, add), rest))
}

fn microseconds(text: &[u8]) -> Option<&[u8]> {
    number(text).filter(|(number, _)| *number < 1_000_000).map(|(_, rest)| rest)
}

/// Whether a peer may give something this name: it is for the directory we were told, and nowhere else (CVE-2018-20685).
pub(super) fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_say_what_comes() {
        let file = |mode, size, name| Ok(Record::Entry { kind: Kind::File, mode, size, name });
        for (line, expected) in [
            (&b"C0644 5 a b"[..], file(0o644, 5, &b"a b"[..])),
            (b"C7777 9223372036854775807 \xff", file(0o7777, i64::MAX as u64, b"\xff")),
            (b"C0644 5 ", file(0o644, 5, b"")),
            (b"C0644 5 a\0b", file(0o644, 5, b"a")),
            (b"D0755 0 d", Ok(Record::Entry { kind: Kind::Directory, mode: 0o755, size: 0, name: b"d" })),
            (b"E", Ok(Record::End)),
            (b"T7 0 5 999999", Ok(Record::Times(Some(Times { modified: 7, accessed: 5 })))),
            (b"T9223372036854775808 0 5 0", Ok(Record::Times(None))),
            (b"\x01scp: no", Ok(Record::Error { fatal: false })),
            (b"\x02", Ok(Record::Error { fatal: true })),
            (b"csh: No match.", Ok(Record::Unknown(b"csh: No match."))),
            (b"", Err("unexpected <newline>")),
            (b"C064", Err("bad mode")),
            (b"C0684 5 a", Err("bad mode")),
            (b"C06444 5 a", Err("mode not delimited")),
            (b"C0644 -5 a", Err("size not present")),
            (b"C0644 5a", Err("size not delimited")),
            (b"C0644 9223372036854775808 a", Err("size out of range")),
            (b"C0644 99999999999999999999999 a", Err("size out of range")),
            (b"T", Err("mtime.sec not present")),
            (b"T7", Err("mtime.sec not delimited")),
            (b"T7 1000000 5 0", Err("mtime.usec not delimited")),
            (b"T7 0 x", Err("atime.sec not present")),
            (b"T7 0 5", Err("atime.sec not delimited")),
            (b"T7 0 5 0 ", Err("atime.usec not delimited")),
        ] {
            assert_eq!(Record::parse(line), expected, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn names_lead_nowhere_else() {
        for name in [&b""[..], b".", b"..", b"/", b"a/b", b"../a", b"a/"] {
            assert!(!is_name(name), "{}", name.escape_ascii());
        }
        for name in [&b"a"[..], b"...", b"-rf", b"a\nb", b"\xff", b" "] {
            assert!(is_name(name), "{}", name.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_line_parses_or_is_refused(line in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(Record::Entry { mode, size, .. }) = Record::parse(&line) {
                prop_assert!(mode <= 0o7777 && i64::try_from(size).is_ok());
            }
        }
    }
}
