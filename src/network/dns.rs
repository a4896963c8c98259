//! The DNS forwarder on the gateway: passes sessions' queries to the host's resolvers, wherever those are.
//!
//! A container cannot reach a resolver on the host's loopback or in a private network, and should not: so it asks the
//! gateway, and this asks for it. Messages are passed on as they are, each over a socket of its own, so that an answer
//! belongs to its query by the kernel's doing; nothing is parsed or cached.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use nix::sys::socket::{SockaddrIn, setsockopt, sockopt};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// Queries under way at once, in all and of one session. Beyond them a query is answered with SERVFAIL.
const OUTSTANDING: usize = 1024;
const OUTSTANDING_EACH: usize = 64;

/// How long one resolver may take, and a TCP connection may last.
const ANSWER_LIMIT: Duration = Duration::from_secs(4);
const TCP_LIMIT: Duration = Duration::from_secs(30);

/// The largest UDP message that EDNS allows for in practice, and more.
const MAX_MESSAGE: usize = 65_535;

const PORT: u16 = 53;

/// The bound sockets, taken before any session exists.
#[derive(Debug)]
pub struct Sockets {
    pub(super) udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

impl Sockets {
    /// Binds port 53 on an address that no device has yet (`IP_FREEBIND`, ip(7)).
    pub(super) fn bind(gateway: Ipv4Addr) -> io::Result<Self> {
        use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, bind, listen, socket};
        use std::os::fd::AsRawFd;
        let address = SockaddrIn::from(SocketAddrV4::new(gateway, PORT));
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let bound = |kind| {
            let fd = socket(AddressFamily::Inet, kind, flags, None)?;
            setsockopt(&fd, sockopt::IpFreebind, &true)?;
            if kind == SockType::Stream {
                // A connection of an earlier server may still be in TIME_WAIT.
                setsockopt(&fd, sockopt::ReuseAddr, &true)?;
            }
            bind(fd.as_raw_fd(), &address)?;
            Ok::<_, io::Error>(fd)
        };
        let udp = bound(SockType::Datagram)?;
        let tcp = bound(SockType::Stream)?;
        listen(&tcp, Backlog::new(128)?)?;
        Ok(Self { udp: udp.into(), tcp: tcp.into() })
    }
}

/// Whom to ask: configured resolvers, or those of the host.
#[derive(Debug)]
pub struct Upstreams {
    configured: Vec<IpAddr>,
    /// Those of `/etc/resolv.conf`, with the time of the file they were read from.
    host: Mutex<(Option<SystemTime>, Vec<SocketAddr>)>,
}

impl Upstreams {
    /// `configured` empty means those of the host.
    pub fn new(configured: Vec<IpAddr>) -> Self {
        Self { configured, host: Mutex::default() }
    }

    fn list(&self) -> Vec<SocketAddr> {
        if !self.configured.is_empty() {
            return self.configured.iter().map(|address| SocketAddr::new(*address, PORT)).collect();
        }
        let modified = fs::metadata("/etc/resolv.conf").and_then(|meta| meta.modified()).ok();
        let mut host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        if host.0 != modified || host.1.is_empty() {
            *host = (modified, name_servers(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default()));
        }
        host.1.clone()
    }
}

/// The `nameserver` lines of resolv.conf(5); without any, the host asks itself.
fn name_servers(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        Some(SocketAddr::new(address.parse().ok()?, PORT))
    };
    let mut servers: Vec<_> = text.lines().filter_map(server).take(3).collect();
    if servers.is_empty() {
        servers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT));
    }
    servers
}

/// Bounds what is under way.
#[derive(Clone)]
struct Bounds {
    all: Arc<Semaphore>,
    each: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One query's share of the bounds.
struct Turn {
    bounds: Bounds,
    source: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Bounds {
    fn turn(&self, source: IpAddr) -> Option<Turn> {
        let permit = self.all.clone().try_acquire_owned().ok()?;
        let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
        let count = each.entry(source).or_default();
        if *count >= OUTSTANDING_EACH {
            return None;
        }
        *count += 1;
        Some(Turn { bounds: self.clone(), source, _permit: permit })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut each = self.bounds.each.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = each.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                each.remove(&self.source);
            }
        }
    }
}

/// Forwards for ever. Only sessions reach the sockets: the gateway's address is on their links only.
pub async fn serve(sockets: Sockets, upstreams: Upstreams) -> io::Result<()> {
    let upstreams = Arc::new(upstreams);
    let bounds = Bounds { all: Arc::new(Semaphore::new(OUTSTANDING)), each: Arc::default() };
    let udp = Arc::new(UdpSocket::from_std(sockets.udp)?);
    let tcp = TcpListener::from_std(sockets.tcp)?;
    tokio::join!(serve_udp(udp, upstreams.clone(), bounds.clone()), serve_tcp(tcp, upstreams, bounds));
    Ok(())
}

async fn serve_udp(socket: Arc<UdpSocket>, upstreams: Arc<Upstreams>, bounds: Bounds) {
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        let (length, source) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An ICMP error about an earlier answer.
            Err(error) => {
                tracing::debug!("DNS: {error}");
                continue;
            }
        };
        let query = buffer[..length].to_vec();
        let turn = bounds.turn(source.ip());
        let (socket, upstreams) = (socket.clone(), upstreams.clone());
        if turn.is_none() {
            // Not awaited: at the bound, losing an answer is better than queueing.
            let _ = socket.try_send_to(&failure(&query), source);
            continue;
        }
        tokio::spawn(async move {
            let answer = ask(&query, &upstreams.list()).await.unwrap_or_else(|| failure(&query));
            if let Err(error) = socket.send_to(&answer, source).await {
                tracing::debug!(%source, "DNS: {error}");
            }
            drop(turn);
        });
    }
}

/// Asks one resolver after the other.
async fn ask(query: &[u8], upstreams: &[SocketAddr]) -> Option<Vec<u8>> {
    for upstream in upstreams {
        let attempt = async {
            let local: SocketAddr =
                if upstream.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { "[::]:0".parse().ok()? };
            let socket = UdpSocket::bind(local).await.ok()?;
            socket.connect(upstream).await.ok()?;
            socket.send(query).await.ok()?;
            let mut answer = vec![0; MAX_MESSAGE];
            let length = socket.recv(&mut answer).await.ok()?;
            answer.truncate(length);
            Some(answer)
        };
        if let Ok(Some(answer)) = tokio::time::timeout(ANSWER_LIMIT, attempt).await {
            return Some(answer);
        }
    }
    None
}

/// SERVFAIL for a query: its id and opcode, the response bit, no sections (RFC 1035, 4.1.1).
fn failure(query: &[u8]) -> Vec<u8> {
    let mut answer = vec![0; 12];
    if let Some(head) = query.get(..3) {
        answer[..2].copy_from_slice(&head[..2]);
        answer[2] = 0x80 | (head[2] & 0x79);
    }
    answer[3] = 0x80 | 2;
    answer
}

async fn serve_tcp(listener: TcpListener, upstreams: Arc<Upstreams>, bounds: Bounds) {
    loop {
        let (mut inside, source) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("DNS: accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(turn) = bounds.turn(source.ip()) else { continue };
        let upstreams = upstreams.clone();
        tokio::spawn(async move {
            let relayed = tokio::time::timeout(TCP_LIMIT, async {
                let mut outside = connect(&upstreams.list()).await?;
                copy_bidirectional(&mut inside, &mut outside).await.ok()
            });
            // Whoever asked sees a closed connection, and asks again or not.
            let _ = relayed.await;
            drop(turn);
        });
    }
}

async fn connect(upstreams: &[SocketAddr]) -> Option<TcpStream> {
    for upstream in upstreams {
        let socket = if upstream.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        if let Ok(socket) = socket
            && let Ok(Ok(stream)) = tokio::time::timeout(ANSWER_LIMIT, socket.connect(*upstream)).await
        {
            return Some(stream);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read() {
        let text = "# x\nsearch a b\nnameserver 127.0.0.53\nnameserver  ::1 \nnameserver nonsense\noptions edns0\n";
        let shown: Vec<_> = name_servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["127.0.0.53:53", "[::1]:53"]);
        assert_eq!(name_servers("")[0].to_string(), "127.0.0.1:53");
    }

    #[test]
    fn failures_answer_their_query() {
        assert_eq!(failure(&[0xab, 0xcd, 0x01, 0x20, 0, 1]), [0xab, 0xcd, 0x81, 0x82, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(failure(&[1]).len(), 12);
    }

    #[test]
    fn one_session_cannot_take_every_turn() {
        let bounds = Bounds { all: Arc::new(Semaphore::new(OUTSTANDING)), each: Arc::default() };
        let source: IpAddr = "10.0.0.2".parse().unwrap();
        let turns: Vec<_> = (0..OUTSTANDING).map_while(|_| bounds.turn(source)).collect();
        assert_eq!(turns.len(), OUTSTANDING_EACH);
        assert!(bounds.turn("10.0.0.3".parse().unwrap()).is_some());
        drop(turns);
        assert!(bounds.each.lock().unwrap().is_empty());
    }
}
