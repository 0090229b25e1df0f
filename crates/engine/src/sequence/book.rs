//! Which request of which sequence runs next. Pure: the time comes in, runs go out.
//!
//! A sequence has a place on a lane from its first request to its last; who finds no place waits for one,
//! as far as that is allowed. One request of a sequence runs at a time, in the order in which they came.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

/// What its caller calls a sequence.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SequenceId {
    /// A number, not 0.
    Number(u64),
    /// A text, not empty.
    Text(Arc<str>),
}

/// What is allowed.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// How many sequences have a place on each lane.
    pub(super) lanes: Vec<usize>,
    /// How many more sequences may wait for one.
    pub(super) waiting: usize,
    /// How many requests may wait for the ones before them, in all sequences together.
    pub(super) requests: usize,
    /// A sequence ends that has had no request for so long.
    pub(super) idle: Duration,
    /// Each sequence has a row of its own on its lane, and nothing begins to run on a lane where something runs.
    pub(super) rows: bool,
}

/// A request with its place in its sequence.
#[derive(Debug)]
pub(super) struct Item<W> {
    pub(super) work: W,
    pub(super) start: bool,
    pub(super) end: bool,
}

/// A request that is to run now.
#[derive(Debug)]
pub(super) struct Run<W, S> {
    pub(super) id: SequenceId,
    pub(super) life: u64,
    pub(super) lane: usize,
    /// Its row, where it has one of its own.
    pub(super) row: usize,
    pub(super) item: Item<W>,
    /// What the one before it left; `None` for the first of a sequence.
    pub(super) state: Option<S>,
}

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum No {
    /// There is no such sequence, and the request begins none.
    NotBegun,
    /// As many sequences are going on, and waiting, as may.
    Sequences,
    /// As many requests wait for those before them as may.
    Requests,
    /// It takes no more.
    Closed,
}

/// Whether a request was taken; it comes back where it was not.
pub(super) type Taken<W> = Result<(), (Item<W>, No)>;

/// What follows from the end of something.
#[derive(Debug)]
pub(super) struct Next<W, S> {
    /// To be told that they do not run, because the one before them did not.
    pub(super) refused: Vec<Item<W>>,
    pub(super) runs: Vec<Run<W, S>>,
}

impl<W, S> Default for Next<W, S> {
    fn default() -> Self {
        Self { refused: Vec::new(), runs: Vec::new() }
    }
}

/// What nobody waits for, and those who came behind it.
#[derive(Debug)]
pub(super) struct Swept<W, S> {
    pub(super) dropped: Vec<Item<W>>,
    pub(super) refused: Vec<(SequenceId, Vec<Item<W>>)>,
    /// Those who have a place now.
    pub(super) runs: Vec<Run<W, S>>,
}

#[derive(Debug)]
struct Sequence<W, S> {
    /// Tells it from others of the same id before it.
    life: u64,
    /// `None` while it waits for a place.
    lane: Option<usize>,
    row: usize,
    /// `None` until the first request has left one.
    state: Option<S>,
    /// The request that runs: whether it is the first, and the last.
    running: Option<(bool, bool)>,
    pending: VecDeque<Item<W>>,
    /// When something happened to it last.
    used: Instant,
}

impl<W, S> Sequence<W, S> {
    fn is_idle(&self) -> bool {
        self.running.is_none() && self.pending.is_empty()
    }

    /// Whether the last request that came ends it.
    fn ends(&self) -> bool {
        self.pending.back().map_or_else(|| self.running.is_some_and(|(_, end)| end), |last| last.end)
    }
}

/// All sequences of a version.
#[derive(Debug)]
pub(super) struct Book<W, S> {
    limits: Limits,
    sequences: HashMap<SequenceId, Sequence<W, S>>,
    /// How many are on each lane.
    taken: Vec<usize>,
    /// Those that wait for a place, in their order; one that is not there any more is skipped.
    line: VecDeque<(SequenceId, u64)>,
    waiting: usize,
    pending: usize,
    lives: u64,
    /// Lanes where sequences may begin; empty where all are.
    usable: Vec<bool>,
    /// No sequence has been idle for too long before then.
    look: Option<Instant>,
    closed: bool,
}

impl<W, S: Clone> Book<W, S> {
    pub(super) fn new(limits: Limits) -> Self {
        let taken = vec![0; limits.lanes.len()];
        Self {
            limits,
            sequences: HashMap::new(),
            taken,
            line: VecDeque::new(),
            waiting: 0,
            pending: 0,
            lives: 0,
            usable: Vec::new(),
            look: None,
            closed: false,
        }
    }

    pub(super) fn holds(&self, id: &SequenceId) -> bool {
        self.sequences.contains_key(id)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// How many sequences go on, and how many requests wait for others.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.sequences.len(), self.pending)
    }

    /// Takes a request in. What runs now may be another: sequences may have ended by the time.
    pub(super) fn arrive(
        &mut self,
        id: &SequenceId,
        item: Item<W>,
        now: Instant,
    ) -> (Taken<W>, Vec<Run<W, S>>) {
        let mut runs = self.expire(now);
        if self.closed {
            return (Err((item, No::Closed)), runs);
        }
        let known = self.sequences.get(id).is_some_and(|sequence| item.start || !sequence.ends());
        if !known && !item.start {
            return (Err((item, No::NotBegun)), runs);
        }
        let new = !self.sequences.contains_key(id);
        if new && !self.begin(id, now) {
            return (Err((item, No::Sequences)), runs);
        }
        let lane = self.sequences.get(id).and_then(|sequence| sequence.lane);
        let free = lane.is_some_and(|lane| !self.limits.rows || !self.is_busy(lane));
        if let Some(sequence) = self.sequences.get_mut(id) {
            sequence.used = now;
            let at_once = sequence.is_idle() && free;
            if !at_once && self.pending >= self.limits.requests {
                if new {
                    runs.extend(self.remove(id));
                }
                return (Err((item, No::Requests)), runs);
            }
            sequence.pending.push_back(item);
            self.pending += 1;
            runs.extend(self.next(id));
        }
        (Ok(()), runs)
    }

    /// A new sequence, on the lane with the least, or in the line; not where there is no room.
    fn begin(&mut self, id: &SequenceId, now: Instant) -> bool {
        let lane = self.free_lane();
        if lane.is_none() && self.waiting >= self.limits.waiting {
            return false;
        }
        self.lives += 1;
        let life = self.lives;
        match lane {
            Some(lane) => self.taken[lane] += 1,
            None => {
                self.waiting += 1;
                self.line.push_back((id.clone(), life));
            }
        }
        let row = lane.map_or(0, |lane| self.free_row(lane));
        let (state, running, pending) = (None, None, VecDeque::new());
        self.sequences.insert(id.clone(), Sequence { life, lane, row, state, running, pending, used: now });
        let look = now + self.limits.idle;
        self.look = Some(self.look.map_or(look, |before| before.min(look)));
        true
    }

    fn free_lane(&self) -> Option<usize> {
        let all = !self.usable.contains(&true);
        let may = |lane: usize| all || self.usable[lane];
        let free = |lane: &usize| may(*lane) && self.taken[*lane] < self.limits.lanes[*lane];
        (0..self.taken.len()).filter(free).min_by_key(|lane| self.taken[*lane])
    }

    /// The first row of a lane that no sequence has.
    fn free_row(&self, lane: usize) -> usize {
        if !self.limits.rows {
            return 0;
        }
        let on = self.sequences.values().filter(|sequence| sequence.lane == Some(lane));
        let taken: BTreeSet<usize> = on.map(|sequence| sequence.row).collect();
        (0..).find(|row| !taken.contains(row)).unwrap_or(0)
    }

    /// What may run after something happened to this sequence: its next request; or, where sequences have rows, the
    /// next of each on its lane, once all that ran there have ended.
    fn next(&mut self, id: &SequenceId) -> Vec<Run<W, S>> {
        let lane = self.sequences.get(id).and_then(|sequence| sequence.lane);
        match lane {
            Some(lane) if self.limits.rows => self.next_of_lane(lane),
            _ => self.next_of(id).into_iter().collect(),
        }
    }

    fn is_busy(&self, lane: usize) -> bool {
        self.sequences.values().any(|sequence| sequence.lane == Some(lane) && sequence.running.is_some())
    }

    fn next_of_lane(&mut self, lane: usize) -> Vec<Run<W, S>> {
        if self.is_busy(lane) {
            return Vec::new();
        }
        let on = self.sequences.iter().filter(|(_, sequence)| sequence.lane == Some(lane));
        let all: Vec<SequenceId> = on.map(|(id, _)| id.clone()).collect();
        let mut runs: Vec<_> = all.iter().filter_map(|id| self.next_of(id)).collect();
        runs.sort_by_key(|run| run.row);
        runs
    }

    fn next_of(&mut self, id: &SequenceId) -> Option<Run<W, S>> {
        let sequence = self.sequences.get_mut(id).filter(|sequence| sequence.running.is_none())?;
        let lane = sequence.lane?;
        let item = sequence.pending.pop_front()?;
        self.pending -= 1;
        if item.start {
            sequence.state = None;
        }
        sequence.running = Some((item.start, item.end));
        let (life, row, state) = (sequence.life, sequence.row, sequence.state.clone());
        Some(Run { id: id.clone(), life, lane, row, item, state })
    }

    /// A run is over: with the state that it left, or without because it failed or was not made. Then the state
    /// is as before, and those are refused that came after it without knowing.
    pub(super) fn ended(&mut self, id: &SequenceId, life: u64, left: Option<S>, now: Instant) -> Next<W, S> {
        let mut next = Next::default();
        let Some(sequence) = self.sequences.get_mut(id).filter(|sequence| sequence.life == life) else {
            return next;
        };
        let Some((start, end)) = sequence.running.take() else { return next };
        sequence.used = now;
        let failed = left.is_none();
        if let Some(left) = left {
            sequence.state = Some(left);
        } else {
            while sequence.pending.front().is_some_and(|item| !item.start) {
                next.refused.extend(sequence.pending.pop_front());
                self.pending -= 1;
            }
        }
        let over = if failed { start } else { end };
        // What waits behind the end of a sequence begins another of the same name.
        if over && sequence.pending.is_empty() {
            next.runs.extend(self.remove(id));
        } else {
            next.runs.extend(self.next(id));
        }
        next
    }

    /// Forgets a sequence; who waited for its place has it now.
    fn remove(&mut self, id: &SequenceId) -> Vec<Run<W, S>> {
        let Some(sequence) = self.sequences.remove(id) else { return Vec::new() };
        self.pending -= sequence.pending.len();
        let Some(lane) = sequence.lane else {
            self.waiting -= 1;
            return Vec::new();
        };
        self.taken[lane] -= 1;
        let free = self.free_row(lane);
        while let Some((id, life)) = self.line.pop_front() {
            let Some(sequence) = self.sequences.get_mut(&id).filter(|sequence| sequence.life == life) else {
                continue;
            };
            sequence.lane = Some(lane);
            (sequence.row, self.waiting) = (free, self.waiting - 1);
            self.taken[lane] += 1;
            return self.next(&id);
        }
        // Others may have waited for this one's run to end.
        if self.limits.rows { self.next_of_lane(lane) } else { Vec::new() }
    }

    /// Ends the sequences that have had no request for too long.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Run<W, S>> {
        if self.look.is_none_or(|look| now < look) {
            return Vec::new();
        }
        let idle = self.limits.idle;
        let is_over = |sequence: &Sequence<W, S>| sequence.is_idle() && now >= sequence.used + idle;
        let over: Vec<SequenceId> = self
            .sequences
            .iter()
            .filter(|(_, sequence)| is_over(sequence))
            .map(|(id, _)| id.clone())
            .collect();
        let runs = over.iter().flat_map(|id| self.remove(id)).collect();
        // One that is busy now can be over no sooner than it would be from now on.
        let next = |sequence: &Sequence<W, S>| match sequence.is_idle() {
            true => sequence.used + idle,
            false => now + idle,
        };
        self.look = self.sequences.values().map(next).min();
        runs
    }

    /// Drops requests that nobody waits for any more. Those that came behind one of them, without knowing, are
    /// refused, as behind one that fails.
    pub(super) fn sweep(&mut self, is_dead: impl Fn(&W) -> bool) -> Swept<W, S> {
        let mut swept = Swept { dropped: Vec::new(), refused: Vec::new(), runs: Vec::new() };
        let mut over = Vec::new();
        for (id, sequence) in &mut self.sequences {
            if !sequence.pending.iter().any(|item| is_dead(&item.work)) {
                continue;
            }
            let (mut kept, mut refused, mut broken) = (VecDeque::new(), Vec::new(), false);
            for item in sequence.pending.drain(..) {
                broken &= !item.start;
                if is_dead(&item.work) {
                    broken = true;
                    swept.dropped.push(item);
                    self.pending -= 1;
                } else if broken {
                    refused.push(item);
                    self.pending -= 1;
                } else {
                    kept.push_back(item);
                }
            }
            sequence.pending = kept;
            if !refused.is_empty() {
                swept.refused.push((id.clone(), refused));
            }
            // One whose first request has gone has not begun.
            if sequence.is_idle() && sequence.state.is_none() {
                over.push(id.clone());
            }
        }
        swept.runs = over.iter().flat_map(|id| self.remove(id)).collect();
        let sequences = &self.sequences;
        self.line.retain(|(id, life)| sequences.get(id).is_some_and(|sequence| sequence.life == *life));
        swept
    }

    /// On which lanes sequences may begin now; on any, if there is none.
    pub(super) fn use_lanes(&mut self, usable: Vec<bool>) {
        self.usable = usable;
    }

    /// Takes no more, and forgets all: what waited, to be refused.
    pub(super) fn close(&mut self) -> Vec<Item<W>> {
        self.closed = true;
        self.line.clear();
        self.taken.fill(0);
        (self.waiting, self.pending) = (0, 0);
        self.sequences.drain().flat_map(|(_, sequence)| sequence.pending).collect()
    }
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
