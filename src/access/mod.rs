//! Who may log in, and what the login may do: `authorized_keys` files, certificates of trusted CAs, and revocation.
//!
//! Files are the administrator's word and are read at each login, so that a change takes effect at the next. Keys and
//! certificates are the client's and are hostile input. Nothing in here knows a connection: [`Rules::judge`] is a function
//! of the files, the credential, where it comes from and the time.
//!
//! ```text
//! key ─────────▶ strong? ─▶ revoked? ─▶ a line of keys/<user> ──────────────────────────────▶ options
//! certificate ─▶ strong? ─▶ revoked? ─▶ a trusted CA, or a cert-authority line of the user ─▶ options
//! ```

mod address;
pub mod authorized_keys;
mod certificate;
mod credential;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod key_line;
mod krl;
pub mod published;
mod revoked;
pub(crate) mod strict_file;
pub mod users;

use std::{net::IpAddr, path::PathBuf, time::SystemTime};

pub use self::{
    address::{AddressList, network_of},
    certificate::CertificateError,
    credential::{CertificateIdentity, Credential, Identity, WeakKey},
    key_line::LineError,
    revoked::RevokedError,
};

use self::{
    authorized_keys::{KeyFile, Warning},
    strict_file::Links,
};
use crate::{names::UserName, protocol::KeyOptions};

/// Where the administrator's word is.
#[derive(Debug, Clone)]
pub struct Rules {
    /// `auth.key_dir`: a file for each user.
    pub key_dir: PathBuf,
    /// `auth.trusted_user_ca_keys`: public keys of CAs whose certificates log in.
    pub user_cas: Option<PathBuf>,
    /// `auth.revoked_keys`: a KRL, or a list of public keys.
    pub revoked: Option<PathBuf>,
}

/// Somebody at the door.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    pub user: &'a UserName,
    pub credential: &'a Credential,
    /// Canonical: an IPv4 client of an IPv6 socket is an IPv4 client.
    pub peer: IpAddr,
    pub now: SystemTime,
}

/// Why a login was refused: for the administrator, never for the client.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("it is not for a valid login name")]
    Name,
    #[error("it is neither a public key nor a certificate")]
    Unreadable,
    #[error(transparent)]
    Weak(#[from] WeakKey),
    #[error("it is revoked")]
    Revoked,
    #[error("whether it is revoked cannot be told")]
    Revocation(#[from] RevokedError),
    #[error("the user has no key file")]
    NoUser,
    #[error("the user's key file does not have it")]
    UnknownKey,
    #[error("its line in the user's key file is for other addresses or has expired")]
    NotNow,
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// The answer, and what the administrator should know of the files that it was looked for in.
pub type Judgement = (Result<KeyOptions, Refusal>, Vec<Warning>);

impl Rules {
    /// Whether the credential logs the user in, given that the client has proved to hold its private key.
    pub fn judge(&self, attempt: &Attempt<'_>) -> Judgement {
        let mut warnings = Vec::new();
        let verdict = self.decide(attempt, &mut warnings);
        (verdict, warnings)
    }

    /// Whether a public key that is offered, but not proved to be the client's, is worth the proof.
    ///
    /// With certificates this cannot be told: russh shows an offered certificate as the key inside it, which no file knows.
    /// Then the answer is yes for everybody, known or not (docs/russh.md, "certificates").
    pub fn worth_a_proof(&self, attempt: &Attempt<'_>) -> Judgement {
        if self.user_cas.is_some() { (Ok(KeyOptions::default()), Vec::new()) } else { self.judge(attempt) }
    }

    /// Reports what is wrong with the file of trusted CAs.
    pub fn check_user_cas(&self, warnings: &mut Vec<Warning>) {
        if let Some(path) = &self.user_cas {
            certificate::trusted_cas(path, warnings);
        }
    }

    /// Whether the list of revoked keys can be used; nobody could log in if not.
    pub fn check_revoked(&self) -> Result<(), RevokedError> {
        self.revoked.as_deref().map_or(Ok(()), revoked::check)
    }

    fn decide(&self, attempt: &Attempt<'_>, warnings: &mut Vec<Warning>) -> Result<KeyOptions, Refusal> {
        // Everything is read whoever the user is, so that the time it takes tells little; the answer to the client is
        // delayed to a constant as well.
        let file = KeyFile::open(&self.key_dir.join(attempt.user.as_str()), Links::Refuse, warnings);
        attempt.credential.is_strong()?;
        if let Some(path) = &self.revoked
            && revoked::is_revoked(path, attempt.credential)?
        {
            return Err(Refusal::Revoked);
        }
        match attempt.credential {
            Credential::Key(key) => {
                authorized_keys::authorize(file.as_ref(), key, attempt, self.user_cas.is_some(), warnings)
            }
            Credential::Certificate(certificate) => {
                let Some(user_cas) = &self.user_cas else { return Err(CertificateError::NotConfigured.into()) };
                Ok(certificate::authorize(user_cas, file.as_ref(), certificate, attempt, warnings)?)
            }
        }
    }
}
