//! Protobuf's JSON to a message of Triton's schema.

use prost_reflect::{DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use serde::de::DeserializeSeed;
use serde_path_to_error::{Path as KeyPath, Segment, Track};

use super::{
    super::error::{Fault, Place},
    text,
};
use crate::escape::{one_line, sentence};

/// Reads a configuration as `protobuf`'s libraries write it in JSON; names of fields may be Triton's own
/// or in camel case, and values of enums names or numbers.
pub(super) fn parse(json: &str) -> Result<DynamicMessage, Fault> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let mut track = Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut deserializer, &mut track);
    match text::model_config().deserialize(tracked) {
        Ok(message) => match deserializer.end() {
            Ok(()) => Ok(message),
            Err(err) => Err(fault(&Track::new().path(), &err)),
        },
        Err(err) => Err(fault(&track.path(), &err)),
    }
}

fn fault(path: &KeyPath, err: &serde_json::Error) -> Fault {
    let key = match path.to_string() {
        root if root == "." => String::new(),
        key => one_line(key.trim_end_matches(".?")),
    };
    let position = (err.line() > 0).then_some((err.line(), err.column().max(1)));
    let text = err.to_string();
    let text = text.rsplit_once(" at line ").map_or(&*text, |(text, _)| text);
    Fault { place: Place { position, key }, message: reworded(text, path) }
}

/// The parser's words, with what was probably meant where that can be told.
fn reworded(text: &str, path: &KeyPath) -> String {
    if let (Some(field), Some(owner)) = (quoted(text, "unrecognized field name '"), message_at(path)) {
        return text::unknown_field(field, &owner);
    }
    if let (Some(value), Some(owner)) = (quoted(text, "unrecognized enum value '"), enum_at(path)) {
        return text::unknown_value(value, &owner);
    }
    if let Some(choice) = quoted(text, "multiple fields provided for oneof '") {
        return format!("only one choice can be made for `{choice}`: keep one of its fields");
    }
    let mut message = text.to_owned();
    for (library, plain) in [
        ("invalid type: sequence", "invalid type: list"),
        ("expected a map", "expected an object such as `{}`"),
        ("expected a list", "expected a list such as `[1, 2]`"),
        ("expected a boolean", "expected true or false"),
        ("a 32-bit signed integer", "a whole number"),
        ("a 32-bit unsigned integer or decimal string", "a whole number, 0 or greater"),
        ("a 64-bit signed integer or decimal string", "a whole number"),
        ("a 64-bit unsigned integer or decimal string", "a whole number, 0 or greater"),
    ] {
        message = message.replace(library, plain);
    }
    sentence(&message)
}

fn quoted<'a>(text: &'a str, before: &str) -> Option<&'a str> {
    text.strip_prefix(before)?.strip_suffix('\'')
}

/// The message in which the path ends.
fn message_at(path: &KeyPath) -> Option<MessageDescriptor> {
    match field_at(path) {
        None => Some(text::model_config()),
        Some(field) => field.kind().as_message().cloned(),
    }
}

fn enum_at(path: &KeyPath) -> Option<EnumDescriptor> {
    field_at(path)?.kind().as_enum().cloned()
}

/// The field to which the path leads; for an entry of a map the one that holds its value.
fn field_at(path: &KeyPath) -> Option<FieldDescriptor> {
    let mut message = text::model_config();
    let mut found: Option<FieldDescriptor> = None;
    for segment in path.iter() {
        let Segment::Map { key } = segment else { continue };
        let field = match found.filter(FieldDescriptor::is_map) {
            Some(map) => map.kind().as_message()?.map_entry_value_field(),
            None => message.get_field_by_json_name(key).or_else(|| message.get_field_by_name(key))?,
        };
        if let (Kind::Message(inner), false) = (field.kind(), field.is_map()) {
            message = inner;
        }
        found = Some(field);
    }
    found
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
