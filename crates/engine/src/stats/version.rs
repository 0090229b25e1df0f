//! The numbers of one version.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use super::{Buckets, Counter, Histogram, Reason, nanos};
use crate::observe::Run;

/// So many sizes of batches are told apart, and so many answers to one request; there may be more of both than
/// anybody can read.
const TOLD_APART: usize = 1024;

/// Rows up to here are counted without a lock.
const SMALL: usize = 65;

/// Runs of one size.
#[derive(Debug, Default)]
struct Runs {
    runs: Counter,
    gather: Counter,
    forward: Counter,
    scatter: Counter,
}

impl Runs {
    fn add(&self, gather: u64, forward: u64, scatter: u64) {
        self.runs.add(1);
        self.gather.add(gather);
        self.forward.add(forward);
        self.scatter.add(scatter);
    }

    fn counts(&self) -> BatchCounts {
        let (gather, forward, scatter) = (self.gather.get(), self.forward.get(), self.scatter.get());
        BatchCounts { runs: self.runs.get(), gather, forward, scatter }
    }
}

/// Why a request was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its caller had gone.
    Cancelled,
    /// Its deadline had passed, or would have.
    Deadline,
    /// It had waited as long as it may.
    Timeout,
}

impl Cause {
    /// Why nobody waits any more for what had this deadline.
    pub(crate) fn of(deadline: Option<Instant>) -> Self {
        let is_late = deadline.is_some_and(|deadline| deadline <= Instant::now());
        if is_late { Self::Deadline } else { Self::Cancelled }
    }
}

/// Where a request was when it was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It waited for a worker.
    Queued,
    /// Its run went on without it.
    Running,
}

/// The runs of one size of batch. Times are sums in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchCounts {
    /// How many runs there were.
    pub runs: u64,
    /// How long they took to be joined.
    pub gather: u64,
    /// How long the model took.
    pub forward: u64,
    /// How long they took to be divided.
    pub scatter: u64,
}

/// The answers of one number, as of all third answers, of requests with many. Times are sums in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseCounts {
    /// How many were given.
    pub success: u64,
    /// How long they took to be made, from the one before; without the time in which the caller took none.
    pub success_time: u64,
    /// How many were errors.
    pub fail: u64,
    /// How long those took.
    pub fail_time: u64,
    /// How many were not made or not taken, because the caller had gone.
    pub cancel: u64,
    /// How long those took.
    pub cancel_time: u64,
}

/// The numbers of one version. Durations are in nanoseconds.
#[derive(Debug)]
pub struct VersionStats {
    outcomes: [Counter; Reason::ALL.len()],
    /// From a request's coming to its answer, whatever that is.
    pub duration: Histogram,
    /// Of those that were answered well.
    pub success_time: Counter,
    /// Until a worker began with a request; each stage counts a request once, or each step of one with many answers.
    pub queue: Histogram,
    /// Until its batch was one call.
    pub gather: Histogram,
    /// Until the model had answered.
    pub forward: Histogram,
    /// Until the answer was divided.
    pub scatter: Histogram,
    /// From a request's coming to its first answer, of requests with many.
    pub first_response: Histogram,
    /// Between two answers to one request, without the time in which its caller took none.
    pub response_interval: Histogram,
    /// How many rows runs had.
    pub batch_rows: Histogram,
    /// Rows of requests that were answered well.
    pub rows: Counter,
    /// Answers to requests with many.
    pub responses: Counter,
    /// Bytes of tensors of requests.
    pub request_bytes: Counter,
    /// Bytes of tensors of answers.
    pub response_bytes: Counter,
    /// By cause and stage.
    dropped: [[Counter; 2]; 3],
    born: (Instant, SystemTime),
    /// When the last request came, in nanoseconds after that; 0 where none has.
    last: AtomicU64,
    /// Runs of few rows, as there are most of, by their number.
    small: Box<[Runs; SMALL]>,
    batches: Mutex<BTreeMap<u64, BatchCounts>>,
    by_response: Mutex<BTreeMap<u64, ResponseCounts>>,
}

impl VersionStats {
    /// With these buckets for durations.
    pub fn new(durations: &Buckets) -> Self {
        let duration = || durations.histogram();
        Self {
            outcomes: Default::default(),
            duration: duration(),
            success_time: Counter::default(),
            queue: duration(),
            gather: duration(),
            forward: duration(),
            scatter: duration(),
            first_response: duration(),
            response_interval: duration(),
            batch_rows: Buckets::rows().histogram(),
            rows: Counter::default(),
            responses: Counter::default(),
            request_bytes: Counter::default(),
            response_bytes: Counter::default(),
            dropped: Default::default(),
            born: (Instant::now(), SystemTime::now()),
            last: AtomicU64::new(0),
            small: Box::new(std::array::from_fn(|_| Runs::default())),
            batches: Mutex::default(),
            by_response: Mutex::default(),
        }
    }

    /// A request has ended like this, after so long, with so many rows.
    pub(crate) fn ended(&self, reason: Reason, took: Duration, rows: u64) {
        let took = nanos(took);
        self.outcomes[reason as usize].add(1);
        self.duration.record(took, 1);
        if reason == Reason::Ok {
            self.success_time.add(took);
            self.rows.add(rows);
        }
    }

    /// How many requests ended like this.
    pub fn outcome(&self, reason: Reason) -> u64 {
        self.outcomes[reason as usize].get()
    }

    /// A request was given up.
    pub(crate) fn give_up(&self, cause: Cause, stage: Stage) {
        self.dropped[cause as usize][stage as usize].add(1);
    }

    /// How many requests were given up: cause, stage, count.
    pub fn dropped(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let causes = ["cancelled", "deadline", "timeout"].into_iter().zip(&self.dropped);
        causes.flat_map(|(cause, counts)| {
            let stages = ["queued", "running"].into_iter().zip(counts);
            stages.map(move |(stage, count)| (cause, stage, count.get()))
        })
    }

    /// A request, or a step of one, has waited so long for the run that it ends with.
    pub(crate) fn waited(&self, time: Duration) {
        self.queue.record(nanos(time), 1);
    }

    /// A batch has been run, with which so many requests end: none where they run again.
    pub(crate) fn ran(&self, run: &Run, ended: usize) {
        let requests = ended as u64;
        let times = (nanos(run.gather()), nanos(run.forward()), nanos(run.scatter()));
        let (gather, forward, scatter) = times;
        self.gather.record(gather, requests);
        self.forward.record(forward, requests);
        self.scatter.record(scatter, requests);
        let rows = run.rows as u64;
        self.batch_rows.record(rows, 1);
        if let Some(small) = self.small.get(run.rows) {
            small.add(gather, forward, scatter);
            return;
        }
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        if batches.len() < TOLD_APART || batches.contains_key(&rows) {
            let batch = batches.entry(rows).or_default();
            batch.runs += 1;
            batch.gather += gather;
            batch.forward += forward;
            batch.scatter += scatter;
        }
    }

    /// A request has come.
    pub(crate) fn came(&self, now: Instant) {
        let since = nanos(now.saturating_duration_since(self.born.0));
        self.last.store(since.max(1), Ordering::Relaxed);
    }

    /// When the last request came, in milliseconds since 1970; 0 where none has.
    pub fn last_came(&self) -> u64 {
        let last = self.last.load(Ordering::Relaxed);
        if last == 0 {
            return 0;
        }
        let at = self.born.1 + Duration::from_nanos(last);
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Runs by the rows that they had; of more than a thousand sizes the first.
    pub fn batches(&self) -> BTreeMap<u64, BatchCounts> {
        let mut all = self.batches.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let small = self.small.iter().enumerate().map(|(rows, runs)| (rows as u64, runs.counts()));
        all.extend(small.filter(|(_, counts)| counts.runs > 0));
        all
    }

    /// An answer of a request with many has been made; its number, from 0, and how long after the one before.
    pub(crate) fn response(&self, number: u64, took: Duration, note: impl FnOnce(&mut ResponseCounts, u64)) {
        let mut all = self.by_response.lock().unwrap_or_else(PoisonError::into_inner);
        if number < TOLD_APART as u64 {
            note(all.entry(number).or_default(), nanos(took));
        }
    }

    /// The answers to requests with many, by their number from 0; of more than a thousand the first.
    pub fn by_response(&self) -> BTreeMap<u64, ResponseCounts> {
        self.by_response.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
