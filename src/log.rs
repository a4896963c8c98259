//! Files that lines are appended to, and the program's own log: text lines on standard error or in `log.file`.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Mutex,
};

use tracing_subscriber::{EnvFilter, fmt};

/// A file that is appended to, and made anew when somebody has moved it away (logrotate(8)).
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    /// Opens the file at `path`; a new one is for root alone.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Looks whether `path` still leads to the file, which costs a microsecond, and opens it anew if not. If that fails, what
    /// comes goes to the old file.
    fn follow(&mut self) -> io::Result<()> {
        let own = self.file.metadata()?;
        match std::fs::metadata(&self.path) {
            Ok(there) if (there.dev(), there.ino()) == (own.dev(), own.ino()) => {}
            _ => self.file = Self::open(&self.path)?.file,
        }
        Ok(())
    }

    /// Appends `line` in one write(2), so that lines of two processes do not mix.
    ///
    /// # Errors
    /// Also if the file was moved away and cannot be made anew; the line is then in the old one.
    pub fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let followed = self.follow();
        self.file.write_all(line).and(followed)
    }
}

impl Write for LogFile {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        // Nowhere is left to tell of a failure; the old file is better than none.
        if let Err(_stays) = self.follow() {}
        self.file.write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Starts logging. `PODSPAWN_LOG` chooses levels (`debug`, `podspawn::network=trace`); the default is `info`.
///
/// # Errors
/// The file cannot be opened.
pub fn init(file: Option<&Path>) -> io::Result<()> {
    let filter = EnvFilter::try_from_env("PODSPAWN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = fmt().with_env_filter(filter).with_target(false);
    match file {
        Some(file) => builder.with_ansi(false).with_writer(Mutex::new(LogFile::open(file)?)).init(),
        None => builder.with_ansi(io::stderr().is_terminal()).with_writer(io::stderr).init(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_was_moved_away_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let (path, old) = (directory.path().join("log"), directory.path().join("log.1"));
        let mut log = LogFile::open(&path).unwrap();
        log.append(b"1\n").unwrap();
        fs::rename(&path, &old).unwrap();
        log.append(b"2\n").unwrap();
        log.write_all(b"3\n").unwrap();
        assert_eq!(
            (fs::read_to_string(&old).unwrap(), fs::read_to_string(&path).unwrap()),
            ("1\n".into(), "2\n3\n".into())
        );
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);

        // As with `copytruncate`.
        fs::write(&path, "").unwrap();
        log.append(b"4\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "4\n");
    }

    #[test]
    fn a_line_is_kept_where_the_new_file_cannot_be_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("logs/log");
        fs::create_dir(path.parent().unwrap()).unwrap();
        let mut log = LogFile::open(&path).unwrap();
        fs::rename(path.parent().unwrap(), directory.path().join("old")).unwrap();
        assert!(log.append(b"1\n").is_err());
        assert_eq!(fs::read_to_string(directory.path().join("old/log")).unwrap(), "1\n");
    }
}
