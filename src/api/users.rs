//! Users over the control API.

use std::future::Future;

use axum::{
    Json,
    extract::{Path as PathPart, Query, State},
    response::{IntoResponse, Response},
};
use serde::Deserialize;

use super::{
    Backend,
    refusal::{Refusal, named},
    types::{AddedKeys, NewKeys, RemovedUser, User},
};
use crate::names::UserName;

/// What the API asks of the process that it runs in, about users.
pub trait Users {
    /// All users, by name.
    fn users(&self) -> impl Future<Output = Result<Vec<User>, Refusal>> + Send;
    /// Adds keys to a user, who is made if need be: all of them or none.
    fn add_keys(&self, name: UserName, new: NewKeys) -> impl Future<Output = Result<AddedKeys, Refusal>> + Send;
    /// Takes a user's keys away and ends the user's sessions, which there may be only with `force`. With `purge` it waits until
    /// these are gone, and removes whatever else the user has.
    fn remove_user(
        &self,
        name: UserName,
        force: bool,
        purge: bool,
    ) -> impl Future<Output = Result<RemovedUser, Refusal>> + Send;
}

type Answer = Result<Response, Refusal>;

pub(super) async fn list<B: Backend>(State(backend): State<B>) -> Answer {
    Ok(Json(backend.users().await?).into_response())
}

pub(super) async fn add<B: Backend>(
    State(backend): State<B>,
    PathPart(name): PathPart<String>,
    Json(new): Json<NewKeys>,
) -> Answer {
    Ok(Json(backend.add_keys(named(&name)?, new).await?).into_response())
}

#[derive(Deserialize)]
pub(super) struct RemoveQuery {
    #[serde(default)]
    force: bool,
    #[serde(default)]
    purge: bool,
}

pub(super) async fn remove<B: Backend>(
    State(backend): State<B>,
    PathPart(name): PathPart<String>,
    Query(RemoveQuery { force, purge }): Query<RemoveQuery>,
) -> Answer {
    Ok(Json(backend.remove_user(named(&name)?, force, purge).await?).into_response())
}
