//! Devices, their workers and cores, and which of them are in use.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use super::ModelKey;

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
    /// It was not expected to end any more.
    pub(super) replaced: bool,
}

#[derive(Debug)]
struct Device {
    healthy: bool,
    /// Whether runs may use several cores.
    elastic: bool,
    cores: usize,
    used: usize,
    in_flight: Arc<AtomicUsize>,
    /// Idle workers, the one that was busy last on top: its caches are warm.
    idle: Vec<WorkerIndex>,
    /// Runs of traffic that have begun while background work waited.
    passed_over: u32,
}

#[derive(Debug)]
struct Worker {
    device: usize,
    run: Option<Run>,
    /// Another has taken its place on the device, because its run does not end.
    replaced: bool,
}

/// All devices and all workers.
#[derive(Debug)]
pub(super) struct Devices {
    devices: Vec<Device>,
    workers: Vec<Worker>,
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
            idle: Vec::new(),
            passed_over: 0,
        };
        let workers = devices.iter().enumerate().flat_map(|(device, &(count, _))| {
            std::iter::repeat_with(move || Worker { device, run: None, replaced: false }).take(count)
        });
        Self { devices: devices.iter().map(device).collect(), workers: workers.collect() }
    }

    pub(super) fn is_healthy(&self, device: usize) -> bool {
        self.devices[device].healthy
    }

    pub(super) fn is_processor(&self, device: usize) -> bool {
        self.devices[device].elastic
    }

    pub(super) fn fail(&mut self, device: usize) {
        self.devices[device].healthy = false;
    }

    /// A worker has nothing to do; on which device.
    pub(super) fn ready(&mut self, worker: WorkerIndex) -> usize {
        let device = self.workers[worker].device;
        self.devices[device].idle.push(worker);
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

    pub(super) fn in_flight(&self, device: usize) -> usize {
        self.devices[device].in_flight.load(Ordering::Relaxed)
    }

    /// When the last run of the model on the device has begun, of those that are on.
    pub(super) fn last_begun(&self, device: usize, model: ModelKey) -> Option<Instant> {
        let here = self.workers.iter().filter(|worker| worker.device == device && !worker.replaced);
        let runs = here.filter_map(|worker| worker.run.as_ref()).filter(|run| run.model == model);
        runs.map(|run| run.began).max()
    }

    /// Runs that are on the device and expected to end.
    pub(super) fn runs(&self, device: usize) -> usize {
        let here = |worker: &&Worker| worker.device == device && worker.run.is_some() && !worker.replaced;
        self.workers.iter().filter(here).count()
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
        let Worker { device, run, replaced } = &mut self.workers[worker];
        let mut run = run.take()?;
        run.replaced = std::mem::take(replaced);
        if !run.replaced {
            self.devices[*device].used -= run.cores;
        }
        Some((*device, run))
    }

    /// Another worker takes the place of one whose run does not end: its index and device.
    pub(super) fn replace(&mut self, worker: WorkerIndex) -> Option<(WorkerIndex, usize)> {
        let Worker { device, run, replaced } = &mut self.workers[worker];
        let run = run.as_ref().filter(|_| !*replaced)?;
        *replaced = true;
        let device = *device;
        self.devices[device].used -= run.cores;
        self.workers.push(Worker { device, run: None, replaced: false });
        Some((self.workers.len() - 1, device))
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
            cores: device.cores,
            cores_used: device.used,
        };
        self.devices.iter().map(load).collect()
    }
}
