//! Metrics for Prometheus: on the control socket, and over TCP for who cannot reach that.

use std::{io, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{net::TcpListener, sync::Semaphore};

use super::Backend;

/// Clients that are served at once over TCP. Further ones wait to be accepted.
const CLIENTS: usize = 8;

/// How long one may keep its connection: a scrape takes milliseconds, and nobody is to take a place for ever.
const LIMIT: Duration = Duration::from_secs(30);

/// How long to wait after accept(2) has failed.
const BACK_OFF: Duration = Duration::from_millis(100);

/// What `/metrics` answers.
pub(super) async fn metrics<B: Backend>(State(backend): State<B>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], backend.metrics().await)
}

/// Answers requests for `/metrics` and `/healthz`, and no others, for ever.
pub async fn serve(listener: TcpListener, backend: impl Backend) -> io::Result<()> {
    let router = router(backend);
    let permits = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Out of descriptors, perhaps; that passes.
            Err(error) => {
                tracing::warn!("metrics.listen: {error}");
                tokio::time::sleep(BACK_OFF).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            match tokio::time::timeout(LIMIT, connection).await {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(error)) => tracing::debug!("metrics.listen: {error}"),
            }
            drop(permit);
        });
    }
}

fn router<B: Backend>(backend: B) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics::<B>))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is /metrics and /healthz\n") })
        .with_state(backend)
}
