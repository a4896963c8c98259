//! Who may connect: the bound on connections that have not logged in, and penalties of their sources.
//!
//! Whatever strangers do, it is answered from memory before any process is given to them, and logged at most once a second.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{
    penalties::{Offence, Penalties},
    startups::{Admission as Startable, Limits, Reached, Startup, Startups},
};
use crate::{
    audit::{self, Audit},
    config::{Auth, per_source::Penalties as Rules},
};

/// How long connections that were not let in are counted before they are logged.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// What decides about connections, and how many it has decided against.
#[derive(Default)]
pub(super) struct Admission {
    startups: Startups,
    penalties: Mutex<Penalties>,
    /// Since the start, by the setting that was the reason.
    max_startups: AtomicU64,
    per_source_max_startups: AtomicU64,
    per_source_penalties: AtomicU64,
    counted: Notify,
}

impl Admission {
    /// Takes another connection in, or refuses it.
    pub(super) fn admit(&self, auth: &Auth, peer: SocketAddr) -> Option<Startup> {
        let source = auth.per_source.net_block_size.source(peer.ip());
        let refused = rules(auth, peer).is_some_and(|rules| self.penalties().refuses(source, rules, Instant::now()));
        if refused {
            self.count(&self.per_source_penalties);
            return None;
        }
        let limits = Limits { max_startups: auth.max_startups, per_source: auth.per_source.max_startups };
        // Without random numbers nobody is refused before all places are taken.
        let dice = getrandom::u32().map_or(99, |number| number % 100);
        match self.startups.admit(limits, source, dice) {
            Startable::Admitted(startup) => Some(startup),
            Startable::InsteadOf(startup, other) => {
                tracing::debug!(source = %other, "dropped the oldest of its connections to make room");
                self.count(&self.max_startups);
                Some(startup)
            }
            Startable::Refused(reached) => {
                self.count(match reached {
                    Reached::MaxStartups => &self.max_startups,
                    Reached::PerSource => &self.per_source_max_startups,
                });
                None
            }
        }
    }

    /// Remembers what the client at `peer` did.
    pub(super) fn penalise(&self, auth: &Auth, peer: SocketAddr, offence: Offence, audit: &Audit) {
        let Some(rules) = rules(auth, peer) else { return };
        let source = auth.per_source.net_block_size.source(peer.ip());
        let refused_for = self.penalties().penalise(source, offence, rules, Instant::now());
        if let Some(refused_for) = refused_for {
            let seconds = refused_for.as_secs();
            tracing::info!(%source, "refused for {seconds} s or more: {} (auth.per_source_penalties)", offence.name());
            audit.record(&audit::Event::Penalty { source, offence: offence.name(), seconds });
        }
    }

    /// Connections that have not logged in.
    pub(super) fn waiting(&self) -> usize {
        self.startups.count()
    }

    /// How many connections were dropped since the start, by the name of the setting.
    pub(super) fn dropped(&self) -> Vec<(&'static str, u64)> {
        let counters = [
            ("max_startups", &self.max_startups),
            ("per_source_max_startups", &self.per_source_max_startups),
            ("per_source_penalties", &self.per_source_penalties),
        ];
        counters.map(|(name, counter)| (name, counter.load(Ordering::Relaxed))).into()
    }

    fn penalties(&self) -> std::sync::MutexGuard<'_, Penalties> {
        self.penalties.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
        self.counted.notify_one();
    }

    /// Logs how many connections were not let in, until the task is dropped.
    pub(super) async fn keep_logging(&self) {
        let counters = [
            (&self.max_startups, "too many connections have not logged in (auth.max_startups)"),
            (
                &self.per_source_max_startups,
                "too many of their source have not logged in (auth.per_source_max_startups)",
            ),
            (&self.per_source_penalties, "their sources have penalties (auth.per_source_penalties)"),
        ];
        let mut logged = [0; 3];
        loop {
            self.counted.notified().await;
            for ((counter, why), logged) in counters.iter().zip(&mut logged) {
                let total = counter.load(Ordering::Relaxed);
                if total > *logged {
                    tracing::warn!("dropped {} connections: {why}", total - *logged);
                    *logged = total;
                }
            }
            tokio::time::sleep(LOG_INTERVAL).await;
        }
    }
}

/// The rules for penalties that hold for `peer`.
fn rules(auth: &Auth, peer: SocketAddr) -> Option<&Rules> {
    let exempt = |rules: &Rules, peer: IpAddr| rules.exempt.as_ref().is_some_and(|list| list.contains(peer));
    auth.per_source.penalties.as_ref().filter(|rules| !exempt(rules, peer.ip().to_canonical()))
}
