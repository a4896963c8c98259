//! The process that becomes git: `podspawn git UID [OPTION VALUE]... -- ARGUMENTS`. The options: `parent` (its pid),
//! `resolv-conf` and `hosts` (what is to be in these files), `tasks` (how many files of a cgroup). Descriptors from 3 on: the
//! directory to work in, a network namespace if there is a `resolv-conf`, and the files to write oneself into a cgroup with.
//!
//! In this order, each step while the rights it needs are still there:
//!
//! 1. the cgroup is joined; the directory is cloned as a mount; the network namespace is entered
//! 2. namespaces of its own: mounts, processes, System V IPC, host name
//! 3. every mount becomes read-only; `/tmp` becomes an empty one, with the directory in it
//! 4. a child, the first process of its namespace, whose end is the end of all that git starts
//! 5. in it: `/proc` of its own, groups, capabilities, user, limits, `no_new_privs`, seccomp, exec
//!
//! The outer process waits and passes the status on. Each dies with the one that has started it. SIGTERM ends the inner one
//! first, so that nothing of it is left, no socket either, when the outer one has ended.

use std::{
    collections::BTreeMap,
    ffi::{CString, OsString},
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::Path,
    process::ExitCode,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigSet, Signal, kill},
        stat::{Mode, umask},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Gid, Pid, Uid, chdir, execvpe, getppid, setgroups, setresgid, setresuid, setsid, write},
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::sys::{
    mount_api::{self, attr},
    pidfd::Held,
    process::{self, SingleThreaded},
    spawn::inherited_fd,
};

/// The status that says that there is no git to run.
pub(super) const NOT_FOUND: i32 = 127;

/// The first descriptor that we are started with.
const DIRECTORY: i32 = 3;

/// Where git sees its directory.
const WORK: &str = "/tmp/work";

/// What git and its helpers get to see of an environment. The transports of a Podfile's repositories and no others: `ext`
/// runs programs, `file` reads the host's files.
const ENVIRONMENT: &[&str] = &[
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/tmp/home",
    "LC_ALL=C",
    "GIT_CONFIG_NOSYSTEM=1",
    "GIT_CONFIG_GLOBAL=/dev/null",
    "GIT_TERMINAL_PROMPT=0",
    "GIT_ALLOW_PROTOCOL=https:http:git:ssh",
    "GIT_ATTR_NOSYSTEM=1",
    "GIT_LFS_SKIP_SMUDGE=1",
];

/// Limits of each process: a file that a server makes us write, and memory that it makes us take. Processes are counted
/// for the user, whose are connection processes too, so theirs is far above what git starts.
const LIMITS: [(Resource, u64); 5] = [
    (Resource::RLIMIT_FSIZE, 8 << 30),
    (Resource::RLIMIT_DATA, 4 << 30),
    (Resource::RLIMIT_NOFILE, 1024),
    (Resource::RLIMIT_NPROC, 4096),
    (Resource::RLIMIT_CORE, 0),
];

/// Why git could not be confined; told on standard error, which the parent reads.
#[derive(Debug, thiserror::Error)]
enum SandboxError {
    #[error("this role is started by podspawn only")]
    Arguments,
    #[error("cannot {0}: {1}")]
    Step(&'static str, io::Error),
}

trait Step<T> {
    fn step(self, what: &'static str) -> Result<T, SandboxError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, what: &'static str) -> Result<T, SandboxError> {
        self.map_err(|error| SandboxError::Step(what, error.into()))
    }
}

/// What we are to do.
#[derive(Default)]
struct Order {
    uid: u32,
    /// Who has started us. If it has ended since, there is nothing to be done.
    parent: Option<i32>,
    /// There is a network namespace then.
    resolv_conf: Option<String>,
    /// The only names that there are.
    hosts: Option<String>,
    /// How many files of cgroups there are.
    tasks: i32,
    arguments: Vec<CString>,
}

/// The role's entry point.
pub fn main() -> ExitCode {
    match run() {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<u8, SandboxError> {
    let order = Order::parse(std::env::args_os().skip(2).collect()).ok_or(SandboxError::Arguments)?;
    let proof = SingleThreaded::check().step("be of one thread")?;
    let parent = order.parent.map_or_else(getppid, Pid::from_raw);
    setsid().step("leave the terminal")?;
    umask(Mode::from_bits_truncate(0o022));
    process::default_signals();
    die_with(parent)?;
    let directory = inherited_fd(DIRECTORY).step("take over the directory")?;
    let netns = order.resolv_conf.as_ref().map(|_| inherited_fd(DIRECTORY + 1)).transpose();
    let netns = netns.step("take over the network")?;
    let first_tasks = DIRECTORY + 1 + i32::from(netns.is_some());
    for number in first_tasks..first_tasks + order.tasks {
        let tasks = inherited_fd(number).step("take over the cgroup")?;
        write(&tasks, b"0").step("join the cgroup")?;
    }
    let work = mount_api::open_tree_clone(directory.as_fd(), c"").step("clone the directory's mount")?;
    if let Some(netns) = netns {
        setns(netns, CloneFlags::CLONE_NEWNET).step("enter the network")?;
    }
    let namespaces =
        CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    unshare(namespaces).step("make namespaces")?;
    mounts(&order, &work).step("make the file system read-only")?;
    drop((directory, work));
    let mut heard = SigSet::empty();
    heard.add(Signal::SIGCHLD);
    heard.add(Signal::SIGTERM);
    heard.thread_block().step("block signals")?;
    let own = Held::open(std::process::id().cast_signed()).step("hold oneself")?;
    match process::fork(proof).step("start a process")? {
        None => {
            let error = become_git(&order, &own);
            eprintln!("{error}");
            let missing = matches!(&error, SandboxError::Step("run git", e) if e.kind() == io::ErrorKind::NotFound);
            process::exit_now(if missing { NOT_FOUND } else { 1 })
        }
        Some(child) => loop {
            if heard.wait().step("wait for git")? == Signal::SIGTERM {
                kill(Pid::from_raw(child), Signal::SIGKILL).step("end git")?;
            }
            match waitpid(Pid::from_raw(child), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, status)) => return Ok(u8::try_from(status & 0xff).unwrap_or(1)),
                Ok(WaitStatus::Signaled(_, signal, _)) => {
                    eprintln!("ended by {signal}");
                    return Ok(1);
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(SandboxError::Step("wait for git", error.into())),
            }
        },
    }
}

impl Order {
    fn parse(arguments: Vec<OsString>) -> Option<Self> {
        let mut words = arguments.into_iter();
        let uid = words.next()?.to_str()?.parse().ok().filter(|uid| *uid != 0)?;
        let mut order = Self { uid, ..Self::default() };
        loop {
            let option = words.next()?;
            if option == "--" {
                break;
            }
            let value = words.next()?.into_string().ok()?;
            match option.to_str()? {
                "parent" => order.parent = Some(value.parse().ok()?),
                "resolv-conf" => order.resolv_conf = Some(value),
                "hosts" => order.hosts = Some(value),
                "tasks" => order.tasks = value.parse().ok().filter(|count| (0..16).contains(count))?,
                _ => return None,
            }
        }
        let git = std::iter::once(OsString::from("git"));
        let arguments = git.chain(words).map(|argument| CString::new(argument.into_vec()).ok());
        order.arguments = arguments.collect::<Option<_>>()?;
        Some(order)
    }
}

/// Has this process killed when its parent ends. To be repeated after a change of user, which takes it back.
fn die_with(parent: Pid) -> Result<(), SandboxError> {
    prctl::set_pdeathsig(Signal::SIGKILL).step("be ended with the parent")?;
    // It may have ended before.
    if getppid() == parent { Ok(()) } else { Err(SandboxError::Step("be ended with the parent", Errno::ESRCH.into())) }
}

fn mounts(order: &Order, work: &OwnedFd) -> io::Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let path = |path: &str| open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    mount_api::mount_setattr_recursive(path("/")?.as_fd(), attr::RDONLY | attr::NOSUID)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), "/tmp", Some("tmpfs"), flags, Some("mode=0755,size=1m"))?;
    fs::create_dir("/tmp/home")?;
    fs::create_dir(WORK)?;
    let show = |name: &str, text: &str| {
        let (made, place) = (format!("/tmp/{name}"), format!("/etc/{name}"));
        fs::write(&made, text)?;
        mount(Some(made.as_str()), place.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(io::Error::from)
    };
    if let Some(text) = &order.resolv_conf {
        show("resolv.conf", text)?;
    }
    if let Some(text) = &order.hosts {
        show("hosts", text)?;
        // A C library other than glibc has no such file, and looks into the other one first.
        if Path::new("/etc/nsswitch.conf").exists() {
            show("nsswitch.conf", "hosts: files\npasswd: files\ngroup: files\n")?;
        }
    }
    mount(None::<&str>, "/tmp", None::<&str>, flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None::<&str>)?;
    mount_api::move_mount(work.as_fd(), path(WORK)?.as_fd())?;
    mount_api::mount_setattr(path(WORK)?.as_fd(), attr::NOSUID | attr::NODEV | attr::NOEXEC)
}

/// The child's side: returns only if git could not be executed.
fn become_git(order: &Order, parent: &Held) -> SandboxError {
    match confine(order, parent) {
        Err(error) => error,
        Ok(()) => {
            let environment: Option<Vec<CString>> = ENVIRONMENT.iter().map(|entry| CString::new(*entry).ok()).collect();
            match execvpe(c"git", &order.arguments, &environment.unwrap_or_default()) {
                Err(error) => SandboxError::Step("run git", error.into()),
                Ok(never) => match never {},
            }
        }
    }
}

fn confine(order: &Order, parent: &Held) -> Result<(), SandboxError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>).step("mount /proc")?;
    process::cloexec_all().step("close descriptors")?;
    let (uid, gid) = (Uid::from_raw(order.uid), Gid::from_raw(order.uid));
    setgroups(&[]).step("drop supplementary groups")?;
    caps::clear(None, caps::CapSet::Bounding).map_err(io::Error::other).step("drop capabilities")?;
    setresgid(gid, gid, gid).step("change the group")?;
    setresuid(uid, uid, uid).step("change the user")?;
    for set in [caps::CapSet::Inheritable, caps::CapSet::Effective, caps::CapSet::Permitted] {
        caps::clear(None, set).map_err(io::Error::other).step("drop capabilities")?;
    }
    for (resource, limit) in LIMITS {
        let (_, hard) = getrlimit(resource).step("read a resource limit")?;
        let limit = limit.min(hard);
        setrlimit(resource, limit, limit).step("set a resource limit")?;
    }
    SigSet::all().thread_unblock().step("unblock signals")?;
    // Seen from inside, a parent in another namespace is 0.
    die_with(Pid::from_raw(0))?;
    // And so is one that has ended before.
    if parent.has_ended() {
        return Err(SandboxError::Step("be ended with the parent", Errno::ESRCH.into()));
    }
    chdir(Path::new(WORK)).step("change the directory")?;
    prctl::set_no_new_privs().step("set no_new_privs")?;
    for filter in filters().map_err(io::Error::other).step("make the seccomp filters")? {
        seccompiler::apply_filter(&filter).map_err(io::Error::other).step("load a seccomp filter")?;
    }
    Ok(())
}

/// Takes away what git never calls and kernels have been broken with: namespaces, mounts, tracing, and the big interfaces.
fn filters() -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    let refused = [
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_fsopen,
        libc::SYS_open_tree,
        libc::SYS_pivot_root,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
    ];
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = refused.into_iter().map(|call| (call, Vec::new())).collect();
    let user = libc::CLONE_NEWUSER as u64;
    let user = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(user), user)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![user])?]);
    // Its flags are in memory, where no filter sees them; libc then falls back to clone(2).
    let clone3 = [(libc::SYS_clone3, Vec::new())].into();
    Ok([refuse(rules, libc::EPERM)?, refuse(clone3, libc::ENOSYS)?])
}

fn refuse(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno.cast_unsigned()), arch)?.try_into()
}
