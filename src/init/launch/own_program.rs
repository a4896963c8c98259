//! Children that execute nothing: the program that they run is init's own.

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    panic::AssertUnwindSafe,
    path::Path,
};

use nix::{
    sys::socket::{AddressFamily, SockFlag, SockType, socketpair},
    unistd::setsid,
};

use super::{FAILED, Image, Launched, Refusal, Surroundings, become_somebody};
use crate::{
    init::{
        privileges, sftp,
        stand_in::{Caller, StandIn},
    },
    protocol::Exec,
    sys::{local_time, process},
};

impl Surroundings {
    /// Starts an SFTP server.
    pub(super) fn launch_sftp(&self, exec: &Exec) -> Result<Launched, Refusal> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|error| Refusal::failed("make a socket", &error.into()))?;
        let pid = self.fork_as_user(theirs, |socket| {
            self.set_zone(exec)?;
            let stream = File::from(socket);
            Ok(sftp::serve(&stream, &stream, self.home()).map_or_else(|error| error.status(), |()| 0))
        });
        let pid = pid.map_err(|error| Refusal::failed("start a process", &error))?;
        Ok(Launched { pid, ends: vec![ours] })
    }

    /// Forks a child that does `work` as the session's user, with `socket` and nothing else open, and ends with the status
    /// that it returns.
    pub(in crate::init) fn fork_as_user(
        &self,
        socket: OwnedFd,
        work: impl FnOnce(OwnedFd) -> io::Result<u8>,
    ) -> io::Result<i32> {
        if let Some(pid) = process::fork(self.proof)? {
            return Ok(pid);
        }
        let child = || -> io::Result<u8> {
            process::close_all_but(&[socket.as_raw_fd()])?;
            setsid()?;
            let user = self.session_user()?;
            become_somebody(&user)?;
            self.enter_directory(&user)?;
            self.become_program()?;
            work(socket)
        };
        // A panic must not unwind into the loop of init, whose copy this is.
        let status = match std::panic::catch_unwind(AssertUnwindSafe(child)) {
            Ok(Ok(status)) => status,
            Ok(Err(_)) | Err(_) => FAILED, // nobody to tell
        };
        process::exit_now(i32::from(status))
    }

    /// Goes on as what stands in for a command; standard streams, ids and working directory are those of the command.
    pub(super) fn become_stand_in(&self, exec: &Exec, stand_in: &StandIn<'_>, image: &Image) -> ! {
        // Among what is closed is the pipe to init, which tells it that the program has started.
        let prepared =
            process::close_all_but(&[]).and_then(|()| self.become_program()).and_then(|()| self.set_zone(exec));
        let status = match prepared {
            Ok(()) => {
                let shell = OsStr::from_bytes(image.program.to_bytes());
                stand_in.run(&Caller { shell, environment: &image.environment, home: self.home() })
            }
            Err(error) => {
                // If that fails too, the status has to do.
                if let Err(_gone) = writeln!(io::stderr(), "podspawn: cannot start: {error}") {}
                FAILED
            }
        };
        process::exit_now(i32::from(status))
    }

    fn home(&self) -> &Path {
        Path::new(&self.account.home)
    }

    /// What exec would do.
    fn become_program(&self) -> io::Result<()> {
        process::ignore_signal(libc::SIGPIPE)?; // a client that is gone is an error of write(2)
        privileges::drop_to_profile(&self.security)
    }

    /// Listings have the times that the user's own ls would show.
    fn set_zone(&self, exec: &Exec) -> io::Result<()> {
        let zone = exec.env.iter().rev().find(|(name, _)| name.as_slice() == b"TZ").map(|(_, zone)| zone.as_slice());
        let sessions = self.env.iter().rev().find(|(name, _)| name == "TZ").map(|(_, zone)| zone.as_bytes());
        let zone = zone.or(sessions).and_then(|zone| CString::new(zone).ok());
        local_time::set_zone(self.proof, zone.as_deref())
    }
}
