//! What an earlier supervisor left: sessions that still have connections or grace are adopted, everything else is removed.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::Arc,
    time::Duration,
};

use tokio::sync::mpsc;

use super::{Supervisor, client, trail::Trail};
use crate::{
    audit::Event,
    errors::chain,
    names::SessionId,
    protocol::{self, FromConnection, ToConnection, wire::AsyncSocket},
    session::{Activity, Client, Origin, SessionKey},
    state::{ConnectionRecord, Kind, Phase, SessionRecord, StateError},
    sys::seqpacket,
};

/// How long a connection process may take to greet its new supervisor.
const GREETING: Duration = Duration::from_secs(10);

/// What clients are told whose connection or session speaks another version.
const INCOMPATIBLE: &str = "the server was replaced by a version that cannot go on with this connection; connect again";

/// Why a connection could not be taken over.
#[derive(Debug, thiserror::Error)]
enum AdoptError {
    #[error("its process is gone")]
    Gone(#[source] io::Error),
    #[error("its process does not answer")]
    Silent,
    #[error("its process speaks version {0} of the protocol, this server version {ours}", ours = protocol::VERSION)]
    Version(u32, AsyncSocket),
    #[error("its process gave an answer that is not a greeting")]
    Greeting,
}

/// Takes over what can be, and starts removing the rest.
pub(super) async fn reconcile(supervisor: &Arc<Supervisor>) -> Result<(), StateError> {
    let context = supervisor.sessions.context();
    let sessions = context.state.sessions()?;
    let recorded = context.state.connections()?;

    let mut greetings = tokio::task::JoinSet::new();
    for record in recorded {
        let socket = supervisor.pool.socket(record.id);
        greetings.spawn(async move { (greet(&socket).await, record) });
    }
    let mut returned: HashMap<SessionId, Vec<(ConnectionRecord, Greeted)>> = HashMap::new();
    let (mut kept, mut lost) = (HashMap::new(), Vec::new());
    while let Some(joined) = greetings.join_next().await {
        let Ok((answer, record)) = joined else { continue };
        match answer {
            Ok(control) => {
                kept.insert(record.id, record.process);
                returned.entry(record.session.clone()).or_default().push((record, control));
            }
            Err(error) => {
                tracing::info!(connection = record.id, "not taken over: {}", chain(&error));
                if let AdoptError::Version(_, control) = error {
                    kept.insert(record.id, record.process);
                    lost.push((record.clone(), Some(INCOMPATIBLE)));
                    supervisor.clients.spawn(client::send_away(supervisor.clone(), record, control, INCOMPATIBLE));
                } else {
                    context.state.remove_connection(record.id)?;
                    lost.push((record, None));
                }
            }
        }
    }
    if let Err(error) = supervisor.pool.remove_leftovers(&kept) {
        tracing::error!("cannot look for connection processes of an earlier server: {error}");
    }

    if let Err(error) = context.sweep_volumes() {
        tracing::error!("cannot remove volumes that are not wanted any more: {error}");
    }
    let strays = remove_strays(supervisor, &sessions.iter().map(|record| record.id.clone()).collect());
    let stays = |record: &&SessionRecord| {
        matches!(record.phase, Phase::Running | Phase::Grace) && context.adopt(record).is_some()
    };
    let adopted = sessions.iter().filter(stays).count();
    let removed = sessions.len() - adopted;
    supervisor.audit.record(&Event::CleanupRun { adopted, removed, strays });

    let (builds, sessions): (Vec<_>, Vec<_>) = sessions.into_iter().partition(|record| record.kind == Kind::Build);
    for record in builds {
        let supervisor = supervisor.clone();
        let removed = tokio::task::spawn_blocking(move || supervisor.sessions.context().destroy(&record, None)).await;
        match removed {
            Ok(Ok(())) => tracing::info!("removed what was left of a build"),
            Ok(Err(error)) => tracing::error!("{error}"),
            Err(error) => tracing::error!("what is left of a build could not be removed: {error}"),
        }
    }

    for record in sessions {
        let key = SessionKey { user: record.user.clone(), project: record.project.clone() };
        let remaining = returned.get(&record.id).map_or(0, Vec::len);
        for (connection, reason) in lost.extract_if(.., |(connection, _)| connection.session == record.id) {
            let mut trail = Trail::new(supervisor, connection.id, connection.peer);
            if let Some(reason) = reason {
                trail.told(reason);
            }
            trail.lost(&client::login(key.clone(), &connection), &record.id, remaining);
        }
        let (mut clients, mut tasks) = (Vec::new(), Vec::new());
        for (connection, greeted) in returned.remove(&record.id).unwrap_or_default() {
            let (outgoing, from_session) = mpsc::channel(Client::QUEUE);
            let origin = Arc::new(Origin { peer: connection.peer, fingerprint: connection.fingerprint.clone() });
            let activity = Arc::new(Activity::new(greeted.version >= 6));
            let (id, told, seen) = (connection.id, outgoing.clone(), activity.clone());
            clients.push(Client { id, origin, outgoing: told, waiting: greeted.waiting, activity: seen });
            let channel = (outgoing, from_session);
            tasks.push(client::adopted(supervisor.clone(), connection, key.clone(), greeted, channel, activity));
        }
        tracing::info!(session = %record.id, connections = clients.len(), "found a session of an earlier server");
        supervisor.sessions.adopt(record, clients, supervisor.config());
        // Not before: one that ends at once has to be known to the session that it leaves.
        for task in tasks {
            supervisor.clients.spawn(task);
        }
    }
    for (connection, Greeted { control, .. }) in returned.into_values().flatten() {
        let task = client::send_away(supervisor.clone(), connection, control, "the session is gone");
        supervisor.clients.spawn(task);
    }
    Ok(())
}

/// A connection that has answered.
pub(super) struct Greeted {
    pub(super) control: AsyncSocket,
    /// It has not been told yet that its session is ready.
    pub(super) waiting: bool,
    /// Which messages it understands.
    pub(super) version: u32,
}

async fn greet(socket: &std::path::Path) -> Result<Greeted, AdoptError> {
    let connected = seqpacket::connect(socket).and_then(AsyncSocket::new);
    let control = connected.map_err(AdoptError::Gone)?;
    let talk = async {
        control.send(&ToConnection::Adopt { version: protocol::VERSION }, &[]).await?;
        control.recv::<FromConnection>().await
    };
    match tokio::time::timeout(GREETING, talk).await {
        Err(_elapsed) => Err(AdoptError::Silent),
        Ok(Err(error)) => Err(AdoptError::Gone(error)),
        Ok(Ok(Some((FromConnection::Adopted { version, waiting, .. }, _)))) => match version {
            protocol::OLDEST..=protocol::VERSION => Ok(Greeted { control, waiting, version }),
            _ => Err(AdoptError::Version(version, control)),
        },
        Ok(Ok(_)) => Err(AdoptError::Greeting),
    }
}

/// Removes objects with an id that the database does not know: of a database that was lost or replaced. Returns how many
/// sessions they were of.
fn remove_strays(supervisor: &Supervisor, known: &HashSet<SessionId>) -> usize {
    let context = supervisor.sessions.context();
    let mut strays = 0;
    for id in context.session_ids_found() {
        if !known.contains(&id) {
            tracing::warn!(session = %id, "removing what is left of a session without a record");
            strays += 1;
            if let Err(error) = context.sweep(&id) {
                tracing::error!("{error}");
            }
        }
    }
    strays
}
