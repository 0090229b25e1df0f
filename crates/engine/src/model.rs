//! One live version: what a request meets once its name has been looked up.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant, SystemTime},
};

use sconce_repository::{Digest, ModelConfig, Version};
use tokio::sync::oneshot;
use tracing::warn;

use crate::{
    Error, Result,
    binding::Binding,
    check,
    classification::classify,
    examples::{Example, Examples},
    ordering::Gate,
    outputs,
    pool::{Executable, Job, ModelLoad, Pool, Registration, Serving},
    reaper::Farewell,
    reply::Reply,
    scheduler::{Placement, Policy, Refusal, Stuck},
    schema::Schema,
};
pub use crate::{
    check::Input,
    outputs::{NamedOutput, Wanted},
};

/// How many requests may wait for a version whose configuration does not say it: more than one connection may have open at once, so that a
/// client which keeps to its connection's limit is not refused. Whoever is behind thousands of others is
/// better told than kept.
pub const QUEUE_LIMIT: usize = 2048;

/// A request for a version, as the wire gave it: not yet checked.
#[derive(Debug, Default)]
pub struct Request {
    /// The inputs, in any order.
    pub inputs: Vec<Input>,
    /// The outputs that are wanted; all of them when empty.
    pub outputs: Vec<Wanted>,
    /// When the answer is worth nothing any more.
    pub deadline: Option<Instant>,
    /// Its priority, 1 for the highest; 0 for the model's default.
    pub priority: u64,
    /// How long it may wait, where the model's queue policy lets requests say so; zero for as long as the
    /// policy says.
    pub timeout: Duration,
}

/// Between two lines of the log on failures of one version.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Logs what a version fails with: the first at once, then at most a line a second, whatever callers do.
#[derive(Debug, Default)]
struct FailureLog {
    /// When the last line was written, and how many failures have not been since.
    state: Mutex<(Option<Instant>, u64)>,
}

impl FailureLog {
    fn log(&self, version: Version, error: &Error) {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0.is_some_and(|last| now.duration_since(last) < LOG_INTERVAL) {
            state.1 += 1;
            return;
        }
        let unwritten = std::mem::take(&mut state.1);
        state.0 = Some(now);
        drop(state);
        warn!(%version, unwritten, "{error}");
    }
}

/// A version that serves. The last handle on its weights sends them to the reaper.
#[derive(Debug)]
pub struct LiveVersion {
    /// The model's name.
    pub model: Arc<str>,
    /// The version.
    pub version: Version,
    /// Its configuration.
    pub config: Arc<ModelConfig>,
    /// What its `forward` takes and returns: enough to bind a changed configuration without loading.
    pub schema: Arc<Schema>,
    /// Its names, types and shapes.
    pub binding: Binding,
    /// Which bytes it was loaded from; `None` where nobody looked.
    pub digest: Option<Digest>,
    /// When they were loaded.
    pub loaded_at: SystemTime,
    executable: Arc<Executable>,
    registration: Arc<Registration>,
    /// `None` once it has been retired.
    serving: Mutex<Option<Serving>>,
    failures: FailureLog,
    examples: Arc<Examples>,
    /// Where answers are to leave in the order of their requests.
    gate: Option<Arc<Gate>>,
}

/// Where the configuration asks for it.
fn gate(config: &ModelConfig) -> Option<Arc<Gate>> {
    config.batching.as_ref().filter(|batching| batching.preserve_ordering).map(|_| Arc::default())
}

impl LiveVersion {
    /// Makes a loaded version known to the scheduler.
    pub fn new(
        config: Arc<ModelConfig>,
        schema: Arc<Schema>,
        binding: Binding,
        executable: Executable,
        pool: &Pool,
    ) -> Self {
        let registration =
            Arc::new(pool.register(Policy::new(&config, executable.placements(), QUEUE_LIMIT)));
        Self {
            model: Arc::clone(&binding.model),
            version: executable.version,
            gate: gate(&config),
            config,
            schema,
            binding,
            digest: None,
            loaded_at: SystemTime::now(),
            executable: Arc::new(executable),
            serving: Mutex::new(Some(Serving::new(&registration))),
            registration,
            failures: FailureLog::default(),
            examples: Arc::default(),
        }
    }

    /// The same weights, runners and queue under a changed configuration: nothing is loaded, and nobody
    /// who waits notices. The scheduler has the new placements when this returns, also for requests that
    /// this version still accepts.
    ///
    /// `None` where the placements are on other devices than the weights are.
    pub fn reconfigured(
        &self,
        config: Arc<ModelConfig>,
        binding: Binding,
        placements: &[Placement],
    ) -> Option<Self> {
        let executable = self.executable.with(placements, allowed_sizes(&config))?;
        self.registration.set_policy(&Policy::new(&config, placements.to_vec(), QUEUE_LIMIT));
        // Those who came under an order that still holds keep their places in it.
        let gate = gate(&config).map(|new| self.gate.clone().unwrap_or(new));
        Some(Self {
            gate,
            model: Arc::clone(&self.model),
            version: self.version,
            config,
            schema: Arc::clone(&self.schema),
            binding,
            digest: self.digest,
            loaded_at: self.loaded_at,
            executable: Arc::new(executable),
            serving: Mutex::new(Some(Serving::new(&self.registration))),
            registration: Arc::clone(&self.registration),
            failures: FailureLog::default(),
            examples: Arc::clone(&self.examples),
        })
    }

    /// What the workers run.
    pub fn executable(&self) -> &Executable {
        &self.executable
    }

    /// What it is doing.
    pub fn load(&self) -> ModelLoad {
        self.registration.load()
    }

    /// Why it answers nothing any more, where that is so.
    pub fn stuck_by(&self) -> Option<Stuck> {
        self.registration.stuck_by()
    }

    /// Starts with what is known of the costs of the version before it.
    pub fn inherit_costs(&self, other: &Self) {
        self.registration.inherit(&other.registration);
    }

    pub(crate) fn registration(&self) -> &Registration {
        &self.registration
    }

    /// Shapes that it has served, the latest last: something to warm its successor with.
    pub fn examples(&self) -> Vec<Example> {
        self.examples.list()
    }

    /// It is in no table any more: its queue may be closed, and `farewell` goes with its weights.
    pub(crate) fn retire(&self, farewell: Farewell) -> Weak<Registration> {
        self.executable.keep(farewell);
        drop(self.serving.lock().unwrap_or_else(PoisonError::into_inner).take());
        Arc::downgrade(&self.registration)
    }

    /// Answers one request: check, queue, wait, name the outputs.
    ///
    /// # Errors
    /// Every [`Error`] but those of looking a model up. A call that is dropped is forgotten by the
    /// queue; a run that has begun is finished and its outcome dropped.
    pub async fn infer(&self, request: Request) -> Result<Vec<NamedOutput>> {
        let outcome = self.answer(request).await;
        if let Err(error @ (Error::Model { .. } | Error::Output { .. } | Error::WorkerLost { .. })) = &outcome
        {
            self.failures.log(self.version, error);
        }
        outcome
    }

    async fn answer(&self, request: Request) -> Result<Vec<NamedOutput>> {
        outputs::check_wanted(&self.binding, &request.outputs)?;
        let example = self.examples.due().then(|| Example::of(&self.binding, &request.inputs)).flatten();
        let checked = check::call(&self.binding, request.inputs)?;
        if request.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(Error::DeadlineExceeded { stage: "passed before it was queued" });
        }
        let (sender, answer) = oneshot::channel();
        let reply = match &self.gate {
            Some(gate) => Reply::Ordered(gate.enter(), Box::new(Reply::One(sender))),
            None => Reply::One(sender),
        };
        let mut job = Job::new(Arc::clone(&self.executable), checked.call, checked.batch, reply);
        (job.deadline, job.priority) = (request.deadline, request.priority);
        job.timeout = Some(request.timeout).filter(|timeout| !timeout.is_zero());
        self.registration.submit(job).map_err(|refusal| self.refused(refusal))?;
        let expired = Error::DeadlineExceeded { stage: "passed while it was queued or running" };
        let answer = match request.deadline {
            None => answer.await,
            Some(deadline) => {
                tokio::time::timeout_at(deadline.into(), answer).await.map_err(|_| expired.clone())?
            }
        };
        // The queue drops what has expired, and may be earlier than the timer.
        let lost = |_| match request.deadline {
            Some(deadline) if deadline <= Instant::now() => expired,
            Some(_) | None => Error::WorkerLost { model: self.model.to_string() },
        };
        let output = answer.map_err(lost)??;
        let mut named =
            outputs::name(&self.binding, output, &request.outputs, checked.batch, &checked.lengths)?;
        for (output, wanted) in named.iter_mut().zip(&request.outputs) {
            if wanted.classes > 0 {
                let labels = outputs::labels(&self.binding, &output.name).map(|labels| &**labels);
                output.tensor =
                    classify(&output.name, &output.tensor, wanted.classes, labels, checked.batch.is_some())?;
            }
        }
        self.examples.served(example);
        Ok(named)
    }

    fn refused(&self, refusal: Refusal) -> Error {
        let model = self.model.to_string();
        match refusal {
            Refusal::Full { limit, priority, retry_after } => {
                Error::QueueFull { model, limit, priority, retry_after }
            }
            Refusal::TooMuch { limit, size, retry_after } => Error::QueuesFull { limit, size, retry_after },
            Refusal::NoDevice => {
                let message = "none of the devices that it may use is left; see the log".to_owned();
                Error::DeviceLost { model, message }
            }
            Refusal::Stuck(stuck) => {
                Error::NotReady { model, version: self.version.to_string(), why: stuck.why().to_owned() }
            }
            Refusal::Gone => Error::NotReady {
                model,
                version: self.version.to_string(),
                why: "it is being unloaded".to_owned(),
            },
        }
    }
}

/// The sizes of batches that it is run with, when the configuration says so.
pub fn allowed_sizes(config: &ModelConfig) -> Vec<usize> {
    config.batching.iter().flat_map(|batching| &batching.allowed_sizes).map(|size| *size as usize).collect()
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
