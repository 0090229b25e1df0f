//! Devices, their workers and cores, and which of them are in use.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{ModelKey, Placement};

/// Names a worker to the scheduler.
pub type WorkerIndex = usize;

/// Counts requests against their device until dropped.
///
/// It travels with the work, not with the calls that wait for it: a cancelled call is gone at once, its
/// device is busy until the work is done.
#[derive(Debug)]
pub struct InFlight {
    count: Arc<AtomicUsize>,
    requests: usize,
}

impl InFlight {
    fn new(count: &Arc<AtomicUsize>, requests: usize) -> Self {
        count.fetch_add(requests, Ordering::Relaxed);
        Self { count: Arc::clone(count), requests }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.count.fetch_sub(self.requests, Ordering::Relaxed);
    }
}

/// What a device is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceLoad {
    /// Whether it can run anything.
    pub healthy: bool,
    /// Requests that are on it.
    pub in_flight: usize,
    /// Workers that have nothing to do.
    pub idle: usize,
    /// Workers who have a place on it: all but those whose runs hang, and those who came back and are spare.
    pub workers: usize,
    /// Its cores, or as many as it has workers where it is no processor.
    pub cores: usize,
    /// How many of them runs use.
    pub cores_used: usize,
}

/// A run on a worker, as it was planned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) model: ModelKey,
    pub(super) size: u8,
    pub(super) rows: usize,
    pub(super) threads: usize,
    pub(super) cores: usize,
    /// Seconds that the model has been charged for it.
    pub(super) charged: f64,
    pub(super) began: Instant,
    /// What a second of it counts: cores over weight.
    pub(super) share: f64,
    /// For a part of its time there were more threads than cores, so that its time says nothing of others.
    pub(super) crowded: bool,
    /// It is not expected to end, and another worker has its place.
    pub(super) hung: bool,
}

#[derive(Debug)]
struct Device {
    healthy: bool,
    /// Whether runs may use several cores.
    elastic: bool,
    cores: usize,
    used: usize,
    in_flight: Arc<AtomicUsize>,
    /// How many workers it is to have, beside those that hang.
    places: usize,
    /// How many it has.
    taken: usize,
    /// Idle workers, the one that was busy last on top: its caches are warm.
    idle: Vec<WorkerIndex>,
    /// Idle ones who have no place: they came back after others had taken theirs.
    spare: Vec<WorkerIndex>,
    /// Runs of traffic that have begun while background work waited.
    passed_over: u32,
    /// The model whose request came last, and the last of another one, with when they came.
    wanted: [Option<(ModelKey, Instant)>; 2],
}

#[derive(Debug)]
struct Worker {
    device: usize,
    run: Option<Run>,
}

/// Who takes the place of a worker whose run does not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Substitute {
    /// A new worker of this index and device, who reports as the others did.
    New(WorkerIndex, usize),
    /// One who was there already.
    Known,
    /// Nobody: there are as many as there may be. The device has a worker less.
    Nobody,
    /// Nobody: the device has failed.
    Unneeded,
}

/// A model that has had a request within this time is likely to get another soon.
const LATELY: Duration = Duration::from_secs(1);

/// Kinds of devices, by what runs cost on them.
pub(super) const KINDS: usize = 2;

/// How many workers there are at most where so many are asked for: as many again may take the place of others.
pub fn most_workers(count: usize) -> usize {
    2 * count
}

/// All devices and all workers.
#[derive(Debug)]
pub(super) struct Devices {
    devices: Vec<Device>,
    workers: Vec<Worker>,
    /// As many workers there are at most: threads that hang cannot be stopped.
    most_workers: usize,
}

impl Devices {
    /// With a device for each element: how many workers it has, and how many cores where it is a processor.
    pub(super) fn new(devices: &[(usize, Option<usize>)]) -> Self {
        let device = |&(workers, cores): &(usize, Option<usize>)| Device {
            healthy: true,
            elastic: cores.is_some(),
            cores: cores.unwrap_or(workers).max(workers),
            used: 0,
            in_flight: Arc::new(AtomicUsize::new(0)),
            places: workers,
            taken: workers,
            idle: Vec::new(),
            spare: Vec::new(),
            passed_over: 0,
            wanted: [None; 2],
        };
        let workers = devices.iter().enumerate().flat_map(|(device, &(count, _))| {
            std::iter::repeat_with(move || Worker { device, run: None }).take(count)
        });
        let workers: Vec<_> = workers.collect();
        let most_workers = most_workers(workers.len());
        Self { devices: devices.iter().map(device).collect(), workers, most_workers }
    }

    pub(super) fn is_healthy(&self, device: usize) -> bool {
        self.devices[device].healthy
    }

    pub(super) fn any_healthy(&self, placements: &[Placement]) -> bool {
        placements.iter().any(|placement| self.is_healthy(placement.device))
    }

    pub(super) fn is_processor(&self, device: usize) -> bool {
        self.devices[device].elastic
    }

    /// Runs cost about the same on devices of the same kind.
    pub(super) fn kind(&self, device: usize) -> usize {
        usize::from(self.is_processor(device))
    }

    pub(super) fn fail(&mut self, device: usize) {
        self.devices[device].healthy = false;
    }

    /// A worker has nothing to do; on which device.
    pub(super) fn ready(&mut self, worker: WorkerIndex) -> usize {
        let device = self.workers[worker].device;
        let here = &mut self.devices[device];
        if here.taken > here.places {
            here.taken -= 1;
            here.spare.push(worker);
        } else {
            here.idle.push(worker);
        }
        device
    }

    /// Whether a run could begin: also where runs use all cores, because runs side by side share them.
    pub(super) fn has_room(&self, device: usize) -> bool {
        let device = &self.devices[device];
        device.healthy && !device.idle.is_empty()
    }

    pub(super) fn idle(&self, device: usize) -> usize {
        self.devices[device].idle.len()
    }

    /// Cores that a run could use if nothing else ran.
    pub(super) fn cores(&self, device: usize) -> usize {
        let device = &self.devices[device];
        if device.elastic { device.cores } else { 1 }
    }

    /// Cores that a run could use now: one at least.
    pub(super) fn free_cores(&self, device: usize) -> usize {
        let here = &self.devices[device];
        here.cores.saturating_sub(here.used).clamp(1, self.cores(device))
    }

    /// Whether nothing runs on any of them that is expected to end.
    pub(super) fn are_quiet(&self) -> bool {
        self.devices.iter().all(|device| device.used == 0)
    }

    pub(super) fn in_flight(&self, device: usize) -> usize {
        self.devices[device].in_flight.load(Ordering::Relaxed)
    }

    /// When the last run of the model on the device has begun, of those that are on.
    pub(super) fn last_begun(&self, device: usize, model: ModelKey) -> Option<Instant> {
        let here = self.workers.iter().filter(|worker| worker.device == device);
        let runs = here.filter_map(|worker| worker.run.as_ref());
        runs.filter(|run| run.model == model && !run.hung).map(|run| run.began).max()
    }

    /// Whether all runs on the device that are expected to end are the model's.
    pub(super) fn is_alone(&self, device: usize, model: ModelKey) -> bool {
        let here = self.workers.iter().filter(|worker| worker.device == device);
        here.filter_map(|worker| worker.run.as_ref()).all(|run| run.model == model || run.hung)
    }

    /// A request of the model has come that may run on the device.
    pub(super) fn wanted(&mut self, device: usize, model: ModelKey, now: Instant) {
        let [last, other] = &mut self.devices[device].wanted;
        if last.is_some_and(|(last, _)| last != model) {
            *other = *last;
        }
        *last = Some((model, now));
    }

    /// Whether requests of other models have come lately that may run on the device.
    pub(super) fn is_shared(&self, device: usize, model: ModelKey, now: Instant) -> bool {
        let lately = |at: Instant| now.saturating_duration_since(at) < LATELY;
        self.devices[device].wanted.iter().flatten().any(|&(other, at)| other != model && lately(at))
    }

    /// How many runs of traffic have begun while background work waited.
    pub(super) fn passed_over(&mut self, device: usize) -> &mut u32 {
        &mut self.devices[device].passed_over
    }

    /// Gives a run of so many requests to an idle worker: one of several threads to that which had the
    /// most of them, because every worker that ever used several keeps them; any other to the worker that
    /// was busy last.
    pub(super) fn begin(
        &mut self,
        device: usize,
        run: Run,
        requests: usize,
    ) -> Option<(WorkerIndex, InFlight)> {
        let here = &mut self.devices[device];
        let top = here.idle.len().checked_sub(1)?;
        let index = match run.threads {
            1 => top,
            _ => (0..=top).min_by_key(|index| here.idle[*index]).unwrap_or(top),
        };
        let worker = here.idle.remove(index);
        here.used += run.cores;
        let crowded = here.used > here.cores;
        let in_flight = InFlight::new(&here.in_flight, requests);
        self.workers[worker].run = Some(run);
        if crowded {
            let here = self.workers.iter_mut().filter(|worker| worker.device == device);
            here.filter_map(|worker| worker.run.as_mut()).for_each(|run| run.crowded = true);
        }
        Some((worker, in_flight))
    }

    /// A worker's run has ended; on which device it was. `None` where it had none.
    pub(super) fn end(&mut self, worker: WorkerIndex) -> Option<(usize, Run)> {
        let Worker { device, run } = &mut self.workers[worker];
        let run = run.take()?;
        let here = &mut self.devices[*device];
        if run.hung {
            here.taken += 1;
        } else {
            here.used -= run.cores;
        }
        Some((*device, run))
    }

    /// The worker's run is not expected to end: whose it is, on which device, and who takes the worker's place.
    /// `None` where it has none, or it is known.
    pub(super) fn hangs(
        &mut self,
        worker: WorkerIndex,
        seen: Instant,
    ) -> Option<(ModelKey, usize, Substitute)> {
        let Worker { device, run } = &mut self.workers[worker];
        let (device, run) = (*device, run.as_mut().filter(|run| !run.hung && run.began <= seen)?);
        run.hung = true;
        let (model, here) = (run.model, &mut self.devices[device]);
        here.used -= run.cores;
        here.taken -= 1;
        let substitute = if !here.healthy {
            Substitute::Unneeded
        } else if let Some(spare) = here.spare.pop() {
            here.taken += 1;
            here.idle.push(spare);
            Substitute::Known
        } else if self.workers.len() < self.most_workers {
            here.taken += 1;
            self.workers.push(Worker { device, run: None });
            Substitute::New(self.workers.len() - 1, device)
        } else {
            Substitute::Nobody
        };
        Some((model, device, substitute))
    }

    /// A new worker could not be started.
    pub(super) fn not_started(&mut self, worker: WorkerIndex) {
        self.devices[self.workers[worker].device].taken -= 1;
    }

    pub(super) fn has_workers(&self, device: usize) -> bool {
        self.devices[device].taken > 0
    }

    #[cfg(test)]
    pub(super) fn worker_count(&self) -> usize {
        self.workers.len()
    }

    pub(super) fn load(&self) -> Vec<DeviceLoad> {
        let load = |device: &Device| DeviceLoad {
            healthy: device.healthy,
            in_flight: device.in_flight.load(Ordering::Relaxed),
            idle: device.idle.len(),
            workers: device.taken,
            cores: device.cores,
            cores_used: device.used,
        };
        self.devices.iter().map(load).collect()
    }
}
