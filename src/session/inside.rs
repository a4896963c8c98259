//! Running a process inside a container, for the supervisor: set-up, build steps, services.
//!
//! One socket to the container's init for each process, so that dropping a [`Process`] hangs it up, and nothing else. What
//! init and the process say is input: lines and their sum are bounded, and there is no waiting without a limit but for a
//! process that may run for ever.

use std::{fs::File, io, net::SocketAddr, os::fd::OwnedFd, path::Path, sync::Arc, time::Duration};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::socket::{getsockopt, sockopt},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::timeout,
};

use crate::{
    protocol::{Address, Bytes, Exec, ExitStatus, FromInit, Identity, Program, ToInit, Variables, wire::AsyncSocket},
    sys::{async_fd, seqpacket},
};

/// Longer lines are parted.
pub const MAX_LINE: usize = 4096;

/// How long init may take to start a process, or to tell of the end of one that was killed.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// What is read at once; as much as a pipe holds.
const BUFFER: usize = 64 << 10;

/// How much is read of what is there when the process has ended: two pipes that are as full as they are by default. Who
/// still writes then is some other process.
const LAST_READS: usize = 4;

/// The status for what init itself could not do.
const FAILED: u8 = 125;

/// The only number on a socket of ours.
const ID: u32 = 1;

/// Why a process inside did not do its work, or nobody knows whether it did.
#[derive(Debug, thiserror::Error)]
pub enum InsideError {
    #[error("the container does not answer")]
    Connect(#[source] io::Error),
    #[error("{message}")]
    Refused {
        /// What a shell would exit with.
        status: u8,
        message: String,
    },
    #[error("the container is gone")]
    Gone,
    #[error("the container does not answer")]
    Silent,
    #[error("the container's answer is of no use")]
    Nonsense,
    #[error("it was ended after {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
    #[error("it cannot be given its input")]
    Input(#[source] io::Error),
    #[error("its output cannot be read")]
    Output(#[source] io::Error),
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Run {
    pub program: Program,
    pub identity: Identity,
    pub variables: Variables,
    /// `None`: where the session's commands start.
    pub cwd: Option<String>,
    pub env: Vec<(String, String)>,
    /// How much output is passed on, in bytes. The rest is read and forgotten.
    pub output_limit: u64,
    /// It does not end with its [`Process`], and can be [resumed](Process::resume).
    pub stays: bool,
    /// What it gets as its standard input, read to its end; otherwise that is empty. It may be a pipe.
    pub input: Option<Arc<File>>,
}

impl Run {
    /// A program with its arguments, as the session's user.
    pub fn argv<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            program: Program::Argv(words.into_iter().map(|word| Bytes::from(word.as_bytes())).collect()),
            identity: Identity::Session,
            variables: Variables::Session,
            cwd: None,
            env: Vec::new(),
            output_limit: 16 << 20,
            stays: false,
            input: None,
        }
    }
}

/// A line of output without its end, or a part of a long one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    pub source: Source,
    pub text: &'a [u8],
}

/// Where a line was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Stdout,
    Stderr,
}

/// A process that runs inside. Dropping it hangs it up, unless it stays: SIGHUP, and SIGKILL a little later.
pub struct Process {
    socket: AsyncSocket,
    pid: u32,
    /// Until it has ended.
    output: Option<Output>,
}

impl Process {
    /// Starts `run` in the container whose init listens at `socket`.
    pub async fn start(socket: &Path, run: Run) -> Result<Self, InsideError> {
        let socket = seqpacket::connect(socket).and_then(AsyncSocket::new).map_err(InsideError::Connect)?;
        let Run { program, identity, variables, cwd, env, output_limit, input, stays } = run;
        let bytes = |text: String| Bytes::from(text.into_bytes());
        let env = env.into_iter().map(|(name, value)| (bytes(name), bytes(value))).collect();
        let exec = Exec { env, cwd, identity, variables, stays, ..Exec::new(ID, program) };
        Self::begin(socket, &ToInit::Exec(Box::new(exec)), output_limit, input).await
    }

    /// Takes over the process that [stays](Run::stays) in that container, also if it has ended; its output is passed on
    /// without limit.
    pub async fn resume(socket: &Path) -> Result<Self, InsideError> {
        let socket = seqpacket::connect(socket).and_then(AsyncSocket::new).map_err(InsideError::Connect)?;
        Self::begin(socket, &ToInit::Resume { id: ID }, u64::MAX, None).await
    }

    async fn begin(
        socket: AsyncSocket,
        message: &ToInit,
        output_limit: u64,
        input: Option<Arc<File>>,
    ) -> Result<Self, InsideError> {
        let answer = timeout(ANSWER_LIMIT, async {
            socket.send(message, &[]).await?;
            socket.recv::<FromInit>().await
        });
        match answer.await.map_err(|_elapsed| InsideError::Silent)? {
            Ok(Some((FromInit::Started { pid, .. }, mut fds))) => {
                let (Some(stderr), Some(stdout)) = (fds.pop(), fds.pop()) else { return Err(InsideError::Nonsense) };
                // One that is taken over has no standard input.
                if let (Some(stdin), Some(input)) = (fds.pop(), input) {
                    feed(input, stdin).map_err(InsideError::Input)?;
                }
                let output = Output::new(stdout, stderr, output_limit).map_err(InsideError::Output)?;
                Ok(Self { socket, pid, output: Some(output) })
            }
            Ok(Some((FromInit::Refused { status, message, .. }, _))) => Err(refused(status, &message)),
            Ok(Some(_)) => Err(InsideError::Nonsense),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(InsideError::Nonsense),
            Ok(None) | Err(_) => Err(InsideError::Gone),
        }
    }

    /// Its pid in the container.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends `signal` (a Linux signal number) to its process group.
    pub async fn signal(&self, signal: i32) -> Result<(), InsideError> {
        self.socket.send(&ToInit::Signal { id: ID, signal }, &[]).await.map_err(|_| InsideError::Gone)
    }

    /// Waits for its end, passing its output on. Once it has ended there is nothing to wait for any more.
    ///
    /// Processes that it leaves behind are heard for as long as they have its output open and the supervisor lives.
    pub async fn wait(&mut self, mut heard: impl FnMut(Line<'_>) + Send + 'static) -> Result<ExitStatus, InsideError> {
        let output = self.output.as_mut().ok_or(InsideError::Gone)?;
        let status = loop {
            tokio::select! {
                () = output.hear(&mut heard) => {}
                message = self.socket.recv::<FromInit>() => match message {
                    Ok(Some((FromInit::Exited { status, .. }, _))) => break status,
                    Ok(Some(_)) => return Err(InsideError::Nonsense),
                    Ok(None) | Err(_) => return Err(InsideError::Gone),
                },
            }
        };
        if let Some(mut output) = self.output.take() {
            output.hear_rest(&mut heard);
            tokio::spawn(async move {
                while output.is_open() {
                    output.hear(&mut heard).await;
                }
            });
        }
        Ok(status)
    }
}

/// Runs something to its end, within `limit`.
///
/// # Errors
/// [`InsideError::TimedOut`] when its process group has been killed for that.
pub async fn run(
    socket: &Path,
    run: Run,
    limit: Duration,
    heard: impl FnMut(Line<'_>) + Send + 'static,
) -> Result<ExitStatus, InsideError> {
    let mut process = Process::start(socket, run).await?;
    if let Ok(ended) = timeout(limit, process.wait(heard)).await {
        return ended;
    }
    process.signal(libc::SIGKILL).await?;
    // Waited for, as the next thing that is done in the container should not meet it.
    match timeout(ANSWER_LIMIT, process.socket.recv::<FromInit>()).await {
        Ok(Ok(Some(_))) => Err(InsideError::TimedOut(limit)),
        Ok(_) => Err(InsideError::Gone),
        Err(_elapsed) => Err(InsideError::Silent),
    }
}

/// Connects to a TCP address from inside the container, as its own processes would: a non-blocking socket of its network.
///
/// # Errors
/// The outer one is about the container, the inner one says why there was no connection.
pub async fn connect(socket: &Path, to: SocketAddr, limit: Duration) -> Result<io::Result<OwnedFd>, InsideError> {
    let socket = seqpacket::connect(socket).and_then(AsyncSocket::new).map_err(InsideError::Connect)?;
    let answer = timeout(ANSWER_LIMIT, async {
        socket.send(&ToInit::Connect { id: ID, to: Address::Tcp(to) }, &[]).await?;
        socket.recv::<FromInit>().await
    });
    let connecting = match answer.await.map_err(|_elapsed| InsideError::Silent)? {
        Ok(Some((FromInit::Connecting { .. }, mut fds))) => fds.pop().ok_or(InsideError::Nonsense)?,
        Ok(Some((FromInit::Failed { message, .. }, _))) => return Ok(Err(io::Error::other(message))),
        Ok(Some(_)) => return Err(InsideError::Nonsense),
        Ok(None) | Err(_) => return Err(InsideError::Gone),
    };
    let connected = async {
        let connecting = async_fd::register(connecting, Interest::WRITABLE)?;
        drop(connecting.writable().await?);
        match getsockopt(connecting.get_ref(), sockopt::SocketError)? {
            0 => Ok(connecting.into_inner()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    };
    Ok(timeout(limit, connected).await.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())))
}

/// Makes a directory, and those on the way to it, for the session's user.
pub async fn make_directory(socket: &Path, path: &str) -> Result<(), InsideError> {
    let socket = seqpacket::connect(socket).and_then(AsyncSocket::new).map_err(InsideError::Connect)?;
    let answer = timeout(ANSWER_LIMIT, async {
        socket.send(&ToInit::MakeDirectory { id: ID, path: path.to_owned() }, &[]).await?;
        socket.recv::<FromInit>().await
    });
    match answer.await.map_err(|_elapsed| InsideError::Silent)? {
        Ok(Some((FromInit::Done { .. }, _))) => Ok(()),
        Ok(Some((FromInit::Failed { message, .. }, _))) => Err(refused(FAILED, &message)),
        Ok(Some(_)) => Err(InsideError::Nonsense),
        Ok(None) | Err(_) => Err(InsideError::Gone),
    }
}

fn refused(status: u8, message: &str) -> InsideError {
    InsideError::Refused { status, message: message.chars().filter(|c| !c.is_control()).take(1000).collect() }
}

/// Writes a file to a process's standard input, beside everything else. Ends with the process at the latest: then nobody is
/// left who could read it.
fn feed(file: Arc<File>, stdin: OwnedFd) -> io::Result<()> {
    fcntl(&stdin, FcntlArg::F_SETFL(OFlag::empty()))?;
    tokio::task::spawn_blocking(move || {
        let mut pipe = File::from(stdin);
        // A process that wants no more of it says by its status whether that is all right.
        let _ = io::copy(&mut &*file, &mut pipe);
    });
    Ok(())
}

/// Our ends of a process's output, and how much of it is still passed on.
struct Output {
    stdout: Option<Pipe>,
    stderr: Option<Pipe>,
    left: u64,
}

struct Pipe {
    fd: AsyncFd<OwnedFd>,
    source: Source,
    buffer: Box<[u8]>,
    /// A line that has not ended yet; shorter than [`MAX_LINE`].
    line: Vec<u8>,
}

impl Output {
    fn new(stdout: OwnedFd, stderr: OwnedFd, left: u64) -> io::Result<Self> {
        let pipe = |fd: OwnedFd, source| -> io::Result<Pipe> {
            fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            let fd = async_fd::register(fd, Interest::READABLE)?;
            Ok(Pipe { fd, source, buffer: vec![0; BUFFER].into(), line: Vec::new() })
        };
        Ok(Self { stdout: Some(pipe(stdout, Source::Stdout)?), stderr: Some(pipe(stderr, Source::Stderr)?), left })
    }

    fn is_open(&self) -> bool {
        self.stdout.is_some() || self.stderr.is_some()
    }

    /// Waits for some output and passes it on; never ends when all is closed. Cancelling loses nothing.
    async fn hear(&mut self, heard: &mut impl FnMut(Line<'_>)) {
        let Self { stdout, stderr, left } = self;
        let pipe = tokio::select! {
            () = readable(stdout.as_ref()) => stdout,
            () = readable(stderr.as_ref()) => stderr,
        };
        // Through the reactor, which is to know when there is no more.
        read(pipe, left, heard, |pipe| pipe.fd.try_io(Interest::READABLE, |fd| read_fd(fd, &mut pipe.buffer)));
    }

    /// Passes on what is there.
    fn hear_rest(&mut self, heard: &mut impl FnMut(Line<'_>)) {
        for pipe in [&mut self.stdout, &mut self.stderr] {
            for _ in 0..LAST_READS {
                // The reactor may not have heard of it yet.
                if read(pipe, &mut self.left, heard, |pipe| read_fd(pipe.fd.get_ref(), &mut pipe.buffer)) == 0 {
                    break;
                }
            }
        }
    }
}

async fn readable(pipe: Option<&Pipe>) {
    match pipe {
        // An error is told by the read that follows.
        Some(pipe) => drop(pipe.fd.readable().await),
        None => std::future::pending().await,
    }
}

fn read_fd(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(nix::unistd::read(fd, buffer)?)
}

/// Reads once by `how`, and returns how many bytes there were. At the end, or if there is no reading any more, the pipe is
/// closed.
fn read(
    pipe: &mut Option<Pipe>,
    left: &mut u64,
    heard: &mut impl FnMut(Line<'_>),
    how: impl FnOnce(&mut Pipe) -> io::Result<usize>,
) -> usize {
    let Some(open) = pipe else { return 0 };
    match how(open) {
        Ok(length) if length > 0 => {
            open.part(length, left, heard);
            length
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
        Ok(_) | Err(_) => {
            let rest = std::mem::take(&mut open.line);
            if !rest.is_empty() {
                tell(open.source, &rest, left, heard);
            }
            *pipe = None;
            0
        }
    }
}

impl Pipe {
    /// Parts what has been read into lines.
    fn part(&mut self, length: usize, left: &mut u64, heard: &mut impl FnMut(Line<'_>)) {
        for piece in self.buffer[..length].split_inclusive(|&byte| byte == b'\n') {
            let (text, ends) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            let mut text = text;
            while self.line.len() + text.len() > MAX_LINE {
                let (now, later) = text.split_at(MAX_LINE - self.line.len());
                self.line.extend_from_slice(now);
                text = later;
                tell(self.source, &self.line, left, heard);
                self.line.clear();
            }
            self.line.extend_from_slice(text);
            if ends {
                tell(self.source, &self.line, left, heard);
                self.line.clear();
            }
        }
    }
}

fn tell(source: Source, text: &[u8], left: &mut u64, heard: &mut impl FnMut(Line<'_>)) {
    let length = text.len() as u64 + 1;
    if length <= *left {
        *left -= length;
        heard(Line { source, text });
    } else {
        // Nothing more, so that what is passed on has no gap.
        *left = 0;
    }
}
