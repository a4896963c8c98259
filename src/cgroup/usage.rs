//! What a session uses, read from its cgroup.

use std::time::Duration;

use super::{Cgroup, CgroupError, is_gone, layout::read, limits::Version};

/// What the processes of a session use now, and have used so far. `None` is what this kernel does not count here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of all processes, those that have ended included.
    pub cpu: Option<Duration>,
    /// Bytes, without the part of the page cache that the kernel would drop first.
    pub memory: Option<u64>,
    pub memory_max: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    pub pids_max: Option<u64>,
    /// Processes that were killed because the session had used up its memory.
    pub oom_kills: Option<u64>,
}

/// The most that the processes of a session have used at one time. `None` is what this kernel does not remember.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peaks {
    /// Bytes, with all of the page cache.
    pub memory: Option<u64>,
    /// Processes and threads; from Linux 6.11 on.
    pub pids: Option<u64>,
}

/// v1 says "no limit" with the largest number of pages that fits.
const V1_UNLIMITED: u64 = 1 << 62;

impl Cgroup {
    /// Reads the counters: eight small files, some 50 µs. All `None` if the cgroup is gone.
    ///
    /// # Errors
    /// [`CgroupError::Read`], but not for a file that this kernel does not have.
    pub fn usage(&self) -> Result<Usage, CgroupError> {
        match self.version {
            Version::V2 => self.usage_v2(),
            Version::V1 => self.usage_v1(),
        }
    }

    /// Reads what the kernel remembers of the largest numbers. All `None` if the cgroup is gone.
    ///
    /// # Errors
    /// As of [`Cgroup::usage`].
    pub fn peaks(&self) -> Result<Peaks, CgroupError> {
        let memory = match self.version {
            Version::V2 => "memory.peak",
            Version::V1 => "memory.max_usage_in_bytes",
        };
        Ok(Peaks { memory: self.number("memory", memory)?, pids: self.number("pids", "pids.peak")? })
    }

    /// CPU time of all processes, those that have ended included; `None` if that is not counted here, or the cgroup is gone.
    pub fn cpu(&self) -> Result<Option<Duration>, CgroupError> {
        match self.version {
            Version::V2 => {
                let stat = self.file("cpu", "cpu.stat")?;
                Ok(stat.as_deref().and_then(|text| field(text, "usage_usec")).map(Duration::from_micros))
            }
            Version::V1 => Ok(self.number("cpuacct", "cpuacct.usage")?.map(Duration::from_nanos)),
        }
    }

    fn usage_v2(&self) -> Result<Usage, CgroupError> {
        let memory = self.number("memory", "memory.current")?;
        let stat = self.file("memory", "memory.stat")?;
        let events = self.file("memory", "memory.events")?;
        Ok(Usage {
            cpu: self.cpu()?,
            memory: without_cache(memory, stat.as_deref(), "inactive_file"),
            memory_max: self.number("memory", "memory.max")?,
            pids: self.number("pids", "pids.current")?,
            pids_max: self.number("pids", "pids.max")?,
            oom_kills: events.as_deref().and_then(|text| field(text, "oom_kill")),
        })
    }

    fn usage_v1(&self) -> Result<Usage, CgroupError> {
        let memory = self.number("memory", "memory.usage_in_bytes")?;
        let stat = self.file("memory", "memory.stat")?;
        let events = self.file("memory", "memory.oom_control")?;
        Ok(Usage {
            cpu: self.cpu()?,
            memory: without_cache(memory, stat.as_deref(), "total_inactive_file"),
            memory_max: self.number("memory", "memory.limit_in_bytes")?.filter(|bytes| *bytes < V1_UNLIMITED),
            pids: self.number("pids", "pids.current")?,
            pids_max: self.number("pids", "pids.max")?,
            oom_kills: events.as_deref().and_then(|text| field(text, "oom_kill")),
        })
    }

    /// The contents of a control file; `None` if there is none, or the cgroup is gone.
    fn file(&self, controller: &'static str, name: &str) -> Result<Option<String>, CgroupError> {
        let Ok(directory) = self.path(controller) else { return Ok(None) };
        match read(&directory.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The number in a control file; `None` also for "max".
    fn number(&self, controller: &'static str, name: &str) -> Result<Option<u64>, CgroupError> {
        Ok(self.file(controller, name)?.and_then(|text| text.trim().parse().ok()))
    }
}

/// The number of a line `NAME NUMBER`.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn without_cache(memory: Option<u64>, stat: Option<&str>, cache: &str) -> Option<u64> {
    let cache = stat.and_then(|text| field(text, cache)).unwrap_or(0);
    memory.map(|bytes| bytes.saturating_sub(cache))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Ordinary directories in place of cgroups: which files are read, and in which units.
    #[test]
    fn counters_are_read_in_the_kernels_units() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let files = [
            ("cpu.stat", "usage_usec 1500000\nuser_usec 1\nsystem_usec 2\n"),
            ("cpuacct.usage", "1500000000\n"),
            ("memory.current", "1000\n"),
            ("memory.usage_in_bytes", "1000\n"),
            ("memory.stat", "anon 1\ninactive_file_x 9\ninactive_file 300\ntotal_inactive_file 400\n"),
            ("memory.max", "max\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.events", "low 0\noom 4\noom_kill 3\noom_group_kill 0\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            ("memory.peak", "2000\n"),
            ("memory.max_usage_in_bytes", "2000\n"),
            ("pids.peak", "9\n"),
            ("pids.current", "7\n"),
            ("pids.max", "512\n"),
        ];
        for (name, text) in files {
            fs::write(path.join(name), text).unwrap();
        }
        let controllers = ["cpu", "cpuacct", "memory", "pids"].into();
        let cgroup = |version| Cgroup { version, paths: vec![(path.to_owned(), Clone::clone(&controllers))] };
        let expected = Usage {
            cpu: Some(Duration::from_millis(1500)),
            memory: Some(700),
            memory_max: None,
            pids: Some(7),
            pids_max: Some(512),
            oom_kills: Some(3),
        };
        assert_eq!(cgroup(Version::V2).usage().unwrap(), expected);
        assert_eq!(cgroup(Version::V1).usage().unwrap(), Usage { memory: Some(600), ..expected });
        let peaks = Peaks { memory: Some(2000), pids: Some(9) };
        assert_eq!(
            (cgroup(Version::V2).peaks().unwrap(), cgroup(Version::V1).peaks().unwrap()),
            (peaks.clone(), peaks)
        );
        fs::write(path.join("memory.max"), "4096\n").unwrap();
        assert_eq!(cgroup(Version::V2).usage().unwrap().memory_max, Some(4096));

        let gone = Cgroup { version: Version::V2, paths: vec![(path.join("gone"), Clone::clone(&controllers))] };
        assert_eq!((gone.usage().unwrap(), gone.peaks().unwrap()), (Usage::default(), Peaks::default()));
    }
}
