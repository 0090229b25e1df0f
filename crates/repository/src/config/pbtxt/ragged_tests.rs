//! Ragged batches in Triton's format: what is read, and what is refused with its place.

use tempfile::TempDir;

use super::super::load;
use crate::{
    BatchInput, DataType, ModelConfig, Padding,
    config::{error::Fault, ragged::BatchInputKind},
};

/// A model of two inputs, of which the first is ragged, and two outputs, with this text.
fn read(text: &str) -> Result<ModelConfig, Fault> {
    let model = "max_batch_size: 16
        input [ { name: \"INPUT\" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true },
            { name: \"mode\" data_type: TYPE_INT32 dims: [ 1 ] } ]
        output [ { name: \"OUTPUT\" data_type: TYPE_FP32 dims: [ -1 ] }, { name: \"SUM\" data_type: TYPE_FP32 dims: [ 1 ] } ]
        ";
    let dir = TempDir::new().unwrap();
    load(&format!("{model}{text}"), dir.path(), "m").map(|(config, _)| config)
}

#[test]
fn a_configuration_as_in_tritons_documentation_is_read() {
    let config = read(
        "batch_input [ { kind: BATCH_ACCUMULATED_ELEMENT_COUNT target_name: \"INDEX\" data_type: TYPE_FP32
            source_input: \"INPUT\" },
          { kind: BATCH_ITEM_SHAPE target_name: [ \"a\", \"b\" ] data_type: TYPE_INT32 source_input: [ \"mode\" ] } ]
        batch_output [ { target_name: [ \"OUTPUT\" ] kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: [ \"INPUT\" ] } ]",
    )
    .unwrap();
    let made = |name: &str, data_type, kind, source: &str| BatchInput {
        name: name.to_owned(),
        data_type,
        kind,
        source: source.to_owned(),
    };
    let expected = [
        made("INDEX", DataType::Fp32, BatchInputKind::Ends, "INPUT"),
        made("a", DataType::Int32, BatchInputKind::Shapes, "mode"),
        made("b", DataType::Int32, BatchInputKind::Shapes, "mode"),
    ];
    assert_eq!(config.batch_inputs, expected, "one for each name");
    assert_eq!(config.inputs[0].padding, Some(Padding::Ragged));
    assert_eq!(config.inputs[1].padding, None);
    assert_eq!(config.outputs[0].padding, Some(Padding::ScatterLike("INPUT".to_owned())));
    assert!(config.notes.is_empty(), "{:?}", config.notes);
}

#[test]
fn the_kinds_are_in_the_order_of_tritons_numbers() {
    let kinds = ["ELEMENT_COUNT", "ACCUMULATED_ELEMENT_COUNT", "ACCUMULATED_ELEMENT_COUNT_WITH_ZERO"];
    let kinds = kinds.into_iter().chain(["MAX_ELEMENT_COUNT_AS_SHAPE", "ITEM_SHAPE", "ITEM_SHAPE_FLATTEN"]);
    let input = |kind: &str| {
        format!(
            "batch_input {{ kind: BATCH_{kind} target_name: \"{kind}\" data_type: TYPE_INT32 source_input: \"INPUT\" }}\n"
        )
    };
    let config = read(&kinds.map(input).collect::<String>()).unwrap();
    let read: Vec<_> = config.batch_inputs.iter().map(|input| input.kind).collect();
    assert_eq!(read, BatchInputKind::ALL);
}

#[test]
fn what_cannot_be_is_refused_with_its_place() {
    let input = |fields: &str| format!("batch_input {{ {fields} }}");
    let good = "kind: BATCH_ELEMENT_COUNT target_name: \"N\" data_type: TYPE_INT32";
    let output = |fields: &str| format!("batch_output {{ {fields} }}");
    for (text, place, why) in [
        (input(good), "batch_input[0].source_input", "one input is expected, not 0"),
        (
            input(&format!("{good} source_input: [ \"INPUT\", \"mode\" ]")),
            "batch_input[0].source_input",
            "not 2",
        ),
        (input(&format!("{good} source_input: \"x\"")), "batch_input", "there is no input 'x'"),
        (input("kind: 9 target_name: \"N\""), "batch_input[0].kind", "there is no kind of number 9"),
        (input("target_name: \"N\" source_input: \"INPUT\""), "batch_input[0].data_type", "is missing"),
        (
            input("data_type: TYPE_INT32 source_input: \"INPUT\""),
            "batch_input[0].target_name",
            "is missing: write the name",
        ),
        (
            input("target_name: \"N\" data_type: TYPE_INT8 source_input: \"INPUT\""),
            "batch_input",
            "'N' is INT8, and INT32, INT64 or FP32",
        ),
        (
            input("target_name: \"mode\" data_type: TYPE_INT32 source_input: \"INPUT\""),
            "batch_input",
            "`mode` is already the name",
        ),
        (output("source_input: \"INPUT\""), "batch_output[0].target_name", "is missing"),
        (output("target_name: \"OUTPUT\""), "batch_output[0].source_input", "one input is expected, not 0"),
        (
            output("target_name: \"z\" source_input: \"INPUT\""),
            "batch_output[0].target_name",
            "there is no output 'z'",
        ),
        (
            output("target_name: [ \"SUM\", \"SUM\" ] source_input: \"INPUT\""),
            "batch_output[0].target_name",
            "'SUM' is named twice",
        ),
        (output("kind: 3 target_name: \"SUM\""), "batch_output[0].kind", "there is no kind of number 3"),
        (output("target_name: \"OUTPUT\" source_input: \"x\""), "batch_output", "there is no input 'x'"),
        (
            "parameters { key: \"PAD\" value { string_value: \"INPUT=0\" } }".to_owned(),
            "input[0].allow_ragged_batch",
            "input 'INPUT' is filled up (`parameters[PAD]` or `parameters[MASK]`)",
        ),
        (
            "parameters { key: \"ALLOWED_SIZES\" value { string_value: \"8,16\" } }".to_owned(),
            "input[0].allow_ragged_batch",
            "(`parameters[ALLOWED_SIZES]`)",
        ),
        (
            "sequence_batching { direct { } }".to_owned(),
            "input[0].allow_ragged_batch",
            "a ragged batch has no empty rows",
        ),
    ] {
        let fault = read(&text).expect_err(&text);
        let told = format!("{}: {}", fault.place, fault.message);
        assert!(told.starts_with(&format!(": {place}: ")) && told.contains(why), "{text}: {told}");
    }
}
