//! The SFTP server of a session.

use std::{io, os::fd::OwnedFd, path::Path};

/// Serves SFTP over `stream` until the client closes it.
pub fn serve(stream: OwnedFd, _home: &Path) -> io::Result<()> {
    drop(stream);
    Err(io::ErrorKind::Unsupported.into())
}
