//! How requests hang together: sequences of requests that share state, and models that answer one request
//! many times.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use crate::DataType;

/// A model whose requests form sequences: each depends on what the ones before it left.
///
/// Follows Triton's `ModelSequenceBatching`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    /// How sequences are joined into batches.
    pub strategy: SequenceStrategy,
    /// A sequence is forgotten when no request of it has come for so long.
    pub idle_timeout: Duration,
    /// How many sequences may wait for their turn, besides those that have it; 0 refuses who comes too much.
    pub max_waiting: u32,
    /// Inputs that tell the model where in a sequence it is. The server makes them.
    pub controls: Vec<Control>,
    /// What the server keeps of a sequence between its requests.
    pub states: Vec<SequenceState>,
}

/// How sequences are joined into batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SequenceStrategy {
    /// Requests of different sequences run together in any rows, the oldest first.
    Oldest {
        /// How many sequences may be going on at once for each instance.
        max_sequences: NonZeroU32,
    },
    /// Each sequence has one instance and one row of its batches for itself, from its start to its end; for
    /// models that keep state of their own by row. As many sequences go on at once as there are rows.
    Direct {
        /// How long a run may wait for more of its rows to have a request.
        max_delay: Duration,
    },
}

/// An input that tells the model about the sequence. Its shape is [1], with a batch dimension if the model
/// has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// The name of the input.
    pub input: String,
    /// What it tells.
    pub kind: ControlKind,
    /// The type of its element.
    pub data_type: DataType,
}

/// What a control tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlKind {
    /// Whether the request is the first of its sequence.
    Start(Flag),
    /// Whether there is a request in this row.
    Ready(Flag),
    /// Whether the request is the last of its sequence.
    End(Flag),
    /// The sequence's id: an integer, or BYTES.
    CorrelationId,
}

/// Two elements, as the wire carries them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// For no.
    pub off: Vec<u8>,
    /// For yes.
    pub on: Vec<u8>,
}

/// A tensor that goes from an output of one request to an input of the next one of its sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceState {
    /// The name of the input.
    pub input: String,
    /// The name of the output.
    pub output: String,
    /// The type of its elements.
    pub data_type: DataType,
    /// The shape without the batch dimension; -1 may change from request to request.
    pub dims: Vec<i64>,
    /// The shape with which a sequence begins, as `dims` without -1.
    pub initial_dims: Vec<i64>,
    /// The elements with which it begins, as the wire carries them; `None` for zeros.
    pub initial: Option<Arc<[u8]>>,
    /// The file that they were read from, relative to the model's directory `initial_state`, if any was.
    pub initial_file: Option<String>,
}

/// A model that answers one request with many answers: `start` makes the first from the request, `step` each
/// next one from the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generate {
    /// The outputs that `start` and `step` return behind those of the configuration, and that `step` takes
    /// behind `feed`; all in this order.
    pub states: Vec<String>,
    /// The output that `step` takes first.
    pub feed: String,
    /// The outputs that are sent, in order; at least one.
    pub send: Vec<String>,
    /// The BOOL output of one element for each row that says that this answer is the last.
    pub stop_flag: Option<String>,
    /// The element of `feed` after which nothing more comes, as the wire carries it.
    pub stop_value: Option<Vec<u8>>,
    /// After so many answers there are no more.
    pub max_steps: NonZeroU32,
    /// ModelInfer answers when all is there, with the answers of all steps joined along their second dimension
    /// (strings: joined); otherwise it refuses the model, as Triton does.
    pub collect: bool,
}
