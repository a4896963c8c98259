//! The user that processes without rights run as: connection processes, git.

use std::fs;

/// Nobody, for hosts without a system user of ours.
const NOBODY: u32 = 65_534;

/// The uid of the system user `podspawn`, which `server-setup` makes, or that of nobody. Never root's.
pub fn uid() -> u32 {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let uid = passwd.lines().find_map(|line| line.strip_prefix("podspawn:")?.split(':').nth(1)?.parse().ok());
    uid.filter(|uid| *uid != 0).unwrap_or(NOBODY)
}
