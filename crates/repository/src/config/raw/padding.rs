//! A number to fill up with, as it was written.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};

use crate::config::padding::Number;

/// A number of any kind; whether it is one of the tensor's is checked with the tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in super::super) struct RawNumber(pub(in super::super) Number);

impl RawNumber {
    /// Reads it out of a parameter; `None` where it is no number.
    pub(in super::super) fn parse(text: &str) -> Option<Self> {
        let number = match (text, text.parse()) {
            ("true", _) => Number::Bool(true),
            ("false", _) => Number::Bool(false),
            (_, Ok(whole)) => Number::Integer(whole),
            (_, Err(_)) => Number::Float(text.parse().ok()?),
        };
        Some(Self(number))
    }
}

struct NumberVisitor;

impl Visitor<'_> for NumberVisitor {
    type Value = RawNumber;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number such as 0")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<RawNumber, E> {
        Ok(RawNumber(Number::Bool(value)))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<RawNumber, E> {
        Ok(RawNumber(Number::Integer(value.into())))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<RawNumber, E> {
        Ok(RawNumber(Number::Integer(value.into())))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<RawNumber, E> {
        Ok(RawNumber(Number::Float(value)))
    }
}

impl<'de> Deserialize<'de> for RawNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberVisitor)
    }
}

impl JsonSchema for RawNumber {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Number".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["number", "boolean"] })
    }
}
