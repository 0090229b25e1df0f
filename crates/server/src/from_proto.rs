//! Protobuf to the engine's words. Tensor contents stay slices of the received message.

use std::time::{Duration, Instant};

use bytes::Bytes;
use sconce_engine::{
    DataType, Version,
    model::{Input, Request, Wanted},
    sequence::{InSequence, SequenceId},
    text::quote,
    value::{Tensor, push_string},
};
use sconce_proto::inference::{
    InferParameter, InferTensorContents, ModelInferRequest, infer_parameter::ParameterChoice,
    model_infer_request::InferInputTensor,
};
use tonic::Status;

type Result<T> = std::result::Result<T, Box<Status>>;

fn invalid(message: String) -> Box<Status> {
    Box::new(Status::invalid_argument(message))
}

/// A version as a request writes it: empty lets the server choose.
pub(crate) fn version(text: &str) -> Result<Option<Version>> {
    if text.is_empty() {
        return Ok(None);
    }
    Version::from_dir_name(text).map(Some).ok_or_else(|| {
        invalid(format!(
            "failed to get model version from specified version string '{}': an integral value > 0 and below 2^64 is expected, \
             or nothing for the newest",
            quote(text)
        ))
    })
}

/// What is asked of a model. Names of model and version have been taken out before.
pub(crate) fn infer_request(request: ModelInferRequest, deadline: Option<Instant>) -> Result<Request> {
    let Parameters { priority, timeout } = parameters(&request)?;
    for input in &request.inputs {
        // Before the counts: an input in shared memory has no contents, which would read as one too few.
        refuse_shared_memory(&input.name, input.parameters.contains_key("shared_memory_region"))?;
    }
    let raw = request.raw_input_contents;
    if !raw.is_empty() && raw.len() != request.inputs.len() {
        return Err(invalid(format!(
            "expected {} raw_input_contents, one for each input of model '{}' in their order, got {}",
            request.inputs.len(),
            quote(&request.model_name),
            raw.len()
        )));
    }
    let mut raw = raw.into_iter();
    let mut inputs = Vec::with_capacity(request.inputs.len());
    for input in request.inputs {
        inputs.push(self::input(&request.model_name, input, raw.next())?);
    }
    let outputs = request
        .outputs
        .into_iter()
        .map(|output| {
            let classes = classes(&output.name, output.parameters.get("classification"))?;
            refuse_shared_memory(&output.name, output.parameters.contains_key("shared_memory_region"))?;
            Ok(Wanted { name: output.name, classes })
        })
        .collect::<Result<_>>()?;
    Ok(Request { inputs, outputs, deadline, priority, timeout, ..Request::default() })
}

/// The parameters of a request that mean something to the scheduler.
#[derive(Debug, Default)]
struct Parameters {
    priority: u64,
    timeout: Duration,
}

/// The request parameters that mean something, checked; others are a client's own and allowed.
fn parameters(request: &ModelInferRequest) -> Result<Parameters> {
    let mut parameters = Parameters::default();
    for (name, value) in &request.parameters {
        match (name.as_str(), &value.parameter_choice) {
            ("priority", choice) => parameters.priority = natural(name, "1 is the highest", choice)?,
            ("timeout", choice) => {
                parameters.timeout = Duration::from_micros(natural(name, "microseconds", choice)?);
            }
            ("triton_enable_empty_final_response", Some(ParameterChoice::BoolParam(_))) => {}
            ("triton_enable_empty_final_response", _) => {
                return Err(invalid(format!("parameter '{name}' must be a boolean (bool_param)")));
            }
            (other, _) if other.starts_with("triton_") => {
                return Err(invalid(format!(
                    "parameter keys starting with 'triton_' are reserved, '{}' is none that is known",
                    quote(other)
                )));
            }
            _ => {}
        }
    }
    Ok(parameters)
}

/// Clients send it signed or not: Triton's own send `priority` without a sign and `timeout` with one.
fn natural(name: &str, unit: &str, choice: &Option<ParameterChoice>) -> Result<u64> {
    let (sent, value) = match choice {
        Some(ParameterChoice::Uint64Param(value)) => return Ok(*value),
        Some(ParameterChoice::Int64Param(value)) => (value.to_string(), u64::try_from(*value).ok()),
        Some(ParameterChoice::BoolParam(_)) => ("a bool_param".to_owned(), None),
        Some(ParameterChoice::DoubleParam(_)) => ("a double_param".to_owned(), None),
        Some(ParameterChoice::StringParam(_)) => ("a string_param".to_owned(), None),
        None => ("nothing".to_owned(), None),
    };
    value.ok_or_else(|| {
        invalid(format!(
            "parameter '{name}' must be a non-negative integer (int64_param or uint64_param; {unit}), got {sent}"
        ))
    })
}

/// As in Triton, in bytes.
const LONGEST_ID: usize = 128;

/// Where in a sequence the request says that it is. As in Triton, an id of 0 or no text is none.
pub(crate) fn sequence(request: &ModelInferRequest) -> Result<Option<InSequence>> {
    let parameter = |name: &str| request.parameters.get(name).map(|value| value.parameter_choice.as_ref());
    let flag = |name: &str| match parameter(name) {
        None => Ok(false),
        Some(Some(ParameterChoice::BoolParam(set))) => Ok(*set),
        Some(_) => Err(invalid(format!("parameter '{name}' must be a boolean (bool_param)"))),
    };
    let (start, end) = (flag("sequence_start")?, flag("sequence_end")?);
    let id = match parameter("sequence_id") {
        None => None,
        Some(Some(ParameterChoice::Int64Param(id))) => Some(SequenceId::Number(id.cast_unsigned())),
        Some(Some(ParameterChoice::Uint64Param(id))) => Some(SequenceId::Number(*id)),
        Some(Some(ParameterChoice::StringParam(id))) if id.len() <= LONGEST_ID => {
            Some(SequenceId::Text(id.as_str().into()))
        }
        Some(Some(ParameterChoice::StringParam(id))) => {
            return Err(invalid(format!(
                "parameter 'sequence_id' has {} bytes; a number or a text of up to {LONGEST_ID} bytes is expected",
                id.len()
            )));
        }
        Some(_) => {
            return Err(invalid(
                "parameter 'sequence_id' must be an integer (int64_param or uint64_param) or a text (string_param)"
                    .to_owned(),
            ));
        }
    };
    let id = id.filter(|id| match id {
        SequenceId::Number(number) => *number != 0,
        SequenceId::Text(text) => !text.is_empty(),
    });
    Ok(id.map(|id| InSequence { id, start, end }))
}

/// How many answers the request wants at most, of a model that makes many.
pub(crate) fn max_steps(request: &ModelInferRequest) -> Result<Option<u32>> {
    let Some(value) = request.parameters.get("max_steps") else { return Ok(None) };
    let steps = natural("max_steps", "how many answers are wanted at most", &value.parameter_choice)?;
    if steps == 0 {
        return Err(invalid("parameter 'max_steps' must be at least 1, got 0".to_owned()));
    }
    Ok(Some(u32::try_from(steps).unwrap_or(u32::MAX)))
}

fn refuse_shared_memory(name: &str, asked: bool) -> Result<()> {
    if !asked {
        return Ok(());
    }
    Err(Box::new(Status::unimplemented(format!(
        "tensor '{}' is in shared memory, which this server does not serve; send it in the message",
        quote(name)
    ))))
}

fn classes(name: &str, parameter: Option<&InferParameter>) -> Result<u32> {
    let Some(parameter) = parameter else { return Ok(0) };
    let count = match parameter.parameter_choice {
        Some(ParameterChoice::Int64Param(count)) => u32::try_from(count).ok(),
        Some(ParameterChoice::Uint64Param(count)) => u32::try_from(count).ok(),
        _ => None,
    };
    count.filter(|&count| count > 0).ok_or_else(|| {
        invalid(format!(
            "parameter 'classification' of output '{}' must be a positive integer up to {}",
            quote(name),
            u32::MAX
        ))
    })
}

fn input(model: &str, input: InferInputTensor, raw: Option<Bytes>) -> Result<Input> {
    let Some(data_type) = DataType::from_name(&input.datatype) else {
        return Err(invalid(format!(
            "inference input '{}' data-type is '{}' for model '{}', which is none of {}",
            quote(&input.name),
            quote(&input.datatype),
            quote(model),
            DataType::ALL.map(DataType::name).join(", ")
        )));
    };
    let data = match (raw, input.contents) {
        (Some(_), Some(contents)) if contents != InferTensorContents::default() => {
            return Err(invalid(format!(
                "contents field must not be specified when using raw_input_contents for '{}' for model '{}'",
                quote(&input.name),
                quote(model)
            )));
        }
        (Some(raw), _) => raw,
        (None, contents) => typed(&input.name, data_type, contents.unwrap_or_default())?,
    };
    Ok(Input { name: input.name, tensor: Tensor::host(data_type, input.shape, data) })
}

/// Typed contents as the bytes that raw contents would be.
fn typed(name: &str, data_type: DataType, contents: InferTensorContents) -> Result<Bytes> {
    let InferTensorContents {
        bool_contents,
        int_contents,
        int64_contents,
        uint_contents,
        uint64_contents,
        fp32_contents,
        fp64_contents,
        bytes_contents,
    } = contents;
    let filled = [
        ("bool_contents", bool_contents.len()),
        ("int_contents", int_contents.len()),
        ("int64_contents", int64_contents.len()),
        ("uint_contents", uint_contents.len()),
        ("uint64_contents", uint64_contents.len()),
        ("fp32_contents", fp32_contents.len()),
        ("fp64_contents", fp64_contents.len()),
        ("bytes_contents", bytes_contents.len()),
    ];
    let field = match data_type {
        DataType::Bool => "bool_contents",
        DataType::Int8 | DataType::Int16 | DataType::Int32 => "int_contents",
        DataType::Int64 => "int64_contents",
        DataType::Uint8 | DataType::Uint16 | DataType::Uint32 => "uint_contents",
        DataType::Uint64 => "uint64_contents",
        DataType::Fp32 => "fp32_contents",
        DataType::Fp64 => "fp64_contents",
        DataType::Bytes => "bytes_contents",
        DataType::Fp16 | DataType::Bf16 => "raw_input_contents only",
    };
    if let Some((wrong, _)) = filled.iter().find(|(name, count)| *count > 0 && *name != field) {
        return Err(invalid(format!(
            "input '{}' is {data_type}, whose contents go into {field}, not into {wrong}",
            quote(name)
        )));
    }
    let size = data_type.size().unwrap_or(0);
    Ok(match data_type {
        DataType::Bool => bool_contents.into_iter().map(u8::from).collect::<Vec<u8>>().into(),
        DataType::Int8 | DataType::Int16 | DataType::Int32 => {
            narrow(name, data_type, int_contents.into_iter().map(i64::from), size)?
        }
        DataType::Uint8 | DataType::Uint16 | DataType::Uint32 => {
            narrow(name, data_type, uint_contents.into_iter().map(i64::from), size)?
        }
        DataType::Int64 => flat(int64_contents.into_iter().map(i64::to_le_bytes)),
        DataType::Uint64 => flat(uint64_contents.into_iter().map(u64::to_le_bytes)),
        DataType::Fp32 => flat(fp32_contents.into_iter().map(f32::to_le_bytes)),
        DataType::Fp64 => flat(fp64_contents.into_iter().map(f64::to_le_bytes)),
        DataType::Bytes => {
            let mut data = Vec::with_capacity(bytes_contents.iter().map(|element| 4 + element.len()).sum());
            for element in &bytes_contents {
                push_string(&mut data, element);
            }
            data.into()
        }
        DataType::Fp16 | DataType::Bf16 => Bytes::new(),
    })
}

fn flat<const N: usize>(elements: impl Iterator<Item = [u8; N]>) -> Bytes {
    elements.flatten().collect::<Vec<u8>>().into()
}

/// Elements that travel wider than they are, each checked to fit.
fn narrow(
    name: &str,
    data_type: DataType,
    elements: impl Iterator<Item = i64>,
    size: usize,
) -> Result<Bytes> {
    let bits = 8 * u32::try_from(size).unwrap_or(8);
    let signed = matches!(data_type, DataType::Int8 | DataType::Int16 | DataType::Int32);
    let (low, high) =
        if signed { (-(1i64 << (bits - 1)), (1i64 << (bits - 1)) - 1) } else { (0, (1i64 << bits) - 1) };
    let mut data = Vec::new();
    for (index, element) in elements.enumerate() {
        if element < low || element > high {
            return Err(invalid(format!(
                "element {index} of input '{}' is {element}, which does not fit {data_type} ({low} to {high})",
                quote(name)
            )));
        }
        data.extend_from_slice(&element.to_le_bytes()[..size]);
    }
    Ok(data.into())
}

#[cfg(test)]
#[path = "from_proto_tests.rs"]
mod tests;
