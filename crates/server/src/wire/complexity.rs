//! How much a message would become when it is decoded.
//!
//! Two bytes on the wire can be an empty input of a hundred in memory, and a byte of a shape eight. So
//! the parts of a request that may have many are counted before any of them is made.

use bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};
use tonic::Status;

/// Inputs, outputs, parameters and typed strings of one request, all together. Raw contents hold any
/// number of elements in one part.
const MAX_PARTS: usize = 1 << 20;
/// Of these, inputs and outputs, which are looked up by name.
const MAX_TENSORS: usize = 1 << 16;
/// Bytes of one shape: more than libtorch's 64 dimensions of 10 bytes.
const MAX_SHAPE: usize = 1024;
/// Parameters of one request to load a model, each of which may carry a file; or settings and their values.
const MAX_CONTROL_PARTS: usize = 4096;

/// Refuses a ModelInferRequest of too many parts. Malformed bytes pass: decoding says what is wrong.
pub(crate) fn check_infer_request(message: &[u8]) -> Result<(), Box<Status>> {
    let (mut parts, mut tensors, mut shape) = (0usize, 0usize, 0usize);
    // Whatever is malformed ends the walk.
    let _ = each_part(message, |field, part| {
        parts += 1;
        match field {
            5 | 6 => {
                tensors += 1;
                each_part(part, |field, part| {
                    parts += 1;
                    match field {
                        // An input's shape, an input's typed contents.
                        3 => shape = shape.max(part.len()),
                        5 => each_part(part, |field, _| {
                            parts += usize::from(field == 8);
                            Some(())
                        })?,
                        _ => {}
                    }
                    Some(())
                })
            }
            _ => Some(()),
        }
    });
    let too_many = |what: &str, count: usize, limit: usize| {
        Err(Box::new(Status::invalid_argument(format!(
            "the request has {count} {what}, and at most {limit} are expected; put more elements into fewer tensors"
        ))))
    };
    if tensors > MAX_TENSORS {
        return too_many("inputs and outputs", tensors, MAX_TENSORS);
    }
    if parts > MAX_PARTS {
        return too_many("parts (tensors, parameters, strings)", parts, MAX_PARTS);
    }
    if shape > MAX_SHAPE {
        return Err(Box::new(Status::invalid_argument(format!(
            "the shape of an input takes {shape} bytes, and at most {MAX_SHAPE} are expected: 64 dimensions"
        ))));
    }
    Ok(())
}

/// Refuses a request to load or unload a model that has too many parameters.
pub(crate) fn check_control_request(message: &[u8]) -> Result<(), Box<Status>> {
    let mut parts = 0usize;
    // Whatever is malformed ends the walk.
    let _ = each_part(message, |_, _| {
        parts += 1;
        Some(())
    });
    if parts <= MAX_CONTROL_PARTS {
        return Ok(());
    }
    Err(Box::new(Status::invalid_argument(format!(
        "the request has {parts} parameters, and at most {MAX_CONTROL_PARTS} are expected; \
         put a model of more files into the repository"
    ))))
}

/// Refuses a request to change settings that has too many of them.
pub(crate) fn check_settings_request(message: &[u8]) -> Result<(), Box<Status>> {
    let mut parts = 0usize;
    // Whatever is malformed ends the walk.
    let _ = each_part(message, |_, setting| {
        parts += 1;
        each_part(setting, |field, value| {
            parts += 1;
            if field != 2 {
                return Some(());
            }
            each_part(value, |_, _| {
                parts += 1;
                Some(())
            })
        });
        Some(())
    });
    if parts <= MAX_CONTROL_PARTS {
        return Ok(());
    }
    Err(Box::new(Status::invalid_argument(format!(
        "the request has {parts} settings and values, and at most {MAX_CONTROL_PARTS} are expected"
    ))))
}

/// Calls `visit` with the number and the bytes of each field; a field that is no bytes has none.
fn each_part(mut message: &[u8], mut visit: impl FnMut(u32, &[u8]) -> Option<()>) -> Option<()> {
    while message.has_remaining() {
        let (field, kind) = decode_key(&mut message).ok()?;
        let length = match kind {
            WireType::Varint => {
                decode_varint(&mut message).ok()?;
                0
            }
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => usize::try_from(decode_varint(&mut message).ok()?).ok()?,
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        let (part, rest) = message.split_at_checked(length)?;
        visit(field, part)?;
        message = rest;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use sconce_proto::inference::{
        InferTensorContents, ModelInferRequest, TraceSettingRequest, model_infer_request::InferInputTensor,
        trace_setting_request::SettingValue,
    };

    use super::*;

    fn refused(request: &ModelInferRequest) -> bool {
        check_infer_request(&request.encode_to_vec()).is_err()
    }

    #[test]
    fn what_would_grow_in_memory_is_refused_and_large_tensors_are_not() {
        let input = |shape: Vec<i64>| InferInputTensor { shape, ..Default::default() };
        let with = |inputs| ModelInferRequest { inputs, ..Default::default() };
        assert!(!refused(&with(vec![input(vec![1; 64]); 1000])));
        assert!(refused(&with(vec![InferInputTensor::default(); MAX_TENSORS + 1])));
        assert!(refused(&with(vec![input(vec![1; MAX_SHAPE + 1])])));
        let mut large = with(vec![input(vec![1 << 20])]);
        large.raw_input_contents = vec![vec![0u8; 4 << 20].into()];
        assert!(!refused(&large));
        let strings = |count| InferTensorContents {
            bytes_contents: vec![bytes::Bytes::new(); count],
            ..Default::default()
        };
        let typed = |count| InferInputTensor { contents: Some(strings(count)), ..Default::default() };
        assert!(!refused(&with(vec![typed(1000)])));
        assert!(refused(&with(vec![typed(MAX_PARTS)])));
    }

    #[test]
    fn settings_and_their_values_have_a_bound() {
        let of = |settings, values| {
            let value = SettingValue { value: vec![String::new(); values] };
            let settings = (0..settings).map(|name: usize| (name.to_string(), value.clone())).collect();
            TraceSettingRequest { settings, model_name: String::new() }.encode_to_vec()
        };
        assert!(check_settings_request(&of(10, 10)).is_ok());
        assert!(check_settings_request(&of(1, MAX_CONTROL_PARTS)).is_err());
        assert!(check_settings_request(&of(MAX_CONTROL_PARTS, 0)).is_err());
    }

    #[test]
    fn malformed_bytes_are_left_to_decoding() {
        for bytes in [&[0xff; 20][..], &[0x2a, 0x7f], &[0x2b], &[0x08]] {
            assert!(check_infer_request(bytes).is_ok());
            assert!(check_settings_request(bytes).is_ok());
        }
    }
}
