//! SIGUSR2: the program that is at our path now takes over in this process (execve(2)).
//!
//! Pid, terminal, environment and listening sockets stay, so that neither a service manager nor a client notices. In order:
//!
//! 1. ask the new program whether it could serve here ([`check`], `podspawn serve --check`); what cannot even say so is not
//!    trusted with anything, and the server goes on;
//! 2. leave as on SIGTERM, but for the sockets;
//! 3. become the new program. It gets the sockets as systemd would pass them on ([`listeners`](super::listeners)), and beside
//!    them the program that we are: if it then fails to start after all, it becomes that again.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::wait::{Id, WaitPidFlag, waitid};
use tokio::io::Interest;

use super::{StartError, listeners::Named};
use crate::{
    config::Config,
    protocol,
    state::{State, StateError},
    sys::{async_fd, find_process, pidfd::Held, process, spawn},
};

/// What the program that comes back if we do not start is called among descriptors that are passed on.
const PREVIOUS: &str = "previous-program";

/// How long the new program may take to look whether it could serve.
const CHECK_LIMIT: Duration = Duration::from_secs(30);

/// Why the new program does not take over.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpgradeError {
    #[error("cannot run {}", .0.display())]
    Run(PathBuf, #[source] io::Error),
    #[error("{} does not say within {CHECK_LIMIT:?} whether it could serve", .0.display())]
    Silent(PathBuf),
    #[error("{} could not serve here: {}", .0.display(), .1)]
    Refused(PathBuf, String),
    #[error("{} does not speak version {} of the protocol, as what runs here does", .0.display(), protocol::VERSION)]
    Version(PathBuf),
}

/// The program of this process, and what comes after it.
pub(super) struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    /// What we have taken over from, until we have started.
    previous: Option<Previous>,
}

/// The program that this process was before, and what it needs to go on.
struct Previous {
    program: OwnedFd,
    sockets: Vec<Named>,
}

impl Program {
    /// The one that runs, which may have been passed its predecessor.
    pub(super) fn of_this_process(passed: &mut Vec<Named>) -> io::Result<Self> {
        let mut arguments = std::env::args_os();
        let called = PathBuf::from(arguments.next().unwrap_or_default());
        // What has been replaced has another name in /proc/self/exe, so how it was called goes first.
        let path =
            if called.components().count() > 1 { std::path::absolute(called)? } else { std::env::current_exe()? };
        let previous = match passed.iter().position(|named| named.name == PREVIOUS) {
            None => None,
            Some(at) => Some(Previous { program: passed.remove(at).fd, sockets: copies(passed)? }),
        };
        Ok(Self { path, arguments: arguments.collect(), previous })
    }

    /// We have started.
    pub(super) fn forget_previous(&mut self) {
        self.previous = None;
    }

    /// Asks the program that is at our path now whether it could serve in our place.
    pub(super) async fn check_next(&self) -> Result<(), UpgradeError> {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).arg("--check").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = tokio::process::Command::from(command).kill_on_drop(true).output();
        let output = match tokio::time::timeout(CHECK_LIMIT, output).await {
            Err(_elapsed) => return Err(UpgradeError::Silent(self.path.clone())),
            Ok(output) => output.map_err(|error| UpgradeError::Run(self.path.clone(), error))?,
        };
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().last().map_or_else(|| output.status.to_string(), crate::errors::printable);
            return Err(UpgradeError::Refused(self.path.clone(), last));
        }
        if speaks(&String::from_utf8_lossy(&output.stdout), protocol::VERSION) {
            Ok(())
        } else {
            Err(UpgradeError::Version(self.path.clone()))
        }
    }

    /// Becomes the program that is at our path now, or else this one again. Returns only if neither is possible.
    pub(super) fn become_next(&self, sockets: Vec<Named>) -> StartError {
        // Not the path: that is another file by now.
        let running = Path::new("/proc/self/exe");
        let again = copies(&sockets);
        let error = match File::open(running) {
            Ok(previous) => {
                let previous = Named { name: PREVIOUS.to_owned(), fd: previous.into() };
                self.exec(&self.path, sockets.into_iter().chain([previous]).collect())
            }
            Err(error) => error,
        };
        tracing::error!("not upgraded: cannot execute {}: {error}; starting again", self.path.display());
        StartError::Upgrade(self.path.clone(), again.map_or_else(|error| error, |again| self.exec(running, again)))
    }

    /// Becomes the previous program, as we could not start because of `error`; returns that if there is none.
    pub(super) fn fall_back(mut self, error: StartError) -> StartError {
        let Some(Previous { program, sockets }) = self.previous.take() else { return error };
        tracing::error!("going back to the previous version: {}", crate::errors::chain(&error));
        let path = format!("/proc/self/fd/{}", program.as_raw_fd());
        StartError::Upgrade(self.path.clone(), self.exec(Path::new(&path), sockets))
    }

    fn exec(&self, program: &Path, passed: Vec<Named>) -> io::Error {
        // Another request may come before there is somebody to hear it.
        let ignored = [libc::SIGUSR2, libc::SIGHUP].into_iter().try_for_each(process::ignore_signal);
        if let Err(error) = ignored {
            return error;
        }
        let names: Vec<_> = passed.iter().map(|named| named.name.as_str()).collect();
        let mut command = Command::new(program);
        command
            .arg0(&self.path)
            .args(&self.arguments)
            .env("LISTEN_PID", std::process::id().to_string())
            .env("LISTEN_FDS", passed.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        spawn::give_fds(&mut command, passed.into_iter().map(|named| named.fd).collect());
        command.exec()
    }
}

fn copies(sockets: &[Named]) -> io::Result<Vec<Named>> {
    sockets.iter().map(|named| Ok(Named { name: named.name.clone(), fd: named.fd.try_clone()? })).collect()
}

/// Whether a server of this version could start with `config`, in the place of one that runs. Changes nothing. Returns what
/// `podspawn serve --check` says then.
///
/// # Errors
/// Why it could not.
pub fn check(config: &Config) -> Result<String, StateError> {
    State::check_version(&config.paths.db)?;
    Ok(format!("ok (protocol {} to {})", protocol::OLDEST, protocol::VERSION))
}

/// Whether a program whose [`check`] has said `answer` speaks `version` of the protocol.
fn speaks(answer: &str, version: u32) -> bool {
    let range = answer.trim_end().strip_prefix("ok (protocol ").and_then(|rest| rest.strip_suffix(')'));
    let (oldest, newest) = range.and_then(|range| range.split_once(" to ")).unwrap_or_default();
    matches!((oldest.parse(), newest.parse()), (Ok(oldest), Ok(newest)) if (oldest..=newest).contains(&version))
}

/// Waits for the children that the program had which this process was before: nobody else does. To be called before this
/// one has any, and inside a tokio runtime.
pub(super) fn reap_inherited_children() -> io::Result<()> {
    for pid in find_process::children(std::process::id().cast_signed())? {
        let child = Held::open(pid)?;
        let ended = async_fd::register(child.pidfd().try_clone_to_owned()?, Interest::READABLE)?;
        tokio::spawn(async move {
            // It fails only where the runtime ends.
            if ended.readable().await.is_ok() {
                let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
                if let Err(error) = waitid(Id::PIDFd(child.pidfd()), flags) {
                    tracing::error!(pid, "waiting for a child of the previous program: {error}");
                }
            }
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_trusted_only_if_it_says_that_it_speaks_our_version() {
        assert!(speaks("ok (protocol 2 to 4)\n", 4) && speaks("ok (protocol 4 to 9)", 4));
        for answer in ["ok (protocol 1 to 3)", "ok (protocol 5 to 6)", "ok (protocol  to 9)", "ok", ""] {
            assert!(!speaks(answer, 4), "{answer}");
        }
    }
}
