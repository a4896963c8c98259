//! `images.keep_free`, looked after as long as the server runs: sessions and other programs fill the disk as well.

use std::{sync::Arc, time::Duration};

use super::Supervisor;
use crate::{errors::chain, image::ImageError};

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(10);

/// Keeps room, for ever.
pub(super) async fn keep(supervisor: Arc<Supervisor>) {
    let mut turns = tokio::time::interval(EVERY);
    let mut said = String::new();
    loop {
        turns.tick().await;
        if supervisor.config().images.keep_free == 0 {
            continue;
        }
        let supervisor = supervisor.clone();
        let kept = tokio::task::spawn_blocking(move || {
            let store = &supervisor.sessions.context().store;
            store.touch_used().and_then(|()| store.keep_room())
        });
        match kept.await {
            Ok(Ok(())) => said.clear(),
            Ok(Err(error)) => {
                // Said once: the numbers in it change all the time.
                let kind = if matches!(error, ImageError::NoRoom { .. }) { "room".to_owned() } else { chain(&error) };
                if kind != said {
                    tracing::warn!("images.keep_free cannot be kept: {}", chain(error));
                    said = kind;
                }
            }
            Err(error) => tracing::error!("keeping images.keep_free free: {error}"),
        }
    }
}
