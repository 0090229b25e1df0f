//! What each RPC tells, and which are not served.

use std::{collections::BTreeSet, fs};

use sconce_proto::inference::{
    self as pb, ModelConfigRequest, ModelMetadataRequest, ModelReadyRequest, RepositoryIndexRequest,
    ServerLiveRequest, ServerMetadataRequest, ServerReadyRequest, model_config::SchedulingChoice,
};
use tonic::Code;

use crate::{
    harness::{Repo, Server, refused, root},
    raw::{Raw, SERVICE, framed},
};

const CONFIG: &str = "\
max_batch_size: 4
versions: all
inputs: [{name: x, dtype: FP32, shape: [3, -1]}]
outputs: [{name: OUTPUT__0, dtype: FP32, shape: [3, -1], labels: labels.txt}]
instances: 2
batching: {max_delay: 250us, preferred_sizes: [4, 2]}
queue: {timeout: 20ms, priority_levels: 2, levels: {1: {max_size: 7}}}
weight: 3
";

/// `bare` without a config, `full` with one and two versions, `broken` with a file that is no model.
fn repository() -> Repo {
    let repo = Repo::new();
    repo.identity("bare/7/model.pt");
    repo.identity("full/1/model.pt");
    repo.identity("full/3/model.pt");
    repo.file("full/config.yaml", CONFIG);
    repo.file("full/labels.txt", "one\ntwo\nthree\n");
    repo.file("broken/2/model.pt", "this is no model");
    repo
}

#[tokio::test]
async fn the_server_tells_its_name_version_and_only_the_extensions_it_serves() {
    let repo = repository();
    for (arguments, name) in [(&[][..], "sconce"), (&["--server-id", "left bracket"], "left bracket")] {
        let server = Server::start_with(repo.path(), arguments);
        let mut client = server.client().await;
        let metadata =
            client.server_metadata(ServerMetadataRequest {}).await.expect("an answer").into_inner();
        assert_eq!(metadata.name, name);
        assert_eq!(metadata.version, env!("CARGO_PKG_VERSION"));
        let extensions = [
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
        assert_eq!(metadata.extensions, extensions);
        assert!(client.server_live(ServerLiveRequest {}).await.expect("an answer").into_inner().live);
        assert!(client.server_ready(ServerReadyRequest {}).await.expect("an answer").into_inner().ready);
    }
}

#[tokio::test]
async fn every_rpc_is_served_or_unimplemented() {
    let repo = repository();
    let server = Server::start(repo.path());
    let connection = Raw::connect(&server).await;
    let proto = fs::read_to_string(root().join("proto/grpc_service.proto")).expect("the contract");
    let rpcs = proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next());
    let (mut served, mut missing) = (BTreeSet::new(), 0);
    for rpc in rpcs {
        let answer = connection.send(rpc, &[], framed(&[])).await;
        if answer.status().code() == Code::Unimplemented {
            missing += 1;
            assert!(answer.status().message().contains(rpc), "{}", answer.status().message());
        } else {
            served.insert(rpc);
        }
    }
    let expected = [
        "LogSettings",
        "ModelConfig",
        "ModelInfer",
        "ModelMetadata",
        "ModelReady",
        "ModelStatistics",
        "ModelStreamInfer",
        "RepositoryIndex",
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "ServerLive",
        "ServerMetadata",
        "ServerReady",
        "TraceSetting",
    ];
    assert_eq!(served, BTreeSet::from(expected));
    assert_eq!(missing, 20 - expected.len());
}

#[tokio::test]
async fn a_model_is_ready_or_not_and_that_is_no_error() {
    let repo = repository();
    let server = Server::start(repo.path());
    let mut client = server.client().await;
    let cases = [
        ("bare", "", true),
        ("bare", "7", true),
        ("bare", "8", false),
        ("full", "1", true),
        ("full", "3", true),
        ("broken", "", false),
        ("broken", "2", false),
        ("nobody", "", false),
        ("", "", false),
    ];
    for (name, version, ready) in cases {
        let request = ModelReadyRequest { name: name.to_owned(), version: version.to_owned() };
        let answer = client.model_ready(request).await.expect("an answer").into_inner();
        assert_eq!(answer.ready, ready, "{name} {version}");
    }
    for version in ["0", "01", "-1", "latest", "18446744073709551616", "1\n2"] {
        let request = ModelReadyRequest { name: "bare".to_owned(), version: version.to_owned() };
        refused(client.model_ready(request).await, Code::InvalidArgument, &["version"]);
    }
}

#[tokio::test]
async fn model_metadata_tells_versions_names_types_and_shapes() {
    let repo = repository();
    let server = Server::start(repo.path());
    let mut client = server.client().await;
    let mut ask = async |name: &str, version: &str| {
        let request = ModelMetadataRequest { name: name.to_owned(), version: version.to_owned() };
        client.model_metadata(request).await.map(tonic::Response::into_inner)
    };
    let full = ask("full", "").await.expect("an answer");
    assert_eq!((full.name.as_str(), full.platform.as_str()), ("full", "pytorch_libtorch"));
    assert_eq!(full.versions, ["1", "3"]);
    let [input] = &full.inputs[..] else { panic!("{full:?}") };
    assert_eq!((input.name.as_str(), input.datatype.as_str()), ("x", "FP32"));
    assert_eq!(input.shape, [-1, 3, -1], "with the batch dimension");
    let [output] = &full.outputs[..] else { panic!("{full:?}") };
    assert_eq!((output.name.as_str(), output.datatype.as_str()), ("OUTPUT__0", "FP32"));
    assert_eq!(output.shape, [-1, 3, -1]);
    assert_eq!(ask("full", "1").await.expect("an answer").versions, ["1"], "exactly the one asked for");
    let bare = ask("bare", "").await.expect("an answer");
    assert_eq!((bare.inputs[0].name.as_str(), &bare.inputs[0].shape[..]), ("x", &[-1][..]));
    assert_eq!(bare.versions, ["7"]);
    let unknown = "Request for unknown model: 'nobody' is not found";
    refused(ask("nobody", "").await, Code::NotFound, &[unknown]);
    refused(ask("full", "2").await, Code::NotFound, &["'full' version 2 is not found"]);
    refused(ask("broken", "").await, Code::NotFound, &["'broken' has no available versions"]);
    refused(ask("broken", "2").await, Code::Unavailable, &["version 2 is not at ready state"]);
    refused(ask("full", "one").await, Code::InvalidArgument, &["'one'"]);
}

#[tokio::test]
async fn model_config_is_tritons_message_filled_from_what_is_served() {
    let repo = repository();
    let server = Server::start(repo.path());
    let mut client = server.client().await;
    let mut ask = async |name: &str| {
        let request = ModelConfigRequest { name: name.to_owned(), version: String::new() };
        client.model_config(request).await.map(|answer| answer.into_inner().config.expect("a config"))
    };
    let full = ask("full").await.expect("an answer");
    assert_eq!((full.name.as_str(), full.backend.as_str()), ("full", "pytorch"));
    assert_eq!((full.platform.as_str(), full.max_batch_size), ("pytorch_libtorch", 4));
    assert_eq!(full.default_model_filename, "model.pt");
    let [input] = &full.input[..] else { panic!("{full:?}") };
    assert_eq!((input.data_type(), &input.dims[..]), (pb::DataType::TypeFp32, &[3, -1][..]));
    let [output] = &full.output[..] else { panic!("{full:?}") };
    assert_eq!((output.name.as_str(), output.label_filename.as_str()), ("OUTPUT__0", "labels.txt"));
    assert_eq!(full.instance_group[0].count, 2);
    let Some(SchedulingChoice::DynamicBatching(batching)) = &full.scheduling_choice else {
        panic!("{full:?}")
    };
    let sizes = &batching.preferred_batch_size[..];
    assert_eq!((sizes, batching.max_queue_delay_microseconds), (&[2, 4][..], 250));
    assert_eq!((batching.priority_levels, batching.default_priority_level), (2, 2));
    let policies = [1, 2].map(|level| batching.priority_queue_policy[&level]);
    assert_eq!(policies.map(|policy| policy.max_queue_size), [7, 0]);
    assert_eq!(policies.map(|policy| policy.default_timeout_microseconds), [20_000, 20_000]);
    assert_eq!(full.parameters["WEIGHT"].string_value, "3");
    let policy = full.version_policy.and_then(|policy| policy.policy_choice);
    assert!(matches!(policy, Some(pb::model_version_policy::PolicyChoice::All(_))), "{policy:?}");
    let bare = ask("bare").await.expect("an answer");
    assert_eq!((bare.max_batch_size, bare.input[0].name.as_str()), (0, "x"));
    assert!(bare.scheduling_choice.is_none() && bare.parameters.is_empty(), "{bare:?}");
    refused(ask("nobody").await, Code::NotFound, &["Request for unknown model: 'nobody' is not found"]);
}

#[tokio::test]
async fn the_index_lists_every_version_with_its_state_and_reason() {
    let repo = repository();
    fs::create_dir(repo.path().join("empty")).expect("a directory");
    let server = Server::start(repo.path());
    let mut client = server.client().await;
    let mut ask = async |repository: &str, ready: bool| {
        let request = RepositoryIndexRequest { repository_name: repository.to_owned(), ready };
        client.repository_index(request).await.map(|answer| answer.into_inner().models)
    };
    let all = ask("", false).await.expect("an answer");
    let rows: Vec<[&str; 3]> = all.iter().map(|row| [&*row.name, &*row.version, &*row.state]).collect();
    assert!(rows.starts_with(&[["bare", "7", "READY"], ["broken", "2", "UNAVAILABLE"]]), "{rows:?}");
    assert!(rows.ends_with(&[["full", "1", "READY"], ["full", "3", "READY"]]), "{rows:?}");
    assert!(all.iter().all(|row| row.reason.is_empty() == (row.state == "READY")), "{all:?}");
    assert!(all.iter().all(|row| !row.reason.contains('\n')), "{all:?}");
    let ready = ask("", true).await.expect("an answer");
    let rows: Vec<[&str; 2]> = ready.iter().map(|row| [&*row.name, &*row.version]).collect();
    assert_eq!(rows, [["bare", "7"], ["full", "1"], ["full", "3"]]);
    refused(ask("models", false).await, Code::Unimplemented, &["repository_name"]);
}

#[tokio::test]
async fn reflection_lists_the_services_and_describes_them() {
    let repo = repository();
    let server = Server::start(repo.path());
    let connection = Raw::connect(&server).await;
    for version in ["v1", "v1alpha"] {
        let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        // ServerReflectionRequest.list_services, field 7.
        let answer = connection.send(&path, &[], framed(&[0x3a, 1, b'*'])).await;
        assert_eq!(answer.status().code(), Code::Ok);
        let text = String::from_utf8_lossy(&answer.body);
        for service in [SERVICE, "grpc.health.v1.Health", "ServerReflection"] {
            assert!(text.contains(service), "{service} is not in {text:?}");
        }
        // file_containing_symbol, field 4.
        let symbol = [&[0x22, u8::try_from(SERVICE.len()).expect("short")], SERVICE.as_bytes()].concat();
        let answer = connection.send(&path, &[], framed(&symbol)).await;
        assert!(String::from_utf8_lossy(&answer.body).contains("ModelInferRequest"), "{version}");
    }
}
