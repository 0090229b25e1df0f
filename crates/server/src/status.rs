//! The one place that chooses a gRPC code.

use std::time::Duration;

use sconce_engine::{Error, reconcile::Refused, stats::Reason};
use tonic::{Code, Status, metadata::MetadataMap};
use tonic_types::{ErrorDetails, StatusExt};

/// gRPC's own hint for clients that retry by themselves (gRFC A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Which codes errors get.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Codes {
    /// Triton's where it has others, for callers that depend on them.
    pub(crate) triton: bool,
}

impl Codes {
    /// The status of an error of the engine.
    pub(crate) fn of_error(self, error: &Error) -> Box<Status> {
        let code = match error {
            Error::ModelNotFound { .. } | Error::VersionNotFound { .. } => Code::NotFound,
            Error::NoVersion { .. } => self.of_no_version(),
            Error::NotReady { .. } => self.of_reason(Reason::NotReady),
            Error::InvalidInput(_) => Code::InvalidArgument,
            Error::DeviceLost { .. } => Code::Unavailable,
            Error::SequenceBroken { .. } => Code::Aborted,
            Error::QueueFull { .. } | Error::QueuesFull { .. } | Error::SequencesFull { .. } => {
                self.choose(Code::ResourceExhausted, Code::Unavailable)
            }
            Error::QueueTimeout { .. } => self.choose(Code::DeadlineExceeded, Code::Unavailable),
            Error::DeadlineExceeded { .. } => Code::DeadlineExceeded,
            Error::Output { .. } => self.choose(Code::Internal, Code::InvalidArgument),
            Error::Model { .. } | Error::WorkerLost { .. } => Code::Internal,
        };
        let text = error.to_string();
        Box::new(match retry_after(error) {
            Some(after) => retry(code, text, after),
            None => Status::new(code, text),
        })
    }

    /// The code of what became of a request.
    pub(crate) fn of_reason(self, reason: Reason) -> Code {
        match reason {
            Reason::Ok => Code::Ok,
            Reason::InvalidInput => Code::InvalidArgument,
            Reason::QueueFull | Reason::SequencesFull => {
                self.choose(Code::ResourceExhausted, Code::Unavailable)
            }
            Reason::QueueTimeout => self.choose(Code::DeadlineExceeded, Code::Unavailable),
            Reason::Deadline => Code::DeadlineExceeded,
            Reason::Cancelled => Code::Cancelled,
            Reason::NotReady | Reason::DeviceLost => Code::Unavailable,
            Reason::SequenceBroken => Code::Aborted,
            Reason::BadOutput => self.choose(Code::Internal, Code::InvalidArgument),
            Reason::ModelError | Reason::WorkerLost => Code::Internal,
        }
    }

    /// The code where no version of a model serves, and none is expected to.
    pub(crate) fn of_no_version(self) -> Code {
        Code::NotFound
    }

    /// The status of an order for a model that had not the effect that was asked for.
    pub(crate) fn of_refused(self, refused: &Refused) -> Box<Status> {
        let code = match refused {
            Refused::NotFound(_) => self.choose(Code::NotFound, Code::Internal),
            // Triton's code for a model that does not load.
            Refused::Failed(_) => Code::InvalidArgument,
            Refused::NotNow(_) => Code::Unavailable,
            Refused::NoSpace(_) => Code::ResourceExhausted,
            Refused::Unwritten(_) => Code::Internal,
        };
        Box::new(Status::new(code, refused.to_string()))
    }

    fn choose(self, ours: Code, tritons: Code) -> Code {
        if self.triton { tritons } else { ours }
    }
}

/// When it is worth asking again, where that is known.
fn retry_after(error: &Error) -> Option<Duration> {
    match error {
        Error::QueueFull { retry_after, .. } | Error::QueuesFull { retry_after, .. } => *retry_after,
        _ => None,
    }
}

/// A refusal that says when to ask again: in the trailer that gRPC's own retries obey, and as
/// `google.rpc.RetryInfo` for callers that read details.
fn retry(code: Code, text: String, after: Duration) -> Status {
    // Rounded up: a client that comes too early is refused once more.
    let millis = i32::try_from(after.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
    let mut metadata = MetadataMap::new();
    metadata.insert(PUSHBACK, millis.into());
    let after = Duration::from_millis(millis.unsigned_abs().into());
    Status::with_error_details_and_metadata(code, text, ErrorDetails::with_retry_info(Some(after)), metadata)
}

/// A code as gRPC's specification writes it.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
