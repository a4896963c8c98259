//! Images over the control API. A name with a slash in it is written with `%2F`.

use std::future::Future;

use axum::{
    Json,
    body::Body,
    extract::{Path as PathPart, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{
    Backend,
    bodies::{self, BodyReader, Written},
    refusal::{Refusal, named},
    server::EVENTS,
    types::{CachedFile, Image, ImageDetails, ImageId, Job, Pruned},
};
use crate::image::{ConfigChanges, ImportOptions, Reference};

/// What the API asks of the process that it runs in, about images.
pub trait Images: Clone + Send + Sync + 'static {
    /// All images by name; with `all` also what steps of Podfiles have led to.
    fn images(&self, all: bool) -> impl Future<Output = Result<Vec<Image>, Refusal>> + Send;
    /// All that is known of an image.
    fn image(&self, reference: Reference) -> impl Future<Output = Result<ImageDetails, Refusal>> + Send;
    /// Forgets an image.
    fn remove_image(&self, reference: Reference) -> impl Future<Output = Result<(), Refusal>> + Send;
    /// Removes what no image needs; with `all` also what was built lately and no session uses.
    fn prune(&self, all: bool) -> impl Future<Output = Result<Pruned, Refusal>> + Send;
    /// What is kept for builds, what was used lately first.
    fn cached(&self) -> impl Future<Output = Result<Vec<CachedFile>, Refusal>> + Send;
    /// Fetches an image, and tells how that goes until it is done or nobody listens any more.
    fn pull(&self, reference: Reference, told: mpsc::Sender<Job<ImageId>>);
    /// Puts an image into a registry, likewise.
    fn push(
        &self,
        reference: Reference,
        to: Reference,
        told: mpsc::Sender<Job<ImageId>>,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;
    /// Makes an image out of a tar of a root file system.
    fn import(
        &self,
        tar: BodyReader,
        reference: Reference,
        options: ImportOptions,
    ) -> impl Future<Output = Result<ImageId, Refusal>> + Send;
    /// An image's root file system as a tar.
    fn export(&self, reference: Reference) -> impl Future<Output = Result<Written, Refusal>> + Send;
    /// Makes an image with another configuration, by the name `tag`.
    fn configure(
        &self,
        reference: Reference,
        changes: ConfigChanges,
        tag: Reference,
    ) -> impl Future<Output = Result<ImageId, Refusal>> + Send;
}

/// A name of something to fetch: the server's current directory is nothing that a client knows.
fn source(name: &str) -> Result<Reference, Refusal> {
    let reference: Reference = named(name)?;
    match &reference {
        Reference::OciDir { path, .. } | Reference::OciArchive(path) | Reference::DockerArchive(path)
            if !path.is_absolute() =>
        {
            Err(Refusal::Invalid(format!("{} is not an absolute path", path.display())))
        }
        _ => Ok(reference),
    }
}

/// Which images.
#[derive(Deserialize)]
pub(super) struct AllQuery {
    #[serde(default)]
    all: bool,
}

type Answer = Result<Response, Refusal>;

pub(super) async fn list<B: Backend>(State(backend): State<B>, Query(AllQuery { all }): Query<AllQuery>) -> Answer {
    Ok(Json(backend.images(all).await?).into_response())
}

pub(super) async fn inspect<B: Backend>(State(backend): State<B>, PathPart(name): PathPart<String>) -> Answer {
    Ok(Json(backend.image(named(&name)?).await?).into_response())
}

pub(super) async fn remove<B: Backend>(State(backend): State<B>, PathPart(name): PathPart<String>) -> Answer {
    backend.remove_image(named(&name)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn prune<B: Backend>(State(backend): State<B>, Query(AllQuery { all }): Query<AllQuery>) -> Answer {
    Ok(Json(backend.prune(all).await?).into_response())
}

pub(super) async fn cached<B: Backend>(State(backend): State<B>) -> Answer {
    Ok(Json(backend.cached().await?).into_response())
}

pub(super) async fn pull<B: Backend>(State(backend): State<B>, PathPart(name): PathPart<String>) -> Answer {
    let (events, told) = mpsc::channel(EVENTS);
    backend.pull(source(&name)?, events);
    Ok(bodies::lines(told))
}

/// Where to push to; without it to where the name says.
#[derive(Deserialize)]
pub(super) struct PushQuery {
    to: Option<String>,
}

pub(super) async fn push<B: Backend>(
    State(backend): State<B>,
    PathPart(name): PathPart<String>,
    Query(PushQuery { to }): Query<PushQuery>,
) -> Answer {
    let (reference, to) = (named(&name)?, named(to.as_ref().unwrap_or(&name))?);
    let (events, told) = mpsc::channel(EVENTS);
    backend.push(reference, to, events).await?;
    Ok(bodies::lines(told))
}

/// `cmd` and `env` may be there several times.
pub(super) async fn import<B: Backend>(
    State(backend): State<B>,
    PathPart(name): PathPart<String>,
    Query(options): Query<Vec<(String, String)>>,
    body: Body,
) -> Answer {
    let reference: Reference = named(&name)?;
    let mut wanted = ImportOptions::default();
    for (option, value) in options {
        match option.as_str() {
            "cmd" => wanted.command.push(value),
            "env" => wanted.env.push(value),
            _ => return Err(Refusal::Invalid(format!("there is no option {option:?}"))),
        }
    }
    wanted.check().map_err(|error| Refusal::Invalid(error.to_string()))?;
    let (tar, pump) = bodies::read(body);
    // Here and not in a task of its own: a client that goes takes both with it, and the tar is cut off.
    let ((), imported) = tokio::join!(pump.run(), backend.import(tar, reference, wanted));
    Ok(Json(imported?).into_response())
}

pub(super) async fn export<B: Backend>(State(backend): State<B>, PathPart(name): PathPart<String>) -> Answer {
    let tar = backend.export(named(&name)?).await?;
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], Body::new(tar)).into_response())
}

/// What to call an image with another configuration; without it the new one takes the name of the old one.
#[derive(Deserialize)]
pub(super) struct TagQuery {
    tag: Option<String>,
}

pub(super) async fn configure<B: Backend>(
    State(backend): State<B>,
    PathPart(name): PathPart<String>,
    Query(TagQuery { tag }): Query<TagQuery>,
    Json(changes): Json<ConfigChanges>,
) -> Answer {
    changes.check().map_err(|error| Refusal::Invalid(error.to_string()))?;
    let (reference, tag) = (named(&name)?, named(tag.as_ref().unwrap_or(&name))?);
    Ok(Json(backend.configure(reference, changes, tag).await?).into_response())
}
