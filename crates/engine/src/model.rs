//! One live version: what a request meets once its name has been looked up.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use sconce_repository::{Digest, ModelConfig, Version};

use crate::{
    Error,
    backend::{LoadError, Module, Opened},
    binding::Binding,
    examples::{Example, Examples},
    generate::Generator,
    observe::TraceContext,
    ordering::Gate,
    pool::{Executable, ModelLoad, Pool, Registration, Serving},
    reaper::{Farewell, Reaper},
    scheduler::{Placement, Policy, Refusal, Stuck},
    schema::Schema,
    sequence::{InSequence, SequenceId, Sequencer},
};
mod answer;
mod failures;
pub use crate::{
    check::Input,
    outputs::{NamedOutput, Wanted},
};
pub(crate) use failures::FailureLog;

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
    /// Where in a sequence it is.
    pub sequence: Option<InSequence>,
    /// How many answers it wants at most, of a model that makes many.
    pub max_steps: Option<u32>,
    /// What its caller calls it, for the log; may be anything.
    pub id: String,
    /// Whether its caller wants to know of the run that answers it.
    pub told: bool,
    /// Its place in a trace, if it is traced.
    pub trace: Option<Box<TraceContext>>,
    /// What is kept until the first run for it is over, of a request with many answers: its own bytes are copied, and
    /// hold a place in memory.
    pub held: Option<Box<Bytes>>,
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
    /// What its `step` takes and returns, where it makes many answers.
    pub step_schema: Option<Arc<Schema>>,
    /// Its names, types and shapes.
    pub binding: Arc<Binding>,
    /// Which bytes it was loaded from; `None` where nobody looked.
    pub digest: Option<Digest>,
    /// When they were loaded.
    pub loaded_at: SystemTime,
    /// How long that took, from the first byte that was read to the last run before it served.
    pub load_took: Option<Duration>,
    /// Where the configuration has sequences. Before the executable, which its lanes need to the end.
    sequencer: Option<Arc<Sequencer>>,
    /// Where the configuration makes many answers of a request.
    generator: Option<Arc<Generator>>,
    executable: Arc<Executable>,
    registration: Arc<Registration>,
    /// `None` once it has been retired.
    serving: Mutex<Option<Serving>>,
    failures: Arc<FailureLog>,
    examples: Arc<Examples>,
    /// Where answers are to leave in the order of their requests.
    gate: Option<Arc<Gate>>,
}

/// Where the configuration asks for it.
pub(crate) fn gate(config: &ModelConfig) -> Option<Arc<Gate>> {
    config.batching.as_ref().filter(|batching| batching.preserve_ordering).map(|_| Arc::default())
}

impl LiveVersion {
    /// Binds the names of an opened version, puts its weights on its devices, and makes it known to the scheduler.
    ///
    /// # Errors
    /// One sentence: what does not fit, or cannot be loaded.
    pub fn open(
        opened: &dyn Opened,
        config: &Arc<ModelConfig>,
        version: Version,
        placements: Vec<Placement>,
        pool: &Pool,
        reaper: &Reaper,
    ) -> std::result::Result<Self, LoadError> {
        let binding = Binding::with_step(config, opened.schema(), opened.step_schema())?;
        let load =
            |placement: Placement| Ok((placement.clone(), opened.load(pool.devices()[placement.device])?));
        let modules: Vec<(_, Arc<dyn Module>)> =
            placements.into_iter().map(load).collect::<std::result::Result<_, LoadError>>()?;
        let steps: Option<Vec<_>> =
            modules.iter().map(|(placement, module)| Some((placement.clone(), module.step()?))).collect();
        let stats = pool.stats().version(&binding.model, version);
        let executable = |modules| {
            let stats = Arc::clone(&stats);
            Executable::new(
                Arc::clone(&binding.model),
                version,
                allowed_sizes(config),
                modules,
                stats,
                reaper,
            )
        };
        let (executable, step) = (
            Arc::new(executable(modules)?.keeping_state(config.stateful)),
            steps.map(executable).transpose()?,
        );
        let binding = Arc::new(binding);
        let registration = Arc::new(pool.register(Policy::new(config, executable.placements(), QUEUE_LIMIT)));
        let sequencer = config
            .sequences
            .as_ref()
            .map(|sequences| Sequencer::new(config, sequences, &binding, &executable, &registration, pool));
        let failures = Arc::<FailureLog>::default();
        Ok(Self {
            model: Arc::clone(&binding.model),
            version,
            gate: gate(config).filter(|_| config.sequences.is_none()),
            schema: Arc::new(opened.schema().clone()),
            step_schema: opened.step_schema().cloned().map(Arc::new),
            digest: None,
            loaded_at: SystemTime::now(),
            load_took: None,
            sequencer: sequencer.transpose()?,
            generator: step.map(|step| {
                Generator::new(config, &binding, (&executable, step), &registration, &failures, pool)
            }),
            config: Arc::clone(config),
            binding,
            executable,
            serving: Mutex::new(Some(Serving::new(&registration))),
            registration,
            failures,
            examples: Arc::default(),
        })
    }

    /// The same weights, runners and queue under a changed configuration: nothing is loaded, and nobody
    /// who waits notices. The scheduler has the new placements when this returns, also for requests that
    /// this version still accepts.
    ///
    /// `None` where the placements are on other devices than the weights are, and for models of sequences or many
    /// answers.
    pub fn reconfigured(
        &self,
        config: Arc<ModelConfig>,
        binding: Binding,
        placements: &[Placement],
    ) -> Option<Self> {
        // What goes on from request to request, or from step to step, has queues and runners of its own.
        if self.sequencer.is_some() || self.generator.is_some() {
            return None;
        }
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
            binding: Arc::new(binding),
            digest: self.digest,
            loaded_at: self.loaded_at,
            load_took: self.load_took,
            sequencer: None,
            generator: None,
            step_schema: None,
            executable: Arc::new(executable),
            serving: Mutex::new(Some(Serving::new(&self.registration))),
            registration: Arc::clone(&self.registration),
            failures: Arc::default(),
            examples: Arc::clone(&self.examples),
        })
    }

    /// What the workers run.
    pub fn executable(&self) -> &Executable {
        &self.executable
    }

    /// What it is doing.
    pub fn load(&self) -> ModelLoad {
        let mut load = self.registration.load();
        if let Some(sequencer) = &self.sequencer {
            sequencer.add_to(&self.registration, &mut load);
        }
        if let Some(generator) = &self.generator {
            generator.add_to(&self.registration, &mut load);
        }
        load
    }

    /// How many sequences go on; `None` where it has none.
    pub fn sequences(&self) -> Option<usize> {
        self.sequencer.as_ref().map(|sequencer| sequencer.count())
    }

    /// How many requests are being answered with many answers; `None` where it makes one.
    pub fn generations(&self) -> Option<usize> {
        self.generator.as_ref().map(|generator| generator.count())
    }

    /// Whether a sequence of that id goes on.
    pub fn holds(&self, id: &SequenceId) -> bool {
        self.sequencer.as_ref().is_some_and(|sequencer| sequencer.holds(id))
    }

    /// Ends sequences that are idle for too long.
    pub(crate) fn sweep(&self) {
        if let Some(sequencer) = &self.sequencer {
            sequencer.sweep();
        }
    }

    /// Ends all sequences and generations at once, because the server goes away.
    pub fn abandon(&self) {
        if let Some(sequencer) = &self.sequencer {
            sequencer.close();
        }
        if let Some(generator) = &self.generator {
            generator.close();
        }
    }

    /// The costs that have been measured count for each of its lanes.
    pub(crate) fn warmed(&self) {
        if let Some(sequencer) = &self.sequencer {
            sequencer.inherit(&self.registration);
        }
        if let Some(generator) = &self.generator {
            generator.inherit(&self.registration, None);
        }
    }

    /// Why it answers nothing any more, where that is so.
    pub fn stuck_by(&self) -> Option<Stuck> {
        match &self.sequencer {
            Some(sequencer) => sequencer.stuck_by(),
            None if self.generator.is_some() => self.generator.as_ref()?.stuck_by(),
            None => self.registration.stuck_by(),
        }
    }

    /// Starts with what is known of the costs of the version before it.
    pub fn inherit_costs(&self, other: &Self) {
        self.registration.inherit(&other.registration);
        if let Some(generator) = &self.generator {
            generator.inherit(&self.registration, other.generator.as_deref());
        }
        self.warmed();
    }

    pub(crate) fn registration(&self) -> &Registration {
        &self.registration
    }

    /// Shapes that it has served, the latest last: something to warm its successor with.
    pub fn examples(&self) -> Vec<Example> {
        self.examples.list()
    }

    /// It is in no table any more: its queue may be closed, and `farewell` goes with its weights.
    pub(crate) fn retire(&self, farewell: Farewell) -> Leaving {
        self.executable.keep(farewell);
        drop(self.serving.lock().unwrap_or_else(PoisonError::into_inner).take());
        let registration = Arc::downgrade(&self.registration);
        Leaving {
            registration,
            sequencer: self.sequencer.as_ref().map(Arc::downgrade),
            generator: self.generator.as_ref().map(Arc::downgrade),
        }
    }
}

/// What a version does not take, as an error.
pub(crate) fn refused(model: &Arc<str>, version: Version, refusal: Refusal) -> Error {
    let model = model.to_string();
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
            Error::NotReady { model, version: version.to_string(), why: stuck.why().to_owned() }
        }
        Refusal::Gone => {
            let why = "it is being unloaded".to_owned();
            Error::NotReady { model, version: version.to_string(), why }
        }
    }
}

/// A version that is in no table any more, as far as it has to be told to let go.
#[derive(Debug)]
pub(crate) struct Leaving {
    registration: Weak<Registration>,
    sequencer: Option<Weak<Sequencer>>,
    generator: Option<Weak<Generator>>,
}

impl Leaving {
    /// Refuses what waits, unless a version that has not been retired answers through the same queue.
    pub(crate) fn close(&self) {
        if let Some(sequencer) = self.sequencer.as_ref().and_then(Weak::upgrade) {
            sequencer.close();
        }
        if let Some(generator) = self.generator.as_ref().and_then(Weak::upgrade) {
            generator.close();
        }
        if let Some(registration) = self.registration.upgrade() {
            registration.close_unless_serving();
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
