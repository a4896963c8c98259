//! The server's side of scp without SFTP, `scp -t` and `scp -f`, for images that have no scp.
//!
//! The protocol is rcp's (OpenSSH's scp.c is its only description): one side announces a file by a line, the other agrees by
//! a NUL byte or answers with an error line, and so on for its contents. Both sides run as the session's user in a child of
//! init. What the peer announces is input: it may name files only in the directory that the command line gives.

mod link;
mod record;
mod sink;
mod source;

use std::io::{self, Read, Write};

use link::{Link, Stop};

/// What the command line of the server's side says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Options {
    direction: Direction,
    recursive: bool,
    /// Keep times and modes.
    preserve: bool,
    /// Tell on stderr what is done.
    verbose: bool,
    /// The target must be a directory, as more than one file comes.
    into_directory: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// `-f`: the client gets files.
    From,
    /// `-t`: it sends some.
    To,
}

impl Options {
    /// Parses the words after `scp`; what is left are paths. `None` for what clients do not run at our end.
    pub(super) fn parse(words: &[Vec<u8>]) -> Option<(Self, &[Vec<u8>])> {
        let mut options =
            Self { direction: Direction::To, recursive: false, preserve: false, verbose: false, into_directory: false };
        let mut direction = None;
        let mut paths = words;
        while let Some((word, rest)) = paths.split_first() {
            match word.strip_prefix(b"-") {
                Some(b"-") => {
                    paths = rest;
                    break;
                }
                Some(letters) if !letters.is_empty() => {
                    for letter in letters {
                        match letter {
                            b't' => direction = Some(Direction::To),
                            b'f' => direction = Some(Direction::From),
                            b'r' => options.recursive = true,
                            b'p' => options.preserve = true,
                            b'v' => options.verbose = true,
                            b'd' => options.into_directory = true,
                            b'q' => {} // no progress meter, which this side never shows
                            _ => return None,
                        }
                    }
                    paths = rest;
                }
                _ => break,
            }
        }
        options.direction = direction?;
        Some((options, paths))
    }
}

/// Does what `options` say with `paths` until all is done or the peer gives up, and returns the exit status.
pub(super) fn run(options: Options, paths: &[Vec<u8>], input: impl Read, output: impl Write) -> u8 {
    let mut link = Link::new(input, output, options.verbose);
    let result = match options.direction {
        Direction::From => source::send(&mut link, options, paths),
        Direction::To => sink::receive(&mut link, options, paths),
    };
    match result {
        Ok(()) => u8::from(link.has_failed()),
        Err(Stop) => 1,
    }
}

/// An error as scp words it, without the number that Rust adds.
fn reason(error: impl Into<io::Error>) -> String {
    let text = error.into().to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests;
