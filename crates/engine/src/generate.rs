//! One request, many answers: `start` makes the first, `step` each next one from the one before.
//!
//! Every step is a request of its own to the scheduler, so that the steps of all generations that go on are joined
//! as other requests are, and each joins and leaves at any step. States stay on their device.
//!
//! - `plan`: what is taken from an answer for the next, and when it is the last.
//! - `collected`: all answers as one.
//! - `lanes`: where generations go on.
//! - `outbox`: the answers on their way to the caller.
//! - `tally`: what is counted of them.

mod collected;
mod lanes;
mod outbox;
mod plan;
mod tally;

use std::{
    mem,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use sconce_repository::ModelConfig;

pub(crate) use collected::collect;
use lanes::Lane;
use outbox::Outbox;
pub use outbox::{Answer, Answers};
pub(crate) use plan::{Plan, with_states};
use tally::Tally;

use crate::{
    Error, Result,
    binding::Binding,
    classification::classify_wanted,
    executable::Executable,
    job::Job,
    model::{FailureLog, QUEUE_LIMIT},
    observe::TraceContext,
    outputs::{self, NamedOutput, Wanted},
    padding::Lengths,
    pool::{ModelLoad, Pool, Registration},
    reply::Reply,
    scheduler::Stuck,
    stats::{Cause, Reason, Stage},
    value::{Call, Output},
};

/// What makes the answers of a version.
#[derive(Debug)]
pub(crate) struct Generator {
    binding: Arc<Binding>,
    start: Arc<Executable>,
    step: Arc<Executable>,
    lanes: Vec<Lane>,
    /// Requests that are being answered.
    going_on: AtomicUsize,
    /// How many of them wait for their callers to take answers.
    parked: AtomicUsize,
    /// Where answers are put, also of some requests that have been answered.
    outboxes: Mutex<Vec<Weak<Outbox>>>,
    failures: Arc<FailureLog>,
}

impl Generator {
    /// For a version whose configuration generates; `step` runs its other method, and `own` is the version's queue.
    pub(crate) fn new(
        config: &ModelConfig,
        binding: &Arc<Binding>,
        (start, step): (&Arc<Executable>, Executable),
        own: &Arc<Registration>,
        failures: &Arc<FailureLog>,
        pool: &Pool,
    ) -> Arc<Self> {
        Arc::new(Self {
            lanes: lanes::new(config, &step.placements(), own, pool),
            binding: Arc::clone(binding),
            start: Arc::clone(start),
            step: Arc::new(step),
            going_on: AtomicUsize::new(0),
            parked: AtomicUsize::new(0),
            outboxes: Mutex::default(),
            failures: Arc::clone(failures),
        })
    }

    pub(crate) fn plan(&self) -> &Plan {
        self.binding.generate.as_ref().unwrap_or_else(|| unreachable!("a generator is made for a plan"))
    }

    pub(crate) fn step(&self) -> &Executable {
        &self.step
    }

    /// Begins to answer a request whose call of `start` this is, on the device where the fewest go on.
    ///
    /// # Errors
    /// [`Error::QueueFull`] where as many go on as may; all else comes as an answer.
    pub(crate) fn begin(self: &Arc<Self>, mut call: Call, request: Beginning) -> Result<Answers> {
        let parked = self.parked.load(Ordering::Acquire);
        if self.going_on.fetch_add(1, Ordering::AcqRel) >= QUEUE_LIMIT.saturating_add(parked) {
            self.going_on.fetch_sub(1, Ordering::AcqRel);
            let model = self.binding.model.to_string();
            return Err(Error::QueueFull { model, limit: QUEUE_LIMIT, priority: None, retry_after: None });
        }
        self.plan().keep(&mut call);
        let most = self.plan().config.max_steps.get();
        let lane = lanes::emptiest(&self.lanes);
        self.lanes[lane].going_on.fetch_add(1, Ordering::AcqRel);
        let outbox = Arc::<Outbox>::default();
        self.remember(&outbox);
        let (rows, deadline, priority, timeout) =
            (request.rows, request.deadline, request.priority, request.timeout);
        let (trace, came) = (request.trace.clone(), request.came);
        let generation = Generation {
            generator: Arc::clone(self),
            lane,
            outbox: Arc::clone(&outbox),
            left: request.max_steps.map_or(most, |steps| steps.clamp(1, most)),
            tally: Tally::new(&self.start.stats, &request),
            first: true,
            over: false,
            request,
        };
        let reply = Reply::Generating(Box::new(generation));
        let mut job = Job::new(Arc::clone(&self.start), call, rows, reply, came);
        (job.deadline, job.priority, job.timeout) = (deadline, priority, timeout);
        job.trace = trace;
        if let Err(back) = self.lanes[lane].start.offer(job, true) {
            let (job, refusal) = *back;
            job.turn_away(refusal);
        }
        Ok(Answers(outbox))
    }

    fn remember(&self, outbox: &Arc<Outbox>) {
        let mut outboxes = self.outboxes.lock().unwrap_or_else(PoisonError::into_inner);
        if outboxes.len() > 64 + 2 * self.count() {
            outboxes.retain(|outbox| outbox.strong_count() > 0);
        }
        outboxes.push(Arc::downgrade(outbox));
    }

    /// Lets steps run, together where that pays; all of one lane.
    fn submit(&self, lane: usize, steps: Vec<Job>) {
        for (job, refusal) in self.lanes[lane].step.offer_together(steps) {
            job.turn_away(refusal);
        }
    }

    /// Takes no more, and ends what goes on: also for those who do not take their answers.
    pub(crate) fn close(&self) {
        let outboxes = mem::take(&mut *self.outboxes.lock().unwrap_or_else(PoisonError::into_inner));
        for outbox in outboxes.iter().filter_map(Weak::upgrade) {
            let (model, version) = (self.binding.model.to_string(), self.start.version.to_string());
            let why = "it was unloaded before all answers were made".to_owned();
            outbox.abandon(Error::NotReady { model, version, why });
        }
        for lane in &self.lanes {
            lane.step.close_unless_serving();
            lane.start.close_unless_serving();
        }
    }

    /// What its lanes are doing, beside the version's own queue.
    pub(crate) fn add_to(&self, own: &Arc<Registration>, load: &mut ModelLoad) {
        let starts = self.lanes.iter().map(|lane| &lane.start).filter(|start| !Arc::ptr_eq(start, own));
        starts.for_each(|start| load.add(start.load()));
        self.lanes.iter().for_each(|lane| load.add(lane.step.load()));
    }

    /// Why nothing is answered any more, where that is so.
    pub(crate) fn stuck_by(&self) -> Option<Stuck> {
        let stuck = |lane: &Lane| lane.start.stuck_by().or_else(|| lane.step.stuck_by());
        let all: Option<Vec<_>> = self.lanes.iter().map(stuck).collect();
        all?.into_iter().next()
    }

    /// How many requests are being answered.
    pub(crate) fn count(&self) -> usize {
        self.going_on.load(Ordering::Acquire)
    }

    /// Starts with what is known of the costs of the version itself, and of the steps of the one before it.
    pub(crate) fn inherit(&self, own: &Arc<Registration>, before: Option<&Self>) {
        for lane in &self.lanes {
            if !Arc::ptr_eq(&lane.start, own) {
                lane.start.inherit(own);
            }
            if let Some(before) = before.and_then(|before| before.lanes.first()) {
                lane.step.inherit(&before.step);
            }
        }
    }
}

/// What a request says for all its steps.
#[derive(Debug)]
pub(crate) struct Beginning {
    pub(crate) wanted: Vec<Wanted>,
    pub(crate) rows: Option<i64>,
    pub(crate) lengths: Lengths,
    pub(crate) deadline: Option<Instant>,
    pub(crate) priority: u64,
    /// How long it may wait for its first answer to be begun.
    pub(crate) timeout: Option<Duration>,
    /// How many answers it wants at most.
    pub(crate) max_steps: Option<u32>,
    /// Its caller gets all answers as one, and counts and logs how that ends.
    pub(crate) collected: bool,
    /// What its caller calls it.
    pub(crate) id: String,
    /// Its place in a trace, if it is traced.
    pub(crate) trace: Option<Box<TraceContext>>,
    /// What is kept until `start` has run.
    pub(crate) held: Option<Box<Bytes>>,
    /// When it came.
    pub(crate) came: Instant,
}

/// A request that is being answered.
#[derive(Debug)]
pub struct Generation {
    generator: Arc<Generator>,
    lane: usize,
    outbox: Arc<Outbox>,
    request: Beginning,
    tally: Tally,
    /// How many answers there may still be.
    left: u32,
    /// What comes is of `start`.
    first: bool,
    over: bool,
}

/// The next step of a generation, ready to run.
#[derive(Debug)]
pub(crate) struct Step {
    generator: Arc<Generator>,
    lane: usize,
    job: Job,
}

/// Steps that follow from one batch are the next batch, or a part of it: they are all of one lane.
pub(crate) fn go_on(steps: Vec<Step>) {
    let Some((generator, lane)) = steps.first().map(|step| (Arc::clone(&step.generator), step.lane)) else {
        return;
    };
    generator.submit(lane, steps.into_iter().map(|step| step.job).collect());
}

impl Generation {
    /// Whether nobody takes answers any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.outbox.is_closed()
    }

    /// Sends what a step has made; the next step, if there is one that may run now.
    pub(crate) fn answer(mut self, answer: Result<Output>) -> Option<Step> {
        self.request.held = None;
        if !self.outbox.takes() {
            return None;
        }
        match answer.and_then(|output| self.made(&output).map(|named| (output, named))) {
            Err(error) => self.end(Err(error)),
            Ok((output, named)) => {
                self.tally.made(&named);
                self.left -= 1;
                if self.left == 0 || self.generator.plan().is_last(&output, self.first) {
                    drop(output);
                    return self.end(Ok(named));
                }
                if self.request.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                    self.generator.start.stats.give_up(Cause::Deadline, Stage::Running);
                    let stage = "passed while answers were being made";
                    return self.end(Err(Error::DeadlineExceeded { stage }));
                }
                match self.generator.plan().next_call(&output, self.request.rows, self.first) {
                    Err(message) => {
                        let model = self.generator.binding.model.to_string();
                        self.end(Err(Error::Output { model, message }))
                    }
                    Ok(call) => {
                        let outbox = Arc::clone(&self.outbox);
                        outbox.put(Ok(named), Some(self.next(call)))
                    }
                }
            }
        }
    }

    fn made(&self, output: &Output) -> Result<Vec<NamedOutput>> {
        let plan = self.generator.plan();
        let binding = if self.first { &*self.generator.binding } else { &*plan.step_binding };
        let wanted = if self.request.wanted.is_empty() { &plan.send } else { &self.request.wanted };
        let (rows, lengths) = (self.request.rows, &self.request.lengths);
        let mut named = outputs::name(binding, output.clone(), wanted, rows, lengths)?;
        classify_wanted(binding, &mut named, wanted, rows.is_some())?;
        Ok(named)
    }

    fn next(mut self, call: Call) -> Step {
        let generator = Arc::clone(&self.generator);
        let (rows, deadline, priority) = (self.request.rows, self.request.deadline, self.request.priority);
        let trace = self.request.trace.clone();
        self.first = false;
        let lane = self.lane;
        let reply = Reply::Generating(Box::new(self));
        let mut job = Job::new(Arc::clone(&generator.step), call, rows, reply, Instant::now());
        (job.deadline, job.priority, job.trace) = (deadline, priority, trace);
        Step { generator, lane, job }
    }

    fn end(mut self, answer: Result<Vec<NamedOutput>>) -> Option<Step> {
        self.leave();
        self.tally.end(answer.as_ref().map_or_else(Reason::from, |_| Reason::Ok));
        if let Some(error) = answer.as_ref().err().filter(|_| !self.request.collected) {
            let request = (&*self.request.id, self.request.trace.as_deref());
            self.generator.failures.note(&self.generator.start, request, error);
        }
        self.outbox.put(answer, None)
    }

    /// It goes on no more: before its caller can know. Whether it did until now.
    fn leave(&mut self) -> bool {
        let goes_on = !mem::replace(&mut self.over, true);
        if goes_on {
            self.generator.lanes[self.lane].going_on.fetch_sub(1, Ordering::AcqRel);
            self.generator.going_on.fetch_sub(1, Ordering::AcqRel);
        }
        goes_on
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if self.leave() {
            let error = match self.request.deadline {
                Some(deadline) if deadline <= Instant::now() => {
                    Error::DeadlineExceeded { stage: "passed while answers were being made" }
                }
                _ => Error::WorkerLost { model: self.generator.binding.model.to_string() },
            };
            let gone = self.outbox.is_closed() && matches!(error, Error::WorkerLost { .. });
            self.tally.end(match gone {
                // Its version was unloaded, which has told its caller.
                _ if self.outbox.has_ended() => Reason::NotReady,
                true => Reason::Cancelled,
                false => Reason::from(&error),
            });
            self.outbox.abandon(error);
        }
    }
}

#[cfg(test)]
#[path = "generate_tests.rs"]
mod tests;
