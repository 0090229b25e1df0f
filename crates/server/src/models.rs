//! What is told of models beside their answers: states, reasons, attempts, in words and as JSON.

use std::time::SystemTime;

use humantime::format_rfc3339_seconds;
use sconce_engine::{
    Version,
    pool::{self, Pool},
    table::{Failure, Route, Snapshot, State},
};
use serde::Serialize;

/// Why a version does not serve, or serves what is not the latest; empty where all is as it should be.
pub(crate) fn reason(route: &Route, version: Version, state: &State) -> String {
    let failure = route.failures.get(&version).map(attempts);
    match (state, failure) {
        (State::Ready(live), failure) => match (live.stuck_by(), failure, &route.problem) {
            (Some(stuck), ..) => stuck.why().to_owned(),
            (None, Some(failure), _) => format!("an earlier content serves: {failure}"),
            (None, None, Some(problem)) => format!("an earlier configuration serves: {problem}"),
            (None, None, None) => String::new(),
        },
        (State::Unavailable(_), Some(failure)) => failure,
        (State::Unavailable(reason), None) => reason.clone(),
        (State::Loading, Some(failure)) => format!("being tried again: {failure}"),
        (State::Loading, None) => String::new(),
        (State::Unloading, _) => {
            "what it has accepted is being answered, or its memory is not free yet".to_owned()
        }
    }
}

/// The state of a version, as Triton names them: one that is stuck is not ready.
pub(crate) fn state(state: &State) -> &'static str {
    match state {
        State::Ready(live) if live.stuck_by().is_some() => "UNAVAILABLE",
        state => state.name(),
    }
}

fn attempts(failure: &Failure) -> String {
    let Failure { reason, attempts, last, next, .. } = failure;
    let next = next.map(|next| format!(", next at {}", time(next))).unwrap_or_default();
    format!("{reason}; attempt {attempts} at {}{next}", time(*last))
}

fn time(time: SystemTime) -> String {
    format_rfc3339_seconds(time).to_string()
}

/// A model, as `/models` tells it.
#[derive(Debug, Serialize)]
pub(crate) struct ModelStatus {
    name: String,
    /// Whether a version serves.
    ready: bool,
    /// Nothing of it is to be served, because nobody has asked for it or somebody has unloaded it.
    unloaded: bool,
    /// What is wrong with it as a whole.
    problem: Option<String>,
    versions: Vec<VersionStatus>,
}

/// A version, as `/models` tells it. What does not apply is null.
#[derive(Debug, Serialize)]
struct VersionStatus {
    version: String,
    state: &'static str,
    reason: String,
    /// In which step of loading the last attempt failed.
    step: Option<&'static str>,
    /// How many attempts at its content have failed.
    attempts: u32,
    last_failure: Option<String>,
    next_attempt: Option<String>,
    /// Which bytes serve.
    sha256: Option<String>,
    loaded_at: Option<String>,
    /// How long that took, to the last run before it served.
    load_seconds: Option<f64>,
    /// Where it may run, while it serves.
    devices: Vec<String>,
    /// How many of its runs at once, over all of them.
    instances: usize,
    /// Requests that wait, and their bytes.
    queued: usize,
    queued_bytes: usize,
    /// Sequences that go on, where it has them.
    sequences: Option<usize>,
    /// Requests that are being answered step by step, where it generates.
    generations: Option<usize>,
    /// Runs that are on workers.
    running: usize,
    /// How many of those are not expected to end.
    hung: usize,
}

/// A device, as `/models` tells it.
#[derive(Debug, Serialize)]
pub(crate) struct DeviceStatus {
    name: String,
    /// False once its runtime has failed for good.
    healthy: bool,
    /// Requests of all models that are on it.
    in_flight: usize,
    /// Where it is a processor.
    cores: Option<usize>,
    /// How many of them runs use; more than there are where runs share them.
    cores_used: usize,
    workers: Vec<WorkerStatus>,
}

/// A worker, as `/models` tells it.
#[derive(Debug, Serialize)]
struct WorkerStatus {
    name: String,
    /// How many runs it has ended.
    runs: u64,
    running: Option<RunStatus>,
}

/// A run that has begun.
#[derive(Debug, Serialize)]
struct RunStatus {
    model: String,
    version: String,
    seconds: f64,
    /// It is not expected to end.
    hung: bool,
}

/// What a device is doing.
pub(crate) fn device(status: &pool::DeviceStatus) -> DeviceStatus {
    let run = |run: &pool::RunStatus| RunStatus {
        model: run.model.to_string(),
        version: run.version.to_string(),
        seconds: run.time.as_secs_f64(),
        hung: run.hung,
    };
    let worker = |worker: &pool::WorkerStatus| WorkerStatus {
        name: worker.name.clone(),
        runs: worker.runs,
        running: worker.running.as_ref().map(run),
    };
    DeviceStatus {
        name: status.device.to_string(),
        healthy: status.healthy,
        in_flight: status.in_flight,
        cores: status.cores,
        cores_used: status.cores_used,
        workers: status.workers.iter().map(worker).collect(),
    }
}

/// All that is known of a model, whose versions are run by the pool.
pub(crate) fn status(name: &str, route: &Route, snapshot: &Snapshot, pool: &Pool) -> ModelStatus {
    let version = |(version, state): (&Version, &State)| {
        let failure = route.failures.get(version);
        let live = match state {
            State::Ready(live) => Some(live),
            State::Loading | State::Unloading | State::Unavailable(_) => None,
        };
        // Also on one that does not serve any more sequences and generations may go on.
        let goes_on = live.or_else(|| snapshot.retired(name, *version));
        // Also one that does not serve any more may have runs, which nobody can stop.
        let load = live.map_or_else(|| pool.runs_left(name, *version), |live| live.load());
        let placements = live.map(|live| live.executable().placements()).unwrap_or_default();
        VersionStatus {
            version: version.to_string(),
            state: self::state(state),
            reason: reason(route, *version, state),
            step: failure.map(|failure| failure.step.name()),
            attempts: failure.map_or(0, |failure| failure.attempts),
            last_failure: failure.map(|failure| time(failure.last)),
            next_attempt: failure.and_then(|failure| failure.next).map(time),
            sha256: live.and_then(|live| live.digest).map(|digest| digest.to_string()),
            loaded_at: live.map(|live| time(live.loaded_at)),
            load_seconds: live.and_then(|live| live.load_took).map(|took| took.as_secs_f64()),
            devices: placements
                .iter()
                .filter_map(|place| Some(pool.devices().get(place.device)?.to_string()))
                .collect(),
            instances: placements.iter().map(|place| place.limit).sum(),
            queued: load.queued,
            queued_bytes: load.queued_bytes,
            sequences: goes_on.and_then(|live| live.sequences()),
            generations: goes_on.and_then(|live| live.generations()),
            running: load.running,
            hung: load.hung,
        }
    };
    ModelStatus {
        name: name.to_owned(),
        ready: route.serves(),
        unloaded: route.unloaded,
        problem: route.problem.clone(),
        versions: route.versions.iter().map(version).collect(),
    }
}
