//! A container in the words of the OCI runtime specification (config.md, config-linux.md): what another runtime
//! would have to be told to make one like it. Made from the [`ContainerSpec`] that the spawner was sent, and from the lists and
//! policies that it and init go by, so that both say the same.
//!
//! What the specification or the runtimes have no words for is left out: that the root file system is put together from layers by
//! mounts with shifted ids (two annotations name them), who is in the account files, and the covered procfs that sandboxes
//! inside need (`init/nested.rs`; an annotation says that it is there), since runtimes mount a procfs at `/proc` only.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use oci_spec::{
    OciSpecError,
    runtime::{
        Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace,
        LinuxNamespaceBuilder, LinuxNamespaceType as Namespace, Mount, MountBuilder, PosixRlimit, PosixRlimitBuilder,
        PosixRlimitType, Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
    },
};

use super::seccomp;
use crate::{
    init::{
        DEFAULT_PATH, OOM_SCORE,
        filesystems::{self, INERT, OwnFileSystem, READ_ONLY},
    },
    protocol::{ContainerSpec, VolumeKind},
    sys::mount_api::attr,
};

/// The ids of the session's user (docs/podfile.md).
const USER_ID: u32 = 1000;
/// How many ids a container has.
const IDS: u32 = 65_536;

/// Why there is no such description.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    #[error("a field of it is not complete")]
    Field(#[from] OciSpecError),
    #[error("the capability {0:?} has no name there")]
    Capability(String),
    #[error("the masked paths cannot be listed")]
    Masked(#[from] std::io::Error),
}

/// The configuration of the container that was made from `spec` and whose init has this pid. `volumes` are where its volumes
/// come from, in their order. Without resources, which are not the runtime's.
pub fn config(spec: &ContainerSpec, volumes: &[PathBuf], pid: i32) -> Result<Spec, OciError> {
    let root =
        RootBuilder::default().path(format!("/proc/{pid}/root")).readonly(spec.security.readonly_rootfs).build()?;
    let linux = LinuxBuilder::default()
        .namespaces(namespaces(pid)?)
        .uid_mappings(vec![ids(spec.id_base)?])
        .gid_mappings(vec![ids(spec.id_base)?])
        .rootfs_propagation("private")
        .masked_paths(filesystems::masked_paths()?)
        .readonly_paths(READ_ONLY.map(str::to_owned).to_vec());
    let linux = match seccomp::oci::filter(&spec.security) {
        Some(seccomp) => linux.seccomp(seccomp),
        None => linux,
    };
    let layers = spec.layers.iter().map(|layer| spec.layers_root.join(layer).display().to_string());
    let annotations = [
        ("podspawn.lowerdirs", layers.collect::<Vec<_>>().join(":")),
        ("podspawn.upperdir", spec.upperdir.display().to_string()),
        ("podspawn.nested", spec.security.nested.to_string()),
    ];
    let config = SpecBuilder::default()
        .version("1.0.2")
        .root(root)
        .mounts(mounts(spec, volumes)?)
        .process(process(spec)?)
        .hostname(spec.hostname.as_str())
        .annotations(annotations.map(|(name, value)| (name.to_owned(), value)).into_iter().collect::<HashMap<_, _>>())
        .linux(linux.build()?);
    Ok(config.build()?)
}

fn ids(id_base: u32) -> Result<LinuxIdMapping, OciSpecError> {
    LinuxIdMappingBuilder::default().container_id(0_u32).host_id(id_base).size(IDS).build()
}

fn namespaces(pid: i32) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    let new = [Namespace::User, Namespace::Mount, Namespace::Pid, Namespace::Uts, Namespace::Ipc, Namespace::Cgroup];
    let new = new.into_iter().map(|typ| LinuxNamespaceBuilder::default().typ(typ).build());
    // It is made, connected, guarded and set (sysctl(8)) before the container.
    let network = LinuxNamespaceBuilder::default().typ(Namespace::Network).path(format!("/proc/{pid}/ns/net")).build();
    new.chain([network]).collect()
}

fn home(spec: &ContainerSpec) -> String {
    spec.account.user.as_ref().map_or_else(|| "/root".to_owned(), |user| format!("/home/{user}"))
}

/// What a shell of the session is.
fn process(spec: &ContainerSpec) -> Result<Process, OciError> {
    let user = spec.account.user.as_ref();
    let id = if user.is_some() { USER_ID } else { 0 };
    let home = home(spec);
    let name = user.map_or_else(|| "root".to_owned(), ToString::to_string);
    let capability = |name: &String| name.parse::<Capability>().map_err(|_| OciError::Capability(name.clone()));
    let bounding: HashSet<_> = spec.security.capabilities.iter().map(capability).collect::<Result<_, _>>()?;
    let held = if user.is_some() { HashSet::new() } else { bounding.clone() };
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(bounding)
        .effective(held.clone())
        .permitted(held)
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .build()?;
    let mut env = vec![("PATH".to_owned(), DEFAULT_PATH.to_owned())];
    let own = [("USER", &name), ("LOGNAME", &name), ("HOME", &home), ("SHELL", &spec.account.shell)];
    let own = own.map(|(name, value)| (name.to_owned(), value.clone()));
    for (name, value) in spec.env.iter().cloned().chain(own) {
        env.retain(|(known, _)| *known != name);
        env.push((name, value));
    }
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(UserBuilder::default().uid(id).gid(id).umask(0o022_u32).build()?)
        .args(vec![spec.account.shell.clone()])
        .env(env.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>())
        .cwd(spec.workdir_inside.as_deref().unwrap_or(&home))
        .capabilities(capabilities)
        .rlimits(rlimits(spec)?)
        .no_new_privileges(spec.security.no_new_privileges)
        .oom_score_adj(OOM_SCORE);
    Ok(process.build()?)
}

fn rlimits(spec: &ContainerSpec) -> Result<Vec<PosixRlimit>, OciSpecError> {
    let limits = spec.rlimits;
    let all = [
        (PosixRlimitType::RlimitNofile, limits.nofile_soft, limits.nofile_hard),
        (PosixRlimitType::RlimitCore, limits.core, limits.core),
        (PosixRlimitType::RlimitMemlock, limits.memlock, limits.memlock),
    ];
    all.into_iter()
        .map(|(typ, soft, hard)| PosixRlimitBuilder::default().typ(typ).soft(soft).hard(hard).build())
        .collect()
}

fn mounts(spec: &ContainerSpec, volumes: &[PathBuf]) -> Result<Vec<Mount>, OciSpecError> {
    let words = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    let mut all = vec![
        mount("/proc", "proc", "proc", attributes(INERT))?,
        mount("/dev", "tmpfs", "tmpfs", words("nosuid,noexec,size=64k,nr_inodes=256,mode=755"))?,
        mount("/sys", "sysfs", "sysfs", attributes(INERT | attr::RDONLY))?,
    ];
    for OwnFileSystem { path, kind, options, flags, attributes: attribute_bits } in filesystems::own_file_systems(spec)
    {
        let mut words = attributes(attribute_bits);
        words.extend(flags.iter().map(|flag| flag.to_string_lossy().into_owned()));
        words.extend(
            options.iter().map(|(name, value)| format!("{}={}", name.to_string_lossy(), value.to_string_lossy())),
        );
        let kind = kind.to_string_lossy();
        all.push(mount(path, &kind, kind.as_ref(), words)?);
    }
    for (path, options) in &spec.security.tmpfs {
        let own = options.split(',').filter(|option| !option.is_empty() && *option != "suid").map(str::to_owned);
        let suid = options.split(',').any(|option| option == "suid");
        let nosuid = (!suid).then(|| "nosuid".to_owned());
        all.push(mount(path, "tmpfs", "tmpfs", nosuid.into_iter().chain(["nodev".to_owned()]).chain(own).collect())?);
    }
    for (volume, source) in spec.volumes.iter().zip(volumes) {
        let foreign = volume.kind == VolumeKind::Foreign;
        let mut words = words(if foreign { "bind,nosuid,nodev,noexec" } else { "bind,nosuid,nodev,idmap" });
        words.extend(volume.read_only.then(|| "ro".to_owned()));
        let path = if volume.kind == VolumeKind::Home { home(spec) } else { volume.path.clone() };
        let of_volume = MountBuilder::default().destination(path).typ("none").source(source).options(words);
        if foreign {
            all.push(of_volume.build()?);
            continue;
        }
        let shifted = of_volume.uid_mappings(vec![ids(spec.id_base)?]).gid_mappings(vec![ids(spec.id_base)?]);
        all.push(shifted.build()?);
    }
    Ok(all)
}

fn mount(path: &str, kind: &str, source: impl AsRef<Path>, options: Vec<String>) -> Result<Mount, OciSpecError> {
    let source = source.as_ref().to_owned();
    MountBuilder::default().destination(path).typ(kind).source(source).options(options).build()
}

/// The words for `MOUNT_ATTR_*`.
fn attributes(bits: u64) -> Vec<String> {
    let words = [(attr::NOSUID, "nosuid"), (attr::NODEV, "nodev"), (attr::NOEXEC, "noexec"), (attr::RDONLY, "ro")];
    words.into_iter().filter(|(bit, _)| bits & bit != 0).map(|(_, word)| word.to_owned()).collect()
}
