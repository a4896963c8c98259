//! The flags that chattr(1) sets (ioctl_iflags(2)).
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Clears all flags of the file or directory, `immutable` and `append-only` among them.
pub fn clear(fd: BorrowedFd<'_>) -> io::Result<()> {
    let none: libc::c_int = 0;
    // SAFETY: in spite of its declaration FS_IOC_SETFLAGS reads one int, which outlives the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FS_IOC_SETFLAGS, &raw const none) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
