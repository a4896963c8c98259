//! Moving bytes between a channel and the process behind it.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::socket::{Shutdown, shutdown},
    unistd,
};
use russh::{ChannelWriteHalf, server::Msg};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{sleep, timeout},
};

use super::{inbound::Queue, lines::Incoming, traffic::Traffic};
use crate::sys::async_fd;

/// What is read at once.
const BUFFER: usize = 64 << 10;

/// How long nothing may be taken of what a client has left behind in a channel.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long a client may take to close a channel that has ended.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

thread_local! {
    /// Where all channels read to, one after the other, as hundreds of them would need much memory for buffers of their
    /// own.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

pub(super) type Fd = Arc<AsyncFd<OwnedFd>>;

/// Our ends of a process's input and output.
pub(super) struct Streams {
    pub input: Input,
    pub output: Fd,
    pub errors: Option<Fd>,
    /// The terminal's leader, if there is one.
    pub terminal: Option<Fd>,
}

/// Where the client's bytes go, which decides what their end does.
pub(super) enum Input {
    /// Closed at the end.
    Pipe(Fd),
    /// Shut down for writing at the end.
    Socket(Fd),
    /// Left as it is: a terminal has no end of input but the one that is typed.
    Terminal(Fd),
}

impl Streams {
    /// From what init sends: a terminal's leader or a stream socket (one descriptor), or three pipes.
    pub(super) fn new(fds: Vec<OwnedFd>) -> io::Result<Self> {
        let count = fds.len();
        let mut fds = fds.into_iter().map(register);
        match (count, fds.next(), fds.next(), fds.next()) {
            (1, Some(fd), None, None) => {
                let fd = fd?;
                let is_terminal = unistd::isatty(fd.as_fd()).unwrap_or(false);
                let input = if is_terminal { Input::Terminal(fd.clone()) } else { Input::Socket(fd.clone()) };
                let terminal = is_terminal.then(|| fd.clone());
                Ok(Self { input, output: fd, errors: None, terminal })
            }
            (3, Some(stdin), Some(stdout), Some(stderr)) => {
                Ok(Self { input: Input::Pipe(stdin?), output: stdout?, errors: Some(stderr?), terminal: None })
            }
            _ => Err(io::Error::other(format!("{count} descriptors"))),
        }
    }
}

/// Makes the descriptor one to wait for.
pub(super) fn register(fd: OwnedFd) -> io::Result<Fd> {
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(Arc::new(async_fd::register(fd, Interest::READABLE | Interest::WRITABLE)?))
}

/// Sends what the process writes until it ends, waiting while the client takes no more. `extended` is the data type of
/// RFC 4254, 5.2.
pub(super) async fn copy_out(
    from: &AsyncFd<OwnedFd>,
    to: &ChannelWriteHalf<Msg>,
    extended: Option<u32>,
    traffic: &Traffic,
) {
    loop {
        let data = match read(from).await {
            Ok(data) if data.is_empty() => return,
            Ok(data) => data,
            // EIO is how a terminal's leader says that nobody has the other end open any more (pty(7)).
            Err(error) => {
                if error.raw_os_error() != Some(libc::EIO) {
                    tracing::debug!("reading a process's output: {error}");
                }
                return;
            }
        };
        traffic.flows();
        let sent = match extended {
            None => to.data_bytes(data).await,
            Some(kind) => to.extended_data_bytes(kind, data).await,
        };
        if sent.is_err() {
            // The connection is ending, and with it this task.
            return;
        }
    }
}

/// Sends stderr, where the process has one of its own.
pub(super) async fn copy_errors(from: Option<&Fd>, to: &ChannelWriteHalf<Msg>, traffic: &Traffic) {
    if let Some(from) = from {
        copy_out(from, to, Some(1), traffic).await;
    }
}

/// Some data, none at the end.
async fn read(from: &AsyncFd<OwnedFd>) -> io::Result<Bytes> {
    let read = |fd: &AsyncFd<OwnedFd>| {
        SCRATCH.with_borrow_mut(|buffer| {
            let length = unistd::read(fd.get_ref(), buffer)?;
            Ok(Bytes::copy_from_slice(&buffer[..length]))
        })
    };
    loop {
        let mut ready = from.readable().await?;
        match ready.try_io(read) {
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(result) => return result,
            Err(_would_block) => {}
        }
    }
}

/// Gives the process what the client sends, and the end of it. A process that takes no more is no error; what the client
/// still sends is dropped.
pub(super) async fn copy_in(queue: &Queue, to: Input) {
    let (Input::Pipe(fd) | Input::Socket(fd) | Input::Terminal(fd)) = &to;
    loop {
        match queue.pop().await {
            Ok(Some(data)) => {
                if let Err(error) = write_all(fd, &data).await {
                    tracing::debug!("writing to a process: {error}");
                    queue.discard();
                    break;
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::error!("a client's data is lost: {error}");
                break;
            }
        }
    }
    if let Input::Socket(fd) = &to {
        // ENOTCONN: the server at the other end has ended already.
        match shutdown(fd.as_raw_fd(), Shutdown::Write) {
            Ok(()) | Err(Errno::ENOTCONN) => {}
            Err(errno) => tracing::debug!("ending a process's input: {errno}"),
        }
    }
}

/// Gives a process all of its input.
pub(super) async fn feed(to: Input, data: &[u8]) -> io::Result<()> {
    let (Input::Pipe(fd) | Input::Socket(fd) | Input::Terminal(fd)) = &to;
    write_all(fd, data).await
}

/// Moves bytes both ways between a socket and a channel until both directions have ended, each by itself.
pub(super) async fn relay(socket: Fd, write: &ChannelWriteHalf<Msg>, incoming: &Incoming) {
    let outwards = async {
        tokio::select! {
            () = copy_out(&socket, write, None, &incoming.traffic) => {
                // Fails only if the client is gone.
                let _ = write.eof().await;
            }
            // Nobody is left to send to.
            () = incoming.closed.cancelled() => {}
        }
    };
    // What the client has sent before it closed the channel arrives all the same, as it does with sshd.
    let both = async { tokio::join!(outwards, copy_in(&incoming.queue, Input::Socket(socket.clone()))) };
    tokio::select! {
        _ = both => {}
        () = left_over(incoming) => tracing::debug!("a forwarded connection is closed with data that nobody takes"),
    }
    drop(socket);
    // A client closes by itself when both directions have ended. If it does so first, russh forgets all of the channel;
    // otherwise some kilobytes of it stay for as long as the connection lasts (docs/russh.md).
    if timeout(CLOSE_PATIENCE, incoming.closed.cancelled()).await.is_err() {
        // As above.
        let _ = write.close().await;
    }
}

/// Returns when the client has closed the channel and what it has sent is not taken any more.
async fn left_over(incoming: &Incoming) {
    incoming.closed.cancelled().await;
    let mut waiting = usize::MAX;
    loop {
        let now = incoming.queue.waiting();
        if now >= waiting {
            return;
        }
        waiting = now;
        sleep(PATIENCE).await;
    }
}

async fn write_all(to: &AsyncFd<OwnedFd>, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let mut ready = to.writable().await?;
        match ready.try_io(|fd| Ok(unistd::write(fd.get_ref(), data)?)) {
            Ok(Ok(length)) => data = &data[length..],
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
    Ok(())
}
