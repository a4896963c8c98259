//! The audit log: who did what when, one JSON object per line.
//!
//! Everything that a client can choose goes through the JSON encoder, so no byte of it can begin a line of its own.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use serde_json::{Map, Value, json};

use crate::{
    access::{CertificateIdentity, Identity},
    names::SessionId,
    protocol::{ExitStatus, ForwardKind},
    session::{SessionKey, state::ConnectionId},
};

/// Something worth remembering.
#[derive(Debug)]
pub enum Event<'a> {
    AuthOk {
        key: &'a SessionKey,
        peer: SocketAddr,
        identity: &'a Identity,
    },
    AuthFail {
        login: &'a str,
        peer: SocketAddr,
        identity: &'a Identity,
        reason: &'a str,
    },
    /// From now on connections from `source` are refused, for `seconds` or longer.
    Penalty {
        source: IpAddr,
        offence: &'a str,
        seconds: u64,
    },
    LimitRefused {
        key: &'a SessionKey,
        limit: &'static str,
    },
    ContainerCreate {
        key: &'a SessionKey,
        session: &'a SessionId,
        image: &'a str,
    },
    ContainerDestroy {
        key: &'a SessionKey,
        session: Option<&'a SessionId>,
        reason: &'static str,
    },
    Connect {
        key: &'a SessionKey,
        session: &'a SessionId,
        connection: ConnectionId,
        connections: usize,
    },
    Disconnect {
        key: &'a SessionKey,
        session: Option<&'a SessionId>,
        connection: ConnectionId,
        remaining: usize,
    },
    Command {
        key: &'a SessionKey,
        connection: ConnectionId,
        command: Option<&'a str>,
        status: ExitStatus,
    },
    ForwardOpen {
        key: &'a SessionKey,
        connection: ConnectionId,
        kind: ForwardKind,
        target: &'a str,
    },
}

/// The open log, or none.
pub struct Audit(Option<Mutex<File>>);

impl Audit {
    /// Appends to the file at `path`, made with mode 0600; `None` records nothing.
    pub fn open(path: Option<&Path>) -> io::Result<Self> {
        let open = |path: &Path| OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        Ok(Self(path.map(open).transpose()?.map(Mutex::new)))
    }

    /// Writes one line. A failure is logged: the service goes on without its audit rather than not at all.
    pub fn record(&self, event: &Event<'_>) {
        let Some(file) = &self.0 else { return };
        let mut line = describe(event, SystemTime::now()).to_string();
        line.push('\n');
        // One write(2) in append mode, so that lines of two processes do not mix.
        if let Err(error) = file.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes()) {
            tracing::error!("the audit log cannot be written: {error}");
        }
    }
}

fn describe(event: &Event<'_>, now: SystemTime) -> Value {
    let (name, details) = match event {
        Event::AuthOk { key, peer, identity } => {
            ("auth.ok", with_key(key, with_identity(identity, json!({"remote": peer.to_string()}))))
        }
        Event::AuthFail { login, peer, identity, reason } => {
            let details = json!({"login": login, "remote": peer.to_string(), "reason": reason});
            ("auth.fail", with_identity(identity, details))
        }
        Event::Penalty { source, offence, seconds } => {
            ("auth.penalty", json!({"remote": source.to_string(), "reason": offence, "seconds": seconds}))
        }
        Event::LimitRefused { key, limit } => ("limit.refused", with_key(key, json!({"reason": limit}))),
        Event::ContainerCreate { key, session, image } => {
            ("container.create", with_key(key, json!({"session_id": session, "image": image})))
        }
        Event::ContainerDestroy { key, session, reason } => {
            ("container.destroy", with_key(key, json!({"session_id": session, "reason": reason})))
        }
        Event::Connect { key, session, connection, connections } => (
            "session.connect",
            with_key(key, json!({"session_id": session, "connection": connection, "connections": connections})),
        ),
        Event::Disconnect { key, session, connection, remaining } => (
            "session.disconnect",
            with_key(key, json!({"session_id": session, "connection": connection, "remaining_connections": remaining})),
        ),
        Event::Command { key, connection, command, status } => {
            let (code, signal) = match status {
                ExitStatus::Code(code) => (Some(*code), None),
                ExitStatus::Signal { signal, .. } => (None, Some(*signal)),
            };
            let details = json!({"connection": connection, "command": command, "exit_code": code, "signal": signal});
            ("session.command", with_key(key, details))
        }
        Event::ForwardOpen { key, connection, kind, target } => {
            ("forward.open", with_key(key, json!({"connection": connection, "kind": kind, "target": target})))
        }
    };
    let mut line = Map::new();
    line.insert("time".to_owned(), json!(humantime::format_rfc3339_millis(now).to_string()));
    line.insert("event".to_owned(), json!(name));
    if let Value::Object(details) = details {
        line.extend(details);
    }
    Value::Object(line)
}

fn with_key(key: &SessionKey, mut details: Value) -> Value {
    details["user"] = json!(key.user);
    details["project"] = json!(key.project);
    details
}

fn with_identity(identity: &Identity, mut details: Value) -> Value {
    details["fingerprint"] = json!(identity.fingerprint);
    if let Some(CertificateIdentity { key_id, serial, ca }) = &identity.certificate {
        details["certificate"] = json!({"key_id": key_id, "serial": serial, "ca_fingerprint": ca});
    }
    details
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_bytes_cannot_forge_a_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let audit = Audit::open(Some(&path)).unwrap();
        let login = "x\n{\"event\":\"auth.ok\"}\u{2028}\r\0";
        let certificate = CertificateIdentity { key_id: login.to_owned(), serial: 1, ca: "SHA256:y".to_owned() };
        let identity = Identity { fingerprint: "SHA256:x".to_owned(), certificate: Some(certificate) };
        let peer = "127.0.0.1:5".parse().unwrap();
        audit.record(&Event::AuthFail { login, peer, identity: &identity, reason: "it is revoked" });
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 1);
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&line["event"], &line["login"]), (&json!("auth.fail"), &json!(login)));
        assert_eq!(line["certificate"]["key_id"], json!(login));
    }
}
