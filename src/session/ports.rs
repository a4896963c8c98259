//! Ports of a session that programs of the host reach on its loopback address, where the administrator wants that.
//!
//! ```text
//!   program of the host ──▶ 127.0.0.1:HOST-PORT ─ supervisor ─ init's socket ──▶ localhost:PORT of the session
//! ```
//!
//! Owns: the listeners, and what is carried from them; all of it ends when a [`Ports`] is dropped. Nothing that passes is looked at.
//! Sessions do not get there: no address of the host is open to them.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep},
};

use super::inside;
use crate::podfile::{self, PortStrategy};

/// Ports of one session; each costs a descriptor for as long as it lives.
const MAX_PORTS: usize = 16;

/// Connections that are carried to one port at once; further ones wait to be accepted.
const MAX_CARRIED: usize = 128;

/// Ports of the host that are tried, the wanted one first.
const TRIES: u16 = 100;

/// Those below are not for sessions to take.
const UNPRIVILEGED: u16 = 1024;

/// What is added to one that is below: 80 is at 8080, 443 at 8443.
const OFFSET: u16 = 8000;

/// How long to wait for a port that must be this one: the last session of the same project may just be going.
const PATIENCE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(50);

/// How long a program inside may take to accept a connection.
const DIAL_LIMIT: Duration = Duration::from_secs(10);

/// How long to wait when accepting fails, e.g. for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Why ports cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error("a session has at most {MAX_PORTS} ports in ports.expose, not {0}")]
    TooMany(usize),
    #[error(
        "port {0} of the session cannot be the same of the server: those below {UNPRIVILEGED} are not for sessions; use strategy auto"
    )]
    Privileged(u16),
    #[error("port {0} of the server, which the session is to have (ports.strategy: expose), cannot be had")]
    Taken(u16, #[source] io::Error),
    #[error("none of the ports {first} to {last} of the server is free for port {port} of the session")]
    NoneFree { port: u16, first: u16, last: u16 },
}

/// Where a port is to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExposedPort {
    /// Of the session.
    pub port: u16,
    /// Of the host's loopback address.
    pub host_port: u16,
}

/// Ports of the host that are a session's, before it is there.
pub struct Reserved(Vec<(TcpListener, ExposedPort)>);

/// Those of a session that lives. Dropped, they are closed.
#[derive(Debug)]
pub struct Ports {
    exposed: Vec<ExposedPort>,
    _listening: JoinSet<()>,
}

impl Reserved {
    /// Takes ports of the host as the Podfile wants it.
    pub async fn take(ports: &podfile::Ports) -> Result<Self, PortError> {
        if ports.strategy == PortStrategy::Manual {
            return Ok(Self(Vec::new()));
        }
        if ports.expose.len() > MAX_PORTS {
            return Err(PortError::TooMany(ports.expose.len()));
        }
        let mut reserved = Vec::new();
        for &port in &ports.expose {
            let listener = match ports.strategy {
                PortStrategy::Expose if port < UNPRIVILEGED => return Err(PortError::Privileged(port)),
                PortStrategy::Expose => the_same(port).await.map_err(|error| PortError::Taken(port, error))?,
                PortStrategy::Auto | PortStrategy::Manual => next_free(port).await?,
            };
            let host_port = listener.local_addr().map_or(port, |address| address.port());
            reserved.push((listener, ExposedPort { port, host_port }));
        }
        Ok(Self(reserved))
    }

    /// Takes the ports that a session already has; what somebody else has meanwhile is not its any more.
    pub async fn take_again(exposed: &[ExposedPort]) -> Self {
        let mut reserved = Vec::new();
        for &one in exposed {
            match the_same(one.host_port).await {
                Ok(listener) => reserved.push((listener, one)),
                Err(error) => tracing::error!("port {} of the host is lost for its session: {error}", one.host_port),
            }
        }
        Self(reserved)
    }

    /// Where they are.
    pub fn exposed(&self) -> Vec<ExposedPort> {
        self.0.iter().map(|(_, exposed)| *exposed).collect()
    }

    /// From now on connections are carried to the session whose init listens at `init`.
    pub fn open(self, init: &Path) -> Ports {
        let exposed = self.exposed();
        let mut listening = JoinSet::new();
        for (listener, exposed) in self.0 {
            listening.spawn(serve(listener, init.to_owned(), exposed.port));
        }
        Ports { exposed, _listening: listening }
    }
}

impl Ports {
    pub fn exposed(&self) -> &[ExposedPort] {
        &self.exposed
    }
}

async fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await
}

async fn the_same(port: u16) -> io::Result<TcpListener> {
    let until = Instant::now() + PATIENCE;
    loop {
        match listen(port).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => sleep(POLL).await,
            other => return other,
        }
    }
}

async fn next_free(port: u16) -> Result<TcpListener, PortError> {
    let first = if port < UNPRIVILEGED { port + OFFSET } else { port };
    let last = first.saturating_add(TRIES);
    for candidate in first..=last {
        if let Ok(listener) = listen(candidate).await {
            return Ok(listener);
        }
    }
    Err(PortError::NoneFree { port, first, last })
}

/// Carries what comes, for ever.
async fn serve(listener: TcpListener, init: PathBuf, port: u16) {
    let mut carried = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if carried.len() < MAX_CARRIED => match accepted {
                Ok((stream, _)) => {
                    let init = init.clone();
                    carried.spawn(async move {
                        if let Err(error) = carry(stream, &init, port).await {
                            tracing::debug!("port {port} of a session: {error}");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!("port {port} of a session: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            // How one has ended is its two ends' business.
            Some(_) = carried.join_next(), if !carried.is_empty() => {}
        }
    }
}

/// Carries one connection until both directions have ended. One that nobody accepts inside is closed.
async fn carry(mut outer: TcpStream, init: &Path, port: u16) -> io::Result<()> {
    let mut inner = Err(io::ErrorKind::ConnectionRefused.into());
    for address in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        inner = inside::connect(init, SocketAddr::new(address, port), DIAL_LIMIT).await.map_err(io::Error::other)?;
        if inner.is_ok() {
            break;
        }
    }
    let mut inner = TcpStream::from_std(inner?.into())?;
    tokio::io::copy_bidirectional(&mut outer, &mut inner).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(strategy: PortStrategy, expose: &[u16]) -> podfile::Ports {
        podfile::Ports { expose: expose.to_vec(), strategy }
    }

    async fn taken(strategy: PortStrategy, expose: &[u16]) -> Result<Vec<u16>, PortError> {
        let reserved = Reserved::take(&ports(strategy, expose)).await?;
        Ok(reserved.exposed().iter().map(|one| one.host_port).collect())
    }

    #[tokio::test]
    async fn strategies_choose_among_the_hosts_ports() {
        // Somebody has this one.
        let other = listen(0).await.unwrap();
        let port = other.local_addr().unwrap().port();
        let found = taken(PortStrategy::Auto, &[port]).await.unwrap();
        assert!(found[0] > port && found[0] <= port.saturating_add(TRIES), "{found:?}");
        let found = taken(PortStrategy::Auto, &[80]).await.unwrap();
        assert!((8080..=8180).contains(&found[0]), "{found:?}");
        assert_eq!(taken(PortStrategy::Manual, &[port]).await.unwrap(), [0; 0]);
        assert!(matches!(taken(PortStrategy::Expose, &[80]).await, Err(PortError::Privileged(80))));
        assert!(matches!(taken(PortStrategy::Expose, &[port]).await, Err(PortError::Taken(taken, _)) if taken == port));
        let many: Vec<u16> = (2000..2017).collect();
        assert!(matches!(taken(PortStrategy::Auto, &many).await, Err(PortError::TooMany(17))));
        // The last one goes while the next one waits.
        let wanted = [port];
        let (found, ()) = tokio::join!(taken(PortStrategy::Expose, &wanted), async {
            sleep(POLL * 2).await;
            drop(other);
        });
        assert_eq!(found.unwrap(), [port]);
    }
}
