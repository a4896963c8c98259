//! Ending connections whose key does not log in any more: it was removed from its user's file, revoked, or its line allows
//! less than before.
//!
//! Each connection looks now and then whether one of the administrator's files is another one than at its login, and only
//! then judges again, as of the time of its login: a certificate or a line that has expired meanwhile ends nothing by itself
//! (sshd does the same). A refusal has to last for a moment, since not everybody replaces a file in one step; a list of
//! revoked keys that cannot be read keeps strangers out, but ends nothing.

use std::{net::SocketAddr, time::Duration};

use tokio::time::Instant;

use super::{Supervisor, login::Login};
use crate::{
    access::{Attempt, Credential, Refusal, Rules},
    config::Stamp,
    errors::chain,
    names::UserName,
};

/// How often to look, and how long a refusal has to last.
const INTERVAL: Duration = Duration::from_secs(2);
const CONFIRMATION: Duration = Duration::from_secs(1);

/// Which files decided about a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamps([Option<Stamp>; 3]);

impl Stamps {
    /// As they are now.
    pub(super) fn of(rules: &Rules, user: &UserName) -> Self {
        let key_file = rules.key_dir.join(user.as_str());
        let stamp = |path: Option<&std::path::PathBuf>| path.and_then(|path| Stamp::of(path));
        Self([stamp(Some(&key_file)), stamp(rules.user_cas.as_ref()), stamp(rules.revoked.as_ref())])
    }
}

/// One connection's watch over its login.
pub(super) struct Watch {
    next: Instant,
    refused: bool,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self { next: Instant::now() + INTERVAL, refused: false }
    }

    /// Waits until it is time to look.
    pub(super) async fn due(&self) {
        tokio::time::sleep_until(self.next).await;
    }

    /// Looks; returns why the login holds no more.
    pub(super) async fn look(
        &mut self,
        supervisor: &Supervisor,
        login: &mut Login,
        peer: SocketAddr,
    ) -> Option<Refusal> {
        self.next = Instant::now() + INTERVAL;
        let rules = supervisor.config().access();
        let stamps = Stamps::of(&rules, &login.key.user);
        if login.stamps.as_ref() == Some(&stamps) {
            self.refused = false;
            return None;
        }
        let credential = login.credential.as_deref().and_then(Credential::parse)?;
        let (user, now) = (login.key.user.clone(), login.at);
        let judged = tokio::task::spawn_blocking(move || {
            let attempt = Attempt { user: &user, credential: &credential, peer: peer.ip().to_canonical(), now };
            rules.judge(&attempt).0
        });
        match judged.await {
            Ok(Ok(_options)) => {
                (login.stamps, self.refused) = (Some(stamps), false);
                None
            }
            Ok(Err(error @ Refusal::Revocation(_))) => {
                supervisor.said.say_once(format!("of connections that are open: {}", chain(error)));
                None
            }
            Ok(Err(refusal)) if self.refused => Some(refusal),
            Ok(Err(_)) => {
                (self.refused, self.next) = (true, Instant::now() + CONFIRMATION);
                None
            }
            Err(error) => {
                tracing::error!("looking up a key has failed: {error}");
                None
            }
        }
    }
}
