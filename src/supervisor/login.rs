//! Logging in: what a connection process asks about keys is answered from the administrator's files, and recorded.
//!
//! That the client holds a key's private half is the connection process's word, as russh keeps the signature to itself
//! (docs/russh.md). A certificate's dates, names and signature are checked again here.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use super::{Supervisor, revocation::Stamps};
use crate::{
    access::{Attempt, Credential, Identity, Judgement, Refusal, Rules},
    audit,
    errors::chain,
    names::{ProjectName, UserName},
    protocol::KeyOptions,
    session::SessionKey,
};

/// Questions about keys that one client may have answered, as sshd's limit of attempts of any kind. An offer that is
/// accepted is no failed attempt, so that without this a client could go on until its time is up.
pub(super) const MAX_QUESTIONS: u32 = 1024;

/// Warnings about files that are remembered; then they are said again.
const MAX_SAID: usize = 1000;

/// A login whose key was accepted and proved.
pub(super) struct Login {
    pub(super) key: SessionKey,
    pub(super) fingerprint: String,
    /// Public key or certificate; `None` if an earlier supervisor has not written it down.
    pub(super) credential: Option<Vec<u8>>,
    pub(super) at: SystemTime,
    /// The files that said yes, if that was in this supervisor's time.
    pub(super) stamps: Option<Stamps>,
}

/// A question of a connection process.
pub(super) struct Question {
    /// As the client sent it.
    pub(super) login: String,
    /// Public key or certificate.
    pub(super) blob: Vec<u8>,
    /// Whether the client has proved to hold the private key.
    pub(super) proved: bool,
    pub(super) peer: SocketAddr,
}

/// What the files say to a question: a login, which is one only if it was proved, and what it may do.
pub(super) async fn judge(supervisor: &Supervisor, question: Question) -> Option<(Login, KeyOptions)> {
    let Question { login, blob, proved, peer } = question;
    let parsed = parse_login(&login);
    let user = parsed.as_ref().map(|session| session.user.clone());
    let rules = supervisor.config().access();
    let at = SystemTime::now();
    let looked_up = tokio::task::spawn_blocking(move || {
        // Before they are read: a file that changes in between is read again.
        let stamps = user.as_ref().map(|user| Stamps::of(&rules, user));
        let judged = look_up(&rules, user.as_ref(), &blob, proved, (peer, at));
        (judged, stamps, blob)
    });
    let Ok(((identity, (verdict, warnings)), stamps, blob)) = looked_up.await else {
        tracing::error!("looking up a key has failed");
        return None;
    };
    for warning in warnings {
        supervisor.said.say_once(warning.to_string());
    }
    match (parsed, verdict) {
        (Some(session), Ok(options)) => {
            let fingerprint = identity.fingerprint.clone();
            if proved {
                supervisor.audit.record(&audit::Event::AuthOk { key: &session, peer, identity: &identity });
            }
            Some((Login { key: session, fingerprint, credential: Some(blob), at, stamps }, options))
        }
        (_, verdict) => {
            let reason = chain(verdict.err().unwrap_or(Refusal::Name));
            supervisor.audit.record(&audit::Event::AuthFail {
                login: &login,
                peer,
                identity: &identity,
                reason: &reason,
            });
            None
        }
    }
}

fn look_up(
    rules: &Rules,
    user: Option<&UserName>,
    blob: &[u8],
    proved: bool,
    (peer, now): (SocketAddr, SystemTime),
) -> (Identity, Judgement) {
    let Some(credential) = Credential::parse(blob) else {
        return (Identity::unknown(), (Err(Refusal::Unreadable), Vec::new()));
    };
    let identity = credential.identity();
    let Some(user) = user else { return (identity, (Err(Refusal::Name), Vec::new())) };
    let attempt = Attempt { user, credential: &credential, peer: peer.ip().to_canonical(), now };
    let judgement = if proved { rules.judge(&attempt) } else { rules.worth_a_proof(&attempt) };
    (identity, judgement)
}

/// `user` or `user+project`; `None` if either is not a valid name.
fn parse_login(login: &str) -> Option<SessionKey> {
    let (user, project) = match login.split_once('+') {
        None => (login, None),
        Some((user, project)) => (user, Some(project)),
    };
    let user = user.parse::<UserName>().ok()?;
    let project = project.map(str::parse::<ProjectName>).transpose().ok()?;
    Some(SessionKey { user, project })
}

/// Warnings that have been logged. Anybody can make us read a file again and again, and with it what is wrong with it.
#[derive(Default)]
pub(super) struct Said(Mutex<HashSet<String>>);

impl Said {
    pub(super) fn say_once(&self, warning: String) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() >= MAX_SAID {
            said.clear();
        }
        if !said.contains(&warning) {
            tracing::warn!("{warning}");
            said.insert(warning);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_name_a_user_and_perhaps_a_project() {
        let show = |login| parse_login(login).map(|key| key.to_string());
        assert_eq!(show("ada"), Some("ada".to_owned()));
        assert_eq!(show("ada+web"), Some("ada@web".to_owned()));
        for bad in ["", "+", "ada+", "+web", "ada+web+x", "../etc", "ada\0", "ada@web"] {
            assert_eq!(show(bad), None, "{bad:?}");
        }
    }
}
