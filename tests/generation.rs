//! One request, many answers, of real models: streams of steps, their ends, and their callers.
#![cfg(feature = "torch")]

use std::{fs, process::Stdio, time::Duration};

use sconce_proto::inference::{
    InferParameter, ModelConfigRequest, ModelInferRequest, ModelInferResponse, ModelStatisticsRequest,
    ModelStreamInferResponse, grpc_inference_service_client::GrpcInferenceServiceClient,
    infer_parameter::ParameterChoice,
};
use tokio_stream::StreamExt;
use tonic::{Code, Request, Status, Streaming, transport::Channel};

use crate::{
    changes::{Site, compiled, eventually},
    harness::{Repo, Server, output, refused, request},
    statistics::metric,
};

/// Counts from `first` in steps of its state to a hundred, more or less; with a line of text for each number.
const COUNT: &str = "\
def start(self, first, by):
    return self.answer(first, by)

def step(self, number, by):
    return self.answer(number + by, by)

def answer(self, number, by):
    texts = [str(int(number[row, 0])) + '\\n' for row in range(number.size(0))]
    return texts, number, number >= 100, by
";

const CONFIG: &str = "\
max_batch_size: 64
inputs: [{name: first, dtype: INT64, shape: [1]}, {name: by, dtype: INT64, shape: [1]}]
outputs: [{name: text, dtype: BYTES, shape: [1]}, {name: number, dtype: INT64, shape: [1]}, {name: done, dtype: BOOL, shape: [1]}]
generate: {states: [by], feed: number, send: [number], stop: {flag: done}, max_steps: 1000, collect: COLLECT}
";

fn counting(collect: bool) -> Repo {
    let repo = Repo::new();
    repo.script("count/1/model.pt", COUNT, &[]);
    repo.file("count/config.yaml", CONFIG.replace("COLLECT", if collect { "true" } else { "false" }));
    repo
}

fn int64(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn from(id: &str, first: i64, by: i64) -> ModelInferRequest {
    let inputs =
        [("first", "INT64", &[1i64, 1][..], int64(&[first])), ("by", "INT64", &[1, 1], int64(&[by]))];
    ModelInferRequest { id: id.to_owned(), ..request("count", &inputs) }
}

fn with(mut request: ModelInferRequest, name: &str, choice: ParameterChoice) -> ModelInferRequest {
    request.parameters.insert(name.to_owned(), InferParameter { parameter_choice: Some(choice) });
    request
}

fn numbers(response: &ModelInferResponse) -> Vec<i64> {
    let (_, _, data) = output(response, "number");
    data.chunks(8).map(|eight| i64::from_le_bytes(eight.try_into().expect("eight"))).collect()
}

fn is_last(answer: &ModelStreamInferResponse) -> bool {
    let response = answer.infer_response.as_ref().expect("a response");
    response.parameters["triton_final_response"].parameter_choice == Some(ParameterChoice::BoolParam(true))
}

fn expected(first: i64, by: i64) -> Vec<i64> {
    let mut numbers = vec![first];
    while numbers[numbers.len() - 1] < 100 {
        numbers.push(numbers[numbers.len() - 1] + by);
    }
    numbers
}

type Client = GrpcInferenceServiceClient<Channel>;

async fn stream(
    client: &mut Client,
    requests: Vec<ModelInferRequest>,
) -> Streaming<ModelStreamInferResponse> {
    client.model_stream_infer(tokio_stream::iter(requests)).await.expect("a stream").into_inner()
}

#[tokio::test]
async fn every_step_is_an_answer_and_the_last_one_says_so() {
    let repo = counting(false);
    let server = Server::start(repo.path());
    let mut client = server.client().await;
    let mut answers = stream(&mut client, vec![from("a", 0, 7)]).await;
    for number in expected(0, 7) {
        let answer = answers.message().await.unwrap().expect("an answer");
        assert_eq!(is_last(&answer), number >= 100);
        let response = answer.infer_response.unwrap();
        assert_eq!((&*response.id, &*response.model_version), ("a", "1"));
        assert_eq!(response.outputs.len(), 1, "only what is sent");
        assert_eq!((output(&response, "number").1, numbers(&response)), (&[1i64, 1][..], vec![number]));
    }
    assert!(answers.message().await.unwrap().is_none());
    let unary = client.model_infer(from("a", 0, 7)).await;
    refused(
        unary,
        Code::Unimplemented,
        &["ModelInfer RPC doesn't support models with decoupled transaction policy"],
    );
    let config =
        client.model_config(ModelConfigRequest { name: "count".to_owned(), ..Default::default() }).await;
    let config = config.unwrap().into_inner().config.unwrap();
    assert!(config.model_transaction_policy.unwrap().decoupled);
}

#[tokio::test]
async fn the_collected_answer_has_all_steps() {
    let repo = counting(true);
    let server = Server::start(repo.path());
    let response = server.infer(from("a", 90, 3)).await.unwrap();
    assert_eq!((output(&response, "number").1, numbers(&response)), (&[1i64, 5][..], expected(90, 3)));
    let text = crate::harness::wanting(from("a", 90, 3), &["text"]);
    let response = server.infer(text).await.unwrap();
    let lines = "90\n93\n96\n99\n102\n";
    assert_eq!(output(&response, "text").2, crate::harness::strings(&[lines.as_bytes()]));
    let few = with(from("a", 0, 1), "max_steps", ParameterChoice::Int64Param(4));
    assert_eq!(numbers(&server.infer(few).await.unwrap()), [0, 1, 2, 3]);
    for choice in [ParameterChoice::Int64Param(0), ParameterChoice::StringParam("4".to_owned())] {
        let wrong = server.infer(with(from("a", 0, 1), "max_steps", choice)).await;
        refused(wrong, Code::InvalidArgument, &["max_steps"]);
    }
    let two = request(
        "count",
        &[("first", "INT64", &[2, 1], int64(&[1, 2])), ("by", "INT64", &[2, 1], int64(&[1, 2]))],
    );
    refused(server.infer(two).await, Code::InvalidArgument, &["batch-size 1"]);
}

#[tokio::test]
async fn answers_are_counted_by_their_number_and_requests_when_they_end() {
    let repo = counting(true);
    let server = Server::start(repo.path());
    let mut client = server.client().await;
    let few = |steps| with(from("a", 0, 1), "max_steps", ParameterChoice::Int64Param(steps));
    let mut answers = stream(&mut client, vec![few(3), few(2)]).await;
    while answers.message().await.unwrap().is_some() {}
    server.infer(few(3)).await.unwrap();
    server.infer(from("", 0, 1)).await.unwrap();
    refused(
        server.infer(with(from("a", 0, 1), "max_steps", ParameterChoice::Int64Param(0))).await,
        Code::InvalidArgument,
        &["max_steps"],
    );
    let request = ModelStatisticsRequest { name: "count".to_owned(), ..Default::default() };
    let all = client.model_statistics(request).await.unwrap().into_inner().model_stats;
    let [stats] = &all[..] else { panic!("{all:?}") };
    let success = |number: &str| stats.response_stats[number].success.as_ref().map(|success| success.count);
    let of_all = ["0", "1", "2", "3", "100"].map(success);
    assert_eq!(of_all, [Some(4), Some(4), Some(3), Some(1), Some(1)]);
    let requests =
        stats.inference_stats.as_ref().and_then(|stats| stats.success).map(|success| success.count);
    assert_eq!((requests, stats.inference_count), (Some(4), 4));
    let (_, text) = server.get("/metrics");
    let metric = |name: &str| metric(&text, name, &[("model", "count")]);
    assert_eq!(metric("sconce_responses_total"), Some(109.0), "{text}");
    assert_eq!(metric("sconce_first_response_duration_seconds_count"), Some(4.0));
    assert_eq!(metric("sconce_response_interval_seconds_count"), Some(105.0));
    assert_eq!(metric("sconce_generations"), Some(0.0));
}

#[tokio::test]
async fn many_generations_on_one_stream_do_not_wait_for_each_other() {
    let repo = counting(false);
    let server = Server::start(repo.path());
    let mut client = server.client().await;
    let all: Vec<(i64, i64)> = (0..50).map(|index| (index, 1 + index % 9)).collect();
    let requests = all.iter().map(|(first, by)| from(&format!("{first} {by}"), *first, *by)).collect();
    let mut answers = stream(&mut client, requests).await;
    let mut found: std::collections::HashMap<String, Vec<i64>> = std::collections::HashMap::new();
    while let Some(answer) = answers.message().await.unwrap() {
        assert_eq!(answer.error_message, "");
        let response = answer.infer_response.unwrap();
        found.entry(response.id.clone()).or_default().extend(numbers(&response));
    }
    assert_eq!(found.len(), all.len());
    for (first, by) in all {
        assert_eq!(found[&format!("{first} {by}")], expected(first, by));
    }
}

#[tokio::test]
async fn what_is_wrong_with_one_is_its_last_answer() {
    let repo = Repo::new();
    let fails = COUNT.replace("    return self.answer(number + by, by)", "    if bool((number > 50).any()):\n        ops.prim.RaiseException('over fifty', 'builtins.ValueError')\n    return self.answer(number + by, by)");
    assert_ne!(fails, COUNT);
    repo.script("count/1/model.pt", &fails, &[]);
    repo.file("count/config.yaml", CONFIG.replace("COLLECT", "false"));
    let server = Server::start(repo.path());
    let mut client = server.client().await;
    let mut answers = stream(&mut client, vec![from("bad", 40, 1), from("good", 99, 1)]).await;
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    let mut error = None;
    while let Some(answer) = answers.message().await.unwrap() {
        let last = is_last(&answer);
        let response = answer.infer_response.unwrap();
        match &*response.id {
            "good" => {
                good.extend(if answer.error_message.is_empty() { numbers(&response) } else { vec![-1] })
            }
            _ if answer.error_message.is_empty() => bad.extend(numbers(&response)),
            _ => {
                assert!(last && error.is_none());
                error = Some(answer.error_message);
            }
        }
    }
    assert_eq!(bad, (40..=51).collect::<Vec<_>>());
    assert!(error.expect("an error").contains("over fifty"));
    assert_eq!(good, [99, -1], "its step is over fifty too, and it is told alone");

    let mut request = Request::new(tokio_stream::iter(vec![from("bad", 49, 1)]));
    request.metadata_mut().insert("triton_grpc_error", "true".parse().unwrap());
    let mut answers = client.model_stream_infer(request).await.unwrap().into_inner();
    let status: Status = loop {
        match answers.message().await {
            Ok(answer) => assert!(answer.is_some()),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Internal);
    assert!(status.message().contains("over fifty"));
}

/// Goes on for ever, as far as anybody would wait.
fn endless() -> Repo {
    let repo = counting(false);
    repo.script("count/1/model.pt", &COUNT.replace("number >= 100", "number < -1"), &[]);
    repo.file(
        "count/config.yaml",
        CONFIG.replace("COLLECT", "false").replace("max_steps: 1000", "max_steps: 1000000"),
    );
    repo
}

fn generations(server: &Server) -> String {
    let (_, body) = server.get("/models");
    let at = body.find("\"generations\":").expect("the count") + "\"generations\":".len();
    body[at..].split([',', '}']).next().expect("a number").trim().to_owned()
}

async fn until_none_go_on(server: &Server) {
    eventually(server, "no generation goes on", async || (generations(server) == "0").then_some(())).await;
}

#[tokio::test]
async fn a_caller_who_goes_ends_his_generations() {
    let repo = endless();
    let server = Server::start(repo.path());
    let mut client = server.client().await;
    let requests: Vec<_> = (0..20).map(|id| from(&id.to_string(), 0, 1)).collect();
    let mut answers = stream(&mut client, requests).await;
    for _ in 0..100 {
        answers.message().await.unwrap().expect("an answer");
    }
    assert_eq!(generations(&server), "20");
    drop(answers);
    until_none_go_on(&server).await;

    // One who does not read holds up nobody, and is waited for.
    let mut silent = stream(&mut client, vec![from("silent", 0, 1)]).await;
    silent.message().await.unwrap().expect("an answer");
    let mut other = server.client().await;
    let few = with(from("other", 0, 1), "max_steps", ParameterChoice::Int64Param(500));
    let answers: Vec<_> = stream(&mut other, vec![few]).await.collect().await;
    assert_eq!(answers.len(), 500);
    assert_eq!(generations(&server), "1");
    drop((silent, client));
    until_none_go_on(&server).await;
}

#[tokio::test]
async fn a_deadline_ends_a_generation() {
    let repo = endless();
    let server = Server::start(repo.path());
    let mut client = server.client().await;
    let mut request = Request::new(tokio_stream::iter(vec![from("late", 0, 1)]));
    request.set_timeout(Duration::from_millis(300));
    let mut answers = client.model_stream_infer(request).await.unwrap().into_inner();
    let status = loop {
        match answers.message().await {
            Ok(Some(answer)) if answer.error_message.is_empty() => {}
            // As a message, where the step saw it first.
            Ok(Some(answer)) => break Status::deadline_exceeded(answer.error_message),
            Ok(None) => panic!("it has no end"),
            Err(status) => break status,
        }
    };
    // tonic's own timer says it in its own words.
    assert!([Code::DeadlineExceeded, Code::Cancelled].contains(&status.code()), "{status:?}");
    until_none_go_on(&server).await;
}

#[tokio::test]
async fn what_does_not_fit_is_told_before_it_serves() {
    for (source, says) in [
        ("def forward(self, first, by):\n    return first\n", "start"),
        ("def start(self, first, by):\n    return first, by\n", "step"),
        (
            &*COUNT
                .replace("step(self, number, by)", "step(self, number)")
                .replace("number + by, by", "number, number"),
            "step takes (number)",
        ),
    ] {
        let repo = Repo::new();
        repo.script("count/1/model.pt", source, &[]);
        repo.file("count/config.yaml", CONFIG.replace("COLLECT", "false"));
        let server = Server::start(repo.path());
        refused(server.infer(from("a", 0, 1)).await, Code::NotFound, &[says]);
    }
}

#[tokio::test]
async fn a_client_that_is_killed_ends_its_generations() {
    let repo = endless();
    let server = Server::start(repo.path());
    let arguments = ["infer", "count", "--stream", "-i", "first=0", "-i", "by=1", "--address", &server.grpc];
    let mut client =
        crate::harness::sconce().args(arguments).stdout(Stdio::piped()).spawn().expect("a client");
    let mut out = client.stdout.take().expect("its output");
    std::io::Read::read_exact(&mut out, &mut [0; 1000]).expect("answers");
    assert_eq!(generations(&server), "1");
    client.kill().expect("kill -9");
    client.wait().expect("its end");
    until_none_go_on(&server).await;
}

#[tokio::test]
async fn a_generation_ends_on_the_version_on_which_it_began() {
    let site = Site::start(|repo| {
        repo.script("count/1/model.pt", COUNT, &[]);
        repo.file("count/config.yaml", CONFIG.replace("COLLECT", "false"));
    })
    .await;
    let mut client = site.client();
    // It is waited for, because it has more answers than are made ahead.
    let mut answers = stream(&mut client, vec![from("old", 0, 1)]).await;
    let mut found = Vec::new();
    let mut take = async |found: &mut Vec<i64>| {
        let answer = answers.message().await.unwrap();
        let Some(response) = answer.map(|answer| answer.infer_response.unwrap()) else { return false };
        assert_eq!(response.model_version, "1");
        found.extend(numbers(&response));
        true
    };
    assert!(take(&mut found).await);
    let backwards = COUNT.replace("number >= 100", "number >= 3");
    site.repo.file("count/2/model.pt.part", compiled(&backwards, &[]));
    fs::rename(site.path("count/2/model.pt.part"), site.path("count/2/model.pt")).unwrap();
    let mut other = site.client();
    let newer = eventually(&site.server, "version 2 serves", async || {
        let all: Vec<_> = stream(&mut other, vec![from("new", 0, 1)]).await.collect().await;
        let last = all.last().unwrap().as_ref().unwrap().infer_response.as_ref().unwrap();
        (last.model_version == "2").then_some(all.len())
    })
    .await;
    assert_eq!(newer, 4);
    while take(&mut found).await {}
    assert_eq!(found, expected(0, 1));
}

#[tokio::test]
async fn a_terminal_that_is_not_read_is_waited_for() {
    let repo = endless();
    let server = Server::start(repo.path());
    let arguments =
        ["infer", "count", "--stream", "-i", "first=0", "-i", "by=1", "-p", "max_steps=20000", "-o", "text"];
    let mut command = crate::harness::sconce();
    let command = command.args(arguments).args(["--address", &server.grpc]);
    let mut client = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a client");
    let mut out = client.stdout.take().expect("its output");
    std::io::Read::read_exact(&mut out, &mut [0; 2]).expect("an answer");
    // Meanwhile others take many.
    let mut other = server.client().await;
    let many = with(from("other", 0, 1), "max_steps", ParameterChoice::Int64Param(3000));
    let answers: Vec<_> = stream(&mut other, vec![many]).await.collect().await;
    assert_eq!(answers.len(), 3000);
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut out, &mut text).map(|_| text)
    });
    let status = client.wait_with_output().expect("its end");
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    let text = reading.join().expect("a reader").expect("text");
    let lines: Vec<String> = (1..20000).map(|number| number.to_string()).collect();
    assert_eq!(text.lines().collect::<Vec<_>>(), lines);
}

#[tokio::test]
async fn a_state_that_is_not_of_its_rows_is_told() {
    let repo = counting(false);
    let twice = COUNT.replace("number >= 100, by\n", "number >= 100, torch.cat([by, by], 0)\n");
    assert_ne!(twice, COUNT);
    repo.script("count/1/model.pt", &twice, &[]);
    let server = Server::start(repo.path());
    let told = server.infer(from("a", 0, 1)).await;
    refused(told, Code::NotFound, &["'by' has shape [2,1], where 1 is expected as the first dimension"]);
}
