//! `generate` in `config.yaml`: what is taken, and what is refused and why.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::{ModelConfig, config::load};

const MODEL: &str = "max_batch_size: 8
inputs: [{name: prompt, dtype: INT64, shape: [-1], pad: 0}]
outputs:
- {name: token, dtype: INT64, shape: [1]}
- {name: text, dtype: BYTES, shape: []}
- {name: done, dtype: BOOL, shape: [1]}
- {name: score, dtype: FP32, shape: []}
- {name: wide, dtype: FP32, shape: [2]}
- {name: flags, dtype: BOOL, shape: [2]}\n";

fn yaml(text: &str) -> Result<ModelConfig, String> {
    let root = TempDir::new().unwrap();
    fs::write(root.path().join("config.yaml"), text).unwrap();
    load(root.path(), "m").map_err(|error| {
        let text = error.to_string();
        assert!(!text.contains('\n'), "{text}");
        text.replace(&format!("{}/config.yaml", root.path().display()), "")
    })
}

fn generate(text: &str) -> Generate {
    let config = yaml(&format!("{MODEL}generate: {text}"));
    config.unwrap_or_else(|error| panic!("{error}: {text}")).generate.expect("generates")
}

fn error(text: &str) -> String {
    yaml(&format!("{MODEL}generate: {text}")).expect_err("must be refused")
}

#[test]
fn what_is_left_out_follows_from_the_outputs() {
    let found = generate("{states: []}");
    assert_eq!(found.feed, "token");
    assert_eq!(found.send, ["token", "text", "done", "score", "wide", "flags"]);
    assert_eq!(
        (found.stop_flag, found.stop_value, found.max_steps.get(), found.collect),
        (None, None, 1024, false)
    );
    assert!(!generate("{states: [], stop: {flag: done}}").send.contains(&"done".to_owned()));
}

#[test]
fn every_field_is_read() {
    let found = generate(
        "{states: [hidden, rng], feed: token, send: [done, text], stop: {flag: done, value: -3}, max_steps: 7, \
          collect: true}",
    );
    assert_eq!((&found.states[..], &found.feed[..]), (&["hidden".to_owned(), "rng".to_owned()][..], "token"));
    assert_eq!(found.send, ["done", "text"]);
    assert_eq!(found.stop_flag.as_deref(), Some("done"));
    assert_eq!(found.stop_value.as_deref(), Some(&(-3_i64).to_le_bytes()[..]));
    assert_eq!((found.max_steps.get(), found.collect), (7, true));
    let scalar = generate("{states: [], feed: score, stop: {value: 0.5}}");
    assert_eq!(scalar.stop_value.as_deref(), Some(&0.5_f32.to_le_bytes()[..]));
}

#[test]
fn what_does_not_fit_the_outputs_is_refused() {
    for (text, expected) in [
        ("{}", "`states` is missing and must be given"),
        ("{states: [token]}", "generate.states[0]: `token` is one of `outputs` too"),
        ("{states: [h, h]}", "generate.states[1]: `h` is listed twice"),
        ("{states: ['']}", "generate.states[0]: a name is expected"),
        (
            "{states: [], feed: tokn}",
            "generate.feed: there is no output 'tokn' in `outputs`: expected one of `token`",
        ),
        ("{states: [], feed: text}", "generate.feed: output 'text' is BYTES"),
        ("{states: [], send: []}", "generate.send: nothing would be sent"),
        ("{states: [], send: [text, text]}", "generate.send[1]: `text` is listed twice"),
        ("{states: [], send: [h]}", "generate.send[0]: there is no output 'h'"),
        ("{states: [], stop: {}}", "generate.stop: says nothing"),
        (
            "{states: [], stop: {flag: score}}",
            "generate.stop.flag: output 'score' is FP32, and a flag is BOOL",
        ),
        ("{states: [], stop: {flag: flags}}", "generate.stop.flag: output 'flags' has the shape [2]"),
        (
            "{states: [], stop: {value: 1.5}}",
            "generate.stop.value: output 'token', which is fed to the next step: a whole",
        ),
        ("{states: [], feed: wide, stop: {value: 1}}", "generate.stop.value: output 'wide', which is fed"),
        ("{states: [], stop: {eos: 2}}", "write `value`"),
        ("{states: [], max_steps: 0}", "generate.max_steps: a number from 1 to 1000000 is expected, not 0"),
        ("{states: [], max_steps: 1000001}", "generate.max_steps: a number from 1 to 1000000"),
        ("{states: [], collect: true}", "generate.collect: the answers of output 'score' cannot be joined"),
        ("{states: hidden}", "generate.states: expected a list such as `[1, 2]`, not \"hidden\""),
        ("[hidden]", "expected fields such as `states: [hidden]`"),
    ] {
        let text = error(text);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn only_a_model_that_can_generates() {
    let refused = |text: &str| yaml(&format!("{text}generate: {{states: []}}")).expect_err("must be refused");
    let text = refused(&format!("{MODEL}stateful: true\n"));
    assert!(text.contains(": generate: what a generating model keeps goes from step to step"), "{text}");
    let text = refused(&format!("{MODEL}sequence: {{}}\n"));
    assert!(text.contains(": generate: a model either generates or has sequences (`sequence`)"), "{text}");
    let text = refused("");
    assert!(text.contains(": generate: the first dimension of everything"), "{text}");
    let text = refused(MODEL.split_once("outputs").unwrap().0);
    assert!(text.contains(": outputs: is missing"), "{text}");
    let text = refused(&MODEL.replace(
        "name: wide, dtype: FP32, shape: [2]",
        "name: wide, dtype: FP32, shape: [-1], unpad: prompt",
    ));
    assert!(text.contains(": generate: output 'wide' is cut back to an input (`unpad`)"), "{text}");
}
