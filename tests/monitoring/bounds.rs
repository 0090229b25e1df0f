//! What callers make up adds no series, and what is gone leaves none behind.

use std::{fs, sync::Arc};

use prost::Message;
use sconce_proto::{
    health::HealthCheckRequest,
    inference::{
        ModelInferRequest, ModelMetadataRequest, ModelReadyRequest, RepositoryModelLoadRequest,
        RepositoryModelUnloadRequest,
    },
};
use tokio::task::JoinSet;

use super::exposition::Exposition;
use crate::{
    changes::{Site, constant, eventually, publish},
    harness::{Repo, Server, fp32, request},
    raw::{Raw, framed},
};

/// So many names of each kind are made up.
const NAMES: usize = 2_000;
/// By so many callers at once.
const CALLERS: usize = 16;

fn ask(model: &str, version: &str, id: &str) -> ModelInferRequest {
    let (id, model_version) = (id.to_owned(), version.to_owned());
    ModelInferRequest { id, model_version, ..request(model, &[("x", "FP32", &[1], fp32(&[1.0]))]) }
}

/// A call whose answer does not matter. It may come before the message has been sent.
async fn send(raw: &Raw, rpc: &str, message: Vec<u8>) {
    let mut open = raw.begin(rpc, &[]).await.expect("a stream");
    let _ = open.body.send_data(framed(&message).into(), true);
    let _ = open.try_finish().await;
}

/// One caller who makes up everything that a caller can name.
async fn make_up(raw: &Raw, name: &str) {
    let model = || name.to_owned();
    let number = (name.len() + 7).to_string();
    let unknown = [ask(name, "", ""), ask("echo", &number, ""), ask("echo", name, ""), ask("echo", "", name)];
    for request in unknown {
        send(raw, "ModelInfer", request.encode_to_vec()).await;
    }
    send(raw, "ModelStreamInfer", ask(name, "", name).encode_to_vec()).await;
    for rpc in [format!("/inference.GRPCInferenceService/{name}"), format!("/{name}/Do"), format!("/{name}")]
    {
        send(raw, &rpc, Vec::new()).await;
    }
    let ready = ModelReadyRequest { name: model(), ..Default::default() };
    send(raw, "ModelReady", ready.encode_to_vec()).await;
    let metadata = ModelMetadataRequest { name: model(), ..Default::default() };
    send(raw, "ModelMetadata", metadata.encode_to_vec()).await;
    let load = RepositoryModelLoadRequest { model_name: model(), ..Default::default() };
    send(raw, "RepositoryModelLoad", load.encode_to_vec()).await;
    let unload = RepositoryModelUnloadRequest { model_name: model(), ..Default::default() };
    send(raw, "RepositoryModelUnload", unload.encode_to_vec()).await;
    let check = HealthCheckRequest { service: model() };
    send(raw, "/grpc.health.v1.Health/Check", check.encode_to_vec()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_callers_make_up_add_no_series() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    let server = Server::start(repo.path());
    let raw = Raw::connect(&server).await;
    make_up(&raw, "name-first").await;
    let before = Exposition::of(&server);
    let raw = Arc::new(raw);
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let raw = Arc::clone(&raw);
        callers.spawn(async move {
            for number in (caller..NAMES).step_by(CALLERS) {
                make_up(&raw, &format!("name-{number}")).await;
            }
        });
    }
    callers.join_all().await;
    let after = Exposition::of(&server);
    let new: Vec<String> = after.series().difference(&before.series()).cloned().collect();
    assert!(new.is_empty(), "{} new series: {:?}", new.len(), &new[..new.len().min(5)]);
    assert_eq!(before.text.lines().count(), after.text.lines().count());
    assert!(!after.text.contains("name-"), "no name is told: {}", after.text);
    let other = after.sum("sconce_rpcs_total", &[("method", "other")]);
    assert!(other >= (3 * NAMES) as f64, "{other} others");
}

/// Whether a series speaks of the version.
fn speaks_of(metrics: &Exposition, model: &str, version: Option<&str>) -> bool {
    let samples = metrics.families.values().flat_map(|family| &family.samples);
    samples.into_iter().any(|sample| {
        let is = |label: &str, value: &str| sample.labels.get(label).is_some_and(|is| is == value);
        is("model", model) && version.is_none_or(|version| is("version", version))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_was_removed_leaves_no_series() {
    let site = Site::start(|repo| {
        repo.file("model/config.yaml", "versions: all\n");
        publish(repo.path(), "model", 1, &constant(1));
        publish(repo.path(), "model", 2, &constant(2));
        publish(repo.path(), "other", 1, &constant(3));
    })
    .await;
    for version in ["1", "2"] {
        site.ask("model", version).await.expect("an answer");
    }
    let metrics = Exposition::of(&site.server);
    assert!(speaks_of(&metrics, "model", Some("1")) && speaks_of(&metrics, "model", Some("2")));
    let gone = async |what: &str, model: &str, version: Option<&str>| {
        eventually(&site.server, what, async || {
            let metrics = Exposition::of(&site.server);
            (!speaks_of(&metrics, model, version)).then_some(metrics)
        })
        .await
    };
    fs::remove_dir_all(site.path("model/1")).expect("removed");
    let metrics = gone("the first version is gone", "model", Some("1")).await;
    let answered = [("model", "model"), ("version", "2"), ("reason", "ok")];
    assert_eq!(metrics.sum("sconce_requests_total", &answered), 1.0, "the other one keeps its numbers");
    fs::remove_dir_all(site.path("model")).expect("removed");
    let metrics = gone("the model is gone", "model", None).await;
    assert!(speaks_of(&metrics, "other", Some("1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_loaded_again_goes_on_counting() {
    let site = Site::start(|repo| publish(repo.path(), "model", 1, &constant(1))).await;
    site.ask("model", "1").await.expect("an answer");
    crate::changes::replace(&site.path("model/1/model.pt"), constant(2));
    site.serves("model", (1, 2)).await;
    site.ask("model", "1").await.expect("an answer");
    let metrics = Exposition::of(&site.server);
    let answered = [("model", "model"), ("version", "1"), ("reason", "ok")];
    assert!(metrics.sum("sconce_requests_total", &answered) >= 3.0, "{}", metrics.text);
    let loaded = [("model", "model"), ("outcome", "loaded")];
    assert_eq!(metrics.sum("sconce_model_loads_total", &loaded), 2.0, "{}", metrics.text);
    assert_eq!(metrics.samples("sconce_model_version_info", &[("model", "model")]).len(), 1);
}
