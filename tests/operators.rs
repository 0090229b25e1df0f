//! Custom operators out of a library that is compiled here against the same libtorch.
#![cfg(feature = "torch")]

use std::{env, path::PathBuf, process::Command, sync::OnceLock};

use tempfile::TempDir;
use tonic::Code;

use crate::{
    harness::{Repo, Server, int64, output, refused, request, run, stderr},
    models::{floats, index, unavailable, values},
};

const LIBRARY: &str = r#"
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

TORCH_LIBRARY(sconce_test, m) {
  m.def("twice", [](const at::Tensor& x) { return x * 2; });
  m.def("grow(Tensor(a!) x) -> Tensor(a!)", [](at::Tensor& x) -> at::Tensor& { return x.add_(1); });
  m.def("threads(Tensor x) -> Tensor", [](const at::Tensor& x) { return x + at::get_num_threads(); });
}
"#;

const TWICE: &str = "def forward(self, x):\n    return ops.sconce_test.twice(x) + 1\n";

/// The library, compiled once for all tests and open in this process, so that models can be defined.
fn library() -> PathBuf {
    static BUILT: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = BUILT.get_or_init(|| {
        let libtorch = PathBuf::from(env::var_os("LIBTORCH").expect("LIBTORCH, as for building"));
        let dir = TempDir::new().expect("a temporary directory");
        let (source, path) = (dir.path().join("ops.cpp"), dir.path().join("libsconce_test.so"));
        std::fs::write(&source, LIBRARY).expect("a file");
        let include = libtorch.join("include");
        let output = Command::new(env::var_os("CXX").unwrap_or_else(|| "c++".into()))
            .args(["-shared", "-fPIC", "-std=c++17", "-I"])
            .arg(&include)
            .arg("-I")
            .arg(include.join("torch/csrc/api/include"))
            .arg(&source)
            .arg("-o")
            .arg(&path)
            .output()
            .expect("a C++ compiler");
        assert!(output.status.success(), "{}", stderr(&output));
        sconce_torch::open_library(&path).expect("the library opens");
        (dir, path)
    });
    path.clone()
}

/// A repository with a model that needs the library and one that does not.
fn repository() -> Repo {
    library();
    let repo = Repo::new();
    repo.script("twice/1/model.pt", TWICE, &[]);
    repo.identity("plain/1/model.pt");
    repo
}

async fn serves_twice(server: &Server) {
    let response =
        server.infer(request("twice", &[floats("x", &[2], &[1.0, 5.0])])).await.expect("an answer");
    assert_eq!(values(&response, "OUTPUT__0", &[2]), [3.0, 11.0]);
}

#[tokio::test]
async fn without_its_library_a_model_says_which_operator_it_misses_and_what_to_do() {
    let repo = repository();
    let server = Server::start(repo.path());
    let parts = ["twice/1/model.pt", "`sconce_test::twice`", "--op-library", "`op_libraries`"];
    unavailable(&index(&server, "twice").await, &parts);
    let answer = server.infer(request("twice", &[floats("x", &[1], &[1.0])])).await;
    refused(answer, Code::NotFound, &["`sconce_test::twice`"]);
    let response = server.infer(request("plain", &[floats("x", &[1], &[1.0])])).await.unwrap();
    assert_eq!(values(&response, "OUTPUT__0", &[1]), [1.0]);
}

#[tokio::test]
async fn a_library_of_the_command_line_serves_every_model() {
    let repo = repository();
    let server = Server::start_with(repo.path(), &["--op-library", library().to_str().unwrap()]);
    serves_twice(&server).await;
}

#[tokio::test]
async fn a_library_of_the_config_is_found_beside_it_or_by_its_path() {
    let repo = repository();
    let beside = std::fs::read(library()).unwrap();
    repo.file("twice/libs/lib with space.so", beside);
    repo.file("twice/config.yaml", "op_libraries: [libs/lib with space.so]\n");
    let server = Server::start(repo.path());
    serves_twice(&server).await;
    drop(server);

    // Two models may name the same one.
    let absolute = format!("op_libraries: [{}]\n", library().display());
    repo.file("twice/config.yaml", &absolute);
    repo.file("plain/config.yaml", &absolute);
    let server = Server::start(repo.path());
    serves_twice(&server).await;
    let response = server.infer(request("plain", &[floats("x", &[1], &[1.0])])).await.unwrap();
    assert_eq!(values(&response, "OUTPUT__0", &[1]), [1.0]);
}

#[test]
fn a_flag_that_names_no_library_ends_the_server_with_a_sentence() {
    let repo = Repo::new();
    repo.identity("m/1/model.pt");
    let text = repo.file("notes.txt", "no library");
    let missing = repo.path().join("nothing.so");
    for path in [text, missing, repo.path().to_owned()] {
        let output = run(&[
            "serve",
            "--grpc-address",
            "127.0.0.1:0",
            "--metrics-address",
            "off",
            "--model-repository",
            repo.path().to_str().unwrap(),
            "--op-library",
            path.to_str().unwrap(),
        ]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let lines: Vec<&str> = said.lines().filter(|line| line.contains("--op-library")).collect();
        let [line] = lines[..] else { panic!("one line about it is expected: {said}") };
        assert!(line.contains(path.to_str().unwrap()) && line.contains("cannot be opened"), "{line}");
        assert!(!said.contains("panicked") && !said.contains("ready, serving"), "{said}");
    }
}

#[tokio::test]
async fn a_config_that_names_no_library_makes_that_model_unavailable() {
    let repo = repository();
    repo.file("twice/libs.txt", "no library");
    repo.file("twice/config.yaml", "op_libraries: [libs.txt]\n");
    repo.identity("missing/1/model.pt");
    repo.file("missing/config.yaml", "op_libraries: [nothing.so]\n");
    let server = Server::start(repo.path());
    unavailable(&index(&server, "twice").await, &["operator library", "twice/libs.txt", "cannot be opened"]);
    unavailable(
        &index(&server, "missing").await,
        &["operator library", "missing/nothing.so", "cannot be opened"],
    );
    let response = server.infer(request("plain", &[floats("x", &[1], &[1.0])])).await.unwrap();
    assert_eq!(values(&response, "OUTPUT__0", &[1]), [1.0]);
}

#[tokio::test]
async fn an_operator_sees_the_number_of_threads_of_its_model() {
    let library = library();
    let source = "def forward(self, x):\n    return ops.sconce_test.threads(x)\n";
    let repo = Repo::new();
    for (model, threads) in [("one", 1), ("three", 3)] {
        repo.script(&format!("{model}/1/model.pt"), source, &[]);
        repo.file(&format!("{model}/config.yaml"), format!("threads: {threads}\n"));
    }
    let server =
        Server::start_with(repo.path(), &["--cpu-workers", "1", "--op-library", library.to_str().unwrap()]);
    // On one worker, in turns: what one model sets is not left to the other.
    for _ in 0..3 {
        for (model, threads) in [("one", 1), ("three", 3)] {
            let response = server.infer(request(model, &[("x", "INT64", &[1], int64(&[0]))])).await.unwrap();
            assert_eq!(output(&response, "OUTPUT__0").2, int64(&[threads]), "{model}");
        }
    }
}

#[tokio::test]
async fn weights_may_go_to_an_operator_unless_it_states_that_it_writes_to_them() {
    let library = library();
    let repo = Repo::new();
    let calling = |operator: &str| {
        format!("def forward(self, x):\n    return ops.sconce_test.{operator}(self.w) * 0 + x\n")
    };
    // Its library states no schema for it, as most do not.
    repo.script("twice/1/model.pt", &calling("twice"), &["w:2"]);
    repo.script("grow/1/model.pt", &calling("grow"), &["w:2"]);
    let server = Server::start_with(repo.path(), &["--op-library", library.to_str().unwrap()]);
    let response = server.infer(request("twice", &[floats("x", &[2], &[1.0, 5.0])])).await.unwrap();
    assert_eq!(values(&response, "OUTPUT__0", &[2]), [1.0, 5.0]);
    unavailable(
        &index(&server, "grow").await,
        &["changes the module's own attributes", "`sconce_test::grow`"],
    );
}
