//! The rules for single values. All of them are a stranger's text, which later becomes arguments of git and package
//! managers, paths and names of objects.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::problem::{nearest, quoted};
use crate::{
    config::units::{parse_duration, parse_size},
    image::Reference,
    names::ProjectName,
};

/// Why a value is not valid; follows the name of its field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("{} is not an absolute path, such as {example}", quoted(.path))]
    Relative { path: String, example: &'static str },
    #[error("{} is not a path: . and .. are not allowed in it, nor are control characters", quoted(.0))]
    Path(String),
    #[error("{} is not one of {}{}", quoted(.value), .known.join(", "), meant(.value, .known))]
    Word { value: String, known: &'static [&'static str] },
    #[error("{} is not {what}", quoted(.value))]
    Shape { value: String, what: &'static str },
    #[error("{}", .0)]
    Other(String),
}

fn meant(value: &str, known: &[&str]) -> String {
    nearest(value, known.iter().copied()).map(|word| format!("; did you mean {word}?")).unwrap_or_default()
}

pub(super) fn shape(value: &str, what: &'static str) -> ValueError {
    ValueError::Shape { value: value.to_owned(), what }
}

/// A number of bytes; written with the largest unit that fits without a rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Bytes {
    pub(super) fn parse(text: &str) -> Result<Self, ValueError> {
        // Below it no shell starts; such a number was meant to have a unit.
        const LEAST: u64 = 1 << 20;
        match parse_size(text).map_err(|error| ValueError::Other(error.to_string()))? {
            bytes if bytes < LEAST => Err(shape(text, "at least 1m; a number without a unit is a number of bytes")),
            bytes => Ok(Self(bytes)),
        }
    }

    /// Of a disk: what a file system can be made in.
    pub(super) fn parse_disk(text: &str) -> Result<Self, ValueError> {
        match parse_size(text).map_err(|error| ValueError::Other(error.to_string()))? {
            bytes if (16 << 20..=16 << 40).contains(&bytes) => Ok(Self(bytes)),
            _ => Err(shape(text, "between 16m and 16t")),
        }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let units = [(40, "t"), (30, "g"), (20, "m"), (10, "k")];
        match units.iter().find(|(shift, _)| self.0 != 0 && self.0.trailing_zeros() >= *shift) {
            Some((shift, unit)) => serializer.serialize_str(&format!("{}{unit}", self.0 >> shift)),
            None => serializer.serialize_u64(self.0),
        }
    }
}

/// An image that comes from a registry or a distribution's mirror. The other forms name files of the server, which are none
/// of a Podfile's business.
pub(super) fn image(text: &str) -> Result<Reference, ValueError> {
    match text.parse::<Reference>() {
        Ok(reference @ (Reference::Registry(_) | Reference::Bootstrap { .. })) => Ok(reference),
        Ok(Reference::OciDir { .. } | Reference::OciArchive(_) | Reference::DockerArchive(_)) => {
            Err(ValueError::Other(format!(
                "{} is a file of the server; name an image, such as one that was imported from it",
                quoted(text)
            )))
        }
        Err(error) => Err(ValueError::Other(error.to_string())),
    }
}

/// CPUs, of which a part may be had.
pub(super) fn cpus(text: &str) -> Result<f64, ValueError> {
    match text.parse::<f64>() {
        Ok(cpus) if (0.01..=1024.0).contains(&cpus) => Ok(cpus),
        _ => Err(shape(text, "a number of CPUs from 0.01 to 1024")),
    }
}

pub(super) fn pids(text: &str) -> Result<u64, ValueError> {
    // The kernel's own limit for all of them (PID_MAX_LIMIT).
    const MOST: u64 = 1 << 22;
    match text.parse::<u64>() {
        Ok(pids) if (1..=MOST).contains(&pids) => Ok(pids),
        _ => Err(shape(text, "a number of processes from 1 to 4194304")),
    }
}

pub(super) fn port(text: &str) -> Result<u16, ValueError> {
    match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ if text.split(':').all(|part| part.parse::<u16>().is_ok()) && text.contains(':') => {
            Err(shape(text, "a port; write only the one inside the container"))
        }
        _ => Err(shape(text, "a port from 1 to 65535")),
    }
}

pub(super) fn truth(text: &str) -> Result<bool, ValueError> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(ValueError::Word { value: text.to_owned(), known: &["true", "false"] }),
    }
}

/// How long something may take.
pub(super) fn timeout(text: &str) -> Result<Duration, ValueError> {
    const MOST: Duration = Duration::from_secs(3600);
    match parse_duration(text).map_err(|error| ValueError::Other(error.to_string()))? {
        duration if duration.is_zero() || duration > MOST => Err(shape(text, "a duration from 1s to 1h")),
        duration => Ok(duration),
    }
}

/// An absolute path inside a container.
pub(super) fn absolute_path(text: &str) -> Result<String, ValueError> {
    absolute(text, "/workspace/app")
}

/// A program inside a container.
pub(super) fn shell(text: &str) -> Result<String, ValueError> {
    absolute(text, "/bin/bash")
}

fn absolute(text: &str, example: &'static str) -> Result<String, ValueError> {
    if !text.starts_with('/') {
        return Err(ValueError::Relative { path: text.to_owned(), example });
    }
    let odd = text.split('/').any(|part| part == "." || part == "..") || text.chars().any(char::is_control);
    // The kernel's PATH_MAX.
    if odd || text.len() >= 4096 { Err(ValueError::Path(text.to_owned())) } else { Ok(text.to_owned()) }
}

/// The name of a session or machine.
pub(super) fn name(text: &str) -> Result<String, ValueError> {
    let what = "a name: it must match [a-z_][a-z0-9_.-]{0,31} and not contain \"..\"";
    text.parse::<ProjectName>().map(|name| name.as_str().to_owned()).map_err(|_| shape(text, what))
}

/// The name of a service, by which it is reached, or of a volume.
pub(super) fn label(text: &str) -> Result<String, ValueError> {
    let what = "a name: it must match [A-Za-z0-9][A-Za-z0-9_.-]{0,62}, not contain \"..\" and not be localhost";
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let taken = text.eq_ignore_ascii_case("localhost");
    let valid = first && text.bytes().all(inner) && text.len() <= 63 && !text.contains("..") && !taken;
    if valid { Ok(text.to_owned()) } else { Err(shape(text, what)) }
}

/// The name of an environment variable. Images have dots in theirs (`discovery.type`).
pub(super) fn variable(text: &str) -> Result<(), ValueError> {
    let valid = !text.is_empty() && text.len() <= 256 && !text.contains('=') && !text.chars().any(char::is_control);
    if valid { Ok(()) } else { Err(shape(text, "a name of a variable: it may be up to 256 bytes without = in it")) }
}

/// A user of an image: `postgres`, `1000`, `1000:1000`.
pub(super) fn image_user(text: &str) -> Result<String, ValueError> {
    let word = |part: &str| {
        let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        !part.is_empty() && part.len() <= 64 && part.bytes().all(valid) && !part.starts_with('-')
    };
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    if word(user) && group.is_none_or(word) {
        Ok(text.to_owned())
    } else {
        Err(shape(text, "a user of the image, such as postgres, 1000 or 1000:1000"))
    }
}

/// The words of a command line, as a shell would part them; nothing is expanded.
pub(super) fn command_words(text: &str) -> Result<Vec<String>, ValueError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => match chars.next() {
                Some(escaped) => word.get_or_insert_default().push(escaped),
                None => return Err(shape(text, "a command: it ends with a backslash")),
            },
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    match quote {
        Some(_) => Err(shape(text, "a command: a quote is not closed")),
        None if words.is_empty() => Err(shape(text, "a command")),
        None => Ok(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_parted_as_a_shell_does() {
        let table: [(&str, &[&str]); 6] = [
            ("redis-server --port 1", &["redis-server", "--port", "1"]),
            ("  a  b ", &["a", "b"]),
            ("sh -c 'a \"b\"  c'", &["sh", "-c", "a \"b\"  c"]),
            ("a\"b c\"d ''", &["ab cd", ""]),
            (r#"a\ b "c\"d" 'e\f'"#, &["a b", "c\"d", r"e\f"]),
            ("echo $HOME", &["echo", "$HOME"]),
        ];
        for (text, words) in table {
            assert_eq!(
                command_words(text).as_deref(),
                Ok(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()[..]),
                "{text}"
            );
        }
        for bad in ["", "  ", "'a", "\"a", "a\\"] {
            assert!(command_words(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_paths_and_numbers_have_bounds() {
        assert!(label("postgres").is_ok() && label("Db.1_a-b").is_ok());
        for bad in ["", "ä", "-a", "a..b", "a/b", "localhost", &"a".repeat(64)] {
            assert!(label(bad).is_err(), "{bad:?}");
        }
        assert!(absolute_path("/a/b").is_ok());
        for bad in ["", "a", "/a/../b", "/./a", "/a\n", &format!("/{}", "a".repeat(4096))] {
            assert!(absolute_path(bad).is_err(), "{bad:?}");
        }
        assert_eq!((port("1"), port("65535")), (Ok(1), Ok(65535)));
        for bad in ["0", "65536", "-1", "1.5", "80:80", "http", ""] {
            assert!(port(bad).is_err(), "{bad:?}");
        }
        for bad in ["0", "-1", "nan", "inf", "2000", "two"] {
            assert!(cpus(bad).is_err(), "{bad:?}");
        }
        for bad in ["docker-archive:/etc/shadow", "oci:/root", "oci-archive:x", "UPPER", ""] {
            assert!(image(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_are_written_as_they_are_read() {
        for (bytes, text) in
            [(4 << 30, "\"4g\""), (1536 << 20, "\"1536m\""), (3 << 40, "\"3t\""), ((1 << 20) + 1, "1048577")]
        {
            let written = serde_json::to_string(&Bytes(bytes)).unwrap();
            assert_eq!(written, text);
            assert_eq!(Bytes::parse(written.trim_matches('"')), Ok(Bytes(bytes)));
        }
    }
}
