//! Everything that can go wrong with a request, one variant per situation. The server's
//! `status.rs` is the only place that turns them into gRPC codes.

use std::time::Duration;

use sconce_repository::Version;

/// Why a request was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No directory of that name. The text is Triton's, which its users match on.
    #[error("Request for unknown model: '{model}' is not found")]
    ModelNotFound {
        /// The name that was asked for.
        model: String,
    },
    /// The model is there, that version is not.
    #[error("Request for unknown model: '{model}' version {version} is not found")]
    VersionNotFound {
        /// The model's name.
        model: String,
        /// The version that was asked for.
        version: Version,
    },
    /// No version was asked for and none can serve for good: nothing on disk, or every one failed.
    #[error("Request for unknown model: '{model}' has no available versions{why}")]
    NoVersion {
        /// The model's name.
        model: String,
        /// `: ` and the reason, or nothing.
        why: String,
    },
    /// It will be there, or was: ask again.
    #[error("Request for unknown model: '{model}' version {version} is not at ready state: {why}")]
    NotReady {
        /// The model's name.
        model: String,
        /// The version, or `?` while none is known.
        version: String,
        /// What it is doing instead.
        why: String,
    },
    /// The request is wrong and will be wrong again.
    #[error("{0}")]
    InvalidInput(String),
    /// The model's queue is full. The first words are Triton's.
    #[error(
        "Exceeds maximum queue size: {limit} requests{} wait for model '{model}'; retry later",
        priority.map(|priority| format!(" of priority {priority}")).unwrap_or_default()
    )]
    QueueFull {
        /// The model's name.
        model: String,
        /// How many may wait.
        limit: usize,
        /// The priority, 1 for the highest, where there are several.
        priority: Option<usize>,
        /// When it is likely that another would be taken, where that is known.
        retry_after: Option<Duration>,
    },
    /// All requests that wait, of all models, take as much memory as they may.
    #[error(
        "Exceeds maximum queue size: the requests that wait for models take up to {limit} bytes (--max-queued-bytes), \
         and this one has {size}; retry later"
    )]
    QueuesFull {
        /// How many bytes may wait.
        limit: usize,
        /// How many this request has.
        size: usize,
        /// When it is likely that another would be taken, where that is known.
        retry_after: Option<Duration>,
    },
    /// As many sequences of requests are going on as may.
    #[error(
        "model '{model}' keeps the state of {limit} sequences at most and all go on; end one (sequence_end), or retry later"
    )]
    SequencesFull {
        /// The model's name.
        model: String,
        /// How many may go on, those that wait for others counted in.
        limit: usize,
    },
    /// The request before it in its sequence was not answered, so that it would have run on another state than its
    /// caller expected.
    #[error(
        "the request before this one in sequence {sequence} of model '{model}' failed: the sequence is as it was before \
         that one; go on from there, or begin it anew"
    )]
    SequenceBroken {
        /// The model's name.
        model: String,
        /// The sequence.
        sequence: String,
    },
    /// It waited as long as its own timeout or its model's queue policy allows. The first words are Triton's.
    #[error("Request timeout expired: it waited {} ms for model '{model}'", waited.as_millis())]
    QueueTimeout {
        /// The model's name.
        model: String,
        /// How long it waited.
        waited: Duration,
    },
    /// The caller's deadline passed before the answer was there.
    #[error("Deadline Exceeded: the request's deadline {stage}")]
    DeadlineExceeded {
        /// Where it was by then, after "the request's deadline".
        stage: &'static str,
    },
    /// `forward` threw.
    #[error("model '{model}' failed: {message}")]
    Model {
        /// The model's name.
        model: String,
        /// Its own message, one line.
        message: String,
    },
    /// `forward` returned something that its configuration does not promise or the wire cannot carry.
    #[error("model '{model}' returned something that cannot be served: {message}")]
    Output {
        /// The model's name.
        model: String,
        /// What, and what was expected.
        message: String,
    },
    /// The device on which it ran, or on which alone it could run, can run nothing any more.
    #[error("model '{model}' cannot be run: its device has failed: {message}")]
    DeviceLost {
        /// The model's name.
        model: String,
        /// What the device's runtime said, one line.
        message: String,
    },
    /// A bug of ours or of a backend: the worker gave no answer.
    #[error("the worker that ran model '{model}' stopped without an answer; this is a bug, see the log")]
    WorkerLost {
        /// The model's name.
        model: String,
    },
}

/// The engine's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Shorthand for [`Error::InvalidInput`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::InvalidInput(message.into())
    }
}
