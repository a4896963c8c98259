//! One line of an `authorized_keys` file (sshd(8), AUTHORIZED_KEYS FILE FORMAT).
//!
//! An option that is not supported makes its line unusable: ignoring it could grant more than was meant.

use std::{net::IpAddr, time::SystemTime};

use russh::keys::{Certificate, PublicKey, ssh_key::public::KeyData};

use super::{
    address::AddressList,
    credential::{WeakKey, is_strong},
};
use crate::{
    protocol::{KeyOptions, Permit},
    sys::local_time::{WallTime, mktime},
};

/// Longer than any line with an RSA key and a long command; what a login may do has to fit a message.
const MAX_LINE: usize = 64 << 10;

/// Why a line is not usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    #[error("it is longer than {MAX_LINE} bytes")]
    TooLong,
    #[error("option {0:?} is not supported")]
    Unsupported(String),
    #[error("option {0:?} has no valid value")]
    Value(String),
    #[error("option {0:?} is there twice")]
    Twice(&'static str),
    #[error("option \"principals\" is for lines with \"cert-authority\"")]
    Principals,
    #[error("option \"cert-authority\" is for servers where auth.trusted_user_ca_keys is set")]
    Authority,
    #[error("a quote is not closed")]
    Quote,
    #[error("there is no valid public key in it")]
    Key,
    #[error(transparent)]
    Weak(#[from] WeakKey),
}

/// One usable line.
#[derive(Debug, Clone)]
pub struct Entry {
    pub key: KeyData,
    pub(super) options: KeyOptions,
    /// `cert-authority`: the key is none that logs in, but signs certificates that do.
    pub(super) authority: bool,
    from: Option<AddressList>,
    /// `expiry-time=`, seconds since the epoch.
    expires: Option<u64>,
    principals: Option<Vec<String>>,
}

impl Entry {
    /// Parses one line; `None` for an empty one or a comment.
    pub fn parse(line: &str) -> Result<Option<Self>, LineError> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return Ok(None);
        }
        if line.len() > MAX_LINE {
            return Err(LineError::TooLong);
        }
        let (options, key) = match parse_key(line)? {
            Some(key) => (Vec::new(), key),
            None => {
                let (options, rest) = split_options(line)?;
                (options, parse_key(rest)?.ok_or(LineError::Key)?)
            }
        };
        is_strong(&key)?;
        let mut entry = Self::new(key);
        for option in options {
            entry.apply(&option)?;
        }
        if entry.principals.is_some() && !entry.authority {
            return Err(LineError::Principals);
        }
        Ok(Some(entry))
    }

    fn new(key: KeyData) -> Self {
        let options = KeyOptions::default();
        Self { key, options, authority: false, from: None, expires: None, principals: None }
    }

    /// Whether the line is for this address and has not expired.
    pub(super) fn applies(&self, peer: IpAddr, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.from.as_ref().is_none_or(|from| from.contains(peer)) && self.expires.is_none_or(|end| now < end)
    }

    /// Whether a certificate of this authority is for the user.
    pub(super) fn names(&self, certificate: &Certificate, user: &str) -> bool {
        let named = certificate.valid_principals();
        match &self.principals {
            Some(principals) => named.iter().any(|name| principals.contains(name)),
            None => named.iter().any(|name| name == user),
        }
    }

    fn apply(&mut self, option: &str) -> Result<(), LineError> {
        let (name, value) = match option.split_once('=') {
            None => (option, None),
            Some((name, value)) => (name, Some(unquote(value).ok_or_else(|| LineError::Value(name.to_owned()))?)),
        };
        let lower = name.to_ascii_lowercase();
        let bad = || LineError::Value(name.to_owned());
        let options = &mut self.options;
        match (lower.as_str(), value) {
            ("restrict", None) => {
                options.no_pty = true;
                options.no_port_forwarding = true;
                options.no_agent_forwarding = true;
                options.no_x11_forwarding = true;
            }
            ("pty", None) => options.no_pty = false,
            ("no-pty", None) => options.no_pty = true,
            ("port-forwarding", None) => options.no_port_forwarding = false,
            ("no-port-forwarding", None) => options.no_port_forwarding = true,
            ("agent-forwarding", None) => options.no_agent_forwarding = false,
            ("no-agent-forwarding", None) => options.no_agent_forwarding = true,
            ("x11-forwarding", None) => options.no_x11_forwarding = false,
            ("no-x11-forwarding", None) => options.no_x11_forwarding = true,
            // The first: the session has no such thing, ~/.ssh/rc is never run. The second: whether a FIDO key was touched
            // cannot be seen here, with the option or without it (docs/russh.md). Its counterpart, verify-required, is not
            // supported for the same reason.
            ("no-user-rc" | "user-rc" | "no-touch-required", None) => {}
            ("cert-authority", None) => self.authority = true,
            ("principals", Some(names)) => {
                once("principals", self.principals.is_some())?;
                let names: Vec<_> = names.split(',').map(str::to_owned).collect();
                self.principals = Some(names).filter(|names| names.iter().all(|name| !name.is_empty()));
                if self.principals.is_none() {
                    return Err(bad());
                }
            }
            ("command", Some(command)) => {
                once("command", options.command.is_some())?;
                if command.contains('\0') {
                    return Err(bad());
                }
                options.command = Some(command);
            }
            ("environment", Some(assignment)) => {
                let (name, value) = parse_assignment(&assignment).ok_or_else(bad)?;
                // The first one counts, as in sshd.
                if options.environment.iter().all(|(known, _)| *known != name) {
                    options.environment.push((name, value));
                }
            }
            ("from", Some(list)) => {
                once("from", self.from.is_some())?;
                self.from = Some(AddressList::parse(&list).ok_or_else(bad)?);
            }
            ("permitopen", Some(address)) => options.permit_open.push(parse_permit(&address).ok_or_else(bad)?),
            // A port alone is any host's.
            ("permitlisten", Some(address)) => {
                let address = if address.contains(':') { address } else { format!("*:{address}") };
                options.permit_listen.push(parse_permit(&address).ok_or_else(bad)?);
            }
            ("expiry-time", Some(time)) => {
                let time = parse_expiry(&time).ok_or_else(bad)?;
                self.expires = Some(self.expires.map_or(time, |earlier| earlier.min(time)));
            }
            _ => return Err(LineError::Unsupported(name.chars().take(64).collect())),
        }
        Ok(())
    }
}

/// Parses a line that is a public key without options, of whatever strength; `None` for an empty one or a comment.
pub(super) fn parse_bare(line: &str) -> Result<Option<KeyData>, LineError> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    parse_key(line)?.ok_or(LineError::Key).map(Some)
}

fn once(option: &'static str, set: bool) -> Result<(), LineError> {
    if set { Err(LineError::Twice(option)) } else { Ok(()) }
}

/// A key at the start of `text`, or `None` if that does not start with the name of a key type.
fn parse_key(text: &str) -> Result<Option<KeyData>, LineError> {
    let mut words = text.split_ascii_whitespace();
    let (Some(kind), blob) = (words.next(), words.next()) else { return Ok(None) };
    if !["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"].iter().any(|prefix| kind.starts_with(prefix)) {
        return Ok(None);
    }
    let blob = blob.ok_or(LineError::Key)?;
    PublicKey::from_openssh(&format!("{kind} {blob}")).map(|key| Some(key.into())).map_err(|_| LineError::Key)
}

/// Splits the options from the rest of the line: they end at the first blank outside double quotes.
fn split_options(line: &str) -> Result<(Vec<String>, &str), LineError> {
    let mut options = Vec::new();
    let mut option = String::new();
    let mut quoted = false;
    let mut chars = line.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' if quoted && chars.peek().is_some_and(|(_, next)| *next == '"') => {
                option.push_str("\\\"");
                chars.next();
            }
            '"' => {
                quoted = !quoted;
                option.push('"');
            }
            ',' if !quoted => options.push(std::mem::take(&mut option)),
            ' ' | '\t' if !quoted => {
                options.push(option);
                return Ok((options, line[at..].trim_start()));
            }
            _ => option.push(c),
        }
    }
    Err(if quoted { LineError::Quote } else { LineError::Key })
}

/// The text between the quotes, in which `\"` is a quote. `None` if there is anything outside them.
fn unquote(value: &str) -> Option<String> {
    let inner = value.strip_prefix('"')?.strip_suffix('"')?;
    let bare = inner.replace("\\\"", "");
    (!bare.contains('"')).then(|| inner.replace("\\\"", "\""))
}

/// `NAME=value`.
fn parse_assignment(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (!name.is_empty() && name.chars().all(valid) && !value.contains('\0')).then(|| (name.to_owned(), value.to_owned()))
}

/// `host:port` or `[address]:port`, where the port may be `*`.
fn parse_permit(text: &str) -> Option<Permit> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    let port = match port {
        "*" => None,
        number => Some(number.parse().ok().filter(|number| *number != 0)?),
    };
    (!host.is_empty()).then(|| Permit { host: host.to_owned(), port })
}

/// `YYYYMMDD[HHMM[SS]]`: the host's time, or UTC with a `Z` at the end.
fn parse_expiry(text: &str) -> Option<u64> {
    let digits = text.strip_suffix(['Z', 'z']).unwrap_or(text);
    if !digits.bytes().all(|b| b.is_ascii_digit()) || ![8, 12, 14].contains(&digits.len()) {
        return None;
    }
    let padded = format!("{digits:0<14}");
    let part = |from: usize, to: usize| padded[from..to].parse::<u8>().ok();
    let year = padded[..4].parse::<u16>().ok()?;
    let [month, day, hour, minute, second] = [part(4, 6)?, part(6, 8)?, part(8, 10)?, part(10, 12)?, part(12, 14)?];
    // Also tells whether there is such a date.
    let stamp = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z");
    let utc = humantime::parse_rfc3339(&stamp).ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    if digits.len() < text.len() { Some(utc) } else { mktime(WallTime { year, month, day, hour, minute, second }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    fn options(line: &str) -> Result<KeyOptions, LineError> {
        Entry::parse(line).map(|entry| entry.expect("a key").options)
    }

    fn with(options: &str) -> Result<Entry, LineError> {
        Entry::parse(&format!("{options} {KEY}")).map(|entry| entry.expect("a key"))
    }

    #[test]
    fn lines_are_understood() {
        assert!(Entry::parse("").unwrap().is_none());
        assert!(Entry::parse("  # comment").unwrap().is_none());
        assert_eq!(options(&format!("{KEY} ada@host")), Ok(KeyOptions::default()));
        let restricted = KeyOptions {
            no_pty: false,
            no_port_forwarding: true,
            no_agent_forwarding: true,
            no_x11_forwarding: true,
            ..KeyOptions::default()
        };
        assert_eq!(options(&format!("restrict,pty {KEY}")), Ok(restricted.clone()));
        assert_eq!(options(&format!("pty,RESTRICT {KEY}")), Ok(KeyOptions { no_pty: true, ..restricted }));
        let permit = |host: &str, port| Permit { host: host.to_owned(), port };
        let forwards = KeyOptions {
            permit_open: vec![permit("db", Some(5432)), permit("::1", None)],
            permit_listen: vec![permit("*", Some(8080)), permit("local*", Some(1))],
            ..KeyOptions::default()
        };
        let line = r#"permitopen="db:5432",permitlisten="8080",permitopen="[::1]:*",permitlisten="local*:1""#;
        assert_eq!(options(&format!("{line} {KEY}")), Ok(forwards));
        let forced = KeyOptions {
            command: Some("echo \"a, b\" c".to_owned()),
            environment: vec![("A".to_owned(), "1=2".to_owned())],
            ..KeyOptions::default()
        };
        let line = r#"command="echo \"a, b\" c",environment="A=1=2",environment="A=3""#;
        assert_eq!(options(&format!("{line} {KEY} x y")), Ok(forced));
    }

    #[test]
    fn what_is_not_understood_makes_a_line_unusable() {
        let unsupported = ["tunnel=\"0\"", "verify-required", "pty=\"yes\"", "restrict,,pty", "x"];
        for option in unsupported {
            assert!(matches!(with(option), Err(LineError::Unsupported(_) | LineError::Key)), "{option}");
        }
        let value = [
            "command=ls",
            "command=\"a\"b\"c\"",
            "command=\"a\"b",
            "from=\"host.example.org\"",
            "from=\"\"",
            "expiry-time=\"2020\"",
            "expiry-time=\"20200230\"",
            "expiry-time=\"202001012400\"",
            "environment=\"=x\"",
            "environment=\"A B=x\"",
            "environment=\"A\"",
            "permitopen=\"a\"",
            "permitopen=\"a:0\"",
            "permitopen=\"::1:80\"",
            "permitopen=\":80\"",
            "permitlisten=\"http\"",
            "cert-authority,principals=\"\"",
        ];
        for option in value {
            assert!(matches!(with(option), Err(LineError::Value(_))), "{option}: {:?}", with(option));
        }
        for option in ["command", "from", "principals"] {
            let twice = format!("cert-authority,{option}=\"::1\",{option}=\"::1\"");
            assert_eq!(with(&twice).map(drop), Err(LineError::Twice(option)));
        }
        assert_eq!(with("principals=\"a\"").map(drop), Err(LineError::Principals));
        assert_eq!(options(&format!("command=\"x {KEY}")), Err(LineError::Quote));
        assert_eq!(options("ssh-dss AAAA"), Err(LineError::Key));
        assert_eq!(options("ssh-ed25519 AAAA"), Err(LineError::Key));
        assert_eq!(options("nonsense"), Err(LineError::Key));
        assert_eq!(options(&format!("{KEY} {}", "x".repeat(MAX_LINE))), Err(LineError::TooLong));
    }

    #[test]
    fn a_line_applies_where_and_while_it_says() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let here = "10.1.2.3".parse().unwrap();
        let entry = with("from=\"10.0.0.0/8\",expiry-time=\"20200102Z\",expiry-time=\"20300101Z\"").unwrap();
        assert!(entry.applies(here, at(1_577_923_199)) && !entry.applies(here, at(1_577_923_200)));
        assert!(!entry.applies("11.0.0.1".parse().unwrap(), at(0)));
        // Within 14 hours, whatever the zone of this host.
        let local = with("expiry-time=\"202001021200\"").unwrap();
        assert!(local.applies(here, at(1_577_966_400 - 14 * 3600 - 1)));
        assert!(!local.applies(here, at(1_577_966_400 + 14 * 3600)));
    }

    proptest! {
        #[test]
        fn nothing_makes_the_parser_panic(line in ".{0,200}") {
            // What it says does not matter here.
            drop(Entry::parse(&line));
            drop(Entry::parse(&format!("{line} {KEY}")));
            drop(Entry::parse(&format!("environment=\"{line}\",expiry-time=\"{line}\",permitopen=\"{line}\" {KEY}")));
        }
    }
}
