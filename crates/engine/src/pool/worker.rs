//! What a worker does: waits for a batch, joins it, runs it, asks for the next.

use std::{
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use sconce_repository::Version;
use tracing::{error, field::display, trace};

use super::{Executable, Job, Shared, lock};
use crate::{
    backend::WorkerContext,
    batch,
    reply::{Done, Unanswered},
    scheduler::{Dispatch, ModelKey, Work, WorkerIndex},
    stats::nanos,
};

/// What others see of a worker.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Where it is handed its next batch while it is idle.
    next: Mutex<Option<Dispatch<Job>>>,
    filled: Condvar,
    /// Its device and name, once it has been started.
    name: OnceLock<(usize, String)>,
    current: Mutex<Option<Current>>,
    runs: AtomicU64,
    /// Nanoseconds of those that have ended.
    busy: AtomicU64,
}

/// A run that has begun.
#[derive(Clone, Debug)]
pub(super) struct Current {
    pub(super) executable: Arc<Executable>,
    pub(super) model: ModelKey,
    pub(super) since: Instant,
    /// It is not expected to end.
    pub(super) hung: bool,
    pub(super) jobs: Arc<Unanswered>,
}

/// What a worker is doing.
#[derive(Clone, Debug)]
pub struct WorkerStatus {
    /// The name of its thread.
    pub name: String,
    /// How many runs it has ended.
    pub runs: u64,
    /// How long it has been running something, the run that it is on not counted in.
    pub busy: Duration,
    /// The run that it is on.
    pub running: Option<RunStatus>,
}

/// A run that has begun.
#[derive(Clone, Debug)]
pub struct RunStatus {
    /// The model.
    pub model: Arc<str>,
    /// Its version.
    pub version: Version,
    /// How long it has been running.
    pub time: Duration,
    /// It has taken so long that it is not expected to end.
    pub hung: bool,
}

impl Slot {
    pub(super) fn put(&self, dispatch: Dispatch<Job>) {
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

    /// Of a worker of this device.
    pub(super) fn status(&self, device: usize) -> Option<WorkerStatus> {
        let (_, name) = self.name.get().filter(|(on, _)| *on == device)?;
        Some(WorkerStatus {
            name: name.clone(),
            runs: self.runs.load(Ordering::Relaxed),
            busy: Duration::from_nanos(self.busy.load(Ordering::Relaxed)),
            running: self.run(),
        })
    }

    /// The run that it is on.
    pub(super) fn run(&self) -> Option<RunStatus> {
        lock(&self.current).as_ref().map(|current| RunStatus {
            model: Arc::clone(&current.executable.name),
            version: current.executable.version,
            time: current.since.elapsed(),
            hung: current.hung,
        })
    }

    /// The requests of the run that it is on, if `which` says so.
    pub(super) fn unanswered(&self, which: impl Fn(&Current) -> bool) -> Option<Arc<Unanswered>> {
        let current = lock(&self.current);
        current.as_ref().filter(|current| which(current)).map(|current| Arc::clone(&current.jobs))
    }

    /// The run that it is on, if that has taken so long and nobody has seen it yet; it is seen now.
    pub(super) fn find_hung(&self, after: Duration) -> Option<(String, Current)> {
        let mut current = lock(&self.current);
        let run = current.as_mut().filter(|run| !run.hung && run.since.elapsed() >= after)?;
        run.hung = true;
        let name = self.name.get().map(|(_, name)| name.clone()).unwrap_or_default();
        Some((name, run.clone()))
    }
}

impl Shared {
    /// A thread for a worker that the scheduler knows by this index.
    pub(super) fn start_worker(self: &Arc<Self>, worker: WorkerIndex, device: usize) -> std::io::Result<()> {
        let number =
            self.slots.iter().filter(|slot| slot.name.get().is_some_and(|(on, _)| *on == device)).count();
        let name = format!("{}-{number}", self.devices[device]);
        let shared = Arc::clone(self);
        thread::Builder::new().name(name.clone()).spawn(move || {
            let mut context = shared.backend.enter_worker(shared.devices[device]);
            shared.work(worker, &mut *context);
        })?;
        self.slots[worker].name.get_or_init(|| (device, name));
        Ok(())
    }

    fn work(self: &Arc<Self>, worker: WorkerIndex, context: &mut dyn WorkerContext) {
        let failed = Arc::new(AtomicBool::new(false));
        let mut dispatches = self.schedule(|scheduler, now| scheduler.worker_ready(worker, now));
        loop {
            let own = dispatches.iter().position(|dispatch| dispatch.worker == worker);
            let own = own.map(|index| dispatches.swap_remove(index));
            self.hand_out(dispatches);
            let dispatch = own.unwrap_or_else(|| self.slots[worker].take());
            dispatches = self.turn(dispatch, context, &failed);
        }
    }

    /// Makes a run on the thread that brought its request, in the place of the worker, who sleeps on: waking
    /// him, and being woken by him, would take longer than the run. What comes after it is for workers.
    pub(super) fn run_here(self: &Arc<Self>, dispatch: Dispatch<Job>) {
        thread_local! {
            /// Of this thread, for the pool at that address.
            static GUEST: RefCell<Option<(usize, Box<dyn WorkerContext>)>> = const { RefCell::new(None) };
        }
        let pool = Arc::as_ptr(self) as usize;
        let known = GUEST.take().filter(|(of, _)| *of == pool);
        let (_, mut context) =
            known.unwrap_or_else(|| (pool, self.backend.enter_worker(self.devices[dispatch.device])));
        let next = self.turn(dispatch, &mut *context, &Arc::default());
        GUEST.set(Some((pool, context)));
        self.hand_out(next);
    }

    /// A run and what follows from it: the next runs, of any worker.
    fn turn(
        self: &Arc<Self>,
        dispatch: Dispatch<Job>,
        context: &mut dyn WorkerContext,
        failed: &Arc<AtomicBool>,
    ) -> Vec<Dispatch<Job>> {
        let worker = dispatch.worker;
        failed.store(false, Ordering::Relaxed);
        let started = Instant::now();
        // A runner that panicked may be in any state and is not used again; the worker goes on, and
        // whoever waited for the run learns from its dropped reply.
        let run = AssertUnwindSafe(|| self.run(dispatch, started, context, failed));
        let panicked = catch_unwind(run).is_err();
        let slot = &self.slots[worker];
        slot.runs.fetch_add(1, Ordering::Relaxed);
        let ended = lock(&slot.current).take();
        if panicked {
            let of = ended.as_ref().map(|current| &current.executable);
            let (model, version) = (of.map(|of| display(&of.name)), of.map(|of| display(of.version)));
            error!(model, version, "a run panicked; its callers got INTERNAL");
            failed.store(true, Ordering::Relaxed);
        }
        if let Some(Current { executable, hung: true, since, .. }) = ended {
            error!(model = %executable.name, version = %executable.version,
                "a run that was not expected to end has ended after {} s", since.elapsed().as_secs());
        }
        let took = started.elapsed();
        slot.busy.fetch_add(nanos(took), Ordering::Relaxed);
        let took = (!failed.load(Ordering::Relaxed)).then_some(took);
        self.schedule(|scheduler, now| scheduler.worker_free(worker, took, now))
    }

    fn run(
        self: &Arc<Self>,
        dispatch: Dispatch<Job>,
        started: Instant,
        context: &mut dyn WorkerContext,
        failed: &Arc<AtomicBool>,
    ) {
        let Dispatch { worker, device, model, mut batch, in_flight, threads, .. } = dispatch;
        let Some(executable) = batch.first().map(|job| Arc::clone(&job.executable)) else { return };
        context.set_threads(threads);
        let rows: Vec<usize> = batch.iter().map(Work::rows).collect();
        let sum = rows.iter().sum();
        let total = if batch.iter().all(Work::joins) { executable.padded(sum) } else { sum };
        let in_place = batch.len() == 1 && total == sum;
        let call = match &mut batch[..] {
            // One that runs by itself is used where it lies.
            [job] if in_place => std::mem::take(&mut job.call),
            jobs => {
                let calls: Vec<_> = jobs.iter().map(|job| &job.call).collect();
                batch::gather(&calls, &rows, total, &mut |bytes| context.host_buffer(bytes))
            }
        };
        trace!(model = %executable.name, worker, requests = batch.len(), rows = total, threads, "runs");
        let jobs = Unanswered::new(batch);
        *lock(&self.slots[worker].current) = Some(Current {
            executable: Arc::clone(&executable),
            model,
            since: started,
            hung: false,
            jobs: Arc::clone(&jobs),
        });
        let pool = Arc::clone(self);
        // Nothing was gathered where a request is used as it lies.
        let gathered = if in_place { started } else { Instant::now() };
        let (in_flight, failed) = (Some(in_flight), Arc::clone(failed));
        let lent = match executable.lend(device) {
            Some(Ok(lent)) => lent,
            Some(Err(error)) => {
                error!(model = %executable.name, "no runner could be made: {error}");
                return;
            }
            None => return,
        };
        lent.run(
            call,
            Done { jobs, total, model, device, worker, pool, in_flight, started, gathered, failed },
        );
    }
}
