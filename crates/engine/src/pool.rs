//! The threads that run models: one pool of workers per device, made once, lent to all models.
//!
//! Loading and unloading create and destroy no threads. A worker that finishes asks the scheduler
//! itself for its next batch; only an idle one has to be woken.
//!
//! - `worker`: what a worker does.
//! - `registration`: a version that the scheduler knows.
//! - `clock`: the thread that lets time pass for the scheduler, and finds runs that do not end.

mod clock;
#[cfg(test)]
mod hanging;
mod registration;
mod worker;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use clock::Clock;
pub(crate) use registration::Serving;
pub use registration::{ModelLoad, Registration};
use sconce_repository::Version;
use tracing::error;
use worker::Slot;
pub use worker::{RunStatus, WorkerStatus};

pub use crate::scheduler::Stuck;
use crate::{
    Error,
    backend::{Backend, Device, DeviceMemory},
    observe::{Nobody, Observer},
    scheduler::{DeviceLoad, Dispatch, ModelKey, Policy, Scheduler, most_workers},
    stats::{Stage, Stats},
};
pub use crate::{executable::Executable, job::Job};

/// Workers per GPU: one computes while another gathers and scatters.
const WORKERS_PER_GPU: usize = 2;

/// What a pool may use.
#[derive(Clone, Copy, Debug)]
pub struct PoolSettings {
    /// Workers of the CPU.
    pub cpu_workers: usize,
    /// Cores that they share.
    pub cores: usize,
    /// Bytes of all requests that wait.
    pub queued_bytes: usize,
    /// A run that takes longer is not expected to end.
    pub hung_after: Duration,
}

impl PoolSettings {
    /// For so many cores, with a worker for each.
    pub fn new(cores: usize) -> Self {
        Self { cpu_workers: cores, cores, queued_bytes: 1 << 31, hung_after: Duration::from_secs(60) }
    }
}

/// Who is told what happens, beside those who asked for it.
#[derive(Clone, Debug)]
pub struct Watch {
    /// What is counted.
    pub stats: Arc<Stats>,
    /// Who traces.
    pub observer: Arc<dyn Observer>,
}

impl Default for Watch {
    fn default() -> Self {
        Self { stats: Arc::default(), observer: Arc::new(Nobody) }
    }
}

/// All workers of all devices and the scheduler that they share. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

/// What a device is doing.
#[derive(Clone, Debug)]
pub struct DeviceStatus {
    /// Which it is.
    pub device: Device,
    /// Whether it can run anything.
    pub healthy: bool,
    /// Requests of all models that are on it.
    pub in_flight: usize,
    /// Its cores, where it is a processor.
    pub cores: Option<usize>,
    /// How many of them runs use.
    pub cores_used: usize,
    /// Its workers.
    pub workers: Vec<WorkerStatus>,
}

/// What the pool's threads and handles share.
pub(crate) struct Shared {
    /// Held for a few instructions at a time: no call into a backend, no allocation of tensors.
    scheduler: Mutex<Scheduler<Job>>,
    backend: Arc<dyn Backend>,
    devices: Vec<Device>,
    settings: PoolSettings,
    watch: Watch,
    /// One for each worker, and for those that may have to take the place of others.
    slots: Vec<Slot>,
    clock: Clock,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("devices", &self.devices).finish_non_exhaustive()
    }
}

/// Panics of a model are caught before they reach a lock, so a poisoned one holds good data.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Starts the workers of every device that the backend found: those of the settings for the CPU, two
    /// per GPU. They live as long as the process.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(backend: &Arc<dyn Backend>, settings: PoolSettings) -> std::io::Result<Self> {
        Self::start_watched(backend, settings, Watch::default())
    }

    /// The same, and tells these what happens.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start_watched(
        backend: &Arc<dyn Backend>,
        settings: PoolSettings,
        watch: Watch,
    ) -> std::io::Result<Self> {
        let settings = PoolSettings {
            cpu_workers: settings.cpu_workers.max(1),
            cores: settings.cores.max(1),
            ..settings
        };
        let devices = backend.devices();
        let counts: Vec<(usize, Option<usize>)> = devices
            .iter()
            .map(|device| match device {
                Device::Cpu => (settings.cpu_workers, Some(settings.cores)),
                Device::Gpu(_) => (WORKERS_PER_GPU, None),
            })
            .collect();
        let workers: usize = counts.iter().map(|(workers, _)| workers).sum();
        let shared = Arc::new(Shared {
            scheduler: Mutex::new(Scheduler::new(&counts, settings.queued_bytes)),
            backend: Arc::clone(backend),
            devices,
            settings,
            watch,
            slots: (0..most_workers(workers)).map(|_| Slot::default()).collect(),
            clock: Clock::default(),
        });
        let mut worker = 0;
        for (device, (count, _)) in counts.iter().enumerate() {
            for _ in 0..*count {
                shared.start_worker(worker, device)?;
                worker += 1;
            }
        }
        shared.start_clock()?;
        Ok(Self { shared })
    }

    /// The devices, as the placements name them by index.
    pub fn devices(&self) -> &[Device] {
        &self.shared.devices
    }

    /// What is counted.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.shared.watch.stats
    }

    /// Who traces.
    pub fn observer(&self) -> &dyn Observer {
        &*self.shared.watch.observer
    }

    /// Memory of a device, where it has its own.
    pub fn memory(&self, device: Device) -> Option<DeviceMemory> {
        self.shared.backend.memory(device)
    }

    /// Bytes of requests that wait, and how many may, over all models.
    pub fn queued_bytes(&self) -> (usize, usize) {
        (lock(&self.shared.scheduler).queued_bytes(), self.shared.settings.queued_bytes)
    }

    /// How many workers the device has: as many runs of one model are worth having at once.
    pub fn workers(&self, device: usize) -> usize {
        match self.shared.devices[device] {
            Device::Cpu => self.shared.settings.cpu_workers,
            Device::Gpu(_) => WORKERS_PER_GPU,
        }
    }

    /// How many threads a run on the device may use.
    pub fn cores(&self, device: usize) -> usize {
        match self.shared.devices[device] {
            Device::Cpu => self.shared.settings.cores,
            Device::Gpu(_) => 1,
        }
    }

    /// Makes a version known to the scheduler, until the registration is dropped.
    pub fn register(&self, policy: Policy) -> Registration {
        let key = lock(&self.shared.scheduler).add_model(policy);
        Registration::new(self.clone(), key)
    }

    /// Takes out of all queues what has expired or lost its caller, so that its memory is free.
    pub fn sweep(&self) {
        self.shared.schedule(Scheduler::sweep);
    }

    /// Answers at once all that waits or runs, because the server goes away: how many requests those are.
    pub fn abandon(&self) -> usize {
        let queued = self.shared.schedule(|scheduler, _| scheduler.take_all());
        let running = self.shared.slots.iter().filter_map(|slot| slot.unanswered(|_| true));
        let running: Vec<Job> = running.flat_map(|jobs| jobs.take()).collect();
        let mut count = 0;
        for (jobs, stage) in [(queued, Stage::Queued), (running, Stage::Running)] {
            for job in jobs {
                count += job.waiting();
                job.not_ready("the server is shutting down and had no more time to answer", stage);
            }
        }
        count
    }

    /// Whether models can be run: the CPU can, or a GPU where there are any, and not all of its workers hang.
    pub fn is_alive(&self) -> bool {
        let load = lock(&self.shared.scheduler).load();
        let gpus = self.shared.devices.iter().any(|device| matches!(device, Device::Gpu(_)));
        let counts = |device: &Device| !gpus || matches!(device, Device::Gpu(_));
        self.shared
            .devices
            .iter()
            .zip(load)
            .any(|(device, load)| load.healthy && load.workers > 0 && counts(device))
    }

    /// The versions that answer nothing any more.
    pub fn stuck(&self) -> Vec<ModelKey> {
        lock(&self.shared.scheduler).stuck()
    }

    /// What every device is doing.
    pub fn status(&self) -> Vec<DeviceStatus> {
        let load = lock(&self.shared.scheduler).load();
        let status = |(index, load): (usize, DeviceLoad)| {
            let device = self.shared.devices[index];
            DeviceStatus {
                device,
                healthy: load.healthy,
                in_flight: load.in_flight,
                cores: matches!(device, Device::Cpu).then_some(load.cores),
                cores_used: load.cores_used,
                workers: self.shared.slots.iter().filter_map(|slot| slot.status(index)).collect(),
            }
        };
        load.into_iter().enumerate().map(status).collect()
    }

    /// The runs of a version that is in no table: the scheduler forgets a model when it is unloaded, the
    /// workers do not before its runs have ended.
    pub fn runs_left(&self, model: &str, version: Version) -> ModelLoad {
        let runs = self.shared.slots.iter().filter_map(Slot::run);
        let own = runs.filter(|run| &*run.model == model && run.version == version);
        let none = ModelLoad { queued: 0, queued_bytes: 0, running: 0, hung: 0 };
        own.fold(none, |load, run| ModelLoad {
            running: load.running + 1,
            hung: load.hung + usize::from(run.hung),
            ..load
        })
    }

    /// Until so many requests wait.
    #[cfg(test)]
    pub(crate) fn wait_queued(&self, count: usize) {
        while lock(&self.shared.scheduler).waiting() < count {
            std::thread::yield_now();
        }
    }

    /// Until every worker has nothing to do.
    #[cfg(test)]
    pub(crate) fn wait_idle(&self) {
        while lock(&self.shared.scheduler).idle() < self.shared.slots.len() / 2 {
            std::thread::yield_now();
        }
    }
}

impl Shared {
    /// Who traces.
    pub(crate) fn observer(&self) -> &dyn Observer {
        &*self.watch.observer
    }

    fn hand_out(&self, dispatches: impl IntoIterator<Item = Dispatch<Job>>) {
        for dispatch in dispatches {
            self.slots[dispatch.worker].put(dispatch);
        }
    }

    /// One step of the scheduler. What died in its queues is answered and freed after its lock.
    fn schedule<T>(&self, step: impl FnOnce(&mut Scheduler<Job>, Instant) -> T) -> T {
        let (outcome, dead, wake) = {
            let mut scheduler = lock(&self.scheduler);
            (step(&mut scheduler, Instant::now()), scheduler.take_dead(), scheduler.wake())
        };
        for (job, fate) in dead {
            job.bury(fate);
        }
        self.clock.set(wake);
        outcome
    }

    /// Runs each request of a batch that failed by itself.
    pub(crate) fn again(&self, model: ModelKey, jobs: Vec<Job>) {
        let jobs = jobs.into_iter().map(Job::anew).collect();
        match self.schedule(|scheduler, now| scheduler.again(model, jobs, now)) {
            Ok(dispatches) => self.hand_out(dispatches),
            Err(jobs) => jobs.into_iter().for_each(|job| job.refuse(Stage::Queued)),
        }
    }

    /// A model's requests cannot be joined after all.
    pub(crate) fn never_join(&self, model: ModelKey) {
        lock(&self.scheduler).never_join(model);
    }

    /// A device can run nothing any more: what waits for it alone is refused, the rest goes on elsewhere.
    pub(crate) fn fail_device(&self, device: usize, message: &str) {
        let device_name = self.devices[device];
        error!(device = %device_name, "the device has failed and is not used any more: {message}");
        for job in self.schedule(|scheduler, _| scheduler.fail_device(device)) {
            let (model, message) = (job.executable.name.to_string(), message.to_owned());
            job.fail(Error::DeviceLost { model, message }, Stage::Queued);
        }
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
