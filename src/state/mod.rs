//! `state.db`: which sessions and attached connections there are, so that the next supervisor finds them.
//!
//! One row per session and one for each of its services, written together before their kernel objects exist and removed
//! after they are gone; one row per connection that has a session. SQLite in WAL mode: a commit survives the death of the process at once, that of the machine almost
//! (`synchronous=NORMAL`), which is enough, since after a reboot there is nothing left to find.

mod backup;
mod records;
#[cfg(test)]
mod tests;

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Row, ToSql, Transaction, TransactionBehavior, params,
};

pub use self::backup::Damage;
pub use self::records::{ConnectionRecord, Kind, NewService, NewSession, Phase, ServiceRecord, SessionRecord};
use crate::names::{ContainerId, ServicePlace, SessionId};

/// The schema, one entry per version: `PRAGMA user_version` says how many have been applied.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE sessions (
        id TEXT PRIMARY KEY,
        user TEXT NOT NULL,
        project TEXT,
        slot INTEGER NOT NULL UNIQUE,
        id_base INTEGER NOT NULL UNIQUE,
        phase TEXT NOT NULL,
        image TEXT NOT NULL,
        image_reference TEXT NOT NULL,
        mode TEXT NOT NULL,
        init_pid INTEGER,
        init_starttime INTEGER,
        grace_deadline_ms INTEGER,
        created_at_ms INTEGER NOT NULL,
        address TEXT,
        boot_id TEXT NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX one_session_each ON sessions (user, ifnull(project, '')) WHERE phase <> 'stopping';
    CREATE TABLE connections (
        id INTEGER PRIMARY KEY,
        session TEXT NOT NULL,
        peer TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        pid INTEGER NOT NULL,
        starttime INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE instance (last_slot INTEGER NOT NULL, pool TEXT) STRICT;
    INSERT INTO instance VALUES (-1, NULL);
",
    "
    ALTER TABLE sessions ADD COLUMN init_version INTEGER NOT NULL DEFAULT 1;
",
    "
    CREATE TABLE services (
        session TEXT NOT NULL,
        place INTEGER NOT NULL,
        name TEXT NOT NULL,
        slot INTEGER NOT NULL UNIQUE,
        id_base INTEGER NOT NULL UNIQUE,
        image TEXT NOT NULL,
        image_reference TEXT NOT NULL,
        plan TEXT NOT NULL,
        init_pid INTEGER,
        init_starttime INTEGER,
        init_version INTEGER NOT NULL DEFAULT 1,
        address TEXT,
        PRIMARY KEY (session, place)
    ) STRICT;
    CREATE VIEW places AS SELECT slot, id_base FROM sessions UNION ALL SELECT slot, id_base FROM services;
",
    "
    ALTER TABLE sessions ADD COLUMN kind TEXT NOT NULL DEFAULT 'session';
    DROP INDEX one_session_each;
    CREATE UNIQUE INDEX one_session_each ON sessions (user, ifnull(project, ''))
        WHERE phase <> 'stopping' AND kind = 'session';
",
    "
    ALTER TABLE sessions ADD COLUMN on_start TEXT;
",
    "
    ALTER TABLE sessions ADD COLUMN egress TEXT;
",
    "
    ALTER TABLE sessions ADD COLUMN ports TEXT;
",
    "
    ALTER TABLE connections ADD COLUMN credential BLOB;
    ALTER TABLE connections ADD COLUMN logged_in_ms INTEGER NOT NULL DEFAULT 0;
",
];

/// Ids that a container has: 0..65536.
pub const IDS_PER_SESSION: u32 = 65_536;

/// How many containers there may be, and where on the host the ids of the first one begin.
#[derive(Debug, Clone, Copy)]
pub struct Slots {
    pub count: u32,
    pub first_id: u32,
}

/// How long to wait for another process (a command of the administrator) that is writing.
const BUSY_LIMIT: Duration = Duration::from_secs(5);

/// Why the database could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("cannot open {}", .0.display())]
    Open(PathBuf, #[source] rusqlite::Error),
    #[error("cannot write {}: its file system is full, read-only or broken", .0.display())]
    Unwritable(PathBuf, #[source] rusqlite::Error),
    #[error("{} was written by a newer podspawn (schema {found}, this one knows {known})", .path.display())]
    Newer { path: PathBuf, found: usize, known: usize },
    #[error("{} is damaged and cannot be put aside", .0.display())]
    PutAside(PathBuf, #[source] std::io::Error),
    #[error("cannot write a copy of {}", .0.display())]
    BackUp(PathBuf, #[source] std::io::Error),
    #[error("cannot read or write {}", .0.display())]
    Query(PathBuf, #[source] rusqlite::Error),
    #[error("{} has a session that makes no sense: {what}", .path.display())]
    Nonsense { path: PathBuf, what: String },
    #[error("all {0} places for sessions and their services are taken (security.userns, network.pool)")]
    SlotsExhausted(u32),
    #[error("a session cannot have {0} services")]
    TooManyServices(usize),
}

/// The open database. Calls block, usually for microseconds.
pub struct State {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl State {
    /// Opens the database, making or migrating it as needed.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |error| opening(path, error);
        let mut connection = Connection::open(path).map_err(failed)?;
        connection.busy_timeout(BUSY_LIMIT).map_err(failed)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(failed)?;
        let change = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let found: u32 = change.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
        let (found, known) = (found as usize, MIGRATIONS.len());
        if found > known {
            return Err(StateError::Newer { path: path.to_owned(), found, known });
        }
        for migration in &MIGRATIONS[found..] {
            change.execute_batch(migration).map_err(failed)?;
        }
        change.pragma_update(None, "user_version", known as u32).map_err(failed)?;
        change.commit().map_err(failed)?;
        Ok(Self { path: path.to_owned(), connection: Mutex::new(connection) })
    }

    /// Whether [`open`](Self::open) would understand the database, which stays as it is. There need not be one.
    pub fn check_version(path: &Path) -> Result<(), StateError> {
        if !path.exists() {
            return Ok(());
        }
        let failed = |error| StateError::Open(path.to_owned(), error);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        connection.busy_timeout(BUSY_LIMIT).map_err(failed)?;
        let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
        let (found, known) = (found as usize, MIGRATIONS.len());
        if found > known { Err(StateError::Newer { path: path.to_owned(), found, known }) } else { Ok(()) }
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // SQLite rolls back what a panic interrupted.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: rusqlite::Error) -> StateError {
        StateError::Query(self.path.clone(), error)
    }

    /// Writes a session in phase `creating`, and its services, each with a free slot below `slots.count`. They go round, as
    /// the host's connection tracking may remember for a while what the former owner of an address was up to.
    ///
    /// The ids of a slot depend on `slots.first_id`. Sessions that were made with another one keep theirs, and no new session
    /// gets any of them.
    pub fn insert_session(
        &self,
        new: &NewSession,
        services: &[NewService],
        slots: Slots,
    ) -> Result<SessionRecord, StateError> {
        let mut connection = self.connection();
        let change =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(|e| self.failed(e))?;
        let slot = self.take_slot(&change, slots)?;
        let mut record = SessionRecord::new(new.clone(), slot, slots.first_id + slot * IDS_PER_SESSION);
        change
            .execute(
                "INSERT INTO sessions (id, user, project, slot, id_base, phase, image, image_reference, mode,
                     created_at_ms, boot_id, kind, on_start, egress)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
                params![
                    record.id.as_str(),
                    record.user.as_str(),
                    record.project.as_ref().map(crate::names::ProjectName::as_str),
                    record.slot,
                    record.id_base,
                    record.phase.as_str(),
                    record.image,
                    record.image_reference,
                    records::mode_word(record.mode),
                    millis(record.created_at),
                    record.boot_id,
                    record.kind.as_str(),
                    record.on_start,
                    record.egress,
                ],
            )
            .map_err(|e| self.failed(e))?;
        for (index, service) in services.iter().enumerate() {
            let place = ServicePlace::new(index).ok_or(StateError::TooManyServices(services.len()))?;
            let slot = self.take_slot(&change, slots)?;
            let service = ServiceRecord::new(service.clone(), place, slot, slots.first_id + slot * IDS_PER_SESSION);
            change
                .execute(
                    "INSERT INTO services (session, place, name, slot, id_base, image, image_reference, plan)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                    params![
                        record.id.as_str(),
                        service.place.index(),
                        service.name,
                        service.slot,
                        service.id_base,
                        service.image,
                        service.image_reference,
                        service.plan,
                    ],
                )
                .map_err(|e| self.failed(e))?;
            record.services.push(service);
        }
        change.commit().map_err(|e| self.failed(e))?;
        Ok(record)
    }

    fn take_slot(&self, change: &Transaction<'_>, slots: Slots) -> Result<u32, StateError> {
        // Of the numbers that no row has (0, or one more than some row's, or the last one's) the first after the last, or
        // else the first of all. Where ids do not begin at `first_id` plus a multiple, a row is in the way of two slots.
        let slot: Option<u32> = change
            .query_row(
                "SELECT place FROM (
                     SELECT 0 AS place UNION SELECT slot + 1 FROM places UNION SELECT last_slot + 1 FROM instance
                     UNION SELECT (id_base - ?2) / ?3 + 1 FROM places UNION SELECT (id_base - ?2) / ?3 + 2 FROM places)
                 WHERE place BETWEEN 0 AND ?1 - 1 AND place NOT IN (SELECT slot FROM places)
                     AND NOT EXISTS (SELECT 1 FROM places WHERE abs(id_base - (?2 + place * ?3)) < ?3)
                 ORDER BY place <= (SELECT last_slot FROM instance), place LIMIT 1",
                [slots.count, slots.first_id, IDS_PER_SESSION],
                |row| row.get(0),
            )
            .optional()
            .map_err(|e| self.failed(e))?;
        let slot = slot.ok_or(StateError::SlotsExhausted(slots.count))?;
        change.execute("UPDATE instance SET last_slot = ?1", [slot]).map_err(|e| self.failed(e))?;
        Ok(slot)
    }

    /// The network that sessions' addresses are from, as the last supervisor chose it.
    pub fn pool(&self) -> Result<Option<String>, StateError> {
        let pool = self.connection().query_row("SELECT pool FROM instance", [], |row| row.get(0));
        pool.map_err(|e| self.failed(e))
    }

    /// Records that network, for the next supervisor.
    pub fn set_pool(&self, pool: &str) -> Result<(), StateError> {
        self.execute("UPDATE instance SET pool = ?1", [pool])
    }

    /// Records which ports of the session are to be had where.
    pub fn set_ports(&self, id: &SessionId, ports: &str) -> Result<(), StateError> {
        self.set_of_container(&id.clone().into(), "ports = ?3", params![ports])
    }

    /// Records the address of the container's network, before there is one.
    pub fn set_address(&self, id: &ContainerId, address: Ipv4Addr) -> Result<(), StateError> {
        self.set_of_container(id, "address = ?3", params![address.to_string()])
    }

    /// Records the container's init: its pid, its start time (proc_pid_stat(5), field 22), and the version of the protocol
    /// that it speaks.
    pub fn set_container(&self, id: &ContainerId, pid: i32, starttime: u64, version: u32) -> Result<(), StateError> {
        let starttime = i64::try_from(starttime).unwrap_or(i64::MAX);
        let set = "init_pid = ?3, init_starttime = ?4, init_version = ?5";
        self.set_of_container(id, set, params![pid, starttime, version])
    }

    /// Changes the row of a container; `values` are the parameters from the third on.
    fn set_of_container(&self, id: &ContainerId, set: &str, values: &[&dyn ToSql]) -> Result<(), StateError> {
        let (session, place) = (id.session.as_str(), id.service.map(ServicePlace::index));
        let sql = match id.service {
            None => format!("UPDATE sessions SET {set} WHERE id = ?1 AND ?2 IS NULL"),
            Some(_) => format!("UPDATE services SET {set} WHERE session = ?1 AND place = ?2"),
        };
        let values: Vec<&dyn ToSql> =
            [&session as &dyn ToSql, &place].into_iter().chain(values.iter().copied()).collect();
        self.execute(&sql, values.as_slice())
    }

    /// Records a phase; the deadline of an earlier grace is forgotten.
    pub fn set_phase(&self, id: &SessionId, phase: Phase) -> Result<(), StateError> {
        self.execute(
            "UPDATE sessions SET phase = ?2, grace_deadline_ms = NULL WHERE id = ?1",
            params![id.as_str(), phase.as_str()],
        )
    }

    /// Records that the session is in grace until `deadline`.
    pub fn set_grace(&self, id: &SessionId, deadline: SystemTime) -> Result<(), StateError> {
        self.execute(
            "UPDATE sessions SET phase = ?2, grace_deadline_ms = ?3 WHERE id = ?1",
            params![id.as_str(), Phase::Grace.as_str(), millis(deadline)],
        )
    }

    /// Forgets a session, its services, and connections that were attached to it.
    pub fn remove_session(&self, id: &SessionId) -> Result<(), StateError> {
        let mut connection = self.connection();
        let mut remove = || -> rusqlite::Result<()> {
            let change = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            change.execute("DELETE FROM sessions WHERE id = ?1", params![id.as_str()])?;
            change.execute("DELETE FROM services WHERE session = ?1", params![id.as_str()])?;
            change.execute("DELETE FROM connections WHERE session = ?1", params![id.as_str()])?;
            change.commit()
        };
        remove().map_err(|error| self.failed(error))
    }

    /// All sessions with their services, oldest first.
    pub fn sessions(&self) -> Result<Vec<SessionRecord>, StateError> {
        let mut connection = self.connection();
        let moment = connection.transaction().map_err(|e| self.failed(e))?;
        let mut sessions = self.rows(
            &moment,
            "SELECT id, user, project, slot, id_base, phase, image, image_reference, mode, init_pid, init_starttime,
                    init_version, grace_deadline_ms, created_at_ms, address, boot_id, kind, on_start,
                    egress, ports
             FROM sessions ORDER BY created_at_ms, id",
            records::session_from_row,
        )?;
        let services = self.rows(
            &moment,
            "SELECT session, place, name, slot, id_base, image, image_reference, plan, init_pid, init_starttime,
                    init_version, address
             FROM services ORDER BY session, place",
            records::service_from_row,
        )?;
        for (session, service) in services {
            if let Some(record) = sessions.iter_mut().find(|record| record.id == session) {
                record.services.push(service);
            }
        }
        Ok(sessions)
    }

    fn rows<T>(
        &self,
        connection: &Connection,
        sql: &str,
        read: impl Fn(&Row<'_>) -> rusqlite::Result<Result<T, String>>,
    ) -> Result<Vec<T>, StateError> {
        let mut query = connection.prepare(sql).map_err(|e| self.failed(e))?;
        let rows = query.query_map([], read).map_err(|e| self.failed(e))?;
        rows.map(|row| match row {
            Ok(record) => record.map_err(|what| StateError::Nonsense { path: self.path.clone(), what }),
            Err(error) => Err(self.failed(error)),
        })
        .collect()
    }

    /// Records a connection that is attached to a session.
    pub fn insert_connection(&self, record: &ConnectionRecord) -> Result<(), StateError> {
        let id = i64::try_from(record.id).unwrap_or(i64::MAX);
        let (pid, starttime) = (record.process.0, i64::try_from(record.process.1).unwrap_or(i64::MAX));
        self.execute(
            "INSERT OR REPLACE INTO connections (id, session, peer, fingerprint, pid, starttime, credential, logged_in_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                id,
                record.session.as_str(),
                record.peer.to_string(),
                record.fingerprint,
                pid,
                starttime,
                record.credential,
                millis(record.logged_in)
            ],
        )
    }

    /// Forgets a connection; one that is not there is no error.
    pub fn remove_connection(&self, id: u64) -> Result<(), StateError> {
        self.execute("DELETE FROM connections WHERE id = ?1", params![i64::try_from(id).unwrap_or(i64::MAX)])
    }

    /// All connections that are attached to a session.
    pub fn connections(&self) -> Result<Vec<ConnectionRecord>, StateError> {
        self.rows(
            &self.connection(),
            "SELECT id, session, peer, fingerprint, pid, starttime, credential, logged_in_ms
             FROM connections ORDER BY id",
            records::connection_from_row,
        )
    }

    /// The digests of the images that sessions and their services run.
    pub fn images_in_use(&self) -> Result<Vec<String>, StateError> {
        let connection = self.connection();
        let mut query = connection
            .prepare("SELECT image FROM sessions UNION SELECT image FROM services")
            .map_err(|e| self.failed(e))?;
        let rows = query.query_map([], |row| row.get(0)).map_err(|e| self.failed(e))?;
        rows.collect::<Result<_, _>>().map_err(|e| self.failed(e))
    }

    /// Whether SQLite finds the file consistent; the first complaint otherwise.
    pub fn check(&self) -> Result<Option<String>, StateError> {
        let verdict: Option<String> = self
            .connection()
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .optional()
            .map_err(|e| self.failed(e))?;
        Ok(verdict.filter(|text| text != "ok"))
    }

    fn execute(&self, sql: &str, values: impl rusqlite::Params) -> Result<(), StateError> {
        self.connection().prepare(sql).and_then(|mut s| s.execute(values)).map(|_| ()).map_err(|e| self.failed(e))
    }
}

/// Why a database that is there cannot be used. Opened read-only, or without room for its index, it fails in odd ways.
fn opening(path: &Path, error: rusqlite::Error) -> StateError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull | ErrorCode::ReadOnly | ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => {
            StateError::Unwritable(path.to_owned(), error)
        }
        _ => StateError::Open(path.to_owned(), error),
    }
}

/// Milliseconds since the epoch, as the database keeps times.
fn millis(time: SystemTime) -> i64 {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}
