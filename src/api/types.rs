//! What the control API exchanges.

mod images;

pub use self::images::{CachedFile, Image, ImageDetails, ImageId, Layer, Pruned};

use serde::{Deserialize, Serialize};

use std::{collections::BTreeMap, path::PathBuf};

use crate::{config::projects, names::ProjectName, podfile::BuildPlan, protocol::ExitStatus};

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
    /// `destroy-on-disconnect`, `grace-period` or `persistent`; `None` until it has a record.
    #[serde(default)]
    pub mode: Option<String>,
    pub connections: usize,
    pub age_seconds: u64,
    /// Until the session ends whatever is connected; `None` = never.
    pub lifetime_seconds: Option<u64>,
    /// Until the session ends if nobody connects, in grace.
    pub grace_seconds: Option<u64>,
    /// Pid of its init, on the host.
    pub pid: Option<i32>,
    #[serde(default)]
    pub services: Vec<Service>,
    /// What of it is to be had on the host's loopback address.
    #[serde(default)]
    pub ports: Vec<crate::session::ExposedPort>,
}

/// A service of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    pub image: String,
    /// The name of its container: the session's id and a letter.
    pub container: String,
    /// Whom it runs as, as its image calls that, and where it starts.
    pub user: String,
    pub workdir: String,
    /// Pid of its init, on the host.
    pub pid: Option<i32>,
}

/// All that is known of a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    #[serde(flatten)]
    pub session: Session,
    /// RFC 3339.
    pub created: String,
    /// Digest of the image's manifest.
    pub image_id: String,
    pub mode: String,
    pub hostname: String,
    pub address: Option<String>,
    /// Where it may connect to: `public`, `none`, `open`, or a list of networks.
    pub egress: String,
    /// The container's ids from 0 on are this and the following of the host.
    pub first_id: u32,
    /// The name of the user inside.
    pub account: String,
    pub sudo: bool,
    pub shell: String,
    /// Where shells and commands start; `None` = in the home directory.
    pub workdir: Option<String>,
    /// `NAME=value`
    pub env: Vec<String>,
    pub limits: Limits,
    pub security: Security,
}

/// What a session may use at most; `None` is no limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    pub cpus: Option<f64>,
    pub memory_bytes: Option<u64>,
    pub pids: Option<u64>,
}

/// What a session's processes may do (docs/security.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    /// The bounding set.
    pub capabilities: Vec<String>,
    pub no_new_privileges: bool,
    pub readonly_rootfs: bool,
    /// `default`, `nested`, `profile` for the administrator's own, or `none`.
    pub seccomp: String,
    pub nested: bool,
    /// Paths and options.
    pub tmpfs: BTreeMap<String, String>,
}

/// What a session uses: all of its containers together, and of that each service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    pub user: String,
    pub project: Option<String>,
    pub id: String,
    #[serde(flatten)]
    pub usage: Usage,
    pub services: Vec<ServiceStats>,
}

/// What one of a session's services uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStats {
    pub name: String,
    #[serde(flatten)]
    pub usage: Usage,
}

/// Counters of processes. `None` is what is not counted on this host, or not yet, or not limited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time since the session was made. How busy it is, is the difference between two samples.
    pub cpu_us: Option<u64>,
    /// Without the part of the page cache that would be dropped first.
    pub memory_bytes: Option<u64>,
    pub memory_limit_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    pub pids_limit: Option<u64>,
    /// Processes killed because the memory was used up.
    pub oom_kills: Option<u64>,
    /// What was written to root file systems, at most some 15 seconds ago.
    pub disk_bytes: Option<u64>,
    /// Of a session whose disk is limited: what can be written to it at most.
    #[serde(default)]
    pub disk_limit_bytes: Option<u64>,
    /// Whether that is all of it: what is too much to be looked at is not counted.
    pub disk_complete: bool,
    /// Bytes that were received and sent since the session was made.
    pub rx_bytes: Option<u64>,
    pub tx_bytes: Option<u64>,
}

/// The server in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub sessions: usize,
    pub running: usize,
    pub grace: usize,
    /// Sessions whose container runs.
    pub containers: usize,
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
            containers: sessions.iter().filter(|session| session.pid.is_some()).count(),
            connections: sessions.iter().map(|session| session.connections).sum(),
            oldest_session_seconds: sessions.iter().map(|session| session.age_seconds).max(),
        }
    }
}

/// An image to build: of exactly one of the first three.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildRequest {
    /// As made of a Podfile by this version of podspawn.
    #[serde(default)]
    pub plan: Option<BuildPlan>,
    /// The text of a podfile.yaml, which extends no files.
    #[serde(default)]
    pub podfile: Option<String>,
    /// The image of a project that is registered.
    #[serde(default)]
    pub project: Option<ProjectName>,
    /// A name for it.
    #[serde(default)]
    pub tag: Option<String>,
}

/// How something goes that takes its time; what comes last is the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job<T> {
    /// What is done now, one line for people.
    Progress(String),
    Done(T),
    /// It has failed, in one line; `output` are lines that say more, such as the end of what a step of a build has written.
    Failed {
        error: String,
        output: Vec<String>,
    },
}

/// What there was of a session that has been taken down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Down {
    /// Whether there was a session.
    pub stopped: bool,
    /// Names of the volumes that have been removed.
    pub volumes: Vec<String>,
}

/// What a cleanup has removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleaned {
    /// Ids of sessions that had no record, or whose container was gone.
    pub sessions: Vec<String>,
    /// What nobody was making any more in the image store.
    pub unfinished: usize,
    /// What could not be removed, each as one line.
    pub failures: Vec<String>,
}

impl From<crate::session::Cleaned> for Cleaned {
    fn from(cleaned: crate::session::Cleaned) -> Self {
        let crate::session::Cleaned { sessions, unfinished, failures } = cleaned;
        Self { sessions: sessions.iter().map(ToString::to_string).collect(), unfinished, failures }
    }
}

/// A line that a hook or a service of a session has said.
pub type LogLine = crate::session::log::Entry;

/// What is kept of a session that is gone.
pub use crate::session::evidence::{Record, Summary as RecordSummary, Used};

/// Which files of a session are not as in its image.
pub use crate::runtime::changes::{Change, Changes, Kind as ChangeKind};

/// A program to run in a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Run in this service, as its user.
    #[serde(default)]
    pub service: Option<String>,
}

/// What it says, and how it ends, which comes last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecOutput {
    /// A line without its end, or a part of a long one. What is no UTF-8 is replaced.
    Stdout(String),
    Stderr(String),
    Ended {
        #[serde(flatten)]
        end: ExecEnd,
        /// Whether all that it has said was passed on.
        complete: bool,
    },
    /// It was not run, or nobody knows how it has ended.
    Failed {
        error: String,
    },
}

/// What an administrator runs in a session beside the server, for the audit log: once before it is run, once when it has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecReport {
    /// The session that it runs in, by its id.
    pub session: String,
    /// `None` in the user's container.
    pub service: Option<String>,
    pub command: Vec<String>,
    /// `None` before it is run.
    pub ended: Option<ExecEnd>,
}

/// How a program has ended: by itself with an exit code, or by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecEnd {
    pub exit_code: Option<u8>,
    pub signal: Option<i32>,
    pub duration_ms: u64,
}

impl ExecEnd {
    /// `duration_ms` after it was begun.
    pub fn of(status: ExitStatus, duration_ms: u64) -> Self {
        match status {
            ExitStatus::Code(code) => Self { exit_code: Some(code), signal: None, duration_ms },
            ExitStatus::Signal { signal, .. } => Self { exit_code: None, signal: Some(signal), duration_ms },
        }
    }

    /// `None` if that is not said.
    pub fn status(&self) -> Option<ExitStatus> {
        let signal = self.signal.map(|signal| ExitStatus::Signal { signal, core_dumped: false });
        signal.or(self.exit_code.map(ExitStatus::Code))
    }
}

/// A user.
pub type User = crate::access::users::User;

/// Keys for a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewKeys {
    /// Each one or more lines in `authorized_keys` format.
    #[serde(default)]
    pub keys: Vec<String>,
    /// Logins of GitHub users whose public keys are to be added.
    #[serde(default)]
    pub github: Vec<String>,
}

/// What has come of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedKeys {
    /// How many keys were not there before.
    pub added: usize,
    /// What was left out, and why.
    pub warnings: Vec<String>,
}

/// What there was of a user who has been removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedUser {
    /// How many were ended.
    pub sessions: usize,
    /// Nothing unless that was asked for.
    #[serde(flatten)]
    pub removed: crate::session::belongings::Removed,
}

/// A project to add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewProject {
    /// Where its git repository is.
    pub repo: String,
    /// Instead of the repository's default.
    #[serde(default)]
    pub branch: Option<String>,
}

/// A project that was added or fetched anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectChange {
    pub project: Project,
    /// What it was before an update.
    pub before: Option<Project>,
    /// What in its Podfile may not mean what its author thinks.
    pub warnings: Vec<String>,
}

/// A registered project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    pub name: String,
    /// Without a password.
    pub repo: String,
    pub branch: Option<String>,
    pub local_path: PathBuf,
    pub commit: Option<String>,
    pub podfile_hash: Option<String>,
    pub mode: Option<String>,
    pub egress: Option<String>,
}

impl Project {
    /// As it is listed.
    pub fn of(name: &ProjectName, project: &projects::Project) -> Self {
        Self {
            name: name.to_string(),
            repo: projects::shown(&project.repo),
            branch: project.branch.clone(),
            local_path: project.local_path.clone(),
            commit: project.commit.clone(),
            podfile_hash: project.podfile_hash.clone(),
            mode: project.mode.map(|mode| mode.as_str().to_owned()),
            egress: project.egress.as_ref().map(ToString::to_string),
        }
    }
}

/// A field of the configuration.
pub use crate::config::Setting;

/// Whether the configuration's files are valid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigCheck {
    pub file: PathBuf,
    /// What is not; `None` = they are. The last valid configuration then stays in force.
    pub error: Option<String>,
    /// What is wrong with single keys, which are not used then.
    pub warnings: Vec<String>,
}

/// Whether the host is fit for sessions.
pub use crate::doctor::Report as DoctorReport;

/// The body of an answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub error: String,
}
