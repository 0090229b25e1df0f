//! The one place that chooses a gRPC code.

use sconce_engine::{Error, reconcile::Refused};
use tonic::Status;

/// The status of an error of the engine.
pub(crate) fn from_error(error: &Error) -> Box<Status> {
    let text = error.to_string();
    Box::new(match error {
        Error::ModelNotFound { .. } | Error::VersionNotFound { .. } | Error::NoVersion { .. } => {
            Status::not_found(text)
        }
        Error::InvalidInput(_) => Status::invalid_argument(text),
        Error::NotReady { .. } | Error::DeviceLost { .. } => Status::unavailable(text),
        Error::QueueFull { .. } | Error::QueuesFull { .. } => Status::resource_exhausted(text),
        Error::DeadlineExceeded { .. } | Error::QueueTimeout { .. } => Status::deadline_exceeded(text),
        Error::Model { .. } | Error::Output { .. } | Error::WorkerLost { .. } => Status::internal(text),
    })
}

/// The status of an order for a model that had not the effect that was asked for.
pub(crate) fn from_refused(refused: &Refused) -> Box<Status> {
    let text = refused.to_string();
    Box::new(match refused {
        Refused::NotFound(_) => Status::not_found(text),
        // Triton's code for a model that does not load.
        Refused::Failed(_) => Status::invalid_argument(text),
        Refused::NotNow(_) => Status::unavailable(text),
        Refused::NoSpace(_) => Status::resource_exhausted(text),
        Refused::Unwritten(_) => Status::internal(text),
    })
}
