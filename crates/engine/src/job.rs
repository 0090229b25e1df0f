//! One request on its way to a worker, and the batch that it is run with.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    Error,
    batch::{self, Traits},
    executable::Executable,
    observe::{Run, TraceContext},
    padding::{Company, Extents},
    reply::Reply,
    scheduler::{Fate, Refusal, Work},
    stats::{Cause, Stage},
    value::Call,
};

/// Somebody who waits for a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiter<'a> {
    pub(crate) reply: &'a Reply,
    pub(crate) arrived: Instant,
    pub(crate) deadline: Option<Instant>,
    pub(crate) trace: Option<&'a TraceContext>,
}

/// One request on its way to a worker.
#[derive(Debug)]
pub struct Job {
    /// What runs it.
    pub executable: Arc<Executable>,
    /// Its arguments.
    pub call: Call,
    /// Where the answer goes.
    pub reply: Reply,
    /// When the answer is worth nothing any more.
    pub deadline: Option<Instant>,
    /// Its priority, 1 for the highest; 0 for the model's default.
    pub priority: u64,
    /// How long it wants to wait at most.
    pub timeout: Option<Duration>,
    /// On how many threads it wants to run.
    pub threads: Option<usize>,
    /// When it came.
    pub arrived: Instant,
    /// Whether its caller wants to know of the run.
    pub told: bool,
    /// Its place in a trace, if it is traced.
    pub trace: Option<Box<TraceContext>>,
    traits: Traits,
    extents: Option<Box<Extents>>,
}

impl Job {
    /// A call of so many rows, `None` where the model has no batch dimension, which came then.
    pub fn new(
        executable: Arc<Executable>,
        call: Call,
        rows: Option<i64>,
        reply: Reply,
        arrived: Instant,
    ) -> Self {
        let traits = batch::traits(&call, rows);
        let extents = Extents::of(&call, traits.rows);
        let (deadline, priority, timeout, threads) = (None, 0, None, None);
        let (told, trace) = (!reply.counts(), None);
        Self {
            executable,
            call,
            reply,
            deadline,
            priority,
            timeout,
            threads,
            arrived,
            told,
            trace,
            traits,
            extents,
        }
    }

    /// What its caller is told of the run.
    pub(crate) fn told(&self, run: &Run) -> Option<Box<Run>> {
        self.told.then(|| Box::new(Run { arrived: self.arrived, ..*run }))
    }

    /// From now on it runs by itself.
    pub(crate) fn alone(mut self) -> Self {
        self.traits.key = None;
        self
    }

    /// It is to run again: what it has waited and run in vain is not told of the run that answers it.
    pub(crate) fn anew(mut self) -> Self {
        self.arrived = Instant::now();
        self.alone()
    }

    /// Its answer goes without those before it, and holds nobody up.
    pub(crate) fn out_of_order(self) -> Self {
        Self { reply: self.reply.leave_order(), ..self }
    }

    /// Calls this with those who wait for it: its caller, or where it is a whole batch, those of its rows.
    pub(crate) fn for_each_waiter<'a>(&'a self, mut call: impl FnMut(Waiter<'a>)) {
        if let Reply::Rows(rows) = &self.reply {
            rows.waiters().for_each(call);
        } else {
            let (reply, arrived, deadline) = (&self.reply, self.arrived, self.deadline);
            call(Waiter { reply, arrived, deadline, trace: self.trace.as_deref() });
        }
    }

    /// How many wait for it.
    pub(crate) fn waiting(&self) -> usize {
        let mut count = 0;
        self.for_each_waiter(|_| count += 1);
        count
    }

    /// Tells its caller that the version is gone.
    pub(crate) fn refuse(self, stage: Stage) {
        self.not_ready("it was unloaded before it could answer", stage);
    }

    /// Tells its caller why the version does not answer.
    pub(crate) fn not_ready(self, why: &str, stage: Stage) {
        let (model, version) = (self.executable.name.to_string(), self.executable.version.to_string());
        self.fail(Error::NotReady { model, version, why: why.to_owned() }, stage);
    }

    /// Tells its caller why it did not run.
    pub(crate) fn bury(self, fate: Fate) {
        match fate {
            // Its time may be up before its caller notices, who will say so himself.
            Fate::Unwanted => self.given_up(Cause::of),
            Fate::Late => {
                self.given_up(|_| Cause::Deadline);
                let stage = "would pass before its answer is there, so that it is not run";
                self.reply.finish(Err(Error::DeadlineExceeded { stage }), None);
            }
            Fate::TimedOut { waited } => {
                self.given_up(|_| Cause::Timeout);
                let model = self.executable.name.to_string();
                self.reply.finish(Err(Error::QueueTimeout { model, waited }), None);
            }
            Fate::Stuck(stuck) => self.not_ready(stuck.why(), Stage::Queued),
        }
    }

    /// Counts those who wait for it no more.
    fn count_left(&self, stage: Stage) {
        if self.reply.counts() {
            self.for_each_waiter(|waiter| {
                if let Some(cause) = waiter.reply.has_left(waiter.deadline) {
                    self.executable.stats.give_up(cause, stage);
                }
            });
        }
    }

    /// Counts that it waits no longer, for a cause that may follow from a deadline.
    fn given_up(&self, cause: impl Fn(Option<Instant>) -> Cause) {
        if self.reply.counts() {
            self.for_each_waiter(|waiter| {
                self.executable.stats.give_up(cause(waiter.deadline), Stage::Queued)
            });
        }
    }

    /// Tells its caller why it was not taken.
    pub(crate) fn turn_away(self, refusal: Refusal) {
        let error = crate::model::refused(&self.executable.name, self.executable.version, refusal);
        self.fail(error, Stage::Queued);
    }

    /// Tells its caller that this stage has come to nothing, if he still waits.
    pub(crate) fn fail(self, error: Error, stage: Stage) {
        self.count_left(stage);
        self.reply.finish(Err(error), None);
    }
}

impl Work for Job {
    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
    fn is_cancelled(&self) -> bool {
        self.reply.is_closed()
    }
    fn rows(&self) -> usize {
        self.traits.rows
    }
    fn bytes(&self) -> usize {
        self.traits.bytes
    }
    fn size(&self) -> u8 {
        let bytes = (self.traits.bytes / self.traits.rows).max(1);
        bytes.ilog2() as u8
    }
    fn joins(&self) -> bool {
        self.traits.key.is_some()
    }
    fn joins_with(&self, other: &Self) -> bool {
        self.traits.key == other.traits.key && batch::alike(&self.call, &other.call)
    }
    fn joins_company(&self, company: &mut Company) -> bool {
        self.extents.as_ref().is_none_or(|extents| extents.join(company))
    }
    fn priority(&self) -> u64 {
        self.priority
    }
    fn timeout(&self) -> Option<Duration> {
        self.timeout
    }
    fn threads(&self) -> Option<usize> {
        self.threads
    }
}
