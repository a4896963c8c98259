//! The server's configuration and host over the control API.

use std::future::Future;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};

use super::{
    Backend,
    refusal::Refusal,
    types::{ConfigCheck, DoctorReport, Setting},
};

/// What the API asks of the process that it runs in, about its configuration and its host.
pub trait Host {
    /// The configuration in force.
    fn settings(&self) -> Vec<Setting>;
    /// Whether the configuration's files are valid as they are now.
    fn check_config(&self) -> impl Future<Output = ConfigCheck> + Send;
    /// Whether the host is fit for sessions, and what was left behind.
    fn doctor(&self) -> impl Future<Output = Result<DoctorReport, Refusal>> + Send;
}

pub(super) async fn config<B: Backend>(State(backend): State<B>) -> Response {
    Json(backend.settings()).into_response()
}

pub(super) async fn check<B: Backend>(State(backend): State<B>) -> Response {
    Json(backend.check_config().await).into_response()
}

pub(super) async fn doctor<B: Backend>(State(backend): State<B>) -> Result<Response, Refusal> {
    Ok(Json(backend.doctor().await?).into_response())
}
