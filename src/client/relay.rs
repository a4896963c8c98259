//! `podspawn connect`: bytes between ssh and a server, with the announcement of the project before ssh's first one.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::{AsFd, BorrowedFd},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::server::{Identity, MAX_IDENTIFICATION};
use crate::{names::ProjectName, protocol::announcement::announcement};

/// More than a pipe or a socket usually has at once.
const BUFFER: usize = 128 << 10;

/// Why a relay has ended before both sides were done.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("cannot use standard input or output")]
    Standard(#[source] io::Error),
    #[error("the connection is lost")]
    Lost(#[source] io::Error),
}

/// Relays between standard input and output and `server` until both directions have ended, each on its own.
///
/// The server's first line is waited for: only one of podspawn is told the project.
pub fn relay(server: TcpStream, project: Option<&ProjectName>) -> Result<(), RelayError> {
    let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from).map_err(RelayError::Standard);
    let (mut input, mut output) = (own(io::stdin().as_fd())?, own(io::stdout().as_fd())?);
    let Some(line) = first_line(&server, &input)? else { return Ok(()) };
    if let (Identity::Podspawn { .. }, Some(project)) = (Identity::of(&line), project) {
        (&server).write_all(announcement(project).as_bytes()).map_err(RelayError::Lost)?;
    }
    if !wants_more(output.write_all(&line))? {
        return Ok(());
    }
    let mut upwards = server.try_clone().map_err(RelayError::Lost)?;
    let up = std::thread::spawn(move || {
        // What fails here is the server's end, of which the other direction hears too.
        let copied = copy(&mut input, &mut upwards);
        let closed = upwards.shutdown(Shutdown::Write);
        copied.and(closed)
    });
    if !wants_more(copy(&mut &server, &mut output))? {
        return Ok(());
    }
    // ssh sees the end of the server's words as soon as nobody has its pipe any more.
    drop(output);
    let null = File::options().write(true).open("/dev/null").map_err(RelayError::Standard)?;
    nix::unistd::dup2_stdout(&null).map_err(|error| RelayError::Standard(error.into()))?;
    match up.join() {
        // It had nothing more to say to somebody who has left.
        Ok(Ok(()) | Err(_)) => Ok(()),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Copies until the end of the input.
///
/// Not with `io::copy`, which would use splice(2): that holds the pipe's lock while it waits for the socket, so that ssh cannot
/// read what is in the pipe already until more comes. Observed on Linux 6.18.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => to.write_all(&buffer[..length])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether the direction to ssh goes on; it does not if ssh has gone.
fn wants_more(written: io::Result<()>) -> Result<bool, RelayError> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(RelayError::Lost(error)),
    }
}

/// The first line of the server, or what it sends instead of one; `None` if ssh or the server has gone.
fn first_line(mut server: &TcpStream, ssh: &File) -> Result<Option<Vec<u8>>, RelayError> {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") && line.len() < MAX_IDENTIFICATION {
        // A server that is being restarted lets us wait, and ssh has its own ConnectTimeout: no limit here but ssh's patience.
        let mut waiting =
            [PollFd::new(server.as_fd(), PollFlags::POLLIN), PollFd::new(ssh.as_fd(), PollFlags::empty())];
        match poll(&mut waiting, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(RelayError::Lost(error.into())),
        }
        let has = |index: usize| waiting[index].revents().is_some_and(|events| !events.is_empty());
        if has(0) {
            let mut byte = [0];
            match server.read(&mut byte) {
                Ok(0) => return Ok(if line.is_empty() { None } else { Some(line) }),
                Ok(_) => line.push(byte[0]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(RelayError::Lost(error)),
            }
        } else if has(1) {
            return Ok(None);
        }
    }
    Ok(Some(line))
}
