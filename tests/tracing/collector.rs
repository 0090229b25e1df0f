//! A collector that takes spans over OTLP, by gRPC or by HTTP, from the published protobufs alone.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io::Read,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1 as otlp,
};
use prost::Message;
use tokio::{net::TcpListener, sync::Notify};
use tonic::{Status, transport::server::TcpIncoming};

use crate::harness::PATIENCE;

/// A span as it came, with what was said of who sent it.
#[derive(Clone, Debug)]
pub struct Span {
    pub trace_id: String,
    pub span_id: String,
    /// Empty for a root.
    pub parent: String,
    pub state: String,
    pub name: String,
    pub kind: otlp::span::SpanKind,
    /// Start and end, in nanoseconds.
    pub time: [u64; 2],
    pub attributes: BTreeMap<String, String>,
    /// Traces and spans.
    pub links: Vec<[String; 2]>,
    pub failed: bool,
    pub resource: BTreeMap<String, String>,
}

impl Span {
    pub fn told(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    pub fn is_within(&self, whole: &Self) -> bool {
        whole.time[0] <= self.time[0] && self.time[0] <= self.time[1] && self.time[1] <= whole.time[1]
    }
}

#[derive(Default)]
struct Got {
    spans: Mutex<Vec<Span>>,
    more: Notify,
}

/// A running collector. It ends with the test.
pub struct Collector {
    /// Where it is, as `--trace-endpoint` takes it.
    pub url: String,
    got: Arc<Got>,
}

impl Collector {
    pub async fn grpc() -> Self {
        let (listener, collector) = Self::bind().await;
        let service = TraceServiceServer::from_arc(Arc::clone(&collector.got));
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        collector
    }

    pub async fn http() -> Self {
        let (listener, collector) = Self::bind().await;
        let got = Arc::clone(&collector.got);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let got = Arc::clone(&got);
                let answer = service_fn(move |request| take(Arc::clone(&got), request));
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), answer));
            }
        });
        collector
    }

    async fn bind() -> (TcpListener, Self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        (listener, Self { url, got: Arc::default() })
    }

    /// Waits until what has come is enough, and gives all of it.
    pub async fn wait(&self, enough: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        let waiting = async {
            loop {
                let more = self.got.more.notified();
                let spans = self.got.spans.lock().expect("the spans").clone();
                if enough(&spans) {
                    return spans;
                }
                more.await;
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(spans) => spans,
            Err(_) => panic!("not enough: {:#?}", self.got.spans.lock().expect("the spans")),
        }
    }

    /// Waits for the spans of so many calls of this method, and gives all spans.
    pub async fn wait_for(&self, method: &str, calls: usize) -> Vec<Span> {
        self.wait(|spans| spans.iter().filter(|span| span.told("rpc.method") == method).count() >= calls)
            .await
    }
}

impl Got {
    fn add(&self, request: ExportTraceServiceRequest) {
        let mut spans = self.spans.lock().expect("the spans");
        for resource_spans in request.resource_spans {
            let resource = texts(&resource_spans.resource.expect("a resource").attributes);
            for scope in resource_spans.scope_spans {
                assert_eq!(scope.scope.expect("a scope").name, "sconce");
                spans.extend(scope.spans.into_iter().map(|span| read(span, &resource)));
            }
        }
        drop(spans);
        self.more.notify_waiters();
    }
}

#[tonic::async_trait]
impl TraceService for Got {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, Status> {
        self.add(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn take(got: Arc<Got>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.uri().path(), "/v1/traces");
    assert_eq!(request.headers()["content-type"], "application/x-protobuf");
    let packed = request.headers().get("content-encoding").is_some_and(|encoding| encoding == "gzip");
    let mut body = request.into_body().collect().await.expect("a body").to_bytes();
    if packed {
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&*body).read_to_end(&mut unpacked).expect("gzip");
        body = unpacked.into();
    }
    got.add(ExportTraceServiceRequest::decode(body).expect("spans"));
    let answer = ExportTraceServiceResponse::default().encode_to_vec();
    Ok(Response::new(Full::new(answer.into())))
}

fn read(span: otlp::Span, resource: &BTreeMap<String, String>) -> Span {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Span {
        trace_id: hex(&span.trace_id),
        span_id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        state: span.trace_state.clone(),
        kind: span.kind(),
        name: span.name,
        time: [span.start_time_unix_nano, span.end_time_unix_nano],
        attributes: texts(&span.attributes),
        links: span.links.iter().map(|link| [hex(&link.trace_id), hex(&link.span_id)]).collect(),
        failed: span.status.is_some_and(|status| status.code() == otlp::status::StatusCode::Error),
        resource: resource.clone(),
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(is)) => is.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), text(&attribute.value))).collect()
}
