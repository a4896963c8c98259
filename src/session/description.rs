//! What a container was made from, kept in a file beside its socket for whoever asks later, also in another supervisor.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder, Spec,
};
use serde::{Deserialize, Serialize};

use crate::{
    cgroup::Limits,
    names::{ContainerId, InstanceTag},
    protocol::ContainerSpec,
    runtime::oci::{self, OciError},
};

/// All that there is to know about a container. Variables may be secrets: it is root's alone.
#[derive(Debug, Serialize, Deserialize)]
pub struct Description {
    pub spec: ContainerSpec,
    /// Of its own cgroup; a session with services has one around all of them.
    pub limits: Limits,
    /// Where its volumes come from, in their order.
    pub volumes: Vec<PathBuf>,
}

/// Why a container cannot be described.
#[derive(Debug, thiserror::Error)]
pub enum DescriptionError {
    #[error("what it was made from cannot be read from {}; another version of podspawn may have made it", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("it cannot be said in the words of the OCI runtime specification")]
    Oci(#[from] OciError),
}

impl Description {
    /// Writes it into the session's directory, where `RUN/sessions` is `run_dir`.
    pub(super) fn write(&self, run_dir: &Path) -> io::Result<()> {
        let path = path(run_dir, &self.spec.container);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(&serde_json::to_vec(self)?)
    }

    /// What the container was made from.
    pub fn read(run_dir: &Path, container: &ContainerId) -> Result<Self, DescriptionError> {
        let path = path(run_dir, container);
        let read = || Ok(serde_json::from_slice(&std::fs::read(&path)?)?);
        read().map_err(|error| DescriptionError::Read(path.clone(), error))
    }

    /// The same for another runtime; `pid` is init's.
    pub fn oci(&self, tag: &InstanceTag, pid: i32) -> Result<Spec, DescriptionError> {
        let mut config = oci::config(&self.spec, &self.volumes, pid)?;
        if let Some(linux) = config.linux_mut() {
            let resources = resources(&self.limits).map_err(OciError::from)?;
            linux.set_resources(Some(resources));
            linux.set_cgroups_path(Some(PathBuf::from(format!("/{}/{}", tag.object_name(), self.spec.container))));
        }
        Ok(config)
    }
}

fn path(run_dir: &Path, container: &ContainerId) -> PathBuf {
    run_dir.join(container.session.as_str()).join(format!("{container}.json"))
}

fn resources(limits: &Limits) -> Result<LinuxResources, oci_spec::OciSpecError> {
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let mut resources = LinuxResourcesBuilder::default();
    if let Some((quota, period)) = limits.quota() {
        resources = resources.cpu(LinuxCpuBuilder::default().quota(quota).period(period).build()?);
    }
    if let Some(bytes) = limits.memory_max.map(signed) {
        // There, swap is memory and swap together.
        resources = resources.memory(LinuxMemoryBuilder::default().limit(bytes).swap(bytes).build()?);
    }
    if let Some(count) = limits.pids_max.map(signed) {
        resources = resources.pids(LinuxPidsBuilder::default().limit(count).build()?);
    }
    resources.build()
}
