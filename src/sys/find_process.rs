//! Finding processes by what the kernel says of them in `/proc` (proc_pid_root(5)). They come and go meanwhile: whoever acts
//! on one holds it first ([`super::pidfd::Held`]) and then looks again.

use std::{io, path::Path};

/// All processes that there are now.
pub fn pids() -> io::Result<impl Iterator<Item = i32>> {
    let entries = std::fs::read_dir("/proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

/// Whether the root directory of process `pid` is `root`, a canonical path; false if there is no such process. That is where
/// whoever started it has put it, and nothing that an unprivileged process can change.
pub fn has_root(pid: i32, root: &Path) -> bool {
    std::fs::read_link(format!("/proc/{pid}/root")).is_ok_and(|link| link == root)
}
