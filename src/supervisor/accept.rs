//! Accepting TCP connections, with a bound on those that have not logged in yet.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::sys::socket::sockopt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::config::MaxStartups;

/// Connections that may wait in the kernel to be accepted.
const BACKLOG: u32 = 4096;

/// How long to wait after accept(2) has failed, for instance because no descriptor is left.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Listens on `address`; IPv6 sockets take IPv6 only, as sshd's do.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        nix::sys::socket::setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts for ever, and goes on after an error.
pub async fn accept_loop(listener: TcpListener, mut take: impl FnMut(TcpStream, SocketAddr)) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => take(stream, peer),
            Err(error) => {
                tracing::warn!("accept: {error}");
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
}

/// How many connections are there that have not logged in.
#[derive(Clone, Default)]
pub struct Startups(Arc<Mutex<u32>>);

/// Counts one connection until it is dropped.
pub struct Startup(Startups);

impl Startups {
    /// Counts another connection, or refuses it: for certain when `limit.full` are there, with a probability that grows
    /// from `limit.rate` percent to that once `limit.start` are (sshd_config(5), MaxStartups). `dice` is 0..100.
    pub fn admit(&self, limit: MaxStartups, dice: u32) -> Option<Startup> {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if dice < refusal_percent(*count, limit) {
            return None;
        }
        *count += 1;
        drop(count);
        Some(Startup(self.clone()))
    }
}

impl Drop for Startup {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
    }
}

fn refusal_percent(count: u32, limit: MaxStartups) -> u32 {
    if count < limit.start {
        0
    } else if count >= limit.full || limit.full <= limit.start {
        100
    } else {
        limit.rate + (100 - limit.rate.min(100)) * (count - limit.start) / (limit.full - limit.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_grow_from_rate_to_certainty() {
        let limit = MaxStartups { start: 10, rate: 30, full: 100 };
        let table = [(0, 0), (9, 0), (10, 30), (55, 65), (99, 99), (100, 100), (500, 100)];
        for (count, percent) in table {
            assert_eq!(refusal_percent(count, limit), percent, "{count}");
        }
    }

    #[test]
    fn a_connection_counts_until_it_is_dropped() {
        let limit = MaxStartups { start: 1, rate: 100, full: 1 };
        let startups = Startups::default();
        let first = startups.admit(limit, 0);
        assert!(first.is_some() && startups.admit(limit, 99).is_none());
        drop(first);
        assert!(startups.admit(limit, 0).is_some());
    }
}
