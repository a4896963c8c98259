//! `~/.podspawn/host_keys`: the key of each server that the user has confirmed, one a line, under the server's own name.
//!
//! ```text
//! [server.example]:2222 ssh-ed25519 AAAA...
//! ```
//!
//! Every podspawn server has an Ed25519 key; one key says who it is, so others are not asked for.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    process::{Command, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{
    files::{self, FileError, Home},
    server::Server,
};
use crate::{access::Credential, errors::printable};

/// The kind of key that is pinned.
const KIND: &str = "ssh-ed25519";

/// How many seconds ssh-keyscan(1) waits for a server.
const SCAN_LIMIT: &str = "10";

/// Why keys cannot be read, written or asked for.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{}, line {line}: it is not a server's name and its {KIND} key", .file.display())]
    Line { file: PathBuf, line: usize },
    #[error("cannot run ssh-keyscan, which comes with ssh")]
    Scan(#[source] io::Error),
    #[error("cannot get the host key of {server}: {why}")]
    NoKey { server: Server, why: String },
}

/// A server's public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostKey {
    base64: String,
    /// `SHA256:...`, as ssh shows it.
    pub fingerprint: String,
}

impl HostKey {
    /// From the two words that known_hosts has for it.
    fn parse(kind: &str, base64: &str) -> Option<Self> {
        let blob = STANDARD.decode(base64).ok().filter(|_| kind == KIND)?;
        let credential = Credential::parse(&blob)?;
        let named = 4 + KIND.len();
        let is_kind = blob.get(4..named) == Some(KIND.as_bytes());
        is_kind.then(|| Self { base64: base64.to_owned(), fingerprint: credential.identity().fingerprint })
    }
}

impl std::fmt::Display for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{KIND} {}", self.base64)
    }
}

/// Asks `server` for its key. Whether it is the server that answers, nobody has proved.
///
/// ssh's own ssh-keyscan(1) does it, so that what it agrees on with the server is what ssh will.
pub fn fetch(server: &Server) -> Result<HostKey, HostKeyError> {
    let mut scan = Command::new("ssh-keyscan");
    scan.args(["-T", SCAN_LIMIT, "-t", "ed25519", "-p"]).arg(server.port.to_string()).arg("--").arg(&server.host);
    let output = scan.stdin(Stdio::null()).output().map_err(HostKeyError::Scan)?;
    let text = String::from_utf8_lossy(&output.stdout);
    for line in text.lines() {
        if let [_, kind, base64] = line.split(' ').collect::<Vec<_>>()[..]
            && let Some(key) = HostKey::parse(kind, base64)
        {
            return Ok(key);
        }
    }
    // Comments say which server it has asked.
    let said = String::from_utf8_lossy(&output.stderr);
    let why = said.lines().find(|line| !line.starts_with('#') && !line.is_empty());
    let why = why.map_or_else(|| "it does not answer, or has no Ed25519 key".to_owned(), printable);
    Err(HostKeyError::NoKey { server: server.clone(), why })
}

/// The confirmed keys.
#[derive(Debug, Clone)]
pub struct HostKeys {
    file: PathBuf,
    keys: BTreeMap<Server, HostKey>,
}

impl HostKeys {
    /// Reads the user's file; one that is not there has none.
    pub fn load(home: &Home) -> Result<Self, HostKeyError> {
        let file = home.host_keys();
        let text = files::read_text(&file)?;
        let mut keys = BTreeMap::new();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.is_empty()) {
            let entry = match line.split(' ').collect::<Vec<_>>()[..] {
                [server, kind, base64] => server.parse().ok().zip(HostKey::parse(kind, base64)),
                _ => None,
            };
            let Some((server, key)) = entry else { return Err(HostKeyError::Line { file, line: index + 1 }) };
            keys.insert(server, key);
        }
        Ok(Self { file, keys })
    }

    pub fn of(&self, server: &Server) -> Option<&HostKey> {
        self.keys.get(server)
    }

    pub fn pin(&mut self, server: &Server, key: HostKey) {
        self.keys.insert(server.clone(), key);
    }

    pub fn save(&self) -> Result<(), HostKeyError> {
        let mut text = "# Keys of podspawn servers that `podspawn setup` has pinned.\n".to_owned();
        for (Server { host, port }, key) in &self.keys {
            text.push_str(&format!("[{host}]:{port} {key}\n"));
        }
        Ok(files::write(&self.file, text.as_bytes())?)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub const KEY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";

    pub fn keys(servers: &[&str]) -> HostKeys {
        let key = HostKey::parse(KIND, KEY).unwrap();
        let pinned = servers.iter().map(|server| (server.parse().unwrap(), key.clone()));
        HostKeys { file: "host_keys".into(), keys: pinned.collect() }
    }

    #[test]
    fn only_ed25519_keys_are_keys() {
        let key = HostKey::parse(KIND, KEY).unwrap();
        assert_eq!(key.to_string(), format!("{KIND} {KEY}"));
        assert_eq!(key.fingerprint, "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU");
        for (kind, base64) in [("ssh-rsa", KEY), (KIND, "AAAA"), (KIND, "!"), (KIND, &KEY[..40]), (KIND, "")] {
            assert_eq!(HostKey::parse(kind, base64), None, "{kind} {base64}");
        }
    }
}
