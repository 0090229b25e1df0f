//! Conversations on the wire: frames, ends, callers who do not read, and their memory.

use std::{fs, time::Duration};

use bytes::Bytes;
use prost::Message;
use sconce_proto::inference::{ModelInferRequest, ModelStreamInferResponse};
use tokio::net::TcpStream;
use tonic::Code;

use crate::{
    harness::{PATIENCE, Repo, Server, as_fp32, fp32, output, request},
    raw::{Answer, Open, Raw, framed, prefixed},
};

/// So many requests of a stream are in flight at once.
const IN_FLIGHT: usize = 64;

fn ask(number: usize, elements: usize) -> ModelInferRequest {
    let data = fp32(&vec![number as f32; elements]);
    let shape = [i64::try_from(elements).expect("few")];
    ModelInferRequest { id: number.to_string(), ..request("echo", &[("x", "FP32", &shape, data)]) }
}

fn messages(count: usize, elements: usize) -> Vec<u8> {
    (0..count).flat_map(|number| framed(&ask(number, elements).encode_to_vec())).collect()
}

fn echo() -> Repo {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    repo
}

/// All messages of an answer.
fn answers(answer: &Answer) -> Vec<ModelStreamInferResponse> {
    let (mut rest, mut found) = (&answer.body[..], Vec::new());
    while !rest.is_empty() {
        let length = u32::from_be_bytes(rest[1..5].try_into().expect("four")) as usize;
        found.push(ModelStreamInferResponse::decode(&rest[5..5 + length]).expect("a message"));
        rest = &rest[5 + length..];
    }
    found
}

/// So many answers, each to the request of its number.
fn all_right(answer: &Answer, count: usize) {
    assert_eq!(answer.status().code(), Code::Ok, "{}", answer.status());
    let answers = answers(answer);
    assert_eq!(answers.len(), count);
    for (number, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.error_message, "");
        let response = answer.infer_response.expect("an answer");
        assert_eq!(response.id, number.to_string());
        assert!(as_fp32(output(&response, "OUTPUT__0").2).iter().all(|value| *value == number as f32));
    }
}

#[tokio::test]
async fn messages_are_found_however_they_are_cut_into_frames() {
    let repo = echo();
    let server = Server::start(repo.path());
    let connection = Raw::connect(&server).await;
    // Small ones many to a frame, large ones of many frames.
    for (count, elements, steps) in [(1000, 4, &[100, 4096][..]), (100, 4, &[1, 7]), (5, 300_000, &[4096])] {
        let data = Bytes::from(messages(count, elements));
        all_right(&connection.send("ModelStreamInfer", &[], data.clone()).await, count);
        for &step in steps {
            let mut open = connection.begin("ModelStreamInfer", &[]).await.expect("a stream");
            for part in data.chunks(step) {
                open.body.send_data(Bytes::copy_from_slice(part), false).expect("a part");
            }
            open.body.send_data(Bytes::new(), true).expect("the end");
            all_right(&open.finish().await, count);
        }
    }
}

#[tokio::test]
async fn what_is_wrong_with_the_wire_ends_the_stream_after_what_was_right() {
    let repo = echo();
    let server = Server::start_with(repo.path(), &["--max-message-size", "1KiB"]);
    let connection = Raw::connect(&server).await;
    let cases = [
        (framed(&[0xff, 0xff]), Code::InvalidArgument, "not valid protobuf"),
        (prefixed(2, 0, &[]), Code::InvalidArgument, "its first byte must be 0 or 1"),
        (prefixed(1, 1, &[0]), Code::InvalidArgument, "does not say how"),
        (prefixed(0, 9, &[0]), Code::InvalidArgument, "it says 9 bytes and ends after 1"),
        (vec![0, 0], Code::InvalidArgument, "it ends in its prefix"),
        (framed(&[0; 1025]), Code::ResourceExhausted, "over the limit of 1024 bytes"),
    ];
    for (wrong, code, text) in cases {
        let answer = connection.send("ModelStreamInfer", &[], [messages(3, 4), wrong].concat()).await;
        let status = answer.status();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(text), "{text:?} is not in {status}");
        assert_eq!(answers(&answer).len(), 3);
    }
}

fn resident(server: &Server) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("its status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a size");
    line.split_whitespace().nth(1).and_then(|size| size.parse::<usize>().ok()).expect("a number") * 1024
}

/// Sends as much as the server takes; how many bytes that was.
async fn stuff(open: &mut Open, data: &Bytes) -> usize {
    let mut sent = 0;
    loop {
        open.body.reserve_capacity(data.len());
        let granted = std::future::poll_fn(|context| open.body.poll_capacity(context));
        // Nothing more is granted: the server has been sent all that it takes.
        let Ok(granted) = tokio::time::timeout(Duration::from_secs(1), granted).await else { return sent };
        let granted = granted.expect("a stream").expect("capacity");
        let part = data.slice(sent % data.len()..data.len().min(sent % data.len() + granted));
        sent += part.len();
        open.body.send_data(part, false).expect("a part");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_not_read_from_and_slows_nobody() {
    let repo = echo();
    let server = Server::start(repo.path());
    // Each answer is 1 MiB, and the client takes 64 KiB before it reads.
    let stream = TcpStream::connect(&server.grpc).await.expect("a connection");
    let deaf = Raw::with_window(stream, 65_535).await;
    let before = resident(&server);
    let mut open = deaf.begin("ModelStreamInfer", &[]).await.expect("a stream");
    let message = Bytes::from(framed(&ask(0, 1 << 18).encode_to_vec()));
    let sent = stuff(&mut open, &message).await;
    // What is in flight, its answers, and what HTTP/2's windows let a client send ahead.
    let bound = (2 * IN_FLIGHT + 32) << 20;
    assert!(sent < bound, "{sent} bytes were taken in");
    let grown = resident(&server).saturating_sub(before);
    assert!(grown < bound, "{grown} bytes for one that does not read");
    let other = Raw::connect(&server).await;
    all_right(&other.send("ModelStreamInfer", &[], messages(200, 4)).await, 200);
    // He goes, and what he had is dropped.
    drop((open, deaf));
    while !server.get("/models").1.contains("\"in_flight\": 0,") {
        tokio::task::yield_now().await;
    }
    all_right(&other.send("ModelStreamInfer", &[], messages(200, 4)).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_small_ones_without_end_before_he_reads_gets_all_answers() {
    let repo = echo();
    let server = Server::start(repo.path());
    let stream = TcpStream::connect(&server.grpc).await.expect("a connection");
    let connection = Raw::with_window(stream, 65_535).await;
    let mut open = connection.begin("ModelStreamInfer", &[]).await.expect("a stream");
    // Each in a frame of its own, as many clients send them.
    let mut sent = 0;
    loop {
        let message = Bytes::from(framed(&ask(sent, 1).encode_to_vec()));
        open.body.reserve_capacity(message.len());
        while open.body.capacity() < message.len() {
            let granted = std::future::poll_fn(|context| open.body.poll_capacity(context));
            match tokio::time::timeout(Duration::from_secs(1), granted).await {
                Ok(granted) => drop(granted.expect("a stream").expect("capacity")),
                // The server takes no more.
                Err(_) => break,
            }
        }
        if open.body.capacity() < message.len() {
            break;
        }
        open.body.send_data(message, false).expect("a part");
        sent += 1;
    }
    assert!(sent > 10 * IN_FLIGHT, "{sent}");
    open.body.send_data(Bytes::new(), true).expect("the end");
    all_right(&open.finish().await, sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_that_are_silent_cost_little_and_go_on() {
    let repo = echo();
    // 200 streams with 64 in flight each are more than may wait by default.
    repo.file("echo/config.yaml", "queue: {max_size: 20000}\n");
    let server = Server::start(repo.path());
    let connections = [Raw::connect(&server).await, Raw::connect(&server).await];
    let before = resident(&server);
    let mut streams = Vec::new();
    for number in 0..2000 {
        let mut open = connections[number % 2].begin("ModelStreamInfer", &[]).await.expect("a stream");
        open.body.send_data(framed(&ask(0, 4).encode_to_vec()).into(), false).expect("a part");
        streams.push(open);
    }
    // Two hundred that talk at the same time are answered as if they were alone.
    let mut busy = tokio::task::JoinSet::new();
    for number in 0..200 {
        let mut open = connections[number % 2].begin("ModelStreamInfer", &[]).await.expect("a stream");
        open.body.send_data(messages(100, 4).into(), true).expect("a part");
        busy.spawn(open.finish());
    }
    while let Some(answer) = busy.join_next().await {
        all_right(&answer.expect("an answer"), 100);
    }
    let each = resident(&server).saturating_sub(before) / streams.len();
    assert!(each < 64 << 10, "{each} bytes for each");
    for mut open in streams {
        open.body.send_data(Bytes::new(), true).expect("the end");
        all_right(&open.finish().await, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_stream_ends_after_its_answers() {
    let repo = echo();
    let server = Server::start_with(repo.path(), &["--max-stream-age", "200ms"]);
    let connection = Raw::connect(&server).await;
    let mut open = connection.begin("ModelStreamInfer", &[]).await.expect("a stream");
    open.body.send_data(messages(10, 4).into(), false).expect("a part");
    let answer = tokio::time::timeout(PATIENCE, open.finish()).await.expect("an end");
    assert_eq!(answers(&answer).len(), 10);
    assert_eq!(answer.status().code(), Code::Unavailable);
    assert!(answer.status().message().contains("--max-stream-age"), "{}", answer.status());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_answers_what_it_has_taken_in() {
    let repo = echo();
    let mut server = Server::start(repo.path());
    let mut connection = Raw::connect(&server).await;
    let mut open = connection.begin("ModelStreamInfer", &[]).await.expect("a stream");
    open.body.send_data(messages(10, 4).into(), false).expect("a part");
    connection.ping().await;
    server.signal("TERM");
    let answer = tokio::time::timeout(PATIENCE, open.finish()).await.expect("an end");
    assert_eq!(answers(&answer).len(), 10);
    assert_eq!(answer.status().code(), Code::Unavailable);
    assert!(answer.status().message().contains("shutting down"), "{}", answer.status());
    assert!(server.wait().success(), "{}", server.log());
}
