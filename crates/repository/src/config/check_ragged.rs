//! What is said of ragged batches, to checked values: every rule that needs more than one tensor.

use super::{
    BatchInput, BatchInputKind, ModelConfig, Padding, SequenceStrategy, TensorConfig,
    check::Words as AllWords,
    check_scheduling::NO_BATCH,
    error::Fault,
    raw::{RawBatchInput, RawInput, RawOutput},
};
use crate::{DataType, escape::one_line};

/// Where shapes are told row by row, a request of no elements at all may still have so many rows.
const MOST_ROWS: u32 = 1 << 16;

/// The names of fields in one of the formats, as [`super::check::Words`].
#[derive(Debug)]
pub(super) struct Words {
    pub(super) ragged: &'static str,
    pub(super) batch_inputs: &'static str,
    /// Where an input that the server makes is said; in Triton's format one may be several.
    pub(super) batch_input: fn(usize, &str) -> String,
    pub(super) scatter_like: fn(usize) -> String,
}

/// The words of `config.yaml`.
pub(super) const YAML: Words = Words {
    ragged: "ragged",
    batch_inputs: "batch_inputs",
    batch_input: |index, field| format!("batch_inputs[{index}].{field}"),
    scatter_like: |index| format!("outputs[{index}].scatter_like"),
};

/// The words of `config.pbtxt`.
pub(super) const TRITON: Words = Words {
    ragged: "allow_ragged_batch",
    batch_inputs: "batch_input",
    batch_input: |_, _| "batch_input".to_owned(),
    scatter_like: |_| "batch_output".to_owned(),
};

/// What the inputs and outputs of a raw configuration say, in their order.
pub(super) struct Asked {
    inputs: Vec<bool>,
    outputs: Vec<Option<String>>,
}

impl Asked {
    pub(super) fn of(inputs: &[RawInput], outputs: &[RawOutput]) -> Self {
        Self {
            inputs: inputs.iter().map(|input| input.ragged).collect(),
            outputs: outputs.iter().map(|output| output.scatter_like.clone()).collect(),
        }
    }
}

/// Gives the tensors, which have been checked on their own and know how they are filled up, what is asked for them.
pub(super) fn apply(
    asked: &Asked,
    max_batch_size: u32,
    inputs: &mut [TensorConfig],
    outputs: &mut [TensorConfig],
    words: &AllWords,
) -> Result<(), Fault> {
    for (index, _) in asked.inputs.iter().enumerate().filter(|(_, ragged)| **ragged) {
        let (input, key) = (&mut inputs[index], format!("{}[{index}].{}", words.inputs, words.ragged.ragged));
        let name = one_line(&input.name);
        let fault = |message: String| Err(Fault::at(&key, message));
        if max_batch_size == 0 {
            return fault(NO_BATCH.to_owned());
        }
        if input.data_type == DataType::Bytes {
            return fault(format!(
                "input '{name}' is BYTES, and only numbers are put one behind the other: leave it out"
            ));
        }
        if input.padding.is_some() {
            return fault(format!(
                "input '{name}' is filled up (`{}` or `{}`), and what is ragged has no need of that: leave one of the two out",
                words.pad, words.mask_of
            ));
        }
        input.padding = Some(Padding::Ragged);
    }
    for (index, source) in asked.outputs.iter().enumerate() {
        let Some(source) = source else { continue };
        let key = (words.ragged.scatter_like)(index);
        check_scattered(&outputs[index], source, max_batch_size, inputs, &key, words)?;
        outputs[index].padding = Some(Padding::ScatterLike(source.clone()));
    }
    Ok(())
}

/// The shape that the model sees.
fn model_dims(tensor: &TensorConfig) -> &[i64] {
    tensor.reshape.as_ref().unwrap_or(&tensor.dims)
}

fn check_scattered(
    output: &TensorConfig,
    source: &str,
    max_batch_size: u32,
    inputs: &[TensorConfig],
    key: &str,
    words: &AllWords,
) -> Result<(), Fault> {
    let name = one_line(&output.name);
    let fault = |message: String| Err(Fault::at(key, message));
    if max_batch_size == 0 {
        return fault(NO_BATCH.to_owned());
    }
    let input = find(source, inputs, key, words)?;
    if output.data_type == DataType::Bytes {
        return fault(format!("output '{name}' is BYTES, a data type of numbers is expected"));
    }
    if output.padding.is_some() {
        return fault(format!(
            "output '{name}' is cut back already (`{}`): leave one of the two out",
            words.unpad
        ));
    }
    let (dims, known) = (model_dims(output), model_dims(input).len());
    if let Some(at) = dims.iter().rposition(|dim| *dim == -1).filter(|at| *at >= known) {
        return fault(format!(
            "dimension {at} of output '{name}' (counted from 0) is variable (-1), and input '{}' has {known}: each is as \
             large as the same dimension there",
            one_line(source)
        ));
    }
    Ok(())
}

/// The input whose shapes are told or followed.
fn find<'a>(
    source: &str,
    inputs: &'a [TensorConfig],
    key: &str,
    words: &AllWords,
) -> Result<&'a TensorConfig, Fault> {
    let shown = one_line(source);
    let Some(input) = inputs.iter().find(|input| input.name == source) else {
        return Err(Fault::at(key, format!("there is no input '{shown}': name one of `{}`", words.inputs)));
    };
    if input.optional {
        let message = format!(
            "input '{shown}' may be left out, and then its shape is not known: name one that must be sent"
        );
        return Err(Fault::at(key, message));
    }
    Ok(input)
}

/// Checks the inputs that the server makes of a batch.
pub(super) fn batch_inputs(
    raw: Vec<RawBatchInput>,
    max_batch_size: u32,
    inputs: &[TensorConfig],
    words: &AllWords,
) -> Result<Vec<BatchInput>, Fault> {
    let mut checked: Vec<BatchInput> = Vec::with_capacity(raw.len());
    for (index, raw) in raw.into_iter().enumerate() {
        let key = |field: &str| (words.ragged.batch_input)(index, field);
        let name = one_line(&raw.name);
        if raw.name.is_empty() {
            return Err(Fault::at(
                key("name"),
                "is empty or missing: write the name of the input in the model",
            ));
        }
        let names = inputs.iter().map(|input| &input.name).chain(checked.iter().map(|input| &input.name));
        if names.into_iter().any(|other| *other == raw.name) {
            let message = format!("`{name}` is already the name of another input: names must differ");
            return Err(Fault::at(key("name"), message));
        }
        let (kind, source) = match raw.sources()[..] {
            [(kind, source)] => (kind, source.to_owned()),
            [] => {
                let fields: Vec<&str> = BatchInputKind::ALL.into_iter().map(BatchInputKind::field).collect();
                let message = format!(
                    "nothing says what it tells of which input: write one of `{}`",
                    fields.join("`, `")
                );
                return Err(Fault::at(key("name"), message));
            }
            [(one, _), (other, _), ..] => {
                let message = format!("`{}` is given too: keep one of the two", one.field());
                return Err(Fault::at(key(other.field()), message));
            }
        };
        if max_batch_size == 0 {
            return Err(Fault::at(key(kind.field()), NO_BATCH));
        }
        if !matches!(raw.dtype, DataType::Int32 | DataType::Int64 | DataType::Fp32) {
            let message = format!("input '{name}' is {}, and INT32, INT64 or FP32 is expected", raw.dtype);
            return Err(Fault::at(key(words.data_type), message));
        }
        find(&source, inputs, &key(kind.field()), words)?;
        if kind.is_of_rows() && max_batch_size > MOST_ROWS {
            let message = format!(
                "input '{name}' has a shape for each row of a batch, and max_batch_size is {max_batch_size}: lower it to \
                 {MOST_ROWS} or less"
            );
            return Err(Fault::at(key(kind.field()), message));
        }
        checked.push(BatchInput { name: raw.name, data_type: raw.dtype, kind, source });
    }
    Ok(checked)
}

/// Checks that nothing else that is said contradicts it.
pub(super) fn check_together(config: &ModelConfig, words: &AllWords) -> Result<(), Fault> {
    let ragged = config.inputs.iter().position(|input| input.padding == Some(Padding::Ragged));
    let is_scattered = |output: &TensorConfig| matches!(output.padding, Some(Padding::ScatterLike(_)));
    let scattered = config.outputs.iter().position(is_scattered);
    let key = match (ragged, config.batch_inputs.is_empty(), scattered) {
        (Some(index), ..) => format!("{}[{index}].{}", words.inputs, words.ragged.ragged),
        (None, false, _) => words.ragged.batch_inputs.to_owned(),
        (None, true, Some(index)) => (words.ragged.scatter_like)(index),
        (None, true, None) => return Ok(()),
    };
    if config.batching.as_ref().is_some_and(|batching| !batching.allowed_sizes.is_empty()) {
        let message = format!(
            "a ragged batch cannot be filled up with rows to a size that is allowed (`{}`): leave one of the two out",
            words.scheduling.allowed_sizes
        );
        return Err(Fault::at(key, message));
    }
    if let (Some(index), Some(_)) = (scattered, &config.generate) {
        let message = format!(
            "output '{}' would follow the shape of an input, which a step does not have (`{}`): leave it out",
            one_line(&config.outputs[index].name),
            words.generate.generate
        );
        return Err(Fault::at((words.ragged.scatter_like)(index), message));
    }
    let Some(sequences) = &config.sequences else { return Ok(()) };
    if matches!(sequences.strategy, SequenceStrategy::Direct { .. }) {
        let message = format!(
            "with the strategy `direct` each sequence has a row of its own, also where there is no request (`{}`), and a \
             ragged batch has no empty rows: choose the strategy `oldest`, or leave this out",
            words.sequence.sequence
        );
        return Err(Fault::at(key, message));
    }
    let others = sequences.controls.iter().map(|control| &control.input);
    let mut others = others.chain(sequences.states.iter().map(|state| &state.input));
    match others.find(|other| config.batch_inputs.iter().any(|input| input.name == **other)) {
        None => Ok(()),
        Some(twice) => {
            let message = format!(
                "`{}` is already the name of an input of `{}`: names must differ",
                one_line(twice),
                words.sequence.sequence
            );
            Err(Fault::at(words.ragged.batch_inputs, message))
        }
    }
}

#[cfg(test)]
#[path = "check_ragged_tests.rs"]
mod tests;
