//! The open channels of a connection, as russh's callbacks see them: where a client's bytes go, and who hears that it has
//! closed the channel.
//!
//! A channel is in the table for as long as its task holds its [`Incoming`]. russh does not tell of the client's close when
//! we have closed first, so it is the task's end that counts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use russh::ChannelId;
use tokio_util::sync::CancellationToken;

use super::{
    inbound::{Queue, QueueError, Queues},
    traffic::Traffic,
};

/// The table.
pub(super) struct Lines {
    queues: Arc<Queues>,
    traffic: Arc<Traffic>,
    open: Mutex<HashMap<ChannelId, End>>,
}

#[derive(Clone)]
struct End {
    queue: Arc<Queue>,
    closed: CancellationToken,
}

/// What comes from the client on one channel.
pub(super) struct Incoming {
    lines: Arc<Lines>,
    id: ChannelId,
    pub queue: Arc<Queue>,
    /// Cancelled when the client has closed the channel or is gone.
    pub closed: CancellationToken,
    /// Of all channels.
    pub traffic: Arc<Traffic>,
}

impl Lines {
    pub(super) fn new(queues: Arc<Queues>, traffic: Arc<Traffic>) -> Self {
        Self { queues, traffic, open: Mutex::default() }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<ChannelId, End>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_of(&self, id: ChannelId) -> End {
        let new = || End { queue: Arc::new(self.queues.queue()), closed: CancellationToken::new() };
        self.open().entry(id).or_insert_with(new).clone()
    }

    /// For the task of a channel: enters the channel, or takes over what has come since [`Lines::expect`].
    pub(super) fn incoming(self: &Arc<Self>, id: ChannelId) -> Incoming {
        let End { queue, closed } = self.end_of(id);
        Incoming { lines: self.clone(), id, queue, closed, traffic: self.traffic.clone() }
    }

    /// Enters a channel that the client has just agreed to, whose task may hear of it after the first data has come.
    pub(super) fn expect(&self, id: ChannelId) {
        self.end_of(id);
    }

    /// Takes data in. That of unknown channels is dropped: their tasks have ended.
    pub(super) fn push(&self, id: ChannelId, data: &[u8]) -> Result<(), QueueError> {
        self.traffic.flows();
        let end = self.open().get(&id).cloned();
        end.map_or(Ok(()), |end| end.queue.push(data))
    }

    /// The client sends no more.
    pub(super) fn end(&self, id: ChannelId) {
        if let Some(end) = self.open().get(&id) {
            end.queue.end();
        }
    }

    /// The client has closed the channel.
    pub(super) fn close(&self, id: ChannelId) {
        if let Some(end) = self.open().get(&id) {
            end.queue.end();
            end.closed.cancel();
        }
    }

    /// The client is gone.
    pub(super) fn close_all(&self) {
        for end in self.open().values() {
            end.queue.end();
            end.closed.cancel();
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.lines.open().remove(&self.id);
    }
}
