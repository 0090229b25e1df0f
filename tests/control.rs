//! Loading and unloading by request: every parameter, every mode, many callers at once.

use std::{collections::BTreeMap, fs, os::unix::fs::symlink, path::Path, time::Duration};

use sconce_proto::inference::{
    ModelConfigRequest, ModelReadyRequest, ModelRepositoryParameter, RepositoryIndexRequest,
    RepositoryModelLoadRequest, RepositoryModelUnloadRequest,
    model_repository_parameter::ParameterChoice::{self, BoolParam, BytesParam, Int64Param, StringParam},
};
use serde_json::Value;
use tonic::{Code, Status};

use crate::harness::{PATIENCE, Repo, Server, fp32, refused, request, sconce};

#[cfg(not(feature = "torch"))]
mod slow;
mod told;

/// `x` of FP32 in, `OUTPUT__0` out, with a batch dimension: what the model has without it.
const CONFIG: &str = r#"{"backend": "pytorch", "maxBatchSize": 4,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [2]}],
    "output": [{"name": "OUTPUT__0", "data_type": "TYPE_FP32", "dims": [2]}]}"#;

const EXPLICIT: [&str; 2] = ["--model-control-mode", "explicit"];

/// What a request says beside the name.
type Parameters<'a> = &'a [(&'a str, ParameterChoice)];

fn map(parameters: Parameters<'_>) -> std::collections::HashMap<String, ModelRepositoryParameter> {
    let parameter =
        |choice: &ParameterChoice| ModelRepositoryParameter { parameter_choice: Some(choice.clone()) };
    parameters.iter().map(|(name, choice)| ((*name).to_owned(), parameter(choice))).collect()
}

fn load_request(model: &str, parameters: Parameters<'_>) -> RepositoryModelLoadRequest {
    let (repository_name, model_name) = (String::new(), model.to_owned());
    RepositoryModelLoadRequest { repository_name, model_name, parameters: map(parameters) }
}

fn unload_request(model: &str, parameters: Parameters<'_>) -> RepositoryModelUnloadRequest {
    let (repository_name, model_name) = (String::new(), model.to_owned());
    RepositoryModelUnloadRequest { repository_name, model_name, parameters: map(parameters) }
}

async fn load(server: &Server, model: &str, parameters: Parameters<'_>) -> Result<(), Status> {
    server.client().await.repository_model_load(load_request(model, parameters)).await.map(|_| ())
}

async fn unload(server: &Server, model: &str, parameters: Parameters<'_>) -> Result<(), Status> {
    server.client().await.repository_model_unload(unload_request(model, parameters)).await.map(|_| ())
}

async fn ready(server: &Server, model: &str, version: &str) -> bool {
    let request = ModelReadyRequest { name: model.to_owned(), version: version.to_owned() };
    server.client().await.model_ready(request).await.expect("an answer").into_inner().ready
}

/// The rows of the index: name, version, state, reason.
async fn index(server: &Server) -> Vec<[String; 4]> {
    let request = RepositoryIndexRequest { repository_name: String::new(), ready: false };
    let answer = server.client().await.repository_index(request).await.expect("an index").into_inner();
    answer.models.into_iter().map(|row| [row.name, row.version, row.state, row.reason]).collect()
}

/// Asks again until it is so.
async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let all = async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn json(server: &Server, path: &str) -> Value {
    let (status, body) = server.get(path);
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).expect("JSON")
}

/// The counters of loads of which there were any, by their labels.
fn loads(server: &Server) -> BTreeMap<String, u64> {
    let (status, body) = server.get("/metrics");
    assert_eq!(status, 200, "{body}");
    let line = |line: &str| {
        let (labels, count) = line.strip_prefix("sconce_model_loads_total{")?.split_once("} ")?;
        Some((labels.to_owned(), count.parse().expect("a number")))
    };
    body.lines().filter_map(line).filter(|(_, count)| *count > 0).collect()
}

fn loaded(server: &Server, model: &str) -> u64 {
    let labels = format!(r#"model="{model}",outcome="loaded",step="""#);
    loads(server).get(&labels).copied().unwrap_or_default()
}

async fn echo(server: &Server, model: &str, shape: &[i64]) -> Result<String, Status> {
    let count = usize::try_from(shape.iter().product::<i64>()).expect("small");
    let answer = server.infer(request(model, &[("x", "FP32", shape, fp32(&vec![1.5; count]))])).await?;
    Ok(answer.model_version)
}

#[tokio::test]
async fn a_model_that_is_served_can_be_unloaded_and_loaded_again() {
    for arguments in [&[][..], &["--model-control-mode", "poll", "--repository-poll-interval", "100ms"]] {
        let repo = Repo::new();
        repo.identity("echo/1/model.pt");
        repo.identity("other/1/model.pt");
        let server = Server::start_with(repo.path(), arguments);
        assert_eq!(echo(&server, "echo", &[2]).await.expect("an answer"), "1");
        unload(&server, "echo", &[("unload_dependents", BoolParam(true))]).await.expect("unloaded");
        assert!(!ready(&server, "echo", "").await);
        refused(echo(&server, "echo", &[2]).await, Code::NotFound, &["'echo' has no available versions"]);
        let rows = index(&server).await;
        assert_eq!(rows[0], ["echo", "1", "UNAVAILABLE", "unloaded"]);
        assert_eq!(rows[1], ["other", "1", "READY", ""]);
        assert_eq!(server.get("/health/ready").0, 200, "what is unloaded on purpose is not missed");
        unload(&server, "echo", &[]).await.expect("unloaded already");
        unload(&server, "nobody", &[]).await.expect("as Triton: what is not there is unloaded");
        load(&server, "echo", &[]).await.expect("loaded");
        assert_eq!(echo(&server, "echo", &[2]).await.expect("an answer"), "1");
        assert_eq!(loaded(&server, "echo"), 2);
    }
}

#[tokio::test]
async fn explicit_serves_what_is_named_at_start_and_asked_for_later() {
    let repo = Repo::new();
    repo.identity("one/1/model.pt");
    repo.identity("two/1/model.pt");
    for (named, expected) in [(&[][..], [false, false]), (&["one"], [true, false]), (&["*"], [true, true])] {
        let mut arguments = EXPLICIT.to_vec();
        arguments.extend(named.iter().flat_map(|name| ["--load-model", name]));
        let server = Server::start_with(repo.path(), &arguments);
        let rows = index(&server).await;
        for (name, serves) in ["one", "two"].into_iter().zip(expected) {
            assert_eq!(ready(&server, name, "").await, serves, "{name} with {named:?}");
            // Triton's way to show what was never asked for.
            let row = if serves { [name, "1", "READY", ""] } else { [name, "", "", ""] };
            assert!(rows.contains(&row.map(str::to_owned)), "{rows:?}");
        }
        load(&server, "two", &[]).await.expect("loaded");
        assert!(ready(&server, "two", "").await);
        refused(load(&server, "three", &[]).await, Code::NotFound, &["failed to load 'three'"]);
        // A change on disk does not count before somebody asks for it.
        repo.identity("two/2/model.pt");
        assert_eq!(echo(&server, "two", &[2]).await.expect("an answer"), "1");
        load(&server, "two", &[]).await.expect("loaded");
        assert_eq!(echo(&server, "two", &[2]).await.expect("an answer"), "2");
        fs::remove_dir_all(repo.path().join("two/2")).expect("removed");
    }
}

#[tokio::test]
async fn without_control_orders_are_refused() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    let server = Server::start_with(repo.path(), &["--model-control-mode", "none"]);
    let parts = ["explicit model load / unload is not allowed if polling is enabled", "--model-control-mode"];
    refused(load(&server, "echo", &[]).await, Code::Unavailable, &parts);
    refused(unload(&server, "echo", &[]).await, Code::Unavailable, &parts);
    assert_eq!(echo(&server, "echo", &[2]).await.expect("an answer"), "1");
}

#[tokio::test]
async fn a_wrong_order_is_refused_by_name_and_changes_nothing() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    let server = Server::start(repo.path());
    let bytes = || BytesParam(b"x".as_slice().into());
    let text = |text: &str| StringParam(text.to_owned());
    let long = format!("file:1/{}", "n".repeat(2000));
    let cases: [(Parameters<'_>, &[&str]); 16] = [
        (
            &[("confg", text("{}"))],
            &["unknown parameter 'confg'", "config, file:<version>/<path> and version"],
        ),
        (&[("unload_dependents", BoolParam(true))], &["unknown parameter 'unload_dependents'"]),
        (&[("config", bytes())], &["'config' must be a string"]),
        (&[("config", text("{"))], &["failed to load 'echo'"]),
        (&[("config", text(r#"{"max_batchsize": 3}"#))], &["failed to load 'echo'", "max_batchsize"]),
        (&[("version", text(""))], &["'version' must be an integer"]),
        (&[("version", BoolParam(true))], &["'version' must be an integer"]),
        (&[("version", Int64Param(0))], &["'0'"]),
        (&[("version", text("01"))], &["'01'"]),
        (&[("file:1/model.pt", text("x"))], &["'file:1/model.pt' must be the bytes of the file"]),
        (&[("file:1/model.pt", bytes())], &["'config'"]),
        (
            &[("config", text("{}")), ("file:../1/model.pt", bytes())],
            &["'file:../1/model.pt'", "relative path"],
        ),
        (&[("config", text("{}")), ("file:1/../../x", bytes())], &["'file:1/../../x'", "relative path"]),
        (&[("config", text("{}")), ("file:1//etc/passwd", bytes())], &["'file:1//etc/passwd'"]),
        (&[("config", text("{}")), ("file:", bytes())], &["'file:'"]),
        (&[("config", text("{}")), (&long, bytes())], &["nnn...'"]),
    ];
    for (parameters, parts) in cases {
        refused(load(&server, "echo", parameters).await, Code::InvalidArgument, parts);
    }
    let dependents = &[("unload_dependents", Int64Param(1))];
    refused(unload(&server, "echo", dependents).await, Code::InvalidArgument, &["must be a boolean"]);
    refused(unload(&server, "echo", &[("config", text("{}"))]).await, Code::InvalidArgument, &["'config'"]);
    for name in ["", ".", "..", "../echo", "a/b", ".hidden", "line\nbreak", "nul\0", &"n".repeat(1025)] {
        refused(load(&server, name, &[]).await, Code::InvalidArgument, &["cannot be the name of a model"]);
        refused(unload(&server, name, &[]).await, Code::InvalidArgument, &["cannot be the name of a model"]);
    }
    let named = RepositoryModelLoadRequest { repository_name: "r".to_owned(), ..load_request("echo", &[]) };
    let answer = server.client().await.repository_model_load(named).await;
    refused(answer, Code::Unimplemented, &["repository_name"]);
    refused(
        load(&server, "echo", &[("version", Int64Param(9))]).await,
        Code::NotFound,
        &["no version 9", "has 1"],
    );
    let many: Vec<(String, ParameterChoice)> =
        (0..5000).map(|n| (format!("p{n}"), BoolParam(true))).collect();
    let many: Vec<(&str, ParameterChoice)> =
        many.iter().map(|(name, is)| (name.as_str(), is.clone())).collect();
    refused(load(&server, "echo", &many).await, Code::InvalidArgument, &["parameters", "4096"]);
    assert_eq!(echo(&server, "echo", &[2]).await.expect("an answer"), "1");
    assert_eq!(loads(&server).len(), 1, "{:?}", loads(&server));
}

#[tokio::test]
async fn a_configuration_that_comes_with_an_order_counts_until_the_next() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    for arguments in [&[][..], &["--model-control-mode", "explicit", "--load-model", "echo"]] {
        let server = Server::start_with(repo.path(), arguments);
        let batch = async || {
            let request = ModelConfigRequest { name: "echo".to_owned(), version: String::new() };
            let answer = server.client().await.model_config(request).await.expect("a config");
            answer.into_inner().config.expect("a config").max_batch_size
        };
        assert_eq!(batch().await, 0);
        load(&server, "echo", &[("config", StringParam(CONFIG.to_owned()))]).await.expect("loaded");
        assert_eq!(batch().await, 4);
        echo(&server, "echo", &[1, 2]).await.expect("with a batch dimension");
        refused(echo(&server, "echo", &[5, 2]).await, Code::InvalidArgument, &["echo"]);
        load(&server, "echo", &[]).await.expect("loaded");
        assert_eq!(batch().await, 0);
        echo(&server, "echo", &[5, 2]).await.expect("any shape");
    }
}

#[tokio::test]
async fn links_that_lead_out_are_not_followed_where_they_are_confined() {
    let (repo, elsewhere) = (Repo::new(), Repo::new());
    repo.identity("echo/1/model.pt");
    elsewhere.identity("out/1/model.pt");
    let secret = elsewhere.file("secret", "of others");
    let link = |target: &Path, name: &str| symlink(target, repo.path().join(name)).expect("a link");
    link(&elsewhere.path().join("out"), "out");
    repo.identity("file/1/inside.pt");
    link(&elsewhere.path().join("out/1/model.pt"), "file/1/model.pt");
    link(&secret, "echo/labels.txt");
    let labelled = CONFIG.replace(
        r#""OUTPUT__0", "data_type": "TYPE_FP32", "dims": [2]"#,
        r#""OUTPUT__0", "data_type": "TYPE_FP32", "dims": [2], "label_filename": "labels.txt""#,
    );
    let config = |json: &str| [("config", StringParam(json.to_owned()))];
    let serving = Server::start_with(repo.path(), &["--confine-symlinks"]);
    assert_eq!(
        [
            ready(&serving, "echo", "").await,
            ready(&serving, "out", "").await,
            ready(&serving, "file", "").await
        ],
        [true, false, false]
    );
    let leads_out = ["leads out of the repository", "--confine-symlinks"];
    for (model, json) in [("echo", labelled.as_str()), ("out", CONFIG), ("file", CONFIG)] {
        refused(load(&serving, model, &config(json)).await, Code::InvalidArgument, &leads_out);
    }
    assert_eq!(echo(&serving, "echo", &[2]).await.expect("an answer"), "1");
    let free = Server::start(repo.path());
    for model in ["out", "file"] {
        assert!(ready(&free, model, "").await, "{model}");
    }
    load(&free, "echo", &config(&labelled)).await.expect("loaded");
}

#[tokio::test]
async fn files_that_come_with_an_order_are_served_and_removed() {
    let repo = Repo::new();
    repo.identity("model.pt");
    let model = fs::read(repo.path().join("model.pt")).expect("a model");
    let place = tempfile::tempdir().expect("a directory");
    let left = || fs::read_dir(place.path()).expect("entries").count();
    let models = repo.path().join("models");
    fs::create_dir(&models).expect("a directory");
    let mut command = sconce();
    command.arg("serve").args(EXPLICIT).env("TMPDIR", place.path());
    command
        .args(["--grpc-address", "127.0.0.1:0", "--metrics-address", "off", "--model-repository"])
        .arg(&models);
    let mut server = Server::launch(&mut command);
    server.wait_for("ready, serving");
    let files: Parameters<'_> =
        &[("config", StringParam(CONFIG.to_owned())), ("file:7/model.pt", BytesParam(model.clone().into()))];
    load(&server, "sent", files).await.expect("loaded");
    assert_eq!(echo(&server, "sent", &[1, 2]).await.expect("an answer"), "7");
    assert_eq!(index(&server).await, [["sent", "7", "READY", ""].map(str::to_owned)]);
    assert_eq!(fs::read_dir(&models).expect("entries").count(), 0, "the repository is not written to");
    let broken: Parameters<'_> = &[
        ("config", StringParam(CONFIG.to_owned())),
        ("file:8/model.pt", BytesParam(b"this is no model".as_slice().into())),
    ];
    let parts = ["load failed for model 'sent'", "version 8 is at UNAVAILABLE state"];
    refused(load(&server, "sent", broken).await, Code::InvalidArgument, &parts);
    unload(&server, "sent", &[]).await.expect("unloaded");
    assert!(index(&server).await.iter().all(|row| row[2] != "READY"));
    let inside = fs::read_dir(place.path()).expect("entries").map(|entry| entry.expect("an entry").path());
    let inside: usize = inside.map(|dir| fs::read_dir(dir).expect("entries").count()).sum();
    assert_eq!(inside, 0, "files go with what is served from them");
    load(&server, "sent", files).await.expect("loaded");
    server.signal("TERM");
    assert!(server.wait().success());
    assert_eq!(left(), 0, "nothing is left after a shutdown");
}

#[tokio::test]
async fn one_version_can_be_loaded_and_unloaded() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    repo.identity("echo/2/model.pt");
    let server = Server::start(repo.path());
    assert!(!ready(&server, "echo", "1").await);
    load(&server, "echo", &[("version", Int64Param(1))]).await.expect("loaded");
    assert!(ready(&server, "echo", "1").await);
    unload(&server, "echo", &[("version", StringParam("1".to_owned()))]).await.expect("unloaded");
    assert!(!ready(&server, "echo", "1").await);
    assert!(ready(&server, "echo", "2").await);
    refused(unload(&server, "echo", &[("version", Int64Param(9))]).await, Code::NotFound, &["no version 9"]);
}

#[tokio::test]
async fn what_is_unchanged_is_not_loaded_again() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    let server = Server::start(repo.path());
    for _ in 0..5 {
        load(&server, "echo", &[]).await.expect("loaded");
    }
    assert_eq!(loads(&server), BTreeMap::from([(r#"model="echo",outcome="loaded",step="""#.to_owned(), 1)]));
    let text = server.get("/metrics").1;
    assert!(text.contains(r#"sconce_model_load_duration_seconds_bucket{model="echo",le="600"} 1"#), "{text}");
}

#[tokio::test]
async fn a_hundred_contradictory_calls_at_once_each_learn_their_outcome_and_leave_one_of_both() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    repo.identity("other/1/model.pt");
    let server = Server::start(repo.path());
    let client = server.client().await;
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..100 {
        let mut client = client.clone();
        calls.spawn(async move {
            if number % 2 == 0 {
                client.repository_model_load(load_request("echo", &[])).await.map(|_| ())
            } else {
                client.repository_model_unload(unload_request("echo", &[])).await.map(|_| ())
            }
        });
    }
    while let Some(outcome) = calls.join_next().await {
        outcome.expect("no panic").expect("each is carried out");
        assert_eq!(echo(&server, "other", &[2]).await.expect("nobody else notices"), "1");
    }
    // Which of them came last nobody knows; whichever it was, all agree on what it did.
    let serves = ready(&server, "echo", "").await;
    assert_eq!(echo(&server, "echo", &[2]).await.is_ok(), serves);
    let row = if serves { ["echo", "1", "READY", ""] } else { ["echo", "1", "UNAVAILABLE", "unloaded"] };
    assert_eq!(index(&server).await[0], row);
    unload(&server, "echo", &[]).await.expect("unloaded");
    assert!(!ready(&server, "echo", "").await);
    load(&server, "echo", &[]).await.expect("loaded");
    assert_eq!(echo(&server, "echo", &[2]).await.expect("an answer"), "1");
}

#[tokio::test]
async fn callers_that_give_up_leave_the_server_as_it_should_be() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    let server = Server::start(repo.path());
    let client = server.client().await;
    for number in 0..50 {
        let mut client = client.clone();
        let call = tokio::spawn(async move {
            let _ = match number % 2 {
                0 => client.repository_model_load(load_request("echo", &[])).await.map(|_| ()),
                _ => client.repository_model_unload(unload_request("echo", &[])).await.map(|_| ()),
            };
        });
        tokio::task::yield_now().await;
        call.abort();
    }
    // What was sent before may still come after this.
    until("it serves", async || {
        load(&server, "echo", &[]).await.expect("loaded");
        echo(&server, "echo", &[2]).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_manifest_is_written_and_then_decides() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    repo.file("echo/1/notes.txt", "first");
    let dir = repo.path().join("echo/1");
    let write = |dir: &Path| sconce().arg("manifest").arg(dir).output().expect("the binary can be run");
    let output = write(&dir);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("manifest.yaml: 2 files"), "{output:?}");
    let text = fs::read_to_string(dir.join("manifest.yaml")).expect("a manifest");
    let server = Server::start(repo.path());
    let told = json(&server, "/models/echo");
    assert!(ready(&server, "echo", "1").await, "{told}");
    assert!(text.contains("model.pt") && text.contains("notes.txt"), "{text}");
    fs::write(dir.join("notes.txt"), "second").expect("written");
    refused(load(&server, "echo", &[]).await, Code::InvalidArgument, &["the manifest says"]);
    let nowhere = write(&repo.path().join("nowhere"));
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nowhere.stderr).starts_with("error: cannot read "), "{nowhere:?}");
}
