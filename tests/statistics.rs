//! What is counted: ModelStatistics, the metrics under Triton's names, and calls that no model ever saw.

use sconce_proto::inference::{
    ModelInferRequest, ModelStatistics, ModelStatisticsRequest, StatisticDuration,
};
use tonic::Code;

use crate::{
    harness::{PATIENCE, Repo, Server, fp32, refused, request},
    raw::{Raw, framed},
};

const BATCHED: &str = "\
max_batch_size: 4
inputs: [{name: x, dtype: FP32, shape: [-1]}]
outputs: [{name: OUTPUT__0, dtype: FP32, shape: [-1]}]
warmup: off
";

fn repository() -> Repo {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    repo.identity("echo/2/model.pt");
    repo.file("echo/config.yaml", format!("{BATCHED}versions: all\n"));
    repo.identity("other/7/model.pt");
    repo
}

fn rows(rows: i64) -> ModelInferRequest {
    let count = usize::try_from(rows).expect("not negative");
    request("echo", &[("x", "FP32", &[rows, 3], fp32(&vec![1.0; count * 3]))])
}

async fn statistics(
    server: &Server,
    name: &str,
    version: &str,
) -> Result<Vec<ModelStatistics>, tonic::Status> {
    let request = ModelStatisticsRequest { name: name.to_owned(), version: version.to_owned() };
    let answer = server.client().await.model_statistics(request).await?;
    Ok(answer.into_inner().model_stats)
}

/// A count that took some time.
#[track_caller]
fn took(duration: &Option<StatisticDuration>, count: u64) {
    let duration = duration.as_ref().expect("a duration");
    assert_eq!(duration.count, count);
    assert_eq!(duration.ns > 0, count > 0, "{duration:?}");
}

/// The value of a metric with all these labels.
pub fn metric(text: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let found = text.lines().find(|line| {
        let rest = line.strip_prefix(name);
        let has = |(label, value): &(&str, &str)| line.contains(&format!("{label}=\"{value}\""));
        rest.is_some_and(|rest| rest.starts_with(['{', ' '])) && labels.iter().all(has)
    });
    found.map(|line| line.rsplit(' ').next().expect("a word").parse().expect("a number"))
}

#[tokio::test]
async fn statistics_count_what_was_asked_of_each_version() {
    let repo = repository();
    let server = Server::start(repo.path());
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    for count in [2, 2, 3] {
        server.infer(rows(count)).await.expect("an answer");
    }
    for wrong in [rows(5), request("echo", &[("y", "FP32", &[1, 1], fp32(&[1.0]))])] {
        refused(server.infer(wrong).await, Code::InvalidArgument, &[]);
    }
    let of_echo = statistics(&server, "echo", "2").await.expect("statistics");
    let [two] = &of_echo[..] else { panic!("{of_echo:?}") };
    assert_eq!((&*two.name, &*two.version), ("echo", "2"));
    assert_eq!((two.inference_count, two.execution_count), (7, 3));
    assert!(u128::from(two.last_inference) >= before.as_millis());
    let stats = two.inference_stats.as_ref().expect("statistics");
    took(&stats.success, 3);
    took(&stats.fail, 2);
    took(&stats.compute_infer, 3);
    for stage in [&stats.queue, &stats.compute_input, &stats.compute_output] {
        assert_eq!(stage.as_ref().map(|stage| stage.count), Some(3));
    }
    let sizes: Vec<(u64, u64)> = two
        .batch_stats
        .iter()
        .map(|batch| (batch.batch_size, batch.compute_infer.as_ref().map_or(0, |infer| infer.count)))
        .collect();
    assert_eq!(sizes, [(2, 2), (3, 1)]);
    assert!(two.response_stats.is_empty());
    // The other version has seen nothing.
    let one = &statistics(&server, "echo", "1").await.expect("statistics")[0];
    assert_eq!((one.inference_count, one.execution_count, one.last_inference), (0, 0, 0));
}

#[tokio::test]
async fn statistics_are_of_all_versions_of_a_model_or_of_all_models() {
    let repo = repository();
    let server = Server::start(repo.path());
    let names = async |name: &str, version: &str| {
        let all = statistics(&server, name, version).await.expect("statistics");
        all.into_iter().map(|model| (model.name, model.version)).collect::<Vec<_>>()
    };
    let pair = |name: &str, version: &str| (name.to_owned(), version.to_owned());
    assert_eq!(names("echo", "").await, [pair("echo", "1"), pair("echo", "2")]);
    assert_eq!(names("other", "7").await, [pair("other", "7")]);
    assert_eq!(names("", "").await, [pair("echo", "1"), pair("echo", "2"), pair("other", "7")]);
    refused(
        statistics(&server, "nobody", "").await,
        Code::NotFound,
        &["Request for unknown model: 'nobody'"],
    );
    refused(statistics(&server, "echo", "3").await, Code::NotFound, &["'echo' version 3 is not found"]);
    refused(statistics(&server, "echo", "last").await, Code::InvalidArgument, &["version"]);
}

#[tokio::test]
async fn metrics_and_statistics_are_the_same_numbers_also_under_tritons_names() {
    let repo = repository();
    let server = Server::start_with(repo.path(), &["--metrics-triton-names", "--metrics-buckets", "1ms,2s"]);
    for _ in 0..5 {
        server.infer(rows(2)).await.expect("an answer");
    }
    refused(server.infer(rows(5)).await, Code::InvalidArgument, &[]);
    let (_, text) = server.get("/metrics");
    let two = [("model", "echo"), ("version", "2")];
    let of = |name: &str, more: &[(&str, &str)]| metric(&text, name, &[&two[..], more].concat());
    for (name, labels, value) in [
        ("sconce_requests_total", &[("code", "OK"), ("reason", "ok")][..], 5.0),
        ("sconce_requests_total", &[("code", "INVALID_ARGUMENT"), ("reason", "invalid_input")], 1.0),
        ("sconce_request_duration_seconds_count", &[], 6.0),
        ("sconce_request_duration_seconds_bucket", &[("le", "+Inf")], 6.0),
        ("sconce_queue_duration_seconds_count", &[], 5.0),
        ("sconce_batch_rows_sum", &[], 10.0),
        ("sconce_response_bytes_total", &[], 120.0),
        ("nv_inference_request_success", &[], 5.0),
        ("nv_inference_request_failure", &[("reason", "OTHER")], 1.0),
        ("nv_inference_request_failure", &[("reason", "BACKEND")], 0.0),
        ("nv_inference_count", &[], 10.0),
        ("nv_inference_exec_count", &[], 5.0),
        ("nv_inference_pending_request_count", &[], 0.0),
    ] {
        assert_eq!(of(name, labels), Some(value), "{name} {labels:?}\n{text}");
    }
    let bounds: Vec<&str> = text
        .lines()
        .filter_map(|line| {
            line.strip_prefix("sconce_queue_duration_seconds_bucket{model=\"echo\",version=\"2\",le=\"")
        })
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert_eq!(bounds, ["0.001", "2", "+Inf"]);
    let stats = &statistics(&server, "echo", "2").await.expect("statistics")[0];
    let success = stats.inference_stats.as_ref().and_then(|all| all.success).expect("statistics");
    let micros = of("nv_inference_request_duration_us", &[]).expect("a metric");
    assert_eq!(micros as u64, success.ns / 1000);
    // Without the flag there are none of Triton's.
    let plain = Server::start(repo.path());
    assert!(!plain.get("/metrics").1.contains("nv_"));
}

#[tokio::test]
async fn calls_are_counted_that_no_model_ever_saw() {
    let repo = repository();
    let server = Server::start_with(repo.path(), &["--max-message-size", "1KiB"]);
    let connection = Raw::connect(&server).await;
    for body in [framed(&[0xff; 40]), framed(&[0; 2000]), vec![9; 5]] {
        connection.send("ModelInfer", &[], body).await;
    }
    for path in ["Invented", "/a.b.C/D"] {
        let answer = connection.send(path, &[], framed(&[])).await;
        assert_eq!(answer.status().code(), Code::Unimplemented);
    }
    connection.send("/grpc.health.v1.Health/Check", &[], framed(&[])).await;
    let (_, text) = server.get("/metrics");
    let calls =
        |method: &str, code: &str| metric(&text, "sconce_rpcs_total", &[("method", method), ("code", code)]);
    assert_eq!(calls("ModelInfer", "INVALID_ARGUMENT"), Some(2.0), "{text}");
    assert_eq!(calls("ModelInfer", "RESOURCE_EXHAUSTED"), Some(1.0), "{text}");
    assert_eq!(calls("other", "UNIMPLEMENTED"), Some(2.0), "{text}");
    assert_eq!(calls("Health/Check", "OK"), Some(1.0), "{text}");
    assert_eq!(metric(&text, "sconce_rpc_duration_seconds_count", &[("method", "ModelInfer")]), Some(3.0));
    assert_eq!(metric(&text, "sconce_connections", &[]), Some(1.0));
    assert!(!text.contains("Invented") && !text.contains("a.b.C"), "{text}");
}

#[tokio::test]
async fn requests_that_no_version_serves_are_counted_by_their_model_and_so_is_a_wrong_configuration() {
    let repo = repository();
    repo.file("broken/config.yaml", "max_batch_size: [");
    repo.identity("broken/1/model.pt");
    let arguments = ["--model-control-mode", "explicit", "--load-model", "broken", "--load-model", "echo"];
    repo.identity("resting/1/model.pt");
    let server = Server::start_with(repo.path(), &arguments);
    refused(server.infer(request("broken", &[])).await, Code::NotFound, &["broken"]);
    refused(server.infer(request("resting", &[])).await, Code::NotFound, &["no available versions"]);
    for _ in 0..2 {
        let wanted = ModelInferRequest { model_version: "9".to_owned(), ..rows(1) };
        refused(server.infer(wanted).await, Code::NotFound, &["version 9"]);
    }
    let (_, text) = server.get("/metrics");
    let unserved = |model: &str, reason: &str| {
        let labels = [("model", model), ("version", ""), ("code", "NOT_FOUND"), ("reason", reason)];
        metric(&text, "sconce_requests_total", &labels)
    };
    for (model, counts) in [
        ("broken", [1.0, 0.0]),
        // It is not to be served.
        ("resting", [0.0, 1.0]),
        // A version that is not there is its caller's mistake.
        ("echo", [0.0, 0.0]),
    ] {
        assert_eq!(
            ["not_ready", "unloaded"].map(|reason| unserved(model, reason)),
            counts.map(Some),
            "{text}"
        );
    }
    let problem = |model: &str| metric(&text, "sconce_model_problem", &[("model", model)]);
    assert_eq!((problem("broken"), problem("echo")), (Some(1.0), Some(0.0)), "{text}");
}

#[tokio::test]
async fn a_version_that_is_replaced_and_comes_back_goes_on_counting() {
    let repo = repository();
    repo.identity("one/1/model.pt");
    let server = Server::start(repo.path());
    let ask = || server.infer(request("one", &[("x", "FP32", &[1], fp32(&[1.0]))]));
    let until = async |version: &str| {
        while ask().await.expect("an answer").model_version != version {
            tokio::task::yield_now().await;
        }
    };
    let count = |version: &str| {
        let (_, text) = server.get("/metrics");
        let labels = [("model", "one"), ("version", version), ("reason", "ok")];
        metric(&text, "sconce_requests_total", &labels).unwrap_or_default()
    };
    for _ in 0..3 {
        ask().await.expect("an answer");
    }
    repo.identity("staged/two");
    std::fs::create_dir(repo.path().join("one/.2")).expect("a directory");
    std::fs::rename(repo.path().join("staged/two"), repo.path().join("one/.2/model.pt")).expect("a file");
    std::fs::rename(repo.path().join("one/.2"), repo.path().join("one/2")).expect("a version");
    until("2").await;
    let before = count("1");
    assert!(before >= 3.0);
    std::fs::remove_dir_all(repo.path().join("one/2")).expect("removed");
    until("1").await;
    assert!(count("1") > before, "it began anew");
}

#[tokio::test]
async fn callers_who_ask_the_metrics_address_for_nothing_take_no_file_from_the_others() {
    use std::io::{ErrorKind, Read, Write};

    let repo = repository();
    let server = Server::start(repo.path());
    let mut sockets: Vec<_> = (0..200)
        .map(|_| {
            let mut socket = std::net::TcpStream::connect(&server.http).expect("a connection");
            socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            // One that was turned away may have gone already.
            let _ = socket.write_all(b"GET /metr");
            socket
        })
        .collect();
    for socket in &mut sockets[64..] {
        match socket.read(&mut [0; 16]) {
            Ok(count) => assert_eq!(count, 0, "nothing is said to those who are too many"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    server.infer(rows(1)).await.expect("an answer");
    drop(sockets);
    loop {
        let mut socket = std::net::TcpStream::connect(&server.http).expect("a connection");
        let mut text = String::new();
        let asked = socket.write_all(b"GET /health/live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        if asked.and_then(|()| socket.read_to_string(&mut text)).is_ok() && text.contains("200 OK") {
            return;
        }
    }
}
