//! The gRPC listener: our own accept loop over hyper, because ours ends.
//!
//! tonic's server answers an expired deadline with CANCELLED outside every layer and waits for ever on
//! open streams at shutdown. This one sends GOAWAY, waits for what is in flight, and has a bound.

use std::{
    convert::Infallible,
    io::Cursor,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tonic::{Code, service::Routes};
use tower::ServiceExt;
use tracing::{debug, warn};

use crate::{
    grpc::{PREFIX, Service},
    handshake,
    logging::Seldom,
    metrics::{Counting, Method, Rpcs},
    observe::{Watch, Watchers},
    wire::{self, Body},
};

/// A stream may have so many bytes on their way before we have taken the first: a large tensor is not
/// slowed by round trips.
const STREAM_WINDOW: u32 = 4 << 20;
/// As above, for all streams of a connection. h2 lets unread frames of less than 256 bytes waste half as much, and
/// ends the connection of whoever wastes more: this is enough for a conversation of the smallest requests whose
/// caller sends as much as he may and reads nothing.
const CONNECTION_WINDOW: u32 = 48 << 20;
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
/// So many open files are kept back for whoever asks how the server is, for models and for the log.
const KEPT_BACK: u64 = 128;
/// Between two lines of the log on that.
const SAID_AGAIN: Duration = Duration::from_secs(10);
/// A client begins to speak as soon as it is connected; whoever has not said by then what all say first is none.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// At shutdown, a connection is cut that has had no call for as long, and does not close by itself: its peer has not
/// begun to speak, or is frozen.
const QUIET: Duration = Duration::from_secs(1);
/// At shutdown, when the bound is over, how long what is left may take to be told so.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What a connection needs.
pub(crate) struct Listener {
    pub(crate) service: Arc<Service>,
    /// Health, reflection, and UNIMPLEMENTED for the rest.
    pub(crate) routes: Routes,
    /// What is counted of calls.
    pub(crate) rpcs: Arc<Rpcs>,
    /// Who wants to know of calls.
    pub(crate) watchers: Watchers,
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
        let this = Arc::new(self);
        let mut connections = JoinSet::new();
        let stopped = stop.clone();
        let most = most_connections();
        let mut said = Seldom::default();
        let mut say = |what: String| {
            if said.may_be_said(SAID_AGAIN) {
                warn!("{what}");
            }
        };
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < most => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(Arc::clone(&this).serve(stream, stopped.clone()));
                        if connections.len() == most {
                            say(format!(
                                "{most} connections are open, as many as the limit of open files lets (ulimit -n): others \
                                 wait until one is closed"
                            ));
                        }
                    }
                    Err(error) => {
                        say(format!("a connection could not be accepted: {error}"));
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                () = told(&mut stop) => break,
            }
        }
        drop(listener);
        finish(&mut connections, bound).await;
        let busy = connections.len();
        if busy > 0 {
            // Whoever still waits is told so, and not only that the connection is gone: again and again,
            // because some are on their way to where they wait.
            let end = tokio::time::Instant::now() + LAST_WORDS;
            while !connections.is_empty() && tokio::time::Instant::now() < end {
                this.service.table.abandon();
                this.service.pool.abandon();
                finish(&mut connections, LAST_WORDS / 20).await;
            }
            connections.shutdown().await;
        }
        busy
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream, mut stop: watch::Receiver<bool>) {
        // Answers are small and waited for.
        if let Err(error) = stream.set_nodelay(true) {
            debug!("TCP_NODELAY: {error}");
        }
        let peer = stream.peer_addr().ok();
        let said = {
            let reading = tokio::time::timeout(HANDSHAKE, handshake::read(&mut stream));
            tokio::pin!(reading);
            tokio::select! {
                biased;
                said = &mut reading => said,
                // What a client is about to say is still answered.
                () = told(&mut stop) => match tokio::time::timeout(QUIET, reading).await {
                    Ok(said) => said,
                    Err(_) => return,
                },
            }
        };
        let Ok(Ok(said)) = said else { return };
        let _connected = self.rpcs.connected();
        let (reader, writer) = stream.into_split();
        let stream = tokio::io::join(Cursor::new(said).chain(reader), writer);
        let max_streams = self.max_streams;
        let calls = Arc::new(AtomicUsize::new(0));
        let service = service_fn(|request| {
            let call = Call::new(&calls);
            // Boxed: hyper moves the future about, and it is large.
            Box::pin(Arc::clone(&self).answer(request, call, peer))
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_send_buf_size(SEND_BUFFER)
            .max_concurrent_streams(max_streams)
            // Callers whose deadlines are tight give up as many calls at once as they have open. h2 would end the
            // connection, and with it the calls of all others on it, after twenty.
            .max_pending_accept_reset_streams(max_streams as usize)
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
                let mut quiet = false;
                loop {
                    if let Ok(ended) = tokio::time::timeout(QUIET, connection.as_mut()).await {
                        break ended;
                    }
                    let idle = calls.load(Ordering::Relaxed) == 0;
                    if quiet && idle {
                        return;
                    }
                    quiet = idle;
                }
            }
        };
        if let Err(error) = ended {
            debug!("a connection ended: {error}");
        }
    }

    async fn answer(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        call: Call,
        peer: Option<SocketAddr>,
    ) -> Result<Response<Counted>, Infallible> {
        let method = Method::of(request.uri().path());
        let watch = self.watchers.begin(method.name(), request.headers(), peer);
        if let Some(watch) = &watch {
            request.extensions_mut().insert(Arc::clone(watch));
        }
        let mut ending = Ending { counting: Counting::new(method), rpcs: Arc::clone(&self.rpcs), watch };
        let response = self.route(request).await?;
        // A status without an answer is all in the headers.
        if http_body::Body::is_end_stream(response.body()) {
            ending.counting.read(response.headers());
        }
        Ok(response.map(|body| Counted { body, ending, _call: call }))
    }

    async fn route(&self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
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
        self.tonic(request).await
    }

    /// Answers with tonic's services, which know no deadlines.
    async fn tonic(&self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let deadline = match wire::deadline(request.headers()) {
            Ok(deadline) => deadline,
            Err(status) => return Ok(wire::status(&status)),
        };
        let answer = self.routes.clone().oneshot(request);
        let response = match deadline {
            None => answer.await?,
            Some(instant) => match tokio::time::timeout_at(instant.into(), answer).await {
                Ok(response) => response?,
                Err(_) => return Ok(wire::status(&wire::late("while the request was being received"))),
            },
        };
        Ok(response.map(|body| Body::tonic(body, deadline)))
    }
}

/// How many connections may be open at once.
fn most_connections() -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(files.saturating_sub(KEPT_BACK).max(files / 2)).unwrap_or(usize::MAX)
}

/// Waits until all connections have ended, or for so long.
async fn finish(connections: &mut JoinSet<()>, bound: Duration) {
    let finished = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(bound, finished).await;
}

/// Counts one call of a connection until its answer has been handed over.
struct Call(Arc<AtomicUsize>);

impl Call {
    fn new(calls: &Arc<AtomicUsize>) -> Self {
        calls.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(calls))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is told of a call when it ends: by its trailers, or by being dropped before.
struct Ending {
    counting: Counting,
    rpcs: Arc<Rpcs>,
    watch: Option<Arc<Watch>>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let code = self.counting.ended.unwrap_or(Code::Cancelled);
        self.rpcs.ended(self.counting.method, code, self.counting.started.elapsed());
        if let Some(watch) = &self.watch {
            watch.end(code);
        }
    }
}

/// An answer's body, which counts as a call while it is being sent.
struct Counted {
    body: Body,
    ending: Ending,
    _call: Call,
}

impl http_body::Body for Counted {
    type Data = bytes::Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, tonic::Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            self.ending.counting.read(trailers);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// Returns when the server stops.
async fn told(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, and the server with it.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    let content_type = request.headers().get(http::header::CONTENT_TYPE);
    // application/grpc-web is another protocol.
    let is_ours = |value: &http::HeaderValue| {
        let rest = value.as_bytes().strip_prefix(b"application/grpc");
        rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    };
    request.method() == http::Method::POST && content_type.is_some_and(is_ours)
}
