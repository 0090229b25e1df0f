//! Which requests may wait, and who leaves without having run.

use std::time::{Duration, Instant};

use super::{Class, Dispatch, Fate, ModelKey, ModelState, Room, Scheduler, Stuck, Work, earliest};

/// For so many looks at what waits, one more is refused: looking at all of a long queue for each that is
/// refused would be most of what an overloaded server does.
const LOOKS: usize = 64;

/// Why a request is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The model's queue holds as many of the request's priority as it may.
    Full {
        /// How many that is.
        limit: usize,
        /// The priority, 1 for the highest, where there are several.
        priority: Option<usize>,
        /// When there is likely to be room, where that is known.
        retry_after: Option<Duration>,
    },
    /// All queues together hold as many bytes as they may.
    TooMuch {
        /// How many that is.
        limit: usize,
        /// How many this request has.
        size: usize,
        /// When there is likely to be room, where that is known.
        retry_after: Option<Duration>,
    },
    /// Every device that the model may use has failed.
    NoDevice,
    /// The model answers nothing any more.
    Stuck(Stuck),
    /// The model has been removed.
    Gone,
}

/// When to look for the dead among those that wait, so that others may come in.
#[derive(Debug, Default)]
pub(super) struct Sweeps {
    /// How many have been refused since.
    refused: usize,
}

impl Sweeps {
    /// Whether to look now, where that takes so many looks.
    fn is_due(&mut self, looks: usize) -> bool {
        self.refused += 1;
        let due = self.refused.saturating_mul(LOOKS) >= looks;
        if due {
            self.refused = 0;
        }
        due
    }
}

impl<W: Work> Scheduler<W> {
    /// A request arrives. It runs at once if a worker that may run it is idle, else it waits.
    ///
    /// # Errors
    /// With the request, when there is no room for it. Those that are dead take up room until they are
    /// looked for: in a short queue whenever it is full, in a long one now and then.
    pub fn arrive(
        &mut self,
        model: ModelKey,
        work: W,
        now: Instant,
    ) -> Result<Option<Dispatch<W>>, (W, Refusal)> {
        if let Some(refusal) = self.refuses(model) {
            return Err((work, refusal));
        }
        if self.is_too_much(&work) {
            let waiting = self.models.values().map(|state| state.queue.len()).sum();
            if self.sweeps.is_due(waiting) {
                self.sweep(now);
            }
            if self.is_too_much(&work) {
                let (limit, size) = (self.most_bytes, work.bytes());
                return Err((work, Refusal::TooMuch { limit, size, retry_after: self.drains_in(model) }));
            }
        }
        if let Err(work) = self.push(model, work, now) {
            let due = |state: &mut ModelState<W>| state.sweeps.is_due(state.queue.len());
            if self.models.get_mut(&model).is_some_and(due) {
                self.sweep_model(model, now);
            }
            if let Err(work) = self.push(model, work, now) {
                let refusal = self.full(model, &work);
                return Err((work, refusal));
            }
        }
        let mut dispatch = self.give_to_idle(model, now);
        if let Some(dispatch) = &mut dispatch {
            dispatch.here = self.is_light(dispatch);
        }
        Ok(dispatch)
    }

    /// Requests arrive together: all are there before the first batch of them is chosen. With those for which
    /// there is no room.
    pub fn arrive_together(
        &mut self,
        model: ModelKey,
        works: Vec<W>,
        now: Instant,
    ) -> (Vec<Dispatch<W>>, Vec<(W, Refusal)>) {
        if let Some(refusal) = self.refuses(model) {
            return (Vec::new(), works.into_iter().map(|work| (work, refusal)).collect());
        }
        let mut refused = Vec::new();
        for work in works {
            if let Err(work) = self.push(model, work, now) {
                let refusal = self.full(model, &work);
                refused.push((work, refusal));
            }
        }
        (std::iter::from_fn(|| self.give_to_idle(model, now)).collect(), refused)
    }

    /// Takes out of all queues what has expired or lost its caller.
    pub fn sweep(&mut self, now: Instant) {
        for model in self.waiting.iter().copied().collect::<Vec<_>>() {
            self.sweep_model(model, now);
        }
    }

    /// Takes out of a queue what has expired or lost its caller.
    pub(super) fn sweep_model(&mut self, model: ModelKey, now: Instant) {
        let Some(state) = self.models.get_mut(&model) else { return };
        let before = state.queue.bytes();
        state.queue.sweep(now, &mut self.dead);
        self.have_left(model, before);
    }

    /// Accounts for what has left a queue that held so many bytes before.
    pub(super) fn have_left(&mut self, model: ModelKey, before: usize) {
        let Some(state) = self.models.get(&model) else { return };
        self.queued_bytes -= before - state.queue.bytes();
        if state.queue.len() == 0 {
            self.waiting.remove(&model);
        }
    }

    /// Takes all that waits for a model.
    pub(super) fn strand(&mut self, model: ModelKey) -> Vec<W> {
        let Some(state) = self.models.get_mut(&model) else { return Vec::new() };
        let before = state.queue.bytes();
        let works = state.queue.take_all();
        self.have_left(model, before);
        works
    }

    /// Refuses what waits for models that are stuck.
    pub(super) fn refuse_stuck(&mut self) {
        for model in self.waiting.iter().copied().collect::<Vec<_>>() {
            if let Some(stuck) = self.stuck_by(model) {
                let works = self.strand(model);
                self.dead.extend(works.into_iter().map(|work| (work, Fate::Stuck(stuck))));
            }
        }
    }

    /// Why no request of the model is taken in, whatever it is.
    pub fn refuses(&self, model: ModelKey) -> Option<Refusal> {
        let Some(state) = self.models.get(&model) else { return Some(Refusal::Gone) };
        if !self.devices.any_healthy(&state.policy.placements) {
            return Some(Refusal::NoDevice);
        }
        self.stuck_by(model).map(Refusal::Stuck)
    }

    /// One that is larger than all may be together is taken where nothing else waits.
    fn is_too_much(&self, work: &W) -> bool {
        self.queued_bytes > 0 && self.queued_bytes.saturating_add(work.bytes()) > self.most_bytes
    }

    fn full(&self, model: ModelKey, work: &W) -> Refusal {
        let Some(state) = self.models.get(&model) else { return Refusal::Gone };
        let (priority, limit) = state.queue.limit(work);
        let priority = (state.policy.levels.len() > 1).then_some(priority + 1);
        Refusal::Full { limit, priority, retry_after: self.drains_in(model) }
    }

    /// Queues a request; gives it back where there is no place for it.
    fn push(&mut self, model: ModelKey, work: W, now: Instant) -> Result<(), W> {
        let Some(state) = self.models.get_mut(&model) else { return Err(work) };
        let (bytes, was_idle) = (work.bytes(), state.queue.len() == 0);
        state.queue.push(work, now)?;
        state.pace.arrived(now, self.waiting.is_empty() && self.devices.are_quiet());
        if was_idle {
            for (placement, usage) in state.policy.placements.iter().zip(&mut state.usage) {
                usage.served = usage.served.max(self.served[placement.device]);
            }
            self.waiting.insert(model);
        }
        if state.policy.class == Class::Traffic {
            for placement in &state.policy.placements {
                self.devices.wanted(placement.device, model, now);
            }
        }
        self.wake = earliest(self.wake, state.queue.next_timeout());
        self.queued_bytes += bytes;
        Ok(())
    }

    /// When what waits for the model is likely to have been run; `None` while nothing is known of it.
    fn drains_in(&self, model: ModelKey) -> Option<Duration> {
        let state = self.models.get(&model)?;
        let head = state.queue.head(state.policy.max_rows)?;
        let rate: f64 = state
            .policy
            .placements
            .iter()
            .filter(|placement| self.devices.is_healthy(placement.device))
            .map(|placement| {
                let cores = self.devices.cores(placement.device);
                let room = Room {
                    least: head.least,
                    rows: head.rows,
                    backlog: state.queue.rows(),
                    cores,
                    all_cores: cores,
                    runs: placement.limit,
                    shared: false,
                };
                self.costs(state, placement.device).best(head.size, &room).rate
            })
            .sum();
        let seconds = state.queue.rows() as f64 / rate;
        seconds.is_finite().then(|| Duration::from_secs_f64(seconds.min(3600.0)))
    }
}
