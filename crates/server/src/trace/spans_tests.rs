//! What spans are made of what was noted.

use std::time::{Duration, Instant};

use http::HeaderValue;
use opentelemetry::trace::TraceState;
use proptest::prelude::*;
use sconce_engine::{
    observe::{BatchRun, LoadRun},
    table::Step,
};

use super::*;
use crate::trace::notes::LINKS;

fn run(start: Instant, stages: [u64; 5]) -> Run {
    let at = |stage: usize| start + Duration::from_micros(stages[stage]);
    Run {
        arrived: at(0),
        started: at(1),
        gathered: at(2),
        ran: at(3),
        scattered: at(4),
        requests: 2,
        rows: 7,
        device: 0,
        worker: 1,
    }
}

fn record(started: Instant, took: u64, run: Option<Run>) -> Record {
    let at = TraceContext { trace_id: 0xabc, span_id: 0xdef };
    Record {
        message_of_stream: false,
        reason: None,
        traceparent: None,
        method: "ModelInfer",
        started,
        received: Some(started),
        ended: started + Duration::from_micros(took),
        peer: Some("[::ffff:10.1.2.3]:4567".parse().expect("an address")),
        model: "m".to_owned(),
        version: Version::new(3),
        id: "id 1".to_owned(),
        code: Code::Ok,
        message: String::new(),
        run,
        request_bytes: 12,
        response_bytes: 34,
        responses: 1,
        trace: Some(at),
        parent: Some(TraceContext { trace_id: 0xabc, span_id: 0x123 }),
        tracestate: Some(HeaderValue::from_static("a=b")),
    }
}

fn written(writer: &Writer, item: &Item) -> Vec<SpanData> {
    let mut spans = Vec::new();
    writer.write(item, Clock::now(), &mut spans);
    assert_eq!(spans.len(), item.spans());
    spans
}

fn writer(triton: bool) -> Writer {
    Writer::new(Some("127.0.0.1:8001".parse().expect("an address")), vec!["cpu".to_owned()], triton)
}

fn told(span: &SpanData, name: &str) -> Option<String> {
    let attribute = span.attributes.iter().find(|attribute| attribute.key.as_str() == name);
    attribute.map(|attribute| attribute.value.to_string())
}

#[test]
fn a_call_is_a_span_of_its_caller_with_the_stages_of_its_run() {
    let writer = writer(false);
    let start = Instant::now();
    let run = run(start, [10, 20, 30, 40, 50]);
    let spans = written(&writer, &Item::rpc(&record(start, 100, Some(run))));
    let rpc = &spans[0];
    assert_eq!(rpc.name, "inference.GRPCInferenceService/ModelInfer");
    assert_eq!(rpc.span_kind, SpanKind::Server);
    assert_eq!(rpc.parent_span_id, SpanId::from(0x123));
    assert!(rpc.parent_span_is_remote);
    assert_eq!(rpc.span_context.trace_state().header(), "a=b");
    assert_eq!(rpc.status, Status::Unset);
    for (name, expected) in [
        ("rpc.system", "grpc"),
        ("rpc.service", "inference.GRPCInferenceService"),
        ("rpc.method", "ModelInfer"),
        ("rpc.grpc.status_code", "0"),
        ("server.address", "127.0.0.1"),
        ("server.port", "8001"),
        ("client.address", "10.1.2.3"),
        ("client.port", "4567"),
        ("sconce.model.name", "m"),
        ("sconce.model.version", "3"),
        ("sconce.request.id", "id 1"),
        ("sconce.request.bytes", "12"),
        ("sconce.response.bytes", "34"),
    ] {
        assert_eq!(told(rpc, name).as_deref(), Some(expected), "{name}");
    }
    assert!(rpc.attributes.iter().all(|attribute| !attribute.key.as_str().starts_with("triton.")));
    let names: Vec<_> = spans[1..].iter().map(|span| &*span.name).collect();
    assert_eq!(names, ["queue", "gather", "forward", "scatter"]);
    for child in &spans[1..] {
        assert_eq!(child.parent_span_id, rpc.span_context.span_id());
        assert_eq!(child.span_context.trace_id(), rpc.span_context.trace_id());
    }
    assert_eq!(told(&spans[3], "sconce.batch.rows").as_deref(), Some("7"));
    assert_eq!(told(&spans[3], "sconce.device").as_deref(), Some("cpu"));
    assert_eq!(rpc.events[0].name, "received");
    // Its batch is linked to it, and it to its batch.
    let version = Version::new(3).expect("a version");
    let traced = [record(start, 100, None).trace.expect("a span")];
    let batch = BatchRun { model: "m", version, run, traced: &traced, failed: false };
    let batch = written(&writer, &Item::batch(&batch));
    assert_eq!(batch[0].links[0].span_context.span_id(), rpc.span_context.span_id());
    assert_eq!(spans[3].links[0].span_context.span_id(), batch[0].span_context.span_id());
    assert_eq!(spans[3].links[0].span_context.trace_id(), batch[0].span_context.trace_id());
    assert_eq!(batch[0].parent_span_id, SpanId::INVALID);
    assert!(batch[1..].iter().all(|child| child.parent_span_id == batch[0].span_context.span_id()));
}

#[test]
fn errors_of_the_server_are_errors_of_the_span_and_those_of_callers_are_told() {
    let cases = [
        (Code::Internal, "INTERNAL", true),
        (Code::DeadlineExceeded, "DEADLINE_EXCEEDED", true),
        (Code::NotFound, "NOT_FOUND", false),
    ];
    for (code, name, is_error) in cases {
        let mut record = record(Instant::now(), 10, None);
        (record.code, record.message) = (code, "what\nwas".to_owned());
        let spans = written(&writer(false), &Item::rpc(&record));
        assert_eq!(matches!(spans[0].status, Status::Error { .. }), is_error, "{code:?}");
        assert_eq!(told(&spans[0], "error.type").as_deref(), Some(name));
        assert_eq!(told(&spans[0], "error.message").as_deref(), Some("what\nwas"));
    }
}

#[test]
fn tritons_names_come_on_top_if_asked_for() {
    let spans = written(&writer(true), &Item::rpc(&record(Instant::now(), 10, None)));
    for (name, expected) in
        [("triton.model_name", "m"), ("triton.model_version", "3"), ("triton.request_id", "id 1")]
    {
        assert_eq!(told(&spans[0], name).as_deref(), Some(expected));
    }
    assert_eq!(told(&spans[0], "sconce.model.name").as_deref(), Some("m"));
}

#[test]
fn texts_and_links_have_bounds() {
    let mut long = record(Instant::now(), 10, None);
    (long.id, long.message) = ("ä".repeat(10_000), "m".repeat(10_000));
    let Item::Rpc(kept) = Item::rpc(&long) else { panic!("a call") };
    assert!(kept.id.len() < 600 && kept.message.len() < 600);
    let traced = vec![TraceContext { trace_id: 1, span_id: 1 }; LINKS + 5];
    let run = run(Instant::now(), [0; 5]);
    let version = Version::new(1).expect("a version");
    let batch = BatchRun { model: "m", version, run, traced: &traced, failed: true };
    let spans = written(&writer(false), &Item::batch(&batch));
    assert_eq!((spans[0].links.len(), spans[0].links.dropped_count), (LINKS, 5));
    assert!(matches!(spans[0].status, Status::Error { .. }));
}

#[test]
fn a_load_is_a_span_with_its_steps() {
    let started = Instant::now();
    let end = started + Duration::from_nanos(1);
    let steps = [(Step::Verify, started, end), (Step::Load, end, end)];
    let version = Version::new(2).expect("a version");
    let load = LoadRun {
        model: "m",
        version,
        started,
        steps: &steps,
        outcome: "failed",
        reason: Some("it is broken"),
    };
    let spans = written(&writer(false), &Item::load(&load));
    let names: Vec<_> = spans.iter().map(|span| &*span.name).collect();
    assert_eq!(names, ["load m", "verify", "load"]);
    assert_eq!(told(&spans[0], "sconce.load.outcome").as_deref(), Some("failed"));
    assert_eq!(spans[0].status, Status::error("it is broken"));
    assert!(spans[1..].iter().all(|step| step.parent_span_id == spans[0].span_context.span_id()));
    assert!(spans.iter().all(|span| span.span_context.trace_state() == &TraceState::NONE));
}

proptest! {
    #[test]
    fn whatever_the_times_parts_are_within_their_whole(stages: [u16; 5], took: u16) {
        let start = Instant::now();
        let run = run(start, stages.map(u64::from));
        let spans = written(&writer(false), &Item::rpc(&record(start, took.into(), Some(run))));
        for span in &spans {
            prop_assert!(span.start_time <= span.end_time);
            prop_assert!(spans[0].start_time <= span.start_time && span.end_time <= spans[0].end_time);
        }
    }
}
