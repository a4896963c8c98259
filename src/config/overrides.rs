//! What the administrator says about single users: `/etc/podspawn/users/<user>.yaml`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    access::strict_file::{self, FileError, Links},
    names::UserName,
    podfile::{Invalid, MAX_FILE, Overrides},
};

/// Why a user's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OverridesError {
    #[error("cannot use {}", .0.display())]
    Read(PathBuf, #[source] FileError),
    #[error("{} is not valid", .0.display())]
    Invalid(PathBuf, #[source] Invalid),
    #[error("cannot list {}", .0.display())]
    List(PathBuf, #[source] io::Error),
}

/// What is said about `user`; nothing without a file.
pub fn of(directory: &Path, user: &UserName) -> Result<Overrides, OverridesError> {
    let name = format!("{user}.yaml");
    let path = directory.join(&name);
    match strict_file::read_text(&path, MAX_FILE, Links::Refuse) {
        Ok(None) => Ok(Overrides::default()),
        Ok(Some(text)) => Overrides::parse(&name, &text).map_err(|error| OverridesError::Invalid(path, error)),
        Err(error) => Err(OverridesError::Read(path, error)),
    }
}

/// Reads all files of the directory. Files whose names are not those of users count for nobody.
pub fn check(directory: &Path) -> Result<(), OverridesError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|error| OverridesError::List(directory.to_owned(), error))?,
    };
    for entry in entries {
        let entry = entry.map_err(|error| OverridesError::List(directory.to_owned(), error))?;
        let name = entry.file_name();
        if let Some(user) = name.to_str().and_then(|name| name.strip_suffix(".yaml")?.parse().ok()) {
            of(directory, &user)?;
        }
    }
    Ok(())
}
