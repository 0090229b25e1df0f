//! The engine's words to protobuf.

mod ragged;
mod scheduling;
mod sequence;
mod statistics;

use std::collections::HashMap;

use sconce_engine::{
    DataType, ModelConfig, Version,
    binding::TensorInfo,
    model::{LiveVersion, NamedOutput},
    table::Snapshot,
    value::Value,
};
use sconce_proto::inference::{
    self as pb, InferParameter, ModelInferResponse, ModelMetadataResponse, ModelStreamInferResponse,
    RepositoryIndexResponse, TraceSettingResponse, infer_parameter::ParameterChoice,
    model_infer_response::InferOutputTensor, model_metadata_response::TensorMetadata,
    repository_index_response::ModelIndex, trace_setting_response,
};
use sconce_repository::{InstanceKind, TensorConfig, VersionPolicy};
pub(crate) use statistics::model_statistics;
use tonic::Status;

use crate::models;

/// What Triton calls TorchScript.
const PLATFORM: &str = "pytorch_libtorch";

/// The answer to ModelInfer: outputs and their raw contents, one for one.
pub(crate) fn infer_response(
    model: &str,
    version: Version,
    id: String,
    outputs: Vec<NamedOutput>,
) -> ModelInferResponse {
    let mut response = ModelInferResponse {
        model_name: model.to_owned(),
        model_version: version.to_string(),
        id,
        outputs: Vec::with_capacity(outputs.len()),
        raw_output_contents: Vec::with_capacity(outputs.len()),
        ..ModelInferResponse::default()
    };
    for NamedOutput { name, tensor } in outputs {
        response.outputs.push(InferOutputTensor {
            name: name.to_string(),
            datatype: tensor.data_type.name().to_owned(),
            shape: tensor.shape,
            ..InferOutputTensor::default()
        });
        response.raw_output_contents.push(match tensor.value {
            Value::Host(data) => data,
            Value::Device(_) | Value::Joined(_) => bytes::Bytes::new(), // the engine lets none of these out
        });
    }
    response
}

/// The answer to TraceSetting.
pub(crate) fn trace_settings(values: HashMap<String, Vec<String>>) -> TraceSettingResponse {
    let setting = |(name, value)| (name, trace_setting_response::SettingValue { value });
    TraceSettingResponse { settings: values.into_iter().map(setting).collect() }
}

/// An answer of ModelStreamInfer: the only one to its request.
pub(crate) fn stream_response(mut response: ModelInferResponse, last: bool) -> ModelStreamInferResponse {
    let last = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(last)) };
    response.parameters.insert("triton_final_response".to_owned(), last);
    ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) }
}

/// The same for a request that failed. As in Triton it has no code, but the request's id.
pub(crate) fn stream_error(id: String, status: &Status) -> ModelStreamInferResponse {
    let response = stream_response(ModelInferResponse { id, ..ModelInferResponse::default() }, true);
    ModelStreamInferResponse { error_message: status.message().to_owned(), ..response }
}

/// The answer to ModelMetadata.
pub(crate) fn model_metadata(live: &LiveVersion, versions: &[Version]) -> ModelMetadataResponse {
    let rows = |rows: Vec<TensorInfo>| {
        rows.into_iter()
            .map(|row| TensorMetadata {
                name: row.name,
                datatype: row.data_type.name().to_owned(),
                shape: row.shape,
            })
            .collect()
    };
    ModelMetadataResponse {
        name: live.model.to_string(),
        versions: versions.iter().map(Version::to_string).collect(),
        platform: PLATFORM.to_owned(),
        inputs: rows(live.binding.input_info()),
        outputs: rows(live.binding.output_info()),
    }
}

/// The answer to RepositoryIndex: a row per version, or one for a model without any.
pub(crate) fn repository_index(snapshot: &Snapshot, only_ready: bool) -> RepositoryIndexResponse {
    let mut rows = Vec::new();
    for (name, route) in &snapshot.routes {
        let row = |version: String, state: &str, reason: String| {
            let (name, state) = (name.to_string(), state.to_owned());
            ModelIndex { name, version, state, reason }
        };
        if route.versions.is_empty() && !only_ready {
            // Triton's way to show what has never been asked for.
            let state = if route.unloaded { "" } else { "UNAVAILABLE" };
            rows.push(row(String::new(), state, route.problem.clone().unwrap_or_default()));
        }
        for (version, state) in &route.versions {
            let is = models::state(state);
            if !only_ready || is == "READY" {
                rows.push(row(version.to_string(), is, models::reason(route, *version, state)));
            }
        }
    }
    RepositoryIndexResponse { models: rows }
}

/// The answer to ModelConfig: Triton's message, complete, whichever format the file had.
pub(crate) fn model_config(live: &LiveVersion) -> pb::ModelConfig {
    let config = &*live.config;
    // What a config.pbtxt says beyond what we interpret is shown as it stands there.
    let message = config.source.message().unwrap_or_default();
    let mut shown: pb::ModelConfig = prost::Message::decode(message).unwrap_or_default();
    shown.name.clone_from(&config.name);
    shown.platform = PLATFORM.to_owned();
    shown.backend = "pytorch".to_owned();
    shown.max_batch_size = i32::try_from(config.max_batch_size).unwrap_or(i32::MAX);
    shown.default_model_filename.clone_from(&config.model_file);
    shown.version_policy = Some(version_policy(&config.version_policy));
    if shown.input.is_empty() {
        shown.input = inputs(live, config);
    }
    // A mask is optional without being told so.
    for (shown, input) in shown.input.iter_mut().zip(&config.inputs) {
        shown.optional = input.optional;
    }
    if shown.output.is_empty() {
        shown.output = outputs(live, config);
    }
    ragged::show(config, &mut shown);
    if shown.instance_group.is_empty() {
        shown.instance_group = instance_groups(config);
    }
    scheduling::show(config, &mut shown);
    shown
}

fn inputs(live: &LiveVersion, config: &ModelConfig) -> Vec<pb::ModelInput> {
    let from_config = |input: &TensorConfig| pb::ModelInput {
        name: input.name.clone(),
        data_type: data_type(input.data_type).into(),
        dims: input.dims.clone(),
        reshape: input.reshape.clone().map(|shape| pb::ModelTensorReshape { shape }),
        optional: input.optional,
        ..pb::ModelInput::default()
    };
    if config.inputs.is_empty() {
        let shown = |row: TensorInfo| pb::ModelInput {
            name: row.name,
            data_type: data_type(row.data_type).into(),
            dims: row.shape,
            ..pb::ModelInput::default()
        };
        return live.binding.input_info().into_iter().map(shown).collect();
    }
    config.inputs.iter().map(from_config).collect()
}

fn outputs(live: &LiveVersion, config: &ModelConfig) -> Vec<pb::ModelOutput> {
    let from_config = |output: &TensorConfig| pb::ModelOutput {
        name: output.name.clone(),
        data_type: data_type(output.data_type).into(),
        dims: output.dims.clone(),
        reshape: output.reshape.clone().map(|shape| pb::ModelTensorReshape { shape }),
        label_filename: output.labels.as_ref().map(|labels| labels.file.clone()).unwrap_or_default(),
        ..pb::ModelOutput::default()
    };
    if config.outputs.is_empty() {
        let shown = |row: TensorInfo| pb::ModelOutput {
            name: row.name,
            data_type: data_type(row.data_type).into(),
            dims: row.shape,
            ..pb::ModelOutput::default()
        };
        return live.binding.output_info().into_iter().map(shown).collect();
    }
    config.outputs.iter().map(from_config).collect()
}

fn instance_groups(config: &ModelConfig) -> Vec<pb::ModelInstanceGroup> {
    use pb::model_instance_group::Kind;
    let group = |(index, group): (usize, &sconce_repository::InstanceGroup)| pb::ModelInstanceGroup {
        name: format!("{}_{index}", config.name),
        kind: match group.kind {
            InstanceKind::Auto => Kind::Auto,
            InstanceKind::Cpu => Kind::Cpu,
            InstanceKind::Gpu => Kind::Gpu,
        }
        .into(),
        count: i32::try_from(group.count.get()).unwrap_or(i32::MAX),
        gpus: group.gpus.iter().map(|&gpu| i32::try_from(gpu).unwrap_or(i32::MAX)).collect(),
        ..pb::ModelInstanceGroup::default()
    };
    config.instances.iter().enumerate().map(group).collect()
}

fn version_policy(policy: &VersionPolicy) -> pb::ModelVersionPolicy {
    use pb::model_version_policy::{All, Latest, PolicyChoice, Specific};
    let choice = match policy {
        VersionPolicy::Latest(count) => PolicyChoice::Latest(Latest { num_versions: count.get() }),
        VersionPolicy::All => PolicyChoice::All(All {}),
        VersionPolicy::Specific(versions) => PolicyChoice::Specific(Specific {
            versions: versions
                .iter()
                .map(|version| i64::try_from(version.get()).unwrap_or(i64::MAX))
                .collect(),
        }),
    };
    pb::ModelVersionPolicy { policy_choice: Some(choice) }
}

fn data_type(data_type: DataType) -> pb::DataType {
    match data_type {
        DataType::Bool => pb::DataType::TypeBool,
        DataType::Uint8 => pb::DataType::TypeUint8,
        DataType::Uint16 => pb::DataType::TypeUint16,
        DataType::Uint32 => pb::DataType::TypeUint32,
        DataType::Uint64 => pb::DataType::TypeUint64,
        DataType::Int8 => pb::DataType::TypeInt8,
        DataType::Int16 => pb::DataType::TypeInt16,
        DataType::Int32 => pb::DataType::TypeInt32,
        DataType::Int64 => pb::DataType::TypeInt64,
        DataType::Fp16 => pb::DataType::TypeFp16,
        DataType::Fp32 => pb::DataType::TypeFp32,
        DataType::Fp64 => pb::DataType::TypeFp64,
        DataType::Bytes => pb::DataType::TypeString,
        DataType::Bf16 => pb::DataType::TypeBf16,
    }
}
