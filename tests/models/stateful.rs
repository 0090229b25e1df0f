//! Models that change themselves: refused however they do it, and served on request with a copy each.

use crate::harness::{Repo, Server, as_fp32, output, request, root};

use super::{floats, index, unavailable, values};

fn repository(models: &[&str]) -> Repo {
    let repo = Repo::new();
    for model in models {
        let file = std::fs::read(root().join(format!("tests/data/stateful/{model}.pt"))).expect("test data");
        repo.file(&format!("{model}/1/model.pt"), file);
    }
    repo
}

#[tokio::test]
async fn a_change_is_found_in_forks_in_containers_and_behind_schemas_that_hide_it() {
    let models = ["ForkInPlace", "ForkAttribute", "ListItem", "DictItem", "Statistics", "Growing"];
    let repo = repository(&models);
    let server = Server::start(repo.path());
    for model in models {
        let parts = ["forward changes the module's own attributes", "stateful: true"];
        unavailable(&index(&server, model).await, &parts);
    }
}

#[tokio::test]
async fn what_changes_only_what_it_has_made_is_served() {
    let repo = repository(&["ReadingFork", "LocalObject"]);
    let server = Server::start(repo.path());
    let input = || [floats("x", &[2, 2], &[1.0, 2.0, 3.0, 4.0])];
    for _ in 0..3 {
        let response = server.infer(request("ReadingFork", &input())).await.unwrap();
        assert_eq!(values(&response, "OUTPUT__0", &[2, 2]), [4.0, 6.0, 8.0, 10.0]);
        let response = server.infer(request("LocalObject", &input())).await.unwrap();
        for (got, sent) in values(&response, "OUTPUT__0", &[2, 2]).iter().zip([1.0f32, 2.0, 3.0, 4.0]) {
            assert!((got - 2.0 * sent).abs() < 1e-3, "a norm with its first statistics: {got} for {sent}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_does_not_change_while_it_is_on_its_way() {
    let repo = repository(&["Growing"]);
    repo.file("Growing/config.yaml", "stateful: true\ninstances: 1\n");
    let server = Server::start(repo.path());
    let client = server.client().await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let mut client = client.clone();
        calls.spawn(async move {
            let response = client.model_infer(request("Growing", &[floats("x", &[1], &[1.0])])).await;
            as_fp32(output(&response.expect("an answer").into_inner(), "OUTPUT__0").2)
        });
    }
    let mut states = Vec::new();
    while let Some(answer) = calls.join_next().await {
        let answer = answer.expect("a call");
        assert!(answer.iter().all(|value| *value == answer[0]), "torn: {} and others", answer[0]);
        states.push(answer[0] as usize);
    }
    // Each run saw the state that the one before it left.
    states.sort_unstable();
    assert_eq!(states, (1..=200).collect::<Vec<_>>());
}
