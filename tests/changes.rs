//! Models change on disk while they serve: what clients see of it, and what they must not.
//!
//! - `following`: each way to publish, to roll back and to remove
//! - `replacing`: configurations that change, versions that fail, requests in flight
//! - `roots`: repositories that are replaced, go away and come back
//! - `odd`: what does not belong into a repository
//! - `soak`: a writer that does all of it at once, by chance, while clients check each answer; with `world`,
//!   what may be served at each moment, `shelf`, what is written, and `writer`, the ways to write it

mod following;
mod odd;
mod replacing;
mod roots;
#[cfg(feature = "torch")]
mod shelf;
#[cfg(feature = "torch")]
mod soak;
#[cfg(feature = "torch")]
mod world;
#[cfg(feature = "torch")]
mod writer;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sconce_proto::inference::{
    ModelInferRequest, ModelReadyRequest, RepositoryIndexRequest, ServerReadyRequest,
    grpc_inference_service_client::GrpcInferenceServiceClient, repository_index_response::ModelIndex,
};
use tokio::task::JoinHandle;
use tonic::{Status, transport::Channel};

use crate::harness::{PATIENCE, Repo, Server, as_fp32, fp32, output, request};

/// Between two looks at a condition.
const LOOK: Duration = Duration::from_millis(10);

/// A version and the number that it answered with, which tells its content.
pub(crate) type Answer = (u64, u32);

/// The file of a model whose every answer is this number. Whole or not at all can be told in both builds.
pub(crate) fn constant(number: u32) -> Vec<u8> {
    #[cfg(feature = "torch")]
    return compiled(&format!("def forward(self, x):\n    return x.new_full([1], {number}.0)\n"), &[]);
    #[cfg(not(feature = "torch"))]
    return format!("fake ends\nargument x tensor\nvalue {number}\nend\n").into_bytes();
}

/// The file of a model that is compiled from this source.
#[cfg(feature = "torch")]
pub(crate) fn compiled(source: &str, parameters: &[&str]) -> Vec<u8> {
    let repo = Repo::new();
    repo.script("model.pt", source, parameters);
    fs::read(repo.path().join("model.pt")).expect("what was compiled")
}

/// Waits until a condition holds; `what` is for the message when it never does.
pub(crate) async fn eventually<T>(
    server: &Server,
    what: &str,
    mut check: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(Instant::now() < deadline, "never: {what}; the server wrote:\n{}", server.log());
        tokio::time::sleep(LOOK).await;
    }
}

/// A server that follows a repository, with one connection to it.
pub(crate) struct Site {
    pub(crate) repo: Repo,
    pub(crate) server: Server,
    client: GrpcInferenceServiceClient<Channel>,
    fences: AtomicU64,
}

impl Site {
    /// Serves what `prepare` writes, and waits until it serves.
    pub(crate) async fn start(prepare: impl FnOnce(&Repo)) -> Self {
        Self::start_with(&[], prepare).await
    }

    pub(crate) async fn start_with(arguments: &[&str], prepare: impl FnOnce(&Repo)) -> Self {
        let repo = Repo::new();
        prepare(&repo);
        repo.file("fence/1/model.pt", constant(1));
        let server = Server::start_with(repo.path(), arguments);
        Self::new(repo, server).await
    }

    async fn new(repo: Repo, server: Server) -> Self {
        let client = server.client().await;
        Self { repo, server, client, fences: AtomicU64::new(1) }
    }

    pub(crate) fn client(&self) -> GrpcInferenceServiceClient<Channel> {
        self.client.clone()
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.repo.path().join(path)
    }

    /// What the model answers; `version` may be empty.
    pub(crate) async fn ask(&self, model: &str, version: &str) -> Result<Answer, Status> {
        let response = self.client().model_infer(asking(model, version)).await?.into_inner();
        let number = as_fp32(output(&response, "OUTPUT__0").2)[0];
        Ok((response.model_version.parse().expect("a version"), whole(number)))
    }

    /// Waits until the model answers by this version with this number.
    pub(crate) async fn serves(&self, model: &str, answer: Answer) {
        let what = format!("{model:?} answers {answer:?}");
        eventually(&self.server, &what, async || {
            self.ask(model, "").await.is_ok_and(|a| a == answer).then_some(())
        })
        .await;
    }

    /// The rows of a model in the repository index.
    pub(crate) async fn rows(&self, model: &str) -> Vec<ModelIndex> {
        self.index().await.into_iter().filter(|row| row.name == model).collect()
    }

    async fn index(&self) -> Vec<ModelIndex> {
        match self.client().repository_index(RepositoryIndexRequest::default()).await {
            Ok(index) => index.into_inner().models,
            Err(error) => panic!("no index: {error}{}; the server wrote:\n{}", self.end(), self.server.log()),
        }
    }

    /// How the server ended, if it has: what it would have told its parent.
    fn end(&self) -> String {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.server.pid())).unwrap_or_default();
        let code = stat.split_whitespace().last().and_then(|code| code.parse::<i32>().ok());
        match code {
            Some(code) if stat.contains(") Z ") => {
                format!(", it ended by signal {} or with {}", code & 127, code >> 8)
            }
            _ => String::new(),
        }
    }

    /// The versions of a model that the index calls ready, ascending.
    pub(crate) async fn ready_versions(&self, model: &str) -> Vec<u64> {
        let rows = self.rows(model).await;
        let ready = rows.iter().filter(|row| row.state == "READY");
        ready.map(|row| row.version.parse().expect("a version")).collect()
    }

    /// Waits until exactly these versions are ready.
    pub(crate) async fn has_ready(&self, model: &str, versions: &[u64]) {
        let what = format!("{model:?} has {versions:?} ready");
        eventually(&self.server, &what, async || {
            (self.ready_versions(model).await == versions).then_some(())
        })
        .await;
    }

    /// Waits until a row of the model has a reason with this text.
    pub(crate) async fn gives_reason(&self, model: &str, text: &str) -> ModelIndex {
        let what = format!("the index gives the reason {text:?} for {model:?}");
        eventually(&self.server, &what, async || {
            self.rows(model).await.into_iter().find(|row| row.reason.contains(text))
        })
        .await
    }

    /// Waits until the server has looked at all that was on disk before this call, and is at rest.
    pub(crate) async fn settled(&self) {
        let version = self.fences.fetch_add(1, Ordering::Relaxed) + 1;
        let number = u32::try_from(version).expect("few");
        // Only the last one serves; in a long run they would become many.
        if version > 2 {
            fs::remove_dir_all(self.path(&format!("fence/{}", version - 2))).expect("an old fence");
        }
        publish(self.repo.path(), "fence", version, &constant(number));
        self.serves("fence", (version, number)).await;
        eventually(&self.server, "the server is at rest", async || self.is_at_rest().await.then_some(()))
            .await;
    }

    /// Nothing is being loaded or unloaded.
    pub(crate) async fn is_at_rest(&self) -> bool {
        let rows = self.index().await;
        !rows.iter().any(|row| row.state == "LOADING" || row.state == "UNLOADING")
    }

    /// How often a version of the model was loaded, by the log.
    pub(crate) fn loads(&self, model: &str) -> usize {
        self.server.log().matches(&format!(" loaded model={model} ")).count()
    }

    /// Watches from now on whether the server and a model are ready, and whether the model answers.
    pub(crate) fn watch(&self, model: &str) -> Watch {
        let (stop, mut client, model) = (Arc::new(AtomicBool::new(false)), self.client(), model.to_owned());
        let told = Arc::clone(&stop);
        let seen = tokio::spawn(async move {
            let mut seen = 0;
            while !told.load(Ordering::Relaxed) {
                let server = client.server_ready(ServerReadyRequest {}).await.expect("an answer");
                assert!(server.into_inner().ready, "the server was not ready");
                let asked = ModelReadyRequest { name: model.clone(), ..Default::default() };
                let ready = client.model_ready(asked).await.expect("an answer").into_inner().ready;
                assert!(ready, "{model} was not ready");
                client.model_infer(asking(&model, "")).await.expect("an answer");
                seen += 1;
                tokio::time::sleep(LOOK / 5).await;
            }
            seen
        });
        Watch { stop, seen }
    }
}

/// Somebody who asks all the time; see [`Site::watch`].
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    seen: JoinHandle<usize>,
}

impl Watch {
    /// Asserts that nothing was missing in all that time.
    pub(crate) async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        assert!(self.seen.await.expect("always ready, always answered") > 0);
    }
}

/// Asserts that a log tells of no panic and no error.
#[cfg(feature = "torch")]
pub(crate) fn is_sound(log: &str) {
    let bad: Vec<&str> =
        log.lines().filter(|line| line.contains("panic") || line.contains("ERROR")).collect();
    assert!(bad.is_empty(), "the server wrote:\n{}", bad.join("\n"));
}

/// A request that any constant answers.
pub(crate) fn asking(model: &str, version: &str) -> ModelInferRequest {
    let request = request(model, &[("x", "FP32", &[1], fp32(&[0.5]))]);
    ModelInferRequest { model_version: version.to_owned(), ..request }
}

/// A number that was written as FP32.
pub(crate) fn whole(number: f32) -> u32 {
    format!("{number}").parse().unwrap_or_else(|_| panic!("{number} is nobody's number"))
}

/// Publishes a version as a careful person does: written beside, under a hidden name, then renamed.
pub(crate) fn publish(root: &Path, model: &str, version: u64, content: &[u8]) {
    let model = root.join(model);
    let staging = model.join(format!(".{version}.partial"));
    fs::create_dir_all(&staging).expect("a directory");
    fs::write(staging.join("model.pt"), content).expect("a file");
    fs::rename(staging, model.join(version.to_string())).expect("a new version");
}

/// Replaces a file in one step.
pub(crate) fn replace(path: &Path, content: impl AsRef<[u8]>) {
    let beside = path.with_file_name(".replacement");
    fs::write(&beside, content).expect("a file");
    fs::rename(beside, path).expect("a replaced file");
}

/// Points a link at another target in one step.
pub(crate) fn point(link: &Path, target: &Path) {
    let beside = link.with_file_name(".link");
    std::os::unix::fs::symlink(target, &beside).expect("a link");
    fs::rename(beside, link).expect("a link in its place");
}
