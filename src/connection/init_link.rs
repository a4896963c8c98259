//! The socket to the container's init: what it says is untrusted input, and goes to whoever it is for.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::mpsc, time::timeout};

use crate::protocol::{FailReason, FromInit, ToInit, wire::AsyncSocket};

/// Messages of init under one number that may wait. There are two in a process's life.
const WAITING: usize = 8;

/// A message for a channel, with its descriptors.
pub(super) type Said = (FromInit, Vec<OwnedFd>);

/// Why init did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("the session has ended")]
    Gone,
    #[error("the container does not answer")]
    Silent,
    #[error("{message}")]
    Failed { reason: FailReason, message: String },
    #[error("the container's answer is of no use")]
    Nonsense,
}

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

/// Something that init does or keeps for us under a number. Dropping it gives it up.
pub(super) struct Held {
    link: Arc<InitLink>,
    id: u32,
    ended: bool,
}

/// What init answers, with what it keeps for us.
pub(super) struct Answer {
    pub held: Held,
    pub message: FromInit,
    pub fds: Vec<OwnedFd>,
}

impl InitLink {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: AsyncSocket::new(socket)?, table: Mutex::default() })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for a process, and where what init says of it arrives. That ends when the link does.
    pub(super) fn open(self: &Arc<Self>) -> (Held, mpsc::Receiver<Said>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        let mut table = self.table();
        table.next += 1;
        let id = table.next;
        table.channels.insert(id, sender);
        (Held { link: self.clone(), id, ended: false }, receiver)
    }

    pub(super) async fn send(&self, message: &ToInit) -> io::Result<()> {
        self.socket.send(message, &[]).await
    }

    /// Sends what `request` makes of a number, and waits for the one answer at most as long as `limit`.
    pub(super) async fn ask(
        self: &Arc<Self>,
        limit: Duration,
        request: impl FnOnce(u32) -> ToInit,
    ) -> Result<Answer, AskError> {
        let (mut held, mut said) = self.open();
        let answer = timeout(limit, async {
            self.send(&request(held.id)).await.map_err(|_gone| AskError::Gone)?;
            said.recv().await.ok_or(AskError::Gone)
        });
        match answer.await.map_err(|_elapsed| AskError::Silent)?? {
            (FromInit::Failed { reason, message, .. }, _) => {
                held.ended();
                Err(AskError::Failed { reason, message: printable(&message) })
            }
            (message, fds) => Ok(Answer { held, message, fds }),
        }
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
            let channel = self.table().channels.get(&message.id()).cloned();
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

impl Held {
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// There is nothing left to give up.
    pub(super) fn ended(&mut self) {
        self.ended = true;
    }

    /// Gives it up, and returns when init has been told.
    pub(super) async fn release(&mut self) {
        self.ended = true;
        // If init cannot be told it is gone, and with it whatever it had for us.
        let _ = self.link.send(&ToInit::Release { id: self.id }).await;
    }

    /// Tells init about it.
    pub(super) async fn send(&self, message: &ToInit) -> io::Result<()> {
        self.link.send(message).await
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.link.table().channels.remove(&self.id);
        if !self.ended {
            let (link, id) = (self.link.clone(), self.id);
            tokio::spawn(async move {
                // As above.
                let _ = link.send(&ToInit::Release { id }).await;
            });
        }
    }
}

/// One line without control characters: the text comes from inside the container.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(1000).collect()
}
