//! Init's loop: clients, their processes, and deadlines, in one thread that never waits for anybody.
//!
//! Everything is bounded: clients, processes of each, messages that wait for a slow client. A client that sends nonsense
//! or too much, or does not read, loses its socket; when a socket closes, what was started over it is hung up.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::Pid,
};

use super::{
    HANGUP_GRACE,
    account::Account,
    errands::{Asker, Errands},
    launch::{Launched, Refusal, Surroundings},
    stays::Main,
};
use crate::{
    protocol::{ContainerSpec, Exec, ExitStatus, FailReason, FromInit, Identity, ToInit, wire},
    sys::{
        process::{self, Ended, SingleThreaded},
        seqpacket,
    },
};

/// Clients at once; further ones wait in the listener's backlog.
const MAX_CLIENTS: usize = 64;

/// Running processes of one client; further ones are refused.
const MAX_PROCESSES: usize = 64;

/// Messages that wait for a client that does not read; beyond them it loses its socket.
const MAX_WAITING: usize = 256;

/// Processes are this much likelier to be killed for memory than init, whose death ends the session.
pub const OOM_SCORE: i32 = 200;

/// A pause when accepting fails, e.g. for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// PID 1, ready to serve.
#[derive(Debug)]
pub(super) struct Init {
    listener: OwnedFd,
    signals: SignalFd,
    /// Our own `oom_score_adj`: a child that never was dumpable cannot open its own.
    oom_score: File,
    pub(super) surroundings: Surroundings,
    clients: BTreeMap<u64, Client>,
    next_client: u64,
    /// By pid: children that were started for somebody and have not been reaped.
    processes: BTreeMap<i32, Process>,
    pub(super) main: Option<Main>,
    pub(super) errands: Errands,
    accept_again: Option<Instant>,
    /// Of the largest message's size.
    pub(super) buffer: Vec<u8>,
}

#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    waiting: VecDeque<Outgoing>,
    /// Everything is done as the session's user.
    restricted: bool,
}

/// An encoded message and its descriptors.
#[derive(Debug)]
struct Outgoing(Vec<u8>, Vec<OwnedFd>);

#[derive(Debug)]
struct Process {
    client: u64,
    id: u32,
    /// It outlives its client.
    stays: bool,
    /// When it will be killed, for one that was hung up.
    kill_at: Option<Instant>,
}

impl Init {
    pub(super) fn new(
        listener: OwnedFd,
        devpts: OwnedFd,
        oom_score: File,
        spec: &ContainerSpec,
        account: Account,
        proof: SingleThreaded,
    ) -> io::Result<Self> {
        let mut child_ended = SigSet::empty();
        child_ended.add(Signal::SIGCHLD);
        let signals = SignalFd::with_flags(&child_ended, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        fcntl(&listener, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self {
            listener,
            signals,
            oom_score,
            surroundings: Surroundings::new(spec, account, devpts, proof),
            clients: BTreeMap::new(),
            next_client: 0,
            processes: BTreeMap::new(),
            main: None,
            errands: Errands::default(),
            accept_again: None,
            buffer: vec![0; wire::MAX_MESSAGE],
        })
    }

    /// All descriptors from 3 on that this owns.
    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        vec![
            self.listener.as_raw_fd(),
            self.signals.as_fd().as_raw_fd(),
            self.oom_score.as_raw_fd(),
            self.surroundings.devpts(),
        ]
    }

    /// Serves for as long as the container lives.
    ///
    /// # Errors
    /// Only if poll(2) itself fails.
    pub(super) fn serve(&mut self) -> io::Result<()> {
        loop {
            let ready = self.wait()?;
            self.reap();
            self.kill_overdue();
            self.finish_errands();
            for token in ready.writable {
                self.flush(token);
            }
            for token in ready.readable {
                self.receive(token);
            }
            if ready.accept {
                self.accept();
            }
        }
    }

    fn wait(&mut self) -> io::Result<Ready> {
        let now = Instant::now();
        if self.accept_again.is_some_and(|at| at <= now) {
            self.accept_again = None;
        }
        let accepting = self.clients.len() < MAX_CLIENTS && self.accept_again.is_none();
        let listener_events = if accepting { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), listener_events),
        ];
        for client in self.clients.values() {
            // Who does not read is not read from, so that its messages cannot make more.
            let events = if client.waiting.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLOUT };
            fds.push(PollFd::new(client.socket.as_fd(), events));
        }
        let clients_end = fds.len();
        fds.extend(self.errands.sockets().map(|socket| PollFd::new(socket, PollFlags::POLLIN)));
        let kills = self.processes.values().filter_map(|process| process.kill_at);
        let deadline = kills.chain(self.accept_again).chain(self.errands.deadline()).min();
        let timeout = deadline.map_or(PollTimeout::NONE, |at| {
            // Rounded up, not to come back a moment early again and again.
            let left = at.saturating_duration_since(now) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let has = |fd: &PollFd<'_>, flags: PollFlags| fd.revents().unwrap_or(PollFlags::empty()).intersects(flags);
        let ended = PollFlags::POLLHUP | PollFlags::POLLERR;
        let mut ready = Ready { accept: has(&fds[1], PollFlags::POLLIN), readable: Vec::new(), writable: Vec::new() };
        for (fd, token) in fds[2..clients_end].iter().zip(self.clients.keys()) {
            if has(fd, PollFlags::POLLOUT) {
                ready.writable.push(*token);
            }
            if has(fd, PollFlags::POLLIN | ended) {
                ready.readable.push(*token);
            }
        }
        Ok(ready)
    }

    fn accept(&mut self) {
        let accepted = seqpacket::accept(self.listener.as_fd()).and_then(|socket| {
            fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            Ok(socket)
        });
        match accepted {
            Ok(socket) => {
                self.clients.insert(self.next_client, Client { socket, waiting: VecDeque::new(), restricted: false });
                self.next_client += 1;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_resources) => self.accept_again = Some(Instant::now() + ACCEPT_PAUSE),
        }
    }

    /// Takes one message of a client; the others have their turn before its next.
    fn receive(&mut self, token: u64) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        // Descriptors that come along are not asked for, and closed.
        let message = match seqpacket::recv(client.socket.as_fd(), &mut self.buffer) {
            Ok((0, _)) => None,
            Ok((length, _)) => wire::decode(&self.buffer[..length]).ok(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => None,
        };
        match message {
            Some(ToInit::Exec(exec)) => self.start(token, &exec),
            Some(ToInit::Restrict) => client.restricted = true,
            Some(ToInit::Resume { id }) if !client.restricted => self.resume(token, id),
            Some(ToInit::MakeDirectory { id, path }) => {
                let answer = if client.restricted {
                    Err("only the supervisor can have directories made".to_owned())
                } else {
                    self.surroundings.make_directory(&path).map_err(|error| error.to_string())
                };
                let answer = match answer {
                    Ok(()) => FromInit::Done { id },
                    Err(message) => FromInit::Failed { id, reason: FailReason::Error, message },
                };
                self.send(token, &answer, Vec::new());
            }
            Some(ToInit::Signal { id, signal }) => self.signal(token, id, signal),
            Some(ToInit::Release { id }) => {
                self.hang_up(|process| process.client == token && process.id == id);
                self.errands.release(|asker| asker.client == token && asker.id == id);
            }
            Some(ToInit::Resolve { id, host }) => self.resolve(Asker { client: token, id }, host),
            Some(ToInit::Connect { id, to }) => self.connect(Asker { client: token, id }, to),
            Some(ToInit::Listen { id, on }) => self.listen(Asker { client: token, id }, on),
            Some(ToInit::Resume { .. }) | None => self.close(token),
        }
    }

    fn start(&mut self, token: u64, exec: &Exec) {
        let id = exec.id;
        let of_client = self.processes.values().filter(|process| process.client == token);
        let restricted = self.clients.get(&token).is_none_or(|client| client.restricted);
        let refusal = if of_client.clone().any(|process| process.id == id) {
            Some(format!("id {id} is in use"))
        } else if of_client.count() >= MAX_PROCESSES {
            Some(format!("this connection has {MAX_PROCESSES} processes already"))
        } else if restricted && (exec.identity != Identity::Session || exec.stays) {
            Some("only processes of the session's user are allowed here".to_owned())
        } else if exec.stays {
            self.refuse_main(exec)
        } else {
            None
        };
        let launched = match refusal {
            Some(message) => Err(Refusal { status: 125, message }),
            None => self.launch(exec),
        };
        match launched {
            Ok(launched) => {
                self.processes.insert(launched.pid, Process { client: token, id, stays: exec.stays, kill_at: None });
                let pid = launched.pid.cast_unsigned();
                self.send(token, &FromInit::Started { id, pid }, launched.ends);
            }
            Err(Refusal { status, message }) => {
                self.send(token, &FromInit::Refused { id, status, message }, Vec::new());
            }
        }
    }

    fn launch(&mut self, exec: &Exec) -> Result<Launched, Refusal> {
        // Inherited by fork; our own goes back at once, which the kernel allows as it never was lower. Both can only
        // fail for want of memory, and then the process is no worse off than init.
        if let Err(_unchanged) = self.oom_score.write_all(OOM_SCORE.to_string().as_bytes()) {}
        let launched = self.surroundings.launch(exec);
        if let Err(_unchanged) = self.oom_score.write_all(b"0") {}
        let launched = launched?;
        if exec.stays
            && let Err(error) = self.keep_main(&launched)
        {
            // Not reaped yet, so the pid is its own.
            to_group(launched.pid, Signal::SIGKILL);
            return Err(Refusal::failed("keep its output", &error));
        }
        Ok(launched)
    }

    /// From now on the process is this client's, which calls it `id`.
    pub(super) fn give_to(&mut self, pid: i32, client: u64, id: u32) {
        if let Some(process) = self.processes.get_mut(&pid) {
            (process.client, process.id) = (client, id);
        }
    }

    fn signal(&self, token: u64, id: u32, signal: i32) {
        let main = self.processes.iter().find(|(_, process)| process.client == token && process.id == id);
        if let (Some((pid, _)), Ok(signal)) = (main, Signal::try_from(signal)) {
            // Not reaped yet, so the pid is still its own.
            to_group(*pid, signal);
        }
    }

    /// SIGHUP for the process groups of the chosen main processes that still run, and SIGKILL later for those processes.
    fn hang_up(&mut self, chosen: impl Fn(&Process) -> bool) {
        let kill_at = Instant::now() + HANGUP_GRACE;
        for (pid, process) in &mut self.processes {
            if process.kill_at.is_none() && chosen(process) {
                process.kill_at = Some(kill_at);
                to_group(*pid, Signal::SIGHUP);
                to_group(*pid, Signal::SIGCONT); // a stopped one could not act on it
            }
        }
    }

    fn kill_overdue(&mut self) {
        let now = Instant::now();
        for (pid, process) in &mut self.processes {
            if process.kill_at.is_some_and(|at| at <= now) {
                // It stays in the table until it is reaped, which SIGKILL brings about; once is enough.
                process.kill_at = None;
                if let Err(_ended) = kill(Pid::from_raw(*pid), Signal::SIGKILL) {}
            }
        }
    }

    /// Reaps all children that have ended, ours and those that lost their parents.
    fn reap(&mut self) {
        // Signals are merged, so only the fact that there was one counts.
        while let Ok(Some(_)) = self.signals.read_signal() {}
        while let Some((pid, ended)) = process::reap() {
            self.errands.reaped(pid);
            if let Some(process) = self.processes.remove(&pid) {
                let status = match ended {
                    Ended::Code(code) => ExitStatus::Code(code),
                    Ended::Signal { signal, core_dumped } => ExitStatus::Signal { signal, core_dumped },
                };
                self.main_ended(pid, status);
                self.send(process.client, &FromInit::Exited { id: process.id, status }, Vec::new());
            }
        }
    }

    pub(super) fn send(&mut self, token: u64, message: &FromInit, fds: Vec<OwnedFd>) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        match wire::encode(message) {
            Ok(bytes) if client.waiting.len() < MAX_WAITING => {
                client.waiting.push_back(Outgoing(bytes, fds));
                self.flush(token);
            }
            _ => self.close(token),
        }
    }

    fn flush(&mut self, token: u64) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        while let Some(Outgoing(bytes, fds)) = client.waiting.front() {
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match seqpacket::send(client.socket.as_fd(), bytes, &fds) {
                Ok(()) => drop(client.waiting.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_gone) => return self.close(token),
            }
        }
    }

    fn close(&mut self, token: u64) {
        if self.clients.remove(&token).is_some() {
            self.hang_up(|process| process.client == token && !process.stays);
            self.errands.release(|asker| asker.client == token);
        }
    }
}

/// Tokens of the clients that have something to do.
struct Ready {
    accept: bool,
    readable: Vec<u64>,
    writable: Vec<u64>,
}

/// Each process we start leads a session and so a process group of its own. Nobody in it is left: ESRCH.
fn to_group(pid: i32, signal: Signal) {
    if let Err(_ended) = nix::sys::signal::killpg(Pid::from_raw(pid), signal) {}
}
