//! Requests about open files and directories.

use std::{os::fd::AsFd, path::Path};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, open},
    sys::stat::{Mode, fstat, fstatat},
    unistd::{Whence, fsync, lseek, read, write},
};

use super::{
    attributes::{self, Attributes},
    handles::{Open, OpenDirectory, OpenFile},
    listing,
    names::Names,
    reply::{Name, Reply, Status},
    request::HandleText,
    server::Server,
};

/// Entries in one answer. At their longest (names of 255 bytes, lines of 1023) they are half a packet.
const MAX_ENTRIES: usize = 100;

/// What copy-data moves at a time. The size shows: a copy that ends early within its last piece is a success.
const COPY_PIECE: usize = 64 * 1024;

impl Server {
    pub(super) fn open(&mut self, path: &Path, flags: u32, attributes: &Attributes) -> Result<u32, Status> {
        let mode = attributes.permissions.map_or(Mode::from_bits_truncate(0o666), attributes::mode);
        // Terminals must not become ours.
        let flags = open_flags(flags) | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let fd = open(path, flags, mode)?;
        self.handles.insert(Open::File(OpenFile { fd, appends: flags.contains(OFlag::O_APPEND) }))
    }

    pub(super) fn open_directory(&mut self, path: &Path) -> Result<u32, Status> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let directory = OpenDirectory::new(open(path, flags, Mode::empty())?)?;
        self.handles.insert(Open::Directory(directory))
    }

    pub(super) fn fstat(&self, handle: HandleText<'_>) -> Result<Reply, Status> {
        Ok(Reply::Attributes(Attributes::from(&fstat(self.handles.fd(handle).ok_or(Status::Failure)?)?)))
    }

    /// Fills `place` from the file as far as one read(2) does.
    pub(super) fn read(&self, handle: HandleText<'_>, offset: u64, place: &mut [u8]) -> Result<usize, Status> {
        let fd = self.handles.fd(handle).ok_or(Status::Failure)?;
        seek(fd, offset)?;
        if place.is_empty() {
            return Ok(0);
        }
        match retry(|| read(fd, place))? {
            0 => Err(Status::Eof),
            length => Ok(length),
        }
    }

    pub(super) fn write(&self, handle: HandleText<'_>, offset: u64, data: &[u8]) -> Status {
        match self.handles.file(handle) {
            Some(file) => seek_to_write(file, offset).and_then(|()| write_all(file, data)).into(),
            None => Status::Failure,
        }
    }

    pub(super) fn fsync(&self, handle: HandleText<'_>) -> Status {
        self.handles.fd(handle).map_or(Status::NoSuchFile, |fd| fsync(fd).into())
    }

    /// Copies `length` bytes, or all to the end for 0, from a place in one file to a place in another.
    pub(super) fn copy_data(
        &self,
        (from, from_offset): (HandleText<'_>, u64),
        length: u64,
        (to, to_offset): (HandleText<'_>, u64),
    ) -> Status {
        let (Some(from), Some(to)) = (self.handles.file(from), self.handles.file(to)) else {
            return Status::Failure;
        };
        match copy(from, from_offset, length, to, to_offset) {
            Ok(status) => status,
            Err(error) => error.into(),
        }
    }
}

impl OpenDirectory {
    /// The next entries. Those that are gone by now are left out.
    ///
    /// # Errors
    /// [`Status::Eof`] when there are no more.
    pub(super) fn list(&mut self, names: &Names) -> Result<Vec<Name>, Status> {
        let now = listing::now();
        let mut listed = Vec::new();
        // A directory that cannot be read on ends here, as for readdir(3)'s other users.
        for entry in self.entries.by_ref().map_while(Result::ok) {
            let Ok(stat) = fstatat(&self.fd, entry.file_name(), AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
            let name = entry.file_name().to_bytes().to_owned();
            let long = listing::long_name(&name, &stat, names, now);
            listed.push(Name { name, long, attributes: Attributes::from(&stat) });
            if listed.len() == MAX_ENTRIES {
                break;
            }
        }
        if listed.is_empty() { Err(Status::Eof) } else { Ok(listed) }
    }
}

/// The protocol's flags as open(2) has them (draft, section 6.3).
fn open_flags(flags: u32) -> OFlag {
    const READ: u32 = 0x01;
    const WRITE: u32 = 0x02;
    let access = match flags & (READ | WRITE) {
        WRITE => OFlag::O_WRONLY,
        READ | 0 => OFlag::O_RDONLY,
        _ => OFlag::O_RDWR,
    };
    let others = [(0x04, OFlag::O_APPEND), (0x08, OFlag::O_CREAT), (0x10, OFlag::O_TRUNC), (0x20, OFlag::O_EXCL)];
    others.into_iter().filter(|(bit, _)| flags & bit != 0).fold(access, |all, (_, flag)| all | flag)
}

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Moves to a place of a file. Not pread(2) and pwrite(2), which have other errors for places that no file has.
fn seek(fd: impl AsFd, offset: u64) -> nix::Result<()> {
    lseek(fd, offset.cast_signed(), Whence::SeekSet).map(|_| ())
}

/// Moves to where writing starts: nowhere if that is always the end.
fn seek_to_write(file: &OpenFile, offset: u64) -> nix::Result<()> {
    if file.appends { Ok(()) } else { seek(&file.fd, offset) }
}

fn write_all(file: &OpenFile, mut data: &[u8]) -> nix::Result<()> {
    loop {
        let written = retry(|| write(&file.fd, data))?;
        data = &data[written..];
        if data.is_empty() {
            return Ok(());
        }
        if written == 0 {
            return Err(Errno::EIO);
        }
    }
}

/// Reads until `buffer` is full or the file ends.
fn read_full(file: &OpenFile, buffer: &mut [u8]) -> nix::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match retry(|| read(&file.fd, &mut buffer[filled..]))? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

fn copy(from: &OpenFile, from_offset: u64, length: u64, to: &OpenFile, to_offset: u64) -> nix::Result<Status> {
    let (source, target) = (fstat(&from.fd)?, fstat(&to.fd)?);
    if (source.st_dev, source.st_ino) == (target.st_dev, target.st_ino) {
        return Ok(Status::Failure); // it might never end
    }
    seek(&from.fd, from_offset)?;
    seek_to_write(to, to_offset)?;
    let mut buffer = vec![0; COPY_PIECE];
    let mut left = if length == 0 { None } else { Some(length) };
    while left != Some(0) {
        let piece = left.map_or(COPY_PIECE, |left| COPY_PIECE.min(usize::try_from(left).unwrap_or(COPY_PIECE)));
        left = left.map(|left| left - piece as u64);
        match read_full(from, &mut buffer[..piece])? {
            0 => return Ok(if left.unwrap_or(0) == 0 { Status::Ok } else { Status::Eof }),
            read => write_all(to, &buffer[..read])?,
        }
    }
    Ok(Status::Ok)
}
