//! User certificates: PROTOCOL.certkeys, and sshd's rules about who may use them.
//!
//! russh has proved that the client holds the certificate's key, and checked its dates and signature. That is done again
//! here: the connection process is not believed.

use std::{net::IpAddr, path::Path, time::SystemTime};

use russh::keys::{
    Algorithm, Certificate, HashAlg,
    ssh_key::{certificate::CertType, public::KeyData},
};

use super::{
    Attempt,
    address::AddressList,
    authorized_keys::{KeyFile, Warning},
    credential::{WeakKey, is_strong},
    strict_file::Links,
};
use crate::protocol::KeyOptions;

/// Why a certificate does not log in.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("certificates are not configured (auth.trusted_user_ca_keys)")]
    NotConfigured,
    #[error("it is a host's certificate")]
    Host,
    #[error("its CA is not trusted")]
    UnknownCa,
    #[error("its CA's key: {0}")]
    WeakCa(WeakKey),
    #[error("its CA signed with SHA-1")]
    Sha1,
    #[error("its signature is not valid, or it is not valid at this time")]
    Invalid,
    #[error("it does not name the user as a principal")]
    Principal,
    #[error("its critical option {0:?} is not supported")]
    Critical(String),
    #[error("its critical option \"source-address\" has no valid value")]
    SourceAddress,
    #[error("it is for other addresses")]
    Elsewhere,
    #[error("it forces another command than the line of its CA in the user's key file")]
    Command,
}

/// What the certificate lets the user do, if a CA in the file `user_cas`, or one in the user's own key file, vouches for it.
pub(super) fn authorize(
    user_cas: &Path,
    file: Option<&KeyFile>,
    certificate: &Certificate,
    attempt: &Attempt<'_>,
    warnings: &mut Vec<Warning>,
) -> Result<KeyOptions, CertificateError> {
    let granted = check(certificate, attempt.peer, attempt.now)?;
    let ca = certificate.signature_key();
    let trusted = trusted_cas(user_cas, warnings).contains(ca);
    let named = certificate.valid_principals().iter().any(|name| name == attempt.user.as_str());
    if trusted && named {
        return Ok(granted);
    }
    // As sshd does, the user's own file is asked when the common one has no answer.
    let entries = file.map(|file| file.entries(true, warnings)).unwrap_or_default();
    let mut refusal = if trusted { CertificateError::Principal } else { CertificateError::UnknownCa };
    for entry in entries.into_iter().filter(|entry| entry.authority && entry.key == *ca) {
        if !entry.names(certificate, attempt.user.as_str()) {
            refusal = CertificateError::Principal;
        } else if !entry.applies(attempt.peer, attempt.now) {
            refusal = CertificateError::Elsewhere;
        } else {
            return merge(entry.options, granted);
        }
    }
    Err(refusal)
}

/// The CAs in `auth.trusted_user_ca_keys`: public keys without options, one a line.
pub(super) fn trusted_cas(path: &Path, warnings: &mut Vec<Warning>) -> Vec<KeyData> {
    let before = warnings.len();
    match KeyFile::open(path, Links::Follow, warnings) {
        Some(file) => file.bare_keys(warnings),
        None => {
            if warnings.len() == before {
                warnings.push(Warning::Missing(path.to_owned()));
            }
            Vec::new()
        }
    }
}

/// Checks all that the certificate says of itself, and tells what it permits.
pub(super) fn check(certificate: &Certificate, peer: IpAddr, now: SystemTime) -> Result<KeyOptions, CertificateError> {
    if certificate.cert_type() != CertType::User {
        return Err(CertificateError::Host);
    }
    let ca = certificate.signature_key();
    is_strong(ca).map_err(CertificateError::WeakCa)?;
    if certificate.signature().algorithm() == (Algorithm::Rsa { hash: None }) {
        return Err(CertificateError::Sha1);
    }
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    // The dates and the signature. Whether the CA is trusted is for the caller to find out.
    certificate.validate_at(now, [&ca.fingerprint(HashAlg::Sha256)]).map_err(|_| CertificateError::Invalid)?;
    let permits = |extension: &str| certificate.extensions().contains_key(extension);
    let mut options = KeyOptions {
        no_pty: !permits("permit-pty"),
        no_port_forwarding: !permits("permit-port-forwarding"),
        no_agent_forwarding: !permits("permit-agent-forwarding"),
        no_x11_forwarding: !permits("permit-X11-forwarding"),
        ..KeyOptions::default()
    };
    for (name, value) in certificate.critical_options().iter() {
        match name.as_str() {
            "force-command" => options.command = Some(value.clone()),
            "source-address" => {
                let networks = AddressList::parse_networks(value).ok_or(CertificateError::SourceAddress)?;
                if !networks.contains(peer) {
                    return Err(CertificateError::Elsewhere);
                }
            }
            // Also verify-required: whether a FIDO key's owner was verified cannot be seen here (docs/russh.md).
            _ => return Err(CertificateError::Critical(name.chars().take(64).collect())),
        }
    }
    Ok(options)
}

/// What both the line of the CA and the certificate permit.
fn merge(line: KeyOptions, certificate: KeyOptions) -> Result<KeyOptions, CertificateError> {
    let command = match (line.command, certificate.command) {
        (Some(one), Some(other)) if one != other => return Err(CertificateError::Command),
        (one, other) => one.or(other),
    };
    Ok(KeyOptions {
        command,
        no_pty: line.no_pty || certificate.no_pty,
        no_port_forwarding: line.no_port_forwarding || certificate.no_port_forwarding,
        no_agent_forwarding: line.no_agent_forwarding || certificate.no_agent_forwarding,
        no_x11_forwarding: line.no_x11_forwarding || certificate.no_x11_forwarding,
        // A certificate cannot say these.
        environment: line.environment,
        permit_open: line.permit_open,
        permit_listen: line.permit_listen,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use russh::keys::{PrivateKey, ssh_key::certificate::Builder};

    /// What real clients and ssh-keygen do not let through; the rest is tried with them (tests/certificates.rs).
    #[test]
    fn a_certificate_that_no_client_would_send_is_refused() {
        let key = || PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
        let (ca, subject) = (key(), key());
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000);
        let here = "127.0.0.1".parse().unwrap();
        let certificate = |from, to, change: fn(&mut Builder)| {
            let mut builder = Builder::new_with_random_nonce(&mut rand::rng(), subject.public_key(), from, to).unwrap();
            builder.key_id("x").unwrap().valid_principal("ada").unwrap();
            change(&mut builder);
            check(&builder.sign(&ca).unwrap(), here, now)
        };
        assert!(certificate(1000, 1001, |_| {}).is_ok());
        assert!(matches!(certificate(900, 1000, |_| {}), Err(CertificateError::Invalid)));
        assert!(matches!(certificate(1001, 2000, |_| {}), Err(CertificateError::Invalid)));
        let host = |builder: &mut Builder| {
            builder.cert_type(CertType::Host).unwrap();
        };
        assert!(matches!(certificate(0, 2000, host), Err(CertificateError::Host)));
        let with_pty = |builder: &mut Builder| {
            builder.extension("permit-pty", "").unwrap();
        };
        let forever = certificate(0, i64::MAX as u64, with_pty);
        assert!(matches!(forever, Ok(options) if !options.no_pty && options.no_port_forwarding));
    }

    #[test]
    fn a_line_and_its_certificate_permit_what_both_do() {
        let line = KeyOptions { no_pty: true, command: Some("a".to_owned()), ..KeyOptions::default() };
        let certificate = KeyOptions { no_x11_forwarding: true, ..KeyOptions::default() };
        let both = KeyOptions { no_x11_forwarding: true, ..line.clone() };
        assert_eq!(merge(line.clone(), certificate.clone()).unwrap(), both);
        assert_eq!(merge(certificate, line.clone()).unwrap(), both);
        let other = KeyOptions { command: Some("b".to_owned()), ..KeyOptions::default() };
        assert!(matches!(merge(line, other), Err(CertificateError::Command)));
    }
}
