//! Names that have rules: each type can only be made by checking them.
//!
//! They travel into file names, interface names, cgroup names and log lines, so nothing else may be put there.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a name was refused. The offending text is escaped, so that it can be logged and shown as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("{kind} name {name:?} is not valid: it must match [a-z_][a-z0-9_.-]{{0,31}} and not contain \"..\"")]
    Shape { kind: &'static str, name: String },
    #[error("{0:?} is not a session id: it must be a digit 2-7 and seven characters out of a-z2-7")]
    SessionId(String),
}

/// Whether `name` matches `[a-z_][a-z0-9_.-]{0,31}` and has no `..` in it.
fn well_formed(name: &str) -> bool {
    let bytes = name.as_bytes();
    let first = matches!(bytes.first(), Some(b'a'..=b'z' | b'_'));
    let rest = bytes.iter().skip(1).all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-'));
    first && rest && bytes.len() <= 32 && !name.contains("..")
}

macro_rules! checked_name {
    ($(#[$doc:meta])* $type:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as it was given.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                if well_formed(name) {
                    Ok(Self(name.to_owned()))
                } else {
                    let name = name.chars().take(64).collect();
                    Err(NameError::Shape { kind: $kind, name })
                }
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(name: String) -> Result<Self, NameError> {
                name.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_name!(
    /// A podspawn user, which is also the SSH user name and the name of the user inside the container.
    UserName,
    "user"
);
checked_name!(
    /// A project, as in `user+project`.
    ProjectName,
    "project"
);

/// The id of one session: a digit and seven characters of RFC 4648 base32 in lower case, some 37 random bits.
///
/// The digit tells an id from a word, such as a directory's name, wherever names are searched for ids. The id is part of the name of every kernel object and directory of the session; with the instance's tag it fits an
/// interface name (15 bytes).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionId(String);

impl SessionId {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

    /// Makes an id of the low 38 bits of `bits`.
    pub fn from_bits(bits: u64) -> Self {
        let first = char::from(b'2' + (bits >> 35 & 7) as u8 % 6);
        let rest = (0..7).map(|i| char::from(Self::ALPHABET[(bits >> (i * 5) & 31) as usize]));
        Self(std::iter::once(first).chain(rest).collect())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SessionId {
    type Err = NameError;

    fn from_str(id: &str) -> Result<Self, NameError> {
        let digit_first = matches!(id.as_bytes().first(), Some(b'2'..=b'7'));
        if id.len() == 8 && digit_first && id.bytes().all(|b| Self::ALPHABET.contains(&b)) {
            Ok(Self(id.to_owned()))
        } else {
            Err(NameError::SessionId(id.chars().take(64).collect()))
        }
    }
}

impl TryFrom<String> for SessionId {
    type Error = NameError;

    fn try_from(id: String) -> Result<Self, NameError> {
        id.parse()
    }
}

impl From<SessionId> for String {
    fn from(id: SessionId) -> Self {
        id.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which of its session's services a container is: a letter, so that its name is the session's id and one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePlace(u8);

impl ServicePlace {
    const ALPHABET: &[u8; 52] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

    /// The place of the service number `index`; `None` if a session cannot have that many.
    pub fn new(index: usize) -> Option<Self> {
        u8::try_from(index).ok().filter(|_| index < Self::ALPHABET.len()).map(Self)
    }

    /// The number again.
    pub fn index(self) -> u8 {
        self.0
    }

    fn letter(self) -> char {
        char::from(Self::ALPHABET[usize::from(self.0)])
    }

    fn from_letter(letter: u8) -> Option<Self> {
        Self::new(Self::ALPHABET.iter().position(|known| *known == letter)?)
    }
}

/// One container of a session: the one that its user works in, or a service beside it.
///
/// As text it is the session's id, with the service's letter behind it. So whatever is named after a container leads to its
/// session, with or without a record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId {
    pub session: SessionId,
    pub service: Option<ServicePlace>,
}

impl ContainerId {
    /// The container of a session's service.
    pub fn of_service(session: &SessionId, place: ServicePlace) -> Self {
        Self { session: session.clone(), service: Some(place) }
    }
}

impl From<SessionId> for ContainerId {
    /// The container that the session's user works in.
    fn from(session: SessionId) -> Self {
        Self { session, service: None }
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.session.fmt(f)?;
        self.service.map_or(Ok(()), |place| fmt::Write::write_char(f, place.letter()))
    }
}

impl FromStr for ContainerId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let refused = || NameError::SessionId(text.chars().take(64).collect());
        let (session, place) = text.split_at_checked(8).ok_or_else(refused)?;
        let service = match place.as_bytes() {
            [] => None,
            [letter] => Some(ServicePlace::from_letter(*letter).ok_or_else(refused)?),
            _ => return Err(refused()),
        };
        Ok(Self { session: session.parse()?, service })
    }
}

impl TryFrom<String> for ContainerId {
    type Error = NameError;

    fn try_from(id: String) -> Result<Self, NameError> {
        id.parse()
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.to_string()
    }
}

/// The tag that tells one instance's kernel objects from another's: four characters, derived from its root directory.
///
/// Interface names are `ps` + tag + container id (14 or 15 bytes), cgroups and nft tables `podspawn-` + tag.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InstanceTag(String);

impl InstanceTag {
    /// The tag of the instance whose `--root` is `root`, which must be absolute and free of `.`, `..` and symbolic
    /// links. The default instance is that of `/`.
    pub fn of_root(root: &std::path::Path) -> Self {
        use sha2::{Digest, Sha256};
        use std::os::unix::ffi::OsStrExt;
        let hash = Sha256::digest(root.as_os_str().as_bytes());
        Self(hash[..4].iter().map(|byte| char::from(SessionId::ALPHABET[usize::from(byte & 31)])).collect())
    }

    /// The four characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of this instance's cgroups and nft table.
    pub fn object_name(&self) -> String {
        format!("podspawn-{}", self.0)
    }

    /// The name of the host's end of a container's veth pair.
    pub fn veth_name(&self, id: &ContainerId) -> String {
        format!("ps{}{}", self.0, id)
    }

    /// The container whose veth pair has this name; `None` for an interface that is somebody else's.
    pub fn container_of_veth(&self, name: &str) -> Option<ContainerId> {
        name.strip_prefix("ps")?.strip_prefix(self.as_str())?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "_x", "claude-agent", "a.b", "x234567890123456789012345678901a"] {
            assert!(good.parse::<UserName>().is_ok(), "{good}");
        }
        for bad in ["", "A", "1a", "-a", ".a", "a..b", "a/b", "a b", "ä", "a\n", "x2345678901234567890123456789012a"] {
            assert!(bad.parse::<UserName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_refused_name_is_shown_escaped() {
        let error = "a\n\u{1b}[31m".parse::<UserName>().unwrap_err().to_string();
        assert!(error.contains(r#""a\n\u{1b}[31m""#), "{error}");
    }

    #[test]
    fn session_ids_round_trip() {
        for bits in [0, 1, 0xff_ffff_ffff, 0x12_3456_789a] {
            let id = SessionId::from_bits(bits);
            assert_eq!(id.as_str().parse(), Ok(id));
        }
        for bad in ["2abcdef1", "abcdefg2", "podspawn", "sessions", "2abc", ""] {
            assert!(bad.parse::<SessionId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn veth_names_fit_the_kernel() {
        let tag = InstanceTag::of_root(std::path::Path::new("/"));
        let session = ContainerId::from(SessionId::from_bits(7));
        let last = ServicePlace::new(51).unwrap();
        let service = ContainerId::of_service(&session.session, last);
        for id in [&session, &service] {
            let name = tag.veth_name(id);
            assert!(name.len() <= 15);
            assert_eq!(tag.container_of_veth(&name).as_ref(), Some(id));
        }
        assert_eq!((last.index(), ServicePlace::new(52)), (51, None));
        let name = tag.veth_name(&session);
        let strange = [&name[..6], "eth0", "ps", &format!("{name}2"), &format!("{name}ab"), &format!("{name}ä")];
        for other in strange.into_iter().chain([format!("ps{}abcdefgh", tag.as_str()).as_str()]) {
            assert_eq!(tag.container_of_veth(other), None, "{other}");
        }
    }
}
