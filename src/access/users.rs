//! The users: one key file each, `auth.key_dir/<user>`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    Rules,
    authorized_keys::{self, Warning},
    key_line::{Entry, LineError},
    strict_file,
};
use crate::names::UserName;

/// Why a user could not be listed or changed.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("there is no user {user} in {}", .key_dir.display())]
    Unknown { user: UserName, key_dir: PathBuf },
    #[error("{origin} has a line that is no usable public key")]
    Key {
        origin: String,
        #[source]
        why: LineError,
    },
    #[error("there is no public key in {0}")]
    NoKey(String),
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("cannot write {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
}

/// A user in listings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub name: UserName,
    /// Usable keys.
    pub keys: usize,
}

/// Every user, by name. Files whose names are not user names do not count.
pub fn list(rules: &Rules) -> Result<(Vec<User>, Vec<Warning>), UserError> {
    let key_dir = &rules.key_dir;
    let entries = match fs::read_dir(key_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
        other => other.map_err(|error| UserError::Read(key_dir.to_owned(), error))?,
    };
    let mut users = Vec::new();
    let mut warnings = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| UserError::Read(key_dir.to_owned(), error))?;
        let Some(name) = entry.file_name().to_str().and_then(|name| name.parse::<UserName>().ok()) else { continue };
        let (keys, complaints) = authorized_keys::check(&entry.path(), rules.user_cas.is_some());
        warnings.extend(complaints);
        users.push(User { name, keys });
    }
    users.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((users, warnings))
}

/// Adds the keys of `texts` (content in `authorized_keys` format, and where it came from) to the user, making the user if
/// need be. Keys that are there already are not added again. Returns how many were added.
pub fn add(key_dir: &Path, user: &UserName, texts: &[(String, String)]) -> Result<usize, UserError> {
    let path = key_dir.join(user.as_str());
    let mut content = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        other => other.map_err(|error| UserError::Read(path.clone(), error))?,
    };
    let mut known: Vec<_> = content
        .lines()
        .filter_map(|line| Entry::parse(line).ok().flatten())
        .map(|entry| (entry.authority, entry.key))
        .collect();
    let mut added = 0;
    for (origin, text) in texts {
        let mut found = false;
        for line in text.lines() {
            let entry = Entry::parse(line).map_err(|why| UserError::Key { origin: origin.clone(), why })?;
            let Some(entry) = entry else { continue };
            found = true;
            let entry = (entry.authority, entry.key);
            if known.contains(&entry) {
                continue;
            }
            if !content.is_empty() && !content.ends_with('\n') {
                content.push('\n');
            }
            content.push_str(line.trim());
            content.push('\n');
            known.push(entry);
            added += 1;
        }
        if !found {
            return Err(UserError::NoKey(origin.clone()));
        }
    }
    if added > 0 {
        strict_file::replace(&path, &content, 0o644).map_err(|error| UserError::Write(path.clone(), error))?;
    }
    Ok(added)
}

/// Removes the user: no key logs in any more.
pub fn remove(key_dir: &Path, user: &UserName) -> Result<(), UserError> {
    let path = key_dir.join(user.as_str());
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(UserError::Unknown { user: user.clone(), key_dir: key_dir.to_owned() })
        }
        other => other.map_err(|error| UserError::Write(path, error)),
    }
}

/// Whether the user has a key file.
pub fn exists(key_dir: &Path, user: &UserName) -> bool {
    key_dir.join(user.as_str()).exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    #[test]
    fn users_come_and_go() {
        let directory = tempfile::tempdir().unwrap();
        let keys = directory.path().join("keys");
        let ada: UserName = "ada".parse().unwrap();
        let text = |text: &str| [("--key".to_owned(), text.to_owned())];
        let list = || list(&Rules { key_dir: keys.clone(), user_cas: None, revoked: None }).unwrap();
        assert_eq!(list().0, []);
        assert_eq!(add(&keys, &ada, &text(&format!("{KEY} laptop"))).unwrap(), 1);
        assert_eq!(add(&keys, &ada, &text(&format!("restrict {KEY} again"))).unwrap(), 0);
        assert_eq!(list().0, [User { name: ada.clone(), keys: 1 }]);
        assert_eq!(fs::metadata(keys.join("ada")).unwrap().permissions().mode() & 0o777, 0o644);
        remove(&keys, &ada).unwrap();
        assert!(matches!(remove(&keys, &ada), Err(UserError::Unknown { .. })));
    }

    #[test]
    fn what_is_no_key_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let ada: UserName = "ada".parse().unwrap();
        let add = |text: &str| add(directory.path(), &ada, &[("f".to_owned(), text.to_owned())]);
        assert!(matches!(add("garbage"), Err(UserError::Key { .. })));
        assert!(matches!(add("# nothing\n"), Err(UserError::NoKey(_))));
        assert!(matches!(add(&format!("{KEY}\ngarbage")), Err(UserError::Key { .. })));
        assert!(!exists(directory.path(), &ada));
    }
}
