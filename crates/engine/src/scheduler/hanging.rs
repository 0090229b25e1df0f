//! Runs that are not expected to end, and models that are stuck because of them.

use std::time::Instant;

use super::{Dispatch, ModelKey, Placement, Scheduler, Substitute, Usage, Work, WorkerIndex};

/// What follows from a run that is not expected to end.
#[derive(Debug)]
pub struct Hang<W> {
    /// Who takes the place of its worker.
    pub substitute: Substitute,
    /// What can begin now.
    pub dispatches: Vec<Dispatch<W>>,
    /// The model has been removed: nobody needs the run any more.
    pub model_is_gone: bool,
}

/// Why a model answers nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// Every run that it may have at once is on, and none of them is expected to end.
    Runs,
    /// No worker is left on its devices: there are as many runs that hang as there may be.
    Workers,
}

impl Stuck {
    /// What to tell callers and operators, after the name of the version.
    pub fn why(self) -> &'static str {
        match self {
            Self::Runs => {
                "all of the runs that it may have at once hang: they take longer than --hung-run-timeout"
            }
            Self::Workers => {
                "no worker is left to run it: runs that hang, perhaps of other models, hold them all (see /models); \
                 restart the server"
            }
        }
    }
}

impl<W: Work> Scheduler<W> {
    /// The run of this worker, which has been seen running at `seen`, is not expected to end: another worker
    /// takes its place on the device. `None` when that run has ended, or was told of before.
    pub fn hangs(&mut self, worker: WorkerIndex, seen: Instant, now: Instant) -> Option<Hang<W>> {
        let (model, device, substitute) = self.devices.hangs(worker, seen)?;
        if let Some(state) = self.models.get_mut(&model) {
            let index = state.policy.placements.iter().position(|place| place.device == device);
            if let Some(index) = index {
                state.usage[index].hung += 1;
            }
        }
        self.refuse_stuck();
        let model_is_gone = !self.models.contains_key(&model);
        // An old one may be able to begin at once.
        Some(Hang { substitute, dispatches: self.fill(device, now), model_is_gone })
    }

    /// The substitute that was asked for could not be started: whoever comes back takes the place.
    pub fn not_started(&mut self, worker: WorkerIndex) {
        self.devices.not_started(worker);
    }

    /// The models that are stuck.
    pub fn stuck(&self) -> Vec<ModelKey> {
        self.models.keys().copied().filter(|model| self.stuck_by(*model).is_some()).collect()
    }

    /// Why the model answers nothing any more, where that is so.
    pub fn stuck_by(&self, model: ModelKey) -> Option<Stuck> {
        let state = self.models.get(&model)?;
        let places = state.policy.placements.iter().zip(&state.usage);
        let mut places =
            places.filter(|(place, _)| self.devices.is_healthy(place.device) && place.limit > 0).peekable();
        let hangs = |(place, usage): &(&Placement, &Usage)| usage.hung >= place.limit;
        let is_left = |(place, _): &(&Placement, &Usage)| self.devices.has_workers(place.device);
        places.peek()?;
        if places.clone().all(|place| hangs(&place)) {
            return Some(Stuck::Runs);
        }
        places.all(|place| hangs(&place) || !is_left(&place)).then_some(Stuck::Workers)
    }

    /// How many runs of the model are not expected to end.
    pub fn hung(&self, model: ModelKey) -> usize {
        self.models.get(&model).map_or(0, |state| state.usage.iter().map(|usage| usage.hung).sum())
    }
}

#[cfg(test)]
#[path = "hanging_tests.rs"]
mod tests;
