//! The HTTP side: health for probes that do not speak gRPC, what is known of each model, and metrics.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use sconce_engine::{
    pool::Pool,
    table::{Snapshot, Table},
    text::quote,
};
use serde::Serialize;
use tokio::{net::TcpListener, sync::watch};
use tracing::error;

use crate::{debug, metrics::Metrics, models};

/// How many names a refusal lists.
const NAMED: usize = 20;

/// The format of Prometheus.
const PROMETHEUS: &str = "text/plain; version=0.0.4";

/// What is told from.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) table: Arc<Table>,
    pub(crate) pool: Pool,
    pub(crate) metrics: Metrics,
    /// Whether anybody may ask what threads are doing.
    pub(crate) debug: bool,
}

/// Serves HTTP until told to stop.
pub(crate) async fn serve(listener: TcpListener, admin: Admin, mut stop: watch::Receiver<bool>) {
    let router = Router::new()
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(counted))
        .route("/models", get(all))
        .route("/models/{name}", get(one))
        .fallback(|| async {
            let there = "there is /health/live, /health/ready, /metrics, /models and /models/NAME\n";
            (StatusCode::NOT_FOUND, there)
        })
        .with_state(admin.clone());
    let router = if admin.debug { router.merge(debug::routes(admin.pool)) } else { router };
    let stopped = async move {
        // The sender is gone when the server is.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stopped).await {
        error!("the metrics address is no longer served: {error}");
    }
}

async fn live(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    if admin.pool.is_alive() {
        (StatusCode::OK, "live\n")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "not live: no device is left that could run a model; restart the server\n",
        )
    }
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, String) {
    let snapshot = admin.table.snapshot();
    match why_not_ready(&snapshot) {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}

fn why_not_ready(snapshot: &Snapshot) -> Option<String> {
    if snapshot.ready() {
        return None;
    }
    if snapshot.draining {
        return Some("shutting down".to_owned());
    }
    if snapshot.lost {
        return Some("no device is left that could run a model; restart the server".to_owned());
    }
    if !snapshot.settled {
        return Some("models are loading".to_owned());
    }
    let waiting = snapshot.routes.iter().filter(|(_, route)| !route.unloaded && !route.serves());
    Some(format!(
        "with --strict-readiness every model has to serve, and these do not: {}",
        list(waiting.map(|(name, _)| &**name))
    ))
}

async fn counted(State(admin): State<Admin>) -> Response {
    ([(CONTENT_TYPE, PROMETHEUS)], admin.metrics.render()).into_response()
}

#[derive(Debug, Serialize)]
struct Models {
    devices: Vec<models::DeviceStatus>,
    models: Vec<models::ModelStatus>,
}

async fn all(State(Admin { table, pool, .. }): State<Admin>) -> Response {
    let snapshot = table.snapshot();
    let models = snapshot.routes.iter().map(|(name, route)| models::status(name, route, &snapshot, &pool));
    json(&Models { devices: pool.status().iter().map(models::device).collect(), models: models.collect() })
}

async fn one(State(Admin { table, pool, .. }): State<Admin>, Path(name): Path<String>) -> Response {
    let snapshot = table.snapshot();
    if let Some(route) = snapshot.routes.get(name.as_str()) {
        return json(&models::status(&name, route, &snapshot, &pool));
    }
    let there = list(snapshot.routes.keys().map(|name| &**name));
    let text = format!("no model is named '{}'; there is {there}\n", quote(&name));
    (StatusCode::NOT_FOUND, text).into_response()
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<String> = names.take(NAMED + 1).map(quote).collect();
    if names.is_empty() {
        return "none".to_owned();
    }
    if names.len() > NAMED {
        names[NAMED] = "...".to_owned();
    }
    names.join(", ")
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string_pretty(value) {
        Ok(text) => ([(CONTENT_TYPE, "application/json")], text + "\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
