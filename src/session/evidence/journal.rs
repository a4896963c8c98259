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

/// A command, or a shell, that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// When it ended, in milliseconds since the epoch.
    pub ended_ms: u64,
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

    /// Adds a command of the session. One that is gone takes no more; other failures are logged.
    pub fn append(&self, session: &SessionId, mut command: Command) {
        if let Some(text) = &mut command.command {
            let end = (0..=TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
            text.truncate(end.unwrap_or(0));
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = self.sessions.join(session.as_str());
        match write(&directory, &command) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("{} is not kept: {error}", directory.join(FILE).display());
            }
            _ => {}
        }
    }
}

fn write(directory: &Path, command: &Command) -> io::Result<()> {
    let mut line = serde_json::to_vec(command)?;
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

/// The commands that are written down in a session's directory, and whether these are all.
pub(super) fn read(directory: &Path) -> io::Result<(Vec<Command>, bool)> {
    let (mut commands, mut contents, mut complete) = (Vec::new(), Vec::new(), true);
    for name in [OLDER, FILE] {
        match File::open(directory.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => {
                other?.take(2 * MAX_FILE).read_to_end(&mut contents)?;
                complete &= name == FILE;
            }
        }
    }
    for line in contents.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(command) => commands.push(command),
            // A dying supervisor has not finished it.
            Err(_) => complete = false,
        }
    }
    Ok((commands, complete))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(text: &str) -> Command {
        Command {
            ended_ms: 1,
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
        journal.append(&session, command("before there is a directory"));
        let directory = sessions.path().join(session.as_str());
        assert!(!directory.exists());
        fs::create_dir(&directory).unwrap();
        assert_eq!(read(&directory).unwrap(), (vec![], true));
        let hostile = "x\n{\"exit_code\":0}\r\0";
        journal.append(&session, command(hostile));
        assert_eq!(read(&directory).unwrap(), (vec![command(hostile)], true));

        for number in 0..100 {
            journal.append(&session, command(&format!("{number} {}", "ä".repeat(5000))));
        }
        let (kept, complete) = read(&directory).unwrap();
        assert!(!complete && kept.len() > 10);
        assert!(kept.last().unwrap().command.as_ref().unwrap().starts_with("99 "));
        assert!(kept.iter().all(|command| command.command.as_ref().unwrap().len() <= TEXT));
        let size: u64 = [FILE, OLDER].map(|name| directory.join(name).metadata().unwrap().len()).iter().sum();
        assert!(size <= 2 * MAX_FILE, "{size}");
    }
}
