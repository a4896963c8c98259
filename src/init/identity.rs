//! Whom one process runs as: the session's user, the container's root, or somebody whom the container's own files name.

use std::io;

use super::{
    account::{self, Account, MAX_GROUPS},
    files, home,
};
use crate::protocol::Identity;

/// Ids and home directory of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

/// Why there is nobody to run as.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum IdentityError {
    #[error("the container's /etc/passwd has no user {0:?}")]
    User(String),
    #[error("the container's /etc/group has no group {0:?}")]
    Group(String),
    #[error("there is no id {0} in the container")]
    Id(String),
    #[error("cannot read the container's users: {0}")]
    Read(String),
}

impl Who {
    /// Whom `identity` means, by the container's files as they are now.
    pub(super) fn find(identity: &Identity, account: &Account) -> Result<Self, IdentityError> {
        let read = |path| -> Result<Vec<u8>, IdentityError> {
            let unreadable = |error: io::Error| IdentityError::Read(error.to_string());
            let file = files::read(path, home::MAX_FILE).map_err(unreadable)?;
            Ok(file.map(|(contents, _)| contents).unwrap_or_default())
        };
        match identity {
            // What is wrong with its group file must not keep the session's user out.
            Identity::Session => Ok(Self::of_session(account, &read("/etc/group").unwrap_or_default())),
            Identity::Root => Self::named("0:0", &read("/etc/passwd")?, &[]),
            Identity::Named { user } => Self::named(user, &read("/etc/passwd")?, &read("/etc/group")?),
        }
    }

    fn of_session(account: &Account, group_file: &[u8]) -> Self {
        Self {
            name: account.name.clone(),
            uid: account.uid,
            gid: account.gid,
            groups: account.groups(group_file),
            home: account.home.clone(),
        }
    }

    /// `user[:group]`, either a name or a number. As with Docker, digits are always a number, a number needs no entry and
    /// then means group 0 and home `/`, and who names a group has no other.
    fn named(text: &str, passwd: &[u8], group_file: &[u8]) -> Result<Self, IdentityError> {
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let uid = number(user)?;
        let entry = account::entries(passwd).find(|entry| match uid {
            Some(uid) => entry.id == uid,
            None => entry.name == user.as_bytes(),
        });
        let utf8 = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
        let uid = entry.as_ref().map(|entry| entry.id).or(uid);
        let uid = uid.ok_or_else(|| IdentityError::User(user.to_owned()))?;
        let name = entry.as_ref().and_then(|entry| utf8(entry.name)).unwrap_or_else(|| uid.to_string());
        let home = entry.as_ref().and_then(account::Entry::home).filter(|home| home.first() == Some(&b'/'));
        let home = home.and_then(utf8).unwrap_or_else(|| "/".to_owned());
        let own_group = entry.as_ref().and_then(account::Entry::group).unwrap_or(0);
        let (gid, groups) = match group {
            Some(group) => {
                let found = account::entries(group_file).find(|entry| entry.name == group.as_bytes());
                let gid = number(group)?.or(found.map(|entry| entry.id));
                let gid = gid.ok_or_else(|| IdentityError::Group(group.to_owned()))?;
                (gid, vec![gid])
            }
            None => {
                let mut groups = vec![own_group];
                let listed = account::entries(group_file).filter(|entry| entry.has_member(name.as_bytes()));
                for gid in listed.map(|entry| entry.id) {
                    if !groups.contains(&gid) && groups.len() < MAX_GROUPS {
                        groups.push(gid);
                    }
                }
                (own_group, groups)
            }
        };
        Ok(Self { name, uid, gid, groups, home })
    }
}

/// The id that `text` is, if it is one in digits.
fn number(text: &str) -> Result<Option<u32>, IdentityError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match account::parse_id(text.as_bytes()) {
        None if digits => Err(IdentityError::Id(text.to_owned())),
        id => Ok(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\npostgres:x:70:71::/var/lib/postgresql:/bin/sh\n\
        relative:x:72:72::home:/bin/sh\nbad:x:-1:0::/:\n99:x:5:5::/five:\n";
    const GROUP: &[u8] = b"root:x:0:\npostgres:x:71:\nssl-cert:x:101:postgres,www\nadm:x:4:\n99:x:6:\n";

    fn who(name: &str, uid: u32, gid: u32, groups: &[u32], home: &str) -> Who {
        Who { name: name.to_owned(), uid, gid, groups: groups.to_vec(), home: home.to_owned() }
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        for (text, found) in [
            ("postgres", who("postgres", 70, 71, &[71, 101], "/var/lib/postgresql")),
            ("70", who("postgres", 70, 71, &[71, 101], "/var/lib/postgresql")),
            ("postgres:adm", who("postgres", 70, 4, &[4], "/var/lib/postgresql")),
            ("postgres:9", who("postgres", 70, 9, &[9], "/var/lib/postgresql")),
            ("1234", who("1234", 1234, 0, &[0], "/")),
            ("1234:71", who("1234", 1234, 71, &[71], "/")),
            // A user who is called like a number is not found by it.
            ("99", who("99", 99, 0, &[0], "/")),
            ("relative", who("relative", 72, 72, &[72], "/")),
        ] {
            assert_eq!(Who::named(text, PASSWD, GROUP), Ok(found), "{text}");
        }
    }

    #[test]
    fn nobody_is_made_up() {
        for (text, error) in [
            ("mysql", IdentityError::User("mysql".to_owned())),
            ("bad", IdentityError::User("bad".to_owned())),
            ("", IdentityError::User(String::new())),
            ("postgres:wheel", IdentityError::Group("wheel".to_owned())),
            ("postgres:", IdentityError::Group(String::new())),
            ("65536", IdentityError::Id("65536".to_owned())),
            ("0:4294967296", IdentityError::Id("4294967296".to_owned())),
            ("-1", IdentityError::User("-1".to_owned())),
            ("postgres:adm:x", IdentityError::Group("adm:x".to_owned())),
        ] {
            assert_eq!(Who::named(text, PASSWD, GROUP), Err(error), "{text}");
        }
    }

    #[test]
    fn root_needs_no_files() {
        assert_eq!(Who::named("0:0", &[], &[]), Ok(who("0", 0, 0, &[0], "/")));
        assert_eq!(Who::named("0:0", PASSWD, &[]), Ok(who("root", 0, 0, &[0], "/root")));
    }
}
