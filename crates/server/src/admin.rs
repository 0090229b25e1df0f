//! The HTTP side: health for probes that do not speak gRPC.

use std::sync::Arc;

use axum::{Router, extract::State, http::StatusCode, routing::get};
use sconce_engine::table::Table;
use tokio::{net::TcpListener, sync::watch};
use tracing::error;

/// Serves `/health/live` and `/health/ready` until told to stop.
pub(crate) async fn serve(listener: TcpListener, table: Arc<Table>, mut stop: watch::Receiver<bool>) {
    let router = Router::new()
        .route("/health/live", get(|| async { "live\n" }))
        .route("/health/ready", get(ready))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is /health/live and /health/ready\n") })
        .with_state(table);
    let stopped = async move {
        // The sender is gone when the server is.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stopped).await {
        error!("the metrics address is no longer served: {error}");
    }
}

async fn ready(State(table): State<Arc<Table>>) -> (StatusCode, &'static str) {
    let snapshot = table.snapshot();
    if snapshot.ready() {
        (StatusCode::OK, "ready\n")
    } else if snapshot.draining {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready: shutting down\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready: models are loading\n")
    }
}
