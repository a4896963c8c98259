//! The supervisor's side of the spawner: starts it, asks it for containers, replaces it when it died.

use std::{
    fs::File,
    io::{self, Seek},
    num::NonZero,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};

use super::{
    Container,
    listing::{kill_container, kill_spawners},
};
use crate::{
    names::{ContainerId, InstanceTag},
    protocol::{ContainerSpec, FromSpawner, ToSpawner, wire},
    sys::{poll::wait_readable, seqpacket},
};

/// Longer than the spawner itself waits for a container ([`super::role::SETUP_LIMIT`]), so that it can clean up.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How long the kernel may be busy with pages of the copy, to reclaim or to move them for instance. It waits for them itself, but
/// for some 150 ms only, and then does not seal them (`EBUSY`; `memfd_wait_for_pins` in its mm/memfd.c).
const SEAL_LIMIT: Duration = Duration::from_secs(10);

/// Why there is no container.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("cannot copy the program into memory")]
    CopyProgram(#[source] io::Error),
    #[error("cannot start the spawner")]
    Start(#[source] io::Error),
    #[error("cannot ask the spawner for container {container}")]
    Ask { container: ContainerId, source: io::Error },
    #[error("the spawner was lost while it made container {container}")]
    Lost { container: ContainerId, source: io::Error },
    /// Nothing is left of the attempt.
    #[error("cannot {step} for container {container}: {message}")]
    Create { container: ContainerId, step: String, message: String },
}

/// How many containers are made at once, for each core: while one waits for its init the next can begin, and more would
/// only wait for each other.
const HELPERS_PER_CORE: usize = 2;

/// The helper processes that make containers, each one at a time. Shared by threads.
#[derive(Debug)]
pub struct Spawner {
    /// The sealed copy of the program.
    program: OwnedFd,
    scratch_dir: PathBuf,
    instance: InstanceTag,
    helpers: Mutex<Helpers>,
    /// One of them is idle again, or has ended.
    returned: Condvar,
    most: usize,
}

#[derive(Debug, Default)]
struct Helpers {
    /// The one that was used last is used first, so that a server that is not busy has one that works.
    idle: Vec<Helper>,
    /// With the idle ones.
    running: usize,
}

/// A place among the helpers that run, for whoever works with one.
struct Turn<'a> {
    spawner: &'a Spawner,
    /// Goes back to the idle ones, unless it was taken out.
    helper: Option<Helper>,
}

#[derive(Debug)]
struct Helper {
    process: Child,
    socket: OwnedFd,
}

impl Spawner {
    /// Starts the spawner of the running program, and ends those that an earlier supervisor has left. `scratch_dir` is made if it is missing; nothing appears in it on the
    /// host.
    ///
    /// # Errors
    /// [`RuntimeError::CopyProgram`], [`RuntimeError::Start`].
    pub fn start(scratch_dir: &Path, instance: &InstanceTag) -> Result<Self, RuntimeError> {
        Self::start_program(Path::new("/proc/self/exe"), scratch_dir, instance)
    }

    /// Like [`start`](Self::start), of the podspawn executable `program`, for tests that are another program themselves.
    pub fn start_program(program: &Path, scratch_dir: &Path, instance: &InstanceTag) -> Result<Self, RuntimeError> {
        let spawner = Self {
            program: sealed_copy(program).map_err(RuntimeError::CopyProgram)?,
            scratch_dir: scratch_dir.to_owned(),
            instance: instance.clone(),
            helpers: Mutex::default(),
            returned: Condvar::new(),
            most: HELPERS_PER_CORE * std::thread::available_parallelism().map_or(1, NonZero::get),
        };
        kill_spawners(instance).map_err(RuntimeError::Start)?;
        // A program that cannot be started is better known now.
        let mut turn = spawner.turn();
        turn.helper = Some(spawner.start_helper()?);
        drop(turn);
        Ok(spawner)
    }

    fn helpers(&self) -> MutexGuard<'_, Helpers> {
        self.helpers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until fewer than the most are at work. Gives an idle helper, if there is one.
    fn turn(&self) -> Turn<'_> {
        let full = |helpers: &mut Helpers| helpers.idle.is_empty() && helpers.running >= self.most;
        let mut helpers = self.returned.wait_while(self.helpers(), full).unwrap_or_else(PoisonError::into_inner);
        let helper = helpers.idle.pop();
        if helper.is_none() {
            helpers.running += 1;
        }
        Turn { spawner: self, helper }
    }

    fn start_helper(&self) -> Result<Helper, RuntimeError> {
        use std::os::unix::{fs::DirBuilderExt, process::CommandExt};
        let start = || {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.scratch_dir)?;
            let (socket, theirs) = seqpacket::pair()?;
            // The socket is the helper's stdin: the one descriptor that can be passed without code between fork and exec.
            // Its arguments are those of every init, where each container can read them: they name no path of the host.
            let process = Command::new(format!("/proc/self/fd/{}", self.program.as_raw_fd()))
                .arg0("podspawn")
                .arg("spawner")
                .arg(self.instance.as_str())
                .current_dir(&self.scratch_dir)
                .env_clear()
                .stdin(theirs)
                .stdout(Stdio::null())
                .spawn()?;
            Ok(Helper { process, socket })
        };
        start().map_err(RuntimeError::Start)
    }

    /// Makes a container and returns when its init accepts connections on `init_listener`. Blocks.
    ///
    /// `more_fds` are those that `spec.cgroup` speaks of, then a detached mount for each of `spec.volumes`, and then that of
    /// the container's own disk, if `spec.own_disk`. The spawner's own death is survived: one that was found dead is replaced before anything was asked of it, one that dies or hangs over this request is replaced at the next.
    ///
    /// # Errors
    /// In each case nothing is left of the container.
    pub fn create(
        &self,
        spec: &ContainerSpec,
        netns: BorrowedFd<'_>,
        init_listener: BorrowedFd<'_>,
        more_fds: &[BorrowedFd<'_>],
    ) -> Result<Container, RuntimeError> {
        let container = &spec.container;
        let mut fds = vec![netns, init_listener];
        fds.extend(more_fds);
        let request = ToSpawner::Create(Box::new(spec.clone()));
        let request =
            wire::encode(&request).map_err(|source| RuntimeError::Ask { container: container.clone(), source })?;

        let mut turn = self.turn();
        let mut helper = match turn.helper.take() {
            Some(helper) => helper,
            None => self.start_helper()?,
        };
        if seqpacket::send(helper.socket.as_fd(), &request, &fds).is_err() {
            // It died since the last time, with no work in hand.
            helper.end();
            helper = self.start_helper()?;
            seqpacket::send(helper.socket.as_fd(), &request, &fds)
                .map_err(|source| RuntimeError::Ask { container: container.clone(), source })?;
        }
        match helper.answer() {
            Ok((FromSpawner::Created { pid, warnings }, pidfd)) => {
                turn.helper = Some(helper);
                drop(turn);
                for warning in warnings {
                    tracing::warn!(container = %container, "{warning}");
                }
                Ok(Container::new(pid, pidfd.ok_or_else(|| self.lost(container, missing_pidfd()))?))
            }
            Ok((FromSpawner::Failed { step, message }, _)) => {
                turn.helper = Some(helper);
                Err(RuntimeError::Create { container: container.clone(), step, message })
            }
            Err(error) => {
                helper.end();
                drop(turn);
                Err(self.lost(container, error))
            }
        }
    }

    /// A child that is not ready yet ends with the spawner; one that has just become ready must be looked for.
    fn lost(&self, container: &ContainerId, source: io::Error) -> RuntimeError {
        if let Err(error) = kill_container(&self.instance, container) {
            tracing::error!(container = %container, %error, "cannot look for what a lost spawner left behind");
        }
        RuntimeError::Lost { container: container.clone(), source }
    }

    /// The pid of the idle helper that makes the next container, if it is believed to be alive.
    pub fn pid(&self) -> Option<u32> {
        self.helpers().idle.last().map(|helper| helper.process.id())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut helpers = self.spawner.helpers();
        match self.helper.take() {
            Some(helper) => helpers.idle.push(helper),
            None => helpers.running -= 1,
        }
        drop(helpers);
        self.spawner.returned.notify_one();
    }
}

fn missing_pidfd() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "its answer came without a pidfd")
}

impl Helper {
    fn answer(&self) -> io::Result<(FromSpawner, Option<OwnedFd>)> {
        wait_readable(self.socket.as_fd(), ANSWER_LIMIT)?;
        let (answer, fds) = wire::recv(self.socket.as_fd())?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((answer, fds.into_iter().next()))
    }

    fn end(&mut self) {
        // Both fail only if it has been waited for already.
        if let Err(_gone) = self.process.kill().and_then(|()| self.process.wait()) {}
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.end();
    }
}

/// Copies `program` into memory and seals it: executing it, no container can change it, nor find a file of the host
/// behind `/proc/PID/exe` (CVE-2019-5736).
fn sealed_copy(program: &Path) -> io::Result<OwnedFd> {
    const MFD_EXEC: MFdFlags = MFdFlags::from_bits_retain(0x10);
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let copy = match memfd_create(c"podspawn", flags | MFD_EXEC) {
        Err(Errno::EINVAL) => memfd_create(c"podspawn", flags)?, // before Linux 6.3 all of them are executable
        other => other?,
    };
    let mut copy = File::from(copy);
    io::copy(&mut File::open(program)?, &mut copy)?;
    copy.rewind()?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    let deadline = Instant::now() + SEAL_LIMIT;
    while let Err(errno) = fcntl(&copy, FcntlArg::F_ADD_SEALS(seals)) {
        if errno != Errno::EBUSY || Instant::now() >= deadline {
            return Err(errno.into());
        }
        thread::sleep(Duration::from_millis(10));
    }
    // A memfd that is open for writing cannot be executed (ETXTBSY), so it goes on as a read-only description.
    Ok(File::open(format!("/proc/self/fd/{}", copy.as_raw_fd()))?.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;

    #[test]
    fn the_copy_runs_and_cannot_be_changed() {
        let copy = sealed_copy(Path::new("/bin/busybox")).unwrap();
        let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
        let output = Command::new(&path).arg0("busybox").args(["echo", "hello"]).output().unwrap();
        assert_eq!(output.stdout, b"hello\n");
        let error = std::fs::write(&path, b"x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM), "a sealed memfd is not written to");
        assert_eq!(fcntl(&copy, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)), Err(Errno::EPERM));
    }
}
