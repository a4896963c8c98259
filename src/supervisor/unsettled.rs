//! Connections that would be lost with this server: they are logging in, or their session is being made for them. Whoever has
//! a session is left to the next server.

use std::time::Duration;

use tokio::sync::watch;

/// How long a server that is about to leave waits for logins. A client needs a second for one; others are only connected.
const LOGINS: Duration = Duration::from_secs(10);

/// How long it then waits for sessions that somebody who is logged in waits for.
const SESSIONS: Duration = Duration::from_secs(60);

/// Counts them.
#[derive(Default)]
pub(super) struct Unsettled {
    logins: watch::Sender<usize>,
    sessions: watch::Sender<usize>,
}

/// One of them, until it is dropped.
pub(super) struct Pending(watch::Sender<usize>);

impl Pending {
    fn new(counter: &watch::Sender<usize>) -> Self {
        counter.send_modify(|count| *count += 1);
        Self(counter.clone())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Unsettled {
    /// A client has come, and has no session yet.
    pub(super) fn login(&self) -> Pending {
        Pending::new(&self.logins)
    }

    /// It has been promised one.
    pub(super) fn session(&self) -> Pending {
        Pending::new(&self.sessions)
    }

    /// Waits until there are none, but not for ever. To be called when no new clients are taken.
    pub(super) async fn settle(&self) {
        self.settle_within(LOGINS, SESSIONS).await;
    }

    async fn settle_within(&self, logins: Duration, sessions: Duration) {
        for (counter, limit, what) in [(&self.logins, logins, "logins"), (&self.sessions, sessions, "new sessions")] {
            let mut count = counter.subscribe();
            if tokio::time::timeout(limit, count.wait_for(|count| *count == 0)).await.is_err() {
                tracing::warn!("not waiting any longer for {} {what}", *counter.borrow());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_login_that_becomes_a_session_is_waited_for_and_one_that_does_not_is_given_up() {
        let unsettled = std::sync::Arc::new(Unsettled::default());
        let login = unsettled.login();
        let settled = tokio::spawn({
            let unsettled = unsettled.clone();
            async move { unsettled.settle_within(LONG, LONG).await }
        });
        tokio::task::yield_now().await;
        let session = unsettled.session();
        drop(login);
        tokio::task::yield_now().await;
        assert!(!settled.is_finished());
        drop(session);
        settled.await.unwrap();
        let _idle = unsettled.login();
        unsettled.settle_within(Duration::ZERO, LONG).await;
    }
}
