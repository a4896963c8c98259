//! The server's SSH host keys: made at first start, then only read.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use russh::keys::{Algorithm, EcdsaCurve, PrivateKey, ssh_key::LineEnding};

use crate::protocol::HostKey;

/// File names as sshd's, in the order the keys are offered.
const KEYS: [(&str, Algorithm); 2] = [
    ("ssh_host_ed25519_key", Algorithm::Ed25519),
    ("ssh_host_ecdsa_key", Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }),
];

/// Why there are no usable host keys.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("cannot write {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
    #[error("{} is readable for others than root (mode {mode:o}); run: chmod 600 {}", .path.display(), .path.display())]
    Open { path: PathBuf, mode: u32 },
    #[error("{} is not an unencrypted private key in OpenSSH's format", .0.display())]
    Format(PathBuf, #[source] russh::keys::ssh_key::Error),
    #[error("cannot generate a host key")]
    Generate(#[source] russh::keys::ssh_key::Error),
}

/// Reads the host keys in `directory`, making those that are missing.
pub fn load_or_create(directory: &Path) -> Result<Vec<HostKey>, HostKeyError> {
    KEYS.iter()
        .map(|(name, algorithm)| {
            let path = directory.join(name);
            match read(&path) {
                Err(HostKeyError::Read(_, error)) if error.kind() == io::ErrorKind::NotFound => {
                    create(&path, algorithm)
                }
                other => other,
            }
        })
        .collect()
}

fn read(path: &Path) -> Result<HostKey, HostKeyError> {
    let failed = |error| HostKeyError::Read(path.to_owned(), error);
    let meta = fs::symlink_metadata(path).map_err(failed)?;
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 || meta.uid() != 0 {
        return Err(HostKeyError::Open { path: path.to_owned(), mode });
    }
    let bytes = fs::read(path).map_err(failed)?;
    PrivateKey::from_openssh(&bytes).map_err(|error| HostKeyError::Format(path.to_owned(), error))?;
    Ok(HostKey(bytes))
}

fn create(path: &Path, algorithm: &Algorithm) -> Result<HostKey, HostKeyError> {
    let key = PrivateKey::random(&mut rand::rng(), algorithm.clone()).map_err(HostKeyError::Generate)?;
    let private = key.to_openssh(LineEnding::LF).map_err(HostKeyError::Generate)?;
    let public = key.public_key().to_openssh().map_err(HostKeyError::Generate)?;
    write(path, 0o600, private.as_bytes())?;
    write(&path.with_extension("pub"), 0o644, format!("{public}\n").as_bytes())?;
    Ok(HostKey(private.as_bytes().to_vec()))
}

/// Writes a file so that it is there completely or not at all.
fn write(path: &Path, mode: u32, content: &[u8]) -> Result<(), HostKeyError> {
    let failed = |error| HostKeyError::Write(path.to_owned(), error);
    let temporary = path.with_extension("new");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary).map_err(failed)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)
}
