//! Making, waiting for and ending processes in a program that has one thread (clone3(2), fork(2), waitpid(2)).
#![allow(unsafe_code)]

use std::{
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        linux::fs::MetadataExt,
    },
    ptr,
};

/// Proof that this process has one thread, so that a forked child may run any code: nobody else held a lock.
#[derive(Debug, Clone, Copy)]
pub struct SingleThreaded(());

impl SingleThreaded {
    /// Looks at `/proc/self/task`, which has one directory for each thread.
    ///
    /// # Errors
    /// Those of stat(2); `Other` if there are more threads. The caller must not start one afterwards.
    pub fn check() -> io::Result<Self> {
        // Each subdirectory adds a link to the two that a directory has.
        match std::fs::metadata("/proc/self/task")?.st_nlink() {
            3 => Ok(Self(())),
            links => Err(io::Error::other(format!("{} threads where there must be one", links.saturating_sub(2)))),
        }
    }
}

/// Which side of a clone3(2) we are on.
#[derive(Debug)]
pub enum Cloned {
    Parent { pid: i32, pidfd: OwnedFd },
    Child,
}

/// Clones this process as fork(2) does, with the `CLONE_*` namespace `flags`; the child starts in the cgroup v2 directory
/// `cgroup`, if given.
pub fn clone3(_proof: SingleThreaded, flags: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    // SAFETY: `clone_args` is plain integers, for which zero is valid and means "not given".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(flags.cast_unsigned()) | u64::from(libc::CLONE_PIDFD.cast_unsigned());
    args.pidfd = ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: `args` is initialised, outlives the call, and its size is passed along. There is no CLONE_VM, so the child
    // has its own copy of this stack; `_proof` rules out locks held by threads that it does not have.
    let result = unsafe { libc::syscall(libc::SYS_clone3, ptr::from_mut(&mut args), size_of::<libc::clone_args>()) };
    match i32::try_from(result) {
        Ok(0) => Ok(Cloned::Child),
        // SAFETY: CLONE_PIDFD has just put a new descriptor there, and nobody else knows it.
        Ok(pid) if pid > 0 => Ok(Cloned::Parent { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Forks; `None` in the child.
pub fn fork(_proof: SingleThreaded) -> io::Result<Option<i32>> {
    // SAFETY: `_proof` rules out other threads, so the child may do whatever we may.
    match unsafe { libc::fork() } {
        0 => Ok(None),
        pid if pid > 0 => Ok(Some(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends this process at once, running no destructor and no exit handler: for forked children.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) is always allowed.
    unsafe { libc::_exit(status) }
}

/// How a process ended, as wait(2) tells it. nix's type cannot say "by a real-time signal".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Code(u8),
    Signal { signal: i32, core_dumped: bool },
}

/// Reaps one child that has ended, if there is one.
pub fn reap() -> Option<(i32, Ended)> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a place for an int that outlives the call.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
        if pid <= 0 {
            return None; // nothing has ended, or (ECHILD) there are no children; WNOHANG is not interrupted
        }
        if libc::WIFEXITED(status) {
            // The kernel keeps eight bits of an exit code.
            return Some((pid, Ended::Code((libc::WEXITSTATUS(status) & 0xff) as u8)));
        }
        if libc::WIFSIGNALED(status) {
            let core_dumped = libc::WCOREDUMP(status);
            return Some((pid, Ended::Signal { signal: libc::WTERMSIG(status), core_dumped }));
        }
    }
}

/// Sets what happens on `signal`: ignored, or the default action.
///
/// Not by libc's function, which refuses the two signals that it uses itself. Its own posix_spawn(3) makes children
/// ignore them, and what is ignored stays so over exec: a container's processes would inherit it.
fn set_disposition(signal: i32, handler: libc::sighandler_t) -> io::Result<()> {
    // The kernel's `struct sigaction`: handler, flags, restorer, mask (64 signals, whose size is the last argument).
    let action = [handler as u64, 0, 0, 0];
    // SAFETY: `action` outlives the call, which keeps no pointer to it; SIG_DFL and SIG_IGN, which are all that the
    // callers below pass, run no code of ours, so no restorer is needed.
    let result = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), ptr::null_mut::<u64>(), 8) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ignores `signal`. For SIGCHLD that means: children are reaped by the kernel.
pub fn ignore_signal(signal: i32) -> io::Result<()> {
    set_disposition(signal, libc::SIG_IGN)
}

/// Takes back the protection from the kernel's out-of-memory killer that a service manager may have given the server, and
/// its children with it (proc_pid_oom_score_adj(5)).
pub fn usual_oom_score() -> io::Result<()> {
    const FILE: &str = "/proc/self/oom_score_adj";
    let now: i32 = std::fs::read_to_string(FILE)?.trim().parse().map_err(|_| io::ErrorKind::InvalidData)?;
    if now < 0 { std::fs::write(FILE, "0") } else { Ok(()) }
}

/// Gives every signal its default action; Rust's runtime ignores SIGPIPE, which a child would inherit.
pub fn default_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SIGKILL and SIGSTOP are refused, and are at their default.
        if let Err(_refused) = set_disposition(signal, libc::SIG_DFL) {}
    }
    // libc refuses the two that it uses between threads, but whoever started us may have ignored them.
    for signal in 32..libc::SIGRTMIN() {
        default_action(signal);
    }
}

/// Gives `signal` its default action without libc's knowledge.
fn default_action(signal: i32) {
    // The kernel's struct sigaction (rt_sigaction(2)) for SIG_DFL without flags and with an empty mask is all zeroes, and
    // at most this long.
    let default = [0_u64; 4];
    // SAFETY: `default` outlives the call, the kernel only reads from it, and SIG_DFL runs no code of ours. 8 is the size of
    // the kernel's sigset_t. It cannot fail for a signal that exists.
    unsafe {
        libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null_mut::<u64>(), 8_usize);
    }
}

/// Closes every descriptor from 3 on that is not in `keep`.
///
/// To be called only where no owner of the closed ones will use or drop them: at the start of a forked child that never
/// returns.
pub fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|&fd| u32::try_from(fd).ok()).filter(|&fd| fd > 2).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1, 0)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX, 0)
}

/// Marks every descriptor from 3 on close-on-exec.
pub fn cloexec_all() -> io::Result<()> {
    close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: no memory is passed; that the descriptors are nobody's any more is the condition of the callers above.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
