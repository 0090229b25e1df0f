//! The fields of a message whose schema is only known at run time.
//!
//! Names of fields that the schema does not have are mistakes in this crate; the tests would find them.

use std::borrow::Cow;

use prost_reflect::{DynamicMessage, MapKey, ReflectMessage, Value};

use super::super::padding::Number;

fn field<'a>(message: &'a DynamicMessage, name: &str) -> Option<&'a Value> {
    debug_assert!(is_known(message, name), "{name} is not in the schema");
    match message.get_field_by_name(name)? {
        Cow::Borrowed(value) => Some(value),
        // Not set; every caller below has protobuf's default.
        Cow::Owned(_) => None,
    }
}

/// Whether the field is set to anything but its default.
pub(super) fn is_set(message: &DynamicMessage, name: &str) -> bool {
    debug_assert!(is_known(message, name), "{name} is not in the schema");
    message.has_field_by_name(name)
}

fn is_known(message: &DynamicMessage, name: &str) -> bool {
    message.descriptor().get_field_by_name(name).is_some()
}

/// A string field; empty when it is not set.
pub(super) fn text<'a>(message: &'a DynamicMessage, name: &str) -> &'a str {
    field(message, name).and_then(Value::as_str).unwrap_or_default()
}

/// A repeated string field.
pub(super) fn texts(message: &DynamicMessage, name: &str) -> Vec<String> {
    list(message, name).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// A boolean field; false when it is not set.
pub(super) fn flag(message: &DynamicMessage, name: &str) -> bool {
    field(message, name).and_then(Value::as_bool).unwrap_or_default()
}

/// A field of one of the integer or enum types that the schema uses; 0 when it is not set.
pub(super) fn number(message: &DynamicMessage, name: &str) -> i64 {
    field(message, name).map_or(0, integer)
}

/// A repeated field of whole numbers, numbers or booleans.
pub(super) fn values(message: &DynamicMessage, name: &str) -> Vec<Number> {
    let number = |value: &Value| {
        let whole = value.as_i32().map(|number| Number::Integer(number.into()));
        let real = || value.as_f32().map(|number| Number::Float(number.into()));
        whole.or_else(real).or_else(|| value.as_bool().map(Number::Bool))
    };
    list(message, name).iter().filter_map(number).collect()
}

/// A repeated integer field.
pub(super) fn numbers(message: &DynamicMessage, name: &str) -> Vec<i64> {
    list(message, name).iter().map(integer).collect()
}

fn integer(value: &Value) -> i64 {
    let small = value.as_i32().or_else(|| value.as_enum_number()).map(i64::from);
    // No field may be as large as what does not fit.
    let large = || value.as_u64().map(|number| i64::try_from(number).unwrap_or(i64::MAX));
    let small = small.or_else(|| value.as_u32().map(i64::from));
    small.or_else(|| value.as_i64()).or_else(large).unwrap_or_default()
}

/// The name of an enum field's value, if the schema has one for it.
pub(super) fn enum_name(message: &DynamicMessage, name: &str, number: i64) -> Option<String> {
    let field = message.descriptor().get_field_by_name(name)?;
    let number = i32::try_from(number).ok()?;
    Some(field.kind().as_enum()?.get_value(number)?.name().to_owned())
}

/// A message field.
pub(super) fn message<'a>(message: &'a DynamicMessage, name: &str) -> Option<&'a DynamicMessage> {
    field(message, name)?.as_message()
}

/// A repeated message field.
pub(super) fn messages<'a>(message: &'a DynamicMessage, name: &str) -> Vec<&'a DynamicMessage> {
    list(message, name).iter().filter_map(Value::as_message).collect()
}

/// A map from strings to messages, in the order of its keys.
pub(super) fn entries<'a>(message: &'a DynamicMessage, name: &str) -> Vec<(&'a str, &'a DynamicMessage)> {
    let Some(map) = field(message, name).and_then(Value::as_map) else { return Vec::new() };
    let entry = |(key, value): (&'a MapKey, &'a Value)| Some((key.as_str()?, value.as_message()?));
    let mut entries: Vec<_> = map.iter().filter_map(entry).collect();
    entries.sort_unstable_by_key(|(key, _)| *key);
    entries
}

/// A map from numbers to messages, in the order of its keys.
pub(super) fn numbered<'a>(message: &'a DynamicMessage, name: &str) -> Vec<(u64, &'a DynamicMessage)> {
    let Some(map) = field(message, name).and_then(Value::as_map) else { return Vec::new() };
    let entry = |(key, value): (&'a MapKey, &'a Value)| Some((key.as_u64()?, value.as_message()?));
    let mut entries: Vec<_> = map.iter().filter_map(entry).collect();
    entries.sort_unstable_by_key(|(key, _)| *key);
    entries
}

fn list<'a>(message: &'a DynamicMessage, name: &str) -> &'a [Value] {
    field(message, name).and_then(Value::as_list).unwrap_or_default()
}
