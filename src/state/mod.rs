//! `state.db`: which sessions and attached connections there are, so that the next supervisor finds them.
//!
//! One row per session, written before its kernel objects exist and removed after they are gone; one row per connection
//! that has a session. SQLite in WAL mode: a commit survives the death of the process at once, that of the machine almost
//! (`synchronous=NORMAL`), which is enough, since after a reboot there is nothing left to find.

mod records;

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

pub use self::records::{ConnectionRecord, NewSession, Phase, SessionRecord};
use crate::names::SessionId;

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
];

/// Ids that a container has: 0..65536.
pub const IDS_PER_SESSION: u32 = 65_536;

/// How many sessions there may be, and where on the host the ids of the first one begin.
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
    #[error("{} was written by a newer podspawn (schema {found}, this one knows {known})", .path.display())]
    Newer { path: PathBuf, found: usize, known: usize },
    #[error("cannot read or write {}", .0.display())]
    Query(PathBuf, #[source] rusqlite::Error),
    #[error("{} has a session that makes no sense: {what}", .path.display())]
    Nonsense { path: PathBuf, what: String },
    #[error("all {0} places for sessions are taken (security.userns, network.pool)")]
    SlotsExhausted(u32),
}

/// The open database. Calls block, usually for microseconds.
pub struct State {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl State {
    /// Opens the database, making or migrating it as needed.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |error| StateError::Open(path.to_owned(), error);
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

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // SQLite rolls back what a panic interrupted.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: rusqlite::Error) -> StateError {
        StateError::Query(self.path.clone(), error)
    }

    /// Writes a session in phase `creating`, with a free slot below `slots.count`. They go round, as the host's connection
    /// tracking may remember for a while what the former owner of an address was up to.
    ///
    /// The ids of a slot depend on `slots.first_id`. Sessions that were made with another one keep theirs, and no new session
    /// gets any of them.
    pub fn insert_session(&self, new: &NewSession, slots: Slots) -> Result<SessionRecord, StateError> {
        let mut connection = self.connection();
        let change =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(|e| self.failed(e))?;
        // Of the numbers that no row has (0, or one more than some row's, or the last one's) the first after the last, or
        // else the first of all. Where ids do not begin at `first_id` plus a multiple, a row is in the way of two slots.
        let slot: Option<u32> = change
            .query_row(
                "SELECT place FROM (
                     SELECT 0 AS place UNION SELECT slot + 1 FROM sessions UNION SELECT last_slot + 1 FROM instance
                     UNION SELECT (id_base - ?2) / ?3 + 1 FROM sessions UNION SELECT (id_base - ?2) / ?3 + 2 FROM sessions)
                 WHERE place BETWEEN 0 AND ?1 - 1 AND place NOT IN (SELECT slot FROM sessions)
                     AND NOT EXISTS (SELECT 1 FROM sessions WHERE abs(id_base - (?2 + place * ?3)) < ?3)
                 ORDER BY place <= (SELECT last_slot FROM instance), place LIMIT 1",
                [slots.count, slots.first_id, IDS_PER_SESSION],
                |row| row.get(0),
            )
            .optional()
            .map_err(|e| self.failed(e))?;
        let slot = slot.ok_or(StateError::SlotsExhausted(slots.count))?;
        change.execute("UPDATE instance SET last_slot = ?1", [slot]).map_err(|e| self.failed(e))?;
        let record = SessionRecord::new(new.clone(), slot, slots.first_id + slot * IDS_PER_SESSION);
        change
            .execute(
                "INSERT INTO sessions (id, user, project, slot, id_base, phase, image, image_reference, mode,
                     created_at_ms, boot_id)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
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
                ],
            )
            .map_err(|e| self.failed(e))?;
        change.commit().map_err(|e| self.failed(e))?;
        Ok(record)
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

    /// Records the address of the session's network, before there is one.
    pub fn set_address(&self, id: &SessionId, address: Ipv4Addr) -> Result<(), StateError> {
        self.execute("UPDATE sessions SET address = ?2 WHERE id = ?1", params![id.as_str(), address.to_string()])
    }

    /// Records the container's init: its pid, its start time (proc_pid_stat(5), field 22), and the version of the protocol
    /// that it speaks.
    pub fn set_container(&self, id: &SessionId, pid: i32, starttime: u64, version: u32) -> Result<(), StateError> {
        let starttime = i64::try_from(starttime).unwrap_or(i64::MAX);
        self.execute(
            "UPDATE sessions SET init_pid = ?2, init_starttime = ?3, init_version = ?4 WHERE id = ?1",
            params![id.as_str(), pid, starttime, version],
        )
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

    /// Forgets a session, and connections that were attached to it.
    pub fn remove_session(&self, id: &SessionId) -> Result<(), StateError> {
        self.execute("DELETE FROM sessions WHERE id = ?1", params![id.as_str()])?;
        self.execute("DELETE FROM connections WHERE session = ?1", params![id.as_str()])
    }

    /// All sessions, oldest first.
    pub fn sessions(&self) -> Result<Vec<SessionRecord>, StateError> {
        let connection = self.connection();
        let mut query = connection
            .prepare(
                "SELECT id, user, project, slot, id_base, phase, image, image_reference, mode, init_pid, init_starttime,
                        init_version, grace_deadline_ms, created_at_ms, address, boot_id
                 FROM sessions ORDER BY created_at_ms, id",
            )
            .map_err(|e| self.failed(e))?;
        let rows = query.query_map([], records::session_from_row).map_err(|e| self.failed(e))?;
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
            "INSERT OR REPLACE INTO connections (id, session, peer, fingerprint, pid, starttime)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![id, record.session.as_str(), record.peer.to_string(), record.fingerprint, pid, starttime],
        )
    }

    /// Forgets a connection; one that is not there is no error.
    pub fn remove_connection(&self, id: u64) -> Result<(), StateError> {
        self.execute("DELETE FROM connections WHERE id = ?1", params![i64::try_from(id).unwrap_or(i64::MAX)])
    }

    /// All connections that are attached to a session.
    pub fn connections(&self) -> Result<Vec<ConnectionRecord>, StateError> {
        let connection = self.connection();
        let mut query = connection
            .prepare("SELECT id, session, peer, fingerprint, pid, starttime FROM connections ORDER BY id")
            .map_err(|e| self.failed(e))?;
        let rows = query.query_map([], records::connection_from_row).map_err(|e| self.failed(e))?;
        rows.map(|row| match row {
            Ok(record) => record.map_err(|what| StateError::Nonsense { path: self.path.clone(), what }),
            Err(error) => Err(self.failed(error)),
        })
        .collect()
    }

    /// The digests of the images that sessions run.
    pub fn images_in_use(&self) -> Result<Vec<String>, StateError> {
        let connection = self.connection();
        let mut query = connection.prepare("SELECT DISTINCT image FROM sessions").map_err(|e| self.failed(e))?;
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

/// Milliseconds since the epoch, as the database keeps times.
fn millis(time: SystemTime) -> i64 {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mode;

    fn new(id: u64, user: &str) -> NewSession {
        NewSession {
            id: SessionId::from_bits(id),
            user: user.parse().unwrap(),
            project: None,
            image: "sha256:00".to_owned(),
            image_reference: "busybox".to_owned(),
            mode: Mode::GracePeriod,
            created_at: UNIX_EPOCH + Duration::from_secs(5),
            boot_id: "boot".to_owned(),
        }
    }

    const FIRST_ID: u32 = 1_000_000;

    fn slots(count: u32) -> Slots {
        Slots { count, first_id: FIRST_ID }
    }

    fn open() -> (tempfile::TempDir, State) {
        let directory = tempfile::tempdir().unwrap();
        let state = State::open(&directory.path().join("state.db")).unwrap();
        (directory, state)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let (directory, state) = open();
        assert_eq!(state.pool().unwrap(), None);
        state.set_pool("10.0.0.0/8").unwrap();
        let record = state.insert_session(&new(1, "ada"), slots(10)).unwrap();
        let deadline = UNIX_EPOCH + Duration::from_millis(1_234_567);
        state.set_container(&record.id, 42, 99, 7).unwrap();
        state.set_address(&record.id, Ipv4Addr::new(10, 0, 0, 2)).unwrap();
        state.set_grace(&record.id, deadline).unwrap();
        let connection = ConnectionRecord {
            id: 7,
            session: record.id.clone(),
            peer: "[::1]:22".parse().unwrap(),
            fingerprint: "SHA256:x".to_owned(),
            process: (43, 100),
        };
        state.insert_connection(&connection).unwrap();
        drop(state);
        let state = State::open(&directory.path().join("state.db")).unwrap();
        let expected = SessionRecord {
            init: Some((42, 99)),
            init_version: 7,
            address: Some(Ipv4Addr::new(10, 0, 0, 2)),
            phase: Phase::Grace,
            grace_deadline: Some(deadline),
            ..record.clone()
        };
        assert_eq!(state.sessions().unwrap(), [expected]);
        assert_eq!(state.pool().unwrap().as_deref(), Some("10.0.0.0/8"));
        assert_eq!(state.connections().unwrap(), [connection]);
        assert_eq!(state.images_in_use().unwrap(), ["sha256:00"]);
        assert_eq!(state.check().unwrap(), None);
        state.remove_session(&record.id).unwrap();
        assert!(state.sessions().unwrap().is_empty() && state.connections().unwrap().is_empty());
    }

    #[test]
    fn slots_go_round_and_run_out() {
        let (_directory, state) = open();
        let given: Vec<_> =
            (0..3).map(|i| state.insert_session(&new(i, &format!("u{i}")), slots(3)).unwrap().slot).collect();
        assert_eq!(given, [0, 1, 2]);
        assert!(matches!(state.insert_session(&new(9, "eve"), slots(3)), Err(StateError::SlotsExhausted(3))));
        state.remove_session(&SessionId::from_bits(0)).unwrap();
        state.remove_session(&SessionId::from_bits(1)).unwrap();
        assert_eq!(state.insert_session(&new(9, "eve"), slots(9)).unwrap().slot, 3, "not the one that was just in use");
        assert_eq!(state.insert_session(&new(10, "bob"), slots(4)).unwrap().slot, 0);
    }

    #[test]
    fn ids_of_another_configuration_are_not_given_to_a_second_session() {
        let (_directory, state) = open();
        let old: Vec<_> =
            (0..8).map(|i| state.insert_session(&new(i, &format!("old{i}")), slots(100)).unwrap().id_base).collect();
        assert_eq!(old[..2], [FIRST_ID, FIRST_ID + IDS_PER_SESSION]);
        let mut taken = old;
        for (i, first_id) in [0, 1, IDS_PER_SESSION - 1, 5 * IDS_PER_SESSION].into_iter().enumerate() {
            for first_id in [FIRST_ID + first_id, FIRST_ID - first_id] {
                let id = 100 + i as u64 * 2 + u64::from(first_id < FIRST_ID);
                let base = state.insert_session(&new(id, &format!("new{id}")), Slots { count: 100, first_id });
                let base = base.unwrap_or_else(|error| panic!("{first_id}: {error}")).id_base;
                assert!(taken.iter().all(|other| other.abs_diff(base) >= IDS_PER_SESSION), "{base} {taken:?}");
                assert_eq!((base - first_id) % IDS_PER_SESSION, 0);
                taken.push(base);
                if first_id == FIRST_ID {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_user_has_one_session_that_is_not_being_removed() {
        let (_directory, state) = open();
        let record = state.insert_session(&new(1, "ada"), slots(10)).unwrap();
        assert!(state.insert_session(&new(2, "ada"), slots(10)).is_err());
        state.set_phase(&record.id, Phase::Stopping).unwrap();
        assert!(state.insert_session(&new(2, "ada"), slots(10)).is_ok());
    }

    #[test]
    fn a_newer_or_broken_database_is_refused() {
        let (directory, state) = open();
        state.connection().pragma_update(None, "user_version", 99).unwrap();
        let path = directory.path().join("state.db");
        let error = State::open(&path).err().unwrap().to_string();
        assert!(error.contains("newer podspawn (schema 99"), "{error}");
        let broken = directory.path().join("broken.db");
        std::fs::write(&broken, "this is no database at all, but long enough to be taken for one".repeat(40)).unwrap();
        assert!(matches!(State::open(&broken), Err(StateError::Open(..))));
    }
}
