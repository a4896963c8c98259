//! The root process: listens, decides who may have which session, creates and destroys sessions.
//!
//! It never parses SSH and is never in the data path. Starting is one list, in this order, and what fails in it changes
//! nothing that an earlier step did not make itself:
//!
//! directories, the lock (one supervisor for each root), [listeners], host keys, state.db, image store, cgroups, network with
//! the leases of sessions that live, the spawner, reconcile (adopt or remove what an earlier supervisor left), control
//! socket, accept.
//!
//! SIGTERM leaves sessions and connections to the next supervisor, SIGINT ends everything, SIGUSR2 makes this process the next
//! supervisor ([upgrade]). Before it leaves, no more clients are taken, and those that would be lost with it are waited for
//! ([unsettled]).

mod accept;
mod admission;
mod builds;
mod ceilings;
mod cleanup;
mod client;
mod control;
mod exec;
mod host;
mod images;
mod inspect;
mod jobs;
mod listeners;
mod login;
mod penalties;
mod people;
mod pool;
mod projects;
mod reconcile;
mod revocation;
mod room;
mod signals;
mod start;
mod startups;
mod stats;
mod trail;
mod unsettled;
mod upgrade;
mod watchdog;

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::net::TcpStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{admission::Admission, pool::Pool, unsettled::Unsettled};
pub use self::{cleanup::clean_up, start::StartError, upgrade::check};
use crate::{
    audit::Audit,
    config::Config,
    errors::chain,
    protocol::HostKey,
    session::{self, Sessions, state::ConnectionId},
    state::ConnectionRecord,
};

/// How long no session need have ended, when the server ends all of them, for it to leave the others to the next one.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(30);

/// How long connections may then take: to show a last message, and to end ([`client`]).
const LEAVE_LIMIT: Duration = Duration::from_secs(30);

/// Threads that blocking kernel work may use. Image pulls wait there too.
const BLOCKING_THREADS: usize = 256;

/// What the tasks of the supervisor share.
struct Supervisor {
    config: RwLock<Arc<Config>>,
    host_keys: Vec<HostKey>,
    sessions: Sessions,
    pool: Pool,
    admission: Admission,
    audit: Arc<Audit>,
    said: login::Said,
    stats: stats::Sampler,
    attached: trail::Attached,
    /// The tasks beside connection processes.
    clients: TaskTracker,
    unsettled: Unsettled,
    /// Tells these tasks that the supervisor is ending.
    leaving: CancellationToken,
}

/// Runs until a signal ends it, or makes another program of it.
///
/// # Errors
/// [`StartError`]: the server could not be started, and nothing of it is left.
pub fn run(config: Config) -> Result<(), StartError> {
    let mut passed = listeners::passed_on().map_err(StartError::PassedOn)?;
    let mut program = upgrade::Program::of_this_process(&mut passed).map_err(StartError::PassedOn)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(StartError::Runtime)?;
    let result = runtime.block_on(start::start(config, passed, &mut program));
    // A blocking task may still wait for a registry; it must not keep the process from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match result {
        Ok(None) => Ok(()),
        Ok(Some(sockets)) => Err(program.become_next(sockets)),
        Err(error) => Err(program.fall_back(error)),
    }
}

impl Supervisor {
    /// The configuration as the files have it now; the last good one while they are not valid.
    fn config(&self) -> Arc<Config> {
        let current = self.config.read().unwrap_or_else(PoisonError::into_inner).clone();
        match current.reload_if_changed() {
            None => current,
            Some(Ok(changed)) => {
                tracing::info!("the configuration has changed");
                let changed = Arc::new(changed);
                self.sessions.context().records.set_keep(changed.session.keep_records);
                if let Some(room) = self.sessions.context().store.room() {
                    session::configure_room(room, &changed);
                }
                *self.config.write().unwrap_or_else(PoisonError::into_inner) = changed.clone();
                changed
            }
            Some(Err(error)) => {
                tracing::error!("the changed configuration is not used: {}", chain(error));
                current
            }
        }
    }

    /// Gives a TCP connection to a process of its own, or drops it.
    fn take(supervisor: &Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let Some(startup) = supervisor.admission.admit(&supervisor.config().auth, peer) else {
            // As sshd says. A client that does not take it is not waited for.
            let _ = stream.try_write(b"Not allowed at this time\r\n");
            return;
        };
        let pending = supervisor.unsettled.login();
        let (tracker, supervisor) = (supervisor.clients.clone(), supervisor.clone());
        tracker.spawn(async move {
            match supervisor.pool.take().await {
                Ok(process) => client::serve(supervisor, process, stream, peer, (startup, pending)).await,
                Err(error) => tracing::error!(%peer, "dropped: {}", chain(error)),
            }
        });
    }

    async fn remember_connection(self: &Arc<Self>, record: ConnectionRecord) {
        self.with_state(move |state| state.insert_connection(&record)).await;
    }

    async fn forget_connection(self: &Arc<Self>, id: ConnectionId) {
        self.with_state(move |state| state.remove_connection(id)).await;
    }

    /// Changes the database on a thread that may block. A failure is logged: the connection goes on, only a later
    /// supervisor will not know it.
    async fn with_state<F>(self: &Arc<Self>, change: F)
    where
        F: FnOnce(&crate::state::State) -> Result<(), crate::state::StateError> + Send + 'static,
    {
        let supervisor = self.clone();
        let changed = tokio::task::spawn_blocking(move || change(&supervisor.sessions.context().state)).await;
        match changed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!("a connection is not recorded: {}", chain(error)),
            Err(error) => tracing::error!("a connection is not recorded: {error}"),
        }
    }
}
