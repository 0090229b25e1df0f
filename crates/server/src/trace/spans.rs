//! From what has been noted of a call, a batch or a load to spans of OpenTelemetry. Notes are taken where
//! the work is done; spans are made of them by the one who sends them.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    net::{IpAddr, SocketAddr},
};

use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{Event, Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};
use sconce_engine::{
    Version,
    observe::{Run, TraceContext},
};
use tonic::Code;

use super::{
    clock::{Clock, Period},
    context,
    notes::{Batch, Item, Load},
};
use crate::{observe::Record, status::code_name};

const SERVICE: &str = "inference.GRPCInferenceService";
/// The conventions by which attributes have their names.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.37.0";

/// Makes spans.
#[derive(Debug)]
pub(crate) struct Writer {
    scope: InstrumentationScope,
    ids: RandomIdGenerator,
    /// From which the ids of batches follow, so that each of their requests knows them.
    batches: RandomState,
    /// What the listener is bound to.
    server: Option<SocketAddr>,
    devices: Vec<String>,
    /// Whether attributes also have the names that Triton gives them.
    triton: bool,
}

impl Writer {
    pub(crate) fn new(server: Option<SocketAddr>, devices: Vec<String>, triton: bool) -> Self {
        let scope = InstrumentationScope::builder("sconce")
            .with_version(env!("CARGO_PKG_VERSION"))
            .with_schema_url(SCHEMA)
            .build();
        let (ids, batches) = (RandomIdGenerator::default(), RandomState::new());
        Self { scope, ids, batches, server, devices, triton }
    }

    /// Adds the spans of an item.
    pub(crate) fn write(&self, item: &Item, clock: Clock, spans: &mut Vec<SpanData>) {
        match item {
            Item::Rpc(record) => self.rpc(record, clock, spans),
            Item::Batch(batch) => self.batch(batch, clock, spans),
            Item::Load(load) => self.load(load, clock, spans),
        }
    }

    fn rpc(&self, record: &Record, clock: Clock, spans: &mut Vec<SpanData>) {
        let Some(own) = record.trace else { return };
        let period = Period(record.started, record.ended.max(record.started));
        let state = record.tracestate.as_ref().map_or(TraceState::NONE, context::state);
        let (service, method) = rpc(record.method);
        let mut span = self.span(own, &state, format!("{service}/{method}"), period, clock);
        span.span_kind = SpanKind::Server;
        if let Some(parent) = record.parent {
            span.parent_span_id = SpanId::from(parent.span_id);
            span.parent_span_is_remote = true;
        }
        span.attributes = self.attributes(record);
        if is_servers_fault(record.code) {
            span.status = Status::error(record.message.clone());
        }
        if let Some(received) = record.received {
            let time = clock.tell(period.part(received, received).0);
            span.events.events.push(Event::new("received", time, Vec::new(), 0));
        }
        spans.push(span);
        let Some(run) = &record.run else { return };
        let mut stage = |name: &'static str, start, end| {
            let mut span = self.child(own, &state, name, period.part(start, end), clock);
            if name == "forward" {
                span.attributes = self.of_run(run);
                span.links.links = vec![link(self.of_batch(run))];
            }
            spans.push(span);
        };
        stage("queue", run.arrived, run.started);
        stage("gather", run.started, run.gathered);
        stage("forward", run.gathered, run.ran);
        stage("scatter", run.ran, run.scattered);
    }

    fn attributes(&self, record: &Record) -> Vec<KeyValue> {
        let (service, method) = rpc(record.method);
        let mut attributes = vec![
            KeyValue::new("rpc.system", "grpc"),
            KeyValue::new("rpc.service", service),
            KeyValue::new("rpc.method", method),
            KeyValue::new("rpc.grpc.status_code", i64::from(i32::from(record.code))),
            KeyValue::new("sconce.request.bytes", whole(record.request_bytes)),
            KeyValue::new("sconce.response.bytes", whole(record.response_bytes)),
        ];
        let mut add = |attribute| attributes.push(attribute);
        if let Some(server) = self.server {
            if !server.ip().is_unspecified() {
                add(KeyValue::new("server.address", address(server.ip())));
            }
            add(KeyValue::new("server.port", i64::from(server.port())));
        }
        if let Some(peer) = record.peer {
            add(KeyValue::new("client.address", address(peer.ip())));
            add(KeyValue::new("client.port", i64::from(peer.port())));
        }
        if !record.model.is_empty() {
            add(KeyValue::new("sconce.model.name", record.model.clone()));
        }
        if let Some(version) = record.version {
            add(KeyValue::new("sconce.model.version", version.to_string()));
        }
        if !record.id.is_empty() {
            add(KeyValue::new("sconce.request.id", record.id.clone()));
        }
        if record.responses > 0 {
            add(KeyValue::new("sconce.responses", i64::try_from(record.responses).unwrap_or(i64::MAX)));
        }
        if record.code != Code::Ok {
            add(KeyValue::new("error.type", code_name(record.code)));
            add(KeyValue::new("error.message", record.message.clone()));
        }
        if self.triton && !record.model.is_empty() {
            add(KeyValue::new("triton.model_name", record.model.clone()));
            if let Some(version) = record.version {
                add(KeyValue::new("triton.model_version", version.to_string()));
            }
            add(KeyValue::new("triton.request_id", record.id.clone()));
        }
        attributes
    }

    fn batch(&self, batch: &Batch, clock: Clock, spans: &mut Vec<SpanData>) {
        let run = &batch.run;
        let own = self.of_batch(run);
        let period = Period(run.started, run.scattered.max(run.started));
        let mut span = self.span(own, &TraceState::NONE, "batch".to_owned(), period, clock);
        span.attributes = self.of_run(run);
        self.name_model(&mut span, &batch.model, batch.version);
        span.links.links = batch.traced.iter().copied().map(link).collect();
        span.links.dropped_count = batch.left_out;
        if batch.failed {
            span.status = Status::error("the batch failed");
        }
        spans.push(span);
        let stages = [
            ("gather", run.started, run.gathered),
            ("forward", run.gathered, run.ran),
            ("scatter", run.ran, run.scattered),
        ];
        for (name, start, end) in stages {
            spans.push(self.child(own, &TraceState::NONE, name, period.part(start, end), clock));
        }
    }

    fn load(&self, load: &Load, clock: Clock, spans: &mut Vec<SpanData>) {
        let trace_id = u128::from_be_bytes(self.ids.new_trace_id().to_bytes());
        let own = TraceContext { trace_id, span_id: self.span_id() };
        let period = Period(load.started, load.ended.max(load.started));
        let mut span = self.span(own, &TraceState::NONE, format!("load {}", load.model), period, clock);
        self.name_model(&mut span, &load.model, load.version);
        span.attributes.push(KeyValue::new("sconce.load.outcome", load.outcome));
        if let Some(reason) = &load.reason {
            span.status = Status::error(reason.clone());
        }
        spans.push(span);
        for (step, start, end) in &load.steps {
            spans.push(self.child(own, &TraceState::NONE, step.name(), period.part(*start, *end), clock));
        }
    }

    fn name_model(&self, span: &mut SpanData, model: &str, version: Version) {
        let mut add = |name, value| span.attributes.push(KeyValue::new(name, value));
        add("sconce.model.name", model.to_owned());
        add("sconce.model.version", version.to_string());
        if self.triton {
            add("triton.model_name", model.to_owned());
            add("triton.model_version", version.to_string());
        }
    }

    fn child(
        &self,
        parent: TraceContext,
        state: &TraceState,
        name: &'static str,
        period: Period,
        clock: Clock,
    ) -> SpanData {
        let own = TraceContext { trace_id: parent.trace_id, span_id: self.span_id() };
        let mut span = self.span(own, state, name.to_owned(), period, clock);
        span.parent_span_id = SpanId::from(parent.span_id);
        span
    }

    fn span(
        &self,
        own: TraceContext,
        state: &TraceState,
        name: String,
        period: Period,
        clock: Clock,
    ) -> SpanData {
        SpanData {
            span_context: at(own, state.clone()),
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: name.into(),
            start_time: clock.tell(period.0),
            end_time: clock.tell(period.1),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }

    fn of_run(&self, run: &Run) -> Vec<KeyValue> {
        let device = self.devices.get(run.device).cloned().unwrap_or_default();
        vec![
            KeyValue::new("sconce.batch.rows", whole(run.rows)),
            KeyValue::new("sconce.batch.requests", whole(run.requests)),
            KeyValue::new("sconce.device", device),
            KeyValue::new("sconce.worker", whole(run.worker)),
        ]
    }

    fn span_id(&self) -> u64 {
        u64::from_be_bytes(self.ids.new_span_id().to_bytes())
    }

    /// The span of a batch. A worker runs one batch at a time, so where and when it began names it.
    fn of_batch(&self, run: &Run) -> TraceContext {
        let part = |part: u8| self.batches.hash_one((run.device, run.worker, run.started, part));
        TraceContext { trace_id: u128::from(part(0)) << 64 | u128::from(part(1) | 1), span_id: part(2) | 1 }
    }
}

/// The service and the method of an RPC, by the name that it has in metrics.
fn rpc(method: &'static str) -> (&'static str, &'static str) {
    match method.split_once('/') {
        Some((_, method)) => ("grpc.health.v1.Health", method),
        None if method == "ServerReflectionInfo" => ("grpc.reflection.v1.ServerReflection", method),
        None if method == "other" => (SERVICE, "_OTHER"),
        None => (SERVICE, method),
    }
}

fn at(place: TraceContext, state: TraceState) -> SpanContext {
    let (trace_id, span_id) = (TraceId::from(place.trace_id), SpanId::from(place.span_id));
    SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, false, state)
}

fn link(to: TraceContext) -> Link {
    Link::with_context(at(to, TraceState::NONE))
}

/// Which errors are the server's: those of callers are no errors of a span of kind SERVER, by the
/// conventions.
fn is_servers_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

fn address(ip: IpAddr) -> String {
    ip.to_canonical().to_string()
}

fn whole(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "spans_tests.rs"]
mod tests;
