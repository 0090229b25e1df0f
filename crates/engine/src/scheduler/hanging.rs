//! Runs that are not expected to end, and models that are stuck because of them.

use std::time::Instant;

use super::{Dispatch, ModelKey, Scheduler, Substitute, Work, WorkerIndex};

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
        self.models.keys().copied().filter(|model| self.is_stuck(*model)).collect()
    }

    /// Whether every run that the model may have at once is on, and none of them is expected to end, or all
    /// workers of its devices hang: it answers nothing any more.
    pub fn is_stuck(&self, model: ModelKey) -> bool {
        let Some(state) = self.models.get(&model) else { return false };
        let mut places = state
            .policy
            .placements
            .iter()
            .zip(&state.usage)
            .filter(|(placement, _)| self.devices.is_healthy(placement.device) && placement.limit > 0)
            .peekable();
        places.peek().is_some()
            && places.all(|(placement, usage)| {
                usage.hung >= placement.limit || !self.devices.has_workers(placement.device)
            })
    }

    /// How many runs of the model are not expected to end.
    pub fn hung(&self, model: ModelKey) -> usize {
        self.models.get(&model).map_or(0, |state| state.usage.iter().map(|usage| usage.hung).sum())
    }
}

#[cfg(test)]
#[path = "hanging_tests.rs"]
mod tests;
