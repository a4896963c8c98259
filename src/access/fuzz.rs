//! Keys, certificates and lists of revoked ones, as anybody may have made them (see [`crate::fuzzing`]).

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, SystemTime},
};

use russh::keys::PublicKey;

use super::{
    Credential, certificate,
    key_line::{self, Entry},
    krl,
};

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Some time in 2025.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_750_000_000)
}

/// Lines of a file of keys, with and without options.
pub(crate) fn authorized_keys(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for line in text.lines() {
        if let Ok(Some(entry)) = Entry::parse(line) {
            entry.applies(PEER, now());
        }
        if let Ok(Some(key)) = key_line::parse_bare(line) {
            // A line that is nothing but a key grants no more and no less with options looked for.
            let entry = Entry::parse(line).expect("a key without options is an entry").expect("and no comment");
            assert!(entry.key == key && !entry.authority);
        }
    }
}

/// A key or certificate as a client offers it.
pub(crate) fn credential(data: &[u8]) {
    let Some(credential) = Credential::parse(data) else { return };
    credential.identity();
    // What is too weak to be used is only told from others.
    if credential.is_strong().is_ok()
        && let Credential::Certificate(certificate) = &credential
    {
        // An accepted one has a signature of its CA, which nobody can find by chance; the corpus has such.
        if certificate::check(certificate, PEER, now()).is_ok() {
            assert!(certificate.valid_after() <= 1_750_000_000 && certificate.valid_before() > 1_750_000_000);
        }
    }
}

/// A list of revoked keys: whether it can be understood does not depend on what is looked for in it.
pub(crate) fn krl(data: &[u8]) {
    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";
    if !krl::is_krl(data) {
        return;
    }
    let key = PublicKey::from_openssh(KEY).expect("a key of RFC 8709");
    let sought = krl::revokes(data, &Credential::Key(key.key_data().clone()));
    if krl::check(data).is_err() {
        assert!(!matches!(sought, Ok(false)), "what cannot be read to its end says of no key that it is good");
    }
}
