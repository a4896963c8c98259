//! The command line's side of the control API.

use std::{
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

use super::types::{
    BuildRequest, Changes, Cleaned, Down, ExecReport, ImageId, Job, LogLine, Problem, Record, RecordSummary,
    RemovedUser, Session, Stats, Status,
};
use crate::{
    names::{ProjectName, SessionId, UserName},
    session::SessionKey,
    sys::seqpacket,
};

/// How long the server may take to answer. It answers from memory.
const LIMIT: Duration = Duration::from_secs(30);

/// How long it may take to remove what may be many files.
const REMOVAL_LIMIT: Duration = Duration::from_secs(600);

/// Why a request had no answer, or not the wanted one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("podspawn is not running: nothing answers on {}; start it with: podspawn serve", .0.display())]
    NotRunning(PathBuf),
    #[error("cannot reach podspawn on {}", .0.display())]
    Connect(PathBuf, #[source] io::Error),
    #[error("podspawn did not answer within {} seconds", .0.as_secs())]
    TimedOut(Duration),
    #[error("podspawn's answer was cut off or is not HTTP")]
    Http(#[from] hyper::Error),
    #[error("podspawn's answer is not what this version expects")]
    Answer(#[from] serde_json::Error),
    /// It cannot be done as things are now.
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    Refused(String),
}

/// What somebody who listens to events hears.
#[derive(Debug)]
pub enum Heard<'a> {
    /// From now on no event is missed.
    Listening,
    /// An event, as the audit log has it.
    Event(&'a str),
}

/// A server, by its control socket.
pub struct Client {
    socket: PathBuf,
}

impl Client {
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    pub fn sessions(&self) -> Result<Vec<Session>, ClientError> {
        self.json(Method::GET, "/v1/sessions")
    }

    /// All that is known of a session.
    pub fn inspect(&self, key: &SessionKey) -> Result<Value, ClientError> {
        self.json(Method::GET, &format!("/v1/sessions/{key}"))
    }

    /// A session's container, or that of one of its services, as a configuration of the OCI runtime specification.
    pub fn oci(&self, key: &SessionKey, service: Option<&str>) -> Result<Value, ClientError> {
        let service = service.map(|name| format!("?service={}", plain(name))).unwrap_or_default();
        self.json(Method::GET, &format!("/v1/sessions/{key}/oci{service}"))
    }

    pub fn stats(&self) -> Result<Vec<Stats>, ClientError> {
        self.json(Method::GET, "/v1/stats")
    }

    /// Text for Prometheus.
    pub fn metrics(&self) -> Result<Bytes, ClientError> {
        self.request(Method::GET, "/metrics")
    }

    pub fn status(&self) -> Result<Status, ClientError> {
        self.json(Method::GET, "/v1/status")
    }

    /// Which files of a session are not as in its image.
    pub fn changes(&self, key: &SessionKey) -> Result<Changes, ClientError> {
        self.json(Method::GET, &format!("/v1/sessions/{key}/diff"))
    }

    /// Sessions that are gone, the latest first.
    pub fn records(&self) -> Result<Vec<RecordSummary>, ClientError> {
        self.json(Method::GET, "/v1/records")
    }

    /// What is kept of one of them.
    pub fn record(&self, id: &SessionId) -> Result<Record, ClientError> {
        self.json(Method::GET, &format!("/v1/records/{id}"))
    }

    /// Ends a session.
    pub fn stop(&self, key: &SessionKey) -> Result<(), ClientError> {
        self.request(Method::POST, &format!("/v1/sessions/{key}/stop")).map(|_| ())
    }

    /// Ends a session, waits until it is gone, and with `clean` has its volumes removed.
    pub fn down(&self, key: &SessionKey, clean: bool) -> Result<Down, ClientError> {
        self.json(Method::POST, &format!("/v1/sessions/{key}/down?clean={clean}"))
    }

    /// Takes a user's keys away and ends the user's sessions, which there may be only with `force`; with `purge` whatever else
    /// the user has goes too.
    pub fn remove_user(&self, name: &UserName, force: bool, purge: bool) -> Result<RemovedUser, ClientError> {
        let path = format!("/v1/users/{name}?force={force}&purge={purge}");
        self.json_within(REMOVAL_LIMIT, Method::DELETE, &path)
    }

    /// Removes a project and its clone, and ends its sessions, which there may be only with `force`.
    pub fn remove_project(&self, name: &ProjectName, force: bool) -> Result<(), ClientError> {
        let path = format!("/v1/projects/{name}?force={force}");
        self.request_with(REMOVAL_LIMIT, Method::DELETE, &path, Bytes::new()).map(|_| ())
    }

    /// Has the audit log say what is about to run in a session, or how it has ended.
    pub fn exec_report(&self, key: &SessionKey, report: &ExecReport) -> Result<(), ClientError> {
        let body = Bytes::from(serde_json::to_vec(report)?);
        self.request_with(LIMIT, Method::POST, &format!("/v1/sessions/{key}/exec-reports"), body).map(|_| ())
    }

    /// Removes what belongs to no session.
    pub fn clean_up(&self) -> Result<Cleaned, ClientError> {
        self.json_within(REMOVAL_LIMIT, Method::POST, "/v1/cleanup")
    }

    /// Ends all sessions.
    pub fn stop_all(&self) -> Result<(), ClientError> {
        self.request(Method::POST, "/v1/stop-all").map(|_| ())
    }

    /// Builds an image; `heard` hears how it goes, the result at last. Blocks for as long as it takes.
    pub fn build(&self, request: &BuildRequest, heard: impl FnMut(Job<ImageId>)) -> Result<(), ClientError> {
        self.lines(Method::POST, "/v1/builds", Bytes::from(serde_json::to_vec(request)?), heard)
    }

    /// What is said in a session, by `source` alone if that is given; with `follow` it blocks until the session is gone.
    pub fn logs(
        &self,
        key: &SessionKey,
        source: Option<&str>,
        follow: bool,
        heard: impl FnMut(LogLine),
    ) -> Result<(), ClientError> {
        let mut path = format!("/v1/sessions/{key}/logs?follow={follow}");
        if let Some(source) = source {
            path.push_str(&format!("&source={}", plain(source)));
        }
        self.lines(Method::GET, &path, Bytes::new(), heard)
    }

    /// Listens to events until the server ends or somebody has heard enough.
    pub fn events(&self, mut heard: impl FnMut(Heard<'_>) -> ControlFlow<()>) -> Result<(), ClientError> {
        self.text(Method::GET, "/v1/events", Bytes::new(), |line| {
            let line = String::from_utf8_lossy(line);
            let line = line.trim_end_matches('\n');
            // The server begins with a comment, and has nothing else to say in one.
            Ok(if line.starts_with(':') {
                heard(Heard::Listening)
            } else {
                line.strip_prefix("data: ").map_or(ControlFlow::Continue(()), |event| heard(Heard::Event(event)))
            })
        })
    }

    /// An answer that goes on for as long as it takes, a JSON value on each line.
    fn lines<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        mut heard: impl FnMut(T),
    ) -> Result<(), ClientError> {
        self.text(method, path, body, |line| {
            heard(serde_json::from_slice(line)?);
            Ok(ControlFlow::Continue(()))
        })
    }

    /// An answer that goes on for as long as it takes, line by line.
    fn text(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        mut heard: impl FnMut(&[u8]) -> Result<ControlFlow<()>, ClientError>,
    ) -> Result<(), ClientError> {
        self.runtime()?.block_on(async {
            let answer = tokio::time::timeout(LIMIT, self.send(method, path, body)).await;
            let mut answer = answer.unwrap_or(Err(ClientError::TimedOut(LIMIT)))?;
            if !answer.status().is_success() {
                let status = answer.status();
                return Err(refusal(status, &answer.into_body().collect().await?.to_bytes()));
            }
            let mut line = Vec::new();
            while let Some(frame) = answer.frame().await {
                let Ok(data) = frame?.into_data() else { continue };
                for piece in data.split_inclusive(|byte| *byte == b'\n') {
                    line.extend_from_slice(piece);
                    if line.ends_with(b"\n") {
                        if heard(&line)?.is_break() {
                            return Ok(());
                        }
                        line.clear();
                    }
                }
            }
            Ok(())
        })
    }

    fn json<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, ClientError> {
        Ok(serde_json::from_slice(&self.request(method, path)?)?)
    }

    /// As [`Self::json`], with another limit.
    fn json_within<T: DeserializeOwned>(&self, limit: Duration, method: Method, path: &str) -> Result<T, ClientError> {
        Ok(serde_json::from_slice(&self.request_with(limit, method, path, Bytes::new())?)?)
    }

    /// Blocks for one request; a command makes a few in its life.
    fn request(&self, method: Method, path: &str) -> Result<Bytes, ClientError> {
        self.request_with(LIMIT, method, path, Bytes::new())
    }

    fn request_with(&self, limit: Duration, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        self.runtime()?.block_on(async {
            let exchange = tokio::time::timeout(limit, self.exchange(method, path, body));
            exchange.await.unwrap_or(Err(ClientError::TimedOut(limit)))
        })
    }

    fn runtime(&self) -> Result<tokio::runtime::Runtime, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| ClientError::Connect(self.socket.clone(), error))
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let answer = self.send(method, path, body).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        if status.is_success() { Ok(body) } else { Err(refusal(status, &body)) }
    }

    /// Sends a request with a JSON body, or an empty one.
    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, ClientError> {
        let through = seqpacket::short_path(&self.socket).map_err(|error| self.unreachable(error))?;
        let stream = UnixStream::connect(through.as_path()).await.map_err(|error| self.unreachable(error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the runtime; what goes wrong in it shows in the answer.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "podspawn")
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .expect("a request of constant parts and checked names is well formed");
        Ok(sender.send_request(request).await?)
    }

    fn unreachable(&self, error: io::Error) -> ClientError {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning(self.socket.clone()),
            _ => ClientError::Connect(self.socket.clone(), error),
        }
    }
}

/// Names of hooks and services are of letters that need no escaping; others name nothing.
fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).collect()
}

fn refusal(status: StatusCode, body: &Bytes) -> ClientError {
    let problem = serde_json::from_slice::<Problem>(body).map(|problem| problem.error);
    let problem = problem.unwrap_or_else(|_| describe(status));
    if status == StatusCode::CONFLICT { ClientError::Conflict(problem) } else { ClientError::Refused(problem) }
}

fn describe(status: StatusCode) -> String {
    format!("podspawn answered {status}")
}
