//! The first runs of a version, before its first request: TorchScript compiles during them, and a
//! version that cannot run at all is found out.
//!
//! They are made on the device's own workers, because what is compiled and cached there is what serves,
//! and they give way to traffic.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tracing::debug;

use crate::{
    Error, Result,
    backend::{Device, LoadError},
    check::{self, Checked},
    examples::Example,
    model::LiveVersion,
    outputs,
    pool::{Executable, Job, Pool, Registration},
    reply::Reply,
    scheduler::Policy,
    value::{Call, Output},
    warm_costs::Costing,
    warm_inputs::{Trial, trials},
};

/// An input is run until so many runs in a row are alike ...
const ALIKE: usize = 3;
/// ... within this part of the shortest ...
const TOLERANCE: f64 = 0.1;
/// ... or until there have been so many ...
const MOST_RUNS: usize = 20;
/// ... or it has taken so long.
const LONGEST: Duration = Duration::from_secs(10);
/// One run that takes longer than this does not end, as far as anybody would wait: loading goes on.
const LONGEST_RUN: Duration = Duration::from_secs(120);
/// How soon it is seen that nobody wants the version any more.
const LOOK: Duration = Duration::from_millis(20);

/// What came of one input on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warmed {
    /// The device.
    pub device: Device,
    /// The input.
    pub input: String,
    /// How many runs there were.
    pub runs: usize,
    /// How long the first run took.
    pub first: Duration,
    /// How long the last run took.
    pub settled: Duration,
}

/// Warms a version up on each of its devices, one run at a time: with the samples of its configuration;
/// or with an input made from it; or, where that does not tell every shape, with `examples` that the
/// version before it has served. Blocks until that is done or `stop` is set, which is no error.
///
/// # Errors
/// When the version fails on an input that it ought to answer: a sample, or an input made of tensors
/// whose shapes the configuration states. One sentence.
pub fn warm(
    pool: &Pool,
    live: &LiveVersion,
    examples: &[Example],
    measure: bool,
    stop: &AtomicBool,
) -> std::result::Result<Vec<Warmed>, LoadError> {
    let trials = trials(live, examples)?;
    let mut warmed = Vec::new();
    if trials.is_empty() {
        return Ok(warmed);
    }
    for index in live.executable().devices() {
        let device = pool.devices()[index];
        let executable = Arc::new(live.executable().with_own_runner(index, Vec::new())?);
        let registration = pool.register(Policy::background(index));
        let step = live
            .generator()
            .map(|generator| generator.step().with_own_runner(index, Vec::new()))
            .transpose()?;
        let step = step.map(Arc::new);
        let hangs = Cell::new(false);
        let oven = Oven { live, executable, step, registration, index, device, stop, hangs };
        for trial in &trials {
            match oven.settle(trial).and_then(|done| oven.walk(trial).map(|()| done)) {
                Ok(Some(done)) => {
                    debug!(model = %live.model, version = %live.version, "warmed: {done:?}");
                    warmed.push(done);
                }
                Ok(None) => return Ok(warmed),
                Err(error) => oven.judge(trial, &error)?,
            }
        }
        if measure {
            oven.measure(&trials[0], pool.cores(index));
        }
    }
    live.warmed();
    Ok(warmed)
}

/// A version on one device.
struct Oven<'a> {
    live: &'a LiveVersion,
    executable: Arc<Executable>,
    /// Of a generating model.
    step: Option<Arc<Executable>>,
    registration: Registration,
    index: usize,
    device: Device,
    stop: &'a AtomicBool,
    /// A run has not ended.
    hangs: Cell<bool>,
}

impl Oven<'_> {
    /// Some steps of a generating model, from an input; as many as another method takes to be compiled.
    fn walk(&self, trial: &Trial) -> Result<()> {
        let (Some(generator), Some(step)) = (self.live.generator(), &self.step) else { return Ok(()) };
        let checked = self.checked(trial)?;
        let rows = checked.batch;
        let Some((mut output, _)) = self.call(&self.executable, checked.call, rows, 1)? else {
            return Ok(());
        };
        for steps in 0..ALIKE + 1 {
            let failed = |message| Error::Output { model: self.live.model.to_string(), message };
            let call = generator.plan().next_call(&output, rows, steps == 0).map_err(failed)?;
            let Some((next, _)) = self.call(step, call, rows, 1)? else { return Ok(()) };
            output = next;
        }
        Ok(())
    }

    /// Runs one input until its runs are alike; `None` when told to stop.
    fn settle(&self, trial: &Trial) -> Result<Option<Warmed>> {
        let begun = Instant::now();
        let mut first = None;
        let mut last: Vec<Duration> = Vec::with_capacity(ALIKE + 1);
        for runs in 1.. {
            let Some(took) = self.run(trial)? else { return Ok(None) };
            let first = *first.get_or_insert(took);
            last.push(took);
            if last.len() > ALIKE {
                last.remove(0);
            }
            let enough = alike(&last) || runs >= MOST_RUNS || begun.elapsed() >= LONGEST;
            if enough && runs >= trial.at_least as usize {
                let (device, input) = (self.device, trial.name.clone());
                return Ok(Some(Warmed { device, input, runs, first, settled: took }));
            }
        }
        Ok(None)
    }

    /// As a request is; for a sequence as its first.
    fn checked(&self, trial: &Trial) -> Result<Checked> {
        let mut checked = check::call(&self.live.binding, trial.inputs.clone())?;
        if let Some(sequence) = &self.live.binding.sequence {
            sequence.fill_first(&mut checked.call, checked.batch);
        }
        if let Some(generator) = self.live.generator() {
            generator.plan().keep(&mut checked.call);
        }
        Ok(checked)
    }

    /// One run, checked as a request is; how long it took on its worker.
    fn run(&self, trial: &Trial) -> Result<Option<Duration>> {
        let checked = self.checked(trial)?;
        let Some((output, took)) = self.call(&self.executable, checked.call, checked.batch, 1)? else {
            return Ok(None);
        };
        outputs::name(&self.live.binding, output, &[], checked.batch, &checked.lengths)?;
        Ok(Some(took))
    }

    /// One run on so many threads, if they are free; `None` when told to stop.
    fn call(
        &self,
        executable: &Arc<Executable>,
        call: Call,
        rows: Option<i64>,
        threads: usize,
    ) -> Result<Option<(Output, Duration)>> {
        let (sender, answer) = oneshot::channel();
        let mut job = Job::new(Arc::clone(executable), call, rows, Reply::Measured(sender), Instant::now());
        job.threads = Some(threads);
        let lost = || Error::WorkerLost { model: self.live.model.to_string() };
        self.registration.submit(job).map_err(|_| lost())?;
        let Some(answer) = wait(answer, self.stop, Instant::now() + LONGEST_RUN) else {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            self.hangs.set(true);
            let message = format!("a run of it did not end within {} s", LONGEST_RUN.as_secs());
            return Err(Error::Model { model: self.live.model.to_string(), message });
        };
        let (output, run) = answer.map_err(|_| lost())?;
        let took = run.map_or(Duration::ZERO, |run| run.ran.saturating_duration_since(run.started));
        Ok(Some((output?, took)))
    }

    /// Measures what runs cost. What fails here says nothing: a model need not be able to take several of
    /// the same.
    fn measure(&self, trial: &Trial, cores: usize) {
        let Ok(checked) = self.checked(trial) else { return };
        let costing = Costing::new(&self.live.config, &checked, cores);
        costing.measure(
            |call, rows, threads| {
                // Beside others it would not get the threads that it asks for.
                let load = self.registration.pool().status();
                if threads > 1
                    && load.iter().any(|status| status.device == self.device && status.cores_used > 0)
                {
                    return None;
                }
                self.call(&self.executable, call, rows, threads).ok().flatten().map(|(_, took)| took)
            },
            |size, rows, threads, took| {
                debug!(model = %self.live.model, size, rows, threads, "costs {took:?}");
                self.live.registration().seed(self.index, (size, rows, threads), took);
            },
        );
    }

    /// Whether the version may serve although it failed.
    fn judge(&self, trial: &Trial, error: &Error) -> std::result::Result<(), LoadError> {
        let (name, device) = (&trial.name, self.device);
        let message = match error {
            Error::Model { message, .. } => message.clone(),
            Error::Output { message, .. } => {
                format!("it returned something that cannot be served: {message}")
            }
            other => other.to_string(),
        };
        match trial.advice {
            Some(advice) => {
                let reason = format!("it failed while warming up on {device}, {name}: {message}; {advice}");
                Err(LoadError { hangs: self.hangs.get(), ..LoadError::new(reason) })
            }
            None => {
                debug!(model = %self.live.model, %device, "not warmed with {name}: {message}");
                Ok(())
            }
        }
    }
}

/// Whether there are enough runs and all took about the same time.
fn alike(last: &[Duration]) -> bool {
    if last.len() < ALIKE {
        return false;
    }
    match (last.iter().min(), last.iter().max()) {
        (Some(least), Some(most)) => most.as_secs_f64() <= least.as_secs_f64() * (1.0 + TOLERANCE),
        _ => false,
    }
}

/// Waits for an answer on a thread of no runtime; `None` when told to stop, or when it takes too long.
fn wait<T>(
    mut answer: oneshot::Receiver<T>,
    stop: &AtomicBool,
    until: Instant,
) -> Option<std::result::Result<T, oneshot::error::RecvError>> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if stop.load(Ordering::Relaxed) || Instant::now() >= until {
            return None;
        }
        if let Poll::Ready(answer) = Future::poll(std::pin::Pin::new(&mut answer), &mut context) {
            return Some(answer);
        }
        thread::park_timeout(LOOK);
    }
}

#[cfg(test)]
#[path = "warm_tests.rs"]
mod tests;
