//! The floor: the least code that serves a TorchScript model over gRPC with the same libraries.
//!
//! tonic's own server, one thread that runs the model, a channel to it and one back. It checks nothing,
//! batches nothing, has one model with one FP32 input, and no way to stop but to be killed: what
//! anyone would write in an afternoon, neither crippled nor tuned. The benchmarks divide by it.
//!
//! `sconce-floor MODEL ADDRESS` serves. `sconce-floor --bare MODEL` loads the model, runs it once and
//! waits for the end of its input: libtorch's own memory. `sconce-floor --measure MODEL VOCABULARY SHAPE`
//! times it without any server (`measure.rs`).

mod measure;

use std::{env, error::Error, io};

use sconce_proto::inference::{
    self as pb, ModelInferRequest, ModelInferResponse,
    grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer},
    model_infer_response::InferOutputTensor,
};
use tch::{CModule, IValue, Kind, TchError, Tensor};
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status, transport::Server};

/// gRPC's lengths are signed for most clients.
const MAX_MESSAGE: usize = i32::MAX as usize;
/// Requests that may wait for the worker.
const QUEUE: usize = 1024;

struct Job {
    request: ModelInferRequest,
    reply: oneshot::Sender<Result<ModelInferResponse, TchError>>,
}

#[derive(Debug)]
struct Floor {
    jobs: mpsc::Sender<Job>,
}

impl Floor {
    async fn infer(&self, request: ModelInferRequest) -> Result<ModelInferResponse, Status> {
        let gone = || Status::internal("the worker is gone");
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job { request, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map_err(|error| Status::internal(error.to_string()))
    }
}

fn run(model: &CModule, request: ModelInferRequest) -> Result<ModelInferResponse, TchError> {
    let inputs = request.inputs.iter().zip(&request.raw_input_contents);
    let inputs = inputs
        .map(|(input, data)| Ok(IValue::Tensor(Tensor::f_from_data_size(data, &input.shape, Kind::Float)?)))
        .collect::<Result<Vec<_>, TchError>>()?;
    let IValue::Tensor(output) = model.forward_is(&inputs)? else {
        return Err(TchError::Kind("forward returned no tensor".to_owned()));
    };
    let count = output.numel();
    let mut data = vec![0; count * size_of::<f32>()];
    output.f_copy_data_u8(&mut data, count)?;
    Ok(ModelInferResponse {
        model_name: request.model_name,
        model_version: "1".to_owned(),
        id: request.id,
        outputs: vec![InferOutputTensor {
            name: "OUTPUT__0".to_owned(),
            datatype: "FP32".to_owned(),
            shape: output.size(),
            ..InferOutputTensor::default()
        }],
        raw_output_contents: vec![data.into()],
        ..ModelInferResponse::default()
    })
}

fn work(model: &CModule, mut jobs: mpsc::Receiver<Job>) {
    let _no_grad = tch::no_grad_guard();
    while let Some(Job { request, reply }) = jobs.blocking_recv() {
        // Nobody waits for the answer to a call that was dropped.
        let _ = reply.send(run(model, request));
    }
}

fn load(path: &str) -> Result<CModule, TchError> {
    let mut model = CModule::load(path)?;
    model.f_set_eval()?;
    Ok(model)
}

/// libtorch with the model loaded and run, and nothing else.
#[allow(clippy::print_stdout)]
fn bare(path: &str) -> Result<(), Box<dyn Error>> {
    let _no_grad = tch::no_grad_guard();
    let model = load(path)?;
    let input = Tensor::f_from_slice(&[1.0f32; 16])?.f_reshape([1, 16])?;
    model.forward_is(&[IValue::Tensor(input)])?;
    println!("ready");
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

#[tokio::main]
async fn serve(path: &str, address: &str) -> Result<(), Box<dyn Error>> {
    let model = load(path)?;
    let (jobs, queue) = mpsc::channel(QUEUE);
    std::thread::spawn(move || work(&model, queue));
    let service = GrpcInferenceServiceServer::new(Floor { jobs })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    Server::builder().add_service(service).serve(address.parse()?).await?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--bare", path] => bare(path),
        ["--measure", path, vocabulary, shape] => measure::answers(path, vocabulary, shape),
        [path, address] => serve(path, address),
        _ => Err("usage: sconce-floor MODEL ADDRESS, sconce-floor --bare MODEL, or sconce-floor --measure MODEL VOCABULARY SHAPE".into()),
    }
}

/// The service: ModelInfer, and UNIMPLEMENTED for all else.
macro_rules! service {
    ($($name:ident: $request:ident -> $response:ident),* $(,)?) => {
        #[tonic::async_trait]
        impl GrpcInferenceService for Floor {
            type ModelStreamInferStream =
                std::pin::Pin<Box<dyn tonic::codegen::tokio_stream::Stream<Item = Result<pb::ModelStreamInferResponse, Status>> + Send>>;

            async fn model_infer(
                &self,
                request: Request<ModelInferRequest>,
            ) -> Result<Response<ModelInferResponse>, Status> {
                Ok(Response::new(self.infer(request.into_inner()).await?))
            }

            async fn model_stream_infer(
                &self,
                _: Request<tonic::Streaming<ModelInferRequest>>,
            ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
                Err(Status::unimplemented(""))
            }

            $(async fn $name(&self, _: Request<pb::$request>) -> Result<Response<pb::$response>, Status> {
                Err(Status::unimplemented(""))
            })*
        }
    };
}

service! {
    server_live: ServerLiveRequest -> ServerLiveResponse,
    server_ready: ServerReadyRequest -> ServerReadyResponse,
    model_ready: ModelReadyRequest -> ModelReadyResponse,
    server_metadata: ServerMetadataRequest -> ServerMetadataResponse,
    model_metadata: ModelMetadataRequest -> ModelMetadataResponse,
    model_config: ModelConfigRequest -> ModelConfigResponse,
    model_statistics: ModelStatisticsRequest -> ModelStatisticsResponse,
    repository_index: RepositoryIndexRequest -> RepositoryIndexResponse,
    repository_model_load: RepositoryModelLoadRequest -> RepositoryModelLoadResponse,
    repository_model_unload: RepositoryModelUnloadRequest -> RepositoryModelUnloadResponse,
    system_shared_memory_status: SystemSharedMemoryStatusRequest -> SystemSharedMemoryStatusResponse,
    system_shared_memory_register: SystemSharedMemoryRegisterRequest -> SystemSharedMemoryRegisterResponse,
    system_shared_memory_unregister: SystemSharedMemoryUnregisterRequest -> SystemSharedMemoryUnregisterResponse,
    cuda_shared_memory_status: CudaSharedMemoryStatusRequest -> CudaSharedMemoryStatusResponse,
    cuda_shared_memory_register: CudaSharedMemoryRegisterRequest -> CudaSharedMemoryRegisterResponse,
    cuda_shared_memory_unregister: CudaSharedMemoryUnregisterRequest -> CudaSharedMemoryUnregisterResponse,
    trace_setting: TraceSettingRequest -> TraceSettingResponse,
    log_settings: LogSettingsRequest -> LogSettingsResponse,
}
