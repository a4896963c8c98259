//! Names of users and groups: the container's own, from its files. The C library's name service would load code that a
//! static program does not have, and may ask the network.

use std::collections::HashMap;

use crate::init::{account, files, home::MAX_FILE};

/// Longer names than this (useradd(8) allows 32 bytes) are taken for none: a listing repeats them on every line.
const MAX_NAME: usize = 256;

/// Names by id.
#[derive(Debug, Default)]
pub(super) struct Names {
    users: HashMap<u32, Vec<u8>>,
    groups: HashMap<u32, Vec<u8>>,
}

impl Names {
    pub(super) fn read() -> Self {
        let by_id = |file: &[u8]| {
            let mut names = HashMap::new();
            for entry in account::entries(file).filter(|entry| entry.name.len() <= MAX_NAME) {
                // The first of an id counts, as for getpwuid(3).
                names.entry(entry.id).or_insert_with(|| entry.name.to_owned());
            }
            names
        };
        Self { users: by_id(&contents("/etc/passwd")), groups: by_id(&contents("/etc/group")) }
    }

    pub(super) fn user(&self, uid: u32) -> Option<&[u8]> {
        self.users.get(&uid).map(Vec::as_slice)
    }

    pub(super) fn group(&self, gid: u32) -> Option<&[u8]> {
        self.groups.get(&gid).map(Vec::as_slice)
    }
}

/// The home directory of `user`.
pub(super) fn home_of(user: &[u8]) -> Option<Vec<u8>> {
    let passwd = contents("/etc/passwd");
    let entry = account::entries(&passwd).find(|entry| entry.name == user)?;
    entry.home().map(<[u8]>::to_vec)
}

/// A file that is missing, unreadable or too large names nobody.
fn contents(path: &str) -> Vec<u8> {
    files::read(path, MAX_FILE).ok().flatten().map(|(contents, _)| contents).unwrap_or_default()
}
