//! A container set up from the inside, step by step. The order matters:
//!
//! 1. what needs the host's `/proc` or host root: the name, v1 cgroups, `oom_score_adj`
//! 2. wait until our ids are mapped; from here on we have capabilities, in the new user namespace only
//! 3. cgroup namespace, now that we are in the cgroup it should be rooted at; own session; become container root, which is
//!    an unprivileged id on the host, without the supplementary groups of the daemon
//! 4. mounts, while the host's `/proc` is still there to prove to the kernel that a new one reveals nothing
//!    (`mount_too_revealing`), then pivot_root: from here on no path leads to the host, whatever the image contains
//! 5. everything inside the new root: /proc, /dev, /sys, how many namespaces there may be, masks, descriptors 0 to 2, names and accounts, extra tmpfs,
//!    read-only root last, as the steps before write to it
//! 6. with `nested`, one more user namespace inside the one that has the limits
//! 7. what is given up for good: keyring, limits, then the bounding set, no_new_privs, and the filter while
//!    CAP_SYS_ADMIN is there to load it without no_new_privs, then all capabilities that init has no use for

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use nix::{
    fcntl::{OFlag, open},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::{SigSet, SigmaskHow, Signal, sigprocmask},
        stat::{Mode, umask},
    },
    unistd::{Gid, Uid, setgroups, sethostname, setresgid, setresuid, setsid, write},
};

use super::{Newborn, account::Account, filesystems, home, nested, owned, privileges, serve::Init};
use crate::{
    protocol::{ToNewborn, VolumeKind, wire},
    sys::{confine::join_new_session_keyring, process},
};

/// A step that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) step: String,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(step: &str, error: &io::Error) -> Self {
        Self { step: step.to_owned(), message: error.to_string() }
    }
}

/// Names the step that a result belongs to.
trait At<T> {
    fn at(self, step: &str) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(step, &error.into()))
    }
}

/// Does all of it; returns the init that is ready to serve, and what could not be done but does not matter enough.
pub(super) fn set_up(newborn: &Newborn<'_>) -> Result<(Init, Vec<String>), Failure> {
    let spec = newborn.spec;
    let mut warnings = Vec::new();

    prctl::set_name(&c_string(newborn.name).at("take our name")?).at("take our name")?;
    process::default_signals();
    for tasks in newborn.tasks {
        write(tasks, b"0").at("join the cgroup")?;
    }
    forbid_negative_oom_score().at("reset oom_score_adj")?;

    let ([rootfs, dev, sys], volumes) = wait_for_go(newborn).at("receive the mounts")?;
    unshare(CloneFlags::CLONE_NEWCGROUP).at("make a cgroup namespace")?;
    setsid().at("make a session")?;
    setgroups(&[]).at("drop the host's groups")?;
    let (root, root_group) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(root_group, root_group, root_group).at("become the container's root")?;
    setresuid(root, root, root).at("become the container's root")?;
    // Changing ids has made us undumpable, and so our own /proc files the host root's. Nobody is here to attach yet.
    prctl::set_dumpable(true).at("use /proc")?;

    let proc = filesystems::new_proc().at("mount /proc")?;
    let unmasked_proc = spec.security.nested.then(filesystems::new_proc).transpose().at("mount /proc")?;
    filesystems::pivot(&rootfs).at("enter the root file system")?;
    drop(rootfs);
    let devpts = filesystems::mount_all(spec, &proc, &dev, &sys, unmasked_proc.as_ref())
        .map_err(|(step, error)| Failure::new(&step, &error))?;
    nested::limit(&proc, spec.security.nested).at("limit namespaces")?;
    filesystems::mask(&dev).at("mask paths of /proc and /sys")?;
    drop((proc, unmasked_proc, dev, sys));
    stdio_to_null().at("open /dev/null")?;

    umask(Mode::from_bits_truncate(0o022));
    sethostname(&spec.hostname).at("set the hostname")?;
    let account = Account::new(&spec.account);
    home::write_names(spec).at("write /etc/hosts, resolv.conf and hostname")?;
    let mut kept = spec.volumes.iter().zip(&volumes).filter(|(volume, _)| volume.kind == VolumeKind::Home);
    let home = kept.next().map(|(_, mount)| home::mount(&account, mount)).transpose().at("mount the home directory")?;
    home::set_up(&account, home, &mut warnings).at("set the account up")?;
    for (path, options) in &spec.security.tmpfs {
        filesystems::extra_tmpfs(path, options).at(&format!("mount a tmpfs on {path}"))?;
    }
    let others = spec.volumes.iter().zip(volumes).filter(|(volume, _)| volume.kind != VolumeKind::Home);
    for (volume, mount) in others {
        match filesystems::mount_volume(volume, &mount) {
            Err(error) if volume.kind == VolumeKind::Foreign => {
                warnings.push(format!("nothing is mounted on {}: {error}", volume.path));
            }
            mounted => mounted.at(&format!("mount a volume on {}", volume.path))?,
        }
    }
    if spec.security.readonly_rootfs {
        filesystems::make_root_read_only().at("make the root file system read-only")?;
    }

    if spec.security.nested {
        nested::enclose(newborn.proof).at("make a user namespace around the container")?;
    }

    if let Err(error) = join_new_session_keyring() {
        // ENOSYS: a kernel without keyrings, so there is none to inherit either.
        if error.raw_os_error() != Some(libc::ENOSYS) {
            return Err(error).at("leave the session keyring");
        }
    }
    privileges::limit(&spec.rlimits).at("set resource limits")?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).at("reset signals")?;
    let mut child_ended = SigSet::empty();
    child_ended.add(Signal::SIGCHLD);
    child_ended.thread_block().at("block SIGCHLD")?;

    let listener = owned(newborn.listener).at("keep the listener")?;
    let oom_score: File = open("/proc/self/oom_score_adj", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
        .at("open oom_score_adj")?
        .into();
    privileges::give_up(&spec.security, newborn.filter).map_err(|(step, error)| Failure::new(&step, &error))?;
    prctl::set_dumpable(false).at("become undumpable")?;

    let init = Init::new(listener, devpts, oom_score, spec, account, newborn.proof).at("listen")?;
    Ok((init, warnings))
}

fn c_string(text: &str) -> io::Result<std::ffi::CString> {
    std::ffi::CString::new(text).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// A daemon may be protected from the OOM killer; its containers must not be.
fn forbid_negative_oom_score() -> io::Result<()> {
    let path = "/proc/self/oom_score_adj";
    let score = std::fs::read_to_string(path)?;
    if score.starts_with('-') { std::fs::write(path, "0") } else { Ok(()) }
}

/// The mounts that come with the spawner's word: three that everybody has, and those of volumes.
fn wait_for_go(newborn: &Newborn<'_>) -> io::Result<([OwnedFd; 3], Vec<OwnedFd>)> {
    // The spawner mounts meanwhile, and kills us if it gives up; if it dies the socket is at its end.
    let timeout = nix::sys::time::TimeVal::new(Duration::from_secs(60).as_secs().cast_signed(), 0);
    nix::sys::socket::setsockopt(&newborn.socket.as_fd(), nix::sys::socket::sockopt::ReceiveTimeout, &timeout)?;
    let (ToNewborn::Go, mut mounts) = wire::recv(newborn.socket)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let volumes = mounts.split_off(mounts.len().min(3));
    let everybodys = mounts.try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok((everybodys, volumes))
}

/// Descriptors 0 to 2 are the daemon's until now.
fn stdio_to_null() -> io::Result<()> {
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}
