//! Between the supervisor, its spawner, and the child that becomes a container's init.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::SeccompProfile;
use crate::names::{ContainerId, ProjectName, UserName};

/// To the spawner, the single-threaded helper that clones containers.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToSpawner {
    /// Make a container. Descriptors, in this order: its network namespace, the listening socket of its init, those of
    /// [`ContainerSpec::cgroup`], and a detached mount for each of [`ContainerSpec::volumes`].
    Create(Box<ContainerSpec>),
}

/// From the spawner, one answer for each request, in order.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromSpawner {
    /// Init is up and accepts connections on its socket. Comes with its pidfd.
    Created {
        pid: i32,
        /// What could not be done but is not worth failing for, one line each.
        #[serde(default)]
        warnings: Vec<String>,
    },
    /// Nothing is left of the attempt. `step` names what was attempted, `message` why it failed.
    Failed { step: String, message: String },
}

/// From the spawner to the child that it has just cloned.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToNewborn {
    /// Your ids are mapped. Comes with three detached mounts: the root file system, `/dev`, and `/sys`; and one for each
    /// volume.
    Go,
}

/// From the child that is about to become a container's init to the spawner. One message, then it closes the socket.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromNewborn {
    Ready { warnings: Vec<String> },
    Failed { step: String, message: String },
}

/// One container: what the spawner and init need to know, in plain values.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub container: ContainerId,
    pub hostname: String,
    /// Container ids 0..65536 are this and the following ids of the host.
    pub id_base: u32,
    /// The directory that holds all layers, and the layers' directories under it, uppermost first.
    pub layers_root: PathBuf,
    pub layers: Vec<String>,
    /// Exist, are empty, on one file system, and owned by `id_base`.
    pub upperdir: PathBuf,
    pub workdir: PathBuf,
    /// Whether these two are relative to a detached mount, the last descriptor of all.
    #[serde(default)]
    pub own_disk: bool,
    /// What else is mounted.
    pub volumes: Vec<Volume>,
    /// How init gets into its cgroup.
    pub cgroup: CgroupJoin,
    pub account: Account,
    /// The environment of every process, as `NAME=value` pairs: image first, then podfile and overrides.
    pub env: Vec<(String, String)>,
    /// Working directory of shells and commands; the home directory if `None`.
    pub workdir_inside: Option<String>,
    pub resolv_conf: String,
    pub hosts: String,
    pub security: SecuritySpec,
    pub rlimits: Rlimits,
    /// Size of `/dev/shm` in bytes.
    pub shm_bytes: u64,
}

/// A directory that is mounted into a container, with the ids 0 to 65535 on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Volume {
    /// Where; made if it is missing.
    pub path: String,
    pub read_only: bool,
    pub kind: VolumeKind,
}

/// Whose a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeKind {
    /// The host's.
    Host,
    /// The container's own: an empty one gets the owner and the mode of what the image has in its place.
    Named,
    /// The home directory of the session's user, who is given an empty one as a new home. There is one at most.
    Home,
    /// The host's, and nobody's in the container: its ids are not mapped, and nothing of it can be executed. The container can do
    /// without.
    Foreign,
}

/// How a process joins a container's cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupJoin {
    /// One descriptor, of the cgroup v2 directory: `CLONE_INTO_CGROUP` (clone3(2)).
    V2,
    /// This many descriptors, each of a v1 `tasks` file open for writing: the child writes `0` to each.
    V1 { count: u32 },
}

/// The user that everything in the session runs as.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Account {
    /// Root of the container if this is `None`, else the user that init creates in `/etc/passwd` (uid and gid 1000).
    pub user: Option<UserName>,
    /// The shell that is wanted; `/bin/sh` if the image lacks it.
    pub shell: String,
    /// Whether password-less sudo is to be set up where the image has sudo.
    pub sudo: bool,
    /// The name of the session's owner and project, for PODSPAWN_USER and PODSPAWN_PROJECT.
    pub owner: UserName,
    pub project: Option<ProjectName>,
}

/// The security profile (reference: docs/security.md).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SecuritySpec {
    /// Capability names without `CAP_`, in upper case: the bounding set.
    pub capabilities: Vec<String>,
    pub no_new_privileges: bool,
    pub readonly_rootfs: bool,
    /// Extra tmpfs mounts: path inside, options.
    pub tmpfs: BTreeMap<String, String>,
    /// Whether a seccomp filter is loaded.
    pub seccomp: bool,
    /// The filter instead of the built-in ones.
    #[serde(default)]
    pub seccomp_profile: Option<SeccompProfile>,
    /// Whether a sandbox works inside: namespaces may be made, with a `/proc` of their own.
    #[serde(default)]
    pub nested: bool,
}

/// Resource limits of every process (getrlimit(2)), clamped to what the daemon itself may have.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Rlimits {
    pub nofile_soft: u64,
    pub nofile_hard: u64,
    pub core: u64,
    pub memlock: u64,
}
