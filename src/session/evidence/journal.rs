//! The commands of live sessions, a file in each session's directory.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::names::SessionId;

/// The size at which a file is set aside for a new one. The one before it is kept, older ones are not.
const MAX_FILE: u64 = 64 << 10;

/// The names of the two files.
const FILE: &str = "commands";
const OLDER: &str = "commands.1";

/// Bytes of a command that are kept.
const TEXT: usize = 4096;

/// A command, or a shell, that has ended, or that ran when its session did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// When it ended, in milliseconds since the epoch; `None` if it still ran.
    pub ended_ms: Option<u64>,
    pub duration_ms: Option<u64>,
    /// `None` for a shell.
    pub command: Option<String>,
    pub exit_code: Option<u8>,
    pub signal: Option<i32>,
    /// Where its client came from.
    pub remote: String,
    /// Connections have numbers, by which the audit log tells them apart.
    pub connection: u64,
}

/// One that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    pub begun_ms: u64,
    pub command: Option<String>,
    pub remote: String,
    pub connection: u64,
    /// Its number among those of its connection.
    pub run: u32,
}

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Begun(Begun),
    Ended { run: Option<u32>, command: Command },
}

/// Where commands are written down.
#[derive(Debug, Clone)]
pub struct Journal {
    /// `STATE/sessions`
    sessions: PathBuf,
    /// One at a time, so that a file that is full is set aside once.
    turn: Arc<Mutex<()>>,
}

impl Journal {
    pub fn new(sessions: &Path) -> Self {
        Self { sessions: sessions.to_owned(), turn: Arc::default() }
    }

    /// Adds a command of the session that has begun.
    pub fn begun(&self, session: &SessionId, mut begun: Begun) {
        shorten(&mut begun.command);
        self.append(session, &Line::Begun(begun));
    }

    /// Adds how one has ended; `run` is its number if its beginning is known.
    pub fn ended(&self, session: &SessionId, run: Option<u32>, mut command: Command) {
        shorten(&mut command.command);
        self.append(session, &Line::Ended { run, command });
    }

    /// The commands of a connection that have begun and not ended: for a supervisor that has not seen them begin.
    pub fn running(&self, session: &SessionId, connection: u64) -> io::Result<Vec<Begun>> {
        let Contents { running, .. } = contents(&self.sessions.join(session.as_str()))?;
        Ok(running.into_iter().filter(|begun| begun.connection == connection).collect())
    }

    /// A session that is gone takes no more; other failures are logged.
    fn append(&self, session: &SessionId, line: &Line) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = self.sessions.join(session.as_str());
        match write(&directory, line) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("{} is not kept: {error}", directory.join(FILE).display());
            }
            _ => {}
        }
    }
}

fn shorten(command: &mut Option<String>) {
    if let Some(text) = command {
        let end = (0..=TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
    }
}

fn write(directory: &Path, line: &Line) -> io::Result<()> {
    let mut line = serde_json::to_vec(line)?;
    line.push(b'\n');
    let path = directory.join(FILE);
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let open = || OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(&path);
    let mut file = open()?;
    if file.metadata()?.len() + line.len() as u64 > MAX_FILE {
        fs::rename(&path, directory.join(OLDER))?;
        file = open()?;
    }
    file.write_all(&line)
}

/// What is written down in a session's directory.
struct Contents {
    ended: Vec<Command>,
    running: Vec<Begun>,
    /// Whether nothing is missing.
    complete: bool,
}

fn contents(directory: &Path) -> io::Result<Contents> {
    let (mut bytes, mut found) = (Vec::new(), Contents { ended: Vec::new(), running: Vec::new(), complete: true });
    for name in [OLDER, FILE] {
        match File::open(directory.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => {
                other?.take(2 * MAX_FILE).read_to_end(&mut bytes)?;
                found.complete &= name == FILE;
            }
        }
    }
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(Line::Begun(begun)) => found.running.push(begun),
            Ok(Line::Ended { run, command }) => {
                let is_other = |begun: &Begun| (begun.connection, Some(begun.run)) != (command.connection, run);
                found.running.retain(is_other);
                found.ended.push(command);
            }
            // A dying supervisor has not finished it.
            Err(_) => found.complete = false,
        }
    }
    Ok(found)
}

/// The commands that are written down in a session's directory, those that still ran at the end, and whether these are all.
pub(super) fn read(directory: &Path) -> io::Result<(Vec<Command>, bool)> {
    let Contents { mut ended, running, complete } = contents(directory)?;
    ended.extend(running.into_iter().map(|begun| Command {
        ended_ms: None,
        duration_ms: None,
        command: begun.command,
        exit_code: None,
        signal: None,
        remote: begun.remote,
        connection: begun.connection,
    }));
    Ok((ended, complete))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(text: &str) -> Command {
        Command {
            ended_ms: Some(1),
            duration_ms: Some(2),
            command: Some(text.to_owned()),
            exit_code: Some(3),
            signal: None,
            remote: "127.0.0.1:5".to_owned(),
            connection: 7,
        }
    }

    #[test]
    fn the_latest_commands_are_kept_and_no_more_than_fit() {
        let sessions = tempfile::tempdir().unwrap();
        let (journal, session) = (Journal::new(sessions.path()), SessionId::from_bits(1));
        journal.ended(&session, None, command("before there is a directory"));
        let directory = sessions.path().join(session.as_str());
        assert!(!directory.exists());
        fs::create_dir(&directory).unwrap();
        assert_eq!(read(&directory).unwrap(), (vec![], true));
        let hostile = "x\n{\"exit_code\":0}\r\0";
        journal.ended(&session, None, command(hostile));
        assert_eq!(read(&directory).unwrap(), (vec![command(hostile)], true));

        for number in 0..100 {
            journal.ended(&session, Some(number), command(&format!("{number} {}", "ä".repeat(5000))));
        }
        let (kept, complete) = read(&directory).unwrap();
        assert!(!complete && kept.len() > 10);
        assert!(kept.last().unwrap().command.as_ref().unwrap().starts_with("99 "));
        assert!(kept.iter().all(|command| command.command.as_ref().unwrap().len() <= TEXT));
        let size: u64 = [FILE, OLDER].map(|name| directory.join(name).metadata().unwrap().len()).iter().sum();
        assert!(size <= 2 * MAX_FILE, "{size}");
    }

    #[test]
    fn what_has_begun_runs_until_it_has_ended() {
        let sessions = tempfile::tempdir().unwrap();
        let (journal, session) = (Journal::new(sessions.path()), SessionId::from_bits(1));
        let directory = sessions.path().join(session.as_str());
        fs::create_dir(&directory).unwrap();
        let begun = |run, connection| {
            let (command, remote) = (Some(format!("{run}")), "127.0.0.1:5".to_owned());
            Begun { begun_ms: 1, command, remote, connection, run }
        };
        for (run, connection) in [(1, 7), (2, 7), (1, 8)] {
            journal.begun(&session, begun(run, connection));
        }
        journal.ended(&session, Some(1), command("1"));
        assert_eq!(journal.running(&session, 7).unwrap(), [begun(2, 7)]);
        assert_eq!(journal.running(&session, 8).unwrap(), [begun(1, 8)]);
        let (kept, complete) = read(&directory).unwrap();
        let shown: Vec<_> = kept.iter().map(|command| (command.connection, command.ended_ms)).collect();
        assert_eq!((shown, complete), (vec![(7, Some(1)), (7, None), (8, None)], true));
    }
}
