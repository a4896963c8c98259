//! The rows of the database as values.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rusqlite::Row;

use crate::{
    config::Mode,
    names::{ProjectName, ServicePlace, SessionId, UserName},
};

/// How far a session is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Creating,
    Running,
    Grace,
    Stopping,
}

impl Phase {
    /// The word in the database and in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Grace => "grace",
            Self::Stopping => "stopping",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::Creating, Self::Running, Self::Grace, Self::Stopping].into_iter().find(|phase| phase.as_str() == word)
    }
}

/// What a row stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Session,
    /// A container that a step of an image is done in. Nobody is connected to it, there may be any number, and it does not
    /// outlive its supervisor.
    Build,
}

impl Kind {
    /// The word in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Build => "build",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::Session, Self::Build].into_iter().find(|kind| kind.as_str() == word)
    }
}

/// What is known of a session before it has a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSession {
    pub id: SessionId,
    pub kind: Kind,
    pub user: UserName,
    pub project: Option<ProjectName>,
    /// Digest of the image's manifest, and the name that it was found by.
    pub image: String,
    pub image_reference: String,
    pub mode: Mode,
    pub created_at: SystemTime,
    /// `/proc/sys/kernel/random/boot_id`
    pub boot_id: String,
    /// A script for each connection.
    pub on_start: Option<String>,
    /// Where it may connect to, as a file would say it; `None` = where all may. Means nothing to the database.
    pub egress: Option<String>,
}

/// What is known of a session's service before it has a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewService {
    /// By which it is reached.
    pub name: String,
    /// Digest of the image's manifest, and the name that it was found by.
    pub image: String,
    pub image_reference: String,
    /// How it is run, for who has to start it again. Means nothing to the database.
    pub plan: String,
}

/// A service of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRecord {
    pub place: ServicePlace,
    pub name: String,
    /// Unique among the sessions and services that exist: decides the address.
    pub slot: u32,
    pub id_base: u32,
    pub image: String,
    pub image_reference: String,
    pub plan: String,
    /// Pid and start time of the container's init.
    pub init: Option<(i32, u64)>,
    /// The version of the protocol that it speaks.
    pub init_version: u32,
    /// `None` until it has a network.
    pub address: Option<Ipv4Addr>,
}

impl ServiceRecord {
    pub(super) fn new(new: NewService, place: ServicePlace, slot: u32, id_base: u32) -> Self {
        let NewService { name, image, image_reference, plan } = new;
        Self { place, name, slot, id_base, image, image_reference, plan, init: None, init_version: 1, address: None }
    }
}

/// A session. Times have a resolution of a millisecond.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRecord {
    pub id: SessionId,
    pub kind: Kind,
    pub user: UserName,
    pub project: Option<ProjectName>,
    /// Unique among the sessions and services that exist: decides the address.
    pub slot: u32,
    /// The first of the container's ids on the host.
    pub id_base: u32,
    pub phase: Phase,
    pub image: String,
    pub image_reference: String,
    pub mode: Mode,
    /// Pid and start time of the container's init.
    pub init: Option<(i32, u64)>,
    /// The version of the protocol that it speaks.
    pub init_version: u32,
    /// Set in phase `grace`.
    pub grace_deadline: Option<SystemTime>,
    pub created_at: SystemTime,
    /// `None` until the session has a network.
    pub address: Option<Ipv4Addr>,
    pub boot_id: String,
    /// In the order of their places.
    pub services: Vec<ServiceRecord>,
    /// A script for each connection.
    pub on_start: Option<String>,
    /// Where it may connect to, as a file would say it; `None` = where all may. Means nothing to the database.
    pub egress: Option<String>,
    /// Its ports that are to be had on the host. Means nothing to the database.
    pub ports: Option<String>,
}

impl SessionRecord {
    pub(super) fn new(new: NewSession, slot: u32, id_base: u32) -> Self {
        let NewSession { id, kind, user, project, image, image_reference, mode, created_at, boot_id, on_start, egress } =
            new;
        Self {
            id,
            kind,
            user,
            project,
            slot,
            id_base,
            phase: Phase::Creating,
            image,
            image_reference,
            mode,
            init: None,
            init_version: 1,
            grace_deadline: None,
            created_at,
            address: None,
            boot_id,
            services: Vec::new(),
            on_start,
            egress,
            ports: None,
        }
    }
}

/// A connection that is attached to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionRecord {
    pub id: u64,
    pub session: SessionId,
    pub peer: SocketAddr,
    /// Of the key that logged in.
    pub fingerprint: String,
    /// Pid and start time of its process.
    pub process: (i32, u64),
    /// Public key or certificate; `None` if an earlier version has not written it down.
    pub credential: Option<Vec<u8>>,
    pub logged_in: SystemTime,
}

/// The word for a mode in the database.
pub(super) fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::DestroyOnDisconnect => "destroy-on-disconnect",
        Mode::GracePeriod => "grace-period",
        Mode::Persistent => "persistent",
    }
}

fn mode_from_word(word: &str) -> Option<Mode> {
    let all = [Mode::DestroyOnDisconnect, Mode::GracePeriod, Mode::Persistent];
    all.into_iter().find(|mode| mode_word(*mode) == word)
}

fn time(millis: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or_default())
}

/// Reads a row of `sessions`; the inner error says which column cannot be.
pub(super) fn session_from_row(row: &Row<'_>) -> rusqlite::Result<Result<SessionRecord, String>> {
    let (id, user, phase, mode): (String, String, String, String) =
        (row.get("id")?, row.get("user")?, row.get("phase")?, row.get("mode")?);
    let kind: String = row.get("kind")?;
    let project: Option<String> = row.get("project")?;
    let pid: Option<i32> = row.get("init_pid")?;
    let starttime: Option<i64> = row.get("init_starttime")?;
    let grace_deadline: Option<i64> = row.get("grace_deadline_ms")?;
    let address: Option<String> = row.get("address")?;
    let on_start: Option<String> = row.get("on_start")?;
    let egress: Option<String> = row.get("egress")?;
    let ports: Option<String> = row.get("ports")?;
    let (slot, id_base, init_version, image, image_reference, created_at, boot_id) = (
        row.get("slot")?,
        row.get("id_base")?,
        row.get("init_version")?,
        row.get("image")?,
        row.get("image_reference")?,
        time(row.get("created_at_ms")?),
        row.get("boot_id")?,
    );
    let parse = || -> Result<SessionRecord, String> {
        Ok(SessionRecord {
            id: id.parse().map_err(text)?,
            kind: Kind::from_word(&kind).ok_or_else(|| format!("kind {kind:?}"))?,
            user: user.parse().map_err(text)?,
            project: project.as_deref().map(str::parse).transpose().map_err(text)?,
            slot,
            id_base,
            phase: Phase::from_word(&phase).ok_or_else(|| format!("phase {phase:?}"))?,
            image,
            image_reference,
            mode: mode_from_word(&mode).ok_or_else(|| format!("mode {mode:?}"))?,
            init: pid.zip(starttime.and_then(|ticks| u64::try_from(ticks).ok())),
            init_version,
            grace_deadline: grace_deadline.map(time),
            created_at,
            address: address.as_deref().map(str::parse).transpose().map_err(text)?,
            boot_id,
            services: Vec::new(),
            on_start,
            egress,
            ports,
        })
    };
    Ok(parse())
}

/// Reads a row of `services` with the session that it is of, likewise.
pub(super) fn service_from_row(row: &Row<'_>) -> rusqlite::Result<Result<(SessionId, ServiceRecord), String>> {
    let (session, place): (String, u32) = (row.get("session")?, row.get("place")?);
    let pid: Option<i32> = row.get("init_pid")?;
    let starttime: Option<i64> = row.get("init_starttime")?;
    let address: Option<String> = row.get("address")?;
    let init_version = row.get("init_version")?;
    let (name, slot, id_base, plan) = (row.get("name")?, row.get("slot")?, row.get("id_base")?, row.get("plan")?);
    let (image, image_reference) = (row.get("image")?, row.get("image_reference")?);
    let parse = || -> Result<(SessionId, ServiceRecord), String> {
        let record = ServiceRecord {
            place: ServicePlace::new(place as usize).ok_or_else(|| format!("place {place}"))?,
            name,
            slot,
            id_base,
            image,
            image_reference,
            plan,
            init: pid.zip(starttime.and_then(|ticks| u64::try_from(ticks).ok())),
            init_version,
            address: address.as_deref().map(str::parse).transpose().map_err(text)?,
        };
        Ok((session.parse().map_err(text)?, record))
    };
    Ok(parse())
}

/// Reads a row of `connections`, likewise.
pub(super) fn connection_from_row(row: &Row<'_>) -> rusqlite::Result<Result<ConnectionRecord, String>> {
    let (id, session, peer, fingerprint): (i64, String, String, String) =
        (row.get("id")?, row.get("session")?, row.get("peer")?, row.get("fingerprint")?);
    let (pid, starttime): (i32, i64) = (row.get("pid")?, row.get("starttime")?);
    let (credential, logged_in) = (row.get("credential")?, row.get("logged_in_ms")?);
    let parse = || -> Result<ConnectionRecord, String> {
        Ok(ConnectionRecord {
            id: u64::try_from(id).map_err(text)?,
            session: session.parse().map_err(text)?,
            peer: peer.parse().map_err(text)?,
            fingerprint,
            process: (pid, u64::try_from(starttime).map_err(text)?),
            credential,
            logged_in: time(logged_in),
        })
    };
    Ok(parse())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
