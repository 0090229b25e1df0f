//! The fields of `batch_input` and `batch_output`.

use prost_reflect::DynamicMessage;

use super::{
    super::{
        error::Fault,
        ragged::BatchInputKind,
        raw::{RawBatchInput, RawConfig},
    },
    data_type, read,
};
use crate::escape::one_line;

/// Takes over what the server makes of a batch, and the outputs that are scattered by an input's shape.
pub(super) fn apply(message: &DynamicMessage, raw: &mut RawConfig) -> Result<(), Fault> {
    for (index, input) in read::messages(message, "batch_input").into_iter().enumerate() {
        let key = format!("batch_input[{index}]");
        let (kind, source) = (kind(input, &key)?, source(input, &key)?);
        let data_type = data_type(input, &key)?;
        for name in targets(input, &key)? {
            raw.batch_inputs.push(RawBatchInput::new(name, data_type, kind, &source));
        }
    }
    for (index, output) in read::messages(message, "batch_output").into_iter().enumerate() {
        let key = format!("batch_output[{index}]");
        let number = read::number(output, "kind");
        if number != 0 {
            let message =
                format!("there is no kind of number {number}: write BATCH_SCATTER_WITH_INPUT_SHAPE");
            return Err(Fault::at(format!("{key}.kind"), message));
        }
        let source = source(output, &key)?;
        for name in targets(output, &key)? {
            let place = format!("{key}.target_name");
            let shown = one_line(&name);
            let Some(output) = raw.outputs.iter_mut().find(|output| output.name == name) else {
                return Err(Fault::at(place, format!("there is no output '{shown}': name one of `output`")));
            };
            if output.scatter_like.replace(source.clone()).is_some() {
                return Err(Fault::at(place, format!("output '{shown}' is named twice: name it once")));
            }
        }
    }
    Ok(())
}

fn kind(input: &DynamicMessage, key: &str) -> Result<BatchInputKind, Fault> {
    let number = read::number(input, "kind");
    let kind = usize::try_from(number).ok().and_then(|index| BatchInputKind::ALL.get(index));
    kind.copied().ok_or_else(|| {
        let message = format!("there is no kind of number {number}: write one such as BATCH_ELEMENT_COUNT");
        Fault::at(format!("{key}.kind"), message)
    })
}

/// The one input that it is about.
fn source(message: &DynamicMessage, key: &str) -> Result<String, Fault> {
    match &mut read::texts(message, "source_input")[..] {
        [source] => Ok(std::mem::take(source)),
        sources => Err(Fault::at(
            format!("{key}.source_input"),
            format!("one input is expected, not {}: write `source_input: \"x\"`", sources.len()),
        )),
    }
}

fn targets(message: &DynamicMessage, key: &str) -> Result<Vec<String>, Fault> {
    let names = read::texts(message, "target_name");
    if names.is_empty() {
        let message = "is missing: write the name of the tensor in the model, such as `target_name: \"y\"`";
        return Err(Fault::at(format!("{key}.target_name"), message));
    }
    Ok(names)
}

#[cfg(test)]
#[path = "ragged_tests.rs"]
mod tests;
