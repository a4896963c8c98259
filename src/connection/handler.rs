//! russh's callbacks: they translate what the client asks for and hand it over. None of them waits for anything but the
//! supervisor's word on a key and, for a while only, init's on a listener.

use std::{collections::HashMap, sync::Arc};

use russh::{
    Channel, ChannelId, ChannelOpenFailure, Error, Sig,
    keys::{Algorithm, Certificate},
    server::{Auth, ChannelOpenHandle, Msg, PublicKeyOffer, Session, VerifiedPublicKey},
};
use tokio::{sync::mpsc, time::Instant};

use super::{
    channel::{self, Line, Start, ToChannel, pair},
    control::Control,
    forward::{Forwards, Target, X11},
    inbound::Queues,
    lines::Lines,
    preface::Announced,
    route::{self, Route},
    signals,
    ssh_config::REJECTION,
    stream::LoggedIn,
};
use crate::protocol::{Bytes, KeyOptions, KeyVerdict, Program, Pty, Serve, pattern};

/// Requests of a client that may wait for a channel's task; window sizes and signals beyond it are dropped.
const WAITING: usize = 64;

/// Environment variables of one channel, and the size of each (docs/security.md, "channels").
const MAX_ENV: usize = 64;
const MAX_ENV_BYTES: usize = 4096;

/// Longer names are of no use, and travel to the supervisor and its log.
const MAX_LOGIN: usize = 256;

pub(super) struct Handler {
    control: Control,
    queues: Arc<Queues>,
    lines: Arc<Lines>,
    forwards: Arc<Forwards>,
    logged_in: LoggedIn,
    announced: Announced,
    route: Route,
    accept_env: Vec<String>,
    max_sessions: usize,
    /// SSH_CLIENT and SSH_CONNECTION.
    addresses: Vec<(Bytes, Bytes)>,
    options: KeyOptions,
    channels: HashMap<ChannelId, Open>,
}

/// A session channel.
struct Open {
    to_task: mpsc::Sender<ToChannel>,
    pty: Option<Pty>,
    env: Vec<(Bytes, Bytes)>,
    /// What it has said of the project that it is for.
    project: Option<route::Asked>,
    x11: Option<X11>,
    /// Until the client has said what to run.
    idle: Option<Line>,
}

impl Handler {
    pub(super) fn new(
        serve: &Serve,
        control: Control,
        queues: Arc<Queues>,
        logged_in: LoggedIn,
        announced: Announced,
    ) -> Self {
        let (peer, local) = (serve.peer, serve.local);
        let (peer_ip, local_ip) = (peer.ip().to_canonical(), local.ip().to_canonical());
        let addresses = [
            ("SSH_CLIENT", format!("{peer_ip} {} {}", peer.port(), local.port())),
            ("SSH_CONNECTION", format!("{peer_ip} {} {local_ip} {}", peer.port(), local.port())),
        ];
        let lines = Arc::new(Lines::new(queues.clone(), control.traffic()));
        Self {
            forwards: Arc::new(Forwards::new(control.clone(), lines.clone())),
            control,
            queues,
            lines,
            logged_in,
            announced,
            route: Route::new(serve.settings.projects),
            accept_env: serve.settings.accept_env.clone(),
            max_sessions: serve.settings.max_sessions as usize,
            addresses: addresses.into_iter().map(|(name, value)| pair(name, &value)).collect(),
            options: KeyOptions::default(),
            channels: HashMap::new(),
        }
    }

    /// Asks about a public key or certificate. A refusal takes the same time whatever the reason, also when the
    /// supervisor is slow: russh waits until [`REJECTION`] is over, this for the next multiple of it.
    async fn judge(&self, user: &str, blob: Vec<u8>, verified: bool) -> KeyVerdict {
        let asked = Instant::now();
        let login = user.chars().take(MAX_LOGIN).collect();
        let verdict = self.control.key(login, blob, verified).await;
        let taken = asked.elapsed();
        if matches!(verdict, KeyVerdict::Reject) && taken >= REJECTION {
            let periods = taken.div_duration_f64(REJECTION).ceil();
            tokio::time::sleep_until(asked + REJECTION.mul_f64(periods)).await;
        }
        verdict
    }

    /// Takes the options of a key or certificate that the client has proved to hold.
    async fn log_in(&mut self, user: &str, blob: Vec<u8>) -> Auth {
        match self.judge(user, blob, true).await {
            KeyVerdict::Accept(options) => {
                self.options = options;
                self.route.log_in(user, self.announced.project());
                Auth::Accept
            }
            KeyVerdict::Reject => Auth::reject(),
        }
    }

    /// Asks for the session, if nothing has yet: for what needs the container and cannot say for which project.
    async fn enter(&mut self) {
        if self.route.enter() {
            self.control.attach(self.route.project()).await;
        }
    }

    /// Starts what the client has asked for, or whatever its key is for. Answers the request.
    async fn start(&mut self, id: ChannelId, asked: Program, session: &mut Session) -> Result<(), Error> {
        let Some(line) = self.channels.get_mut(&id).and_then(|open| open.idle.take()) else {
            // A channel runs one thing only (RFC 4254, 6.5).
            return session.channel_failure(id);
        };
        let Some(open) = self.channels.get_mut(&id) else { return session.channel_failure(id) };
        match self.route.enter_as(open.project.take()) {
            Ok(false) => {}
            Ok(true) => self.control.attach(self.route.project()).await,
            Err(error) => {
                tokio::spawn(channel::refuse(line, error.to_string(), open.pty.is_some()));
                return session.channel_success(id);
            }
        }
        let mut env = std::mem::take(&mut open.env);
        env.extend(self.options.environment.iter().map(|(name, value)| pair(name, value)));
        env.extend(self.addresses.iter().cloned());
        let mut pty = open.pty.take();
        let program = match &self.options.command {
            None => asked,
            Some(forced) => {
                if let Program::Command(original) = asked {
                    env.push((Bytes::from(&b"SSH_ORIGINAL_COMMAND"[..]), original));
                } else if let Program::Sftp = asked {
                    env.push(pair("SSH_ORIGINAL_COMMAND", "internal-sftp"));
                }
                Program::Command(Bytes::from(forced.as_bytes()))
            }
        };
        if let Program::Sftp = program {
            pty = None;
        }
        let start = Start { program, pty, env, x11: open.x11.take() };
        tokio::spawn(channel::run(start, line, self.control.clone(), self.forwards.clone()));
        session.channel_success(id)
    }

    fn allows_env(&self, name: &str) -> bool {
        self.accept_env.iter().any(|pattern| pattern::matches(pattern, name))
    }
}

/// The refusal itself has no room for a reason; this one is shown by `ssh -v`.
fn refuse_listener(session: &mut Session, reason: &dyn std::fmt::Display) -> Result<bool, Error> {
    session.debug(false, &format!("no listener: {reason}"), "")?;
    Ok(false)
}

/// A terminal size as the kernel keeps it; a larger one makes no sense.
fn cells(count: u32) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}

impl russh::server::Handler for Handler {
    type Error = Error;

    async fn auth_publickey_offered(&mut self, user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, Error> {
        // With SHA-1. russh asks before each signature of another algorithm, so this is the only place to say no.
        if matches!(offer.algorithm, Algorithm::Rsa { hash: None }) {
            return Ok(Auth::reject());
        }
        match self.judge(user, offer.public_key.to_bytes()?, false).await {
            KeyVerdict::Accept(_) => Ok(Auth::Accept),
            KeyVerdict::Reject => Ok(Auth::reject()),
        }
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Error> {
        Ok(self.log_in(user, key.public_key.to_bytes()?).await)
    }

    async fn auth_openssh_certificate(&mut self, user: &str, certificate: &Certificate) -> Result<Auth, Error> {
        Ok(self.log_in(user, certificate.to_bytes()?).await)
    }

    /// The session is made while the client is still opening its channel, if it is known which.
    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), Error> {
        self.logged_in.set();
        if self.route.is_known() {
            self.enter().await;
        } else {
            self.control.logged_in().await;
        }
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Error> {
        // russh does not tell of a client's close when we have closed first, so it is the task's end that counts.
        self.channels.retain(|_, open| open.idle.is_some() || !open.to_task.is_closed());
        if self.channels.len() >= self.max_sessions {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        let id = channel.id();
        // Data comes through the callback below. With the read half gone russh does not wait for anybody to take it.
        let (_, write) = channel.split();
        let (to_task, events) = mpsc::channel(WAITING);
        let line = Line { id, handle: session.handle(), write, incoming: self.lines.incoming(id), events };
        self.channels
            .insert(id, Open { to_task, pty: None, env: Vec::new(), project: None, x11: None, idle: Some(line) });
        reply.accept().await;
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        width_px: u32,
        height_px: u32,
        modes: &[(russh::Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Error> {
        match self.channels.get_mut(&id) {
            Some(open) if open.idle.is_some() && open.pty.is_none() && !self.options.no_pty => {
                open.pty = Some(Pty {
                    term: term.chars().take(256).collect(),
                    columns: cells(columns),
                    rows: cells(rows),
                    width_px: cells(width_px),
                    height_px: cells(height_px),
                    modes: modes.iter().map(|(opcode, value)| (*opcode as u8, *value)).collect(),
                });
                session.channel_success(id)
            }
            _ => session.channel_failure(id),
        }
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        width_px: u32,
        height_px: u32,
        _session: &mut Session,
    ) -> Result<(), Error> {
        let (columns, rows, width_px, height_px) = (cells(columns), cells(rows), cells(width_px), cells(height_px));
        if let Some(open) = self.channels.get_mut(&id) {
            match &mut open.pty {
                Some(pty) => {
                    (pty.columns, pty.rows, pty.width_px, pty.height_px) = (columns, rows, width_px, height_px);
                }
                // When as many wait already, a later one will tell the size that counts.
                None => drop(open.to_task.try_send(ToChannel::Resize { columns, rows, width_px, height_px })),
            }
        }
        Ok(())
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Error> {
        let allowed = self.allows_env(name);
        match self.channels.get_mut(&id) {
            // It names a session, and is set by init in what runs there.
            Some(open) if name == route::VARIABLE && open.idle.is_some() => {
                open.project = route::asked(value);
                session.channel_success(id)
            }
            Some(open)
                if allowed
                    && open.idle.is_some()
                    && open.env.len() < MAX_ENV
                    && name.len() + value.len() <= MAX_ENV_BYTES
                    && !name.contains(['=', '\0'])
                    && !value.contains('\0') =>
            {
                open.env.push(pair(name, value));
                session.channel_success(id)
            }
            _ => session.channel_failure(id),
        }
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), Error> {
        self.start(id, Program::Shell, session).await
    }

    async fn exec_request(&mut self, id: ChannelId, command: &[u8], session: &mut Session) -> Result<(), Error> {
        self.start(id, Program::Command(Bytes::from(command)), session).await
    }

    async fn subsystem_request(&mut self, id: ChannelId, name: &str, session: &mut Session) -> Result<(), Error> {
        if name == "sftp" { self.start(id, Program::Sftp, session).await } else { session.channel_failure(id) }
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, _session: &mut Session) -> Result<(), Error> {
        if let (Some(open), Some(number)) = (self.channels.get(&id), signals::number(&signal)) {
            // A client that sends more than the task takes has been heard.
            drop(open.to_task.try_send(ToChannel::Signal(number)));
        }
        Ok(())
    }

    async fn agent_request(&mut self, _id: ChannelId, _session: &mut Session) -> Result<bool, Error> {
        if !self.options.no_agent_forwarding {
            self.forwards.want_agent();
        }
        Ok(!self.options.no_agent_forwarding)
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        single_connection: bool,
        protocol: &str,
        cookie: &str,
        screen: u32,
        session: &mut Session,
    ) -> Result<(), Error> {
        let (forwards, allowed) = (self.forwards.clone(), !self.options.no_x11_forwarding);
        let wants = |open: &&mut Open| allowed && open.idle.is_some() && open.x11.is_none();
        if self.channels.get_mut(&id).as_ref().is_some_and(wants) {
            self.enter().await;
        }
        match self.channels.get_mut(&id).filter(wants) {
            Some(open) => match forwards.display(single_connection, protocol, cookie, screen, session.handle()).await {
                Ok(display) => {
                    open.x11 = Some(display);
                    session.channel_success(id)
                }
                Err(error) => {
                    session.debug(false, &format!("X11 is not forwarded: {error}"), "")?;
                    session.channel_failure(id)
                }
            },
            _ => session.channel_failure(id),
        }
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Error> {
        self.enter().await;
        let target = Target::Tcp { host: host.to_owned(), port };
        self.forwards.dial(channel, target, &self.options, reply).await;
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Error> {
        self.enter().await;
        self.forwards.dial(channel, Target::Unix(path.to_owned()), &self.options, reply).await;
        Ok(())
    }

    /// The client takes a connection that came to a listener inside.
    async fn channel_open_confirmation(
        &mut self,
        id: ChannelId,
        _max_packet_size: u32,
        _window_size: u32,
        _session: &mut Session,
    ) -> Result<(), Error> {
        self.lines.expect(id);
        Ok(())
    }

    async fn tcpip_forward(&mut self, address: &str, port: &mut u32, session: &mut Session) -> Result<bool, Error> {
        if !u16::try_from(*port).is_ok_and(|port| self.options.may_listen(address, port)) {
            return refuse_listener(session, &"it is not permitted");
        }
        self.enter().await;
        match self.forwards.listen_tcp(address, *port, session.handle()).await {
            Ok(listening) => {
                *port = listening.into();
                Ok(true)
            }
            Err(error) => refuse_listener(session, &error),
        }
    }

    async fn cancel_tcpip_forward(&mut self, address: &str, port: u32, _session: &mut Session) -> Result<bool, Error> {
        Ok(self.forwards.cancel_tcp(address, port).await)
    }

    async fn streamlocal_forward(&mut self, path: &str, session: &mut Session) -> Result<bool, Error> {
        if self.options.no_port_forwarding {
            return refuse_listener(session, &"it is not permitted");
        }
        self.enter().await;
        match self.forwards.listen_unix(path, session.handle()).await {
            Ok(()) => Ok(true),
            Err(error) => refuse_listener(session, &error),
        }
    }

    async fn cancel_streamlocal_forward(&mut self, path: &str, _session: &mut Session) -> Result<bool, Error> {
        Ok(self.forwards.cancel_unix(path).await)
    }

    /// Called when a window has been granted; decides how large the next ones are.
    fn adjust_window(&mut self, _id: ChannelId, _current: u32) -> u32 {
        self.queues.window()
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], session: &mut Session) -> Result<(), Error> {
        if let Err(error) = self.lines.push(id, data) {
            tracing::warn!("a client is disconnected: {error}");
            return session.disconnect(russh::Disconnect::ByApplication, &error.to_string(), "");
        }
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, _session: &mut Session) -> Result<(), Error> {
        self.lines.end(id);
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _session: &mut Session) -> Result<(), Error> {
        self.lines.close(id);
        self.channels.remove(&id);
        Ok(())
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.lines.close_all();
    }
}
