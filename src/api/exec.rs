//! What administrators run in sessions.

use axum::{
    Json,
    extract::{Path as PathPart, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};

use super::{Backend, server::problem, types::ExecReport};
use crate::session::SessionKey;

/// Takes down what is about to run, or has ended, in a container that somebody has asked without us.
pub(super) async fn report<B: Backend>(
    State(backend): State<B>,
    PathPart(key): PathPart<String>,
    Json(report): Json<ExecReport>,
) -> Response {
    match key.parse::<SessionKey>() {
        Err(error) => problem(StatusCode::BAD_REQUEST, &error.to_string()),
        Ok(key) if backend.exec_report(key.clone(), report).await => StatusCode::NO_CONTENT.into_response(),
        Ok(key) => problem(StatusCode::NOT_FOUND, &format!("there is no such session of {key}")),
    }
}
