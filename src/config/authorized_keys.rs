//! Who may log in: `authorized_keys` files (sshd(8), AUTHORIZED_KEYS FILE FORMAT), one for each user.
//!
//! An option that is not supported makes its line unusable, and that is said: ignoring it could grant more than was meant.

use std::{
    fs::File,
    io::{self, Read},
    net::IpAddr,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use russh::keys::{HashAlg, PublicKey};

use crate::{
    names::UserName,
    protocol::{KeyOptions, Permit, pattern},
};

/// A key file that is larger is not read.
const MAX_BYTES: u64 = 1 << 20;

/// A thing in a key file that the administrator should know of. Shown as one line.
#[derive(Debug, thiserror::Error)]
pub enum Warning {
    #[error("{}:{line}: the key is not used: {why}", .file.display())]
    Line { file: PathBuf, line: usize, why: LineError },
    #[error("{}: no key in it is used: {why}", .file.display())]
    File { file: PathBuf, why: String },
}

/// Why a line is not usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    #[error("option {0:?} is not supported")]
    Unsupported(String),
    #[error("option {0:?} has no valid value")]
    Value(String),
    #[error("a quote is not closed")]
    Quote,
    #[error("there is no valid public key in it")]
    Key,
    #[error("ssh-dss keys are not secure any more")]
    Dss,
}

/// One usable line.
#[derive(Debug, Clone)]
pub struct Entry {
    pub key: PublicKey,
    pub options: KeyOptions,
    /// `from=`: patterns; an address must match one that is not negated, and none that is.
    from: Vec<String>,
    /// `expiry-time=`, seconds since the epoch.
    expires: Option<u64>,
}

/// Looks for `key` (RFC 4253 public key blob) in the user's file. `None`: no such user, no such key, or not from this
/// address or not any more.
pub fn authorize(
    key_dir: &Path,
    user: &UserName,
    key: &[u8],
    peer: IpAddr,
    now: SystemTime,
) -> (Option<KeyOptions>, Vec<Warning>) {
    let file = key_dir.join(user.as_str());
    let text = match read(&file) {
        Ok(text) => text,
        Err(None) => return (None, Vec::new()),
        Err(Some(why)) => return (None, vec![Warning::File { file, why }]),
    };
    let Ok(key) = PublicKey::from_bytes(key) else { return (None, Vec::new()) };
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut warnings = Vec::new();
    let mut found = None;
    for (index, line) in text.lines().enumerate() {
        match parse_line(line) {
            Ok(Some(entry)) if entry.key.key_data() == key.key_data() => {
                if found.is_none() && entry.applies(peer, now) {
                    found = Some(entry.options);
                }
            }
            Ok(None | Some(_)) => {}
            Err(why) => warnings.push(Warning::Line { file: file.clone(), line: index + 1, why }),
        }
    }
    (found, warnings)
}

/// Checks every line of a file: how many keys are usable, and what is wrong with the others.
pub fn check(file: &Path) -> (usize, Vec<Warning>) {
    let text = match read(file) {
        Ok(text) => text,
        Err(why) => {
            let why = why.unwrap_or_else(|| "it is not there".to_owned());
            return (0, vec![Warning::File { file: file.to_owned(), why }]);
        }
    };
    let mut usable = 0;
    let mut warnings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        match parse_line(line) {
            Ok(None) => {}
            Ok(Some(_)) => usable += 1,
            Err(why) => warnings.push(Warning::Line { file: file.to_owned(), line: index + 1, why }),
        }
    }
    (usable, warnings)
}

/// The `SHA256:...` fingerprint of a public key blob, or a word for one that is none.
pub fn fingerprint(key: &[u8]) -> String {
    PublicKey::from_bytes(key).map_or_else(|_| "unknown".to_owned(), |key| key.fingerprint(HashAlg::Sha256).to_string())
}

/// Reads a key file as strictly as sshd's StrictModes: a regular file of root's that nobody else can write. `Err(None)`
/// means that there is none.
fn read(path: &Path) -> Result<String, Option<String>> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = match File::options().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(None),
        Err(error) => return Err(Some(error.to_string())),
    };
    let meta = file.metadata().map_err(|error| Some(error.to_string()))?;
    if !meta.is_file() {
        return Err(Some("it is not a regular file".to_owned()));
    }
    if meta.uid() != 0 || meta.permissions().mode() & 0o022 != 0 {
        let name = path.display();
        return Err(Some(format!("others than root can change it; run: chown root {name} && chmod 644 {name}")));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| Some(error.to_string()))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Some("it is larger than 1 MiB".to_owned()));
    }
    String::from_utf8(bytes).map_err(|_| Some("it is not UTF-8 text".to_owned()))
}

/// Parses one line; `None` for an empty one or a comment.
pub fn parse_line(line: &str) -> Result<Option<Entry>, LineError> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    if let Some(key) = parse_key(line)? {
        return Ok(Some(Entry { key, options: KeyOptions::default(), from: Vec::new(), expires: None }));
    }
    let (options, rest) = split_options(line)?;
    let key = parse_key(rest)?.ok_or(LineError::Key)?;
    let mut entry = Entry { key, options: KeyOptions::default(), from: Vec::new(), expires: None };
    for option in options {
        entry.apply(&option)?;
    }
    Ok(Some(entry))
}

/// A key at the start of `text`, or `None` if that does not start with the name of a key type.
fn parse_key(text: &str) -> Result<Option<PublicKey>, LineError> {
    let mut words = text.split_ascii_whitespace();
    let (Some(kind), blob) = (words.next(), words.next()) else { return Ok(None) };
    if kind == "ssh-dss" {
        return Err(LineError::Dss);
    }
    if !["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"].iter().any(|prefix| kind.starts_with(prefix)) {
        return Ok(None);
    }
    let blob = blob.ok_or(LineError::Key)?;
    PublicKey::from_openssh(&format!("{kind} {blob}")).map(Some).map_err(|_| LineError::Key)
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

impl Entry {
    fn apply(&mut self, option: &str) -> Result<(), LineError> {
        let (name, value) = match option.split_once('=') {
            None => (option, None),
            Some((name, value)) => (name, Some(unquote(value).ok_or_else(|| LineError::Value(name.to_owned()))?)),
        };
        let lower = name.to_ascii_lowercase();
        let bad = || LineError::Value(name.to_owned());
        match (lower.as_str(), value) {
            ("restrict", None) => {
                let options = &mut self.options;
                options.no_pty = true;
                options.no_port_forwarding = true;
                options.no_agent_forwarding = true;
                options.no_x11_forwarding = true;
            }
            ("pty", None) => self.options.no_pty = false,
            ("no-pty", None) => self.options.no_pty = true,
            ("port-forwarding", None) => self.options.no_port_forwarding = false,
            ("no-port-forwarding", None) => self.options.no_port_forwarding = true,
            ("agent-forwarding", None) => self.options.no_agent_forwarding = false,
            ("no-agent-forwarding", None) => self.options.no_agent_forwarding = true,
            ("x11-forwarding", None) => self.options.no_x11_forwarding = false,
            ("no-x11-forwarding", None) => self.options.no_x11_forwarding = true,
            // The session has no such thing: ~/.ssh/rc is never run.
            ("no-user-rc" | "user-rc", None) => {}
            ("command", Some(command)) => self.options.command = Some(command),
            ("environment", Some(assignment)) => {
                let (name, value) = assignment.split_once('=').ok_or_else(bad)?;
                let valid = |c: char| c.is_ascii_alphanumeric() || c == '_';
                if name.is_empty() || !name.chars().all(valid) || value.contains('\0') {
                    return Err(bad());
                }
                self.options.environment.push((name.to_owned(), value.to_owned()));
            }
            ("from", Some(patterns)) => {
                self.from = patterns.split(',').map(|pattern| pattern.trim().to_owned()).collect();
                if !self.from.iter().all(|pattern| is_address_pattern(pattern)) {
                    return Err(bad());
                }
            }
            ("permitopen", Some(address)) => self.options.permit_open.push(parse_permit(&address).ok_or_else(bad)?),
            // A port alone is any host's.
            ("permitlisten", Some(address)) => {
                let address = if address.contains(':') { address } else { format!("*:{address}") };
                self.options.permit_listen.push(parse_permit(&address).ok_or_else(bad)?);
            }
            ("expiry-time", Some(time)) => self.expires = Some(parse_expiry(&time).ok_or_else(bad)?),
            _ => return Err(LineError::Unsupported(name.to_owned())),
        }
        Ok(())
    }

    fn applies(&self, peer: IpAddr, now: u64) -> bool {
        let in_time = self.expires.is_none_or(|end| now < end);
        let mut matched = self.from.is_empty();
        for pattern in &self.from {
            match pattern.strip_prefix('!') {
                Some(negated) if address_matches(negated, peer) => return false,
                Some(_) => {}
                None => matched |= address_matches(pattern, peer),
            }
        }
        in_time && matched
    }
}

fn unquote(value: &str) -> Option<String> {
    let inner = value.strip_prefix('"')?.strip_suffix('"')?;
    Some(inner.replace("\\\"", "\""))
}

/// Addresses, networks and addresses with `*` and `?`. Host names are refused: they would need the host's resolver.
fn is_address_pattern(pattern: &str) -> bool {
    let pattern = pattern.strip_prefix('!').unwrap_or(pattern);
    parse_cidr(pattern).is_some()
        || (!pattern.is_empty() && pattern.chars().all(|c| c.is_ascii_hexdigit() || matches!(c, '.' | ':' | '*' | '?')))
}

fn parse_cidr(pattern: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = pattern.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let length: u8 = length.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    (length <= longest).then_some((address, length))
}

fn address_matches(pattern: &str, peer: IpAddr) -> bool {
    match (parse_cidr(pattern), peer) {
        (Some((IpAddr::V4(network), length)), IpAddr::V4(peer)) => {
            let shift = 32 - u32::from(length);
            network.to_bits().checked_shr(shift).unwrap_or(0) == peer.to_bits().checked_shr(shift).unwrap_or(0)
        }
        (Some((IpAddr::V6(network), length)), IpAddr::V6(peer)) => {
            let shift = 128 - u32::from(length);
            network.to_bits().checked_shr(shift).unwrap_or(0) == peer.to_bits().checked_shr(shift).unwrap_or(0)
        }
        (Some(_), _) => false,
        (None, peer) => pattern::matches(pattern, &peer.to_string()),
    }
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

/// `YYYYMMDD[HHMM[SS]]`, in UTC with a `Z` at the end and, since the server's zone is not known to the key's owner, without.
fn parse_expiry(text: &str) -> Option<u64> {
    let digits = text.strip_suffix('Z').unwrap_or(text);
    if !digits.bytes().all(|b| b.is_ascii_digit()) || ![8, 12, 14].contains(&digits.len()) {
        return None;
    }
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or("00").to_owned();
    let stamp =
        format!("{}-{}-{}T{}:{}:{}Z", part(0, 4), part(4, 6), part(6, 8), part(8, 10), part(10, 12), part(12, 14));
    let time = humantime::parse_rfc3339(&stamp).ok()?;
    time.duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    fn options(line: &str) -> Result<KeyOptions, LineError> {
        parse_line(line).map(|entry| entry.expect("a key").options)
    }

    #[test]
    fn lines_are_understood() {
        assert!(parse_line("").unwrap().is_none());
        assert!(parse_line("  # comment").unwrap().is_none());
        assert_eq!(options(&format!("{KEY} ada@host")), Ok(KeyOptions::default()));
        let restricted = KeyOptions {
            no_pty: false,
            no_port_forwarding: true,
            no_agent_forwarding: true,
            no_x11_forwarding: true,
            ..KeyOptions::default()
        };
        assert_eq!(options(&format!("restrict,pty {KEY}")), Ok(restricted));
        let forced = KeyOptions {
            command: Some("echo \"a, b\" c".to_owned()),
            environment: vec![("A".to_owned(), "1=2".to_owned())],
            ..KeyOptions::default()
        };
        let permit = |host: &str, port| Permit { host: host.to_owned(), port };
        let forwards = KeyOptions {
            permit_open: vec![permit("db", Some(5432)), permit("::1", None)],
            permit_listen: vec![permit("*", Some(8080)), permit("local*", Some(1))],
            ..KeyOptions::default()
        };
        let line = r#"permitopen="db:5432",permitlisten="8080",permitopen="[::1]:*",permitlisten="local*:1""#;
        assert_eq!(options(&format!("{line} {KEY}")), Ok(forwards));
        assert_eq!(options(&format!(r#"command="echo \"a, b\" c",environment="A=1=2" {KEY} x y"#)), Ok(forced));
    }

    #[test]
    fn what_is_not_supported_makes_a_line_unusable() {
        let table = [
            ("cert-authority", LineError::Unsupported("cert-authority".to_owned())),
            ("tunnel=\"0\"", LineError::Unsupported("tunnel".to_owned())),
            ("permitopen=\"a\"", LineError::Value("permitopen".to_owned())),
            ("permitopen=\"a:0\"", LineError::Value("permitopen".to_owned())),
            ("permitopen=\"::1:80\"", LineError::Value("permitopen".to_owned())),
            ("permitopen=\":80\"", LineError::Value("permitopen".to_owned())),
            ("permitlisten=\"http\"", LineError::Value("permitlisten".to_owned())),
            ("command=ls", LineError::Value("command".to_owned())),
            ("from=\"host.example.org\"", LineError::Value("from".to_owned())),
            ("expiry-time=\"2020\"", LineError::Value("expiry-time".to_owned())),
            ("environment=\"=x\"", LineError::Value("environment".to_owned())),
            ("pty=\"yes\"", LineError::Unsupported("pty".to_owned())),
        ];
        for (option, error) in table {
            assert_eq!(options(&format!("{option} {KEY}")), Err(error), "{option}");
        }
        assert_eq!(options(&format!("command=\"x {KEY}")), Err(LineError::Quote));
        assert_eq!(options("ssh-dss AAAA"), Err(LineError::Dss));
        assert_eq!(options("ssh-ed25519 AAAA"), Err(LineError::Key));
        assert_eq!(options("nonsense"), Err(LineError::Key));
    }

    #[test]
    fn addresses_and_dates_are_enforced() {
        let entry = |options: &str| parse_line(&format!("{options} {KEY}")).unwrap().unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let inside = entry("from=\"10.0.0.0/8,!10.9.*,2001:db8::/32\"");
        assert!(inside.applies(ip("10.1.2.3"), 0) && inside.applies(ip("2001:db8::7"), 0));
        assert!(!inside.applies(ip("10.9.2.3"), 0) && !inside.applies(ip("192.0.2.1"), 0));
        let negated_only = entry("from=\"!10.0.0.1\"");
        assert!(!negated_only.applies(ip("10.0.0.2"), 0));
        let everything = entry("from=\"0.0.0.0/0\"");
        assert!(everything.applies(ip("203.0.113.9"), 0) && !everything.applies(ip("::1"), 0));
        let expiring = entry("expiry-time=\"20200102\"");
        assert!(expiring.applies(ip("::1"), 1_577_923_199) && !expiring.applies(ip("::1"), 1_577_923_200));
    }

    #[test]
    fn files_are_read_strictly() {
        let directory = tempfile::tempdir().unwrap();
        let user: UserName = "ada".parse().unwrap();
        let blob = PublicKey::from_openssh(KEY).unwrap().to_bytes().unwrap();
        let ask = || authorize(directory.path(), &user, &blob, "127.0.0.1".parse().unwrap(), SystemTime::now());
        assert!(matches!(ask(), (None, warnings) if warnings.is_empty()));
        let file = directory.path().join("ada");
        fs::write(&file, format!("tunnel=\"1\" {KEY}\n{KEY}\n")).unwrap();
        let (options, warnings) = ask();
        assert_eq!(options, Some(KeyOptions::default()));
        assert!(warnings[0].to_string().ends_with(r#"ada:1: the key is not used: option "tunnel" is not supported"#));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(&ask(), (None, warnings) if warnings.len() == 1));
        fs::rename(&file, directory.path().join("other")).unwrap();
        std::os::unix::fs::symlink("other", &file).unwrap();
        assert!(matches!(&ask(), (None, warnings) if warnings.len() == 1));
    }

    proptest! {
        #[test]
        fn nothing_makes_the_parser_panic(line in ".{0,200}") {
            let _ = parse_line(&line);
            let _ = parse_line(&format!("{line} {KEY}"));
        }
    }
}
