//! The one place that chooses a gRPC code.

use sconce_engine::Error;
use tonic::Status;

/// The status of an error of the engine.
pub(crate) fn from_error(error: &Error) -> Box<Status> {
    let text = error.to_string();
    Box::new(match error {
        Error::ModelNotFound { .. } | Error::VersionNotFound { .. } | Error::NoVersion { .. } => {
            Status::not_found(text)
        }
        Error::InvalidInput(_) => Status::invalid_argument(text),
        Error::NotReady { .. } => Status::unavailable(text),
        Error::QueueFull { .. } => Status::resource_exhausted(text),
        Error::DeadlineExceeded { .. } => Status::deadline_exceeded(text),
        Error::Model { .. } | Error::Output { .. } | Error::WorkerLost { .. } => Status::internal(text),
    })
}
