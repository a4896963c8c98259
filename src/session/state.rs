//! The life of a session as a pure state machine: no I/O, and the time is an argument.
//!
//! ```text
//!            created, somebody waits            last detach, grace mode
//! Creating ───────────────────────▶ Running ───────────────────────────▶ Grace
//!    │  │                            ▲  │ │                               │ │
//!    │  │ created, nobody waits      │  │ │ last detach, destroy mode     │ │
//!    │  └────────────▶ Grace/Stopping│  │ │ container died, stop, limit   │ │ deadline, stop,
//!    │ failed                        │  │ ▼                               │ │ container died
//!    ▼                               │  └────────▶ Stopping ◀─────────────┼─┘
//!   gone                             └────────────────────────────────────┘ attach
//! ```
//!
//! Each state is a struct; a transition consumes it and returns the next one with the actions that the driver has to
//! carry out, in order. What is not a method of a state cannot happen in it.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

/// Names a connection; unique while the machine runs.
pub type ConnectionId = u64;

/// What the configuration says about the session, fixed when it is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// `None` destroys the session with its last connection.
    pub grace: Option<Duration>,
    /// When the session ends whatever is connected; `None` = never.
    pub ends_at: Option<SystemTime>,
}

/// Why a session ends: goes into the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    Disconnect,
    GraceExpired,
    MaxLifetime,
    /// An administrator asked for it.
    Stop,
    /// The server ends, and its sessions with it.
    Shutdown,
    /// Its init is gone, killed by somebody or by the kernel.
    ContainerDied,
    /// Found at start without anything that would keep it.
    Reconcile,
}

impl Reason {
    /// The word for logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Disconnect => "disconnect",
            Self::GraceExpired => "grace-expired",
            Self::MaxLifetime => "max-lifetime",
            Self::Stop => "stop",
            Self::Shutdown => "shutdown",
            Self::ContainerDied => "container-died",
            Self::Reconcile => "reconcile",
        }
    }

    /// What connected users are told, or `None` if the cause is their own disconnect.
    fn notice(&self) -> Option<&'static str> {
        match self {
            Self::Disconnect | Self::GraceExpired | Self::Reconcile => None,
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
    /// Give the connection a socket to init.
    Admit(ConnectionId),
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

/// Somebody is connected.
#[derive(Debug, PartialEq, Eq)]
pub struct Running {
    /// Never empty.
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
        if self.waiting.is_empty() {
            return abandoned(now, policy);
        }
        let mut actions = vec![Action::RecordRunning];
        actions.extend(self.waiting.iter().map(|c| Action::Admit(*c)));
        (State::Running(Running { connections: self.waiting }), actions)
    }

    /// Nothing was left behind by the attempt, which failed or was given up because of a stop; the session is gone.
    pub fn failed(self, message: &str) -> Vec<Action> {
        let message = self.stop.as_ref().and_then(Reason::notice).unwrap_or(message);
        self.waiting.into_iter().map(|c| Action::Refuse(c, message.to_owned())).collect()
    }
}

/// Where a session without connections goes.
fn abandoned(now: SystemTime, policy: &Policy) -> Next {
    match policy.grace {
        Some(grace) if !grace.is_zero() => {
            let deadline = now + grace;
            (State::Grace(Grace { deadline }), vec![Action::RecordGrace(deadline)])
        }
        _ => stopping(BTreeSet::new(), Reason::Disconnect),
    }
}

fn stopping(connections: BTreeSet<ConnectionId>, reason: Reason) -> Next {
    let notice = reason.notice().unwrap_or("the session has ended").to_owned();
    let mut actions: Vec<_> = connections.into_iter().map(|c| Action::Terminate(c, notice.clone())).collect();
    actions.push(Action::Destroy(reason));
    (State::Stopping(Stopping), actions)
}

impl Running {
    /// A session that an earlier supervisor made, with the connections that are still there.
    pub fn adopted(connections: BTreeSet<ConnectionId>, now: SystemTime, policy: &Policy) -> Next {
        if connections.is_empty() {
            abandoned(now, policy)
        } else {
            (State::Running(Self { connections }), vec![Action::RecordRunning])
        }
    }

    pub fn connections(&self) -> &BTreeSet<ConnectionId> {
        &self.connections
    }

    pub fn attach(mut self, connection: ConnectionId) -> Next {
        self.connections.insert(connection);
        (State::Running(self), vec![Action::Admit(connection)])
    }

    pub fn detach(mut self, connection: ConnectionId, now: SystemTime, policy: &Policy) -> Next {
        self.connections.remove(&connection);
        if self.connections.is_empty() { abandoned(now, policy) } else { (State::Running(self), vec![]) }
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
        let connections = BTreeSet::from([connection]);
        (State::Running(Running { connections }), vec![Action::RecordRunning, Action::Admit(connection)])
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
    /// A session that was found like this, or that has nothing to keep it, is taken down.
    pub fn adopted(reason: Reason) -> Next {
        (State::Stopping(Self), vec![Action::Destroy(reason)])
    }

    pub fn attach(self, connection: ConnectionId) -> Next {
        (State::Stopping(self), vec![Action::Requeue(connection)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;
    const GRACE: Policy = Policy { grace: Some(Duration::from_secs(60)), ends_at: None };
    const DESTROY: Policy = Policy { grace: None, ends_at: None };

    fn running(connections: &[ConnectionId]) -> Running {
        Running { connections: connections.iter().copied().collect() }
    }

    #[test]
    fn everybody_who_waited_is_admitted() {
        let (state, _) = Creating::new(1).attach(2);
        let State::Creating(creating) = state else { panic!() };
        let (state, actions) = creating.created(NOW, &GRACE);
        assert_eq!(actions, [Action::RecordRunning, Action::Admit(1), Action::Admit(2)]);
        assert_eq!(state, State::Running(running(&[1, 2])));
    }

    #[test]
    fn a_session_nobody_waits_for_goes_straight_to_grace_or_away() {
        let gone = |policy| {
            let (state, _) = Creating::new(1).detach(1);
            let State::Creating(creating) = state else { panic!() };
            creating.created(NOW, policy)
        };
        let deadline = NOW + Duration::from_secs(60);
        assert_eq!(gone(&GRACE), (State::Grace(Grace { deadline }), vec![Action::RecordGrace(deadline)]));
        assert_eq!(gone(&DESTROY).1, [Action::Destroy(Reason::Disconnect)]);
    }

    #[test]
    fn zero_grace_destroys() {
        let policy = Policy { grace: Some(Duration::ZERO), ends_at: None };
        let (_, actions) = running(&[1]).detach(1, NOW, &policy);
        assert_eq!(actions, [Action::Destroy(Reason::Disconnect)]);
    }

    #[test]
    fn only_the_last_connection_counts() {
        let (state, actions) = running(&[1, 2]).detach(1, NOW, &DESTROY);
        assert_eq!((state, actions), (State::Running(running(&[2])), vec![]));
    }

    #[test]
    fn a_reconnect_cancels_grace_and_its_expiry_ends_it() {
        let grace = || Grace::adopted(NOW + Duration::from_secs(5));
        assert_eq!(grace().attach(3).0, State::Running(running(&[3])));
        assert_eq!(grace().tick(NOW + Duration::from_secs(4), &GRACE), (State::Grace(grace()), vec![]));
        let (_, actions) = grace().tick(NOW + Duration::from_secs(5), &GRACE);
        assert_eq!(actions, [Action::Destroy(Reason::GraceExpired)]);
    }

    #[test]
    fn the_lifetime_ends_a_session_that_is_in_use_and_says_so() {
        let policy = Policy { ends_at: Some(NOW), ..GRACE };
        let (_, actions) = running(&[1]).tick(NOW, &policy);
        assert!(matches!(&actions[..], [Action::Terminate(1, text), Action::Destroy(Reason::MaxLifetime)]
            if text.contains("maximum lifetime")));
    }

    #[test]
    fn stopping_while_creating_refuses_those_who_wait() {
        let (state, _) = Creating::new(1).stop(Reason::Stop);
        let State::Creating(creating) = state else { panic!() };
        let (state, actions) = creating.created(NOW, &GRACE);
        assert!(matches!(&actions[..], [Action::Refuse(1, _), Action::Destroy(Reason::Stop)]));
        assert!(matches!(state, State::Stopping(_)));
    }

    #[test]
    fn a_creation_that_was_given_up_is_told_as_what_it_was() {
        let (state, _) = Creating::new(1).stop(Reason::Shutdown);
        let State::Creating(creating) = state else { panic!() };
        assert_eq!(creating.failed("cut off"), [Action::Refuse(1, "the server is shutting down".to_owned())]);
        assert_eq!(Creating::new(1).failed("no image"), [Action::Refuse(1, "no image".to_owned())]);
    }

    proptest! {
        /// Whatever happens, every connection is answered at most once, and a session without connections never stays.
        #[test]
        fn connections_are_answered_once(events in proptest::collection::vec((0u8..5, 1u64..5), 1..60), grace in any::<bool>()) {
            let policy = if grace { GRACE } else { DESTROY };
            let mut now = NOW;
            let mut open = BTreeSet::from([1]);
            let mut answered = BTreeSet::new();
            let mut destroyed = 0;
            let mut state = State::Creating(Creating::new(1));
            for (event, connection) in events {
                now += Duration::from_secs(7);
                let fresh = !open.contains(&connection) && !answered.contains(&connection);
                let (next, actions) = match (state, event) {
                    (State::Creating(s), 0) => s.created(now, &policy),
                    (State::Creating(s), 1) if fresh => { open.insert(connection); s.attach(connection) }
                    (State::Creating(s), 2) => { open.remove(&connection); s.detach(connection) }
                    (State::Creating(s), 3) => s.stop(Reason::Stop),
                    (State::Running(s), 1) if fresh => { open.insert(connection); s.attach(connection) }
                    (State::Running(s), 2) => { open.remove(&connection); s.detach(connection, now, &policy) }
                    (State::Running(s), 3) => s.stop(Reason::Stop),
                    (State::Running(s), 4) => s.tick(now, &policy),
                    (State::Grace(s), 1) if fresh => { open.insert(connection); s.attach(connection) }
                    (State::Grace(s), 3) => s.stop(Reason::Stop),
                    (State::Grace(s), 4) => s.tick(now, &policy),
                    (State::Stopping(s), 1) if fresh => { open.insert(connection); s.attach(connection) }
                    (same, _) => (same, vec![]),
                };
                for action in &actions {
                    match action {
                        Action::Admit(c) | Action::Refuse(c, _) | Action::Requeue(c) => prop_assert!(answered.insert(*c)),
                        Action::Terminate(c, _) => prop_assert!(answered.contains(c)),
                        Action::Destroy(_) => destroyed += 1,
                        Action::RecordRunning | Action::RecordGrace(_) => {}
                    }
                }
                if let State::Running(running) = &next {
                    prop_assert!(!running.connections.is_empty());
                }
                prop_assert_eq!(destroyed, usize::from(matches!(next, State::Stopping(_))));
                state = next;
            }
        }
    }
}
