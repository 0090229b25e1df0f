//! What is told of models that load, fail or are kept from changing.

use std::fs;

use serde_json::Value;
use tonic::Code;

use super::{echo, index, json, load, loads, ready, unload, until};
use crate::harness::{Repo, Server, refused};

#[tokio::test]
async fn a_version_that_does_not_load_is_told_with_its_attempts() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    let server = Server::start(repo.path());
    repo.file("echo/2/model.pt", "this is no model");
    let parts =
        ["load failed for model 'echo'", "version 2 is at UNAVAILABLE state", "version 1 goes on serving"];
    refused(load(&server, "echo", &[]).await, Code::InvalidArgument, &parts);
    let rows = index(&server).await;
    assert_eq!(rows[0], ["echo", "1", "READY", ""]);
    assert_eq!(&rows[1][..3], ["echo", "2", "UNAVAILABLE"]);
    for part in ["; attempt ", " at 2", "Z, next at 2"] {
        assert!(rows[1][3].contains(part), "{part:?} is not in {:?}", rows[1][3]);
    }
    assert_eq!(server.get("/health/ready").0, 200);
    let told = json(&server, "/models/echo");
    assert_eq!((&told["name"], &told["ready"]), (&"echo".into(), &true.into()));
    assert_eq!((&told["unloaded"], &told["problem"]), (&false.into(), &Value::Null));
    let (good, bad) = (&told["versions"][0], &told["versions"][1]);
    assert_eq!(
        (&good["version"], &good["state"], &good["reason"]),
        (&"1".into(), &"READY".into(), &"".into())
    );
    assert_eq!((&good["attempts"], &good["step"]), (&0.into(), &Value::Null));
    assert_eq!((&good["devices"], &bad["devices"]), (&serde_json::json!(["cpu"]), &serde_json::json!([])));
    assert!(good["instances"].as_u64().is_some_and(|count| count > 0), "{good}");
    assert!(good["sha256"].as_str().is_some_and(|text| text.len() == 64), "{good}");
    assert!(good["loaded_at"].as_str().is_some_and(|text| text.ends_with('Z')), "{good}");
    assert!(bad["attempts"].as_u64().is_some_and(|count| count > 0), "{bad}");
    assert!(bad["step"].as_str().is_some_and(|step| ["copy", "verify", "load"].contains(&step)), "{bad}");
    assert!(bad["last_failure"].is_string() && bad["next_attempt"].is_string(), "{bad}");
    assert_eq!((&bad["sha256"], &bad["loaded_at"]), (&Value::Null, &Value::Null));
    assert_eq!(json(&server, "/models")["models"][0]["name"], "echo");
    let (status, text) = server.get("/models/nobody%0a");
    assert_eq!((status, &*text), (404, "no model is named 'nobody\\n'; there is echo\n"));
    let failed: u64 =
        loads(&server).iter().filter(|(labels, _)| labels.contains("failed")).map(|(_, n)| n).sum();
    assert!(failed > 0, "{:?}", loads(&server));
}

#[tokio::test]
async fn what_serves_though_it_was_replaced_says_why() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    let server = Server::start(repo.path());
    replace(&repo, "echo/1/model.pt", "this is no model");
    refused(load(&server, "echo", &[]).await, Code::InvalidArgument, &["version 1 goes on serving"]);
    let rows = index(&server).await;
    assert_eq!(&rows[0][..3], ["echo", "1", "READY"]);
    assert!(rows[0][3].starts_with("an earlier content serves: "), "{rows:?}");
    repo.identity("echo/1/model.pt");
    load(&server, "echo", &[]).await.expect("loaded");
    assert_eq!(index(&server).await[0], ["echo", "1", "READY", ""]);
    replace(&repo, "echo/config.yaml", "max_batchsize: 3\n");
    until("the reason is told", async || {
        index(&server).await[0][3].starts_with("an earlier configuration serves: ")
    })
    .await;
    assert!(echo(&server, "echo", &[2]).await.is_ok());
}

/// Puts a file where another may be, at once.
fn replace(repo: &Repo, path: &str, content: &str) {
    let partial = repo.file("partial", content);
    fs::rename(partial, repo.path().join(path)).expect("renamed");
}

#[tokio::test]
async fn strict_readiness_waits_for_every_model_and_names_those_that_do_not_serve() {
    let repo = Repo::new();
    repo.identity("good/1/model.pt");
    repo.file("bad/1/model.pt", "this is no model");
    let server = Server::start_with(repo.path(), &["--strict-readiness"]);
    let (status, why) = server.get("/health/ready");
    assert_eq!(status, 503);
    assert!(why.contains("--strict-readiness") && why.contains(": bad\n"), "{why}");
    assert!(ready(&server, "good", "").await);
    unload(&server, "bad", &[]).await.expect("unloaded");
    assert_eq!(server.get("/health/ready"), (200, "ready\n".to_owned()));
}
