//! What is told of requests, runs and loads to whoever watches: when each stage was, and in what company.

use std::{
    fmt,
    time::{Duration, Instant},
};

use sconce_repository::Version;

use crate::table::Step;

/// A place in a trace, as W3C Trace Context has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Which trace.
    pub trace_id: u128,
    /// Which span of it.
    pub span_id: u64,
}

/// When the stages of the run that answered a request were, and in what company it ran.
///
/// The stages follow each other: `arrived`, queue, `started`, gather, `gathered`, forward, `ran`, scatter, `scattered`.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// The request had come.
    pub arrived: Instant,
    /// A worker began with its batch.
    pub started: Instant,
    /// The batch was one call.
    pub gathered: Instant,
    /// The model had answered it.
    pub ran: Instant,
    /// The answer had been divided among the requests.
    pub scattered: Instant,
    /// How many requests were in the batch.
    pub requests: usize,
    /// How many rows were run, those that nobody asked for too.
    pub rows: usize,
    /// On which device, by its index in [`crate::pool::Pool::devices`].
    pub device: usize,
    /// By which worker, by its index over all devices.
    pub worker: usize,
}

impl Run {
    /// How long the request waited for a worker.
    pub fn queue(&self) -> Duration {
        self.started.saturating_duration_since(self.arrived)
    }

    /// How long the batch took to be joined to one call.
    pub fn gather(&self) -> Duration {
        between(self.started, self.gathered)
    }

    /// How long the model took.
    pub fn forward(&self) -> Duration {
        self.ran.saturating_duration_since(self.gathered)
    }

    /// How long the answer took to be divided.
    pub fn scatter(&self) -> Duration {
        between(self.ran, self.scattered)
    }
}

/// A request that ran alone was neither joined nor divided, and most are alone: that is seen faster than reckoned.
fn between(earlier: Instant, later: Instant) -> Duration {
    if earlier == later { Duration::ZERO } else { later.saturating_duration_since(earlier) }
}

/// A batch in which some requests are traced.
#[derive(Clone, Copy, Debug)]
pub struct BatchRun<'a> {
    /// The model's name.
    pub model: &'a str,
    /// Its version.
    pub version: Version,
    /// Its stages; `arrived` is that of the request that had waited longest.
    pub run: Run,
    /// The places of the requests that are traced, one for each.
    pub traced: &'a [TraceContext],
    /// It gave no answer, or none that could be divided: its requests have failed, or run again by themselves.
    pub failed: bool,
}

/// An attempt to load a version.
#[derive(Clone, Copy, Debug)]
pub struct LoadRun<'a> {
    /// The model's name.
    pub model: &'a str,
    /// Its version.
    pub version: Version,
    /// When it began.
    pub started: Instant,
    /// Its steps as far as it came, in their order: begin and end.
    pub steps: &'a [(Step, Instant, Instant)],
    /// What became of it: `loaded`, `unchanged`, `rebound` or `failed`.
    pub outcome: &'static str,
    /// Why it failed.
    pub reason: Option<&'a str>,
}

/// Told of what is traced, on workers and loaders: it must not block.
pub trait Observer: Send + Sync + fmt::Debug {
    /// A batch with traced requests has been run.
    fn batch(&self, batch: &BatchRun<'_>);
    /// A version has been loaded, or not.
    fn load(&self, load: &LoadRun<'_>);
}

/// Nobody watches.
#[derive(Debug)]
pub struct Nobody;

impl Observer for Nobody {
    fn batch(&self, _: &BatchRun<'_>) {}
    fn load(&self, _: &LoadRun<'_>) {}
}
