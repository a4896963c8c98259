//! Builds over the control API.

use std::future::Future;

use axum::{Json, extract::State, response::Response};
use tokio::sync::mpsc;

use super::{
    Backend, bodies,
    refusal::Refusal,
    server::EVENTS,
    types::{BuildRequest, ImageId, Job},
};

/// What the API asks of the process that it runs in, about builds.
pub trait Builds {
    /// Builds an image, and tells how that goes until it is done or nobody listens any more.
    fn build(
        &self,
        request: BuildRequest,
        told: mpsc::Sender<Job<ImageId>>,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;
}

pub(super) async fn build<B: Backend>(
    State(backend): State<B>,
    Json(request): Json<BuildRequest>,
) -> Result<Response, Refusal> {
    let (events, told) = mpsc::channel(EVENTS);
    backend.build(request, events).await?;
    Ok(bodies::lines(told))
}
