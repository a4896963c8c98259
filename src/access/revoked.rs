//! `auth.revoked_keys`: keys and certificates that must not log in, whatever other files say.
//!
//! Refuses everybody while the list cannot be read or understood, as sshd does: it may be the key in question.

use std::path::{Path, PathBuf};

use russh::keys::ssh_key::public::KeyData;

use super::{
    credential::Credential,
    key_line::{self, LineError},
    krl::{self, KrlError},
    strict_file::{self, FileError, Links},
};

/// Some 100,000 keys. A list that is larger refuses everybody.
const MAX_BYTES: u64 = 8 << 20;

/// Why it is not known whether something is revoked.
#[derive(Debug, thiserror::Error)]
pub enum RevokedError {
    #[error("the list of revoked keys {} is not there", .0.display())]
    Missing(PathBuf),
    #[error("the list of revoked keys {} is not used", .0.display())]
    File(PathBuf, #[source] FileError),
    #[error("{}:{line} is not understood", .file.display())]
    Line {
        file: PathBuf,
        line: usize,
        #[source]
        why: LineError,
    },
    #[error("{} is not understood", .0.display())]
    Krl(PathBuf, #[source] KrlError),
}

/// Whether the list at `path`, a KRL or public keys one a line, has the credential: the key, or what signed it.
pub(super) fn is_revoked(path: &Path, credential: &Credential) -> Result<bool, RevokedError> {
    match List::open(path)? {
        List::Krl(krl) => krl::revokes(&krl, credential).map_err(|error| RevokedError::Krl(path.to_owned(), error)),
        List::Keys(keys) => Ok(keys.iter().any(|key| names(key, credential))),
    }
}

/// Whether the list can be used at all.
pub(super) fn check(path: &Path) -> Result<(), RevokedError> {
    match List::open(path)? {
        List::Krl(krl) => krl::check(&krl).map_err(|error| RevokedError::Krl(path.to_owned(), error)),
        List::Keys(_) => Ok(()),
    }
}

enum List {
    Krl(Vec<u8>),
    Keys(Vec<KeyData>),
}

impl List {
    fn open(path: &Path) -> Result<Self, RevokedError> {
        let bytes = strict_file::read(path, MAX_BYTES, Links::Follow)
            .map_err(|error| RevokedError::File(path.to_owned(), error))?
            .ok_or_else(|| RevokedError::Missing(path.to_owned()))?;
        if krl::is_krl(&bytes) {
            return Ok(Self::Krl(bytes));
        }
        let text = String::from_utf8(bytes).map_err(|_| RevokedError::File(path.to_owned(), FileError::NotText))?;
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let key = key_line::parse_bare(line);
            keys.extend(key.map_err(|why| RevokedError::Line { file: path.to_owned(), line: index + 1, why })?);
        }
        Ok(Self::Keys(keys))
    }
}

fn names(listed: &KeyData, credential: &Credential) -> bool {
    // A certificate in the list stands for its key, as in sshd.
    let listed = listed.certificate().map_or(listed, |certificate| certificate.public_key());
    let ca = match credential {
        Credential::Key(_) => None,
        Credential::Certificate(certificate) => Some(certificate.signature_key()),
    };
    listed == credential.key() || Some(listed) == ca
}

#[cfg(test)]
mod tests {
    use super::*;
    use russh::keys::{Algorithm, PrivateKey};
    use std::fs;

    #[test]
    fn a_plain_list_revokes_its_keys_and_a_broken_one_everybody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("revoked");
        let keys = [0, 1].map(|_| PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap());
        let [listed, other] = keys.map(|key| Credential::Key(key.public_key().key_data().clone()));
        let ask = |credential| is_revoked(&path, credential);
        assert!(matches!(ask(&other), Err(RevokedError::Missing(_))));
        let line = russh::keys::PublicKey::from(listed.key().clone()).to_openssh().unwrap();
        fs::write(&path, format!("# lost\n\n{line} laptop\n")).unwrap();
        assert!(ask(&listed).unwrap() && !ask(&other).unwrap());
        check(&path).unwrap();
        fs::write(&path, format!("{line}\nssh-ed25519 garbage\n")).unwrap();
        assert!(matches!(ask(&other), Err(RevokedError::Line { line: 2, .. })));
        fs::write(&path, "SSHKRL\n\0").unwrap();
        assert!(matches!(ask(&other), Err(RevokedError::Krl(..))));
        assert!(matches!(check(&path), Err(RevokedError::Krl(..))));
    }
}
