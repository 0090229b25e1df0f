//! What the tests of this crate are made of: configs, schemas, tensors, requests.

use sconce_repository::{Availability, ConfigSource, ModelConfig, TensorConfig, VersionPolicy, Warmup};

use crate::{
    DataType, Error,
    binding::Binding,
    check::Input,
    schema::{Argument, ArgumentKind, Return, Schema},
    value::{Tensor, push_string},
};

pub(crate) fn config(
    max_batch_size: u32,
    inputs: Vec<TensorConfig>,
    outputs: Vec<TensorConfig>,
) -> ModelConfig {
    ModelConfig {
        name: "m".to_owned(),
        max_batch_size,
        inputs,
        outputs,
        version_policy: VersionPolicy::default(),
        instances: Vec::new(),
        availability: Availability::default(),
        warmup: Warmup::default(),
        model_file: "model.pt".to_owned(),
        threads: None,
        optimize: false,
        inference_mode: true,
        optimized_execution: true,
        stateful: false,
        op_libraries: Vec::new(),
        source: ConfigSource::Default,
        notes: Vec::new(),
    }
}

/// An input or output of a config.
pub(crate) fn named(name: &str, data_type: DataType, dims: &[i64]) -> TensorConfig {
    TensorConfig {
        name: name.to_owned(),
        data_type,
        dims: dims.to_vec(),
        reshape: None,
        optional: false,
        labels: None,
    }
}

pub(crate) fn optional(input: TensorConfig) -> TensorConfig {
    TensorConfig { optional: true, ..input }
}

pub(crate) fn reshaped(tensor: TensorConfig, reshape: &[i64]) -> TensorConfig {
    TensorConfig { reshape: Some(reshape.to_vec()), ..tensor }
}

/// `forward`, its arguments as `name` or, with a default, `name?`.
pub(crate) fn forward(arguments: &[(&str, ArgumentKind)]) -> Schema {
    returning(arguments, Return::Unknown)
}

pub(crate) fn returning(arguments: &[(&str, ArgumentKind)], returns: Return) -> Schema {
    let arguments = arguments
        .iter()
        .map(|(name, kind)| Argument {
            name: name.trim_end_matches('?').to_owned(),
            kind: kind.clone(),
            optional: name.ends_with('?'),
            keys: Vec::new(),
        })
        .collect();
    Schema { arguments, returns }
}

/// One tensor in, the given returned; whatever is asked must fit.
pub(crate) fn bind(config: &ModelConfig, schema: &Schema) -> Binding {
    Binding::new(config, schema).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn zeros(data_type: DataType, shape: &[i64]) -> Tensor {
    let count: i64 = shape.iter().product();
    let size = data_type.size().unwrap_or(4);
    Tensor::host(data_type, shape.to_vec(), vec![0; usize::try_from(count).unwrap() * size].into())
}

pub(crate) fn floats(shape: &[i64], values: &[f32]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor::host(DataType::Fp32, shape.to_vec(), data.into())
}

pub(crate) fn texts(shape: &[i64], elements: &[&str]) -> Tensor {
    let mut data = Vec::new();
    for element in elements {
        push_string(&mut data, element.as_bytes());
    }
    Tensor::host(DataType::Bytes, shape.to_vec(), data.into())
}

pub(crate) fn input(name: &str, tensor: Tensor) -> Input {
    Input { name: name.to_owned(), tensor }
}

/// The sentence of an [`Error::InvalidInput`]: one line, and with all of these in it.
#[track_caller]
pub(crate) fn assert_invalid<T: std::fmt::Debug>(result: crate::Result<T>, parts: &[&str]) {
    match result {
        Err(Error::InvalidInput(message)) => assert_sentence(&message, parts),
        other => panic!("InvalidInput with {parts:?} is expected, not {other:?}"),
    }
}

#[track_caller]
pub(crate) fn assert_sentence(message: &str, parts: &[&str]) {
    assert!(!message.chars().any(char::is_control), "one line is expected: {message:?}");
    assert!(message.len() < 4000, "a sentence is expected, not {} bytes", message.len());
    for part in parts {
        assert!(message.contains(part), "{part:?} is missing in: {message}");
    }
}
