//! How requests wait and are joined into batches, as it was written.

use std::{collections::BTreeMap, fmt, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Unexpected, Visitor, value::MapAccessDeserializer},
};

use crate::{config::OnTimeout, escape::one_line};

/// More characters than this are no length of time.
const MAX_DURATION_CHARS: usize = 32;

/// More digits in a row than this are no length of time either. The parser panics at sums close to the
/// largest number of seconds; with these two limits no sum comes near it.
const MAX_DURATION_DIGITS: usize = 11;

/// A length of time: `500us`, `2ms`, `1s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct RawDuration(pub(in super::super) Duration);

impl RawDuration {
    /// Reads a number with its unit, or several of them; the error is a sentence.
    pub(in super::super) fn parse(text: &str) -> Result<Self, String> {
        let digits = text.split(|character: char| !character.is_ascii_digit()).map(str::len).max();
        let sane = text.chars().count() <= MAX_DURATION_CHARS && digits <= Some(MAX_DURATION_DIGITS);
        let parsed = Some(text).filter(|_| sane).and_then(|text| humantime::parse_duration(text).ok());
        parsed.map(Self).ok_or_else(|| {
            let wrong = match text {
                "" => "nothing is written here".to_owned(),
                _ => format!("`{}` is not a length of time", one_line(text)),
            };
            format!("{wrong}: write a number with its unit, such as 500us, 2ms or 1s")
        })
    }
}

/// A visitor, because only an error from inside the parser is marked with the place of the value.
struct DurationVisitor;

impl Visitor<'_> for DurationVisitor {
    type Value = RawDuration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a length of time such as `2ms`")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<RawDuration, E> {
        RawDuration::parse(text).map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for RawDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(DurationVisitor)
    }
}

impl JsonSchema for RawDuration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "examples": ["500us", "2ms", "1s"] })
    }
}

/// Whether requests are joined, and how.
#[derive(Clone, Debug, Default)]
pub(in super::super) enum RawBatching {
    #[default]
    Auto,
    Off,
    Fields(RawBatchingFields),
}

/// How requests are joined into batches.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, expecting = "fields such as `max_delay: 2ms`")]
#[schemars(rename = "BatchingFields")]
pub(in super::super) struct RawBatchingFields {
    /// How long the oldest request may wait for a batch to grow; it ends when a preferred size is reached.
    #[schemars(extend("default" = "0s"))]
    pub(in super::super) max_delay: RawDuration,
    /// Sizes, in rows, that are run at once when they are reached; without them, the largest batch.
    /// Beside `allowed_sizes`, some of those.
    #[schemars(inner(range(min = 1, max = 2_147_483_647)))]
    pub(in super::super) preferred_sizes: Vec<u32>,
    /// Whether answers leave in the order in which their requests came.
    pub(in super::super) preserve_ordering: bool,
    /// The only sizes, in rows, that the model is run with: smaller batches are filled up with zeros. The
    /// largest must be `max_batch_size`.
    #[schemars(inner(range(min = 1, max = 2_147_483_647)))]
    pub(in super::super) allowed_sizes: Vec<u32>,
    /// Wait for company as long as that raises throughput and no request is expected to take longer than
    /// this.
    pub(in super::super) latency_target: Option<RawDuration>,
}

struct BatchingVisitor;

impl<'de> Visitor<'de> for BatchingVisitor {
    type Value = RawBatching;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`auto`, `off`, or fields such as `{max_delay: 2ms}`")
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<RawBatching, E> {
        match word {
            "auto" => Ok(RawBatching::Auto),
            "off" => Ok(RawBatching::Off),
            _ => Err(E::invalid_value(Unexpected::Str(word), &self)),
        }
    }

    fn visit_bool<E: Error>(self, on: bool) -> Result<RawBatching, E> {
        let word = if on { "auto" } else { "off" };
        Err(E::custom(format!("`{on}` is not a way to join requests: write `{word}`")))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawBatching, A::Error> {
        RawBatchingFields::deserialize(MapAccessDeserializer::new(map)).map(RawBatching::Fields)
    }
}

impl<'de> Deserialize<'de> for RawBatching {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BatchingVisitor)
    }
}

impl JsonSchema for RawBatching {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Batching".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let fields = generator.subschema_for::<RawBatchingFields>();
        json_schema!({ "oneOf": [{ "enum": ["auto", "off"] }, fields] })
    }
}

/// How requests wait.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, expecting = "fields such as `max_size: 100`")]
#[schemars(rename = "Queue")]
pub(in super::super) struct RawQueue {
    /// How many requests of each priority may wait; without it, as many as the server lets wait.
    #[schemars(range(min = 1))]
    pub(in super::super) max_size: Option<u32>,
    /// How long a request may wait; without it, as long as its caller does.
    pub(in super::super) timeout: Option<RawDuration>,
    /// What becomes of a request that has waited that long: `reject` refuses it, `delay` lets it wait on,
    /// behind those of its priority that have not waited so long, and needs `timeout` or
    /// `allow_timeout_override`.
    #[schemars(extend("default" = "reject"))]
    pub(in super::super) on_timeout: OnTimeout,
    /// Whether a request may state a timeout of its own.
    pub(in super::super) allow_timeout_override: bool,
    /// How many priorities there are; 1 is the highest, and goes before all others.
    #[schemars(range(min = 1, max = 64))]
    pub(in super::super) priority_levels: u32,
    /// The priority of a request that names none; without it, the lowest.
    #[schemars(range(min = 1, max = 64))]
    pub(in super::super) default_priority: Option<u32>,
    /// What differs for some priorities; what is left out is as in the fields above.
    #[serde(deserialize_with = "levels")]
    #[schemars(schema_with = "levels_schema")]
    pub(in super::super) levels: BTreeMap<u64, RawQueueLevel>,
}

impl Default for RawQueue {
    fn default() -> Self {
        Self {
            max_size: None,
            timeout: None,
            on_timeout: OnTimeout::default(),
            allow_timeout_override: false,
            priority_levels: 1,
            default_priority: None,
            levels: BTreeMap::new(),
        }
    }
}

/// How requests of one priority wait.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, expecting = "fields such as `max_size: 10`")]
#[schemars(rename = "QueueLevel")]
pub(in super::super) struct RawQueueLevel {
    /// How many requests of this priority may wait.
    #[schemars(range(min = 1))]
    pub(in super::super) max_size: Option<u32>,
    /// How long a request of this priority may wait.
    pub(in super::super) timeout: Option<RawDuration>,
    /// What becomes of a request that has waited that long.
    pub(in super::super) on_timeout: Option<OnTimeout>,
    /// Whether a request may state a timeout of its own.
    pub(in super::super) allow_timeout_override: Option<bool>,
    /// Whether what is left out is no limit, as in Triton's format, instead of that of the queue.
    #[serde(skip)]
    pub(in super::super) complete: bool,
}

fn levels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<u64, RawQueueLevel>, D::Error> {
    deserializer.deserialize_map(LevelsVisitor)
}

fn levels_schema(generator: &mut SchemaGenerator) -> Schema {
    let level = generator.subschema_for::<RawQueueLevel>();
    json_schema!({
        "type": "object", "propertyNames": { "pattern": "^[1-9][0-9]?$" }, "additionalProperties": level
    })
}

/// Written out because a map would silently keep the last of two levels with the same number.
struct LevelsVisitor;

impl<'de> Visitor<'de> for LevelsVisitor {
    type Value = BTreeMap<u64, RawQueueLevel>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a policy for each priority, such as `{1: {max_size: 10}}`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut levels = BTreeMap::new();
        while let Some(Level(number)) = map.next_key()? {
            if levels.contains_key(&number) {
                return Err(A::Error::custom(format!("`{number}` is given twice: keep one of them")));
            }
            levels.insert(number, map.next_value()?);
        }
        Ok(levels)
    }
}

/// The number of a priority; in JSON, which YAML contains, it is a string.
struct Level(u64);

struct LevelVisitor;

impl Visitor<'_> for LevelVisitor {
    type Value = Level;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the number of a priority, from 1")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Level, E> {
        Ok(Level(number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Level, E> {
        text.parse().map(Level).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }
}

impl<'de> Deserialize<'de> for Level {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LevelVisitor)
    }
}
