//! One service while its session lives: the task that hears it, and decides what its end means.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Member, OnEnd, STOP_LIMIT, TOLD_LINES, ending};
use crate::{
    protocol::ExitStatus,
    session::{
        inside::{InsideError, Line, Process},
        log::Log,
    },
};

/// How long to wait before a service that has failed is started again, at first; doubles up to [`BACK_OFF_MAX`].
const BACK_OFF_MIN: Duration = Duration::from_millis(500);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// A service that has run for so long is waited for from the beginning when it fails.
const STEADY: Duration = Duration::from_secs(60);

/// The file in a service's directory that says that it has ended for good and that this has been told.
const OVER: &str = "over";

/// How far a service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Life {
    /// It has not run yet, or is to be started again.
    Starting,
    Running,
    /// For good; how, as the end of a sentence.
    Ended(String),
}

/// The last lines of a service's output.
pub(super) type Tail = Arc<Mutex<VecDeque<String>>>;

/// Keeps a service. Dropped, it lets go of it: the service goes on, unheard.
#[derive(Debug)]
pub(super) struct Keeper {
    life: watch::Receiver<Life>,
    tail: Tail,
    outlived: bool,
    log: Arc<Log>,
    task: JoinHandle<()>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Keeper {
    /// Starts the service, and again whenever that is wanted, until `stopping`.
    pub(super) fn start(member: Member, stopping: CancellationToken, on_end: OnEnd) -> Self {
        Self::spawn(member, stopping, on_end, false)
    }

    /// Goes on with a service that runs, or has ended unheard.
    pub(super) fn resume(member: Member, stopping: CancellationToken, on_end: OnEnd) -> Self {
        Self::spawn(member, stopping, on_end, true)
    }

    fn spawn(member: Member, stopping: CancellationToken, on_end: OnEnd, resume: bool) -> Self {
        let (sender, life) = watch::channel(Life::Starting);
        let tail = Tail::default();
        let log = Arc::new(Log::new(&member.directory));
        let outlived = member.plan.outlived;
        let task = Task { member, log: log.clone(), tail: tail.clone(), life: sender, on_end };
        Self { life, tail, log, outlived, task: tokio::spawn(task.run(stopping, resume)) }
    }

    /// Whether something that the service writes outlives its session.
    pub(super) fn is_outlived(&self) -> bool {
        self.outlived
    }

    pub(super) fn life(&self) -> watch::Receiver<Life> {
        self.life.clone()
    }

    /// Everything that it says.
    pub(super) fn log(&self) -> Arc<Log> {
        self.log.clone()
    }

    /// What it has said last.
    pub(super) fn last_lines(&self) -> Vec<String> {
        lines_of(&self.tail)
    }

    /// Waits until there is nothing more to be done about the service.
    pub(super) async fn ended(mut self) {
        if let Err(error) = (&mut self.task).await {
            tracing::error!("keeping a service: {error}");
        }
    }
}

struct Task {
    member: Member,
    log: Arc<Log>,
    tail: Tail,
    life: watch::Sender<Life>,
    on_end: OnEnd,
}

fn lines_of(tail: &Tail) -> Vec<String> {
    tail.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

impl Task {
    async fn run(self, stopping: CancellationToken, mut resume: bool) {
        let mut back_off = BACK_OFF_MIN;
        loop {
            let begun = Instant::now();
            let ended = self.once(&stopping, std::mem::take(&mut resume)).await;
            let how = ending(&ended);
            if stopping.is_cancelled() {
                return;
            }
            if self.is_over() {
                self.life.send_replace(Life::Ended(how));
                return;
            }
            self.note(&how);
            if !self.again(&ended) {
                (self.on_end)(self.member.failed(how.clone(), lines_of(&self.tail)));
                self.set_over();
                self.life.send_replace(Life::Ended(how));
                return;
            }
            self.life.send_replace(Life::Starting);
            if begun.elapsed() >= STEADY {
                back_off = BACK_OFF_MIN;
            }
            self.note(&format!("is started again in {}", humantime::format_duration(back_off)));
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(back_off) => {}
            }
            back_off = (back_off * 2).min(BACK_OFF_MAX);
        }
    }

    /// Has it run once, to its end.
    async fn once(&self, stopping: &CancellationToken, resume: bool) -> Result<ExitStatus, InsideError> {
        let init = &self.member.init;
        let mut process =
            if resume { Process::resume(init).await? } else { Process::start(init, self.member.plan.run()).await? };
        self.life.send_replace(Life::Running);
        tokio::select! {
            ended = process.wait(self.ear()) => return ended,
            () = stopping.cancelled() => {}
        }
        process.signal(self.member.plan.stop_signal).await?;
        tokio::time::timeout(STOP_LIMIT, process.wait(self.ear()))
            .await
            .unwrap_or(Err(InsideError::TimedOut(STOP_LIMIT)))
    }

    /// Whether an earlier supervisor has told everybody that it has ended for good: its init says so again to each one.
    fn is_over(&self) -> bool {
        self.member.directory.join(OVER).exists()
    }

    fn set_over(&self) {
        let written = File::create(self.member.directory.join(OVER));
        match written {
            // The session, and its directory, may be going.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("service {}: the next server will tell of its end again: {error}", self.member.name);
            }
            _ => {}
        }
    }

    fn again(&self, ended: &Result<ExitStatus, InsideError>) -> bool {
        // What cannot be started will not be able to, and a container that is gone does not come back.
        let failed = matches!(ended, Ok(ExitStatus::Code(1..) | ExitStatus::Signal { .. }));
        failed && self.member.plan.restart
    }

    /// What hears its output.
    fn ear(&self) -> impl FnMut(Line<'_>) + Send + 'static {
        let (log, tail, name) = (self.log.clone(), self.tail.clone(), self.member.name.clone());
        move |line| {
            log.append(&name, line.text);
            let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
            if tail.len() == TOLD_LINES {
                tail.pop_front();
            }
            tail.push_back(String::from_utf8_lossy(line.text).into_owned());
        }
    }

    /// Says in the service's log what has become of it.
    fn note(&self, what: &str) {
        let text = format!("podspawn: service {} {what}", self.member.name);
        tracing::info!("{text}");
        self.log.append(&self.member.name, text.as_bytes());
    }
}
