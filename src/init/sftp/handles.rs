//! The files and directories that a client has open.
//!
//! Handles are four bytes, numbers that are used again, the one closed last first: some clients count on small ones.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::{
    dir::{Dir, OwningIter},
    errno::Errno,
    unistd::close,
};

use super::{reply::Status, request::HandleText};

/// An open file.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) fd: OwnedFd,
    /// Whether it was opened to append, so that the offsets of writes do not count.
    pub(super) appends: bool,
}

/// A directory that is being listed.
#[derive(Debug)]
pub(super) struct OpenDirectory {
    pub(super) entries: OwningIter,
    /// The same directory, to look at its entries.
    pub(super) fd: OwnedFd,
}

impl OpenDirectory {
    pub(super) fn new(fd: OwnedFd) -> nix::Result<Self> {
        let again = fd.try_clone().map_err(|error| Errno::try_from(error).unwrap_or(Errno::EMFILE))?;
        Ok(Self { entries: Dir::from_fd(again)?.into_iter(), fd })
    }
}

#[derive(Debug)]
pub(super) enum Open {
    File(OpenFile),
    Directory(OpenDirectory),
}

/// What is open, by handle; at most as much as `limits@openssh.com` says.
#[derive(Debug)]
pub(super) struct Handles {
    open: Vec<Option<Open>>,
    free: Vec<u32>,
    limit: u64,
}

impl Handles {
    pub(super) fn new(limit: u64) -> Self {
        Self { open: Vec::new(), free: Vec::new(), limit }
    }

    /// # Errors
    /// [`Status::Failure`] beyond the limit, which closes `open` again.
    pub(super) fn insert(&mut self, open: Open) -> Result<u32, Status> {
        if let Some(handle) = self.free.pop() {
            self.open[handle as usize] = Some(open);
            return Ok(handle);
        }
        if self.open.len() as u64 >= self.limit {
            return Err(Status::Failure);
        }
        self.open.push(Some(open));
        Ok(self.open.len() as u32 - 1)
    }

    fn number(text: HandleText<'_>) -> Option<usize> {
        Some(u32::from_be_bytes(text.try_into().ok()?) as usize)
    }

    fn get(&self, text: HandleText<'_>) -> Option<&Open> {
        self.open.get(Self::number(text)?)?.as_ref()
    }

    pub(super) fn file(&self, text: HandleText<'_>) -> Option<&OpenFile> {
        match self.get(text)? {
            Open::File(file) => Some(file),
            Open::Directory(_) => None,
        }
    }

    /// The descriptor of a file, for what works with nothing else.
    pub(super) fn fd(&self, text: HandleText<'_>) -> Option<BorrowedFd<'_>> {
        self.file(text).map(|file| file.fd.as_fd())
    }

    pub(super) fn directory(&mut self, text: HandleText<'_>) -> Option<&mut OpenDirectory> {
        match self.open.get_mut(Self::number(text)?)?.as_mut()? {
            Open::Directory(directory) => Some(directory),
            Open::File(_) => None,
        }
    }

    /// Closes `text`; what close(2) says tells of writes that failed late on some file systems.
    pub(super) fn close(&mut self, text: HandleText<'_>) -> Status {
        let number = Self::number(text);
        let Some((number, slot)) = number.and_then(|number| Some((number, self.open.get_mut(number)?))) else {
            return Status::NoSuchFile;
        };
        let status = match slot.take() {
            None => return Status::NoSuchFile,
            Some(Open::File(file)) => close(file.fd).into(),
            Some(Open::Directory(_)) => Status::Ok,
        };
        self.free.push(number as u32);
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Open {
        Open::File(OpenFile { fd: std::fs::File::open("/dev/null").unwrap().into(), appends: false })
    }

    #[test]
    fn numbers_are_used_again_the_last_one_first() {
        let mut handles = Handles::new(3);
        for number in 0..3 {
            assert_eq!(handles.insert(open()), Ok(number));
        }
        assert_eq!(handles.insert(open()), Err(Status::Failure));
        assert_eq!(handles.close(&[0, 0, 0, 0]), Status::Ok);
        assert_eq!(handles.close(&[0, 0, 0, 2]), Status::Ok);
        assert_eq!(handles.close(&[0, 0, 0, 2]), Status::NoSuchFile);
        assert_eq!(handles.insert(open()), Ok(2));
        assert_eq!(handles.insert(open()), Ok(0));
    }

    #[test]
    fn only_handles_that_were_given_out_are_handles() {
        let mut handles = Handles::new(3);
        handles.insert(open()).unwrap();
        for wrong in [&[][..], &[0], &[0, 0, 0], &[0, 0, 0, 1], &[0xff; 4], &[0; 5], &[0; 300]] {
            assert!(handles.file(wrong).is_none() && handles.directory(wrong).is_none(), "{wrong:?}");
            assert_eq!(handles.close(wrong), Status::NoSuchFile, "{wrong:?}");
        }
        assert!(handles.file(&[0; 4]).is_some() && handles.directory(&[0; 4]).is_none());
    }
}
