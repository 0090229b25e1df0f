//! The HTTP side: health for probes that do not speak gRPC, what is known of each model, and metrics.

mod places;

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Path, State},
    http::{Request, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulConnection, GracefulShutdown},
    service::TowerToHyperService,
};
use places::{Answer, MOST, Place, Places};
use sconce_engine::{
    pool::Pool,
    table::{Snapshot, Table},
    text::quote,
};
use serde::Serialize;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tracing::{debug, warn};

use crate::{debug, logging::Seldom, metrics::Metrics, models};

/// How many names a refusal lists.
const NAMED: usize = 20;

/// The format of Prometheus.
const PROMETHEUS: &str = "text/plain; version=0.0.4";

/// How long a caller may take to ask, and an idle connection stays open.
const HEAD: Duration = Duration::from_secs(30);
/// How long a connection lasts at most.
const LONGEST: Duration = Duration::from_secs(300);
/// Between two lines of the log on connections that are closed at once.
const SAID_AGAIN: Duration = Duration::from_secs(10);
/// After an accept that failed for want of something (files, memory), before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
        .fallback(|State(admin): State<Admin>| async move {
            let debug = if admin.debug { ", /debug/threads, /debug/profile" } else { "" };
            let there =
                format!("there is /health/live, /health/ready, /metrics{debug}, /models and /models/NAME\n");
            (StatusCode::NOT_FOUND, there)
        })
        .with_state(admin.clone());
    let router = if admin.debug { router.merge(debug::routes(admin.pool)) } else { router };
    let places = Places::default();
    let ending = GracefulShutdown::new();
    let mut said = Seldom::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // The sender is gone when the server is.
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                debug!("a connection to the metrics address could not be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = places.enter() else {
            // Closed at once: it would only take a file from those who want a model.
            if said.may_be_said(SAID_AGAIN) {
                warn!(
                    "connections to the metrics address are closed, because {MOST} others are being answered"
                );
            }
            continue;
        };
        let connection = ending.watch(connection(stream, &router, &place));
        tokio::spawn(async move {
            tokio::select! {
                // What has come is answered first.
                biased;
                // Whoever does not read is no reason to keep the place for ever.
                _ = tokio::time::timeout(LONGEST, connection) => {}
                () = place.is_taken() => {}
            }
        });
    }
    ending.shutdown().await;
}

/// Answers one connection, and notes when it asks.
fn connection(
    stream: TcpStream,
    router: &Router,
    place: &Place,
) -> impl GracefulConnection<Error = hyper::Error> + Send + use<> {
    let (router, asks) = (TowerToHyperService::new(router.clone()), place.asks());
    let service = service_fn(move |request: Request<Incoming>| {
        let (asking, answer) = (asks(), router.call(request));
        async move {
            let answer = answer.await?;
            Ok::<_, Infallible>(answer.map(|body| Answer { body, _asking: asking }))
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service)
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
