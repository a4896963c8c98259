//! The task at the socket: says to the supervisor what it is asked to, and hears what that says.

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use tokio::{
    io::Interest,
    sync::{broadcast, mpsc, oneshot, watch},
    time::{Instant, timeout},
};

use super::{Attachment, EXPLANATION, Notice, Readers, Request};
use crate::{
    connection::{
        init_link::InitLink,
        traffic::{Report, Traffic},
    },
    protocol::{self, FromConnection, KeyVerdict, ToConnection, wire::AsyncSocket},
    sys::{async_fd, seqpacket},
    transcript::Transcript,
};

/// The task's own half.
pub(super) struct Link {
    pub(super) socket: AsyncSocket,
    pub(super) adoption: OwnedFd,
    pub(super) id: u64,
    pub(super) from_us: mpsc::Receiver<Request>,
    pub(super) state: watch::Sender<Attachment>,
    pub(super) transcript: Transcript,
    pub(super) notices: broadcast::Sender<Notice>,
    pub(super) ended: mpsc::Sender<String>,
    pub(super) asked: HashMap<u32, oneshot::Sender<KeyVerdict>>,
    pub(super) next: u32,
    /// What a supervisor that is leaving did not take any more, for the next one.
    pub(super) unsent: Option<FromConnection>,
    pub(super) traffic: Arc<Traffic>,
}

impl Link {
    pub(super) async fn run(mut self) {
        let mut report = Report::new();
        loop {
            let init = self.state.borrow().link().cloned();
            let init_gone = async {
                match init {
                    Some(link) => link.run().await,
                    None => std::future::pending().await,
                }
            };
            let alive = tokio::select! {
                message = self.socket.recv::<ToConnection>() => match message {
                    Ok(Some((message, fds))) => self.heard(message, fds),
                    Ok(None) => self.supervisor_gone().await,
                    Err(error) => {
                        tracing::warn!("the supervisor's socket: {error}");
                        self.supervisor_gone().await
                    }
                },
                // One that takes nothing is leaving: what it has said before has to be heard first, and then it is gone.
                Some(request) = self.from_us.recv(), if self.unsent.is_none() => {
                    self.pass_on(request).await;
                    true
                }
                () = init_gone => {
                    self.hear_why().await;
                    true
                }
                () = report.due(&self.traffic), if self.unsent.is_none() => {
                    // The next supervisor begins to count when it comes.
                    let _ = self.socket.send(&FromConnection::Active, &[]).await;
                    true
                }
            };
            if !alive {
                // Dropping `ended` ends the connection.
                return;
            }
        }
    }

    /// The container is gone. The supervisor has ended it, or sees it too, and says why; without one there is no reason to
    /// tell.
    async fn hear_why(&mut self) {
        let explained = async {
            while let Ok(Some((message, _fds))) = self.socket.recv::<ToConnection>().await {
                match message {
                    ToConnection::Terminate { message } | ToConnection::Refused { message } => return Some(message),
                    ToConnection::Output { text } => self.transcript.push(text.into()),
                    _ => {}
                }
            }
            None
        };
        let message = timeout(EXPLANATION, explained).await.ok().flatten();
        self.end(message.unwrap_or_else(|| "the session has ended".to_owned()));
    }

    /// Handles what the supervisor says; false ends the connection at once.
    fn heard(&mut self, message: ToConnection, mut fds: Vec<OwnedFd>) -> bool {
        match message {
            ToConnection::Key { request, verdict } => {
                if let Some(reply) = self.asked.remove(&request) {
                    // The client may have gone meanwhile.
                    let _ = reply.send(verdict);
                }
            }
            ToConnection::Attached { session: _ } => match fds.pop().map(InitLink::new) {
                Some(Ok(new)) => {
                    self.state.send_modify(|state| {
                        if let Attachment::Waiting { link, .. } = state {
                            *link = Some(Arc::new(new));
                        }
                    });
                }
                Some(Err(error)) => self.end(format!("the session cannot be used: {error}")),
                None => self.end("the session cannot be used: its socket is missing".to_owned()),
            },
            ToConnection::Ready => {
                let link = self.state.borrow().link().cloned();
                match link {
                    Some(link) => drop(self.state.send_replace(Attachment::Ready(link))),
                    None => self.end("the session cannot be used: there is no way into it".to_owned()),
                }
            }
            ToConnection::Output { text } => {
                self.transcript.push(text.into());
                // Wakes who waits, to show it.
                self.state.send_modify(|_same| {});
            }
            ToConnection::Refused { message } => {
                self.state.send_replace(Attachment::Refused(message.clone()));
                // Full only if the end has been announced already.
                let _ = self.ended.try_send(message);
            }
            ToConnection::Progress { line } => {
                self.state.send_if_modified(|state| match state {
                    Attachment::Waiting { progress, .. } => {
                        *progress = Some(line);
                        true
                    }
                    Attachment::Ready(_) | Attachment::Refused(_) | Attachment::Ended(_) => false,
                });
            }
            ToConnection::Notice { message } => {
                // An error says that no channel is open.
                let _ = self.notices.send(Notice { message, to: Readers::All });
            }
            ToConnection::Warning { message } => {
                // As above.
                let _ = self.notices.send(Notice { message, to: Readers::People });
            }
            ToConnection::Terminate { message } => self.end(message),
            ToConnection::Serve(_) | ToConnection::Adopt { .. } => {
                tracing::warn!("the supervisor sent something that is not for this point");
                return false;
            }
        }
        true
    }

    fn end(&mut self, message: String) {
        self.state.send_replace(Attachment::Ended(message.clone()));
        // As above.
        let _ = self.ended.try_send(message);
    }

    /// Sends a request, or keeps it if the supervisor takes no more.
    async fn pass_on(&mut self, request: Request) {
        let message = match request {
            Request::Flush(reply) => {
                // Whoever waits for it does so for a moment only.
                let _ = reply.send(());
                return;
            }
            Request::Key { login, key, verified, reply } => {
                self.next += 1;
                self.asked.insert(self.next, reply);
                FromConnection::Key { request: self.next, login, key, verified }
            }
            Request::LoggedIn => FromConnection::LoggedIn,
            Request::Attach { project } => {
                let since = Instant::now();
                self.state.send_replace(Attachment::Waiting { since, progress: None, link: None });
                FromConnection::Attach { project }
            }
            Request::Begun { run, command } => FromConnection::Begun { run, command },
            Request::Command { command, status, run } => FromConnection::Command { command, status, run: Some(run) },
            Request::Forward { kind, target } => FromConnection::Forward { kind, target },
            Request::Agent { path } => FromConnection::Agent { path },
        };
        self.send(message).await;
    }

    async fn send(&mut self, message: FromConnection) {
        match self.socket.send(&message, &[]).await {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
                tracing::warn!("not told to the supervisor: {error}");
            }
            Err(_gone) => self.unsent = Some(message),
        }
    }

    /// Waits for the next supervisor, if there is something to keep for it; false if there is not.
    async fn supervisor_gone(&mut self) -> bool {
        let Some(init) = self.state.borrow().link().cloned() else { return false };
        tokio::select! {
            adopted = self.wait_for_adoption() => match adopted {
                Ok(socket) => {
                    self.socket = socket;
                    if let Some(message) = self.unsent.take() {
                        self.send(message).await;
                    }
                    true
                }
                Err(error) => {
                    tracing::error!("cannot wait for a new supervisor: {error}");
                    false
                }
            },
            // Nothing is left to keep.
            () = init.run() => {
                self.end("the session has ended".to_owned());
                std::future::pending().await
            }
        }
    }

    async fn wait_for_adoption(&self) -> std::io::Result<AsyncSocket> {
        let listener = self.adoption.try_clone()?;
        nix::fcntl::fcntl(&listener, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        let listener = async_fd::register(listener, Interest::READABLE)?;
        loop {
            let mut ready = listener.readable().await?;
            let Ok(accepted) = ready.try_io(|listener| seqpacket::accept(listener.as_fd())) else { continue };
            let socket = AsyncSocket::new(accepted?)?;
            // Only root can reach the socket file, so whoever this is, it is no client.
            if let Ok(Some((ToConnection::Adopt { version: _ }, _))) = socket.recv::<ToConnection>().await {
                let waiting = matches!(*self.state.borrow(), Attachment::Waiting { .. });
                let greeting = FromConnection::Adopted { version: protocol::VERSION, connection: self.id, waiting };
                if socket.send(&greeting, &[]).await.is_ok() {
                    return Ok(socket);
                }
            }
        }
    }
}
