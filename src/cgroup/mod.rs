//! The cgroup of each session: its limits, joining it, killing what is in it.
//!
//! One type, with cgroup v2 or the v1 controllers cpu, memory and pids behind it (cgroups(7)). Sessions of an instance are
//! side by side in one directory per hierarchy, `podspawn-<tag>/<session>`. Files are written through cgroups-rs; making,
//! joining, killing and removing is done here, since its own ways move processes by `cgroup.procs` (10 ms on v1), ignore
//! errors, or walk up to the parent.

mod hierarchy;

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cgroups_rs::{MaxValue, cpu::CpuController, memory::MemController, pid::PidController};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

pub use self::hierarchy::Hierarchies;
use crate::{
    names::{InstanceTag, SessionId},
    protocol::CgroupJoin,
};

/// The period that `cpu.max` and `cpu.cfs_quota_us` count in: 100 ms, the kernel's default.
const PERIOD_US: u64 = 100_000;

/// How long processes may take to leave a cgroup after they were killed.
const EMPTY_LIMIT: Duration = Duration::from_secs(5);

/// Why a cgroup could not be made, limited or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("this host has no cgroup hierarchy with the {0} controller mounted under /sys/fs/cgroup")]
    MissingController(&'static str),
    #[error("cannot make the cgroup {}", .0.display())]
    Create(PathBuf, #[source] io::Error),
    #[error("cannot set {what} in {}", .path.display())]
    Limit { what: &'static str, path: PathBuf, #[source] source: cgroups_rs::error::Error },
    #[error("cannot use {}", .0.display())]
    File(PathBuf, #[source] io::Error),
    #[error("{} still has processes {} s after they were killed", .0.display(), EMPTY_LIMIT.as_secs())]
    Busy(PathBuf),
}

/// What the processes of a session may use together; `None` = no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limits {
    /// CPUs, e.g. 0.5.
    pub cpus: Option<f64>,
    /// Bytes. Swap is not added to it.
    pub memory_max: Option<u64>,
    pub pids_max: Option<u64>,
}

/// The cgroups of one instance.
pub struct Cgroups {
    hierarchies: Hierarchies,
    parent: String,
}

/// One session's cgroup: a directory in each hierarchy, there or not.
pub struct Cgroup {
    directories: Vec<Directory>,
    v2: bool,
}

struct Directory {
    path: PathBuf,
    controllers: &'static [&'static str],
}

impl Cgroups {
    /// Finds the hierarchies and makes the instance's own directory in each.
    pub fn open(tag: &InstanceTag) -> Result<Self, CgroupError> {
        let hierarchies = Hierarchies::find()?;
        let cgroups = Self { hierarchies, parent: tag.object_name() };
        cgroups.hierarchies.prepare(&cgroups.parent)?;
        Ok(cgroups)
    }

    /// Makes the session's cgroup and sets its limits before any process joins it. Nothing is left after a failure.
    pub fn create(&self, id: &SessionId, limits: &Limits) -> Result<Cgroup, CgroupError> {
        let cgroup = self.adopt(id);
        let made = cgroup.directories.iter().try_for_each(|directory| {
            fs::create_dir(&directory.path).map_err(|error| CgroupError::Create(directory.path.clone(), error))?;
            directory.limit(limits, cgroup.v2)
        });
        if let Err(error) = made {
            // The first error is the one to tell.
            let _ = cgroup.destroy();
            return Err(error);
        }
        Ok(cgroup)
    }

    /// The cgroup of a session, whether it exists or not.
    pub fn adopt(&self, id: &SessionId) -> Cgroup {
        let directory = |(root, controllers): (PathBuf, _)| Directory {
            path: root.join(&self.parent).join(id.as_str()),
            controllers,
        };
        let directories = self.hierarchies.roots().map(directory).collect();
        Cgroup { directories, v2: self.hierarchies.is_v2() }
    }

    /// Removes the instance's own directories. One in which there still is a session stays.
    pub fn close(&self) -> Result<(), CgroupError> {
        for (root, _) in self.hierarchies.roots() {
            let path = root.join(&self.parent);
            match fs::remove_dir(&path) {
                Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ResourceBusy) => {
                    return Err(CgroupError::File(path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The paths of every cgroup of the instance, its own directories included.
    pub fn listing(tag: &InstanceTag) -> Result<Vec<String>, CgroupError> {
        let mut found = Vec::new();
        for (root, _) in Hierarchies::find()?.roots() {
            let parent = root.join(tag.object_name());
            let entries = match fs::read_dir(&parent) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(|error| CgroupError::File(parent.clone(), error))?,
            };
            for entry in entries {
                let entry = entry.map_err(|error| CgroupError::File(parent.clone(), error))?;
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    found.push(entry.path().display().to_string());
                }
            }
            found.push(parent.display().to_string());
        }
        Ok(found)
    }
}

impl Directory {
    fn limit(&self, limits: &Limits, v2: bool) -> Result<(), CgroupError> {
        let failed = |what| move |source| CgroupError::Limit { what, path: self.path.clone(), source };
        for controller in self.controllers {
            match (*controller, limits) {
                ("cpu", Limits { cpus: Some(cpus), .. }) => {
                    // At least 1 ms per period, which is the smallest quota that the kernel takes.
                    let quota = ((cpus * PERIOD_US as f64) as i64).max(1000);
                    CpuController::new(self.path.clone(), v2)
                        .set_cfs_quota_and_period(Some(quota), Some(PERIOD_US))
                        .map_err(failed("the CPU quota"))?;
                }
                ("memory", Limits { memory_max: Some(bytes), .. }) => {
                    let memory = MemController::new(self.path.clone(), v2);
                    let bytes = i64::try_from(*bytes).unwrap_or(i64::MAX);
                    memory.set_limit(bytes).map_err(failed("the memory limit"))?;
                    // v2 counts swap apart from memory, v1 both together.
                    let swap = if v2 { "memory.swap.max" } else { "memory.memsw.limit_in_bytes" };
                    if self.path.join(swap).exists() {
                        let limit = if v2 { 0 } else { bytes };
                        memory.set_memswap_limit(limit).map_err(failed("the swap limit"))?;
                    }
                }
                ("pids", Limits { pids_max: Some(pids), .. }) => {
                    let pids = i64::try_from(*pids).unwrap_or(i64::MAX);
                    PidController::new(self.path.clone(), v2)
                        .set_pid_max(MaxValue::Value(pids))
                        .map_err(failed("the process limit"))?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Cgroup {
    /// What a new process needs to get in.
    pub fn join(&self) -> Result<(CgroupJoin, Vec<OwnedFd>), CgroupError> {
        let mut fds = Vec::new();
        for directory in &self.directories {
            let (path, file) = if self.v2 {
                (directory.path.clone(), File::open(&directory.path))
            } else {
                let tasks = directory.path.join("tasks");
                let file = File::options().write(true).open(&tasks);
                (tasks, file)
            };
            fds.push(file.map_err(|error| CgroupError::File(path, error))?.into());
        }
        let join = if self.v2 { CgroupJoin::V2 } else { CgroupJoin::V1 { count: fds.len() as u32 } };
        Ok((join, fds))
    }

    /// Sends SIGKILL to everything in it. A cgroup that is not there has nothing in it.
    pub fn kill(&self) -> Result<(), CgroupError> {
        for directory in &self.directories {
            let kill_file = directory.path.join("cgroup.kill");
            if self.v2 && kill_file.exists() {
                match fs::write(&kill_file, "1") {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(CgroupError::File(kill_file, error));
                    }
                    _ => continue,
                }
            }
            // A process may fork between reading and killing; `destroy` comes back until nothing is left.
            for pid in processes(&directory.path)? {
                match kill(pid, Signal::SIGKILL) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => return Err(CgroupError::File(directory.path.clone(), errno.into())),
                }
            }
        }
        Ok(())
    }

    /// Removes it, waiting for killed processes to leave; what is not there is no error.
    pub fn destroy(&self) -> Result<(), CgroupError> {
        let end = Instant::now() + EMPTY_LIMIT;
        for directory in &self.directories {
            loop {
                match fs::remove_dir(&directory.path) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                        if Instant::now() > end {
                            return Err(CgroupError::Busy(directory.path.clone()));
                        }
                        self.kill()?;
                        // The kernel has no way to wait for a v1 cgroup to become empty.
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    Err(error) => return Err(CgroupError::File(directory.path.clone(), error)),
                }
            }
        }
        Ok(())
    }
}

fn processes(directory: &Path) -> Result<Vec<Pid>, CgroupError> {
    let path = directory.join("cgroup.procs");
    let text = match fs::read_to_string(&path) {
        // ENODEV: it was removed after it was opened.
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ENODEV as i32) => {
            return Ok(Vec::new());
        }
        other => other.map_err(|error| CgroupError::File(path, error))?,
    };
    // A pid of 0 is a process of another pid namespace, which cannot be ours; and kill(0) would hit ourselves.
    Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).map(Pid::from_raw).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Write,
        process::{Child, Command, Stdio},
    };

    struct World {
        cgroups: Cgroups,
        tag: InstanceTag,
    }

    impl World {
        fn new(name: &str) -> Self {
            let tag = InstanceTag::of_root(Path::new("/test/cgroup").join(name).as_path());
            Self { cgroups: Cgroups::open(&tag).unwrap(), tag }
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            self.cgroups.close().unwrap();
            assert_eq!(Cgroups::listing(&self.tag).unwrap(), Vec::<String>::new());
        }
    }

    /// A shell that waits for a line before it runs `script`, in the cgroup.
    fn shell(cgroup: &Cgroup, script: &str) -> Child {
        let mut child = Command::new("sh")
            .args(["-c", &format!("read line; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        for directory in &cgroup.directories {
            fs::write(directory.path.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        child
    }

    #[test]
    fn processes_memory_and_cpu_are_limited() {
        let world = World::new("limits");
        let limits = Limits { cpus: Some(0.25), memory_max: Some(32 << 20), pids_max: Some(10) };
        let cgroup = world.cgroups.create(&SessionId::from_bits(1), &limits).unwrap();

        let forks = shell(&cgroup, "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 30 >/dev/null & done; echo survived");
        let output = forks.wait_with_output();
        cgroup.kill().unwrap();
        assert!(!String::from_utf8_lossy(&output.unwrap().stdout).contains("survived"));

        let hog = shell(&cgroup, "head -c 200M /dev/zero | tail; echo survived").wait_with_output().unwrap();
        assert!(!String::from_utf8_lossy(&hog.stdout).contains("\0"), "tail kept 200 MB in 32");

        let quota: Vec<_> = cgroup
            .directories
            .iter()
            .filter(|directory| directory.controllers.contains(&"cpu"))
            .map(|directory| {
                let name = if cgroup.v2 { "cpu.max" } else { "cpu.cfs_quota_us" };
                fs::read_to_string(directory.path.join(name)).unwrap()
            })
            .collect();
        assert!(quota[0].starts_with("25000"), "{quota:?}");
        cgroup.destroy().unwrap();
    }

    #[test]
    fn killing_and_removing_copes_with_what_is_inside_and_what_is_gone() {
        let world = World::new("destroy");
        let id = SessionId::from_bits(2);
        let cgroup = world.cgroups.create(&id, &Limits::default()).unwrap();
        let mut child = shell(&cgroup, "while :; do sleep 1 & done");
        assert!(Cgroups::listing(&world.tag).unwrap().iter().any(|path| path.ends_with(id.as_str())));
        cgroup.kill().unwrap();
        cgroup.destroy().unwrap();
        child.wait().unwrap();
        cgroup.kill().unwrap();
        cgroup.destroy().unwrap();
    }

    #[test]
    fn a_cgroup_that_exists_is_not_taken_over() {
        let world = World::new("exists");
        let id = SessionId::from_bits(3);
        let cgroup = world.cgroups.create(&id, &Limits::default()).unwrap();
        assert!(matches!(world.cgroups.create(&id, &Limits::default()), Err(CgroupError::Create(..))));
        cgroup.destroy().unwrap();
    }
}
