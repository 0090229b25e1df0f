//! How many calls there were, how they ended and how long they took: taken outside of whatever decodes messages, so
//! that what is malformed or too large counts too.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use http::HeaderMap;
use sconce_engine::stats::{Buckets, Counter, Histogram, nanos};
use tonic::Code;

use super::text::Text;
use crate::{grpc::PREFIX, status::code_name, wire::GRPC_STATUS};

/// The RPCs that are told apart. Whatever else is called is `other`: nobody can invent a label.
const METHODS: [&str; 18] = [
    "ModelInfer",
    "ModelStreamInfer",
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelConfig",
    "ModelStatistics",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "TraceSetting",
    "LogSettings",
    "Health/Check",
    "Health/Watch",
    "ServerReflectionInfo",
    "other",
];
const CODES: usize = 17;

/// One of the RPCs that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Method(usize);

impl Method {
    /// By its path.
    pub(crate) fn of(path: &str) -> Self {
        let name = path.strip_prefix(PREFIX).or_else(|| path.strip_prefix("/grpc.health.v1."));
        let name = name.or_else(|| path.starts_with("/grpc.reflection.").then_some("ServerReflectionInfo"));
        let index = name.and_then(|name| METHODS.iter().position(|method| *method == name));
        Self(index.unwrap_or(METHODS.len() - 1))
    }

    /// Its name, as a label.
    pub(crate) fn name(self) -> &'static str {
        METHODS[self.0]
    }
}

#[derive(Debug)]
struct OfMethod {
    codes: [Counter; CODES],
    duration: Histogram,
}

/// What is counted of calls.
#[derive(Debug)]
pub(crate) struct Rpcs {
    methods: Vec<OfMethod>,
    connections: AtomicUsize,
}

impl Rpcs {
    pub(crate) fn new(durations: &Buckets) -> Self {
        let of_method = |_| OfMethod { codes: Default::default(), duration: durations.histogram() };
        Self { methods: METHODS.iter().map(of_method).collect(), connections: AtomicUsize::new(0) }
    }

    /// A call has ended.
    pub(crate) fn ended(&self, method: Method, code: Code, took: Duration) {
        let method = &self.methods[method.0];
        method.codes[code as usize].add(1);
        method.duration.record(nanos(took), 1);
    }

    /// A connection is open as long as this is kept.
    pub(crate) fn connected(&self) -> Connected<'_> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Connected(self)
    }

    /// Calls by every method and code, so that the first of a kind is seen to be one more; durations of those methods
    /// that have been called.
    pub(super) fn write(&self, text: &mut Text) {
        let methods = || METHODS.iter().zip(&self.methods);
        text.family("sconce_rpcs_total", "counter", "Calls that have ended, by RPC and gRPC code");
        for (method, of) in methods() {
            for (code, count) in of.codes.iter().enumerate() {
                let code = code_name(Code::from(i32::try_from(code).unwrap_or_default()));
                text.sample("sconce_rpcs_total", &[("method", method), ("code", code)], count.get());
            }
        }
        let name = "sconce_rpc_duration_seconds";
        text.family(
            name,
            "histogram",
            "From a call's headers to the end of its answer; of streams, as long as they were open",
        );
        for (method, of) in methods().filter(|(_, of)| of.duration.total().0 > 0) {
            text.durations(name, &[("method", method)], &of.duration.counts());
        }
        text.family("sconce_connections", "gauge", "Connections that are open for gRPC");
        text.sample("sconce_connections", &[], self.connections.load(Ordering::Relaxed));
    }
}

/// A connection that is open.
#[derive(Debug)]
pub(crate) struct Connected<'a>(&'a Rpcs);

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A call that is counted when it ends: by its trailers, or by being dropped before, when its caller has gone.
#[derive(Debug)]
pub(crate) struct Counting {
    pub(crate) method: Method,
    pub(crate) started: Instant,
    /// How it has ended, once that is known.
    pub(crate) ended: Option<Code>,
}

impl Counting {
    pub(crate) fn new(method: Method) -> Self {
        Self { method, started: Instant::now(), ended: None }
    }

    /// Reads the code from headers or trailers, where it stands in them.
    pub(crate) fn read(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get(&GRPC_STATUS) {
            self.ended = Some(Code::from_bytes(status.as_bytes()));
        }
    }
}
