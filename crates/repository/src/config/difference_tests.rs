//! Each field on its own: what its change asks for.

use std::{fs, path::Path};

use tempfile::TempDir;

use super::*;
use crate::config::{ConfigSource, load};

const INPUTS: &str = "inputs: [{name: x, dtype: FP32, shape: [4]}]";

fn config(dir: &Path, text: &str) -> ModelConfig {
    fs::write(dir.join("config.yaml"), text).unwrap();
    load(dir, "m").unwrap()
}

/// What changes from the one text to the other.
fn difference(old: &str, new: &str) -> Difference {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("labels.txt"), "a\nb\n").unwrap();
    fs::write(dir.path().join("others.txt"), "a\nc\n").unwrap();
    config(dir.path(), old).difference(&config(dir.path(), new))
}

#[test]
fn what_limits_runs_and_chooses_versions_holds_for_loaded_weights() {
    for text in [
        "instances: 3",
        "threads: 2",
        "versions: all",
        "availability: replace",
        "warmup: off",
        "warmup: [{inputs: {x: {dtype: FP32, shape: [4]}}}]",
        "queue: {max_size: 3}",
        "queue: {priority_levels: 2}",
        "weight: 2",
    ] {
        assert_eq!(difference("", text), Difference::InPlace, "{text}");
        assert_eq!(difference(text, ""), Difference::InPlace, "{text}");
        assert_eq!(difference(text, text), Difference::None, "{text}");
    }
    let batched = format!("max_batch_size: 4\n{INPUTS}\n");
    for text in ["off", "{max_delay: 1ms}", "{preferred_sizes: [2]}", "{allowed_sizes: [4]}"] {
        let text = format!("{batched}batching: {text}");
        assert_eq!(difference(&batched, &text), Difference::InPlace, "{text}");
        assert_eq!(difference(&text, &text), Difference::None, "{text}");
    }
    assert_eq!(difference(&batched, &format!("{batched}batching: auto")), Difference::None);
}

#[test]
fn what_decides_how_weights_are_loaded_and_checked_asks_for_a_reload() {
    for text in [
        "model_file: net.pt",
        "optimize: true",
        "inference_mode: false",
        "optimized_execution: false",
        "stateful: true",
        "sequence: {}",
        "op_libraries: [libops.so]",
        INPUTS,
        "outputs: [{name: y, dtype: FP32, shape: [4]}]",
    ] {
        assert_eq!(difference("", text), Difference::Reload, "{text}");
        assert_eq!(difference("threads: 1", text), Difference::Reload, "{text}");
    }
    for changed in [
        "inputs: [{name: y, dtype: FP32, shape: [4]}]",
        "inputs: [{name: x, dtype: FP16, shape: [4]}]",
        "inputs: [{name: x, dtype: FP32, shape: [5]}]",
        "inputs: [{name: x, dtype: FP32, shape: [4], reshape: [2, 2]}]",
        "inputs: [{name: x, dtype: FP32, shape: [4], optional: true}]",
        "inputs: [{name: x, dtype: FP32, shape: [4]}, {name: y, dtype: FP32, shape: [4]}]",
        "{max_batch_size: 2, inputs: [{name: x, dtype: FP32, shape: [4]}]}",
    ] {
        assert_eq!(difference(INPUTS, changed), Difference::Reload, "{changed}");
    }
    let ragged = "max_batch_size: 2\ninputs: [{name: x, dtype: FP32, shape: [-1], ragged: true}]";
    let made = format!("{ragged}\nbatch_inputs: [{{name: a, ends_of: x}}]");
    assert_eq!(difference(ragged, &ragged.replace(", ragged: true", "")), Difference::Reload);
    assert_eq!(difference(ragged, &made), Difference::Reload);
    assert_eq!(difference(&made, &made.replace("ends_of", "offsets_of")), Difference::Reload);
    assert_eq!(difference(&made, &made), Difference::None);
    let padded =
        |pad: &str| format!("max_batch_size: 2\ninputs: [{{name: x, dtype: FP32, shape: [-1]{pad}}}]");
    for pad in ["", ", pad: 1"] {
        assert_eq!(difference(&padded(", pad: 0"), &padded(pad)), Difference::Reload, "{pad}");
    }
}

#[test]
fn labels_are_text_that_the_model_does_not_know() {
    let outputs = |labels: &str| format!("outputs: [{{name: y, dtype: FP32, shape: [2]{labels}}}]");
    let with = outputs(", labels: labels.txt");
    assert_eq!(difference(&with, &outputs(", labels: others.txt")), Difference::InPlace);
    assert_eq!(difference(&with, &outputs("")), Difference::InPlace);
    assert_eq!(difference(&with, &with), Difference::None);
}

#[test]
fn where_the_text_came_from_is_no_difference() {
    let dir = TempDir::new().unwrap();
    let written = config(dir.path(), "# nothing");
    let default = ModelConfig { source: ConfigSource::Default, ..written.clone() };
    assert_eq!(written.difference(&default), Difference::None);

    let json = r#"{"input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}],
                   "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [4]}],
                   "metric_tags": {"a": "1", "b": "2", "c": "3"}}"#;
    let pushed = ModelConfig::from_json(json, dir.path(), "m").unwrap();
    let message = pushed.source.message().unwrap().to_vec();
    let source = ConfigSource::Pbtxt { path: "config.pbtxt".into(), message };
    assert_eq!(pushed.difference(&ModelConfig { source, ..pushed.clone() }), Difference::None);
    let other = ModelConfig::from_json(&json.replace("\"1\"", "\"2\""), dir.path(), "m").unwrap();
    assert_eq!(pushed.difference(&other), Difference::InPlace, "it is shown by the ModelConfig RPC");
}

#[test]
fn another_name_is_another_model() {
    let dir = TempDir::new().unwrap();
    let m = config(dir.path(), "");
    let renamed = ModelConfig { name: "n".to_owned(), ..m.clone() };
    assert_eq!(m.difference(&renamed), Difference::Reload);
}
