//! The records of sessions that are gone: a file for each in `STATE/records`, until it is too old or there are too many.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use super::Record;
use crate::{
    names::{SessionId, UserName},
    time::millis,
};

/// Records that are kept, and the bytes of them all.
const MAX_COUNT: usize = 1000;
const MAX_BYTES: u64 = 64 << 20;

/// How many may be written until the bounds are looked at again.
const UNPRUNED: u64 = 16;

/// The directory of records.
#[derive(Debug)]
pub struct Records {
    directory: PathBuf,
    keep_ms: AtomicU64,
    written: AtomicU64,
}

impl Records {
    /// Those in `directory`, each to be kept for `keep`; zero keeps none.
    pub fn new(directory: &Path, keep: Duration) -> Self {
        let records = Self { directory: directory.to_owned(), keep_ms: AtomicU64::new(0), written: AtomicU64::new(0) };
        records.set_keep(keep);
        records
    }

    /// Keeps them for `keep` from now on.
    pub fn set_keep(&self, keep: Duration) {
        self.keep_ms.store(millis(keep), Ordering::Relaxed);
    }

    fn keep(&self) -> Duration {
        Duration::from_millis(self.keep_ms.load(Ordering::Relaxed))
    }

    fn path(&self, id: &SessionId) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }

    /// Whether a record of the session is to be written. One that was written before its removal was interrupted knows more
    /// than what is left now.
    pub(super) fn wants(&self, id: &SessionId) -> bool {
        !self.keep().is_zero() && !self.path(id).exists()
    }

    /// Writes a record, all of it or nothing.
    pub(super) fn write(&self, id: &SessionId, record: &Record) -> io::Result<()> {
        let unfinished = self.directory.join(format!("{id}.tmp"));
        let written = (|| {
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
            io::Write::write_all(&mut file, &serde_json::to_vec(record)?)?;
            fs::rename(&unfinished, self.path(id))
        })();
        if written.is_err() {
            // The failure is what is told; the next pruning removes it.
            let _ = fs::remove_file(&unfinished);
        }
        if self.written.fetch_add(1, Ordering::Relaxed) % UNPRUNED == UNPRUNED - 1 {
            self.prune()?;
        }
        written
    }

    /// The record of a session.
    pub fn read(&self, id: &SessionId) -> io::Result<Option<Record>> {
        match fs::read(self.path(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => Ok(Some(serde_json::from_slice(&other?)?)),
        }
    }

    /// All records, those of the latest sessions first. One that cannot be read is logged and left out.
    pub fn list(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for found in self.files()? {
            let read = fs::read(&found.path).and_then(|bytes| Ok(serde_json::from_slice::<Record>(&bytes)?));
            match read {
                Ok(record) => records.push(record),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!("{} is left out: {error}", found.path.display()),
            }
        }
        records.sort_by(|Record { session: a, .. }, Record { session: b, .. }| {
            (b.ended_ms, &b.id).cmp(&(a.ended_ms, &a.id))
        });
        Ok(records)
    }

    /// Removes those that are too old, then the oldest of those that are too many, and what was not written to its end.
    pub fn prune(&self) -> io::Result<()> {
        let mut files = self.files()?;
        files.sort_by_key(|file| std::cmp::Reverse(file.modified));
        let now = SystemTime::now();
        let (mut count, mut bytes) = (0, 0);
        for file in files {
            let age = now.duration_since(file.modified).unwrap_or_default();
            let finished = file.path.extension().is_some_and(|extension| extension == "json");
            let fits = count < MAX_COUNT && bytes + file.bytes <= MAX_BYTES;
            // One that is being written is younger than any that was forgotten.
            let stays = if finished { fits && age < self.keep() } else { age < Duration::from_secs(60) };
            if stays {
                count += 1;
                bytes += file.bytes;
            } else {
                gone(fs::remove_file(&file.path))?;
            }
        }
        Ok(())
    }

    /// Removes the records of a user's sessions. Returns how many there were.
    pub fn forget(&self, user: &UserName) -> io::Result<usize> {
        let of_user: Vec<_> = self.list()?.into_iter().filter(|record| record.session.user == user.as_str()).collect();
        for record in &of_user {
            if let Ok(id) = record.session.id.parse() {
                gone(fs::remove_file(self.path(&id)))?;
            }
        }
        Ok(of_user.len())
    }

    fn files(&self) -> io::Result<Vec<Found>> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            // It may have been pruned in this moment.
            let Ok(metadata) = entry.metadata() else { continue };
            found.push(Found { path: entry.path(), bytes: metadata.len(), modified: metadata.modified()? });
        }
        Ok(found)
    }
}

struct Found {
    path: PathBuf,
    bytes: u64,
    modified: SystemTime,
}

/// Somebody else may have removed it.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Gone, Used},
        *,
    };
    use crate::runtime::changes::Changes;

    fn record(number: u64, user: &str) -> (SessionId, Record) {
        let id = SessionId::from_bits(number);
        let record = Record {
            session: Gone {
                user: user.to_owned(),
                project: None,
                id: id.to_string(),
                image: "busybox".to_owned(),
                created_ms: 1,
                ended_ms: number,
                reason: "disconnect".to_owned(),
            },
            used: Used::default(),
            services: vec![],
            commands: vec![],
            commands_complete: true,
            changes: Changes::default(),
            output: vec![],
        };
        (id, record)
    }

    /// Makes the record's file older.
    fn age(records: &Records, id: &SessionId, seconds: u64) {
        let file = fs::File::options().write(true).open(records.path(id)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    }

    #[test]
    fn a_record_is_kept_until_it_is_too_old() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::new(directory.path(), Duration::from_secs(100));
        for number in 1..=3 {
            let (id, record) = record(number, if number == 2 { "bob" } else { "ada" });
            assert!(records.wants(&id));
            records.write(&id, &record).unwrap();
            assert!(!records.wants(&id));
            assert_eq!(records.read(&id).unwrap(), Some(record));
        }
        let ids = |records: &Records| records.list().unwrap().iter().map(|r| r.session.ended_ms).collect::<Vec<_>>();
        assert_eq!(ids(&records), [3, 2, 1]);
        age(&records, &record(1, "ada").0, 101);
        fs::write(directory.path().join("x.tmp"), "{").unwrap();
        fs::write(directory.path().join("2aaaaaaa.json"), "{").unwrap();
        records.prune().unwrap();
        assert_eq!(ids(&records), [3, 2]);
        assert!(directory.path().join("x.tmp").exists(), "somebody writes it");
        assert_eq!(records.forget(&"bob".parse().unwrap()).unwrap(), 1);
        assert_eq!(ids(&records), [3]);
        records.set_keep(Duration::ZERO);
        assert!(!records.wants(&SessionId::from_bits(9)));
        records.prune().unwrap();
        assert_eq!(ids(&records), [0; 0]);
    }

    #[test]
    fn there_are_no_more_than_so_many() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::new(directory.path(), Duration::from_secs(100_000));
        for number in 0..MAX_COUNT as u64 + 2 * UNPRUNED {
            let (id, record) = record(number, "ada");
            records.write(&id, &record).unwrap();
            age(&records, &id, 10_000 - number);
        }
        records.prune().unwrap();
        let left = records.list().unwrap();
        assert_eq!((left.len(), left[0].session.ended_ms), (MAX_COUNT, MAX_COUNT as u64 + 2 * UNPRUNED - 1));
        for record in &left[..10] {
            let file = fs::File::options().write(true).open(records.path(&record.session.id.parse().unwrap())).unwrap();
            file.set_len(MAX_BYTES / 5).unwrap();
        }
        records.prune().unwrap();
        let bytes: u64 = records.files().unwrap().iter().map(|file| file.bytes).sum();
        assert!(bytes <= MAX_BYTES, "{bytes}");
    }
}
