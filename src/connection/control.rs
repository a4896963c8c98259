//! The socket to the supervisor: asks about keys, gets the session, and finds the next supervisor when this one is gone.

mod link;

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{self, Arc},
    time::Duration,
};

use tokio::{
    sync::{Mutex, broadcast, mpsc, oneshot, watch},
    time::{Instant, timeout},
};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use self::link::Link;
use super::{init_link::InitLink, traffic::Traffic};
use crate::{
    names::ProjectName,
    protocol::{ExitStatus, ForwardKind, KeyVerdict, wire::AsyncSocket},
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
