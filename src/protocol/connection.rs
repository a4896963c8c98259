//! Between the supervisor and a connection process.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{ExitStatus, KeyOptions};
use crate::names::{ProjectName, SessionId};

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
