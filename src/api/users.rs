//! Users and projects over the control API.

use axum::{
    Json,
    extract::{Path as PathPart, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;

use super::{Backend, server::problem, types::NewKeys};
use crate::names::UserName;

/// Why a user is not removed; each has a line for people.
#[derive(Debug)]
pub enum NotRemoved {
    Unknown(String),
    HasSessions(String),
    Failed(String),
}

fn named(name: &str) -> Result<UserName, Box<Response>> {
    name.parse().map_err(|error| Box::new(problem(StatusCode::BAD_REQUEST, &format!("{error}"))))
}

pub(super) async fn list<B: Backend>(State(backend): State<B>) -> Response {
    match backend.users().await {
        Ok(users) => Json(users).into_response(),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error),
    }
}

pub(super) async fn projects<B: Backend>(State(backend): State<B>) -> Response {
    match backend.projects().await {
        Ok(projects) => Json(projects).into_response(),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error),
    }
}

/// Adds keys, all of them or none.
pub(super) async fn add<B: Backend>(
    State(backend): State<B>,
    PathPart(name): PathPart<String>,
    Json(new): Json<NewKeys>,
) -> Response {
    let name = match named(&name) {
        Ok(name) => name,
        Err(refused) => return *refused,
    };
    match backend.add_keys(name, new.keys).await {
        Ok(added) => Json(added).into_response(),
        Err(error) => problem(StatusCode::BAD_REQUEST, &error),
    }
}

#[derive(Deserialize)]
pub(super) struct RemoveQuery {
    #[serde(default)]
    force: bool,
}

pub(super) async fn remove<B: Backend>(
    State(backend): State<B>,
    PathPart(name): PathPart<String>,
    Query(RemoveQuery { force }): Query<RemoveQuery>,
) -> Response {
    let name = match named(&name) {
        Ok(name) => name,
        Err(refused) => return *refused,
    };
    match backend.remove_user(name, force).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(NotRemoved::Unknown(error)) => problem(StatusCode::NOT_FOUND, &error),
        Err(NotRemoved::HasSessions(error)) => problem(StatusCode::CONFLICT, &error),
        Err(NotRemoved::Failed(error)) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error),
    }
}
