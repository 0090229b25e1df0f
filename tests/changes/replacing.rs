//! What takes the place of what serves: configurations, versions that fail, and requests in flight meanwhile.

use std::fs;

use sconce_proto::inference::{ModelConfigRequest, ModelInferRequest, ModelInferResponse};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use super::{Site, asking, constant, eventually, publish, replace, whole};
use crate::harness::{as_fp32, output, refused};

/// A model that loads, and throws when it is run.
fn thrower() -> Vec<u8> {
    #[cfg(feature = "torch")]
    return super::compiled("def forward(self, x):\n    return x.reshape([7])\n", &[]);
    #[cfg(not(feature = "torch"))]
    return b"fake\nargument x tensor\nfail shape is invalid\n".to_vec();
}

/// A model that takes seconds, and answers with 1.
fn slow() -> Vec<u8> {
    #[cfg(feature = "torch")]
    return super::compiled(
        "def forward(self, x):\n    y = self.weight * x\n    for i in range(1500):\n        \
         y = torch.tanh(torch.mm(y, self.weight))\n    return x.new_full([1], 1.0) + y.sum() * 0.0\n",
        &["weight:192x192"],
    );
    #[cfg(not(feature = "torch"))]
    return b"fake\nargument x tensor\nvalue 1\ndelay 1000\n".to_vec();
}

/// Asks for version 1, from a task of its own.
fn ask_first(site: &Site) -> JoinHandle<Result<ModelInferResponse, Status>> {
    let mut client = site.client();
    tokio::spawn(async move { client.model_infer(asking("m", "1")).await.map(tonic::Response::into_inner) })
}

/// How many runs at once the model's configuration names, as the server tells it.
async fn instances(site: &Site, model: &str) -> i32 {
    let request = ModelConfigRequest { name: model.to_owned(), ..Default::default() };
    let config = site.client().model_config(request).await.expect("an answer").into_inner().config;
    config.expect("a configuration").instance_group.iter().map(|group| group.count).sum()
}

#[tokio::test]
async fn another_number_of_instances_is_taken_without_loading_again() {
    let site = Site::start(|repo| {
        repo.file("m/config.yaml", "instances: 1\n");
        publish(repo.path(), "m", 1, &constant(1));
    })
    .await;
    let watch = site.watch("m");
    replace(&site.path("m/config.yaml"), "instances: 3\n");
    eventually(&site.server, "three instances", async || (instances(&site, "m").await == 3).then_some(()))
        .await;
    fs::write(site.path("m/config.yaml"), "instances: 2\n").unwrap();
    eventually(&site.server, "two instances", async || (instances(&site, "m").await == 2).then_some(()))
        .await;
    site.settled().await;
    assert_eq!(site.loads("m"), 1, "{}", site.server.log());
    watch.end().await;
}

#[tokio::test]
async fn a_configuration_that_is_wrong_changes_nothing() {
    let site = Site::start(|repo| {
        repo.file("m/config.yaml", "versions: {latest: 1}\n");
        publish(repo.path(), "m", 1, &constant(1));
        publish(repo.path(), "m", 2, &constant(2));
    })
    .await;
    let watch = site.watch("m");
    replace(&site.path("m/config.yaml"), "version: all\n");
    site.server.wait_for("its new configuration is not taken");
    site.settled().await;
    assert_eq!(site.ready_versions("m").await, [2]);
    publish(site.repo.path(), "m", 3, &constant(3));
    site.settled().await;
    assert_eq!(site.ready_versions("m").await, [2]);
    replace(&site.path("m/config.yaml"), "versions: {latest: 2}\n");
    site.has_ready("m", &[2, 3]).await;
    fs::remove_file(site.path("m/config.yaml")).unwrap();
    site.has_ready("m", &[3]).await;
    watch.end().await;
}

#[tokio::test]
async fn a_version_that_cannot_be_loaded_never_serves_and_says_why() {
    let site = Site::start(|repo| publish(repo.path(), "m", 2, &constant(2))).await;
    let watch = site.watch("m");
    publish(site.repo.path(), "m", 3, b"neither a zip nor a script");
    let row = site.gives_reason("m", "m/3/model.pt").await;
    assert_eq!((row.version.as_str(), row.state.as_str()), ("3", "UNAVAILABLE"));
    // A good one beside it is not held back, above or below.
    publish(site.repo.path(), "m", 1, &constant(1));
    site.settled().await;
    assert_eq!(site.ask("m", "").await.unwrap(), (2, 2));
    refused(site.ask("m", "3").await, Code::Unavailable, &["version 3", "m/3/model.pt"]);
    // It is tried again although nothing changes.
    site.server.wait_for("attempts=2");
    replace(&site.path("m/3/model.pt"), constant(3));
    site.serves("m", (3, 3)).await;
    assert!(site.rows("m").await.iter().all(|row| row.reason.is_empty()));
    // What served does so on when its bytes are spoilt.
    replace(&site.path("m/3/model.pt"), b"spoilt");
    site.settled().await;
    assert_eq!(site.ask("m", "").await.unwrap(), (3, 3));
    watch.end().await;
}

#[tokio::test]
async fn a_version_that_throws_when_it_is_warmed_never_serves() {
    let site = Site::start(|repo| {
        repo.file("m/config.yaml", "inputs: [{name: x, dtype: FP32, shape: [1]}]\n");
        publish(repo.path(), "m", 1, &constant(1));
    })
    .await;
    let watch = site.watch("m");
    publish(site.repo.path(), "m", 2, &thrower());
    let row = site.gives_reason("m", "shape").await;
    assert_eq!((row.version.as_str(), row.state.as_str()), ("2", "UNAVAILABLE"));
    refused(site.ask("m", "2").await, Code::Unavailable, &["shape"]);
    assert_eq!(site.ask("m", "").await.unwrap(), (1, 1));
    watch.end().await;
}

#[tokio::test]
async fn with_replace_the_old_version_goes_before_the_new_one_is_loaded() {
    let site = Site::start(|repo| {
        repo.file("m/config.yaml", "availability: replace\n");
        publish(repo.path(), "m", 1, &constant(1));
    })
    .await;
    publish(site.repo.path(), "m", 2, &constant(2));
    site.serves("m", (2, 2)).await;
    let log = site.server.log();
    let at = |text: &str| log.find(text).unwrap_or_else(|| panic!("{text:?} is not in:\n{log}"));
    assert!(at("out of service model=m version=1") < at("loaded model=m version=2"), "{log}");
    // What does not verify makes nobody go.
    let whole = constant(3);
    publish(site.repo.path(), "m", 3, &whole[..whole.len() - 4]);
    site.gives_reason("m", "model.pt").await;
    site.settled().await;
    assert_eq!(site.ask("m", "").await.unwrap(), (2, 2));
    assert_eq!(site.server.log().matches("out of service model=m").count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_flight_is_answered_by_the_version_that_accepted_it() {
    let site = Site::start(|repo| publish(repo.path(), "m", 1, &slow())).await;
    let slow = ask_first(&site);
    // The answer to what was sent later on the same connection: the server has the first one.
    for _ in 0..3 {
        assert_eq!(site.ready_versions("m").await, [1]);
    }
    publish(site.repo.path(), "m", 2, &constant(2));
    site.serves("m", (2, 2)).await;
    // Its removal does not take it from under the request either.
    fs::remove_dir_all(site.path("m/1")).unwrap();
    let answer = slow.await.unwrap().expect("an answer");
    assert_eq!(answer.model_version, "1");
    site.settled().await;
    refused(site.ask("m", "1").await, Code::NotFound, &["version 1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_an_old_version_for_too_long_is_refused() {
    let arguments = ["--cpu-workers", "2", "--unload-timeout", "100ms"];
    let site = Site::start_with(&arguments, |repo| {
        repo.file("m/config.yaml", "instances: 1\n");
        publish(repo.path(), "m", 1, &slow());
    })
    .await;
    let asked: Vec<_> = (0..16).map(|_| ask_first(&site)).collect();
    for _ in 0..3 {
        assert_eq!(site.ready_versions("m").await, [1]);
    }
    publish(site.repo.path(), "m", 2, &constant(2));
    site.serves("m", (2, 2)).await;
    let (mut answered, mut refusals) = (0, 0);
    for answer in asked {
        match answer.await.unwrap() {
            Ok(answer) => {
                assert_eq!(answer.model_version, "1");
                answered += 1;
            }
            Err(status) => {
                refused(Err::<(), _>(status), Code::Unavailable, &["version 1", "unloaded"]);
                refusals += 1;
            }
        }
    }
    // What runs is not cut, and most had to wait for seconds.
    assert!(answered > 0 && refusals > 0, "{answered} answered, {refusals} refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_over_a_change() {
    let site = Site::start(|repo| drop(repo.file("m/1/model.pt", constant(1)))).await;
    let (sender, requests) = tokio::sync::mpsc::channel(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut client = site.client();
    let mut answers = client.model_stream_infer(requests).await.expect("a stream").into_inner();
    let mut seen = Vec::new();
    for number in 0u64.. {
        let asked = ModelInferRequest { id: number.to_string(), ..asking("m", "") };
        sender.send(asked).await.expect("an open stream");
        let answer = answers.message().await.expect("an open stream").expect("an answer");
        assert_eq!(answer.error_message, "", "nothing fails while versions change");
        let response = answer.infer_response.expect("an answer");
        assert_eq!(response.id, number.to_string());
        let version: u64 = response.model_version.parse().expect("a version");
        let value = whole(as_fp32(output(&response, "OUTPUT__0").2)[0]);
        assert_eq!(u64::from(value), version, "an answer is of one version");
        if seen.last() != Some(&version) {
            seen.push(version);
            publish(site.repo.path(), "m", version + 1, &constant(value + 1));
        }
        if seen.len() == 4 {
            break;
        }
    }
    assert_eq!(seen, [1, 2, 3, 4]);
}
