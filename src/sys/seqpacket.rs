//! `SOCK_SEQPACKET` Unix sockets that carry one message with its file descriptors at a time (unix(7), cmsg(3)).
#![allow(unsafe_code)]

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{self, OFlag},
    sys::{
        socket::{
            self, AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
            sockopt,
        },
        stat::Mode,
    },
};

/// The most descriptors one message may carry. The kernel's own bound is 253 (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 16;

/// A pair of connected sockets, both close-on-exec and blocking.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (a, b) = socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    widen(&a)?;
    widen(&b)?;
    Ok((a, b))
}

/// Listens on the socket file `path`, which must not exist.
pub fn listen(path: &Path, backlog: i32) -> io::Result<OwnedFd> {
    let fd = socket::socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    let through = short_path(path)?;
    socket::bind(fd.as_raw_fd(), &UnixAddr::new(through.as_path())?)?;
    socket::listen(&fd, Backlog::new(backlog)?)?;
    Ok(fd)
}

/// Connects to the socket file `path`. The socket is non-blocking.
///
/// # Errors
/// `ConnectionRefused` or `NotFound` if nobody listens, `WouldBlock` if the listener's backlog is full.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    widen(&fd)?;
    let through = short_path(path)?;
    socket::connect(fd.as_raw_fd(), &UnixAddr::new(through.as_path())?)?;
    Ok(fd)
}

/// A path of a socket file through a descriptor of its directory, which is closed on drop.
///
/// `sun_path` holds 108 bytes only (unix(7)), and `--root` may be anywhere.
pub struct ShortPath {
    path: PathBuf,
    _directory: OwnedFd,
}

impl ShortPath {
    pub fn as_path(&self) -> &Path {
        &self.path
    }
}

/// Makes a short path for `path`, whose directory must exist.
pub fn short_path(path: &Path) -> io::Result<ShortPath> {
    let (parent, name) = path.parent().zip(path.file_name()).ok_or(io::ErrorKind::InvalidInput)?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = fcntl::open(parent, flags, Mode::empty())?;
    let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    Ok(ShortPath { path, _directory: directory })
}

/// Accepts one connection, close-on-exec.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let fd = socket::accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4 has just returned this descriptor to us, and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    widen(&fd)?;
    Ok(fd)
}

/// Makes room for the largest message; the kernel caps it at `net.core.wmem_max` unless we may force it.
fn widen(fd: &OwnedFd) -> io::Result<()> {
    const BYTES: usize = 1 << 20;
    match socket::setsockopt(fd, sockopt::SndBufForce, &BYTES) {
        Err(nix::errno::Errno::EPERM) => Ok(socket::setsockopt(fd, sockopt::SndBuf, &BYTES)?),
        other => Ok(other?),
    }
}

/// Sends one message with its descriptors; never raises SIGPIPE.
///
/// # Errors
/// `WouldBlock` on a non-blocking socket whose peer is slow, `EMSGSIZE` if the message is larger than the send buffer.
pub fn send(fd: BorrowedFd<'_>, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    loop {
        let sent =
            socket::sendmsg::<()>(fd.as_raw_fd(), &[IoSlice::new(message)], control, MsgFlags::MSG_NOSIGNAL, None);
        match sent {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other.map(|_| ()).map_err(Into::into),
        }
    }
}

/// Receives one message into `buffer` and its descriptors, close-on-exec. Zero bytes mean that the peer is gone.
///
/// # Errors
/// `InvalidData` if the message or its descriptors did not fit; `WouldBlock` on a non-blocking socket.
pub fn recv(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    loop {
        let mut iov = [IoSliceMut::new(buffer)];
        let message =
            match socket::recvmsg::<()>(fd.as_raw_fd(), &mut iov, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other?,
            };
        let mut fds = Vec::new();
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = part {
                // SAFETY: the kernel has just installed these descriptors for us, and nobody else knows them.
                fds.extend(raw.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
            }
        }
        if message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "message larger than the protocol allows"));
        }
        return Ok((message.bytes, fds));
    }
}
