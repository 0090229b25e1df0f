//! A configuration as it was written, before it is checked.
//!
//! The structs are the format of `config.yaml`: their doc comments are the descriptions in its JSON
//! Schema. `config.pbtxt` is translated into them, so that there is one place that checks.

mod generate;
mod padding;
mod ragged;
mod scheduling;
mod sequence;
mod warmup;

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Unexpected, Visitor, value::SeqAccessDeserializer},
};

use super::{Availability, hint};
use crate::DataType;

pub(super) use generate::{RawGenerate, RawStop, max_steps};
pub(super) use padding::RawNumber;
pub(super) use ragged::RawBatchInput;
pub(super) use scheduling::{RawBatching, RawBatchingFields, RawDuration, RawQueue, RawQueueLevel};
pub(super) use sequence::{
    RawControl, RawControlFields, RawControlKind, RawControls, RawInitial, RawInitialFile, RawSequence,
    RawState, RawStrategy,
};
pub(super) use warmup::{RawSample, RawSampleData, RawSampleInput, RawWarmup};

/// How Sconce serves a model: the file `config.yaml` in the model's directory. Every field is optional.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, expecting = "fields such as `inputs:`")]
#[schemars(title = "config.yaml")]
pub(super) struct RawConfig {
    /// The name of the model; it must be the name of the directory, and is best left out.
    pub(super) name: Option<String>,
    /// The kind of model; `pytorch_libtorch` (TorchScript) is the only one.
    #[schemars(extend("enum" = ["pytorch_libtorch", null]))]
    pub(super) platform: Option<String>,
    /// The largest batch that the model may be given. Above 0, the model's tensors have a first
    /// dimension that is not written in any `shape`.
    #[schemars(range(max = 2_147_483_647))]
    pub(super) max_batch_size: u32,
    /// What clients send. Without it, names and types come from the signature of `forward`.
    pub(super) inputs: Vec<RawInput>,
    /// What the server adds to the inputs: it is made of the shapes that these have in the requests of a batch.
    pub(super) batch_inputs: Vec<RawBatchInput>,
    /// What clients get. Without it, names and types come from the signature of `forward`.
    pub(super) outputs: Vec<RawOutput>,
    /// Which versions are served: `latest` (the default), `all`, `{latest: 2}` or `{specific: [1, 3]}`.
    pub(super) versions: RawVersions,
    /// How many runs at once, or a list that says so for each kind of device.
    pub(super) instances: RawInstances,
    /// How requests are joined into batches: `auto` runs together what waits when a worker is free, for
    /// models that have a batch dimension and no state; `off` runs each request on its own; fields say more.
    #[schemars(extend("default" = "auto"))]
    pub(super) batching: RawBatching,
    /// How requests wait until they are run.
    pub(super) queue: RawQueue,
    /// The model's share of a device beside others that compete for it: one of weight 2 gets twice the
    /// time of one of weight 1.
    #[schemars(range(min = 1, max = 1000))]
    pub(super) weight: u32,
    /// What is done first when a version takes the place of another: `keep` loads the new one while the
    /// old one serves, `replace` unloads the old one, for devices that hold one copy of the weights.
    #[schemars(extend("default" = "keep"))]
    pub(super) availability: Availability,
    /// What a version is run with before it serves: `auto` makes inputs up where the shapes are known,
    /// `off` does nothing, and a list has samples that the version must be able to answer.
    #[schemars(extend("default" = "auto"))]
    pub(super) warmup: RawWarmup,
    /// The name of the file in each version's directory.
    pub(super) model_file: String,
    /// Threads for the operators of one run; without it, the server chooses.
    #[schemars(range(min = 1, max = 1024))]
    pub(super) threads: Option<u32>,
    /// Whether the module may be rewritten for inference after loading, which can change the last bits
    /// of its answers.
    pub(super) optimize: bool,
    /// Whether the model runs in libtorch's inference mode.
    pub(super) inference_mode: bool,
    /// Whether TorchScript's executor may optimize while it runs.
    pub(super) optimized_execution: bool,
    /// Whether `forward` may change the module's own attributes; each runner then has its own copy.
    pub(super) stateful: bool,
    /// How requests form sequences, each of which depends on what the ones before it left; without it, each
    /// request is for itself.
    pub(super) sequence: Option<RawSequence>,
    /// How a model answers one request with many answers, step by step; without it, each request has one.
    pub(super) generate: Option<RawGenerate>,
    /// Shared libraries with custom operators, relative to the model's directory.
    pub(super) op_libraries: Vec<String>,
}

impl Default for RawConfig {
    fn default() -> Self {
        Self {
            name: None,
            platform: None,
            max_batch_size: 0,
            inputs: Vec::new(),
            batch_inputs: Vec::new(),
            outputs: Vec::new(),
            versions: RawVersions::default(),
            instances: RawInstances::default(),
            batching: RawBatching::default(),
            queue: RawQueue::default(),
            weight: 1,
            availability: Availability::default(),
            warmup: RawWarmup::default(),
            model_file: "model.pt".to_owned(),
            threads: None,
            optimize: false,
            inference_mode: true,
            optimized_execution: true,
            stateful: false,
            sequence: None,
            generate: None,
            op_libraries: Vec::new(),
        }
    }
}

/// A tensor that clients send.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "an input such as `{name: x, dtype: FP32, shape: [-1]}`")]
#[schemars(rename = "Input")]
pub(super) struct RawInput {
    /// The name that clients use.
    #[schemars(length(min = 1))]
    pub(super) name: String,
    /// The type of the elements.
    #[serde(deserialize_with = "data_type")]
    #[schemars(schema_with = "data_type_schema")]
    pub(super) dtype: DataType,
    /// The shape without the batch dimension; -1 is any size.
    #[schemars(schema_with = "shape_schema")]
    pub(super) shape: Vec<i64>,
    /// The shape that the model sees instead, with as many elements; `[]` is a scalar.
    #[serde(default)]
    #[schemars(schema_with = "reshape_schema")]
    pub(super) reshape: Option<Vec<i64>>,
    /// Whether a request may leave this input out.
    #[serde(default)]
    pub(super) optional: bool,
    /// What its variable dimensions (-1) are filled up with to the largest of a batch, so that requests of
    /// different lengths run together.
    #[serde(default)]
    pub(super) pad: Option<RawNumber>,
    /// The input of which this one is the mask: 1 where that has an element and 0 where it was filled up.
    /// The server makes it where a request leaves it out.
    #[serde(default)]
    pub(super) mask_of: Option<String>,
    /// Whether the model takes its requests one behind the other: of a batch it gets all elements of this input in
    /// one dimension, whatever shapes they have.
    #[serde(default)]
    pub(super) ragged: bool,
}

/// A tensor that clients get.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "an output such as `{name: y, dtype: FP32, shape: [10]}`")]
#[schemars(rename = "Output")]
pub(super) struct RawOutput {
    /// The name that clients use.
    #[schemars(length(min = 1))]
    pub(super) name: String,
    /// The type of the elements.
    #[serde(deserialize_with = "data_type")]
    #[schemars(schema_with = "data_type_schema")]
    pub(super) dtype: DataType,
    /// The shape without the batch dimension; -1 is any size.
    #[schemars(schema_with = "shape_schema")]
    pub(super) shape: Vec<i64>,
    /// The shape that the model gives instead, with as many elements; `[]` is a scalar.
    #[serde(default)]
    #[schemars(schema_with = "reshape_schema")]
    pub(super) reshape: Option<Vec<i64>>,
    /// A text file in the model's directory that names one class per line.
    #[serde(default)]
    pub(super) labels: Option<String>,
    /// The input to whose length the variable dimensions (-1) are cut back where that was filled up.
    #[serde(default)]
    pub(super) unpad: Option<String>,
    /// The input whose shape says how many elements each request gets of all that the model returns: a variable
    /// dimension (-1) is as large as the same dimension there.
    #[serde(default)]
    pub(super) scatter_like: Option<String>,
}

fn data_type<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DataType, D::Error> {
    deserializer.deserialize_str(DataTypeVisitor)
}

/// A visitor, because only an error from inside the parser is marked with the place of the value.
struct DataTypeVisitor;

impl Visitor<'_> for DataTypeVisitor {
    type Value = DataType;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a data type such as FP32")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<DataType, E> {
        DataType::from_name(name).ok_or_else(|| E::custom(hint::data_type(name)))
    }
}

fn data_type_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": DataType::ALL.map(DataType::name) })
}

fn dim_schema() -> Schema {
    json_schema!({ "type": "integer", "anyOf": [{ "const": -1 }, { "minimum": 1 }] })
}

fn shape_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": dim_schema() })
}

fn reshape_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["array", "null"], "items": dim_schema() })
}

/// Which versions are served.
#[derive(Clone, Debug)]
pub(super) enum RawVersions {
    Latest(u32),
    All,
    Specific(Vec<u64>),
}

impl Default for RawVersions {
    fn default() -> Self {
        Self::Latest(1)
    }
}

/// Written out because a derived choice between alternatives could only say that none matched.
struct VersionsVisitor;

impl<'de> Visitor<'de> for VersionsVisitor {
    type Value = RawVersions;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`latest`, `all`, `{latest: 2}` or `{specific: [1, 3]}`")
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<RawVersions, E> {
        match word {
            "latest" => Ok(RawVersions::default()),
            "all" => Ok(RawVersions::All),
            _ => Err(E::invalid_value(Unexpected::Str(word), &self)),
        }
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<RawVersions, E> {
        if number == 0 {
            return Err(E::invalid_type(Unexpected::Unsigned(number), &self));
        }
        Err(E::custom(format!(
            "a bare number is not clear: write `{{latest: {number}}}` for the newest {number}, or \
             `{{specific: [{number}]}}` for version {number}"
        )))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<RawVersions, A::Error> {
        Err(A::Error::custom("a list of versions is written `{specific: [1, 3]}`"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawVersions, A::Error> {
        let Some(key) = map.next_key::<String>()? else {
            return Err(A::Error::custom("nothing is chosen: write `latest`, `all` or `{specific: [1, 3]}`"));
        };
        let versions = match key.as_str() {
            "latest" => RawVersions::Latest(map.next_value()?),
            "specific" => RawVersions::Specific(map.next_value()?),
            _ => return Err(A::Error::unknown_field(&key, &["latest", "specific"])),
        };
        match map.next_key::<String>()? {
            None => Ok(versions),
            Some(_) => Err(A::Error::custom("only one of `latest` and `specific` can be given")),
        }
    }
}

impl<'de> Deserialize<'de> for RawVersions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VersionsVisitor)
    }
}

impl JsonSchema for RawVersions {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Versions".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let fields = json_schema!({
            "latest": { "type": "integer", "minimum": 1, "description": "The highest versions, this \
             many." },
            "specific": {
                "type": "array", "minItems": 1, "uniqueItems": true,
                "items": { "type": "integer", "minimum": 1 },
                "description": "These versions and no others."
            }
        });
        json_schema!({
            "oneOf": [
                { "enum": ["latest", "all"] },
                {
                    "type": "object", "properties": fields,
                    "minProperties": 1, "maxProperties": 1, "additionalProperties": false
                }
            ],
            "default": "latest"
        })
    }
}

/// How many runs at once, and where.
#[derive(Clone, Debug)]
pub(super) enum RawInstances {
    Count(u32),
    Groups(Vec<RawInstanceGroup>),
}

impl Default for RawInstances {
    fn default() -> Self {
        Self::Groups(Vec::new())
    }
}

/// Devices of one kind, and how many runs at once on each.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a group such as `{device: gpu, count: 2}`")]
#[schemars(rename = "InstanceGroup")]
pub(super) struct RawInstanceGroup {
    /// The kind of device; `auto` takes the GPUs where there are any, else the CPU.
    #[serde(default)]
    pub(super) device: RawDevice,
    /// How many runs at once on each device.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1024))]
    pub(super) count: u32,
    /// The GPUs by index; all of them when the list is empty.
    #[serde(default)]
    pub(super) gpus: Vec<u32>,
}

fn one() -> u32 {
    1
}

/// The kind of device.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "Device")]
pub(super) enum RawDevice {
    #[default]
    Auto,
    Cpu,
    Gpu,
}

struct InstancesVisitor;

impl<'de> Visitor<'de> for InstancesVisitor {
    type Value = RawInstances;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number from 1 to 1024, or a list such as `[{device: gpu, count: 2}]`")
    }

    fn visit_u64<E: Error>(self, count: u64) -> Result<RawInstances, E> {
        let fits = u32::try_from(count).map(RawInstances::Count);
        fits.map_err(|_| E::invalid_value(Unexpected::Unsigned(count), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<RawInstances, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(seq)).map(RawInstances::Groups)
    }
}

impl<'de> Deserialize<'de> for RawInstances {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InstancesVisitor)
    }
}

impl JsonSchema for RawInstances {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Instances".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let group = generator.subschema_for::<RawInstanceGroup>();
        json_schema!({
            "oneOf": [
                { "type": "integer", "minimum": 1, "maximum": 1024 },
                { "type": "array", "items": group }
            ]
        })
    }
}
