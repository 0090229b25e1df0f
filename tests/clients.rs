//! Clients in other languages, against the sample repository.
#![cfg(feature = "torch")]

use std::{env, path::Path, process::Command};

use crate::harness::{Server, root};

/// Runs a test program of another language against a server of the samples.
fn passes(server: &Server, command: &mut Command) {
    command.current_dir(root()).env("SCONCE_ADDRESS", &server.grpc).env("SCONCE_HTTP_ADDRESS", &server.http);
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{command:?}\n{}\n{}\nserver:\n{}", text[0], text[1], server.log());
}

fn samples() -> Server {
    Server::start(&root().join("model_repository"))
}

fn python() -> Command {
    let python = env::var_os("SCONCE_TEST_PYTHON");
    Command::new(python.expect("SCONCE_TEST_PYTHON is not set: run `make test`, which makes the environment"))
}

#[test]
fn python_tritonclient_gets_right_answers() {
    passes(&samples(), python().args(["-m", "unittest", "discover", "-s", "tests/clients/python"]));
}

#[test]
fn node_grpc_js_gets_right_answers() {
    if let Ok(reason) = env::var("SCONCE_SKIP_NODE") {
        eprintln!("SKIPPED: the Node client: {reason}");
        return;
    }
    let node = env::var_os("SCONCE_TEST_NODE").expect("SCONCE_TEST_NODE is not set: run `make test`");
    let modules = env::var_os("SCONCE_TEST_NODE_MODULES").expect("SCONCE_TEST_NODE_MODULES is not set");
    let tests = Path::new("tests/clients/node/infer.test.js");
    passes(&samples(), Command::new(node).arg("--test").arg(tests).env("NODE_PATH", modules));
}
