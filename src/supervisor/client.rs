//! The task beside one connection process: answers what it asks, tells it what its session says.
//!
//! A connection process handles a client's bytes and may have been taken over by it. So nothing that it says is believed:
//! it may ask about keys, and be attached to the session of the login that an accepted key was for, once.

mod asked;
mod end;
mod told;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use nix::sys::socket::{Shutdown, shutdown};
use tokio::{net::TcpStream, sync::mpsc};

use self::end::{end_adopted, end_child};
use super::{
    Supervisor,
    login::{self, Login, Question},
    penalties::Offence,
    pool::{self, Process},
    reconcile::Greeted,
    revocation::Watch,
    startups::Startup,
    trail::Trail,
    unsettled::Pending,
};
use crate::{
    errors::chain,
    protocol::{self, FromConnection, Serve, SshSettings, ToConnection, wire::AsyncSocket},
    session::{Activity, Client, SessionKey, ToClient, state::ConnectionId},
    state::ConnectionRecord,
    time::millis,
    transcript::Reader,
};

/// How much longer than the login grace time a process may take, before it is killed for not enforcing it.
const STARTUP_SLACK: Duration = Duration::from_secs(10);

/// How long a process may take to show a last message and end.
const FAREWELL: Duration = Duration::from_secs(10);

/// How long a process may leave its socket full.
const SEND_LIMIT: Duration = Duration::from_secs(10);

/// One connection, from its process's point of view the supervisor.
pub(super) struct Connection {
    supervisor: Arc<Supervisor>,
    id: ConnectionId,
    /// Pid and start time of the process.
    process: (i32, u64),
    peer: SocketAddr,
    control: AsyncSocket,
    /// Of the protocol, as the process speaks it.
    version: u32,
    from_session: mpsc::Receiver<ToClient>,
    to_client: mpsc::Sender<ToClient>,
    login: Option<Login>,
    /// Keys that the client has asked about.
    questions: u32,
    /// Held until the client has logged in; `None` says that it has.
    startup: Option<Startup>,
    /// Held until the client has its session and may work in it.
    pending: Option<Pending>,
    attached: bool,
    began: Instant,
    trail: Trail,
    /// What the session's hooks say, one after the other.
    output: VecDeque<Reader>,
    /// Words about the client's agent.
    agent_words: u32,
    activity: Arc<Activity>,
    watch: Watch,
}

/// How the supervisor's part in a connection ended.
#[derive(PartialEq, Eq)]
enum Outcome {
    /// With the connection, whose process has ended or is about to.
    Ended,
    /// With the supervisor: the next one takes over.
    Left,
}

/// Why a connection was given up by the supervisor.
#[derive(Debug, thiserror::Error)]
enum ClientError {
    #[error("its process cannot be reached")]
    Io(#[from] std::io::Error),
    #[error("its process sent {0}, which is not allowed at this point")]
    Protocol(&'static str),
    #[error("its process did not end the login in time")]
    LoginGrace,
    #[error("its process does not take what it is told")]
    Silent,
}

/// Hands `stream` to `process` and stays until it ends.
pub(super) async fn serve(
    supervisor: Arc<Supervisor>,
    process: Process,
    stream: TcpStream,
    peer: SocketAddr,
    (startup, pending): (Startup, Pending),
) {
    let Process { id, mut child, name, control, socket, spool } = process;
    let (to_client, from_session) = mpsc::channel(Client::QUEUE);
    let trail = Trail::new(&supervisor, id, peer);
    let mut connection = Connection {
        supervisor: supervisor.clone(),
        id,
        process: name,
        peer,
        control,
        version: protocol::VERSION,
        from_session,
        to_client,
        login: None,
        questions: 0,
        startup: Some(startup),
        pending: Some(pending),
        attached: false,
        began: Instant::now(),
        trail,
        output: VecDeque::new(),
        agent_words: 0,
        activity: Arc::new(Activity::new(true)),
        watch: Watch::new(),
    };
    let result = connection.start(stream, spool).await;
    let offence = connection.offence();
    drop(connection);
    if report(id, peer, result) == Outcome::Left {
        return;
    }
    supervisor.sessions.detach(id);
    let crashed = end_child(&mut child, id).await;
    if let Some(offence) = if crashed { Some(Offence::Crash) } else { offence } {
        supervisor.admission.penalise(&supervisor.config().auth, peer, offence, &supervisor.audit);
    }
    supervisor.forget_connection(id).await;
    pool::remove_socket(&socket);
}

/// Stays with a connection that an earlier supervisor started. `session` is where it was attached.
pub(super) async fn adopted(
    supervisor: Arc<Supervisor>,
    record: ConnectionRecord,
    key: SessionKey,
    Greeted { control, waiting, version }: Greeted,
    (to_client, from_session): (mpsc::Sender<ToClient>, mpsc::Receiver<ToClient>),
    activity: Arc<Activity>,
) {
    let ConnectionRecord { id, process, peer, .. } = record;
    let login = login(key, &record);
    let mut trail = Trail::new(&supervisor, id, peer);
    trail.adopt(&login, &record.session);
    let mut connection = Connection {
        supervisor: supervisor.clone(),
        id,
        process,
        peer,
        control,
        version,
        from_session,
        to_client,
        login: Some(login),
        questions: 0,
        startup: None,
        pending: waiting.then(|| supervisor.unsettled.session()),
        attached: true,
        began: Instant::now(),
        trail,
        output: VecDeque::new(),
        agent_words: 0,
        activity,
        watch: Watch::new(),
    };
    let result = connection.run().await;
    drop(connection);
    if report(id, peer, result) == Outcome::Left {
        return;
    }
    supervisor.sessions.detach(id);
    end_adopted(process, id).await;
    supervisor.forget_connection(id).await;
    pool::remove_socket(&supervisor.pool.socket(id));
}

/// As whom a connection of an earlier supervisor has logged in.
pub(super) fn login(key: SessionKey, record: &ConnectionRecord) -> Login {
    let (fingerprint, credential) = (record.fingerprint.clone(), record.credential.clone());
    Login { key, fingerprint, credential, at: record.logged_in, stamps: None }
}

/// Ends a connection of an earlier supervisor that cannot be kept, and tells its client why.
pub(super) async fn send_away(
    supervisor: Arc<Supervisor>,
    record: ConnectionRecord,
    control: AsyncSocket,
    message: &'static str,
) {
    let id = record.id;
    let message = ToConnection::Terminate { message: message.to_owned() };
    let told = tokio::time::timeout(SEND_LIMIT, control.send(&message, &[])).await;
    if let Err(error) = told.map_err(|_elapsed| ClientError::Silent).and_then(|sent| Ok(sent?)) {
        tracing::warn!(connection = id, "{}", chain(error));
    }
    end_adopted(record.process, id).await;
    supervisor.forget_connection(id).await;
    pool::remove_socket(&supervisor.pool.socket(id));
}

/// Says why a connection was given up. A process that ends while something is said to it is one whose client has left.
fn report(id: ConnectionId, peer: SocketAddr, result: Result<Outcome, ClientError>) -> Outcome {
    match result {
        Ok(outcome) => return outcome,
        Err(ClientError::Io(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        Err(error) => tracing::warn!(connection = id, %peer, "connection given up: {}", chain(error)),
    }
    Outcome::Ended
}

impl Connection {
    async fn start(&mut self, stream: TcpStream, spool: OwnedFd) -> Result<Outcome, ClientError> {
        let config = self.supervisor.config();
        let serve = Serve {
            connection: self.id,
            peer: self.peer,
            local: canonical(stream.local_addr()?),
            host_keys: self.supervisor.host_keys.clone(),
            settings: SshSettings {
                login_grace_ms: millis(config.auth.login_grace_time),
                max_auth_tries: config.auth.max_auth_tries,
                client_alive_interval_ms: millis(config.session.client_alive_interval),
                client_alive_count_max: config.session.client_alive_count_max,
                accept_env: config.auth.accept_env.clone(),
                max_sessions: config.auth.max_sessions,
                algorithms: config.auth.algorithms,
                projects: config.knows_projects(),
            },
        };
        self.tell(&ToConnection::Serve(Box::new(serve)), &[stream.as_fd(), spool.as_fd()]).await?;
        drop((stream, spool));
        self.run().await
    }

    async fn run(&mut self) -> Result<Outcome, ClientError> {
        let outcome = self.converse().await;
        if !matches!(outcome, Ok(Outcome::Left)) {
            self.trail.close(self.login.as_ref());
        }
        outcome
    }

    async fn converse(&mut self) -> Result<Outcome, ClientError> {
        let leaving = self.supervisor.leaving.clone();
        let grace = self.supervisor.config().auth.login_grace_time;
        let login_limit = tokio::time::sleep(if grace.is_zero() { Duration::MAX } else { grace + STARTUP_SLACK });
        tokio::pin!(login_limit);
        let dropped = self.startup.as_ref().map(|startup| startup.dropped.clone()).unwrap_or_default();
        loop {
            tokio::select! {
                message = self.control.recv() => match message? {
                    None => return Ok(Outcome::Ended),
                    // A connection has no descriptors to give; those that came along are closed here.
                    Some((message, _fds)) => self.handle(message).await?,
                },
                Some(message) = self.from_session.recv() => {
                    if self.pass_on(message).await? {
                        return Ok(Outcome::Ended);
                    }
                }
                text = next_output(&mut self.output) => {
                    if let Some(text) = text {
                        self.tell(&ToConnection::Output { text: text.to_vec() }, &[]).await?;
                    }
                }
                () = self.watch.due(), if self.login.is_some() => {
                    if self.has_lost_its_key().await? {
                        return Ok(Outcome::Ended);
                    }
                }
                () = leaving.cancelled() => {
                    return if self.attached { self.hand_over().await } else { Ok(Outcome::Ended) };
                }
                // To make room for another client. Its process ends when it sees that nobody is here any more.
                () = dropped.cancelled(), if self.startup.is_some() => return Ok(Outcome::Ended),
                () = &mut login_limit, if self.startup.is_some() => return Err(ClientError::LoginGrace),
            }
        }
    }

    /// Leaves the connection to the next supervisor: nothing is lost of what has been said on either side.
    async fn hand_over(&mut self) -> Result<Outcome, ClientError> {
        while let Ok(message) = self.from_session.try_recv() {
            if self.pass_on(message).await? {
                return Ok(Outcome::Ended);
            }
        }
        // From here on it cannot send, and keeps what it has to say for the next supervisor.
        shutdown(self.control.as_fd().as_raw_fd(), Shutdown::Read).map_err(std::io::Error::from)?;
        while let Some((message, _fds)) = self.control.recv().await? {
            self.handle(message).await?;
        }
        Ok(Outcome::Left)
    }

    /// Ends the connection if its key would not log in any more; returns whether it did.
    async fn has_lost_its_key(&mut self) -> Result<bool, ClientError> {
        let Some(login) = &mut self.login else { return Ok(false) };
        let Some(refusal) = self.watch.look(&self.supervisor, login, self.peer).await else { return Ok(false) };
        self.trail.revoked(login, &chain(refusal));
        self.pass_on(ToClient::Terminate("disconnected: your key is not accepted any more".to_owned())).await
    }

    /// What the client did that it is penalised for, if it has ended without a login.
    fn offence(&self) -> Option<Offence> {
        let grace = self.supervisor.config().auth.login_grace_time;
        let startup = self.startup.as_ref()?;
        if self.login.is_some() || startup.dropped.is_cancelled() {
            None
        } else if !grace.is_zero() && self.began.elapsed() >= grace {
            Some(Offence::GraceExceeded)
        } else {
            // Also if the key was a good one: then the client could not sign with it.
            Some(if self.questions > 0 { Offence::AuthFail } else { Offence::NoAuth })
        }
    }

    /// Sends a message. The socket takes dozens of them, so only a process that has stopped reading makes us wait.
    async fn tell(&self, message: &ToConnection, fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        let sent = tokio::time::timeout(SEND_LIMIT, self.control.send(message, fds));
        Ok(sent.await.map_err(|_elapsed| ClientError::Silent)??)
    }

    /// Gives the process time to show a last message; what it still says is of no interest.
    async fn wait_for_end(&self) {
        let closed = async { while let Ok(Some(_)) = self.control.recv::<FromConnection>().await {} };
        if tokio::time::timeout(FAREWELL, closed).await.is_err() {
            tracing::warn!(connection = self.id, "the connection process does not end");
        }
    }
}

/// The next part of the first output that has not ended; `None` if that one ends, never if there is none.
async fn next_output(output: &mut VecDeque<Reader>) -> Option<Bytes> {
    let Some(first) = output.front_mut() else { return std::future::pending().await };
    let text = first.next().await;
    if text.is_none() {
        output.pop_front();
    }
    text
}

/// The address as what it is, if it is an IPv4 address in IPv6's clothes.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
