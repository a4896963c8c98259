//! What stays of a session when it is gone: one small record, for `session.keep_records`.
//!
//! While a session lives, [`Journal`] keeps its commands beside its log, so that a supervisor's end loses none. When it ends,
//! [`Gathering`] reads what there is between the steps that remove it, and [`Records`] keeps the result. What is in a record was
//! chosen by strangers, so each part of it has a bound, and everything is a JSON string.

mod gather;
mod journal;
mod records;

use serde::{Deserialize, Serialize};

pub(super) use self::gather::Gathering;
pub use self::{
    journal::{Begun, Command, Journal},
    records::Records,
};
use super::log;
use crate::runtime::changes::Changes;

/// A session that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    pub user: String,
    pub project: Option<String>,
    pub id: String,
    pub image: String,
    /// Milliseconds since the epoch, as all times here.
    pub created_ms: u64,
    pub ended_ms: u64,
    /// Why, in the audit log's word.
    pub reason: String,
}

/// All that is kept of a session that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    #[serde(flatten)]
    pub session: Gone,
    /// Of all its containers together.
    pub used: Used,
    pub services: Vec<Service>,
    /// In the order in which they ended, and then those that still ran.
    pub commands: Vec<Command>,
    /// Whether these are all.
    pub commands_complete: bool,
    /// What was written to the user's container, over what its image has.
    pub changes: Changes,
    /// The end of what its hooks and services have said, in the order in which it was said.
    pub output: Vec<log::Entry>,
}

/// A record in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    #[serde(flatten)]
    pub session: Gone,
    /// How many commands, changed files and lines of output its record has.
    pub commands: usize,
    pub changes: usize,
    pub lines: usize,
    pub oom_kills: Option<u64>,
}

impl From<Record> for Summary {
    fn from(record: Record) -> Self {
        Self {
            commands: record.commands.len(),
            changes: record.changes.changes.len(),
            lines: record.output.len(),
            oom_kills: record.used.oom_kills,
            session: record.session,
        }
    }
}

/// One of a session's services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    pub image: String,
    pub used: Used,
}

/// What processes have used. `None` is what was not counted on this host, or could not be read any more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    pub cpu_us: Option<u64>,
    /// The most at one time, the page cache included.
    pub memory_peak_bytes: Option<u64>,
    pub memory_limit_bytes: Option<u64>,
    /// The most processes and threads at one time.
    pub pids_peak: Option<u64>,
    pub pids_limit: Option<u64>,
    pub oom_kills: Option<u64>,
    pub rx_bytes: Option<u64>,
    pub tx_bytes: Option<u64>,
}
