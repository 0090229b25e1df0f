//! The RPCs of `inference.GRPCInferenceService`, one short method each; the one of streams in `streams`.

mod streams;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Response;
use hyper::body::Incoming;
use prost::Message;
use sconce_engine::{
    Error,
    model::{LiveVersion, NamedOutput, Request},
    observe::Run,
    pool::Pool,
    stats::Reason,
    table::{State, Table},
    text::quote,
};
use sconce_proto::inference::{
    ModelConfigRequest, ModelConfigResponse, ModelInferRequest, ModelInferResponse, ModelMetadataRequest,
    ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse, ModelStatisticsRequest,
    ModelStatisticsResponse, RepositoryIndexRequest, RepositoryIndexResponse, RepositoryModelLoadRequest,
    RepositoryModelLoadResponse, RepositoryModelUnloadRequest, RepositoryModelUnloadResponse,
    ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest,
    ServerReadyResponse, TraceSettingRequest, TraceSettingResponse,
};
use tokio::sync::watch;
use tonic::Status;

use crate::{
    control::Control,
    from_proto,
    logging::Logs,
    observe::{OfModel, Watch},
    status::Codes,
    to_proto,
    trace::Tracer,
    wire::{self, Body, Encoding, Limits, Messages, ResponseCompression},
};

/// The path of every RPC of the service begins with this.
pub(crate) const PREFIX: &str = "/inference.GRPCInferenceService/";

/// The extensions of the protocol that are served, by Triton's names.
const EXTENSIONS: [&str; 10] = [
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "model_configuration",
    "binary_tensor_data",
    "schedule_policy",
    "statistics",
    "sequence",
    "trace",
    "logging",
];

type Answer<T> = Result<T, Box<Status>>;

/// Who wants to know of the call.
fn watch_of(request: &http::Request<Incoming>) -> Option<Arc<Watch>> {
    request.extensions().get().cloned()
}

/// The bytes of a request, to be kept until it is answered; one with many answers keeps them itself until its first
/// run is over. Typed contents are copied out of them, and they hold their place in the budget.
fn keep(live: &LiveVersion, request: &mut Request, held: Bytes) -> Option<Bytes> {
    if !live.generates() {
        return Some(held);
    }
    request.held = Some(Box::new(held));
    None
}

/// Answers with a status, and notes it.
fn refuse(watch: Option<&Arc<Watch>>, status: &Status) -> Response<Body> {
    if let Some(watch) = watch {
        watch.note(|record| status.message().clone_into(&mut record.message));
    }
    wire::status(status)
}

/// The service. Shared by all connections.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) table: Arc<Table>,
    pub(crate) pool: Pool,
    pub(crate) tracer: Tracer,
    pub(crate) control: Control,
    pub(crate) logs: Logs,
    pub(crate) server_id: String,
    pub(crate) codes: Codes,
    pub(crate) limits: Limits,
    pub(crate) compression: ResponseCompression,
    /// Whether the server is to stop, so that conversations end.
    pub(crate) stop: watch::Receiver<bool>,
    /// How long a conversation lasts at most.
    pub(crate) max_stream_age: Option<Duration>,
}

impl Service {
    /// Answers one call by its path.
    pub(crate) async fn call(self: &Arc<Self>, request: http::Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        match path.strip_prefix(PREFIX).unwrap_or_default() {
            "ModelInfer" => {
                let watch = watch_of(&request);
                let watch = watch.as_deref();
                let infer = |message, deadline, held| self.model_infer(message, deadline, held, watch);
                self.unary(request, wire::check_infer_request, infer).await
            }
            "ModelStreamInfer" => self.stream(request),
            "ServerLive" => self.ready_unary(request, |_: ServerLiveRequest| Ok(self.server_live())).await,
            "ServerReady" => self.ready_unary(request, |_: ServerReadyRequest| Ok(self.server_ready())).await,
            "ModelReady" => self.ready_unary(request, |message| self.model_ready(&message)).await,
            "ServerMetadata" => {
                self.ready_unary(request, |_: ServerMetadataRequest| Ok(self.server_metadata())).await
            }
            "ModelMetadata" => self.ready_unary(request, |message| self.model_metadata(&message)).await,
            "ModelConfig" => self.ready_unary(request, |message| self.model_config(&message)).await,
            "ModelStatistics" => self.ready_unary(request, |message| self.model_statistics(&message)).await,
            "TraceSetting" => {
                let change = |message, _, _| std::future::ready(self.trace_setting(message));
                self.unary(request, wire::check_settings_request, change).await
            }
            "RepositoryIndex" => self.ready_unary(request, |message| self.repository_index(&message)).await,
            "LogSettings" => self.ready_unary(request, |message| self.logs.update(&message)).await,
            "RepositoryModelLoad" => {
                let load = |message, deadline, held| self.load(message, deadline, held);
                self.unary(request, wire::check_control_request, load).await
            }
            "RepositoryModelUnload" => {
                let unload = |message, deadline, _| self.unload(message, deadline);
                self.unary(request, wire::check_control_request, unload).await
            }
            other => {
                let why = format!("RPC '{}' is not served", quote(other));
                refuse(watch_of(&request).as_ref(), &Status::unimplemented(why))
            }
        }
    }

    /// Receives the message, lets `handler` answer it, sends the answer. The handler also gets the bytes
    /// of the request: typed contents are copied out of them, and they hold their place in the budget for
    /// as long as it keeps them.
    async fn unary<Q: Message + Default + OfModel, A: Message, F: Future<Output = Answer<A>>>(
        &self,
        request: http::Request<Incoming>,
        check: impl FnOnce(&[u8]) -> Answer<()>,
        handler: impl FnOnce(Q, Option<Instant>, Bytes) -> F,
    ) -> Response<Body> {
        let watch = watch_of(&request);
        let (head, body) = request.into_parts();
        let answer = async {
            let packed = Encoding::of_request(&head.headers)?;
            let deadline = wire::deadline(&head.headers)?;
            let mut messages = Messages::new(body, packed, &self.limits);
            let receiving = messages.only();
            let data = match deadline {
                None => receiving.await?,
                Some(deadline) => {
                    let received = tokio::time::timeout_at(deadline.into(), receiving).await;
                    received.map_err(|_| wire::late("while the request was being received"))??
                }
            };
            if let Some(watch) = &watch {
                watch.note(|record| {
                    (record.received, record.request_bytes) = (Some(Instant::now()), data.len())
                });
            }
            check(&data)?;
            let held = data.clone();
            let message: Q = wire::decode(data)?;
            if let Some(watch) = &watch {
                watch.note(|record| message.model().clone_into(&mut record.model));
            }
            Answer::Ok((handler(message, deadline, held).await?, packed))
        };
        match answer.await {
            Ok((answer, packed)) => {
                let encoding = Encoding::of_response(self.compression, packed, &head.headers);
                if let Some(watch) = &watch {
                    watch
                        .note(|record| (record.responses, record.response_bytes) = (1, answer.encoded_len()));
                }
                wire::message(&answer, encoding, &self.limits.answers)
            }
            Err(status) => refuse(watch.as_ref(), &status),
        }
    }

    /// What a version with one answer has made of a request, noted with the run that it was.
    fn told(
        &self,
        outcome: Result<Vec<NamedOutput>, Error>,
        run: Option<Box<Run>>,
        watch: Option<&Watch>,
    ) -> Answer<Vec<NamedOutput>> {
        if let Some(watch) = watch {
            watch.note(|record| record.run = run.map(|run| *run));
        }
        outcome.map_err(|error| self.refusal(&error, watch))
    }

    /// The status of an error of the engine, which is noted.
    fn refusal(&self, error: &Error, watch: Option<&Watch>) -> Box<Status> {
        if let Some(watch) = watch {
            watch.note(|record| record.reason = Some(Reason::from(error).name()));
        }
        self.codes.of_error(error)
    }

    /// The version that a request is for, and the request in the engine's words.
    fn find(
        &self,
        request: ModelInferRequest,
        id: &str,
        deadline: Option<Instant>,
        watch: Option<&Watch>,
    ) -> Answer<(Arc<LiveVersion>, Request)> {
        let trace = watch.and_then(|watch| {
            watch.note(|record| {
                record.model.clone_from(&request.model_name);
                id.clone_into(&mut record.id);
            });
            watch.trace(&request.model_name).map(Box::new)
        });
        let version = from_proto::version(&request.model_version)?;
        if let Some(watch) = watch {
            watch.note(|record| record.version = version);
        }
        let sequence = from_proto::sequence(&request)?;
        let live = match &sequence {
            None => self.table.get(&request.model_name, version),
            Some(at) => self.table.snapshot().find_in_sequence(&request.model_name, version, at),
        };
        let live = live.map_err(|error| {
            let snapshot = self.table.snapshot();
            let known = snapshot.routes.get_key_value(&*request.model_name);
            let counted =
                known.and_then(|(name, route)| self.pool.stats().unserved(name, route.unloaded, &error));
            if let Some(watch) = watch {
                watch.note(|record| record.reason = counted);
            }
            self.codes.of_error(&error)
        })?;
        if let Some(watch) = watch {
            watch.note(|record| record.version = Some(live.version));
        }
        let max_steps = if live.generates() { from_proto::max_steps(&request) } else { Ok(None) };
        let max_steps = max_steps.inspect_err(|_| live.refused())?;
        let request = from_proto::infer_request(request, deadline);
        let mut request = request.inspect_err(|_| live.refused())?;
        (request.sequence, request.max_steps) = (sequence, max_steps);
        (request.trace, request.told) = (trace, watch.is_some());
        id.clone_into(&mut request.id);
        Ok((live, request))
    }

    /// An RPC that is answered at once.
    async fn ready_unary<Q: Message + Default + OfModel, A: Message>(
        &self,
        request: http::Request<Incoming>,
        handler: impl FnOnce(Q) -> Answer<A>,
    ) -> Response<Body> {
        self.unary(request, |_| Ok(()), |message, _, _| std::future::ready(handler(message))).await
    }

    async fn model_infer(
        &self,
        mut request: ModelInferRequest,
        deadline: Option<Instant>,
        held: Bytes,
        watch: Option<&Watch>,
    ) -> Answer<ModelInferResponse> {
        let id = std::mem::take(&mut request.id);
        let (live, mut request) = self.find(request, &id, deadline, watch)?;
        if live.generates() && !live.config.generate.as_ref().is_some_and(|generate| generate.collect) {
            return Err(Box::new(Status::unimplemented(
                "ModelInfer RPC doesn't support models with decoupled transaction policy; use ModelStreamInfer",
            )));
        }
        // Its place is held until it has run.
        let _held = keep(&live, &mut request, held);
        let mut run = None;
        let outcome = live.infer_seen(request, &mut run).await;
        let outputs = self.told(outcome, run, watch)?;
        Ok(to_proto::infer_response(&live.model, live.version, id, outputs))
    }

    async fn load(
        &self,
        request: RepositoryModelLoadRequest,
        deadline: Option<Instant>,
        held: Bytes,
    ) -> Answer<RepositoryModelLoadResponse> {
        self.control.load(request, deadline, held).await?;
        Ok(RepositoryModelLoadResponse {})
    }

    async fn unload(
        &self,
        request: RepositoryModelUnloadRequest,
        deadline: Option<Instant>,
    ) -> Answer<RepositoryModelUnloadResponse> {
        self.control.unload(request, deadline).await?;
        Ok(RepositoryModelUnloadResponse {})
    }

    fn server_live(&self) -> ServerLiveResponse {
        ServerLiveResponse { live: self.pool.is_alive() }
    }

    fn server_ready(&self) -> ServerReadyResponse {
        ServerReadyResponse { ready: self.table.snapshot().ready() }
    }

    /// As released versions of Triton: a model that is not there is not ready, and that is no error.
    fn model_ready(&self, request: &ModelReadyRequest) -> Answer<ModelReadyResponse> {
        let version = from_proto::version(&request.version)?;
        Ok(ModelReadyResponse { ready: self.table.snapshot().model_ready(&request.name, version) })
    }

    fn server_metadata(&self) -> ServerMetadataResponse {
        ServerMetadataResponse {
            name: self.server_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: EXTENSIONS.map(str::to_owned).to_vec(),
        }
    }

    fn model_metadata(&self, request: &ModelMetadataRequest) -> Answer<ModelMetadataResponse> {
        let version = from_proto::version(&request.version)?;
        let snapshot = self.table.snapshot();
        let live = snapshot.find(&request.name, version).map_err(|error| self.codes.of_error(&error))?;
        let versions = match version {
            Some(version) => vec![version],
            None => snapshot.routes.get(&*live.model).map_or_else(Vec::new, |route| {
                let ready = route.versions.iter().filter(|(_, state)| matches!(state, State::Ready(_)));
                ready.map(|(version, _)| *version).collect()
            }),
        };
        Ok(to_proto::model_metadata(&live, &versions))
    }

    fn model_config(&self, request: &ModelConfigRequest) -> Answer<ModelConfigResponse> {
        let version = from_proto::version(&request.version)?;
        let live = self.table.get(&request.name, version).map_err(|error| self.codes.of_error(&error))?;
        Ok(ModelConfigResponse { config: Some(to_proto::model_config(&live)) })
    }

    fn model_statistics(&self, request: &ModelStatisticsRequest) -> Answer<ModelStatisticsResponse> {
        let version = from_proto::version(&request.version)?;
        let snapshot = self.table.snapshot();
        let statistics = to_proto::model_statistics(&snapshot, &request.name, version);
        statistics.map_err(|error| self.codes.of_error(&error))
    }

    fn repository_index(&self, request: &RepositoryIndexRequest) -> Answer<RepositoryIndexResponse> {
        if !request.repository_name.is_empty() {
            return Err(Box::new(Status::unimplemented(
                "'repository_name' is not served: leave it empty for the index of all repositories",
            )));
        }
        Ok(to_proto::repository_index(&self.table.snapshot(), request.ready))
    }

    /// Changes which requests are traced, if it is told to, and tells what holds then.
    fn trace_setting(&self, request: TraceSettingRequest) -> Answer<TraceSettingResponse> {
        let model = Some(&*request.model_name).filter(|model| !model.is_empty());
        if let Some(model) = model.filter(|model| !self.table.snapshot().routes.contains_key(*model)) {
            return Err(self.codes.of_error(&Error::ModelNotFound { model: quote(model) }));
        }
        let values = request.settings.into_iter().map(|(name, setting)| (name, setting.value)).collect();
        self.tracer.change(model, &values).map_err(Status::invalid_argument)?;
        Ok(to_proto::trace_settings(self.tracer.settings(model)))
    }
}
