//! Padding: any that both formats can express, and how each says it.

use std::fmt::Write;

use proptest::{collection::vec, prelude::*};

use super::{ModelConfig, TensorConfig};
use crate::{
    DataType,
    config::padding::{Filler, Number, Padding},
};

/// A number for each input, and which tensors follow one that is filled up.
pub(super) type Seed = (Vec<Option<Number>>, Vec<bool>);

fn any_number() -> impl Strategy<Value = Option<Number>> {
    prop_oneof![
        2 => Just(None),
        1 => any::<bool>().prop_map(|value| Some(Number::Bool(value))),
        2 => any::<i8>().prop_map(|value| Some(Number::Integer(value.into()))),
        2 => any::<i64>().prop_map(|value| Some(Number::Integer(value.into()))),
        2 => (-1e4..1e4).prop_map(|value| Some(Number::Float(value))),
    ]
}

pub(super) fn any_seed() -> impl Strategy<Value = Seed> {
    (vec(any_number(), 3), vec(any::<bool>(), 6))
}

fn variable(tensor: &TensorConfig) -> usize {
    tensor.dims.iter().filter(|dim| **dim == -1).count()
}

/// The name, if a list of parameters can hold it.
fn is_plain(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// The configuration with what fits it.
pub(super) fn padded((numbers, follow): &Seed, mut config: ModelConfig) -> ModelConfig {
    if config.max_batch_size == 0 {
        return config;
    }
    for (input, number) in config.inputs.iter_mut().zip(numbers) {
        let number = number.filter(|_| variable(input) > 0 && is_plain(&input.name));
        input.padding =
            number.and_then(|number| Filler::new(input.data_type, number).ok()).map(Padding::Fill);
    }
    let Some(padded) = config.inputs.iter().find(|input| input.padding.is_some()).cloned() else {
        return config;
    };
    let follows = |tensor: &TensorConfig| {
        let fits = variable(tensor) == variable(&padded) && tensor.data_type != DataType::Bytes;
        fits && is_plain(&tensor.name) && tensor.padding.is_none()
    };
    let name = &padded.name;
    let fixed = |tensor: &TensorConfig| -> i64 { tensor.dims.iter().filter(|dim| **dim != -1).product() };
    for (input, follow) in config.inputs.iter_mut().zip(follow) {
        if *follow && follows(input) && fixed(input) <= fixed(&padded) {
            input.optional = true;
            input.padding = Some(Padding::MaskOf(name.clone()));
        }
    }
    for (output, follow) in config.outputs.iter_mut().zip(&follow[3..]) {
        if *follow && follows(output) {
            output.padding = Some(Padding::CutTo(name.clone()));
        }
    }
    config
}

/// Whether it is written: a mask is optional without being told so.
pub(super) fn says_optional(tensor: &TensorConfig) -> bool {
    tensor.optional && !matches!(tensor.padding, Some(Padding::MaskOf(_)))
}

/// As it can be written; what reads JSON rounds the last digit of some numbers.
pub(super) fn number(filler: &Filler) -> serde_json::Value {
    // The parser of JSON may miss the nearest number by one.
    serde_yaml::from_str(&filler.to_string()).expect("a number")
}

/// The fields of a tensor for `config.yaml`.
pub(super) fn to_yaml(tensor: &TensorConfig, fields: &mut serde_json::Value) {
    match &tensor.padding {
        None => {}
        Some(Padding::Fill(filler)) => {
            fields["pad"] = number(filler);
        }
        Some(Padding::MaskOf(of)) => {
            fields["mask_of"] = of.clone().into();
        }
        Some(Padding::CutTo(of)) => fields["unpad"] = of.clone().into(),
        Some(Padding::Ragged) => fields["ragged"] = true.into(),
        Some(Padding::ScatterLike(of)) => fields["scatter_like"] = of.clone().into(),
    }
}

/// The parameters for `config.pbtxt`.
pub(super) fn to_pbtxt(config: &ModelConfig, text: &mut String) {
    let mut lists: [(&str, Vec<String>); 3] = [("PAD", vec![]), ("MASK", vec![]), ("UNPAD", vec![])];
    for tensor in config.inputs.iter().chain(&config.outputs) {
        let (list, value) = match &tensor.padding {
            None | Some(Padding::Ragged | Padding::ScatterLike(_)) => continue,
            Some(Padding::Fill(filler)) => (0, filler.to_string()),
            Some(Padding::MaskOf(of)) => (1, of.clone()),
            Some(Padding::CutTo(of)) => (2, of.clone()),
        };
        lists[list].1.push(format!("{}={value}", tensor.name));
    }
    for (key, list) in lists.iter().filter(|(_, list)| !list.is_empty()) {
        let list = list.join(",");
        writeln!(text, "parameters {{ key: \"{key}\" value {{ string_value: \"{list}\" }} }}").unwrap();
    }
}
