//! What administrators run in sessions.

use std::future::Future;

use axum::{
    Json,
    extract::{Path as PathPart, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use tokio::sync::mpsc;

use super::{
    Backend, bodies,
    refusal::{Refusal, named},
    types::{ExecOutput, ExecReport, ExecRequest},
};
use crate::session::SessionKey;

/// What the API asks of the process that it runs in, about programs in sessions.
pub trait Programs {
    /// Runs a program, and tells what it writes and how it has ended. It is hung up if nobody listens any more.
    fn exec(
        &self,
        key: SessionKey,
        request: ExecRequest,
        told: mpsc::UnboundedSender<ExecOutput>,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;
    /// Writes down what an administrator runs in a session without the server; false if that session is not there, which does
    /// not matter for a program that has ended.
    fn exec_report(&self, key: SessionKey, report: ExecReport) -> impl Future<Output = bool> + Send;
}

pub(super) async fn exec<B: Backend>(
    State(backend): State<B>,
    PathPart(key): PathPart<String>,
    Json(request): Json<ExecRequest>,
) -> Result<Response, Refusal> {
    // What waits in it is bounded by what is passed on of a program's output.
    let (told, output) = mpsc::unbounded_channel();
    backend.exec(named(&key)?, request, told).await?;
    Ok(bodies::lines(output))
}

/// Takes down what is about to run, or has ended, in a container that somebody has asked without us.
pub(super) async fn report<B: Backend>(
    State(backend): State<B>,
    PathPart(key): PathPart<String>,
    Json(report): Json<ExecReport>,
) -> Result<Response, Refusal> {
    let key: SessionKey = named(&key)?;
    if backend.exec_report(key.clone(), report).await {
        Ok(StatusCode::NO_CONTENT.into_response())
    } else {
        Err(Refusal::Unknown(format!("there is no such session of {key}")))
    }
}
