//! Key revocation lists in OpenSSH's binary form (PROTOCOL.krl), read through once for each question.
//!
//! Whatever is not understood is an error, and the caller refuses everybody: it may be the key in question.

use russh::keys::{Certificate, PublicKey, ssh_key::public::KeyData};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::credential::Credential;

/// `SSHKRL\n\0`, which no list of keys in text form begins with.
const MAGIC: &[u8] = b"SSHKRL\n\0";
const VERSION: u32 = 1;

const SECTION_CERTIFICATES: u8 = 1;
const SECTION_EXPLICIT_KEY: u8 = 2;
const SECTION_SHA1: u8 = 3;
const SECTION_SHA256: u8 = 5;
const SECTION_EXTENSION: u8 = 255;

const CERT_SERIAL_LIST: u8 = 0x20;
const CERT_SERIAL_RANGE: u8 = 0x21;
const CERT_SERIAL_BITMAP: u8 = 0x22;
const CERT_KEY_ID: u8 = 0x23;
const CERT_EXTENSION: u8 = 0x39;

/// Why a KRL cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KrlError {
    #[error("the KRL ends early or has bytes left over")]
    Length,
    #[error("the KRL has version {0}, only {VERSION} is known")]
    Version(u32),
    #[error("the KRL has a section of type {0}, which is not known")]
    Section(u8),
    #[error("the key in question cannot be encoded")]
    Key,
    #[error("the KRL has a critical extension, and none is known")]
    Extension,
}

/// Whether a file is a KRL rather than a list of keys.
pub(super) fn is_krl(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Whether the list has the credential's key, and if that is a certificate, the certificate or its CA.
pub(super) fn revokes(krl: &[u8], credential: &Credential) -> Result<bool, KrlError> {
    Subject::of(credential)?.in_list(krl)
}

/// Whether the list can be understood.
pub(super) fn check(krl: &[u8]) -> Result<(), KrlError> {
    Subject::default().in_list(krl).map(drop)
}

/// What is looked for.
#[derive(Default)]
struct Subject<'a> {
    certificate: Option<&'a Certificate>,
    /// The key and the CA's, as blobs and hashes.
    blobs: Vec<Vec<u8>>,
    sha1: Vec<Vec<u8>>,
    sha256: Vec<Vec<u8>>,
}

impl<'a> Subject<'a> {
    fn of(credential: &'a Credential) -> Result<Self, KrlError> {
        let certificate = match credential {
            Credential::Key(_) => None,
            Credential::Certificate(certificate) => Some(&**certificate),
        };
        let keys = [Some(credential.key()), certificate.map(Certificate::signature_key)].into_iter().flatten();
        let blobs = keys.map(blob).collect::<Result<Vec<_>, _>>()?;
        let sha1 = blobs.iter().map(|blob| Sha1::digest(blob).to_vec()).collect();
        let sha256 = blobs.iter().map(|blob| Sha256::digest(blob).to_vec()).collect();
        Ok(Self { certificate, blobs, sha1, sha256 })
    }

    /// Reads to the end even after a hit: a list that is broken further on refuses everybody, not some.
    fn in_list(&self, krl: &[u8]) -> Result<bool, KrlError> {
        let mut reader = Reader(krl.strip_prefix(MAGIC).ok_or(KrlError::Length)?);
        let version = reader.u32()?;
        if version != VERSION {
            return Err(KrlError::Version(version));
        }
        // Version of the list, time it was made, flags (none is defined); then two strings, reserved and a comment.
        reader.take(3 * 8)?;
        reader.string()?;
        reader.string()?;
        let mut revoked = false;
        while !reader.is_empty() {
            let kind = reader.byte()?;
            let mut section = Reader(reader.string()?);
            revoked |= match kind {
                SECTION_CERTIFICATES => self.in_certificates(section)?,
                SECTION_EXPLICIT_KEY => section.any_string(|blob| self.blobs.iter().any(|own| own == blob))?,
                SECTION_SHA1 => section.any_string(|hash| self.sha1.iter().any(|own| own == hash))?,
                SECTION_SHA256 => section.any_string(|hash| self.sha256.iter().any(|own| own == hash))?,
                SECTION_EXTENSION => section.ignore_extension()?,
                other => return Err(KrlError::Section(other)),
            };
        }
        Ok(revoked)
    }

    /// A section about the certificates of one CA, or of any if it does not name one.
    fn in_certificates(&self, mut section: Reader<'_>) -> Result<bool, KrlError> {
        let ca = section.string()?;
        section.string()?;
        let mine = match self.certificate {
            Some(certificate) if ca.is_empty() || blob(certificate.signature_key())? == ca => Some(certificate),
            Some(_) | None => None,
        };
        // Serial number 0 is that of certificates which were not given one (PROTOCOL.certkeys).
        let serial = mine.map(Certificate::serial).filter(|serial| *serial != 0);
        let key_id = mine.map(|certificate| certificate.key_id().as_bytes());
        let mut revoked = false;
        while !section.is_empty() {
            let kind = section.byte()?;
            let mut part = Reader(section.string()?);
            revoked |= match kind {
                CERT_SERIAL_LIST => part.any_serial(serial)?,
                CERT_SERIAL_RANGE => {
                    let (first, last) = (part.u64()?, part.u64()?);
                    part.end()?;
                    serial.is_some_and(|serial| (first..=last).contains(&serial))
                }
                CERT_SERIAL_BITMAP => {
                    let (offset, bits) = (part.u64()?, part.string()?);
                    part.end()?;
                    serial.and_then(|serial| serial.checked_sub(offset)).is_some_and(|bit| is_set(bits, bit))
                }
                CERT_KEY_ID => part.any_string(|id| key_id == Some(id))?,
                CERT_EXTENSION => part.ignore_extension()?,
                other => return Err(KrlError::Section(other)),
            };
        }
        Ok(revoked)
    }
}

fn blob(key: &KeyData) -> Result<Vec<u8>, KrlError> {
    PublicKey::from(key.clone()).to_bytes().map_err(|_| KrlError::Key)
}

/// Whether a bit of a big-endian number is set.
fn is_set(number: &[u8], bit: u64) -> bool {
    let byte = usize::try_from(bit / 8).ok().and_then(|index| number.iter().rev().nth(index));
    byte.is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
}

/// The rest of something that is being read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn end(&self) -> Result<(), KrlError> {
        if self.is_empty() { Ok(()) } else { Err(KrlError::Length) }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], KrlError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(KrlError::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, KrlError> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u32(&mut self) -> Result<u32, KrlError> {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(self.take(4)?);
        Ok(u32::from_be_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64, KrlError> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.take(8)?);
        Ok(u64::from_be_bytes(bytes))
    }

    fn string(&mut self) -> Result<&'a [u8], KrlError> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    fn any_serial(&mut self, wanted: Option<u64>) -> Result<bool, KrlError> {
        let mut found = false;
        while !self.is_empty() {
            found |= Some(self.u64()?) == wanted;
        }
        Ok(found)
    }

    fn any_string(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Result<bool, KrlError> {
        let mut found = false;
        while !self.is_empty() {
            found |= wanted(self.string()?);
        }
        Ok(found)
    }

    /// Extensions revoke nothing that is known here; those that must not be overlooked are an error.
    fn ignore_extension(&mut self) -> Result<bool, KrlError> {
        self.string()?;
        let critical = self.byte()? != 0;
        self.string()?;
        self.end()?;
        if critical { Err(KrlError::Extension) } else { Ok(false) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use russh::keys::{Algorithm, PrivateKey, ssh_key::certificate::Builder};
    use std::sync::LazyLock;

    fn string(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
    }

    fn section(kind: u8, content: &[u8]) -> Vec<u8> {
        [&[kind][..], &string(content)].concat()
    }

    fn krl(sections: &[Vec<u8>]) -> Vec<u8> {
        let head = [MAGIC, &VERSION.to_be_bytes(), &[0; 24], &string(b""), &string(b"a comment")].concat();
        [head, sections.concat()].concat()
    }

    fn key() -> PrivateKey {
        PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap()
    }

    fn certificate(ca: &PrivateKey, serial: u64, id: &str) -> Credential {
        let subject = key();
        let mut builder =
            Builder::new_with_random_nonce(&mut rand::rng(), subject.public_key(), 0, u64::MAX - 1).unwrap();
        builder.serial(serial).unwrap().key_id(id).unwrap().valid_principal("ada").unwrap();
        Credential::Certificate(Box::new(builder.sign(ca).unwrap()))
    }

    #[test]
    fn certificates_are_found_by_serial_and_id() {
        let (ca, other) = (key(), key());
        let of = |ca: &[u8], part: &[u8]| krl(&[section(1, &[&string(ca), &string(b""), part].concat())]);
        let ca_blob = blob(ca.public_key().key_data()).unwrap();
        let serials = |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_be_bytes()).collect::<Vec<_>>();
        let list = section(CERT_SERIAL_LIST, &serials(&[3, 9]));
        let range = section(CERT_SERIAL_RANGE, &serials(&[3, 9]));
        // Bits 0 and 6 of an offset of 3.
        let bitmap = section(CERT_SERIAL_BITMAP, &[&serials(&[3])[..], &string(&[0b0100_0001])].concat());
        let ids = section(CERT_KEY_ID, &[string(b"run-1"), string(b"run-2")].concat());
        let hit = |list: &[u8], serial, id| revokes(list, &certificate(&ca, serial, id)).unwrap();
        for ca_blob in [&ca_blob[..], b""] {
            for (name, part) in [("list", &list), ("range", &range), ("bitmap", &bitmap)] {
                let list = of(ca_blob, part);
                assert!(hit(&list, 3, "x") && hit(&list, 9, "x"), "{name}");
                assert!(!hit(&list, 2, "x") && !hit(&list, 10, "x") && !hit(&list, 0, "x"), "{name}");
                assert_eq!(hit(&list, 5, "x"), name == "range");
            }
            assert!(hit(&of(ca_blob, &ids), 1, "run-2") && !hit(&of(ca_blob, &ids), 1, "run-3"));
        }
        let foreign = of(&blob(other.public_key().key_data()).unwrap(), &list);
        assert!(!hit(&foreign, 3, "x"));
    }

    #[test]
    fn keys_and_cas_are_found_by_blob_and_hash() {
        let ca = key();
        let ca_blob = blob(ca.public_key().key_data()).unwrap();
        let plain = Credential::Key(ca.public_key().key_data().clone());
        let signed = certificate(&ca, 1, "x");
        let lists = [
            krl(&[section(SECTION_EXPLICIT_KEY, &string(&ca_blob))]),
            krl(&[section(SECTION_SHA1, &string(&Sha1::digest(&ca_blob)))]),
            krl(&[section(SECTION_SHA256, &[string(&[0; 32]), string(&Sha256::digest(&ca_blob))].concat())]),
        ];
        for list in lists {
            assert!(revokes(&list, &plain).unwrap() && revokes(&list, &signed).unwrap());
            assert!(!revokes(&list, &Credential::Key(key().public_key().key_data().clone())).unwrap());
        }
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        let subject = Credential::Key(key().public_key().key_data().clone());
        let extension =
            |critical: u8| section(SECTION_EXTENSION, &[string(b"x"), vec![critical], string(b"")].concat());
        assert_eq!(revokes(&krl(&[extension(0)]), &subject), Ok(false));
        assert_eq!(revokes(&krl(&[extension(1)]), &subject), Err(KrlError::Extension));
        assert_eq!(revokes(&krl(&[section(4, b"")]), &subject), Err(KrlError::Section(4)));
        let mut newer = krl(&[]);
        newer[11] = 2;
        assert_eq!(revokes(&newer, &subject), Err(KrlError::Version(2)));
        let whole = krl(&[section(SECTION_EXPLICIT_KEY, &string(b"key"))]);
        for end in (MAGIC.len()..whole.len()).filter(|end| *end != krl(&[]).len()) {
            assert_eq!(revokes(&whole[..end], &subject), Err(KrlError::Length), "{end}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_the_reader_panic(content in proptest::collection::vec(any::<u8>(), 0..200), kind in 1u8..6) {
            static SUBJECT: LazyLock<Credential> = LazyLock::new(|| certificate(&key(), 1, "x"));
            for list in [krl(std::slice::from_ref(&content)), krl(&[section(kind, &content)])] {
                prop_assert!(!revokes(&list, &SUBJECT).is_ok_and(|revoked| revoked), "random bytes do not name this key");
            }
        }
    }
}
