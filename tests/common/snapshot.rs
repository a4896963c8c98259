//! Everything about a directory tree, for comparing two of them.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

/// All there is to know of each entry, by its path below `root`: `type mode owner mtime` and what is particular to it.
pub fn of(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut names: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let inner = path.strip_prefix(root).unwrap().to_owned();
        let kind = meta.file_type();
        let what = if kind.is_dir() {
            let mut below: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            // In reverse, as they are taken from the end.
            below.sort_by(|a, b| b.cmp(a));
            pending.extend(below);
            "directory".to_owned()
        } else if kind.is_symlink() {
            format!("link to {}", fs::read_link(&path).unwrap().display())
        } else if kind.is_file() {
            let first = names.entry((meta.dev(), meta.ino())).or_insert_with(|| inner.clone());
            format!("file {} {}", super::oci::digest(&fs::read(&path).unwrap()), first.display())
        } else if kind.is_fifo() {
            "fifo".to_owned()
        } else {
            format!("device {kind:?} {}", meta.rdev())
        };
        let mut attributes = Vec::new();
        for name in xattr::list(&path).unwrap() {
            let value = xattr::get(&path, &name).unwrap().unwrap();
            attributes.push(format!("{}={}", name.display(), hex::encode(value)));
        }
        attributes.sort();
        let line = format!(
            "{:o} {}:{} {}.{:09} {what} {attributes:?}",
            meta.mode() & 0o7777,
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec()
        );
        found.insert(inner, line);
    }
    found
}

/// Fails with what differs.
#[track_caller]
pub fn assert_same(what: &str, expected: &BTreeMap<PathBuf, String>, found: &BTreeMap<PathBuf, String>) {
    let mut differences = Vec::new();
    for path in expected.keys().chain(found.keys()).collect::<std::collections::BTreeSet<_>>() {
        let (expected, found) = (expected.get(path), found.get(path));
        if expected != found {
            differences.push(format!("{}:\n  expected {expected:?}\n  found    {found:?}", path.display()));
        }
    }
    assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
}
