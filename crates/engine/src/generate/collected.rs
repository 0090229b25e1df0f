//! All answers to a request as one.

use super::Answers;
use crate::{Error, Result, outputs::NamedOutput, value::Tensor};

/// Whoever wants more takes answers one by one.
const MOST_COLLECTED: usize = 64 << 20;

/// All answers as one: each output's joined along its second dimension, strings row by row.
///
/// # Errors
/// The first error among them; [`Error::Output`] where they do not fit together.
pub(crate) async fn collect(model: &str, mut answers: Answers) -> Result<Vec<NamedOutput>> {
    let mut all: Vec<Vec<Tensor>> = Vec::new();
    let mut names = Vec::new();
    let mut bytes = 0;
    while let Some((answer, _)) = answers.next().await {
        for (index, output) in answer?.into_iter().enumerate() {
            bytes += output.tensor.bytes().len();
            if bytes > MOST_COLLECTED {
                let message = format!(
                    "its answers are more than {MOST_COLLECTED} bytes together, which are not collected: ask for them by \
                     ModelStreamInfer, or for fewer with the parameter max_steps"
                );
                return Err(Error::Output { model: model.to_owned(), message });
            }
            if index >= all.len() {
                all.push(Vec::new());
                names.push(output.name);
            }
            all[index].push(output.tensor);
        }
    }
    let joined = names.into_iter().zip(all).map(|(name, parts)| {
        let tensor = joined(&parts).ok_or_else(|| Error::Output {
            model: model.to_owned(),
            message: format!("the answers of its steps for '{name}' differ in dtype or shape, so that they cannot be collected"),
        })?;
        Ok(NamedOutput { name, tensor })
    });
    joined.collect()
}

/// One row each, joined along the second dimension; strings become one.
fn joined(parts: &[Tensor]) -> Option<Tensor> {
    let first = parts.first()?;
    if parts.iter().any(|part| part.data_type != first.data_type || part.shape != first.shape) {
        return None;
    }
    let mut data = Vec::new();
    if first.data_type == crate::DataType::Bytes {
        let elements = parts.iter().flat_map(|part| crate::value::strings(part.bytes()));
        let text: Vec<u8> = elements.flatten().copied().collect();
        crate::value::push_string(&mut data, &text);
        return Some(Tensor::host(first.data_type, vec![1; first.shape.len()], data.into()));
    }
    parts.iter().for_each(|part| data.extend_from_slice(part.bytes()));
    let mut shape = first.shape.clone();
    match shape.get_mut(1) {
        Some(second) => *second *= i64::try_from(parts.len()).ok()?,
        None => shape.push(i64::try_from(parts.len()).ok()?),
    }
    Some(Tensor::host(first.data_type, shape, data.into()))
}
