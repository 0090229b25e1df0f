//! What a model's configuration says to the scheduler.

use std::time::Duration;

use sconce_repository::{ModelConfig, OnTimeout, QueuePolicy, Queueing};

use super::queue::Level;

/// What a model's runs are to those of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Somebody waits for the answers.
    Traffic,
    /// Nobody does yet: it gives way to traffic.
    Background,
}

/// Where a model may run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Index of the device.
    pub device: usize,
    /// How many of the model's runs at once.
    pub limit: usize,
}

/// How a model is scheduled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What its runs are to those of others.
    pub class: Class,
    /// Where it may run.
    pub placements: Vec<Placement>,
    /// Whether the placements are what its configuration says, and not what the server thinks best.
    pub placed: bool,
    /// How requests wait, by priority, the highest first; never empty.
    pub levels: Vec<Level>,
    /// The priority, from 0, of requests that name none.
    pub default_priority: usize,
    /// The largest batch, in rows; 1 where every request runs by itself.
    pub max_rows: usize,
    /// How long the oldest request may wait for a batch to grow.
    pub max_delay: Duration,
    /// Sizes that are run at once when they are reached; ascending.
    pub preferred: Vec<usize>,
    /// Waits for company while that pays and nobody takes longer than this.
    pub latency_target: Option<Duration>,
    /// How many threads a run uses, where the configuration says so.
    pub threads: Option<usize>,
    /// Its share of a device beside others.
    pub weight: u32,
}

impl Policy {
    /// What this configuration says; where it says nothing of the length of the queue, `limit` holds.
    pub fn new(config: &ModelConfig, placements: Vec<Placement>, limit: usize) -> Self {
        let batching = config.batching.clone().unwrap_or_default();
        let joins = config.batching.is_some() && config.max_batch_size > 0;
        // Where nothing is said, what a request says of itself holds.
        let silent = config.queue == Queueing::default();
        let level = |policy: &QueuePolicy| Level {
            limit: policy.max_size.map_or(limit, |size| size.get() as usize),
            timeout: policy.timeout,
            delays: policy.on_timeout == OnTimeout::Delay,
            own_timeout: policy.allow_timeout_override || silent,
        };
        Self {
            class: Class::Traffic,
            placements,
            placed: !config.instances.is_empty(),
            levels: config.queue.levels.iter().map(level).collect(),
            default_priority: config.queue.default_priority.get() as usize - 1,
            max_rows: if joins { config.max_batch_size as usize } else { 1 },
            max_delay: batching.max_delay,
            preferred: batching.preferred_sizes.iter().map(|size| *size as usize).collect(),
            latency_target: batching.latency_target,
            threads: config.threads.map(|threads| threads.get() as usize),
            weight: config.weight.get(),
        }
    }

    /// Every request runs by itself, and waits for no company.
    pub(super) fn never_join(&mut self) {
        self.max_rows = 1;
        self.max_delay = Duration::ZERO;
        self.preferred.clear();
        self.latency_target = None;
    }

    /// Of runs that nobody waits for yet, one at a time, each request by itself on one thread unless it
    /// asks for more.
    pub fn background(device: usize) -> Self {
        Self {
            class: Class::Background,
            placements: vec![Placement { device, limit: 1 }],
            placed: true,
            levels: vec![Level { limit: 1, timeout: None, delays: false, own_timeout: false }],
            default_priority: 0,
            max_rows: 1,
            max_delay: Duration::ZERO,
            preferred: Vec::new(),
            latency_target: None,
            threads: Some(1),
            weight: 1,
        }
    }
}
