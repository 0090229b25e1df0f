//! Health, over gRPC and over HTTP.

use std::future::Future;

use sconce_proto::health::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::harness::{PATIENCE, Repo, Server, refused};

/// `good` serves, `broken` cannot.
fn repository() -> Repo {
    let repo = Repo::new();
    repo.identity("good/1/model.pt");
    repo.file("broken/1/model.pt", "this is no model");
    repo
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it never came")
}

async fn client(server: &Server) -> HealthClient<Channel> {
    HealthClient::new(server.channel().await)
}

async fn check(client: &mut HealthClient<Channel>, service: &str) -> Result<ServingStatus, Status> {
    let answer = client.check(HealthCheckRequest { service: service.to_owned() }).await?;
    Ok(answer.into_inner().status())
}

async fn watch(client: &mut HealthClient<Channel>, service: &str) -> Streaming<HealthCheckResponse> {
    let request = HealthCheckRequest { service: service.to_owned() };
    soon(client.watch(request)).await.expect("a stream").into_inner()
}

async fn next(stream: &mut Streaming<HealthCheckResponse>) -> Option<ServingStatus> {
    soon(stream.message()).await.expect("a state").map(|answer| answer.status())
}

#[tokio::test]
async fn check_answers_for_the_server_the_service_and_each_model() {
    let repo = repository();
    let server = Server::start(repo.path());
    let mut client = client(&server).await;
    for service in ["", "inference.GRPCInferenceService", "good"] {
        assert_eq!(
            check(&mut client, service).await.expect("an answer"),
            ServingStatus::Serving,
            "{service:?}"
        );
    }
    assert_eq!(check(&mut client, "broken").await.expect("an answer"), ServingStatus::NotServing);
    for service in ["nobody", "Good", "good/1", "line\nbreak"] {
        refused(check(&mut client, service).await, Code::NotFound, &["no model and no service is named"]);
    }
    refused(check(&mut client, &"n".repeat(100_000)).await, Code::NotFound, &["nnn..."]);
}

#[tokio::test]
async fn watch_tells_the_state_of_any_name_at_once() {
    let repo = repository();
    let server = Server::start(repo.path());
    let mut client = client(&server).await;
    let states = [
        ("", ServingStatus::Serving),
        ("inference.GRPCInferenceService", ServingStatus::Serving),
        ("good", ServingStatus::Serving),
        ("broken", ServingStatus::NotServing),
        ("nobody", ServingStatus::ServiceUnknown),
    ];
    for (service, state) in states {
        let mut stream = watch(&mut client, service).await;
        assert_eq!(next(&mut stream).await, Some(state), "{service:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_says_not_serving_and_ends_when_the_server_drains() {
    let repo = repository();
    let mut server = Server::start(repo.path());
    let mut client = client(&server).await;
    let mut streams = Vec::new();
    for service in ["", "good", "broken", "nobody"] {
        let mut stream = watch(&mut client, service).await;
        let first = next(&mut stream).await.expect("a state");
        streams.push((stream, first));
    }
    server.signal("TERM");
    for (mut stream, first) in streams {
        if first == ServingStatus::Serving {
            assert_eq!(next(&mut stream).await, Some(ServingStatus::NotServing));
        }
        assert_eq!(next(&mut stream).await, None, "nothing more, and no error");
    }
    assert!(server.wait().success());
    server.wait_for("drained");
}

#[tokio::test]
async fn draining_is_seen_by_every_probe_while_calls_are_still_answered() {
    let repo = repository();
    let server = Server::start_with(repo.path(), &["--drain-delay", "10m"]);
    let mut client = client(&server).await;
    let mut stream = watch(&mut client, "").await;
    assert_eq!(next(&mut stream).await, Some(ServingStatus::Serving));
    server.signal("TERM");
    assert_eq!(next(&mut stream).await, Some(ServingStatus::NotServing));
    for service in ["", "inference.GRPCInferenceService", "good"] {
        assert_eq!(check(&mut client, service).await.expect("an answer"), ServingStatus::NotServing);
    }
    let mut late = watch(&mut client, "good").await;
    assert_eq!(next(&mut late).await, Some(ServingStatus::NotServing), "also who comes late is told");
    let (status, text) = server.get("/health/ready");
    assert_eq!((status, text.trim()), (503, "not ready: shutting down"));
    assert_eq!(server.get("/health/live").0, 200);
    let mut inference = server.client().await;
    let sent = crate::harness::request("good", &[("x", "FP32", &[1], crate::harness::fp32(&[1.0]))]);
    inference.model_infer(sent).await.expect("who does not know yet is answered");
    let ready = sconce_proto::inference::ServerReadyRequest {};
    assert!(!inference.server_ready(ready).await.expect("an answer").into_inner().ready);
}

#[tokio::test]
async fn a_watch_ends_with_the_server_and_does_not_hold_it() {
    let repo = repository();
    let mut server = Server::start_with(repo.path(), &["--drain-timeout", "10m"]);
    let mut client = client(&server).await;
    let mut stream = watch(&mut client, "good").await;
    assert_eq!(next(&mut stream).await, Some(ServingStatus::Serving));
    server.signal("TERM");
    assert_eq!(next(&mut stream).await, Some(ServingStatus::NotServing));
    assert_eq!(next(&mut stream).await, None);
    assert!(server.wait().success(), "{}", server.log());
}

#[test]
fn probes_over_http_are_answered() {
    let repo = repository();
    let server = Server::start(repo.path());
    assert_eq!(server.get("/health/live"), (200, "live\n".to_owned()));
    assert_eq!(server.get("/health/ready"), (200, "ready\n".to_owned()), "a broken model is no reason");
    for path in ["/", "/health", "/health/", "/health/live/", "/metrics/nothing", "/%00", "/../etc/passwd"] {
        let (status, text) = server.get(path);
        assert_eq!(status, 404, "{path}");
        assert!(text.contains("/health/ready"), "{path}: {text}");
    }
    assert_eq!(server.get("/health/ready?verbose").0, 200);
}

#[test]
fn whoever_is_connected_and_asks_nothing_shuts_out_nobody() {
    let repo = repository();
    let server = Server::start(repo.path());
    let connect = || std::net::TcpStream::connect(&server.http).expect("a connection");
    let idle: Vec<_> = (0..100).map(|_| connect()).collect();
    for _ in 0..3 {
        assert_eq!(server.get("/health/live"), (200, "live\n".to_owned()));
    }
    drop(idle);
}

#[test]
fn an_idle_probe_connection_holds_no_shutdown() {
    let repo = repository();
    let mut server = Server::start(repo.path());
    let _idle = std::net::TcpStream::connect(&server.http).expect("a connection");
    server.signal("TERM");
    assert!(server.wait().success());
}

#[tokio::test]
async fn an_empty_repository_is_ready_and_has_no_models() {
    let repo = Repo::new();
    let server = Server::start(repo.path());
    let mut client = client(&server).await;
    assert_eq!(check(&mut client, "").await.expect("an answer"), ServingStatus::Serving);
    refused(check(&mut client, "good").await, Code::NotFound, &["'good'"]);
    assert_eq!(server.get("/health/ready").0, 200);
}
