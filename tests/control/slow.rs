//! What takes time is scripted. What has to be seen in the meantime is tried until it is.

use std::time::Duration;

use sconce_proto::inference::model_repository_parameter::ParameterChoice::{BytesParam, StringParam};
use tonic::{Code, Request};

use super::{CONFIG, EXPLICIT, echo, index, load, load_request, ready, unload, until};
use crate::harness::{Repo, Server};

#[tokio::test]
async fn an_unload_returns_when_the_last_run_is_over_and_its_memory_free() {
    let repo = Repo::new();
    repo.file("slow/1/model.pt", "fake\nargument x tensor\ndelay 300\n");
    let server = Server::start(repo.path());
    until("an unload that waits for a run", async || {
        load(&server, "slow", &[]).await.expect("loaded");
        let unload = async {
            let unloading = unload(&server, "slow", &[]);
            tokio::pin!(unloading);
            let mut drains = false;
            loop {
                tokio::select! {
                    outcome = &mut unloading => {
                        outcome.expect("unloaded");
                        break drains;
                    }
                    rows = index(&server) => drains |= rows[0][2] == "UNLOADING",
                }
            }
        };
        let unload = async {
            let drains = unload.await;
            (drains, index(&server).await)
        };
        let (answer, (drains, rows)) = tokio::join!(echo(&server, "slow", &[1]), unload);
        assert_eq!(rows[0], ["slow", "1", "UNAVAILABLE", "unloaded"]);
        drains && answer.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_deadline_binds_the_caller_and_the_load_goes_on() {
    let repo = Repo::new();
    repo.file("slow/1/model.pt", "fake\nargument x tensor\nload delay 1000\n");
    let server = Server::start_with(repo.path(), &EXPLICIT);
    until("it serves, though each call ends before it does", async || {
        let mut order = Request::new(load_request("slow", &[]));
        order.set_timeout(Duration::from_millis(300));
        let Err(status) = server.client().await.repository_model_load(order).await else {
            assert!(ready(&server, "slow", "").await);
            return true;
        };
        assert!([Code::DeadlineExceeded, Code::Cancelled].contains(&status.code()), "{status:?}");
        false
    })
    .await;
}

#[tokio::test]
async fn a_loading_version_is_told_and_the_earlier_one_serves() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    let server = Server::start(repo.path());
    let mut version = 1;
    until("a version that is loading", async || {
        version += 1;
        let script = format!("fake\nargument x tensor\nload delay 300\nvalue {version}\n");
        repo.file(&format!("echo/{version}/model.pt"), script);
        let loading = load(&server, "echo", &[]);
        tokio::pin!(loading);
        let mut seen = false;
        let name = version.to_string();
        loop {
            tokio::select! {
                outcome = &mut loading => {
                    outcome.expect("loaded");
                    break;
                }
                rows = index(&server) => {
                    seen |= rows.iter().any(|row| row[1] == name && row[2] == "LOADING");
                    echo(&server, "echo", &[1]).await.expect("an answer");
                }
            }
        }
        assert_eq!(echo(&server, "echo", &[1]).await.expect("an answer"), name);
        seen
    })
    .await;
}

#[tokio::test]
async fn files_are_let_go_of_when_they_are_written_and_not_when_they_are_loaded() {
    let repo = Repo::new();
    let budget = ["--receive-budget", "1MiB", "--max-message-size", "1MiB", "--model-load-thread-count", "2"];
    let arguments = [&EXPLICIT[..], &budget].concat();
    let server = Server::start_with(repo.path(), &arguments);
    let with = |script: &str| {
        let model = format!("{script}\n").into_bytes();
        let rest = vec![b'x'; 700 << 10];
        [
            ("config", StringParam(CONFIG.to_owned())),
            ("file:1/model.pt", BytesParam(model.into())),
            ("file:1/rest", BytesParam(rest.into())),
        ]
    };
    let slow = with("fake\nargument x tensor\nload delay 600000");
    let loading = load(&server, "slow", &slow);
    let other = async {
        until("it is being loaded", async || index(&server).await.iter().any(|row| row[2] == "LOADING"))
            .await;
        load(&server, "other", &with("fake\nargument x tensor")).await
    };
    tokio::select! {
        outcome = loading => panic!("not yet: {outcome:?}"),
        outcome = other => outcome.expect("there is room again"),
    }
    assert!(ready(&server, "other", "").await);
}
