//! What became of a request, in a word: a closed list, so that it can be a label.

use super::Cause;
use crate::Error;

/// The word for a request whose model is not to be served: no version can end one so.
pub const UNLOADED: &str = "unloaded";

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It was answered.
    Ok,
    /// It was wrong.
    InvalidInput,
    /// Too many requests waited, by number or by bytes.
    QueueFull,
    /// As many sequences went on as may.
    SequencesFull,
    /// It waited as long as it may.
    QueueTimeout,
    /// Its deadline passed.
    Deadline,
    /// Its caller went away.
    Cancelled,
    /// The version did not serve (any more).
    NotReady,
    /// The request before it in its sequence failed.
    SequenceBroken,
    /// The model threw.
    ModelError,
    /// The model returned what its configuration does not promise.
    BadOutput,
    /// The device failed.
    DeviceLost,
    /// The worker gave no answer.
    WorkerLost,
}

impl Reason {
    /// All of them, in their order.
    pub const ALL: [Self; 13] = [
        Self::Ok,
        Self::InvalidInput,
        Self::QueueFull,
        Self::SequencesFull,
        Self::QueueTimeout,
        Self::Deadline,
        Self::Cancelled,
        Self::NotReady,
        Self::SequenceBroken,
        Self::ModelError,
        Self::BadOutput,
        Self::DeviceLost,
        Self::WorkerLost,
    ];

    /// Its name, as a label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::InvalidInput => "invalid_input",
            Self::QueueFull => "queue_full",
            Self::SequencesFull => "sequences_full",
            Self::QueueTimeout => "queue_timeout",
            Self::Deadline => "deadline",
            Self::Cancelled => "cancelled",
            Self::NotReady => "not_ready",
            Self::SequenceBroken => "sequence_broken",
            Self::ModelError => "model_error",
            Self::BadOutput => "bad_output",
            Self::DeviceLost => "device_lost",
            Self::WorkerLost => "worker_lost",
        }
    }
}

impl From<Cause> for Reason {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Cancelled => Self::Cancelled,
            Cause::Deadline => Self::Deadline,
            Cause::Timeout => Self::QueueTimeout,
        }
    }
}

impl From<&Error> for Reason {
    fn from(error: &Error) -> Self {
        match error {
            Error::InvalidInput(_) => Self::InvalidInput,
            Error::QueueFull { .. } | Error::QueuesFull { .. } => Self::QueueFull,
            Error::SequencesFull { .. } => Self::SequencesFull,
            Error::QueueTimeout { .. } => Self::QueueTimeout,
            Error::DeadlineExceeded { .. } => Self::Deadline,
            Error::ModelNotFound { .. }
            | Error::VersionNotFound { .. }
            | Error::NoVersion { .. }
            | Error::NotReady { .. } => Self::NotReady,
            Error::SequenceBroken { .. } => Self::SequenceBroken,
            Error::Model { .. } => Self::ModelError,
            Error::Output { .. } => Self::BadOutput,
            Error::DeviceLost { .. } => Self::DeviceLost,
            Error::WorkerLost { .. } => Self::WorkerLost,
        }
    }
}
