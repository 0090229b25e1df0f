//! Typed contents are raw contents, and no message panics.

use std::collections::HashMap;

use proptest::prelude::*;
use prost::Message;
use sconce_engine::value::strings;
use sconce_proto::inference::model_infer_request::InferRequestedOutputTensor;

use super::*;

/// The bytes that the one input of a request becomes.
fn bytes_of(
    data_type: DataType,
    raw: Option<Vec<u8>>,
    contents: Option<InferTensorContents>,
) -> Result<Vec<u8>> {
    let request = ModelInferRequest {
        inputs: vec![InferInputTensor {
            name: "x".to_owned(),
            datatype: data_type.name().to_owned(),
            shape: vec![1],
            contents,
            ..Default::default()
        }],
        raw_input_contents: raw.map(Bytes::from).into_iter().collect(),
        ..Default::default()
    };
    let mut request = infer_request(request, None)?;
    let input = request.inputs.pop().expect("the one input");
    assert_eq!((input.name.as_str(), input.tensor.data_type), ("x", data_type));
    Ok(input.tensor.bytes().to_vec())
}

/// Raw bytes as the typed contents that mean the same; `None` where there are none for the dtype.
fn typed_of(data_type: DataType, raw: &[u8]) -> Option<InferTensorContents> {
    let wide = |signed: bool| -> Vec<i64> {
        let elements = raw.chunks_exact(data_type.size().expect("a size"));
        let widen = |element: &[u8]| {
            let fill = if signed && element[element.len() - 1] >= 0x80 { 0xff } else { 0 };
            let mut wide = [fill; 8];
            wide[..element.len()].copy_from_slice(element);
            i64::from_le_bytes(wide)
        };
        elements.map(widen).collect()
    };
    let mut contents = InferTensorContents::default();
    match data_type {
        DataType::Bool => contents.bool_contents = raw.iter().map(|&byte| byte != 0).collect(),
        DataType::Int8 | DataType::Int16 | DataType::Int32 => {
            contents.int_contents = wide(true).into_iter().map(|value| value as i32).collect();
        }
        DataType::Uint8 | DataType::Uint16 | DataType::Uint32 => {
            contents.uint_contents = wide(false).into_iter().map(|value| value as u32).collect();
        }
        DataType::Int64 => contents.int64_contents = wide(true),
        DataType::Uint64 => {
            contents.uint64_contents = wide(false).into_iter().map(|value| value as u64).collect()
        }
        DataType::Fp32 => {
            let elements = raw.chunks_exact(4).map(|four| u32::from_le_bytes(four.try_into().unwrap()));
            contents.fp32_contents = elements.map(f32::from_bits).collect();
        }
        DataType::Fp64 => {
            let elements = raw.chunks_exact(8).map(|eight| u64::from_le_bytes(eight.try_into().unwrap()));
            contents.fp64_contents = elements.map(f64::from_bits).collect();
        }
        DataType::Bytes => contents.bytes_contents = strings(raw).map(Bytes::copy_from_slice).collect(),
        DataType::Fp16 | DataType::Bf16 => return None,
    }
    Some(contents)
}

/// Raw contents of some elements of the dtype.
fn any_raw(data_type: DataType) -> BoxedStrategy<Vec<u8>> {
    match data_type.size() {
        None => prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..9)
            .prop_map(|elements| {
                let mut raw = Vec::new();
                elements.iter().for_each(|element| push_string(&mut raw, element));
                raw
            })
            .boxed(),
        Some(_) if data_type == DataType::Bool => prop::collection::vec(0u8..2, 0..40).boxed(),
        Some(size) => {
            (0usize..20).prop_flat_map(move |count| prop::collection::vec(any::<u8>(), count * size)).boxed()
        }
    }
}

/// What a request with this one parameter becomes.
fn with_parameter(name: &str, choice: Option<ParameterChoice>) -> Result<Request> {
    let parameter = InferParameter { parameter_choice: choice };
    let parameters = HashMap::from([(name.to_owned(), parameter)]);
    infer_request(ModelInferRequest { parameters, ..Default::default() }, None)
}

#[test]
fn priority_and_timeout_are_taken_signed_or_not() {
    let none = infer_request(ModelInferRequest::default(), None).unwrap();
    assert_eq!((none.priority, none.timeout), (0, Duration::ZERO));
    for (signed, unsigned) in [(0, 0), (1, 1), (i64::MAX, i64::MAX.unsigned_abs())] {
        for choice in [ParameterChoice::Int64Param(signed), ParameterChoice::Uint64Param(unsigned)] {
            let request = with_parameter("priority", Some(choice.clone())).unwrap();
            assert_eq!((request.priority, request.timeout), (unsigned, Duration::ZERO));
            let request = with_parameter("timeout", Some(choice)).unwrap();
            assert_eq!((request.priority, request.timeout), (0, Duration::from_micros(unsigned)));
        }
    }
    let largest = || Some(ParameterChoice::Uint64Param(u64::MAX));
    assert_eq!(with_parameter("priority", largest()).unwrap().priority, u64::MAX);
    assert_eq!(with_parameter("timeout", largest()).unwrap().timeout, Duration::from_micros(u64::MAX));
}

#[test]
fn a_priority_or_timeout_that_is_no_natural_number_is_refused_by_name_and_kind() {
    let cases = [
        (Some(ParameterChoice::Int64Param(-1)), "got -1"),
        (Some(ParameterChoice::Int64Param(i64::MIN)), "got -9223372036854775808"),
        (Some(ParameterChoice::StringParam("5".to_owned())), "got a string_param"),
        (Some(ParameterChoice::DoubleParam(1.5)), "got a double_param"),
        (Some(ParameterChoice::BoolParam(true)), "got a bool_param"),
        (None, "got nothing"),
    ];
    for (choice, got) in cases {
        for (name, unit) in [("priority", "1 is the highest"), ("timeout", "microseconds")] {
            let refused = with_parameter(name, choice.clone()).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
            for part in [name, "non-negative integer", unit, got] {
                assert!(refused.message().contains(part), "{part:?} is not in: {}", refused.message());
            }
        }
    }
}

fn any_parameter() -> impl Strategy<Value = InferParameter> {
    let choice = prop_oneof![
        any::<bool>().prop_map(ParameterChoice::BoolParam),
        any::<i64>().prop_map(ParameterChoice::Int64Param),
        any::<u64>().prop_map(ParameterChoice::Uint64Param),
        any::<f64>().prop_map(ParameterChoice::DoubleParam),
        any::<String>().prop_map(ParameterChoice::StringParam),
    ];
    prop::option::of(choice).prop_map(|parameter_choice| InferParameter { parameter_choice })
}

fn any_parameters() -> impl Strategy<Value = HashMap<String, InferParameter>> {
    const KNOWN: &[&str] =
        &["priority", "timeout", "triton_x", "triton_enable_empty_final_response", "classification"];
    let key = prop_oneof![prop::sample::select(KNOWN).prop_map(str::to_owned), any::<String>()];
    prop::collection::hash_map(key, any_parameter(), 0..3)
}

fn any_contents() -> impl Strategy<Value = InferTensorContents> {
    let bytes = prop::collection::vec(any::<u8>(), 0..4).prop_map(Bytes::from);
    (
        prop::collection::vec(any::<bool>(), 0..3),
        prop::collection::vec(any::<i32>(), 0..3),
        prop::collection::vec(any::<u32>(), 0..3),
        prop::collection::vec(any::<f32>(), 0..3),
        prop::collection::vec(bytes, 0..3),
    )
        .prop_map(|(bool_contents, int_contents, uint_contents, fp32_contents, bytes_contents)| {
            InferTensorContents {
                bool_contents,
                int_contents,
                uint_contents,
                fp32_contents,
                bytes_contents,
                ..Default::default()
            }
        })
}

fn any_input() -> impl Strategy<Value = InferInputTensor> {
    let datatype = prop_oneof![
        4 => prop::sample::select(&DataType::ALL[..]).prop_map(|data_type| data_type.name().to_owned()),
        1 => any::<String>(),
    ];
    let shape = prop::collection::vec(any::<i64>(), 0..4);
    (any::<String>(), datatype, shape, any_parameters(), prop::option::of(any_contents())).prop_map(
        |(name, datatype, shape, parameters, contents)| InferInputTensor {
            name,
            datatype,
            shape,
            parameters,
            contents,
        },
    )
}

fn any_request() -> impl Strategy<Value = ModelInferRequest> {
    let output = (any::<String>(), any_parameters())
        .prop_map(|(name, parameters)| InferRequestedOutputTensor { name, parameters });
    let raw = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from), 0..4);
    (
        any::<String>(),
        any_parameters(),
        prop::collection::vec(any_input(), 0..4),
        prop::collection::vec(output, 0..4),
        raw,
    )
        .prop_map(|(model_name, parameters, inputs, outputs, raw_input_contents)| ModelInferRequest {
            model_name,
            parameters,
            inputs,
            outputs,
            raw_input_contents,
            ..Default::default()
        })
}

/// Converted, or refused in one line.
fn converts_or_refuses(request: ModelInferRequest) -> std::result::Result<(), TestCaseError> {
    if let Err(status) = infer_request(request, None) {
        prop_assert!(!status.message().is_empty());
        prop_assert!(!status.message().chars().any(char::is_control), "{}", status.message());
        prop_assert!(status.message().len() < 5000);
    }
    Ok(())
}

proptest! {
    #[test]
    fn typed_contents_are_what_raw_contents_would_be(
        (data_type, raw) in prop::sample::select(&DataType::ALL[..])
            .prop_flat_map(|data_type| (Just(data_type), any_raw(data_type))),
    ) {
        prop_assert_eq!(&bytes_of(data_type, Some(raw.clone()), None).unwrap(), &raw);
        if let Some(contents) = typed_of(data_type, &raw) {
            prop_assert_eq!(&bytes_of(data_type, None, Some(contents)).unwrap(), &raw);
        }
    }

    #[test]
    fn elements_that_do_not_fit_are_refused_and_others_are_not(value in any::<i32>(), other in any::<u32>()) {
        let signed = |data_type| {
            let contents = InferTensorContents { int_contents: vec![value], ..Default::default() };
            bytes_of(data_type, None, Some(contents)).is_ok()
        };
        prop_assert_eq!(signed(DataType::Int8), i8::try_from(value).is_ok());
        prop_assert_eq!(signed(DataType::Int16), i16::try_from(value).is_ok());
        prop_assert!(signed(DataType::Int32));
        let unsigned = |data_type| {
            let contents = InferTensorContents { uint_contents: vec![other], ..Default::default() };
            bytes_of(data_type, None, Some(contents)).is_ok()
        };
        prop_assert_eq!(unsigned(DataType::Uint8), u8::try_from(other).is_ok());
        prop_assert_eq!(unsigned(DataType::Uint16), u16::try_from(other).is_ok());
        prop_assert!(unsigned(DataType::Uint32));
    }

    #[test]
    fn no_message_panics(request in any_request()) {
        converts_or_refuses(request)?;
    }

    #[test]
    fn a_message_that_was_changed_on_its_way_panics_no_more(
        request in any_request(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        let mut data = request.encode_to_vec();
        for (at, byte) in changes {
            if !data.is_empty() {
                let at = at.index(data.len());
                data[at] = byte;
            }
        }
        if let Ok(request) = ModelInferRequest::decode(&*data) {
            converts_or_refuses(request)?;
        }
    }

    #[test]
    fn random_bytes_do_not_panic(data in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(request) = ModelInferRequest::decode(&*data) {
            converts_or_refuses(request)?;
        }
    }

    #[test]
    fn a_version_is_empty_a_number_or_refused(text in ".{0,24}") {
        match version(&text) {
            Ok(None) => prop_assert!(text.is_empty()),
            Ok(Some(version)) => prop_assert_eq!(version.to_string(), text),
            Err(status) => prop_assert!(!status.message().chars().any(char::is_control)),
        }
    }
}
