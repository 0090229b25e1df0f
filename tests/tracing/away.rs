//! Collectors that are away or silent, and servers that end.

use std::collections::BTreeSet;

use tokio::net::TcpListener;

use super::{Collector, echo, ids, repository, start};
use crate::harness::{Repo, Server, sconce};

/// The value of a metric without labels.
fn metric(server: &Server, name: &str) -> u64 {
    let (_, text) = server.get("/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().expect("a number")
}

/// A server with this collector, which gives it little time.
fn hurried(repo: &Repo, url: &str, protocol: &str) -> Server {
    let mut command = sconce();
    command
        .args(["serve", "--grpc-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"])
        .args(["--trace-endpoint", url, "--trace-protocol", protocol, "--model-repository"])
        .arg(repo.path())
        .env("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        .env("OTEL_EXPORTER_OTLP_TIMEOUT", "100")
        .env("OTEL_BSP_SCHEDULE_DELAY", "10");
    let mut server = Server::launch(&mut command);
    let line = server.wait_for("health on http://");
    let address = line.split_once("http://").expect("an address").1;
    server.http = address.split('/').next().expect("a host").to_owned();
    server.wait_for("ready, serving");
    server
}

#[tokio::test]
async fn a_collector_that_is_not_there_or_never_answers_costs_spans_and_nothing_else() {
    let repo = repository();
    // It accepts, reads nothing and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent_url = format!("http://{}", silent.local_addr().expect("an address"));
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let gone_url = format!("http://{}", gone.local_addr().expect("an address"));
    drop(gone);
    for (url, protocol) in
        [(&gone_url, "grpc"), (&gone_url, "http"), (&silent_url, "grpc"), (&silent_url, "http")]
    {
        let mut server = hurried(&repo, url, protocol);
        let mut client = server.client().await;
        for number in 0..50 {
            client.model_infer(echo(&number.to_string())).await.expect("an answer");
        }
        let line = server.wait_for("takes no traces");
        assert!(line.contains(&url["http://".len()..]), "{line}");
        while metric(&server, "sconce_trace_spans_dropped_total") == 0 {
            client.model_infer(echo("more")).await.expect("an answer");
        }
        assert_eq!(metric(&server, "sconce_trace_spans_exported_total"), 0);
        drop(client);
        server.signal("TERM");
        assert!(server.wait().success(), "{}", server.log());
        let log = server.log();
        assert_eq!(log.matches("takes no traces").count(), 1, "{log}");
        assert!(log.contains("have not reached the collector"), "{log}");
    }
}

// The collector has to take them while the test waits for the end of the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_at_the_end_is_sent_before_it() {
    let repo = repository();
    let collector = Collector::grpc().await;
    let mut server = start(&repo, &collector, &[]);
    server.infer(echo("last")).await.expect("an answer");
    server.signal("TERM");
    assert!(server.wait().success());
    let spans = collector.wait_for("ModelInfer", 1).await;
    assert_eq!(ids(&spans), BTreeSet::from(["last"]));
}

#[tokio::test]
async fn no_secret_of_a_collector_is_in_the_log() {
    let repo = repository();
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = gone.local_addr().expect("an address");
    drop(gone);
    for protocol in ["grpc", "http"] {
        for path in ["?token=hunter2", "/x?token=hunter2"] {
            let mut command = sconce();
            command
                .args(["serve", "--grpc-address", "127.0.0.1:0", "--metrics-address", "off"])
                .args(["--log-level", "trace", "--trace-protocol", protocol, "--model-repository"])
                .arg(repo.path())
                .args(["--trace-endpoint", &format!("http://me:hunter2@{address}{path}")])
                .env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2")
                .env("OTEL_TRACES_SAMPLER", "always_off");
            let server = Server::launch(&mut command);
            server.wait_for("OTEL_TRACES_SAMPLER has no effect");
            let line = server.wait_for("takes no traces");
            assert!(line.contains(&format!("collector on {address} takes")), "{line}");
            assert!(!server.log().contains("hunter2"), "{}", server.log());
        }
    }
}
