//! An input that the server makes of a batch, as it was written.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{data_type, data_type_schema};
use crate::{DataType, config::ragged::BatchInputKind};

/// An input that the server makes of the shapes that another one has in the requests of a batch. Exactly one
/// of the fields that end in `_of` names that input.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "an input such as `{name: ends, ends_of: x}`")]
#[schemars(rename = "BatchInput")]
pub(in super::super) struct RawBatchInput {
    /// The name of the input in the model.
    #[schemars(length(min = 1))]
    pub(in super::super) name: String,
    /// The type of the elements: INT32, INT64 or FP32.
    #[serde(default = "int32", deserialize_with = "data_type")]
    #[schemars(schema_with = "data_type_schema", extend("default" = "INT32"))]
    pub(in super::super) dtype: DataType,
    /// The input of which it has the number of elements of each request.
    #[serde(default)]
    pub(in super::super) counts_of: Option<String>,
    /// The input of which it has the places behind the last element of each request.
    #[serde(default)]
    pub(in super::super) ends_of: Option<String>,
    /// The same, behind a 0.
    #[serde(default)]
    pub(in super::super) offsets_of: Option<String>,
    /// The input of which it has zeros, as many as the largest request has elements.
    #[serde(default)]
    pub(in super::super) longest_of: Option<String>,
    /// The input of which it has the shape of each row, without the batch dimension.
    #[serde(default)]
    pub(in super::super) shapes_of: Option<String>,
    /// The same in one dimension.
    #[serde(default)]
    pub(in super::super) flat_shapes_of: Option<String>,
}

fn int32() -> DataType {
    DataType::Int32
}

impl RawBatchInput {
    /// One that tells this of this input.
    pub(in super::super) fn new(name: String, dtype: DataType, kind: BatchInputKind, source: &str) -> Self {
        let of = |wanted| (kind == wanted).then(|| source.to_owned());
        Self {
            name,
            dtype,
            counts_of: of(BatchInputKind::Counts),
            ends_of: of(BatchInputKind::Ends),
            offsets_of: of(BatchInputKind::Offsets),
            longest_of: of(BatchInputKind::Longest),
            shapes_of: of(BatchInputKind::Shapes),
            flat_shapes_of: of(BatchInputKind::FlatShapes),
        }
    }

    /// What it tells, and the input of which it does, as often as that is said.
    pub(in super::super) fn sources(&self) -> Vec<(BatchInputKind, &str)> {
        let said = |kind: BatchInputKind| {
            let source = match kind {
                BatchInputKind::Counts => &self.counts_of,
                BatchInputKind::Ends => &self.ends_of,
                BatchInputKind::Offsets => &self.offsets_of,
                BatchInputKind::Longest => &self.longest_of,
                BatchInputKind::Shapes => &self.shapes_of,
                BatchInputKind::FlatShapes => &self.flat_shapes_of,
            };
            source.as_deref().map(|source| (kind, source))
        };
        BatchInputKind::ALL.into_iter().filter_map(said).collect()
    }
}
