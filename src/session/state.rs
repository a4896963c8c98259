//! The life of a session as a pure state machine: no I/O, and the time is an argument.
//!
//! ```text
//!            created                set up                 last detach, grace mode
//! Creating ───────────▶ SettingUp ──────────▶ Running ───────────────────────────▶ Grace
//!    │  │                 │   │                ▲  │ │                               │ │
//!    │  │ created, nobody │   │ set up,        │  │ │ last detach, destroy mode     │ │
//!    │  │ waits, destroy  │   │ nobody waits   │  │ │ container died, stop, limit   │ │ deadline, stop,
//!    │  │ mode            │   └──────▶ Grace   │  │ │                               │ │ container died
//!    │  │                 │ failed, stop, ...  │  ▼ ▼                               │ │
//!    │  └─────────────────┴────────────────────┼──────▶ Stopping ◀─────────────────┼─┘
//!    │ failed                                  └───────────────────────────────────┘ attach
//!    ▼
//!   gone
//! ```
//!
//! A connection that attaches is admitted as soon as there is a container, so that its agent can be used while that is set
//! up, and welcomed when it may start programs.
//!
//! Each state is a struct; a transition consumes it and returns the next one with the actions that the driver has to
//! carry out, in order. What is not a method of a state cannot happen in it.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

/// Names a connection; unique while the machine runs.
pub type ConnectionId = u64;

/// What a session does that has no connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alone {
    Ends,
    /// Waits for one for so long.
    Waits(Duration),
    /// Lives until it is stopped.
    Stays,
}

/// What the configuration says about the session, fixed when it is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    pub alone: Alone,
    /// When the session ends whatever is connected; `None` = never.
    pub ends_at: Option<SystemTime>,
    /// How long nobody may use it before its connections are closed; `None` = for ever.
    pub idle: Option<Duration>,
}

/// Why a session ends: goes into the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    Disconnect,
    GraceExpired,
    /// Nobody has used it, and it does not stay without connections.
    IdleTimeout,
    MaxLifetime,
    /// An administrator asked for it.
    Stop,
    /// The server ends, and its sessions with it.
    Shutdown,
    /// Its init is gone, killed by somebody or by the kernel.
    ContainerDied,
    /// Found at start without anything that would keep it.
    Reconcile,
    /// An init of it speaks a version of the protocol that this server does not.
    Incompatible,
    /// Its Podfile's `on_create` has failed.
    SetUpFailed,
}

impl Reason {
    /// The word for logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Disconnect => "disconnect",
            Self::GraceExpired => "grace-expired",
            Self::IdleTimeout => "idle-timeout",
            Self::MaxLifetime => "max-lifetime",
            Self::Stop => "stop",
            Self::Shutdown => "shutdown",
            Self::ContainerDied => "container-died",
            Self::Reconcile => "reconcile",
            Self::Incompatible => "incompatible",
            Self::SetUpFailed => "set-up-failed",
        }
    }

    /// What connected users are told, or `None` if there is nobody, or they know.
    fn notice(&self) -> Option<&'static str> {
        match self {
            Self::Disconnect | Self::GraceExpired | Self::IdleTimeout | Self::SetUpFailed => None,
            Self::Reconcile => Some("the server was restarted before the session was ready; connect again"),
            Self::Incompatible => {
                Some("the server was replaced by a version that cannot go on with this session; connect again")
            }
            Self::MaxLifetime => Some("the session has reached its maximum lifetime and is being removed"),
            Self::Stop => Some("the session was stopped by the administrator"),
            Self::Shutdown => Some("the server is shutting down"),
            Self::ContainerDied => Some("the session's container has died"),
        }
    }
}

/// What the driver has to do after a transition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Give the connection a socket to init. It does not start programs yet.
    Admit(ConnectionId),
    /// Do once what the session's environment says, beginning with nothing.
    SetUp,
    /// Do for the connection what the session's environment says, and let it start programs then.
    Welcome(ConnectionId),
    /// Tell the connection that there is no session, and why.
    Refuse(ConnectionId, String),
    /// Tell the connection's channels why the session ends, and disconnect it.
    Terminate(ConnectionId, String),
    /// Write to the database that the session is running.
    RecordRunning,
    /// Write to the database that the session is in grace until then.
    RecordGrace(SystemTime),
    /// The connection came too late for this session: give it a new one.
    Requeue(ConnectionId),
    /// Take everything down, last step first.
    Destroy(Reason),
}

/// The state after a transition.
#[derive(Debug, PartialEq, Eq)]
pub enum State {
    Creating(Creating),
    SettingUp(SettingUp),
    Running(Running),
    Grace(Grace),
    Stopping(Stopping),
}

/// Its kernel objects are being made.
#[derive(Debug, PartialEq, Eq)]
pub struct Creating {
    waiting: BTreeSet<ConnectionId>,
    stop: Option<Reason>,
}

/// The container is there, and something is done in it before anybody works there.
#[derive(Debug, PartialEq, Eq)]
pub struct SettingUp {
    connections: BTreeSet<ConnectionId>,
    /// Until when somebody must have come; set while nobody is connected.
    alone_until: Option<SystemTime>,
}

/// Somebody is connected, or need not be.
#[derive(Debug, PartialEq, Eq)]
pub struct Running {
    /// Empty only where that is [`Alone::Stays`].
    connections: BTreeSet<ConnectionId>,
}

/// Nobody is connected, and there is time left.
#[derive(Debug, PartialEq, Eq)]
pub struct Grace {
    deadline: SystemTime,
}

/// Everything is being taken down.
#[derive(Debug, PartialEq, Eq)]
pub struct Stopping;

/// A transition's result.
pub type Next = (State, Vec<Action>);

impl Creating {
    /// A new session for its first connection.
    pub fn new(first: ConnectionId) -> Self {
        Self { waiting: BTreeSet::from([first]), stop: None }
    }

    pub fn attach(mut self, connection: ConnectionId) -> Next {
        self.waiting.insert(connection);
        (State::Creating(self), vec![])
    }

    pub fn detach(mut self, connection: ConnectionId) -> Next {
        self.waiting.remove(&connection);
        (State::Creating(self), vec![])
    }

    /// Stops as soon as there is something to stop: the making of kernel objects is not interrupted.
    pub fn stop(mut self, reason: Reason) -> Next {
        self.stop.get_or_insert(reason);
        (State::Creating(self), vec![])
    }

    pub fn created(self, now: SystemTime, policy: &Policy) -> Next {
        if let Some(reason) = self.stop {
            let text = reason.notice().unwrap_or("the session has ended").to_owned();
            let mut actions: Vec<_> = self.waiting.into_iter().map(|c| Action::Refuse(c, text.clone())).collect();
            actions.push(Action::Destroy(reason));
            return (State::Stopping(Stopping), actions);
        }
        let mut actions: Vec<_> = self.waiting.iter().map(|c| Action::Admit(*c)).collect();
        let setting_up = SettingUp { connections: self.waiting, alone_until: None };
        let (state, ended) = setting_up.unless_alone(now, policy);
        actions.extend(ended);
        if let State::SettingUp(_) = state {
            actions.push(Action::SetUp);
        }
        (state, actions)
    }

    /// Nothing was left behind by the attempt, which failed or was given up because of a stop; the session is gone.
    pub fn failed(self, message: &str) -> Vec<Action> {
        let message = self.stop.as_ref().and_then(Reason::notice).unwrap_or(message);
        self.waiting.into_iter().map(|c| Action::Refuse(c, message.to_owned())).collect()
    }
}

impl SettingUp {
    /// Starts the time that it has without connections, or ends it if there is none.
    fn unless_alone(mut self, now: SystemTime, policy: &Policy) -> Next {
        if !self.connections.is_empty() {
            return (State::SettingUp(self), vec![]);
        }
        match from_now_alone(now, policy) {
            Until::Deadline(deadline) => {
                self.alone_until = Some(deadline);
                (State::SettingUp(self), vec![])
            }
            Until::Stopped => (State::SettingUp(self), vec![]),
            Until::Now => stopping(BTreeSet::new(), Reason::Disconnect),
        }
    }

    pub fn connections(&self) -> &BTreeSet<ConnectionId> {
        &self.connections
    }

    pub fn attach(mut self, connection: ConnectionId) -> Next {
        self.connections.insert(connection);
        self.alone_until = None;
        (State::SettingUp(self), vec![Action::Admit(connection)])
    }

    pub fn detach(mut self, connection: ConnectionId, now: SystemTime, policy: &Policy) -> Next {
        if self.connections.remove(&connection) {
            self.unless_alone(now, policy)
        } else {
            (State::SettingUp(self), vec![])
        }
    }

    /// All has been done.
    pub fn done(self) -> Next {
        match self.alone_until {
            Some(deadline) => (State::Grace(Grace { deadline }), vec![Action::RecordGrace(deadline)]),
            None => {
                let mut actions = vec![Action::RecordRunning];
                actions.extend(self.connections.iter().map(|c| Action::Welcome(*c)));
                (State::Running(Running { connections: self.connections }), actions)
            }
        }
    }

    /// What has failed must not be worked with.
    pub fn failed(self, message: &str) -> Next {
        let mut actions: Vec<_> = self.connections.into_iter().map(|c| Action::Refuse(c, message.to_owned())).collect();
        actions.push(Action::Destroy(Reason::SetUpFailed));
        (State::Stopping(Stopping), actions)
    }

    pub fn stop(self, reason: Reason) -> Next {
        stopping(self.connections, reason)
    }

    pub fn deadline(&self, policy: &Policy) -> Option<SystemTime> {
        policy.ends_at.into_iter().chain(self.alone_until).min()
    }

    pub fn tick(self, now: SystemTime, policy: &Policy) -> Next {
        if policy.ends_at.is_some_and(|end| end <= now) {
            self.stop(Reason::MaxLifetime)
        } else if self.alone_until.is_some_and(|until| until <= now) {
            self.stop(Reason::GraceExpired)
        } else {
            (State::SettingUp(self), vec![])
        }
    }
}

/// How long a session stays.
enum Until {
    Now,
    Deadline(SystemTime),
    Stopped,
}

/// How long a session stays that has no connections from now on.
fn from_now_alone(now: SystemTime, policy: &Policy) -> Until {
    match policy.alone {
        Alone::Ends | Alone::Waits(Duration::ZERO) => Until::Now,
        Alone::Waits(grace) => Until::Deadline(now + grace),
        Alone::Stays => Until::Stopped,
    }
}

/// Where a session without connections goes; `reason` if that is its end.
fn abandoned(now: SystemTime, policy: &Policy, reason: Reason) -> Next {
    match from_now_alone(now, policy) {
        Until::Deadline(deadline) => (State::Grace(Grace { deadline }), vec![Action::RecordGrace(deadline)]),
        Until::Stopped => (State::Running(Running { connections: BTreeSet::new() }), vec![Action::RecordRunning]),
        Until::Now => stopping(BTreeSet::new(), reason),
    }
}

fn stopping(connections: BTreeSet<ConnectionId>, reason: Reason) -> Next {
    let notice = reason.notice().unwrap_or("the session has ended").to_owned();
    let mut actions: Vec<_> = connections.into_iter().map(|c| Action::Terminate(c, notice.clone())).collect();
    actions.push(Action::Destroy(reason));
    (State::Stopping(Stopping), actions)
}

impl Running {
    /// A session that an earlier supervisor made, with the connections that are still there; those of `waiting` have not
    /// been welcomed.
    pub fn adopted(
        connections: BTreeSet<ConnectionId>,
        waiting: &BTreeSet<ConnectionId>,
        now: SystemTime,
        policy: &Policy,
    ) -> Next {
        if connections.is_empty() {
            return abandoned(now, policy, Reason::Disconnect);
        }
        let mut actions = vec![Action::RecordRunning];
        actions.extend(connections.intersection(waiting).map(|c| Action::Welcome(*c)));
        (State::Running(Self { connections }), actions)
    }

    pub fn connections(&self) -> &BTreeSet<ConnectionId> {
        &self.connections
    }

    pub fn attach(mut self, connection: ConnectionId) -> Next {
        self.connections.insert(connection);
        (State::Running(self), vec![Action::Admit(connection), Action::Welcome(connection)])
    }

    pub fn detach(mut self, connection: ConnectionId, now: SystemTime, policy: &Policy) -> Next {
        if self.connections.remove(&connection) && self.connections.is_empty() {
            abandoned(now, policy, Reason::Disconnect)
        } else {
            (State::Running(self), vec![])
        }
    }

    /// Nobody has used it for too long: everybody is told, and what becomes of it is what becomes of any that is left alone.
    pub fn idle(self, message: &str, now: SystemTime, policy: &Policy) -> Next {
        let mut actions: Vec<_> =
            self.connections.into_iter().map(|c| Action::Terminate(c, message.to_owned())).collect();
        let (state, following) = abandoned(now, policy, Reason::IdleTimeout);
        actions.extend(following);
        (state, actions)
    }

    pub fn stop(self, reason: Reason) -> Next {
        stopping(self.connections, reason)
    }

    /// When something has to happen by itself.
    pub fn deadline(&self, policy: &Policy) -> Option<SystemTime> {
        policy.ends_at
    }

    pub fn tick(self, now: SystemTime, policy: &Policy) -> Next {
        if policy.ends_at.is_some_and(|end| end <= now) {
            self.stop(Reason::MaxLifetime)
        } else {
            (State::Running(self), vec![])
        }
    }
}

impl Grace {
    /// A session in grace that an earlier supervisor left; its deadline stays what it was.
    pub fn adopted(deadline: SystemTime) -> Self {
        Self { deadline }
    }

    pub fn attach(self, connection: ConnectionId) -> Next {
        let actions = vec![Action::RecordRunning, Action::Admit(connection), Action::Welcome(connection)];
        (State::Running(Running { connections: BTreeSet::from([connection]) }), actions)
    }

    pub fn stop(self, reason: Reason) -> Next {
        stopping(BTreeSet::new(), reason)
    }

    pub fn deadline(&self, policy: &Policy) -> SystemTime {
        policy.ends_at.map_or(self.deadline, |end| end.min(self.deadline))
    }

    pub fn tick(self, now: SystemTime, policy: &Policy) -> Next {
        if policy.ends_at.is_some_and(|end| end <= now) {
            self.stop(Reason::MaxLifetime)
        } else if self.deadline <= now {
            self.stop(Reason::GraceExpired)
        } else {
            (State::Grace(self), vec![])
        }
    }
}

impl Stopping {
    /// A session that was found like this, or that has nothing to keep it, is taken down; whoever is still connected is
    /// told.
    pub fn adopted(connections: BTreeSet<ConnectionId>, reason: Reason) -> Next {
        stopping(connections, reason)
    }

    pub fn attach(self, connection: ConnectionId) -> Next {
        (State::Stopping(self), vec![Action::Requeue(connection)])
    }
}

#[cfg(test)]
mod tests;
