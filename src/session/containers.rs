//! One container of a session, the user's or a service's: from its directories to its init, and to the end of that.

use std::{
    io,
    net::Ipv4Addr,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    description::Description,
    steps::{Context, CreateError, RLIMITS},
    volumes::Prepared,
};
use crate::{
    cgroup::{self, Cgroup},
    errors::chain,
    faults::{self, Point},
    image::Image,
    names::{ContainerId, SessionId},
    network::{self, Egress, Lease},
    protocol::{self, Account, ContainerSpec, SecuritySpec},
    runtime::{
        self, Container,
        disk::DiskUse,
        disk_image::{self, Attached, DiskImageError},
    },
    state::SessionRecord,
    sys::seqpacket,
};

/// Connections to init that may wait to be accepted.
const INIT_BACKLOG: i32 = 64;

/// Until when a killed container must be gone. The kernel needs milliseconds; a stuck device may take longer.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// What a container is made from. Its address is recorded.
pub(super) struct Blueprint<'a> {
    pub id: ContainerId,
    pub id_base: u32,
    pub address: Ipv4Addr,
    /// Whether the session has other containers.
    pub companions: bool,
    /// `None`: what the server lets everybody connect to.
    pub egress: Option<Egress>,
    pub image: &'a Image,
    pub cgroup: &'a Cgroup,
    /// Those of `cgroup`.
    pub limits: &'a cgroup::Limits,
    pub hostname: String,
    pub hosts: String,
    pub account: Account,
    pub env: Vec<(String, String)>,
    pub workdir: Option<String>,
    pub security: SecuritySpec,
    pub volumes: Prepared,
    /// The session's, where what it may write is limited.
    pub disk: Option<&'a Attached>,
    /// Whether repositories are cloned that may come from mirrors.
    pub mirrors: bool,
}

impl Context {
    /// The directory on disk of a container. A service's is in its session's.
    pub(super) fn container_directory(&self, id: &ContainerId) -> PathBuf {
        let session = self.state_dir.join(id.session.as_str());
        if id.service.is_some() { session.join("services").join(id.to_string()) } else { session }
    }

    /// Makes the session's directory with the file system in it that all of its containers write to.
    pub(super) fn make_disk(&self, session: &SessionId, bytes: u64) -> Result<Attached, CreateError> {
        let directory = self.directory(session);
        make_directory(&directory)?;
        let image = directory.join(disk_image::NAME);
        disk_image::create(&image, bytes).and_then(|()| Attached::new(&image)).map_err(CreateError::Disk)
    }

    /// The session's own file system, if it has one and it is in use.
    fn disk(&self, session: &SessionId) -> Result<Option<Attached>, DiskImageError> {
        let image = self.directory(session).join(disk_image::NAME);
        if image.exists() { Attached::find(&image) } else { Ok(None) }
    }

    /// What a container has written, also when its processes have ended.
    pub(super) fn written(&self, id: &ContainerId) -> Result<Written, DiskImageError> {
        let image = self.directory(&id.session).join(disk_image::NAME);
        if !image.exists() {
            return Ok(Written { directory: self.container_directory(id), _mount: None });
        }
        let attached = match Attached::find(&image)? {
            Some(attached) => attached,
            None => Attached::new(&image)?,
        };
        let mount = attached.mount()?;
        Ok(Written { directory: Written::on(&mount, id), _mount: Some(mount) })
    }

    /// Measures what a container has written to its root file system; of a session whose disk is limited, what it and its
    /// services have written together. Blocks, for up to half a second.
    pub fn disk_usage(&self, id: &ContainerId) -> io::Result<DiskUse> {
        match self.disk(&id.session).map_err(io::Error::other)? {
            None => runtime::disk::usage(&self.container_directory(id)),
            Some(disk) if id.service.is_none() => disk.usage().map_err(io::Error::other),
            Some(disk) => {
                let mount = disk.mount().map_err(io::Error::other)?;
                runtime::disk::usage(&Written::on(&mount, id))
            }
        }
    }

    /// The socket that the container's init listens on.
    pub fn socket(&self, id: &ContainerId) -> PathBuf {
        socket_of(&self.run_dir, id)
    }

    /// Makes a container and records its init. What is there of it after a failure is for [`Context::destroy`].
    pub(super) fn make_container(&self, blueprint: Blueprint<'_>) -> Result<Container, CreateError> {
        let Blueprint {
            id,
            id_base,
            address,
            companions,
            egress,
            image,
            cgroup,
            limits,
            hostname,
            hosts,
            account,
            env,
            workdir,
            security,
            mut volumes,
            disk,
            mirrors,
        } = blueprint;
        faults::at(Point::Directories)?;
        let directory = self.container_directory(&id);
        let disk = match disk {
            None => {
                runtime::rootfs::prepare(&directory, id_base).map_err(CreateError::Rootfs)?;
                None
            }
            Some(disk) => {
                make_directory(&directory)?;
                let mount = disk.mount().map_err(CreateError::Disk)?;
                runtime::rootfs::prepare(&Written::on(&mount, &id), id_base).map_err(CreateError::Rootfs)?;
                Some(mount)
            }
        };
        if mirrors {
            super::mirrors::add_volume(&mut volumes, &directory)
                .map_err(|e| CreateError::Directory(directory.clone(), e))?;
        }
        let top = if disk.is_some() { PathBuf::from(id.to_string()) } else { directory };
        let run = self.run_dir.join(id.session.as_str());
        std::fs::create_dir_all(&run).map_err(|e| CreateError::Directory(run.clone(), e))?;
        faults::at(Point::InitSocket)?;
        let socket = self.socket(&id);
        let listener = seqpacket::listen(&socket, INIT_BACKLOG).map_err(|e| CreateError::Directory(socket, e))?;
        faults::at(Point::CgroupJoin)?;
        let (join, join_fds) = cgroup.join().map_err(CreateError::Cgroup)?;
        faults::at(Point::Network)?;
        let lease = Lease { container: id.clone(), address, egress };
        let segment = self.network.create(&lease, companions).map_err(CreateError::Network)?;
        let spec = ContainerSpec {
            container: id.clone(),
            hostname,
            id_base,
            layers_root: self.store.layers_root(),
            layers: image.layers.clone(),
            upperdir: top.join("upper"),
            workdir: top.join("work"),
            own_disk: disk.is_some(),
            volumes: volumes.volumes,
            cgroup: join,
            account,
            env,
            workdir_inside: workdir,
            resolv_conf: network::resolv_conf(self.network.gateway()),
            hosts,
            security,
            rlimits: runtime::possible(&RLIMITS).map_err(CreateError::Rlimits)?,
            shm_bytes: 64 << 20,
        };
        faults::at(Point::Description)?;
        let description = Description { spec, limits: limits.clone(), volumes: volumes.sources };
        description.write(&self.run_dir).map_err(|e| CreateError::Directory(run, e))?;
        faults::at(Point::Init)?;
        let more_fds: Vec<_> = join_fds.iter().chain(&volumes.mounts).chain(&disk).map(OwnedFd::as_fd).collect();
        let container = self
            .spawner
            .create(&description.spec, segment.netns.as_fd(), listener.as_fd(), &more_fds)
            .map_err(CreateError::Container)?;
        faults::at(Point::InitRecord)?;
        let starttime = container.starttime().map_err(CreateError::Died)?;
        self.state.set_container(&id, container.pid(), starttime, protocol::VERSION).map_err(CreateError::Record)?;
        Ok(container)
    }

    /// Ends every process of all containers of a session.
    pub(super) fn end_containers(&self, record: &SessionRecord, container: Option<Container>) -> Result<(), String> {
        let inits = record.services.iter().map(|service| self.adopt_init(record, service.init));
        let all: Vec<_> = [container.or_else(|| self.adopt(record))].into_iter().chain(inits).collect();
        let recorded = all.len();
        let containers: Vec<Container> = all.into_iter().flatten().collect();
        for container in &containers {
            container.kill().map_err(chain)?;
        }
        if containers.len() < recorded {
            // The spawner or the server may have died over a container that was never recorded.
            runtime::kill_session(&self.tag, &record.id).map_err(chain)?;
        }
        let stuck = containers.iter().find(|container| !container.wait(KILL_LIMIT));
        stuck.map_or(Ok(()), |container| {
            Err(format!("init (pid {}) is still there {} s after SIGKILL", container.pid(), KILL_LIMIT.as_secs()))
        })
    }

    /// The user's container of a record that an earlier supervisor wrote, if it still runs.
    pub fn adopt(&self, record: &SessionRecord) -> Option<Container> {
        self.adopt_init(record, record.init)
    }

    fn adopt_init(&self, record: &SessionRecord, init: Option<(i32, u64)>) -> Option<Container> {
        if record.boot_id != self.boot_id {
            return None;
        }
        let (pid, starttime) = init?;
        Container::adopt(pid, starttime)
    }
}

/// Where what a container has written can be read, as long as this lives.
#[derive(Debug)]
pub(super) struct Written {
    directory: PathBuf,
    _mount: Option<OwnedFd>,
}

impl Written {
    /// The directory of a container on the session's own file system.
    fn on(mount: &OwnedFd, id: &ContainerId) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{id}", mount.as_raw_fd()))
    }

    /// The upper directory: what is there differs from the image.
    pub(super) fn upper(&self) -> PathBuf {
        self.directory.join("upper")
    }
}

fn make_directory(path: &Path) -> Result<(), CreateError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| CreateError::Directory(path.to_owned(), error))
}

/// The socket that the container's init listens on, where `RUN/sessions` is `run_dir`.
pub fn socket_of(run_dir: &Path, id: &ContainerId) -> PathBuf {
    let name = if id.service.is_some() { format!("{id}.sock") } else { "init.sock".to_owned() };
    run_dir.join(id.session.as_str()).join(name)
}

/// The image's `Env` as pairs; entries that are not `NAME=value` say nothing and are left out.
pub(super) fn image_env(image: &Image) -> Vec<(String, String)> {
    let env = image.config.config().as_ref().and_then(|config| config.env().clone()).unwrap_or_default();
    env.iter()
        .filter_map(|entry| entry.split_once('='))
        .filter(|(name, value)| !name.is_empty() && !name.contains('\0') && !value.contains('\0'))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
