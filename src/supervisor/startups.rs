//! A bound on the connections that have not logged in.
//!
//! As in sshd, some are refused at random before all places are taken. But who is dropped is not the one that comes last: a
//! source that has more of them than others makes room, so that nobody keeps the users of other sources out.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio_util::sync::CancellationToken;

use crate::config::MaxStartups;

/// The connections that have not logged in.
#[derive(Clone, Default)]
pub struct Startups(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    next: u64,
    /// In the order in which they came. No more than [`MaxStartups::full`]: beyond that one has to go for each that comes.
    waiting: BTreeMap<u64, Waiting>,
}

struct Waiting {
    source: IpAddr,
    dropped: CancellationToken,
}

/// Counts one connection until it is dropped.
pub struct Startup {
    table: Startups,
    id: u64,
    /// Cancelled when it has to make room for another one.
    pub dropped: CancellationToken,
}

/// How many there may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub max_startups: MaxStartups,
    pub per_source: Option<u32>,
}

/// Which limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    MaxStartups,
    PerSource,
}

/// What becomes of another connection.
pub enum Admission {
    Admitted(Startup),
    /// The oldest connection of another source has been dropped for it.
    InsteadOf(Startup, IpAddr),
    Refused(Reached),
}

impl Startups {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).waiting.len()
    }

    /// Counts another connection from `source`, or refuses it: for certain when `limits.max_startups.full` are there, with
    /// a probability that grows from `rate` percent to that once `start` are (sshd_config(5), MaxStartups). `dice` is
    /// 0..100. It is not refused if another source has at least two connections more than its own.
    pub fn admit(&self, limits: Limits, source: IpAddr, dice: u32) -> Admission {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = table.waiting.values().filter(|waiting| waiting.source == source).count();
        if limits.per_source.is_some_and(|max| own >= max as usize) {
            return Admission::Refused(Reached::PerSource);
        }
        let count = u32::try_from(table.waiting.len()).unwrap_or(u32::MAX);
        let mut instead_of = None;
        if dice < refusal_percent(count, limits.max_startups) {
            instead_of = table.make_room(own);
            if instead_of.is_none() {
                return Admission::Refused(Reached::MaxStartups);
            }
        }
        let id = table.next;
        table.next += 1;
        let dropped = CancellationToken::new();
        table.waiting.insert(id, Waiting { source, dropped: dropped.clone() });
        let startup = Startup { table: self.clone(), id, dropped };
        match instead_of {
            None => Admission::Admitted(startup),
            Some(other) => Admission::InsteadOf(startup, other),
        }
    }
}

impl Table {
    /// Drops the oldest connection of the source that has most, if that is at least two more than `own`.
    fn make_room(&mut self, own: usize) -> Option<IpAddr> {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for waiting in self.waiting.values() {
            *counts.entry(waiting.source).or_default() += 1;
        }
        let (source, _) = counts.into_iter().filter(|(_, count)| *count >= own + 2).max_by_key(|(_, count)| *count)?;
        let id = self.waiting.iter().find_map(|(id, waiting)| (waiting.source == source).then_some(*id))?;
        self.waiting.remove(&id)?.dropped.cancel();
        Some(source)
    }
}

impl Drop for Startup {
    fn drop(&mut self) {
        // Gone already if it was dropped for another one.
        self.table.0.lock().unwrap_or_else(PoisonError::into_inner).waiting.remove(&self.id);
    }
}

fn refusal_percent(count: u32, limit: MaxStartups) -> u32 {
    if count < limit.start {
        0
    } else if count >= limit.full || limit.full <= limit.start {
        100
    } else {
        limit.rate + (100 - limit.rate.min(100)) * (count - limit.start) / (limit.full - limit.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADA: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const BOB: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn limits(full: u32, per_source: Option<u32>) -> Limits {
        Limits { max_startups: MaxStartups { start: full, rate: 100, full }, per_source }
    }

    #[track_caller]
    fn admitted(admission: Admission) -> Startup {
        match admission {
            Admission::Admitted(startup) => startup,
            Admission::InsteadOf(_, other) => panic!("instead of one of {other}"),
            Admission::Refused(reached) => panic!("refused: {reached:?}"),
        }
    }

    #[track_caller]
    fn refused(admission: Admission) -> Reached {
        match admission {
            Admission::Refused(reached) => reached,
            Admission::Admitted(_) | Admission::InsteadOf(..) => panic!("admitted"),
        }
    }

    #[test]
    fn refusals_grow_from_rate_to_certainty() {
        let limit = MaxStartups { start: 10, rate: 30, full: 100 };
        let table = [(0, 0), (9, 0), (10, 30), (55, 65), (99, 99), (100, 100), (500, 100)];
        for (count, percent) in table {
            assert_eq!(refusal_percent(count, limit), percent, "{count}");
        }
    }

    #[test]
    fn a_connection_counts_until_it_is_dropped() {
        let startups = Startups::default();
        let first = admitted(startups.admit(limits(1, None), ADA, 0));
        assert_eq!(refused(startups.admit(limits(1, None), ADA, 99)), Reached::MaxStartups);
        drop(first);
        admitted(startups.admit(limits(1, None), ADA, 0));
    }

    #[test]
    fn each_source_has_its_own_limit() {
        let startups = Startups::default();
        let limits = limits(100, Some(2));
        let _held = [admitted(startups.admit(limits, ADA, 0)), admitted(startups.admit(limits, ADA, 0))];
        assert_eq!(refused(startups.admit(limits, ADA, 0)), Reached::PerSource);
        admitted(startups.admit(limits, BOB, 0));
    }

    #[test]
    fn who_has_most_makes_room_for_others_and_not_for_itself() {
        let startups = Startups::default();
        let limits = limits(4, None);
        let held: Vec<_> = (0..4).map(|_| admitted(startups.admit(limits, ADA, 50))).collect();
        let gone = || held.iter().filter(|startup| startup.dropped.is_cancelled()).count();
        assert_eq!(refused(startups.admit(limits, ADA, 50)), Reached::MaxStartups);
        let mut others = Vec::new();
        for expected in 1..=2 {
            match startups.admit(limits, BOB, 50) {
                Admission::InsteadOf(startup, ADA) => others.push(startup),
                Admission::Admitted(_) | Admission::InsteadOf(..) | Admission::Refused(_) => panic!("no room"),
            }
            assert_eq!(gone(), expected);
        }
        assert!(held[0].dropped.is_cancelled() && held[1].dropped.is_cancelled(), "the oldest first");
        // Two each: nobody has to go.
        assert_eq!(refused(startups.admit(limits, BOB, 50)), Reached::MaxStartups);
        assert_eq!(gone(), 2);
    }
}
