//! The sessions' name server: forwards questions to the host's resolvers, whatever they are.
//!
//! A session cannot use the host's `/etc/resolv.conf` itself: the resolver in it may listen on the host's loopback, or
//! be in a private network that sessions are kept out of. So this listens on the gateway address, and passes on the
//! bytes.
//!
//! It looks at nothing but the header and caches nothing, so one session's answers can never become another's. Every
//! question over UDP has a socket of its own, connected to one resolver, with a random port from the kernel.
//!
//! Bounds: see the constants. A question beyond them is answered SERVFAIL, a TCP connection beyond them is closed.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, sockopt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use super::{NetworkError, Subnet};

const PORT: u16 = 53;
/// Questions being answered at a time, of all sessions and of one. A question costs a socket and 4 KiB.
const MAX_OUTSTANDING: usize = 1024;
const MAX_PER_SOURCE: usize = 64;
/// How many resolvers are read from resolv.conf, as in glibc (`MAXNS`).
const MAX_SERVERS: usize = 3;
/// How long one resolver has before the next one is asked, and how long a question may take in all. glibc inside the
/// session repeats its question after 5 s.
const PER_SERVER: Duration = Duration::from_secs(2);
const PER_QUESTION: Duration = Duration::from_millis(4500);
/// How long a TCP connection may sit idle between questions (RFC 7766, 6.2.3).
const TCP_IDLE: Duration = Duration::from_secs(10);
/// The longest answer over UDP. A resolver that has more says so, and the session asks again over TCP.
const MAX_UDP: usize = 4096;
/// ID, flags and four counts (RFC 1035, 4.1.1).
const HEADER: usize = 12;

/// Whom the forwarder asks.
#[derive(Debug, Clone)]
pub enum Upstreams {
    /// These, in this order.
    Fixed(Vec<SocketAddr>),
    /// The `nameserver` lines of this file, read again when it changes.
    ResolvConf(PathBuf),
}

impl Upstreams {
    /// The configured resolvers, or those of the host's `/etc/resolv.conf` if there are none.
    pub fn new(configured: &[IpAddr]) -> Self {
        if configured.is_empty() {
            Self::ResolvConf("/etc/resolv.conf".into())
        } else {
            Self::Fixed(configured.iter().map(|ip| SocketAddr::new(*ip, PORT)).collect())
        }
    }
}

/// The sockets on which sessions are heard.
pub struct Forwarder {
    udp: UdpSocket,
    tcp: TcpListener,
    pool: Subnet,
}

impl Forwarder {
    /// Binds `gateway:53` over UDP and TCP. Must be called inside a tokio runtime. Only sessions' addresses, those of
    /// `pool`, get answers.
    ///
    /// # Errors
    /// [`NetworkError::Dns`], for instance because another program listens on port 53 of all addresses.
    pub fn bind(gateway: Ipv4Addr, pool: Subnet) -> Result<Self, NetworkError> {
        let address = SocketAddrV4::new(gateway, PORT);
        let failed = |source| NetworkError::Dns { address, source };
        let udp = bound(SockType::Datagram, address).map_err(failed)?;
        let tcp = bound(SockType::Stream, address).map_err(failed)?;
        let udp = UdpSocket::from_std(std::net::UdpSocket::from(udp)).map_err(failed)?;
        let tcp = TcpListener::from_std(std::net::TcpListener::from(tcp)).map_err(failed)?;
        Ok(Self { udp, tcp, pool })
    }

    /// Answers questions until it is dropped.
    pub async fn serve(self, upstreams: Upstreams) -> std::convert::Infallible {
        let Self { udp, tcp, pool } = self;
        let udp = Arc::new(udp);
        let shared = Arc::new(Shared { servers: Servers::new(upstreams), counts: Mutex::default() });
        let mut tasks = JoinSet::new();
        let mut datagram = vec![0; MAX_UDP];
        loop {
            tokio::select! {
                received = udp.recv_from(&mut datagram) => {
                    let Some((length, peer)) = passed(received, "questions").await else { continue };
                    let question = &datagram[..length];
                    if !from_session(peer, pool) || !is_question(question) {
                        continue;
                    }
                    match shared.admit(peer.ip()) {
                        Some(permit) => {
                            tasks.spawn(answer_udp(shared.clone(), permit, udp.clone(), peer, question.to_vec()));
                        }
                        // Not sent if the socket is full, which the session sees as a time-out.
                        None => drop(udp.try_send_to(&server_failure(question), peer)),
                    }
                }
                accepted = tcp.accept() => {
                    let Some((stream, peer)) = passed(accepted, "connections").await else { continue };
                    if let Some(permit) = from_session(peer, pool).then(|| shared.admit(peer.ip())).flatten() {
                        tasks.spawn(answer_tcp(shared.clone(), permit, stream));
                    }
                }
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "answering a name server question");
                    }
                }
            }
        }
    }
}

/// Unwraps what a listening socket gave us. Its errors (out of descriptors, a peer that is gone) are not the end of it,
/// but must not make us spin.
async fn passed<T>(result: io::Result<T>, what: &str) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::warn!(%error, "receiving name server {what}");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

/// A non-blocking socket on `address`, which need not exist yet: it comes with the first session.
fn bound(kind: SockType, address: SocketAddrV4) -> io::Result<std::os::fd::OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(AddressFamily::Inet, kind, flags, None)?;
    socket::setsockopt(&fd, sockopt::IpFreebind, &true)?;
    if kind == SockType::Stream {
        // Connections of the last supervisor may still be in TIME_WAIT.
        socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    socket::bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(address))?;
    if kind == SockType::Stream {
        socket::listen(&fd, Backlog::new(128)?)?;
    }
    Ok(fd)
}

/// Whether a session asks. The gateway address is the host's: a resolv.conf of the host that names it must not make a
/// loop.
fn from_session(peer: SocketAddr, pool: Subnet) -> bool {
    matches!(peer.ip(), IpAddr::V4(ip) if pool.contains(ip) && pool.host(1) != Some(ip))
}

/// What all tasks share.
struct Shared {
    servers: Servers,
    counts: Mutex<HashMap<IpAddr, usize>>,
}

impl Shared {
    /// Room for one more question of `source`, or `None` at the bound.
    fn admit(self: &Arc<Self>, source: IpAddr) -> Option<Permit> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let own = counts.get(&source).copied().unwrap_or(0);
        if own >= MAX_PER_SOURCE || counts.values().sum::<usize>() >= MAX_OUTSTANDING {
            return None;
        }
        counts.insert(source, own + 1);
        Some(Permit { shared: self.clone(), source })
    }
}

/// The right to have one question outstanding, given back when dropped.
struct Permit {
    shared: Arc<Shared>,
    source: IpAddr,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.source);
            }
        }
    }
}

/// The resolvers, and for a file when it was read.
struct Servers {
    upstreams: Upstreams,
    read: Mutex<(Option<Version>, Vec<SocketAddr>)>,
}

/// What changes when a file is rewritten or replaced.
type Version = (SystemTime, u64, u64);

impl Servers {
    fn new(upstreams: Upstreams) -> Self {
        Self { upstreams, read: Mutex::default() }
    }

    /// The resolvers to ask, in order; none if there is no such file. The file is small and in memory: reading it
    /// blocks for microseconds.
    fn current(&self) -> Vec<SocketAddr> {
        use std::os::unix::fs::MetadataExt;
        let path = match &self.upstreams {
            Upstreams::Fixed(servers) => return servers.clone(),
            Upstreams::ResolvConf(path) => path,
        };
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let version =
            fs::metadata(path).and_then(|meta| Ok((meta.modified()?, meta.ino(), meta.size()))).map_err(drop).ok();
        if version.is_none() || version != read.0 {
            // A file that is just being replaced is missing for a moment: what was read before stays in force.
            if let Ok(text) = fs::read_to_string(path) {
                *read = (version, parse_resolv_conf(&text));
            }
        }
        read.1.clone()
    }
}

/// The `nameserver` lines of a resolv.conf(5). An IPv6 address with a zone (`fe80::1%eth0`) is left out.
fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then(|| words.next()?.parse().ok()).flatten()
    });
    servers.take(MAX_SERVERS).map(|ip| SocketAddr::new(ip, PORT)).collect()
}

/// Whether `message` has a header, and is not an answer: answering answers is how loops are made.
fn is_question(message: &[u8]) -> bool {
    message.len() >= HEADER && message[2] & 0x80 == 0
}

/// Whether `answer` is one, to `question`. Its socket is connected, so it comes from whom we asked.
fn answers(answer: &[u8], question: &[u8]) -> bool {
    answer.len() >= HEADER && answer[2] & 0x80 != 0 && answer[..2] == question[..2]
}

/// Whether another resolver might do better: SERVFAIL, NOTIMP or REFUSED (RFC 1035, 4.1.1).
fn is_failure(answer: &[u8]) -> bool {
    matches!(answer[3] & 0x0f, 2 | 4 | 5)
}

/// SERVFAIL for `question`: its header with no records, its recursion flags, and nothing of its body.
fn server_failure(question: &[u8]) -> Vec<u8> {
    let mut answer = question[..HEADER].to_vec();
    answer[2] = 0x80 | (question[2] & 0x79);
    answer[3] = 0x82;
    answer[4..].fill(0);
    answer
}

/// A truncated answer: the session asks again over TCP.
fn truncated(question: &[u8]) -> Vec<u8> {
    let mut answer = server_failure(question);
    answer[2] |= 0x02;
    answer[3] = 0x80;
    answer
}

async fn answer_udp(shared: Arc<Shared>, permit: Permit, udp: Arc<UdpSocket>, peer: SocketAddr, question: Vec<u8>) {
    let answer = resolve(&shared, &question, ask_udp).await;
    drop(permit);
    if let Err(error) = udp.send_to(&answer, peer).await {
        tracing::debug!(%error, %peer, "sending a name server answer");
    }
}

/// Answers the questions on a connection one after the other until the session is silent or gone.
async fn answer_tcp(shared: Arc<Shared>, permit: Permit, mut stream: TcpStream) {
    while let Ok(Ok(question)) = timeout(TCP_IDLE, read_framed(&mut stream)).await {
        if !is_question(&question) {
            break;
        }
        let answer = resolve(&shared, &question, ask_tcp).await;
        // A session that does not read is not waited for either.
        if !matches!(timeout(TCP_IDLE, write_framed(&mut stream, &answer)).await, Ok(Ok(()))) {
            break;
        }
    }
    drop(permit);
}

/// Asks one resolver after the other, twice, until one has a real answer. SERVFAIL if none has.
async fn resolve<F>(shared: &Shared, question: &[u8], ask: impl Fn(SocketAddr, Vec<u8>) -> F) -> Vec<u8>
where
    F: Future<Output = io::Result<Vec<u8>>>,
{
    let deadline = Instant::now() + PER_QUESTION;
    let servers = shared.servers.current();
    let mut failure = server_failure(question);
    for server in servers.iter().chain(&servers) {
        let until = deadline.min(Instant::now() + PER_SERVER);
        match timeout_at(until, ask(*server, question.to_vec())).await {
            Ok(Ok(answer)) if is_failure(&answer) => failure = answer,
            Ok(Ok(answer)) => return answer,
            Ok(Err(error)) => tracing::debug!(%error, %server, "asking a resolver"),
            Err(_elapsed) => tracing::debug!(%server, "a resolver did not answer"),
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    failure
}

async fn ask_udp(server: SocketAddr, question: Vec<u8>) -> io::Result<Vec<u8>> {
    let any: SocketAddr =
        if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(&question).await?;
    // One byte more than we pass on shows whether there was more.
    let mut answer = vec![0; MAX_UDP + 1];
    loop {
        let length = socket.recv(&mut answer).await?;
        if answers(&answer[..length], &question) {
            if length > MAX_UDP {
                return Ok(truncated(&question));
            }
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, question: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_framed(&mut stream, &question).await?;
    let answer = read_framed(&mut stream).await?;
    if answers(&answer, &question) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Reads one message with its two bytes of length in front (RFC 1035, 4.2.2).
async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let mut framed = Vec::with_capacity(2 + message.len());
    framed.extend(length.to_be_bytes());
    framed.extend(message);
    stream.write_all(&framed).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: [u8; 17] = [0xab, 0xcd, 0x01, 0x20, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1];

    #[test]
    fn a_failure_repeats_id_opcode_and_recursion_but_no_records() {
        assert_eq!(server_failure(&QUESTION), [0xab, 0xcd, 0x81, 0x82, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(truncated(&QUESTION)[2..4], [0x83, 0x80]);
    }

    #[test]
    fn answers_and_fragments_are_no_questions() {
        assert!(is_question(&QUESTION));
        assert!(!is_question(&QUESTION[..11]));
        assert!(!is_question(&server_failure(&QUESTION)));
        assert!(answers(&server_failure(&QUESTION), &QUESTION));
        assert!(!answers(&QUESTION, &QUESTION));
        assert!(!answers(&server_failure(&[0; 12]), &QUESTION));
    }

    #[test]
    fn the_first_three_name_servers_count() {
        let text = "# x\nsearch a b\nnameserver 127.0.0.53\nnameserver\t::1 # y\nnameserver fe80::1%eth0\n\
                    nameserver x\nnameserver\nnameserver 1.1.1.1\nnameserver 9.9.9.9\n";
        let servers: Vec<_> = parse_resolv_conf(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["127.0.0.53:53", "[::1]:53", "1.1.1.1:53"]);
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_missing_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let servers = Servers::new(Upstreams::ResolvConf(path.clone()));
        assert!(servers.current().is_empty());
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(servers.current(), ["192.0.2.1:53".parse().unwrap()]);
        fs::write(dir.path().join("new"), "nameserver 192.0.2.77\n").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        assert_eq!(servers.current(), ["192.0.2.77:53".parse().unwrap()]);
        fs::remove_file(&path).unwrap();
        assert_eq!(servers.current(), ["192.0.2.77:53".parse().unwrap()]);
    }

    #[test]
    fn questions_are_bounded_per_source_and_in_all() {
        let shared = Arc::new(Shared { servers: Servers::new(Upstreams::Fixed(vec![])), counts: Mutex::default() });
        let source = |n: usize| IpAddr::V4(Ipv4Addr::new(10, 0, 0, u8::try_from(n).unwrap()));
        let permits: Vec<_> = (0..MAX_PER_SOURCE).map(|_| shared.admit(source(1)).unwrap()).collect();
        assert!(shared.admit(source(1)).is_none());
        assert!(shared.admit(source(2)).is_some());
        drop(permits);
        assert!(shared.counts.lock().unwrap().is_empty());
        let all: Vec<_> = (0..MAX_OUTSTANDING).map(|n| shared.admit(source(n / MAX_PER_SOURCE)).unwrap()).collect();
        assert!(shared.admit(source(200)).is_none());
        drop(all);
    }
}
