//! The thread that lets time pass: it tells the scheduler when requests have waited long enough, and finds
//! runs that do not end.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tracing::error;

use super::{Shared, lock, worker::Current};
use crate::{
    scheduler::{Hang, Scheduler, Substitute},
    stats::Stage,
};

/// How often runs are looked at that may not end.
const LOOK: Duration = Duration::from_secs(1);

/// When the thread is to wake.
#[derive(Debug, Default)]
pub(super) struct Clock {
    wake: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Clock {
    /// Wakes the thread at this moment, if it would sleep longer. `None` costs nothing.
    pub(super) fn set(&self, wake: Option<Instant>) {
        let Some(at) = wake else { return };
        let mut wake = lock(&self.wake);
        if wake.is_none_or(|planned| at < planned) {
            *wake = Some(at);
            self.changed.notify_one();
        }
    }

    /// Sleeps until the moment that was set, or this one.
    fn sleep(&self, until: Instant) {
        let mut wake = lock(&self.wake);
        loop {
            let at = wake.map_or(until, |wake| wake.min(until));
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Whoever still waits says so again.
                *wake = None;
                return;
            }
            wake = self.changed.wait_timeout(wake, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    pub(super) fn start_clock(self: &Arc<Self>) -> std::io::Result<()> {
        let shared = Arc::clone(self);
        thread::Builder::new().name("clock".to_owned()).spawn(move || {
            let mut look = Instant::now() + LOOK;
            loop {
                shared.clock.sleep(look);
                let dispatches = shared.schedule(Scheduler::tick);
                shared.hand_out(dispatches);
                if look <= Instant::now() {
                    look = Instant::now() + LOOK;
                    shared.look_for_hung_runs();
                }
            }
        })?;
        Ok(())
    }

    /// Gives the place of a worker whose run does not end to another, so that the device is not lost.
    fn look_for_hung_runs(self: &Arc<Self>) {
        for (worker, slot) in self.slots.iter().enumerate() {
            let Some((name, Current { executable, since, jobs, .. })) =
                slot.find_hung(self.settings.hung_after)
            else {
                continue;
            };
            let seconds = self.settings.hung_after.as_secs();
            let (model, version) = (&executable.name, executable.version);
            error!(%model, %version, worker = name,
                "a run has not ended after {seconds} s; its thread cannot be stopped");
            // Nobody behind it is to wait for it.
            jobs.leave_order();
            let hang = self.schedule(|scheduler, now| scheduler.hangs(worker, since, now));
            let Some(Hang { substitute, dispatches, model_is_gone }) = hang else { continue };
            self.hand_out(dispatches);
            if model_is_gone {
                jobs.take().into_iter().for_each(|job| job.refuse(Stage::Running));
            }
            match substitute {
                Substitute::Known | Substitute::Unneeded => {}
                Substitute::New(new, device) => {
                    if let Err(why) = self.start_worker(new, device) {
                        error!("no thread could be started in its place: {why}");
                        self.schedule(|scheduler, _| scheduler.not_started(new));
                    }
                }
                Substitute::Nobody => error!(
                    "nobody takes the place of its worker, because as many have been replaced as there may be; restart the server"
                ),
            }
        }
    }
}
