//! The samples of `model_warmup`.

use prost_reflect::DynamicMessage;

use super::{
    super::{
        error::Fault,
        raw::{RawSample, RawSampleData, RawSampleInput, RawWarmup},
    },
    data_type, read, unserved,
};
use crate::escape::one_line;

/// Without samples, the choice is left to the server.
pub(super) fn warmup(message: &DynamicMessage, notes: &mut Vec<String>) -> Result<RawWarmup, Fault> {
    let mut samples = Vec::new();
    for (index, message) in read::messages(message, "model_warmup").into_iter().enumerate() {
        let key = format!("model_warmup[{index}]");
        match read::number(message, "batch_size") {
            // A sample that Triton never ran need not be one that the model can answer.
            0 => unserved::note(notes, &key, "its batch_size is 0, which skips it as in Triton"),
            batch_size => samples.push(sample(message, batch_size, &key)?),
        }
    }
    Ok(if samples.is_empty() { RawWarmup::Auto } else { RawWarmup::Samples(samples) })
}

fn sample(message: &DynamicMessage, batch_size: i64, key: &str) -> Result<RawSample, Fault> {
    let name = match read::text(message, "name") {
        "" => key,
        name => name,
    };
    let input = |(name, message): (&str, &DynamicMessage)| {
        let input = input(message, &format!("{key}.inputs.{}", one_line(name)))?;
        Ok((name.to_owned(), input))
    };
    let count = super::unsigned(read::number(message, "count"), &format!("{key}.count"))?;
    Ok(RawSample {
        name: Some(name.to_owned()),
        batch_size: Some(super::unsigned(batch_size, &format!("{key}.batch_size"))?),
        // As in Triton, nothing means once.
        count: count.max(1),
        inputs: read::entries(message, "inputs").into_iter().map(input).collect::<Result<_, _>>()?,
    })
}

fn input(message: &DynamicMessage, key: &str) -> Result<RawSampleInput, Fault> {
    // As in Triton, the field that is there decides, whatever its value.
    let data = if read::is_set(message, "zero_data") {
        RawSampleData::Zero
    } else if read::is_set(message, "random_data") {
        RawSampleData::Random
    } else if read::is_set(message, "input_data_file") {
        RawSampleData::File(read::text(message, "input_data_file").to_owned())
    } else {
        return Err(Fault::at(
            key,
            "has no data: write `zero_data: true`, `random_data: true` or `input_data_file: \"x.bin\"`",
        ));
    };
    Ok(RawSampleInput {
        dtype: Some(data_type(message, key)?),
        shape: Some(read::numbers(message, "dims")),
        data,
    })
}

#[cfg(test)]
#[path = "warmup_tests.rs"]
mod tests;
