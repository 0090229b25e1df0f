//! Which request runs next and where.
//!
//! A pure state machine: it owns the queues and knows which workers are idle; `arrive`,
//! `worker_free` and `sweep` go in, dispatches come out. The pool's threads drive it with the real
//! clock, tests with any other.
//!
//! Requests wait in their model's one queue and are bound to a device as late as can be: when one
//! arrives or a worker becomes free, it goes to an idle worker on the eligible device with the
//! fewest requests in flight, ties rotating. Nothing waits behind a busy worker while another could
//! take it. Models that compete for a freed worker are served in turn, by virtual time; background
//! work gives way to all of them.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

/// What the scheduler needs to know of a request.
pub trait Work {
    /// When its answer is worth nothing any more.
    fn deadline(&self) -> Option<Instant>;
    /// Whether its caller has gone.
    fn is_cancelled(&self) -> bool;
}

/// Names a model to the scheduler. Never given twice: a run that outlives its model is not mistaken
/// for one of the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelKey(u64);

/// What a model's runs are to those of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Somebody waits for the answers.
    Traffic,
    /// Nobody does yet: it gives way to traffic.
    Background,
}

/// As many runs of traffic may begin on a device while background work waits for it; then that gets one.
///
/// It must have a turn at some time: a version that is never warmed never serves, so a server at its
/// limit could not be given the faster model that would help it. One run in nine is what that may cost.
const BACKGROUND_WAITS: u32 = 8;

/// Names a worker to the scheduler.
pub type WorkerIndex = usize;

/// Where a model may run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Index of the device.
    pub device: usize,
    /// How many of the model's runs at once.
    pub limit: usize,
}

/// Counts one run against its device until dropped.
///
/// It travels with the work, not with the call that waits for it: a cancelled call is gone at once,
/// its device is busy until the work is done.
#[derive(Debug)]
pub struct InFlight(Arc<AtomicUsize>);

impl InFlight {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A batch for a worker.
#[derive(Debug)]
pub struct Dispatch<W> {
    /// Who runs it.
    pub worker: WorkerIndex,
    /// On which device.
    pub device: usize,
    /// Whose it is.
    pub model: ModelKey,
    /// The requests.
    pub batch: Vec<W>,
    /// The device's count.
    pub in_flight: InFlight,
    /// How many runs were in flight on the device, this one counted.
    pub concurrency: usize,
}

/// Why a request leaves without having run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The model's queue holds as many as it may.
    Full {
        /// How many that is.
        limit: usize,
    },
    /// The model has been removed.
    Gone,
}

#[derive(Debug)]
struct DeviceState {
    in_flight: Arc<AtomicUsize>,
    /// Idle workers, the one that was busy last on top: its caches are warm.
    idle: Vec<WorkerIndex>,
    /// Runs of traffic that have begun while background work waited.
    passed_over: u32,
}

#[derive(Debug)]
struct ModelState<W> {
    queue: VecDeque<W>,
    limit: usize,
    class: Class,
    placements: Vec<Placement>,
    /// Runs per placement.
    running: Vec<usize>,
    /// How much service the model has had, in runs; the least served is next.
    virtual_time: u64,
}

/// The state machine. `W` is a request.
#[derive(Debug)]
pub struct Scheduler<W> {
    devices: Vec<DeviceState>,
    /// Device of each worker.
    workers: Vec<usize>,
    models: BTreeMap<ModelKey, ModelState<W>>,
    next_key: u64,
    /// Where the search among equal devices begins.
    turn: usize,
    /// Virtual time at which the last dispatch began: a model that was idle starts from here, not from its
    /// past.
    now: u64,
    /// Expired or cancelled, and not yet freed.
    dead: Vec<W>,
}

impl<W: Work> Scheduler<W> {
    /// With as many devices as numbers, each with that many workers. All workers start busy: each
    /// reports with [`Scheduler::worker_ready`] once it runs.
    pub fn new(workers_per_device: &[usize]) -> Self {
        let devices = workers_per_device
            .iter()
            .map(|_| DeviceState {
                in_flight: Arc::new(AtomicUsize::new(0)),
                idle: Vec::new(),
                passed_over: 0,
            })
            .collect();
        let workers = workers_per_device
            .iter()
            .enumerate()
            .flat_map(|(device, &count)| std::iter::repeat_n(device, count))
            .collect();
        Self { devices, workers, models: BTreeMap::new(), next_key: 0, turn: 0, now: 0, dead: Vec::new() }
    }

    /// Takes a model in; at most `limit` of its requests wait.
    pub fn add_model(&mut self, placements: Vec<Placement>, limit: usize, class: Class) -> ModelKey {
        let state = ModelState {
            queue: VecDeque::new(),
            limit,
            class,
            running: vec![0; placements.len()],
            placements,
            virtual_time: self.now,
        };
        let key = ModelKey(self.next_key);
        self.next_key += 1;
        self.models.insert(key, state);
        key
    }

    /// Lets a model go; gives back what still waits. What runs is finished.
    pub fn remove_model(&mut self, model: ModelKey) -> Vec<W> {
        self.models.remove(&model).map(|state| state.queue.into()).unwrap_or_default()
    }

    /// Changes where a model may run and how many of its runs at once. What runs is finished, also where
    /// there are more now than may be; what waits and may run now is given to idle workers.
    pub fn set_placements(
        &mut self,
        model: ModelKey,
        placements: &[Placement],
        now: Instant,
    ) -> Vec<Dispatch<W>> {
        let Some(state) = self.models.get_mut(&model) else { return Vec::new() };
        let mut placements = placements.to_vec();
        let mut running = vec![0; placements.len()];
        for (old, &count) in state.placements.iter().zip(&state.running).filter(|(_, count)| **count > 0) {
            match placements.iter().position(|new| new.device == old.device) {
                Some(index) => running[index] = count,
                // Kept until its runs have ended, so that they count if the device is given back.
                None => {
                    placements.push(Placement { device: old.device, limit: 0 });
                    running.push(count);
                }
            }
        }
        (state.placements, state.running) = (placements, running);
        std::iter::from_fn(|| self.give_to_idle(model, now)).collect()
    }

    /// A request arrives. It runs at once if a worker that may run it is idle, else it waits.
    ///
    /// # Errors
    /// With the request, when the queue is full even after the dead have been swept out of it.
    pub fn arrive(
        &mut self,
        model: ModelKey,
        work: W,
        now: Instant,
    ) -> Result<Option<Dispatch<W>>, (W, Refusal)> {
        let Some(state) = self.models.get_mut(&model) else { return Err((work, Refusal::Gone)) };
        if state.queue.len() >= state.limit {
            bury(&mut state.queue, &mut self.dead, now);
        }
        if state.queue.len() >= state.limit {
            return Err((work, Refusal::Full { limit: state.limit }));
        }
        if state.queue.is_empty() {
            state.virtual_time = state.virtual_time.max(self.now);
        }
        state.queue.push_back(work);
        Ok(self.give_to_idle(model, now))
    }

    /// A worker has started, or has nothing more to do with what it last ran.
    pub fn worker_ready(&mut self, worker: WorkerIndex, now: Instant) -> Option<Dispatch<W>> {
        let device = self.workers[worker];
        while let Some(Next { model, placement, passes_over }) = self.next_for(device) {
            // `None` when all that waited was dead: then the queue is empty, and the next model is asked.
            if let Some(dispatch) = self.dispatch(model, placement, worker, now) {
                let passed_over = &mut self.devices[device].passed_over;
                *passed_over = if passes_over { *passed_over + 1 } else { 0 };
                return Some(dispatch);
            }
        }
        self.devices[device].idle.push(worker);
        None
    }

    /// A worker has finished a run of `model` and is free.
    pub fn worker_free(&mut self, worker: WorkerIndex, model: ModelKey, now: Instant) -> Option<Dispatch<W>> {
        let device = self.workers[worker];
        if let Some(state) = self.models.get_mut(&model)
            && let Some(index) = state.placements.iter().position(|placement| placement.device == device)
        {
            state.running[index] = state.running[index].saturating_sub(1);
        }
        self.worker_ready(worker, now)
    }

    /// Takes out of all queues what has expired or lost its caller.
    pub fn sweep(&mut self, now: Instant) {
        for state in self.models.values_mut() {
            bury(&mut state.queue, &mut self.dead, now);
        }
    }

    /// What has left the queues without having run since this was last asked. Freeing a request takes
    /// longer than anything here: whoever holds a lock on the scheduler gives it up first.
    pub fn take_dead(&mut self) -> Vec<W> {
        std::mem::take(&mut self.dead)
    }

    /// How many requests of the model wait.
    pub fn queued(&self, model: ModelKey) -> usize {
        self.models.get(&model).map_or(0, |state| state.queue.len())
    }

    /// How many runs of the model are on workers.
    pub fn running(&self, model: ModelKey) -> usize {
        self.models.get(&model).map_or(0, |state| state.running.iter().sum())
    }

    /// How many requests wait, of all models.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.models.values().map(|state| state.queue.len()).sum()
    }

    /// How many workers have nothing to do.
    #[cfg(test)]
    pub(crate) fn idle(&self) -> usize {
        self.devices.iter().map(|device| device.idle.len()).sum()
    }

    /// Binds the model's oldest request to an idle worker, if there is one that may run it.
    fn give_to_idle(&mut self, model: ModelKey, now: Instant) -> Option<Dispatch<W>> {
        let (placement, device) = self.idle_place(model)?;
        let worker = self.devices[device].idle.pop()?;
        let dispatch = self.dispatch(model, placement, worker, now);
        if dispatch.is_none() {
            self.devices[device].idle.push(worker);
        }
        dispatch
    }

    /// The eligible device that has an idle worker and the fewest requests in flight.
    fn idle_place(&mut self, model: ModelKey) -> Option<(usize, usize)> {
        let state = self.models.get(&model)?;
        let count = state.placements.len();
        let mut best: Option<(usize, usize, usize)> = None;
        for offset in 0..count {
            let index = (self.turn + offset) % count;
            let placement = &state.placements[index];
            let device = &self.devices[placement.device];
            if device.idle.is_empty() || state.running[index] >= placement.limit {
                continue;
            }
            let in_flight = device.in_flight.load(Ordering::Relaxed);
            if best.is_none_or(|(fewest, ..)| in_flight < fewest) {
                best = Some((in_flight, index, placement.device));
            }
        }
        let (_, index, device) = best?;
        // The next search begins behind the device that was taken: equal ones take turns.
        self.turn = (index + 1) % count;
        Some((index, device))
    }

    /// The model that has had the least service of those which wait for this device: of traffic, unless
    /// background work has given way to enough of it.
    fn next_for(&self, device: usize) -> Option<Next> {
        let mut traffic: Option<(u64, ModelKey, usize)> = None;
        let mut background = None;
        for (&model, state) in self.models.iter().filter(|(_, state)| !state.queue.is_empty()) {
            let Some(index) = state.placements.iter().position(|placement| placement.device == device) else {
                continue;
            };
            let best = match state.class {
                Class::Traffic => &mut traffic,
                Class::Background => &mut background,
            };
            if state.running[index] < state.placements[index].limit
                && best.is_none_or(|(least, ..)| state.virtual_time < least)
            {
                *best = Some((state.virtual_time, model, index));
            }
        }
        let turn = self.devices[device].passed_over >= BACKGROUND_WAITS;
        let chosen = if turn { background.or(traffic) } else { traffic.or(background) };
        let passes_over = chosen == traffic && background.is_some();
        chosen.map(|(_, model, placement)| Next { model, placement, passes_over })
    }

    /// Binds the oldest request that is still wanted to the worker.
    fn dispatch(
        &mut self,
        model: ModelKey,
        placement: usize,
        worker: WorkerIndex,
        now: Instant,
    ) -> Option<Dispatch<W>> {
        let state = self.models.get_mut(&model)?;
        let work = loop {
            let work = state.queue.pop_front()?;
            if !is_dead(&work, now) {
                break work;
            }
            self.dead.push(work);
        };
        state.running[placement] += 1;
        // Background work is served beside the others and is no measure of their turn.
        if state.class == Class::Traffic {
            self.now = self.now.max(state.virtual_time);
        }
        state.virtual_time += 1;
        let device = self.workers[worker];
        let in_flight = InFlight::new(&self.devices[device].in_flight);
        let concurrency = self.devices[device].in_flight.load(Ordering::Relaxed);
        Some(Dispatch { worker, device, model, batch: vec![work], in_flight, concurrency })
    }
}

/// Whose turn it is on a device.
struct Next {
    model: ModelKey,
    placement: usize,
    /// Background work that waits for the device gives way to it.
    passes_over: bool,
}

/// Moves the dead out of a queue; the others keep their order.
fn bury<W: Work>(queue: &mut VecDeque<W>, dead: &mut Vec<W>, now: Instant) {
    for _ in 0..queue.len() {
        match queue.pop_front() {
            Some(work) if is_dead(&work, now) => dead.push(work),
            Some(work) => queue.push_back(work),
            None => {}
        }
    }
}

/// Whether running it would be for nobody. Its caller is answered by its own deadline, not from here.
fn is_dead(work: &impl Work, now: Instant) -> bool {
    work.is_cancelled() || work.deadline().is_some_and(|deadline| deadline <= now)
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
