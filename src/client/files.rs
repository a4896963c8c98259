//! Where the user's files are, and writing them whole or not at all.

use std::{
    fs, io,
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// More than anybody's configuration has; a larger file is a mistake.
const MAX_BYTES: u64 = 1 << 20;

/// Why a file of the user's cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("HOME is not set to an absolute path without quotes, dollar signs and control characters")]
    Home,
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("{} is larger than 1 MiB", .0.display())]
    TooLarge(PathBuf),
    #[error("cannot write {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
}

/// The user's home directory.
#[derive(Debug, Clone)]
pub struct Home(PathBuf);

impl Home {
    /// That of `$HOME`. It is written into ssh's configuration, which has no way to say every path.
    pub fn find() -> Result<Self, FileError> {
        let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
        let plain = |c: char| !c.is_control() && !"\"'\\$".contains(c);
        home.filter(|home| home.to_str().is_some_and(|text| text.chars().all(plain))).map(Self).ok_or(FileError::Home)
    }

    fn ours(&self, name: &str) -> PathBuf {
        self.0.join(".podspawn").join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.ours("config.yaml")
    }

    pub fn host_keys(&self) -> PathBuf {
        self.ours("host_keys")
    }

    pub fn known_hosts(&self) -> PathBuf {
        self.ours("known_hosts")
    }

    pub fn ssh_config(&self) -> PathBuf {
        self.0.join(".ssh/config")
    }
}

/// The contents; empty if there is no such file.
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |error| FileError::Read(path.to_owned(), error);
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut contents = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut contents).map_err(failed)?;
    if contents.len() as u64 > MAX_BYTES { Err(FileError::TooLarge(path.to_owned())) } else { Ok(contents) }
}

/// The contents as text.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    let invalid = |error| FileError::Read(path.to_owned(), io::Error::new(io::ErrorKind::InvalidData, error));
    String::from_utf8(read(path)?).map_err(invalid)
}

/// Replaces the file's contents at once; through a symbolic link, those of the file behind it. A new file is the user's alone,
/// and so is its directory; an old one keeps its mode.
pub fn write(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    let failed = |error| FileError::Write(path.to_owned(), error);
    let target = match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err() => path.to_owned(),
        other => other.map_err(failed)?,
    };
    let directory = target.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
    let mode = target.metadata().map_or(0o600, |meta| meta.permissions().mode() & 0o7777);
    file.as_file().set_permissions(fs::Permissions::from_mode(mode)).map_err(failed)?;
    file.write_all(contents).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    file.persist(&target).map_err(|error| failed(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_behind_its_link_and_with_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let (link, target) = (directory.path().join("link"), directory.path().join("real"));
        fs::write(&target, "old").unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        write(&link, b"new").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(target.metadata().unwrap().permissions().mode() & 0o7777, 0o640);
        let fresh = directory.path().join("a/b");
        write(&fresh, b"x").unwrap();
        assert_eq!(fresh.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fresh.parent().unwrap().metadata().unwrap().permissions().mode() & 0o7777, 0o700);
        std::os::unix::fs::symlink("nowhere", directory.path().join("dangling")).unwrap();
        assert!(write(&directory.path().join("dangling"), b"x").is_err());
    }
}
