//! The steps that make a session, in order, and the same list backwards that removes it.
//!
//! 1. **record**: the rows in the database, before anything else exists, so that a crash at any later point leaves
//!    something to find it by;
//! 2. **addresses** of all its containers, as each is to know those of the others;
//! 3. **cgroup** with its limits, and one for each container where there are services;
//! 4. **disk**, where what the session writes is limited: a file system of its own, for all of its containers;
//! 5. the user's container and those of services, each with **directories**, **network** (namespace, veth pair, rules) and
//!    then **init** with its namespaces and mounts (see [`containers`](super::containers)).
//!
//! What services do is started later ([`services`](super::services)).
//!
//! Removing is idempotent and needs nothing but the record, so that undoing a failed creation, ending a session and
//! cleaning up after a crash are the same code. The record goes last.

use std::{
    collections::BTreeSet,
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
    panic::resume_unwind,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use super::{
    build::BuildFailure,
    containers::{Blueprint, image_env},
    environment::{Environment, EnvironmentError, Life, SetUp},
    evidence::{Gathering, Journal, Records},
    homes::{self, HomeError},
    leaks::session_in,
    ports::{PortError, Ports},
    remains::Remains,
    services::{Plan, PlanError, ServiceError, Services},
    updates::Updates,
    variables::Variables,
    volumes::{Prepared, VolumeError},
};
use crate::{
    cgroup::{self, Cgroups},
    config::{self, Config},
    errors::chain,
    faults::{self, Injected, Point},
    image::{self, Image, Store},
    mirror::Mirrors,
    names::{ContainerId, InstanceTag, NameError, ProjectName, SessionId, UserName},
    network::{self, Egress, Lease, Network, Subnet},
    podfile,
    project::Podfiles,
    protocol::{self, Rlimits, ToInit, wire},
    runtime::{self, Container, RuntimeError, Spawner, disk_image::DiskImageError, rootfs::RootfsError},
    state::{Kind, NewService, NewSession, Phase, SessionRecord, Slots, State, StateError},
    sys::seqpacket,
};

/// Limits of every process of a session. No core files: where they go (core_pattern) is the host's to say.
pub const RLIMITS: Rlimits = Rlimits { nofile_soft: 1024, nofile_hard: 65_536, core: 0, memlock: 8 << 20 };

/// Images that are pulled at once for the services of a session; more only share the line.
const PULLS: usize = 4;

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
    pub mirrors: Mirrors,
    pub updates: Updates,
    /// What could not be undone of sessions that could not be made.
    pub remains: Remains,
    /// `STATE/sessions` and `RUN/sessions`: one directory for each session in either.
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    /// `STATE/volumes`
    pub volumes_dir: PathBuf,
    /// Held where a record is made, and where it must not be.
    pub recording: Mutex<()>,
    /// What is known of sessions that are gone.
    pub records: Records,
    /// What is known of those that live, for that.
    pub journal: Journal,
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
    pub set_up: SetUp,
    /// Once they are ready, if there are any.
    pub services: Option<Services>,
    pub ports: Option<Ports>,
}

/// What containers of a session are made from.
pub(super) struct Images {
    pub(super) session: Image,
    /// In the order of the services.
    pub(super) services: Vec<Image>,
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
    #[error("service {0} cannot be run")]
    Plan(String, #[source] PlanError),
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error("service {0} cannot have its volumes")]
    Volume(String, #[source] VolumeError),
    #[error("the last session of {0} still runs, whose services use the same volumes; try again")]
    VolumesInUse(SessionKey),
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error(transparent)]
    Port(#[from] PortError),
    #[error("the session was stopped while it was being made")]
    Stopped,
    #[error("the session cannot be recorded")]
    Record(#[source] StateError),
    #[error("no address is left in the network pool")]
    AddressesExhausted,
    #[error("cannot make {}", .0.display())]
    Directory(PathBuf, #[source] std::io::Error),
    #[error("cannot make the session's directories")]
    Rootfs(#[source] RootfsError),
    #[error("cannot limit what the session writes")]
    Disk(#[source] DiskImageError),
    #[error("cannot limit the session's resources")]
    Cgroup(#[source] cgroup::CgroupError),
    #[error("cannot set up the session's network")]
    Network(#[source] network::NetworkError),
    #[error("cannot start the container")]
    Container(#[source] RuntimeError),
    #[error("cannot read our own resource limits")]
    Rlimits(#[source] std::io::Error),
    #[error(transparent)]
    Injected(#[from] Injected),
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
            Self::Home(_) => {
                "your home directory cannot be used; the server's log tells the administrator why".to_owned()
            }
            Self::Build(failure) => failure.told(),
            Self::Service(error) => error.told(),
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
    /// The session's directory on disk.
    pub fn directory(&self, id: &SessionId) -> PathBuf {
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

    /// The socket that the session's init listens on.
    pub fn init_socket(&self, id: &SessionId) -> PathBuf {
        self.socket(&id.clone().into())
    }

    /// The image of that name; pulled if it is not here. Blocks, perhaps for minutes; `progress` hears why.
    pub(super) fn ensure_base(&self, name: &str, progress: &dyn image::Progress) -> Result<Image, CreateError> {
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

    /// Says that the images of a session are about to be used. A name that cannot be kept, as on a full disk, may be gone when
    /// the session is made; that is an error then.
    pub(super) fn need_images(&self, environment: &Environment) -> Vec<image::Needed> {
        let base = image_reference(&environment.image.base).ok();
        let names = base.iter().chain(environment.services.iter().map(|service| &service.image));
        let needed = names.filter_map(|name| match self.store.need(name) {
            Ok(needed) => Some(needed),
            Err(error) => {
                tracing::warn!("{}", chain(error));
                None
            }
        });
        needed.collect()
    }

    /// Pulls the images of services that are not here, several at once. Blocks, perhaps for minutes.
    pub fn ensure_service_images(
        &self,
        environment: &Environment,
        progress: &dyn image::Progress,
    ) -> Result<(), CreateError> {
        let images: BTreeSet<String> = environment.services.iter().map(|service| service.image.to_string()).collect();
        let images: Vec<String> = images.into_iter().collect();
        for together in images.chunks(PULLS) {
            std::thread::scope(|scope| {
                let pulls: Vec<_> =
                    together.iter().map(|name| scope.spawn(|| self.ensure_base(name, progress).map(drop))).collect();
                let results = pulls.into_iter().map(|pull| pull.join().unwrap_or_else(|panic| resume_unwind(panic)));
                // All are waited for: the scope does that anyway.
                results.fold(Ok(()), Result::and)
            })?;
        }
        Ok(())
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
        let (images, mut record) = self.reserve(key, environment, config)?;
        match self.create_objects(key, environment, config, &images, &mut record) {
            Ok(container) => {
                let (life, set_up) = (environment.life, environment.set_up.clone());
                Ok(Live { record, container, life, set_up, services: None, ports: None })
            }
            Err(error) => {
                self.undo(&record, None);
                Err(error)
            }
        }
    }

    /// Writes the record. Nobody may prune an image between our finding it and the row that says it is in use.
    fn reserve(
        &self,
        key: &SessionKey,
        environment: &Environment,
        config: &Config,
    ) -> Result<(Images, SessionRecord), CreateError> {
        let image = &environment.image;
        let _held = self.store.hold().map_err(|error| CreateError::Image(image.base.clone(), error))?;
        let session = self.find_image(image)?.ok_or_else(|| CreateError::ImageRemoved(image.base.clone()))?;
        let mut images = Images { session, services: Vec::new() };
        let mut services = Vec::new();
        for service in &environment.services {
            let name = service.image.to_string();
            let image = self.store.lookup(&service.image).map_err(|error| CreateError::Image(name.clone(), error))?;
            let image = image.ok_or(CreateError::ImageRemoved(name))?;
            let plan = Plan::new(service, &image, environment.life.mode)
                .map_err(|error| CreateError::Plan(service.name.clone(), error))?;
            services.push(NewService {
                name: service.name.clone(),
                image: image.id.to_string(),
                image_reference: image.reference.clone(),
                plan: plan.to_text(),
            });
            images.services.push(image);
        }
        let record = self.record(Kind::Session, key, environment, &images.session, &services, config)?;
        Ok((images, record))
    }

    /// Writes the record of a session or a build, which gives its containers their ids and their addresses. The caller holds
    /// the store.
    pub(super) fn record(
        &self,
        kind: Kind,
        key: &SessionKey,
        environment: &Environment,
        image: &Image,
        services: &[NewService],
        config: &Config,
    ) -> Result<SessionRecord, CreateError> {
        let session = NewSession {
            id: new_id(),
            kind,
            user: key.user.clone(),
            project: key.project.clone(),
            image: image.id.to_string(),
            image_reference: image.reference.clone(),
            mode: environment.life.mode,
            created_at: SystemTime::now(),
            boot_id: self.boot_id.clone(),
            on_start: environment.set_up.on_start.clone(),
            egress: environment.egress.as_ref().map(ToString::to_string),
        };
        let count = config.security.userns_count.min(self.addresses());
        let slots = Slots { count, first_id: config.security.userns_first };
        faults::at(Point::Record)?;
        let _recording = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.insert_session(&session, services, slots).map_err(CreateError::Record)
    }

    pub(super) fn create_objects(
        &self,
        key: &SessionKey,
        environment: &Environment,
        config: &Config,
        images: &Images,
        record: &mut SessionRecord,
    ) -> Result<Container, CreateError> {
        let session = ContainerId::from(record.id.clone());
        let address = self.give_address(&session, record.slot)?;
        record.address = Some(address);
        let mut services = Vec::new();
        for service in &mut record.services {
            let id = ContainerId::of_service(&record.id, service.place);
            let address = self.give_address(&id, service.slot)?;
            service.address = Some(address);
            services.push((id, address, service.name.clone(), service.id_base));
        }
        let hostname = key.project.as_ref().map_or(key.user.as_str(), |p| p.as_str()).to_owned();
        // Services come first, since it is by their names that they are looked for.
        let names = services.iter().map(|(_, address, name, _)| (name.as_str(), *address));
        let hosts = network::hosts_file(names.chain([(hostname.as_str(), address)]));

        faults::at(Point::Cgroup)?;
        let whole = self.cgroups.create(&record.id, &environment.limits).map_err(CreateError::Cgroup)?;
        let part = |id: &ContainerId, limits: &cgroup::Limits| {
            faults::at(Point::CgroupPart)?;
            whole.child(id, limits).map_err(CreateError::Cgroup)
        };
        let cgroup = if services.is_empty() { &whole } else { &part(&session, &cgroup::Limits::default())? };

        let disk = environment.disk.map(|bytes| self.make_disk(&record.id, bytes)).transpose()?;
        faults::at(Point::Egress)?;
        // The configuration may have changed since the last session.
        self.network.set_egress(&egress(&config.network.egress)).map_err(CreateError::Network)?;
        let of_image = image_env(&images.session);
        let container = self.make_container(Blueprint {
            id: session,
            id_base: record.id_base,
            address,
            companions: !services.is_empty(),
            egress: environment.egress.as_ref().map(egress),
            image: &images.session,
            cgroup,
            limits: &environment.limits,
            hostname,
            hosts: hosts.clone(),
            account: environment.account.clone(),
            env: Variables { key, session: &record.id, image: &of_image }.with(&environment.env)?,
            workdir: environment.workdir.clone(),
            security: environment.security.clone(),
            volumes: environment.home.as_deref().map(homes::prepare).transpose()?.unwrap_or_else(Prepared::none),
            disk: disk.as_ref(),
            mirrors: environment.set_up.mirrors.is_some(),
        })?;
        let starttime = container.starttime().map_err(CreateError::Died)?;
        (record.init, record.init_version) = (Some((container.pid(), starttime)), protocol::VERSION);

        for (index, (id, address, name, id_base)) in services.into_iter().enumerate() {
            let (service, image) = (&environment.services[index], &images.services[index]);
            let mut env = vec![("HOSTNAME".to_owned(), name.clone())];
            env.extend(image_env(image));
            let own: Vec<_> = service.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
            let limits = service_limits(service).within(&environment.limits);
            let container = self.make_container(Blueprint {
                cgroup: &part(&id, &limits)?,
                limits: &limits,
                id,
                id_base,
                address,
                companions: true,
                egress: environment.egress.as_ref().map(egress),
                image,
                hostname: name,
                hosts: hosts.clone(),
                account: environment.account_of_services(),
                env: Variables { key, session: &record.id, image: &env }.with(&own)?,
                workdir: None,
                security: environment.security_of_services(config),
                volumes: self
                    .volumes(key, &record.id, (service, image), record.mode, &config.volumes.allow)
                    .map_err(|error| CreateError::Volume(service.name.clone(), error))?,
                disk: disk.as_ref(),
                mirrors: false,
            })?;
            let starttime = container.starttime().map_err(CreateError::Died)?;
            let service = &mut record.services[index];
            (service.init, service.init_version) = (Some((container.pid(), starttime)), protocol::VERSION);
        }
        Ok(container)
    }

    /// Records the address of a container's slot.
    fn give_address(&self, id: &ContainerId, slot: u32) -> Result<Ipv4Addr, CreateError> {
        faults::at(Point::Address)?;
        let address = self.network.address(slot).ok_or(CreateError::AddressesExhausted)?;
        self.state.set_address(id, address).map_err(CreateError::Record)?;
        Ok(address)
    }

    /// Removes all that the record may stand for, whatever of it exists, and then the record. Blocks.
    ///
    /// # Errors
    /// Goes on after a failure and returns all of them; the record then stays, and the call may be repeated.
    pub fn destroy(&self, record: &SessionRecord, container: Option<Container>) -> Result<(), DestroyError> {
        self.remove(record, container, None)
    }

    /// As [`Context::destroy`], for a session that users have had, of which something is to be known later.
    pub fn end(
        &self,
        record: &SessionRecord,
        container: Option<Container>,
        reason: &'static str,
    ) -> Result<(), DestroyError> {
        self.remove(record, container, Gathering::begin(self, record, reason))
    }

    fn remove(
        &self,
        record: &SessionRecord,
        container: Option<Container>,
        mut evidence: Option<Gathering<'_>>,
    ) -> Result<(), DestroyError> {
        let id = &record.id;
        let mut failures = Vec::new();
        let mut attempt = |what: &str, result: Result<(), String>| {
            if let Err(why) = result {
                failures.push(format!("{what}: {why}"));
            }
        };
        let at = |point| faults::at(point).map_err(chain);
        let stopping = |()| self.state.set_phase(id, Phase::Stopping).map_err(chain);
        attempt("record", at(Point::StoppingRecord).and_then(stopping));
        // While the network is there: a connection that cannot be closed would keep it.
        let _no_updates = self.updates.end(id);
        attempt("container", at(Point::ContainersEnd).and_then(|()| self.end_containers(record, container)));
        let cgroup = self.cgroups.adopt(id);
        if let Some(evidence) = &mut evidence {
            // Nobody is left in it by now, and killing may lower its limits.
            evidence.count(&cgroup);
        }
        let killed = at(Point::CgroupEnd).and_then(|()| cgroup.kill().map_err(chain));
        attempt("cgroup", killed.and_then(|()| cgroup.destroy().map_err(chain)));
        for lease in leases(record) {
            let destroyed = |()| self.network.destroy(&lease).map_err(chain);
            attempt("network", at(Point::NetworkEnd).and_then(destroyed));
        }
        if let Some(evidence) = evidence {
            attempt("evidence", at(Point::Evidence));
            evidence.finish();
        }
        for directory in [self.run_parent(id), self.directory(id)] {
            let removed = |()| runtime::rootfs::remove(&directory).map_err(chain);
            attempt("directory", at(Point::DirectoriesEnd).and_then(removed));
        }
        if failures.is_empty() {
            let removed = |()| self.state.remove_session(id).map_err(chain);
            let gone = at(Point::RecordEnd).and_then(removed).and_then(|()| at(Point::Gone));
            failures.extend(gone.err().map(|why| format!("record: {why}")));
        }
        if failures.is_empty() { Ok(()) } else { Err(DestroyError { session: id.clone(), failures }) }
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
        for directory in [self.run_parent(id), self.directory(id)] {
            failures.extend(runtime::rootfs::remove(&directory).err().map(chain));
        }
        if failures.is_empty() { Ok(()) } else { Err(DestroyError { session: id.clone(), failures }) }
    }
}

/// The addresses of all containers of a session, as far as they have one.
pub fn leases(record: &SessionRecord) -> Vec<Lease> {
    let egress = record.egress.as_deref().map(|text| match text.parse() {
        Ok(of_session) => egress(&of_session),
        Err(error) => {
            tracing::error!(session = %record.id, "it may connect to nothing any more: {text:?}: {}", chain(error));
            Egress::None
        }
    });
    let own = record.address.map(|address| (record.id.clone().into(), address));
    let of_services = record.services.iter().filter_map(|service| {
        service.address.map(|address| (ContainerId::of_service(&record.id, service.place), address))
    });
    let all = own.into_iter().chain(of_services);
    all.map(|(container, address)| Lease { container, address, egress: egress.clone() }).collect()
}

/// The part of the session's budget that a service may have.
fn service_limits(service: &podfile::Service) -> cgroup::Limits {
    let podfile::Resources { cpus, memory, pids, disk: _ } = &service.resources;
    cgroup::Limits { cpus: *cpus, memory_max: memory.map(|podfile::Bytes(bytes)| bytes), pids_max: *pids }
}

pub(super) fn image_reference(name: &str) -> Result<image::Reference, CreateError> {
    name.parse().map_err(|error| CreateError::ImageName(name.to_owned(), error))
}

pub(super) fn new_id() -> SessionId {
    SessionId::from_bits(getrandom::u64().expect("getrandom(2) does not fail on a kernel that can run containers"))
}

/// What the configuration calls it, for the network.
pub fn egress(configured: &config::Egress) -> Egress {
    match configured {
        config::Egress::Public => Egress::Public,
        config::Egress::None => Egress::None,
        config::Egress::Open => Egress::Open,
        config::Egress::Only(networks) => {
            Egress::Only(networks.iter().filter_map(|(address, prefix)| Subnet::new(*address, *prefix)).collect())
        }
    }
}
