//! What a version is run with before it serves.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    num::NonZeroU32,
    path::{Path, PathBuf},
};

use super::files;
use crate::{DataType, escape::shown};

/// More than this for the tensors of one sample is a typing error, not an input.
pub(super) const MAX_SAMPLE_BYTES: u64 = 1 << 30;

/// How a version is warmed up: run, before it serves, so that its first request does not wait for
/// TorchScript's compiler.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Warmup {
    /// With inputs that are made from the signature and the configuration, where these tell enough.
    #[default]
    Auto,
    /// Not at all.
    Off,
    /// With exactly these, of which there is at least one; a version that cannot answer them does not
    /// serve.
    Samples(Vec<WarmupSample>),
}

/// One request that a version must answer before it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmupSample {
    /// The name for messages; never empty.
    pub name: String,
    /// The size of the first dimension, which `dims` do not show; 0 exactly when the model's shapes
    /// have no batch dimension.
    pub batch_size: u32,
    /// How often it is run.
    pub count: NonZeroU32,
    /// The tensors by the names that clients use. Where the configuration lists inputs, all that a
    /// request must have are here, and their types and shapes fit.
    pub inputs: BTreeMap<String, WarmupInput>,
}

/// One tensor of a [`WarmupSample`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmupInput {
    /// The type of the elements.
    pub data_type: DataType,
    /// The shape without the batch dimension; every dimension is 0 or greater.
    pub dims: Vec<i64>,
    /// The elements.
    pub data: WarmupData,
}

/// The elements of a [`WarmupInput`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WarmupData {
    /// Zeros, or empty strings.
    Zero,
    /// Any values, or empty strings.
    Random,
    /// The bytes of this file as they would be sent, for one row of the batch or for all of it; see
    /// [`WarmupInput::read`].
    File(PathBuf),
}

impl WarmupInput {
    /// The shape of the tensor that is sent in a sample of this batch size.
    pub fn shape(&self, batch_size: u32) -> Vec<i64> {
        let batch = (batch_size > 0).then_some(i64::from(batch_size));
        batch.into_iter().chain(self.dims.iter().copied()).collect()
    }

    /// The contents of the tensor that is sent in a sample of this batch size, as on the wire; `None`
    /// when they are made up. As in Triton, a file with one row stands for every row of the batch.
    ///
    /// # Errors
    ///
    /// One sentence, when the file is not what it was when the configuration was checked.
    pub fn read(&self, batch_size: u32) -> Result<Option<Vec<u8>>, String> {
        let WarmupData::File(path) = &self.data else { return Ok(None) };
        let sentence = |reason: String| format!("cannot use the data in {}: {reason}", shown(path));
        let rows = u64::from(batch_size.max(1));
        let elements = elements(&self.dims).ok_or_else(|| sentence("its shape is too large".to_owned()))?;
        let bytes = read(path).map_err(sentence)?;
        let copies = copies(self.data_type, elements, rows, &bytes).map_err(sentence)?;
        Ok(Some(if copies == 1 { bytes } else { bytes.repeat(copies) }))
    }
}

/// The number of elements, if 64 bits can count them; dimensions are 0 or greater.
pub(super) fn elements(dims: &[i64]) -> Option<u64> {
    dims.iter().try_fold(1_u64, |count, dim| count.checked_mul(u64::try_from(*dim).ok()?))
}

/// How many bytes a file may have: those of one row, or of all rows; `None` when that depends on its
/// contents.
pub(super) fn file_sizes(data_type: DataType, elements: u64, rows: u64) -> Option<[u64; 2]> {
    let row = elements.saturating_mul(data_type.size()? as u64);
    Some([row, row.saturating_mul(rows)])
}

/// What is wrong with the length of a file.
pub(super) fn wrong_size(size: u64, [row, all]: [u64; 2]) -> String {
    let whole = if row == all { String::new() } else { format!(", or {all} for the whole batch") };
    format!("it has {size} bytes, but its data type and shape take {row}{whole}")
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    files::size(path)?;
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|err| files::reason(&err))?;
    file.take(MAX_SAMPLE_BYTES + 1).read_to_end(&mut bytes).map_err(|err| files::reason(&err))?;
    if bytes.len() as u64 > MAX_SAMPLE_BYTES {
        return Err(format!("it is larger than {MAX_SAMPLE_BYTES} bytes"));
    }
    Ok(bytes)
}

/// How often the bytes must be repeated to fill all rows.
fn copies(data_type: DataType, elements: u64, rows: u64, bytes: &[u8]) -> Result<usize, String> {
    let too_many = || format!("{rows} times its contents are more than {MAX_SAMPLE_BYTES} bytes");
    let is_row = match file_sizes(data_type, elements, rows) {
        Some(sizes) if !sizes.contains(&(bytes.len() as u64)) => {
            return Err(wrong_size(bytes.len() as u64, sizes));
        }
        Some([row, _]) => bytes.len() as u64 == row,
        None => match strings(bytes)? {
            count if count == elements => true,
            count if count == elements.saturating_mul(rows) => false,
            count => {
                let expected = if rows == 1 { "" } else { " for each row of the batch" };
                return Err(format!("it has {count} strings, but its shape takes {elements}{expected}"));
            }
        },
    };
    if !is_row {
        return Ok(1);
    }
    if (bytes.len() as u64).saturating_mul(rows) > MAX_SAMPLE_BYTES {
        return Err(too_many());
    }
    usize::try_from(rows).map_err(|_| too_many())
}

/// How many strings there are, each after its length in four bytes, the lowest first.
fn strings(mut bytes: &[u8]) -> Result<u64, String> {
    let mut count = 0;
    while !bytes.is_empty() {
        let rest = bytes.split_first_chunk::<4>().and_then(|(length, rest)| {
            let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
            rest.get(length..)
        });
        bytes = rest.ok_or_else(|| {
            format!(
                "string {count} of it ends too early: each string is written after its length in four \
                 bytes, the lowest first"
            )
        })?;
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
#[path = "warmup_tests.rs"]
mod tests;
