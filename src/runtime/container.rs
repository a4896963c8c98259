//! A running container, held by its init's pidfd.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys::pidfd::{pidfd_open, pidfd_send_signal};

/// A container's init. When it ends, the kernel ends every process of the container and frees all its mounts.
#[derive(Debug)]
pub struct Container {
    pid: i32,
    pidfd: OwnedFd,
}

impl Container {
    pub(super) fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd }
    }

    /// Takes over the init that another supervisor recorded as `pid` and [`starttime`](Self::starttime); `None` if it has
    /// ended.
    pub fn adopt(pid: i32, starttime: u64) -> Option<Self> {
        let container = Self { pid, pidfd: pidfd_open(pid).ok()? };
        // Read after the pidfd was opened: if it is the right process now, it was the right one then.
        (container.starttime().ok()? == starttime && !container.has_ended()).then_some(container)
    }

    /// Init's pid on the host.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Becomes readable when init has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// When init was started, in clock ticks since boot: with the pid it names one process of this boot.
    ///
    /// # Errors
    /// Those of reading `/proc/PID/stat`: `NotFound` if it has ended.
    pub fn starttime(&self) -> io::Result<u64> {
        starttime(self.pid)
    }

    /// Kills every process of the container. Succeeds if it has ended already; does not wait.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }

    /// Whether init has ended, and with it everything in the container.
    pub fn has_ended(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Waits until init has ended, at most for `limit`; whether it has.
    pub fn wait(&self, limit: Duration) -> bool {
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        matches!(poll(&mut [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)], timeout), Ok(1))
    }
}

/// Field 22 of `/proc/PID/stat`. The name (field 2) may hold spaces and parentheses, so the fields are counted after it.
fn starttime(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat"))?;
    let name_end = stat.iter().rposition(|&b| b == b')').ok_or(io::ErrorKind::InvalidData)?;
    let fields = String::from_utf8_lossy(&stat[name_end + 1..]);
    let field = fields.split_ascii_whitespace().nth(22 - 3).ok_or(io::ErrorKind::InvalidData)?;
    field.parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_adopted_only_with_its_own_start_time() {
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let pid = child.id().cast_signed();
        let started = starttime(pid).unwrap();
        assert!(Container::adopt(pid, started + 1).is_none());
        let container = Container::adopt(pid, started).unwrap();
        assert!(!container.has_ended());
        container.kill().unwrap();
        assert!(container.wait(Duration::from_secs(5)));
        assert!(Container::adopt(pid, started).is_none(), "a zombie is not a container");
        child.wait().unwrap();
        container.kill().expect("killing twice is fine");
    }
}
