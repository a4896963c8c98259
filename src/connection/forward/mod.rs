//! Forwarding: connections that the client has made inside the container, and listeners there that lead to the client.
//!
//! ```text
//!  -L -D -W   channel open ──▶ dial ──▶ init resolves and connects ──▶ socket ◀──▶ channel
//!  -R         request ──▶ listen ──▶ init listens ──▶ listener ──▶ accept ──▶ channel open to the client
//!  -A -X      the same with a listener of the connection's, or of a session channel's
//! ```
//!
//! Names, addresses, ports and socket files are the container's. Bind addresses of `-R` mean what they mean to an sshd with
//! `GatewayPorts clientspecified`: none or `localhost` is loopback, `*` or an empty one is every address, others are
//! themselves. In a container nobody but the session can reach any of them.
//!
//! russh cannot answer a request later, so the few callbacks that ask init wait for it, at most for [`LISTEN_LIMIT`]; all
//! other work is done in tasks. A channel that we ask the client to open is waited for to the end, as russh ends the
//! connection when the client refuses one that nobody waits for (docs/russh.md).

mod agent;
mod dial;
mod listen;
mod x11;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use russh::ChannelOpenFailure;
use tokio::sync::{Mutex, OnceCell, Semaphore};

use self::{
    agent::Agent,
    listen::{Listener, Spot},
};
pub(super) use self::{dial::Target, x11::X11};
use super::{
    control::{Attachment, Control},
    init_link::{AskError, InitLink},
    lines::Lines,
};
use crate::protocol::{FailReason, ForwardKind};

/// Forwarded connections at once. Beyond it the client is told so, and listeners let theirs wait in the kernel.
const MAX_CONNECTIONS: usize = 1024;

/// Listeners of `-R` at once; further requests are refused.
const MAX_LISTENERS: usize = 64;

/// How long a request for a listener may take, with the wait for a session that is still being made. It holds up the whole
/// connection, so the request fails rather than to wait for an image to be built.
const LISTEN_LIMIT: Duration = Duration::from_secs(20);

/// How long init may take for what it does itself or has a child do at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// How long it may take to look a name up.
const RESOLVE_LIMIT: Duration = Duration::from_secs(25);

/// Longer host names and paths do not exist, and travel to the audit log.
const MAX_NAME: usize = 1024;

/// Why something was not forwarded.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForwardError {
    #[error("{0}")]
    Session(String),
    #[error(transparent)]
    Init(#[from] AskError),
    #[error("{}", .0.desc())]
    Connect(nix::errno::Errno),
    #[error("Connection timed out")]
    TimedOut,
    #[error("cannot use the container's socket")]
    Socket(#[source] std::io::Error),
    #[error("{0} is not a valid address")]
    Address(String),
    #[error("there are {0} already")]
    TooMany(usize),
    #[error("it exists already")]
    Exists,
}

impl ForwardError {
    /// For the client whose channel could not be opened; the texts are sshd's where it has any.
    fn refusal(&self) -> ChannelOpenFailure {
        let code = match self {
            Self::Init(AskError::Failed { reason: FailReason::Shortage, .. }) | Self::TooMany(_) => {
                ChannelOpenFailure::ResourceShortage.code()
            }
            _ => ChannelOpenFailure::ConnectFailed.code(),
        };
        ChannelOpenFailure::Other { code, reason: self.to_string() }
    }
}

/// What a key that may not forward gets to hear, in sshd's words.
fn prohibited() -> ChannelOpenFailure {
    ChannelOpenFailure::Other {
        code: ChannelOpenFailure::AdministrativelyProhibited.code(),
        reason: "open failed".to_owned(),
    }
}

/// Everything that one connection forwards.
pub(super) struct Forwards {
    control: Control,
    lines: Arc<Lines>,
    connections: Arc<Semaphore>,
    listeners: Mutex<HashMap<Spot, Listener>>,
    agent_wanted: AtomicBool,
    agent: OnceCell<Option<Agent>>,
}

impl Forwards {
    pub(super) fn new(control: Control, lines: Arc<Lines>) -> Self {
        Self {
            control,
            lines,
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            listeners: Mutex::default(),
            agent_wanted: AtomicBool::new(false),
            agent: OnceCell::new(),
        }
    }

    /// The container's init, as soon as there is one. The session may still be set up: listeners need not wait for that, and
    /// must not, as they hold up the connection whose agent may be needed for it.
    async fn link(&self) -> Result<Arc<InitLink>, ForwardError> {
        self.link_when(|state| state.link().cloned()).await
    }

    /// The container's init, as soon as the session is ready.
    async fn ready_link(&self) -> Result<Arc<InitLink>, ForwardError> {
        self.link_when(|state| match state {
            Attachment::Ready(link) => Some(link.clone()),
            Attachment::Waiting { .. } | Attachment::Refused(_) | Attachment::Ended(_) => None,
        })
        .await
    }

    async fn link_when(
        &self,
        wanted: impl Fn(&Attachment) -> Option<Arc<InitLink>>,
    ) -> Result<Arc<InitLink>, ForwardError> {
        let mut attachment = self.control.attachment();
        loop {
            {
                let state = attachment.borrow_and_update();
                if let Some(link) = wanted(&state) {
                    return Ok(link);
                }
                if let Attachment::Refused(message) | Attachment::Ended(message) = &*state {
                    return Err(ForwardError::Session(message.clone()));
                }
            }
            let ending = |_| ForwardError::Session("the connection is ending".to_owned());
            attachment.changed().await.map_err(ending)?;
        }
    }

    fn audit(&self, kind: ForwardKind, target: String) {
        self.control.forward(kind, target);
    }
}

/// `host:port`, with the brackets that an IPv6 address needs.
fn host_port(host: &str, port: u32) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
