//! Where answers go: one or many per request, the last one marked.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};

use crate::{Error, Result, backend::RunError, scheduler::InFlight, value::Output};

/// The way back to one caller. Dropping it unanswered tells the caller that the worker was lost.
#[derive(Debug)]
pub enum Reply {
    /// Takes exactly one answer.
    One(oneshot::Sender<Result<Output>>),
    /// Takes exactly one answer, and how long the run took.
    Measured(oneshot::Sender<(Result<Output>, Duration)>),
    /// Takes any number, each with whether it is the last; bounded by the channel.
    Many(mpsc::Sender<(Result<Output>, bool)>),
}

impl Reply {
    /// Whether nobody waits any more.
    pub fn is_closed(&self) -> bool {
        match self {
            Self::One(sender) => sender.is_closed(),
            Self::Measured(sender) => sender.is_closed(),
            Self::Many(sender) => sender.is_closed(),
        }
    }

    /// Sends the only or last answer, of a run that took so long. One that nobody waits for is dropped.
    pub fn finish(self, answer: Result<Output>, took: Duration) {
        match self {
            Self::One(sender) => drop(sender.send(answer)),
            Self::Measured(sender) => drop(sender.send((answer, took))),
            Self::Many(sender) => drop(sender.try_send((answer, true))),
        }
    }
}

/// One request of a running batch: its caller.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) model: Arc<str>,
    pub(crate) reply: Reply,
}

/// Completes a batch: an answer for each of its requests, exactly once.
///
/// It holds the device's count of requests in flight, so a device that works asynchronously counts
/// as busy until it completes. Dropped without, every caller learns that the worker was lost.
#[derive(Debug)]
pub struct Done {
    pub(crate) pending: Vec<Pending>,
    pub(crate) in_flight: InFlight,
    /// When the batch began to run.
    pub(crate) started: Instant,
}

impl Done {
    /// Answers the requests of the batch, in its order.
    pub fn complete(self, results: impl IntoIterator<Item = std::result::Result<Output, RunError>>) {
        // Uncounted before the callers wake, so that none of them sees itself still in flight.
        drop(self.in_flight);
        let took = self.started.elapsed();
        for (Pending { model, reply }, result) in self.pending.into_iter().zip(results) {
            let model = || model.to_string();
            let answer = result.map_err(|error| match error {
                RunError::Model(message) => Error::Model { model: model(), message },
                RunError::Output(message) => Error::Output { model: model(), message },
            });
            reply.finish(answer, took);
        }
    }
}
