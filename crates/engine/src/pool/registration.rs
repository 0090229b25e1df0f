//! A version that the scheduler knows, and what of it waits and runs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{Job, Pool, lock};
use crate::{
    scheduler::{Kind, ModelKey, Policy, Refusal, Stuck},
    stats::Stage,
};

/// A version that the scheduler knows. Dropping it refuses the requests that still wait.
#[derive(Debug)]
pub struct Registration {
    pool: Pool,
    key: ModelKey,
    /// How many live versions answer through it: more than one while a reconfigured one takes over.
    serving: AtomicUsize,
}

/// What a version is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelLoad {
    /// Requests that wait.
    pub queued: usize,
    /// Their bytes.
    pub queued_bytes: usize,
    /// Runs that are on workers.
    pub running: usize,
    /// How many of those are not expected to end.
    pub hung: usize,
}

impl ModelLoad {
    /// Both together.
    pub(crate) fn add(&mut self, other: Self) {
        self.queued += other.queued;
        self.queued_bytes += other.queued_bytes;
        self.running += other.running;
        self.hung += other.hung;
    }
}

impl Registration {
    pub(super) fn new(pool: Pool, key: ModelKey) -> Self {
        Self { pool, key, serving: AtomicUsize::new(0) }
    }

    /// Gives a request to an idle worker, or queues it; or runs it here and now, where that takes no longer
    /// than waking a worker.
    ///
    /// # Errors
    /// When there is no room for it or the version has been let go.
    pub fn submit(&self, job: Job) -> Result<(), Refusal> {
        self.offer(job, true).map_err(|refused| refused.1)
    }

    /// The same; the request comes back when it is refused, and runs here only if it may.
    pub(crate) fn offer(&self, job: Job, here: bool) -> Result<(), Box<(Job, Refusal)>> {
        let shared = &self.pool.shared;
        // Both are given out of the lock: a request may do much when it is dropped.
        match shared.schedule(|scheduler, now| scheduler.arrive(self.key, job, now).map_err(Box::new))? {
            Some(dispatch) if dispatch.here && here => shared.run_here(dispatch),
            dispatch => shared.hand_out(dispatch),
        }
        Ok(())
    }

    /// Gives requests to idle workers, or queues them, all at once; back come those for which there is no room.
    pub(crate) fn offer_together(&self, jobs: Vec<Job>) -> Vec<(Job, Refusal)> {
        let shared = &self.pool.shared;
        let (dispatches, refused) =
            shared.schedule(|scheduler, now| scheduler.arrive_together(self.key, jobs, now));
        shared.hand_out(dispatches);
        refused
    }

    /// Changes on the spot how it is scheduled; what may run now does.
    pub fn set_policy(&self, policy: &Policy) {
        let shared = &self.pool.shared;
        shared.hand_out(shared.schedule(|scheduler, now| scheduler.set_policy(self.key, policy, now)));
    }

    /// What a run of this kind has cost on a device.
    pub fn seed(&self, device: usize, kind: Kind, took: Duration) {
        lock(&self.pool.shared.scheduler).seed(self.key, device, kind, took);
    }

    /// Starts with what is known of the costs of another.
    pub fn inherit(&self, other: &Self) {
        lock(&self.pool.shared.scheduler).inherit(other.key, self.key);
    }

    /// What it is doing.
    pub fn load(&self) -> ModelLoad {
        let scheduler = lock(&self.pool.shared.scheduler);
        ModelLoad {
            queued: scheduler.queued(self.key),
            queued_bytes: scheduler.bytes_of(self.key),
            running: scheduler.running(self.key),
            hung: scheduler.hung(self.key),
        }
    }

    /// Whether it takes no request, whatever it is.
    pub(crate) fn refuses(&self) -> bool {
        lock(&self.pool.shared.scheduler).refuses(self.key).is_some()
    }

    /// Why it answers nothing any more, where that is so.
    pub fn stuck_by(&self) -> Option<Stuck> {
        lock(&self.pool.shared.scheduler).stuck_by(self.key)
    }

    /// The pool that it is registered with.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Refuses what waits and whatever comes; runs that have begun are finished, and nobody waits any more for
    /// those that hang.
    pub(super) fn close(&self) {
        let shared = &self.pool.shared;
        let left = lock(&shared.scheduler).remove_model(self.key);
        let hung = shared.slots.iter().filter_map(|slot| {
            slot.unanswered(|run| run.hung && run.model == self.key).map(|jobs| jobs.take())
        });
        left.into_iter().for_each(|job| job.refuse(Stage::Queued));
        hung.flatten().for_each(|job| job.refuse(Stage::Running));
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
