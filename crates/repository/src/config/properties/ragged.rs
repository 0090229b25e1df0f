//! Ragged batches: any that both formats can express, and how each says it.

use std::fmt::Write;

use proptest::{collection::vec, prelude::*, sample};

use super::{ModelConfig, SequenceStrategy, TensorConfig, quoted};
use crate::{
    DataType,
    config::{
        padding::Padding,
        ragged::{BatchInput, BatchInputKind},
    },
};

/// Which inputs are ragged and which outputs scattered, and what is made of which input.
pub(super) type Seed = (Vec<bool>, Vec<(BatchInputKind, DataType, sample::Index)>, sample::Index);

pub(super) fn any_seed() -> impl Strategy<Value = Seed> {
    let types = sample::select(vec![DataType::Int32, DataType::Int64, DataType::Fp32]);
    let made = (sample::select(&BatchInputKind::ALL), types, any::<sample::Index>());
    (vec(any::<bool>(), 6), vec(made, 0..4), any::<sample::Index>())
}

fn model_dims(tensor: &TensorConfig) -> &[i64] {
    tensor.reshape.as_ref().unwrap_or(&tensor.dims)
}

/// The configuration with what fits it.
pub(super) fn ragged((tensors, made, followed): Seed, mut config: ModelConfig) -> ModelConfig {
    let is_direct = config
        .sequences
        .as_ref()
        .is_some_and(|sequences| matches!(sequences.strategy, SequenceStrategy::Direct { .. }));
    // Half of the models have none of it.
    if config.max_batch_size == 0 || is_direct || !tensors[0] {
        return config;
    }
    if let Some(batching) = &mut config.batching {
        batching.allowed_sizes.clear();
    }
    for (input, ragged) in config.inputs.iter_mut().zip(&tensors[1..]) {
        if *ragged && input.padding.is_none() && input.data_type != DataType::Bytes {
            input.padding = Some(Padding::Ragged);
        }
    }
    let sources: Vec<&TensorConfig> = config.inputs.iter().filter(|input| !input.optional).collect();
    if sources.is_empty() {
        return config;
    }
    let made = made.into_iter().enumerate().filter_map(|(index, (kind, data_type, source))| {
        let source = sources[source.index(sources.len())].name.clone();
        let fits = !kind.is_of_rows() || config.max_batch_size <= 1 << 16;
        fits.then(|| BatchInput { name: format!("made of \"{index}\""), data_type, kind, source })
    });
    config.batch_inputs = made.collect();
    let source = sources[followed.index(sources.len())];
    let (source, known) = (source.name.clone(), model_dims(source).len());
    for (output, follows) in config.outputs.iter_mut().zip(&tensors[3..]) {
        let fits = output.data_type != DataType::Bytes
            && output.padding.is_none()
            && config.generate.is_none()
            && model_dims(output).iter().rposition(|dim| *dim == -1).is_none_or(|at| at < known);
        if *follows && fits {
            output.padding = Some(Padding::ScatterLike(source.clone()));
        }
    }
    config
}

fn field(kind: BatchInputKind) -> (&'static str, &'static str) {
    match kind {
        BatchInputKind::Counts => ("counts_of", "ELEMENT_COUNT"),
        BatchInputKind::Ends => ("ends_of", "ACCUMULATED_ELEMENT_COUNT"),
        BatchInputKind::Offsets => ("offsets_of", "ACCUMULATED_ELEMENT_COUNT_WITH_ZERO"),
        BatchInputKind::Longest => ("longest_of", "MAX_ELEMENT_COUNT_AS_SHAPE"),
        BatchInputKind::Shapes => ("shapes_of", "ITEM_SHAPE"),
        BatchInputKind::FlatShapes => ("flat_shapes_of", "ITEM_SHAPE_FLATTEN"),
    }
}

/// What the server makes, for `config.yaml`.
pub(super) fn to_yaml(config: &ModelConfig, fields: &mut serde_json::Value) {
    let input = |input: &BatchInput| {
        let mut fields = serde_json::json!({ "name": input.name, field(input.kind).0: input.source });
        if input.data_type != DataType::Int32 {
            fields["dtype"] = input.data_type.name().into();
        }
        fields
    };
    fields["batch_inputs"] = config.batch_inputs.iter().map(input).collect();
}

/// What the server makes, and what is scattered, for `config.pbtxt`.
pub(super) fn to_pbtxt(config: &ModelConfig, text: &mut String) {
    for BatchInput { name, data_type, kind, source } in &config.batch_inputs {
        let (name, source, data_type) = (quoted(name), quoted(source), data_type.name());
        let kind = field(*kind).1;
        writeln!(
            text,
            "batch_input {{ kind: BATCH_{kind} target_name: {name} data_type: TYPE_{data_type} source_input: {source} }}"
        )
        .unwrap();
    }
    for output in &config.outputs {
        if let Some(Padding::ScatterLike(source)) = &output.padding {
            let (name, source) = (quoted(&output.name), quoted(source));
            writeln!(
                text,
                "batch_output {{ target_name: {name} kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: {source} }}"
            )
            .unwrap();
        }
    }
}
