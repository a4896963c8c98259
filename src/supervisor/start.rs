//! Starting and ending the supervisor.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::prctl,
};
use tokio::{
    net::{TcpListener, UnixListener},
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    LEAVE_LIMIT, SHUTDOWN_PATIENCE, Supervisor, accept,
    admission::Admission,
    ceilings, control,
    listeners::{Listeners, Named},
    pool::Pool,
    reconcile, room,
    signals::{End, Signals},
    unsettled::Unsettled,
    upgrade::{self, Program},
    watchdog,
};
use crate::{
    api,
    audit::{self, Audit},
    cgroup::{CgroupError, Cgroups},
    config::{
        Config, Paths,
        host_keys::{self, HostKeyError},
        service_user,
    },
    errors::chain,
    faults::{self, Injected, Point},
    image::{ImageError, Removed, Store},
    mirror::{MirrorError, Mirrors},
    network::{
        self, Network, NetworkError, Subnet,
        dns::{Forwarder, Upstreams},
    },
    project::Podfiles,
    protocol::HostKey,
    runtime::{RuntimeError, Spawner},
    session::{
        self, Context, RLIMITS, Sessions,
        evidence::{Journal, Records},
        state::Reason,
    },
    state::{State, StateError},
    sys::memory,
};

/// How long builds may take to end when the server does.
const BUILDS_LIMIT: Duration = Duration::from_secs(15);

/// How often it is looked whether mirrors are too old.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);

/// How long to wait before the network's rules are looked at again after that has failed.
const RULES_BACK_OFF: Duration = Duration::from_secs(1);

/// Why the server cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot start the async runtime")]
    Runtime(#[source] io::Error),
    #[error("podspawn serve must run as root")]
    NotRoot,
    #[error("cannot make the directory {}", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    #[error("another podspawn{} already runs with {}", .1.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), .0.display())]
    Locked(PathBuf, Option<u32>),
    #[error("cannot lock {}", .0.display())]
    Lock(PathBuf, #[source] io::Error),
    #[error("cannot take over what was passed on by who started this (LISTEN_FDS)")]
    PassedOn(#[source] io::Error),
    #[error("cannot listen on descriptor {0} ({1}), which was passed on by who started this")]
    Passed(i32, String, #[source] io::Error),
    #[error("cannot listen on {0}")]
    Listen(SocketAddr, #[source] io::Error),
    #[error("cannot wait for children of the previous program")]
    Children(#[source] io::Error),
    #[error(transparent)]
    Injected(#[from] Injected),
    #[error("cannot execute {}", .0.display())]
    Upgrade(PathBuf, #[source] io::Error),
    #[error("cannot prepare the host keys")]
    HostKeys(#[from] HostKeyError),
    #[error("cannot open the state database")]
    State(#[from] StateError),
    #[error("cannot open the image store")]
    Images(#[from] ImageError),
    #[error("cannot use mirrors of repositories")]
    Mirrors(#[from] MirrorError),
    #[error("cannot limit resources with cgroups")]
    Cgroups(#[from] CgroupError),
    #[error("cannot set up the network")]
    Network(#[from] NetworkError),
    #[error("cannot start the spawner")]
    Spawner(#[from] RuntimeError),
    #[error("cannot open the audit log")]
    Audit(#[source] io::Error),
    #[error("cannot serve the control socket {}", .0.display())]
    Control(PathBuf, #[source] io::Error),
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("cannot handle signals")]
    Signals(#[source] io::Error),
}

/// Returns when a signal has ended the server: with the sockets, if this process is to be the next one.
pub(super) async fn start(
    config: Config,
    passed: Vec<Named>,
    program: &mut Program,
) -> Result<Option<Vec<Named>>, StartError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(StartError::NotRoot);
    }
    upgrade::reap_inherited_children().map_err(StartError::Children)?;
    let paths = config.paths.clone();
    prepare(&paths)?;
    let _lock = lock(&paths)?;
    let mut listeners = Listeners::open(&config, passed)?;
    let host_keys = host_keys::load_or_create(&paths.host_key_dir)?;
    keep_secret(&host_keys);
    let audit = Arc::new(Audit::open(config.log.audit_log.as_deref()).map_err(StartError::Audit)?);
    ceilings::raise(&RLIMITS);
    let context = open_leaves(&config, &audit)?;
    let forwarder = Forwarder::bind(context.network.gateway(), context.network.pool())?;
    let watch = context.network.watch()?;
    let upstreams = Upstreams::new(&config.network.dns);
    let supervisor = Arc::new(Supervisor {
        config: RwLock::new(Arc::new(config)),
        host_keys,
        sessions: Sessions::new(context, audit.clone()),
        pool: open_pool(&paths),
        admission: Admission::default(),
        audit,
        said: super::login::Said::default(),
        stats: super::stats::Sampler::default(),
        attached: super::trail::Attached::default(),
        clients: TaskTracker::new(),
        unsettled: Unsettled::default(),
        leaving: CancellationToken::new(),
    });
    reconcile::reconcile(&supervisor).await?;
    back_up(&supervisor);

    let mut signals = Signals::open().map_err(StartError::Signals)?;
    let (mut doors, mut tasks) = (JoinSet::new(), JoinSet::new());
    let control = api::server::listen(&paths.control_socket)
        .map_err(|error| StartError::Control(paths.control_socket.clone(), error))?;
    serve_api(&mut tasks, &supervisor, control, listeners.metrics.take());
    tasks.spawn(async move {
        let never = forwarder.serve(upstreams).await;
        match never {}
    });
    tasks.spawn(keep_rules(supervisor.clone(), watch));
    tasks.spawn(prune_records(supervisor.clone()));
    tasks.spawn(prune_mirrors(supervisor.clone()));
    tasks.spawn(room::keep(supervisor.clone()));
    tasks.spawn({
        let supervisor = supervisor.clone();
        async move { supervisor.pool.refill().await }
    });
    tasks.spawn({
        let supervisor = supervisor.clone();
        async move { supervisor.admission.keep_logging().await }
    });
    tasks.spawn({
        let supervisor = supervisor.clone();
        async move { supervisor.sessions.undo_remains().await }
    });
    tasks.spawn(watchdog::keep_alive());
    faults::at(Point::Start)?;
    // From here on nothing fails.
    program.forget_previous();
    for (address, listener) in listeners.ssh.drain(..) {
        let supervisor = supervisor.clone();
        doors.spawn(accept::accept_loop(listener, move |stream, peer| {
            Supervisor::take(&supervisor, stream, peer);
        }));
        tracing::info!("listening on {address}");
    }
    watchdog::ready();

    let mut end = signals.end(&supervisor, program).await;
    watchdog::leaving(end);
    // From here on clients wait in the sockets.
    doors.shutdown().await;
    if end != End::Everything {
        tokio::select! {
            () = supervisor.unsettled.settle() => {}
            // Whoever says it twice does not want to wait.
            again = signals.end(&supervisor, program) => end = again,
        }
    }
    tasks.shutdown().await;
    end_builds(&supervisor).await;
    leave(&supervisor, &paths, end).await;
    Ok((end == End::Upgrade).then(|| listeners.into_kept()))
}

/// Answers administrators, and Prometheus.
fn serve_api(
    tasks: &mut JoinSet<()>,
    supervisor: &Arc<Supervisor>,
    control: UnixListener,
    metrics: Option<TcpListener>,
) {
    let backend = control::Control(supervisor.clone());
    if let Some(listener) = metrics {
        let backend = backend.clone();
        tasks.spawn(async move {
            if let Err(error) = api::metrics::serve(listener, backend).await {
                tracing::error!("metrics.listen: {error}");
            }
        });
    }
    tasks.spawn(async move {
        if let Err(error) = api::server::serve(control, backend).await {
            tracing::error!("the control socket: {error}");
        }
    });
}

/// Ends what belongs to this process, and perhaps everything else.
async fn leave(supervisor: &Arc<Supervisor>, paths: &Paths, end: End) {
    if end == End::Everything {
        tracing::info!("ending every session");
        supervisor.sessions.stop_all(&Reason::Shutdown);
        if !supervisor.sessions.all_gone(SHUTDOWN_PATIENCE).await {
            tracing::error!("some sessions could not be removed; the next start will try again");
        }
    }
    supervisor.leaving.cancel();
    supervisor.clients.close();
    if tokio::time::timeout(LEAVE_LIMIT, supervisor.clients.wait()).await.is_err() {
        tracing::error!("some connections do not end; the next start will end them");
    }
    supervisor.pool.drain().await;
    if supervisor.sessions.is_empty() {
        close(supervisor, paths);
    } else {
        tracing::info!("leaving sessions and connections to the next start");
    }
}

/// Copies the state database, which is consistent now, for a start that finds it damaged.
fn back_up(supervisor: &Arc<Supervisor>) {
    let supervisor = supervisor.clone();
    tokio::task::spawn_blocking(move || {
        if let Err(error) = supervisor.sessions.context().state.back_up() {
            tracing::warn!("{}", chain(error));
        }
    });
}

/// Keeps the host keys out of swap and of core dumps, as far as the server may.
fn keep_secret(host_keys: &[HostKey]) {
    let locked = host_keys.iter().try_for_each(|key| memory::keep_secret(&key.0));
    if let Err(error) = locked.and_then(|()| prctl::set_dumpable(false).map_err(io::Error::from)) {
        tracing::warn!("host keys may come into swap or core dumps: {error}");
    }
}

/// Builds belong to this supervisor alone.
async fn end_builds(supervisor: &Supervisor) {
    if !supervisor.sessions.end_builds(BUILDS_LIMIT).await {
        tracing::error!("some builds do not end; the next start will remove what is left of them");
    }
}

/// Removes records of sessions that are too old, for ever.
async fn prune_records(supervisor: Arc<Supervisor>) {
    let mut minutes = tokio::time::interval(Duration::from_secs(60));
    loop {
        minutes.tick().await;
        // The configuration says how long they are kept.
        supervisor.config();
        let supervisor = supervisor.clone();
        let pruned = tokio::task::spawn_blocking(move || supervisor.sessions.context().records.prune()).await;
        if let Ok(Err(error)) = pruned {
            tracing::error!("cannot remove old records of sessions: {error}");
        }
    }
}

/// Makes the network's rules anew whenever other software has removed them.
async fn keep_rules(supervisor: Arc<Supervisor>, watch: network::Watch) {
    loop {
        if let Err(error) = watch.removal().await {
            tracing::error!("changes of nftables are not heard: {error}");
            tokio::time::sleep(RULES_BACK_OFF).await;
        }
        let supervisor = supervisor.clone();
        let checked = tokio::task::spawn_blocking(move || supervisor.sessions.context().network.check()).await;
        if let Ok(Err(error)) = checked {
            tracing::error!("sessions may be without network rules: {}", chain(error));
            tokio::time::sleep(RULES_BACK_OFF).await;
        }
    }
}

/// Removes mirrors that have become too old, and all that have been once there are to be none.
async fn prune_mirrors(supervisor: Arc<Supervisor>) {
    loop {
        let supervisor = supervisor.clone();
        let pruned = tokio::task::spawn_blocking(move || {
            let limits = session::limits_of_mirrors(&supervisor.config());
            supervisor.sessions.context().mirrors.prune(limits)
        });
        if let Ok(Err(error)) = pruned.await {
            tracing::error!("{}", chain(error));
        }
        tokio::time::sleep(PRUNE_EVERY).await;
    }
}

/// Opens what owns kernel objects and files. Sessions that an earlier supervisor left keep their network.
pub(super) fn open_leaves(config: &Config, audit: &Arc<Audit>) -> Result<Context, StartError> {
    let paths = &config.paths;
    let (state, damage) = State::open_whole(&paths.db)?;
    if let Some(damage) = damage {
        tracing::error!("{damage}");
    }
    let store = Store::open(&paths.state_dir.join("images"), (&config.images).into())?;
    let audit = audit.clone();
    let told = move |removed: &Removed| {
        tracing::info!("removed for images.keep_free: {removed}");
        audit.record(&audit::Event::ImagesRemoved { removed });
    };
    let store = store.with_room(session::room(config, told));
    let cgroups = Cgroups::open(&config.instance)?;
    let settings = network::Settings {
        tag: config.instance.clone(),
        pool: config.network.pool.and_then(|(address, prefix)| Subnet::new(address, prefix)),
        former_pool: state.pool()?.and_then(|pool| pool.parse().ok()),
        egress: session::egress(&config.network.egress),
    };
    let live: Vec<_> = state.sessions()?.iter().flat_map(session::leases).collect();
    let network = Network::open(&settings, &live)?;
    state.set_pool(&network.pool().to_string())?;
    let spawner = Spawner::start(&paths.run_dir.join("spawner"), &config.instance)?;
    let boot_id = Path::new("/proc/sys/kernel/random/boot_id");
    let boot_id = fs::read_to_string(boot_id).map_err(|error| StartError::Read(boot_id.to_owned(), error))?;
    Ok(Context {
        state,
        store,
        cgroups,
        network,
        spawner,
        podfiles: Podfiles::default(),
        mirrors: Mirrors::open(&paths.state_dir.join("mirrors"))?,
        updates: session::Updates::default(),
        remains: session::Remains::default(),
        state_dir: paths.state_dir.join("sessions"),
        run_dir: paths.run_dir.join("sessions"),
        volumes_dir: paths.state_dir.join("volumes"),
        records: Records::new(&paths.state_dir.join("records"), config.session.keep_records),
        journal: Journal::new(&paths.state_dir.join("sessions")),
        recording: Mutex::default(),
        tag: config.instance.clone(),
        boot_id: boot_id.trim().to_owned(),
    })
}

/// Removes what belongs to the instance as a whole, when no session needs it.
fn close(supervisor: &Supervisor, paths: &Paths) {
    close_leaves(supervisor.sessions.context());
    if let Err(error) = fs::remove_file(&paths.control_socket) {
        tracing::error!("cannot remove {}: {error}", paths.control_socket.display());
    }
}

/// The pool of connection processes, which starts none yet.
pub(super) fn open_pool(paths: &Paths) -> Pool {
    let (spool, empty) = (paths.state_dir.join("spool"), paths.run_dir.join("empty"));
    Pool::new(connections_dir(paths), spool, empty, service_user::uid())
}

/// Removes what the leaves have in the kernel for the instance as a whole.
pub(super) fn close_leaves(context: &Context) {
    if let Err(error) = context.network.close() {
        tracing::error!("{}", chain(error));
    }
    if let Err(error) = context.cgroups.close() {
        tracing::error!("{}", chain(error));
    }
}

pub(super) fn connections_dir(paths: &Paths) -> PathBuf {
    paths.run_dir.join("connections")
}

/// Makes the directories of an instance.
pub(super) fn prepare(paths: &Paths) -> Result<(), StartError> {
    directories(paths).iter().try_for_each(|directory| make_directory(directory))
}

fn directories(paths: &Paths) -> Vec<PathBuf> {
    let mut all =
        vec![paths.key_dir.clone(), paths.host_key_dir.clone(), paths.state_dir.clone(), paths.run_dir.clone()];
    all.extend(["sessions", "records", "images", "spool"].map(|name| paths.state_dir.join(name)));
    all.extend(["sessions", "spawner", "empty"].map(|name| paths.run_dir.join(name)));
    all.push(connections_dir(paths));
    all
}

/// Makes a directory that only root can enter, and its parents; one that exists stays as it is.
fn make_directory(path: &Path) -> Result<(), StartError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|error| StartError::Directory(parent.to_owned(), error))?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(|error| StartError::Directory(path.to_owned(), error)),
    }
}

/// Locks this root for one supervisor. The file stays when the server ends: removing it would let two others lock two files.
pub(super) fn lock(paths: &Paths) -> Result<Flock<File>, StartError> {
    let path = paths.run_dir.join("podspawn.lock");
    let error = |error| StartError::Lock(path.clone(), error);
    let mut file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(error)?;
    let mut holder = String::new();
    file.read_to_string(&mut holder).map_err(error)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            lock.set_len(0).map_err(error)?;
            io::Seek::rewind(&mut *lock).map_err(error)?;
            writeln!(lock, "{}", std::process::id()).map_err(error)?;
            Ok(lock)
        }
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
            Err(StartError::Locked(paths.root.clone(), holder.trim().parse().ok()))
        }
        Err((_, errno)) => Err(error(errno.into())),
    }
}
