//! Where the host's cgroup hierarchies are.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use cgroups_rs::hierarchies::{is_cgroup2_unified_mode, mountinfo_self};

use super::CgroupError;

const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// The hierarchies that the controllers cpu, memory and pids are in.
#[derive(Debug)]
pub enum Hierarchies {
    /// One for all: the directory under which our own are made.
    V2(PathBuf),
    /// Mount points with the controllers that each has; the first is that of cpu.
    V1(Vec<(PathBuf, &'static [&'static str])>),
}

impl Hierarchies {
    /// Looks at the mounts. A host with cgroup v2 and all controllers on v1 counts as v1.
    pub fn find() -> Result<Self, CgroupError> {
        if is_cgroup2_unified_mode() {
            return Ok(Self::V2(v2_base(Path::new("/sys/fs/cgroup"))));
        }
        let mounts = mountinfo_self();
        let mut roots: Vec<(PathBuf, &'static [&'static str])> = Vec::new();
        for (index, controller) in CONTROLLERS.iter().enumerate() {
            let has = |options: &[String]| options.iter().any(|option| option == controller);
            let mount = mounts
                .iter()
                .find(|mount| mount.fs_type.0 == "cgroup" && has(&mount.super_opts))
                .ok_or(CgroupError::MissingController(controller))?;
            roots.push((mount.mount_point.clone(), &CONTROLLERS[index..=index]));
        }
        Ok(Self::V1(roots))
    }

    pub fn is_v2(&self) -> bool {
        matches!(self, Self::V2(_))
    }

    /// The directories under which an instance makes its own, and the controllers there.
    pub fn roots(&self) -> Box<dyn Iterator<Item = (PathBuf, &'static [&'static str])> + '_> {
        match self {
            Self::V2(base) => Box::new(std::iter::once((base.clone(), &CONTROLLERS[..]))),
            Self::V1(roots) => Box::new(roots.iter().cloned()),
        }
    }

    /// Makes the directory `name` under each root, with the controllers switched on for what is made in it.
    pub(super) fn prepare(&self, name: &str) -> Result<(), CgroupError> {
        for (root, _) in self.roots() {
            if self.is_v2() {
                make_room(&root)?;
                enable(&root)?;
            }
            let path = root.join(name);
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(CgroupError::Create(path, error));
                }
                _ => {}
            }
            if self.is_v2() {
                enable(&path)?;
            }
        }
        Ok(())
    }
}

/// Our own cgroup where a service manager has delegated it to us, which it says in an extended attribute (systemd's
/// CGROUP_DELEGATION.md); else the top.
fn v2_base(mount: &Path) -> PathBuf {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    // After `make_room` we are one level below.
    let own = own.strip_suffix(LEAF).unwrap_or(own);
    let path = mount.join(own.trim_end_matches('/'));
    let delegated = ["trusted.delegate", "user.delegate"]
        .iter()
        .any(|name| xattr::get(&path, name).ok().flatten().as_deref() == Some(b"1"));
    if delegated { path } else { mount.to_owned() }
}

/// Where our own processes go: a cgroup with controllers switched on for its children has no processes (cgroups(7), "no
/// internal processes").
const LEAF: &str = "/supervisor";

fn make_room(base: &Path) -> Result<(), CgroupError> {
    // The top is the exception to the rule.
    if base == Path::new("/sys/fs/cgroup") {
        return Ok(());
    }
    let leaf = base.join(LEAF.trim_start_matches('/'));
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(CgroupError::Create(leaf, error)),
        _ => {}
    }
    for pid in super::processes(base)? {
        match fs::write(leaf.join("cgroup.procs"), pid.to_string()) {
            // It has ended meanwhile.
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32) => {}
            other => other.map_err(|error| CgroupError::File(leaf.join("cgroup.procs"), error))?,
        }
    }
    Ok(())
}

fn enable(path: &Path) -> Result<(), CgroupError> {
    let available = path.join("cgroup.controllers");
    let text = fs::read_to_string(&available).map_err(|error| CgroupError::File(available, error))?;
    for controller in CONTROLLERS {
        if !text.split_whitespace().any(|word| word == controller) {
            return Err(CgroupError::MissingController(controller));
        }
    }
    let control = path.join("cgroup.subtree_control");
    fs::write(&control, "+cpu +memory +pids").map_err(|error| CgroupError::File(control, error))
}
