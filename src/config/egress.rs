//! Where sessions may connect to, as the files of the server, of projects and of users say it.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{load::ValueError, units::parse_network};

/// What `egress` may be.
const KNOWN: &[&str] = &["public", "none", "open", "a list of networks"];

/// Where sessions may connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Egress {
    /// Everything but private, link-local and other sessions' addresses.
    Public,
    None,
    /// Everything but the host, link-local and other sessions.
    Open,
    /// These networks only: address and prefix length.
    Only(Vec<(Ipv4Addr, u8)>),
}

/// As files have it: a word, or a list of networks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Written {
    Word(String),
    Networks(Vec<String>),
}

impl Egress {
    /// Reads one of the words.
    pub fn word(text: &str) -> Result<Self, ValueError> {
        match text {
            "public" => Ok(Self::Public),
            "none" => Ok(Self::None),
            "open" => Ok(Self::Open),
            _ => Err(ValueError::Word { value: text.to_owned(), known: KNOWN }),
        }
    }

    /// Reads an item of the list.
    pub fn network(text: &str) -> Result<(Ipv4Addr, u8), ValueError> {
        let address = text.split('/').next().unwrap_or_default();
        if address.contains(':') {
            return Err(ValueError::Rule(format!("{text:?}: sessions have no IPv6, so there is nothing to allow")));
        }
        // No top-level domain is a number.
        if address.rsplit('.').next().is_some_and(|last| last.contains(|c: char| c.is_ascii_alphabetic())) {
            let text = format!("{text:?}: rules for names of hosts are not supported by this version, only networks");
            return Err(ValueError::Rule(text));
        }
        Ok(parse_network(text)?)
    }

    pub(super) fn of(written: Written) -> Result<Self, ValueError> {
        match written {
            Written::Word(word) => Self::word(&word),
            Written::Networks(texts) => {
                Ok(Self::Only(texts.iter().map(|text| Self::network(text)).collect::<Result<_, _>>()?))
            }
        }
    }
}

impl From<Egress> for Written {
    fn from(egress: Egress) -> Self {
        match egress {
            Egress::Public | Egress::None | Egress::Open => Self::Word(egress.to_string()),
            Egress::Only(networks) => {
                Self::Networks(networks.iter().map(|(address, prefix)| format!("{address}/{prefix}")).collect())
            }
        }
    }
}

impl FromStr for Egress {
    type Err = ValueError;

    /// Reads what `Display` writes.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let written = serde_yaml::from_str(text);
        written.map_or_else(|_| Self::word(text), Self::of)
    }
}

/// As a file would have it.
impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Public => f.write_str("public"),
            Self::None => f.write_str("none"),
            Self::Open => f.write_str("open"),
            Self::Only(networks) => {
                let networks = networks.iter().map(|(address, prefix)| format!("{address}/{prefix}"));
                write!(f, "[{}]", networks.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_files_say_is_read_and_mistakes_are_named() {
        let read = |text: &str| text.parse::<Egress>();
        for text in ["public", "none", "open", "[10.0.0.0/8, 192.0.2.7/32]", "[0.0.0.0/0]", "[]"] {
            assert_eq!(read(text).unwrap().to_string(), text);
        }
        for (text, why) in [
            ("{a: b}", "\"{a: b}\" is not one of"),
            ("all", "\"all\" is not one of public, none, open, a list of networks"),
            ("[10.0.0.1/8]", "\"10.0.0.1/8\" is not an IPv4 network"),
            ("[10.0.0.0]", "\"10.0.0.0\" is not an IPv4 network"),
            ("[github.com]", "\"github.com\": rules for names of hosts are not supported by this version"),
            ("['*.github.com/32']", "rules for names of hosts are not supported"),
            ("['2001:db8::/32']", "sessions have no IPv6"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
