//! The server's SSH host keys: an Ed25519 key, made at first start, and those that the administrator has put beside it.
//!
//! Every client of the last ten years knows Ed25519. An ECDSA key is used if there is one, say of a server that is replaced,
//! but none is made: its signatures give the key away if the random numbers are bad just once. RSA keys are not used: the
//! library that would sign with them leaks their bits to who can measure its time (RUSTSEC-2023-0071).

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use russh::keys::{Algorithm, PrivateKey, ssh_key::LineEnding};

use crate::protocol::HostKey;

/// File names as sshd's.
const ED25519: &str = "ssh_host_ed25519_key";
const ECDSA: &str = "ssh_host_ecdsa_key";

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
    #[error("{} is an RSA key, which is not used as a host key", .0.display())]
    Rsa(PathBuf),
    #[error("cannot generate a host key")]
    Generate(#[source] russh::keys::ssh_key::Error),
}

/// Reads the host keys in `directory`, in the order they are offered, making the Ed25519 key if it is missing.
pub fn load_or_create(directory: &Path) -> Result<Vec<HostKey>, HostKeyError> {
    let ed25519 = directory.join(ED25519);
    let first = read(&ed25519)?.map_or_else(|| create(&ed25519), Ok)?;
    Ok(std::iter::once(first).chain(read(&directory.join(ECDSA))?).collect())
}

/// `None` if there is no such file.
fn read(path: &Path) -> Result<Option<HostKey>, HostKeyError> {
    let failed = |error| HostKeyError::Read(path.to_owned(), error);
    let meta = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 || meta.uid() != 0 {
        return Err(HostKeyError::Open { path: path.to_owned(), mode });
    }
    let bytes = fs::read(path).map_err(failed)?;
    let key = PrivateKey::from_openssh(&bytes).map_err(|error| HostKeyError::Format(path.to_owned(), error))?;
    if key.algorithm().is_rsa() {
        return Err(HostKeyError::Rsa(path.to_owned()));
    }
    Ok(Some(HostKey(bytes)))
}

fn create(path: &Path) -> Result<HostKey, HostKeyError> {
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).map_err(HostKeyError::Generate)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use russh::keys::EcdsaCurve;

    #[test]
    fn a_key_is_made_once_and_others_are_taken_as_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let load = || load_or_create(directory.path());
        let bytes = |keys: Vec<HostKey>| keys.into_iter().map(|key| key.0).collect::<Vec<_>>();
        let first = bytes(load().unwrap());
        assert_eq!((first.len(), &first), (1, &bytes(load().unwrap())));
        let ecdsa = PrivateKey::random(&mut rand::rng(), Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }).unwrap();
        let path = directory.path().join(ECDSA);
        write(&path, 0o600, ecdsa.to_openssh(LineEnding::LF).unwrap().as_bytes()).unwrap();
        assert_eq!(load().unwrap().len(), 2);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(load(), Err(HostKeyError::Open { .. })));
        write(&path, 0o600, b"no key").unwrap();
        assert!(matches!(load(), Err(HostKeyError::Format(..))));
    }
}
