//! What a driver does about its session's services: they are started before anybody works in it, and asked to end before its
//! containers are killed.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{Progress, blocking};
use crate::{
    config::Mode,
    image::Progress as _,
    session::{
        registry::Inner,
        services::Services,
        steps::{CreateError, Live},
    },
    state::SessionRecord,
};

/// Starts the services of a session whose containers have been made, and waits until they are ready. If that does not come
/// about, or it is stopped meanwhile, nothing is left of the session.
pub(super) async fn start(
    inner: &Arc<Inner>,
    mut live: Box<Live>,
    progress: Arc<Progress>,
    stopped: &CancellationToken,
) -> Result<Box<Live>, CreateError> {
    if live.record.services.is_empty() {
        return Ok(live);
    }
    let progress = Arc::new(move |line: &str| progress.line(line));
    let started = stopped.run_until_cancelled(Services::start(&inner.context, &live.record, progress)).await;
    let error = match started {
        Some(Ok(services)) => {
            live.services = Some(services);
            return Ok(live);
        }
        Some(Err(error)) => CreateError::Service(error),
        None => CreateError::Stopped,
    };
    let Live { record, container, .. } = *live;
    if let Err(left) = blocking(inner, move |context| context.destroy(&record, Some(container))).await {
        tracing::error!("{left}");
    }
    Err(error)
}

/// Takes over the services of a session that an earlier supervisor has left.
pub(super) fn adopt(inner: &Inner, record: &SessionRecord) -> Option<Services> {
    (!record.services.is_empty()).then(|| Services::adopt(&inner.context, record))
}

/// Lets services end by themselves where what they write outlives them.
pub(super) async fn stop(services: Option<Services>, record: &SessionRecord) {
    if let Some(services) = services
        && record.mode != Mode::DestroyOnDisconnect
    {
        services.stop().await;
    }
}
