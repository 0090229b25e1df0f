//! How a model answers one request many times, as it was written.

use schemars::JsonSchema;
use serde::Deserialize;

use super::RawNumber;

/// How a model answers one request with many answers: its method `start` makes the first from the request,
/// and `step` each next one from the one before.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "fields such as `states: [hidden]`")]
#[schemars(rename = "Generate")]
pub(in super::super) struct RawGenerate {
    /// Names for what `start` and `step` return behind `outputs`, and `step` takes behind `feed`, in this
    /// order; may be empty.
    pub(in super::super) states: Vec<String>,
    /// The output that `step` takes first; without it, the first of `outputs`.
    #[serde(default)]
    pub(in super::super) feed: Option<String>,
    /// The outputs that are sent; without it, all but the flag that stops.
    #[serde(default)]
    pub(in super::super) send: Option<Vec<String>>,
    /// What ends the answers; `max_steps` does in any case.
    #[serde(default)]
    pub(in super::super) stop: Option<RawStop>,
    /// After so many answers there are no more.
    #[serde(default = "max_steps")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(in super::super) max_steps: u32,
    /// Whether ModelInfer, which has one answer, is answered when all is there, with all answers joined
    /// along their second dimension (strings: joined); otherwise only ModelStreamInfer is served.
    #[serde(default)]
    pub(in super::super) collect: bool,
}

pub(in super::super) fn max_steps() -> u32 {
    1024
}

/// What ends the answers.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, expecting = "fields such as `flag: done`")]
#[schemars(rename = "Stop")]
pub(in super::super) struct RawStop {
    /// A BOOL output of one element for each row that says that this answer is the last.
    pub(in super::super) flag: Option<String>,
    /// The element of `feed` after which nothing more comes.
    pub(in super::super) value: Option<RawNumber>,
}
