//! The RPCs of `inference.GRPCInferenceService`, one short method each.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::Response;
use hyper::body::Incoming;
use prost::Message;
use sconce_engine::{
    Error,
    generate::{self, Answers},
    model::{LiveVersion, NamedOutput, Request},
    observe::Run,
    pool::Pool,
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
    conversation::{Conversation, Said, closing},
    from_proto,
    logging::Logs,
    observe::{MessageEnding, OfModel, Watch},
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

/// The header by which clients of Triton ask for real statuses on a stream.
const REAL_ERRORS: &str = "triton_grpc_error";

/// Who wants to know of the call.
fn watch_of(request: &http::Request<Incoming>) -> Option<Arc<Watch>> {
    request.extensions().get().cloned()
}

/// Answers with a status, and notes it.
fn refuse(watch: Option<&Arc<Watch>>, status: &Status) -> Response<Body> {
    if let Some(watch) = watch {
        watch.note(|record| status.message().clone_into(&mut record.message));
    }
    wire::status(status)
}

/// How the messages of a stream are answered.
struct Streaming {
    deadline: Option<Instant>,
    encoding: Option<Encoding>,
    real_errors: bool,
    ending: MessageEnding,
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

    /// Answers requests as they come, each like one of ModelInfer, in their order.
    fn stream(self: &Arc<Self>, request: http::Request<Incoming>) -> Response<Body> {
        let watch = watch_of(&request);
        let (head, body) = request.into_parts();
        let begin = || Answer::Ok((Encoding::of_request(&head.headers)?, wire::deadline(&head.headers)?));
        let (packed, deadline) = match begin() {
            Ok(begun) => begun,
            Err(status) => return refuse(watch.as_ref(), &status),
        };
        let encoding = Encoding::of_response(self.compression, packed, &head.headers);
        let real_errors = head.headers.get(REAL_ERRORS).is_some_and(|value| value == "true");
        let messages = futures_util::stream::unfold(
            Messages::new(body, packed, &self.limits),
            |mut messages| async move { messages.next().await.transpose().map(|message| (message, messages)) },
        );
        let this = Arc::clone(self);
        let answer = move |data: Bytes| {
            let watch = watch.as_ref().map(|watch| watch.message(data.len()));
            let streaming =
                Streaming { deadline, encoding, real_errors, ending: MessageEnding(watch, deadline) };
            Arc::clone(&this).answer_streamed(data, streaming)
        };
        wire::stream(
            Conversation::new(messages, answer, deadline, closing(self.stop.clone(), self.max_stream_age)),
            encoding,
        )
    }

    /// One message of a stream. An error ends the stream; what is wrong with a request alone is an answer,
    /// unless the caller wants the stream to end with it.
    async fn answer_streamed(self: Arc<Self>, data: Bytes, streaming: Streaming) -> Answer<Said> {
        let Streaming { deadline, encoding, real_errors, mut ending } = streaming;
        // Its place in the budget is held until it is answered, although typed contents are copied out of it.
        let _held = data.clone();
        let request = wire::check_infer_request(&data).and_then(|()| wire::decode::<ModelInferRequest>(data));
        let mut request = request.inspect_err(|status| ending.end(Some(status)))?;
        let id = std::mem::take(&mut request.id);
        let answer = async {
            let watch = ending.0.as_deref();
            let (live, request) = self.find(request, &id, deadline, watch)?;
            if live.generates() {
                let answers = live.generate(request).map_err(|error| self.refusal(&error, watch))?;
                return Ok(Err((live, answers)));
            }
            let mut run = None;
            let outcome = live.infer_seen(request, &mut run).await;
            let outputs = self.told(outcome, run, watch)?;
            let response = to_proto::infer_response(&live.model, live.version, id.clone(), outputs);
            let response = to_proto::stream_response(response, true);
            Answer::Ok(Ok(wire::encode(&response, encoding, &self.limits.answers)?))
        };
        match answer.await {
            Ok(Err((live, answers))) => {
                let streaming = Streaming { deadline, encoding, real_errors, ending };
                Ok(Said::Many(self.generated(&live, id, answers, streaming)))
            }
            Ok(Ok(answer)) => {
                ending.answered(answer.len());
                ending.end(None);
                Ok(Said::One(answer))
            }
            Err(status) => {
                ending.end(Some(&status));
                if real_errors {
                    return Err(status);
                }
                let response = to_proto::stream_error(id, &status);
                Ok(Said::One(wire::encode(&response, encoding, &self.limits.answers)?))
            }
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
            // What nobody has is not counted by reasons, and not told by one.
            let is_known = !matches!(error, Error::ModelNotFound { .. } | Error::VersionNotFound { .. });
            watch.note(|record| record.reason = is_known.then(|| error.into()));
        }
        self.codes.of_error(error)
    }

    /// The answers to one message, as they are made.
    fn generated(
        self: &Arc<Self>,
        live: &LiveVersion,
        id: String,
        answers: Answers,
        streaming: Streaming,
    ) -> Pin<Box<dyn Stream<Item = Answer<Bytes>> + Send>> {
        // Not the version itself: who does not read would hold its weights.
        let (this, model, version) = (Arc::clone(self), Arc::clone(&live.model), live.version);
        let Streaming { encoding, real_errors, mut ending, .. } = streaming;
        let encode = move |(answer, last): generate::Answer| {
            let response = match answer {
                Ok(outputs) => {
                    let response = to_proto::infer_response(&model, version, id.clone(), outputs);
                    to_proto::stream_response(response, last)
                }
                Err(error) => {
                    let status = this.refusal(&error, ending.0.as_deref());
                    ending.end(Some(&status));
                    if real_errors {
                        return Err(status);
                    }
                    to_proto::stream_error(id.clone(), &status)
                }
            };
            let answer = wire::encode(&response, encoding, &this.limits.answers);
            let answer = answer.inspect_err(|status| ending.end(Some(status)))?;
            ending.answered(answer.len());
            if last {
                ending.end(None);
            }
            Ok(answer)
        };
        let answers = futures_util::stream::unfold(answers, |mut answers| async move {
            answers.next().await.map(|answer| (answer, answers))
        });
        Box::pin(answers.map(encode))
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
            if let Some((name, _)) = self.table.snapshot().routes.get_key_value(&*request.model_name) {
                self.pool.stats().unserved(name, &error);
            }
            self.refusal(&error, watch)
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
        _held: Bytes, // until it is answered
        watch: Option<&Watch>,
    ) -> Answer<ModelInferResponse> {
        let id = std::mem::take(&mut request.id);
        let (live, request) = self.find(request, &id, deadline, watch)?;
        if live.generates() && !live.config.generate.as_ref().is_some_and(|generate| generate.collect) {
            return Err(Box::new(Status::unimplemented(
                "ModelInfer RPC doesn't support models with decoupled transaction policy; use ModelStreamInfer",
            )));
        }
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
