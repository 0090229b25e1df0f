//! The threads that run models: one pool of workers per device, made once, lent to all models.
//!
//! Loading and unloading create and destroy no threads. A worker that finishes asks the scheduler
//! itself for its next batch; only an idle one has to be woken.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tracing::error;

pub use crate::executable::Executable;
use crate::{
    Error,
    backend::{Backend, Device, WorkerContext},
    reply::{Done, Pending, Reply},
    scheduler::{Class, Dispatch, ModelKey, Placement, Refusal, Scheduler, Work, WorkerIndex},
    text::quote,
    value::Call,
};

/// Workers per GPU: one computes while another gathers and scatters.
const WORKERS_PER_GPU: usize = 2;

/// One request on its way to a worker.
#[derive(Debug)]
pub struct Job {
    /// What runs it.
    pub executable: Arc<Executable>,
    /// Its arguments.
    pub call: Call,
    /// Where the answer goes.
    pub reply: Reply,
    /// When the answer is worth nothing any more.
    pub deadline: Option<Instant>,
}

impl Job {
    /// Tells its caller that the version is gone.
    fn refuse(self) {
        let (model, version) = (self.executable.name.to_string(), self.executable.version.to_string());
        let why = "it was unloaded before it could answer".to_owned();
        self.reply.finish(Err(Error::NotReady { model, version, why }), Duration::ZERO);
    }
}

impl Work for Job {
    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
    fn is_cancelled(&self) -> bool {
        self.reply.is_closed()
    }
}

/// All workers of all devices and the scheduler that they share. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Held for a few instructions at a time: no call into a backend, no allocation of tensors.
    scheduler: Mutex<Scheduler<Job>>,
    devices: Vec<Device>,
    cpu_workers: usize,
    cores: usize,
    slots: Vec<Slot>,
}

/// Where an idle worker is handed its next batch.
#[derive(Debug, Default)]
struct Slot {
    next: Mutex<Option<Dispatch<Job>>>,
    filled: Condvar,
}

impl Slot {
    fn put(&self, dispatch: Dispatch<Job>) {
        *lock(&self.next) = Some(dispatch);
        self.filled.notify_one();
    }

    fn take(&self) -> Dispatch<Job> {
        let mut next = lock(&self.next);
        loop {
            if let Some(dispatch) = next.take() {
                return dispatch;
            }
            next = self.filled.wait(next).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Panics of a model are caught before they reach a lock, so a poisoned one holds good data.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Starts the workers of every device that the backend found: `cpu_workers` for the CPU, two per
    /// GPU. They live as long as the process, and share `cores` cores.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(backend: &Arc<dyn Backend>, cpu_workers: usize, cores: usize) -> std::io::Result<Self> {
        let devices = backend.devices();
        let counts: Vec<usize> = devices
            .iter()
            .map(|device| match device {
                Device::Cpu => cpu_workers.max(1),
                Device::Gpu(_) => WORKERS_PER_GPU,
            })
            .collect();
        let slots = (0..counts.iter().sum()).map(|_| Slot::default()).collect();
        let scheduler = Mutex::new(Scheduler::new(&counts));
        let (cpu_workers, cores) = (cpu_workers.max(1), cores.max(1));
        let shared = Arc::new(Shared { scheduler, devices, cpu_workers, cores, slots });
        let mut worker = 0;
        for (device, &count) in shared.devices.iter().zip(&counts) {
            for number in 0..count {
                let (shared, backend, device) = (Arc::clone(&shared), Arc::clone(backend), *device);
                thread::Builder::new()
                    .name(format!("{device}-{number}"))
                    .spawn(move || shared.work(worker, &mut *backend.enter_worker(device)))?;
                worker += 1;
            }
        }
        Ok(Self { shared })
    }

    /// The devices, as the placements name them by index.
    pub fn devices(&self) -> &[Device] {
        &self.shared.devices
    }

    /// How many workers the device has: as many runs of one model are worth having at once.
    pub fn workers(&self, device: usize) -> usize {
        match self.shared.devices[device] {
            Device::Cpu => self.shared.cpu_workers,
            Device::Gpu(_) => WORKERS_PER_GPU,
        }
    }

    /// Makes a version known to the scheduler, until the registration is dropped; at most `limit` of its
    /// requests wait.
    pub fn register(&self, executable: &Executable, limit: usize, class: Class) -> Registration {
        let key = lock(&self.shared.scheduler).add_model(executable.placements(), limit, class);
        Registration { pool: self.clone(), key, serving: AtomicUsize::new(0) }
    }

    /// Takes out of all queues what has expired or lost its caller, so that its memory is free.
    pub fn sweep(&self) {
        self.shared.schedule(Scheduler::sweep);
    }

    /// Until so many requests wait.
    #[cfg(test)]
    pub(crate) fn wait_queued(&self, count: usize) {
        while lock(&self.shared.scheduler).waiting() < count {
            thread::yield_now();
        }
    }

    /// Until every worker has nothing to do.
    #[cfg(test)]
    pub(crate) fn wait_idle(&self) {
        while lock(&self.shared.scheduler).idle() < self.shared.slots.len() {
            thread::yield_now();
        }
    }
}

/// A version that the scheduler knows. Dropping it refuses the requests that still wait.
#[derive(Debug)]
pub struct Registration {
    pool: Pool,
    key: ModelKey,
    /// How many live versions answer through it: more than one while a reconfigured one takes over.
    serving: AtomicUsize,
}

impl Registration {
    /// Gives a request to an idle worker, or queues it.
    ///
    /// # Errors
    /// When the queue is full or the version has been let go.
    pub fn submit(&self, job: Job) -> Result<(), Refusal> {
        let shared = &self.pool.shared;
        match shared.schedule(|scheduler, now| scheduler.arrive(self.key, job, now)) {
            Ok(dispatch) => shared.hand_out(dispatch),
            Err((_job, refusal)) => return Err(refusal),
        }
        Ok(())
    }

    /// Changes on the spot how many of its runs at once; what may run now does.
    pub fn set_placements(&self, placements: &[Placement]) {
        let shared = &self.pool.shared;
        shared
            .hand_out(shared.schedule(|scheduler, now| scheduler.set_placements(self.key, placements, now)));
    }

    /// The pool that it is registered with.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Refuses what waits and whatever comes; runs that have begun are finished.
    fn close(&self) {
        let left = lock(&self.pool.shared.scheduler).remove_model(self.key);
        left.into_iter().for_each(Job::refuse);
    }

    /// The same, unless a version that has not been retired answers through it.
    pub(crate) fn close_unless_serving(&self) {
        if self.serving.load(Ordering::Acquire) == 0 {
            self.close();
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.close();
    }
}

/// A live version that answers through a registration, until it is dropped.
#[derive(Debug)]
pub(crate) struct Serving(Arc<Registration>);

impl Serving {
    pub(crate) fn new(registration: &Arc<Registration>) -> Self {
        registration.serving.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(registration))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.serving.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Shared {
    fn hand_out(&self, dispatches: impl IntoIterator<Item = Dispatch<Job>>) {
        for dispatch in dispatches {
            self.slots[dispatch.worker].put(dispatch);
        }
    }

    /// One step of the scheduler. What died in its queues is freed after its lock.
    fn schedule<T>(&self, step: impl FnOnce(&mut Scheduler<Job>, Instant) -> T) -> T {
        let (outcome, dead) = {
            let mut scheduler = lock(&self.scheduler);
            (step(&mut scheduler, Instant::now()), scheduler.take_dead())
        };
        drop(dead);
        outcome
    }

    fn work(&self, worker: WorkerIndex, context: &mut dyn WorkerContext) {
        let mut next = self.schedule(|scheduler, now| scheduler.worker_ready(worker, now));
        loop {
            let dispatch = next.take().unwrap_or_else(|| self.slots[worker].take());
            let model = dispatch.model;
            // A runner that panicked may be in any state and is not used again; the worker goes on, and
            // whoever waited for the run learns from its dropped reply.
            if catch_unwind(AssertUnwindSafe(|| self.run(dispatch, context))).is_err() {
                error!("a run panicked; its callers got INTERNAL");
            }
            next = self.schedule(|scheduler, now| scheduler.worker_free(worker, model, now));
        }
    }

    fn run(&self, dispatch: Dispatch<Job>, context: &mut dyn WorkerContext) {
        let Some(executable) = dispatch.batch.first().map(|job| Arc::clone(&job.executable)) else { return };
        // A run that is alone may use every core, runs side by side share them.
        let share = (self.cores / dispatch.concurrency.max(1)).max(1);
        context.set_threads(executable.threads.unwrap_or(share));

        let mut calls = Vec::with_capacity(dispatch.batch.len());
        let mut pending = Vec::with_capacity(dispatch.batch.len());
        for job in dispatch.batch {
            calls.push(job.call);
            pending.push(Pending { model: Arc::clone(&executable.name), reply: job.reply });
        }
        let lent = match executable.lend(dispatch.device) {
            Some(Ok(lent)) => lent,
            Some(Err(error)) => {
                error!(model = %quote(&executable.name), "no runner could be made: {error}");
                return;
            }
            None => return,
        };
        lent.run(calls, Done { pending, in_flight: dispatch.in_flight, started: Instant::now() });
    }
}
