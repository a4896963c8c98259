//! The process that a service's container is there for. It does not end with whoever has started it.
//!
//! We keep an end of its output too: while no supervisor reads it, it may write as much as a pipe holds and then waits,
//! instead of being killed by SIGPIPE.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::{sys::signal::Signal, unistd::Pid};

use super::{
    launch::{Launched, Refusal},
    serve::Init,
};
use crate::protocol::{Exec, ExitStatus, FromInit};

#[derive(Debug)]
pub(super) struct Main {
    pid: i32,
    stdout: OwnedFd,
    stderr: OwnedFd,
    /// Of one that has ended.
    status: Option<ExitStatus>,
}

impl Init {
    /// Why `exec` cannot become the main process, if it cannot.
    pub(super) fn refuse_main(&self, exec: &Exec) -> Option<String> {
        if exec.pty.is_some() {
            return Some("the main process of a container has no terminal".to_owned());
        }
        let running = self.main.as_ref().is_some_and(|main| main.status.is_none());
        running.then(|| "the container has a main process already".to_owned())
    }

    /// Keeps what is needed of a process that has just been started as the main one.
    pub(super) fn keep_main(&mut self, launched: &Launched) -> io::Result<()> {
        let [_stdin, stdout, stderr] = launched.ends.as_slice() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let (stdout, stderr) = (stdout.as_fd().try_clone_to_owned()?, stderr.as_fd().try_clone_to_owned()?);
        self.main = Some(Main { pid: launched.pid, stdout, stderr, status: None });
        Ok(())
    }

    /// Gives the main process to the client `token`, which calls it `id`.
    pub(super) fn resume(&mut self, token: u64, id: u32) {
        let Some(main) = &self.main else {
            let message = "the container has no main process".to_owned();
            return self.send(token, &FromInit::Refused { id, status: super::launch::FAILED, message }, Vec::new());
        };
        let ends = [&main.stdout, &main.stderr].map(|end| end.as_fd().try_clone_to_owned());
        let (pid, status) = (main.pid, main.status);
        let ends = match ends.into_iter().collect::<io::Result<Vec<_>>>() {
            Ok(ends) => ends,
            Err(error) => {
                let Refusal { status, message } = Refusal::failed("pass its output on", &error);
                return self.send(token, &FromInit::Refused { id, status, message }, Vec::new());
            }
        };
        self.send(token, &FromInit::Started { id, pid: pid.cast_unsigned() }, ends);
        match status {
            Some(status) => self.send(token, &FromInit::Exited { id, status }, Vec::new()),
            None => self.give_to(pid, token, id),
        }
    }

    /// Remembers the end of the main process, if it is that, and ends what it has left: nobody should find half a service.
    pub(super) fn main_ended(&mut self, pid: i32, status: ExitStatus) {
        if let Some(main) = self.main.as_mut().filter(|main| main.pid == pid && main.status.is_none()) {
            main.status = Some(status);
            // Everybody in our pid namespace but ourselves (kill(2)). There may be nobody.
            if let Err(_nobody) = nix::sys::signal::kill(Pid::from_raw(-1), Signal::SIGKILL) {}
        }
    }
}
