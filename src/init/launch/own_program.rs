//! Children that execute nothing: the program that they run is init's own.

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io::{self, Write},
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    path::Path,
};

use nix::{
    sys::socket::{AddressFamily, SockFlag, SockType, socketpair},
    unistd::setsid,
};

use super::{FAILED, Image, Launched, Refusal, Surroundings};
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
        match process::fork(self.proof).map_err(|error| Refusal::failed("start a process", &error))? {
            Some(pid) => Ok(Launched { pid, ends: vec![ours] }),
            None => {
                let prepare = || -> io::Result<()> {
                    process::close_all_but(&[theirs.as_raw_fd()])?;
                    setsid()?;
                    self.become_user()?;
                    self.become_program(exec)
                };
                let prepared = prepare();
                let stream = File::from(theirs);
                let status = match prepared {
                    Ok(()) => sftp::serve(&stream, &stream, self.home()).map_or_else(|error| error.status(), |()| 0),
                    Err(_nobody_to_tell) => FAILED,
                };
                process::exit_now(i32::from(status))
            }
        }
    }

    /// Goes on as what stands in for a command; standard streams, ids and working directory are those of the command.
    pub(super) fn become_stand_in(&self, exec: &Exec, stand_in: &StandIn<'_>, image: &Image) -> ! {
        // Among what is closed is the pipe to init, which tells it that the program has started.
        let prepared = process::close_all_but(&[]).and_then(|()| self.become_program(exec));
        let status = match prepared {
            Ok(()) => {
                let shell = OsStr::from_bytes(image.path.to_bytes());
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
    fn become_program(&self, exec: &Exec) -> io::Result<()> {
        process::ignore_signal(libc::SIGPIPE)?; // a client that is gone is an error of write(2)
        // Listings have the times that the user's own ls would show.
        let zone = exec.env.iter().rev().find(|(name, _)| name.as_slice() == b"TZ").map(|(_, zone)| zone.as_slice());
        let sessions = self.env.iter().rev().find(|(name, _)| name == "TZ").map(|(_, zone)| zone.as_bytes());
        let zone = zone.or(sessions).and_then(|zone| CString::new(zone).ok());
        local_time::set_zone(self.proof, zone.as_deref())?;
        privileges::drop_to_profile(&self.security)
    }
}
