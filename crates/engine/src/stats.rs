//! What is counted of each version: plain numbers, added to where things happen and read when somebody asks.
//!
//! They are kept by model and version for as long as the version is known, so that a reload of the same version goes
//! on counting, and go when it does.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sconce_repository::Version;

use crate::{
    Error,
    table::{Snapshot, Step},
};

mod histogram;
mod reason;
mod version;

pub use histogram::{Buckets, Histogram, HistogramCounts};
pub use reason::{Reason, UNLOADED};
pub use version::{BatchCounts, Cause, ResponseCounts, Stage, VersionStats};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds so much.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// How much it is.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Nanoseconds; what takes 500 years is not told from more.
pub fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What became of an attempt to load a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LoadOutcome {
    /// It serves.
    Loaded,
    /// These bytes serve already.
    Unchanged,
    /// The weights that are there serve by a changed configuration.
    Rebound,
    /// It did not pass this step.
    Failed(Step),
}

impl LoadOutcome {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Loaded,
        Self::Unchanged,
        Self::Rebound,
        Self::Failed(Step::Copy),
        Self::Failed(Step::Verify),
        Self::Failed(Step::Load),
        Self::Failed(Step::Warm),
    ];

    /// Its name, as a label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Unchanged => "unchanged",
            Self::Rebound => "rebound",
            Self::Failed(_) => "failed",
        }
    }

    /// The step that it did not pass, as a label; empty where there is none.
    pub fn step(self) -> &'static str {
        match self {
            Self::Failed(step) => step.name(),
            Self::Loaded | Self::Unchanged | Self::Rebound => "",
        }
    }
}

/// Requests for which no version served, by what their callers were told.
#[derive(Debug, Default)]
pub struct Unserved {
    /// That there is none ([`Error::NoVersion`]).
    pub no_version: Counter,
    /// That the one that was asked for does not serve ([`Error::NotReady`]).
    pub not_ready: Counter,
}

/// What is counted of the loads of a model.
#[derive(Debug)]
pub struct LoadStats {
    outcomes: Mutex<BTreeMap<LoadOutcome, u64>>,
    /// Requests for which no version served.
    pub unserved: Unserved,
    /// The same, where the model is not to be served: it has been unloaded on purpose, or never loaded.
    pub unloaded: Unserved,
    /// How long those took that passed, from the first byte read to the last run before it served.
    pub duration: Histogram,
}

impl LoadStats {
    /// How many attempts ended like this.
    pub fn outcome(&self, outcome: LoadOutcome) -> u64 {
        lock(&self.outcomes).get(&outcome).copied().unwrap_or_default()
    }
}

type Key = (Arc<str>, Version);

/// The numbers of all versions.
#[derive(Debug)]
pub struct Stats {
    durations: Buckets,
    loads_take: Buckets,
    versions: Mutex<BTreeMap<Key, Arc<VersionStats>>>,
    on_disk: Mutex<BTreeSet<Key>>,
    loads: Mutex<BTreeMap<Arc<str>, Arc<LoadStats>>>,
}

impl Default for Stats {
    fn default() -> Self {
        Self::new(Buckets::durations())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stats {
    /// With these buckets for the durations of requests and their stages.
    pub fn new(durations: Buckets) -> Self {
        let (versions, on_disk, loads) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { durations, loads_take: Buckets::loads(), versions, on_disk, loads }
    }

    /// The numbers of a version, which go on where it was known before.
    pub fn version(&self, model: &Arc<str>, version: Version) -> Arc<VersionStats> {
        let new = || Arc::new(VersionStats::new(&self.durations));
        Arc::clone(lock(&self.versions).entry((Arc::clone(model), version)).or_insert_with(new))
    }

    /// The numbers of all versions that are known.
    pub fn versions(&self) -> Vec<(Arc<str>, Version, Arc<VersionStats>)> {
        let all = lock(&self.versions);
        all.iter().map(|((model, version), stats)| (Arc::clone(model), *version, Arc::clone(stats))).collect()
    }

    /// The numbers of the loads of all models that are known.
    pub fn loads(&self) -> Vec<(Arc<str>, Arc<LoadStats>)> {
        lock(&self.loads).iter().map(|(model, loads)| (Arc::clone(model), Arc::clone(loads))).collect()
    }

    fn of_model(&self, model: &Arc<str>) -> Arc<LoadStats> {
        let new = || {
            Arc::new(LoadStats {
                outcomes: Mutex::default(),
                unserved: Unserved::default(),
                unloaded: Unserved::default(),
                duration: self.loads_take.histogram(),
            })
        };
        Arc::clone(lock(&self.loads).entry(Arc::clone(model)).or_insert_with(new))
    }

    /// Counts a request for a model that is there and has no version that serves it, for this reason. A version that
    /// is not there is not told apart: callers could name any. Returns the reason in a word, where it was counted.
    pub fn unserved(&self, model: &Arc<str>, unloaded: bool, error: &Error) -> Option<&'static str> {
        let counter = match error {
            Error::NoVersion { .. } => |of: &Unserved| of.no_version.add(1),
            Error::NotReady { .. } => |of: &Unserved| of.not_ready.add(1),
            _ => return None,
        };
        let stats = self.of_model(model);
        let (of, word) =
            if unloaded { (&stats.unloaded, UNLOADED) } else { (&stats.unserved, Reason::NotReady.name()) };
        counter(of);
        Some(word)
    }

    /// Counts an attempt to load a version of the model, and how long it took if it passed.
    pub fn load(&self, model: &Arc<str>, outcome: LoadOutcome, took: Option<Duration>) {
        let loads = self.of_model(model);
        *lock(&loads.outcomes).entry(outcome).or_default() += 1;
        if let Some(took) = took {
            loads.duration.record(nanos(took), 1);
        }
    }

    /// These versions are on disk: they keep their numbers, whether they serve or not.
    pub fn set_on_disk(&self, versions: impl Iterator<Item = (Arc<str>, Version)>) {
        *lock(&self.on_disk) = versions.collect();
    }

    /// Forgets the versions and models that are gone: neither on disk, nor in a route, nor held by a request. Whoever
    /// reads the numbers holds them for a moment, so this is to be called now and then.
    pub fn forget(&self, snapshot: &Snapshot) {
        let known = |model: &Arc<str>| snapshot.routes.get(model);
        let retired: BTreeSet<(&str, Version)> =
            snapshot.retired.iter().map(|(live, _)| (&*live.model, live.version)).collect();
        let on_disk = lock(&self.on_disk);
        lock(&self.versions).retain(|key, stats| {
            let (model, version) = key;
            on_disk.contains(key)
                || known(model).is_some_and(|route| route.versions.contains_key(version))
                || retired.contains(&(&**model, *version))
                || Arc::strong_count(stats) > 1
        });
        lock(&self.loads).retain(|model, _| known(model).is_some());
    }
}

#[cfg(test)]
#[path = "stats_tests.rs"]
mod tests;
