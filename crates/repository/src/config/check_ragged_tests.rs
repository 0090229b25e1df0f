//! Ragged batches in `config.yaml`: what is taken, and what is refused and why.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::config::load;

/// A model of three inputs and an output, each with these fields, and this text behind them.
fn yaml([ids, mode, name, logits]: [&str; 4], rest: &str) -> Result<ModelConfig, String> {
    let text = format!(
        "max_batch_size: 4\ninputs:\n- {{name: ids, dtype: INT64, shape: [-1, 2]{ids}}}\n\
         - {{name: mode, dtype: FP32, shape: [-1]{mode}}}\n- {{name: name, dtype: BYTES, shape: [1]{name}}}\n\
         outputs:\n- {{name: logits, dtype: FP32, shape: [-1, 10]{logits}}}\n{rest}\n"
    );
    read(&text)
}

fn read(text: &str) -> Result<ModelConfig, String> {
    let root = TempDir::new().unwrap();
    fs::write(root.path().join("config.yaml"), text).unwrap();
    load(root.path(), "m").map_err(|error| {
        let text = error.to_string();
        assert!(!text.contains('\n'), "{text}");
        text.replace(&format!("{}/config.yaml", root.path().display()), "")
    })
}

const RAGGED: [&str; 4] = [", ragged: true", "", "", ""];

#[test]
fn what_is_ragged_made_and_scattered_is_said_in_few_words() {
    let made = "batch_inputs:\n- {name: ends, ends_of: ids}\n- {name: shapes, dtype: INT64, shapes_of: mode}";
    let config = yaml([", ragged: true", "", "", ", scatter_like: ids"], made).unwrap();
    assert_eq!(config.inputs[0].padding, Some(Padding::Ragged));
    assert_eq!(config.outputs[0].padding, Some(Padding::ScatterLike("ids".to_owned())));
    let made = |name: &str, data_type, kind, source: &str| {
        let (name, source) = (name.to_owned(), source.to_owned());
        BatchInput { name, data_type, kind, source }
    };
    let expected = [
        made("ends", DataType::Int32, BatchInputKind::Ends, "ids"),
        made("shapes", DataType::Int64, BatchInputKind::Shapes, "mode"),
    ];
    assert_eq!(config.batch_inputs, expected);
    assert_eq!(config.inputs.len(), 3, "what the server makes is not what clients send");
}

#[test]
fn what_cannot_be_ragged_is_refused() {
    for (fields, part) in [
        (["", "", ", ragged: true", ""], "inputs[2].ragged: input 'name' is BYTES"),
        ([", ragged: true, pad: 0", "", "", ""], "input 'ids' is filled up (`pad` or `mask_of`)"),
        ([", pad: 0", ", ragged: true, mask_of: ids", "", ""], "input 'mode' is filled up"),
        (["", "", "", ", scatter_like: x"], "there is no input 'x': name one of `inputs`"),
        ([", optional: true", "", "", ", scatter_like: ids"], "input 'ids' may be left out"),
        ([", pad: 0", "", "", ", scatter_like: ids, unpad: ids"], "'logits' is cut back already (`unpad`)"),
        ([", ragged: true", ", mask_of: ids", "", ""], "input 'ids' is not filled up"),
    ] {
        let error = yaml(fields, "").unwrap_err();
        assert!(error.contains(part), "{fields:?}: {error}");
    }
    let deep = "max_batch_size: 4\ninputs: [{name: x, dtype: FP32, shape: [-1]}]\n\
        outputs: [{name: y, dtype: FP32, shape: [3, -1], scatter_like: x}]";
    assert!(
        read(deep)
            .unwrap_err()
            .contains("dimension 1 of output 'y' (counted from 0) is variable (-1), and input 'x' has 1")
    );
    // What the model sees decides.
    let seen = deep.replace("[-1]", "[-1], reshape: [1, -1]");
    assert!(read(&seen).is_ok());
    let unbatched = "inputs: [{name: x, dtype: FP32, shape: [-1], ragged: true}]";
    assert!(read(unbatched).unwrap_err().contains("inputs[0].ragged: max_batch_size is 0"));
}

#[test]
fn what_cannot_be_made_is_refused() {
    for (input, part) in [
        ("{name: ids, ends_of: ids}", "batch_inputs[0].name: `ids` is already the name of another input"),
        ("{name: a, ends_of: ids}, {name: a, counts_of: ids}", "batch_inputs[1].name: `a` is already"),
        ("{name: '', ends_of: ids}", "batch_inputs[0].name: is empty"),
        (
            "{name: a}",
            "nothing says what it tells of which input: write one of `counts_of`, `ends_of`, `offsets_of`",
        ),
        ("{name: a, ends_of: ids, offsets_of: ids}", "batch_inputs[0].offsets_of: `ends_of` is given too"),
        ("{name: a, ends_of: x}", "batch_inputs[0].ends_of: there is no input 'x'"),
        ("{name: a, ends_of: ids, dtype: UINT8}", "batch_inputs[0].dtype: input 'a' is UINT8"),
        ("{name: a, end_of: ids}", "unknown field `end_of`: write `ends_of`"),
        ("{name: a, source_input: ids}", "`source_input` is Triton's name"),
        ("{ends_of: ids}", "`name` is missing"),
    ] {
        let error = yaml(RAGGED, &format!("batch_inputs: [{input}]")).unwrap_err();
        assert!(error.contains(part), "{input}: {error}");
    }
    let many = "max_batch_size: 100000\ninputs: [{name: x, dtype: FP32, shape: [-1]}]\nbatch_inputs: [{name: s, KIND: x}]";
    let error = read(&many.replace("KIND", "flat_shapes_of")).unwrap_err();
    assert!(
        error.contains("a shape for each row of a batch, and max_batch_size is 100000: lower it to 65536"),
        "{error}"
    );
    assert!(read(&many.replace("KIND", "counts_of")).is_ok());
    let single = "inputs: [{name: x, dtype: FP32, shape: [-1]}]\nbatch_inputs: [{name: a, ends_of: x}]";
    assert!(read(single).unwrap_err().contains("batch_inputs[0].ends_of: max_batch_size is 0"));
}

#[test]
fn what_contradicts_a_ragged_batch_is_refused() {
    let made = ["", "", "", ""];
    for (fields, rest, part) in [
        (
            RAGGED,
            "batching: {allowed_sizes: [4]}",
            "inputs[0].ragged: a ragged batch cannot be filled up with rows",
        ),
        (
            made,
            "batch_inputs: [{name: a, ends_of: ids}]\nbatching: {allowed_sizes: [2, 4]}",
            "(`batching.allowed_sizes`)",
        ),
        (
            ["", "", "", ", scatter_like: ids"],
            "batching: {allowed_sizes: [4]}",
            "outputs[0].scatter_like: a ragged batch",
        ),
        (RAGGED, "sequence: {strategy: direct}", "inputs[0].ragged: with the strategy `direct`"),
        (
            made,
            "batch_inputs: [{name: a, ends_of: ids}]\nsequence: {controls: {start: a}}",
            "batch_inputs: `a` is already the name of an input of `sequence`",
        ),
        (
            ["", "", "", ", scatter_like: ids"],
            "generate: {states: []}",
            "outputs[0].scatter_like: output 'logits' would follow the shape of an input, which a step does not have",
        ),
    ] {
        let error = yaml(fields, rest).unwrap_err();
        assert!(error.contains(part), "{rest}: {error}");
    }
    for rest in ["batching: off", "batching: {max_delay: 1ms}", "sequence: {strategy: oldest}"] {
        assert!(yaml(RAGGED, rest).is_ok(), "{rest}");
    }
}

#[test]
fn a_field_that_belongs_elsewhere_or_is_tritons_says_so() {
    let error = yaml(["", "", "", ", ragged: true"], "").unwrap_err();
    assert!(error.contains("unknown field `ragged`: it belongs to an entry of `inputs`"), "{error}");
    let error = yaml([", allow_ragged_batch: true", "", "", ""], "").unwrap_err();
    assert!(error.contains("write `ragged`"), "{error}");
    let error = yaml(["", "", "", ""], "batch_output: []").unwrap_err();
    assert!(error.contains("write `scatter_like: x` in an entry of `outputs`"), "{error}");
    let error = yaml(["", "", "", ""], "batch_input: []").unwrap_err();
    assert!(error.contains("unknown field `batch_input`: write `batch_inputs`"), "{error}");
}
