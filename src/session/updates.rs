//! Updates of mirrors that sessions wait for, and that end before the session's network does: a connection that cannot be closed
//! any more would keep its network namespace for minutes.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::names::SessionId;

/// How long git may take to end with its session.
const END_LIMIT: Duration = Duration::from_secs(15);

/// Whose mirrors are being updated, so that a session ends after its update.
#[derive(Default)]
pub struct Updates {
    sessions: Mutex<HashMap<SessionId, Progress>>,
    ended: Condvar,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Running,
    /// It is to end, and nothing more is to begin.
    Ending,
    Ended,
}

/// Forgets the session when it is dropped.
pub(super) struct Ended<'a>(&'a Updates, &'a SessionId);

/// A session's update. It has one at a time.
pub(super) struct Update<'a>(&'a Updates, &'a SessionId);

impl Updates {
    /// Begins one, unless there is one already or the session is ending.
    pub(super) fn begin<'a>(&'a self, session: &'a SessionId) -> Option<Update<'a>> {
        match self.lock().entry(session.clone()) {
            Entry::Occupied(_) => None,
            Entry::Vacant(vacant) => {
                vacant.insert(Progress::Running);
                Some(Update(self, session))
            }
        }
    }

    /// Has a session's update end, and none begin as long as the result lives. Blocks, but not for long.
    pub(super) fn end<'a>(&'a self, session: &'a SessionId) -> Ended<'a> {
        let mut sessions = self.lock();
        let progress = sessions.entry(session.clone()).or_insert(Progress::Ended);
        if *progress == Progress::Running {
            *progress = Progress::Ending;
            let running = |sessions: &mut HashMap<_, _>| sessions.get(session) == Some(&Progress::Ending);
            let waited = self.ended.wait_timeout_while(sessions, END_LIMIT, running);
            if waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
                tracing::error!(%session, "the update of a mirror does not end");
            }
        }
        Ended(self, session)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Progress>> {
        // Each statement leaves it consistent.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Update<'_> {
    pub(super) fn is_wanted(&self) -> bool {
        self.0.lock().get(self.1) == Some(&Progress::Running)
    }
}

impl Drop for Update<'_> {
    fn drop(&mut self) {
        let Self(updates, session) = self;
        let mut sessions = updates.lock();
        match sessions.get_mut(*session) {
            Some(progress @ Progress::Ending) => *progress = Progress::Ended,
            _ => drop(sessions.remove(*session)),
        }
        updates.ended.notify_all();
    }
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.lock().remove(self.1);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_session_ends_after_its_update_and_begins_none_any_more() {
        let (updates, session, other) = (Updates::default(), "2abcdefg".parse().unwrap(), "2bcdefgh".parse().unwrap());
        let update = updates.begin(&session).unwrap();
        let _other = updates.begin(&other).unwrap();
        assert!(update.is_wanted());
        thread::scope(|scope| {
            let ending = scope.spawn(|| {
                let ended = updates.end(&session);
                (updates.begin(&session).is_none(), ended)
            });
            while update.is_wanted() {
                thread::yield_now();
            }
            assert!(!ending.is_finished());
            drop(update);
            let (refused, ended) = ending.join().unwrap();
            assert!(refused);
            drop(ended);
        });
        assert!(updates.lock().len() == 1, "it is forgotten");
        drop(updates.end(&session));
        updates.begin(&session).unwrap();
    }
}
