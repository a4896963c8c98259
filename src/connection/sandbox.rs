//! Giving up everything that speaking SSH does not need, before a client's first byte.
//!
//! In this order, each step while the rights it needs are still there: root directory, groups, capability bounding set,
//! user, limits, `no_new_privs`, seccomp. See docs/security.md.

use std::{collections::BTreeMap, io, path::Path};

use nix::{
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
    },
    unistd::{Gid, Uid, chdir, chroot, setgroups, setresgid, setresuid},
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Open files: the channels' pipes are most of them.
const MAX_FILES: u64 = 4096;

/// Bytes of memory. Queues are bounded far below it; it is the last line.
const MAX_DATA: u64 = 1 << 30;

/// Why the process could not confine itself.
#[derive(Debug, thiserror::Error)]
pub(super) enum SandboxError {
    #[error("cannot {0}")]
    Step(&'static str, #[source] io::Error),
    #[error("cannot drop capabilities")]
    Capabilities(#[source] caps::errors::CapsError),
    #[error("cannot load the seccomp filter")]
    Seccomp(#[source] seccompiler::Error),
}

/// Confines this process to the empty directory `root` and the user `uid`.
pub(super) fn enter(root: &Path, uid: u32) -> Result<(), SandboxError> {
    let step = |what| move |errno: nix::Error| SandboxError::Step(what, errno.into());
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(uid));
    chroot(root).map_err(step("change the root directory"))?;
    chdir("/").map_err(step("change the directory"))?;
    setgroups(&[]).map_err(step("drop supplementary groups"))?;
    caps::clear(None, caps::CapSet::Bounding).map_err(SandboxError::Capabilities)?;
    setresgid(gid, gid, gid).map_err(step("change the group"))?;
    setresuid(uid, uid, uid).map_err(step("change the user"))?;
    // Leaving root has emptied the permitted and effective sets; this makes sure of it, and of the inheritable one.
    for set in [caps::CapSet::Inheritable, caps::CapSet::Effective, caps::CapSet::Permitted] {
        caps::clear(None, set).map_err(SandboxError::Capabilities)?;
    }
    prctl::set_dumpable(false).map_err(step("become undumpable"))?;
    for (resource, limit) in [
        (Resource::RLIMIT_NOFILE, MAX_FILES),
        (Resource::RLIMIT_DATA, MAX_DATA),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_NPROC, 0),
    ] {
        let (_, hard) = getrlimit(resource).map_err(step("read a resource limit"))?;
        let limit = limit.min(hard);
        setrlimit(resource, limit, limit).map_err(step("set a resource limit"))?;
    }
    prctl::set_no_new_privs().map_err(step("set no_new_privs"))?;
    let filter = filter().map_err(SandboxError::Seccomp)?;
    seccompiler::apply_filter(&filter).map_err(SandboxError::Seccomp)
}

/// What russh, tokio and the allocator call. Nothing that opens a file, makes a socket, a process or a thread, or looks at
/// another process. Anything else fails with EPERM.
fn filter() -> Result<BpfProgram, seccompiler::Error> {
    let plain = [
        // data
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_pread64,
        libc::SYS_pwrite64,
        libc::SYS_fallocate,
        libc::SYS_lseek,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_close,
        libc::SYS_shutdown,
        libc::SYS_fcntl,
        libc::SYS_dup,
        libc::SYS_accept4,
        libc::SYS_getsockopt,
        libc::SYS_setsockopt,
        libc::SYS_getsockname,
        libc::SYS_getpeername,
        // waiting
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_eventfd2,
        libc::SYS_ppoll,
        libc::SYS_futex,
        libc::SYS_nanosleep,
        libc::SYS_clock_nanosleep,
        libc::SYS_restart_syscall,
        libc::SYS_sched_yield,
        // memory
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
        libc::SYS_mlock,
        // itself
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_getrandom,
        libc::SYS_clock_gettime,
        libc::SYS_gettimeofday,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_sched_getaffinity,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = plain.iter().map(|call| (*call, Vec::new())).collect();
    #[cfg(target_arch = "x86_64")]
    rules.extend([libc::SYS_epoll_wait, libc::SYS_poll].map(|call| (call, Vec::new())));
    let requests = [libc::TIOCSWINSZ, libc::TCGETS, libc::FIONBIO, libc::FIONREAD];
    let ioctl = requests.map(|request| argument(1, request));
    rules.insert(libc::SYS_ioctl, ioctl.into_iter().collect::<Result<_, _>>()?);
    // A panic aborts through a signal to itself.
    rules.insert(libc::SYS_tgkill, vec![argument(2, libc::SIGABRT as u64)?]);
    let arch = std::env::consts::ARCH.try_into().map_err(seccompiler::Error::Backend)?;
    let filter = SeccompFilter::new(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow, arch)
        .map_err(seccompiler::Error::Backend)?;
    BpfProgram::try_from(filter).map_err(seccompiler::Error::Backend)
}

fn argument(index: u8, value: u64) -> Result<SeccompRule, seccompiler::Error> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
    condition.and_then(|condition| SeccompRule::new(vec![condition])).map_err(seccompiler::Error::Backend)
}
