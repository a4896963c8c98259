//! Between a connection process, or the supervisor, and a container's init.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{Bytes, ExitStatus};

/// To a container's init. Ids are chosen by the sender, per socket; when the socket closes, whatever was started over it
/// is hung up.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToInit {
    /// Run something as the session's user.
    Exec(Box<Exec>),
    /// Send `signal` (a Linux signal number) to the process group of `id`.
    Signal { id: u32, signal: i32 },
    /// The channel or listener of `id` is gone: hang up whatever still runs there in the foreground, remove the socket
    /// file.
    Release { id: u32 },
    /// Look a name up as a program inside would: `/etc/hosts`, then the name servers of `/etc/resolv.conf`.
    Resolve { id: u32, host: String },
    /// Make a socket that is connected, or about to be.
    Connect { id: u32, to: Address },
    /// Make sockets that listen.
    Listen { id: u32, on: Listen },
    /// Take over what was started with [`Exec::stays`], also if it has ended: the answer is [`FromInit::Started`] with our
    /// ends of stdout and stderr (two descriptors), or [`FromInit::Refused`]. Its end is told afterwards, as if it had been
    /// started over this socket. Not possible on a socket that is restricted.
    Resume { id: u32 },
    /// Make a directory and those on the way to it, as far as they are missing, for the session's user. Not possible on a
    /// socket that is restricted.
    MakeDirectory { id: u32, path: String },
    /// From now on, whatever is started over this socket runs as the session's user. The supervisor says so before it gives
    /// the socket to a connection process; it cannot be taken back.
    Restrict,
}

/// What to connect to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Address {
    Tcp(SocketAddr),
    /// A socket file, opened with the rights of the session's user. A relative path starts at `/`.
    Unix(String),
}

/// What to listen on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Listen {
    /// As many of the addresses as there are, all with one port; 0 is a free one. At most [`MAX_LISTEN_ADDRESSES`].
    Tcp { addresses: Vec<IpAddr>, port: u16 },
    /// A new socket file of the session's user, for nobody else to connect to.
    Unix(String),
    /// A socket file for an SSH agent, in a directory of its own.
    Agent,
    /// The TCP port of the first free X11 display.
    Display,
}

/// The most addresses of one [`Listen::Tcp`]; further ones are ignored.
pub const MAX_LISTEN_ADDRESSES: usize = 8;

/// One process to start.
#[derive(Debug, Serialize, Deserialize)]
pub struct Exec {
    pub id: u32,
    pub program: Program,
    /// A terminal instead of pipes.
    pub pty: Option<Pty>,
    /// Added to the session's environment, later ones winning; init sets USER, HOME, SHELL and the like itself.
    pub env: Vec<(Bytes, Bytes)>,
    /// Where it starts; if that is not possible it is refused. `None` is the session's working directory, or else the home
    /// directory.
    #[serde(default)]
    pub cwd: Option<String>,
    #[serde(default)]
    pub identity: Identity,
    #[serde(default)]
    pub variables: Variables,
    /// It is what the container is there for: it is not hung up when the socket closes, its output waits for whoever
    /// [resumes](ToInit::Resume) it, and when it ends everything else in the container is killed. One at a time, without a
    /// terminal; its standard input is empty.
    #[serde(default)]
    pub stays: bool,
}

impl Exec {
    /// A process of the session's user, without a terminal and with the session's environment.
    pub fn new(id: u32, program: Program) -> Self {
        let (identity, variables) = (Identity::default(), Variables::default());
        Self { id, program, pty: None, env: Vec::new(), cwd: None, identity, variables, stays: false }
    }
}

/// Whom a process runs as. On a socket that is restricted there is only the first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Identity {
    #[default]
    Session,
    /// The container's root, with nothing that its processes could not have.
    Root,
    /// As the `User` of an image says: `name`, `uid`, `name:group`, `uid:gid`, looked up in the container's own files.
    Named { user: String },
}

/// What a process has in its environment beside [`Exec::env`] and the container's own variables, and PATH.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Variables {
    /// Who the user is and which session this is: USER, LOGNAME, HOME, SHELL and PODSPAWN_*.
    #[default]
    Session,
    /// HOME, unless it is set already.
    Bare,
}

/// What to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Program {
    /// The user's login shell.
    Shell,
    /// `shell -c command`.
    Command(Bytes),
    /// A program and its arguments, the program among them. It is looked for in the PATH of its environment unless there
    /// is a slash in its name.
    Argv(Vec<Bytes>),
    /// The SFTP server, in init's own binary. Never has a terminal.
    Sftp,
}

/// A terminal as asked for by `pty-req` (RFC 4254, 6.2).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pty {
    pub term: String,
    pub columns: u16,
    pub rows: u16,
    pub width_px: u16,
    pub height_px: u16,
    /// Opcode and value of each encoded terminal mode (RFC 4254, 8).
    pub modes: Vec<(u8, u32)>,
}

/// From a container's init.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromInit {
    /// It runs. Comes with the PTY leader, or with our ends of stdin, stdout and stderr (three descriptors, non-PTY), or
    /// for [`Program::Sftp`] with one stream socket.
    Started { id: u32, pid: u32 },
    /// It could not be started. `status` is what a shell would exit with (126, 127) or 125; `message` is one line.
    Refused { id: u32, status: u8, message: String },
    /// The process that was started has ended; others that it started may still hold its output open.
    Exited { id: u32, status: ExitStatus },
    /// The answer to [`ToInit::Resolve`], in the order in which to try them.
    Resolved { id: u32, addresses: Vec<IpAddr> },
    /// The answer to [`ToInit::Connect`], with the non-blocking socket. It is writable when it is connected or has failed to
    /// (`SO_ERROR` tells).
    Connecting { id: u32 },
    /// The answer to [`ToInit::Listen`], with the non-blocking sockets.
    Listening { id: u32, at: ListeningAt },
    /// [`ToInit::MakeDirectory`] has been done.
    Done { id: u32 },
    /// The answer to one of the four that could not be done; `message` is one line.
    Failed { id: u32, reason: FailReason, message: String },
}

impl FromInit {
    /// The sender's id that this is about.
    pub fn id(&self) -> u32 {
        match self {
            Self::Started { id, .. }
            | Self::Refused { id, .. }
            | Self::Exited { id, .. }
            | Self::Resolved { id, .. }
            | Self::Connecting { id }
            | Self::Done { id }
            | Self::Listening { id, .. }
            | Self::Failed { id, .. } => *id,
        }
    }
}

/// Where a listener is.
#[derive(Debug, Serialize, Deserialize)]
pub enum ListeningAt {
    Port(u16),
    Path(String),
    /// The number of a display, and the program that tells X11 clients its cookie.
    Display {
        number: u16,
        xauth: String,
    },
}

/// Why there is no socket or address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailReason {
    /// The kernel or a name server says so.
    Error,
    /// There are too many requests of this kind at once.
    Shortage,
}
