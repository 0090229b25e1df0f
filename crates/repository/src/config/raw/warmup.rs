//! How a version is warmed up, as it was written.

use std::{collections::BTreeMap, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{
        Error, MapAccess, SeqAccess, Unexpected, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};

use super::{data_type, data_type_schema};
use crate::{DataType, escape::one_line};

/// How a version is warmed up.
#[derive(Clone, Debug, Default)]
pub(in super::super) enum RawWarmup {
    #[default]
    Auto,
    Off,
    Samples(Vec<RawSample>),
}

struct WarmupVisitor;

impl<'de> Visitor<'de> for WarmupVisitor {
    type Value = RawWarmup;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`auto`, `off`, or a list such as `[{inputs: {x: {dtype: FP32, shape: [4]}}}]`")
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<RawWarmup, E> {
        match word {
            "auto" => Ok(RawWarmup::Auto),
            "off" => Ok(RawWarmup::Off),
            _ => Err(E::invalid_value(Unexpected::Str(word), &self)),
        }
    }

    fn visit_bool<E: Error>(self, on: bool) -> Result<RawWarmup, E> {
        let word = if on { "auto" } else { "off" };
        Err(E::custom(format!("`{on}` is not a way to warm up: write `{word}`")))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<RawWarmup, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(seq)).map(RawWarmup::Samples)
    }
}

impl<'de> Deserialize<'de> for RawWarmup {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WarmupVisitor)
    }
}

impl JsonSchema for RawWarmup {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Warmup".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let sample = generator.subschema_for::<RawSample>();
        json_schema!({
            "oneOf": [
                { "enum": ["auto", "off"] },
                { "type": "array", "minItems": 1, "items": sample }
            ]
        })
    }
}

/// One request that a version must answer before it serves.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "a sample such as `{inputs: {x: {dtype: FP32, shape: [4], data: random}}}`"
)]
#[schemars(rename = "WarmupSample")]
pub(in super::super) struct RawSample {
    /// The name for messages.
    #[serde(default)]
    pub(in super::super) name: Option<String>,
    /// The size of the batch; 1 unless it is given, and only for models with a batch dimension.
    #[serde(default)]
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub(in super::super) batch_size: Option<u32>,
    /// How often it is run.
    #[serde(default = "super::one")]
    #[schemars(range(min = 1, max = 10_000))]
    pub(in super::super) count: u32,
    /// What is sent: a tensor for each name.
    #[serde(deserialize_with = "inputs")]
    #[schemars(with = "BTreeMap<String, RawSampleInput>")]
    pub(in super::super) inputs: BTreeMap<String, RawSampleInput>,
}

/// One tensor of a sample.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a tensor such as `{dtype: FP32, shape: [4], data: random}`")]
#[schemars(rename = "WarmupInput")]
pub(in super::super) struct RawSampleInput {
    /// The type of the elements; it can be left out where `inputs` says it.
    #[serde(default, deserialize_with = "some_data_type")]
    #[schemars(schema_with = "data_type_schema")]
    pub(in super::super) dtype: Option<DataType>,
    /// The shape without the batch dimension; it can be left out where `inputs` says it without -1.
    #[serde(default)]
    #[schemars(schema_with = "sample_shape_schema")]
    pub(in super::super) shape: Option<Vec<i64>>,
    /// The elements: `random`, `zero`, or `{file: NAME}` for a file in the model's directory `warmup`.
    #[serde(default)]
    #[schemars(extend("default" = "random"))]
    pub(in super::super) data: RawSampleData,
}

pub(super) fn some_data_type<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<DataType>, D::Error> {
    data_type(deserializer).map(Some)
}

pub(super) fn sample_shape_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["array", "null"], "items": { "type": "integer", "minimum": 0 } })
}

fn inputs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, RawSampleInput>, D::Error> {
    deserializer.deserialize_map(InputsVisitor)
}

/// Written out because a map would silently keep the last of two tensors with the same name.
struct InputsVisitor;

impl<'de> Visitor<'de> for InputsVisitor {
    type Value = BTreeMap<String, RawSampleInput>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tensor for each name, such as `{x: {dtype: FP32, shape: [4]}}`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut inputs = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if inputs.contains_key(&name) {
                let name = one_line(&name);
                return Err(A::Error::custom(format!("`{name}` is given twice: keep one of them")));
            }
            inputs.insert(name, map.next_value()?);
        }
        Ok(inputs)
    }
}

/// The elements of a tensor of a sample.
#[derive(Clone, Debug, Default)]
pub(in super::super) enum RawSampleData {
    Zero,
    #[default]
    Random,
    File(String),
}

/// The long form of [`RawSampleData`].
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "WarmupFile")]
struct RawSampleFile {
    /// The file, relative to the directory `warmup` of the model: the bytes of the tensor as they are
    /// sent, for one row of the batch or for all of it.
    #[schemars(length(min = 1))]
    file: String,
}

struct DataVisitor;

impl<'de> Visitor<'de> for DataVisitor {
    type Value = RawSampleData;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`random`, `zero` or `{file: x.bin}`")
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<RawSampleData, E> {
        match word {
            "zero" => Ok(RawSampleData::Zero),
            "random" => Ok(RawSampleData::Random),
            _ => Err(E::invalid_value(Unexpected::Str(word), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawSampleData, A::Error> {
        let RawSampleFile { file } = RawSampleFile::deserialize(MapAccessDeserializer::new(map))?;
        Ok(RawSampleData::File(file))
    }
}

impl<'de> Deserialize<'de> for RawSampleData {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DataVisitor)
    }
}

impl JsonSchema for RawSampleData {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "WarmupData".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let file = generator.subschema_for::<RawSampleFile>();
        json_schema!({ "oneOf": [{ "enum": ["random", "zero"] }, file] })
    }
}
