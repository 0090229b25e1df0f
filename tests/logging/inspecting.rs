//! `sconce models` and `/debug`: what a person asks a server that runs.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Output,
    time::Instant,
};

use serde_json::Value;

use crate::harness::{PATIENCE, Repo, Server, fp32, request, run, stderr, stdout};

fn models(address: &str, arguments: &[&str]) -> Output {
    run(&[&["models", "--metrics-address", address], arguments].concat())
}

/// Failed with one line on standard error that has all these parts, and nothing on standard output.
#[track_caller]
fn one_sentence(output: &Output, parts: &[&str]) {
    let errors = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.starts_with("error: ") && errors.trim_end().lines().count() == 1, "{errors}");
    for part in parts {
        assert!(errors.contains(part), "{part:?} is not in: {errors}");
    }
    assert_eq!(stdout(output), "");
}

fn repository() -> Repo {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    repo.identity("echo/2/model.pt");
    repo.file("echo/config.yaml", "versions: all\ninstances: 2\n");
    repo.file("broken/3/model.pt", "this is no model");
    repo
}

#[test]
fn models_are_told_to_people_and_to_machines() {
    let repo = repository();
    let server = Server::start_with(repo.path(), &["--cpu-workers", "2"]);
    let output = models(&server.http, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["MODEL", "VERSION", "STATE", "DEVICES", "RUNNING", "QUEUED", "LOADED"]);
    let broken = rows.iter().position(|row| row.starts_with(&["broken", "3"])).expect("a row");
    assert_eq!(rows[broken][2..], ["UNAVAILABLE", "-", "0", "0", "-"], "{text}");
    assert!(text.lines().nth(broken + 1).is_some_and(|line| line.starts_with("    ")), "{text}");
    for version in ["1", "2"] {
        let row = rows.iter().find(|row| row.starts_with(&["echo", version])).expect("a row");
        assert_eq!(row[2..8], ["READY", "cpu", "0", "of", "2", "0"], "{text}");
        assert!(row[8].starts_with("20") && row[8].ends_with('Z'), "{text}");
    }
    assert!(text.contains("\nDEVICE  STATE    IN FLIGHT"), "{text}");
    assert!(
        text.lines().any(|line| line.starts_with("cpu     healthy") && line.contains("of 2 busy")),
        "{text}"
    );
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");

    let one = stdout(&models(&server.http, &["echo"]));
    assert!(one.starts_with("echo: ready\n\nversion 1: READY\n  sha256      "), "{one}");
    assert!(one.contains("  devices     cpu; 2 runs at once\n"), "{one}");
    let reason = stdout(&models(&server.http, &["broken"]));
    assert!(reason.starts_with("broken: not ready\n\nversion 3: UNAVAILABLE\n  reason      "), "{reason}");
    assert!(reason.contains("  attempts    "), "{reason}");

    let json = stdout(&models(&server.http, &["--json"]));
    let all: Value = serde_json::from_str(&json).expect("JSON");
    let names: Vec<&Value> =
        all["models"].as_array().expect("a list").iter().map(|model| &model["name"]).collect();
    assert_eq!(names, ["broken", "echo"]);
    let one: Value = serde_json::from_str(&stdout(&models(&server.http, &["echo", "--json"]))).expect("JSON");
    assert_eq!((&one["name"], &one["versions"][1]["version"]), (&"echo".into(), &"2".into()));
}

#[test]
fn what_is_not_there_is_told_in_one_sentence() {
    let repo = repository();
    let server = Server::start(repo.path());
    one_sentence(&models(&server.http, &["ecko"]), &["no model named 'ecko'", "it has echo"]);
    one_sentence(&models(&server.http, &["x\n"]), &["no model named 'x\\n'", "it has broken, echo"]);
    // The port of gRPC, where HTTP/1.1 is not spoken.
    one_sentence(&models(&server.grpc, &[]), &[&server.grpc, "--metrics-address", "gRPC"]);
    let free =
        TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").to_string();
    one_sentence(&models(&free, &[]), &["no server answers", &free, "sconce serve"]);
    for address in ["off", "nowhere", "localhost:x"] {
        one_sentence(&models(address, &[]), &[address, "HOST:PORT"]);
    }
    // Somebody else's server, and one that says nothing.
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = other.local_addr().expect("an address").to_string();
    let answering = std::thread::spawn(move || {
        for answer in [
            "HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\n\r\nnone\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n<>",
        ] {
            let (mut stream, _) = other.accept().expect("a connection");
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).expect("a request");
            stream.write_all(answer.as_bytes()).expect("an answer");
        }
        other
    });
    one_sentence(&models(&address, &[]), &[&address, "404 Not Found", "\"none\"", "--metrics-address"]);
    one_sentence(&models(&address, &[]), &[&address, "does not tell of models"]);
    let _silent = answering.join().expect("both have been answered");
    one_sentence(&models(&address, &["--timeout", "50ms"]), &[&address, "has not answered within 50ms"]);
}

/// Asks without waiting for an answer.
fn ask(server: &Server, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(&server.http).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: sconce\r\nconnection: close\r\n\r\n").expect("a request");
    stream
}

#[tokio::test]
async fn threads_and_workers_are_told_to_those_who_may_ask() {
    let repo = repository();
    let server = Server::start(repo.path());
    let (status, text) = server.get("/debug/threads");
    assert!(status == 404 && !text.contains("/debug"), "nobody has asked for it: {text}");
    let server = Server::start_with(repo.path(), &["--debug-endpoints", "--cpu-workers", "2"]);
    let (status, text) = server.get("/debug/threads");
    assert_eq!(status, 200, "{text}");
    for name in ["log", "reconcile", "cpu-0", "cpu-1", "WAITED FOR A CORE", "WORKER"] {
        assert!(text.contains(name), "{name} is not in {text}");
    }
    let (status, text) = server.get("/debug");
    assert!(status == 404 && text.contains("/debug/threads, /debug/profile"), "{text}");
    for wrong in ["seconds=0", "seconds=61", "second=1"] {
        let (status, text) = server.get(&format!("/debug/profile?{wrong}"));
        assert_eq!((status, text.contains(wrong), text.contains("1 to 60")), (400, true, true), "{text}");
    }
    let (status, text) = server.get("/debug/profile?seconds=1");
    assert!(status == 200 && text.contains("looks at the workers"), "{text}");
    // Of two that come at once either may be the first.
    let (mut profile, mut answer) = (ask(&server, "/debug/profile?seconds=60"), server.get("/debug/threads"));
    while answer.0 == 200 {
        (profile, answer) = (ask(&server, "/debug/profile?seconds=60"), server.get("/debug/threads"));
    }
    assert!(answer.0 == 429 && answer.1.contains("ask again"), "{answer:?}");
    server.infer(request("echo", &[("x", "FP32", &[1], fp32(&[1.0]))])).await.expect("an answer");
    // Whoever goes away gives up his turn.
    drop(profile);
    let end = Instant::now() + PATIENCE;
    while server.get("/debug/threads").0 != 200 {
        assert!(Instant::now() < end, "the turn of who has gone is not given up");
    }
}
