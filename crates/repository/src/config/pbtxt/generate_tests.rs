//! The parameters of a model that generates: what is taken, and what is refused and why.

use std::path::Path;

use super::*;
use crate::{Generate, ModelConfig};

const IO: &str = "max_batch_size: 8 input [ { name: \"x\" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: \"token\" data_type: TYPE_INT8 dims: [ 1 ] }, { name: \"done\" data_type: TYPE_BOOL dims: [ 1 ] } ]\n";

fn load(parameters: &[(&str, &str)], more: &str) -> Result<ModelConfig, String> {
    let parameters: String = parameters
        .iter()
        .map(|(key, value)| {
            format!("parameters {{ key: \"GENERATE_{key}\" value {{ string_value: \"{value}\" }} }}\n")
        })
        .collect();
    let config = super::super::load(&format!("{IO}{parameters}{more}"), Path::new("m"), "m");
    config.map(|(config, _)| config).map_err(|fault| format!("{}: {}", fault.place, fault.message))
}

fn generate(parameters: &[(&str, &str)]) -> Generate {
    load(parameters, "").unwrap().generate.expect("generates")
}

#[test]
fn states_make_a_model_that_generates() {
    assert_eq!(load(&[], "").unwrap().generate, None);
    let found = generate(&[("STATES", "")]);
    assert_eq!((found.states.len(), &found.feed[..], found.max_steps.get()), (0, "token", 1024));
    let found = generate(&[
        ("STATES", "hidden, rng"),
        ("FEED", "token"),
        ("SEND", "done,token"),
        ("STOP_FLAG", "done"),
        ("STOP_VALUE", "-1"),
        ("MAX_STEPS", "3"),
        ("COLLECT", "true"),
    ]);
    assert_eq!((found.states, found.send), (names("hidden,rng"), names("done,token")));
    assert_eq!((found.stop_flag.as_deref(), found.stop_value.as_deref()), (Some("done"), Some(&[255][..])));
    assert_eq!((found.max_steps.get(), found.collect), (3, true));
}

#[test]
fn only_a_model_that_generates_is_decoupled() {
    let decoupled = "model_transaction_policy { decoupled: true }";
    assert!(load(&[("STATES", "h")], decoupled).unwrap().notes.is_empty());
    let text = load(&[], decoupled).expect_err("must be refused");
    assert!(
        text.starts_with(": model_transaction_policy.decoupled: this model gives one response"),
        "{text}"
    );
}

#[test]
fn the_parameters_are_named_where_one_is_wrong() {
    let states = ("STATES", "h");
    for (parameters, expected) in [
        (&[("FEED", "token")][..], "parameters[GENERATE_FEED]: only a model that generates has this"),
        (&[("STATES", "h,,i")], "parameters[GENERATE_STATES]: a name is expected"),
        (&[("STATES", "h,done")], "parameters[GENERATE_STATES]: `done` is one of `output` too"),
        (&[states, ("FEED", "t")], "parameters[GENERATE_FEED]: there is no output 't' in `output`"),
        (&[states, ("SEND", "token,x")], "parameters[GENERATE_SEND]: there is no output 'x'"),
        (&[states, ("STOP_FLAG", "token")], "parameters[GENERATE_STOP_FLAG]: output 'token' is INT8"),
        (&[states, ("STOP_VALUE", "end")], "parameters[GENERATE_STOP_VALUE]: `end` is not a number"),
        (&[states, ("STOP_VALUE", "128")], "parameters[GENERATE_STOP_VALUE]: output 'token'"),
        (&[states, ("MAX_STEPS", "many")], "parameters[GENERATE_MAX_STEPS]: `many` is not a whole number"),
        (&[states, ("MAX_STEPS", "0")], "parameters[GENERATE_MAX_STEPS]: a number from 1"),
        (&[states, ("COLLECT", "maybe")], "parameters[GENERATE_COLLECT]: `maybe` is neither true nor false"),
    ] {
        let text = load(parameters, "").expect_err("must be refused");
        assert!(text.contains(expected), "{text}");
    }
    let text = load(&[states], "sequence_batching { }").expect_err("must be refused");
    assert!(text.contains(
        "parameters[GENERATE_STATES]: a model either generates or has sequences (`sequence_batching`)"
    ));
}
