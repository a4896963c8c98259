//! How large mirrors may get, and what they take.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime},
};

/// Files and directories that one mirror may have. git keeps few large files, and until it packs them one for each new ref.
pub(super) const MAX_ENTRIES: usize = 200_000;

/// How deep what git writes is looked into: names of refs have slashes.
const MAX_DEPTH: usize = 32;

/// What mirrors may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// All of them together.
    pub bytes: u64,
    /// After which one is made anew: what its server has taken back is gone then.
    pub age: Duration,
}

impl Limits {
    /// What one of them may take.
    pub fn of_one(self) -> u64 {
        self.bytes / 4
    }

    pub(super) fn is_too_old(self, made: SystemTime) -> bool {
        SystemTime::now().duration_since(made).is_ok_and(|age| age > self.age)
    }
}

#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Size {
    pub(super) bytes: u64,
    pub(super) entries: usize,
}

/// What a tree takes that git may be writing to, up to so many entries. Follows no link; what cannot be read is not counted.
pub(super) fn measure(path: &Path, max_entries: usize) -> Size {
    let mut size = Size::default();
    add(path, max_entries, MAX_DEPTH, &mut size);
    size
}

fn add(path: &Path, max_entries: usize, depth: usize, size: &mut Size) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if size.entries > max_entries {
            return;
        }
        size.entries += 1;
        // Of the entry itself, also if it is a link.
        let Ok(meta) = entry.metadata() else { continue };
        size.bytes += meta.blocks() * 512;
        if meta.is_dir() && depth > 0 {
            add(&entry.path(), max_entries, depth - 1, size);
        }
    }
}
