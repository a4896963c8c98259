//! One SSH connection: a process of its own, without privileges, that speaks SSH with one client.
//!
//! ```text
//!  client ── TCP ──▶ Stream ──▶ russh ──▶ Handler ──▶ channel task ◀──▶ pty or pipes of the container
//!                                            │               │
//!                            Control (supervisor)      InitLink (the container's init)
//! ```
//!
//! It confines itself before it is given a client ([`sandbox`]): no capabilities, no files, no new sockets. What it may
//! know and do comes over two sockets, the supervisor's and, after the login, one to the container's init. It outlives its
//! supervisor: when that is gone, it waits for the next one to connect.
//!
//! russh is named in this module only, and is used in one particular way, because its session loop must never wait: see
//! `docs/russh.md`. Callbacks of [`handler::Handler`] only translate and hand over; each channel has a task; what a client
//! sends waits in a queue of its own, in memory and then in a file ([`inbound`]).

mod channel;
mod control;
mod forward;
mod handler;
mod inbound;
mod init_link;
mod lines;
mod preface;
mod pump;
mod route;
mod sandbox;
mod signals;
mod ssh_config;
mod stream;
mod traffic;
mod waiting;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
    unistd::{dup2_stdin, dup2_stdout},
};
use tokio::net::TcpStream;

use self::{control::Control, inbound::Queues, preface::Announced, stream::Stream};
use crate::{
    errors::chain,
    protocol::{Serve, ToConnection, wire::AsyncSocket},
    sys::{memory, process},
};

/// How long a client has to take in the last messages after its session has ended.
const FAREWELL: Duration = Duration::from_secs(3);

/// Why a connection process could not do its work.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("connection must be started by podspawn serve")]
    Arguments,
    #[error("cannot take over the inherited descriptors")]
    Descriptors(#[source] io::Error),
    #[error("cannot change how readily the process is killed when memory is short")]
    OomScore(#[source] io::Error),
    #[error("cannot confine the process")]
    Sandbox(#[from] sandbox::SandboxError),
    #[error("cannot start the async runtime")]
    Runtime(#[source] io::Error),
    #[error("there are no random numbers")]
    Random(#[source] io::Error),
    #[error("cannot talk to the supervisor")]
    Control(#[source] io::Error),
    #[error("the supervisor sent something else than a client")]
    Protocol,
    #[error("a host key is not valid")]
    HostKey(#[source] russh::keys::ssh_key::Error),
    #[error("cannot use the client's socket")]
    Socket(#[source] io::Error),
}

/// The role's entry point: `podspawn connection EMPTY_DIR UID`, with the socket to the supervisor on stdin, and on stdout
/// the one that a later supervisor connects to.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", chain(error));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), ConnectionError> {
    let mut arguments = std::env::args_os().skip(2);
    let (Some(empty), Some(uid)) = (arguments.next(), arguments.next()) else { return Err(ConnectionError::Arguments) };
    let uid = uid.to_str().and_then(|uid| uid.parse().ok()).ok_or(ConnectionError::Arguments)?;
    let (control, adoption) = take_over().map_err(ConnectionError::Descriptors)?;
    start_log();
    process::usual_oom_score().map_err(ConnectionError::OomScore)?;
    // Before the sandbox closes: tokio makes itself a pair of sockets, and the source of random numbers finds in a static
    // executable no getrandom(2) to link to, so that it opens /dev/urandom and keeps it.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ConnectionError::Runtime)?;
    getrandom::u64().map_err(|error| ConnectionError::Random(error.into()))?;
    sandbox::enter(&PathBuf::from(empty), uid)?;
    runtime.block_on(wait_for_client(control, adoption))
}

/// Moves the inherited sockets from where others look for something to read and write.
fn take_over() -> io::Result<(OwnedFd, OwnedFd)> {
    let control = io::stdin().as_fd().try_clone_to_owned()?;
    let adoption = io::stdout().as_fd().try_clone_to_owned()?;
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    Ok((control, adoption))
}

fn start_log() {
    use tracing_subscriber::{EnvFilter, fmt};
    // The environment is empty by the supervisor's doing; russh logs what clients do wrong, which is theirs to know.
    fmt().with_env_filter(EnvFilter::new("warn,russh=off")).with_writer(io::stderr).with_target(false).init();
}

async fn wait_for_client(control: OwnedFd, adoption: OwnedFd) -> Result<(), ConnectionError> {
    let socket = AsyncSocket::new(control).map_err(ConnectionError::Control)?;
    let (serve, mut fds) = match socket.recv::<ToConnection>().await.map_err(ConnectionError::Control)? {
        // The server ended before there was a client.
        None => return Ok(()),
        Some((ToConnection::Serve(serve), fds)) => (*serve, fds),
        Some(_) => return Err(ConnectionError::Protocol),
    };
    let (Some(spool), Some(tcp)) = (fds.pop(), fds.pop()) else { return Err(ConnectionError::Protocol) };
    let tcp = std::net::TcpStream::from(tcp);
    tcp.set_nonblocking(true).and_then(|()| tcp.set_nodelay(true)).map_err(ConnectionError::Socket)?;
    let tcp = TcpStream::from_std(tcp).map_err(ConnectionError::Socket)?;
    speak(serve, tcp, socket, adoption, spool).await
}

/// Keeps the host keys out of swap (core dumps there are none), and those that came in the message out of memory.
fn keep_secret(keys: &[russh::keys::PrivateKey], serve: &mut Serve) {
    // The supervisor has the same limit, and has said if it is too small.
    if let Err(_limit) = memory::keep_secret(keys) {}
    for key in &mut serve.host_keys {
        key.0.fill(0);
        // Or the compiler would leave it out, as nobody reads them any more.
        std::hint::black_box(&key.0);
    }
}

async fn speak(
    mut serve: Serve,
    tcp: TcpStream,
    socket: AsyncSocket,
    adoption: OwnedFd,
    spool: OwnedFd,
) -> Result<(), ConnectionError> {
    let config = ssh_config::config(&serve).map_err(ConnectionError::HostKey)?;
    keep_secret(&config.keys, &mut serve);
    let queues = Arc::new(Queues::new(spool));
    let (control, mut ended) = Control::start(socket, adoption, serve.connection);
    let announced = Announced::default();
    let (stream, login) = Stream::new(tcp, queues.clone(), announced.clone(), &serve.settings);
    let handler = handler::Handler::new(&serve, control.clone(), queues, login, announced);
    // A client that does not speak SSH is not an error of ours.
    let Ok(session) = russh::server::run_stream(Arc::new(config), stream, handler).await else { return Ok(()) };
    let handle = session.handle();
    tokio::pin!(session);
    let reason = tokio::select! {
        _ = &mut session => {
            control.settle().await;
            return Ok(());
        }
        reason = ended.recv() => reason,
    };
    let Some(reason) = reason else { return Ok(()) };
    // Channels, also those that the client is only about to open, are told why and closed; most clients leave then.
    if tokio::time::timeout(FAREWELL, &mut session).await.is_err() {
        let farewell = async {
            // It fails if the session is over, which is the aim.
            let _ = handle.disconnect(russh::Disconnect::ByApplication, reason, String::new()).await;
            let _ = session.await;
        };
        // A client that reads nothing is left to the end of the process.
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
    }
    Ok(())
}
