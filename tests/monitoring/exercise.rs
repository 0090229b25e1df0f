//! A server to which everything has happened that has a number, and what its callers counted.

use std::collections::BTreeMap;

use prost::Message;
use sconce_proto::inference::{
    InferParameter, ModelInferRequest, RepositoryModelLoadRequest, RepositoryModelUnloadRequest,
    infer_parameter::ParameterChoice::{self, BoolParam, Int64Param},
};
use tonic::Code;

use super::exposition::Exposition;
use crate::{
    changes::eventually,
    harness::{Repo, Server, fp32, request},
    raw::{Answer, Open, Raw, framed},
};

/// Requests of each kind that `Exercised::start` sends. They differ, so that none can stand for another.
pub(super) const GOOD: usize = 23;
pub(super) const WRONG: usize = 7;
pub(super) const THROWN: usize = 5;
pub(super) const LATE: usize = 3;
pub(super) const REFUSED: usize = 4;
pub(super) const LEFT: usize = 3;
pub(super) const SEQUENCES: usize = 2;
pub(super) const GENERATIONS: usize = 3;
pub(super) const UNKNOWN: usize = 6;
/// Answers to each request that is answered step by step.
pub(super) const STEPS: usize = 5;
/// As many as the queue of `endless` holds.
const QUEUE: usize = LEFT;

/// A name that needs every escape of labels.
pub(super) const ODD: &str = "odd \"name\" of a\\model";

/// A server after all of it. One run goes on, for ever.
pub(super) struct Exercised {
    pub(super) server: Server,
    pub(super) connection: Raw,
    /// The call of the run that goes on.
    held: Option<Open>,
    _repo: Repo,
}

fn ask(model: &str, rows: usize, number: f32) -> ModelInferRequest {
    let shape = [i64::try_from(rows).expect("few"), 1];
    request(model, &[("x", "FP32", &shape, fp32(&vec![number; rows]))])
}

fn with(mut request: ModelInferRequest, parameters: &[(&str, ParameterChoice)]) -> ModelInferRequest {
    for (name, choice) in parameters {
        let value = InferParameter { parameter_choice: Some(choice.clone()) };
        request.parameters.insert((*name).to_owned(), value);
    }
    request
}

/// A model that is made of this source, or of this script of the fake backend.
fn model(repo: &Repo, name: &str, source: &str, script: &str, config: &str) {
    let path = format!("{name}/1/model.pt");
    #[cfg(feature = "torch")]
    {
        let _ = script;
        repo.script(&path, source, &[]);
    }
    #[cfg(not(feature = "torch"))]
    {
        let _ = source;
        repo.file(&path, format!("fake\n{script}"));
    }
    repo.file(&format!("{name}/config.yaml"), config);
}

fn repository() -> Repo {
    let repo = Repo::new();
    let io = "max_batch_size: 8\ninputs: [{name: x, dtype: FP32, shape: [1]}]\n\
              outputs: [{name: y, dtype: FP32, shape: [1]}]\n";
    model(&repo, "echo", "def forward(self, x):\n    return x\n", "argument x tensor\n", io);
    model(&repo, ODD, "def forward(self, x):\n    return x\n", "argument x tensor\n", io);
    let throws = "def forward(self, x):\n    assert bool((x != 13).all())\n    return x\n";
    model(&repo, "throws", throws, "argument x tensor\npoison 13\n", io);
    let endless = "def forward(self, x):\n    y = torch.ones([64, 64])\n    for i in range(1000000000000):\n        \
                   y = y @ y * 0.01\n    return x + 0 * y.sum()\n";
    let waits = format!("instances: 1\nqueue: {{max_size: {QUEUE}}}\n");
    model(&repo, "endless", endless, "argument x tensor\ngate\n", &waits);
    let sums = "def forward(self, x, total):\n    sum = x + total\n    return sum, sum\n";
    let states =
        format!("{io}sequence: {{states: [{{input: total, output: new, dtype: FP32, shape: [1]}}]}}\n");
    model(&repo, "sums", sums, "argument x tensor\nargument total tensor\nsum\n", &states);
    let counts =
        "def start(self, x):\n    return x, x\n\ndef step(self, y, state):\n    return y + 1, state + y\n";
    let generate = format!("{io}generate: {{states: [state], feed: y, max_steps: {STEPS}}}\n");
    model(&repo, "counts", counts, "argument x tensor\ngenerate\n", &generate);
    repo.file("broken/1/model.pt", "this is no model");
    repo
}

impl Exercised {
    /// Serves models of all kinds, and asks each what it is there for.
    pub(super) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(super) async fn start_with(arguments: &[&str]) -> Self {
        let repo = repository();
        let server = Server::start_with(
            repo.path(),
            &[&["--cpu-workers", "2", "--hung-run-timeout", "1h"], arguments].concat(),
        );
        let connection = Raw::connect(&server).await;
        let mut exercised = Self { server, connection, held: None, _repo: repo };
        exercised.good().await;
        exercised.bad().await;
        exercised.many().await;
        exercised.late().await;
        exercised
    }

    pub(super) fn metrics(&self) -> Exposition {
        Exposition::of(&self.server)
    }

    async fn infer(&self, request: &ModelInferRequest) -> Answer {
        self.connection.call("ModelInfer", request).await
    }

    async fn expect(&self, request: &ModelInferRequest, code: Code) {
        let status = self.infer(request).await.status();
        assert_eq!(status.code(), code, "{status}");
    }

    /// So many that are answered, with 1, 2, 3, 1, ... rows, and one of each sequence's start, middle and end.
    pub(super) async fn good(&self) {
        for number in 0..GOOD {
            self.expect(&ask("echo", 1 + number % 3, 1.0), Code::Ok).await;
        }
        self.expect(&ask(ODD, 1, 1.0), Code::Ok).await;
        for sequence in 1..=SEQUENCES {
            for at in 0..3 {
                let id = Int64Param(i64::try_from(sequence).expect("small"));
                let flags = [("sequence_start", BoolParam(at == 0)), ("sequence_end", BoolParam(at == 2))];
                let sent = with(with(ask("sums", 1, 1.0), &flags), &[("sequence_id", id)]);
                self.expect(&sent, Code::Ok).await;
            }
        }
    }

    /// Rows of the good requests to `echo`.
    pub(super) fn rows() -> usize {
        (0..GOOD).map(|number| 1 + number % 3).sum()
    }

    pub(super) async fn bad(&self) {
        for _ in 0..WRONG {
            self.expect(&ask("echo", 9, 1.0), Code::InvalidArgument).await;
        }
        for _ in 0..THROWN {
            self.expect(&ask("throws", 1, 13.0), Code::Internal).await;
        }
        for number in 0..UNKNOWN {
            self.expect(&ask(&format!("nobody-{number}"), 1, 1.0), Code::NotFound).await;
        }
    }

    /// Requests with many answers, all on one stream.
    pub(super) async fn many(&self) {
        let messages: Vec<u8> =
            (0..GENERATIONS).flat_map(|_| framed(&ask("counts", 1, 0.0).encode_to_vec())).collect();
        let answer = self.connection.send("ModelStreamInfer", &[], messages).await;
        assert_eq!(answer.status().code(), Code::Ok, "{}", answer.status());
    }

    /// One keeps the only instance for ever. Behind it wait requests whose deadlines pass; then so many that the
    /// queue is full, until their callers leave.
    async fn late(&mut self) {
        self.held = Some(self.begin(&[]).await);
        self.comes("\"running\": 1").await;
        let mut late = Vec::new();
        for _ in 0..LATE {
            late.push(self.begin(&[("grpc-timeout", "2S")]).await);
        }
        for open in late {
            assert_eq!(open.finish().await.status().code(), Code::DeadlineExceeded);
        }
        // Who is late is told at once, and leaves the queue a moment later.
        self.comes("\"queued\": 0").await;
        let mut left = Vec::new();
        for _ in 0..LEFT {
            left.push(self.begin(&[]).await);
        }
        self.comes(&format!("\"queued\": {LEFT}")).await;
        for _ in 0..REFUSED {
            self.expect(&ask("endless", 1, 1.0), Code::ResourceExhausted).await;
        }
        for mut open in left {
            open.body.send_reset(h2::Reason::CANCEL);
        }
        self.comes("\"queued\": 0").await;
    }

    async fn begin(&self, headers: &[(&str, &str)]) -> Open {
        let mut open = self.connection.begin("ModelInfer", headers).await.expect("a stream");
        let message = framed(&ask("endless", 1, 1.0).encode_to_vec());
        open.body.send_data(message.into(), true).expect("a body");
        open
    }

    /// Has a model loaded again.
    pub(super) async fn reload(&self) {
        let unload = RepositoryModelUnloadRequest { model_name: ODD.to_owned(), ..Default::default() };
        let answer = self.connection.call("RepositoryModelUnload", &unload).await;
        assert_eq!(answer.status().code(), Code::Ok, "{}", answer.status());
        let load = RepositoryModelLoadRequest { model_name: ODD.to_owned(), ..Default::default() };
        let answer = self.connection.call("RepositoryModelLoad", &load).await;
        assert_eq!(answer.status().code(), Code::Ok, "{}", answer.status());
    }

    /// Waits until `/models/endless` has this in it.
    async fn comes(&self, text: &str) {
        eventually(&self.server, text, async || {
            self.server.get("/models/endless").1.contains(text).then_some(())
        })
        .await;
    }

    /// What callers were told, by code, of all their calls of ModelInfer.
    pub(super) fn told() -> BTreeMap<&'static str, usize> {
        BTreeMap::from([
            ("OK", GOOD + 1 + 3 * SEQUENCES),
            ("INVALID_ARGUMENT", WRONG),
            ("INTERNAL", THROWN),
            ("NOT_FOUND", UNKNOWN),
            ("DEADLINE_EXCEEDED", LATE),
            ("RESOURCE_EXHAUSTED", REFUSED),
            ("CANCELLED", LEFT),
        ])
    }
}
