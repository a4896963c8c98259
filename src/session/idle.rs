//! Whether anybody uses a session: bytes to and from its clients, and the CPU time of its processes. No I/O, and the time is
//! an argument.
//!
//! What its user's container uses counts from the first nanosecond on, as a shell that waits uses none. Services have their
//! own housekeeping, and count when they do more than that.

use std::time::Duration;

use tokio::time::Instant;

/// What share of one CPU the housekeeping of services may take.
const HOUSEKEEPING: f64 = 0.01;

/// How often to look, at least and at most.
const OFTEN: Duration = Duration::from_millis(250);
const SELDOM: Duration = Duration::from_secs(15);

/// How long before the end clients are warned.
pub(super) const WARNING: Duration = Duration::from_secs(60);

/// CPU time that has been used so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cpu {
    pub(super) container: Duration,
    pub(super) services: Duration,
}

/// What follows from a look.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Used,
    /// It will be over in so long, unless it is used. Said once.
    Warn(Duration),
    /// It has been idle for all of the time.
    Over,
}

/// What is known of a session's use.
#[derive(Debug)]
pub(super) struct Idle {
    timeout: Duration,
    used: Instant,
    cpu: Option<(Instant, Cpu)>,
    next: Instant,
    warned: bool,
}

impl Idle {
    pub(super) fn new(timeout: Duration, now: Instant) -> Self {
        Self { timeout, used: now, cpu: None, next: now, warned: false }
    }

    /// When to look next.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// It is used, or was.
    pub(super) fn used_at(&mut self, when: Instant) {
        self.used = self.used.max(when);
    }

    /// Judges by a look at the counters; `None` where the kernel does not count.
    pub(super) fn look(&mut self, now: Instant, cpu: Option<Cpu>) -> Verdict {
        if let (Some((before, last)), Some(cpu)) = (self.cpu, cpu) {
            let housekeeping = now.saturating_duration_since(before).mul_f64(HOUSEKEEPING);
            let by_services = cpu.services.saturating_sub(last.services);
            if cpu.container > last.container || by_services > housekeeping {
                self.used = now;
            }
        } else if cpu.is_some() {
            // What was used before is not known.
            self.used = now;
        }
        self.cpu = cpu.map(|cpu| (now, cpu)).or(self.cpu);
        self.plan(now);
        let left = (self.used + self.timeout).saturating_duration_since(now);
        if left > self.warning() {
            self.warned = false;
            Verdict::Used
        } else if left.is_zero() {
            Verdict::Over
        } else if self.warned {
            Verdict::Used
        } else {
            self.warned = true;
            Verdict::Warn(left)
        }
    }

    /// How long before the end to warn: half of the time at most.
    fn warning(&self) -> Duration {
        WARNING.min(self.timeout / 2)
    }

    fn plan(&mut self, now: Instant) {
        let end = self.used + self.timeout;
        let soon = now + (self.timeout / 8).clamp(OFTEN, SELDOM);
        let moments = [end - self.warning(), end].into_iter().filter(|moment| *moment > now);
        self.next = moments.fold(soon, Instant::min);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(600);

    fn cpu(container: u64, services: u64) -> Cpu {
        Cpu { container: Duration::from_millis(container), services: Duration::from_millis(services) }
    }

    /// Looks as often as it asks to, and returns what it says beside [`Verdict::Used`], with the seconds since `start`.
    fn watch(idle: &mut Idle, start: Instant, mut used: impl FnMut(u64) -> Option<Cpu>) -> Vec<(u64, Verdict)> {
        let mut said = Vec::new();
        loop {
            let now = idle.next();
            let seconds = now.saturating_duration_since(start).as_secs();
            match idle.look(now, used(seconds)) {
                Verdict::Used => {}
                Verdict::Over => {
                    said.push((seconds, Verdict::Over));
                    return said;
                }
                warned @ Verdict::Warn(_) => said.push((seconds, warned)),
            }
            assert!(seconds < 5000, "it never ends: {said:?}");
        }
    }

    #[test]
    fn an_idle_session_is_warned_of_once_and_then_over() {
        let start = Instant::now();
        let mut idle = Idle::new(TIMEOUT, start);
        let said = watch(&mut idle, start, |_| None);
        assert_eq!(said, [(540, Verdict::Warn(WARNING)), (600, Verdict::Over)]);
    }

    #[test]
    fn any_cpu_time_of_the_container_is_use() {
        let start = Instant::now();
        let mut idle = Idle::new(TIMEOUT, start);
        let said = watch(&mut idle, start, |seconds| Some(cpu(seconds.min(1000), 0)));
        let [(_, Verdict::Warn(_)), (over, Verdict::Over)] = said[..] else { panic!("{said:?}") };
        assert!((1600..1600 + 2 * SELDOM.as_secs()).contains(&over), "{over}");
    }

    #[test]
    fn services_may_do_some_housekeeping() {
        let start = Instant::now();
        // In milliseconds for each second.
        let run = |rate: u64| {
            let mut idle = Idle::new(TIMEOUT, start);
            watch(&mut idle, start, |seconds| Some(cpu(0, rate * seconds.min(1000))))
        };
        let (few, many) = (run(5), run(20));
        assert!(few.last().is_some_and(|(over, _)| *over < 700), "{few:?}");
        assert!(many.last().is_some_and(|(over, _)| *over >= 1600), "{many:?}");
    }

    #[test]
    fn use_after_a_warning_leads_to_another_one() {
        let start = Instant::now();
        let mut idle = Idle::new(TIMEOUT, start);
        idle.look(start, None);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(idle.look(at(550), None), Verdict::Warn(Duration::from_secs(50)));
        assert_eq!(idle.look(at(560), None), Verdict::Used);
        idle.used_at(at(561));
        idle.used_at(at(10));
        assert_eq!(idle.look(at(562), None), Verdict::Used);
        assert_eq!(idle.look(at(1150), None), Verdict::Warn(Duration::from_secs(11)));
        assert_eq!(idle.look(at(1161), None), Verdict::Over);
    }
}
