//! `scp -f`: sending files.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
};

use super::{
    Options,
    link::{Link, Stop},
    reason,
};

/// What is read and sent at a time.
const PIECE: usize = 256 * 1024;

const PATH_MAX: usize = libc::PATH_MAX as usize;

/// Sends everything in `paths`. What cannot be read is complained about and left out.
pub(super) fn send<R: Read, W: Write>(link: &mut Link<R, W>, options: Options, paths: &[Vec<u8>]) -> Result<(), Stop> {
    // The peer says that it is there, or why it is not.
    link.answer()?;
    let mut source = Source { link, options, buffer: vec![0; PIECE] };
    paths.iter().try_for_each(|path| source.send(path))
}

struct Source<'a, R: Read, W: Write> {
    link: &'a mut Link<R, W>,
    options: Options,
    buffer: Vec<u8>,
}

impl<R: Read, W: Write> Source<'_, R, W> {
    /// Sends a file, or a directory with what is in it. Ends there: each level adds to the path, which has a limit.
    fn send(&mut self, path: &[u8]) -> Result<(), Stop> {
        let slashes = path.iter().rev().take_while(|&&byte| byte == b'/').count();
        let path = &path[..(path.len() - slashes).max(path.len().min(1))];
        // Without waiting for somebody to write to a FIFO.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(as_path(path));
        let found = opened.and_then(|file| file.metadata().map(|metadata| (file, metadata)));
        let (file, metadata) = match found {
            Ok(found) => found,
            Err(error) => return self.complain(path, &reason(error)),
        };
        if metadata.is_dir() && self.options.recursive {
            self.send_directory(path, &metadata)
        } else if metadata.is_file() {
            self.send_file(path, file, &metadata)
        } else {
            self.complain(path, "not a regular file")
        }
    }

    fn complain(&mut self, path: &[u8], what: &str) -> Result<(), Stop> {
        self.link.complain(&[&shown(path), &b": "[..], what.as_bytes()].concat())
    }

    /// Announces something with a line and returns whether the peer wants it.
    fn announce(&mut self, what: &str, line: &[u8]) -> Result<bool, Stop> {
        self.link.tell(what, line);
        self.link.send(line)?;
        self.link.send(b"\n")?;
        self.link.answer()
    }

    fn announce_times(&mut self, metadata: &Metadata) -> Result<bool, Stop> {
        if !self.options.preserve {
            return Ok(true);
        }
        let line = format!("T{} 0 {} 0", metadata.mtime().max(0), metadata.atime().max(0));
        self.announce("Sending file timestamps", line.as_bytes())
    }

    fn send_file(&mut self, path: &[u8], mut file: File, metadata: &Metadata) -> Result<(), Stop> {
        let head = format!("C{:04o} {} ", metadata.mode() & 0o7777, metadata.len());
        let line = [head.as_bytes(), &last_component(&shown(path))].concat();
        if !self.announce_times(metadata)? || !self.announce("Sending file modes", &line)? {
            return Ok(());
        }
        let mut failure = None;
        let mut left = metadata.len();
        while left > 0 {
            let piece = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let buffer = &mut self.buffer[..piece];
            if failure.is_none() {
                failure = fill(&mut file, buffer).err();
            } else {
                buffer.fill(0); // the peer waits for all that was announced
            }
            self.link.send(buffer)?;
            left -= piece as u64;
        }
        match failure {
            None => self.link.agree()?,
            Some(error) => self.complain(path, &reason(error))?,
        }
        self.link.answer()?;
        Ok(())
    }

    fn send_directory(&mut self, path: &[u8], metadata: &Metadata) -> Result<(), Stop> {
        let entries = match fs::read_dir(as_path(path)) {
            Ok(entries) => entries,
            Err(error) => return self.complain(path, &reason(error)),
        };
        let head = format!("D{:04o} 0 ", metadata.mode() & 0o7777);
        let line = [head.as_bytes(), &last_component(&shown(path))].concat();
        if !self.announce_times(metadata)? || !self.announce("Entering directory", &line)? {
            return Ok(());
        }
        for name in entries.map_while(Result::ok).map(|entry| entry.file_name()) {
            let below = [path, b"/", name.as_bytes()].concat();
            if below.len() >= PATH_MAX - 1 {
                self.complain(&below, "name too long")?;
            } else {
                self.send(&below)?;
            }
        }
        self.link.send(b"E\n")?;
        self.link.answer()?;
        Ok(())
    }
}

/// Fills `buffer` from `file`, and with zeros what cannot be read.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    let result = loop {
        match file.read(&mut buffer[filled..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
            Ok(0) if filled < buffer.len() => break Err(io::ErrorKind::UnexpectedEof.into()), // it has become shorter
            Ok(0) => break Ok(()),
            Ok(read) => filled += read,
        }
    };
    buffer[filled..].fill(0);
    result
}

fn as_path(path: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(path))
}

fn last_component(path: &[u8]) -> Vec<u8> {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or_default().to_owned()
}

/// A path for a line of the protocol: one with a newline is encoded as scp does, by vis(3).
fn shown(path: &[u8]) -> Vec<u8> {
    if !path.contains(&b'\n') {
        return path.to_owned();
    }
    let mut shown = Vec::new();
    for &byte in path {
        match byte {
            b'\\' => shown.extend(b"\\\\"),
            b' ' | b'\t' | b'!'..=b'~' => shown.push(byte),
            _ => {
                let meta = if byte & 0x80 != 0 { &b"\\M"[..] } else { b"\\" };
                shown.extend(meta);
                match byte & 0x7f {
                    0x7f => shown.extend(b"^?"),
                    control @ 0..0x20 => shown.extend([b'^', control + b'@']),
                    letter => shown.extend([b'-', letter]),
                }
            }
        }
    }
    shown
}
