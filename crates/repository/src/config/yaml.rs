//! `config.yaml` to a raw configuration, with errors that say where and what to write instead.
//!
//! Only this file and `yaml/place.rs` name `serde_yaml`.

mod place;
mod words;

use serde_path_to_error::Path as KeyPath;

use super::{
    error::{Fault, Place},
    hint,
    raw::RawConfig,
};
use crate::escape::one_line;

/// More brackets than this inside one another are no configuration. The parser takes time that grows
/// with the square of them, and one broken file must not hold up the look at all others.
const MAX_NESTING: u32 = 64;

/// Reads a `config.yaml`; an empty one, or one of comments only, leaves every field at its default.
pub(super) fn parse(text: &str) -> Result<RawConfig, Fault> {
    check_nesting(text)?;
    let deserializer = serde_yaml::Deserializer::from_str(text);
    match serde_path_to_error::deserialize::<_, Option<RawConfig>>(deserializer) {
        Ok(raw) => Ok(raw.unwrap_or_default()),
        Err(err) => Err(fault(err.path(), err.inner())),
    }
}

/// What was found wrong in a configuration that had been read from this text, with its place there.
pub(super) fn placed(fault: Fault, text: &str) -> Fault {
    let Fault { place: Place { position, key }, message } = fault;
    let position = position.or_else(|| place::find(text, &key));
    Fault { place: Place { position, key }, message }
}

/// Brackets are counted wherever they stand; text with so many that are not closed is not ours either.
fn check_nesting(text: &str) -> Result<(), Fault> {
    let mut depth = 0_u32;
    for (line, content) in text.lines().enumerate() {
        for (column, character) in content.chars().enumerate() {
            match character {
                '[' | '{' => depth += 1,
                ']' | '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth > MAX_NESTING {
                let place = Place { position: Some((line + 1, column + 1)), key: String::new() };
                let message =
                    format!("more than {MAX_NESTING} brackets are open here: close them where they end");
                return Err(Fault { place, message });
            }
        }
    }
    Ok(())
}

fn fault(path: &KeyPath, err: &serde_yaml::Error) -> Fault {
    let key = match path.to_string() {
        root if root == "." => String::new(),
        key => key.trim_end_matches(".?").to_owned(),
    };
    let position = err.location().map(|location| (location.line(), location.column()));
    let text = err.to_string();
    let message = words::reworded(&plain(&text, &key, position), &key);
    Fault { place: Place { position, key: one_line(&key) }, message }
}

/// The text of an error without what the parser says about its place, which we say our own way.
fn plain(text: &str, key: &str, position: Option<(usize, usize)>) -> String {
    // Its path may stop at the mapping that holds the field.
    let text = match text.split_once(": ") {
        Some((path, rest)) if !path.is_empty() && key.starts_with(path) => rest,
        _ => text,
    };
    match position {
        Some((line, column)) => text.replacen(&format!(" at line {line} column {column}"), "", 1),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let fault = parse(text).expect_err("must be refused");
        format!("{}: {}", fault.place, fault.message)
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        for text in ["", "\n", "# nothing yet\n", "---\n", "null\n", "{}", "inputs:\n"] {
            let raw = parse(text).expect(text);
            assert_eq!((raw.max_batch_size, raw.model_file.as_str()), (0, "model.pt"), "{text:?}");
        }
    }

    #[test]
    fn an_unknown_field_says_where_and_what_was_meant() {
        assert_eq!(
            error("inputs:\n- name: x\n  data_type: FP32\n  dims: [3]\n"),
            ":3:3: inputs[0].data_type: unknown field `data_type`: write `dtype`"
        );
        assert_eq!(
            error("max_batch_size: 8\ninput: []\n"),
            ":2:1: input: unknown field `input`: write `inputs`"
        );
    }

    #[test]
    fn a_data_type_of_another_dialect_says_what_to_write() {
        assert_eq!(
            error("inputs:\n- {name: x, dtype: TYPE_FP32, shape: [3]}\n"),
            ":2:20: inputs[0].dtype: unknown data type `TYPE_FP32`: write FP32"
        );
    }

    #[test]
    fn wrong_values_are_told_in_plain_words() {
        assert_eq!(
            error("optimize: sometimes"),
            ":1:11: optimize: expected true or false, not \"sometimes\""
        );
        assert!(
            error("hello").ends_with("expected fields such as `inputs:`, not \"hello\""),
            "{}",
            error("hello")
        );
        assert_eq!(
            error("inputs: [3]"),
            ":1:10: inputs[0]: expected an input such as `{name: x, dtype: FP32, shape: [-1]}`, not 3"
        );
        assert_eq!(
            error("optimize: 'true'"),
            ":1:11: optimize: \"true\" is text: write true, without quotes"
        );
        let long = error(&format!("optimize: {}", "x".repeat(5000)));
        assert!(
            long.starts_with(":1:11: optimize: expected true or false, not \"xxx") && long.len() < 200,
            "{long}"
        );
    }

    #[test]
    fn a_number_that_cannot_be_is_told_with_its_range() {
        for (text, told) in [
            ("max_batch_size: -1", ":1:17: max_batch_size: expected a whole number from 0, not -1"),
            ("max_batch_size: 4294967296", "4294967296 is too large: at most 2147483647 is allowed"),
            ("threads: -1", ":1:10: threads: expected a whole number from 1 to 1024, not -1"),
            ("threads: 4294967296", "expected a whole number from 1 to 1024, not 4294967296"),
            ("threads: 1.5", "expected a whole number from 1 to 1024, not 1.5"),
            ("threads: [1]", "expected a whole number from 1 to 1024, not a list"),
            ("weight:", ":1:8: weight: nothing is written here: expected a whole number from 1 to 1000"),
            ("weight: !!int '2'", "expected a whole number from 1 to 1000, not 2"),
            ("weight: '2'", ":1:9: weight: \"2\" is text: write 2, without quotes"),
            ("weight: '02'", "expected a whole number from 1 to 1000, not \"02\""),
            (
                "instances: -1",
                "expected a number from 1 to 1024, or a list such as `[{device: gpu, count: 2}]`, not -1",
            ),
            ("instances: 99999999999", "`[{device: gpu, count: 2}]`, not 99999999999"),
            (
                "instances: [{count: -3}]",
                ":1:21: instances[0].count: expected a whole number from 1 to 1024, not -3",
            ),
            ("instances: [{gpus: [-1]}]", "instances[0].gpus[0]: expected a whole number from 0, not -1"),
            ("versions: {latest: -1}", "versions.latest: expected a whole number from 1, not -1"),
            ("versions: {specific: [-1]}", "specific[0]: expected the number of a version, from 1, not -1"),
            ("versions: {specific: [99999999999999999999]}", "at most 18446744073709551615 is allowed"),
            ("warmup: [{count: -1}]", "warmup[0].count: expected a whole number from 1 to 10000, not -1"),
        ] {
            assert!(error(text).ends_with(told), "{}", error(text));
        }
    }

    #[test]
    fn so_is_one_of_batches_queues_and_shapes() {
        for (text, told) in [
            (
                "batching: {preferred_sizes: [8, -1]}",
                ":1:33: batching.preferred_sizes[1]: expected a whole number from 1 to max_batch_size, not -1",
            ),
            (
                "batching: {allowed_sizes: [99999999999999999999]}",
                "99999999999999999999 is too large: expected a whole number from 1 to max_batch_size",
            ),
            ("queue: {max_size: -1}", ":1:19: queue.max_size: expected a whole number from 1, not -1"),
            ("queue: {levels: {1: {max_size: 4294967296}}}", "is too large: at most 4294967295 is allowed"),
            ("queue: {priority_levels: 1e3}", "expected a whole number from 1 to 64, not 1000.0"),
            ("queue: {default_priority: {}}", "a whole number from 1 to priority_levels, not a mapping"),
            ("queue: {levels: {-1: {}}}", "expected the number of a priority, from 1, not -1"),
            (
                "queue: {levels: {99999999999999999999: {}}}",
                "99999999999999999999 is too large: expected the number of a priority, from 1",
            ),
            (
                "outputs: [{name: y, dtype: FP32, shape: [1.5]}]",
                "outputs[0].shape[0]: expected the size of a dimension, or -1 for any size, not 1.5",
            ),
            (
                "outputs: [{name: y, dtype: FP32, shape: [99999999999999999999]}]",
                "99999999999999999999 is too large: at most 9223372036854775807 is allowed",
            ),
        ] {
            assert!(error(text).ends_with(told), "{}", error(text));
        }
    }

    #[test]
    fn a_missing_field_is_named() {
        assert_eq!(
            error("inputs:\n- name: x\n  shape: [1]\n"),
            ":2:3: inputs[0]: `dtype` is missing and must be given"
        );
    }

    #[test]
    fn versions_say_every_way_to_write_them() {
        assert!(error("versions: 0").ends_with("`{latest: 2}` or `{specific: [1, 3]}`, not 0"));
        assert!(error("versions: newest").contains("`latest`, `all`, `{latest: 2}` or `{specific: [1, 3]}`"));
        assert!(error("versions: 2").contains("write `{latest: 2}` for the newest 2"));
        assert!(error("versions: [1, 3]").contains("is written `{specific: [1, 3]}`"));
        assert!(error("versions: {newest: 2}").contains("expected one of `latest` and `specific`"));
        assert!(error("versions: {num_versions: 2}").contains("write `latest`"));
        assert!(error("versions: {latest: 1, specific: [1]}").contains("only one of"));
        assert!(error("versions: {}").contains("nothing is chosen"));
    }

    #[test]
    fn instances_are_a_number_or_a_list() {
        assert!(error("instances: many").contains("a number from 1 to 1024, or a list such as"));
        assert!(error("instances: {device: gpu}").contains("a number from 1 to 1024, or a list such as"));
        assert!(error("instances: -2").contains("a number from 1 to 1024, or a list such as"));
        assert_eq!(
            error("instances:\n- device: cuda\n"),
            ":2:11: instances[0].device: unknown value `cuda`: expected one of `auto`, `cpu` and `gpu`"
        );
        assert!(error("instances: [{kind: gpu}]").contains("write `device`"));
    }

    #[test]
    fn broken_yaml_says_where() {
        let text = error("inputs: [\nname");
        assert!(text.starts_with(":2:"), "{text}");
        assert!(error("threads: 1\n---\nthreads: 2\n").contains("more than one YAML document"));
        assert!(error("max_batch_size: 1\nmax_batch_size: 2\n").contains("is given twice"));
        assert!(!error("inputs: \"a\\nb\"").contains('\n'));
        assert_eq!(
            error("queue:\n\tmax_size: 1"),
            ":2:1: queue: no value begins with this character: if it is a tab, write spaces instead"
        );
        assert!(error(&"[".repeat(1 << 20)).starts_with(":1:65: more than 64 brackets are open here"));
    }
}
