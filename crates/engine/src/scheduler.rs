//! Which requests run next, where, together with which others, and on how many threads.
//!
//! A pure state machine: it owns the queues and knows which workers are idle; requests that arrive,
//! workers that become free and moments that come go in, dispatches come out. The pool's threads drive it
//! with the real clock, the simulator with another.
//!
//! - `admission`: which requests may wait.
//! - `queue`: the requests of a model that wait: priorities, timeouts, who may run together.
//! - `batching`: whether a batch runs now or waits for company.
//! - `cost`: what runs have cost, and what is best run because of it.
//! - `devices`: workers and cores, and who uses them.
//! - `hanging`: runs that are not expected to end.
//! - `policy`: what a model's configuration says to all this.
//!
//! Requests wait in their model's one queue and are bound to a device as late as can be: when one
//! arrives or a worker becomes free, the next batch goes to an idle worker on the eligible device with
//! the fewest requests in flight, ties rotating. Nothing waits while a worker that may run it is idle, but
//! for company that its configuration asks for, or for a run of its own model that is over soon or would
//! leave it more cores. Models that compete for a device share its time by weight; background work gives way to all
//! of them.

mod admission;
mod batching;
#[cfg(test)]
mod conservation;
mod cost;
mod devices;
mod dispatch;
mod hanging;
mod policy;
mod queue;
#[cfg(test)]
mod simulator;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

pub use admission::Refusal;
use admission::Sweeps;
use batching::{Pace, Ready, ready};
use cost::{CLOSE_BESIDE_OTHERS, Choice, Costs, Room};
pub use devices::{DeviceLoad, InFlight, Substitute, WorkerIndex, most_workers};
use devices::{Devices, KINDS, Run};
pub use hanging::{Hang, Stuck};
pub use policy::{Class, Placement, Policy};
pub use queue::{Fate, Level};
use queue::{Head, Queue, earliest};

pub use crate::padding::Company;

/// What the scheduler needs to know of a request.
pub trait Work {
    /// When its answer is worth nothing any more.
    fn deadline(&self) -> Option<Instant>;
    /// Whether its caller has gone.
    fn is_cancelled(&self) -> bool;
    /// Its part of a batch: its first dimension, 1 where it has none.
    fn rows(&self) -> usize;
    /// The memory it takes while it waits.
    fn bytes(&self) -> usize;
    /// How large one of its rows is, as a power of two of bytes.
    fn size(&self) -> u8;
    /// Whether it may run together with others at all.
    fn joins(&self) -> bool;
    /// Whether it may run together with this one.
    fn joins_with(&self, other: &Self) -> bool;
    /// Whether that is still so beside these, which run together with this one; if it is, it is one of
    /// them from now on.
    fn joins_company(&self, _company: &mut Company) -> bool {
        true
    }
    /// Its priority, 1 for the highest; 0 for the model's default.
    fn priority(&self) -> u64;
    /// How long it wants to wait at most.
    fn timeout(&self) -> Option<Duration>;
    /// On how many threads it wants to run, if they are free.
    fn threads(&self) -> Option<usize>;
}

/// Names a model to the scheduler. Never given twice: a run that outlives its model is not mistaken
/// for one of the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelKey(u64);

/// As many runs of traffic may begin on a device while background work waits for it; then that gets one.
///
/// It must have a turn at some time: a version that is never warmed never serves, so a server at its
/// limit could not be given the faster model that would help it. One run in nine is what that may cost.
const BACKGROUND_WAITS: u32 = 8;

/// What is charged for a run of which nothing is known, until it has ended.
const UNKNOWN: f64 = 0.001;

/// A deadline is taken to be met when it is so many times a run's expected time away. When there is more
/// to run than can be, all that is run has waited almost as long as it may: with no margin, most of it
/// would be answered just too late.
const MARGIN: f64 = 1.25;

/// A model waits for its own run this much longer than three times as long as such a run takes: it may be one
/// that does not end.
const PATIENCE: Duration = Duration::from_millis(20);

/// Going on with few threads has to be this much worse for a model to wait for its other runs to end.
const WORTH_HOLDING: f64 = 1.08;

/// Seconds. A run that takes less than this may be made by the thread that brought the request, where requests
/// come one by one, or so much more seldom, that no batch is missed: it is two threads less that have to be woken.
const AT_ONCE: f64 = 200e-6;
/// How much more seldom.
const SELDOM: f64 = 4.0;

/// Seconds. What one worker is done with in that time is not worth waking another for: that takes a good part
/// of it, and a core from the connections.
const QUICK: f64 = 300e-6;

/// A batch for a worker.
#[derive(Debug)]
pub struct Dispatch<W> {
    /// Who runs it.
    pub worker: WorkerIndex,
    /// On which device.
    pub device: usize,
    /// Whose it is.
    pub model: ModelKey,
    /// The requests; never empty.
    pub batch: Vec<W>,
    /// Their count on the device.
    pub in_flight: InFlight,
    /// On how many threads it is to run.
    pub threads: usize,
    /// It is over so soon, and so little else is going on, that it is best run by the thread that brought the
    /// request, in the place of the worker.
    pub here: bool,
}

/// What tells runs of a model apart: the size of a row as a power of two of bytes, rows, threads.
pub type Kind = (u8, usize, usize);

#[derive(Debug)]
struct ModelState<W> {
    policy: Policy,
    queue: Queue<W>,
    /// For want of places in the queue.
    sweeps: Sweeps,
    /// For each placement.
    usage: Vec<Usage>,
    /// Its requests cannot be run together, whatever its configuration says.
    unjoinable: bool,
    /// For each kind of device.
    costs: [Costs; KINDS],
    pace: Pace,
}

/// What a model has of a device.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    /// Its runs.
    running: usize,
    /// How many of them are not expected to end.
    hung: usize,
    /// How much service it has had, in seconds by weight; the least served is next.
    served: f64,
}

/// What a model has of its placements before its first run: it starts where the others are by now.
fn unused(placements: &[Placement], served: &[f64]) -> Vec<Usage> {
    let usage = |placement: &Placement| Usage { served: served[placement.device], ..Usage::default() };
    placements.iter().map(usage).collect()
}

/// The state machine. `W` is a request.
#[derive(Debug)]
pub struct Scheduler<W> {
    devices: Devices,
    models: BTreeMap<ModelKey, ModelState<W>>,
    /// Models that have requests waiting.
    waiting: BTreeSet<ModelKey>,
    next_key: u64,
    /// Where the search among equal devices begins.
    turn: usize,
    /// For each device the service at which its last dispatch began: a model that was idle starts from here,
    /// not from its past.
    served: Vec<f64>,
    queued_bytes: usize,
    most_bytes: usize,
    /// For want of bytes.
    sweeps: Sweeps,
    /// Out of the queues without having run, and not yet answered.
    dead: Vec<(W, Fate)>,
    /// Nothing happens by itself before this.
    wake: Option<Instant>,
}

/// What can be done with the requests of a model on a device.
enum Plan {
    Run {
        limit: usize,
        threads: usize,
        cores: usize,
        takes: Option<f64>,
    },
    /// Nothing, before this moment or a run ends.
    Wait(Option<Instant>),
}

impl<W: Work> Scheduler<W> {
    /// With a device for each element: how many workers, and how many cores they share where it is a
    /// processor. All workers start busy: each reports with [`Scheduler::worker_ready`] once it runs.
    /// Requests of at most `most_bytes` wait, of all models together.
    pub fn new(devices: &[(usize, Option<usize>)], most_bytes: usize) -> Self {
        Self {
            devices: Devices::new(devices),
            models: BTreeMap::new(),
            waiting: BTreeSet::new(),
            next_key: 0,
            turn: 0,
            served: vec![0.0; devices.len()],
            queued_bytes: 0,
            most_bytes,
            sweeps: Sweeps::default(),
            dead: Vec::new(),
            wake: None,
        }
    }

    /// Takes a model in.
    pub fn add_model(&mut self, policy: Policy) -> ModelKey {
        let state = ModelState {
            queue: Queue::new(&policy.levels, policy.default_priority),
            sweeps: Sweeps::default(),
            usage: unused(&policy.placements, &self.served),
            policy,
            unjoinable: false,
            costs: Default::default(),
            pace: Pace::default(),
        };
        let key = ModelKey(self.next_key);
        self.next_key += 1;
        self.models.insert(key, state);
        key
    }

    /// Takes all that waits, of all models.
    pub fn take_all(&mut self) -> Vec<W> {
        let waiting: Vec<ModelKey> = self.waiting.iter().copied().collect();
        waiting.into_iter().flat_map(|model| self.strand(model)).collect()
    }

    /// Lets a model go; gives back what still waits. What runs is finished.
    pub fn remove_model(&mut self, model: ModelKey) -> Vec<W> {
        let Some(state) = self.models.remove(&model) else { return Vec::new() };
        self.waiting.remove(&model);
        self.queued_bytes -= state.queue.bytes();
        state.queue.into_all().collect()
    }

    /// Changes what a model's configuration says. What runs is finished, also where there is more now than
    /// may be; who waits goes on waiting; what may run now is given to idle workers.
    pub fn set_policy(&mut self, model: ModelKey, policy: &Policy, now: Instant) -> Vec<Dispatch<W>> {
        let Some(state) = self.models.get_mut(&model) else { return Vec::new() };
        let mut policy = policy.clone();
        let mut usage = unused(&policy.placements, &self.served);
        for (old, &used) in state.policy.placements.iter().zip(&state.usage) {
            match policy.placements.iter().position(|new| new.device == old.device) {
                Some(index) => usage[index] = used,
                None if used.running == 0 => {}
                // Kept until its runs have ended, so that they count if the device is given back.
                None => {
                    policy.placements.push(Placement { device: old.device, limit: 0 });
                    usage.push(used);
                }
            }
        }
        state.queue.set_levels(&policy.levels, policy.default_priority);
        if state.unjoinable {
            policy.never_join();
        }
        (state.policy, state.usage) = (policy, usage);
        self.refuse_stuck();
        std::iter::from_fn(|| self.give_to_idle(model, now)).collect()
    }

    /// What a run on a device has cost that was not a request's.
    pub fn seed(&mut self, model: ModelKey, device: usize, (size, rows, threads): Kind, took: Duration) {
        let kind = self.devices.kind(device);
        if let Some(state) = self.models.get_mut(&model) {
            state.costs[kind].record(size, rows, threads, took);
        }
    }

    /// A model starts with what is known of another, such as the version before it.
    pub fn inherit(&mut self, from: ModelKey, to: ModelKey) {
        let Some(known) = self.models.get(&from).map(|state| state.costs.clone()) else { return };
        if let Some(state) = self.models.get_mut(&to) {
            for (costs, known) in state.costs.iter_mut().zip(&known) {
                costs.inherit(known);
            }
        }
    }

    /// A worker has started, or has nothing more to do with what it last ran.
    pub fn worker_ready(&mut self, worker: WorkerIndex, now: Instant) -> Vec<Dispatch<W>> {
        let device = self.devices.ready(worker);
        self.fill(device, now)
    }

    /// A worker has finished its run, which took so long, and is free; `None` where that says nothing of
    /// what such runs take, because it failed.
    pub fn worker_free(
        &mut self,
        worker: WorkerIndex,
        took: Option<Duration>,
        now: Instant,
    ) -> Vec<Dispatch<W>> {
        if let Some((device, run)) = self.devices.end(worker)
            && let Some(state) = self.models.get_mut(&run.model)
        {
            let index = state.policy.placements.iter().position(|place| place.device == device);
            let usage = index.map(|index| &mut state.usage[index]);
            // A run that was taken for hung had no part of the device since then.
            let took = took.filter(|_| !run.hung);
            if let Some(usage) = usage {
                usage.running = usage.running.saturating_sub(1);
                usage.hung = usage.hung.saturating_sub(usize::from(run.hung));
                usage.served += took.map_or(0.0, |took| (took.as_secs_f64() - run.charged) * run.share);
            }
            let costs = &mut state.costs[self.devices.kind(device)];
            let tells = !run.crowded || !costs.has_seen(run.size, run.rows, run.threads);
            if let Some(took) = took
                && state.policy.class == Class::Traffic
                && tells
            {
                costs.record(run.size, run.rows, run.threads, took);
            }
        }
        self.worker_ready(worker, now)
    }

    /// Requests of a batch that failed: each is run by itself, before all others.
    pub fn again(
        &mut self,
        model: ModelKey,
        works: Vec<W>,
        now: Instant,
    ) -> Result<Vec<Dispatch<W>>, Vec<W>> {
        let Some(state) = self.models.get_mut(&model) else { return Err(works) };
        if works.is_empty() || !self.devices.any_healthy(&state.policy.placements) {
            return Err(works);
        }
        self.queued_bytes += works.iter().map(Work::bytes).sum::<usize>();
        state.queue.push_again(works, now);
        self.waiting.insert(model);
        self.refuse_stuck();
        Ok(std::iter::from_fn(|| self.give_to_idle(model, now)).collect())
    }

    /// A model's requests cannot be run together after all.
    pub fn never_join(&mut self, model: ModelKey) {
        if let Some(state) = self.models.get_mut(&model) {
            state.unjoinable = true;
            state.policy.never_join();
        }
    }

    /// A device can run nothing any more. Gives back what only it could have run.
    pub fn fail_device(&mut self, device: usize) -> Vec<W> {
        self.devices.fail(device);
        let stranded: Vec<ModelKey> = self
            .waiting
            .iter()
            .filter(|model| !self.devices.any_healthy(&self.models[model].policy.placements))
            .copied()
            .collect();
        let works = stranded.into_iter().flat_map(|model| self.strand(model)).collect();
        self.refuse_stuck();
        works
    }

    /// Time has passed: refuses what has waited too long, and runs what has waited for company long enough.
    /// To be called at [`Scheduler::wake`], or at any time.
    pub fn tick(&mut self, now: Instant) -> Vec<Dispatch<W>> {
        self.wake = None;
        let mut dispatches = Vec::new();
        for model in self.waiting.iter().copied().collect::<Vec<_>>() {
            let due =
                |state: &ModelState<W>| state.queue.next_timeout().is_some_and(|timeout| timeout <= now);
            if self.models.get(&model).is_some_and(due) {
                self.sweep_model(model, now);
            }
            dispatches.extend(std::iter::from_fn(|| self.give_to_idle(model, now)));
            let timeout = self.models.get(&model).and_then(|state| state.queue.next_timeout());
            self.wake = earliest(self.wake, timeout);
        }
        dispatches
    }

    /// When [`Scheduler::tick`] has something to do.
    pub fn wake(&self) -> Option<Instant> {
        self.wake
    }

    /// What has left the queues without having run since this was last asked, and why. Freeing a request
    /// takes longer than anything here: whoever holds a lock on the scheduler gives it up first.
    pub fn take_dead(&mut self) -> Vec<(W, Fate)> {
        std::mem::take(&mut self.dead)
    }

    /// How many requests of the model wait.
    pub fn queued(&self, model: ModelKey) -> usize {
        self.models.get(&model).map_or(0, |state| state.queue.len())
    }

    /// How many bytes of its requests wait.
    pub fn bytes_of(&self, model: ModelKey) -> usize {
        self.models.get(&model).map_or(0, |state| state.queue.bytes())
    }

    /// How many bytes of requests wait, of all models.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// How many runs of the model are on workers.
    pub fn running(&self, model: ModelKey) -> usize {
        self.models.get(&model).map_or(0, |state| state.usage.iter().map(|usage| usage.running).sum())
    }

    /// What each device is doing.
    pub fn load(&self) -> Vec<DeviceLoad> {
        self.devices.load()
    }

    /// How many workers there are.
    #[cfg(test)]
    pub(crate) fn worker_count(&self) -> usize {
        self.devices.worker_count()
    }

    /// How many requests wait, of all models.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.models.values().map(|state| state.queue.len()).sum()
    }

    /// How many workers have nothing to do.
    #[cfg(test)]
    pub(crate) fn idle(&self) -> usize {
        self.load().iter().map(|device| device.idle).sum()
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
