//! Triton's `config.pbtxt` to a raw configuration, and its form in JSON.
//!
//! - `text`: protobuf's text format to a message, with errors that say where.
//! - `colons`: one liberty of that format that the parser does not know.
//! - `json`: protobuf's JSON to the same message.
//! - `encode`: that message as bytes.
//! - `read`: the fields of that message.
//! - `warmup`: those of `model_warmup`.
//! - `batching`: those of `dynamic_batching`.
//! - `sequence`: those of `sequence_batching`.
//! - `generate`: parameters that say how a model answers many times.
//! - `padding`: parameters that say how requests of different lengths are joined.
//! - `ragged`: the fields of `batch_input` and `batch_output`.
//! - `unserved`: what is refused, and what is accepted although it has no effect.
//! - `parameters`: the settings that Triton's PyTorch backend takes as strings.

mod batching;
mod colons;
mod encode;
mod generate;
mod json;
mod padding;
mod parameters;
mod ragged;
mod read;
mod sequence;
mod text;
mod unserved;
mod warmup;

use std::path::Path;

use prost_reflect::{DynamicMessage, Value};

use super::{
    ModelConfig, check,
    error::Fault,
    hint,
    raw::{RawConfig, RawDevice, RawInput, RawInstanceGroup, RawInstances, RawOutput, RawVersions},
};
use crate::{DataType, escape::one_line};

/// Reads a `config.pbtxt`; also gives it back in protobuf's encoding, with the name filled in.
pub(super) fn load(text: &str, dir: &Path, name: &str) -> Result<(ModelConfig, Vec<u8>), Fault> {
    interpret(text::parse(text)?, dir, name)
}

/// As [`load`], for the same message in JSON that came with a request to load the model.
///
/// It must not name libraries: they are native code, and whoever may choose how a model is served shall
/// not thereby choose what is run beside it.
pub(super) fn load_json(json: &str, dir: &Path, name: &str) -> Result<(ModelConfig, Vec<u8>), Fault> {
    let message = json::parse(json)?;
    if read::message(&message, "model_operations").is_some_and(|set| read::is_set(set, "op_library_filename"))
    {
        return Err(Fault::at(
            "model_operations.op_library_filename",
            "libraries are not taken from a request: name them in the model's configuration file, or with \
             --op-library for all models",
        ));
    }
    interpret(message, dir, name)
}

fn interpret(mut message: DynamicMessage, dir: &Path, name: &str) -> Result<(ModelConfig, Vec<u8>), Fault> {
    let mut notes = Vec::new();
    unserved::check(&message, &mut notes)?;
    let raw = raw(&message, &mut notes)?;
    let config = check::check(raw, dir, name, words(&message))?;

    message.set_field_by_name("name", Value::String(name.to_owned()));
    Ok((ModelConfig { notes, ..config }, encode::encode(&message)))
}

/// The words in which errors are told.
fn words(message: &DynamicMessage) -> &'static check::Words {
    if sequence::oldest(message).is_some() { &check::TRITON_OLDEST } else { &check::TRITON }
}

fn raw(message: &DynamicMessage, notes: &mut Vec<String>) -> Result<RawConfig, Fault> {
    check_backend(message)?;
    let mut raw = RawConfig {
        name: Some(read::text(message, "name").to_owned()),
        max_batch_size: unsigned(read::number(message, "max_batch_size"), "max_batch_size")?,
        inputs: tensors(message, "input", input)?,
        outputs: tensors(message, "output", output)?,
        versions: versions(message)?,
        instances: instances(message)?,
        warmup: warmup::warmup(message, notes)?,
        ..RawConfig::default()
    };
    let model_file = read::text(message, "default_model_filename");
    if !model_file.is_empty() {
        raw.model_file = model_file.to_owned();
    }
    if let Some(operations) = read::message(message, "model_operations") {
        raw.op_libraries = read::texts(operations, "op_library_filename");
    }
    batching::apply(message, &mut raw, notes)?;
    sequence::apply(message, &mut raw, notes)?;
    generate::apply(message, &mut raw)?;
    padding::apply(message, &mut raw)?;
    ragged::apply(message, &mut raw)?;
    parameters::apply(message, &mut raw, notes)?;
    Ok(raw)
}

fn check_backend(message: &DynamicMessage) -> Result<(), Fault> {
    for (field, served) in
        [("platform", &["pytorch_libtorch", "libtorch"][..]), ("backend", &["pytorch"][..])]
    {
        let written = read::text(message, field);
        if !written.is_empty() && !served.contains(&written) {
            return Err(Fault::at(
                field,
                format!(
                    "`{}` is not served, only TorchScript models are: write \"{}\" or leave it out",
                    one_line(written),
                    served[0]
                ),
            ));
        }
    }
    Ok(())
}

/// All inputs or outputs; unlike in YAML they must be there, as Triton requires it of this format.
fn tensors<T>(
    message: &DynamicMessage,
    field: &str,
    convert: fn(&DynamicMessage, &str) -> Result<T, Fault>,
) -> Result<Vec<T>, Fault> {
    let tensors = read::messages(message, field);
    if tensors.is_empty() {
        return Err(Fault::at(
            field,
            format!(
                "Triton's format must list every {field} as `{field} [{{ name: \"x\" data_type: \
                 TYPE_FP32 dims: [ -1 ] }}]`; only without it do they come from the model itself"
            ),
        ));
    }
    let convert = |(index, tensor)| convert(tensor, &format!("{field}[{index}]"));
    tensors.into_iter().enumerate().map(convert).collect()
}

fn input(message: &DynamicMessage, key: &str) -> Result<RawInput, Fault> {
    Ok(RawInput {
        name: read::text(message, "name").to_owned(),
        dtype: data_type(message, key)?,
        shape: dims(message, key)?,
        reshape: reshape(message),
        optional: read::flag(message, "optional"),
        pad: None,
        mask_of: None,
        ragged: read::flag(message, "allow_ragged_batch"),
    })
}

fn output(message: &DynamicMessage, key: &str) -> Result<RawOutput, Fault> {
    let labels = read::text(message, "label_filename");
    Ok(RawOutput {
        name: read::text(message, "name").to_owned(),
        dtype: data_type(message, key)?,
        shape: dims(message, key)?,
        reshape: reshape(message),
        labels: (!labels.is_empty()).then(|| labels.to_owned()),
        unpad: None,
        scatter_like: None,
    })
}

fn data_type(message: &DynamicMessage, key: &str) -> Result<DataType, Fault> {
    let fault = |message: &str| Fault::at(format!("{key}.data_type"), message);
    let number = read::number(message, "data_type");
    if number == 0 {
        return Err(fault("is missing: write the type of the elements, such as TYPE_FP32"));
    }
    let name = read::enum_name(message, "data_type", number);
    let data_type = name.as_deref().and_then(hint::meant_data_type);
    data_type.ok_or_else(|| {
        fault(&format!("there is no data type of number {number}: write one such as TYPE_FP32"))
    })
}

/// As in Triton, no dimensions are the same as none written, so a scalar needs a reshape.
fn dims(message: &DynamicMessage, key: &str) -> Result<Vec<i64>, Fault> {
    let dims = read::numbers(message, "dims");
    if dims.is_empty() {
        return Err(Fault::at(
            format!("{key}.dims"),
            "is missing: write the shape without the batch dimension, such as `dims: [ -1 ]`, or \
             `dims: [ 1 ] reshape { shape: [ ] }` for a scalar",
        ));
    }
    Ok(dims)
}

fn reshape(message: &DynamicMessage) -> Option<Vec<i64>> {
    read::message(message, "reshape").map(|reshape| read::numbers(reshape, "shape"))
}

fn versions(message: &DynamicMessage) -> Result<RawVersions, Fault> {
    let Some(policy) = read::message(message, "version_policy") else { return Ok(RawVersions::default()) };
    if let Some(latest) = read::message(policy, "latest") {
        let key = "version_policy.latest.num_versions";
        return unsigned(read::number(latest, "num_versions"), key).map(RawVersions::Latest);
    }
    if let Some(specific) = read::message(policy, "specific") {
        let number = |(index, number): (usize, i64)| {
            u64::try_from(number).map_err(|_| {
                let key = format!("version_policy.specific.versions[{index}]");
                Fault::at(key, format!("there is no version {number}: versions are numbered from 1"))
            })
        };
        let numbers = read::numbers(specific, "versions");
        return numbers
            .into_iter()
            .enumerate()
            .map(number)
            .collect::<Result<_, _>>()
            .map(RawVersions::Specific);
    }
    if read::message(policy, "all").is_some() {
        return Ok(RawVersions::All);
    }
    Err(Fault::at(
        "version_policy",
        "chooses nothing: write `latest { num_versions: 1 }`, `all { }` or `specific { versions: [ \
         1 ] }` in it",
    ))
}

fn instances(message: &DynamicMessage) -> Result<RawInstances, Fault> {
    let group = |(index, group)| instance_group(group, &format!("instance_group[{index}]"));
    let groups = read::messages(message, "instance_group").into_iter().enumerate().map(group);
    groups.collect::<Result<_, _>>().map(RawInstances::Groups)
}

fn instance_group(message: &DynamicMessage, key: &str) -> Result<RawInstanceGroup, Fault> {
    let kind = read::number(message, "kind");
    let device = match read::enum_name(message, "kind", kind).as_deref() {
        Some("KIND_AUTO") => RawDevice::Auto,
        Some("KIND_CPU") => RawDevice::Cpu,
        Some("KIND_GPU") => RawDevice::Gpu,
        other => {
            return Err(Fault::at(
                format!("{key}.kind"),
                format!(
                    "{} is not served: write KIND_CPU, KIND_GPU or KIND_AUTO",
                    other.map_or_else(|| kind.to_string(), str::to_owned)
                ),
            ));
        }
    };
    let gpu = |(index, gpu): (usize, i64)| unsigned(gpu, &format!("{key}.gpus[{index}]"));
    let gpus = read::numbers(message, "gpus").into_iter().enumerate().map(gpu).collect::<Result<_, _>>()?;
    let count = match read::number(message, "count") {
        // Zero cannot be told from nothing, which means one.
        0 => 1,
        count => unsigned(count, &format!("{key}.count"))?,
    };
    Ok(RawInstanceGroup { device, count, gpus })
}

fn unsigned(number: i64, key: &str) -> Result<u32, Fault> {
    u32::try_from(number).map_err(|_| Fault::at(key, format!("0 or more is expected, not {number}")))
}

/// The JSON of a `config.pbtxt` that can be read.
#[cfg(test)]
pub(super) fn to_json(text: &str) -> String {
    let message = text::parse(text).unwrap_or_else(|fault| panic!("{}: {text}", fault.message));
    serde_json::to_string(&message).unwrap()
}

#[cfg(test)]
mod tests;
