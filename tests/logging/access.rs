//! The access log: a line for each call, whatever its texts are, and only for those that were asked for.

use std::collections::BTreeMap;

use sconce_proto::inference::{ModelInferRequest, ModelReadyRequest, ServerLiveRequest};
use serde_json::Value;
use tokio::task::JoinSet;
use tonic::{Code, Request};

use super::{Said, event, set};
use crate::{
    harness::{Repo, Server, fp32, request},
    raw::{Raw, framed},
};

/// How many calls with odd texts there are.
const CALLS: usize = 10_000;
/// How many of them have texts that are not UTF-8, so that nobody knows their ids.
const UNREADABLE: usize = 100;
/// A field has so many bytes of a text at most, and then an ellipsis.
const LIMIT: usize = 1024;

/// Pieces of texts that somebody could think of.
const PIECES: [&str; 24] = [
    "\n",
    "\r\n",
    "\u{1b}[31m",
    "\u{1b}[2J\u{1b}[H",
    "\u{1b}]0;title\u{7}",
    "\0",
    "\u{7f}",
    "\u{85}",
    "\u{2028}",
    "\u{2029}",
    "\u{202e}",
    "\u{2066}",
    "\u{feff}",
    "\u{9b}31m",
    "\"",
    "\\",
    "\\n",
    "{\"level\":\"ERROR\"}",
    "=",
    " model=digits ",
    "\n2026-01-01T00:00:00.000000Z  INFO injected",
    "日本",
    "👩‍👩‍👧",
    "%s%n${jndi:x}",
];

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % bound
    }

    fn text(&mut self) -> String {
        let mut text: String = (0..self.below(8)).map(|_| PIECES[self.below(PIECES.len())]).collect();
        if self.below(50) == 0 {
            text.push_str(&PIECES[self.below(PIECES.len())].repeat(1 + self.below(5000)));
        }
        text
    }
}

fn cut(text: &str) -> String {
    if text.len() <= LIMIT {
        return text.to_owned();
    }
    let end = (0..=LIMIT).rev().find(|&at| text.is_char_boundary(at)).expect("a start");
    format!("{}...", &text[..end])
}

/// Calls a server with odd names and ids, each id with its number, and returns what was sent by number.
async fn call_with_odd_texts(server: &Server) -> BTreeMap<String, (String, String)> {
    let mut dice = Dice(1);
    let sent: Vec<(String, String)> = (UNREADABLE..CALLS)
        .map(|number| (format!("?{}", dice.text()), format!("{number} {}", dice.text())))
        .collect();
    let client = server.client().await;
    for some in sent.chunks(200) {
        let calls = some.iter().map(|(model_name, id)| {
            let (model_name, id) = (model_name.clone(), id.clone());
            let mut client = client.clone();
            let request = ModelInferRequest { model_name, id, ..Default::default() };
            async move { client.model_infer(request).await.expect_err("a refusal").code() }
        });
        for code in calls.collect::<JoinSet<_>>().join_all().await {
            assert_eq!(code, Code::NotFound);
        }
    }
    let raw = Raw::connect(server).await;
    for _ in 0..UNREADABLE {
        // Field 1 is the model's name.
        let answer = raw.send("ModelInfer", &[], framed(&[0x0a, 3, b'a', 0xff, 0xfe])).await;
        assert_eq!(answer.status().code(), Code::InvalidArgument);
    }
    let number = |id: &str| id.split(' ').next().expect("a number").to_owned();
    sent.into_iter().map(|(name, id)| (number(&id), (name, id))).collect()
}

/// All lines of a server that has ended.
fn lines(server: &mut Server) -> Vec<String> {
    server.signal("TERM");
    assert!(server.wait().success());
    server.wait_for("drained");
    server.log().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn ten_thousand_odd_texts_are_ten_thousand_lines_of_json() {
    let repo = Repo::new();
    let flags = ["--log-format", "json", "--access-log", "all"];
    let mut server = Server::start_with(repo.path(), &flags);
    let mut sent = call_with_odd_texts(&server).await;
    let lines = lines(&mut server);
    let events = lines.iter().map(|line| event(line));
    let calls: Vec<Value> = events.filter(|event| event["target"] == "sconce_access").collect();
    assert_eq!(calls.len(), CALLS);
    let mut unreadable = 0;
    for call in calls {
        let Some(id) = call["id"].as_str() else {
            assert_eq!(
                (&call["code"], &call["reason"]),
                (&"INVALID_ARGUMENT".into(), &"invalid_input".into())
            );
            unreadable += 1;
            continue;
        };
        let number = id.split(' ').next().expect("a number");
        let (name, whole) = sent.remove(number).unwrap_or_else(|| panic!("{id:?} was sent once"));
        assert_eq!(id, cut(&whole));
        assert_eq!(call["model"].as_str(), Some(&*cut(&name)));
        assert_eq!((&call["code"], &call["reason"]), (&"NOT_FOUND".into(), &Value::Null));
    }
    assert_eq!((unreadable, sent.len()), (UNREADABLE, 0));
}

#[tokio::test]
async fn ten_thousand_odd_texts_are_ten_thousand_lines_of_text() {
    let repo = Repo::new();
    let mut server = Server::start_with(repo.path(), &["--access-log", "all"]);
    call_with_odd_texts(&server).await;
    let lines = lines(&mut server);
    let hidden = |char: char| {
        char.is_control() || matches!(char, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    for line in &lines {
        assert!(!line.contains(hidden), "{line:?}");
        let (time, rest) = line.split_once(' ').expect("a time");
        assert!(time.len() == 27 && time.starts_with("20") && time.ends_with('Z'), "{line:?}");
        assert!(rest.starts_with(" INFO ") || rest.starts_with(" WARN "), "{line:?}");
    }
    let calls = lines.iter().filter(|line| line[27..].starts_with("  INFO ModelInfer ")).count();
    assert_eq!(calls, CALLS);
}

fn infer(id: &str) -> ModelInferRequest {
    let request = request("echo", &[("x", "FP32", &[2], fp32(&[1.0, 2.0]))]);
    ModelInferRequest { id: id.to_owned(), ..request }
}

fn repository() -> Repo {
    let repo = Repo::new();
    repo.identity("echo/3/model.pt");
    repo
}

#[tokio::test]
async fn a_line_tells_who_asked_for_what_and_how_long_it_took() {
    let repo = repository();
    let mut server = Server::start_with(repo.path(), &["--log-format", "json", "--access-log", "all"]);
    // Levels have nothing to do with it.
    set(&server, &[("log_info", Said::BoolParam(false))]).await.expect("set");
    let mut client = server.client().await;
    let mut traced = Request::new(infer("first"));
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-00").parse().expect("a header");
    traced.metadata_mut().insert("traceparent", parent);
    client.model_infer(traced).await.expect("an answer");
    let ready = ModelReadyRequest { name: "echo".to_owned(), version: String::new() };
    client.model_ready(ready).await.expect("an answer");
    client.server_live(ServerLiveRequest {}).await.expect("an answer");
    let wrong = ModelInferRequest { model_name: "nobody".to_owned(), ..infer("wrong") };
    let messages = tokio_stream::iter([infer("second"), wrong.clone(), infer("third")]);
    let mut answers = client.model_stream_infer(messages).await.expect("a stream").into_inner();
    while answers.message().await.expect("an answer").is_some() {}
    client.model_infer(wrong).await.expect_err("a refusal");
    drop(client);
    set(&server, &[("log_info", Said::BoolParam(true))]).await.expect("set");
    let calls: Vec<Value> = lines(&mut server).iter().map(|line| event(line)).collect();
    let calls: Vec<&Value> = calls.iter().filter(|event| event["target"] == "sconce_access").collect();
    let find = |method: &str, id: &str| {
        let mut found = calls
            .iter()
            .filter(|call| call["method"] == method && call["id"].as_str().unwrap_or_default() == id);
        let call = found.next().unwrap_or_else(|| panic!("no {method} {id} in {calls:?}"));
        assert!(found.next().is_none(), "{method} {id} twice");
        for name in ["duration_ms", "request_bytes", "response_bytes", "responses"] {
            assert!(call[name].is_number(), "no {name} in {call}");
        }
        assert!(call["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{call}");
        *call
    };
    let first = find("ModelInfer", "first");
    assert_eq!((&first["code"], &first["message"]), (&"OK".into(), &"ModelInfer OK".into()));
    assert_eq!((&first["model"], &first["version"]), (&"echo".into(), &"3".into()));
    assert_eq!((&first["trace_id"], &first["reason"]), (&trace.into(), &Value::Null));
    for name in
        ["receive_ms", "queue_ms", "gather_ms", "forward_ms", "scatter_ms", "batch_requests", "batch_rows"]
    {
        assert!(first[name].is_number(), "no {name} in {first}");
    }
    assert_eq!((&first["device"], &first["responses"]), (&"cpu".into(), &1.into()));
    assert!(first["response_bytes"].as_u64().is_some_and(|bytes| bytes > 8), "{first}");
    assert_eq!(find("ModelReady", "")["model"], "echo");
    assert_eq!(find("ServerLive", "")["model"], Value::Null);
    for id in ["second", "third"] {
        let message = find("ModelStreamInfer", id);
        assert_eq!((&message["code"], &message["message_of_stream"]), (&"OK".into(), &true.into()));
        assert!(message["forward_ms"].is_number(), "{message}");
    }
    let wrong = find("ModelStreamInfer", "wrong");
    assert_eq!((&wrong["code"], &wrong["reason"]), (&"NOT_FOUND".into(), &Value::Null));
    assert!(
        wrong["message"].as_str().is_some_and(|text| text.contains("unknown model: 'nobody'")),
        "{wrong}"
    );
    assert_eq!(find("ModelStreamInfer", "")["code"], "OK", "the stream itself");
    assert_eq!(find("ModelInfer", "wrong")["code"], "NOT_FOUND");
}

#[tokio::test]
async fn only_those_calls_have_a_line_that_were_asked_for() {
    let repo = repository();
    let cases: [(&[&str], [usize; 2]); 5] = [
        (&[], [0, 0]),
        (&["--access-log", "errors"], [0, 3]),
        (&["--access-log", "all"], [5, 3]),
        (&["--access-log", "sampled", "--access-log-ratio", "1"], [5, 3]),
        (&["--access-log", "sampled", "--access-log-ratio", "0.000001"], [0, 3]),
    ];
    for (flags, expected) in cases {
        let mut server = Server::start_with(repo.path(), flags);
        let mut client = server.client().await;
        for _ in 0..5 {
            client.model_infer(infer("good")).await.expect("an answer");
        }
        for _ in 0..3 {
            let wrong = ModelInferRequest { model_name: "nobody".to_owned(), ..infer("bad") };
            client.model_infer(wrong).await.expect_err("a refusal");
        }
        drop(client);
        let lines = lines(&mut server);
        let count = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
        assert_eq!(
            [count(" ModelInfer OK "), count(" ModelInfer NOT_FOUND: ")],
            expected,
            "{flags:?}\n{lines:#?}"
        );
    }
}

#[test]
fn a_part_that_is_none_is_refused() {
    let repo = repository();
    for ratio in ["0", "-1", "1.5", "NaN"] {
        let path = repo.path().display().to_string();
        let ratio = format!("--access-log-ratio={ratio}");
        let output = crate::harness::run(&["serve", "--model-repository", &path, &ratio]);
        let errors = crate::harness::stderr(&output);
        assert!(output.status.code() == Some(1) && errors.contains("above 0 and up to 1"), "{errors}");
    }
}
