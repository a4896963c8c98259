//! Starting a program with chosen descriptors.
#![allow(unsafe_code)]

use std::{
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
};

/// The most descriptors that a program can be started with.
const MAX_FDS: usize = 128;

/// Lets `command` start with `fds` as descriptors 3, 4, 5, ... and nothing else above standard error.
///
/// The descriptors are kept open until `command` is dropped.
pub fn give_fds(command: &mut Command, fds: Vec<OwnedFd>) {
    // SAFETY: the closure runs in the child between fork and exec, where only async-signal-safe calls are allowed; it
    // makes nothing but raw system calls on descriptors that it owns, and allocates nothing.
    unsafe { command.pre_exec(move || place(&fds)) };
}

fn place(fds: &[OwnedFd]) -> io::Result<()> {
    const FIRST: RawFd = 3;
    let count = RawFd::try_from(fds.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // Out of the way of the target numbers first, so that no descriptor is overwritten before it was copied. The copies
    // take ascending numbers from `FIRST + count` on, each at least one above the one before.
    let mut copies = [-1; MAX_FDS];
    if fds.len() > copies.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (copy, fd) in copies.iter_mut().zip(fds) {
        // SAFETY: both are plain integers; the kernel checks them.
        *copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, FIRST + count) };
        if *copy < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    for (target, copy) in (FIRST..).zip(&copies[..fds.len()]) {
        // SAFETY: as above. dup2 clears close-on-exec, which is its purpose here.
        if unsafe { libc::dup2(*copy, target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Takes over descriptor `number` that whoever started this process left open, and makes it close-on-exec.
///
/// # Errors
/// `EBADF` if it is not open.
pub fn inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: both are plain integers; the kernel checks them.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and callers take each number once, before anything else of this process opens files.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
