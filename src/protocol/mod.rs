//! Every message between the three kinds of process, and nothing else.
//!
//! One message is one datagram of a `SOCK_SEQPACKET` Unix socket, MessagePack with named fields, with its descriptors
//! attached (see [`wire`]). An old process must be able to talk to a new one: fields are only ever added, with
//! `#[serde(default)]`; a variant's meaning never changes.
//!
//! Each side treats what it receives as input: the supervisor trusts neither a connection nor an init, a connection does
//! not trust init.

pub mod announcement;
mod key_options;
pub mod pattern;
mod seccomp;
pub mod wire;

pub use key_options::{KeyOptions, Permit};
pub use seccomp::{SeccompCondition, SeccompProfile, SeccompRule, SeccompTest};

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::names::{ContainerId, ProjectName, SessionId, UserName};

/// The version of the messages below, sent in every greeting, and recorded with each container whose init speaks it.
///
/// Processes of an older version go on running under a newer supervisor, which does not send them what they do not know:
///
/// - 2: [`ToInit::Restrict`], [`Program::Argv`], and [`Exec`] with identity, working directory and variables.
///   Services, which began with it, know [`ToInit::Resume`] and [`Exec::stays`] too.
/// - 3: [`FromConnection::Begun`].
/// - 4: [`ToConnection::Ready`] and [`ToConnection::Output`], before which a session was ready at once, and
///   [`ToInit::MakeDirectory`].
/// - 5: [`ToConnection::Notice`].
/// - 6: [`ToConnection::Warning`] and [`FromConnection::Active`].
pub const VERSION: u32 = 6;

/// The oldest version of a connection process that is taken over, or of an init that is talked to.
pub const OLDEST: u32 = 1;

// ---- supervisor <-> connection ---------------------------------------------------------------------------------------

/// From the supervisor to a connection process.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToConnection {
    /// Take over the TCP stream whose descriptor comes along, and behind it that of a file for what does not fit into memory.
    /// Sent once, first.
    Serve(Box<Serve>),
    /// The answer to [`FromConnection::Key`].
    Key { request: u32, verdict: KeyVerdict },
    /// The answer to [`FromConnection::Attach`]: there is a container. Comes with one descriptor, a socket connected to
    /// its init. Nothing is to be started before [`ToConnection::Ready`].
    Attached { session: SessionId },
    /// The session is set up, and programs may be started.
    Ready,
    /// Instead of `Attached` or `Ready`: there will be no session. `message` is one line for the user.
    Refused { message: String },
    /// What is taking so long, one line for the user's stderr; sent between `Attach` and `Ready`.
    Progress { line: String },
    /// What the session's hooks say, for the user's stderr as it is; sent between `Attached` and `Ready`.
    Output {
        #[serde(with = "serde_bytes")]
        text: Vec<u8>,
    },
    /// End the SSH connection after showing `message` (one line) on the stderr of every open channel.
    Terminate { message: String },
    /// Something that has happened in the session and does not end it, for the stderr of every open channel that has a person
    /// or a log at its other end; lines.
    Notice { message: String },
    /// Something that is about to happen, one line for the stderr of every open channel that has a terminal.
    Warning { message: String },
    /// A new supervisor introduces itself on the socket that it connected to the connection's adoption listener.
    Adopt { version: u32 },
}

/// All that a connection process needs to know to speak SSH with one client.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Serve {
    /// Names this connection in logs.
    pub connection: u64,
    /// The client's and our address.
    pub peer: SocketAddr,
    pub local: SocketAddr,
    /// Host keys, in the order they are offered.
    pub host_keys: Vec<HostKey>,
    pub settings: SshSettings,
}

/// A private host key in OpenSSH's format. Its `Debug` shows nothing.
#[derive(Clone, Serialize, Deserialize)]
pub struct HostKey(#[serde(with = "serde_bytes")] pub Vec<u8>);

impl std::fmt::Debug for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HostKey(..)")
    }
}

/// What the configuration says about SSH.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SshSettings {
    /// Until when the client must have authenticated.
    pub login_grace_ms: u64,
    /// Failed attempts before the client is disconnected.
    pub max_auth_tries: u32,
    /// Silence after which the client is asked for a sign of life, and how many of those it may miss. 0 ms = never.
    pub client_alive_interval_ms: u64,
    pub client_alive_count_max: u32,
    /// Names of environment variables that clients may set: patterns with `*` and `?`.
    pub accept_env: Vec<String>,
    /// Session channels that may be open at once.
    pub max_sessions: u32,
    #[serde(default)]
    pub algorithms: Algorithms,
    /// Whether there are projects that a client may name by a variable, which comes after the login.
    #[serde(default)]
    pub projects: bool,
}

/// Which algorithms are offered to clients (docs/ssh.md).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithms {
    /// Key exchange that a quantum computer does not undo later, and no other.
    PostQuantum,
    #[default]
    Strong,
    /// Also what some older clients cannot do without.
    Compatible,
}

/// Whether a public key may log in as the user it was offered for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum KeyVerdict {
    Accept(KeyOptions),
    /// Unknown user, unknown key and revoked key are not told apart.
    Reject,
}

/// From a connection process to the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromConnection {
    /// May `key` log in as `user`? It is the blob of a public key (RFC 4253, 6.6) or of a certificate (PROTOCOL.certkeys);
    /// of a certificate only if `verified`, as an offered one looks like the key inside it. `login` is the user name as the client sent it (perhaps
    /// `user+project`), at most 256 bytes of it. `verified` says that the client has proved that it holds the key.
    Key {
        request: u32,
        login: String,
        #[serde(with = "serde_bytes")]
        key: Vec<u8>,
        verified: bool,
    },
    /// The client is logged in, and which session it is to have will be said later. Valid once, after an accepted and verified
    /// key.
    LoggedIn,
    /// The client is logged in: give it its session. Valid once, after an accepted and verified key. The project counts if
    /// the login name has none.
    Attach {
        #[serde(default)]
        project: Option<ProjectName>,
    },
    /// For the audit log: a channel has begun to run something, which `run` names. `command` is `None` for a shell.
    Begun { run: u32, command: Option<String> },
    /// For the audit log: what a channel ran, when it has ended.
    Command {
        command: Option<String>,
        status: ExitStatus,
        #[serde(default)]
        run: Option<u32>,
    },
    /// For the audit log: the client has opened a way into the container, or out of it.
    Forward { kind: ForwardKind, target: String },
    /// Where the socket of the client's SSH agent is inside, once it is known; `None` if there is none. Sent after
    /// `Attached`, and not at all by a client that opens no session channel.
    Agent { path: Option<String> },
    /// Something has gone between the client and the session since this was last said, which is no more than a second ago if
    /// it was said before.
    Active,
    /// The answer to [`ToConnection::Adopt`]. `waiting`: there has been no [`ToConnection::Ready`] yet.
    Adopted {
        version: u32,
        connection: u64,
        #[serde(default)]
        waiting: bool,
    },
}

/// What is forwarded, by the names that SSH has for it (RFC 4254, OpenSSH's PROTOCOL).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardKind {
    /// From the client to an address or a socket file inside.
    DirectTcpip,
    DirectStreamlocal,
    /// From a listener inside to the client.
    TcpipForward,
    StreamlocalForward,
    AuthAgent,
    X11,
}

// ---- connection (or supervisor) <-> init -----------------------------------------------------------------------------

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

/// A string of bytes that is not necessarily UTF-8.
pub type Bytes = serde_bytes::ByteBuf;

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

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    Code(u8),
    Signal { signal: i32, core_dumped: bool },
}

// ---- supervisor <-> spawner ------------------------------------------------------------------------------------------

/// To the spawner, the single-threaded helper that clones containers.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToSpawner {
    /// Make a container. Descriptors, in this order: its network namespace, the listening socket of its init, those of
    /// [`ContainerSpec::cgroup`], and a detached mount for each of [`ContainerSpec::volumes`].
    Create(Box<ContainerSpec>),
}

/// From the spawner, one answer for each request, in order.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromSpawner {
    /// Init is up and accepts connections on its socket. Comes with its pidfd.
    Created {
        pid: i32,
        /// What could not be done but is not worth failing for, one line each.
        #[serde(default)]
        warnings: Vec<String>,
    },
    /// Nothing is left of the attempt. `step` names what was attempted, `message` why it failed.
    Failed { step: String, message: String },
}

/// From the spawner to the child that it has just cloned.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToNewborn {
    /// Your ids are mapped. Comes with three detached mounts: the root file system, `/dev`, and `/sys`; and one for each
    /// volume.
    Go,
}

/// From the child that is about to become a container's init to the spawner. One message, then it closes the socket.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromNewborn {
    Ready { warnings: Vec<String> },
    Failed { step: String, message: String },
}

/// One container: what the spawner and init need to know, in plain values.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub container: ContainerId,
    pub hostname: String,
    /// Container ids 0..65536 are this and the following ids of the host.
    pub id_base: u32,
    /// The directory that holds all layers, and the layers' directories under it, uppermost first.
    pub layers_root: PathBuf,
    pub layers: Vec<String>,
    /// Exist, are empty, on one file system, and owned by `id_base`.
    pub upperdir: PathBuf,
    pub workdir: PathBuf,
    /// Whether these two are relative to a detached mount, the last descriptor of all.
    #[serde(default)]
    pub own_disk: bool,
    /// What else is mounted.
    pub volumes: Vec<Volume>,
    /// How init gets into its cgroup.
    pub cgroup: CgroupJoin,
    pub account: Account,
    /// The environment of every process, as `NAME=value` pairs: image first, then podfile and overrides.
    pub env: Vec<(String, String)>,
    /// Working directory of shells and commands; the home directory if `None`.
    pub workdir_inside: Option<String>,
    pub resolv_conf: String,
    pub hosts: String,
    pub security: SecuritySpec,
    pub rlimits: Rlimits,
    /// Size of `/dev/shm` in bytes.
    pub shm_bytes: u64,
}

/// A directory that is mounted into a container, with the ids 0 to 65535 on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Volume {
    /// Where; made if it is missing.
    pub path: String,
    pub read_only: bool,
    pub kind: VolumeKind,
}

/// Whose a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeKind {
    /// The host's.
    Host,
    /// The container's own: an empty one gets the owner and the mode of what the image has in its place.
    Named,
    /// The home directory of the session's user, who is given an empty one as a new home. There is one at most.
    Home,
    /// The host's, and nobody's in the container: its ids are not mapped, and nothing of it can be executed. The container can do
    /// without.
    Foreign,
}

/// How a process joins a container's cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupJoin {
    /// One descriptor, of the cgroup v2 directory: `CLONE_INTO_CGROUP` (clone3(2)).
    V2,
    /// This many descriptors, each of a v1 `tasks` file open for writing: the child writes `0` to each.
    V1 { count: u32 },
}

/// The user that everything in the session runs as.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Account {
    /// Root of the container if this is `None`, else the user that init creates in `/etc/passwd` (uid and gid 1000).
    pub user: Option<UserName>,
    /// The shell that is wanted; `/bin/sh` if the image lacks it.
    pub shell: String,
    /// Whether password-less sudo is to be set up where the image has sudo.
    pub sudo: bool,
    /// The name of the session's owner and project, for PODSPAWN_USER and PODSPAWN_PROJECT.
    pub owner: UserName,
    pub project: Option<ProjectName>,
}

/// The security profile (reference: docs/security.md).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SecuritySpec {
    /// Capability names without `CAP_`, in upper case: the bounding set.
    pub capabilities: Vec<String>,
    pub no_new_privileges: bool,
    pub readonly_rootfs: bool,
    /// Extra tmpfs mounts: path inside, options.
    pub tmpfs: BTreeMap<String, String>,
    /// Whether a seccomp filter is loaded.
    pub seccomp: bool,
    /// The filter instead of the built-in ones.
    #[serde(default)]
    pub seccomp_profile: Option<SeccompProfile>,
    /// Whether a sandbox works inside: namespaces may be made, with a `/proc` of their own.
    #[serde(default)]
    pub nested: bool,
}

/// Resource limits of every process (getrlimit(2)), clamped to what the daemon itself may have.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Rlimits {
    pub nofile_soft: u64,
    pub nofile_hard: u64,
    pub core: u64,
    pub memlock: u64,
}
