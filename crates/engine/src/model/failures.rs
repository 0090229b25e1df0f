//! What a version fails with, in the log: the first at once, then at most a line a second.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::warn;

use crate::{Error, executable::Executable, observe::TraceContext};

/// Between two lines of the log on failures of one version.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Logs what a version fails with: the first at once, then at most a line a second, whatever callers do.
#[derive(Debug, Default)]
pub(crate) struct FailureLog {
    /// When the last line was written, and how many failures have not been since.
    state: Mutex<(Option<Instant>, u64)>,
}

impl FailureLog {
    /// Logs what is the model's fault or ours.
    pub(crate) fn note(&self, of: &Executable, request: (&str, Option<&TraceContext>), error: &Error) {
        if !matches!(error, Error::Model { .. } | Error::Output { .. } | Error::WorkerLost { .. }) {
            return;
        }
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0.is_some_and(|last| now.duration_since(last) < LOG_INTERVAL) {
            state.1 += 1;
            return;
        }
        let unwritten = std::mem::take(&mut state.1);
        state.0 = Some(now);
        drop(state);
        let (id, trace) = request;
        let id = (!id.is_empty()).then_some(id);
        let trace_id = trace.map(|trace| format!("{:032x}", trace.trace_id));
        warn!(model = %of.name, version = %of.version, id, trace_id, unwritten, "{error}");
    }
}
