//! TraceSetting: what it tells, what it changes, what it refuses.

use std::{collections::BTreeMap, fs};

use sconce_proto::inference::{
    TraceSettingRequest, grpc_inference_service_client::GrpcInferenceServiceClient,
    trace_setting_request::SettingValue,
};
use tonic::{Code, Status, transport::Channel};

use super::{Collector, echo, ids, repository, start, traced};
use crate::{
    changes::eventually,
    harness::{Repo, Server, refused},
};

/// Names and lists of values.
type Settings<'a> = &'a [(&'a str, &'a [&'a str])];
type Client = GrpcInferenceServiceClient<Channel>;

/// Changes settings, and gives what holds then.
async fn set(
    client: &mut Client,
    model: &str,
    settings: Settings<'_>,
) -> Result<BTreeMap<String, Vec<String>>, Status> {
    let value = |list: &[&str]| SettingValue { value: list.iter().map(|one| (*one).to_owned()).collect() };
    let settings = settings.iter().map(|(name, list)| ((*name).to_owned(), value(list))).collect();
    let request = TraceSettingRequest { settings, model_name: model.to_owned() };
    let answer = client.trace_setting(request).await?.into_inner();
    Ok(answer.settings.into_iter().map(|(name, setting)| (name, setting.value)).collect())
}

#[tokio::test]
async fn settings_are_told_changed_and_cleared_for_all_models_and_for_one() {
    let (repo, collector) = (repository(), Collector::grpc().await);
    repo.identity("other/1/model.pt");
    let server = start(&repo, &collector, &["--trace-ratio", "0.01"]);
    let mut client = server.client().await;
    let first = set(&mut client, "", &[]).await.expect("settings");
    let expected = [
        ("log_frequency", "0"),
        ("trace_count", "-1"),
        ("trace_file", ""),
        ("trace_level", "TIMESTAMPS"),
        ("trace_mode", "opentelemetry"),
        ("trace_rate", "100"),
    ];
    let told: Vec<_> = first.iter().map(|(name, list)| (name.as_str(), list[0].as_str())).collect();
    assert_eq!(told, expected);
    let all =
        set(&mut client, "", &[("trace_rate", &["5"]), ("trace_count", &["7"])]).await.expect("settings");
    assert_eq!([&all["trace_rate"][0], &all["trace_count"][0]], ["5", "7"]);
    let own = set(&mut client, "echo", &[("trace_level", &["OFF"])]).await.expect("settings");
    assert_eq!([&own["trace_level"][0], &own["trace_rate"][0]], ["OFF", "5"]);
    let other = set(&mut client, "other", &[]).await.expect("settings");
    assert_eq!([&other["trace_level"][0], &other["trace_rate"][0]], ["TIMESTAMPS", "5"]);
    let own = set(&mut client, "echo", &[("trace_level", &[])]).await.expect("settings");
    assert_eq!(own, all);
    let cleared = set(&mut client, "", &[("trace_rate", &[]), ("trace_count", &[])]).await.expect("settings");
    assert_eq!(cleared, first);
}

#[tokio::test]
async fn settings_of_a_model_that_was_removed_are_not_those_of_another_of_its_name() {
    let (repo, collector) = (repository(), Collector::grpc().await);
    repo.identity("other/1/model.pt");
    let server = start(&repo, &collector, &[]);
    let mut client = server.client().await;
    for model in ["other", "echo"] {
        set(&mut client, model, &[("trace_rate", &["9"])]).await.expect("settings");
    }
    fs::remove_dir_all(repo.path().join("other")).expect("removed");
    eventually(&server, "the model is gone", async || set(&mut client.clone(), "other", &[]).await.err())
        .await;
    repo.identity("other/1/model.pt");
    let told = async || set(&mut client.clone(), "other", &[]).await.ok();
    let other = eventually(&server, "the model is back", told).await;
    assert_eq!(other["trace_rate"], ["1"]);
    assert_eq!(set(&mut client, "echo", &[]).await.expect("settings")["trace_rate"], ["9"]);
}

#[tokio::test]
async fn rate_count_and_level_hold_from_then_on() {
    let (repo, collector) = (repository(), Collector::grpc().await);
    let server = start(&repo, &collector, &["--trace-ratio", "0"]);
    let mut client = server.client().await;
    let mut expected = Vec::new();
    let cases: [(&str, Settings<'_>, &[usize]); 5] = [
        ("", &[("trace_rate", &["3"])], &[2, 5]),
        ("echo", &[("trace_rate", &["1"]), ("trace_count", &["2"])], &[0, 1]),
        ("", &[("trace_level", &["OFF"])], &[]),
        ("echo", &[("trace_level", &["TIMESTAMPS"]), ("trace_count", &[])], &[0, 1, 2, 3, 4, 5]),
        ("echo", &[("trace_rate", &["0"])], &[]),
    ];
    for (number, (model, settings, traced)) in cases.into_iter().enumerate() {
        set(&mut client, model, settings).await.expect("settings");
        for turn in 0..6 {
            let id = format!("{number} {turn}");
            client.model_infer(echo(&id)).await.expect("an answer");
            if traced.contains(&turn) {
                expected.push(id);
            }
        }
    }
    client.model_infer(traced(echo("last"), true)).await.expect("an answer");
    expected.push("last".to_owned());
    let spans = collector.wait_for("ModelInfer", expected.len()).await;
    assert_eq!(ids(&spans), expected.iter().map(String::as_str).collect());
}

#[tokio::test]
async fn what_cannot_be_changed_is_refused_by_name() {
    let (repo, collector) = (repository(), Collector::grpc().await);
    let server = start(&repo, &collector, &[]);
    let mut client = server.client().await;
    let cases: [(&str, &[&str], &str); 8] = [
        ("trace_file", &["/tmp/trace.json"], "'trace_file' cannot be changed"),
        ("log_frequency", &["10"], "'log_frequency' cannot be changed"),
        ("trace_mode", &["triton"], "'trace_mode' cannot be changed"),
        ("trace_level", &["TENSORS"], "'trace_level' cannot be TENSORS"),
        ("trace_level", &["LOUD"], "'trace_level' is 'LOUD'"),
        ("trace_rate", &["-1"], "'trace_rate' is '-1'"),
        ("trace_count", &["1", "2"], "'trace_count' has 2 values"),
        ("trace_colour", &["red"], "'trace_colour' is no trace setting"),
    ];
    for (name, list, expected) in cases {
        let answer = set(&mut client, "", &[(name, list), ("trace_rate", &["9"])][..1]).await;
        refused(answer, Code::InvalidArgument, &[expected]);
    }
    refused(set(&mut client, "nobody", &[]).await, Code::NotFound, &["nobody"]);
    let names: Vec<String> = (0..5000).map(|number| number.to_string()).collect();
    let many: Vec<(&str, &[&str])> = names.iter().map(|name| (name.as_str(), &[][..])).collect();
    refused(set(&mut client, "", &many).await, Code::InvalidArgument, &["at most 4096"]);
}

#[tokio::test]
async fn without_a_collector_nothing_is_traced_and_that_is_said() {
    let repo: Repo = repository();
    let server = Server::start(repo.path());
    let mut client = server.client().await;
    let told = set(&mut client, "echo", &[]).await.expect("settings");
    assert_eq!([&told["trace_level"][0], &told["trace_rate"][0]], ["OFF", "0"]);
    let answer = set(&mut client, "", &[("trace_level", &["TIMESTAMPS"])]).await;
    refused(answer, Code::InvalidArgument, &["--trace-endpoint"]);
    set(&mut client, "", &[("trace_level", &[])]).await.expect("nothing to clear");
}
