//! What is said of padding, to checked values: every rule that needs more than one tensor.

use super::{
    Filler, Padding, TensorConfig,
    check::Words,
    check_scheduling::NO_BATCH,
    error::Fault,
    raw::{RawInput, RawNumber, RawOutput},
};
use crate::{DataType, escape::one_line};

/// What the inputs and outputs of a raw configuration say, in their order.
pub(super) struct Asked {
    inputs: Vec<(Option<RawNumber>, Option<String>)>,
    outputs: Vec<Option<String>>,
}

impl Asked {
    pub(super) fn of(inputs: &[RawInput], outputs: &[RawOutput]) -> Self {
        Self {
            inputs: inputs.iter().map(|input| (input.pad, input.mask_of.clone())).collect(),
            outputs: outputs.iter().map(|output| output.unpad.clone()).collect(),
        }
    }
}

/// Where it is written; in Triton's format there is one place for all tensors.
fn place(list: &str, index: usize, field: &str) -> String {
    if field.starts_with("parameters[") { field.to_owned() } else { format!("{list}[{index}].{field}") }
}

/// Gives the tensors, which have been checked on their own, what is asked for them.
pub(super) fn apply(
    asked: Asked,
    max_batch_size: u32,
    inputs: &mut [TensorConfig],
    outputs: &mut [TensorConfig],
    words: &Words,
) -> Result<(), Fault> {
    let mut masks = Vec::new();
    for (index, (pad, mask_of)) in asked.inputs.into_iter().enumerate() {
        let pad_key = place(words.inputs, index, words.pad);
        if let Some(RawNumber(number)) = pad {
            if mask_of.is_some() {
                let message = format!(
                    "input '{}' is a mask, which is filled up with 0 in any case: leave one of the two out",
                    one_line(&inputs[index].name)
                );
                return Err(Fault::at(pad_key, message));
            }
            check_padded(&inputs[index], max_batch_size, &pad_key)?;
            let filler = Filler::new(inputs[index].data_type, number).map_err(|why| {
                Fault::at(&pad_key, format!("input '{}': {why}", one_line(&inputs[index].name)))
            })?;
            inputs[index].padding = Some(Padding::Fill(filler));
        }
        masks.extend(mask_of.map(|of| (index, of)));
    }
    for (index, of) in masks {
        let key = place(words.inputs, index, words.mask_of);
        check_follows(&inputs[index], "input", &of, inputs, &key, words)?;
        check_mask_size(&inputs[index], &of, inputs, &key)?;
        // The server makes it where it is not sent.
        inputs[index].optional = true;
        inputs[index].padding = Some(Padding::MaskOf(of));
    }
    for (index, of) in asked.outputs.into_iter().enumerate() {
        let Some(of) = of else { continue };
        let key = place(words.outputs, index, words.unpad);
        check_follows(&outputs[index], "output", &of, inputs, &key, words)?;
        outputs[index].padding = Some(Padding::CutTo(of));
    }
    Ok(())
}

fn check_padded(input: &TensorConfig, max_batch_size: u32, key: &str) -> Result<(), Fault> {
    let name = one_line(&input.name);
    if max_batch_size == 0 {
        return Err(Fault::at(key, NO_BATCH));
    }
    if input.data_type == DataType::Bytes {
        return Err(Fault::at(
            key,
            format!("input '{name}' is BYTES, and only numbers are filled up: leave it out"),
        ));
    }
    if variable(&input.dims) == 0 {
        let message = format!(
            "the shape of input '{name}' has no variable dimension (-1), so nothing can be filled up: leave it out"
        );
        return Err(Fault::at(key, message));
    }
    Ok(())
}

/// Whether a mask or an output can have the lengths of the input `of`.
fn check_follows(
    tensor: &TensorConfig,
    kind: &str,
    of: &str,
    inputs: &[TensorConfig],
    key: &str,
    words: &Words,
) -> Result<(), Fault> {
    let (name, shown) = (one_line(&tensor.name), one_line(of));
    let fault = |message: String| Err(Fault::at(key, message));
    let Some(input) = inputs.iter().find(|input| input.name == of) else {
        return fault(format!("there is no input '{shown}': name one of `{}`", words.inputs));
    };
    if !matches!(input.padding, Some(Padding::Fill(_))) {
        return fault(format!("input '{shown}' is not filled up: give it a value with `{}`", words.pad));
    }
    if tensor.data_type == DataType::Bytes {
        return fault(format!("{kind} '{name}' is BYTES, a data type of numbers is expected"));
    }
    let (own, wanted) = (variable(&tensor.dims), variable(&input.dims));
    if own != wanted {
        return fault(format!(
            "the shape of {kind} '{name}' has {own} variable dimensions (-1) and that of input '{shown}' has {wanted}: \
             write as many, they are the same lengths in the same order"
        ));
    }
    Ok(())
}

/// What the server makes for a request must not be much larger than the request.
fn check_mask_size(mask: &TensorConfig, of: &str, inputs: &[TensorConfig], key: &str) -> Result<(), Fault> {
    let elements = |tensor: &TensorConfig| -> i64 { tensor.dims.iter().filter(|dim| **dim != -1).product() };
    let Some(input) = inputs.iter().find(|input| input.name == of) else { return Ok(()) };
    if elements(mask) <= elements(input) {
        return Ok(());
    }
    let (name, shown) = (one_line(&mask.name), one_line(of));
    let message = format!(
        "input '{name}' would have more elements than input '{shown}', whose mask it is: write 1 for dimensions that \
         only have to be there"
    );
    Err(Fault::at(key, message))
}

fn variable(dims: &[i64]) -> usize {
    dims.iter().filter(|dim| **dim == -1).count()
}

#[cfg(test)]
#[path = "check_padding_tests.rs"]
mod tests;
