//! The parameters that say what Triton's schema has no fields for: `PAD`, `MASK` and `UNPAD`.

use prost_reflect::DynamicMessage;

use super::{
    super::{
        check::TRITON,
        error::Fault,
        raw::{RawConfig, RawNumber},
    },
    parameters,
};
use crate::escape::one_line;

/// Parameters that are read here.
pub(super) const PARAMETERS: [&str; 3] = [PAD, MASK, UNPAD];

const PAD: &str = "PAD";
const MASK: &str = "MASK";
const UNPAD: &str = "UNPAD";

/// Gives the inputs and outputs what the parameters say of them.
pub(super) fn apply(message: &DynamicMessage, raw: &mut RawConfig) -> Result<(), Fault> {
    for (name, value) in pairs(message, PAD, "input_ids=0")? {
        let number = RawNumber::parse(value).ok_or_else(|| {
            let shown = one_line(value);
            Fault::at(TRITON.pad, format!("`{shown}` is not a number: write one such as \"input_ids=0\""))
        })?;
        let input = raw.inputs.iter_mut().find(|input| input.name == name);
        set(input.map(|input| &mut input.pad), number, TRITON.pad, "input", name)?;
    }
    for (name, of) in pairs(message, MASK, "attention_mask=input_ids")? {
        let input = raw.inputs.iter_mut().find(|input| input.name == name);
        set(input.map(|input| &mut input.mask_of), of.to_owned(), TRITON.mask_of, "input", name)?;
    }
    for (name, of) in pairs(message, UNPAD, "logits=input_ids")? {
        let output = raw.outputs.iter_mut().find(|output| output.name == name);
        set(output.map(|output| &mut output.unpad), of.to_owned(), TRITON.unpad, "output", name)?;
    }
    Ok(())
}

/// What a parameter says of each name: `name=value`, separated by commas.
fn pairs<'a>(
    message: &'a DynamicMessage,
    key: &str,
    example: &str,
) -> Result<Vec<(&'a str, &'a str)>, Fault> {
    let Some(text) = parameters::text(message, key) else { return Ok(Vec::new()) };
    let pair = |pair: &'a str| {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            let shown = one_line(pair.trim());
            let message = format!("`{shown}` is not a name and a value: write such as \"{example}\"");
            Fault::at(parameters::place(key), message)
        })?;
        Ok((name.trim(), value.trim()))
    };
    text.split(',').map(pair).collect()
}

fn set<T>(field: Option<&mut Option<T>>, value: T, key: &str, kind: &str, name: &str) -> Result<(), Fault> {
    let shown = one_line(name);
    let Some(field) = field else {
        return Err(Fault::at(key, format!("there is no {kind} '{shown}': name one of `{kind}`")));
    };
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(Fault::at(key, format!("{kind} '{shown}' is listed twice: list it once"))),
    }
}
