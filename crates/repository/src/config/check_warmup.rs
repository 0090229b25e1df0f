//! Samples for warming up, as they were written, to checked ones.

use std::{collections::BTreeMap, num::NonZeroU32, path::Path};

use super::{
    TensorConfig, Warmup, WarmupData, WarmupInput, WarmupSample,
    check::Words,
    error::Fault,
    files,
    raw::{RawSample, RawSampleData, RawSampleInput, RawWarmup},
    warmup::{MAX_SAMPLE_BYTES, elements, file_sizes, wrong_size},
};
use crate::{DataType, escape::one_line};

/// A sample that is run more often than this would hold back the version for ever.
const MAX_RUNS: u32 = 10_000;

/// What a sample must fit.
pub(super) struct Model<'a> {
    /// The directory of the model.
    pub(super) dir: &'a Path,
    pub(super) max_batch_size: u32,
    /// Empty when the signature of the model is to tell them.
    pub(super) inputs: &'a [TensorConfig],
}

/// Checks the samples for the model; the files that they name are looked at, but not read.
pub(super) fn check(raw: RawWarmup, model: &Model<'_>, words: &Words) -> Result<Warmup, Fault> {
    let samples = match raw {
        RawWarmup::Auto => return Ok(Warmup::Auto),
        RawWarmup::Off => return Ok(Warmup::Off),
        RawWarmup::Samples(samples) => samples,
    };
    if samples.is_empty() {
        return Err(Fault::at(words.warmup, "an empty list says nothing: write `auto`, `off` or a sample"));
    }
    let check = |(index, raw)| sample(raw, model, &format!("{}[{index}]", words.warmup), words);
    samples.into_iter().enumerate().map(check).collect::<Result<_, _>>().map(Warmup::Samples)
}

fn sample(raw: RawSample, model: &Model<'_>, key: &str, words: &Words) -> Result<WarmupSample, Fault> {
    let batch_size = batch_size(raw.batch_size, model.max_batch_size, key)?;
    let count = NonZeroU32::new(raw.count).filter(|count| count.get() <= MAX_RUNS).ok_or_else(|| {
        let message = format!("a number from 1 to {MAX_RUNS} is expected, not {}", raw.count);
        Fault::at(format!("{key}.count"), message)
    })?;
    check_complete(&raw.inputs, model, key)?;

    let rows = u64::from(batch_size.max(1));
    let mut inputs = BTreeMap::new();
    let mut total = 0_u64;
    for (name, raw) in raw.inputs {
        let key = format!("{key}.inputs.{}", one_line(&name));
        let (input, bytes) = input(raw, &name, rows, model, &key, words)?;
        total = total.saturating_add(bytes);
        inputs.insert(name, input);
    }
    if total > MAX_SAMPLE_BYTES {
        return Err(Fault::at(
            format!("{key}.inputs"),
            format!(
                "its tensors take {total} bytes, but at most {MAX_SAMPLE_BYTES} are allowed for one sample"
            ),
        ));
    }
    let name = raw.name.filter(|name| !name.is_empty()).unwrap_or_else(|| key.to_owned());
    Ok(WarmupSample { name, batch_size, count, inputs })
}

/// As in Triton, a model without a batch dimension takes the batch size 1, which means the same.
fn batch_size(written: Option<u32>, max_batch_size: u32, key: &str) -> Result<u32, Fault> {
    let fault = |message: String| Err(Fault::at(format!("{key}.batch_size"), message));
    match written {
        None => Ok(max_batch_size.min(1)),
        Some(0 | 1) if max_batch_size == 0 => Ok(0),
        Some(size) if max_batch_size == 0 => fault(format!(
            "{size} cannot be: the model has no batch dimension (max_batch_size is 0), so leave it out"
        )),
        Some(size) if size == 0 || size > max_batch_size => {
            fault(format!("a number from 1 to max_batch_size, {max_batch_size}, is expected, not {size}"))
        }
        Some(size) => Ok(size),
    }
}

/// A request without a required input would be refused, and the version with it.
fn check_complete(
    inputs: &BTreeMap<String, RawSampleInput>,
    model: &Model<'_>,
    key: &str,
) -> Result<(), Fault> {
    let missing = |input: &&TensorConfig| !input.optional && !inputs.contains_key(&input.name);
    match model.inputs.iter().find(missing) {
        None => Ok(()),
        Some(input) => Err(Fault::at(
            format!("{key}.inputs"),
            format!("`{}` is missing: a sample has every input that is not optional", one_line(&input.name)),
        )),
    }
}

/// The checked tensor, and how many bytes it takes.
fn input(
    raw: RawSampleInput,
    name: &str,
    rows: u64,
    model: &Model<'_>,
    key: &str,
    words: &Words,
) -> Result<(WarmupInput, u64), Fault> {
    let config = model.inputs.iter().find(|input| input.name == name);
    if config.is_none() && !model.inputs.is_empty() {
        return Err(Fault::at(
            key,
            format!("no entry of `{}` has this name: write one that is there", words.inputs),
        ));
    }
    let data_type = data_type(raw.dtype, config, key, words)?;
    let dims = dims(raw.shape, config, key, words)?;
    let too_large = || Fault::at(format!("{key}.{}", words.shape), format!("{dims:?} is too large"));
    let count = elements(&dims).ok_or_else(too_large)?;
    let count_all = count.checked_mul(rows).ok_or_else(too_large)?;
    // Strings that are made up are empty, and only their lengths take room.
    let made_up = count_all.saturating_mul(data_type.size().unwrap_or(4) as u64);
    let (data, bytes) = match raw.data {
        RawSampleData::Zero => (WarmupData::Zero, made_up),
        RawSampleData::Random => (WarmupData::Random, made_up),
        RawSampleData::File(file) => {
            let key = format!("{key}.{}", words.warmup_file);
            let (path, size) = files::warmup_data(model.dir, &file, &key)?;
            match file_sizes(data_type, count, rows) {
                Some(sizes) if !sizes.contains(&size) => {
                    return Err(Fault::at(
                        key,
                        format!("`{}` cannot be: {}", one_line(&file), wrong_size(size, sizes)),
                    ));
                }
                Some([_, all]) => (WarmupData::File(path), all),
                None => (WarmupData::File(path), size),
            }
        }
    };
    Ok((WarmupInput { data_type, dims, data }, bytes))
}

fn data_type(
    written: Option<DataType>,
    config: Option<&TensorConfig>,
    key: &str,
    words: &Words,
) -> Result<DataType, Fault> {
    let fault = |message: String| Err(Fault::at(format!("{key}.{}", words.data_type), message));
    match (written, config.map(|input| input.data_type)) {
        (Some(written), Some(known)) if written != known => {
            fault(format!("{written} differs from {known} in `{}`: write {known}", words.inputs))
        }
        (Some(data_type), _) | (None, Some(data_type)) => Ok(data_type),
        (None, None) => fault("is missing: write the type of the elements, such as FP32".to_owned()),
    }
}

fn dims(
    written: Option<Vec<i64>>,
    config: Option<&TensorConfig>,
    key: &str,
    words: &Words,
) -> Result<Vec<i64>, Fault> {
    let key = format!("{key}.{}", words.shape);
    let known = config.map(|input| &input.dims);
    let Some(dims) = written else {
        return match known {
            Some(known) if !known.contains(&-1) => Ok(known.clone()),
            _ => Err(Fault::at(key, "is missing: write the shape of the sample, such as [4]")),
        };
    };
    if let Some((index, dim)) = dims.iter().enumerate().find(|(_, dim)| **dim < 0) {
        let message = format!("{dim} is not a size: write how large this dimension is in the sample");
        return Err(Fault::at(format!("{key}[{index}]"), message));
    }
    let fits = |known: &Vec<i64>| {
        known.len() == dims.len() && known.iter().zip(&dims).all(|(known, dim)| *known == -1 || known == dim)
    };
    match known {
        Some(known) if !fits(known) => {
            Err(Fault::at(key, format!("{dims:?} does not fit {known:?}, its shape in `{}`", words.inputs)))
        }
        _ => Ok(dims),
    }
}

#[cfg(test)]
#[path = "check_warmup_tests.rs"]
mod tests;
