//! A session ended for good: with all that it has left for the next one, if that is wanted.

use std::{io, sync::PoisonError, time::Duration};

use super::{
    driver::blocking,
    registry::Sessions,
    state::Reason,
    steps::{Context, SessionKey},
    volumes::RemovedVolumes,
};
use crate::state::{SessionRecord, StateError};

/// How long a session may take to be gone, and how often to look. Its services have some seconds to end by themselves.
const LIMIT: Duration = Duration::from_secs(25);
const POLL: Duration = Duration::from_millis(50);

/// What there was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Down {
    pub stopped: bool,
    /// Names of volumes that have been removed.
    pub volumes: Vec<String>,
}

/// Why a session, or what it has left, is still there.
#[derive(Debug, thiserror::Error)]
pub enum DownError {
    #[error("there still is a session after {} seconds; try again", LIMIT.as_secs())]
    StillThere,
    #[error("cannot look for sessions")]
    State(#[source] StateError),
    #[error("cannot remove the volumes")]
    Volumes(#[source] io::Error),
}

impl Sessions {
    /// Ends the session of `key`, waits until it is gone, and with `clean` removes its volumes.
    ///
    /// # Errors
    /// Also if somebody connects again and again meanwhile, so that there always is a session.
    pub async fn down(&self, key: &SessionKey, clean: bool) -> Result<Down, DownError> {
        let stopped = self.stop(key, Reason::Stop);
        let gone = async {
            loop {
                let of = key.clone();
                // One that is only just being made has no record yet.
                if self.views().await.iter().any(|view| view.key == *key) {
                    tokio::time::sleep(POLL).await;
                    continue;
                }
                if let Some(volumes) = blocking(self.inner(), move |context| context.try_down(&of, clean)).await? {
                    return Ok(Down { stopped, volumes });
                }
                tokio::time::sleep(POLL).await;
            }
        };
        let result = tokio::time::timeout(LIMIT, gone).await;
        result.unwrap_or_else(|_elapsed| Err(DownError::StillThere))
    }
}

impl Context {
    /// `None` while there is a session.
    fn try_down(&self, key: &SessionKey, clean: bool) -> Result<Option<Vec<String>>, DownError> {
        let volumes = {
            // Whoever has a record uses volumes, and nobody gets one now.
            let _no_new_record = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
            let sessions = self.state.sessions().map_err(DownError::State)?;
            let same = |record: &SessionRecord| record.user == key.user && record.project == key.project;
            if sessions.iter().any(same) {
                return Ok(None);
            }
            if clean { self.take_volumes(key) } else { Ok(RemovedVolumes::default()) }
        };
        let removed = volumes.and_then(RemovedVolumes::finish);
        removed.map(Some).map_err(DownError::Volumes)
    }
}
