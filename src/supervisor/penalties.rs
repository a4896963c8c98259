//! Sources that are refused for a while, for what they did before: the rules of sshd's PerSourcePenalties.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::config::per_source::{Overflow, Penalties as Rules, Sources};

/// What a client did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offence {
    /// Its process crashed.
    Crash,
    /// It tried to log in, and could not.
    AuthFail,
    /// It left without trying.
    NoAuth,
    GraceExceeded,
}

impl Offence {
    /// As in the configuration and the audit log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::AuthFail => "authfail",
            Self::NoAuth => "noauth",
            Self::GraceExceeded => "grace_exceeded",
        }
    }

    fn penalty(self, rules: &Rules) -> Duration {
        match self {
            Self::Crash => rules.crash,
            Self::AuthFail => rules.authfail,
            Self::NoAuth => rules.noauth,
            Self::GraceExceeded => rules.grace_exceeded,
        }
    }
}

/// The penalties that have not ended.
#[derive(Debug, Default)]
pub struct Penalties {
    v4: Table,
    v6: Table,
}

/// Those of one kind of address; no more than [`Sources::max`].
#[derive(Debug, Default)]
struct Table {
    sources: HashMap<IpAddr, Penalty>,
    by_end: BTreeSet<(Instant, IpAddr)>,
}

#[derive(Debug, Clone, Copy)]
struct Penalty {
    end: Instant,
    /// Whether it has once been longer than the minimum. It stays so until it ends.
    active: bool,
}

impl Penalties {
    /// Whether a connection from `source` is refused.
    pub fn refuses(&mut self, source: IpAddr, rules: &Rules, now: Instant) -> bool {
        let (table, sources) = self.table(source, rules);
        table.expire(now);
        let full = table.sources.len() >= sources.max as usize;
        (full && sources.overflow == Overflow::DenyAll) || table.sources.get(&source).is_some_and(|p| p.active)
    }

    /// Adds the penalty for `offence`. Returns how long the source is refused from now on if it was not before.
    pub fn penalise(&mut self, source: IpAddr, offence: Offence, rules: &Rules, now: Instant) -> Option<Duration> {
        let penalty = offence.penalty(rules);
        if penalty.is_zero() {
            return None;
        }
        let (table, sources) = self.table(source, rules);
        table.expire(now);
        let before = table.sources.get(&source).copied();
        if before.is_none() && table.sources.len() >= sources.max as usize {
            match sources.overflow {
                Overflow::DenyAll => return None,
                Overflow::Permissive => table.forget_first(),
            }
        }
        // Only an accumulated one is cut, as in sshd.
        let end = before.map_or(now + penalty, |before| (before.end + penalty).min(now + rules.max));
        let was_active = before.is_some_and(|before| before.active);
        let active = was_active || end - now > rules.min;
        if let Some(before) = before {
            table.by_end.remove(&(before.end, source));
        }
        table.by_end.insert((end, source));
        table.sources.insert(source, Penalty { end, active });
        (active && !was_active).then(|| end - now)
    }

    fn table(&mut self, source: IpAddr, rules: &Rules) -> (&mut Table, Sources) {
        if source.is_ipv4() { (&mut self.v4, rules.v4) } else { (&mut self.v6, rules.v6) }
    }
}

impl Table {
    fn expire(&mut self, now: Instant) {
        while self.by_end.first().is_some_and(|(end, _)| *end < now) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((_, source)) = self.by_end.pop_first() {
            self.sources.remove(&source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADA: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const BOB: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));
    const SIX: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn rules(max: u32, overflow: Overflow) -> Rules {
        Rules {
            crash: seconds(90),
            authfail: seconds(5),
            noauth: seconds(1),
            grace_exceeded: seconds(10),
            min: seconds(15),
            max: seconds(600),
            v4: Sources { max, overflow },
            v6: Sources { max, overflow },
            exempt: None,
        }
    }

    #[test]
    fn penalties_add_up_and_end() {
        let rules = rules(10, Overflow::Permissive);
        let (mut penalties, start) = (Penalties::default(), Instant::now());
        let fail = |penalties: &mut Penalties| penalties.penalise(ADA, Offence::AuthFail, &rules, start);
        for _ in 0..3 {
            assert_eq!(fail(&mut penalties), None);
            assert!(!penalties.refuses(ADA, &rules, start), "15 seconds are not more than the minimum");
        }
        assert_eq!(fail(&mut penalties), Some(seconds(20)));
        assert_eq!(fail(&mut penalties), None, "it has been refused before");
        assert!(penalties.refuses(ADA, &rules, start) && !penalties.refuses(BOB, &rules, start));
        // Until its end, also when less than the minimum is left.
        assert!(penalties.refuses(ADA, &rules, start + seconds(25)));
        assert!(!penalties.refuses(ADA, &rules, start + seconds(26)));
        assert_eq!(fail(&mut penalties), None, "it begins again");
    }

    #[test]
    fn a_crash_is_enough_and_no_sum_is_more_than_the_maximum() {
        let rules = rules(10, Overflow::Permissive);
        let (mut penalties, start) = (Penalties::default(), Instant::now());
        assert_eq!(penalties.penalise(SIX, Offence::Crash, &rules, start), Some(seconds(90)));
        for _ in 0..100 {
            penalties.penalise(SIX, Offence::Crash, &rules, start);
        }
        assert!(penalties.refuses(SIX, &rules, start + seconds(600)));
        assert!(!penalties.refuses(SIX, &rules, start + seconds(601)));
    }

    #[test]
    fn the_table_is_bounded() {
        let address = |n: u32| IpAddr::V4(std::net::Ipv4Addr::from_bits(n));
        let start = Instant::now();
        for overflow in [Overflow::Permissive, Overflow::DenyAll] {
            let rules = rules(100, overflow);
            let mut penalties = Penalties::default();
            for n in 0..1000 {
                penalties.penalise(address(n), Offence::Crash, &rules, start + Duration::from_millis(n.into()));
            }
            assert_eq!((penalties.v4.sources.len(), penalties.v4.by_end.len()), (100, 100));
            let refused = |penalties: &mut Penalties, n| penalties.refuses(address(n), &rules, start + seconds(2));
            // Permissive, the first are forgotten; else everybody waits, but not who comes over IPv6.
            let expected = match overflow {
                Overflow::Permissive => [false, true, false],
                Overflow::DenyAll => [true, true, true],
            };
            assert_eq!([0, 999, 5000].map(|n| refused(&mut penalties, n)), expected, "{overflow:?}");
            assert!(!penalties.refuses(SIX, &rules, start));
            assert!(!penalties.refuses(address(5000), &rules, start + seconds(100)));
        }
    }
}
