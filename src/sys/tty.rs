//! Pseudo-terminals by descriptor (ioctl_tty(2)).
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Unlocks the follower of `leader` and opens it, without a path and without making it the controlling terminal.
pub fn open_follower(leader: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let locked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int, which outlives the call.
    check(unsafe { libc::ioctl(leader.as_raw_fd(), libc::TIOCSPTLCK, &raw const locked) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open(2) flags by value.
    let fd = check(unsafe { libc::ioctl(leader.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the call has just returned this new descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The number of `leader`'s follower in its devpts.
pub fn number(leader: BorrowedFd<'_>) -> io::Result<u32> {
    let mut number: libc::c_uint = 0;
    // SAFETY: TIOCGPTN writes one unsigned int, which outlives the call.
    check(unsafe { libc::ioctl(leader.as_raw_fd(), libc::TIOCGPTN, &raw mut number) })?;
    Ok(number)
}

/// Sets the window size, in characters and in pixels.
pub fn set_window_size(tty: BorrowedFd<'_>, columns: u16, rows: u16, width_px: u16, height_px: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: width_px, ws_ypixel: height_px };
    // SAFETY: TIOCSWINSZ reads one winsize, which outlives the call.
    check(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// The window size: columns and rows in characters, width and height in pixels.
pub fn window_size(tty: BorrowedFd<'_>) -> io::Result<(u16, u16, u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which outlives the call.
    check(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
    Ok((size.ws_col, size.ws_row, size.ws_xpixel, size.ws_ypixel))
}

/// Makes `tty` the controlling terminal of this process, which must be a session leader without one.
pub fn set_controlling(tty: BorrowedFd<'_>) -> io::Result<()> {
    let steal: libc::c_int = 0;
    // SAFETY: TIOCSCTTY takes an int by value.
    check(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSCTTY, steal) }).map(drop)
}
