//! What belongs to no session is removed: what every start of a server does, for whoever wants it in between.

use crate::{errors::chain, names::SessionId, state::SessionRecord};

use super::steps::Context;

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Ids of sessions that had no record, or whose container was gone.
    pub sessions: Vec<SessionId>,
    /// What nobody was making any more in the image store.
    pub unfinished: usize,
    /// What could not be removed, each as one line.
    pub failures: Vec<String>,
}

impl Context {
    /// Removes what is left of sessions without a record, of images that nobody is making any more, of volumes that were to go,
    /// and records that are too old; and makes room on the disk of the images. Sessions go on undisturbed. Blocks.
    pub fn clean_up(&self) -> Cleaned {
        let mut cleaned = Cleaned::default();
        self.sweep_strays(&mut cleaned);
        if let Err(error) = self.sweep_volumes() {
            cleaned.failures.push(format!("cannot remove volumes that are not wanted any more: {error}"));
        }
        match self.store.sweep() {
            Ok(removed) => cleaned.unfinished = removed,
            Err(error) => cleaned.failures.push(chain(error)),
        }
        if let Err(error) = self.records.prune() {
            cleaned.failures.push(format!("cannot remove old records of sessions: {error}"));
        }
        if let Err(error) = self.store.keep_room() {
            cleaned.failures.push(chain(error));
        }
        cleaned
    }

    /// Removes the sessions and builds that a server has left and whose containers are gone. Only where no server runs; those
    /// that live are for the next one. Blocks.
    pub fn clean_up_dead(&self, cleaned: &mut Cleaned, mut told: impl FnMut(&SessionRecord)) {
        let records = match self.state.sessions() {
            Ok(records) => records,
            Err(error) => return cleaned.failures.push(chain(error)),
        };
        for record in records.into_iter().filter(|record| self.adopt(record).is_none()) {
            told(&record);
            match self.end(&record, None, "reconcile") {
                Ok(()) => cleaned.sessions.push(record.id),
                Err(error) => cleaned.failures.push(error.to_string()),
            }
        }
    }

    fn sweep_strays(&self, cleaned: &mut Cleaned) {
        // A record comes before anything else of a session, and goes after it: what was there before the records were read, has
        // none, and is there afterwards, is nobody's.
        let before = self.session_ids_found();
        let known = match self.state.sessions() {
            Ok(records) => records,
            Err(error) => return cleaned.failures.push(chain(error)),
        };
        let stray = |id: &&SessionId| known.iter().all(|record| record.id != **id);
        let strays: Vec<_> = before.iter().filter(stray).collect();
        if strays.is_empty() {
            return;
        }
        let after = self.session_ids_found();
        for id in strays.into_iter().filter(|id| after.contains(*id)) {
            tracing::warn!(session = %id, "removing what is left of a session without a record");
            match self.sweep(id) {
                Ok(()) => cleaned.sessions.push(id.clone()),
                Err(error) => cleaned.failures.push(error.to_string()),
            }
        }
    }
}
