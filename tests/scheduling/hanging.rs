//! A model whose runs do not end: who learns of it where, and what it holds up.

use prost::Message;
use sconce_proto::inference::{
    ModelInferResponse, ModelReadyRequest, RepositoryIndexRequest, RepositoryModelUnloadRequest,
    ServerReadyRequest,
};
use tonic::Code;

use crate::{
    harness::{PATIENCE, Repo, Server, fp32, refused, request},
    raw::{Raw, framed},
};

const STUCK: &str = "all of the runs that it may have at once hang";

/// `echo` answers at once, `endless` never.
fn repository() -> Repo {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    #[cfg(feature = "torch")]
    repo.script(
        "endless/1/model.pt",
        "def forward(self, x):\n    y = torch.ones([64, 64])\n    for i in range(1000000000000):\n        \
         y = y @ y * 0.01\n    return x + 0 * y.sum()\n",
        &[],
    );
    #[cfg(not(feature = "torch"))]
    repo.file("endless/1/model.pt", "fake\nargument x tensor\ngate\n");
    repo.file("endless/config.yaml", "instances: 1\n");
    repo
}

fn ask(model: &str) -> sconce_proto::inference::ModelInferRequest {
    request(model, &[("x", "FP32", &[1], fp32(&[1.0]))])
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_told_everywhere_and_holds_up_neither_other_models_nor_its_own_callers() {
    let repo = repository();
    let flags = ["--cpu-workers", "1", "--hung-run-timeout", "100ms", "--unload-timeout", "100ms"];
    let server = Server::start_with(repo.path(), &[&flags[..], &["--strict-readiness"]].concat());
    let mut client = server.client().await;
    let ready = async |name: &str| {
        let request = ModelReadyRequest { name: name.to_owned(), ..Default::default() };
        server.client().await.model_ready(request).await.expect("an answer").into_inner().ready
    };
    assert!(ready("endless").await);

    let connection = Raw::connect(&server).await;
    let mut hangs = connection.begin("ModelInfer", &[]).await.expect("a stream");
    hangs.body.send_data(framed(&ask("endless").encode_to_vec()).into(), true).expect("a body");
    server.wait_for("a run has not ended after");

    // The only worker has a substitute.
    connection.call("ModelInfer", &ask("echo")).await.message::<ModelInferResponse>().expect("an answer");
    refused(server.infer(ask("endless")).await, Code::Unavailable, &["'endless'", "version 1", STUCK]);
    assert!(!ready("endless").await && ready("echo").await);
    assert!(!client.server_ready(ServerReadyRequest {}).await.expect("an answer").into_inner().ready);
    let (code, why) = server.get("/health/ready");
    assert!(code == 503 && why.trim_end().ends_with("these do not: endless"), "{code} {why}");
    assert_eq!(server.get("/health/live").0, 200);
    let index = client.repository_index(RepositoryIndexRequest::default()).await.expect("an answer");
    let rows = index.into_inner().models;
    let row = rows.iter().find(|row| row.name == "endless").expect("a row");
    assert_eq!(row.state, "UNAVAILABLE");
    assert!(row.reason.starts_with(STUCK), "{}", row.reason);
    let (_, model) = server.get("/models/endless");
    for part in ["\"ready\": false", "\"state\": \"UNAVAILABLE\"", "\"hung\": 1", STUCK] {
        assert!(model.contains(part), "{part} is not in {model}");
    }

    // Unloading it cannot stop the run, but nobody waits for that.
    let unload = RepositoryModelUnloadRequest { model_name: "endless".to_owned(), ..Default::default() };
    refused(client.repository_model_unload(unload).await, Code::Unavailable, &["'endless'"]);
    let status = tokio::time::timeout(PATIENCE, hangs.finish()).await.expect("an answer").status();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("it was unloaded before it could answer"), "{status}");
    let (_, model) = server.get("/models/endless");
    for part in ["\"state\": \"UNLOADING\"", "\"running\": 1", "\"hung\": 1"] {
        assert!(model.contains(part), "{part} is not in {model}");
    }
    assert_eq!(server.get("/health/ready").0, 200, "it was unloaded on purpose");
}
