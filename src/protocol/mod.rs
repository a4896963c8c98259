//! Every message between the three kinds of process, and nothing else.
//!
//! One message is one datagram of a `SOCK_SEQPACKET` Unix socket, MessagePack with named fields, with its descriptors
//! attached (see [`wire`]). An old process must be able to talk to a new one: fields are only ever added, with
//! `#[serde(default)]`; a variant's meaning never changes.
//!
//! Each side treats what it receives as input: the supervisor trusts neither a connection nor an init, a connection does
//! not trust init.

pub mod announcement;
mod connection;
mod init;
mod key_options;
pub mod pattern;
mod seccomp;
mod spawner;
pub mod wire;

pub use connection::{Algorithms, ForwardKind, FromConnection, HostKey, KeyVerdict, Serve, SshSettings, ToConnection};
pub use init::{
    Address, Exec, FailReason, FromInit, Identity, Listen, ListeningAt, MAX_LISTEN_ADDRESSES, Program, Pty, ToInit,
    Variables,
};
pub use key_options::{KeyOptions, Permit};
pub use seccomp::{SeccompCondition, SeccompProfile, SeccompRule, SeccompTest};
pub use spawner::{
    Account, CgroupJoin, ContainerSpec, FromNewborn, FromSpawner, Rlimits, SecuritySpec, ToNewborn, ToSpawner, Volume,
    VolumeKind,
};

use serde::{Deserialize, Serialize};

/// The version of the messages, sent in every greeting, and recorded with each container whose init speaks it.
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

/// A string of bytes that is not necessarily UTF-8.
pub type Bytes = serde_bytes::ByteBuf;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    Code(u8),
    Signal { signal: i32, core_dumped: bool },
}
