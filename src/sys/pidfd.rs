//! Processes held by descriptor (pidfd_open(2), pidfd_send_signal(2)).
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
    time::Duration,
};

use super::poll::wait_readable;

/// A process that is held, so that its pid cannot be somebody else's meanwhile: what is done to it is done to no other.
#[derive(Debug)]
pub struct Held {
    pid: i32,
    pidfd: OwnedFd,
}

impl Held {
    /// Holds the process `pid`, whoever that is now.
    ///
    /// # Errors
    /// `ESRCH` if there is none.
    pub fn open(pid: i32) -> io::Result<Self> {
        Ok(Self { pid, pidfd: pidfd_open(pid)? })
    }

    /// Takes over the process that somebody recorded as `pid` and [`starttime`](Self::starttime); `None` if it has ended.
    pub fn adopt(pid: i32, starttime: u64) -> Option<Self> {
        let held = Self::open(pid).ok()?;
        // Read after the pidfd was opened: if it is the right process now, it was the right one then.
        (held.starttime().ok()? == starttime && !held.has_ended()).then_some(held)
    }

    /// Of a process that was cloned with CLONE_PIDFD or whose pidfd somebody trusted sent.
    pub fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd }
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Becomes readable when the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// When the process was started, in clock ticks since boot: with the pid it names one process of this boot.
    ///
    /// # Errors
    /// Those of reading `/proc/PID/stat`: `NotFound` if it has ended and been reaped.
    pub fn starttime(&self) -> io::Result<u64> {
        starttime(self.pid)
    }

    /// Kills the process. Succeeds if it has ended already; does not wait.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(self.pidfd(), libc::SIGKILL) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }

    /// Asks the process to end. Succeeds if it has ended already; does not wait.
    pub fn terminate(&self) -> io::Result<()> {
        match pidfd_send_signal(self.pidfd(), libc::SIGTERM) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }

    /// Whether the process has ended.
    pub fn has_ended(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Waits until the process has ended, at most for `limit`; whether it has.
    pub fn wait(&self, limit: Duration) -> bool {
        wait_readable(self.pidfd(), limit).is_ok()
    }
}

fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain integers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(fd) {
        // SAFETY: the call has just returned this new descriptor, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends `signal` to the process. `ESRCH` if it has ended and been reaped.
fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let info: *const libc::siginfo_t = ptr::null();
    // SAFETY: a null siginfo is allowed and means the one that kill(2) would send.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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
        assert!(Held::adopt(pid, started + 1).is_none());
        let held = Held::adopt(pid, started).unwrap();
        assert!(!held.has_ended());
        held.kill().unwrap();
        assert!(held.wait(Duration::from_secs(5)));
        assert!(Held::adopt(pid, started).is_none(), "a zombie has ended");
        child.wait().unwrap();
        held.kill().expect("killing twice is fine");
    }
}
