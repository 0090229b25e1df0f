//! Many calls, large ones, slow ones, late ones, and clients that give up.

use std::{
    io::{Read, Write},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message;
use sconce_proto::inference::{ModelInferRequest, ModelInferResponse};
use tonic::Code;

use crate::{
    harness::{PATIENCE, Repo, Server, as_fp32, fp32, output, request},
    raw::{Raw, framed},
};

fn repository() -> Repo {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    repo
}

fn echo(values: &[f32]) -> ModelInferRequest {
    request("echo", &[("x", "FP32", &[i64::try_from(values.len()).expect("few")], fp32(values))])
}

#[track_caller]
fn assert_echo(response: &ModelInferResponse, values: &[f32]) {
    assert_eq!(as_fp32(output(response, "OUTPUT__0").2), values);
}

#[tokio::test]
async fn a_large_tensor_comes_back_as_it_went() {
    let repo = repository();
    let server = Server::start(repo.path());
    let data: Vec<u8> =
        (0..64u32 << 18).flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    assert_eq!(data.len(), 64 << 20);
    // Bytes, so that no NaN is one to compare.
    let sent = request("echo", &[("x", "UINT8", &[1024, 65536], data.clone())]);
    let response = server.infer(sent).await.expect("an answer");
    let (datatype, shape, raw) = output(&response, "OUTPUT__0");
    assert_eq!((datatype, shape), ("UINT8", &[1024, 65536][..]));
    assert!(raw == data, "the tensor has changed on its way");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_requests_on_one_connection_get_each_their_own_answer() {
    let repo = repository();
    let server = Server::start(repo.path());
    let client = server.client().await;
    let callers: Vec<_> = (0..100u16)
        .map(|caller| {
            let mut client = client.clone();
            tokio::spawn(async move {
                for call in 0..20u16 {
                    let values = [f32::from(caller), f32::from(call)];
                    let mut sent = echo(&values);
                    sent.id = format!("{caller}-{call}");
                    let response = client.model_infer(sent).await.expect("an answer").into_inner();
                    assert_eq!(response.id, format!("{caller}-{call}"));
                    assert_echo(&response, &values);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("right answers");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_connections_are_served_at_once() {
    let repo = repository();
    let server = Arc::new(Server::start(repo.path()));
    let mut clients = Vec::new();
    for _ in 0..50 {
        clients.push(server.client().await);
    }
    let callers: Vec<_> = clients
        .into_iter()
        .zip(0u16..)
        .map(|(mut client, number)| {
            tokio::spawn(async move {
                for _ in 0..10 {
                    let response = client.model_infer(echo(&[f32::from(number)])).await.expect("an answer");
                    assert_echo(response.get_ref(), &[f32::from(number)]);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("right answers");
    }
}

#[tokio::test]
async fn more_calls_than_a_connection_may_have_wait_at_the_client() {
    let repo = repository();
    let server = Server::start_with(repo.path(), &["--max-concurrent-streams", "3"]);
    let connection = Raw::connect(&server).await;
    let body = framed(&echo(&[1.0]).encode_to_vec());
    let mut opened = Vec::new();
    for _ in 0..3 {
        opened.push(connection.begin("ModelInfer", &[]).await.expect("a stream"));
    }
    let mut client = server.client().await;
    for _ in 0..10 {
        client.model_infer(echo(&[2.0])).await.expect("other connections are not bound by it");
    }
    for mut open in opened {
        open.body.send_data(body.clone().into(), true).expect("a body");
        assert_echo(&open.finish().await.message().expect("an answer"), &[1.0]);
    }
}

#[tokio::test]
async fn a_slow_client_delays_no_other() {
    let repo = repository();
    let server = Server::start(repo.path());
    let (mut slow, fast) = (Raw::connect(&server).await, Raw::connect(&server).await);
    let body = framed(&echo(&[5.0]).encode_to_vec());
    let mut open = slow.begin("ModelInfer", &[]).await.expect("a stream");
    for (index, byte) in body.iter().enumerate() {
        open.body.send_data(Bytes::from(vec![*byte]), index + 1 == body.len()).expect("a byte");
        slow.ping().await;
        // Whole calls fit between two bytes of the slow one, on another connection and on the same.
        for connection in [&fast, &slow] {
            assert_echo(
                &connection.call("ModelInfer", &echo(&[6.0])).await.message().expect("an answer"),
                &[6.0],
            );
        }
    }
    assert_echo(&open.finish().await.message().expect("an answer"), &[5.0]);
}

#[tokio::test]
async fn a_client_that_does_not_read_delays_no_other() {
    let repo = repository();
    let server = Server::start(repo.path());
    let stream = tokio::net::TcpStream::connect(&server.grpc).await.expect("a connection");
    // It grants 64 KiB, asks for much more and reads nothing of it.
    let (requests, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let body = framed(&echo(&vec![1.0; 1 << 20]).encode_to_vec());
    let mut answers = Vec::new();
    for _ in 0..4 {
        let path = format!("http://sconce/{}/ModelInfer", crate::raw::SERVICE);
        let post = http::Request::post(path).header("content-type", "application/grpc");
        let mut requests = requests.clone().ready().await.expect("a connection");
        let (answer, mut send) =
            requests.send_request(post.body(()).expect("a request"), false).expect("a stream");
        send.send_data(body.clone().into(), true).expect("a body");
        answers.push(answer.await.expect("the head of an answer"));
    }
    let other = Raw::connect(&server).await;
    for _ in 0..20 {
        assert_echo(&other.call("ModelInfer", &echo(&[6.0])).await.message().expect("an answer"), &[6.0]);
    }
    connection.abort();
    drop(answers);
    assert_echo(&other.call("ModelInfer", &echo(&[7.0])).await.message().expect("an answer"), &[7.0]);
}

#[tokio::test]
async fn a_thousand_streams_reset_in_the_middle_leave_the_server_as_it_was() {
    let repo = repository();
    let server = Server::start_with(repo.path(), &["--receive-budget", "4MiB"]);
    let body = Bytes::from(framed(&echo(&vec![1.0; 20_000]).encode_to_vec()));
    let mut connection = Raw::connect(&server).await;
    for round in 0..1000 {
        let opened = connection.begin("ModelInfer", &[]).await;
        let Ok(mut open) = opened else {
            // The server may hang up on a connection that does nothing but reset.
            connection = Raw::connect(&server).await;
            continue;
        };
        let part = match round % 4 {
            0 => body.slice(..0),
            1 => body.slice(..3),
            2 => body.slice(..body.len() / 2),
            _ => body.clone(),
        };
        let _ = open.body.send_data(part.clone(), part.len() == body.len());
        if round % 3 == 0 {
            connection.requests.clone().ready().await.ok();
        }
        open.body.send_reset(h2::Reason::CANCEL);
    }
    // Nothing of the budget is lost: a message that needs most of it is taken, as soon as the server
    // has seen all the resets.
    let large = vec![2.0; 800_000];
    let fresh = Raw::connect(&server).await;
    let response: ModelInferResponse = loop {
        match fresh.call("ModelInfer", &echo(&large)).await.message() {
            Ok(response) => break response,
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status}"),
        }
    };
    assert_echo(&response, &large);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[tokio::test]
async fn a_deadline_that_has_passed_is_answered_with_deadline_exceeded() {
    let repo = repository();
    let server = Server::start(repo.path());
    let connection = Raw::connect(&server).await;
    let body = framed(&echo(&[1.0]).encode_to_vec());
    for timeout in ["0S", "0n", "1n"] {
        let answer = connection.send("ModelInfer", &[("grpc-timeout", timeout)], body.clone()).await;
        let status = answer.status();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{timeout}: {status}");
        assert!(status.message().contains("Deadline Exceeded"), "{status}");
    }
    // It binds while the message is being received, too.
    let mut open = connection.begin("ModelInfer", &[("grpc-timeout", "30m")]).await.expect("a stream");
    open.body.send_data(Bytes::copy_from_slice(&body[..10]), false).expect("a part");
    assert_eq!(open.finish().await.status().code(), Code::DeadlineExceeded);
    assert_echo(&connection.call("ModelInfer", &echo(&[6.0])).await.message().expect("an answer"), &[6.0]);
}

#[cfg(not(feature = "torch"))]
mod scripted {
    //! With runs that never end, or panic.

    use tokio::task::JoinSet;

    use super::*;

    /// How many requests may wait for a model.
    const QUEUE: usize = 2048;

    fn gated() -> Repo {
        let repo = repository();
        repo.file("gated/1/model.pt", "fake\nargument x tensor\ngate\n");
        repo
    }

    fn knock() -> Vec<u8> {
        framed(&request("gated", &[("x", "FP32", &[1], fp32(&[1.0]))]).encode_to_vec())
    }

    #[tokio::test]
    async fn a_deadline_binds_whether_its_request_runs_or_waits() {
        let repo = gated();
        let server = Server::start_with(repo.path(), &["--cpu-workers", "1"]);
        let connection = Raw::connect(&server).await;
        // The first runs for ever, all others wait behind it for ever.
        for _ in 0..5 {
            let answer = connection.send("ModelInfer", &[("grpc-timeout", "20m")], knock()).await;
            assert_eq!(answer.status().code(), Code::DeadlineExceeded);
            assert!(answer.status().message().contains("queued or running"), "{}", answer.status());
        }
    }

    #[tokio::test]
    async fn cancelled_calls_make_room_in_a_full_queue() {
        let repo = gated();
        let server =
            Server::start_with(repo.path(), &["--cpu-workers", "1", "--max-concurrent-streams", "4096"]);
        let connection = Raw::connect(&server).await;
        let mut waiting = JoinSet::new();
        // The server's limit of streams is known after its first answer.
        connection.send("ServerLive", &[], framed(&[])).await;
        for _ in 0..1 + QUEUE + 50 {
            let mut open = connection.begin("ModelInfer", &[]).await.expect("a stream");
            open.body.send_data(knock().into(), true).expect("a body");
            waiting.spawn(open.finish());
        }
        // One runs, the queue is full, the others are told at once.
        for _ in 0..50 {
            let answer =
                tokio::time::timeout(crate::harness::PATIENCE, waiting.join_next()).await.expect("a refusal");
            let status = answer.expect("an answer").expect("no panic").status();
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            assert!(status.message().contains(&format!("Exceeds maximum queue size: {QUEUE}")), "{status}");
        }
        let probe = async || {
            let answer = connection.send("ModelInfer", &[("grpc-timeout", "50m")], knock()).await;
            answer.status()
        };
        assert_eq!(probe().await.code(), Code::ResourceExhausted);
        waiting.shutdown().await;
        while probe().await.code() == Code::ResourceExhausted {}
        assert_eq!(probe().await.code(), Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn a_run_that_panics_fails_its_caller_only() {
        let repo = repository();
        repo.file("bomb/1/model.pt", "fake\nargument x tensor\npanic\n");
        repo.file("sour/1/model.pt", "fake\nargument x tensor\nfail the milk is off\n");
        let server = Server::start_with(repo.path(), &["--cpu-workers", "1"]);
        let connection = Raw::connect(&server).await;
        for _ in 0..10 {
            let sent = request("bomb", &[("x", "FP32", &[1], fp32(&[1.0]))]);
            let status = connection.call("ModelInfer", &sent).await.status();
            assert_eq!(status.code(), Code::Internal, "{status}");
            let sent = request("sour", &[("x", "FP32", &[1], fp32(&[1.0]))]);
            let status = connection.call("ModelInfer", &sent).await.status();
            assert_eq!(
                (status.code(), status.message()),
                (Code::Internal, "model 'sour' failed: the milk is off")
            );
            assert_echo(
                &connection.call("ModelInfer", &echo(&[6.0])).await.message().expect("an answer"),
                &[6.0],
            );
        }
    }
}

/// A frame of HTTP/2, as bytes.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[test]
fn callers_who_give_up_many_calls_at_once_end_no_connection() {
    const HEADERS: u8 = 1;
    const RESET: u8 = 3;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const GOAWAY: u8 = 7;
    let repo = repository();
    let server = Server::start(repo.path());
    // POST, http, and by HPACK's literals :path, :authority and content-type.
    let mut head = vec![0x83, 0x86];
    for (name, value) in [
        (&[0x04][..], "/inference.GRPCInferenceService/ModelInfer"),
        (&[0x01], "sconce"),
        (&[0x0f, 0x10], "application/grpc"),
    ] {
        head.extend_from_slice(name);
        head.push(u8::try_from(value.len()).expect("short"));
        head.extend_from_slice(value.as_bytes());
    }
    let mut said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    said.extend(frame(SETTINGS, 0, 0, &[]));
    for call in 0..200 {
        let stream = 2 * call + 1;
        said.extend(frame(HEADERS, 4, stream, &head));
        said.extend(frame(RESET, 0, stream, &8u32.to_be_bytes()));
    }
    said.extend(frame(PING, 0, 0, b"go on?!?"));
    let mut socket = std::net::TcpStream::connect(&server.grpc).expect("a connection");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    // All at once: the server finds calls that have been given up before it has looked at one.
    socket.write_all(&said).expect("a write");
    loop {
        let mut head = [0; 9];
        socket.read_exact(&mut head).expect("a frame");
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        socket.read_exact(&mut payload).expect("all of it");
        assert_ne!(head[3], GOAWAY, "the connection is ended: {}", String::from_utf8_lossy(&payload));
        if head[3] == PING && head[4] == 1 {
            assert_eq!(payload, b"go on?!?");
            return;
        }
    }
}
