//! Inputs that the server makes of a whole batch, for models that take its requests one behind the other.

use crate::DataType;

/// An input that clients do not send: the server makes it of the shapes that another input has in the requests
/// of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchInput {
    /// Its name in the model.
    pub name: String,
    /// INT32, INT64 or FP32.
    pub data_type: DataType,
    /// What it tells.
    pub kind: BatchInputKind,
    /// The input of which it tells that.
    pub source: String,
}

/// What a [`BatchInput`] tells of its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BatchInputKind {
    /// How many elements each request has, in the order of the batch.
    Counts,
    /// Behind how many elements of the batch each request ends.
    Ends,
    /// The same, behind a 0: request `i` has the elements from offset `i` to offset `i + 1`.
    Offsets,
    /// Zeros, as many as the largest request has elements: what it tells is its shape.
    Longest,
    /// The shape of each row, without the batch dimension.
    Shapes,
    /// The same in one dimension, row after row.
    FlatShapes,
}

impl BatchInputKind {
    /// All there are, in the order of Triton's numbers.
    pub const ALL: [Self; 6] =
        [Self::Counts, Self::Ends, Self::Offsets, Self::Longest, Self::Shapes, Self::FlatShapes];

    /// The field of `config.yaml` that names the source.
    pub(super) fn field(self) -> &'static str {
        match self {
            Self::Counts => "counts_of",
            Self::Ends => "ends_of",
            Self::Offsets => "offsets_of",
            Self::Longest => "longest_of",
            Self::Shapes => "shapes_of",
            Self::FlatShapes => "flat_shapes_of",
        }
    }

    /// Whether it has elements for each row of a request, and not for each request.
    pub(super) fn is_of_rows(self) -> bool {
        matches!(self, Self::Shapes | Self::FlatShapes)
    }
}
