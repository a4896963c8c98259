//! The audit log: who did what when, one JSON object per line (docs/audit.md lists the events).
//!
//! Everything that a client can choose goes through the JSON encoder, so no byte of it can begin a line of its own.

mod feed;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value, json};

use self::feed::{Feed, Told};
pub use self::feed::{Heard, Listener};
use crate::{
    access::{CertificateIdentity, Identity},
    image::Removed,
    log::LogFile,
    metrics::Metrics,
    names::SessionId,
    protocol::{ExitStatus, ForwardKind},
    session::{ExposedPort, Origin, SessionKey, state::ConnectionId},
    time::millis,
};

/// Somebody who is logged in.
#[derive(Debug, Clone, Copy)]
pub struct Who<'a> {
    pub key: &'a SessionKey,
    pub connection: ConnectionId,
    pub origin: &'a Origin,
    /// `None` before there is one.
    pub session: Option<&'a SessionId>,
}

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
    /// The key of somebody who is logged in does not log in any more.
    AuthRevoked {
        who: Who<'a>,
        reason: &'a str,
    },
    /// From now on connections from `source` are refused, for `seconds` or longer.
    Penalty {
        source: IpAddr,
        offence: &'a str,
        seconds: u64,
    },
    LimitRefused {
        who: Who<'a>,
        limit: &'static str,
    },
    /// Somebody who is logged in gets no session: a limit, or it cannot be made.
    SessionRefused {
        who: Who<'a>,
        reason: &'a str,
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
        who: Who<'a>,
        connections: usize,
    },
    /// `reason` is what the user was told, if the connection was ended by the server.
    Disconnect {
        who: Who<'a>,
        remaining: usize,
        reason: Option<&'a str>,
    },
    /// A command or, without one, a shell has ended; without `status` the client has left before it did.
    Command {
        who: Who<'a>,
        command: Option<&'a str>,
        status: Option<ExitStatus>,
        time: Option<Duration>,
    },
    ForwardOpen {
        who: Who<'a>,
        kind: ForwardKind,
        target: &'a str,
    },
    /// A port of the session is to be had on the host's loopback address.
    PortOpen {
        key: &'a SessionKey,
        session: &'a SessionId,
        exposed: ExposedPort,
    },
    /// It is not any more, although the session lives: somebody else had it while the server was away.
    PortLost {
        key: &'a SessionKey,
        session: &'a SessionId,
        exposed: ExposedPort,
    },
    /// An administrator runs a program in a session or, with `service`, in one of its services; how it has ended, if it has.
    AdminExec {
        key: &'a SessionKey,
        session: &'a SessionId,
        service: Option<&'a str>,
        command: &'a str,
        ended: Option<(Option<ExitStatus>, Duration)>,
    },
    /// What an earlier server left was looked through at the start of this one.
    CleanupRun {
        adopted: usize,
        removed: usize,
        strays: usize,
    },
    /// What belongs to no session was looked for while a server ran, or without one.
    CleanedUp {
        strays: usize,
        unfinished: usize,
        failures: usize,
    },
    /// There was less than `images.keep_free`.
    ImagesRemoved {
        removed: &'a Removed,
    },
}

/// Where events go: the open log, if there is one, who listens, and the counters.
pub struct Audit {
    file: Option<Mutex<LogFile>>,
    feed: Feed,
    metrics: Metrics,
}

impl Audit {
    /// Appends to the file at `path`, made with mode 0600; `None` records nothing.
    pub fn open(path: Option<&Path>) -> io::Result<Self> {
        let file = path.map(LogFile::open).transpose()?.map(Mutex::new);
        Ok(Self { file, feed: Feed::default(), metrics: Metrics::default() })
    }

    /// What has been counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Begins to listen to what happens; `None` if too many do already.
    pub fn listen(&self) -> Option<Listener> {
        self.feed.listen()
    }

    /// Counts the event, tells it to who listens, and writes one line. A failure is logged: the service goes on without its audit rather than not at
    /// all.
    pub fn record(&self, event: &Event<'_>) {
        self.count(event);
        let listened = self.feed.has_listeners();
        if self.file.is_none() && !listened {
            return;
        }
        let (name, line) = describe(event, SystemTime::now());
        let line = line.to_string();
        if listened {
            self.feed.tell(Told { name, line: line.clone() });
        }
        let Some(file) = &self.file else { return };
        let line = line + "\n";
        if let Err(error) = file.lock().unwrap_or_else(PoisonError::into_inner).append(line.as_bytes()) {
            self.metrics.audit_failed();
            tracing::error!("the audit log cannot be written: {error}");
        }
    }

    fn count(&self, event: &Event<'_>) {
        match event {
            Event::AuthOk { .. } => self.metrics.login("ok"),
            Event::AuthFail { .. } => self.metrics.login("failed"),
            Event::LimitRefused { limit, .. } => self.metrics.refused(limit),
            Event::ContainerCreate { .. } => self.metrics.session_created(),
            Event::ContainerDestroy { reason, .. } => self.metrics.session_ended(reason),
            Event::Command { status, time, .. } => self.metrics.command(outcome(*status), *time),
            Event::ForwardOpen { kind, .. } => self.metrics.forward(forward_name(*kind)),
            // Said otherwise, or gauges.
            Event::Penalty { .. }
            | Event::AuthRevoked { .. }
            | Event::SessionRefused { .. }
            | Event::Connect { .. }
            | Event::Disconnect { .. }
            | Event::PortOpen { .. }
            | Event::PortLost { .. }
            | Event::AdminExec { .. }
            | Event::CleanupRun { .. }
            | Event::CleanedUp { .. }
            | Event::ImagesRemoved { .. } => {}
        }
    }
}

/// How a command went, in a word.
fn outcome(status: Option<ExitStatus>) -> &'static str {
    match status {
        Some(ExitStatus::Code(0)) => "success",
        Some(ExitStatus::Code(_) | ExitStatus::Signal { .. }) => "failure",
        None => "unknown",
    }
}

/// The name that SSH has for it, as the log has it too.
fn forward_name(kind: ForwardKind) -> &'static str {
    match kind {
        ForwardKind::DirectTcpip => "direct-tcpip",
        ForwardKind::DirectStreamlocal => "direct-streamlocal",
        ForwardKind::TcpipForward => "tcpip-forward",
        ForwardKind::StreamlocalForward => "streamlocal-forward",
        ForwardKind::AuthAgent => "auth-agent",
        ForwardKind::X11 => "x11",
    }
}

/// The event's name, and its line.
fn describe(event: &Event<'_>, now: SystemTime) -> (&'static str, Value) {
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
        Event::AuthRevoked { who, reason } => ("auth.revoked", with_who(who, json!({"reason": reason}))),
        Event::LimitRefused { who, limit } => ("limit.refused", with_who(who, json!({"reason": limit}))),
        Event::SessionRefused { who, reason } => ("session.refused", with_who(who, json!({"reason": reason}))),
        Event::ContainerCreate { key, session, image } => {
            ("container.create", with_key(key, json!({"session_id": session, "image": image})))
        }
        Event::ContainerDestroy { key, session, reason } => {
            ("container.destroy", with_key(key, json!({"session_id": session, "reason": reason})))
        }
        Event::Connect { who, connections } => ("session.connect", with_who(who, json!({"connections": connections}))),
        Event::Disconnect { who, remaining, reason } => {
            ("session.disconnect", with_who(who, json!({"remaining_connections": remaining, "reason": reason})))
        }
        Event::Command { who, command, status, time } => {
            let details = with_end(*status, *time, json!({"command": command, "outcome": outcome(*status)}));
            ("session.command", with_who(who, details))
        }
        Event::PortOpen { key, session, exposed } => ("port.open", with_port(key, session, *exposed)),
        Event::PortLost { key, session, exposed } => ("port.lost", with_port(key, session, *exposed)),
        Event::AdminExec { key, session, service, command, ended } => {
            let status = ended.and_then(|(status, _)| status);
            let outcome = if ended.is_some() { outcome(status) } else { "begun" };
            let details = json!({"session_id": session, "service": service, "command": command, "outcome": outcome});
            ("admin.exec", with_key(key, with_end(status, ended.map(|(_, time)| time), details)))
        }
        Event::ForwardOpen { who, kind, target } => {
            ("forward.open", with_who(who, json!({"kind": forward_name(*kind), "target": target})))
        }
        Event::CleanupRun { adopted, removed, strays } => {
            ("cleanup.run", json!({"reason": "start", "adopted": adopted, "removed": removed, "strays": strays}))
        }
        Event::CleanedUp { strays, unfinished, failures } => {
            let details = json!({"strays": strays, "unfinished": unfinished, "failures": failures});
            ("cleanup.run", with_reason("command", details))
        }
        Event::ImagesRemoved { removed: Removed { images, builds, layers, bytes } } => {
            let details = json!({"images": images, "builds": builds, "layers": layers, "bytes": bytes});
            ("cleanup.run", with_reason("keep_free", details))
        }
    };
    let mut line = Map::new();
    line.insert("time".to_owned(), json!(humantime::format_rfc3339_millis(now).to_string()));
    line.insert("event".to_owned(), json!(name));
    if let Value::Object(details) = details {
        line.extend(details);
    }
    (name, Value::Object(line))
}

fn with_reason(reason: &str, mut details: Value) -> Value {
    details["reason"] = json!(reason);
    details
}

fn with_key(key: &SessionKey, mut details: Value) -> Value {
    details["user"] = json!(key.user);
    details["project"] = json!(key.project);
    details
}

fn with_port(key: &SessionKey, session: &SessionId, exposed: ExposedPort) -> Value {
    let ExposedPort { port, host_port } = exposed;
    with_key(key, json!({"session_id": session, "port": port, "host_port": host_port}))
}

/// How something has ended that ran, if it has, and how long it took.
fn with_end(status: Option<ExitStatus>, time: Option<Duration>, mut details: Value) -> Value {
    let (code, signal) = match status {
        Some(ExitStatus::Code(code)) => (Some(code), None),
        Some(ExitStatus::Signal { signal, .. }) => (None, Some(signal)),
        None => (None, None),
    };
    details["exit_code"] = json!(code);
    details["signal"] = json!(signal);
    details["duration_ms"] = json!(time.map(millis));
    details
}

fn with_who(who: &Who<'_>, mut details: Value) -> Value {
    details["session_id"] = json!(who.session);
    details["connection"] = json!(who.connection);
    details["remote"] = json!(who.origin.peer.to_string());
    details["fingerprint"] = json!(who.origin.fingerprint);
    with_key(who.key, details)
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
    use std::collections::BTreeSet;

    use super::*;

    /// What a client would choose to forge a line with.
    const HOSTILE: &str = "x\n{\"event\":\"auth.ok\"}\u{2028}\u{85}\r\0\u{1b}[2J";

    fn peer() -> SocketAddr {
        "127.0.0.1:5".parse().unwrap()
    }

    /// One of each event, with hostile text wherever a client has a say.
    fn each(record: impl Fn(&Event<'_>)) {
        let certificate = CertificateIdentity { key_id: HOSTILE.to_owned(), serial: 1, ca: "SHA256:y".to_owned() };
        let identity = Identity { fingerprint: "SHA256:x".to_owned(), certificate: Some(certificate) };
        let key = "ada@web".parse().unwrap();
        let origin = Origin { peer: peer(), fingerprint: HOSTILE.to_owned() };
        let session = SessionId::from_bits(1);
        let who = Who { key: &key, connection: 7, origin: &origin, session: Some(&session) };
        let (key, session) = (&key, &session);
        let time = Some(Duration::from_millis(1500));
        let kind = ForwardKind::DirectTcpip;
        let exposed = ExposedPort { port: 80, host_port: 8080 };
        let ended = Some((Some(ExitStatus::Code(3)), Duration::from_millis(1500)));
        for event in [
            Event::AuthOk { key, peer: peer(), identity: &identity },
            Event::AuthFail { login: HOSTILE, peer: peer(), identity: &identity, reason: HOSTILE },
            Event::AuthRevoked { who, reason: HOSTILE },
            Event::Penalty { source: peer().ip(), offence: "authfail", seconds: 20 },
            Event::LimitRefused { who, limit: "max_per_user" },
            Event::SessionRefused { who, reason: HOSTILE },
            Event::ContainerCreate { key, session, image: HOSTILE },
            Event::ContainerDestroy { key, session: Some(session), reason: "stop" },
            Event::Connect { who, connections: 1 },
            Event::Disconnect { who, remaining: 0, reason: Some(HOSTILE) },
            Event::Command { who, command: Some(HOSTILE), status: Some(ExitStatus::Code(3)), time },
            Event::Command { who, command: None, status: None, time: None },
            Event::ForwardOpen { who, kind, target: HOSTILE },
            Event::PortOpen { key, session, exposed },
            Event::PortLost { key, session, exposed },
            Event::AdminExec { key, session, service: Some(HOSTILE), command: HOSTILE, ended },
            Event::CleanupRun { adopted: 1, removed: 2, strays: 3 },
            Event::CleanedUp { strays: 1, unfinished: 2, failures: 3 },
            Event::ImagesRemoved {
                removed: &Removed { images: vec![HOSTILE.to_owned()], builds: 1, layers: 2, bytes: 3 },
            },
        ] {
            record(&event);
        }
    }

    #[test]
    fn a_users_bytes_cannot_forge_a_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let audit = Audit::open(Some(&path)).unwrap();
        let count = std::cell::Cell::new(0);
        each(|event| {
            audit.record(event);
            count.set(count.get() + 1);
        });
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.iter().all(|byte| *byte == b'\n' || *byte >= b' '), "no control character");
        let lines: Vec<Value> =
            bytes.trim_ascii().split(|b| *b == b'\n').map(|l| serde_json::from_slice(l).unwrap()).collect();
        assert_eq!(lines.len(), count.get());
        assert_eq!(lines.iter().filter(|line| line["event"] == "auth.ok").count(), 1);
        assert_eq!((&lines[1]["login"], &lines[1]["certificate"]["key_id"]), (&json!(HOSTILE), &json!(HOSTILE)));
        let command = lines.iter().find(|line| line["event"] == "session.command").unwrap();
        assert_eq!((&command["command"], &command["exit_code"]), (&json!(HOSTILE), &json!(3)));
    }

    #[test]
    fn the_page_about_the_log_lists_every_event_with_its_fields() {
        let seen = Mutex::new(BTreeSet::new());
        each(|event| {
            let (event, line) = describe(event, SystemTime::UNIX_EPOCH);
            assert_eq!(line["event"], event);
            let fields = line.as_object().unwrap().keys().filter(|name| !["time", "event"].contains(&name.as_str()));
            seen.lock().unwrap().extend(fields.map(|field| (event.to_owned(), field.clone())));
        });
        let page = include_str!("../docs/audit.md");
        let mut listed = BTreeSet::new();
        for line in page.lines().filter_map(|line| line.strip_prefix("| `")) {
            let cells: Vec<_> = line.split('|').collect();
            let event = cells[0].trim().trim_end_matches('`');
            listed.extend(cells[2].split('`').skip(1).step_by(2).map(|field| (event.to_owned(), field.to_owned())));
        }
        assert_eq!(listed, seen.into_inner().unwrap());
    }
}
