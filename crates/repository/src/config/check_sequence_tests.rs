//! `sequence` in `config.yaml`: what is taken, and what is refused and why.

use std::{fs, num::NonZeroU32};

use tempfile::TempDir;

use super::*;
use crate::{ModelConfig, config::load};

const IO: &str =
    "inputs: [{name: x, dtype: FP32, shape: [1]}]\noutputs: [{name: y, dtype: FP32, shape: [1]}]\n";

fn yaml(text: &str) -> Result<ModelConfig, String> {
    let root = TempDir::new().unwrap();
    fs::create_dir(root.path().join("initial_state")).unwrap();
    fs::write(root.path().join("initial_state/h.bin"), [1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    fs::write(root.path().join("config.yaml"), text).unwrap();
    load(root.path(), "m").map_err(|error| {
        let text = error.to_string();
        assert!(!text.contains('\n'), "{text}");
        text.replace(&format!("{}/config.yaml", root.path().display()), "")
    })
}

/// A model with a batch of up to 8 rows and these sequences.
fn model(text: &str) -> Result<ModelConfig, String> {
    yaml(&format!("{IO}max_batch_size: 8\nsequence: {text}"))
}

fn sequences(text: &str) -> Sequences {
    model(text).unwrap_or_else(|error| panic!("{error}: {text}")).sequences.expect("sequences")
}

fn error(text: &str) -> String {
    model(text).expect_err("must be refused")
}

fn state(text: &str) -> SequenceState {
    sequences(&format!("{{states: [{{input: h, output: h2, {text}}}]}}")).states.remove(0)
}

fn state_error(text: &str) -> String {
    error(&format!("{{states: [{{input: h, output: h2, {text}}}]}}"))
}

#[test]
fn the_defaults_are_those_of_the_readme() {
    let expected = Sequences {
        strategy: SequenceStrategy::Oldest { max_sequences: NonZeroU32::new(1024).unwrap() },
        idle_timeout: Duration::from_secs(60),
        max_waiting: 0,
        controls: Vec::new(),
        states: Vec::new(),
    };
    assert_eq!(sequences("{}"), expected);
    let direct = SequenceStrategy::Direct { max_delay: Duration::ZERO };
    assert_eq!(sequences("{strategy: direct}"), Sequences { strategy: direct, ..expected });
    assert_eq!(yaml("sequence:").unwrap().sequences, None);
    // Neither a batch dimension nor a list of inputs is needed where nothing is found by name.
    assert!(yaml("sequence: {}").unwrap().sequences.is_some());
}

#[test]
fn every_field_is_read() {
    let found = sequences(
        "{max_sequences: 3, max_waiting: 5, idle_timeout: 2s,
          controls: {end: {name: E, dtype: INT32, values: [-1, 1]}, start: S, correlation_id: I,
                     ready: {name: R, dtype: FP32}},
          states: [{input: h, output: h2, dtype: INT16, shape: [2]}]}",
    );
    assert_eq!(found.strategy, SequenceStrategy::Oldest { max_sequences: NonZeroU32::new(3).unwrap() });
    assert_eq!((found.max_waiting, found.idle_timeout), (5, Duration::from_secs(2)));
    let flag = |off: &[u8], on: &[u8]| Flag { off: off.to_vec(), on: on.to_vec() };
    let control = |input: &str, kind, data_type| Control { input: input.to_owned(), kind, data_type };
    let int = |number: i32| number.to_le_bytes();
    // In the order in which they are written, which may be that of the arguments.
    assert_eq!(
        found.controls,
        [
            control("E", ControlKind::End(flag(&int(-1), &int(1))), DataType::Int32),
            control("S", ControlKind::Start(flag(&[0], &[1])), DataType::Bool),
            control("I", ControlKind::CorrelationId, DataType::Int64),
            control("R", ControlKind::Ready(flag(&[0; 4], &1_f32.to_le_bytes())), DataType::Fp32),
        ]
    );
    assert_eq!((found.states[0].data_type, &found.states[0].dims[..]), (DataType::Int16, &[2][..]));
}

#[test]
fn a_sequence_begins_with_what_is_said() {
    let zeros = state("dtype: FP32, shape: [-1, 4]");
    assert_eq!((&zeros.initial_dims[..], zeros.initial), (&[1, 4][..], None));
    assert!(state("dtype: FP32, shape: [], initial: zeros").initial_dims.is_empty());
    assert_eq!(state("dtype: FP32, shape: [-1, 4], initial_shape: [0, 4]").initial_dims, [0, 4]);
    assert_eq!(state("dtype: FP32, shape: [2], initial: 0").initial, None);
    let ones = state("dtype: INT16, shape: [2], initial: 1").initial;
    assert_eq!(ones.as_deref(), Some(&[1, 0, 1, 0][..]));
    assert_eq!(state("dtype: BOOL, shape: [2], initial: true").initial.as_deref(), Some(&[1, 1][..]));
    for text in [
        "dtype: INT32, shape: [-1], initial: {file: h.bin}, initial_shape: [2]",
        "dtype: INT32, shape: [-1], initial: {file: h.bin, shape: [2]}",
    ] {
        let read = state(text);
        assert_eq!(read.initial.as_deref(), Some(&[1, 2, 3, 4, 5, 6, 7, 8][..]));
        assert_eq!((read.initial_file.as_deref(), &read.initial_dims[..]), (Some("h.bin"), &[2][..]));
    }
}

#[test]
fn what_a_sequence_begins_with_must_fit() {
    for (text, expected) in [
        ("dtype: BYTES, shape: [1]", "states[0].dtype: BYTES cannot be kept"),
        ("dtype: FP32, shape: [0]", "states[0].shape[0]: a dimension is -1 for any size"),
        (
            "dtype: FP32, shape: [2], initial_shape: [3]",
            "states[0].initial_shape: [3] does not fit [2], the `shape`",
        ),
        ("dtype: FP32, shape: [-1], initial_shape: [-1]", "initial_shape[0]: -1 is not a size"),
        ("dtype: FP32, shape: [-1], initial_shape: []", "initial_shape: [] does not fit [-1]"),
        (
            "dtype: INT8, shape: [1], initial: 1.5",
            "states[0].initial: a whole number from -128 to 127 is expected",
        ),
        ("dtype: INT8, shape: [1], initial: ones", "expected `zeros`, a number, or `{file: x.bin}`"),
        (
            "dtype: INT32, shape: [3], initial: {file: h.bin}",
            "initial.file: `h.bin` has 8 bytes, but the data type and \
          the shape with which a sequence begins take 12",
        ),
        ("dtype: INT32, shape: [2], initial: {file: no.bin}", "there is no such file"),
        (
            "dtype: INT32, shape: [2], initial: {file: ../config.yaml}",
            "must be a file in the model's directory",
        ),
        (
            "dtype: INT32, shape: [2], initial: {file: h.bin, shape: [2]}, initial_shape: [2]",
            "initial.shape: is said by",
        ),
        (
            "dtype: FP32, shape: [100000, 100000]",
            "states[0].initial: more than 1073741824 bytes are too many",
        ),
        ("dtype: FP32, shape: [10000, 10000], initial: 1", "more than 67108864 bytes are too many"),
        ("dtype: FP32, shape: [9223372036854775807]", "are too many"),
    ] {
        let text = state_error(text);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_configuration_follows_the_files_that_it_has_read() {
    let root = TempDir::new().unwrap();
    let state = "{input: h, output: h2, dtype: INT8, shape: [2], initial: {file: h.bin}}";
    fs::write(root.path().join("config.yaml"), format!("{IO}sequence: {{states: [{state}]}}")).unwrap();
    let look = || crate::config::recording(|| load(root.path(), "m"));
    let (config, read) = look();
    assert!(config.is_err() && read.failed);
    assert!(read.below(root.path()).any(|name| name == "initial_state/h.bin"), "{read:?}");
    fs::create_dir(root.path().join("initial_state")).unwrap();
    fs::write(root.path().join("initial_state/h.bin"), [1, 2]).unwrap();
    let (before, read) = look();
    assert!(before.is_ok() && !read.failed);
    fs::write(root.path().join("initial_state/h.bin"), [1, 3]).unwrap();
    assert_eq!(before.unwrap().difference(&look().0.unwrap()), crate::Difference::Reload);
}

#[test]
fn every_name_is_one_of_its_own() {
    for (text, expected) in [
        ("{controls: {start: x}}", "sequence.controls.start: `x` is listed in `inputs` too"),
        ("{controls: {start: a, end: a}}", "sequence.controls.end: `a` is already the name of another one"),
        ("{controls: {start: ''}}", "sequence.controls.start: is empty or missing"),
        (
            "{states: [{input: x, output: o, dtype: FP32, shape: [1]}]}",
            "states[0].input: `x` is listed in `inputs` too",
        ),
        (
            "{states: [{input: h, output: y, dtype: FP32, shape: [1]}]}",
            "states[0].output: `y` is listed in `outputs`",
        ),
        (
            "{states: [{input: h, output: a, dtype: FP32, shape: [1]}, {input: i, output: a, dtype: FP32, shape: [1]}]}",
            "states[1].output: `a` is already the name of another one",
        ),
        (
            "{controls: {start: h}, states: [{input: h, output: a, dtype: FP32, shape: [1]}]}",
            "states[0].input: `h` is already the name of another one",
        ),
    ] {
        let text = error(text);
        assert!(text.contains(expected), "{text}");
    }
    // An input and an output may share a name, as elsewhere.
    model("{states: [{input: h, output: h, dtype: FP32, shape: [1]}]}").unwrap();
    let text = yaml("sequence: {controls: {start: S}}").expect_err("nothing to tell the names from");
    assert!(text.contains(": inputs: is missing: beside the controls and states of `sequence`"), "{text}");
    let text = yaml(&format!(
        "{}sequence: {{states: [{{input: h, output: a, dtype: FP32, shape: [1]}}]}}",
        IO.split_inclusive('\n').next().unwrap()
    ));
    assert!(text.expect_err("nothing to tell the names from").contains(": outputs: is missing"));
}

#[test]
fn controls_have_types_that_models_know() {
    for (text, expected) in [
        (
            "{start: {name: S, dtype: INT64}}",
            "start.dtype: INT64 cannot be here: write one of BOOL, INT32, FP32",
        ),
        ("{correlation_id: {name: I, dtype: FP32}}", "write one of INT64, INT32, UINT32, UINT64, BYTES"),
        ("{start: {name: S, values: [0, 1]}}", "start.values: true or false is expected for BOOL, not 0"),
        (
            "{start: {name: S, dtype: INT32, values: [0]}}",
            "start.values: two values are expected, for no and for yes, not 1",
        ),
        ("{correlation_id: {name: I, values: [0, 1]}}", "correlation_id.values: an id is no yes or no"),
        ("{begin: S}", "unknown field `begin`: expected one of `start`, `end`, `ready` and `correlation_id`"),
        ("{CONTROL_SEQUENCE_START: S}", "write `start`"),
        ("{start: S, start: T}", "`start` is given twice"),
        ("{start: }", "expected the name of an input, or fields"),
        ("[start]", "expected fields such as `start: START`"),
    ] {
        let text = error(&format!("{{controls: {text}}}"));
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn each_strategy_has_its_own_fields() {
    for (text, expected) in [
        ("{max_delay: 1ms}", "sequence.max_delay: only the strategy `direct` waits by this"),
        (
            "{strategy: direct, max_sequences: 4}",
            "sequence.max_sequences: with the strategy `direct` as many",
        ),
        ("{strategy: direct, max_delay: 61s}", "sequence.max_delay: 1m 1s is too long"),
        ("{max_sequences: 0}", "sequence.max_sequences: a number from 1 to 1000000 is expected, not 0"),
        ("{max_waiting: 1000001}", "sequence.max_waiting: a number from 0 to 1000000"),
        ("{idle_timeout: 0s}", "sequence.idle_timeout: every sequence would be forgotten at once"),
        ("{idle_timeout: 400days}", "is too long"),
        ("{strategy: newest}", "unknown value `newest`: expected one of `oldest` and `direct`"),
        ("{oldest: {max_candidate_sequences: 4}}", "`oldest` is not a field: write `strategy: oldest`"),
        ("{preferred_sizes: [4]}", "it belongs to `batching`"),
        ("oldest", "expected fields such as `strategy: oldest`"),
    ] {
        let text = error(text);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn batches_are_made_as_the_strategy_allows() {
    let batching = |text: &str| model(text).unwrap().batching;
    assert_eq!(batching("{strategy: direct}"), Some(Batching::default()));
    assert_eq!(batching("{strategy: direct}\nstateful: true"), Some(Batching::default()));
    assert_eq!(batching("{}\nstateful: true"), Some(Batching::default()), "the state is of the sequence");
    assert_eq!(batching("{}\nbatching: off"), None);
    let delayed = batching("{}\nbatching: {max_delay: 1ms, preferred_sizes: [4]}").unwrap();
    assert_eq!((delayed.max_delay, &delayed.preferred_sizes[..]), (Duration::from_millis(1), &[4][..]));
    let waits = batching("{strategy: direct, max_delay: 2ms}").unwrap();
    assert_eq!(waits.max_delay, Duration::from_millis(2));
    assert!(model("{}").unwrap().stateful, "what is kept nowhere else is kept in the module");
    assert_eq!(yaml("sequence: {strategy: direct}").unwrap().batching, None);
    for text in ["batching: off", "batching: {}", "batching: {max_delay: 1ms}"] {
        let text = error(&format!("{{strategy: direct}}\n{text}"));
        assert!(text.contains(": batching: with the strategy `direct` each sequence has a row"), "{text}");
    }
}
