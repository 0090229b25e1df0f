//! What is told of calls to those who watch: the access log and traces.
//!
//! Nothing is gathered where nobody wants to know. Else a [`Watch`] goes with the call, what is learned of it on its
//! way is noted there, and when its answer has been handed over, or dropped, every [`Watcher`] gets the [`Record`].

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use http::{HeaderMap, HeaderValue};
use sconce_engine::{
    Version,
    observe::{Run, TraceContext},
};
use tonic::{Code, Status};

/// All that is told of a call, or of one message of a stream, once it has been answered.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// The RPC, from a closed list.
    pub(crate) method: &'static str,
    /// It is one message of a stream, not the stream.
    pub(crate) message_of_stream: bool,
    /// When its headers, or the message of a stream, had come.
    pub(crate) started: Instant,
    /// When it had been received, if it was.
    pub(crate) received: Option<Instant>,
    /// When its answer had been handed over.
    pub(crate) ended: Instant,
    /// Who called.
    pub(crate) peer: Option<SocketAddr>,
    /// The model that it named, as it was sent; empty where it named none.
    pub(crate) model: String,
    /// The version that answered.
    pub(crate) version: Option<Version>,
    /// The id that the caller gave the request, as it was sent.
    pub(crate) id: String,
    /// How it ended.
    pub(crate) code: Code,
    /// Why, where it failed.
    pub(crate) message: String,
    /// The same in a word, where the engine has said so.
    pub(crate) reason: Option<&'static str>,
    /// The run that answered it.
    pub(crate) run: Option<Run>,
    /// Bytes of the request.
    pub(crate) request_bytes: usize,
    /// Bytes of its answers.
    pub(crate) response_bytes: usize,
    /// How many answers it had.
    pub(crate) responses: u64,
    /// Its own place in a trace, if it is traced.
    pub(crate) trace: Option<TraceContext>,
    /// The place of its caller, where that said so.
    pub(crate) parent: Option<TraceContext>,
    /// `traceparent`, as it was sent.
    pub(crate) traceparent: Option<HeaderValue>,
    /// `tracestate`, as it was sent.
    pub(crate) tracestate: Option<HeaderValue>,
}

/// A message that may name a model.
pub(crate) trait OfModel {
    /// The name, as it was sent; empty where it names none.
    fn model(&self) -> &str {
        ""
    }
}

macro_rules! of_model {
    ($($message:ident $($name:ident)?),* $(,)?) => {
        $(impl OfModel for sconce_proto::inference::$message {
            $(fn model(&self) -> &str {
                &self.$name
            })?
        })*
    };
}

of_model! {
    ModelInferRequest model_name,
    TraceSettingRequest model_name,
    ModelReadyRequest name,
    ModelMetadataRequest name,
    ModelConfigRequest name,
    ModelStatisticsRequest name,
    RepositoryModelLoadRequest model_name,
    RepositoryModelUnloadRequest model_name,
    RepositoryIndexRequest,
    ServerLiveRequest,
    ServerReadyRequest,
    ServerMetadataRequest,
    LogSettingsRequest,
}

/// A request that is to be traced: its own place, and that of its caller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traced {
    pub(crate) own: TraceContext,
    pub(crate) parent: Option<TraceContext>,
}

/// Who wants to know of calls.
pub(crate) trait Watcher: Send + Sync + fmt::Debug {
    /// Whether it wants to know of any, now.
    fn is_on(&self) -> bool;

    /// Whether, and where, a request for this model is to be traced, or a call that runs none, which has no name here.
    /// `parent` is `traceparent`, as it was sent.
    fn trace(&self, _parent: Option<&HeaderValue>, _model: &str) -> Option<Traced> {
        None
    }

    /// A call has ended. On the threads of connections: it must not block.
    fn record(&self, record: &Record);
}

/// All who want to know of calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watchers(pub(crate) Arc<[Arc<dyn Watcher>]>);

impl Watchers {
    /// A call begins; `None` where nobody wants to know.
    pub(crate) fn begin(
        &self,
        method: &'static str,
        headers: &HeaderMap,
        peer: Option<SocketAddr>,
    ) -> Option<Arc<Watch>> {
        if !self.0.iter().any(|watcher| watcher.is_on()) {
            return None;
        }
        let now = Instant::now();
        let traceparent = only(headers, "traceparent");
        let record = Record {
            method,
            message_of_stream: false,
            started: now,
            received: None,
            ended: now,
            peer,
            model: String::new(),
            version: None,
            id: String::new(),
            code: Code::Ok,
            message: String::new(),
            reason: None,
            run: None,
            request_bytes: 0,
            response_bytes: 0,
            responses: 0,
            trace: None,
            parent: None,
            traceparent: traceparent.clone(),
            tracestate: joined(headers, "tracestate"),
        };
        let watch = Watch { watchers: self.clone(), traceparent, of: None, record: Mutex::new(record) };
        if !matches!(method, "ModelInfer" | "ModelStreamInfer") {
            // No model is run.
            let _ = watch.trace("");
        }
        Some(Arc::new(watch))
    }
}

/// The value of a header that may be there once.
fn only(headers: &HeaderMap, name: &str) -> Option<HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none()).cloned()
}

/// The values of a header that may be said in parts.
fn joined(headers: &HeaderMap, name: &str) -> Option<HeaderValue> {
    let parts: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    match parts[..] {
        [] => None,
        [_] => headers.get(name).cloned(),
        _ => HeaderValue::from_bytes(&parts.join(&b',')).ok(),
    }
}

/// A call that is watched.
#[derive(Debug)]
pub(crate) struct Watch {
    watchers: Watchers,
    traceparent: Option<HeaderValue>,
    /// The stream of which it is one message.
    of: Option<Arc<Watch>>,
    record: Mutex<Record>,
}

impl Watch {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what has been learned.
    pub(crate) fn note(&self, note: impl FnOnce(&mut Record)) {
        note(&mut self.record());
    }

    /// A message of a stream begins: a record of its own, which ends with [`Watch::end`].
    pub(crate) fn message(self: &Arc<Self>, bytes: usize) -> Arc<Self> {
        let now = Instant::now();
        let record = Record {
            message_of_stream: true,
            started: now,
            received: Some(now),
            ended: now,
            request_bytes: bytes,
            response_bytes: 0,
            responses: 0,
            ..self.record().clone()
        };
        let (watchers, traceparent) = (self.watchers.clone(), self.traceparent.clone());
        let of = Some(Arc::clone(self));
        Arc::new(Self { watchers, traceparent, of, record: Mutex::new(record) })
    }

    /// The request names this model: whether, and where, it is to be traced.
    pub(crate) fn trace(&self, model: &str) -> Option<TraceContext> {
        let traced = |watcher: &Arc<dyn Watcher>| watcher.trace(self.traceparent.as_ref(), model);
        let traced = self.watchers.0.iter().find_map(traced)?;
        self.note(|record| (record.trace, record.parent) = (Some(traced.own), traced.parent));
        Some(traced.own)
    }

    /// It has ended like this.
    pub(crate) fn end(&self, code: Code) {
        let mut record = self.record();
        record.ended = Instant::now();
        record.code = code;
        if let Some(of) = &self.of {
            of.note(|stream| {
                stream.request_bytes += record.request_bytes;
                stream.response_bytes += record.response_bytes;
                stream.responses += record.responses;
            });
        }
        for watcher in self.watchers.0.iter().filter(|watcher| watcher.is_on()) {
            watcher.record(&record);
        }
    }
}

/// What is told of one message of a stream when it has been answered, or is dropped before: because its caller has
/// gone, or because the deadline of the stream has passed.
#[derive(Debug)]
pub(crate) struct MessageEnding(pub(crate) Option<Arc<Watch>>, pub(crate) Option<Instant>);

impl MessageEnding {
    /// An answer of so many bytes has been made.
    pub(crate) fn answered(&self, bytes: usize) {
        if let Some(watch) = &self.0 {
            watch.note(|record| {
                record.responses += 1;
                record.response_bytes += bytes;
            });
        }
    }

    /// It has ended: well, or with this status. What comes after that is not told.
    pub(crate) fn end(&mut self, status: Option<&Status>) {
        let Some(watch) = self.0.take() else { return };
        if let Some(status) = status {
            watch.note(|record| status.message().clone_into(&mut record.message));
        }
        watch.end(status.map_or(Code::Ok, Status::code));
    }
}

impl Drop for MessageEnding {
    fn drop(&mut self) {
        if let Some(watch) = self.0.take() {
            let is_late = self.1.is_some_and(|deadline| deadline <= Instant::now());
            watch.end(if is_late { Code::DeadlineExceeded } else { Code::Cancelled });
        }
    }
}
