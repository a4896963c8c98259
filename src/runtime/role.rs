//! The spawner's own life: a loop that makes one container after the other.
//!
//! Once, at start: own session and mount namespace, private and lean; children are reaped by the kernel. Then for each
//! request, in this order:
//!
//! 1. enter the session's network namespace: init is born in it, and a sysfs shows the one it is mounted from
//! 2. clone init into new user, mount, pid, uts and ipc namespaces (and its cgroup, on v2); mount its sysfs
//! 3. go back to our own network namespace, before anything else can fail
//! 4. write the id maps: the child has no capabilities over anything before
//! 5. mount the overlay, whose idmapped lower layers need the child's user namespace, and `/dev`
//! 6. hand these mounts to the child, which does the rest from the inside (`init/setup.rs`)
//! 7. wait for its word, at most [`SETUP_LIMIT`]; without it, kill it
//!
//! It keeps nothing between requests, and ends when the supervisor does; containers stay.

use std::{
    ffi::{CString, OsString},
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use nix::{
    fcntl::{OFlag, open},
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::{
        prctl,
        stat::{Mode, umask},
    },
    unistd::{dup2_stdin, setsid},
};

use super::{Container, init_name, mounts, seccomp, spawner_name};
use crate::{
    init,
    protocol::{CgroupJoin, ContainerSpec, FromNewborn, FromSpawner, ToNewborn, ToSpawner, wire},
    sys::{
        confine::Instruction,
        poll::wait_readable,
        process::{self, Cloned, SingleThreaded},
        seqpacket,
    },
};

/// How long a container's set-up may take.
pub(super) const SETUP_LIMIT: Duration = Duration::from_secs(20);

/// The entry point of `podspawn spawner TAG`, with the socket to the supervisor on stdin, in the scratch directory.
pub fn spawner_main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(2).collect();
    let result = match arguments.as_slice() {
        [instance] => std::env::current_dir()
            .and_then(|scratch_dir| Role::new(&scratch_dir, &instance.to_string_lossy()))
            .and_then(|role| role.serve()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "this role is started by `podspawn serve` only")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podspawn: spawner: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What failed on the way to a container.
struct Failure {
    step: String,
    message: String,
}

trait Step<T> {
    /// Names what was attempted.
    fn step(self, step: &str) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure { step: step.to_owned(), message: error.into().to_string() })
    }
}

struct Role {
    control: OwnedFd,
    instance: String,
    own_netns: OwnedFd,
    scratch: mounts::Scratch,
    filter: Vec<Instruction>,
    nested_filter: Vec<Instruction>,
    proof: SingleThreaded,
}

impl Role {
    fn new(scratch_dir: &Path, instance: &str) -> io::Result<Self> {
        let proof = SingleThreaded::check()?;
        // Out of the terminal's process group: Ctrl-C is for the supervisor, containers survive it.
        setsid()?;
        umask(Mode::from_bits_truncate(0o022));
        process::default_signals();
        process::usual_oom_score()?;
        process::ignore_signal(libc::SIGCHLD)?; // the kernel reaps
        let control = io::stdin().as_fd().try_clone_to_owned()?;
        dup2_stdin(open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?)?;
        process::cloexec_all()?;
        prctl::set_dumpable(false)?;
        prctl::set_name(&CString::new(spawner_name(instance))?)?;

        unshare(CloneFlags::CLONE_NEWNS)?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
        mounts::make_lean()?;
        std::env::set_current_dir("/")?;
        Ok(Self {
            control,
            instance: instance.to_owned(),
            own_netns: open("/proc/self/ns/net", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?,
            scratch: mounts::Scratch::new(scratch_dir)?,
            filter: seccomp::default_filter(),
            nested_filter: seccomp::nested_filter(),
            proof,
        })
    }

    /// Answers requests until the supervisor is gone.
    ///
    /// # Errors
    /// When the spawner cannot go on: the supervisor starts another one.
    fn serve(&self) -> io::Result<()> {
        while let Some((ToSpawner::Create(spec), fds)) = wire::recv(self.control.as_fd())? {
            let sent = match self.create(&spec, &fds)? {
                Ok((container, warnings)) => {
                    let created = FromSpawner::Created { pid: container.pid(), warnings };
                    let sent = wire::send(self.control.as_fd(), &created, &[container.pidfd()]);
                    if sent.is_err() {
                        container.kill()?; // nobody knows it
                    }
                    sent
                }
                Err(Failure { step, message }) => {
                    wire::send(self.control.as_fd(), &FromSpawner::Failed { step, message }, &[])
                }
            };
            match sent {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                other => other?,
            }
        }
        Ok(())
    }

    /// The outer error is fatal for the spawner, the inner one only for this container.
    #[allow(clippy::type_complexity)]
    fn create(&self, spec: &ContainerSpec, fds: &[OwnedFd]) -> io::Result<Result<(Container, Vec<String>), Failure>> {
        let [netns, listener, rest @ ..] = fds else {
            return Ok(Err(io::ErrorKind::InvalidInput).step("read the request"));
        };
        let (disk, rest) = match rest {
            rest if !spec.own_disk => (None, rest),
            [rest @ .., disk] => (Some(disk.as_fd()), rest),
            [] => return Ok(Err(io::ErrorKind::InvalidInput).step("read the request")),
        };
        let Some((cgroups, volumes)) = rest.len().checked_sub(spec.volumes.len()).map(|at| rest.split_at(at)) else {
            return Ok(Err(io::ErrorKind::InvalidInput).step("read the request"));
        };
        let (into_cgroup, tasks) = match (spec.cgroup, cgroups) {
            (CgroupJoin::V2, [directory]) => (Some(directory.as_fd()), &cgroups[..0]),
            (CgroupJoin::V1 { count }, tasks) if tasks.len() == count as usize => (None, tasks),
            _ => return Ok(Err(io::ErrorKind::InvalidInput).step("read the request")),
        };
        let pair = match seqpacket::pair().step("make a socket") {
            Ok(pair) => pair,
            Err(failure) => return Ok(Err(failure)),
        };
        if let Err(failure) = setns(netns, CloneFlags::CLONE_NEWNET).step("enter the network namespace") {
            return Ok(Err(failure));
        }
        let born = self.clone_init(spec, pair, listener, tasks, into_cgroup);
        setns(&self.own_netns, CloneFlags::CLONE_NEWNET)?;
        Ok(born.and_then(|newborn| newborn.bring_up(&self.scratch, spec, disk, volumes)))
    }

    fn clone_init(
        &self,
        spec: &ContainerSpec,
        (socket, theirs): (OwnedFd, OwnedFd),
        listener: &OwnedFd,
        tasks: &[OwnedFd],
        into_cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<Newborn, Failure> {
        let of_profile = match &spec.security.seccomp_profile {
            None => None,
            Some(profile) => Some(
                seccomp::profile_filter(profile)
                    .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it is longer than the kernel takes"))
                    .step("compile the seccomp profile")?,
            ),
        };
        let built_in = if spec.security.nested { &self.nested_filter } else { &self.filter };
        let sys = mounts::sysfs().step("mount /sys")?;
        let namespaces =
            libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
        match process::clone3(self.proof, namespaces, into_cgroup).step("clone init")? {
            Cloned::Parent { pid, pidfd } => {
                let container = Container::new(pid, pidfd);
                Ok(Newborn { container: Some(container), socket, sys })
            }
            Cloned::Child => init::main(init::Newborn {
                spec,
                name: &init_name(&self.instance, &spec.container.to_string()),
                socket: theirs.as_fd(),
                listener: listener.as_fd(),
                tasks: &tasks.iter().map(AsFd::as_fd).collect::<Vec<_>>(),
                filter: of_profile.as_ref().unwrap_or(built_in),
                proof: self.proof,
            }),
        }
    }
}

/// A child that is not an init yet. Dropped, it is killed.
struct Newborn {
    container: Option<Container>,
    socket: OwnedFd,
    sys: OwnedFd,
}

impl Newborn {
    fn bring_up(
        mut self,
        scratch: &mounts::Scratch,
        spec: &ContainerSpec,
        disk: Option<BorrowedFd<'_>>,
        volumes: &[OwnedFd],
    ) -> Result<(Container, Vec<String>), Failure> {
        let pid = self.container.as_ref().map_or(0, Container::pid);
        let map = format!("0 {} 65536\n", spec.id_base);
        fs::write(format!("/proc/{pid}/gid_map"), &map).step("map group ids")?;
        fs::write(format!("/proc/{pid}/uid_map"), &map).step("map user ids")?;
        let userns = fs::File::open(format!("/proc/{pid}/ns/user")).step("open the user namespace")?;
        let rootfs = scratch.overlay(spec, disk, userns.as_fd()).step("mount the root file system")?;
        let dev = mounts::dev(spec.id_base).step("make /dev")?;
        for (volume, mount) in spec.volumes.iter().zip(volumes) {
            mounts::volume(mount, volume, userns.as_fd()).step(&format!("prepare volume {}", volume.path))?;
        }
        let mut mounts = vec![rootfs.as_fd(), dev.as_fd(), self.sys.as_fd()];
        mounts.extend(volumes.iter().map(AsFd::as_fd));
        wire::send(self.socket.as_fd(), &ToNewborn::Go, &mounts).step("hand over the mounts")?;

        wait_readable(self.socket.as_fd(), SETUP_LIMIT).step("wait for init")?;
        match wire::recv::<FromNewborn>(self.socket.as_fd()).step("wait for init")? {
            Some((FromNewborn::Ready { warnings }, _)) => match self.container.take() {
                Some(container) => Ok((container, warnings)),
                None => Err(io::ErrorKind::NotFound).step("wait for init"),
            },
            Some((FromNewborn::Failed { step, message }, _)) => Err(Failure { step, message }),
            None => Err(Failure { step: "start init".to_owned(), message: "it ended without a word".to_owned() }),
        }
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        if let Some(container) = self.container.take() {
            // It can fail only for a child that has ended. Its directories are the caller's to remove, so wait.
            if let Err(_ended) = container.kill() {}
            container.wait(Duration::from_secs(5));
        }
    }
}
