//! Descriptors in tokio's reactor.
#![allow(unsafe_code)]

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Registers `fd` for `interest` with the current tokio runtime. The caller makes it non-blocking first.
pub fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, and `AsyncFd` keeps it to itself until it is dropped or taken out again; it gives out
    // only shared references, through which it can be neither closed nor replaced.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
