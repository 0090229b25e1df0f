//! The gRPC listener: our own accept loop over hyper, because ours ends.
//!
//! tonic's server answers an expired deadline with CANCELLED outside every layer and waits for ever on
//! open streams at shutdown. This one sends GOAWAY, waits for what is in flight, and has a bound.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tonic::service::Routes;
use tower::ServiceExt;
use tracing::{debug, warn};

use crate::{
    grpc::{PREFIX, Service},
    wire::{self, Body},
};

/// A stream may have so many bytes on their way before we have taken the first: a large tensor is not
/// slowed by round trips.
const STREAM_WINDOW: u32 = 4 << 20;
/// As above, for all streams of a connection.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Fewer, larger frames for large tensors.
const MAX_FRAME: u32 = 1 << 20;
/// Answers of a stream that wait for their reader.
const SEND_BUFFER: usize = 1 << 20;
/// A connection whose peer is gone without a word is found out.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// How long the peer may take to answer that.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// After an accept that failed for want of something (files, memory), before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a connection needs.
#[derive(Clone)]
pub(crate) struct Listener {
    pub(crate) service: Arc<Service>,
    /// Health, reflection, and UNIMPLEMENTED for the rest.
    pub(crate) routes: Routes,
    /// Calls at once on one connection.
    pub(crate) max_streams: u32,
}

impl Listener {
    /// Accepts and serves until `stop` says so, then lets connections finish for at most `bound`.
    /// Returns how many had to be cut.
    pub(crate) async fn run(
        self,
        listener: TcpListener,
        mut stop: watch::Receiver<bool>,
        bound: Duration,
    ) -> usize {
        let mut connections = JoinSet::new();
        let stopped = stop.clone();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(self.clone().serve(stream, stopped.clone()));
                    }
                    Err(error) => {
                        warn!("a connection could not be accepted: {error}");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                () = told(&mut stop) => break,
            }
        }
        drop(listener);
        let finished = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(bound, finished).await;
        let cut = connections.len();
        connections.shutdown().await;
        cut
    }

    async fn serve(self, stream: TcpStream, mut stop: watch::Receiver<bool>) {
        // Answers are small and waited for.
        if let Err(error) = stream.set_nodelay(true) {
            debug!("TCP_NODELAY: {error}");
        }
        let max_streams = self.max_streams;
        let service = service_fn(move |request| self.clone().answer(request));
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_send_buf_size(SEND_BUFFER)
            .max_concurrent_streams(max_streams)
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = told(&mut stop) => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!("a connection ended: {error}");
        }
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        if request.uri().path().starts_with(PREFIX) {
            if !is_grpc(&request) {
                let mut response = wire::status(&tonic::Status::invalid_argument(
                    "this is a gRPC service: POST with content-type application/grpc is expected",
                ));
                *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
                return Ok(response);
            }
            return Ok(self.service.call(request).await);
        }
        let response = self.routes.oneshot(request).await?;
        Ok(response.map(Body::from))
    }
}

/// Returns when the server stops.
async fn told(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, and the server with it.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    let content_type = request.headers().get(http::header::CONTENT_TYPE);
    request.method() == http::Method::POST
        && content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}
