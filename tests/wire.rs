//! Messages on the wire: framing, encodings, sizes and the budget, said right and wrong.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    process::Command,
};

use bytes::Bytes;
use flate2::{Compression, FlushCompress, read, write};
use http::Method;
use prost::Message;
use sconce_proto::inference::{
    InferTensorContents, ModelInferRequest, ModelInferResponse, ServerLiveResponse,
};
use tonic::{Code, codec::CompressionEncoding};

use crate::{
    harness::{PATIENCE, Repo, Server, as_fp32, fp32, output, request, sconce},
    raw::{Answer, Raw, SERVICE, framed, prefixed},
    statistics::metric,
};

const VALUES: [f32; 3] = [1.0, -2.5, 3.25];

fn start(arguments: &[&str]) -> (Repo, Server) {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    let server = Server::start_with(repo.path(), arguments);
    (repo, server)
}

fn good() -> ModelInferRequest {
    request("echo", &[("x", "FP32", &[3], fp32(&VALUES))])
}

/// A request whose message has exactly so many bytes, or a few less.
fn sized(bytes: usize) -> Vec<u8> {
    let mut request = good();
    request.id = "i".repeat(bytes - request.encoded_len() - 8);
    request.encode_to_vec()
}

#[track_caller]
fn assert_good(answer: &Answer) {
    let response: ModelInferResponse = answer.message().expect("a good answer");
    assert_eq!(as_fp32(output(&response, "OUTPUT__0").2), VALUES);
}

#[track_caller]
fn refused(answer: &Answer, code: Code, part: &str) {
    let status = answer.status();
    assert_eq!(status.code(), code, "{}", status.message());
    assert!(status.message().contains(part), "{part:?} is not in: {}", status.message());
    assert!(!status.message().contains('\n') && status.message().len() < 1000, "{}", status.message());
    assert!(answer.body.is_empty(), "a refusal has no message");
}

/// The server answers a good request, also on this connection.
async fn goes_on(connection: &Raw) {
    assert_good(&connection.call("ModelInfer", &good()).await);
}

/// Whoever has shaken hands may say nothing for as long as he likes.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_finish_his_handshake_loses_his_connection() {
    let (_repo, server) = start(&[]);
    let idle = Raw::connect(&server).await;
    const PREFACE: &str = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let connect = |said: String| {
        let mut stream = TcpStream::connect(&server.grpc).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(said.as_bytes()).expect("written");
        stream
    };
    let said =
        [String::new(), PREFACE[..15].to_owned(), PREFACE.to_owned(), format!("{PREFACE}\0\0\u{6}\u{4}")];
    for mut stream in said.map(connect) {
        // It is reset where something was left unread.
        let ended = stream.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
        assert!(matches!(ended, Ok(_) | Err(ErrorKind::ConnectionReset)), "it is open for ever: {ended:?}");
    }
    goes_on(&idle).await;
}

fn pack(encoding: &str, data: &[u8]) -> Vec<u8> {
    let level = Compression::fast();
    match encoding {
        "gzip" => {
            let mut encoder = write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(data).expect("a write");
            encoder.finish().expect("an end")
        }
        "deflate" => {
            let mut encoder = write::ZlibEncoder::new(Vec::new(), level);
            encoder.write_all(data).expect("a write");
            encoder.finish().expect("an end")
        }
        _ => zstd::encode_all(data, 1).expect("zstd"),
    }
}

fn unpack(encoding: &str, data: &[u8]) -> Vec<u8> {
    let mut unpacked = Vec::new();
    match encoding {
        "gzip" => read::GzDecoder::new(data).read_to_end(&mut unpacked).expect("gzip"),
        "deflate" => read::ZlibDecoder::new(data).read_to_end(&mut unpacked).expect("deflate"),
        _ => zstd::Decoder::new(data).expect("zstd").read_to_end(&mut unpacked).expect("zstd"),
    };
    unpacked
}

#[tokio::test]
async fn a_compressed_request_gets_an_answer_in_the_same_encoding() {
    let (_repo, server) = start(&[]);
    let connection = Raw::connect(&server).await;
    for encoding in ["gzip", "deflate", "zstd"] {
        let packed = pack(encoding, &good().encode_to_vec());
        let body = prefixed(1, packed.len(), &packed);
        let headers = [("grpc-encoding", encoding), ("grpc-accept-encoding", "identity, gzip,deflate,zstd")];
        let answer = connection.send("ModelInfer", &headers, body.clone()).await;
        assert_eq!(answer.status().code(), Code::Ok);
        assert_eq!(answer.headers["grpc-encoding"], encoding);
        assert_eq!(answer.body[0], 1, "compressed");
        let response = ModelInferResponse::decode(&*unpack(encoding, &answer.body[5..])).expect("a response");
        assert_eq!(as_fp32(output(&response, "OUTPUT__0").2), VALUES);
        // Who does not say that it understands the encoding gets none.
        let answer = connection.send("ModelInfer", &headers[..1], body.clone()).await;
        assert!(!answer.headers.contains_key("grpc-encoding"));
        assert_good(&answer);
        // A call may leave single messages uncompressed, and only the flag says so.
        assert_good(&connection.send("ModelInfer", &headers[..1], framed(&good().encode_to_vec())).await);
        let broken = prefixed(1, packed.len() - 6, &packed[..packed.len() - 6]);
        let answer = connection.send("ModelInfer", &headers, broken).await;
        refused(&answer, Code::InvalidArgument, &format!("not valid {encoding}"));
        let answer = connection.send("ModelInfer", &headers, framed(&packed)).await;
        refused(&answer, Code::InvalidArgument, "not valid protobuf");
    }
}

#[tokio::test]
async fn a_client_that_compresses_works_as_it_is() {
    let (_repo, server) = start(&[]);
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Deflate, CompressionEncoding::Zstd] {
        let mut client = server.client().await.send_compressed(encoding).accept_compressed(encoding);
        let values: Vec<f32> = [1.0, 2.0, 3.5, -4.0].repeat(25_000);
        let sent = request("echo", &[("x", "FP32", &[100_000], fp32(&values))]);
        let response = client.model_infer(sent).await.expect("an answer").into_inner();
        assert_eq!(as_fp32(output(&response, "OUTPUT__0").2), values);
    }
}

#[tokio::test]
async fn the_server_chooses_the_encoding_of_answers_when_it_is_told_to() {
    let (_repo, server) = start(&["--response-compression", "zstd"]);
    let connection = Raw::connect(&server).await;
    let body = framed(&good().encode_to_vec());
    let answer = connection.send("ModelInfer", &[("grpc-accept-encoding", "gzip, zstd")], body.clone()).await;
    assert_eq!(answer.headers["grpc-encoding"], "zstd");
    let answer = connection.send("ModelInfer", &[("grpc-accept-encoding", "gzip")], body).await;
    assert!(!answer.headers.contains_key("grpc-encoding"));
    assert_good(&answer);
}

/// So many MiB of zeros, compressed without ever having them: one MiB again and again.
fn bomb(encoding: &str, mebibytes: usize) -> Vec<u8> {
    let zeros = vec![0; 1 << 20];
    if encoding == "zstd" {
        return zstd::encode_all(&*zeros, 1).expect("zstd").repeat(mebibytes);
    }
    // Between full flushes a piece of a deflate stream stands alone.
    let mut deflate = flate2::Compress::new(Compression::fast(), false);
    let mut piece = Vec::with_capacity(1 << 20);
    for _ in 0..2 {
        piece.clear();
        deflate.compress_vec(&zeros, &mut piece, FlushCompress::Full).expect("deflate");
    }
    let head: &[u8] =
        if encoding == "gzip" { &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255] } else { &[0x78, 0x01] };
    [head, &piece.repeat(mebibytes)].concat()
}

/// The most memory that the server has had, in bytes.
fn peak(server: &Server) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("its status");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    let kib: usize = line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number");
    kib * 1024
}

#[tokio::test]
async fn a_compressed_bomb_is_refused_at_the_bound_and_costs_no_memory() {
    for arguments in [["--max-message-size", "8MiB"], ["--receive-budget", "8MiB"]] {
        let (_repo, server) = start(&arguments);
        let connection = Raw::connect(&server).await;
        goes_on(&connection).await;
        let before = peak(&server);
        for encoding in ["gzip", "deflate", "zstd"] {
            let packed = bomb(encoding, 512);
            assert!(packed.len() < 8 << 20, "the bomb itself is small enough to be taken");
            let headers = [("grpc-encoding", encoding)];
            let answer = connection.send("ModelInfer", &headers, prefixed(1, packed.len(), &packed)).await;
            refused(&answer, Code::ResourceExhausted, arguments[0]);
            goes_on(&connection).await;
        }
        let grown = peak(&server) - before;
        assert!(grown < 100 << 20, "512 MiB of zeros took {} MiB", grown >> 20);
    }
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_by_its_prefix_and_one_below_is_taken() {
    let (_repo, server) = start(&["--max-message-size", "64KiB"]);
    let connection = Raw::connect(&server).await;
    let below = sized(64 << 10);
    assert!(below.len() <= 64 << 10 && below.len() > (64 << 10) - 16);
    assert_good(&connection.send("ModelInfer", &[], framed(&below)).await);
    // Nothing but the prefix has been sent, and the answer is there.
    let mut open = connection.begin("ModelInfer", &[]).await.expect("a stream");
    open.body.send_data(prefixed(0, (64 << 10) + 1, &[]).into(), false).expect("a body");
    refused(&open.finish().await, Code::ResourceExhausted, "--max-message-size");
    let answer = connection.send("ServerLive", &[], framed(&sized(65 << 10))).await;
    refused(&answer, Code::ResourceExhausted, "limit of 65536 bytes");
    goes_on(&connection).await;
}

#[tokio::test]
async fn what_exceeds_the_receive_budget_is_refused_and_given_back() {
    let (_repo, server) = start(&["--receive-budget", "1MiB"]);
    let connection = Raw::connect(&server).await;
    for _ in 0..20 {
        let answer = connection.send("ModelInfer", &[], framed(&sized(3 << 20))).await;
        refused(&answer, Code::ResourceExhausted, "--receive-budget");
        assert_good(&connection.send("ModelInfer", &[], framed(&sized(900 << 10))).await);
    }
}

#[tokio::test]
async fn the_receive_budget_is_shared_by_connections_and_freed_when_a_client_goes() {
    let (_repo, server) = start(&["--receive-budget", "1MiB"]);
    let (mut holder, other) = (Raw::connect(&server).await, Raw::connect(&server).await);
    let message = sized(700 << 10);
    // Either may be the one that comes too late; until it is the other.
    let mut held = loop {
        let mut held = holder.begin("ModelInfer", &[]).await.expect("a stream");
        held.body.send_data(prefixed(0, 800 << 10, &message).into(), false).expect("a body");
        holder.ping().await;
        holder.ping().await;
        let answer = other.send("ModelInfer", &[], framed(&message)).await;
        if answer.status().code() == Code::ResourceExhausted {
            break held;
        }
        assert_good(&answer);
        held.body.send_reset(h2::Reason::CANCEL);
    };
    held.body.send_reset(h2::Reason::CANCEL);
    while other.send("ModelInfer", &[], framed(&message)).await.status().code() != Code::Ok {}
}

#[tokio::test]
async fn a_request_whose_contents_were_copied_holds_its_place_until_it_is_answered() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    repo.identity("pairs/1/model.pt");
    // The first of two waits for the second.
    repo.file(
        "pairs/config.yaml",
        "max_batch_size: 2\ninputs: [{name: x, dtype: FP32, shape: [-1]}]\n\
         batching: {max_delay: 60s, preferred_sizes: [2]}\nwarmup: off\n",
    );
    let server = Server::start_with(repo.path(), &["--receive-budget", "1MiB"]);
    let mut connection = Raw::connect(&server).await;
    let typed = |count: usize| {
        let mut request = request("pairs", &[("x", "FP32", &[1, count as i64], Vec::new())]);
        request.raw_input_contents.clear();
        let contents = InferTensorContents { fp32_contents: vec![1.0; count], ..Default::default() };
        request.inputs[0].contents = Some(contents);
        request
    };
    let typed = typed(70 << 10);
    let other = framed(&sized(900 << 10));
    for method in ["ModelInfer", "ModelStreamInfer"] {
        let mut waits = connection.begin(method, &[]).await.expect("a stream");
        waits.body.send_data(framed(&typed.encode_to_vec()).into(), true).expect("a body");
        let queued = [("model", "pairs")];
        while metric(&server.get("/metrics").1, "sconce_queued_requests", &queued) != Some(1.0) {
            connection.ping().await;
        }
        let refused_one = connection.send("ModelInfer", &[], other.clone()).await;
        refused(&refused_one, Code::ResourceExhausted, "--receive-budget");
        let second = connection.call("ModelInfer", &typed).await;
        assert_eq!(second.status().code(), Code::Ok, "{method}");
        assert_eq!(waits.finish().await.status().code(), Code::Ok, "{method}");
        while connection.send("ModelInfer", &[], other.clone()).await.status().code() != Code::Ok {}
    }
}

#[tokio::test]
async fn answers_that_nobody_reads_are_bounded_and_freed_when_they_are_read() {
    let (_repo, server) = start(&["--send-budget", "1MiB"]);
    let stream = tokio::net::TcpStream::connect(&server.grpc).await.expect("a connection");
    let (lazy, other) = (Raw::with_window(stream, 1000).await, Raw::connect(&server).await);
    let message = framed(&sized(700 << 10));
    for _ in 0..3 {
        let mut unread = lazy.begin("ModelInfer", &[]).await.expect("a stream");
        unread.body.send_data(message.clone().into(), true).expect("a body");
        // Its headers are here, its message is in the server's memory.
        let answer = (&mut unread.answer).await.expect("headers");
        let refused_one = other.send("ModelInfer", &[], message.clone()).await;
        refused(&refused_one, Code::ResourceExhausted, "--send-budget");
        let mut body = answer.into_body();
        while let Some(data) = body.data().await {
            body.flow_control().release_capacity(data.expect("data").len()).expect("room");
        }
        while other.send("ModelInfer", &[], message.clone()).await.status().code() != Code::Ok {}
    }
}

#[test]
fn connections_leave_files_to_whoever_asks_how_the_server_is() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 200 && exec \"$@\"", "sh"]).arg(sconce().get_program());
    for (name, _) in sconce().get_envs() {
        command.env_remove(name);
    }
    let server = Server::spawn_by(command, repo.path(), &[]);
    server.wait_for("ready, serving");
    let connections: Vec<_> =
        (0..180).map(|_| TcpStream::connect(&server.grpc).expect("a place in the queue")).collect();
    server.wait_for("100 connections are open");
    assert_eq!(server.get("/health/live").0, 200);
    assert_eq!(server.get("/metrics").0, 200);
    drop(connections);
}

#[tokio::test]
async fn what_is_no_message_is_an_invalid_argument() {
    let (_repo, server) = start(&[]);
    let connection = Raw::connect(&server).await;
    let whole = good().encode_to_vec();
    let cases = [
        ("empty", Vec::new(), "it is empty"),
        ("a part of the prefix", vec![0, 0, 0], "ends in its prefix"),
        ("an unknown flag", prefixed(2, whole.len(), &whole), "first byte"),
        ("compressed with nothing", prefixed(1, whole.len(), &whole), "grpc-encoding"),
        ("longer than it is", prefixed(0, whole.len() + 1, &whole), "ends after"),
        ("shorter than it is", prefixed(0, whole.len() - 1, &whole), "second message"),
        ("two messages", [framed(&whole), framed(&whole)].concat(), "second message"),
        ("no protobuf", framed(&[0xff; 40]), "not valid protobuf"),
        ("cut protobuf", framed(&whole[..whole.len() - 1]), "not valid protobuf"),
        ("a huge claim", prefixed(0, i32::MAX as usize, &whole), "ends after"),
    ];
    for (what, body, part) in cases {
        let answer = connection.send("ModelInfer", &[], body).await;
        assert_eq!(answer.http, 200, "{what}");
        refused(&answer, Code::InvalidArgument, part);
        goes_on(&connection).await;
    }
}

#[tokio::test]
async fn no_rpc_takes_protobuf_that_is_none() {
    let (_repo, server) = start(&[]);
    let connection = Raw::connect(&server).await;
    for rpc in ["ModelReady", "ServerLive", "ModelMetadata", "ModelConfig", "RepositoryIndex", "ModelInfer"] {
        let answer = connection.send(rpc, &[], framed(&[0x0a, 0xff, 0xff, 0x01])).await;
        refused(&answer, Code::InvalidArgument, "not valid protobuf");
    }
    goes_on(&connection).await;
}

#[tokio::test]
async fn a_message_may_come_in_frames_of_any_size() {
    let (_repo, server) = start(&[]);
    let mut connection = Raw::connect(&server).await;
    let body = framed(&good().encode_to_vec());
    for size in [1, 2, 3, 4, 5, 6, 7, body.len() - 1] {
        let mut open = connection.begin("ModelInfer", &[]).await.expect("a stream");
        for piece in body.chunks(size) {
            open.body.send_data(Bytes::copy_from_slice(piece), false).expect("a piece");
            connection.ping().await;
        }
        // Empty frames say nothing.
        open.body.send_data(Bytes::new(), false).expect("a piece");
        open.body.send_data(Bytes::new(), true).expect("a piece");
        assert_good(&open.finish().await);
    }
}

#[tokio::test]
async fn an_unknown_encoding_is_answered_with_those_that_are_known() {
    let (_repo, server) = start(&[]);
    let connection = Raw::connect(&server).await;
    let body = framed(&good().encode_to_vec());
    for encoding in ["br", "snappy", "GZIP", "gzip, zstd"] {
        let answer = connection.send("ModelInfer", &[("grpc-encoding", encoding)], body.clone()).await;
        refused(&answer, Code::Unimplemented, encoding);
        assert_eq!(answer.headers.get_all("grpc-accept-encoding").iter().count(), 1);
        assert_eq!(answer.headers["grpc-accept-encoding"], "identity,gzip,deflate,zstd");
    }
    let answer = connection.send("ModelInfer", &[("grpc-encoding", "identity")], body).await;
    assert_good(&answer);
}

#[tokio::test]
async fn a_timeout_that_is_none_is_refused() {
    let (_repo, server) = start(&[]);
    let connection = Raw::connect(&server).await;
    let body = framed(&good().encode_to_vec());
    for timeout in ["5", "S", "-5S", "1.5S", "5s", "123456789S", "5 S", "\u{e9}"] {
        let answer = connection.send("ModelInfer", &[("grpc-timeout", timeout)], body.clone()).await;
        refused(&answer, Code::InvalidArgument, "grpc-timeout");
    }
    for timeout in ["99999999H", "60000m", "60S", "1M"] {
        assert_good(&connection.send("ModelInfer", &[("grpc-timeout", timeout)], body.clone()).await);
    }
}

#[tokio::test]
async fn what_is_not_grpc_is_told_so() {
    let (_repo, server) = start(&[]);
    let connection = Raw::connect(&server).await;
    let body = framed(&good().encode_to_vec());
    for content_type in ["", "application/json", "text/plain"] {
        let answer = connection.send("ModelInfer", &[("content-type", content_type)], body.clone()).await;
        assert_eq!(answer.http, 415, "{content_type:?}");
        refused(&answer, Code::InvalidArgument, "content-type application/grpc");
    }
    let answer = connection.send("ModelInfer", &[("content-type", "application/grpc+proto")], body).await;
    assert_good(&answer);
    let get = http::Request::builder().method(Method::GET).uri(format!("http://sconce/{SERVICE}/ModelInfer"));
    let mut requests = connection.requests.clone().ready().await.expect("a connection");
    let (answer, _) = requests.send_request(get.body(()).expect("a request"), true).expect("a stream");
    assert_eq!(answer.await.expect("an answer").status(), 415);
    goes_on(&connection).await;
}

#[tokio::test]
async fn what_nobody_serves_is_unimplemented() {
    let (_repo, server) = start(&[]);
    let connection = Raw::connect(&server).await;
    let paths = [
        "Nothing",
        "",
        "modelinfer",
        "ModelInfer/",
        "/no.such.Service/Method",
        "/",
        "/grpc.health.v1.Health/No",
    ];
    for path in paths {
        let answer = connection.send(path, &[], framed(&[])).await;
        assert_eq!((answer.http, answer.status().code()), (200, Code::Unimplemented), "{path}");
    }
    let path = format!("/{SERVICE}/{}", "%0A".repeat(3000));
    refused(&connection.send(&path, &[], framed(&[])).await, Code::Unimplemented, "is not served");
    goes_on(&connection).await;
}

#[tokio::test]
async fn another_protocol_on_the_port_ends_its_connection_only() {
    let (_repo, server) = start(&[]);
    let connection = Raw::connect(&server).await;
    let (http1, tls) =
        (b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01]);
    for garbage in [http1, [tls, vec![0; 600]].concat(), vec![b'\n'; 100_000]] {
        let address = server.grpc.clone();
        let closed = tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(address).expect("a connection");
            // The server may hang up before it has read all.
            let _ = stream.write_all(&garbage);
            let _ = stream.read_to_end(&mut Vec::new());
        });
        closed.await.expect("the server closes the connection");
    }
    let live: ServerLiveResponse =
        connection.send("ServerLive", &[], framed(&[])).await.message().expect("live");
    assert!(live.live);
    goes_on(&connection).await;
}
