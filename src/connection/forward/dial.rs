//! Channels that the client opens to something inside: `-L`, `-D`, `-W`.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{getsockopt, sockopt},
};
use russh::{
    Channel,
    server::{ChannelOpenHandle, Msg},
};
use tokio::{
    io::unix::AsyncFd,
    time::{Instant, timeout_at},
};

use super::{
    super::{
        init_link::{AskError, InitLink},
        pump::{self, Fd},
    },
    ANSWER_LIMIT, ForwardError, Forwards, MAX_CONNECTIONS, MAX_NAME, RESOLVE_LIMIT, host_port, prohibited,
};
use crate::protocol::{Address, ForwardKind, FromInit, KeyOptions, ToInit};

/// How long all attempts to connect may take together, and one while there are other addresses to try.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);

/// Where a channel is to lead.
pub(in super::super) enum Target {
    Tcp { host: String, port: u32 },
    Unix(String),
}

impl Target {
    fn is_permitted(&self, options: &KeyOptions) -> bool {
        match self {
            // A port that is none is refused later, with another reason.
            Self::Tcp { host, port } => options.may_open(host, u16::try_from(*port).unwrap_or(0)),
            Self::Unix(path) => options.may_open_path(path),
        }
    }

    fn describe(&self) -> (ForwardKind, String) {
        match self {
            Self::Tcp { host, port } => (ForwardKind::DirectTcpip, host_port(host, *port)),
            Self::Unix(path) => (ForwardKind::DirectStreamlocal, path.clone()),
        }
    }
}

impl Forwards {
    /// Answers the client's wish for a channel, now or when it is known how the attempt to connect has ended.
    pub(in super::super) async fn dial(
        self: &Arc<Self>,
        channel: Channel<Msg>,
        target: Target,
        options: &KeyOptions,
        reply: ChannelOpenHandle,
    ) {
        if !target.is_permitted(options) {
            return reply.reject(prohibited()).await;
        }
        let Ok(permit) = self.connections.clone().try_acquire_owned() else {
            return reply.reject(ForwardError::TooMany(MAX_CONNECTIONS).refusal()).await;
        };
        // In the table before the client can send anything.
        let incoming = self.lines.incoming(channel.id());
        let (_, write) = channel.split();
        let forwards = self.clone();
        tokio::spawn(async move {
            let _permit = permit;
            match forwards.connect(&target).await {
                Ok(socket) => {
                    let (kind, text) = target.describe();
                    forwards.audit(kind, text);
                    reply.accept().await;
                    pump::relay(socket, &write, &incoming).await;
                }
                Err(error) => reply.reject(error.refusal()).await,
            }
        });
    }

    async fn connect(&self, target: &Target) -> Result<Fd, ForwardError> {
        let link = self.ready_link().await?;
        match target {
            Target::Unix(path) if path.len() > MAX_NAME => Err(ForwardError::Connect(Errno::ENAMETOOLONG)),
            Target::Unix(path) => finish(start(&link, Address::Unix(path.clone())).await?).await,
            Target::Tcp { host, port } => {
                let invalid = || ForwardError::Address(host_port(&host.chars().take(64).collect::<String>(), *port));
                let port = u16::try_from(*port).map_err(|_| invalid())?;
                let addresses = resolve(&link, host).await?;
                connect_to_one(&link, &addresses, port).await
            }
        }
    }
}

/// The addresses of a name or an address, in the order in which to try them.
pub(super) async fn resolve(link: &Arc<InitLink>, host: &str) -> Result<Vec<IpAddr>, ForwardError> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    if host.len() > MAX_NAME {
        return Err(ForwardError::Address("such a long name".to_owned()));
    }
    let mut answer = link.ask(RESOLVE_LIMIT, |id| ToInit::Resolve { id, host: host.to_owned() }).await?;
    answer.held.ended();
    match answer.message {
        FromInit::Resolved { addresses, .. } if !addresses.is_empty() => Ok(addresses),
        _ => Err(AskError::Nonsense.into()),
    }
}

/// Tries one address after the other.
///
/// # Errors
/// That of the last one.
async fn connect_to_one(link: &Arc<InitLink>, addresses: &[IpAddr], port: u16) -> Result<Fd, ForwardError> {
    let end = Instant::now() + CONNECT_LIMIT;
    let mut last = ForwardError::TimedOut;
    for (index, address) in addresses.iter().enumerate() {
        let is_last = index + 1 == addresses.len();
        let limit = if is_last { end } else { end.min(Instant::now() + ATTEMPT_LIMIT) };
        let attempt = async { finish(start(link, Address::Tcp(SocketAddr::new(*address, port))).await?).await };
        match timeout_at(limit, attempt).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => last = error,
            Err(_elapsed) => last = ForwardError::TimedOut,
        }
    }
    Err(last)
}

/// A socket that is on its way.
async fn start(link: &Arc<InitLink>, to: Address) -> Result<OwnedFd, ForwardError> {
    let mut answer = link.ask(ANSWER_LIMIT, |id| ToInit::Connect { id, to }).await?;
    answer.held.ended();
    match (answer.message, answer.fds.pop()) {
        (FromInit::Connecting { .. }, Some(socket)) => Ok(socket),
        _ => Err(AskError::Nonsense.into()),
    }
}

/// Waits for how it ends.
async fn finish(socket: OwnedFd) -> Result<Fd, ForwardError> {
    let socket = pump::register(socket).map_err(ForwardError::Socket)?;
    drop(AsyncFd::writable(&socket).await.map_err(ForwardError::Socket)?);
    match getsockopt(&socket.as_fd(), sockopt::SocketError) {
        Ok(0) => Ok(socket),
        Ok(error) => Err(ForwardError::Connect(Errno::from_raw(error))),
        Err(errno) => Err(ForwardError::Socket(errno.into())),
    }
}
