//! Sockets inside the container: connecting, listening, and the socket files that listeners leave.
//!
//! TCP is init's own work: every port of the network namespace is free to all its users
//! (`ip_unprivileged_port_start` is 0), so the session's user could do the same, and none of it waits. What touches files is for a child that
//! has become the user (see `errands`).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, UnixAddr, bind, connect, getsockname, listen,
            setsockopt, socket, sockopt,
        },
        stat::{Mode, fchmod},
        time::{TimeVal, TimeValLike},
    },
    unistd::{getpid, mkdir},
};

use super::files;
use crate::protocol::MAX_LISTEN_ADDRESSES;

/// Connections that may wait until the client's connection process accepts them; the kernel makes further ones try again.
const BACKLOG: i32 = 256;

/// How long to wait for the listener of a socket file.
const CONNECT_SECONDS: i64 = 10;

/// The numbers of displays, as sshd has them: real ones come before.
const DISPLAYS: std::ops::RangeInclusive<u16> = 10..=1000;

/// The port of display 0.
const X11_PORT: u16 = 6000;

/// Where xauth(1) is in one distribution or another.
const XAUTH: [&str; 4] = ["/usr/bin/xauth", "/usr/local/bin/xauth", "/usr/X11R6/bin/xauth", "/usr/bin/X11/xauth"];

/// Where the directory of an agent's socket is made: the second is in every container, the first nearly.
const AGENT_PARENTS: [&str; 2] = ["/tmp", "/dev/shm"];

fn stream_socket(family: AddressFamily) -> nix::Result<OwnedFd> {
    socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// A socket that is connected to `to` or on its way.
pub(super) fn connect_tcp(to: SocketAddr) -> nix::Result<OwnedFd> {
    let socket = stream_socket(family(to.ip()))?;
    // What is forwarded is somebody else's protocol, which waits for answers to small packets.
    setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Listens on as many of `addresses` as possible, like sshd does: a host without IPv6 has the other family.
///
/// # Errors
/// The last one, if there is no socket.
pub(super) fn listen_tcp(addresses: &[IpAddr], mut port: u16) -> nix::Result<(u16, Vec<OwnedFd>)> {
    let mut sockets = Vec::new();
    let mut last = Errno::EADDRNOTAVAIL;
    for address in addresses.iter().take(MAX_LISTEN_ADDRESSES) {
        match listen_on(SocketAddr::new(*address, port)) {
            Ok((socket, bound)) => {
                sockets.push(socket);
                port = bound;
            }
            Err(error) => last = error,
        }
    }
    if sockets.is_empty() { Err(last) } else { Ok((port, sockets)) }
}

fn listen_on(address: SocketAddr) -> nix::Result<(OwnedFd, u16)> {
    let socket = stream_socket(family(address.ip()))?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        // The other family has a socket of its own.
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    setsockopt(&socket, sockopt::TcpNoDelay, &true)?; // inherited by what is accepted
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    let bound: SockaddrStorage = getsockname(socket.as_raw_fd())?;
    let v4 = bound.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::port);
    let port = v4.or_else(|| bound.as_sockaddr_in6().map(nix::sys::socket::SockaddrIn6::port));
    Ok((socket, port.ok_or(Errno::EAFNOSUPPORT)?))
}

/// Listens as the first display that is free on both loopback addresses.
///
/// # Errors
/// `EADDRINUSE` if there is none.
pub(super) fn listen_display() -> nix::Result<(u16, Vec<OwnedFd>)> {
    'next: for number in DISPLAYS {
        let mut sockets = Vec::new();
        for address in [IpAddr::from(Ipv6Addr::LOCALHOST), IpAddr::from(Ipv4Addr::LOCALHOST)] {
            match listen_on(SocketAddr::new(address, X11_PORT + number)) {
                Ok((socket, _)) => sockets.push(socket),
                Err(Errno::EADDRINUSE) => continue 'next,
                // A kernel or namespace without that family.
                Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => {}
                Err(error) => return Err(error),
            }
        }
        if !sockets.is_empty() {
            return Ok((number, sockets));
        }
    }
    Err(Errno::EADDRINUSE)
}

/// The image's xauth, if it has one.
pub(super) fn xauth() -> Option<&'static str> {
    XAUTH.into_iter().find(|path| files::is_executable(path))
}

/// A path as sshd takes it, whose working directory is `/`.
fn absolute(path: &str) -> PathBuf {
    Path::new("/").join(path)
}

/// Connects to a socket file, as whoever this process is; waits while the listener has too many to accept.
pub(super) fn connect_unix(path: &str) -> nix::Result<OwnedFd> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::seconds(CONNECT_SECONDS))?;
    connect(socket.as_raw_fd(), &UnixAddr::new(&absolute(path))?)?;
    fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(socket)
}

/// Makes a socket file that only its owner can connect to. What is there already stays, and is an error.
pub(super) fn listen_unix(path: &str) -> nix::Result<OwnedFd> {
    let socket = stream_socket(AddressFamily::Unix)?;
    // The file gets the mode that the socket has when it is bound, less the umask.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(&absolute(path))?)?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket)
}

/// Makes a directory for nobody else, and a socket file in it.
pub(super) fn listen_agent() -> io::Result<(String, OwnedFd)> {
    let random = getrandom::u64().map_err(io::Error::from)?;
    let mut last = Errno::ENOENT;
    for parent in AGENT_PARENTS {
        let directory = format!("{parent}/ssh-{random:016x}");
        match mkdir(directory.as_str(), Mode::S_IRWXU) {
            Ok(()) => {
                let path = format!("{directory}/agent.{}", getpid());
                return Ok((path.clone(), listen_unix(&path)?));
            }
            Err(error) => last = error,
        }
    }
    Err(last.into())
}

/// A socket file that goes when its listener does.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: files::Identity,
    /// Its directory was made for it.
    own_directory: bool,
}

impl SocketFile {
    /// What a child has made at `path`; `None` if it is gone already.
    pub(super) fn at(path: &str, own_directory: bool) -> Option<Self> {
        let path = absolute(path);
        let identity = files::socket_identity(&path).ok()?;
        Some(Self { path, identity, own_directory })
    }

    /// Removes it, unless somebody else's is in its place. What does not work here is the user's own doing.
    pub(super) fn remove(&self) {
        if files::socket_identity(&self.path).is_ok_and(|found| found == self.identity) {
            if let Err(_gone) = files::unlink(&self.path) {}
            if let (true, Some(directory)) = (self.own_directory, self.path.parent())
                && let Err(_not_empty) = files::remove_directory(directory)
            {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    use super::*;

    #[test]
    fn one_port_serves_all_addresses_that_there_are() {
        let nowhere = IpAddr::from([192, 0, 2, 1]);
        let both = [nowhere, Ipv4Addr::LOCALHOST.into(), Ipv4Addr::new(127, 0, 0, 2).into()];
        let (port, sockets) = listen_tcp(&both, 0).unwrap();
        assert!(port != 0 && sockets.len() == 2);
        assert_eq!(listen_tcp(&[Ipv4Addr::LOCALHOST.into()], port).unwrap_err(), Errno::EADDRINUSE);
        assert_eq!(listen_tcp(&[nowhere], 0).unwrap_err(), Errno::EADDRNOTAVAIL);
        drop(sockets);
        listen_tcp(&[Ipv4Addr::LOCALHOST.into()], port).unwrap();
    }

    #[test]
    fn a_socket_file_is_private_and_removed_unless_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let text = path.to_str().unwrap();
        let listener = listen_unix(text).unwrap();
        let metadata = path.symlink_metadata().unwrap();
        assert!(metadata.file_type().is_socket() && metadata.mode() & 0o777 == 0o600);
        assert_eq!(listen_unix(text).unwrap_err(), Errno::EADDRINUSE);
        connect_unix(text).unwrap();
        let file = SocketFile::at(text, false).unwrap();

        std::fs::remove_file(&path).unwrap();
        let other = listen_unix(text).unwrap();
        file.remove();
        assert!(path.exists(), "another listener's file was removed");
        SocketFile::at(text, false).unwrap().remove();
        assert!(!path.exists());
        drop((listener, other));
    }
}
