//! Finding processes by what the kernel says of them in `/proc` (proc_pid_root(5)). They come and go meanwhile: whoever acts
//! on one holds it first ([`super::pidfd::Held`]) and then looks again.

use std::{io, path::Path};

/// All processes that there are now.
pub fn pids() -> io::Result<impl Iterator<Item = i32>> {
    let entries = std::fs::read_dir("/proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

/// The processes whose parent is `parent` now.
pub fn children(parent: i32) -> io::Result<Vec<i32>> {
    let is_child = |pid: &i32| {
        let Ok(stat) = std::fs::read(format!("/proc/{pid}/stat")) else { return false };
        // Field 4. The name (field 2) may hold spaces and parentheses, so the fields are counted after it.
        let name_end = stat.iter().rposition(|&b| b == b')').unwrap_or_default();
        let fields = String::from_utf8_lossy(&stat[name_end..]);
        fields.split_ascii_whitespace().nth(2).is_some_and(|ppid| ppid.parse() == Ok(parent))
    };
    Ok(pids()?.filter(is_child).collect())
}

/// Whether the root directory of process `pid` is `root`, a canonical path; false if there is no such process. That is where
/// whoever started it has put it, and nothing that an unprivileged process can change.
pub fn has_root(pid: i32, root: &Path) -> bool {
    std::fs::read_link(format!("/proc/{pid}/root")).is_ok_and(|link| link == root)
}
