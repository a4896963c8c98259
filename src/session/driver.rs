//! The one task that holds a session: it feeds the state machine and carries its actions out.

mod limits;
mod making;
mod ports;
mod services;
mod welcome;

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, oneshot},
};
use tokio_util::sync::{CancellationToken, DropGuard};

pub(super) use self::making::blocking;
use super::{
    agents::Agents,
    client::{Client, ToClient},
    environment::{Life, SetUp},
    idle::{Cpu, Idle},
    log::Log,
    ports::{ExposedPort, Ports},
    registry::Inner,
    services::Services,
    set_up::SetUpError,
    state::{Action, ConnectionId, Creating, Grace, Next, Policy, Reason, Running, State, Stopping},
    steps::{self, CreateError, Live, SessionKey},
};
use crate::{
    audit,
    config::Config,
    errors::chain,
    protocol,
    state::{Phase, SessionRecord},
    sys::async_fd,
    transcript::Transcript,
};

/// How often a removal that failed is tried again, at first; doubles up to [`RETRY_MAX`].
pub(super) const RETRY_MIN: Duration = Duration::from_millis(500);
pub(super) const RETRY_MAX: Duration = Duration::from_secs(60);

/// What `list` shows of a session.
#[derive(Debug, Clone)]
pub struct View {
    pub key: SessionKey,
    /// `None` until the session has a record.
    pub record: Option<SessionRecord>,
    pub phase: Phase,
    pub connections: usize,
    pub ends_at: Option<SystemTime>,
    pub grace_until: Option<SystemTime>,
    /// What of it is to be had on the host's loopback address.
    pub ports: Vec<ExposedPort>,
}

/// What reaches a driver.
pub(super) enum Event {
    Attach(Client),
    Detach(ConnectionId),
    Stop(Reason),
    View(oneshot::Sender<View>),
    /// The image's store has put a new line into [`Driver::progress`].
    Progress,
    Created(Result<Box<Live>, Box<CreateError>>),
    /// All that is to be done once has been done, or must not be gone on with.
    SetUp(Result<(), SetUpError>),
    /// What is to be done for the connection has been done.
    Welcomed(ConnectionId),
    /// Where the connection's agent is inside, if it has one.
    Agent(ConnectionId, Option<String>),
    /// A service has ended and is not started again: what connected users are told.
    ServiceEnded(String),
    /// Somebody wants to read what is said in the session.
    Logs(oneshot::Sender<Vec<Arc<Log>>>),
    /// What the session's processes have used, if that is counted.
    Looked(Option<Cpu>),
    Destroyed(Result<(), steps::DestroyError>),
}

/// A driver's mailbox. Unbounded in type; in fact each connection sends it a few events, each command one, and of creation,
/// set-up, removal and progress there is at most one of each.
pub(super) type Mailbox = mpsc::UnboundedSender<Event>;

pub(super) struct Driver {
    inner: Arc<Inner>,
    key: SessionKey,
    policy: Policy,
    mailbox: Mailbox,
    events: mpsc::UnboundedReceiver<Event>,
    clients: HashMap<ConnectionId, Client>,
    record: Option<SessionRecord>,
    container: Option<crate::runtime::Container>,
    init: Option<AsyncFd<OwnedFd>>,
    services: Option<Services>,
    /// Why it is removed, in a word, when it is.
    ending: Option<&'static str>,
    ports: Option<Ports>,
    /// When its removal was begun.
    end_began: Option<Instant>,
    retry: Duration,
    /// The latest line about the image, until it has been passed on.
    progress: Arc<Mutex<Option<String>>>,
    /// Given up when the session is stopped before there is anything of it.
    creation: CancellationToken,
    /// What is to be done once, until it is begun.
    set_up: SetUp,
    /// What is said meanwhile.
    transcript: Option<Transcript>,
    agents: Agents,
    /// What is being done for connections; ended by dropping it.
    welcomes: HashMap<ConnectionId, DropGuard>,
    /// There is one as soon as there is a record.
    log: Option<Arc<Log>>,
    /// Clients have been told that the session's lifetime is nearly over.
    warned: bool,
    /// There while it matters whether the session is used.
    idle: Option<Idle>,
    /// [`Event::Looked`] is on its way.
    looking: bool,
}

impl Driver {
    fn new(
        inner: Arc<Inner>,
        key: SessionKey,
        mailbox: Mailbox,
        events: mpsc::UnboundedReceiver<Event>,
        policy: Policy,
    ) -> Self {
        let clients = HashMap::new();
        Self {
            inner,
            key,
            policy,
            mailbox,
            events,
            clients,
            record: None,
            container: None,
            init: None,
            services: None,
            ending: None,
            ports: None,
            end_began: None,
            retry: RETRY_MIN,
            progress: Arc::default(),
            creation: CancellationToken::new(),
            set_up: SetUp::default(),
            transcript: None,
            agents: Agents::new(),
            welcomes: HashMap::new(),
            log: None,
            warned: false,
            idle: None,
            looking: false,
        }
    }

    /// Makes a session for its first connection and stays with it until it is gone.
    pub(super) async fn create(
        inner: Arc<Inner>,
        key: SessionKey,
        config: Arc<Config>,
        first: Client,
        (mailbox, events): (Mailbox, mpsc::UnboundedReceiver<Event>),
    ) {
        // Nothing ends a session by its policy before it is there, and by then the right one is known.
        let policy = policy(&Life::of(config.session.mode, &config), SystemTime::now());
        let mut driver = Self::new(inner, key, mailbox, events, policy);
        let state = State::Creating(Creating::new(first.id));
        driver.clients.insert(first.id, first);
        driver.start_creation(config);
        driver.run(state).await;
    }

    /// Takes over a session that an earlier supervisor left in the database.
    pub(super) async fn adopt(
        inner: Arc<Inner>,
        record: SessionRecord,
        config: Arc<Config>,
        clients: Vec<Client>,
        (mailbox, events): (Mailbox, mpsc::UnboundedReceiver<Event>),
    ) {
        let key = SessionKey { user: record.user.clone(), project: record.project.clone() };
        let policy = policy(&Life::of(record.mode, &config), record.created_at);
        let now = SystemTime::now();
        let container = inner.context.adopt(&record);
        let connected = clients.iter().map(|client| client.id).collect();
        let waiting = clients.iter().filter(|client| client.waiting).map(|client| client.id).collect();
        let understood = speaks_our_protocol(&record);
        let (state, actions) = match (&container, record.phase, record.grace_deadline) {
            (Some(_), ..) if !understood => Stopping::adopted(connected, Reason::Incompatible),
            // Whoever is connected counts, also if the database was full when its attach should have been recorded.
            (Some(_), Phase::Grace, Some(deadline)) if clients.is_empty() => {
                (State::Grace(Grace::adopted(deadline)), vec![])
            }
            (Some(_), Phase::Running | Phase::Grace, _) => Running::adopted(connected, &waiting, now, &policy),
            // One whose set-up was interrupted is not to be worked with.
            (Some(_), Phase::Creating | Phase::Stopping, _) | (None, ..) => {
                Stopping::adopted(connected, Reason::Reconcile)
            }
        };
        let adopted = container.as_ref().filter(|_| understood);
        let services = adopted.and_then(|_| services::adopt(&inner, &record, &mailbox));
        let ports = match adopted {
            Some(_) => ports::adopt(&inner, &record).await,
            None => None,
        };
        let mut driver = Self::new(inner, key, mailbox, events, policy);
        driver.services = services;
        driver.ports = ports;
        driver.clients = clients.into_iter().map(|client| (client.id, client)).collect();
        driver.open(record);
        driver.watch(container);
        driver.carry_out(actions).await;
        driver.run(state).await;
    }

    async fn run(mut self, mut state: State) {
        loop {
            let deadline = match &state {
                State::Creating(_) | State::Stopping(_) => None,
                State::SettingUp(setting_up) => setting_up.deadline(&self.policy),
                State::Running(running) => running.deadline(&self.policy),
                State::Grace(grace) => Some(grace.deadline(&self.policy)),
            };
            let (warning, look) = (self.warning_due(), self.look_due(&state));
            let next = tokio::select! {
                event = self.events.recv() => match event {
                    Some(Event::Created(Err(error))) => return self.creation_failed(state, *error),
                    None | Some(Event::Destroyed(Ok(()))) => return,
                    Some(event) => self.handle(state, event),
                },
                () = gone(self.init.as_ref()) => {
                    self.init = None;
                    stop(state, Reason::ContainerDied)
                }
                () = until(warning) => {
                    self.warn();
                    (state, vec![])
                }
                () = moment(look) => {
                    self.look();
                    (state, vec![])
                }
                () = until(deadline) => match state {
                    State::SettingUp(setting_up) => setting_up.tick(SystemTime::now(), &self.policy),
                    State::Running(running) => running.tick(SystemTime::now(), &self.policy),
                    State::Grace(grace) => grace.tick(SystemTime::now(), &self.policy),
                    State::Creating(_) | State::Stopping(_) => (state, vec![]),
                },
            };
            let (following, actions) = next;
            state = following;
            self.carry_out(actions).await;
        }
    }

    fn handle(&mut self, state: State, event: Event) -> Next {
        let now = SystemTime::now();
        match event {
            Event::Attach(client) => {
                let id = client.id;
                self.clients.insert(id, client);
                match state {
                    State::Creating(creating) => creating.attach(id),
                    State::SettingUp(setting_up) => setting_up.attach(id),
                    State::Running(running) => running.attach(id),
                    State::Grace(grace) => grace.attach(id),
                    State::Stopping(stopping) => stopping.attach(id),
                }
            }
            Event::Detach(id) => self.detached(state, id),
            Event::Stop(reason) => {
                self.creation.cancel();
                stop(state, reason)
            }
            Event::View(reply) => {
                // The asker may have given up.
                let _ = reply.send(self.view(&state));
                (state, vec![])
            }
            Event::Progress => {
                let line = self.progress.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(line) = line {
                    self.clients.values().for_each(|client| client.progress(&line));
                }
                (state, vec![])
            }
            Event::Created(result) => match (state, result) {
                (State::Creating(creating), Ok(live)) => {
                    let (key, session, image) = (&self.key, &live.record.id, &live.record.image_reference);
                    self.inner.audit(&audit::Event::ContainerCreate { key, session, image });
                    ports::tell(&self.inner, key, session, live.ports.as_ref());
                    self.policy = policy(&live.life, live.record.created_at);
                    self.set_up = live.set_up;
                    self.open(live.record);
                    self.watch(Some(live.container));
                    (self.services, self.ports) = (live.services, live.ports);
                    creating.created(now, &self.policy)
                }
                (state, _) => (state, vec![]),
            },
            Event::SetUp(result) => {
                self.transcript = None;
                match (state, result) {
                    (State::SettingUp(setting_up), Ok(())) => setting_up.done(),
                    (State::SettingUp(setting_up), Err(error)) => {
                        let message = chain(error);
                        tracing::info!(session = %self.key, "{message}");
                        setting_up.failed(&message)
                    }
                    (state, _) => (state, vec![]),
                }
            }
            Event::Welcomed(id) => {
                self.welcomes.remove(&id);
                if let Some(client) = self.clients.get(&id) {
                    client.tell(ToClient::Ready);
                }
                (state, vec![])
            }
            Event::Agent(id, path) => {
                self.agents.said(id, path);
                (state, vec![])
            }
            Event::ServiceEnded(told) => {
                match state {
                    // Why a session cannot be made is told when that is certain, and one that ends needs no services.
                    State::Creating(_) | State::Stopping(_) => {}
                    State::SettingUp(_) | State::Running(_) | State::Grace(_) => self.tell_of_service(&told),
                }
                (state, vec![])
            }
            Event::Logs(reply) => {
                let of_services = self.services.iter().flat_map(Services::logs);
                // As above.
                let _ = reply.send(self.log.iter().cloned().chain(of_services).collect());
                (state, vec![])
            }
            Event::Looked(cpu) => self.looked(state, cpu),
            Event::Destroyed(result) => {
                if let Err(error) = result {
                    tracing::error!("{error}; trying again in {:?}", self.retry);
                    self.start_destruction(Some(self.retry));
                    self.retry = (self.retry * 2).min(RETRY_MAX);
                }
                (state, vec![])
            }
        }
    }

    fn detached(&mut self, state: State, id: ConnectionId) -> Next {
        let now = SystemTime::now();
        if let Some(gone) = self.clients.remove(&id)
            && let Some(idle) = &mut self.idle
        {
            idle.used_at(gone.activity.last());
        }
        self.welcomes.remove(&id);
        self.agents.forget(id);
        match state {
            State::Creating(creating) => creating.detach(id),
            State::SettingUp(setting_up) => setting_up.detach(id, now, &self.policy),
            State::Running(running) => running.detach(id, now, &self.policy),
            State::Grace(_) | State::Stopping(_) => (state, vec![]),
        }
    }

    async fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Admit(id) => self.admit(id),
                Action::SetUp => self.start_set_up(),
                Action::Welcome(id) => self.welcome(id),
                Action::Refuse(id, message) => {
                    if let Some(client) = self.clients.remove(&id) {
                        client.tell(ToClient::Refused(message));
                    }
                }
                Action::Terminate(id, message) => {
                    if let Some(client) = self.clients.remove(&id) {
                        client.tell(ToClient::Terminate(message));
                    }
                }
                Action::Requeue(id) => {
                    if let Some(client) = self.clients.remove(&id) {
                        Inner::requeue(&self.inner, &self.key, client);
                    }
                }
                Action::RecordRunning => self.record_phase(Phase::Running, None).await,
                Action::RecordGrace(deadline) => self.record_phase(Phase::Grace, Some(deadline)).await,
                Action::Destroy(reason) => {
                    let (key, reason) = (&self.key, reason.as_str());
                    let session = self.record.as_ref().map(|record| &record.id);
                    // Of one that a server before this one has begun to remove it is in the log.
                    if self.record.as_ref().is_none_or(|record| record.phase != Phase::Stopping) {
                        self.inner.audit(&audit::Event::ContainerDestroy { key, session, reason });
                        // Before the next session of the user gets its record: there is one that is not being removed.
                        self.record_phase(Phase::Stopping, None).await;
                    }
                    Inner::retire(&self.inner, &self.key, &self.mailbox);
                    self.ending = Some(reason);
                    self.start_destruction(None);
                }
            }
        }
    }

    /// Connects to init for the connection and hands the socket over.
    fn admit(&mut self, id: ConnectionId) {
        let (Some(client), Some(record)) = (self.clients.get(&id), &self.record) else { return };
        match self.inner.context.connect(record) {
            Ok(init) => {
                client.tell(ToClient::Attached { session: record.id.clone(), init });
                self.agents.expect(id);
                if self.warned {
                    client.tell(self.last_warning());
                }
                if let Some(transcript) = &self.transcript {
                    client.tell(ToClient::Output(transcript.reader()));
                }
            }
            Err(error) => {
                tracing::warn!(session = %record.id, "init does not answer: {error}");
                client.tell(ToClient::Refused(format!("the session's container does not answer: {error}")));
            }
        }
    }

    /// Takes over what is written down about the session.
    fn open(&mut self, record: SessionRecord) {
        self.log = Some(Arc::new(Log::new(&self.inner.context.directory(&record.id))));
        self.record = Some(record);
    }

    /// Waits for the database, which another process may have locked, on a thread that may block.
    async fn record_phase(&mut self, phase: Phase, grace_deadline: Option<SystemTime>) {
        let Some(record) = &mut self.record else { return };
        record.phase = phase;
        record.grace_deadline = grace_deadline;
        let id = record.id.clone();
        let session = id.clone();
        let written = blocking(&self.inner, move |context| match grace_deadline {
            None => context.state.set_phase(&id, phase),
            Some(deadline) => context.state.set_grace(&id, deadline),
        });
        if let Err(error) = written.await {
            tracing::error!(session = %session, "the session's state is not recorded: {}", chain(error));
        }
    }

    fn watch(&mut self, container: Option<crate::runtime::Container>) {
        self.init = container.as_ref().and_then(|container| {
            let watched =
                container.pidfd().try_clone_to_owned().and_then(|fd| async_fd::register(fd, Interest::READABLE));
            watched.map_err(|error| tracing::error!("init is not watched: {error}")).ok()
        });
        self.container = container;
    }

    fn view(&self, state: &State) -> View {
        let (phase, connections, grace_until) = match state {
            State::Creating(_) | State::SettingUp(_) => (Phase::Creating, self.clients.len(), None),
            State::Running(running) => (Phase::Running, running.connections().len(), None),
            State::Grace(grace) => (Phase::Grace, 0, Some(grace.deadline(&self.policy))),
            State::Stopping(_) => (Phase::Stopping, 0, None),
        };
        let record = self.record.clone();
        let ports = self.ports.as_ref().map(|ports| ports.exposed().to_vec()).unwrap_or_default();
        View { key: self.key.clone(), record, phase, connections, ends_at: self.policy.ends_at, grace_until, ports }
    }
}

/// Whether this server can talk to all inits of the session.
fn speaks_our_protocol(record: &SessionRecord) -> bool {
    let versions = record.services.iter().map(|service| service.init_version);
    versions.chain([record.init_version]).all(|version| (protocol::OLDEST..=protocol::VERSION).contains(&version))
}

fn policy(life: &Life, created_at: SystemTime) -> Policy {
    let ends_at = life.max_lifetime.map(|lifetime| created_at + lifetime);
    Policy { alone: life.alone, ends_at, idle: life.idle }
}

fn stop(state: State, reason: Reason) -> Next {
    match state {
        State::Creating(creating) => creating.stop(reason),
        State::SettingUp(setting_up) => setting_up.stop(reason),
        State::Running(running) => running.stop(reason),
        State::Grace(grace) => grace.stop(reason),
        State::Stopping(_) => (state, vec![]),
    }
}

/// Ends when the process behind the pidfd has; never without one.
async fn gone(init: Option<&AsyncFd<OwnedFd>>) {
    match init {
        None => std::future::pending().await,
        Some(fd) => {
            if let Err(error) = fd.readable().await {
                tracing::error!("init is no longer watched: {error}");
                std::future::pending::<()>().await;
            }
        }
    }
}

async fn moment(moment: Option<tokio::time::Instant>) {
    match moment {
        None => std::future::pending().await,
        Some(moment) => tokio::time::sleep_until(moment).await,
    }
}

/// Ends at `deadline`, which is wall-clock time: it has to mean the same to the next supervisor.
async fn until(deadline: Option<SystemTime>) {
    match deadline {
        None => std::future::pending().await,
        Some(deadline) => {
            let left = deadline.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::time::sleep(left).await;
        }
    }
}
