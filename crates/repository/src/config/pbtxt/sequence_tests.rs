//! `sequence_batching`: what is taken, and what is noted or refused and why.

use std::{fs, num::NonZeroU32};

use tempfile::TempDir;

use super::*;
use crate::{Batching, ControlKind, ModelConfig, SequenceStrategy, Sequences};

const IO: &str = "input [ { name: \"x\" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: \"y\" data_type: TYPE_FP32 dims: [ 3 ] } ]\n";

fn load(text: &str) -> Result<ModelConfig, String> {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("initial_state")).unwrap();
    fs::write(dir.path().join("initial_state/h.bin"), [1, 2, 3, 4]).unwrap();
    let config = super::super::load(&format!("{IO}{text}"), dir.path(), "m");
    config.map(|(config, _)| config).map_err(|fault| format!("{}: {}", fault.place, fault.message))
}

/// A model with a batch of up to 8 rows and these fields of `sequence_batching`.
fn model(text: &str) -> Result<ModelConfig, String> {
    load(&format!("max_batch_size: 8 sequence_batching {{ {text} }}"))
}

fn sequences(text: &str) -> Sequences {
    model(text).unwrap().sequences.expect("sequences")
}

fn error(text: &str) -> String {
    model(text).expect_err("must be refused")
}

fn oldest(count: u32) -> SequenceStrategy {
    SequenceStrategy::Oldest { max_sequences: NonZeroU32::new(count).unwrap() }
}

#[test]
fn the_defaults_are_tritons() {
    let found = sequences("");
    assert_eq!(found.strategy, SequenceStrategy::Direct { max_delay: Duration::ZERO });
    assert_eq!((found.idle_timeout, found.max_waiting), (Duration::from_secs(1), 2048));
    assert_eq!(sequences("oldest { }").strategy, oldest(8));
    assert_eq!(load("sequence_batching { oldest { } }").unwrap().sequences.unwrap().strategy, oldest(1));
    assert_eq!(model("").unwrap().batching, Some(Batching::default()));
    assert!(model("").unwrap().notes.is_empty());
}

#[test]
fn the_fields_of_both_strategies_are_read() {
    let config = model(
        "max_sequence_idle_microseconds: 5 oldest { max_candidate_sequences: 4 preferred_batch_size: [ 8, 2 ]
         max_queue_delay_microseconds: 7 preserve_ordering: true }",
    )
    .unwrap();
    let batching = Batching {
        max_delay: Duration::from_micros(7),
        preferred_sizes: vec![2, 8],
        preserve_ordering: true,
        ..Batching::default()
    };
    assert_eq!(config.batching, Some(batching));
    let found = config.sequences.unwrap();
    assert_eq!((found.strategy, found.idle_timeout), (oldest(4), Duration::from_micros(5)));
    let config = model("direct { max_queue_delay_microseconds: 7 minimum_slot_utilization: 0.5 }").unwrap();
    let direct = SequenceStrategy::Direct { max_delay: Duration::from_micros(7) };
    assert_eq!(config.sequences.unwrap().strategy, direct);
    assert_eq!(config.batching.unwrap().max_delay, Duration::from_micros(7));
    assert_eq!(config.notes.len(), 1, "{:?}", config.notes);
    assert!(config.notes[0].starts_with("sequence_batching.direct.minimum_slot_utilization has no effect: "));
}

#[test]
fn controls_and_states_are_read_as_they_are_found_in_the_wild() {
    let config = model(
        r#"control_input [
             { name: "START" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] },
             { name: "READY" control [ { kind: CONTROL_SEQUENCE_READY fp32_false_true: [ 0, 1 ] } ] },
             { name: "ID" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_STRING } ] } ]
           state [
             { input_name: "h" output_name: "h2" data_type: TYPE_UINT8 dims: [ -1 ]
               initial_state: { name: "init" data_type: TYPE_UINT8 dims: [ 4 ] data_file: "h.bin" } },
             { input_name: "i" output_name: "i2" data_type: TYPE_FP32 dims: [ -1, 4 ]
               use_same_buffer_for_input_output: true use_growable_memory: true } ]"#,
    )
    .unwrap();
    let found = config.sequences.unwrap();
    assert_eq!(
        found.controls.iter().map(|control| &control.input[..]).collect::<Vec<_>>(),
        ["START", "READY", "ID"]
    );
    assert!(matches!(&found.controls[0].kind, ControlKind::Start(flag) if flag.on == [1, 0, 0, 0]));
    assert!(matches!(&found.controls[1].kind, ControlKind::Ready(flag) if flag.on == 1_f32.to_le_bytes()));
    assert_eq!(
        (&found.controls[2].kind, found.controls[2].data_type),
        (&ControlKind::CorrelationId, DataType::Bytes)
    );
    assert_eq!(found.states[0].initial.as_deref(), Some(&[1, 2, 3, 4][..]));
    assert_eq!((found.states[1].initial.as_deref(), &found.states[1].initial_dims[..]), (None, &[1, 4][..]));
    for (note, field) in config.notes.iter().zip(["use_same_buffer_for_input_output", "use_growable_memory"])
    {
        assert!(note.starts_with(&format!("sequence_batching.state[1].{field} has no effect")), "{note}");
    }
    assert_eq!(config.notes.len(), 2);
}

#[test]
fn what_is_wrong_is_told_in_tritons_words() {
    for (text, expected) in [
        ("iterative_sequence: true", "sequence_batching.iterative_sequence: requests that are run again"),
        ("oldest { max_candidate_sequences: -1 }", "oldest.max_candidate_sequences: 0 or more"),
        ("oldest { preferred_batch_size: 9 }", "sequence_batching.oldest.preferred_batch_size[0]: a number"),
        (
            "direct { max_queue_delay_microseconds: 60000001 }",
            "sequence_batching.direct.max_queue_delay_microseconds: 60000001 is too long",
        ),
    ] {
        let text = error(text);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_control_is_one_that_triton_knows() {
    let control = |text: &str| format!("control_input {{ name: \"c\" control {{ {text} }} }}");
    let start = "kind: CONTROL_SEQUENCE_START bool_false_true: [ false, true ]";
    for (text, expected) in [
        ("control_input { name: \"c\" }".to_owned(), "control_input[0].control: one control is expected"),
        (control("kind: CONTROL_SEQUENCE_END"), "control_input[0].control[0]: one of int32_false_true"),
        (control("kind: CONTROL_SEQUENCE_CORRID"), "control[0].data_type: is missing"),
        (
            control("kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_FP32"),
            "control_input[0].data_type: FP32 cannot be here",
        ),
        (control("kind: CONTROL_SEQUENCE_CORRID int32_false_true: [ 0, 1 ]"), "an id is no yes or no"),
        (
            control("kind: CONTROL_SEQUENCE_START int32_false_true: 1"),
            "control_input[0].control[0]: two values are expected",
        ),
        (
            control(&format!("{start} data_type: TYPE_BOOL")),
            "control[0].data_type: the values say the type already",
        ),
        (control(&format!("{start} fp32_false_true: [ 0, 1 ]")), "control[0]: one of int32_false_true"),
        (control("kind: 9"), "there is no control of number 9"),
        (
            format!("{} {}", control(start), control(start)),
            "control_input[1].control[0].kind: another input has this",
        ),
        (control(start).replace("\"c\"", "\"x\""), "control_input[0]: `x` is listed in `input` too"),
        (control(start).replace("\"c\"", "\"\""), "control_input[0]: is empty or missing"),
    ] {
        let text = error(&text);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_state_begins_as_it_may_go_on() {
    let state = |text: &str| format!("state {{ input_name: \"h\" output_name: \"o\" {text} }}");
    for (text, expected) in [
        (state("dims: 1"), "state[0].data_type: is missing"),
        (state("data_type: TYPE_FP32"), "state[0].dims: is missing"),
        (state("data_type: TYPE_STRING dims: 1"), "state[0].data_type: BYTES cannot be kept"),
        (
            state("data_type: TYPE_FP32 dims: 1").replace("\"o\"", "\"y\""),
            "state[0].output_name: `y` is listed in `output`",
        ),
        (
            state(
                "data_type: TYPE_FP32 dims: 1 initial_state { data_type: TYPE_INT8 dims: 1 zero_data: true }",
            ),
            "initial_state[0].data_type: INT8 differs from FP32",
        ),
        (
            state("data_type: TYPE_FP32 dims: -1 initial_state { data_type: TYPE_FP32 zero_data: true }"),
            "initial_state[0].dims: [] does not fit [-1], the `dims` of the state",
        ),
        (
            state(
                "data_type: TYPE_FP32 dims: 2 initial_state { data_type: TYPE_FP32 dims: 2 data_file: \"h.bin\" }",
            ),
            "initial_state[0].data_file: `h.bin` has 4 bytes, but the data type and the shape with which a sequence \
             begins take 8",
        ),
        (
            state(
                "data_type: TYPE_FP32 dims: 1 initial_state { data_type: TYPE_FP32 dims: 1 data_file: \"/h.bin\" }",
            ),
            "must be a file in the model's directory `initial_state`",
        ),
        (
            state("data_type: TYPE_FP32 dims: 1 initial_state { data_type: TYPE_FP32 dims: 1 }"),
            "[0]: has no data",
        ),
        (state("data_type: TYPE_FP32 dims: 1 initial_state { } initial_state { }"), "keep one initial_state"),
    ] {
        let text = error(&text);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn parameters_say_how_batches_are_made_with_oldest_only() {
    let with = |strategy: &str, key: &str, value: &str| {
        let parameter = format!("parameters {{ key: \"{key}\" value {{ string_value: \"{value}\" }} }}");
        load(&format!("max_batch_size: 8 sequence_batching {{ {strategy} {{ }} }} {parameter}"))
    };
    assert_eq!(with("oldest", "BATCHING", "off").unwrap().batching, None);
    assert_eq!(with("oldest", "ALLOWED_SIZES", "4,8").unwrap().batching.unwrap().allowed_sizes, [4, 8]);
    assert_eq!(with("direct", "BATCHING", "AUTO").unwrap().batching, Some(Batching::default()));
    for (key, value) in [("BATCHING", "off"), ("ALLOWED_SIZES", "4,8"), ("LATENCY_TARGET", "5ms")] {
        let text = with("direct", key, value).expect_err("must be refused");
        assert!(text.starts_with(&format!(": parameters[{key}]: with the strategy `direct`")), "{text}");
    }
}

#[test]
fn without_a_batch_dimension_a_sequence_has_an_instance() {
    let config = load("sequence_batching { oldest { max_queue_delay_microseconds: 5 } }").unwrap();
    assert_eq!(config.batching, None);
    let note = "sequence_batching.oldest.max_queue_delay_microseconds has no effect: max_batch_size is 0";
    assert!(config.notes[0].starts_with(note), "{:?}", config.notes);
    assert_eq!(load("sequence_batching { }").unwrap().batching, None);
}
