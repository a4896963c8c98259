//! What a session may use, written into its cgroup.
//!
//! cgroups-rs knows the control files of v1 and v2 and does the writing. The rest of it is not used: its v1 `Cgroup`
//! makes a directory under every controller that is mounted and only logs what fails, its v2 is always the one at
//! `/sys/fs/cgroup`, and processes are put in by whoever holds it, while ours have to get in by themselves (10 ms apart).

use std::path::Path;

use serde::{Deserialize, Serialize};

use cgroups_rs::{MaxValue, cpu::CpuController, error::Error, memory::MemController, pid::PidController};

use super::CgroupError;

/// Microseconds; the kernel's default, and what OCI runtimes use.
const CPU_PERIOD: u64 = 100_000;
/// The smallest quota that the kernel takes, in microseconds.
const CPU_QUOTA_MIN: f64 = 1000.0;

/// What a session may use at most; `None` is no limit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// CPUs, e.g. 1.5.
    pub cpus: Option<f64>,
    /// Bytes, swap included.
    pub memory_max: Option<u64>,
    /// Processes and threads.
    pub pids_max: Option<u64>,
}

impl Limits {
    /// Microseconds of CPU time, and out of how many.
    pub fn quota(&self) -> Option<(i64, u64)> {
        self.cpus.map(|cpus| (quota(cpus), CPU_PERIOD))
    }

    /// What a part of `whole` may use that is to have these: not more CPUs than there are, which v1 refuses.
    #[must_use]
    pub fn within(&self, whole: &Self) -> Self {
        let cpus = self.cpus.map(|own| whole.cpus.map_or(own, |all| own.min(all)));
        Self { cpus, ..self.clone() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// Writes the CPU limit of the cgroup `path`: so many microseconds out of 100 ms.
pub(super) fn limit_cpus(path: &Path, version: Version, cpus: f64) -> Result<(), CgroupError> {
    let controller = CpuController::new(path.to_owned(), version == Version::V2);
    controller.set_cfs_quota_and_period(Some(quota(cpus)), Some(CPU_PERIOD)).map_err(|source| failed(path, source))
}

fn quota(cpus: f64) -> i64 {
    // A float that is out of range saturates, which is no limit.
    (cpus * 100_000.0).round().max(CPU_QUOTA_MIN) as i64
}

/// Writes the memory limit of the cgroup `path`. There is no swap beyond it: a session that has used its share is
/// killed, not paged out at its neighbours' cost.
///
/// Without swap accounting in the kernel the files for it are missing, and nothing can be done. `memory.oom.group`
/// stays 0, its default, so that the biggest process is killed and not the whole session.
pub(super) fn limit_memory(path: &Path, version: Version, bytes: u64) -> Result<(), CgroupError> {
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    let controller = MemController::new(path.to_owned(), version == Version::V2);
    // On v1 the second is memory and swap together and may not be less than the first, so this is the order.
    controller.set_limit(bytes).map_err(|source| failed(path, source))?;
    let (file, swap) = match version {
        Version::V1 => ("memory.memsw.limit_in_bytes", bytes),
        Version::V2 => ("memory.swap.max", 0),
    };
    if path.join(file).exists() {
        controller.set_memswap_limit(swap).map_err(|source| failed(path, source))?;
    }
    Ok(())
}

/// Writes the limit of processes and threads of the cgroup `path`.
pub(super) fn limit_pids(path: &Path, version: Version, count: u64) -> Result<(), CgroupError> {
    let count = MaxValue::Value(i64::try_from(count).unwrap_or(i64::MAX));
    let controller = PidController::new(path.to_owned(), version == Version::V2);
    controller.set_pid_max(count).map_err(|source| failed(path, source))
}

fn failed(path: &Path, source: Error) -> CgroupError {
    CgroupError::Limit { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ordinary directory in place of a cgroup: which files are written with what.
    #[test]
    fn v2_limits_are_in_the_kernels_units() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let contents = |file: &str| std::fs::read_to_string(path.join(file)).unwrap();
        for (cpus, expected) in [(1.5, "150000 100000"), (0.001, "1000 100000"), (64.0, "6400000 100000")] {
            std::fs::write(path.join("cpu.max"), "max 100000\n").unwrap();
            limit_cpus(path, Version::V2, cpus).unwrap();
            assert_eq!(contents("cpu.max"), expected);
        }
        limit_memory(path, Version::V2, 1 << 30).unwrap();
        assert_eq!(contents("memory.max"), "1073741824");
        assert!(!path.join("memory.swap.max").exists(), "a kernel without swap accounting");
        std::fs::write(path.join("memory.swap.max"), "max\n").unwrap();
        limit_memory(path, Version::V2, u64::MAX).unwrap();
        assert_eq!((contents("memory.max"), contents("memory.swap.max")), (i64::MAX.to_string(), "0".to_owned()));
        limit_pids(path, Version::V2, 512).unwrap();
        assert_eq!(contents("pids.max"), "512");
    }
}
