//! What a driver does about its session's services: they are started before anybody works in it, and asked to end before its
//! containers are killed.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    Driver, Event, Mailbox,
    making::{Progress, blocking},
};
use crate::{
    faults::{self, Point},
    image::Progress as _,
    session::{
        client::ToClient,
        environment::Environment,
        registry::Inner,
        services::{OnEnd, Services},
        steps::{CreateError, Live, SessionKey},
        volumes,
    },
    state::SessionRecord,
};

/// How long the last session may take to be gone, and how often to look.
const VOLUMES_LIMIT: Duration = Duration::from_secs(30);
const VOLUMES_POLL: Duration = Duration::from_millis(50);

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
    let on_end = on_end(progress.mailbox.clone());
    let progress = Arc::new(move |line: &str| progress.line(line));
    let started = async {
        faults::at(Point::Services)?;
        let services = Services::start(&inner.context, &live.record, progress, on_end).await?;
        faults::at(Point::Ready)?;
        Ok(services)
    };
    let started = stopped.run_until_cancelled(started).await;
    let error = match started {
        Some(Ok(services)) => {
            live.services = Some(services);
            return Ok(live);
        }
        Some(Err(error)) => error,
        None => CreateError::Stopped,
    };
    let Live { record, container, .. } = *live;
    blocking(inner, move |context| context.undo(&record, Some(container))).await;
    Err(error)
}

/// Takes over the services of a session that an earlier supervisor has left.
pub(super) fn adopt(inner: &Inner, record: &SessionRecord, mailbox: &Mailbox) -> Option<Services> {
    (!record.services.is_empty()).then(|| Services::adopt(&inner.context, record, &on_end(mailbox.clone())))
}

/// Tells the driver of services that have ended for good.
fn on_end(mailbox: Mailbox) -> OnEnd {
    Arc::new(move |ended| {
        // Nobody is left to be told if the driver is gone.
        let _ = mailbox.send(Event::ServiceEnded(ended.told()));
    })
}

impl Driver {
    /// Tells all connections that one of the services is not there any more.
    pub(super) fn tell_of_service(&self, told: &str) {
        match &self.transcript {
            // Those whose session is being set up read this and nothing else.
            Some(transcript) => transcript.push(format!("podspawn: {told}\n").into()),
            None => self.clients.values().for_each(|client| client.tell(ToClient::Notice(told.to_owned()))),
        }
    }
}

/// Lets services end by themselves where what they write outlives them.
pub(super) async fn stop(services: Option<Services>) {
    if let Some(services) = services {
        services.stop().await;
    }
}

/// Waits until no earlier session of `key` uses the volumes that a new one is going to use: two databases with the same files
/// destroy them.
pub(super) async fn wait_for_volumes(
    inner: &Arc<Inner>,
    key: &SessionKey,
    environment: &Environment,
) -> Result<(), CreateError> {
    let mut volumes = environment.services.iter().flat_map(|service| &service.volumes);
    if !volumes.any(|volume| volumes::outlives(volume, environment.life.mode)) {
        return Ok(());
    }
    let gone = async {
        loop {
            let sessions = blocking(inner, |context| context.state.sessions()).await.map_err(CreateError::Record)?;
            let same = |record: &SessionRecord| record.user == key.user && record.project == key.project;
            if !sessions.iter().any(same) {
                return Ok(());
            }
            tokio::time::sleep(VOLUMES_POLL).await;
        }
    };
    let waited = tokio::time::timeout(VOLUMES_LIMIT, gone).await;
    waited.unwrap_or_else(|_elapsed| Err(CreateError::VolumesInUse(key.clone())))
}
