//! `exec`: a program inside a session or one of its services, with the terminal's or pipe's ends of this command.
//!
//! It asks the container's init itself, as the server does: root may do both. So what it carries passes through no server, and
//! ends with this command.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    process,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::Session;
use crate::{
    api::types,
    errors::printable,
    names::{ContainerId, ProjectName},
    protocol::{self, ExitStatus, FromInit, Identity, Program, ToInit, Variables, wire},
    session::{SessionKey, socket_of},
    sys::{poll::wait_readable, seqpacket},
};

/// How long init may take to start a program.
const START_LIMIT: Duration = Duration::from_secs(30);

/// The only number on the socket.
const ID: u32 = 1;

/// As much as a pipe holds.
const BUFFER: usize = 64 << 10;

/// How much is read of what is there when the program has ended. Who still writes then is some other process.
const LAST_READS: usize = 4;

#[derive(Debug, Args)]
pub struct Exec {
    /// Whose session
    #[arg(value_name = "USER[@PROJECT]")]
    session: SessionKey,
    /// Run in this service, as its user
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Exec {
    /// Exits with the program's status, 128 and the signal's number where one has ended it, 125 to 127 if it was not run.
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let found = session.client().sessions()?.into_iter().find(|found| {
            found.user == self.session.user.as_str()
                && found.project.as_deref() == self.session.project.as_ref().map(ProjectName::as_str)
                && found.status != "stopping"
        });
        let found = found.with_context(|| format!("there is no session of {}", self.session))?;
        let (container, exec) = self.exec(&found)?;
        let socket = socket_of(&session.config.paths.run_dir.join("sessions"), &container);
        let init = seqpacket::connect(&socket).context("the container does not answer")?;
        // Nobody but us is on it, and a small message always fits.
        wire::send(init.as_fd(), &ToInit::Exec(Box::new(exec)), &[]).context("the container does not answer")?;
        wait_readable(init.as_fd(), START_LIMIT).context("the container does not answer")?;
        match wire::recv::<FromInit>(init.as_fd()).context("the container does not answer")? {
            Some((FromInit::Started { .. }, ends)) => {
                let Ok([stdin, stdout, stderr]) = <[OwnedFd; 3]>::try_from(ends) else {
                    bail!("the container's answer is of no use")
                };
                let status = Carrier::new(init, stdin, stdout, stderr)?.carry()?;
                process::exit(match status {
                    ExitStatus::Code(code) => i32::from(code),
                    ExitStatus::Signal { signal, .. } => 128 + signal,
                })
            }
            Some((FromInit::Refused { status, message, .. }, _)) => {
                // Nowhere is left to say it if standard error is closed.
                let _ = writeln!(io::stderr(), "podspawn: {}", printable(&message));
                process::exit(i32::from(status))
            }
            _ => bail!("the container is gone"),
        }
    }

    /// Where it is to be run, and how.
    fn exec(&self, session: &types::Session) -> anyhow::Result<(ContainerId, protocol::Exec)> {
        let words = self.command.iter().map(|word| protocol::Bytes::from(word.as_bytes())).collect();
        let exec = protocol::Exec::new(ID, Program::Argv(words));
        let Some(name) = &self.service else {
            let id = session.id.as_deref().context("the session is just being made")?;
            return Ok((id.parse()?, exec));
        };
        let Some(service) = session.services.iter().find(|service| service.name.eq_ignore_ascii_case(name)) else {
            let names: Vec<_> = session.services.iter().map(|service| service.name.as_str()).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            bail!("the session of {} has no service {name:?}; it has {names}", self.session)
        };
        let exec = protocol::Exec {
            identity: Identity::Named { user: service.user.clone() },
            variables: Variables::Bare,
            cwd: Some(service.workdir.clone()),
            ..exec
        };
        Ok((service.container.parse()?, exec))
    }
}

/// Between our standard input and output and the program's, until it has ended.
struct Carrier {
    init: OwnedFd,
    /// Until ours is at its end, or the program does not read any more.
    stdin: Option<File>,
    /// What has been read and not written yet.
    waiting: Vec<u8>,
    stdout: Option<File>,
    stderr: Option<File>,
}

impl Carrier {
    fn new(init: OwnedFd, stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Self> {
        for end in [&stdin, &stdout, &stderr] {
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let [stdin, stdout, stderr] = [stdin, stdout, stderr].map(|end| Some(File::from(end)));
        Ok(Self { init, stdin, waiting: Vec::new(), stdout, stderr })
    }

    fn carry(mut self) -> anyhow::Result<ExitStatus> {
        loop {
            let [ended, out, err, read, write] = self.wait()?;
            if out {
                pass_on(&mut self.stdout, &mut io::stdout())?;
            }
            if err {
                pass_on(&mut self.stderr, &mut io::stderr())?;
            }
            if read {
                self.read()?;
            }
            if write {
                self.write();
            }
            if ended {
                return self.end();
            }
        }
    }

    /// Which of init, stdout, stderr, our input and the program's input are ready.
    fn wait(&self) -> io::Result<[bool; 5]> {
        let ours = io::stdin();
        let reads = self.stdin.is_some() && self.waiting.is_empty();
        let writes = self.stdin.as_ref().filter(|_| !self.waiting.is_empty());
        let (input, output) = (PollFlags::POLLIN, PollFlags::POLLOUT);
        let wanted = [
            Some((self.init.as_fd(), input)),
            self.stdout.as_ref().map(|end| (end.as_fd(), input)),
            self.stderr.as_ref().map(|end| (end.as_fd(), input)),
            reads.then(|| (ours.as_fd(), input)),
            writes.map(|end| (end.as_fd(), output)),
        ];
        let mut fds: Vec<_> = wanted.iter().flatten().map(|(fd, flags)| PollFd::new(*fd, *flags)).collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = fds.iter().map(|fd| fd.any().unwrap_or_default());
        Ok(wanted.map(|wanted| wanted.is_some() && ready.next().unwrap_or_default()))
    }

    fn read(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        match io::stdin().lock().read(&mut buffer)? {
            0 => self.stdin = None,
            length => self.waiting.extend_from_slice(&buffer[..length]),
        }
        Ok(())
    }

    fn write(&mut self) {
        let Some(stdin) = &mut self.stdin else { return };
        match stdin.write(&self.waiting) {
            Ok(length) => drop(self.waiting.drain(..length)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // It does not read any more.
            Err(_) => self.stdin = None,
        }
    }

    /// The program has ended: passes the rest of its output on.
    fn end(&mut self) -> anyhow::Result<ExitStatus> {
        let Ok(Some((FromInit::Exited { status, .. }, _))) = wire::recv::<FromInit>(self.init.as_fd()) else {
            bail!("the session has ended")
        };
        for _ in 0..LAST_READS {
            pass_on(&mut self.stdout, &mut io::stdout())?;
            pass_on(&mut self.stderr, &mut io::stderr())?;
        }
        Ok(status)
    }
}

/// Passes on what is there; nothing more comes from an end that is closed.
fn pass_on(from: &mut Option<File>, to: &mut impl Write) -> io::Result<()> {
    let Some(end) = from else { return Ok(()) };
    let mut buffer = vec![0; BUFFER];
    match end.read(&mut buffer) {
        Ok(0) => *from = None,
        Ok(length) => {
            to.write_all(&buffer[..length])?;
            to.flush()?;
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}
