//! Queues as a configuration bounds them, before a model whose runs never end.

use std::collections::HashMap;

use prost::Message;
use sconce_proto::inference::{
    InferParameter, ModelInferRequest,
    infer_parameter::ParameterChoice::{self, Int64Param, Uint64Param},
};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::{
    harness::{PATIENCE, Repo, Server, fp32, request},
    raw::{Raw, framed},
};

fn gated(queue: &str) -> Repo {
    let repo = Repo::new();
    repo.file("gated/1/model.pt", "fake\nargument x tensor\ngate\n");
    repo.file("gated/config.yaml", queue);
    repo
}

fn sent(parameters: &[(&str, ParameterChoice)], elements: usize) -> ModelInferRequest {
    let shape = [i64::try_from(elements).expect("few")];
    let parameter = |(name, choice): &(&str, ParameterChoice)| {
        ((*name).to_owned(), InferParameter { parameter_choice: Some(choice.clone()) })
    };
    let parameters: HashMap<_, _> = parameters.iter().map(parameter).collect();
    let data = fp32(&vec![1.0; elements]);
    ModelInferRequest { parameters, ..request("gated", &[("x", "FP32", &shape, data)]) }
}

/// One worker, which the first request keeps for ever.
struct Held {
    _repo: Repo,
    server: Server,
    connection: Raw,
    waiting: JoinSet<Status>,
}

impl Held {
    async fn start(queue: &str, arguments: &[&str]) -> Self {
        let repo = gated(queue);
        let server = Server::start_with(repo.path(), &[&["--cpu-workers", "1"], arguments].concat());
        let connection = Raw::connect(&server).await;
        Self { _repo: repo, server, connection, waiting: JoinSet::new() }
    }

    async fn send(&mut self, request: &ModelInferRequest) {
        let mut open = self.connection.begin("ModelInfer", &[]).await.expect("a stream");
        open.body.send_data(framed(&request.encode_to_vec()).into(), true).expect("a body");
        self.waiting.spawn(async { open.finish().await.status() });
    }

    /// Waits until the first request keeps the worker: streams of a connection may overtake each other.
    async fn is_busy(&self) {
        let begin = std::time::Instant::now();
        while !self.server.get("/models/gated").1.contains("\"running\": 1") {
            assert!(begin.elapsed() < PATIENCE, "{}", self.server.log());
            tokio::task::yield_now().await;
        }
    }

    /// The next answer: the gate never opens, so each is a refusal.
    async fn refused(&mut self, code: Code, parts: &[&str]) {
        let answer = tokio::time::timeout(PATIENCE, self.waiting.join_next()).await.expect("a refusal");
        let status = answer.expect("an answer").expect("no panic");
        assert_eq!(status.code(), code, "{status}");
        for part in parts {
            assert!(status.message().contains(part), "{part:?} is not in: {}", status.message());
        }
    }

    /// So many still have no answer.
    fn left(&self, count: usize) {
        assert_eq!(self.waiting.len(), count);
    }
}

const FULL: &str = "Exceeds maximum queue size: ";

#[tokio::test]
async fn a_queue_has_the_length_that_its_configuration_says() {
    for (arguments, code) in
        [(&[][..], Code::ResourceExhausted), (&["--triton-error-codes"], Code::Unavailable)]
    {
        let mut held = Held::start("queue: {max_size: 3}\n", arguments).await;
        // One runs, three wait.
        for _ in 0..6 {
            held.send(&sent(&[], 1)).await;
        }
        for _ in 0..2 {
            held.refused(code, &[FULL, "3 requests wait for model 'gated'"]).await;
        }
        held.left(4);
    }
}

#[tokio::test]
async fn each_priority_has_a_queue_of_its_own() {
    let queue = "queue: {max_size: 3, priority_levels: 2, default_priority: 2, levels: {1: {max_size: 1}}}\n";
    let mut held = Held::start(queue, &[]).await;
    for priority in [Int64Param(2), Uint64Param(0), Int64Param(0), Uint64Param(2), Int64Param(2)] {
        held.send(&sent(&[("priority", priority)], 1)).await;
    }
    held.refused(Code::ResourceExhausted, &[FULL, "3 requests of priority 2 wait"]).await;
    for _ in 0..2 {
        held.send(&sent(&[("priority", Uint64Param(1))], 1)).await;
    }
    held.refused(Code::ResourceExhausted, &[FULL, "1 requests of priority 1 wait"]).await;
    held.left(5);
}

#[tokio::test]
async fn what_waits_longer_than_it_may_is_told_while_the_worker_is_busy() {
    let codes = [(&[][..], Code::DeadlineExceeded), (&["--triton-error-codes"], Code::Unavailable)];
    for (arguments, code) in codes {
        let mut held = Held::start("queue: {timeout: 20ms}\n", arguments).await;
        for _ in 0..3 {
            held.send(&sent(&[], 1)).await;
        }
        for _ in 0..2 {
            held.refused(code, &["Request timeout expired: ", "'gated'"]).await;
        }
        held.left(1);
    }
}

#[tokio::test]
async fn a_request_says_how_long_it_waits_where_it_may() {
    let mut held = Held::start("queue: {allow_timeout_override: true}\n", &[]).await;
    held.send(&sent(&[], 1)).await;
    held.is_busy().await;
    held.send(&sent(&[], 1)).await;
    for choice in [Int64Param(20_000), Uint64Param(20_000)] {
        held.send(&sent(&[("timeout", choice)], 1)).await;
        held.refused(Code::DeadlineExceeded, &["Request timeout expired: "]).await;
    }
    held.left(2);
}

#[tokio::test]
async fn requests_that_wait_are_bounded_in_bytes() {
    let mut held = Held::start("", &["--max-queued-bytes", "64KiB"]).await;
    // 40 KiB each: one runs, one waits.
    for _ in 0..4 {
        held.send(&sent(&[], 10 << 10)).await;
    }
    for _ in 0..2 {
        held.refused(Code::ResourceExhausted, &[FULL, "take up to 65536 bytes"]).await;
    }
    // There is room for small ones.
    held.send(&sent(&[], 1)).await;
    held.send(&sent(&[], 10 << 10)).await;
    held.refused(Code::ResourceExhausted, &[FULL, "take up to 65536 bytes"]).await;
    held.left(3);
}
