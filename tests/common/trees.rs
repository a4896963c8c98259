//! Directories to transfer, and what came of them.

use std::{
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

/// Times before this are told apart by [`tree`].
const LONG_AGO: i64 = 1_600_000_000;

/// What is below a directory: a line for each name with its kind and mode, its time if it is old, its contents.
pub fn tree(root: &Path) -> Vec<String> {
    let mut entries = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let contents = if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            let time = Some(metadata.mtime()).filter(|time| *time < LONG_AGO);
            let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().escape_ascii();
            entries.push(format!("{name} {:o} {time:?} {}", metadata.mode(), contents.escape_ascii()));
            if metadata.is_dir() {
                directories.push(path);
            }
        }
    }
    entries.sort();
    entries
}

/// Writes a file that looks as if it had been there for long.
pub fn write_old(path: &Path, contents: impl AsRef<[u8]>) {
    fs::write(path, contents).unwrap();
    let old = UNIX_EPOCH + Duration::from_secs(1_234_567_890);
    let times = fs::FileTimes::new().set_accessed(old).set_modified(old);
    fs::File::options().write(true).open(path).unwrap().set_times(times).unwrap();
}
