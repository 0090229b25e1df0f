//! `dynamic_batching` and its parameters: what is taken, and what is refused and why.

use std::{num::NonZeroU32, path::Path, time::Duration};

use super::*;
use crate::{Batching, ModelConfig, QueuePolicy, Queueing};

const IO: &str = "input [ { name: \"x\" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: \"y\" data_type: TYPE_FP32 dims: [ 3 ] } ]\n";

fn load(text: &str) -> Result<ModelConfig, String> {
    let config = super::super::load(&format!("{IO}{text}"), Path::new("m"), "m");
    config.map(|(config, _)| config).map_err(|fault| format!("{}: {}", fault.place, fault.message))
}

/// A model with a batch of up to 8 rows.
fn batched(text: &str) -> Result<ModelConfig, String> {
    load(&format!("max_batch_size: 8 {text}"))
}

fn dynamic(text: &str) -> ModelConfig {
    batched(&format!("dynamic_batching {{ {text} }}")).unwrap()
}

/// The error of a text inside `dynamic_batching`.
fn error(text: &str) -> String {
    batched(&format!("dynamic_batching {{ {text} }}")).expect_err("must be refused")
}

fn parameter(key: &str, value: &str) -> String {
    format!(" parameters {{ key: \"{key}\" value {{ string_value: \"{value}\" }} }}")
}

fn policy(max_size: u32, millis: u64) -> QueuePolicy {
    let timeout = Some(Duration::from_millis(millis)).filter(|timeout| !timeout.is_zero());
    QueuePolicy { max_size: NonZeroU32::new(max_size), timeout, ..QueuePolicy::default() }
}

#[test]
fn a_model_with_a_batch_dimension_is_batched_anyway() {
    assert_eq!(batched("").unwrap().batching, Some(Batching::default()));
    assert_eq!(dynamic("").batching, Some(Batching::default()));
    assert_eq!(batched(&parameter("BATCHING", "off")).unwrap().batching, None);
    assert_eq!(batched(&parameter("BATCHING", "Auto")).unwrap().batching, Some(Batching::default()));
    assert_eq!(load("").unwrap().batching, None);
    assert!(dynamic("").notes.is_empty());
}

#[test]
fn every_field_is_read() {
    let config = dynamic(
        "preferred_batch_size: [ 8, 4, 4 ] max_queue_delay_microseconds: 100 preserve_ordering: true",
    );
    let batching = Batching {
        max_delay: Duration::from_micros(100),
        preferred_sizes: vec![4, 8],
        preserve_ordering: true,
        ..Batching::default()
    };
    assert_eq!((config.batching, config.queue), (Some(batching), Queueing::default()));

    let config = dynamic(
        "priority_levels: 3 default_priority_level: 2
         default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 5000 max_queue_size: 7 }
         priority_queue_policy { key: 1 value { max_queue_size: 2 } }
         priority_queue_policy { key: 3 value { allow_timeout_override: true default_timeout_microseconds: 1000 } }",
    );
    assert_eq!(config.queue.default_priority.get(), 2);
    let all = QueuePolicy { on_timeout: OnTimeout::Delay, ..policy(7, 5) };
    // As in Triton, a level takes nothing over from the policy of all.
    let third = QueuePolicy { allow_timeout_override: true, ..policy(0, 1) };
    assert_eq!(config.queue.levels, [policy(2, 0), all, third]);
    assert!(config.notes.is_empty(), "{:?}", config.notes);
}

#[test]
fn parameters_say_what_the_schema_cannot() {
    let text = [("ALLOWED_SIZES", "1, 4,8"), ("LATENCY_TARGET", "50ms"), ("WEIGHT", "2")]
        .map(|(key, value)| parameter(key, value))
        .concat();
    let config = batched(&text).unwrap();
    let batching = config.batching.unwrap();
    assert_eq!(batching.allowed_sizes, [1, 4, 8]);
    assert_eq!(batching.latency_target, Some(Duration::from_millis(50)));
    assert_eq!((config.weight.get(), config.notes.len()), (2, 0));
    // Triton has no such sizes, so nothing that it serves is refused.
    let text = "dynamic_batching { preferred_batch_size: 6 }".to_owned() + &parameter("ALLOWED_SIZES", "4,8");
    assert!(
        batched(&text)
            .unwrap_err()
            .contains("preferred_batch_size[0]: no batch of 6 is run, because it would be filled up to 8")
    );
    // Queues have nothing to do with batches.
    let text = format!(
        "dynamic_batching {{ default_queue_policy {{ max_queue_size: 3 }} }}{}",
        parameter("BATCHING", "off")
    );
    let config = batched(&text).unwrap();
    assert_eq!((config.batching, config.queue.levels), (None, vec![policy(3, 0)]));
}

#[test]
fn wrong_parameters_say_what_to_write() {
    for (key, value, told) in [
        ("BATCHING", "sometimes", "`sometimes` is neither auto nor off"),
        (
            "ALLOWED_SIZES",
            "1 4",
            "`1 4` is not a list of whole numbers: write one such as { string_value: \"1,4,8\" }",
        ),
        ("ALLOWED_SIZES", "", "`` is not a list of whole numbers"),
        ("ALLOWED_SIZES", "1,4", "the largest is 4, but a request may have 8 rows (max_batch_size): add 8"),
        ("LATENCY_TARGET", "50", "`50` is not a length of time: write a number with its unit"),
        ("LATENCY_TARGET", "2m", "2m is too long: at most 1m is allowed"),
        ("WEIGHT", "heavy", "`heavy` is not a whole number"),
        ("WEIGHT", "0", "a number from 1 to 1000 is expected, not 0"),
    ] {
        let error = batched(&parameter(key, value)).expect_err("must be refused");
        assert!(error.starts_with(&format!(": parameters[{key}]: {told}")), "{error}");
    }
    let text = batched(&(parameter("ALLOWED_SIZES", "8,9"))).expect_err("must be refused");
    assert!(
        text.starts_with(": parameters[ALLOWED_SIZES][1]: a number from 1 to max_batch_size, 8"),
        "{text}"
    );
    let text =
        format!("dynamic_batching {{ max_queue_delay_microseconds: 1 }}{}", parameter("BATCHING", "off"));
    assert_eq!(
        batched(&text).expect_err("must be refused"),
        ": parameters[BATCHING]: \"off\" leaves nothing to do for \
         dynamic_batching.max_queue_delay_microseconds: remove one of them"
    );
}

#[test]
fn values_are_checked_as_in_triton() {
    for (text, told) in [
        (
            "preferred_batch_size: 9",
            "preferred_batch_size[0]: a number from 1 to max_batch_size, 8, is expected, not 9",
        ),
        (
            "preferred_batch_size: 0",
            "preferred_batch_size[0]: a number from 1 to max_batch_size, 8, is expected, not 0",
        ),
        (
            "preferred_batch_size: [ 4, -1 ]",
            "preferred_batch_size[1]: a number from 1 to max_batch_size is expected, not -1",
        ),
        (
            "max_queue_delay_microseconds: 60000001",
            "max_queue_delay_microseconds: 60000001 is too long: at most 60000000 is allowed",
        ),
        ("max_queue_delay_microseconds: 18446744073709551615", "is too long: at most 60000000 is allowed"),
        (
            "priority_levels: 2",
            "default_priority_level: a number from 1 to dynamic_batching.priority_levels, 2, is expected, not 0",
        ),
        (
            "priority_levels: 2 default_priority_level: 3",
            "default_priority_level: a number from 1 to dynamic",
        ),
        (
            "priority_levels: 65 default_priority_level: 1",
            "priority_levels: a number from 1 to 64 is expected, not 65",
        ),
        (
            "priority_levels: 18446744073709551615 default_priority_level: 1",
            "priority_levels: a number from 1 to 64",
        ),
        (
            "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 value { } }",
            "priority_queue_policy.3: there is no priority 3, because dynamic_batching.priority_levels is 2: raise",
        ),
        (
            "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 0 value { } }",
            "priority_queue_policy.0: there is no priority 0",
        ),
        (
            "default_queue_policy { timeout_action: 7 }",
            "default_queue_policy.timeout_action: there is no action of number 7",
        ),
        (
            "default_queue_policy { default_timeout_microseconds: 86400000001 }",
            "default_queue_policy.default_timeout_microseconds: 86400000001 is too long: at most 86400000000",
        ),
        (
            "preserve_ordering: true priority_levels: 2 default_priority_level: 1",
            "preserve_ordering: requests of several priorities overtake one another: leave it out, or let \
             dynamic_batching.priority_levels be 1",
        ),
        (
            "preserve_ordering: true default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 1 }",
            "preserve_ordering: requests that wait on when their time is up are overtaken: leave it out, or change \
             `timeout_action`",
        ),
    ] {
        let error = error(text);
        assert!(error.starts_with(": dynamic_batching.") && error.contains(told), "{error}");
    }
}

#[test]
fn our_words_lead_to_those_of_triton() {
    assert!(error("max_delay: 1").contains("write `max_queue_delay_microseconds`"));
    assert!(error("default_queue_policy { max_size: 1 }").contains("write `max_queue_size`"));
    assert!(
        error("default_queue_policy { timeout_action: LATER }")
            .contains("expected one of `REJECT` and `DELAY`")
    );
    assert!(load("batching { }").expect_err("must be refused").contains("write `dynamic_batching`"));
}

#[test]
fn without_a_batch_dimension_there_are_queues_only() {
    let text = "dynamic_batching { max_queue_delay_microseconds: 5 preserve_ordering: true
                default_queue_policy { max_queue_size: 4 } }";
    let config = load(text).unwrap();
    assert_eq!((config.batching, config.queue.levels), (None, vec![policy(4, 0)]));
    for (note, field) in config.notes.iter().zip(["max_queue_delay_microseconds", "preserve_ordering"]) {
        assert!(
            note.starts_with(&format!("dynamic_batching.{field} has no effect: max_batch_size is 0")),
            "{note}"
        );
    }
    assert_eq!(config.notes.len(), 2);
    for (text, field) in [
        ("dynamic_batching { preferred_batch_size: 1 }", "dynamic_batching.preferred_batch_size"),
        (&*parameter("ALLOWED_SIZES", "1"), "parameters[ALLOWED_SIZES]"),
        (&*parameter("LATENCY_TARGET", "1s"), "parameters[LATENCY_TARGET]"),
    ] {
        let error = load(text).expect_err("must be refused");
        assert_eq!(error, format!(": {field}: {NO_BATCH}"));
    }
}

#[test]
fn priorities_without_levels_are_noted() {
    let config =
        dynamic("default_priority_level: 2 priority_queue_policy { key: 1 value { max_queue_size: 1 } }");
    assert_eq!(config.queue, Queueing::default());
    for (note, field) in config.notes.iter().zip(["default_priority_level", "priority_queue_policy"]) {
        assert!(
            note.starts_with(&format!("dynamic_batching.{field} has no effect: there are no priorities")),
            "{note}"
        );
    }
    assert_eq!(config.notes.len(), 2);
}

#[test]
fn who_says_delay_without_a_timeout_is_served_and_told() {
    let config = dynamic(
        "priority_levels: 2 default_priority_level: 1 default_queue_policy { timeout_action: DELAY }
         priority_queue_policy { key: 2 value { timeout_action: DELAY max_queue_size: 3 } }",
    );
    assert!(config.queue.levels.iter().all(|level| level.on_timeout == OnTimeout::Delay));
    let notes = ["default_queue_policy", "priority_queue_policy.2"].map(|policy| {
        format!(
            "dynamic_batching.{policy}.timeout_action has no effect: no request has a timeout without \
             default_timeout_microseconds or allow_timeout_override"
        )
    });
    assert_eq!(config.notes, notes);
    for policy in ["default_timeout_microseconds: 1", "allow_timeout_override: true"] {
        let config = dynamic(&format!("default_queue_policy {{ timeout_action: DELAY {policy} }}"));
        assert!(config.notes.is_empty(), "{:?}", config.notes);
    }
}
