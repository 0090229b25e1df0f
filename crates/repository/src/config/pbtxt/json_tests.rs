//! JSON that came with a request.

use tempfile::TempDir;

use crate::{ConfigSource, DataType, ModelConfig, Warmup};

const IO: &str = r#""input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}],
"output": [{"name": "y", "dataType": "TYPE_FP32", "dims": ["3"]}]"#;

fn load(json: &str) -> Result<ModelConfig, String> {
    let dir = TempDir::new().unwrap();
    ModelConfig::from_json(json, dir.path(), "m").map_err(|error| {
        let text = error.to_string();
        assert!(!text.contains('\n'), "{text}");
        let text = text.strip_prefix("the parameter `config`").expect("it says where").to_owned();
        text.replace(&format!("{}/", dir.path().display()), "")
    })
}

/// With one input and one output before it.
fn with(text: &str) -> Result<ModelConfig, String> {
    load(&format!("{{{IO}, {text}}}"))
}

fn error(text: &str) -> String {
    with(text).expect_err("must be refused")
}

#[test]
fn names_are_tritons_or_in_camel_case_and_enums_names_or_numbers() {
    let snake = with(
        r#""name": "m", "max_batch_size": 4, "default_model_filename": "net.pt",
           "instance_group": [{"kind": "KIND_CPU", "count": 2}],
           "version_policy": {"specific": {"versions": ["3", 1]}},
           "parameters": {"AVAILABILITY": {"string_value": "replace"}},
           "model_warmup": [{"name": "w", "batch_size": 1, "inputs":
             {"x": {"data_type": "TYPE_FP32", "dims": [3], "zero_data": true}}}]"#,
    );
    let camel = with(
        r#""name": "m", "maxBatchSize": "4", "defaultModelFilename": "net.pt",
           "instanceGroup": [{"kind": 2, "count": 2.0}],
           "versionPolicy": {"specific": {"versions": [3, 1]}},
           "parameters": {"AVAILABILITY": {"stringValue": "replace"}},
           "modelWarmup": [{"name": "w", "batchSize": 1, "inputs":
             {"x": {"dataType": 11, "dims": [3], "zeroData": true}}}]"#,
    );
    assert_eq!(snake, camel);
    let config = snake.unwrap();
    assert_eq!((config.max_batch_size, config.model_file.as_str()), (4, "net.pt"));
    assert_eq!(config.outputs[0].data_type, DataType::Fp32);
    assert!(matches!(config.warmup, Warmup::Samples(samples) if samples.len() == 1));
    assert!(matches!(config.source, ConfigSource::Override { .. }));
}

#[test]
fn an_unknown_field_says_where_and_what_was_meant() {
    assert_eq!(
        error(r#""max_batch_sise": 4"#),
        ":2:83: unknown field `max_batch_sise`: write `max_batch_size` (ModelConfig of Triton)"
    );
    let text = load(r#"{"input": [{"name": "x", "shape": [3]}]}"#).unwrap_err();
    assert!(
        text.ends_with(": input[0]: unknown field `shape`: write `dims` (ModelInput of Triton)"),
        "{text}"
    );
    let text = error(r#""modelWarmup": [{"inputs": {"x": {"file": "a"}}}]"#);
    assert!(
        text.contains(": modelWarmup[0].inputs.x: unknown field `file`: write `input_data_file`"),
        "{text}"
    );
    let text = error(r#""parameters": {"A": {"value": "1"}}"#);
    assert!(text.contains(": parameters.A: unknown field `value`: expected `string_value`"), "{text}");
}

#[test]
fn an_unknown_value_says_what_to_write() {
    let text = load(r#"{"input": [{"name": "x", "data_type": "FP32", "dims": [3]}]}"#).unwrap_err();
    assert!(text.ends_with("input[0].data_type: unknown value `FP32`: write TYPE_FP32"), "{text}");
    let text = error(r#""instance_group": [{"kind": "KIND_GPUS"}]"#);
    assert!(text.ends_with("instance_group[0].kind: unknown value `KIND_GPUS`: write KIND_GPU"), "{text}");
    let text = error(r#""instance_group": [{"kind": 9}]"#);
    assert!(text.contains("instance_group[0].kind: 9 is not served"), "{text}");
}

#[test]
fn wrong_json_says_where() {
    for (json, part) in [
        ("", ":1:1: EOF while parsing a value"),
        ("3", "invalid type: integer `3`, expected an object such as `{}`"),
        ("null", "invalid type: null, expected an object"),
        ("[]", "invalid type: list, expected an object"),
        ("{} x", ":1:4: trailing characters"),
        (r#"{"max_batch_size": "many"}"#, "max_batch_size: invalid digit found in string"),
        (r#"{"max_batch_size": 1.5}"#, "max_batch_size: expected integer value"),
        (r#"{"max_batch_size": 99999999999}"#, "max_batch_size: out of range"),
        (r#"{"input": 3}"#, "input: invalid type: integer `3`, expected a list such as"),
        (
            r#"{"dynamic_batching": {}, "sequence_batching": {}}"#,
            "one choice can be made for `scheduling_choice`",
        ),
    ] {
        let text = load(json).expect_err(json);
        assert!(text.contains(part), "{json}: {text}");
    }
    let deep = format!("{{\"input\": {}", "[".repeat(100_000));
    assert!(load(&deep).is_err());
    assert_eq!(load(&" ".repeat((1 << 20) + 1)).unwrap_err(), ": it is larger than 1048576 bytes");
}

#[test]
fn it_is_checked_as_a_file_is() {
    assert!(load("{}").unwrap_err().starts_with(": input: Triton's format must list every input"));
    assert!(error(r#""name": "other""#).starts_with(": name: `other` is not the name of the directory"));
    assert!(error(r#""ensemble_scheduling": {}"#).starts_with(": ensemble_scheduling: ensembles are not"));
    assert_eq!(with(r#""response_cache": {"enable": true}"#).unwrap().notes.len(), 1);
}

#[test]
fn a_request_names_no_libraries_and_no_files_elsewhere() {
    let text = error(r#""model_operations": {"op_library_filename": ["libops.so"]}"#);
    assert!(text.starts_with(": model_operations.op_library_filename: libraries are not taken"), "{text}");
    assert!(with(r#""model_operations": {}"#).is_ok());
    let labels = IO.replace("\"name\": \"y\"", "\"name\": \"y\", \"label_filename\": \"../m/x\"");
    assert!(load(&format!("{{{labels}}}")).unwrap_err().contains("without `..`"));
    let file = |file: &str| {
        error(&format!(
            r#""model_warmup": [{{"batch_size": 1, "inputs": {{"x":
               {{"data_type": "TYPE_FP32", "dims": [3], "input_data_file": "{file}"}}}}}}]"#
        ))
    };
    for outside in ["/etc/passwd", "../1/model.pt", "a/../../x", ""] {
        assert!(file(outside).contains("input_data_file: `") && file(outside).contains("without `..`"));
    }
    assert!(file("x.bin").contains("cannot read the data in warmup/x.bin: there is no such file"));
}
