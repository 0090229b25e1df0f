//! The requests of one model that wait: by priority, each with the policy of its priority, in the order
//! of their arrival.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{Company, Stuck, Work};

/// How requests of one priority wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// How many may wait.
    pub limit: usize,
    /// How long one may wait; `None` for as long as its caller does.
    pub timeout: Option<Duration>,
    /// Whether one that has waited so long waits on, behind the others, and is not refused.
    pub delays: bool,
    /// Whether a request may state a shorter timeout of its own, or one where there is none.
    pub own_timeout: bool,
}

/// Why a request has left a queue without having run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its caller has gone, or its deadline has passed: nobody waits for an answer.
    Unwanted,
    /// Its deadline has not passed yet, but would have by the end of its run.
    Late,
    /// It has waited as long as it may.
    TimedOut {
        /// How long that was.
        waited: Duration,
    },
    /// Its model answers nothing any more.
    Stuck(Stuck),
}

#[derive(Debug)]
struct Waiting<W> {
    work: W,
    since: Instant,
    /// When it has waited as long as it may.
    until: Option<Instant>,
}

#[derive(Debug)]
struct Line<W> {
    level: Level,
    /// Those that have not waited too long, the oldest first.
    queue: VecDeque<Waiting<W>>,
    /// Those that have, the oldest first.
    delayed: VecDeque<Waiting<W>>,
}

/// What could be run next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Rows that may run together with the first, at most as many as were asked for.
    pub(super) rows: usize,
    /// Rows of the first: no batch is smaller.
    pub(super) least: usize,
    /// When the oldest of all came.
    pub(super) since: Instant,
    /// The size of one row of the largest of these: a power of two of bytes.
    pub(super) size: u8,
    /// How many threads it asks for.
    pub(super) threads: Option<usize>,
    /// The first of their deadlines.
    pub(super) due: Option<Instant>,
}

/// The queue of a model.
#[derive(Debug)]
pub(super) struct Queue<W> {
    /// The highest priority first; never empty.
    lines: Vec<Line<W>>,
    /// From 0.
    default_priority: usize,
    /// To be run before all others, each by itself: those of a batch that failed.
    again: VecDeque<Waiting<W>>,
    rows: usize,
    bytes: usize,
    len: usize,
    /// No timeout passes before this.
    quiet_until: Option<Instant>,
}

impl<W: Work> Queue<W> {
    pub(super) fn new(levels: &[Level], default_priority: usize) -> Self {
        let line =
            |level: &Level| Line { level: level.clone(), queue: VecDeque::new(), delayed: VecDeque::new() };
        Self {
            lines: levels.iter().map(line).collect(),
            default_priority: default_priority.min(levels.len().saturating_sub(1)),
            again: VecDeque::new(),
            rows: 0,
            bytes: 0,
            len: 0,
            quiet_until: None,
        }
    }

    /// Changes the policies. Who waits goes on waiting: at the lowest priority if its own is gone, as long
    /// as it was promised.
    pub(super) fn set_levels(&mut self, levels: &[Level], default_priority: usize) {
        let old = std::mem::replace(self, Self::new(levels, default_priority));
        let last = self.lines.len() - 1;
        for (priority, line) in old.lines.into_iter().enumerate() {
            let to = &mut self.lines[priority.min(last)];
            to.queue.extend(line.queue);
            to.delayed.extend(line.delayed);
        }
        (self.again, self.quiet_until) = (old.again, old.quiet_until);
        (self.rows, self.bytes, self.len) = (old.rows, old.bytes, old.len);
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Rows that wait.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of what waits.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// When something may have waited long enough to be refused or delayed.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.quiet_until
    }

    /// The priority of a request, from 0, and how many of it may wait.
    pub(super) fn limit(&self, work: &W) -> (usize, usize) {
        let priority = match usize::try_from(work.priority()) {
            Ok(priority) if (1..=self.lines.len()).contains(&priority) => priority - 1,
            Ok(_) | Err(_) => self.default_priority,
        };
        (priority, self.lines[priority].level.limit)
    }

    /// Takes a request in; gives it back when as many of its priority wait as may.
    pub(super) fn push(&mut self, work: W, now: Instant) -> Result<(), W> {
        let (priority, limit) = self.limit(&work);
        let line = &mut self.lines[priority];
        if line.queue.len() + line.delayed.len() >= limit {
            return Err(work);
        }
        let own = work.timeout().filter(|_| line.level.own_timeout);
        let timeout = match (line.level.timeout, own) {
            (Some(policy), Some(own)) => Some(policy.min(own)),
            (policy, own) => policy.or(own),
        };
        let until = timeout.and_then(|timeout| now.checked_add(timeout));
        if self.len == 0 {
            self.quiet_until = None;
        }
        self.quiet_until = earliest(self.quiet_until, until);
        self.rows += work.rows();
        self.bytes += work.bytes();
        self.len += 1;
        line.queue.push_back(Waiting { work, since: now, until });
        Ok(())
    }

    /// Puts requests of a batch that failed before all others; each will run by itself.
    pub(super) fn push_again(&mut self, works: Vec<W>, now: Instant) {
        self.rows += works.iter().map(Work::rows).sum::<usize>();
        self.bytes += works.iter().map(Work::bytes).sum::<usize>();
        self.len += works.len();
        self.again.extend(works.into_iter().map(|work| Waiting { work, since: now, until: None }));
    }

    /// Takes out what nobody waits for and what has waited too long; delays what is to be delayed.
    pub(super) fn sweep(&mut self, now: Instant, dead: &mut Vec<(W, Fate)>) {
        self.quiet_until = None;
        let before = dead.len();
        bury(&mut self.again, now, dead);
        for line in &mut self.lines {
            for _ in 0..line.queue.len() {
                let Some(waiting) = line.queue.pop_front() else { break };
                match waiting.until {
                    _ if unwanted(&waiting.work, now) => dead.push((waiting.work, Fate::Unwanted)),
                    Some(until) if until <= now && line.level.delays => line.delayed.push_back(waiting),
                    Some(until) if until <= now => {
                        let waited = now.saturating_duration_since(waiting.since);
                        dead.push((waiting.work, Fate::TimedOut { waited }));
                    }
                    until => {
                        self.quiet_until = earliest(self.quiet_until, until);
                        line.queue.push_back(waiting);
                    }
                }
            }
            bury(&mut line.delayed, now, dead);
        }
        self.forget(dead[before..].iter().map(|(work, _)| work));
    }

    /// The first of all.
    pub(super) fn front(&self) -> Option<&W> {
        let of_lines = || self.lines.iter().find_map(|line| line.queue.front().or(line.delayed.front()));
        self.again.front().or_else(of_lines).map(|waiting| &waiting.work)
    }

    /// The one that came last of those of the lowest priority.
    pub(super) fn back(&self) -> Option<&W> {
        self.lines.iter().rev().find_map(|line| line.queue.back()).map(|waiting| &waiting.work)
    }

    /// What could be run next, of at most `limit` rows; `None` when nothing waits.
    pub(super) fn head(&self, limit: usize) -> Option<Head> {
        let first = self.front()?;
        let least = first.rows();
        let (mut rows, mut size, mut due) = (least, first.size(), first.deadline());
        if first.joins() && self.len > 1 {
            let mut company = Company::default();
            first.joins_company(&mut company);
            for work in self.waiting().skip(1).take(LOOK).map(|waiting| &waiting.work) {
                if rows >= limit {
                    break;
                }
                if rows + work.rows() <= limit && joins(first, work) && work.joins_company(&mut company) {
                    rows += work.rows();
                    size = size.max(work.size());
                    due = earliest(due, work.deadline());
                }
            }
        }
        // The oldest of each priority is its first.
        let mut since: Option<Instant> = None;
        let mut look = |queue: &VecDeque<Waiting<W>>| {
            if let Some(waiting) = queue.front() {
                since = Some(since.map_or(waiting.since, |since| since.min(waiting.since)));
            }
        };
        look(&self.again);
        for line in &self.lines {
            look(&line.queue);
            look(&line.delayed);
        }
        let since = since?;
        Some(Head { rows, least, since, size, threads: first.threads(), due })
    }

    /// The rows and deadlines of the first and of those that may run together with it.
    pub(super) fn company(&self) -> impl Iterator<Item = (usize, Option<Instant>)> {
        let first = self.front();
        let others = self.waiting().skip(1).take(LOOK).map(|waiting| &waiting.work);
        let joins = move |work: &&W| first.is_some_and(|first| first.joins() && joins(first, work));
        first.into_iter().chain(others.filter(joins)).map(|work| (work.rows(), work.deadline()))
    }

    /// Takes the first and, up to `limit` rows, those that may run together with it. Left out are those
    /// whose deadline has passed, and those whose deadline is before `late`, unless nobody else is there:
    /// then it may be that the estimate is wrong, and only a run can tell.
    pub(super) fn take(
        &mut self,
        limit: usize,
        now: Instant,
        late: Instant,
        dead: &mut Vec<(W, Fate)>,
    ) -> Vec<W> {
        let before = dead.len();
        let company = Company::default();
        let (batch, doomed) = (Vec::with_capacity(limit.min(self.len())), Vec::new());
        let mut taken = Taken { limit, now, late, rows: 0, looked: 0, company, batch, doomed };
        taken.take_from(&mut self.again, dead);
        for line in &mut self.lines {
            taken.take_from(&mut line.queue, dead);
            taken.take_from(&mut line.delayed, dead);
        }
        let Taken { mut batch, mut doomed, .. } = taken;
        if batch.is_empty() && !doomed.is_empty() {
            batch.push(doomed.remove(0));
        }
        dead.extend(doomed.into_iter().map(|work| (work, Fate::Late)));
        self.forget(batch.iter());
        self.forget(dead[before..].iter().map(|(work, _)| work));
        batch
    }

    /// Takes all that waits.
    pub(super) fn take_all(&mut self) -> Vec<W> {
        let levels: Vec<Level> = self.lines.iter().map(|line| line.level.clone()).collect();
        std::mem::replace(self, Self::new(&levels, self.default_priority)).into_all().collect()
    }

    /// All that waits.
    pub(super) fn into_all(self) -> impl Iterator<Item = W> {
        let waiting = self.lines.into_iter().flat_map(|line| line.queue.into_iter().chain(line.delayed));
        self.again.into_iter().chain(waiting).map(|waiting| waiting.work)
    }

    fn waiting(&self) -> impl Iterator<Item = &Waiting<W>> {
        let lines = self.lines.iter().flat_map(|line| line.queue.iter().chain(&line.delayed));
        self.again.iter().chain(lines)
    }

    fn forget<'a>(&mut self, gone: impl Iterator<Item = &'a W>)
    where
        W: 'a,
    {
        for work in gone {
            self.len -= 1;
            self.rows -= work.rows();
            self.bytes -= work.bytes();
        }
    }
}

/// A batch in the making.
struct Taken<W> {
    limit: usize,
    now: Instant,
    late: Instant,
    rows: usize,
    looked: usize,
    company: Company,
    batch: Vec<W>,
    doomed: Vec<W>,
}

impl<W: Work> Taken<W> {
    fn take_from(&mut self, queue: &mut VecDeque<Waiting<W>>, dead: &mut Vec<(W, Fate)>) {
        let mut index = 0;
        while let Some(waiting) = queue.get(index) {
            let (work, first) = (&waiting.work, self.batch.first());
            if self.rows >= self.limit || self.looked >= LOOK || first.is_some_and(|first| !first.joins()) {
                return;
            }
            let (is_unwanted, is_late) =
                (unwanted(work, self.now), work.deadline().is_some_and(|deadline| deadline < self.late));
            let fits = first.is_none_or(|first| self.rows + work.rows() <= self.limit && joins(first, work))
                // Of no company is who does not run.
                && (is_unwanted || is_late || work.joins_company(&mut self.company));
            if !fits && !is_unwanted {
                index += 1;
                self.looked += 1;
                continue;
            }
            // Most often it is the first, which costs less to take.
            let taken = if index == 0 { queue.pop_front() } else { queue.remove(index) };
            let Some(Waiting { work, .. }) = taken else { return };
            if is_unwanted {
                dead.push((work, Fate::Unwanted));
            } else if is_late {
                self.doomed.push(work);
            } else {
                self.rows += work.rows();
                self.batch.push(work);
            }
        }
    }
}

/// How many requests are looked at for company: more costs more than it can bring.
const LOOK: usize = 512;

fn joins<W: Work>(first: &W, other: &W) -> bool {
    other.joins() && first.joins_with(other)
}

/// Takes out of a queue what nobody waits for.
fn bury<W: Work>(queue: &mut VecDeque<Waiting<W>>, now: Instant, dead: &mut Vec<(W, Fate)>) {
    for _ in 0..queue.len() {
        match queue.pop_front() {
            Some(waiting) if unwanted(&waiting.work, now) => dead.push((waiting.work, Fate::Unwanted)),
            Some(waiting) => queue.push_back(waiting),
            None => {}
        }
    }
}

/// Whether running it would be for nobody. Its caller is answered by its own deadline, not from here.
fn unwanted(work: &impl Work, now: Instant) -> bool {
    work.is_cancelled() || work.deadline().is_some_and(|deadline| deadline <= now)
}

/// The earlier of two moments, where `None` is never.
pub(super) fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
