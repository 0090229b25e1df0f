//! Requests that hang together: each of a sequence runs after the one before it, on what that has left.
//!
//! What is kept between them never leaves the device. A sequence stays on the lane on which it began: a device, or
//! one instance where the model keeps state of its own. Follows Triton's sequence batcher; requests of different
//! sequences are joined as all others are.
//!
//! - `book`: which request runs next.
//! - `plan`: what is added to a request and taken from its answer.
//! - `rows`: batches in which each sequence has its row.

mod book;
mod plan;
mod rows;

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sconce_repository::{ModelConfig, SequenceStrategy, Sequences};

pub use book::SequenceId;
use book::{Book, Item, Limits, Next, No, Run};
pub(crate) use plan::{Plan, inputs, outputs, part, tensor};
use plan::{Position, id_text};
pub(crate) use rows::Rows;

use tracing::warn;

use crate::{
    Error, Result,
    backend::LoadError,
    binding::Binding,
    executable::Executable,
    job::Job,
    model::QUEUE_LIMIT,
    observe::{self, TraceContext},
    ordering::Gate,
    pool::{ModelLoad, Pool, Registration},
    reply::Reply,
    scheduler::{Placement, Policy, Stuck},
    stats::Stage,
    value::{Call, Output, Tensor},
};

/// Where in a sequence a request is, as its caller says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InSequence {
    /// Which sequence.
    pub id: SequenceId,
    /// It is the first.
    pub start: bool,
    /// It is the last.
    pub end: bool,
}

/// A request that waits for those before it in its sequence.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) call: Call,
    pub(crate) rows: Option<i64>,
    pub(crate) reply: Reply,
    pub(crate) deadline: Option<Instant>,
    pub(crate) priority: u64,
    pub(crate) timeout: Option<Duration>,
    pub(crate) arrived: Instant,
    pub(crate) trace: Option<Box<TraceContext>>,
    pub(crate) told: bool,
}

impl Pending {
    fn job(self, executable: &Arc<Executable>) -> Job {
        let mut job = Job::new(Arc::clone(executable), self.call, self.rows, self.reply, self.arrived);
        (job.deadline, job.priority, job.timeout) = (self.deadline, self.priority, self.timeout);
        (job.trace, job.told) = (self.trace, self.told);
        job
    }
}

/// A request whose turn it is.
struct Prepared {
    lane: usize,
    row: usize,
    request: Pending,
}

/// What a run leaves for the next.
type Left = Arc<[Tensor]>;

/// The sequences of a version.
#[derive(Debug)]
pub(crate) struct Sequencer {
    binding: Arc<Binding>,
    book: Mutex<Book<Pending, Left>>,
    lanes: Vec<Lane>,
    /// What has ended, and who takes care of it: one after the other, however much follows from each.
    ended: Mutex<Ended>,
    /// Where answers are to leave in the order in which their requests run.
    gate: Option<Arc<Gate>>,
    /// Each sequence has a row of its lane's batches.
    rows: bool,
    /// How many sequences may go on or wait.
    limit: usize,
    /// Holds the weights until the last sequence is over.
    executable: Arc<Executable>,
}

#[derive(Debug, Default)]
struct Ended {
    next: VecDeque<(SequenceId, Next<Pending, Left>)>,
    cared_for: bool,
}

/// Where sequences go on: its runs are made by these runners, on this device.
#[derive(Debug)]
struct Lane {
    executable: Arc<Executable>,
    registration: Arc<Registration>,
}

impl Sequencer {
    /// For a version whose configuration has sequences.
    ///
    /// # Errors
    /// When a runner cannot be made for one of the lanes.
    pub(crate) fn new(
        config: &ModelConfig,
        sequences: &Sequences,
        binding: &Arc<Binding>,
        executable: &Arc<Executable>,
        registration: &Arc<Registration>,
        pool: &Pool,
    ) -> std::result::Result<Arc<Self>, LoadError> {
        let mut lanes = Vec::new();
        let mut capacities = Vec::new();
        for placement in executable.placements() {
            let instances = placement.limit.clamp(1, pool.workers(placement.device));
            let each = match sequences.strategy {
                SequenceStrategy::Oldest { max_sequences } => max_sequences.get() as usize,
                SequenceStrategy::Direct { .. } => config.max_batch_size.max(1) as usize,
            };
            // Where the module keeps state of its own, that is in one of its instances.
            let (count, limit) = if config.stateful { (instances, 1) } else { (1, placement.limit) };
            for _ in 0..count {
                let place = Placement { device: placement.device, limit };
                let own = if config.stateful {
                    Arc::new(executable.with_own_runner(placement.device, executable.allowed_sizes.clone())?)
                } else {
                    Arc::clone(executable)
                };
                lanes.push((own, place));
                capacities.push(each.saturating_mul(if config.stateful { 1 } else { instances }));
            }
        }
        let alone = lanes.len() == 1 && !config.stateful;
        let rows = config.stateful
            && config.max_batch_size > 0
            && matches!(sequences.strategy, SequenceStrategy::Direct { .. });
        // A run of rows has all the rows that it can have.
        let of_lanes = ModelConfig { batching: config.batching.clone().filter(|_| !rows), ..config.clone() };
        let register = |(executable, place): (Arc<Executable>, Placement)| {
            let registration = if alone {
                Arc::clone(registration)
            } else {
                Arc::new(pool.register(Policy::new(&of_lanes, vec![place], QUEUE_LIMIT)))
            };
            Lane { executable, registration }
        };
        let waiting = sequences.max_waiting as usize;
        let limit = capacities.iter().fold(waiting, |sum, lane| sum.saturating_add(*lane));
        let limits =
            Limits { lanes: capacities, waiting, requests: QUEUE_LIMIT, idle: sequences.idle_timeout, rows };
        Ok(Arc::new(Self {
            binding: Arc::clone(binding),
            book: Mutex::new(Book::new(limits)),
            lanes: lanes.into_iter().map(register).collect(),
            ended: Mutex::default(),
            gate: crate::model::gate(config),
            rows,
            limit,
            executable: Arc::clone(executable),
        }))
    }

    fn book(&self) -> MutexGuard<'_, Book<Pending, Left>> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a request run as soon as those before it have. It is answered in any case.
    pub(crate) fn submit(self: &Arc<Self>, at: &InSequence, request: Pending) {
        if at.start {
            self.look_for_lanes();
        }
        let refused = match self.plan().check_id(&at.id) {
            Err(why) => Err((request, Error::invalid(why))),
            Ok(()) => {
                let item = Item { work: request, start: at.start, end: at.end };
                let (taken, runs) = self.book().arrive(&at.id, item, Instant::now());
                self.run_all(runs, true);
                taken.map_err(|(item, no)| (item.work, self.refusal(&at.id, no)))
            }
        };
        if let Err((request, error)) = refused {
            self.fail(request, error);
        }
    }

    fn plan(&self) -> &Plan {
        self.binding.sequence.as_ref().unwrap_or_else(|| unreachable!("a sequencer is made for a plan"))
    }

    /// None begins where nothing runs any more, because the device has failed or all hangs; unless there is nothing
    /// else.
    fn look_for_lanes(&self) {
        if self.lanes.len() > 1 {
            let usable: Vec<bool> = self.lanes.iter().map(|lane| !lane.registration.refuses()).collect();
            self.book().use_lanes(usable);
        }
    }

    fn refusal(&self, id: &SequenceId, no: No) -> Error {
        let model = self.binding.model.to_string();
        match no {
            No::NotBegun => Error::invalid(format!(
                "inference request for sequence {} to model '{model}' must specify the START flag on the first request of \
                 the sequence: none of that id goes on any more here; it has ended, was idle for too long, or its version is gone",
                id_text(id)
            )),
            No::Sequences => Error::SequencesFull { model, limit: self.limit },
            No::Requests => Error::QueueFull { model, limit: QUEUE_LIMIT, priority: None, retry_after: None },
            No::Closed => self.unloaded(),
        }
    }

    fn unloaded(&self) -> Error {
        let (model, version) = (self.binding.model.to_string(), self.executable.version.to_string());
        let why = "it has been unloaded, and its sequences with it: begin them again".to_owned();
        Error::NotReady { model, version, why }
    }

    /// `here`: not where this may be the thread of the run before it.
    fn run_all(self: &Arc<Self>, runs: Vec<Run<Pending, Left>>, here: bool) {
        if self.rows {
            rows::batches(self.prepared(runs))
                .for_each(|(lane, rows)| self.offer(lane, rows.job(self, lane), here));
            return;
        }
        for Prepared { lane, request, .. } in self.prepared(runs) {
            self.offer(lane, request.job(&self.lanes[lane].executable), here);
        }
    }

    fn offer(&self, lane: usize, job: Job, here: bool) {
        if let Err(back) = self.lanes[lane].registration.offer(job, here) {
            let (job, refusal) = *back;
            job.turn_away(refusal);
        }
    }

    /// Calls with all that the model takes, and replies that keep what it leaves.
    fn prepared(self: &Arc<Self>, runs: Vec<Run<Pending, Left>>) -> Vec<Prepared> {
        let prepare = |run: Run<Pending, Left>| {
            let Run { id, life, lane, row, item, state } = run;
            let mut request = item.work;
            let at = Position { id: &id, start: item.start, end: item.end, ready: true };
            self.plan().fill(&mut request.call, at, state.as_deref());
            let turn = Turn { sequencer: Arc::clone(self), id, life, over: false };
            let reply = match &self.gate {
                Some(gate) => Reply::Ordered(gate.enter(), Box::new(request.reply)),
                None => request.reply,
            };
            request.reply = Reply::Sequenced(turn, Box::new(reply));
            Prepared { lane, row, request }
        };
        runs.into_iter().map(prepare).collect()
    }

    /// A run is over, or has not been made.
    fn ended(&self, id: &SequenceId, life: u64, left: Option<Left>) -> Next<Pending, Left> {
        self.book().ended(id, life, left, Instant::now())
    }

    /// What one end leads to may end others at once, as where their callers have gone, and so on: not one in the
    /// other, because there may be thousands.
    fn go_on(self: &Arc<Self>, id: &SequenceId, next: Next<Pending, Left>) {
        let ended = || self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut ended = ended();
            ended.next.push_back((id.clone(), next));
            if mem::replace(&mut ended.cared_for, true) {
                return;
            }
        }
        loop {
            let Some((id, next)) = ({
                let mut ended = ended();
                let next = ended.next.pop_front();
                ended.cared_for = next.is_some();
                next
            }) else {
                return;
            };
            self.refuse(&id, next.refused);
            self.run_all(next.runs, false);
        }
    }

    /// Tells those who were sent ahead that the one before them did not run.
    fn refuse(&self, id: &SequenceId, items: Vec<Item<Pending>>) {
        for item in items {
            let (model, sequence) = (self.binding.model.to_string(), id_text(id));
            self.fail(item.work, Error::SequenceBroken { model, sequence });
        }
    }

    /// Tells a request that waits for its turn that it has none.
    fn fail(&self, request: Pending, error: Error) {
        self.count_left(&request);
        request.reply.finish(Err(error), None);
    }

    /// Counts it, if nobody waits for it any more.
    fn count_left(&self, request: &Pending) {
        if let Some(cause) = request.reply.has_left(request.deadline) {
            self.executable.stats.give_up(cause, Stage::Queued);
        }
    }

    /// Ends the sequences that are idle for too long, and lets those go that nobody waits for.
    pub(crate) fn sweep(self: &Arc<Self>) {
        let (runs, swept) = {
            let mut book = self.book();
            let mut swept = book.sweep(|request| request.reply.is_closed());
            let mut runs = mem::take(&mut swept.runs);
            runs.extend(book.expire(Instant::now()));
            (runs, swept)
        };
        for (id, refused) in swept.refused {
            self.refuse(&id, refused);
        }
        swept.dropped.iter().for_each(|item| self.count_left(&item.work));
        drop(swept.dropped);
        self.run_all(runs, false);
    }

    /// Takes no more requests and forgets all sequences; whoever waits learns that the version is gone.
    pub(crate) fn close(&self) {
        let (count, left) = {
            let mut book = self.book();
            (book.counts().0, book.close())
        };
        if count > 0 {
            let (model, version) = (&self.binding.model, self.executable.version);
            warn!(%model, %version, "{count} sequences are forgotten, because the version is not kept any longer");
        }
        for item in left {
            self.fail(item.work, self.unloaded());
        }
        for lane in &self.lanes {
            lane.registration.close_unless_serving();
        }
    }

    /// Whether that sequence goes on here.
    pub(crate) fn holds(&self, id: &SequenceId) -> bool {
        self.book().holds(id)
    }

    /// How many sequences go on.
    pub(crate) fn count(&self) -> usize {
        self.book().counts().0
    }

    /// What its lanes are doing, beside the version's own registration; and what waits for others.
    pub(crate) fn add_to(&self, own: &Arc<Registration>, load: &mut ModelLoad) {
        load.queued += self.book().counts().1;
        for lane in self.lanes.iter().filter(|lane| !Arc::ptr_eq(&lane.registration, own)) {
            load.add(lane.registration.load());
        }
    }

    /// Why none of its lanes answers anything any more, where that is so.
    pub(crate) fn stuck_by(&self) -> Option<Stuck> {
        let all: Option<Vec<_>> = self.lanes.iter().map(|lane| lane.registration.stuck_by()).collect();
        all?.into_iter().next()
    }

    /// The lanes have costs of their own, which are those of the version to begin with.
    pub(crate) fn inherit(&self, own: &Arc<Registration>) {
        for lane in self.lanes.iter().filter(|lane| !Arc::ptr_eq(&lane.registration, own)) {
            lane.registration.inherit(own);
        }
    }
}

/// A request's turn in its sequence. Dropped unanswered, as when its caller has gone, the sequence goes on with
/// the state as it was.
#[derive(Debug)]
pub struct Turn {
    sequencer: Arc<Sequencer>,
    id: SequenceId,
    life: u64,
    over: bool,
}

impl Turn {
    /// Answers, and lets the next one of the sequence run.
    pub(crate) fn answer(mut self, reply: Reply, answer: Result<Output>, run: Option<Box<observe::Run>>) {
        let (answer, left) = match answer {
            Err(error) => (Err(error), None),
            Ok(output) => match self.sequencer.plan().left(&output) {
                Ok(left) => (Ok(output), Some(left.into())),
                Err(message) => {
                    let model = self.sequencer.binding.model.to_string();
                    (Err(Error::Output { model, message }), None)
                }
            },
        };
        self.over = true;
        // Before the caller knows, who may send the next one at once.
        let next = self.sequencer.ended(&self.id, self.life, left);
        reply.finish(answer, run);
        self.sequencer.go_on(&self.id, next);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !mem::replace(&mut self.over, true) {
            let next = self.sequencer.ended(&self.id, self.life, None);
            self.sequencer.go_on(&self.id, next);
        }
    }
}

#[cfg(test)]
#[path = "sequence_tests.rs"]
mod tests;
