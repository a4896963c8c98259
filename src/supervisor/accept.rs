//! Listening, and accepting TCP connections.

use std::{io, net::SocketAddr, time::Duration};

use nix::sys::socket::sockopt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::client::canonical;

/// Connections that may wait in the kernel to be accepted.
const BACKLOG: u32 = 4096;

/// How long to wait after accept(2) has failed, for instance because no descriptor is left.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Listens on `address`; IPv6 sockets take IPv6 only, as sshd's do. Must be called inside a tokio runtime.
pub fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        nix::sys::socket::setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Accepts for ever, and goes on after an error.
pub async fn accept_loop(listener: TcpListener, mut take: impl FnMut(TcpStream, SocketAddr)) {
    loop {
        match listener.accept().await {
            // A socket of systemd's may take both families, and show IPv4 addresses as IPv6.
            Ok((stream, peer)) => take(stream, canonical(peer)),
            Err(error) => {
                tracing::warn!("accept: {error}");
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
}
