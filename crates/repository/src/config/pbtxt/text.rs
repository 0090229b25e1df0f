//! Protobuf's text format to a message of Triton's schema.

use std::sync::LazyLock;

use miette::Diagnostic;
use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, MessageDescriptor, text_format::ParseError,
};

use super::{
    super::{
        error::{Fault, Place},
        hint,
    },
    colons,
};
use crate::escape::{one_line, sentence};

/// The schema of `config.pbtxt`, compiled from `proto/model_config.proto` when this crate is built.
static SCHEMA: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/model_config.bin"));
    DescriptorPool::decode(bytes.as_slice()).expect("the build script wrote a descriptor set")
});

/// The schema's message for a configuration.
pub(super) fn model_config() -> MessageDescriptor {
    SCHEMA.get_message_by_name("inference.ModelConfig").expect("the schema has this message")
}

/// Reads the text of a `config.pbtxt`.
pub(super) fn parse(text: &str) -> Result<DynamicMessage, Fault> {
    let completed = colons::complete(text);
    DynamicMessage::parse_text_format(model_config(), &completed.text).map_err(|err| {
        // Nothing is marked when the text ends too early.
        let offset = mark(&err).map_or(text.len(), |offset| completed.original(offset));
        let position = Some(position(text, offset));
        Fault {
            place: Place { position, key: String::new() },
            message: reworded(&err, text.get(offset..).unwrap_or_default()),
        }
    })
}

/// Where in the text that was parsed the error is.
fn mark(err: &ParseError) -> Option<usize> {
    err.labels()?.next().map(|label| label.offset())
}

/// Line and column, in characters and counted from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = String::from_utf8_lossy(&before[line_start..]).chars().count() + 1;
    (line, column)
}

/// The parser's words, with what was probably meant where that can be told.
fn reworded(err: &ParseError, rest: &str) -> String {
    let message = err.to_string();
    if let Some((field, owner)) = between(&message, "field '", "' not found for message '") {
        return match SCHEMA.get_message_by_name(owner) {
            Some(owner) => unknown_field(field, &owner),
            None => sentence(&message),
        };
    }
    if let Some((value, owner)) = between(&message, "value '", "' was not found for enum '") {
        return match SCHEMA.get_enum_by_name(owner) {
            Some(owner) => unknown_value(value, &owner),
            None => sentence(&message),
        };
    }
    if message == "invalid token" {
        let found = rest.chars().next();
        let found = found.map_or_else(|| "the end".to_owned(), |found| format!("`{}`", found.escape_debug()));
        return format!(
            "{found} is not expected here: protobuf's text format is `field: value` or `field {{ ... }}`"
        );
    }
    if let Some(field) = message.strip_suffix("' is already set").and_then(|rest| rest.strip_prefix('\'')) {
        return format!("`{}` is given twice: keep one of them", one_line(field));
    }
    if message.starts_with("a value is already set for oneof") {
        return format!("only one choice can be made here, and this is the second: {}", sentence(&message));
    }
    sentence(&message)
}

fn between<'a>(message: &'a str, before: &str, middle: &str) -> Option<(&'a str, &'a str)> {
    let (left, right) = message.strip_prefix(before)?.split_once(middle)?;
    Some((left, right.strip_suffix('\'')?))
}

/// What a field most likely means that the message does not have.
pub(super) fn unknown_field(name: &str, owner: &MessageDescriptor) -> String {
    let known: Vec<String> = owner.fields().map(|field| field.name().to_owned()).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    format!("{} ({} of Triton)", hint::field(name, &known, hint::TRITON_RENAMED), owner.name())
}

/// What a value most likely means that the enum does not have.
pub(super) fn unknown_value(value: &str, owner: &EnumDescriptor) -> String {
    let shown = one_line(value);
    let known: Vec<String> = owner.values().map(|value| value.name().to_owned()).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let meant = match owner.name() {
        "DataType" => hint::meant_data_type(value).map(|meant| {
            format!("TYPE_{}", if meant == crate::DataType::Bytes { "STRING" } else { meant.name() })
        }),
        _ => hint::nearest(value, &known).map(str::to_owned),
    };
    match meant {
        Some(meant) => format!("unknown value `{shown}`: write {meant}"),
        None => format!("unknown value `{shown}`: expected {}", hint::one_of(&known)),
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
    fn every_way_to_write_a_list_is_read() {
        let brackets =
            parse("input [ { name: \"a\" dims: [ 1, 2 ] }, { name: 'b' } ] # comment").expect("brackets");
        let repeated =
            parse("input { name: \"a\" dims: 1 dims: 2 }\ninput: < name: \"b\"; >").expect("repeated");
        assert_eq!(brackets, repeated);
    }

    #[test]
    fn the_other_liberties_of_the_format_are_read() {
        let usual = parse("name: \"ab\" model_transaction_policy { decoupled: true }").expect("usual");
        let free = parse("name: \"a\" 'b'; model_transaction_policy: < decoupled: True >,").expect("free");
        assert_eq!(usual, free);
    }

    #[test]
    fn an_unknown_field_says_where_and_what_was_meant() {
        let text = error("name: \"x\"\ninput {\n  shape: [ 3 ]\n}\n");
        assert_eq!(text, ":3:3: unknown field `shape`: write `dims` (ModelInput of Triton)");
        let text = error("max_batch_sise: 4");
        assert!(text.contains("write `max_batch_size`"), "{text}");
        let text = error("qqqqqqqqq: 4");
        assert!(text.contains("expected one of `name`, `platform`"), "{text}");
    }

    #[test]
    fn an_unknown_value_says_what_to_write() {
        assert!(error("input { data_type: FP32 }").ends_with(":1:20: unknown value `FP32`: write TYPE_FP32"));
        assert!(error("input { data_type: BYTES }").ends_with("write TYPE_STRING"));
        assert!(error("instance_group { kind: KIND_GPUS }").ends_with("write KIND_GPU"));
    }

    #[test]
    fn broken_text_says_where() {
        assert!(error("name \"x\"").starts_with(":1:6: expected ':'"), "{}", error("name \"x\""));
        assert!(error("input {\n").starts_with(":2:1: expected"), "{}", error("input {\n"));
        assert!(
            error("name: \"ä\" $").starts_with(":1:11: `$` is not expected"),
            "{}",
            error("name: \"ä\" $")
        );
        assert!(error("max_batch_size: 99999999999").contains("out of range"));
        assert!(error("name: \"a\" name: \"b\"").contains("`name` is given twice"));
        assert!(error("dynamic_batching { } sequence_batching { }").contains("only one choice"));
    }
}
