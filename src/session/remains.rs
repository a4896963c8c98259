//! What could not be undone of a session or build that failed to be made: nobody has it, so it is removed here, as soon as that
//! is possible.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use super::{
    driver::{RETRY_MAX, RETRY_MIN, blocking},
    registry::Sessions,
    steps::{Context, DestroyError},
};
use crate::{errors::chain, runtime::Container, state::SessionRecord};

/// Records of what is still to be removed.
#[derive(Debug, Default)]
pub struct Remains {
    records: Mutex<Vec<SessionRecord>>,
    more: Notify,
}

impl Remains {
    fn take(&self) -> Vec<SessionRecord> {
        std::mem::take(&mut *self.records.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has it removed later.
    pub(super) fn add(&self, record: SessionRecord) {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
        self.more.notify_one();
    }
}

impl Context {
    /// Removes all of what could not be made. What resists is tried again for as long as the server runs. Blocks.
    pub(super) fn undo(&self, record: &SessionRecord, container: Option<Container>) {
        if let Err(left) = self.destroy(record, container) {
            tracing::error!("{}; trying again", chain(left));
            self.remains.add(record.clone());
        }
    }

    /// Tries once more. Returns what is left.
    fn undo_all(&self) -> Vec<(SessionRecord, DestroyError)> {
        let tried = self.remains.take().into_iter();
        tried.filter_map(|record| self.destroy(&record, None).err().map(|error| (record, error))).collect()
    }
}

impl Sessions {
    /// Removes what could not be undone, less and less often while that fails; for ever.
    pub async fn undo_remains(&self) {
        let remains = &self.context().remains;
        loop {
            remains.more.notified().await;
            let mut delay = RETRY_MIN;
            loop {
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(RETRY_MAX);
                let left = blocking(self.inner(), Context::undo_all).await;
                if left.is_empty() {
                    break;
                }
                for (record, error) in left {
                    tracing::error!("{}; trying again in {delay:?}", chain(error));
                    remains.add(record);
                }
            }
        }
    }
}
