//! Traces: what reaches a collector over OTLP, and of which requests.

use std::{collections::BTreeSet, str::FromStr};

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use sconce_proto::inference::{ModelInferRequest, ServerLiveRequest};
use tonic::{Code, Request, metadata::AsciiMetadataValue};

use self::collector::{Collector, Span};
use crate::harness::{Repo, Server, fp32, refused, request, sconce, stderr};

mod away;
mod collector;
mod settings;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const INFER: &str = "inference.GRPCInferenceService/ModelInfer";

/// Requests wait until there are two.
const PAIRS: &str = "\
max_batch_size: 2
inputs: [{name: x, dtype: FP32, shape: [1]}]
batching: {max_delay: 60s, preferred_sizes: [2]}
warmup: off
";

fn repository() -> Repo {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    repo
}

fn echo(id: &str) -> ModelInferRequest {
    let mut request = request("echo", &[("x", "FP32", &[1, 1], fp32(&[1.0]))]);
    request.id = id.to_owned();
    request
}

/// With metadata.
fn with<T>(message: T, metadata: &[(&'static str, &str)]) -> Request<T> {
    let mut request = Request::new(message);
    for (name, value) in metadata {
        let value = AsciiMetadataValue::from_str(value).expect("a value");
        request.metadata_mut().append(*name, value);
    }
    request
}

/// Of a caller who traces, or of one who has decided not to.
fn traced<T>(message: T, sampled: bool) -> Request<T> {
    let flags = if sampled { "01" } else { "00" };
    with(message, &[("traceparent", &format!("00-{TRACE}-{CALLER}-{flags}"))])
}

fn find<'s>(spans: &'s [Span], name: &str) -> Vec<&'s Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

/// The ids that requests whose spans came had.
fn ids(spans: &[Span]) -> BTreeSet<&str> {
    find(spans, INFER).iter().map(|span| span.told("sconce.request.id")).collect()
}

/// A server that sends its traces there.
fn start(repo: &Repo, collector: &Collector, arguments: &[&str]) -> Server {
    let endpoint = ["--trace-endpoint", &collector.url];
    Server::start_with(repo.path(), &[&endpoint[..], arguments].concat())
}

#[tokio::test]
async fn a_request_is_traced_from_its_caller_to_its_batch_over_both_protocols() {
    let repo = repository();
    for protocol in ["grpc", "http"] {
        let collector = if protocol == "grpc" { Collector::grpc().await } else { Collector::http().await };
        let server = start(&repo, &collector, &["--trace-protocol", protocol]);
        let mut client = server.client().await;
        let state = ("tracestate", "rojo=00f0,congo=t61");
        let parent = format!("00-{TRACE}-{CALLER}-01");
        let call = with(echo("one"), &[("traceparent", &parent), state]);
        client.model_infer(call).await.expect("an answer");
        let spans =
            collector.wait(|spans| !find(spans, "batch").is_empty() && !find(spans, INFER).is_empty()).await;
        let rpc = find(&spans, INFER)[0];
        assert_eq!([&rpc.trace_id, &rpc.parent, &rpc.state], [TRACE, CALLER, "rojo=00f0,congo=t61"]);
        assert_eq!(rpc.kind, SpanKind::Server);
        assert!(!rpc.failed);
        let port = server.grpc.rsplit(':').next().expect("a port");
        for (name, expected) in [
            ("rpc.system", "grpc"),
            ("rpc.service", "inference.GRPCInferenceService"),
            ("rpc.method", "ModelInfer"),
            ("rpc.grpc.status_code", "0"),
            ("server.address", "127.0.0.1"),
            ("server.port", port),
            ("client.address", "127.0.0.1"),
            ("sconce.model.name", "echo"),
            ("sconce.model.version", "1"),
            ("sconce.request.id", "one"),
            ("sconce.responses", "1"),
        ] {
            assert_eq!(rpc.told(name), expected, "{name}: {:?}", rpc.attributes);
        }
        assert!(rpc.told("sconce.request.bytes").parse::<u64>().expect("a number") > 4);
        assert!(rpc.told("sconce.response.bytes").parse::<u64>().expect("a number") > 4);
        assert_eq!(rpc.resource["service.name"], "sconce");
        assert_eq!(rpc.resource["service.version"], env!("CARGO_PKG_VERSION"));
        let batch = find(&spans, "batch")[0];
        has_stages(&spans, rpc, &["queue", "gather", "forward", "scatter"]);
        has_stages(&spans, batch, &["gather", "forward", "scatter"]);
        assert_eq!(batch.parent, "");
        assert_ne!(batch.trace_id, TRACE);
        assert_eq!(batch.links, [[TRACE.to_owned(), rpc.span_id.clone()]]);
        assert_eq!([batch.told("sconce.batch.rows"), batch.told("sconce.device")], ["1", "cpu"]);
        let forward = spans.iter().find(|span| span.parent == rpc.span_id && span.name == "forward");
        let to_batch = [[batch.trace_id.clone(), batch.span_id.clone()]];
        assert_eq!(forward.expect("a stage").links, to_batch);
    }
}

/// The children of a span are these, one after the other within it.
fn has_stages(spans: &[Span], whole: &Span, names: &[&str]) {
    let mut stages: Vec<_> = spans.iter().filter(|span| span.parent == whole.span_id).collect();
    stages.sort_by_key(|stage| stage.time);
    let order = |name: &str| names.iter().position(|one| *one == name);
    stages.sort_by_key(|stage| order(&stage.name));
    assert_eq!(stages.iter().map(|stage| &*stage.name).collect::<Vec<_>>(), names);
    for stage in &stages {
        assert!(stage.is_within(whole), "{stage:?} is not within {whole:?}");
        assert_eq!(stage.trace_id, whole.trace_id);
        assert_eq!(stage.kind, SpanKind::Internal);
    }
    assert!(stages.windows(2).all(|two| two[0].time[1] <= two[1].time[0]), "{stages:?}");
}

#[tokio::test]
async fn a_batch_is_linked_to_every_request_in_it_that_is_traced() {
    let repo = repository();
    repo.file("echo/config.yaml", PAIRS);
    let collector = Collector::grpc().await;
    let server = start(&repo, &collector, &["--trace-ratio", "0", "--trace-triton-attributes"]);
    for (seconds, linked) in [(true, 2), (false, 1)] {
        let [mut one, mut other] = [server.client().await, server.client().await];
        let calls = tokio::join!(
            one.model_infer(traced(echo("a"), true)),
            other.model_infer(traced(echo("b"), seconds)),
        );
        calls.0.and(calls.1).expect("answers");
        let spans = collector
            .wait(|spans| find(spans, "batch").iter().any(|batch| batch.links.len() == linked))
            .await;
        let batch = find(&spans, "batch").into_iter().find(|batch| batch.links.len() == linked);
        let batch = batch.expect("a batch");
        assert_eq!([batch.told("sconce.batch.rows"), batch.told("sconce.batch.requests")], ["2", "2"]);
        assert_eq!(batch.told("triton.model_name"), "echo");
        let spans = collector
            .wait(|spans| batch.links.iter().all(|link| spans.iter().any(|span| span.span_id == link[1])))
            .await;
        for link in &batch.links {
            let rpc = spans.iter().find(|span| span.span_id == link[1]).expect("a request");
            assert_eq!([&*rpc.name, &rpc.trace_id], [INFER, TRACE]);
            assert_eq!(rpc.told("triton.request_id"), rpc.told("sconce.request.id"));
            assert_eq!([rpc.told("triton.model_name"), rpc.told("triton.model_version")], ["echo", "1"]);
        }
    }
}

#[tokio::test]
async fn what_the_caller_has_decided_holds_and_else_the_ratio() {
    let repo = repository();
    let cases = [("0", &["parent"][..]), ("1", &["parent", "nobody", "broken"])];
    for (ratio, expected) in cases {
        let collector = Collector::grpc().await;
        let server = start(&repo, &collector, &["--trace-ratio", ratio]);
        let mut client = server.client().await;
        client.model_infer(traced(echo("unsampled"), false)).await.expect("an answer");
        client.model_infer(echo("nobody")).await.expect("an answer");
        let broken = with(echo("broken"), &[("traceparent", "00-what-ever-01")]);
        client.model_infer(broken).await.expect("an answer");
        // Those that look whether a server is there are traced for who traces them only.
        client.server_live(ServerLiveRequest {}).await.expect("an answer");
        client.model_infer(traced(echo("parent"), true)).await.expect("an answer");
        let spans = collector.wait_for("ModelInfer", expected.len()).await;
        assert_eq!(ids(&spans), expected.iter().copied().collect(), "ratio {ratio}");
        assert!(find(&spans, "inference.GRPCInferenceService/ServerLive").is_empty());
        client.server_live(traced(ServerLiveRequest {}, true)).await.expect("an answer");
        let spans = collector.wait_for("ServerLive", 1).await;
        let live = find(&spans, "inference.GRPCInferenceService/ServerLive");
        assert_eq!([&live[0].trace_id, &live[0].parent], [TRACE, CALLER]);
    }
}

#[tokio::test]
async fn messages_of_a_stream_are_traced_each_and_what_fails_says_why() {
    let repo = repository();
    let collector = Collector::grpc().await;
    let server = start(&repo, &collector, &[]);
    let mut client = server.client().await;
    let messages = tokio_stream::iter([echo("s1"), echo("s2")]);
    let mut answers = client.model_stream_infer(traced(messages, true)).await.expect("a stream").into_inner();
    while answers.message().await.expect("an answer").is_some() {}
    let spans = collector.wait_for("ModelStreamInfer", 2).await;
    let streamed = find(&spans, "inference.GRPCInferenceService/ModelStreamInfer");
    let ids: BTreeSet<_> = streamed.iter().map(|span| span.told("sconce.request.id")).collect();
    assert_eq!(ids, BTreeSet::from(["s1", "s2"]));
    assert!(streamed.iter().all(|span| span.trace_id == TRACE && span.parent == CALLER));

    let wrong = request("echo", &[("y", "FP32", &[1], fp32(&[1.0]))]);
    refused(client.model_infer(wrong).await, Code::InvalidArgument, &["y"]);
    let nobody = request("nobody", &[("x", "FP32", &[1], fp32(&[1.0]))]);
    refused(client.model_infer(nobody).await, Code::NotFound, &["nobody"]);
    let spans = collector.wait_for("ModelInfer", 2).await;
    let told: BTreeSet<_> = find(&spans, INFER)
        .iter()
        .map(|span| (span.told("sconce.model.name"), span.told("rpc.grpc.status_code")))
        .collect();
    assert_eq!(told, BTreeSet::from([("echo", "3"), ("nobody", "5")]));
    for span in find(&spans, INFER) {
        // The callers' mistakes.
        assert!(!span.failed);
        assert_ne!(span.told("error.type"), "");
        assert_ne!(span.told("error.message"), "");
        assert!(spans.iter().all(|other| other.parent != span.span_id));
    }
}

#[tokio::test]
async fn every_load_is_traced_with_its_steps() {
    let repo = repository();
    repo.file("broken/1/model.pt", "this is no model");
    let collector = Collector::http().await;
    let _server = start(&repo, &collector, &["--trace-protocol", "http"]);
    let spans = collector
        .wait(|spans| !find(spans, "load echo").is_empty() && !find(spans, "load broken").is_empty())
        .await;
    let load = find(&spans, "load echo")[0];
    assert_eq!(load.parent, "");
    assert_eq!([load.told("sconce.model.name"), load.told("sconce.load.outcome")], ["echo", "loaded"]);
    has_stages(&spans, load, &["verify", "load", "warm"]);
    let broken = find(&spans, "load broken")[0];
    assert!(broken.failed);
    assert_eq!(broken.told("sconce.load.outcome"), "failed");
}

#[tokio::test]
async fn the_environment_of_opentelemetry_is_taken_where_no_flag_says_otherwise() {
    let repo = repository();
    let collector = Collector::http().await;
    let mut command = sconce();
    command
        .args(["serve", "--grpc-address", "127.0.0.1:0", "--metrics-address", "off"])
        .arg("--model-repository")
        .arg(repo.path())
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url)
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        .env("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        .env("OTEL_SERVICE_NAME", "left bracket")
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test,host.name=here,service.name=another");
    let server = Server::launch(&mut command);
    server.wait_for("ready, serving");
    server.infer(echo("one")).await.expect("an answer");
    let spans = collector.wait_for("ModelInfer", 1).await;
    let resource = &find(&spans, INFER)[0].resource;
    for (name, expected) in
        [("service.name", "left bracket"), ("deployment.environment", "test"), ("host.name", "here")]
    {
        assert_eq!(resource[name], expected);
    }
}

#[test]
fn what_means_nothing_in_the_environment_is_told_in_one_line() {
    let repo = repository();
    let ends = |name: &str, value: &std::ffi::OsStr| {
        let mut command = sconce();
        command
            .args(["serve", "--grpc-address", "127.0.0.1:0", "--metrics-address", "off"])
            .args(["--trace-endpoint", "http://127.0.0.1:1", "--log-level", "error", "--model-repository"])
            .arg(repo.path())
            .env(name, value);
        let output = command.output().expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{name}={value:?}");
        let text = stderr(&output);
        assert!(text.starts_with(&format!("error: {name}")) && text.lines().count() == 1, "{text}");
        text
    };
    let text = ends("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli".as_ref());
    assert!(text.contains("gzip or none is expected"), "{text}");
    ends("OTEL_EXPORTER_OTLP_TIMEOUT", std::os::unix::ffi::OsStrExt::from_bytes(b"\xff1"));
}
