//! Hears of changes that other software makes to nftables.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{self, AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType};
use tokio::io::{Interest, unix::AsyncFd};

use super::{NetworkError, netlink::Frames, nft};
use crate::sys::async_fd;

/// linux/netfilter/nfnetlink.h
const NFNLGRP_NFTABLES: u32 = 7;

/// Tells when something of nftables was removed in the namespace that it was opened in.
pub struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Begins to listen. Must be called inside a tokio runtime.
    pub(super) fn open() -> Result<Self, NetworkError> {
        let open = || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let protocol = SockProtocol::NetlinkNetFilter;
            let socket = socket::socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
            socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1 << (NFNLGRP_NFTABLES - 1)))?;
            async_fd::register(socket, Interest::READABLE)
        };
        Ok(Self(open().map_err(|source| NetworkError::Socket { source })?))
    }

    /// Returns after something was removed, by anybody; how often that happens is up to the other software on the host.
    pub async fn removal(&self) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|socket| Ok(nix::unistd::read(socket.get_ref(), &mut buffer)?)) {
                Ok(Ok(length)) if Frames(&buffer[..length]).any(|frame| nft::is_removal(frame.kind)) => return Ok(()),
                Ok(Ok(_)) | Err(_) => {}
                // More was going on than the socket has room for.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
            }
        }
    }
}
