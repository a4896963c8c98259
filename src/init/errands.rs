//! What init has others do for it: looking names up takes time, and socket files are for the user's rights to decide on.
//!
//! An errand is a child that becomes the session's user, does one thing, and sends the answer back over a socket of its
//! own. Init waits for many of them at once and for none in particular. Beside them it keeps the socket files that they
//! have made for clients, to remove them when their listeners end.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    launch::Surroundings,
    resolve,
    sockets::{self, SocketFile},
};
use crate::{
    protocol::{FailReason, FromInit, ListeningAt, wire},
    sys::seqpacket,
};

/// Errands at once, over all clients; each is a process of the session, which may have 512 by default. Others wait.
const MAX_RUNNING: usize = 32;

/// Errands that wait for their turn, over all clients; further ones are refused.
const MAX_WAITING: usize = 1024;

/// Socket files of one client; further ones are refused.
const MAX_FILES: usize = 128;

/// How long an errand may take before it is killed: longer than asking name servers does.
const LIMIT: Duration = resolve::LIMIT.saturating_add(Duration::from_secs(5));

/// What is to be done.
#[derive(Debug)]
pub(super) enum Job {
    Resolve(String),
    Connect(String),
    Listen(String),
    ListenAgent,
}

/// Whose errand it is: a client, and the id it has chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asker {
    pub(super) client: u64,
    pub(super) id: u32,
}

/// What a client is to be told.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) client: u64,
    pub(super) message: FromInit,
    pub(super) fds: Vec<OwnedFd>,
}

impl Answer {
    pub(super) fn failed(asker: Asker, reason: FailReason, message: String) -> Self {
        Self { client: asker.client, message: FromInit::Failed { id: asker.id, reason, message }, fds: Vec::new() }
    }
}

#[derive(Debug)]
struct Running {
    asker: Asker,
    /// `None` when it has been reaped: the number may be another's by then.
    pid: Option<i32>,
    socket: OwnedFd,
    kill_at: Instant,
    /// Makes the directory of its socket file too.
    own_directory: bool,
    /// Nobody waits for the answer any more.
    abandoned: bool,
}

/// The errands of all clients, and the files that they have left.
#[derive(Debug, Default)]
pub(super) struct Errands {
    running: Vec<Running>,
    waiting: VecDeque<(Asker, Job)>,
    files: Vec<(Asker, SocketFile)>,
}

impl Errands {
    /// Takes a job on. The answer comes from [`Errands::finish`], or is here if it cannot be done.
    pub(super) fn add(&mut self, surroundings: &Surroundings, asker: Asker, job: Job) -> Option<Answer> {
        let shortage = |what: &str| Some(Answer::failed(asker, FailReason::Shortage, what.to_owned()));
        let makes_file = matches!(job, Job::Listen(_) | Job::ListenAgent);
        if makes_file && self.files.iter().filter(|(owner, _)| owner.client == asker.client).count() >= MAX_FILES {
            return shortage("too many socket files");
        }
        if self.waiting.len() >= MAX_WAITING {
            return shortage("too many requests at once");
        }
        self.waiting.push_back((asker, job));
        self.start_next(surroundings)
    }

    /// Starts the first that waits, if there is room.
    fn start_next(&mut self, surroundings: &Surroundings) -> Option<Answer> {
        if self.running.len() >= MAX_RUNNING {
            return None;
        }
        let (asker, job) = self.waiting.pop_front()?;
        let own_directory = matches!(job, Job::ListenAgent);
        match start(surroundings, asker.id, job) {
            Ok((pid, socket)) => {
                let kill_at = Instant::now() + LIMIT;
                let pid = Some(pid);
                self.running.push(Running { asker, pid, socket, kill_at, own_directory, abandoned: false });
                None
            }
            Err(error) => Some(Answer::failed(asker, FailReason::Shortage, format!("cannot start a process: {error}"))),
        }
    }

    /// The sockets on which answers arrive.
    pub(super) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.running.iter().map(|errand| errand.socket.as_fd())
    }

    /// When to call [`Errands::finish`] even if no answer arrives.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.running.iter().map(|errand| errand.kill_at).min()
    }

    /// Takes in all answers that have come, gives up on errands that take too long, and starts the next ones. `buffer`
    /// holds the largest message.
    pub(super) fn finish(&mut self, surroundings: &Surroundings, buffer: &mut [u8]) -> Vec<Answer> {
        let now = Instant::now();
        let mut answers = Vec::new();
        for errand in std::mem::take(&mut self.running) {
            let said = match seqpacket::recv(errand.socket.as_fd(), buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && errand.kill_at > now => {
                    self.running.push(errand);
                    continue;
                }
                Ok((length, fds)) if length > 0 => wire::decode(&buffer[..length]).ok().map(|message| (message, fds)),
                Ok(_) | Err(_) => None,
            };
            answers.extend(self.answer(&errand, said));
            // It has nothing left to do but to end, or did not get that far.
            errand.kill();
        }
        while self.running.len() < MAX_RUNNING && !self.waiting.is_empty() {
            answers.extend(self.start_next(surroundings));
        }
        answers
    }

    fn answer(&mut self, errand: &Running, said: Option<(FromInit, Vec<OwnedFd>)>) -> Option<Answer> {
        let asker = errand.asker;
        // The user cannot get at the child's memory, but can end it.
        let Some((message, fds)) = said.filter(|(message, _)| message.id() == asker.id) else {
            let message = "the request took too long or was ended".to_owned();
            return (!errand.abandoned).then(|| Answer::failed(asker, FailReason::Error, message));
        };
        if let FromInit::Listening { at: ListeningAt::Path(path), .. } = &message
            && let Some(file) = SocketFile::at(path, errand.own_directory)
        {
            if errand.abandoned { file.remove() } else { self.files.push((asker, file)) }
        }
        (!errand.abandoned).then_some(Answer { client: asker.client, message, fds })
    }

    /// A child has been reaped.
    pub(super) fn reaped(&mut self, pid: i32) {
        for errand in self.running.iter_mut().filter(|errand| errand.pid == Some(pid)) {
            errand.pid = None;
        }
    }

    /// Forgets what the chosen askers want, and removes what they have got.
    pub(super) fn release(&mut self, chosen: impl Fn(Asker) -> bool) {
        self.waiting.retain(|(asker, _)| !chosen(*asker));
        for errand in self.running.iter_mut().filter(|errand| chosen(errand.asker)) {
            errand.abandoned = true;
        }
        self.files.retain(|(asker, file)| {
            let released = chosen(*asker);
            if released {
                file.remove();
            }
            !released
        });
    }
}

impl Running {
    fn kill(&self) {
        if let Some(pid) = self.pid {
            // Not reaped yet, so the pid is still its own. ESRCH: it has ended by itself.
            if let Err(_ended) = kill(Pid::from_raw(pid), Signal::SIGKILL) {}
        }
    }
}

/// Starts the child; returns it and the socket on which its answer arrives.
fn start(surroundings: &Surroundings, id: u32, job: Job) -> io::Result<(i32, OwnedFd)> {
    let (ours, theirs) = seqpacket::pair()?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let pid = surroundings.fork_as_user(theirs, |socket| {
        nix::unistd::chdir("/")?;
        let (message, fds) = run(id, job);
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        wire::send(socket.as_fd(), &message, &fds)?;
        Ok(0)
    })?;
    Ok((pid, ours))
}

/// The child's work.
fn run(id: u32, job: Job) -> (FromInit, Vec<OwnedFd>) {
    let done = match job {
        Job::Resolve(host) => resolve::ask(&host)
            .map(|addresses| (FromInit::Resolved { id, addresses }, Vec::new()))
            .map_err(str::to_owned),
        Job::Connect(path) => sockets::connect_unix(&path)
            .map(|socket| (FromInit::Connecting { id }, vec![socket]))
            .map_err(|errno| errno.desc().to_owned()),
        Job::Listen(path) => sockets::listen_unix(&path)
            .map(|socket| (FromInit::Listening { id, at: ListeningAt::Path(path) }, vec![socket]))
            .map_err(|errno| errno.desc().to_owned()),
        Job::ListenAgent => sockets::listen_agent()
            .map(|(path, socket)| (FromInit::Listening { id, at: ListeningAt::Path(path) }, vec![socket]))
            .map_err(|error| error.to_string()),
    };
    done.unwrap_or_else(|message| (FromInit::Failed { id, reason: FailReason::Error, message }, Vec::new()))
}
