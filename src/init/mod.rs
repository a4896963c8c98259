//! PID 1 of a container: sets it up from the inside, then runs what it is asked to.
//!
//! It is a clone of the spawner that never executes anything itself, so no file of the host is behind `/proc/1/exe`; one
//! thread, no async runtime (but in children that look names up). It owns every process of the container and passes the ends of terminals and pipes on. A
//! peer's messages are input: the worst they can do is to have their own socket closed.
//!
//! ```text
//! setup     steps in order: cgroup, ids, mounts, pivot_root, files, account, limits, privileges ─▶ Ready
//! serve     the loop: listener, sockets, SIGCHLD, deadlines
//! stays     the one process that does not end with who has started it
//! launch    one process: pipes or terminal, ids, environment, exec; identity: whose ids
//! sftp      a child that serves files instead of executing something
//! stand_in  the same for commands of file transfers that the image has no program for, scp above all
//! forwards  names, connections and listeners for forwarding; errands: children that do what may wait or needs the user's rights
//! ```

mod account;
mod errands;
mod files;
pub mod filesystems;
mod forwards;
mod home;
mod identity;
mod launch;
mod nested;
mod privileges;
mod resolve;
mod scp;
mod serve;
mod setup;
pub mod sftp;
mod sockets;
mod stand_in;
mod stays;
mod terminal;

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    time::Duration,
};

use crate::{
    protocol::{ContainerSpec, FromNewborn, wire},
    sys::{
        confine::Instruction,
        process::{SingleThreaded, close_all_but, exit_now},
    },
};

/// How long a process that lost its client may take to end after SIGHUP.
const HANGUP_GRACE: Duration = Duration::from_secs(5);

pub use self::{launch::DEFAULT_PATH, privileges::possible, serve::OOM_SCORE};

/// What the spawner leaves to its child. The descriptors are numbers that the child keeps; it closes all others.
pub struct Newborn<'a> {
    pub spec: &'a ContainerSpec,
    /// The name of the process.
    pub name: &'a str,
    /// To the spawner.
    pub socket: BorrowedFd<'a>,
    /// Where clients connect to.
    pub listener: BorrowedFd<'a>,
    /// cgroup v1 `tasks` files to write `0` to.
    pub tasks: &'a [BorrowedFd<'a>],
    /// The seccomp filter, for containers that want one.
    pub filter: &'a [Instruction],
    pub proof: SingleThreaded,
}

/// The life of a container's init, from right after the clone. Ends with the container.
pub fn main(newborn: Newborn<'_>) -> ! {
    let mut keep = vec![newborn.socket.as_raw_fd(), newborn.listener.as_raw_fd()];
    keep.extend(newborn.tasks.iter().map(AsRawFd::as_raw_fd));
    // First of all, as among the spawner's descriptors are the ends whose closing tells others that it died.
    let result = close_all_but(&keep)
        .map_err(|error| setup::Failure::new("close descriptors", &error))
        .and_then(|()| setup::set_up(&newborn));
    let (message, init) = match result {
        Ok((init, warnings)) => (FromNewborn::Ready { warnings }, Some(init)),
        Err(setup::Failure { step, message }) => (FromNewborn::Failed { step, message }, None),
    };
    let told = wire::send(newborn.socket, &message, &[]);
    // If the spawner is gone nobody knows of this container.
    let (Some(mut init), Ok(())) = (init, told) else { exit_now(1) };
    if close_all_but(&init.descriptors()).is_err() {
        exit_now(1);
    }
    match init.serve() {
        Ok(()) => exit_now(0),
        Err(_nobody_to_tell) => exit_now(1),
    }
}

/// A descriptor of our own.
fn owned(fd: BorrowedFd<'_>) -> std::io::Result<std::os::fd::OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}
