//! The sockets that clients come to: passed on to us, or made here.
//!
//! They are passed on by systemd, which holds them while there is no server (systemd.socket(5)), or by the server that we are
//! the successor of ([`upgrade`](super::upgrade)), in the same way (sd_listen_fds(3)): the descriptors from 3 on, whose number,
//! receiver and names are in the environment. So clients that come while one server follows another wait in the socket.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{SockType, getsockopt, sockopt};
use tokio::net::TcpListener;

use super::{StartError, accept};
use crate::{config::Config, sys::spawn::inherited_fd};

/// What our own sockets are called when we pass them on; what has another name is from systemd.
const LISTEN: &str = "listen";
const METRICS: &str = "metrics";

/// A descriptor and what it is for.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) fd: OwnedFd,
}

/// Takes over what was passed on to this process. To be called once, before any thread exists and any file is opened.
pub(super) fn passed_on() -> io::Result<Vec<Named>> {
    let passed = sd_notify::listen_fds_with_names()?;
    passed.map(|(fd, name)| Ok(Named { name, fd: inherited_fd(fd)? })).collect()
}

/// All sockets that listen for TCP connections.
pub(super) struct Listeners {
    /// What clients connect to.
    pub(super) ssh: Vec<(SocketAddr, TcpListener)>,
    pub(super) metrics: Option<TcpListener>,
    /// The same sockets, for the next server.
    kept: Vec<Named>,
}

impl Listeners {
    /// Takes those of the sockets that are wanted and makes what is missing. Sockets of systemd's are all wanted, and then
    /// `listen` does not count. Must be called inside a tokio runtime.
    pub(super) fn open(config: &Config, passed: Vec<Named>) -> Result<Self, StartError> {
        let mut from_systemd = Vec::new();
        let mut own = Vec::new();
        for Named { name, fd } in passed {
            let is_own = name == LISTEN || name == METRICS;
            let refused = |error| StartError::Passed(fd.as_raw_fd(), name.clone(), error);
            let (listener, address) = listener(&fd).map_err(refused)?;
            if is_own {
                own.push((name, address, listener));
            } else {
                from_systemd.push((name, address, listener));
            }
        }
        let wanted = if from_systemd.is_empty() { config.listen.as_slice() } else { &[] };
        // What is not wanted any more is closed first: it may be in the way.
        own.retain(|(name, address, _)| match name.as_str() {
            LISTEN => wanted.contains(address),
            _ => config.metrics.listen == Some(*address),
        });
        let mut all = Self { ssh: Vec::new(), metrics: None, kept: Vec::new() };
        for (name, address, listener) in from_systemd {
            tracing::info!("{address} is a socket of the service manager's ({name}), which counts instead of listen");
            let listener = all.keep(&name, listener).map_err(|error| StartError::Listen(address, error))?;
            all.ssh.push((address, listener));
        }
        let mut take = |name: &str, address: SocketAddr| {
            let at = own.iter().position(|(other, its, _)| other == name && *its == address);
            match at {
                Some(at) => Ok(own.swap_remove(at).2),
                None => accept::listen(address).map_err(|error| StartError::Listen(address, error)),
            }
        };
        for address in wanted {
            let listener = take(LISTEN, *address)?;
            let listener = all.keep(LISTEN, listener).map_err(|error| StartError::Listen(*address, error))?;
            all.ssh.push((*address, listener));
        }
        if let Some(address) = config.metrics.listen {
            let listener = take(METRICS, address)?;
            all.metrics = Some(all.keep(METRICS, listener).map_err(|error| StartError::Listen(address, error))?);
        }
        Ok(all)
    }

    /// The sockets for whoever comes next.
    pub(super) fn into_kept(self) -> Vec<Named> {
        self.kept
    }

    fn keep(&mut self, name: &str, listener: StdListener) -> io::Result<TcpListener> {
        self.kept.push(Named { name: name.to_owned(), fd: listener.try_clone()?.into() });
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    }
}

/// The descriptor as what it is to be, with its address.
fn listener(fd: &OwnedFd) -> io::Result<(StdListener, SocketAddr)> {
    let not = || io::Error::new(io::ErrorKind::InvalidInput, "it is not a TCP socket that listens");
    let stream = getsockopt(fd, sockopt::SockType).map_err(|_| not())? == SockType::Stream;
    if !stream || !getsockopt(fd, sockopt::AcceptConn).map_err(|_| not())? {
        return Err(not());
    }
    let listener = StdListener::from(fd.try_clone()?);
    let address = listener.local_addr().map_err(|_| not())?;
    Ok((listener, address))
}
