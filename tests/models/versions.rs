//! Which version answers, and which directory of which repository it comes from.

use sconce_proto::inference::{ModelInferRequest, ModelMetadataRequest};
use tonic::Code;

use super::{floats, index, unavailable, values};
use crate::harness::{Repo, Server, refused, request};

/// A model whose version `n` multiplies by `n`.
fn versions(repo: &Repo, name: &str, numbers: &[u32], config: &str) {
    for number in numbers {
        let source = format!("def forward(self, x):\n    return x * {number}\n");
        repo.script(&format!("{name}/{number}/model.pt"), &source, &[]);
    }
    if !config.is_empty() {
        repo.file(&format!("{name}/config.yaml"), config);
    }
}

fn asking(model: &str, version: &str) -> ModelInferRequest {
    let request = request(model, &[floats("x", &[1], &[1.0])]);
    ModelInferRequest { model_version: version.to_owned(), id: format!("id of {model}"), ..request }
}

/// The version that answered, checked against what it computed.
async fn answered(server: &Server, model: &str, version: &str) -> String {
    let response = server.infer(asking(model, version)).await.expect("an answer");
    assert_eq!(
        (response.model_name.as_str(), response.id.as_str()),
        (model, format!("id of {model}").as_str())
    );
    assert_eq!(values(&response, "OUTPUT__0", &[1])[0].to_string(), response.model_version);
    response.model_version
}

#[tokio::test]
async fn the_versions_of_the_policy_are_served_and_the_highest_by_default() {
    let repo = Repo::new();
    // As text, 10 would come before 9.
    let numbers = [1, 2, 9, 10];
    versions(&repo, "default", &numbers, "");
    versions(&repo, "two", &numbers, "versions: {latest: 2}\n");
    versions(&repo, "more_than_there_are", &numbers, "versions: {latest: 7}\n");
    versions(&repo, "all", &numbers, "versions: all\n");
    versions(&repo, "specific", &numbers, "versions: {specific: [9, 1]}\n");
    let server = Server::start(repo.path());
    for (model, served) in [
        ("default", &[10][..]),
        ("two", &[9, 10]),
        ("more_than_there_are", &[1, 2, 9, 10]),
        ("all", &[1, 2, 9, 10]),
        ("specific", &[1, 9]),
    ] {
        let highest = served.last().unwrap().to_string();
        assert_eq!(answered(&server, model, "").await, highest, "{model}");
        for number in numbers.map(|number| number.to_string()) {
            if served.iter().any(|version| version.to_string() == number) {
                assert_eq!(answered(&server, model, &number).await, number, "{model}");
            } else {
                let answer = server.infer(asking(model, &number)).await;
                refused(answer, Code::NotFound, &[&format!("'{model}' version {number} is not found")]);
            }
        }
        let asked = ModelMetadataRequest { name: model.to_owned(), ..Default::default() };
        let metadata = server.client().await.model_metadata(asked).await.unwrap().into_inner();
        let expected: Vec<String> = served.iter().map(ToString::to_string).collect();
        assert_eq!(metadata.versions, expected, "{model}");
    }
}

#[tokio::test]
async fn names_and_versions_that_are_not_there_are_refused() {
    let repo = Repo::new();
    versions(&repo, "m", &[1], "");
    let server = Server::start(repo.path());
    for name in ["nobody", "", "M", "m/1", "../m", "m\n\0\u{1b}[31m"] {
        refused(server.infer(asking(name, "")).await, Code::NotFound, &["unknown model", "is not found"]);
    }
    for version in ["0", "-1", "01", "1.0", " 1", "latest", "18446744073709551616"] {
        let answer = server.infer(asking("m", version)).await;
        refused(answer, Code::InvalidArgument, &["version", version]);
    }
    refused(
        server.infer(asking("m", "18446744073709551615")).await,
        Code::NotFound,
        &["18446744073709551615"],
    );
}

#[tokio::test]
async fn a_version_that_is_asked_for_and_not_there_holds_back_no_other() {
    let repo = Repo::new();
    versions(&repo, "m", &[1], "versions: {specific: [1, 4]}\n");
    let server = Server::start(repo.path());
    assert_eq!(answered(&server, "m", "").await, "1");
    let rows = index(&server, "m").await;
    let states: Vec<_> = rows.iter().map(|row| (row.version.as_str(), row.state.as_str())).collect();
    assert_eq!(states, [("1", "READY"), ("4", "UNAVAILABLE")]);
    unavailable(&rows[1..], &["version 4", "no directory '4'"]);
    refused(server.infer(asking("m", "4")).await, Code::Unavailable, &["version 4", "no directory '4'"]);
}

#[tokio::test]
async fn several_repositories_are_one_and_a_name_in_two_is_served_by_none() {
    let (first, second) = (Repo::new(), Repo::new());
    versions(&first, "left", &[1], "");
    versions(&first, "both", &[1], "");
    versions(&second, "right", &[2], "");
    versions(&second, "both", &[2], "");
    let second_path = second.path().to_str().unwrap();
    let server = Server::start_with(first.path(), &["--model-repository", second_path]);
    assert_eq!(answered(&server, "left", "").await, "1");
    assert_eq!(answered(&server, "right", "").await, "2");
    let rows = index(&server, "both").await;
    let first_path = first.path().to_str().unwrap();
    unavailable(&rows, &["model appears in two or more repositories", first_path, second_path]);
    refused(server.infer(asking("both", "")).await, Code::NotFound, &["two or more repositories"]);
}
