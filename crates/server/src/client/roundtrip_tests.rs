//! The command against a server in this process that echoes its inputs as outputs.

use std::time::Duration;

use sconce_proto::inference::{
    self as pb,
    grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer},
    model_infer_response::InferOutputTensor,
};
use tonic::{Request, Response, Status, Streaming, transport::server::TcpIncoming};

use super::{array::push_string, model, tests::parsed, *};

type Answer<T> = Result<Response<T>, Status>;

fn unserved<T>() -> Answer<T> {
    Err(Status::unimplemented("not here"))
}

/// Output `scores` is the first input, or the words of the classification when that is asked for.
struct Echo {
    model: model::Model,
}

#[tonic::async_trait]
impl GrpcInferenceService for Echo {
    type ModelStreamInferStream = tokio_stream::Empty<Result<pb::ModelStreamInferResponse, Status>>;

    async fn model_metadata(
        &self,
        request: Request<pb::ModelMetadataRequest>,
    ) -> Answer<pb::ModelMetadataResponse> {
        if request.into_inner().name != "m" {
            return Err(Status::not_found("Request for unknown model: \u{1b}[31m is not found"));
        }
        Ok(Response::new(self.model.metadata.clone()))
    }

    async fn model_config(&self, _: Request<pb::ModelConfigRequest>) -> Answer<pb::ModelConfigResponse> {
        match &self.model.config {
            Some(config) => Ok(Response::new(pb::ModelConfigResponse { config: Some(config.clone()) })),
            None => unserved(),
        }
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Answer<pb::ModelInferResponse> {
        let request = request.into_inner();
        if request.id == "slow" {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        let input =
            request.inputs.into_iter().next().ok_or_else(|| Status::invalid_argument("expected 1 input"))?;
        let output = InferOutputTensor {
            name: "scores".to_owned(),
            datatype: input.datatype,
            shape: input.shape,
            ..Default::default()
        };
        let mut response = pb::ModelInferResponse {
            model_name: request.model_name,
            model_version: "1".to_owned(),
            id: request.id,
            outputs: vec![output],
            raw_output_contents: request.raw_input_contents,
            ..Default::default()
        };
        if request.outputs.iter().any(|output| output.parameters.contains_key("classification")) {
            let mut class = Vec::new();
            push_string(&mut class, b"0.5:7:seven").map_err(Status::internal)?;
            response.outputs[0].datatype = "BYTES".to_owned();
            response.outputs[0].shape = vec![1, 1];
            response.raw_output_contents = vec![class.into()];
        }
        Ok(Response::new(response))
    }

    async fn model_stream_infer(
        &self,
        _: Request<Streaming<ModelInferRequest>>,
    ) -> Answer<Self::ModelStreamInferStream> {
        unserved()
    }

    async fn server_live(&self, _: Request<pb::ServerLiveRequest>) -> Answer<pb::ServerLiveResponse> {
        unserved()
    }
    async fn server_ready(&self, _: Request<pb::ServerReadyRequest>) -> Answer<pb::ServerReadyResponse> {
        unserved()
    }
    async fn model_ready(&self, _: Request<pb::ModelReadyRequest>) -> Answer<pb::ModelReadyResponse> {
        unserved()
    }
    async fn server_metadata(
        &self,
        _: Request<pb::ServerMetadataRequest>,
    ) -> Answer<pb::ServerMetadataResponse> {
        unserved()
    }
    async fn model_statistics(
        &self,
        _: Request<pb::ModelStatisticsRequest>,
    ) -> Answer<pb::ModelStatisticsResponse> {
        unserved()
    }
    async fn repository_index(
        &self,
        _: Request<pb::RepositoryIndexRequest>,
    ) -> Answer<pb::RepositoryIndexResponse> {
        unserved()
    }
    async fn repository_model_load(
        &self,
        _: Request<pb::RepositoryModelLoadRequest>,
    ) -> Answer<pb::RepositoryModelLoadResponse> {
        unserved()
    }
    async fn repository_model_unload(
        &self,
        _: Request<pb::RepositoryModelUnloadRequest>,
    ) -> Answer<pb::RepositoryModelUnloadResponse> {
        unserved()
    }
    async fn system_shared_memory_status(
        &self,
        _: Request<pb::SystemSharedMemoryStatusRequest>,
    ) -> Answer<pb::SystemSharedMemoryStatusResponse> {
        unserved()
    }
    async fn system_shared_memory_register(
        &self,
        _: Request<pb::SystemSharedMemoryRegisterRequest>,
    ) -> Answer<pb::SystemSharedMemoryRegisterResponse> {
        unserved()
    }
    async fn system_shared_memory_unregister(
        &self,
        _: Request<pb::SystemSharedMemoryUnregisterRequest>,
    ) -> Answer<pb::SystemSharedMemoryUnregisterResponse> {
        unserved()
    }
    async fn cuda_shared_memory_status(
        &self,
        _: Request<pb::CudaSharedMemoryStatusRequest>,
    ) -> Answer<pb::CudaSharedMemoryStatusResponse> {
        unserved()
    }
    async fn cuda_shared_memory_register(
        &self,
        _: Request<pb::CudaSharedMemoryRegisterRequest>,
    ) -> Answer<pb::CudaSharedMemoryRegisterResponse> {
        unserved()
    }
    async fn cuda_shared_memory_unregister(
        &self,
        _: Request<pb::CudaSharedMemoryUnregisterRequest>,
    ) -> Answer<pb::CudaSharedMemoryUnregisterResponse> {
        unserved()
    }
    async fn trace_setting(&self, _: Request<pb::TraceSettingRequest>) -> Answer<pb::TraceSettingResponse> {
        unserved()
    }
    async fn log_settings(&self, _: Request<pb::LogSettingsRequest>) -> Answer<pb::LogSettingsResponse> {
        unserved()
    }
}

/// What the command prints, or its error.
async fn run(model: model::Model, line: &[&str]) -> Result<String, String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let service = GrpcInferenceServiceServer::new(Echo { model }).max_decoding_message_size(1 << 30);
    let server = tonic::transport::Server::builder().add_service(service);
    let server = tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    let mut out = Vec::new();
    let done = infer(parsed(&[line, &["--address", &address]].concat()), &mut out).await;
    server.abort();
    done.map(|()| String::from_utf8(out).unwrap()).map_err(|error| error.to_string())
}

fn floats() -> model::Model {
    model::tests::model("x", "FP32", &[-1, 2], 8)
}

#[tokio::test]
async fn values_go_there_and_back() {
    let text = run(floats(), &["m", "-i", "x=[1, 2.5]", "--top", "0"]).await.unwrap();
    assert!(
        text.starts_with("m version 1, ") && text.ends_with("\n\nscores FP32 [1, 2]\n  [[1.0, 2.5]]\n"),
        "{text}"
    );
    let line = run(floats(), &["m", "-i", "x=[1, 2.5]", "--top", "0", "--json", "--id", "a"]).await.unwrap();
    assert_eq!(
        line,
        "{\"model_name\":\"m\",\"model_version\":\"1\",\"id\":\"a\",\"outputs\":[{\"name\":\"scores\",\
         \"datatype\":\"FP32\",\"shape\":[1,2],\"data\":[1.0,2.5]}]}\n"
    );
}

#[tokio::test]
async fn labels_become_a_table() {
    let text = run(floats(), &["m", "-i", "x=[1, 2]"]).await.unwrap();
    assert!(text.ends_with("\nscores: best class\n  1  seven  0.5  ████████████\n"), "{text}");
}

#[tokio::test]
async fn a_server_that_tells_nothing_is_fine() {
    let mut bare = floats();
    bare.config = None;
    let text = run(bare, &["m", "-i", "x=[1, 2]"]).await.unwrap();
    assert!(text.contains("scores FP32 [1, 2]"), "{text}");
    let text = run(model::Model::default(), &["m", "-i", "anything=[true]"]).await.unwrap();
    assert!(text.contains("scores BOOL [1]\n  [true]"), "{text}");
}

#[tokio::test]
async fn refusals_have_their_code() {
    let refused = run(floats(), &["other"]).await.unwrap_err();
    assert_eq!(refused, "NOT_FOUND: Request for unknown model: \\u{1b}[31m is not found");
    assert_eq!(run(floats(), &["m"]).await.unwrap_err(), "INVALID_ARGUMENT: expected 1 input");
    let late =
        run(floats(), &["m", "-i", "x=[1, 2]", "--id", "slow", "--timeout", "300ms"]).await.unwrap_err();
    assert!(late.starts_with("DEADLINE_EXCEEDED: "), "{late}");
}

#[tokio::test]
async fn large_tensors_pass() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("large.txt");
    std::fs::write(&path, vec![b'a'; 20 << 20]).unwrap();
    let texts = model::tests::model("x", "BYTES", &[-1], 0);
    let input = format!("x=@{}", path.display());
    let text = run(texts, &["m", "-i", &input, "--top", "0"]).await.unwrap();
    assert!(text.ends_with("a\"... (20971520 bytes)]\n"), "{}", &text[text.len() - 80..]);
}
