//! A connection as its session sees it: a number, and a queue of what it is told.

use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{sync::mpsc, time::Instant};

use super::state::ConnectionId;
use crate::{names::SessionId, transcript::Reader};

/// What a session tells the task of a connection.
#[derive(Debug)]
pub enum ToClient {
    /// The session is there; the descriptor is a socket connected to its init.
    Attached {
        session: SessionId,
        init: OwnedFd,
    },
    /// It may start programs there.
    Ready,
    /// What the session's hooks say, to be passed on before anything that is told later.
    Output(Reader),
    Refused(String),
    Progress(String),
    /// Something that users are to know, and that does not end the session.
    Notice(String),
    /// Something that is about to happen, for people.
    Warning(String),
    Terminate(String),
}

/// Where a client has come from, and the fingerprint of the key that it has logged in with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub peer: SocketAddr,
    pub fingerprint: String,
}

/// A connection, as its session sees it.
#[derive(Debug, Clone)]
pub struct Client {
    pub id: ConnectionId,
    pub origin: Arc<Origin>,
    /// Holds [`Client::QUEUE`] messages. Progress is dropped when it is half full; of the others there are one or two of a
    /// kind.
    pub outgoing: mpsc::Sender<ToClient>,
    /// Whether it has been attached by an earlier supervisor, and not been told that its session is ready.
    pub waiting: bool,
    pub activity: Arc<Activity>,
}

/// When something last went between a client and its session, as far as its connection's process tells.
#[derive(Debug)]
pub struct Activity {
    /// `None`: the process is of a version that does not tell.
    last: Option<Mutex<Instant>>,
}

impl Activity {
    /// Of a client that has come now; `told` says whether its process tells more.
    pub fn new(told: bool) -> Self {
        Self { last: told.then(|| Mutex::new(Instant::now())) }
    }

    /// There has been some.
    pub fn seen(&self) {
        if let Some(last) = &self.last {
            *last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
    }

    /// The last time; now, if that cannot be known.
    pub(super) fn last(&self) -> Instant {
        let last = self.last.as_ref().map(|last| *last.lock().unwrap_or_else(PoisonError::into_inner));
        last.unwrap_or_else(Instant::now)
    }
}

impl Client {
    /// The size to make the queue.
    pub const QUEUE: usize = 16;

    pub(super) fn tell(&self, message: ToClient) {
        // A full queue is one whose task has stopped reading, and a closed one that of a connection that is gone; its
        // detach is on its way in both cases.
        let _ = self.outgoing.try_send(message);
    }

    pub(super) fn progress(&self, line: &str) {
        if self.outgoing.capacity() > Self::QUEUE / 2 {
            self.tell(ToClient::Progress(line.to_owned()));
        }
    }
}
