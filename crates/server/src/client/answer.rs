//! A response as outputs whose bytes, shape and dtype agree, whatever the server sent.

use anyhow::{anyhow, bail};
use bytes::Bytes;
use sconce_proto::inference::{InferTensorContents, ModelInferResponse};
use sconce_repository::DataType;

use super::{
    array::{Number, count, push_string},
    text::quoted,
};

/// One output of a response.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) name: String,
    pub(super) data_type: DataType,
    pub(super) shape: Vec<i64>,
    pub(super) values: Values,
}

/// The elements of an output: as many as its shape says.
#[derive(Debug)]
pub(super) enum Values {
    /// Little-endian, one after the other.
    Numbers(Bytes),
    Strings(Vec<Bytes>),
}

impl Output {
    pub(super) fn count(&self) -> usize {
        count(&self.shape).unwrap_or(0)
    }

    /// The bytes of one element.
    pub(super) fn element(&self, at: usize) -> &[u8] {
        match &self.values {
            Values::Numbers(data) => {
                let size = self.data_type.size().unwrap_or(1);
                data.get(at * size..(at + 1) * size).unwrap_or(&[])
            }
            Values::Strings(items) => items.get(at).map_or(&[], |item| item),
        }
    }
}

/// The outputs of a response, raw or typed.
///
/// # Errors
/// One sentence: the server's answer contradicts itself.
pub(super) fn outputs(response: ModelInferResponse) -> anyhow::Result<Vec<Output>> {
    let raw = response.raw_output_contents;
    if !raw.is_empty() && raw.len() != response.outputs.len() {
        bail!("the answer names {} outputs, but holds data for {}", response.outputs.len(), raw.len());
    }
    let mut raw = raw.into_iter();
    let mut outputs = Vec::with_capacity(response.outputs.len());
    for output in response.outputs {
        let name = quoted(output.name.as_bytes());
        let data_type = DataType::from_name(&output.datatype).ok_or_else(|| {
            anyhow!("output {name} has the unknown dtype {}", quoted(output.datatype.as_bytes()))
        })?;
        let data = match (raw.next(), output.contents) {
            (Some(data), _) => data,
            (None, Some(contents)) => {
                typed(&contents, data_type).map_err(|why| anyhow!("output {name}: {why}"))?
            }
            (None, None) => Bytes::new(),
        };
        let values = match data_type.size() {
            Some(_) => Some(Values::Numbers(data.clone())),
            None => strings(&data).map(Values::Strings),
        };
        let found = values.as_ref().map(|values| match (values, data_type.size()) {
            (Values::Numbers(data), Some(size)) if data.len() % size == 0 => Some(data.len() / size),
            (Values::Strings(items), _) => Some(items.len()),
            (Values::Numbers(_), _) => None,
        });
        match (values, count(&output.shape)) {
            (Some(values), wanted @ Some(_)) if found == Some(wanted) => {
                outputs.push(Output { name: output.name, data_type, shape: output.shape, values });
            }
            _ => bail!(
                "output {name} is {data_type} {:?} by its description, but its {} bytes are not",
                output.shape,
                data.len()
            ),
        }
    }
    Ok(outputs)
}

/// The elements of a BYTES tensor; `None` where lengths and bytes disagree.
fn strings(data: &Bytes) -> Option<Vec<Bytes>> {
    let mut items = Vec::new();
    let mut at = 0;
    while at < data.len() {
        let length = u32::from_le_bytes(data.get(at..at.checked_add(4)?)?.try_into().ok()?);
        let start = at + 4;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        data.get(start..end)?;
        items.push(data.slice(start..end));
        at = end;
    }
    Some(items)
}

/// Typed contents, as some other servers answer, in the raw form.
fn typed(contents: &InferTensorContents, data_type: DataType) -> Result<Bytes, String> {
    let mut data = Vec::new();
    let mut number = |value: Number| value.write(data_type, &mut data);
    let integer = |value: i128| Number::Integer(value);
    match data_type {
        DataType::Bool => contents.bool_contents.iter().try_for_each(|&v| number(integer(v.into())))?,
        DataType::Int8 | DataType::Int16 | DataType::Int32 => {
            contents.int_contents.iter().try_for_each(|&v| number(integer(v.into())))?;
        }
        DataType::Int64 => contents.int64_contents.iter().try_for_each(|&v| number(integer(v.into())))?,
        DataType::Uint8 | DataType::Uint16 | DataType::Uint32 => {
            contents.uint_contents.iter().try_for_each(|&v| number(integer(v.into())))?;
        }
        DataType::Uint64 => contents.uint64_contents.iter().try_for_each(|&v| number(integer(v.into())))?,
        // The protocol has no typed field for the halves; who answers them typed uses FP32's.
        DataType::Fp16 | DataType::Bf16 | DataType::Fp32 => {
            contents.fp32_contents.iter().try_for_each(|&v| number(Number::Float(v.into())))?;
        }
        DataType::Fp64 => contents.fp64_contents.iter().try_for_each(|&v| number(Number::Float(v)))?,
        DataType::Bytes => {
            contents.bytes_contents.iter().try_for_each(|item| push_string(&mut data, item))?
        }
    }
    Ok(data.into())
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use sconce_proto::inference::model_infer_response::InferOutputTensor;

    use super::*;

    /// A response with one raw output.
    pub(in super::super) fn response(
        name: &str,
        datatype: &str,
        shape: &[i64],
        data: &[u8],
    ) -> ModelInferResponse {
        ModelInferResponse {
            model_name: "m".to_owned(),
            model_version: "1".to_owned(),
            outputs: vec![InferOutputTensor {
                name: name.to_owned(),
                datatype: datatype.to_owned(),
                shape: shape.to_vec(),
                ..Default::default()
            }],
            raw_output_contents: vec![Bytes::copy_from_slice(data)],
            ..Default::default()
        }
    }

    #[test]
    fn contradictions_are_found() {
        for (datatype, shape, data) in [
            ("FP32", &[2][..], &[0; 4][..]),
            ("FP32", &[1], &[0; 5]),
            ("FP32", &[-1], &[]),
            ("FP32", &[i64::MAX, i64::MAX], &[]),
            ("BYTES", &[1], &[5, 0, 0, 0, b'a']),
            ("BYTES", &[1], &[0xff; 4]),
            ("BYTES", &[2], &[0; 4]),
            ("FP33", &[1], &[0; 4]),
        ] {
            assert!(outputs(response("x", datatype, shape, data)).is_err(), "{datatype} {shape:?}");
        }
        let mut two = response("x", "FP32", &[0], &[]);
        two.raw_output_contents.push(Bytes::new());
        assert!(outputs(two).is_err());
    }

    #[test]
    fn typed_contents_are_read_too() {
        let mut typed = response("x", "INT16", &[2], &[]);
        typed.raw_output_contents.clear();
        typed.outputs[0].contents =
            Some(InferTensorContents { int_contents: vec![-1, 2], ..Default::default() });
        assert_eq!(outputs(typed).unwrap()[0].element(0), (-1_i16).to_le_bytes());
    }

    proptest! {
        #[test]
        fn no_answer_breaks_it(
            datatype in prop::sample::select(vec!["FP32", "BYTES", "BOOL", "FP16"]),
            shape in prop::collection::vec(-2_i64..4, 0..4),
            data in prop::collection::vec(0_u8..4, 0..40),
        ) {
            for output in outputs(response("x", datatype, &shape, &data)).into_iter().flatten() {
                prop_assert!(super::super::print::tensor(&output).len() > 1);
                for at in 0..output.count() {
                    let _ = output.element(at);
                }
            }
        }
    }
}
