//! Where generations go on: each on the device on which it began, because its states are there.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use sconce_repository::{Batching, ModelConfig, QueuePolicy, Queueing};

use crate::{
    model::QUEUE_LIMIT,
    pool::{Pool, Registration},
    scheduler::{Placement, Policy},
};

/// A device, and the queues of both methods there.
#[derive(Debug)]
pub(super) struct Lane {
    /// That of the version, where it is on one device only.
    pub(super) start: Arc<Registration>,
    pub(super) step: Registration,
    /// Requests that are being answered here.
    pub(super) going_on: AtomicUsize,
}

/// A lane for each device.
pub(super) fn new(
    config: &ModelConfig,
    placements: &[Placement],
    own: &Arc<Registration>,
    pool: &Pool,
) -> Vec<Lane> {
    // Who has begun waits no less than he has to, and is refused no more.
    let levels = config.queue.levels.iter().map(|_| QueuePolicy::default()).collect();
    let queue = Queueing { levels, ..config.queue.clone() };
    // Company is there already: a step waits for nobody.
    let batching = config
        .batching
        .as_ref()
        .map(|batching| Batching { allowed_sizes: batching.allowed_sizes.clone(), ..Batching::default() });
    let of_steps = ModelConfig { queue, batching, ..config.clone() };
    let register = |config, placement: &Placement| {
        pool.register(Policy::new(config, vec![placement.clone()], QUEUE_LIMIT))
    };
    let lane = |placement| Lane {
        start: match placements {
            [_] => Arc::clone(own),
            _ => Arc::new(register(config, placement)),
        },
        step: register(&of_steps, placement),
        going_on: AtomicUsize::new(0),
    };
    placements.iter().map(lane).collect()
}

/// The lane where the fewest go on, of those where anything runs if there are any.
pub(super) fn emptiest(lanes: &[Lane]) -> usize {
    let busy = |index: &usize| {
        let lane = &lanes[*index];
        (
            lanes.len() > 1 && (lane.step.refuses() || lane.start.refuses()),
            lane.going_on.load(Ordering::Acquire),
        )
    };
    (0..lanes.len()).min_by_key(busy).unwrap_or(0)
}
