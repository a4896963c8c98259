//! Listeners inside whose connections become channels to the client: `-R`, and the sockets of agents and displays.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{getsockopt, sockopt};
use russh::{
    Channel, Error,
    server::{Handle, Msg},
};
use tokio::{
    net::{TcpListener, UnixListener},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    super::{
        init_link::{AskError, Held},
        pump,
    },
    ANSWER_LIMIT, ForwardError, Forwards, LISTEN_LIMIT, MAX_LISTENERS, MAX_NAME, dial, host_port,
};
use crate::protocol::{ForwardKind, FromInit, Listen, ListeningAt, ToInit};

/// A pause when accepting fails for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What a listener of `-R` is known by, as the client names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Spot {
    Tcp(String, u16),
    Unix(String),
}

/// What the client is told about a connection.
#[derive(Clone)]
pub(super) enum Origin {
    Tcp {
        address: String,
        port: u16,
    },
    Unix {
        path: String,
    },
    Agent,
    /// `once`: for the first connection only.
    X11 {
        once: bool,
    },
}

/// Sockets that listen. Dropping it closes them and removes the socket file; connections that it has accepted go on.
pub(super) struct Listener {
    tasks: JoinSet<()>,
    held: Held,
}

impl Listener {
    /// Returns when nothing listens any more.
    pub(super) async fn stop(mut self) {
        self.tasks.shutdown().await;
        // Told now, so that the next request may have the same path.
        self.held.release().await;
    }
}

/// A listener before it accepts.
pub(super) struct Made {
    held: Held,
    pub at: ListeningAt,
    fds: Vec<OwnedFd>,
}

impl Forwards {
    /// Listens as `-R` asks for; returns the port.
    pub(in super::super) async fn listen_tcp(
        self: &Arc<Self>,
        address: &str,
        port: u32,
        handle: Handle,
    ) -> Result<u16, ForwardError> {
        let invalid = || ForwardError::Address(host_port(&address.chars().take(64).collect::<String>(), port));
        let port = u16::try_from(port).map_err(|_| invalid())?;
        if address.len() > MAX_NAME {
            return Err(invalid());
        }
        let listen = async {
            let mut listeners = self.listeners.lock().await;
            if listeners.len() >= MAX_LISTENERS {
                return Err(ForwardError::TooMany(MAX_LISTENERS));
            }
            let addresses = match addresses(address) {
                Some(addresses) => addresses,
                None => dial::resolve(&self.link().await?, address).await?,
            };
            let made = self.make(Listen::Tcp { addresses, port }).await?;
            let ListeningAt::Port(port) = made.at else { return Err(AskError::Nonsense.into()) };
            let origin = Origin::Tcp { address: address.to_owned(), port };
            let listener = self.accept_from(made, origin, handle)?;
            listeners.insert(Spot::Tcp(address.to_owned(), port), listener);
            self.audit(ForwardKind::TcpipForward, host_port(address, port.into()));
            Ok(port)
        };
        timeout(LISTEN_LIMIT, listen).await.map_err(|_elapsed| ForwardError::TimedOut)?
    }

    /// Listens on a socket file.
    pub(in super::super) async fn listen_unix(
        self: &Arc<Self>,
        path: &str,
        handle: Handle,
    ) -> Result<(), ForwardError> {
        let listen = async {
            let mut listeners = self.listeners.lock().await;
            if listeners.len() >= MAX_LISTENERS {
                return Err(ForwardError::TooMany(MAX_LISTENERS));
            }
            let spot = Spot::Unix(path.to_owned());
            if listeners.contains_key(&spot) {
                return Err(ForwardError::Exists);
            }
            let made = self.make(Listen::Unix(path.to_owned())).await?;
            let listener = self.accept_from(made, Origin::Unix { path: path.to_owned() }, handle)?;
            listeners.insert(spot, listener);
            self.audit(ForwardKind::StreamlocalForward, path.to_owned());
            Ok(())
        };
        if path.len() > MAX_NAME {
            return Err(ForwardError::Connect(nix::errno::Errno::ENAMETOOLONG));
        }
        timeout(LISTEN_LIMIT, listen).await.map_err(|_elapsed| ForwardError::TimedOut)?
    }

    /// Ends a listener of `-R`; whether there was one.
    pub(in super::super) async fn cancel_tcp(&self, address: &str, port: u32) -> bool {
        let Ok(port) = u16::try_from(port) else { return false };
        self.cancel(&Spot::Tcp(address.to_owned(), port)).await
    }

    pub(in super::super) async fn cancel_unix(&self, path: &str) -> bool {
        self.cancel(&Spot::Unix(path.to_owned())).await
    }

    async fn cancel(&self, spot: &Spot) -> bool {
        let listener = self.listeners.lock().await.remove(spot);
        match listener {
            Some(listener) => {
                listener.stop().await;
                true
            }
            None => false,
        }
    }

    /// Has init make a listener.
    pub(super) async fn make(&self, on: Listen) -> Result<Made, ForwardError> {
        let link = self.link().await?;
        let answer = link.ask(ANSWER_LIMIT, |id| ToInit::Listen { id, on }).await?;
        match answer.message {
            FromInit::Listening { at, .. } if !answer.fds.is_empty() => {
                Ok(Made { held: answer.held, at, fds: answer.fds })
            }
            _ => Err(AskError::Nonsense.into()),
        }
    }

    /// Begins to accept.
    pub(super) fn accept_from(
        self: &Arc<Self>,
        made: Made,
        origin: Origin,
        handle: Handle,
    ) -> Result<Listener, ForwardError> {
        let mut tasks = JoinSet::new();
        for fd in made.fds {
            let socket = Socket::new(fd).map_err(ForwardError::Socket)?;
            tasks.spawn(self.clone().accept(socket, origin.clone(), handle.clone()));
        }
        Ok(Listener { tasks, held: made.held })
    }

    async fn accept(self: Arc<Self>, socket: Socket, origin: Origin, handle: Handle) {
        loop {
            // Never closed. Without a permit the connections wait in the kernel.
            let Ok(permit) = self.connections.clone().acquire_owned().await else { return };
            let (accepted, peer) = match socket.accept().await {
                Ok(accepted) => accepted,
                Err(error) if is_passing(&error) => {
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
                Err(error) => {
                    tracing::warn!("a listener of the container's is of no use: {error}");
                    return;
                }
            };
            let once = matches!(origin, Origin::X11 { once: true });
            let (forwards, origin, handle) = (self.clone(), origin.clone(), handle.clone());
            // On its own: it must not end with the listener.
            tokio::spawn(async move {
                let _permit = permit;
                forwards.pass_on(accepted, peer, origin, handle).await;
            });
            if once {
                return;
            }
        }
    }

    /// Asks the client to take one connection.
    async fn pass_on(&self, accepted: OwnedFd, peer: Option<SocketAddr>, origin: Origin, handle: Handle) {
        let Ok(socket) = pump::register(accepted) else { return };
        match open(&handle, origin, peer).await {
            Ok(channel) => {
                let incoming = self.lines.incoming(channel.id());
                let (_, write) = channel.split();
                pump::relay(socket, &write, &incoming).await;
            }
            // The client does not want it, or is gone: whoever connected sees the end.
            Err(error) => tracing::debug!("a connection inside was not taken: {error}"),
        }
    }
}

async fn open(handle: &Handle, origin: Origin, peer: Option<SocketAddr>) -> Result<Channel<Msg>, Error> {
    let host = peer.map_or(String::new(), |peer| peer.ip().to_canonical().to_string());
    let port = peer.map_or(0, |peer| peer.port().into());
    match origin {
        Origin::Tcp { address, port: listening } => {
            handle.channel_open_forwarded_tcpip(address, listening.into(), host, port).await
        }
        Origin::Unix { path } => handle.channel_open_forwarded_streamlocal(path).await,
        Origin::Agent => handle.channel_open_agent().await,
        Origin::X11 { once: _ } => handle.channel_open_x11(host, port).await,
    }
}

/// The addresses that the client means; `None` for a name to look up.
fn addresses(address: &str) -> Option<Vec<IpAddr>> {
    Some(match address {
        "" | "*" => vec![Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()],
        "localhost" => vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()],
        address => vec![address.parse().ok()?],
    })
}

/// A listening socket of either kind.
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Socket {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let listens = getsockopt(&fd, sockopt::AcceptConn)?;
        if !listens {
            return Err(io::Error::other("it does not listen"));
        }
        let unix = nix::sys::socket::getsockname::<nix::sys::socket::UnixAddr>(std::os::fd::AsRawFd::as_raw_fd(&fd));
        if unix.is_ok() {
            let listener = std::os::unix::net::UnixListener::from(fd);
            listener.set_nonblocking(true)?;
            Ok(Self::Unix(UnixListener::from_std(listener)?))
        } else {
            let listener = std::net::TcpListener::from(fd);
            listener.set_nonblocking(true)?;
            Ok(Self::Tcp(TcpListener::from_std(listener)?))
        }
    }

    /// One connection, and who made it. Cancelling loses nothing.
    async fn accept(&self) -> io::Result<(OwnedFd, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((stream.into_std()?.into(), Some(peer)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((stream.into_std()?.into(), None))
            }
        }
    }
}

/// Whether accepting may work later: the connection was given up, or something is short.
fn is_passing(error: &io::Error) -> bool {
    let short =
        [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::ECONNABORTED, libc::EPROTO, libc::EINTR];
    error.raw_os_error().is_some_and(|errno| short.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bind_addresses_mean_what_sshd_with_clientspecified_makes_of_them() {
        let shown = |text| addresses(text).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
        for (asked, listens) in [
            ("", Some(":: 0.0.0.0")),
            ("*", Some(":: 0.0.0.0")),
            ("localhost", Some("::1 127.0.0.1")),
            ("127.0.0.1", Some("127.0.0.1")),
            ("0.0.0.0", Some("0.0.0.0")),
            ("fd00::1", Some("fd00::1")),
            ("db", None),
        ] {
            assert_eq!(shown(asked).as_deref(), listens, "{asked}");
        }
    }
}
