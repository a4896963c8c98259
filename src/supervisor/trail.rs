//! What one connection leaves in the audit log, from its session to its end.
//!
//! The supervisor writes it, and not the session, so that a connection's end is recorded even if its session is gone before.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use super::{Supervisor, login::Login};
use crate::{
    audit::{Audit, Event, Who},
    names::SessionId,
    protocol::{ExitStatus, ForwardKind},
    session::{
        Origin,
        evidence::{Begun, Command, Journal},
        state::ConnectionId,
    },
    time::{millis, unix_millis},
};

/// Commands of one connection whose beginning is remembered. Of further ones only the end is recorded.
const RUNNING: usize = 256;

/// Bytes of a command's text that are remembered while it runs.
const TEXT: usize = 4096;

/// How many connections each session has.
#[derive(Debug, Clone, Default)]
pub(super) struct Attached(Arc<Mutex<HashMap<SessionId, usize>>>);

impl Attached {
    fn table(&self) -> MutexGuard<'_, HashMap<SessionId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more; returns how many there are now.
    fn add(&self, session: &SessionId) -> usize {
        let mut table = self.table();
        let count = table.entry(session.clone()).or_default();
        *count += 1;
        *count
    }

    /// Counts one less; returns how many are left.
    fn remove(&self, session: &SessionId) -> usize {
        let mut table = self.table();
        let left = table.get(session).map_or(0, |count| count.saturating_sub(1));
        if left == 0 {
            table.remove(session);
        } else {
            table.insert(session.clone(), left);
        }
        left
    }
}

/// A command that has not ended.
struct Running {
    /// `None` for a shell.
    command: Option<String>,
    since: Instant,
}

pub(super) struct Trail {
    audit: Arc<Audit>,
    attached: Attached,
    journal: Journal,
    connection: ConnectionId,
    origin: Arc<Origin>,
    session: Option<SessionId>,
    running: BTreeMap<u32, Running>,
    /// What the client was told when the server ended the connection.
    farewell: Option<String>,
}

impl Trail {
    pub(super) fn new(supervisor: &Supervisor, connection: ConnectionId, peer: SocketAddr) -> Self {
        Self {
            audit: supervisor.audit.clone(),
            attached: supervisor.attached.clone(),
            journal: supervisor.sessions.context().journal.clone(),
            connection,
            origin: Arc::new(Origin { peer, fingerprint: String::new() }),
            session: None,
            running: BTreeMap::new(),
            farewell: None,
        }
    }

    /// Goes on with what an earlier supervisor has begun.
    pub(super) fn adopt(&mut self, login: &Login, session: &SessionId) {
        self.attached.add(session);
        self.resume(login, session);
    }

    fn resume(&mut self, login: &Login, session: &SessionId) {
        self.identify(login);
        self.session = Some(session.clone());
        let begun = self.journal.running(session, self.connection).unwrap_or_else(|error| {
            tracing::warn!(%session, "which commands run in it is not known: {error}");
            Vec::new()
        });
        for Begun { run, command, begun_ms, .. } in begun.into_iter().take(RUNNING) {
            let ago = Duration::from_millis(unix_millis(SystemTime::now()).saturating_sub(begun_ms));
            let since = Instant::now().checked_sub(ago).unwrap_or_else(Instant::now);
            self.running.insert(run, Running { command, since });
        }
    }

    /// Where the client came from, and with which key.
    pub(super) fn origin(&self) -> Arc<Origin> {
        self.origin.clone()
    }

    pub(super) fn identify(&mut self, login: &Login) {
        self.origin = Arc::new(Origin { peer: self.origin.peer, fingerprint: login.fingerprint.clone() });
    }

    fn who<'a>(&'a self, login: &'a Login) -> Who<'a> {
        Who { key: &login.key, connection: self.connection, origin: &self.origin, session: self.session.as_ref() }
    }

    /// It has its session, `time` after it began.
    pub(super) fn connected(&mut self, login: &Login, session: &SessionId, time: Duration) {
        self.audit.metrics().ready(time);
        let connections = self.attached.add(session);
        self.session = Some(session.clone());
        self.audit.record(&Event::Connect { who: self.who(login), connections });
    }

    /// There is no session for it.
    pub(super) fn refused(&self, login: &Login, reason: &str) {
        self.audit.record(&Event::SessionRefused { who: self.who(login), reason });
    }

    /// Its key does not log in any more, and so the server ends it.
    pub(super) fn revoked(&self, login: &Login, reason: &str) {
        self.audit.record(&Event::AuthRevoked { who: self.who(login), reason });
    }

    /// The server ends it.
    pub(super) fn told(&mut self, farewell: &str) {
        self.farewell = Some(farewell.to_owned());
    }

    /// A command, or a shell, runs.
    pub(super) fn begun(&mut self, run: u32, mut command: Option<String>) {
        if self.running.len() < RUNNING {
            if let Some(text) = &mut command {
                let end = (0..=TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
                text.truncate(end.unwrap_or(0));
            }
            if let Some(session) = &self.session {
                let (command, remote) = (command.clone(), self.origin.peer.to_string());
                let begun = Begun {
                    begun_ms: unix_millis(SystemTime::now()),
                    command,
                    remote,
                    connection: self.connection,
                    run,
                };
                self.journal.begun(session, begun);
            }
            self.running.insert(run, Running { command, since: Instant::now() });
        }
    }

    /// It has ended.
    pub(super) fn ended(&mut self, login: &Login, run: Option<u32>, command: Option<&str>, status: ExitStatus) {
        let time = run.and_then(|run| self.running.remove(&run)).map(|running| running.since.elapsed());
        self.command(login, run, command, Some(status), time);
    }

    /// Records a command for the log, and for what is kept of its session.
    fn command(
        &self,
        login: &Login,
        run: Option<u32>,
        command: Option<&str>,
        status: Option<ExitStatus>,
        time: Option<Duration>,
    ) {
        self.audit.record(&Event::Command { who: self.who(login), command, status, time });
        let Some(session) = &self.session else { return };
        let (exit_code, signal) = match status {
            Some(ExitStatus::Code(code)) => (Some(code), None),
            Some(ExitStatus::Signal { signal, .. }) => (None, Some(signal)),
            None => (None, None),
        };
        let command = Command {
            ended_ms: Some(unix_millis(SystemTime::now())),
            duration_ms: time.map(millis),
            command: command.map(str::to_owned),
            exit_code,
            signal,
            remote: self.origin.peer.to_string(),
            connection: self.connection,
        };
        self.journal.ended(session, run, command);
    }

    pub(super) fn forwarded(&self, login: &Login, kind: ForwardKind, target: &str) {
        self.audit.record(&Event::ForwardOpen { who: self.who(login), kind, target });
    }

    /// The connection has ended, and with it what it ran.
    pub(super) fn close(&mut self, login: Option<&Login>) {
        let (Some(login), Some(session)) = (login, &self.session) else { return };
        let remaining = self.attached.remove(session);
        self.end(login, remaining);
    }

    /// The connection of an earlier supervisor has ended while there was none, and `remaining` others of its session have not.
    pub(super) fn lost(mut self, login: &Login, session: &SessionId, remaining: usize) {
        self.resume(login, session);
        self.end(login, remaining);
    }

    fn end(&mut self, login: &Login, remaining: usize) {
        for (run, Running { command, since }) in std::mem::take(&mut self.running) {
            self.command(login, Some(run), command.as_deref(), None, Some(since.elapsed()));
        }
        let reason = self.farewell.as_deref();
        self.audit.record(&Event::Disconnect { who: self.who(login), remaining, reason });
    }
}
