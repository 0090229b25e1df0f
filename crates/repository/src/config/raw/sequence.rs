//! How requests form sequences, as it was written.

use std::{fmt, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Unexpected, Visitor, value::MapAccessDeserializer},
};

use super::{
    RawDuration, RawNumber, data_type, data_type_schema, shape_schema,
    warmup::{sample_shape_schema, some_data_type},
};
use crate::{DataType, config::padding::Number};

/// How requests form sequences, each of which depends on what the ones before it left.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, expecting = "fields such as `strategy: oldest`")]
#[schemars(rename = "Sequence")]
pub(in super::super) struct RawSequence {
    /// How sequences are joined into batches: `oldest` runs requests of different sequences together in any
    /// rows; `direct` gives each sequence one row of one instance for itself, for models that keep state of
    /// their own by row.
    #[schemars(extend("default" = "oldest"))]
    pub(in super::super) strategy: RawStrategy,
    /// How many sequences may be going on at once for each instance; only with `oldest`, because with
    /// `direct` there are as many as rows.
    #[schemars(range(min = 1, max = 1_000_000), extend("default" = 1024))]
    pub(in super::super) max_sequences: Option<u32>,
    /// How many more sequences may wait for their turn; without any, who comes too much is refused at once.
    #[schemars(range(max = 1_000_000))]
    pub(in super::super) max_waiting: u32,
    /// A sequence is forgotten when no request of it has come for so long.
    #[schemars(extend("default" = "60s"))]
    pub(in super::super) idle_timeout: RawDuration,
    /// How long a run may wait for more of its rows to have a request; only with `direct`.
    #[schemars(extend("default" = "0s"))]
    pub(in super::super) max_delay: Option<RawDuration>,
    /// Inputs that tell the model where in a sequence it is. The server makes them, so they are not listed
    /// in `inputs`.
    pub(in super::super) controls: RawControls,
    /// What the server keeps of a sequence between its requests: an output of one is an input of the next.
    pub(in super::super) states: Vec<RawState>,
}

impl Default for RawSequence {
    fn default() -> Self {
        Self {
            strategy: RawStrategy::default(),
            max_sequences: None,
            max_waiting: 0,
            idle_timeout: RawDuration(Duration::from_secs(60)),
            max_delay: None,
            controls: RawControls::default(),
            states: Vec::new(),
        }
    }
}

/// How sequences are joined into batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "SequenceStrategy")]
pub(in super::super) enum RawStrategy {
    #[default]
    Oldest,
    Direct,
}

/// What a control tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum RawControlKind {
    Start,
    End,
    Ready,
    CorrelationId,
}

impl RawControlKind {
    const ALL: [(&'static str, Self); 4] = [
        ("start", Self::Start),
        ("end", Self::End),
        ("ready", Self::Ready),
        ("correlation_id", Self::CorrelationId),
    ];

    /// Its name in `config.yaml`.
    pub(in super::super) fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

/// The controls in the order in which they were written, which may be that of the arguments.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct RawControls(pub(in super::super) Vec<(RawControlKind, RawControl)>);

/// Inputs that tell the model where in a sequence it is, each a name or fields.
#[derive(JsonSchema)]
#[schemars(rename = "Controls", deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used, because what reads it keeps the order")]
struct RawControlsFields {
    /// Whether the request is the first of its sequence.
    start: Option<RawControl>,
    /// Whether the request is the last of its sequence.
    end: Option<RawControl>,
    /// Whether there is a request in this row.
    ready: Option<RawControl>,
    /// The sequence's id: INT64 unless INT32, UINT32, UINT64 or BYTES is written.
    correlation_id: Option<RawControl>,
}

struct ControlsVisitor;

impl<'de> Visitor<'de> for ControlsVisitor {
    type Value = RawControls;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("fields such as `start: START`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawControls, A::Error> {
        const NAMES: [&str; 4] = ["start", "end", "ready", "correlation_id"];
        let mut controls: Vec<(RawControlKind, RawControl)> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let found = RawControlKind::ALL.into_iter().find(|(name, _)| *name == key);
            let Some((name, kind)) = found else { return Err(A::Error::unknown_field(&key, &NAMES)) };
            if controls.iter().any(|(known, _)| *known == kind) {
                return Err(A::Error::duplicate_field(name));
            }
            controls.push((kind, map.next_value()?));
        }
        Ok(RawControls(controls))
    }
}

impl<'de> Deserialize<'de> for RawControls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ControlsVisitor)
    }
}

impl JsonSchema for RawControls {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        RawControlsFields::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        RawControlsFields::json_schema(generator)
    }
}

/// An input that tells the model about the sequence.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ControlFields")]
pub(in super::super) struct RawControlFields {
    /// The name of the input.
    #[schemars(length(min = 1))]
    pub(in super::super) name: String,
    /// The type of its element: BOOL, the default, INT32 or FP32; for an id INT64, the default, INT32,
    /// UINT32, UINT64 or BYTES.
    #[serde(default, deserialize_with = "some_data_type")]
    #[schemars(schema_with = "data_type_schema")]
    pub(in super::super) dtype: Option<DataType>,
    /// The elements for no and for yes; false and true, or 0 and 1, unless they are given.
    #[serde(default)]
    #[schemars(length(min = 2, max = 2))]
    pub(in super::super) values: Option<Vec<RawNumber>>,
}

/// An input that tells the model about the sequence: a name, or fields.
#[derive(Clone, Debug)]
pub(in super::super) struct RawControl(pub(in super::super) RawControlFields);

struct ControlVisitor;

impl<'de> Visitor<'de> for ControlVisitor {
    type Value = RawControl;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of an input, or fields such as `{name: START, dtype: FP32}`")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<RawControl, E> {
        Ok(RawControl(RawControlFields { name: name.to_owned(), dtype: None, values: None }))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawControl, A::Error> {
        RawControlFields::deserialize(MapAccessDeserializer::new(map)).map(RawControl)
    }
}

impl<'de> Deserialize<'de> for RawControl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ControlVisitor)
    }
}

impl JsonSchema for RawControl {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Control".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let fields = generator.subschema_for::<RawControlFields>();
        json_schema!({ "oneOf": [{ "type": "string", "minLength": 1 }, fields] })
    }
}

/// A tensor that goes from an output of one request to an input of the next one of its sequence.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "a state such as `{input: h, output: new_h, dtype: FP32, shape: [64]}`"
)]
#[schemars(rename = "State")]
pub(in super::super) struct RawState {
    /// The name of the input; it is not listed in `inputs`.
    #[schemars(length(min = 1))]
    pub(in super::super) input: String,
    /// The name of the output; it is not listed in `outputs`.
    #[schemars(length(min = 1))]
    pub(in super::super) output: String,
    /// The type of the elements; not BYTES.
    #[serde(deserialize_with = "data_type")]
    #[schemars(schema_with = "data_type_schema")]
    pub(in super::super) dtype: DataType,
    /// The shape without the batch dimension; -1 may change from request to request.
    #[schemars(schema_with = "shape_schema")]
    pub(in super::super) shape: Vec<i64>,
    /// What a sequence begins with: `zeros`, a number for all elements, or `{file: NAME}` for a file in the
    /// model's directory `initial_state`.
    #[serde(default)]
    #[schemars(extend("default" = "zeros"))]
    pub(in super::super) initial: RawInitial,
    /// The shape with which a sequence begins; without it, that of `shape` with 1 for each -1.
    #[serde(default)]
    #[schemars(schema_with = "sample_shape_schema")]
    pub(in super::super) initial_shape: Option<Vec<i64>>,
}

/// What a sequence begins with.
#[derive(Clone, Debug, Default)]
pub(in super::super) enum RawInitial {
    #[default]
    Zeros,
    Number(RawNumber),
    File(RawInitialFile),
}

/// A file with what a sequence begins with.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "InitialFile")]
pub(in super::super) struct RawInitialFile {
    /// The file, relative to the model's directory `initial_state`: the bytes of the tensor as they are
    /// sent, for one row.
    #[schemars(length(min = 1))]
    pub(in super::super) file: String,
    /// As `initial_shape`, which is then left out.
    #[serde(default)]
    #[schemars(schema_with = "sample_shape_schema")]
    pub(in super::super) shape: Option<Vec<i64>>,
}

struct InitialVisitor;

impl<'de> Visitor<'de> for InitialVisitor {
    type Value = RawInitial;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`zeros`, a number, or `{file: x.bin}`")
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<RawInitial, E> {
        match word {
            "zeros" => Ok(RawInitial::Zeros),
            _ => Err(E::invalid_value(Unexpected::Str(word), &self)),
        }
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<RawInitial, E> {
        Ok(RawInitial::Number(RawNumber(Number::Bool(value))))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<RawInitial, E> {
        Ok(RawInitial::Number(RawNumber(Number::Integer(value.into()))))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<RawInitial, E> {
        Ok(RawInitial::Number(RawNumber(Number::Integer(value.into()))))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<RawInitial, E> {
        Ok(RawInitial::Number(RawNumber(Number::Float(value))))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawInitial, A::Error> {
        RawInitialFile::deserialize(MapAccessDeserializer::new(map)).map(RawInitial::File)
    }
}

impl<'de> Deserialize<'de> for RawInitial {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InitialVisitor)
    }
}

impl JsonSchema for RawInitial {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Initial".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let file = generator.subschema_for::<RawInitialFile>();
        json_schema!({ "oneOf": [{ "const": "zeros" }, { "type": ["number", "boolean"] }, file] })
    }
}
