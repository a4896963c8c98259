//! A server's address, connecting to it, and what it says it is.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::{Duration, Instant},
};

use hickory_resolver::{ResolverBuilder, TokioResolver, config::LookupIpStrategy};
use tokio::{io::AsyncReadExt, net::TcpStream, task::JoinSet, time::timeout};

use crate::{errors::printable, protocol::announcement::IDENTIFICATION};

/// Where a podspawn server listens unless it is told otherwise.
pub const DEFAULT_PORT: u16 = 2222;

/// How long the next address of a server waits for the one before it (RFC 8305, 5).
const HEAD_START: Duration = Duration::from_millis(250);

/// More addresses of one name are not tried.
const MAX_ADDRESSES: usize = 16;

/// The longest line that identifies a server (RFC 4253, 4.2).
pub const MAX_IDENTIFICATION: usize = 255;

/// A server: a host name or address, and a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    pub host: String,
    pub port: u16,
}

/// Text that is no server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a server: it must be HOST or HOST:PORT, an IPv6 address with a port in brackets")]
pub struct NotServer(pub String);

impl FromStr for Server {
    type Err = NotServer;

    fn from_str(text: &str) -> Result<Self, NotServer> {
        let wrong = || NotServer(text.chars().take(300).collect());
        let (host, port) = match text.strip_prefix('[').map(|rest| rest.split_once(']')) {
            Some(Some((host, rest))) => {
                (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or_else(wrong)?) })
            }
            Some(None) => return Err(wrong()),
            // More than one colon is an IPv6 address.
            None => match text.split_once(':') {
                Some((host, port)) if !port.contains(':') => (host, Some(port)),
                _ => (text, None),
            },
        };
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?,
        };
        if is_host(host) { Ok(Self { host: host.to_ascii_lowercase(), port }) } else { Err(wrong()) }
    }
}

/// Whether programs take it for nothing but a host.
fn is_host(host: &str) -> bool {
    let name = |host: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        !host.is_empty() && host.len() <= 253 && !host.starts_with(['-', '.']) && host.chars().all(plain)
    };
    name(host) || host.parse::<IpAddr>().is_ok()
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Why a server cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("cannot find the address of {0}")]
    Resolve(String, #[source] io::Error),
    #[error("cannot connect to {0}")]
    Connect(Server, #[source] io::Error),
    #[error("cannot connect to {server}: it does not answer within {} s", .limit.as_secs())]
    TimedOut { server: Server, limit: Duration },
}

/// Connects to whichever of the server's addresses answers first, those of IPv6 having a head start.
pub async fn dial(server: &Server, limit: Duration) -> Result<TcpStream, DialError> {
    let connected = async {
        let addresses = resolve(&server.host).await.map_err(|error| DialError::Resolve(server.host.clone(), error))?;
        let first = connect(addresses.into_iter().map(|address| SocketAddr::new(address, server.port))).await;
        first.map_err(|error| DialError::Connect(server.clone(), error))
    };
    timeout(limit, connected).await.map_err(|_elapsed| DialError::TimedOut { server: server.clone(), limit })?
}

/// glibc's name service does not work in a static executable.
async fn resolve(host: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let mut builder = TokioResolver::builder_tokio().map_err(io::Error::other)?;
    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    let resolver = ResolverBuilder::build(builder).map_err(io::Error::other)?;
    let mut addresses: Vec<IpAddr> = resolver.lookup_ip(host).await.map_err(io::Error::other)?.iter().collect();
    addresses.sort_by_key(IpAddr::is_ipv4);
    addresses.truncate(MAX_ADDRESSES);
    Ok(addresses)
}

async fn connect(mut addresses: impl ExactSizeIterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    // Those that go on when one has succeeded are given up with the set.
    let mut attempts = JoinSet::new();
    let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        if let Some(address) = addresses.next() {
            attempts.spawn(TcpStream::connect(address));
        }
        tokio::select! {
            attempt = attempts.join_next() => match attempt.map(|attempt| attempt.map_err(io::Error::other).flatten()) {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => failed = error,
                None => return Err(failed),
            },
            () = tokio::time::sleep(HEAD_START), if addresses.len() > 0 => {}
        }
    }
}

/// What a server says that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    Podspawn {
        version: String,
    },
    /// Another SSH server, by its identification.
    Other(String),
    /// Something else.
    NotSsh,
}

impl Identity {
    /// From the first line that it sends. Servers may send others before their identification, but ours do not.
    pub fn of(line: &[u8]) -> Self {
        let text = String::from_utf8_lossy(line);
        let text = printable(text.trim_end_matches(['\r', '\n']));
        match text.strip_prefix(IDENTIFICATION) {
            Some(rest) => {
                // Comments may follow (RFC 4253, 4.2).
                Self::Podspawn { version: rest.split(' ').next().unwrap_or_default().to_owned() }
            }
            None if text.starts_with("SSH-") => Self::Other(text),
            None => Self::NotSsh,
        }
    }
}

/// What a server answered, and how long it took.
#[derive(Debug, Clone)]
pub struct Probe {
    pub address: SocketAddr,
    pub identity: Identity,
    /// Until the connection was there: the way to the server and back, and finding its address.
    pub connected: Duration,
    /// From then on until it had said who it is.
    pub identified: Duration,
}

/// Why there is no [`Probe`].
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("{0} has ended the connection without a word")]
    Silent(Server),
    #[error("{0} does not say what it is")]
    TimedOut(Server),
    #[error("the connection to {0} is lost")]
    Lost(Server, #[source] io::Error),
}

/// Asks a server what it is. `limit` is for each of the two steps.
pub async fn probe(server: &Server, limit: Duration) -> Result<Probe, ProbeError> {
    let start = Instant::now();
    let mut stream = dial(server, limit).await?;
    let connected = start.elapsed();
    let lost = |error| ProbeError::Lost(server.clone(), error);
    let asked = Instant::now();
    let address = stream.peer_addr().map_err(lost)?;
    let mut line = Vec::new();
    let read = async {
        while !line.ends_with(b"\n") && line.len() < MAX_IDENTIFICATION {
            match stream.read_u8().await {
                Ok(byte) => line.push(byte),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(lost(error)),
            }
        }
        if line.is_empty() { Err(ProbeError::Silent(server.clone())) } else { Ok(()) }
    };
    timeout(limit, read).await.map_err(|_elapsed| ProbeError::TimedOut(server.clone()))??;
    Ok(Probe { address, identity: Identity::of(&line), connected, identified: asked.elapsed() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_and_shown() {
        let table = [
            ("host", "host:2222"),
            ("Host.Example:22", "host.example:22"),
            ("10.0.0.1:2200", "10.0.0.1:2200"),
            ("::1", "[::1]:2222"),
            ("[::1]", "[::1]:2222"),
            ("[2001:db8::2]:22", "[2001:db8::2]:22"),
            ("[host]:22", "host:22"),
        ];
        for (text, shown) in table {
            let server: Server = text.parse().unwrap();
            assert_eq!(server.to_string(), shown);
            assert_eq!(shown.parse(), Ok(server));
        }
        for bad in [
            "",
            ":22",
            "host:",
            "host:0",
            "host:x",
            "host:65536",
            "[::1",
            "[::1]22",
            "-oProxyCommand=x",
            "a b",
            "a\n",
            "$(x)",
            ".x",
        ] {
            assert!(bad.parse::<Server>().is_err(), "{bad}");
        }
    }

    #[test]
    fn servers_say_what_they_are() {
        let podspawn = |version: &str| Identity::Podspawn { version: version.to_owned() };
        assert_eq!(Identity::of(b"SSH-2.0-podspawn_0.1.0\r\n"), podspawn("0.1.0"));
        assert_eq!(Identity::of(b"SSH-2.0-podspawn_0.1.0 a comment\r\n"), podspawn("0.1.0"));
        assert_eq!(Identity::of(b"SSH-2.0-OpenSSH_9.2p1\r\n"), Identity::Other("SSH-2.0-OpenSSH_9.2p1".to_owned()));
        assert_eq!(Identity::of(b"SSH-2.0-x\x1b[31m\n"), Identity::Other("SSH-2.0-x\\u{1b}[31m".to_owned()));
        assert_eq!(Identity::of(b"220 mail ESMTP\r\n"), Identity::NotSsh);
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_holds_nobody_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // Nobody listens on the first; both are tried.
        let addresses = ["[::1]:1".parse().unwrap(), SocketAddr::from(([127, 0, 0, 1], port))];
        let stream = connect(addresses.into_iter()).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap().port(), port);
        assert!(connect(std::iter::empty()).await.is_err());
        let refused = connect(["127.0.0.1:1".parse().unwrap()].into_iter()).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
