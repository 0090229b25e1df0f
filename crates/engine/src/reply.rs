//! Where answers go: one or many per request, the last one marked.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use tokio::sync::oneshot;
use tracing::warn;

use crate::{
    Error, Result,
    backend::RunError,
    batch,
    generate::{self, Generation, Step},
    job::{Job, Waiter},
    observe::{BatchRun, Run, TraceContext},
    ordering::Ticket,
    pool::Shared,
    ragged,
    scheduler::{InFlight, ModelKey, Work, WorkerIndex},
    sequence::{Rows, Turn},
    stats::{Cause, Stage},
    value::Output,
};

/// An answer, and the run that made it, if there was one and its caller wants to know.
pub type Answer = (Result<Output>, Option<Box<Run>>);

/// The way back to one caller. Dropping it unanswered tells the caller that the worker was lost.
#[derive(Debug)]
pub enum Reply {
    /// Takes exactly one answer.
    One(oneshot::Sender<Answer>),
    /// Takes exactly one answer, of a run that no request asked for: it is not counted.
    Measured(oneshot::Sender<Answer>),
    /// Takes any number, and asks for each next one.
    Generating(Box<Generation>),
    /// Answers when those before it have been answered.
    Ordered(Ticket, Box<Reply>),
    /// Answers when the sequence has what the answer leaves for its next request.
    Sequenced(Turn, Box<Reply>),
    /// Answers the requests whose sequences have the rows of a batch.
    Rows(Rows),
}

impl Reply {
    /// Whether nobody waits any more.
    pub fn is_closed(&self) -> bool {
        match self {
            Self::One(sender) | Self::Measured(sender) => sender.is_closed(),
            Self::Generating(generation) => generation.is_closed(),
            Self::Rows(rows) => rows.is_closed(),
            Self::Ordered(_, reply) | Self::Sequenced(_, reply) => reply.is_closed(),
        }
    }

    /// Why nobody waits any more, where that is so: his time was up, or he has gone.
    pub(crate) fn has_left(&self, deadline: Option<Instant>) -> Option<Cause> {
        self.is_closed().then(|| Cause::of(deadline))
    }

    /// Goes without those before it, and holds nobody up.
    pub(crate) fn leave_order(self) -> Self {
        match self {
            Self::Ordered(_, reply) => *reply,
            Self::Sequenced(turn, reply) => Self::Sequenced(turn, Box::new(reply.leave_order())),
            Self::Rows(rows) => Self::Rows(rows.leave_order()),
            other => other,
        }
    }

    /// Whether a request is answered by it.
    pub(crate) fn counts(&self) -> bool {
        !matches!(self, Self::Measured(_))
    }

    /// Sends the only or last answer, which this run has made. One that nobody waits for is dropped.
    pub fn finish(self, answer: Result<Output>, run: Option<Box<Run>>) {
        generate::go_on(self.answer(answer, run).into_iter().collect());
    }

    /// The same, but for what follows from it: that is given back, to run together with others.
    fn answer(self, answer: Result<Output>, run: Option<Box<Run>>) -> Option<Step> {
        match self {
            Self::Generating(generation) => return generation.answer(answer),
            Self::One(sender) | Self::Measured(sender) => drop(sender.send((answer, run))),
            Self::Ordered(ticket, reply) => ticket.answer(*reply, answer, run),
            Self::Sequenced(turn, reply) => turn.answer(*reply, answer, run),
            Self::Rows(rows) => rows.answer(answer, run.as_deref()),
        }
        None
    }
}

/// The requests of a batch that are not answered yet: some may be before it has been run.
#[derive(Debug)]
pub(crate) struct Unanswered(Mutex<Vec<Job>>);

impl Unanswered {
    pub(crate) fn new(jobs: Vec<Job>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(jobs)))
    }

    /// Whoever takes them answers them.
    pub(crate) fn take(&self) -> Vec<Job> {
        std::mem::take(&mut *self.lock())
    }

    /// Their answers go without those before them, and hold nobody up.
    pub(crate) fn leave_order(&self) {
        let mut jobs = self.lock();
        *jobs = jobs.drain(..).map(Job::out_of_order).collect();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Job>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Completes a batch: an answer for each of its requests, exactly once.
///
/// It holds the device's count of requests in flight, so a device that works asynchronously counts as busy
/// until it completes. Dropped without, as by a panic, the requests of a batch are run again one by one,
/// and a caller whose request ran alone learns that the worker was lost.
#[derive(Debug)]
pub struct Done {
    pub(crate) jobs: Arc<Unanswered>,
    /// Rows that were run: those of the requests, and perhaps some that nobody asked for.
    pub(crate) total: usize,
    pub(crate) model: ModelKey,
    pub(crate) device: usize,
    pub(crate) pool: Arc<Shared>,
    pub(crate) in_flight: Option<InFlight>,
    pub(crate) worker: WorkerIndex,
    /// When the worker began with the batch.
    pub(crate) started: Instant,
    /// When the batch was one call.
    pub(crate) gathered: Instant,
    /// Told when the run failed, so that its time counts for nothing.
    pub(crate) failed: Arc<AtomicBool>,
}

/// What a run means for its requests.
#[derive(Clone, Copy, Debug)]
enum End {
    /// They are answered by it.
    Answered,
    /// They fail with it.
    Failed,
    /// It failed, and they run again.
    Again,
}

impl Done {
    /// Answers the requests of the batch from the answer to the one call that they were joined to.
    pub fn complete(mut self, result: std::result::Result<Output, RunError>) {
        // Uncounted before the callers wake, so that none of them sees itself still in flight.
        drop(self.in_flight.take());
        let ran = Instant::now();
        let jobs = self.jobs.take();
        match result {
            Ok(output) => self.answer(jobs, output, ran),
            Err(error) => {
                self.failed.store(true, Ordering::Relaxed);
                if let RunError::Device(message) = &error {
                    // Before anybody knows, who might come again at once.
                    self.pool.fail_device(self.device, message);
                }
                // The guilty one is found by running each by itself.
                let is_lost = matches!(error, RunError::Device(_));
                if !is_lost && jobs.len() > 1 && can_repeat(&jobs) {
                    self.again(jobs, ran);
                } else {
                    self.fail(jobs, &error, ran);
                }
            }
        }
    }

    /// Has each request of the batch run by itself.
    fn again(&self, jobs: Vec<Job>, ran: Instant) {
        self.ended(&jobs, (ran, ran), End::Again);
        self.pool.again(self.model, jobs);
    }

    /// Tells all requests of the batch why the run failed.
    fn fail(&self, jobs: Vec<Job>, error: &RunError, ran: Instant) {
        let run = self.ended(&jobs, (ran, ran), End::Failed);
        for job in jobs {
            let (answer, run) = (Err(of_model(&job, error)), job.told(&run));
            job.reply.finish(answer, run);
        }
    }

    /// What is told of the run, when the model has answered and when the answer has been divided; its requests are
    /// counted before their callers know.
    fn ended(&self, jobs: &[Job], (ran, scattered): (Instant, Instant), end: End) -> Run {
        let (rows, device, worker) = (self.total, self.device, self.worker);
        let (started, gathered) = (self.started, self.gathered);
        let arrived = started;
        let mut run = Run { arrived, started, gathered, ran, scattered, requests: 0, rows, device, worker };
        let first = jobs.first().filter(|job| job.reply.counts());
        let stats = first.map(|job| &job.executable.stats);
        let is_last = !matches!(end, End::Again);
        let mut traced: Vec<TraceContext> = Vec::new();
        let mut count = |waiter: Waiter<'_>| {
            run.requests += 1;
            run.arrived = run.arrived.min(waiter.arrived);
            if let Some(trace) = waiter.trace {
                traced.push(*trace);
            }
            // Of one that runs again, the run that it ends with is counted.
            if let Some(stats) = stats.filter(|_| is_last) {
                stats.waited(started.saturating_duration_since(waiter.arrived));
                if let Some(cause) = waiter.reply.has_left(waiter.deadline) {
                    stats.give_up(cause, Stage::Running);
                }
            }
        };
        jobs.iter().for_each(|job| job.for_each_waiter(&mut count));
        let Some(first) = first else { return run };
        first.executable.stats.ran(&run, if is_last { run.requests } else { 0 });
        if !traced.is_empty() {
            let (model, version) = (&*first.executable.name, first.executable.version);
            let failed = !matches!(end, End::Answered);
            self.pool.observer().batch(&BatchRun { model, version, run, traced: &traced, failed });
        }
        run
    }

    fn answer(&self, mut jobs: Vec<Job>, output: Output, ran: Instant) {
        if jobs.is_empty() {
            return; // They have been answered without it.
        }
        if let [job] = &jobs[..]
            && (job.rows() == self.total || !job.joins())
        {
            let run = self.ended(&jobs, (ran, ran), End::Answered);
            if let Some(job) = jobs.pop() {
                let told = job.told(&run);
                job.reply.finish(Ok(output), told);
            }
            return;
        }
        let rows: Vec<usize> = jobs.iter().map(Work::rows).collect();
        let shares: Vec<_> = jobs.iter().filter_map(|job| job.call.shares.as_deref()).collect();
        let parts = match &shares[..] {
            [] => batch::scatter(&output, &rows, self.total),
            shares => ragged::scatter(&output, shares, &rows, self.total),
        };
        match parts {
            Ok(parts) => {
                let run = self.ended(&jobs, (ran, Instant::now()), End::Answered);
                answer_all(jobs.into_iter().zip(parts), &run);
            }
            Err(what) => {
                if let Some(job) = jobs.first() {
                    warn!(model = %job.executable.name, version = %job.executable.version,
                        "it returned {what}: its requests are run one by one from now on");
                }
                self.failed.store(true, Ordering::Relaxed);
                self.pool.never_join(self.model);
                // Also one request alone, which had been filled up.
                if can_repeat(&jobs) {
                    self.again(jobs, ran);
                } else {
                    self.fail(jobs, &RunError::Output(what), ran);
                }
            }
        }
    }
}

/// Whether the requests of a batch may run once more: not where a run changes the state of the instance.
fn can_repeat(jobs: &[Job]) -> bool {
    jobs.iter().all(|job| !job.executable.keeps_state)
}

/// Answers the requests of one batch.
fn answer_all(jobs: impl Iterator<Item = (Job, Output)>, run: &Run) {
    let answer = |(job, output): (Job, Output)| {
        let run = job.told(run);
        job.reply.answer(Ok(output), run)
    };
    generate::go_on(jobs.filter_map(answer).collect());
}

impl Drop for Done {
    fn drop(&mut self) {
        drop(self.in_flight.take());
        let jobs = self.jobs.take();
        if jobs.is_empty() {
            return;
        }
        self.failed.store(true, Ordering::Relaxed);
        let ran = Instant::now();
        if jobs.len() > 1 && can_repeat(&jobs) {
            self.again(jobs, ran);
        } else {
            self.ended(&jobs, (ran, ran), End::Failed);
        }
    }
}

fn of_model(job: &Job, error: &RunError) -> Error {
    let (model, message) = (job.executable.name.to_string(), error.to_string());
    match error {
        RunError::Model(_) => Error::Model { model, message },
        RunError::Output(_) => Error::Output { model, message },
        RunError::Device(_) => Error::DeviceLost { model, message },
    }
}
