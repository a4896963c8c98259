//! Files that decide who gets in and what they get: read as strictly as sshd's StrictModes, written as a whole.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Why a file is not believed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("it cannot be read")]
    Read(#[from] io::Error),
    #[error("it is not a regular file")]
    NotRegular,
    #[error("others than root can change it; run: chown root {path} && chmod 644 {path}", path = .0.display())]
    Writable(PathBuf),
    #[error("it is larger than {0} bytes")]
    TooLarge(u64),
    #[error("it is not UTF-8 text")]
    NotText,
}

/// Whether the last component of a path may be a symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// For paths that the administrator has written down.
    Follow,
    /// For paths that are made of a user's name.
    Refuse,
}

/// Reads a regular file of root's that nobody else can write, of at most `max` bytes. `None` if there is none.
pub(crate) fn read(path: &Path, max: u64, links: Links) -> Result<Option<Vec<u8>>, FileError> {
    let no_follow = if links == Links::Refuse { libc::O_NOFOLLOW } else { 0 };
    // Not to wait for the writer of a FIFO.
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC | no_follow;
    let file = match File::options().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(FileError::NotRegular);
    }
    if meta.uid() != 0 || meta.permissions().mode() & 0o022 != 0 {
        return Err(FileError::Writable(path.to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(FileError::TooLarge(max));
    }
    Ok(Some(bytes))
}

/// The same for a text.
pub(crate) fn read_text(path: &Path, max: u64, links: Links) -> Result<Option<String>, FileError> {
    let Some(bytes) = read(path, max, links)? else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|_| FileError::NotText)
}

/// Writes a file so that it is there completely or not at all, and makes its directory if need be.
pub(crate) fn replace(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(directory)?;
    // Starts with a dot, so that it is no user's name even for a moment.
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(directory)?;
    file.write_all(content.as_bytes())?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_root_alone_can_change_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        let link = directory.path().join("link");
        assert!(matches!(read(&file, 10, Links::Refuse), Ok(None)));
        fs::write(&file, "text").unwrap();
        assert_eq!(read_text(&file, 4, Links::Refuse).unwrap().as_deref(), Some("text"));
        assert!(matches!(read(&file, 3, Links::Refuse), Err(FileError::TooLarge(3))));
        std::os::unix::fs::symlink("file", &link).unwrap();
        assert!(matches!(read(&link, 10, Links::Refuse), Err(FileError::Read(_))));
        assert!(matches!(read(&link, 10, Links::Follow), Ok(Some(_))));
        assert!(matches!(read(directory.path(), 10, Links::Refuse), Err(FileError::NotRegular)));
        for mode in [0o620, 0o602] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(read(&file, 10, Links::Refuse), Err(FileError::Writable(_))), "{mode:o}");
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::chown(&file, Some(1000), None).unwrap();
        assert!(matches!(read(&file, 10, Links::Refuse), Err(FileError::Writable(_))));
        fs::write(&file, b"\xff").unwrap();
        std::os::unix::fs::chown(&file, Some(0), None).unwrap();
        assert!(matches!(read_text(&file, 10, Links::Refuse), Err(FileError::NotText)));
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(matches!(read(&fifo, 10, Links::Refuse), Err(FileError::NotRegular)));
    }
}
