//! Which sessions there are, who may have one, and which session a connection belongs to.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::task::TaskTracker;

use super::{
    build::{self, Builds},
    client::{Client, ToClient},
    driver::{self, Driver, Event, Mailbox, View},
    log::Log,
    state::{ConnectionId, Reason},
    steps::{Context, CreateError, SessionKey},
};
use crate::{
    audit::{self, Audit},
    config::Config,
    image::{Image, Reference},
    metrics::Metrics,
    podfile::BuildPlan,
    state::{Phase, SessionRecord},
};

/// How long a driver may take to describe itself. It never blocks, so this is only reached on a machine that stands still.
const VIEW_LIMIT: Duration = Duration::from_secs(5);

/// Why a new session is refused. Shown to the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "you already have {count} of at most {limit} sessions (resources.max_per_user); close one, or ask the \
         administrator to run: podspawn stop {running}"
    )]
    PerUser { count: usize, limit: u32, running: SessionKey },
    #[error(
        "the server already runs {count} of at most {limit} sessions (resources.max_containers); try again when one has \
         ended"
    )]
    Containers { count: usize, limit: u32 },
    #[error("the server is shutting down")]
    ShuttingDown,
}

impl Refusal {
    /// The word for logs.
    fn limit(&self) -> &'static str {
        match self {
            Self::PerUser { .. } => "max_per_user",
            Self::Containers { .. } => "max_containers",
            Self::ShuttingDown => "shutdown",
        }
    }
}

/// Decides whether `key` may have a new session beside those of `existing`.
pub fn admit<'a>(
    key: &SessionKey,
    existing: impl Iterator<Item = &'a SessionKey>,
    max_per_user: u32,
    max_containers: u32,
) -> Result<(), Refusal> {
    let mut count = 0;
    let mut own = Vec::new();
    for other in existing {
        count += 1;
        if other.user == key.user {
            own.push(other);
        }
    }
    if let Some(running) = own.iter().min().filter(|_| max_per_user > 0 && own.len() >= max_per_user as usize) {
        return Err(Refusal::PerUser { count: own.len(), limit: max_per_user, running: (*running).clone() });
    }
    if max_containers > 0 && count >= max_containers as usize {
        return Err(Refusal::Containers { count, limit: max_containers });
    }
    Ok(())
}

/// All sessions of this server.
#[derive(Clone)]
pub struct Sessions(Arc<Inner>);

pub(super) struct Inner {
    pub(super) context: Context,
    /// Containers that are being made at once: beyond a few per core there is only queueing.
    creations: Semaphore,
    pub(super) builds: Builds,
    table: Mutex<Table>,
    drivers: TaskTracker,
    audit: Arc<Audit>,
}

#[derive(Default)]
struct Table {
    /// Sessions that take connections: neither stopping nor gone.
    accepting: HashMap<SessionKey, Mailbox>,
    /// Every driver's mailbox, of sessions that are being removed too.
    drivers: Vec<Mailbox>,
    /// The session that each connection was last sent to.
    connections: HashMap<ConnectionId, Mailbox>,
    config: Option<Arc<Config>>,
    closed: bool,
}

impl Sessions {
    pub fn new(context: Context, audit: Arc<Audit>) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self(Arc::new(Inner {
            context,
            creations: Semaphore::new(4 * cores),
            builds: Builds::new(),
            table: Mutex::default(),
            drivers: TaskTracker::new(),
            audit,
        }))
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }

    pub fn context(&self) -> &Context {
        &self.0.context
    }

    /// Gives `client` its session: an existing one, or a new one by `config`. The answer goes to `client.outgoing`.
    pub fn attach(&self, key: &SessionKey, client: Client, config: Arc<Config>) {
        let mut table = self.0.table();
        table.config = Some(config);
        Inner::route(&self.0, &mut table, key, client);
    }

    /// The connection is gone, whether or not it was ever attached.
    pub fn detach(&self, connection: ConnectionId) {
        if let Some(mailbox) = self.0.table().connections.remove(&connection) {
            // The session may have ended meanwhile.
            let _ = mailbox.send(Event::Detach(connection));
        }
    }

    /// A connection says where its client's agent is in its session, if it has one.
    pub fn agent(&self, connection: ConnectionId, path: Option<String>) {
        if let Some(mailbox) = self.0.table().connections.get(&connection) {
            // The session may have ended meanwhile.
            let _ = mailbox.send(Event::Agent(connection, path));
        }
    }

    /// What is said in the session of `key`, by its hooks and its services; `None` if there is no session.
    pub async fn logs(&self, key: &SessionKey) -> Option<Vec<Arc<Log>>> {
        let (reply, answer) = oneshot::channel();
        self.0.table().accepting.get(key)?.send(Event::Logs(reply)).ok()?;
        tokio::time::timeout(VIEW_LIMIT, answer).await.ok()?.ok()
    }

    /// Takes over what the database says an earlier supervisor left, with the connections that have come back.
    pub fn adopt(&self, record: SessionRecord, clients: Vec<Client>, config: Arc<Config>) {
        let key = SessionKey { user: record.user.clone(), project: record.project.clone() };
        let mailbox = mpsc::unbounded_channel();
        let mut table = self.0.table();
        for client in &clients {
            table.connections.insert(client.id, mailbox.0.clone());
        }
        if record.phase != Phase::Stopping {
            table.accepting.insert(key, mailbox.0.clone());
        }
        table.drivers.push(mailbox.0.clone());
        self.0.drivers.spawn(Driver::adopt(self.0.clone(), record, config, clients, mailbox));
    }

    /// Ends the session of `key`; false if there is none.
    pub fn stop(&self, key: &SessionKey, reason: Reason) -> bool {
        match self.0.table().accepting.get(key) {
            None => false,
            Some(mailbox) => mailbox.send(Event::Stop(reason)).is_ok(),
        }
    }

    /// Ends every session, and takes no more.
    pub fn stop_all(&self, reason: &Reason) {
        let mut table = self.0.table();
        table.closed = *reason == Reason::Shutdown;
        for mailbox in table.accepting.values() {
            // One that has just ended by itself is what is wanted.
            let _ = mailbox.send(Event::Stop(reason.clone()));
        }
    }

    /// Waits until no session is left, as long as one ends within each `patience`. Returns whether none is left.
    pub async fn all_gone(&self, patience: Duration) -> bool {
        self.0.drivers.close();
        loop {
            let left = self.0.drivers.len();
            if tokio::time::timeout(patience, self.0.drivers.wait()).await.is_ok() {
                return true;
            }
            if self.0.drivers.len() >= left {
                return false;
            }
        }
    }

    /// Gets the image of `plan` ready; `progress` hears how it goes. A build goes on without those who wait for it.
    pub async fn build(
        &self,
        plan: &BuildPlan,
        config: &Arc<Config>,
        progress: impl FnMut(&str),
    ) -> Result<Image, CreateError> {
        build::ensure(&self.0, plan, None, config, progress).await
    }

    /// Gives an image one more name.
    pub async fn tag(&self, image: Image, name: Reference) -> Result<Image, CreateError> {
        let tagged = driver::blocking(&self.0, move |context| {
            let tagged = context.store.tag(&image, &name);
            tagged.map_err(|error| CreateError::Image(image.reference, error))
        });
        tagged.await
    }

    /// Ends all builds, and waits at most `limit` until nothing is left of them. Returns whether nothing is.
    pub async fn end_builds(&self, limit: Duration) -> bool {
        self.0.builds.end(limit).await
    }

    pub fn is_empty(&self) -> bool {
        self.0.drivers.is_empty()
    }

    /// All sessions, those that are being removed included, in the order of their keys.
    pub async fn views(&self) -> Vec<View> {
        let asked: Vec<_> = {
            let mut table = self.0.table();
            table.drivers.retain(|mailbox| !mailbox.is_closed());
            let ask = |mailbox: &Mailbox| {
                let (reply, answer) = oneshot::channel();
                mailbox.send(Event::View(reply)).ok().map(|()| answer)
            };
            table.drivers.iter().filter_map(ask).collect()
        };
        let mut views = Vec::new();
        for answer in asked {
            if let Ok(Ok(view)) = tokio::time::timeout(VIEW_LIMIT, answer).await {
                views.push(view);
            }
        }
        views.sort_by(|a, b| a.key.cmp(&b.key));
        views
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        // The table is consistent after each statement, so a panic elsewhere does not make it unusable.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the connection to the session of `key`, making one if it may. Mailboxes are filled under the table's lock, so
    /// that an attach and the detach that follows it arrive in this order.
    fn route(inner: &Arc<Self>, table: &mut Table, key: &SessionKey, client: Client) {
        if let Some(mailbox) = table.accepting.get(key)
            && mailbox.send(Event::Attach(client.clone())).is_ok()
        {
            table.connections.insert(client.id, mailbox.clone());
            return;
        }
        let Some(config) = table.config.clone() else { return };
        let allowed = if table.closed {
            Err(Refusal::ShuttingDown)
        } else {
            let limits = &config.resources;
            admit(key, table.accepting.keys().filter(|other| *other != key), limits.max_per_user, limits.max_containers)
        };
        if let Err(refusal) = allowed {
            let who = audit::Who { key, connection: client.id, origin: &client.origin, session: None };
            inner.audit(&audit::Event::LimitRefused { who, limit: refusal.limit() });
            // The client's task has stopped reading only if its connection is gone.
            let _ = client.outgoing.try_send(ToClient::Refused(refusal.to_string()));
            return;
        }
        let mailbox = mpsc::unbounded_channel();
        table.accepting.insert(key.clone(), mailbox.0.clone());
        table.drivers.retain(|mailbox| !mailbox.is_closed());
        table.drivers.push(mailbox.0.clone());
        table.connections.insert(client.id, mailbox.0.clone());
        inner.drivers.spawn(Driver::create(inner.clone(), key.clone(), config, client, mailbox));
    }

    /// Sends a connection that reached a dying session to a new one, unless it is gone itself.
    pub(super) fn requeue(inner: &Arc<Self>, key: &SessionKey, client: Client) {
        let mut table = inner.table();
        if table.connections.contains_key(&client.id) {
            Self::route(inner, &mut table, key, client);
        }
    }

    /// The session takes no more connections.
    pub(super) fn retire(inner: &Arc<Self>, key: &SessionKey, mailbox: &Mailbox) {
        let mut table = inner.table();
        if table.accepting.get(key).is_some_and(|current| current.same_channel(mailbox)) {
            table.accepting.remove(key);
        }
    }

    /// Waits for a turn to make a container.
    pub(super) async fn creation_turn(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.creations.acquire().await.expect("the semaphore is never closed")
    }

    pub(super) fn metrics(&self) -> &Metrics {
        self.audit.metrics()
    }

    pub(super) fn audit(&self, event: &audit::Event<'_>) {
        self.audit.record(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> SessionKey {
        text.parse().unwrap()
    }

    #[test]
    fn limits_count_sessions_and_zero_means_none() {
        let existing = [key("ada"), key("ada@web"), key("bob")];
        let ask = |who: &str, per_user, all| admit(&key(who), existing.iter(), per_user, all);
        assert_eq!(ask("ada@db", 3, 4), Ok(()));
        assert_eq!(ask("ada@db", 0, 0), Ok(()));
        assert_eq!(ask("ada@db", 2, 4), Err(Refusal::PerUser { count: 2, limit: 2, running: key("ada") }));
        assert_eq!(ask("eve", 2, 3), Err(Refusal::Containers { count: 3, limit: 3 }));
        let text = ask("ada@db", 2, 4).unwrap_err().to_string();
        assert!(text.contains("max_per_user") && text.contains("podspawn stop ada"), "{text}");
    }
}
