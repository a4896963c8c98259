//! Where an instance's cgroups are: found out from what the host has mounted.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{CgroupError, limits::Version};
use crate::names::InstanceTag;

/// The controllers whose limits we set, and v1's that counts CPU time. Without memory and pids a session could take the host
/// down; without cpu it can only be slow, so that one is missed only when a limit is asked for.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuacct", "memory", "pids"];
const REQUIRED: [&str; 2] = ["memory", "pids"];
/// The leaf that our own processes go into where the cgroup that they were started in becomes an inner node.
const LEAF: &str = "supervisor";
const EVACUATIONS: usize = 100;

/// The directories under which each session gets one of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Layout {
    V2 {
        /// The cgroup that holds `parent`: a subtree that was delegated to us, or the root.
        base: PathBuf,
        parent: PathBuf,
    },
    /// One for each hierarchy, with the controllers that are mounted there.
    V1 { parents: Vec<(PathBuf, BTreeSet<&'static str>)> },
}

/// A mounted cgroup hierarchy.
#[derive(Debug, PartialEq, Eq)]
enum Mount {
    V2(PathBuf),
    V1(PathBuf, BTreeSet<&'static str>),
}

impl Layout {
    /// The layout on this host. Changes nothing.
    pub(super) fn detect(tag: &InstanceTag) -> Result<Self, CgroupError> {
        let mounts = parse_mountinfo(&read("/proc/self/mountinfo".as_ref())?);
        for mount in &mounts {
            let Mount::V2(root) = mount else { continue };
            let available = read(&root.join("cgroup.controllers"))?;
            if REQUIRED.iter().all(|wanted| available.split_whitespace().any(|c| c == *wanted)) {
                let base = delegated(root, &read("/proc/self/cgroup".as_ref())?, is_delegated);
                let parent = base.join(tag.object_name());
                return Ok(Self::V2 { base, parent });
            }
        }
        let mut parents: Vec<(PathBuf, BTreeSet<_>)> = Vec::new();
        for wanted in CONTROLLERS {
            let found = mounts.iter().find_map(|mount| match mount {
                Mount::V1(path, controllers) if controllers.contains(wanted) => Some((path, controllers)),
                _ => None,
            });
            match found {
                Some((path, controllers)) => {
                    let parent = path.join(tag.object_name());
                    if !parents.iter().any(|(other, _)| *other == parent) {
                        parents.push((parent, controllers.clone()));
                    }
                }
                None if REQUIRED.contains(&wanted) => return Err(CgroupError::NoController(wanted)),
                None => {}
            }
        }
        Ok(Self::V1 { parents })
    }

    /// Makes the parent directories, ready to have children with limits.
    pub(super) fn prepare(&self) -> Result<(), CgroupError> {
        match self {
            Self::V1 { parents } => parents.iter().try_for_each(|(parent, _)| make(parent)),
            Self::V2 { base, parent } => {
                if enable_controllers(base).is_err() {
                    // A cgroup with processes of its own cannot give controllers to children ("no internal processes",
                    // cgroups(7)), except for the root.
                    evacuate(base)?;
                    enable_controllers(base)?;
                }
                make(parent)?;
                enable_controllers(parent)
            }
        }
    }

    /// The parent directories.
    pub(super) fn parents(&self) -> Vec<&Path> {
        match self {
            Self::V2 { parent, .. } => vec![parent],
            Self::V1 { parents } => parents.iter().map(|(parent, _)| parent.as_path()).collect(),
        }
    }
}

/// Makes the cgroup `path` one whose limits hold for the sum of those below it. It may have no processes.
pub(super) fn make_inner(path: &Path, version: Version) -> Result<(), CgroupError> {
    match version {
        Version::V2 => enable_controllers(path),
        Version::V1 => {
            // cpu and pids always count what is below. Memory does from Linux 5.11 on; before, it had to be asked to.
            let hierarchy = path.join("memory.use_hierarchy");
            if hierarchy.exists() && read(&hierarchy)?.trim() == "0" { write(&hierarchy, "1") } else { Ok(()) }
        }
    }
}

fn parse_mountinfo(text: &str) -> Vec<Mount> {
    let mounts = text.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let path = PathBuf::from(mount.split(' ').nth(4)?);
        let mut words = file_system.split(' ');
        match words.next()? {
            "cgroup2" => Some(Mount::V2(path)),
            "cgroup" => {
                let options: Vec<_> = words.nth(1)?.split(',').collect();
                Some(Mount::V1(path, CONTROLLERS.into_iter().filter(|c| options.contains(c)).collect()))
            }
            _ => None,
        }
    });
    mounts.collect()
}

/// The cgroup below which we may make our own.
///
/// systemd marks what it delegates (`Delegate=yes`) and leaves alone. Ours it is where `DelegateSubgroup=` (systemd 254) has
/// put us into a leaf of it. In the delegated cgroup itself we must not give controllers to children: as long as a session
/// lives, that would have systemd fail to start our successor there (`EBUSY`, "no internal processes", cgroups(7)).
/// Anywhere else we would be in somebody's way, in a login session for instance, whose processes are not ours to move.
/// In both cases the root it is, where systemd leaves alone what it does not know.
fn delegated(root: &Path, own: &str, is_delegated: impl Fn(&Path) -> bool) -> PathBuf {
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let own = root.join(own);
    let found = own.parent().filter(|path| path.starts_with(root) && *path != root && is_delegated(path));
    found.unwrap_or(root).to_owned()
}

fn is_delegated(path: &Path) -> bool {
    ["trusted.delegate", "user.delegate"].iter().any(|name| matches!(xattr::get(path, name), Ok(Some(v)) if v == b"1"))
}

/// Lets children of `cgroup` have the limits that we set, as far as the kernel has them.
///
/// All controllers in one write: cpu and pids alone are granted also to a cgroup with processes in it, which that makes
/// threaded, and its children invalid for the rest (cgroup-v2.rst, "Threads"). With memory among them it is refused.
fn enable_controllers(cgroup: &Path) -> Result<(), CgroupError> {
    let available = read(&cgroup.join("cgroup.controllers"))?;
    let enabled = read(&cgroup.join("cgroup.subtree_control"))?;
    let has = |list: &str, controller: &str| list.split_whitespace().any(|c| c == controller);
    if let Some(missing) = REQUIRED.into_iter().find(|wanted| !has(&available, wanted)) {
        return Err(CgroupError::NoController(missing));
    }
    let missing = CONTROLLERS.into_iter().filter(|c| has(&available, c) && !has(&enabled, c));
    let wanted: Vec<String> = missing.map(|controller| format!("+{controller}")).collect();
    if wanted.is_empty() { Ok(()) } else { write(&cgroup.join("cgroup.subtree_control"), &wanted.join(" ")) }
}

/// Moves the processes of `cgroup` into a leaf of it, and those that they have started meanwhile.
fn evacuate(cgroup: &Path) -> Result<(), CgroupError> {
    let leaf = cgroup.join(LEAF);
    make(&leaf)?;
    // Who goes on appearing after that many looks has the next step fail.
    for _ in 0..EVACUATIONS {
        let pids = read(&cgroup.join("cgroup.procs"))?;
        if pids.is_empty() {
            break;
        }
        for pid in pids.lines() {
            match write(&leaf.join("cgroup.procs"), pid) {
                // It has ended meanwhile.
                Err(CgroupError::Write { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// Makes a directory unless it is there.
fn make(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(|source| CgroupError::Create { path: path.to_owned(), source }),
    }
}

pub(super) fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| CgroupError::Read { path: path.to_owned(), source })
}

pub(super) fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    let failed = |source| CgroupError::Write { path: path.to_owned(), value: value.to_owned(), source };
    // Never made: a file that the kernel lacks is an error, also where tests put an ordinary directory.
    let mut file = fs::OpenOptions::new().write(true).truncate(true).open(path).map_err(failed)?;
    std::io::Write::write_all(&mut file, value.as_bytes()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_told_apart() {
        let text = "\
            31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            36 31 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            garbage\n";
        let v1 =
            |path: &str, controllers: &[&'static str]| Mount::V1(path.into(), controllers.iter().copied().collect());
        assert_eq!(
            parse_mountinfo(text),
            [
                v1("/sys/fs/cgroup/cpu,cpuacct", &["cpu", "cpuacct"]),
                v1("/sys/fs/cgroup/memory", &["memory"]),
                v1("/sys/fs/cgroup/systemd", &[]),
                Mount::V2("/sys/fs/cgroup/unified".into()),
            ]
        );
    }

    #[test]
    fn only_a_delegated_subtree_is_used() {
        let root = Path::new("/cg");
        let unit = "/cg/system.slice/podspawn.service";
        let cases = [
            ("0::/\n", "", "/cg"),
            ("1:cpu:/x\n0::/user.slice/session-3.scope\n", "", "/cg"),
            ("0::/system.slice/podspawn.service\n", unit, "/cg"),
            ("0::/system.slice/podspawn.service/supervisor\n", unit, unit),
            ("0::/system.slice/podspawn.service/a/b\n", unit, "/cg"),
            ("0::/\n", "/", "/cg"),
            ("", unit, "/cg"),
        ];
        for (own, marked, expected) in cases {
            assert_eq!(delegated(root, own, |path| path == Path::new(marked)), Path::new(expected), "{own:?}");
        }
    }

    /// An ordinary directory in place of a cgroup: which files are written with what.
    #[test]
    fn a_v2_parent_passes_its_controllers_on() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().to_owned();
        let parent = base.join("podspawn-test");
        fs::create_dir(&parent).unwrap();
        for path in [&base, &parent] {
            fs::write(path.join("cgroup.controllers"), "cpuset memory pids\n").unwrap();
            fs::write(path.join("cgroup.subtree_control"), "memory\n").unwrap();
        }
        Layout::V2 { base: base.clone(), parent: parent.clone() }.prepare().unwrap();
        let session = base.join("2abcdefg");
        fs::create_dir(&session).unwrap();
        fs::write(session.join("cgroup.controllers"), "memory pids\n").unwrap();
        fs::write(session.join("cgroup.subtree_control"), "memory\n").unwrap();
        make_inner(&session, Version::V2).unwrap();
        for path in [&base, &parent, &session] {
            // Nothing is asked for that is there already or that the kernel lacks.
            assert_eq!(fs::read_to_string(path.join("cgroup.subtree_control")).unwrap(), "+pids");
        }
    }
}
