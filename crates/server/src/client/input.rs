//! `--input NAME=VALUE`: from text or a file to a tensor for that input.

use std::{fs, path::Path};

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use sconce_repository::DataType;
use serde_json::Value;

use super::{
    array::{Array, push_string},
    json,
    model::{Expected, Model},
    npy, picture,
    text::{plain, quoted},
};

/// The tensor that one `--input` stands for, and its name.
///
/// # Errors
/// One sentence that names the input.
pub(super) fn build(argument: &str, model: &Model) -> anyhow::Result<(String, Array)> {
    let (name, data_type, value) = split(argument, model)?;
    let mut expected = model.expected(name).ok_or_else(|| unknown(name, model))?;
    expected.data_type = data_type.or(expected.data_type);
    let array = match value.strip_prefix('@') {
        Some(path) => from_file(Path::new(path), &expected),
        None => from_text(value, &expected),
    };
    let mut array = array.with_context(|| format!("input {}", quoted(name.as_bytes())));
    if let Ok(array) = &mut array {
        if let Some(shape) = &expected.shape {
            array.fit(shape, expected.batched);
        }
        // A text without a shape is a list of one, unless the model really takes a scalar.
        let scalar = expected.shape.as_ref().is_some_and(Vec::is_empty);
        if array.data_type == DataType::Bytes && array.shape.is_empty() && !scalar {
            array.shape = vec![1];
        }
    }
    // One sentence, not a chain.
    array.map(|array| (name.to_owned(), array)).map_err(|error| anyhow!("{error:#}"))
}

/// `NAME=VALUE` or `NAME:DTYPE=VALUE`. A colon in a name that the model has is part of the name.
fn split<'a>(argument: &'a str, model: &Model) -> anyhow::Result<(&'a str, Option<DataType>, &'a str)> {
    let Some((name, value)) = argument.split_once('=').filter(|(name, _)| !name.is_empty()) else {
        bail!("--input {} is not NAME=VALUE", quoted(argument.as_bytes()));
    };
    if !model.has_input(name)
        && let Some((short, data_type)) = name.rsplit_once(':')
        && let Some(data_type) = DataType::from_name(&data_type.to_ascii_uppercase())
    {
        return Ok((short, Some(data_type), value));
    }
    Ok((name, None, value))
}

fn unknown(name: &str, model: &Model) -> anyhow::Error {
    let names: Vec<String> =
        model.metadata.inputs.iter().map(|input| quoted(input.name.as_bytes())).collect();
    anyhow!(
        "model {} has no input {}; its inputs are {}",
        quoted(model.metadata.name.as_bytes()),
        quoted(name.as_bytes()),
        names.join(", ")
    )
}

/// A value on the command line: JSON, and for BYTES any other text as one element.
fn from_text(value: &str, expected: &Expected) -> anyhow::Result<Array> {
    let parsed = serde_json::from_str::<Value>(value);
    match (parsed, expected.data_type) {
        // For BYTES only a string or a list means something else than itself.
        (Ok(parsed @ (Value::String(_) | Value::Array(_))), Some(DataType::Bytes)) => {
            json::array(&parsed, expected.data_type).map_err(anyhow::Error::msg)
        }
        (_, Some(DataType::Bytes)) => strings(&[value.as_bytes()], Vec::new()),
        (Ok(parsed), data_type) => json::array(&parsed, data_type).map_err(anyhow::Error::msg),
        // Text that starts like a list is a list with a mistake in it.
        (Err(error), None) if value.trim_start().starts_with(['[', '{']) => Err(not_json(&error)),
        (Err(_), None) => strings(&[value.as_bytes()], Vec::new()),
        (Err(error), Some(data_type)) => {
            Err(not_json(&error).context(format!("{data_type} is wanted, as 3 or [1, 2, 3] or @FILE")))
        }
    }
}

fn not_json(error: &serde_json::Error) -> anyhow::Error {
    anyhow!("the value is not JSON: {}", plain(&error.to_string()))
}

fn strings(items: &[&[u8]], shape: Vec<i64>) -> anyhow::Result<Array> {
    let mut data = Vec::with_capacity(items.iter().map(|item| item.len() + 4).sum());
    for item in items {
        push_string(&mut data, item).map_err(|why| anyhow!("it {why}"))?;
    }
    Ok(Array { data_type: DataType::Bytes, shape, data: data.into() })
}

/// The lines of a file; the end of the last one begins no other.
fn lines(file: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<&[u8]> = file.split(|&byte| byte == b'\n').collect();
    lines.pop_if(|last| last.is_empty());
    lines.into_iter().map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect()
}

/// A value in a file, by its extension.
fn from_file(path: &Path, expected: &Expected) -> anyhow::Result<Array> {
    let shown = plain(&path.display().to_string());
    let file = fs::read(path).map_err(|error| anyhow!("cannot read {shown}: {error}"))?;
    let extension = path
        .extension()
        .map(|extension| extension.to_string_lossy().to_ascii_lowercase())
        .unwrap_or_default();
    let array = match (extension.as_str(), expected.data_type) {
        ("npy", data_type) => npy::array(&Bytes::from(file)).and_then(|array| match data_type {
            Some(data_type) => array.convert(data_type),
            // An open model takes what the file has.
            None => Ok(array),
        }),
        ("json", data_type) => match serde_json::from_slice(&file) {
            Ok(value) => json::array(&value, data_type),
            Err(error) => Err(format!("it is not JSON: {error}")),
        },
        ("txt", Some(DataType::Bytes) | None) => {
            let lines = lines(&file);
            return strings(&lines, vec![i64::try_from(lines.len())?]);
        }
        ("txt", Some(data_type)) => Err(format!("a .txt holds BYTES, but {data_type} is wanted")),
        // Some models decode files themselves.
        (_, Some(DataType::Bytes)) => return strings(&[&file], Vec::new()),
        ("png" | "jpg" | "jpeg", data_type) => picture::array(
            &file,
            data_type.unwrap_or(DataType::Fp32),
            // [-1] is no shape of anything, but what a model without a config shows.
            expected.shape.as_deref().filter(|shape| *shape != [-1]),
            expected.batched,
        ),
        _ => Err("only .npy, .json, .png, .jpg and .jpeg are known, and .txt for BYTES".to_owned()),
    };
    array.map_err(|why| anyhow!("{shown}: {}", plain(&why)))
}

#[cfg(test)]
#[path = "input_tests.rs"]
mod tests;
