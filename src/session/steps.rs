//! The steps that make a session, in order, and the same list backwards that removes it.
//!
//! 1. **record**: the row in the database, before anything else exists, so that a crash at any later point leaves
//!    something to find it by;
//! 2. **directories**: upperdir, workdir and the listening socket of init;
//! 3. **cgroup** with its limits;
//! 4. **network**: namespace, veth pair, rules;
//! 5. **container**: namespaces, mounts, init.
//!
//! Removing is idempotent and needs nothing but the record, so that undoing a failed creation, ending a session and
//! cleaning up after a crash are the same code. The record goes last.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use super::{
    build::BuildFailure,
    environment::{Environment, EnvironmentError, Life},
    leaks::session_in,
    variables::Variables,
};
use crate::{
    cgroup::{self, Cgroups},
    config::{self, Config, Mode},
    errors::chain,
    image::{self, Store},
    names::{InstanceTag, NameError, ProjectName, SessionId, UserName},
    network::{self, Egress, Lease, Network, Subnet},
    project::Podfiles,
    protocol::{self, ContainerSpec, Rlimits, ToInit, wire},
    runtime::{self, Container, RuntimeError, Spawner, disk::DiskUse, rootfs::RootfsError},
    state::{Kind, NewSession, Phase, SessionRecord, Slots, State, StateError},
    sys::seqpacket,
};

/// Limits of every process of a session. No core files: where they go (core_pattern) is the host's to say.
pub const RLIMITS: Rlimits = Rlimits { nofile_soft: 1024, nofile_hard: 65_536, core: 0, memlock: 8 << 20 };

/// Connections to init that may wait to be accepted.
const INIT_BACKLOG: i32 = 64;

/// Until when a killed container must be gone. The kernel needs milliseconds; a stuck device may take longer.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Who a session belongs to. There is at most one that is not being removed for each key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionKey {
    pub user: UserName,
    pub project: Option<ProjectName>,
}

impl std::fmt::Display for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.project {
            None => write!(f, "{}", self.user),
            Some(project) => write!(f, "{}@{project}", self.user),
        }
    }
}

impl std::str::FromStr for SessionKey {
    type Err = NameError;

    /// Parses `user` or `user@project`; `+` does for `@`, as in an SSH login.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (user, project) = text.split_once(['@', '+']).map_or((text, None), |(user, project)| (user, Some(project)));
        Ok(Self { user: user.parse()?, project: project.map(str::parse).transpose()? })
    }
}

/// The leaves that own the kernel objects.
pub struct Context {
    pub state: State,
    pub store: Store,
    pub cgroups: Cgroups,
    pub network: Network,
    pub spawner: Spawner,
    pub podfiles: Podfiles,
    /// `STATE/sessions` and `RUN/sessions`: one directory for each session in either.
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    pub tag: InstanceTag,
    /// The kernel's id of this boot; records of another boot describe objects that are gone.
    pub boot_id: String,
}

/// A session whose container runs.
#[derive(Debug)]
pub struct Live {
    pub record: SessionRecord,
    pub container: Container,
    pub life: Life,
}

/// Why a session could not be made. The text is shown to the user.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    #[error("image name {0:?} in the configuration is not valid")]
    ImageName(String, #[source] image::ReferenceError),
    #[error("image {0} is not here and cannot be pulled")]
    Pull(String, #[source] image::ImageError),
    #[error("image {0} cannot be read")]
    Image(String, #[source] image::ImageError),
    #[error("image {0} was removed in this moment; try again")]
    ImageRemoved(String),
    #[error(transparent)]
    Build(BuildFailure),
    #[error("the session was stopped while its image was fetched")]
    Stopped,
    #[error("the session cannot be recorded")]
    Record(#[source] StateError),
    #[error("no address is left in the network pool")]
    AddressesExhausted,
    #[error("cannot make {}", .0.display())]
    Directory(PathBuf, #[source] std::io::Error),
    #[error("cannot make the session's directories")]
    Rootfs(#[source] RootfsError),
    #[error("cannot limit the session's resources")]
    Cgroup(#[source] cgroup::CgroupError),
    #[error("cannot set up the session's network")]
    Network(#[source] network::NetworkError),
    #[error("cannot start the container")]
    Container(#[source] RuntimeError),
    #[error("the container has died at once")]
    Died(#[source] std::io::Error),
}

impl CreateError {
    /// What the user is told: one line, and behind it the end of what a step that has failed has written.
    pub fn told(self) -> String {
        match self {
            Self::Environment(error) if error.is_private() => {
                "the server's settings for this session are not valid; its log tells the administrator why".to_owned()
            }
            Self::Build(failure) => failure.told(),
            other => chain(other),
        }
    }
}

/// What is left of a session that could not be removed completely.
#[derive(Debug, thiserror::Error)]
#[error("session {session} could not be removed completely: {}", .failures.join("; "))]
pub struct DestroyError {
    pub session: SessionId,
    pub failures: Vec<String>,
}

impl Context {
    pub(super) fn upper_parent(&self, id: &SessionId) -> PathBuf {
        self.state_dir.join(id.as_str())
    }

    fn run_parent(&self, id: &SessionId) -> PathBuf {
        self.run_dir.join(id.as_str())
    }

    /// How many addresses for sessions the network has: all but its own, the gateway's and the broadcast address.
    fn addresses(&self) -> u32 {
        let host_bits = 32 - u32::from(self.network.pool().prefix());
        u32::MAX.checked_shr(32 - host_bits).unwrap_or(0).saturating_sub(2)
    }

    /// Measures what the session has written to its root file system. Blocks, for up to half a second.
    pub fn disk_usage(&self, id: &SessionId) -> io::Result<DiskUse> {
        runtime::disk::usage(&self.upper_parent(id))
    }

    /// The socket that the session's init listens on.
    pub fn init_socket(&self, id: &SessionId) -> PathBuf {
        self.run_parent(id).join("init.sock")
    }

    /// The image that a build starts from; pulled if it is not here. Blocks, perhaps for minutes; `progress` hears why.
    pub(super) fn ensure_base(&self, name: &str, progress: &dyn image::Progress) -> Result<image::Image, CreateError> {
        let reference = image_reference(name)?;
        match self.store.lookup(&reference) {
            Ok(Some(image)) => Ok(image),
            Ok(None) => {
                let pulled = self.store.pull(&reference, progress);
                pulled.map_err(|error| CreateError::Pull(name.to_owned(), error))
            }
            Err(error) => Err(CreateError::Image(name.to_owned(), error)),
        }
    }

    /// A socket to the session's init for a connection process, which may do with it what the session's user may.
    ///
    /// # Errors
    /// `WouldBlock` if too many wait for init already.
    pub fn connect(&self, record: &SessionRecord) -> io::Result<OwnedFd> {
        let socket = seqpacket::connect(&self.init_socket(&record.id))?;
        // Before version 2 there was nothing else that anybody could do.
        if record.init_version >= 2 {
            wire::send(socket.as_fd(), &ToInit::Restrict, &[])?;
        }
        Ok(socket)
    }

    /// Makes a session for `key`, or leaves nothing behind. Blocks.
    ///
    /// A spawner that dies over it is no fault of the session, so there is a second try, with a new one.
    pub fn create(&self, key: &SessionKey, environment: &Environment, config: &Config) -> Result<Live, CreateError> {
        match self.try_create(key, environment, config) {
            Err(CreateError::Container(error @ RuntimeError::Lost { .. })) => {
                tracing::warn!(session = %key, "{}; trying again", chain(error));
                self.try_create(key, environment, config)
            }
            other => other,
        }
    }

    fn try_create(&self, key: &SessionKey, environment: &Environment, config: &Config) -> Result<Live, CreateError> {
        let (image, mut record) = self.reserve(key, environment, config)?;
        match self.create_objects(key, environment, config, &image, &mut record) {
            Ok(container) => Ok(Live { record, container, life: environment.life }),
            Err(error) => {
                if let Err(left) = self.destroy(&record, None) {
                    tracing::error!(session = %record.id, "{left}");
                }
                Err(error)
            }
        }
    }

    /// Writes the record. Nobody may prune the image between our finding it and the row that says it is in use.
    fn reserve(
        &self,
        key: &SessionKey,
        environment: &Environment,
        config: &Config,
    ) -> Result<(image::Image, SessionRecord), CreateError> {
        let image = &environment.image;
        let _held = self.store.hold().map_err(|error| CreateError::Image(image.base.clone(), error))?;
        let found = self.find_image(image)?.ok_or_else(|| CreateError::ImageRemoved(image.base.clone()))?;
        let record = self.record(Kind::Session, key, environment.life.mode, &found, config)?;
        Ok((found, record))
    }

    /// Writes the record of a container, which gives it its ids and its address. The caller holds the store.
    pub(super) fn record(
        &self,
        kind: Kind,
        key: &SessionKey,
        mode: Mode,
        image: &image::Image,
        config: &Config,
    ) -> Result<SessionRecord, CreateError> {
        let session = NewSession {
            id: new_id(),
            kind,
            user: key.user.clone(),
            project: key.project.clone(),
            image: image.id.to_string(),
            image_reference: image.reference.clone(),
            mode,
            created_at: SystemTime::now(),
            boot_id: self.boot_id.clone(),
        };
        let count = config.security.userns_count.min(self.addresses());
        let slots = Slots { count, first_id: config.security.userns_first };
        self.state.insert_session(&session, &[], slots).map_err(CreateError::Record)
    }

    pub(super) fn create_objects(
        &self,
        key: &SessionKey,
        environment: &Environment,
        config: &Config,
        image: &image::Image,
        record: &mut SessionRecord,
    ) -> Result<Container, CreateError> {
        let address = self.network.address(record.slot).ok_or(CreateError::AddressesExhausted)?;
        self.state.set_address(&record.id.clone().into(), address).map_err(CreateError::Record)?;
        record.address = Some(address);
        let id = &record.id;
        let lease = Lease { container: id.clone().into(), address };
        let id_base = record.id_base;

        let directory = self.upper_parent(id);
        runtime::rootfs::prepare(&directory, id_base).map_err(CreateError::Rootfs)?;
        let run = self.run_parent(id);
        std::fs::create_dir_all(&run).map_err(|e| CreateError::Directory(run.clone(), e))?;
        let listener = seqpacket::listen(&self.init_socket(id), INIT_BACKLOG)
            .map_err(|e| CreateError::Directory(self.init_socket(id), e))?;

        let cgroup = self.cgroups.create(id, &environment.limits).map_err(CreateError::Cgroup)?;
        let (join, join_fds) = cgroup.join().map_err(CreateError::Cgroup)?;

        // The configuration may have changed since the last session.
        self.network.set_egress(&egress(config)).map_err(CreateError::Network)?;
        let segment = self.network.create(&lease).map_err(CreateError::Network)?;

        let hostname = key.project.as_ref().map_or(key.user.as_str(), |p| p.as_str()).to_owned();
        let spec = ContainerSpec {
            container: id.clone().into(),
            hosts: network::hosts_file([(hostname.as_str(), lease.address)]),
            hostname,
            id_base,
            layers_root: self.store.layers_root(),
            layers: image.layers.clone(),
            upperdir: directory.join("upper"),
            workdir: directory.join("work"),
            cgroup: join,
            account: environment.account.clone(),
            env: Variables { key, session: id, image: &image_env(image) }.with(&environment.env)?,
            workdir_inside: environment.workdir.clone(),
            resolv_conf: network::resolv_conf(self.network.gateway()),
            security: environment.security.clone(),
            rlimits: RLIMITS,
            shm_bytes: 64 << 20,
        };
        let join_fds: Vec<_> = join_fds.iter().map(OwnedFd::as_fd).collect();
        let container = self
            .spawner
            .create(&spec, segment.netns.as_fd(), listener.as_fd(), &join_fds)
            .map_err(CreateError::Container)?;
        let starttime = container.starttime().map_err(CreateError::Died)?;
        record.init = Some((container.pid(), starttime));
        record.init_version = protocol::VERSION;
        let pid = container.pid();
        self.state
            .set_container(&record.id.clone().into(), pid, starttime, protocol::VERSION)
            .map_err(CreateError::Record)?;
        Ok(container)
    }

    /// Removes all that the record may stand for, whatever of it exists, and then the record. Blocks.
    ///
    /// # Errors
    /// Goes on after a failure and returns all of them; the record then stays, and the call may be repeated.
    pub fn destroy(&self, record: &SessionRecord, container: Option<Container>) -> Result<(), DestroyError> {
        let id = &record.id;
        let mut failures = Vec::new();
        let mut attempt = |what: &str, result: Result<(), String>| {
            if let Err(why) = result {
                failures.push(format!("{what}: {why}"));
            }
        };
        attempt("record", self.state.set_phase(id, Phase::Stopping).map_err(chain));
        attempt("container", self.end_container(record, container));
        let cgroup = self.cgroups.adopt(id);
        attempt("cgroup", cgroup.kill().and_then(|()| cgroup.destroy()).map_err(chain));
        if let Some(address) = record.address {
            let lease = Lease { container: id.clone().into(), address };
            attempt("network", self.network.destroy(&lease).map_err(chain));
        }
        for directory in [self.run_parent(id), self.upper_parent(id)] {
            attempt("directory", runtime::rootfs::remove(&directory).map_err(chain));
        }
        if failures.is_empty()
            && let Err(error) = self.state.remove_session(id)
        {
            failures.push(format!("record: {}", chain(error)));
        }
        if failures.is_empty() { Ok(()) } else { Err(DestroyError { session: id.clone(), failures }) }
    }

    /// Ends every process of the container.
    pub(super) fn end_container(&self, record: &SessionRecord, container: Option<Container>) -> Result<(), String> {
        let Some(container) = container.or_else(|| self.adopt(record)) else {
            // The spawner or the server may have died over a container that was never recorded.
            return runtime::kill_session(&self.tag, &record.id).map_err(chain);
        };
        container.kill().map_err(chain)?;
        if container.wait(KILL_LIMIT) {
            Ok(())
        } else {
            Err(format!("init (pid {}) is still there {} s after SIGKILL", container.pid(), KILL_LIMIT.as_secs()))
        }
    }

    /// The ids of sessions that directories, cgroups and processes have in their names, with or without a record. What
    /// cannot be listed is logged and left out.
    pub fn session_ids_found(&self) -> BTreeSet<SessionId> {
        let mut ids = BTreeSet::new();
        for parent in [&self.state_dir, &self.run_dir] {
            let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
            ids.extend(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()));
        }
        match Cgroups::listing(&self.tag) {
            Ok(lines) => ids.extend(lines.iter().filter_map(|line| session_in(line))),
            Err(error) => tracing::error!("cannot list cgroups: {}", chain(error)),
        }
        match runtime::listing(&self.tag, &self.state_dir) {
            Ok(found) => ids.extend(found.inits.into_iter().map(|(_, container)| container.session)),
            Err(error) => tracing::error!("cannot list containers: {error}"),
        }
        ids
    }

    /// Removes what is left of a session that has no record: its processes and its directories. Its network goes with its
    /// processes, and its rules went when the table was made anew.
    pub fn sweep(&self, id: &SessionId) -> Result<(), DestroyError> {
        let mut failures = Vec::new();
        failures.extend(runtime::kill_session(&self.tag, id).err().map(chain));
        let cgroup = self.cgroups.adopt(id);
        failures.extend(cgroup.kill().and_then(|()| cgroup.destroy()).err().map(chain));
        for directory in [self.run_parent(id), self.upper_parent(id)] {
            failures.extend(runtime::rootfs::remove(&directory).err().map(chain));
        }
        if failures.is_empty() { Ok(()) } else { Err(DestroyError { session: id.clone(), failures }) }
    }

    /// The running container of a record that an earlier supervisor wrote, if it still runs.
    pub fn adopt(&self, record: &SessionRecord) -> Option<Container> {
        if record.boot_id != self.boot_id {
            return None;
        }
        let (pid, starttime) = record.init?;
        Container::adopt(pid, starttime)
    }
}

pub(super) fn image_reference(name: &str) -> Result<image::Reference, CreateError> {
    name.parse().map_err(|error| CreateError::ImageName(name.to_owned(), error))
}

fn new_id() -> SessionId {
    SessionId::from_bits(getrandom::u64().expect("getrandom(2) does not fail on a kernel that can run containers"))
}

/// Where the configuration lets sessions connect to.
pub fn egress(config: &Config) -> Egress {
    match &config.network.egress {
        config::Egress::Public => Egress::Public,
        config::Egress::None => Egress::None,
        config::Egress::Open => Egress::Open,
        config::Egress::Only(networks) => {
            Egress::Only(networks.iter().filter_map(|(address, prefix)| Subnet::new(*address, *prefix)).collect())
        }
    }
}

/// The image's `Env` as pairs; entries that are not `NAME=value` say nothing and are left out.
fn image_env(image: &image::Image) -> Vec<(String, String)> {
    let env = image.config.config().as_ref().and_then(|config| config.env().clone()).unwrap_or_default();
    env.iter()
        .filter_map(|entry| entry.split_once('='))
        .filter(|(name, value)| !name.is_empty() && !name.contains('\0') && !value.contains('\0'))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
