//! Requests that hang together, on real models: what is kept between them, and where they go on.
#![cfg(feature = "torch")]

use std::fs;

use sconce_proto::inference::{
    InferParameter, ModelConfigRequest, ModelInferRequest, ModelInferResponse,
    grpc_inference_service_client::GrpcInferenceServiceClient, infer_parameter::ParameterChoice,
};
use tonic::{Code, Status, transport::Channel};

use crate::{
    changes::{Site, compiled, eventually},
    harness::{Repo, Server, as_fp32, fp32, output, refused, request},
};

/// Adds what it is given to what it was given before.
const SUM: &str = "def forward(self, value, total):\n    sum = value + total\n    return sum, sum\n";

const SUM_CONFIG: &str = "\
max_batch_size: 8
instances: 1
inputs: [{name: value, dtype: FP32, shape: [1]}]
outputs: [{name: OUTPUT__0, dtype: FP32, shape: [1]}]
sequence:
  max_sequences: 3
  states: [{input: total, output: OUTPUT__1, dtype: FP32, shape: [1]}]
";

fn sums(config: &str) -> Repo {
    let repo = Repo::new();
    repo.script("sums/1/model.pt", SUM, &[]);
    repo.file("sums/config.yaml", config);
    repo
}

/// An id as the wire carries it.
fn number(id: i64) -> ParameterChoice {
    ParameterChoice::Int64Param(id)
}

fn with(mut request: ModelInferRequest, parameters: &[(&str, ParameterChoice)]) -> ModelInferRequest {
    for (name, choice) in parameters {
        let value = InferParameter { parameter_choice: Some(choice.clone()) };
        request.parameters.insert((*name).to_owned(), value);
    }
    request
}

/// Where a request is in its sequence.
#[derive(Clone, Copy, PartialEq)]
enum At {
    Start,
    Middle,
    End,
}

fn of(id: ParameterChoice, at: At, request: ModelInferRequest) -> ModelInferRequest {
    let flag = |set| ParameterChoice::BoolParam(set);
    // As tritonclient does, both flags always.
    let flags = [("sequence_start", flag(at == At::Start)), ("sequence_end", flag(at == At::End))];
    with(with(request, &[("sequence_id", id)]), &flags)
}

fn value(model: &str, value: f32) -> ModelInferRequest {
    request(model, &[("value", "FP32", &[1, 1], fp32(&[value]))])
}

fn first(response: &ModelInferResponse) -> f32 {
    as_fp32(output(response, "OUTPUT__0").2)[0]
}

type Client = GrpcInferenceServiceClient<Channel>;

async fn ask(client: &mut Client, request: ModelInferRequest) -> Result<f32, Status> {
    Ok(first(&client.model_infer(request).await?.into_inner()))
}

#[tokio::test]
async fn sums_go_on_from_request_to_request() {
    let repo = sums(SUM_CONFIG);
    let server = Server::start(repo.path());
    let mut client = server.client().await;
    let text = || ParameterChoice::StringParam("a-text".to_owned());
    let mut sum =
        async |id: ParameterChoice, at, number| ask(&mut client, of(id, at, value("sums", number))).await;
    assert_eq!(sum(number(1), At::Start, 1.0).await.unwrap(), 1.0);
    assert_eq!(sum(text(), At::Start, 100.0).await.unwrap(), 100.0);
    assert_eq!(sum(number(-1), At::Start, 7.0).await.unwrap(), 7.0, "Triton's clients send any number");
    assert_eq!(sum(number(1), At::Middle, 2.0).await.unwrap(), 3.0);
    assert_eq!(sum(ParameterChoice::Uint64Param(u64::MAX), At::End, 3.0).await.unwrap(), 10.0);
    assert_eq!(sum(text(), At::Middle, 1.0).await.unwrap(), 101.0);
    assert_eq!(sum(number(2), At::Start, 5.0).await.unwrap(), 5.0);
    refused(sum(number(3), At::Start, 5.0).await, Code::ResourceExhausted, &["3 sequences"]);
    assert_eq!(sum(number(2), At::End, 5.0).await.unwrap(), 10.0);
    assert_eq!(sum(number(3), At::Start, 5.0).await.unwrap(), 5.0);
    let gone = ["must specify the START flag on the first request of the sequence", "sequence 2"];
    refused(sum(number(2), At::Middle, 5.0).await, Code::InvalidArgument, &gone);

    let alone = ask(&mut client, value("sums", 1.0)).await;
    refused(alone, Code::InvalidArgument, &["must specify a non-zero or non-empty correlation ID"]);
    let none = of(number(0), At::Start, value("sums", 1.0));
    refused(ask(&mut client, none).await, Code::InvalidArgument, &["non-zero or non-empty correlation ID"]);
    let rows = request("sums", &[("value", "FP32", &[2, 1], fp32(&[1.0, 2.0]))]);
    let rows = ask(&mut client, of(number(1), At::Middle, rows)).await;
    refused(rows, Code::InvalidArgument, &["must specify batch-size 1"]);
    let own = request(
        "sums",
        &[("value", "FP32", &[1, 1], fp32(&[1.0])), ("total", "FP32", &[1, 1], fp32(&[9.0]))],
    );
    let own = ask(&mut client, of(number(1), At::Middle, own)).await;
    refused(own, Code::InvalidArgument, &["unexpected inference input 'total'"]);
    for (name, choice) in [
        ("sequence_id", ParameterChoice::DoubleParam(1.0)),
        ("sequence_id", ParameterChoice::StringParam("x".repeat(129))),
        ("sequence_start", ParameterChoice::Int64Param(1)),
    ] {
        let wrong = with(of(number(1), At::Middle, value("sums", 1.0)), &[(name, choice)]);
        refused(ask(&mut client, wrong).await, Code::InvalidArgument, &[name]);
    }
    let last = of(number(1), At::End, value("sums", 1.0));
    assert_eq!(ask(&mut client, last).await.unwrap(), 4.0, "what was refused changed nothing");
}

#[tokio::test]
async fn a_stream_may_send_ahead_and_carry_many_sequences() {
    let repo = sums(&SUM_CONFIG.replace("max_sequences: 3", "max_sequences: 50"));
    let server = Server::start(repo.path());
    let mut client = server.client().await;
    let (sequences, requests) = (40i64, 30i64);
    let mut sent = Vec::new();
    for turn in 0..requests {
        for id in 1..=sequences {
            let at =
                [At::Start, At::Middle, At::End][usize::from(turn > 0) + usize::from(turn == requests - 1)];
            let asked = of(number(id), at, value("sums", (id * turn) as f32));
            sent.push(ModelInferRequest { id: format!("{id} {turn}"), ..asked });
        }
    }
    let expected: Vec<_> = sent.iter().map(|request| request.id.clone()).collect();
    let mut answers = client.model_stream_infer(tokio_stream::iter(sent)).await.unwrap().into_inner();
    for sent in expected {
        let answer = answers.message().await.unwrap().expect("an answer to each");
        assert_eq!(answer.error_message, "");
        let response = answer.infer_response.unwrap();
        assert_eq!(response.id, sent);
        let (id, turn) = sent.split_once(' ').unwrap();
        let (id, turn): (i64, i64) = (id.parse().unwrap(), turn.parse().unwrap());
        assert_eq!(first(&response), (id * turn * (turn + 1) / 2) as f32, "{sent}");
    }
    assert!(answers.message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_state_may_grow_and_begin_with_what_a_file_says() {
    let repo = Repo::new();
    let source = "\
def forward(self, value, seen):
    seen = torch.cat([seen, value], 1)
    return seen.sum(1, True), seen
";
    repo.script("seen/1/model.pt", source, &[]);
    repo.file("seen/initial_state/two.bin", fp32(&[100.0, 200.0]));
    repo.file(
        "seen/config.yaml",
        "\
max_batch_size: 4
inputs: [{name: value, dtype: FP32, shape: [1]}]
outputs: [{name: OUTPUT__0, dtype: FP32, shape: [1]}]
sequence:
  states: [{input: seen, output: OUTPUT__1, dtype: FP32, shape: [-1], initial: {file: two.bin, shape: [2]}}]
",
    );
    let server = Server::start(repo.path());
    let mut client = server.client().await;
    let (mut ten, mut one) = (300.0, 300.0);
    for turn in 0..5 {
        let at = if turn == 0 { At::Start } else { At::Middle };
        (ten, one) = (ten + 10.0, one + 1.0);
        // Of different lengths from the second turn on: they do not fit into one batch.
        if turn != 2 {
            assert_eq!(ask(&mut client, of(number(1), at, value("seen", 10.0))).await.unwrap(), ten);
        } else {
            ten -= 10.0;
        }
        assert_eq!(ask(&mut client, of(number(2), at, value("seen", 1.0))).await.unwrap(), one);
    }
}

/// Keeps a sum for each row of its batches, in itself.
const ROWS: &str = "\
def forward(self, INPUT__0, START__1, READY__2):
    rows = INPUT__0.size(0)
    before = self.sums[:rows] * (1.0 - START__1)
    after = before + INPUT__0 * READY__2
    self.sums[:rows] = after
    return after
";

#[tokio::test]
async fn a_model_that_keeps_state_by_row_is_served_by_tritons_direct_strategy() {
    let repo = Repo::new();
    repo.script("rows/1/model.pt", ROWS, &["buffer sums:3x1"]);
    repo.file(
        "rows/config.pbtxt",
        r#"
platform: "pytorch_libtorch"
max_batch_size: 3
input [{ name: "INPUT__0" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "OUTPUT__0" data_type: TYPE_FP32 dims: [1] }]
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  direct { }
  control_input [
    { name: "START__1" control [{ kind: CONTROL_SEQUENCE_START fp32_false_true: [0, 1] }] },
    { name: "READY__2" control [{ kind: CONTROL_SEQUENCE_READY fp32_false_true: [0, 1] }] }
  ]
}
instance_group [{ kind: KIND_CPU count: 2 }]
"#,
    );
    let server = Server::start(repo.path());
    let mut client = server.client().await;
    let of_input = |value: f32| request("rows", &[("INPUT__0", "FP32", &[1, 1], fp32(&[value]))]);
    // Two instances of three rows each; all go on at once, in turns that leave some rows empty.
    for turn in 0..6i64 {
        for id in 1..=6i64 {
            if turn > 0 && (id + turn) % 3 == 0 {
                continue;
            }
            let at = if turn == 0 { At::Start } else { At::Middle };
            let sum = ask(&mut client, of(number(id), at, of_input(id as f32))).await.unwrap();
            let turns = (0..=turn).filter(|turn| *turn == 0 || (id + turn) % 3 != 0).count();
            assert_eq!(sum, id as f32 * turns as f32, "sequence {id}, turn {turn}");
        }
    }
    let config =
        client.model_config(ModelConfigRequest { name: "rows".to_owned(), ..Default::default() }).await;
    let config = config.unwrap().into_inner().config.unwrap();
    assert!(format!("{:?}", config.scheduling_choice).contains("SequenceBatching"));
}

#[tokio::test]
async fn a_sequence_ends_on_the_version_on_which_it_began() {
    let site = Site::start(|repo| {
        repo.script("sums/1/model.pt", SUM, &[]);
        repo.file("sums/config.yaml", SUM_CONFIG);
    })
    .await;
    let mut client = site.client();
    let mut turn = async |id, at, number: f32| {
        let response =
            client.model_infer(of(self::number(id), at, value("sums", number))).await?.into_inner();
        Ok::<_, Status>((response.model_version.clone(), first(&response)))
    };
    let answer = |version: &str, sum| (version.to_owned(), sum);
    assert_eq!(turn(1, At::Start, 1.0).await.unwrap(), answer("1", 1.0));
    assert_eq!(turn(2, At::Start, 1.0).await.unwrap(), answer("1", 1.0));
    let tens = SUM.replace("value + total", "10.0 * value + total");
    site.repo.file("sums/2/model.pt.part", compiled(&tens, &[]));
    fs::rename(site.path("sums/2/model.pt.part"), site.path("sums/2/model.pt")).unwrap();
    // A sequence that begins is on the new one as soon as that serves.
    let mut id = 100;
    loop {
        let (version, _) = turn(id, At::Start, 1.0).await.unwrap();
        assert_eq!(turn(id, At::End, 1.0).await.unwrap().0, version);
        assert_eq!(turn(1, At::Middle, 0.0).await.unwrap(), answer("1", 1.0));
        id += 1;
        if version == "2" {
            break;
        }
    }
    let (_, body) = site.server.get("/models/sums");
    let told: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let old = told["versions"].as_array().expect("versions").iter().find(|version| version["version"] == "1");
    let old = old.expect("it is told of while sequences go on");
    assert_eq!((&old["state"], &old["sequences"]), (&"UNLOADING".into(), &2.into()), "{body}");
    assert_eq!(turn(1, At::Middle, 2.0).await.unwrap(), answer("1", 3.0));
    assert_eq!(turn(3, At::Start, 2.0).await.unwrap(), answer("2", 20.0));
    assert_eq!(turn(2, At::End, 1.0).await.unwrap(), answer("1", 2.0));
    assert_eq!(turn(1, At::End, 3.0).await.unwrap(), answer("1", 6.0));
    // Nothing holds it any more.
    eventually(&site.server, "version 1 is gone", async || {
        site.rows("sums").await.iter().all(|row| row.version == "2").then_some(())
    })
    .await;
    assert_eq!(turn(3, At::End, 1.0).await.unwrap(), answer("2", 30.0));
}

#[tokio::test]
async fn a_version_waits_for_its_sequences_no_longer_than_it_may() {
    let site = Site::start_with(&["--unload-timeout", "100ms"], |repo| {
        repo.script("sums/1/model.pt", SUM, &[]);
        repo.file("sums/config.yaml", SUM_CONFIG);
    })
    .await;
    let mut client = site.client();
    assert_eq!(ask(&mut client, of(number(1), At::Start, value("sums", 1.0))).await.unwrap(), 1.0);
    site.repo.file("sums/2/model.pt.part", compiled(SUM, &[]));
    fs::rename(site.path("sums/2/model.pt.part"), site.path("sums/2/model.pt")).unwrap();
    // Asked again and again, so that it is never idle.
    let gone = loop {
        if let Err(gone) = ask(&mut client, of(number(1), At::Middle, value("sums", 0.0))).await {
            break gone;
        }
    };
    // The other, where it had found its sequence just before that was forgotten.
    let (code, says) = match gone.code() {
        Code::Unavailable => (Code::Unavailable, "begin them again"),
        _ => (Code::InvalidArgument, "must specify the START flag"),
    };
    refused(Err::<(), _>(gone), code, &[says]);
    assert_eq!(ask(&mut client, of(number(1), At::Start, value("sums", 5.0))).await.unwrap(), 5.0);
}

#[tokio::test]
async fn what_cannot_be_kept_is_told_before_it_serves() {
    for (source, config, says) in [
        (
            "def forward(self, value):\n    return value, value\n",
            SUM_CONFIG,
            "configuration expects 2 inputs",
        ),
        ("def forward(self, value, total):\n    return value\n", SUM_CONFIG, "OUTPUT__1"),
    ] {
        let repo = Repo::new();
        repo.script("sums/1/model.pt", source, &[]);
        repo.file("sums/config.yaml", config);
        let server = Server::start(repo.path());
        refused(server.infer(value("sums", 1.0)).await, Code::NotFound, &[says]);
    }
    // Known only from a run.
    let repo = Repo::new();
    repo.script(
        "sums/1/model.pt",
        "def forward(self, value, total):\n    return value, value.double()\n",
        &[],
    );
    repo.file("sums/config.yaml", SUM_CONFIG);
    let server = Server::start(repo.path());
    let answer = server.infer(of(number(1), At::Start, value("sums", 1.0))).await;
    let status = answer.unwrap_err();
    assert!(status.message().contains("OUTPUT__1"), "{}", status.message());
}

#[tokio::test]
async fn sequences_begin_and_go_on_after_any_change_of_the_configuration() {
    let site = Site::start_with(&["--unload-timeout", "1ms"], |repo| {
        repo.script("sums/1/model.pt", SUM, &[]);
        repo.file("sums/config.yaml", SUM_CONFIG);
    })
    .await;
    let mut client = site.client();
    for (changes, config) in
        ["weight: 2\n", "warmup: off\n", "queue: {max_size: 7}\n"].into_iter().enumerate()
    {
        site.repo.file("sums/config.yaml", format!("{config}{SUM_CONFIG}"));
        eventually(&site.server, "it is loaded again", async || {
            (site.server.log().matches("loaded model=sums").count() > changes + 1).then_some(())
        })
        .await;
        for id in 1..=20 {
            let mut turn = async |at, number: f32| {
                ask(&mut client, of(self::number(id), at, value("sums", number))).await
            };
            assert_eq!(turn(At::Start, 1.0).await.unwrap(), 1.0, "{config}");
            assert_eq!(turn(At::End, 2.0).await.unwrap(), 3.0, "{config}");
        }
    }
}

#[tokio::test]
async fn the_model_is_told_which_sequence_it_is() {
    let repo = Repo::new();
    repo.script(
        "numbers/1/model.pt",
        "def forward(self, value, id):\n    return id.float() + 0.0 * value\n",
        &[],
    );
    // Of the text, how long it is.
    let texts = "def forward(self, value, id: List[str]):\n    return value * 0.0 + float(len(id[0]))\n";
    repo.script("texts/1/model.pt", texts, &[]);
    for (model, dtype) in [("numbers", "INT32"), ("texts", "BYTES")] {
        repo.file(
            &format!("{model}/config.yaml"),
            format!(
                "\
max_batch_size: 1
inputs: [{{name: value, dtype: FP32, shape: [1]}}]
outputs: [{{name: OUTPUT__0, dtype: FP32, shape: [1]}}]
sequence: {{controls: {{correlation_id: {{name: id, dtype: {dtype}}}}}}}
"
            ),
        );
    }
    let server = Server::start(repo.path());
    let mut client = server.client().await;
    let text = || ParameterChoice::StringParam("seven".to_owned());
    for (model, id, told) in
        [("numbers", number(7), 7.0), ("numbers", number(-7), -7.0), ("texts", text(), 5.0)]
    {
        let asked = of(id, At::Start, value(model, 1.0));
        assert_eq!(ask(&mut client, asked).await.unwrap(), told);
    }
    for (model, id) in [("numbers", number(1 << 40)), ("numbers", text()), ("texts", number(7))] {
        let refusal = ask(&mut client, of(id, At::Start, value(model, 1.0))).await;
        refused(refusal, Code::InvalidArgument, &["cannot be told to the model, whose input 'id' takes"]);
    }
}
