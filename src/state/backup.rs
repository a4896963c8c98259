//! What the server does about a damaged database: it starts with the copy that it made when it last started, or with an
//! empty one. Sessions that are not in it are removed, as all are that have no record.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rusqlite::ErrorCode;

use super::{State, StateError};

/// A database that was damaged.
#[derive(Debug, PartialEq, Eq)]
pub struct Damage {
    /// What SQLite says about it.
    pub why: String,
    /// Where it is now.
    pub kept: PathBuf,
    /// Whether there was a copy to take its place.
    pub restored: bool,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (why, kept) = (&self.why, self.kept.display());
        let instead = if self.restored { "the copy of the last start" } else { "an empty one" };
        write!(f, "the state database was damaged ({why}); it is kept as {kept}, and {instead} takes its place: ")?;
        write!(f, "sessions that are not in that are removed")
    }
}

impl State {
    /// Opens the database for the server: as [`open`](Self::open) does, but one that is damaged is put aside.
    ///
    /// # Errors
    /// Everything but damage: a file system that is full or read-only, a newer schema.
    pub fn open_whole(path: &Path) -> Result<(Self, Option<Damage>), StateError> {
        let why = match open_checked(path)? {
            Ok(state) => return Ok((state, None)),
            Err(why) => why,
        };
        let failed = |error| StateError::PutAside(path.to_owned(), error);
        let kept = beside(path, ".damaged");
        for part in ["", "-wal", "-shm"] {
            let moved = fs::rename(beside(path, part), beside(&kept, part));
            moved.or_else(not_there).map_err(failed)?;
        }
        let copied = fs::copy(backup(path), path).map(|_bytes| true);
        let copied = copied.or_else(|error| not_there(error).map(|()| false)).map_err(failed)?;
        if copied {
            if let Ok(state) = open_checked(path)? {
                return Ok((state, Some(Damage { why, kept, restored: true })));
            }
            fs::remove_file(path).map_err(failed)?;
        }
        Ok((Self::open(path)?, Some(Damage { why, kept, restored: false })))
    }

    /// Writes a copy of the whole database beside it.
    pub fn back_up(&self) -> Result<(), StateError> {
        let failed = |error| StateError::BackUp(self.path.clone(), error);
        let (new, place) = (beside(&self.path, ".backup.new"), backup(&self.path));
        fs::remove_file(&new).or_else(not_there).map_err(failed)?;
        self.execute("VACUUM INTO ?1", [new.to_string_lossy()])?;
        fs::rename(&new, &place).map_err(failed)
    }
}

/// Where the copy of a database is.
fn backup(path: &Path) -> PathBuf {
    beside(path, ".backup")
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn not_there(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// The inner error says how the database is damaged.
fn open_checked(path: &Path) -> Result<Result<State, String>, StateError> {
    let checked = State::open(path).and_then(|state| Ok((state.check()?, state)));
    match checked {
        Ok((None, state)) => Ok(Ok(state)),
        Ok((Some(complaint), _)) => Ok(Err(complaint.replace('\n', "; "))),
        Err(StateError::Open(_, error) | StateError::Query(_, error)) if is_damage(&error) => {
            Ok(Err(error.to_string()))
        }
        Err(error) => Err(error),
    }
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}
