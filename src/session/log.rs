//! What is said while a session is set up, and by its hooks: kept on disk beside the session's directories, and followed
//! by whoever asks.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{broadcast, mpsc},
    task::JoinSet,
};

use crate::time::unix_millis;

/// The size at which a file is set aside for a new one. The one before it is kept, older ones are not.
const MAX_FILE: u64 = 1 << 20;

/// The names of the two files.
const FILE: &str = "log";
const OLDER: &str = "log.1";

/// Lines that may wait for somebody who follows; who lags behind misses some.
const WAITING: usize = 1024;

/// A line, and who has said it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Milliseconds since the epoch.
    pub time_ms: u64,
    /// `dotfiles`, `repos`, `on_create`, `on_start`, or the name of a service.
    pub source: String,
    pub text: String,
}

/// One session's log.
#[derive(Debug)]
pub struct Log {
    directory: PathBuf,
    file: Mutex<Option<(File, u64)>>,
    live: broadcast::Sender<Entry>,
}

/// Entries one after the other, those that come later too.
#[derive(Debug)]
pub struct Follower {
    kept: VecDeque<Entry>,
    live: broadcast::Receiver<Entry>,
}

impl Log {
    /// The log in the session's own `directory`, going on where an earlier supervisor left it. Nothing is written before
    /// somebody says something.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), file: Mutex::default(), live: broadcast::Sender::new(WAITING) }
    }

    /// Adds a line. What cannot be kept is still told to those who follow.
    pub fn append(&self, source: &str, text: &[u8]) {
        let time_ms = unix_millis(SystemTime::now());
        let text = String::from_utf8_lossy(text).into_owned();
        let entry = Entry { time_ms, source: source.to_owned(), text };
        let mut file = self.file();
        if let Err(error) = self.write(&mut file, &entry) {
            tracing::warn!("{} is not kept: {error}", self.directory.join(FILE).display());
            *file = None;
        }
        // Told under the lock, so that nobody hears a line twice or not at all. Often there is nobody.
        drop(self.live.send(entry));
        drop(file);
    }

    fn write(&self, file: &mut Option<(File, u64)>, entry: &Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry).map_err(io::Error::other)?;
        line.push(b'\n');
        if file.as_ref().is_some_and(|(_, size)| size + line.len() as u64 > MAX_FILE) {
            *file = None;
            std::fs::rename(self.directory.join(FILE), self.directory.join(OLDER))?;
        }
        let (file, size) = match file {
            Some(open) => open,
            None => {
                let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC;
                let path = self.directory.join(FILE);
                let opened = OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path)?;
                let size = opened.metadata()?.len();
                file.insert((opened, size))
            }
        };
        *size += line.len() as u64;
        file.write_all(&line)
    }

    /// What is kept, and everything that comes after it.
    ///
    /// # Errors
    /// Those of reading the files.
    pub fn follow(self: &Arc<Self>) -> io::Result<Follower> {
        let _silence = self.file();
        let live = self.live.subscribe();
        let mut kept = VecDeque::new();
        for name in [OLDER, FILE] {
            let file = match File::open(self.directory.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            let mut contents = Vec::new();
            file.take(MAX_FILE).read_to_end(&mut contents)?;
            // A line that a dying supervisor has not finished is left out.
            kept.extend(contents.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()));
        }
        Ok(Follower { kept, live })
    }

    fn file(&self) -> MutexGuard<'_, Option<(File, u64)>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last entries that are kept in a session's or a service's `directory`: as many as fit into `limit` bytes of the files.
/// What cannot be read is logged, and missing.
pub(super) fn tail(directory: &Path, limit: u64) -> Vec<Entry> {
    let (mut contents, mut left) = (Vec::new(), limit);
    for name in [FILE, OLDER] {
        match last_bytes(&directory.join(name), left) {
            Ok(Some(part)) => {
                left -= part.len() as u64;
                contents.splice(0..0, part);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!("{}: {error}", directory.join(name).display()),
        }
    }
    // The first line may have lost its beginning, and a dying supervisor has not finished the last.
    contents.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

fn last_bytes(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(limit)))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Sends what is kept in `logs`, in the order in which it was said, and with `follow` what is said from now on, until the
/// session is gone or nobody listens any more. With a `source` only what that one says.
///
/// # Errors
/// Those of reading the files, before anything is sent.
pub fn send(
    logs: &[Arc<Log>],
    follow: bool,
    source: Option<String>,
    to: mpsc::Sender<Entry>,
) -> io::Result<impl Future<Output = ()> + Send + use<>> {
    let mut followers = logs.iter().map(Log::follow).collect::<io::Result<Vec<_>>>()?;
    let mut kept: Vec<Entry> = followers.iter_mut().flat_map(|one| std::iter::from_fn(|| one.kept())).collect();
    kept.sort_by_key(|entry| entry.time_ms);
    Ok(async move {
        let wanted = |entry: &Entry| source.as_ref().is_none_or(|source| *source == entry.source);
        for entry in kept.into_iter().filter(wanted) {
            if to.send(entry).await.is_err() {
                return;
            }
        }
        let mut following = JoinSet::new();
        for mut follower in followers.into_iter().filter(|_| follow) {
            let (to, source) = (to.clone(), source.clone());
            following.spawn(async move {
                loop {
                    let entry = tokio::select! {
                        entry = follower.next() => entry,
                        () = to.closed() => return,
                    };
                    let Some(entry) = entry else { return };
                    if source.as_ref().is_none_or(|source| *source == entry.source) && to.send(entry).await.is_err() {
                        return;
                    }
                }
            });
        }
        // A panic in one of them is not worth more than the end of what it tells.
        while following.join_next().await.is_some() {}
    })
}

impl Follower {
    /// The next entry that is kept.
    pub fn kept(&mut self) -> Option<Entry> {
        self.kept.pop_front()
    }

    /// The next entry, waiting for it; `None` when the session is gone. Cancelling loses nothing.
    pub async fn next(&mut self) -> Option<Entry> {
        if let Some(entry) = self.kept.pop_front() {
            return Some(entry);
        }
        loop {
            match self.live.recv().await {
                Ok(entry) => return Some(entry),
                // What it has missed is in the files.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(log: &Arc<Log>) -> Vec<String> {
        let mut follower = log.follow().unwrap();
        std::iter::from_fn(|| follower.kept()).map(|entry| format!("{}: {}", entry.source, entry.text)).collect()
    }

    #[test]
    fn lines_are_kept_for_the_next_supervisor() {
        let directory = tempfile::tempdir().unwrap();
        let log = Arc::new(Log::new(directory.path()));
        assert!(texts(&log).is_empty() && !directory.path().join(FILE).exists());
        log.append("on_create", b"a\"\nb\xff");
        drop(log);
        let log = Arc::new(Log::new(directory.path()));
        log.append("on_start", b"again");
        assert_eq!(texts(&log), ["on_create: a\"\nb\u{fffd}", "on_start: again"]);
        // The end of a line that was being written.
        let mut file = OpenOptions::new().append(true).open(directory.path().join(FILE)).unwrap();
        file.write_all(b"{\"time_ms\":1,\"sou").unwrap();
        assert_eq!(texts(&log).len(), 2);
    }

    #[test]
    fn there_is_a_limit_to_what_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let log = Arc::new(Log::new(directory.path()));
        let line = vec![b'x'; 10_000];
        for _ in 0..400 {
            log.append("on_start", &line);
        }
        log.append("on_start", b"last");
        let sizes: u64 = [FILE, OLDER].map(|name| directory.path().join(name).metadata().unwrap().len()).iter().sum();
        assert!(sizes <= 2 * MAX_FILE, "{sizes}");
        let kept = texts(&log);
        assert!(kept.len() > 100 && kept.last().unwrap() == "on_start: last", "{}", kept.len());

        let sized = |limit| tail(directory.path(), limit).into_iter().map(|entry| entry.text).collect::<Vec<_>>();
        assert_eq!(sized(100), ["last"]);
        let both = sized(3 << 20);
        assert!(both.len() == kept.len() && both.last().unwrap() == "last", "{}", both.len());
        assert!(tail(&directory.path().join("none"), 100).is_empty());
    }

    #[tokio::test]
    async fn who_follows_hears_every_line_once() {
        let directory = tempfile::tempdir().unwrap();
        let log = Arc::new(Log::new(directory.path()));
        log.append("a", b"1");
        let mut follower = log.follow().unwrap();
        log.append("b", b"2");
        assert_eq!(follower.next().await.unwrap().text, "1");
        assert_eq!(follower.next().await.unwrap().text, "2");
        assert_eq!(follower.kept(), None);
        drop(log);
        assert_eq!(follower.next().await, None);
    }
}
