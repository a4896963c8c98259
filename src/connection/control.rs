//! The socket to the supervisor: asks about keys, gets the session, and finds the next supervisor when this one is gone.

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    sync::{self, Arc},
    time::Duration,
};

use tokio::{
    io::Interest,
    sync::{Mutex, broadcast, mpsc, oneshot, watch},
    time::{Instant, timeout},
};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use super::{
    init_link::InitLink,
    traffic::{Report, Traffic},
};
use crate::{
    names::ProjectName,
    protocol::{self, ExitStatus, ForwardKind, FromConnection, KeyVerdict, ToConnection, wire::AsyncSocket},
    sys::{async_fd, seqpacket},
    transcript::{Reader, Transcript},
};

/// Messages to the supervisor that may wait, for instance while there is none. Audit beyond it is lost.
const WAITING: usize = 1024;

/// What is kept of the hooks' output until a channel shows it.
const MAX_OUTPUT: usize = 256 << 10;

/// Notices that a channel may leave unread before it misses some.
const NOTICES: usize = 16;

/// How long after a container's end to wait for the supervisor's reason.
const EXPLANATION: Duration = Duration::from_secs(2);

/// How long the end of a connection may wait for the processes that it has hung up, most of which end at once. The session's end
/// waits for the connection's.
const LEAVING: Duration = Duration::from_millis(200);

/// Whether there is a session.
#[derive(Clone)]
pub(super) enum Attachment {
    /// Not yet; what is taking so long, and the container if there is one already.
    Waiting {
        since: Instant,
        progress: Option<String>,
        link: Option<Arc<InitLink>>,
    },
    Ready(Arc<InitLink>),
    /// There will be none.
    Refused(String),
    /// There is none any more.
    Ended(String),
}

impl Attachment {
    /// The container's init, if there is one.
    pub(super) fn link(&self) -> Option<&Arc<InitLink>> {
        match self {
            Self::Waiting { link, .. } => link.as_ref(),
            Self::Ready(link) => Some(link),
            Self::Refused(_) | Self::Ended(_) => None,
        }
    }
}

/// What the session's users are told while it goes on.
#[derive(Debug, Clone)]
pub(super) struct Notice {
    pub message: String,
    pub to: Readers,
}

/// Whom a notice is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readers {
    /// Those at terminals.
    People,
    All,
}

enum Request {
    Key {
        login: String,
        key: Vec<u8>,
        verified: bool,
        reply: oneshot::Sender<KeyVerdict>,
    },
    LoggedIn,
    Attach {
        project: Option<ProjectName>,
    },
    Begun {
        run: u32,
        command: Option<String>,
    },
    Command {
        command: Option<String>,
        status: ExitStatus,
        run: u32,
    },
    Forward {
        kind: ForwardKind,
        target: String,
    },
    Agent {
        path: Option<String>,
    },
    /// To be answered when everything before it has been sent.
    Flush(oneshot::Sender<()>),
}

/// The task's address.
#[derive(Clone)]
pub(super) struct Control {
    requests: mpsc::Sender<Request>,
    attachment: watch::Receiver<Attachment>,
    output: Arc<Mutex<Reader>>,
    notices: broadcast::Sender<Notice>,
    /// For the first channel: the session is attached to before that asks for anything, and may have something to say at once.
    early_notices: Arc<sync::Mutex<Option<broadcast::Receiver<Notice>>>>,
    traffic: Arc<Traffic>,
    /// Processes that run for the client, or end because it has left.
    running: TaskTracker,
}

impl Control {
    /// Starts the task. The receiver hears once why the connection has to end; its end means: at once.
    pub(super) fn start(socket: AsyncSocket, adoption: OwnedFd, id: u64) -> (Self, mpsc::Receiver<String>) {
        let (requests, from_us) = mpsc::channel(WAITING);
        let waiting = Attachment::Waiting { since: Instant::now(), progress: None, link: None };
        let (state, attachment) = watch::channel(waiting);
        let (ended, receiver) = mpsc::channel(1);
        let transcript = Transcript::new(MAX_OUTPUT);
        let output = Arc::new(Mutex::new(transcript.reader()));
        let asked = HashMap::new();
        let (notices, early) = broadcast::channel(NOTICES);
        let early_notices = Arc::new(sync::Mutex::new(Some(early)));
        let (told, unsent) = (notices.clone(), None);
        let traffic = Arc::new(Traffic::default());
        let flow = traffic.clone();
        let link = Link {
            socket,
            adoption,
            id,
            from_us,
            state,
            transcript,
            notices: told,
            ended,
            asked,
            next: 0,
            unsent,
            traffic: flow,
        };
        tokio::spawn(link.run());
        let running = TaskTracker::new();
        (Self { requests, attachment, output, notices, early_notices, traffic, running }, receiver)
    }

    /// Asks whether the key may log in. A supervisor that is gone says no.
    pub(super) async fn key(&self, login: String, key: Vec<u8>, verified: bool) -> KeyVerdict {
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Request::Key { login, key, verified, reply }).await.is_err() {
            return KeyVerdict::Reject;
        }
        answer.await.unwrap_or(KeyVerdict::Reject)
    }

    /// Tells that the client is logged in, if which session it is to have is not yet known.
    pub(super) async fn logged_in(&self) {
        // The task has ended only if the connection is ending.
        let _ = self.requests.send(Request::LoggedIn).await;
    }

    /// Asks for the session of the login, in this project if the login name has none.
    pub(super) async fn attach(&self, project: Option<ProjectName>) {
        // As above.
        let _ = self.requests.send(Request::Attach { project }).await;
    }

    /// Reports what a channel has begun to run.
    pub(super) fn begun(&self, run: u32, command: Option<String>) {
        if self.requests.try_send(Request::Begun { run, command }).is_err() {
            tracing::warn!("the beginning of a command is not reported: the supervisor does not answer");
        }
    }

    /// Reports what a channel ran.
    pub(super) fn command(&self, run: u32, command: Option<String>, status: ExitStatus) {
        if self.requests.try_send(Request::Command { command, status, run }).is_err() {
            tracing::warn!("a command is missing from the audit log: the supervisor does not answer");
        }
    }

    /// Counts a process that runs, until what this returns is dropped.
    pub(super) fn count(&self) -> TaskTrackerToken {
        self.running.token()
    }

    /// Waits, when the client has left, until what ran for it has ended or [`LEAVING`] is over, and the supervisor has been told
    /// of all of it.
    pub(super) async fn settle(&self) {
        self.running.close();
        // What takes longer is hung up all the same, and nobody hears how it ends.
        let _ = timeout(LEAVING, self.running.wait()).await;
        let (reply, told) = oneshot::channel();
        if self.requests.send(Request::Flush(reply)).await.is_ok() {
            // A supervisor that takes nothing is none that could be told; without one there is nobody.
            let _ = timeout(LEAVING, told).await;
        }
    }

    /// Reports what has been forwarded.
    pub(super) fn forward(&self, kind: ForwardKind, target: String) {
        if self.requests.try_send(Request::Forward { kind, target }).is_err() {
            tracing::warn!("a forward is missing from the audit log: the supervisor does not answer");
        }
    }

    /// Reports where the client's agent is inside, or that there is none.
    pub(super) fn agent(&self, path: Option<String>) {
        // If so much waits already, the supervisor does without.
        drop(self.requests.try_send(Request::Agent { path }));
    }

    /// What the session's hooks have said, for the one channel that shows it.
    pub(super) fn output(&self) -> Arc<Mutex<Reader>> {
        self.output.clone()
    }

    /// What the session's users are told from now on, while it goes on; for the connection's first channel also what they have
    /// been told before.
    pub(super) fn notices(&self) -> broadcast::Receiver<Notice> {
        let early = self.early_notices.lock().unwrap_or_else(sync::PoisonError::into_inner).take();
        early.unwrap_or_else(|| self.notices.subscribe())
    }

    /// Where it is told that the client and its session have something to say to each other.
    pub(super) fn traffic(&self) -> Arc<Traffic> {
        self.traffic.clone()
    }

    /// Why the session has ended: to be asked when it has, which the supervisor may take a moment to explain.
    pub(super) async fn why_ended(&self) -> String {
        let mut attachment = self.attachment.clone();
        let ended = |state: &Attachment| matches!(state, Attachment::Ended(_) | Attachment::Refused(_));
        match timeout(EXPLANATION * 2, attachment.wait_for(ended)).await.as_ref().map(|state| state.as_deref()) {
            Ok(Ok(Attachment::Ended(message) | Attachment::Refused(message))) => message.clone(),
            _ => "the session has ended".to_owned(),
        }
    }

    pub(super) fn attachment(&self) -> watch::Receiver<Attachment> {
        self.attachment.clone()
    }
}

/// The task's own half.
struct Link {
    socket: AsyncSocket,
    adoption: OwnedFd,
    id: u64,
    from_us: mpsc::Receiver<Request>,
    state: watch::Sender<Attachment>,
    transcript: Transcript,
    notices: broadcast::Sender<Notice>,
    ended: mpsc::Sender<String>,
    asked: HashMap<u32, oneshot::Sender<KeyVerdict>>,
    next: u32,
    /// What a supervisor that is leaving did not take any more, for the next one.
    unsent: Option<FromConnection>,
    traffic: Arc<Traffic>,
}

impl Link {
    async fn run(mut self) {
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
