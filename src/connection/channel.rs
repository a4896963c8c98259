//! The task of one session channel: starts what the client asked for and moves bytes until it has ended.
//!
//! Ends as sshd does (session.c, channels.c): the exit status is told when the process has ended, the channel is closed when
//! its output has ended too. Output that a background process keeps open without a terminal keeps the channel open; a
//! terminal is hung up by the kernel with its session leader.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use russh::{
    ChannelId, ChannelWriteHalf,
    server::{Handle, Msg},
};
use tokio::{
    io::unix::AsyncFd,
    sync::{
        broadcast::{self, error::RecvError},
        mpsc,
    },
    time::timeout,
};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::{
    control::{Attachment, Control, Notice, Readers},
    forward::{Forwards, X11},
    init_link::{Held, Said, printable},
    lines::Incoming,
    pump::{self, Streams},
    signals,
    waiting::{self, Audience, Ready},
};
use crate::{
    protocol::{Bytes, Exec, ExitStatus, FromInit, Program, Pty, ToInit},
    sys::tty,
};

/// How long init may take to start a process. It is on the same host; a stopped or starved container may never answer.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long after the end of a client's time in a session its last output may take, where the process lives on.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// The status for what podspawn itself could not do, as `docker run` and `env` use it.
const FAILED: u8 = 125;

/// What to run.
pub(super) struct Start {
    pub program: Program,
    pub pty: Option<Pty>,
    pub env: Vec<(Bytes, Bytes)>,
    /// The display that it is to have.
    pub x11: Option<X11>,
}

/// The client's side of a channel.
pub(super) struct Line {
    pub id: ChannelId,
    pub handle: Handle,
    pub write: ChannelWriteHalf<Msg>,
    pub incoming: Incoming,
    pub events: mpsc::Receiver<ToChannel>,
}

/// What the client asks of a running channel.
pub(super) enum ToChannel {
    Resize { columns: u16, rows: u16, width_px: u16, height_px: u16 },
    Signal(i32),
}

/// A process that runs.
struct Begun {
    process: Held,
    said: mpsc::Receiver<Said>,
    run: u32,
    described: Option<String>,
    /// The connection's end waits for it a little.
    counted: TaskTrackerToken,
}

impl Begun {
    /// The client does not wait for it any more: it is hung up, and how it ends is reported all the same, whenever that is.
    fn leave(self, control: &Control) {
        let control = control.clone();
        tokio::spawn(async move {
            let Self { mut process, mut said, run, described, counted } = self;
            process.release().await;
            // Init kills what does not end after some seconds, but in a container that is short of memory or of time even that may
            // take long. What init will not tell any more the supervisor does when the connection ends.
            if let Some(status) = wait_for_exit(&mut said).await {
                control.command(run, described, status);
            }
            // Only now: whoever waits for it wants to have it reported.
            drop(counted);
        });
    }
}

/// How the work of a channel ended, for the client.
enum End {
    /// Everything has been told.
    Told,
    /// Podspawn's own message and status.
    Failed(String, u8),
    /// The session has ended under it.
    Cut(String),
}

/// A variable of the environment.
pub(super) fn pair(name: &str, value: &str) -> (Bytes, Bytes) {
    (Bytes::from(name.as_bytes()), Bytes::from(value.as_bytes()))
}

/// Runs the channel from request to close.
pub(super) async fn run(start: Start, mut line: Line, control: Control, forwards: Arc<Forwards>) {
    let terminal = start.pty.is_some();
    let closed = line.incoming.closed.clone();
    let mut begun = None;
    let end = tokio::select! {
        end = work(start, &mut line, &control, &forwards, &mut begun) => Some(end),
        () = closed.cancelled() => None,
    };
    // What still runs, although its channel has ended or ends now.
    if let Some(begun) = begun.filter(|_| !matches!(end, Some(End::Told | End::Cut(_)))) {
        begun.leave(&control);
    }
    if let Some(end) = end {
        conclude(end, &line, terminal).await;
    }
}

/// Ends a channel that cannot have what it asks for.
pub(super) async fn refuse(line: Line, message: String, terminal: bool) {
    conclude(End::Failed(message, FAILED), &line, terminal).await;
}

/// Tells the client how it ended, and closes the channel.
async fn conclude(end: End, line: &Line, terminal: bool) {
    let newline = if terminal { "\r\n" } else { "\n" };
    // Whatever fails from here on does so because the client is gone.
    let told = async {
        match end {
            End::Told => {}
            End::Failed(message, status) => {
                say(line, &message, newline).await;
                let _ = line.handle.exit_status_request(line.id, u32::from(status)).await;
            }
            End::Cut(message) => {
                say(line, &message, newline).await;
                let killed = signals::named(libc::SIGKILL);
                let _ = line.handle.exit_signal_request(line.id, killed, false, message, String::new()).await;
            }
        }
        let _ = line.write.eof().await;
        let _ = line.write.close().await;
    };
    tokio::select! {
        () = told => {}
        () = line.incoming.closed.cancelled() => {}
    }
}

/// Shows a message of ours on the client's stderr; it may have several lines.
async fn say(line: &Line, message: &str, newline: &str) {
    let message = message.replace('\n', newline);
    // Fails only if the client is gone.
    let _ = line.write.extended_data_bytes(1, format!("podspawn: {message}{newline}").into_bytes()).await;
}

/// Does what the client has asked for. What runs meanwhile is in `begun`, also when this is given up.
async fn work(
    start: Start,
    line: &mut Line,
    control: &Control,
    forwards: &Arc<Forwards>,
    begun: &mut Option<Begun>,
) -> End {
    let Start { program, pty, mut env, x11 } = start;
    let audience = Audience::of(&program, pty.is_some());
    let notices = control.notices();
    let Ready { link, agent } = match waiting::wait(line, control, forwards, audience).await {
        Ok(ready) => ready,
        Err(message) => return End::Failed(message, FAILED),
    };
    let described = match &program {
        Program::Shell => None,
        Program::Command(command) => Some(String::from_utf8_lossy(command).into_owned()),
        Program::Argv(words) => {
            let words: Vec<_> = words.iter().map(|word| String::from_utf8_lossy(word)).collect();
            Some(words.join(" "))
        }
        Program::Sftp => Some("internal-sftp".to_owned()),
    };
    if let Some(path) = agent {
        env.push(pair("SSH_AUTH_SOCK", &path));
    }
    if let Some(x11) = &x11 {
        env.push(pair("DISPLAY", &x11.name()));
        if let Err(error) = forwards.authorize(x11).await {
            tracing::warn!("the display cannot be used: {error}");
        }
    }
    let (mut process, mut said) = link.open();
    let run = process.id();
    let exec = Exec { pty, env, ..Exec::new(run, program) };
    let started = async {
        link.send(&ToInit::Exec(Box::new(exec))).await.map_err(|error| error.to_string())?;
        tokio::select! {
            answer = timeout(START_LIMIT, said.recv()) => {
                answer.map_err(|_| "the container does not answer".to_owned())
            }
            () = session_ended(control) => Ok(None),
        }
    };
    let fds = match started.await {
        Ok(Some((FromInit::Started { .. }, fds))) => fds,
        Ok(Some((FromInit::Refused { status, message, .. }, _))) => {
            process.ended();
            return End::Failed(printable(&message), status);
        }
        Ok(Some(_) | None) => return End::Cut(control.why_ended().await),
        Err(message) => return End::Failed(message, FAILED),
    };
    control.begun(run, described.clone());
    let counted = control.count();
    let Begun { process, said, described, .. } = begun.insert(Begun { process, said, run, described, counted });
    let Streams { input, output, errors, terminal } = match Streams::new(fds) {
        Ok(streams) => streams,
        Err(error) => return End::Failed(format!("the container's answer is of no use: {error}"), FAILED),
    };
    let mut status = None;
    let Line { id: channel, handle, write, incoming, events } = line;
    let ended = async {
        // The session's end may be told before init's socket closes, and then nobody reads from that any more.
        status = tokio::select! {
            status = wait_for_exit(said) => status,
            () = session_ended(control) => None,
        };
        if let Some(status) = status {
            tell_status(handle, *channel, status).await;
        }
    };
    let traffic = &incoming.traffic;
    let outwards = async {
        let (out, err) =
            (pump::copy_out(&output, write, None, traffic), pump::copy_errors(errors.as_ref(), write, traffic));
        tokio::join!(out, err, ended)
    };
    let inwards = async {
        let obedience = obey(events, terminal.as_deref(), process);
        tokio::join!(pump::copy_in(&incoming.queue, input), obedience, show(notices, write, audience))
    };
    // Of a session that is removed, output ends by itself.
    let over = async {
        session_ended(control).await;
        tokio::time::sleep(LAST_OUTPUT).await;
    };
    // The second never ends: the end of the input is told to the process, which may go on.
    tokio::select! {
        _ = outwards => {}
        _ = inwards => {}
        () = over => {}
    }
    match status {
        Some(status) => {
            process.ended();
            control.command(run, described.take(), status);
            End::Told
        }
        None => End::Cut(control.why_ended().await),
    }
}

/// Shows what the session's users are told, unless a program is to read it.
async fn show(mut notices: broadcast::Receiver<Notice>, write: &ChannelWriteHalf<Msg>, audience: Audience) {
    loop {
        let Notice { message, to } = match notices.recv().await {
            Ok(notice) => notice,
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        let text = match (audience, to) {
            (Audience::None, _) | (Audience::Lines, Readers::People) => continue,
            (Audience::Lines, Readers::All) => format!("podspawn: {message}\n"),
            // On a line of its own, whatever is on the screen.
            (Audience::Terminal, _) => format!("\r\npodspawn: {}\r\n", message.replace('\n', "\r\n")),
        };
        // Fails only if the client is gone.
        let _ = write.extended_data_bytes(1, text.into_bytes()).await;
    }
}

async fn session_ended(control: &Control) {
    let over = |state: &Attachment| matches!(state, Attachment::Ended(_) | Attachment::Refused(_));
    // An error says that the connection itself is ending.
    let _ = control.attachment().wait_for(over).await;
}

async fn wait_for_exit(said: &mut mpsc::Receiver<Said>) -> Option<ExitStatus> {
    loop {
        if let (FromInit::Exited { status, .. }, _) = said.recv().await? {
            return Some(status);
        }
    }
}

async fn tell_status(handle: &Handle, id: ChannelId, status: ExitStatus) {
    // Fails only if the client is gone.
    let _ = match status {
        ExitStatus::Code(code) => handle.exit_status_request(id, u32::from(code)).await,
        ExitStatus::Signal { signal, core_dumped } => {
            handle.exit_signal_request(id, signals::named(signal), core_dumped, String::new(), String::new()).await
        }
    };
}

/// Does what the client asks while the process runs; never ends.
async fn obey(events: &mut mpsc::Receiver<ToChannel>, terminal: Option<&AsyncFd<OwnedFd>>, process: &Held) {
    while let Some(event) = events.recv().await {
        match (event, terminal) {
            (ToChannel::Resize { columns, rows, width_px, height_px }, Some(terminal)) => {
                if let Err(error) = tty::set_window_size(terminal.as_fd(), columns, rows, width_px, height_px) {
                    tracing::debug!("a window size: {error}");
                }
            }
            (ToChannel::Resize { .. }, None) => {}
            (ToChannel::Signal(signal), _) => {
                // If init cannot be told it is gone, and the process with it.
                let _ = process.send(&ToInit::Signal { id: process.id(), signal }).await;
            }
        }
    }
    std::future::pending::<()>().await;
}
