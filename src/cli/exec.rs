//! `exec`: a program inside a session or one of its services, on pipes or on a terminal of the container's.
//!
//! It asks the container's init itself, as the server does: root may do both. So what it carries passes through no server, and
//! ends with this command. The server is told before and after, for the audit log.

mod carrier;
mod terminal;

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args;

use self::{
    carrier::{Carrier, Ends},
    terminal::Terminal,
};
use super::Session;
use crate::{
    api::types::{self, ExecEnd, ExecReport},
    errors::{chain, printable},
    names::{ContainerId, ProjectName},
    protocol::{self, ExitStatus, FromInit, Identity, Program, ToInit, Variables, wire},
    session::{SessionKey, socket_of},
    sys::{poll::wait_readable, seqpacket},
    time::millis,
};

/// How long init may take to start a program.
const START_LIMIT: Duration = Duration::from_secs(30);

/// The only number on the socket.
const ID: u32 = 1;

#[derive(Debug, Args)]
pub struct Exec {
    /// Whose session
    #[arg(value_name = "USER[@PROJECT]")]
    session: SessionKey,
    /// Run in this service, as its user
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Pass standard input on; the program's is empty otherwise
    #[arg(long, short)]
    interactive: bool,
    /// Run on a terminal, whose window is as large as this one's
    #[arg(long, short)]
    tty: bool,
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
        let terminal = self.tty.then(|| Terminal::new(self.interactive)).transpose()?;
        let (container, exec) = self.exec(&found, terminal.as_ref())?;
        let socket = socket_of(&session.config.paths.run_dir.join("sessions"), &container);
        let mut report = ExecReport {
            session: found.id.unwrap_or_default(),
            service: self.service.clone(),
            command: self.command.clone(),
            ended: None,
        };
        let client = session.client();
        client.exec_report(&self.session, &report).context("what is not in the audit log is not run")?;
        let begun = Instant::now();
        let status = self.carry(&socket, exec, terminal)?;
        let duration = millis(begun.elapsed());
        report.ended = Some(ExecEnd::of(status, duration));
        if let Err(error) = client.exec_report(&self.session, &report) {
            // Nowhere is left to say it if standard error is closed.
            let _ = writeln!(io::stderr(), "podspawn: warning: its end is not in the audit log: {}", chain(error));
        }
        process::exit(match status {
            ExitStatus::Code(code) => i32::from(code),
            ExitStatus::Signal { signal, .. } => 128 + signal,
        })
    }

    /// Has init run it, and carries what is read and written until it has ended. Our terminal then is what it was before.
    fn carry(&self, socket: &Path, exec: protocol::Exec, terminal: Option<Terminal>) -> anyhow::Result<ExitStatus> {
        let init = seqpacket::connect(socket).context("the container does not answer")?;
        // Nobody but us is on it, and a small message always fits.
        wire::send(init.as_fd(), &ToInit::Exec(Box::new(exec)), &[]).context("the container does not answer")?;
        wait_readable(init.as_fd(), START_LIMIT).context("the container does not answer")?;
        match wire::recv::<FromInit>(init.as_fd()).context("the container does not answer")? {
            Some((FromInit::Started { .. }, ends)) => {
                let ends = ends_of(ends, self.interactive)?;
                Carrier::new(init, ends, terminal)?.carry()
            }
            Some((FromInit::Refused { status, message, .. }, _)) => {
                // As above.
                let _ = writeln!(io::stderr(), "podspawn: {}", printable(&message));
                Ok(ExitStatus::Code(status))
            }
            _ => bail!("the container is gone"),
        }
    }

    /// Where it is to be run, and how.
    fn exec(
        &self,
        session: &types::Session,
        terminal: Option<&Terminal>,
    ) -> anyhow::Result<(ContainerId, protocol::Exec)> {
        let words = self.command.iter().map(|word| protocol::Bytes::from(word.as_bytes())).collect();
        let pty = terminal.map(Terminal::pty);
        let exec = protocol::Exec { pty, ..protocol::Exec::new(ID, Program::Argv(words)) };
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

/// Ours of the program's descriptors: the leader of its terminal, or three pipes.
fn ends_of(mut fds: Vec<OwnedFd>, interactive: bool) -> anyhow::Result<Ends> {
    let (input, output, errors) = match fds.len() {
        1 => {
            let leader = fds.remove(0);
            (leader.try_clone()?, leader, None)
        }
        3 => (fds.remove(0), fds.remove(0), fds.pop()),
        _ => bail!("the container's answer is of no use"),
    };
    // Dropped, a pipe is at its end; a terminal stays as long as its output is open.
    Ok(Ends { input: interactive.then(|| File::from(input)), output: output.into(), errors: errors.map(File::from) })
}
