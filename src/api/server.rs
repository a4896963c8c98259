//! The server's side of the control API.

use std::{io, path::Path, time::Duration};

use axum::{
    Json, Router,
    extract::{Path as PathPart, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};

use super::{
    Backend, bodies, builds, events, exec, host, images, metrics, projects,
    types::{Problem, Status},
    users,
};
use crate::{names::SessionId, session::SessionKey, sys::seqpacket};

/// Requests of how many clients are served at once. Further ones wait to be accepted.
const CLIENTS: usize = 64;

/// Events of something that takes its time which wait for a client to read them.
pub(super) const EVENTS: usize = 16;

/// How long to wait after accept(2) has failed.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Listens on the socket file `path`, which only root may use. A file that an earlier server left is replaced: the caller
/// holds the lock that says there is no other.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The directory is root's alone, so nobody gets in before the mode is set.
    let listener = UnixListener::bind(seqpacket::short_path(path)?.as_path())?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Answers requests for ever.
pub async fn serve(listener: UnixListener, backend: impl Backend) -> io::Result<()> {
    let router = router(backend);
    let permits = std::sync::Arc::new(tokio::sync::Semaphore::new(CLIENTS));
    loop {
        let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Out of descriptors, perhaps; that passes.
            Err(error) => {
                tracing::warn!("the control socket: {error}");
                tokio::time::sleep(BACK_OFF).await;
                continue;
            }
        };
        if !from_root(&stream) {
            continue;
        }
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!("control connection: {error}");
            }
            drop(permit);
        });
    }
}

fn from_root(stream: &UnixStream) -> bool {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), "refused on the control socket: not root");
            false
        }
        Err(error) => {
            tracing::warn!("refused on the control socket: {error}");
            false
        }
    }
}

fn router<B: Backend>(backend: B) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics::metrics::<B>))
        .route("/v1/sessions", get(|State(backend): State<B>| async move { Json(backend.sessions().await) }))
        .route("/v1/events", get(events::events::<B>))
        .route("/v1/stats", get(|State(backend): State<B>| async move { Json(backend.stats().await) }))
        .route("/v1/status", get(|State(backend): State<B>| async move { Json(Status::of(&backend.sessions().await)) }))
        .route("/v1/sessions/{key}", get(inspect::<B>))
        .route("/v1/sessions/{key}/oci", get(oci::<B>))
        .route("/v1/sessions/{key}/logs", get(logs::<B>))
        .route("/v1/sessions/{key}/diff", get(diff::<B>))
        .route("/v1/records", get(records::<B>))
        .route("/v1/records/{id}", get(record::<B>))
        .route("/v1/sessions/{key}/stop", post(stop::<B>))
        .route("/v1/sessions/{key}/down", post(down::<B>))
        .route("/v1/sessions/{key}/exec", post(exec::exec::<B>))
        .route("/v1/sessions/{key}/exec-reports", post(exec::report::<B>))
        .route("/v1/users", get(users::list::<B>))
        .route("/v1/users/{name}", post(users::add::<B>).delete(users::remove::<B>))
        .route("/v1/projects", get(projects::list::<B>))
        .route("/v1/projects/{name}", post(projects::add::<B>).delete(projects::remove::<B>))
        .route("/v1/projects/{name}/update", post(projects::update::<B>))
        .route(
            "/v1/stop-all",
            post(|State(backend): State<B>| async move {
                backend.stop_all().await;
                StatusCode::NO_CONTENT
            }),
        )
        .route("/v1/cleanup", post(|State(backend): State<B>| async move { Json(backend.clean_up().await) }))
        .route("/v1/builds", post(builds::build::<B>))
        .route("/v1/images", get(images::list::<B>))
        .route("/v1/images/{reference}", get(images::inspect::<B>).delete(images::remove::<B>))
        .route("/v1/images/{reference}/pull", post(images::pull::<B>))
        .route("/v1/images/{reference}/push", post(images::push::<B>))
        .route("/v1/images/{reference}/import", post(images::import::<B>))
        .route("/v1/images/{reference}/export", get(images::export::<B>))
        .route("/v1/images/{reference}/config", post(images::configure::<B>))
        .route("/v1/prune", post(images::prune::<B>))
        .route("/v1/cache", get(images::cached::<B>))
        .route("/v1/config", get(host::config::<B>))
        .route("/v1/config/check", get(host::check::<B>))
        .route("/v1/doctor", get(host::doctor::<B>))
        .fallback(|| async { problem(StatusCode::NOT_FOUND, "there is no such resource") })
        .with_state(backend)
}

async fn stop<B: Backend>(State(backend): State<B>, PathPart(key): PathPart<String>) -> Response {
    match key.parse::<SessionKey>() {
        Err(error) => problem(StatusCode::BAD_REQUEST, &error.to_string()),
        Ok(key) if backend.stop(key.clone()).await => StatusCode::NO_CONTENT.into_response(),
        Ok(key) => problem(StatusCode::NOT_FOUND, &format!("there is no session of {key}")),
    }
}

#[derive(Deserialize)]
struct DownQuery {
    #[serde(default)]
    clean: bool,
}

async fn down<B: Backend>(
    State(backend): State<B>,
    PathPart(key): PathPart<String>,
    Query(DownQuery { clean }): Query<DownQuery>,
) -> Response {
    match key.parse::<SessionKey>() {
        Err(error) => problem(StatusCode::BAD_REQUEST, &error.to_string()),
        Ok(key) => match backend.down(key, clean).await {
            Ok(down) => Json(down).into_response(),
            Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error),
        },
    }
}

async fn inspect<B: Backend>(State(backend): State<B>, PathPart(key): PathPart<String>) -> Response {
    match key.parse::<SessionKey>() {
        Err(error) => problem(StatusCode::BAD_REQUEST, &error.to_string()),
        Ok(key) => found(&key, backend.inspect(key.clone()).await),
    }
}

/// Whose container is wanted.
#[derive(Deserialize)]
struct OciQuery {
    service: Option<String>,
}

async fn oci<B: Backend>(
    State(backend): State<B>,
    PathPart(key): PathPart<String>,
    Query(OciQuery { service }): Query<OciQuery>,
) -> Response {
    match key.parse::<SessionKey>() {
        Err(error) => problem(StatusCode::BAD_REQUEST, &error.to_string()),
        Ok(key) => found(&key, backend.oci(key.clone(), service).await),
    }
}

fn found<T: Serialize>(key: &SessionKey, answer: Option<Result<T, String>>) -> Response {
    match answer {
        Some(Ok(found)) => Json(found).into_response(),
        Some(Err(error)) => problem(StatusCode::CONFLICT, &error),
        None => problem(StatusCode::NOT_FOUND, &format!("there is no session of {key}")),
    }
}

/// Which lines of a log are wanted.
#[derive(Deserialize)]
struct LogQuery {
    source: Option<String>,
    #[serde(default)]
    follow: bool,
}

async fn logs<B: Backend>(
    State(backend): State<B>,
    PathPart(key): PathPart<String>,
    Query(LogQuery { source, follow }): Query<LogQuery>,
) -> Response {
    let key = match key.parse::<SessionKey>() {
        Ok(key) => key,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    match backend.logs(key.clone(), source, follow).await {
        Some(Ok(said)) => bodies::lines(said),
        Some(Err(error)) => problem(StatusCode::INTERNAL_SERVER_ERROR, &format!("cannot read the log: {error}")),
        None => problem(StatusCode::NOT_FOUND, &format!("there is no session of {key}")),
    }
}

async fn diff<B: Backend>(State(backend): State<B>, PathPart(key): PathPart<String>) -> Response {
    let key = match key.parse::<SessionKey>() {
        Ok(key) => key,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    match backend.changes(key.clone()).await {
        Some(Ok(changes)) => Json(changes).into_response(),
        Some(Err(error)) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error),
        None => problem(StatusCode::NOT_FOUND, &format!("there is no session of {key}")),
    }
}

async fn records<B: Backend>(State(backend): State<B>) -> Response {
    match backend.records().await {
        Ok(records) => Json(records).into_response(),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &format!("cannot read the records: {error}")),
    }
}

async fn record<B: Backend>(State(backend): State<B>, PathPart(id): PathPart<String>) -> Response {
    let id = match id.parse::<SessionId>() {
        Ok(id) => id,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    match backend.record(id.clone()).await {
        Ok(Some(record)) => Json(record).into_response(),
        Ok(None) => problem(StatusCode::NOT_FOUND, &format!("there is no record of a session {id}")),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &format!("cannot read the record of {id}: {error}")),
    }
}

pub(super) fn problem(status: StatusCode, error: &str) -> Response {
    (status, Json(Problem { error: error.to_owned() })).into_response()
}
