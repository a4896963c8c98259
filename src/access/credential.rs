//! What a client logs in with.

use russh::keys::{Certificate, HashAlg, PublicKey, ssh_key::public::KeyData};

/// RSA keys below are within reach of factoring soon: NIST SP 800-57 puts 1024 bits, sshd's limit, at 80 bits of strength.
/// Keys above are more than the verification takes.
const RSA_BITS: std::ops::RangeInclusive<u32> = 2048..=8192;

/// A public key or a certificate.
#[derive(Debug, Clone)]
pub enum Credential {
    Key(KeyData),
    Certificate(Box<Certificate>),
}

/// Why a key is not used even if it is the right one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WeakKey {
    #[error("RSA keys must have between {} and {} bits, this one has {bits}", RSA_BITS.start(), RSA_BITS.end())]
    Rsa { bits: u32 },
    #[error("keys of type {0} are not accepted")]
    Type(String),
}

impl Credential {
    /// Reads the blob of RFC 4253, 6.6, or of PROTOCOL.certkeys. `None` if it is neither.
    pub fn parse(blob: &[u8]) -> Option<Self> {
        let key = KeyData::from(PublicKey::from_bytes(blob).ok()?);
        Some(match key {
            KeyData::Certificate(certificate) => Self::Certificate(certificate),
            other => Self::Key(other),
        })
    }

    /// The key that the client has to hold.
    pub fn key(&self) -> &KeyData {
        match self {
            Self::Key(key) => key,
            Self::Certificate(certificate) => certificate.public_key(),
        }
    }

    pub(super) fn is_strong(&self) -> Result<(), WeakKey> {
        is_strong(self.key())
    }

    pub fn identity(&self) -> Identity {
        let fingerprint = |key: &KeyData| key.fingerprint(HashAlg::Sha256).to_string();
        Identity {
            fingerprint: fingerprint(self.key()),
            certificate: match self {
                Self::Key(_) => None,
                Self::Certificate(certificate) => Some(CertificateIdentity {
                    key_id: certificate.key_id().to_owned(),
                    serial: certificate.serial(),
                    ca: fingerprint(certificate.signature_key()),
                }),
            },
        }
    }
}

/// Whether a key is of a type and size that is accepted, for users as for CAs.
pub(super) fn is_strong(key: &KeyData) -> Result<(), WeakKey> {
    match key {
        KeyData::Ed25519(_) | KeyData::SkEd25519(_) | KeyData::Ecdsa(_) | KeyData::SkEcdsaSha2NistP256(_) => Ok(()),
        KeyData::Rsa(rsa) if RSA_BITS.contains(&rsa.key_size()) => Ok(()),
        KeyData::Rsa(rsa) => Err(WeakKey::Rsa { bits: rsa.key_size() }),
        KeyData::Certificate(certificate) => Err(WeakKey::Type(certificate.algorithm().to_certificate_type())),
        // `Dsa`, `Other`; the enum may grow.
        other => Err(WeakKey::Type(other.algorithm().as_str().chars().take(64).collect())),
    }
}

/// How a login is told from others in the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `SHA256:...` of the key.
    pub fingerprint: String,
    pub certificate: Option<CertificateIdentity>,
}

impl Identity {
    /// Of something that is neither a key nor a certificate.
    pub fn unknown() -> Self {
        Self { fingerprint: "unknown".to_owned(), certificate: None }
    }
}

/// What the CA wrote into a certificate to tell it from others. Hostile text unless the CA is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateIdentity {
    pub key_id: String,
    pub serial: u64,
    /// `SHA256:...` of the CA's key.
    pub ca: String,
}
