//! A running container, held by its init's pidfd.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

use crate::sys::pidfd::Held;

/// A container's init. When it ends, the kernel ends every process of the container and frees all its mounts.
#[derive(Debug)]
pub struct Container(Held);

impl Container {
    pub(super) fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self(Held::new(pid, pidfd))
    }

    pub(super) fn held(init: Held) -> Self {
        Self(init)
    }

    /// Takes over the init that another supervisor recorded as `pid` and [`starttime`](Self::starttime); `None` if it has
    /// ended.
    pub fn adopt(pid: i32, starttime: u64) -> Option<Self> {
        Held::adopt(pid, starttime).map(Self)
    }

    /// Init's pid on the host.
    pub fn pid(&self) -> i32 {
        self.0.pid()
    }

    /// Becomes readable when init has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.0.pidfd()
    }

    /// When init was started, in clock ticks since boot: with the pid it names one process of this boot.
    ///
    /// # Errors
    /// Those of reading `/proc/PID/stat`: `NotFound` if it has ended.
    pub fn starttime(&self) -> io::Result<u64> {
        self.0.starttime()
    }

    /// Kills every process of the container. Succeeds if it has ended already; does not wait.
    pub fn kill(&self) -> io::Result<()> {
        self.0.kill()
    }

    /// Whether init has ended, and with it everything in the container.
    pub fn has_ended(&self) -> bool {
        self.0.has_ended()
    }

    /// Waits until init has ended, at most for `limit`; whether it has.
    pub fn wait(&self, limit: Duration) -> bool {
        self.0.wait(limit)
    }
}
