//! Signals: what is in flight is answered, nothing else holds the end, and the end has a bound.

use std::{
    io::Write,
    net::TcpStream,
    process::{Child, Stdio},
};

use prost::Message;
use sconce_proto::inference::{ModelInferRequest, ModelInferResponse};
use tokio::task::JoinSet;
use tonic::Code;

use crate::{
    harness::{Repo, Server, as_fp32, fp32, output, request, sconce},
    raw::{Raw, framed},
};

/// `echo` answers at once, `slow` takes its time, `endless` never answers.
fn repository() -> Repo {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    #[cfg(feature = "torch")]
    for (model, rounds) in [("slow", "3000"), ("endless", "1000000000000")] {
        let source = format!(
            "def forward(self, x):\n    y = torch.ones([64, 64])\n    for i in range({rounds}):\n        y = y @ y * 0.01\n    \
             return x + 0 * y.sum()\n"
        );
        repo.script(&format!("{model}/1/model.pt"), &source, &[]);
    }
    #[cfg(not(feature = "torch"))]
    for (model, line) in [("slow", "delay 100"), ("endless", "gate")] {
        repo.file(&format!("{model}/1/model.pt"), format!("fake\nargument x tensor\n{line}\n"));
    }
    repo
}

fn ask(model: &str, value: f32) -> ModelInferRequest {
    request(model, &[("x", "FP32", &[1], fp32(&[value]))])
}

/// Calls that the server has read when this returns.
async fn in_flight(connection: &mut Raw, model: &str, count: u16) -> JoinSet<(f32, ModelInferResponse)> {
    let mut calls = JoinSet::new();
    for number in 0..count {
        let value = f32::from(number);
        let mut open = connection.begin("ModelInfer", &[]).await.expect("a stream");
        open.body.send_data(framed(&ask(model, value).encode_to_vec()).into(), true).expect("a body");
        calls.spawn(async move { (value, open.finish().await.message().expect("an answer")) });
    }
    connection.ping().await;
    calls
}

async fn all_answered(mut calls: JoinSet<(f32, ModelInferResponse)>) {
    while let Some(answered) = calls.join_next().await {
        let (value, response) = answered.expect("an answer");
        assert_eq!(as_fp32(output(&response, "OUTPUT__0").2), [value]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn either_signal_answers_all_that_is_in_flight_and_ends_well() {
    for (signal, name) in [("TERM", "SIGTERM: draining"), ("INT", "SIGINT: draining")] {
        let repo = repository();
        let mut server = Server::start(repo.path());
        let (mut one, mut other) = (Raw::connect(&server).await, Raw::connect(&server).await);
        let (first, second) =
            (in_flight(&mut one, "slow", 20).await, in_flight(&mut other, "slow", 20).await);
        server.signal(signal);
        server.wait_for(name);
        all_answered(first).await;
        all_answered(second).await;
        assert!(server.wait().success(), "{}", server.log());
        server.wait_for("drained");
        // GOAWAY without an error, and no new streams.
        for connection in [one, other] {
            assert!(connection.begin("ServerLive", &[]).await.is_err());
            connection.connection.await.expect("its end").expect("no error");
        }
        assert!(TcpStream::connect(&server.grpc).is_err(), "nobody listens any more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_goes_at_once_and_calls_are_answered_until_the_delay_is_over() {
    let repo = repository();
    let mut server = Server::start_with(repo.path(), &["--drain-delay", "1s"]);
    let mut connection = Raw::connect(&server).await;
    let calls = in_flight(&mut connection, "slow", 10).await;
    assert_eq!(server.get("/health/ready").0, 200);
    server.signal("TERM");
    server.wait_for("SIGTERM: draining");
    assert_eq!(server.get("/health/ready").0, 503);
    let late = Raw::connect(&server).await;
    let response = late.call("ModelInfer", &ask("echo", 3.0)).await.message().expect("an answer");
    assert_eq!(as_fp32(output(&response, "OUTPUT__0").2), [3.0]);
    all_answered(calls).await;
    assert!(server.wait().success(), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_and_half_open_connections_hold_nothing() {
    let repo = repository();
    let mut server = Server::start_with(repo.path(), &["--drain-timeout", "10m"]);
    let silent = TcpStream::connect(&server.grpc).expect("a connection");
    let mut half = TcpStream::connect(&server.grpc).expect("a connection");
    half.write_all(b"PRI * HTTP/2.0\r\n").expect("half a preface");
    let idle = Raw::connect(&server).await;
    idle.call("ModelInfer", &ask("echo", 1.0)).await.message::<ModelInferResponse>().expect("an answer");
    let http = TcpStream::connect(&server.http).expect("a connection");
    server.signal("TERM");
    assert!(server.wait().success(), "{}", server.log());
    server.wait_for("drained");
    drop((silent, half, idle, http));
}

#[test]
fn a_client_that_is_frozen_after_its_calls_holds_nothing() {
    let repo = repository();
    let mut server = Server::start_with(repo.path(), &["--drain-timeout", "10m"]);
    // Its connection lives, but nothing drives it once the call has been answered.
    let frozen = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let connection = frozen.block_on(async {
        let connection = Raw::connect(&server).await;
        let answer = connection.call("ModelInfer", &ask("echo", 1.0)).await;
        answer.message::<ModelInferResponse>().expect("an answer");
        connection
    });
    server.signal("TERM");
    assert!(server.wait().success(), "{}", server.log());
    server.wait_for("drained");
    drop(connection);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_ends_is_cut_at_the_bound() {
    let repo = repository();
    let mut server = Server::start_with(repo.path(), &["--drain-timeout", "500ms"]);
    let mut connection = Raw::connect(&server).await;
    let mut open = connection.begin("ModelInfer", &[]).await.expect("a stream");
    open.body.send_data(framed(&ask("endless", 1.0).encode_to_vec()).into(), true).expect("a body");
    connection.ping().await;
    server.signal("TERM");
    let answer = open.finish().await.status();
    assert_eq!(answer.code(), Code::Unavailable, "{answer}");
    assert!(
        answer.message().ends_with("the server is shutting down and had no more time to answer"),
        "{answer}"
    );
    let status = server.wait();
    assert!(status.success(), "{status}\n{}", server.log());
    server.wait_for("1 connections were still busy after 500ms and have been cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    for second in ["TERM", "INT"] {
        let repo = repository();
        let mut server = Server::start_with(repo.path(), &["--drain-timeout", "10m"]);
        let mut connection = Raw::connect(&server).await;
        let mut open = connection.begin("ModelInfer", &[]).await.expect("a stream");
        open.body.send_data(framed(&ask("endless", 1.0).encode_to_vec()).into(), true).expect("a body");
        connection.ping().await;
        server.signal("TERM");
        server.wait_for("SIGTERM: draining");
        // One that comes right behind the first is taken for the same.
        let status = loop {
            match server.ended() {
                Some(status) => break status,
                None => server.signal(second),
            }
        };
        assert!(status.success(), "{status}\n{}", server.log());
        server.wait_for("again: stopping at once");
    }
}

/// Waits until the one worker is busy: then even a quick model is not answered in time.
async fn until_busy(connection: &Raw) {
    let body = framed(&ask("echo", 1.0).encode_to_vec());
    loop {
        let answer = connection.send("ModelInfer", &[("grpc-timeout", "30m")], body.clone()).await;
        if answer.status().code() == Code::DeadlineExceeded {
            return;
        }
    }
}

fn client(server: &Server, model: &str) -> Child {
    let mut command = sconce();
    command.args(["infer", "--address", &server.grpc, model, "-i", "x=[1]"]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a client")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_killed_in_the_middle_of_a_call_leaves_the_server_serving() {
    let repo = repository();
    let mut server = Server::start_with(repo.path(), &["--cpu-workers", "1"]);
    let connection = Raw::connect(&server).await;
    for _ in 0..3 {
        let mut client = client(&server, "slow");
        until_busy(&connection).await;
        client.kill().expect("SIGKILL");
        client.wait().expect("its end");
        let response = connection.call("ModelInfer", &ask("echo", 2.0)).await.message().expect("an answer");
        assert_eq!(as_fp32(output(&response, "OUTPUT__0").2), [2.0]);
    }
    server.signal("TERM");
    assert!(server.wait().success());
    assert!(!server.log().contains("panicked"), "{}", server.log());
}
