//! What the control API exchanges.

use serde::{Deserialize, Serialize};

/// A session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub user: String,
    pub project: Option<String>,
    /// `None` until it has a record.
    pub id: Option<String>,
    pub image: Option<String>,
    /// `creating`, `running`, `grace` or `stopping`.
    pub status: String,
    pub connections: usize,
    pub age_seconds: u64,
    /// Until the session ends whatever is connected; `None` = never.
    pub lifetime_seconds: Option<u64>,
    /// Until the session ends if nobody connects, in grace.
    pub grace_seconds: Option<u64>,
    /// Pid of its init, on the host.
    pub pid: Option<i32>,
}

/// The server in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub sessions: usize,
    pub running: usize,
    pub grace: usize,
    pub connections: usize,
    pub oldest_session_seconds: Option<u64>,
}

impl Status {
    /// Counts `sessions`.
    pub fn of(sessions: &[Session]) -> Self {
        let with = |status| sessions.iter().filter(|session| session.status == status).count();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sessions: sessions.len(),
            running: with("running"),
            grace: with("grace"),
            connections: sessions.iter().map(|session| session.connections).sum(),
            oldest_session_seconds: sessions.iter().map(|session| session.age_seconds).max(),
        }
    }
}

/// The body of an answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub error: String,
}
