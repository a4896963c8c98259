//! Projects over the control API.

use std::future::Future;

use axum::{
    Json,
    extract::{Path as PathPart, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{
    Backend, bodies,
    refusal::{Refusal, named},
    server::EVENTS,
    types::{Job, NewProject, Project, ProjectChange},
};
use crate::names::ProjectName;

/// Who hears how a project is fetched.
pub type Told = mpsc::Sender<Job<ProjectChange>>;

/// What the API asks of the process that it runs in, about projects.
pub trait Projects {
    /// All projects, by name.
    fn projects(&self) -> impl Future<Output = Result<Vec<Project>, Refusal>> + Send;
    /// Clones a repository and registers it. It is cloned to the end, whether or not somebody listens.
    fn add_project(
        &self,
        name: ProjectName,
        new: NewProject,
        told: Told,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;
    /// Fetches a project anew, likewise.
    fn update_project(&self, name: ProjectName, told: Told) -> impl Future<Output = Result<(), Refusal>> + Send;
    /// Removes a project and its clone, and ends its sessions, which there may be only with `force`.
    fn remove_project(&self, name: ProjectName, force: bool) -> impl Future<Output = Result<(), Refusal>> + Send;
}

type Answer = Result<Response, Refusal>;

pub(super) async fn list<B: Backend>(State(backend): State<B>) -> Answer {
    Ok(Json(backend.projects().await?).into_response())
}

pub(super) async fn add<B: Backend>(
    State(backend): State<B>,
    PathPart(name): PathPart<String>,
    Json(new): Json<NewProject>,
) -> Answer {
    let (events, told) = mpsc::channel(EVENTS);
    backend.add_project(named(&name)?, new, events).await?;
    Ok(bodies::lines(told))
}

pub(super) async fn update<B: Backend>(State(backend): State<B>, PathPart(name): PathPart<String>) -> Answer {
    let (events, told) = mpsc::channel(EVENTS);
    backend.update_project(named(&name)?, events).await?;
    Ok(bodies::lines(told))
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
) -> Answer {
    backend.remove_project(named(&name)?, force).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
