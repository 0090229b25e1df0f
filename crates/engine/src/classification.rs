//! The classification extension: an output as its `k` highest classes, `value:index[:label]`, as
//! BYTES. The text of values is that of Triton: six decimals for floating point, plain for integers.

use std::cmp::Ordering;

use crate::{
    DataType, Error, Result,
    binding::Binding,
    outputs::{self, NamedOutput, Wanted},
    value::{Tensor, push_string},
};

/// More classes than this in one row are refused, as in Triton.
const MAX_CLASSES: usize = 1_000_000;

/// Puts classes in the place of the outputs of which they are wanted.
///
/// # Errors
/// As [`classify`].
pub(crate) fn classify_wanted(
    binding: &Binding,
    named: &mut [NamedOutput],
    wanted: &[Wanted],
    batched: bool,
) -> Result<()> {
    for (output, wanted) in named.iter_mut().zip(wanted) {
        if wanted.classes > 0 {
            let labels = outputs::labels(binding, &output.name).map(|labels| &**labels);
            output.tensor = classify(&output.name, &output.tensor, wanted.classes, labels, batched)?;
        }
    }
    Ok(())
}

/// The `k` highest classes of each row. A row is all of the tensor, or what is below the first
/// dimension where that is the batch.
///
/// # Errors
/// [`Error::InvalidInput`] for BYTES and BOOL, and for rows that are too long.
fn classify(name: &str, tensor: &Tensor, k: u32, labels: Option<&[String]>, batched: bool) -> Result<Tensor> {
    let refuse = |why: &str| Err(Error::invalid(format!("output '{name}' cannot be classified: {why}")));
    let (Some(size), Some(count)) = (tensor.data_type.size(), tensor.elements()) else {
        return refuse("classification is for numbers, not for BYTES");
    };
    if tensor.data_type == DataType::Bool {
        return refuse("classification is for numbers, not for BOOL");
    }
    let rows = match tensor.shape.first() {
        Some(&first) if batched => usize::try_from(first).unwrap_or(0),
        Some(_) | None => 1,
    };
    let classes = count.checked_div(rows).unwrap_or(0);
    if classes > MAX_CLASSES {
        return refuse("it has more than 1000000 classes");
    }
    let k = usize::try_from(k).unwrap_or(usize::MAX).min(classes);
    let mut data = Vec::new();
    let row_bytes = classes * size;
    for row in 0..rows {
        let bytes = &tensor.bytes()[row * row_bytes..][..row_bytes];
        let scores: Vec<Score> =
            bytes.chunks_exact(size).map(|bytes| score(tensor.data_type, bytes)).collect();
        let mut order: Vec<usize> = (0..classes).collect();
        let best_first = |&a: &usize, &b: &usize| scores[b].compare(&scores[a]).then(a.cmp(&b));
        if k < classes {
            order.select_nth_unstable_by(k, best_first);
            order.truncate(k);
        }
        order.sort_unstable_by(best_first);
        for &index in &order {
            let label = labels.and_then(|labels| labels.get(index)).map(|label| format!(":{label}"));
            let text = format!("{}:{index}{}", scores[index].text(), label.unwrap_or_default());
            push_string(&mut data, text.as_bytes());
        }
    }
    let k = i64::try_from(k).unwrap_or(i64::MAX);
    let shape = match tensor.shape.first() {
        Some(&first) if batched => vec![first, k],
        Some(_) | None => vec![k],
    };
    Ok(Tensor::host(DataType::Bytes, shape, data.into()))
}

/// One class's value. Integers are compared and written exactly.
#[derive(Clone, Copy, Debug)]
enum Score {
    Float(f64),
    Integer(i128),
}

impl Score {
    /// NaN is below everything: it is never the best class.
    fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => a.cmp(b),
            (Self::Float(a), Self::Float(b)) => {
                a.partial_cmp(b).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()))
            }
            (Self::Integer(_), Self::Float(_)) | (Self::Float(_), Self::Integer(_)) => Ordering::Equal,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Float(value) => format!("{value:.6}"),
            Self::Integer(value) => value.to_string(),
        }
    }
}

fn score(data_type: DataType, bytes: &[u8]) -> Score {
    let mut wide = [0u8; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let unsigned = u64::from_le_bytes(wide);
    let shift = 64 - 8 * u32::try_from(bytes.len()).unwrap_or(8);
    #[allow(clippy::cast_possible_wrap)] // the bits are wanted, shifted so that the sign is at the top
    let signed = ((unsigned << shift) as i64) >> shift;
    match data_type {
        DataType::Fp64 => Score::Float(f64::from_bits(unsigned)),
        DataType::Fp32 => Score::Float(f64::from(f32::from_bits(unsigned as u32))),
        DataType::Fp16 => Score::Float(half::f16::from_bits(unsigned as u16).to_f64()),
        DataType::Bf16 => Score::Float(half::bf16::from_bits(unsigned as u16).to_f64()),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => Score::Integer(signed.into()),
        DataType::Bool
        | DataType::Uint8
        | DataType::Uint16
        | DataType::Uint32
        | DataType::Uint64
        | DataType::Bytes => Score::Integer(unsigned.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::strings;

    fn texts(tensor: &Tensor) -> Vec<String> {
        strings(tensor.bytes()).map(|text| String::from_utf8_lossy(text).into_owned()).collect()
    }

    fn floats(values: &[f32], shape: &[i64]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor::host(DataType::Fp32, shape.to_vec(), data.into())
    }

    #[test]
    fn the_highest_of_each_row_with_labels_where_there_are_some() {
        let labels = ["zero".to_owned(), "one".to_owned()];
        let tensor = floats(&[0.25, 0.5, 1.0, f32::NAN, 2.0, -1.0], &[2, 3]);
        let top = classify("scores", &tensor, 2, Some(&labels), true).unwrap();
        assert_eq!(top.shape, [2, 2]);
        assert_eq!(texts(&top), ["1.000000:2", "0.500000:1:one", "2.000000:1:one", "-1.000000:2"]);
        let all = classify("scores", &tensor, 100, None, false).unwrap();
        assert_eq!((all.shape.clone(), texts(&all)[5].as_str()), (vec![6], "NaN:3"));
    }

    #[test]
    fn integers_are_exact() {
        let data: Vec<u8> =
            [i64::MAX, -1, i64::MAX - 1].iter().flat_map(|value| value.to_le_bytes()).collect();
        let top =
            classify("x", &Tensor::host(DataType::Int64, vec![3], data.into()), 3, None, false).unwrap();
        assert_eq!(texts(&top), ["9223372036854775807:0", "9223372036854775806:2", "-1:1"]);
        let top = classify("x", &Tensor::host(DataType::Int8, vec![2], vec![0xff, 1].into()), 1, None, false)
            .unwrap();
        assert_eq!(texts(&top), ["1:1"]);
    }

    #[test]
    fn no_rows_no_classes_and_no_numbers() {
        assert_eq!(classify("x", &floats(&[], &[0, 3]), 2, None, true).unwrap().shape, [0, 0]);
        assert_eq!(classify("x", &floats(&[], &[2, 0]), 2, None, true).unwrap().shape, [2, 0]);
        assert_eq!(texts(&classify("x", &floats(&[7.0], &[]), 2, None, false).unwrap()), ["7.000000:0"]);
        let strings = Tensor::host(DataType::Bytes, vec![0], Vec::new().into());
        assert!(classify("x", &strings, 1, None, false).is_err());
    }
}
