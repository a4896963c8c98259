//! The socket to the container's init: what it says is untrusted input, and goes to the channel it is for.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::mpsc;

use crate::protocol::{FromInit, ToInit, wire::AsyncSocket};

/// Messages of init for one channel that may wait. There are two in a process's life.
const WAITING: usize = 8;

/// A message for a channel, with its descriptors.
pub(super) type Said = (FromInit, Vec<OwnedFd>);

/// The connected socket. Closing it makes init hang up what was started over it.
pub(super) struct InitLink {
    socket: AsyncSocket,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next: u32,
    channels: HashMap<u32, mpsc::Sender<Said>>,
}

impl InitLink {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: AsyncSocket::new(socket)?, table: Mutex::default() })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for a process, and where what init says of it arrives. It is dropped when the link ends.
    pub(super) fn open(&self) -> (u32, mpsc::Receiver<Said>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        let mut table = self.table();
        table.next += 1;
        let id = table.next;
        table.channels.insert(id, sender);
        (id, receiver)
    }

    /// Forgets a number.
    pub(super) fn close(&self, id: u32) {
        self.table().channels.remove(&id);
    }

    pub(super) async fn send(&self, message: &ToInit) -> io::Result<()> {
        self.socket.send(message, &[]).await
    }

    /// Passes messages on until init is gone or says something that makes no sense.
    pub(super) async fn run(&self) {
        loop {
            let (message, fds) = match self.socket.recv::<FromInit>().await {
                Ok(Some(said)) => said,
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!("the container's init: {error}");
                    break;
                }
            };
            let id = match &message {
                FromInit::Started { id, .. } | FromInit::Refused { id, .. } | FromInit::Exited { id, .. } => *id,
            };
            let channel = self.table().channels.get(&id).cloned();
            // A channel that has gone meanwhile is normal; one that is flooded is not.
            if let Some(channel) = channel
                && let Err(mpsc::error::TrySendError::Full(_)) = channel.try_send((message, fds))
            {
                tracing::warn!("the container's init says too much");
                break;
            }
        }
        self.table().channels.clear();
    }
}
