//! How requests wait, and how they are joined into batches.

use std::{num::NonZeroU32, time::Duration};

use schemars::JsonSchema;
use serde::Deserialize;

/// How requests of a model that has a batch dimension are run together.
///
/// By default a worker that becomes free takes what waits, as many as pay; nothing waits for company.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batching {
    /// How long the oldest request may wait for a batch to grow; zero runs what is there. Ends as soon as
    /// a preferred size is reached.
    pub max_delay: Duration,
    /// Sizes, in rows, that are worth waiting for and are run at once when reached; ascending, each within
    /// the model's largest batch. Without them the largest batch is what a delayed batch waits for.
    pub preferred_sizes: Vec<u32>,
    /// Whether answers leave in the order in which their requests came.
    pub preserve_ordering: bool,
    /// The sizes, in rows, that the model is run with; smaller batches are filled up with rows of zeros,
    /// which nobody gets an answer for. Ascending, the last is the model's largest batch; empty allows
    /// every size.
    pub allowed_sizes: Vec<u32>,
    /// Waits for company as long as that raises throughput and no request is expected to take longer than
    /// this; the time of a run is measured.
    pub latency_target: Option<Duration>,
}

/// How requests of a model wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queueing {
    /// A policy for each priority, the highest first: that of priority 1. Never empty; one where there
    /// are no priorities.
    pub levels: Vec<QueuePolicy>,
    /// The priority, from 1, of a request that names none.
    pub default_priority: NonZeroU32,
}

impl Default for Queueing {
    fn default() -> Self {
        Self { levels: vec![QueuePolicy::default()], default_priority: NonZeroU32::MIN }
    }
}

/// How requests of one priority wait.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueuePolicy {
    /// How many may wait; `None` leaves it to the server, which has a bound too.
    pub max_size: Option<NonZeroU32>,
    /// How long one may wait; `None` for as long as its caller does.
    pub timeout: Option<Duration>,
    /// What becomes of a request that has waited that long.
    pub on_timeout: OnTimeout,
    /// Whether a request may state a timeout of its own.
    pub allow_timeout_override: bool,
}

/// What becomes of a request that has waited as long as it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// It is refused.
    #[default]
    Reject,
    /// It waits on, behind those of its priority that have not waited so long.
    Delay,
}
