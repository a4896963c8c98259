//! Room on a file system.

use std::{io, path::Path};

use nix::sys::statvfs::statvfs;

/// Bytes that are free on the file system of `path`, without what is reserved for root (statvfs(3), `f_bavail`).
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let found = statvfs(path)?;
    Ok(found.blocks_available().saturating_mul(found.fragment_size()))
}
