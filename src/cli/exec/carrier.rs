//! Between our standard input and output and a program's, until it has ended.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
};

use anyhow::bail;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::terminal::{self, Heard, Terminal};
use crate::protocol::{ExitStatus, FromInit, wire};

/// As much as a pipe holds.
const BUFFER: usize = 64 << 10;

/// How much is read of what is there when the program has ended. Who still writes then is some other process.
const LAST_READS: usize = 4;

/// Our ends of the program's input and output. On a terminal, the first two are its leader.
pub(super) struct Ends {
    /// `None`: nothing is passed on.
    pub(super) input: Option<File>,
    pub(super) output: File,
    pub(super) errors: Option<File>,
}

pub(super) struct Carrier {
    init: OwnedFd,
    /// Until ours is at its end, or the program does not read any more.
    input: Option<File>,
    /// What has been read and not written yet.
    waiting: Vec<u8>,
    output: Option<File>,
    errors: Option<File>,
    terminal: Option<Terminal>,
}

impl Carrier {
    /// `init` is the socket over which the program was started; the window of its `terminal`, if it has one, follows ours.
    pub(super) fn new(init: OwnedFd, ends: Ends, terminal: Option<Terminal>) -> io::Result<Self> {
        let Ends { input, output, errors } = ends;
        let (output, waiting) = (Some(output), Vec::new());
        for end in [&input, &output, &errors].into_iter().flatten() {
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Self { init, input, waiting, output, errors, terminal })
    }

    /// Carries until the program has ended, or we are to: then its end is that of the signal which says so.
    pub(super) fn carry(mut self) -> anyhow::Result<ExitStatus> {
        if let Some(terminal) = &mut self.terminal {
            terminal.enter()?;
        }
        loop {
            let [signal, ended, out, err, read, write] = self.wait()?;
            if signal && let Some(signal) = self.hear()? {
                return Ok(ExitStatus::Signal { signal, core_dumped: false });
            }
            if out {
                pass_on(&mut self.output, &mut io::stdout())?;
            }
            if err {
                pass_on(&mut self.errors, &mut io::stderr())?;
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

    /// Which of signals, init, output, errors, our input and the program's input are ready.
    fn wait(&self) -> io::Result<[bool; 6]> {
        let ours = io::stdin();
        let reads = self.input.is_some() && self.waiting.is_empty();
        let writes = self.input.as_ref().filter(|_| !self.waiting.is_empty());
        let (input, output) = (PollFlags::POLLIN, PollFlags::POLLOUT);
        let wanted = [
            self.terminal.as_ref().map(|terminal| (terminal.signals(), input)),
            Some((self.init.as_fd(), input)),
            self.output.as_ref().map(|end| (end.as_fd(), input)),
            self.errors.as_ref().map(|end| (end.as_fd(), input)),
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

    /// Does what a signal of ours is for; returns the number of one that ends us.
    fn hear(&self) -> io::Result<Option<i32>> {
        let Some(terminal) = &self.terminal else { return Ok(None) };
        match (terminal.hear()?, &self.output) {
            (Some(Heard::End(signal)), _) => return Ok(Some(signal)),
            (Some(Heard::Resized), Some(leader)) => terminal::resize(leader.as_fd())?,
            (Some(Heard::Resized), None) | (None, _) => {}
        }
        Ok(None)
    }

    fn read(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        match io::stdin().lock().read(&mut buffer)? {
            0 => self.input = None,
            length => self.waiting.extend_from_slice(&buffer[..length]),
        }
        Ok(())
    }

    fn write(&mut self) {
        let Some(input) = &mut self.input else { return };
        match input.write(&self.waiting) {
            Ok(length) => drop(self.waiting.drain(..length)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // It does not read any more.
            Err(_) => self.input = None,
        }
    }

    /// The program has ended: passes the rest of its output on.
    fn end(&mut self) -> anyhow::Result<ExitStatus> {
        let Ok(Some((FromInit::Exited { status, .. }, _))) = wire::recv::<FromInit>(self.init.as_fd()) else {
            bail!("the session has ended")
        };
        for _ in 0..LAST_READS {
            pass_on(&mut self.output, &mut io::stdout())?;
            pass_on(&mut self.errors, &mut io::stderr())?;
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
        // So a terminal's leader says that nobody has the other end open any more (pty(7)).
        Err(error) if error.raw_os_error() == Some(libc::EIO) => *from = None,
        Err(error) => return Err(error),
    }
    Ok(())
}
