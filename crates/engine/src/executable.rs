//! A version as the workers see it: its weights on each device where it may run, and their runners.
//!
//! Weights are freed by the reaper, wherever the last handle on them is dropped: freeing takes
//! milliseconds, which no worker and no request has to give away.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use sconce_repository::Version;

use crate::{
    backend::{LoadError, Module, Runner},
    reaper::{Farewell, Reaper},
    reply::Done,
    scheduler::Placement,
    stats::VersionStats,
    value::Call,
};

/// A version as the workers see it.
pub struct Executable {
    pub(crate) name: Arc<str>,
    pub(crate) version: Version,
    /// The sizes of batches that it is run with, ascending; empty for all.
    pub(crate) allowed_sizes: Vec<usize>,
    /// A run changes what the next one finds in its instance, so that none is made twice.
    pub(crate) keeps_state: bool,
    /// What is counted of it.
    pub(crate) stats: Arc<VersionStats>,
    places: Vec<(Placement, Arc<Place>)>,
    /// Told when this is dropped. The last field: by then the places are gone, or another's.
    farewells: Mutex<Vec<Farewell>>,
}

impl Executable {
    /// Modules, each on a device by its index with how many of its runs at once.
    ///
    /// # Errors
    /// When a first runner cannot be made for one of them.
    pub fn new(
        name: Arc<str>,
        version: Version,
        allowed_sizes: Vec<usize>,
        modules: Vec<(Placement, Arc<dyn Module>)>,
        stats: Arc<VersionStats>,
        reaper: &Reaper,
    ) -> Result<Self, LoadError> {
        let places = modules
            .into_iter()
            .map(|(placement, module)| {
                let place = Place::new(placement.device, module, reaper.clone())?;
                Ok((placement, Arc::new(place)))
            })
            .collect::<Result<_, LoadError>>()?;
        let keeps_state = false;
        Ok(Self { name, version, allowed_sizes, keeps_state, stats, places, farewells: Mutex::default() })
    }

    /// The same, of a model whose instances keep state of their own if it is said so.
    pub(crate) fn keeping_state(self, keeps_state: bool) -> Self {
        Self { keeps_state, ..self }
    }

    /// The same weights and runners with other limits; `None` where the devices are not the same ones, so
    /// that weights would have to be loaded or dropped.
    pub fn with(&self, placements: &[Placement], allowed_sizes: Vec<usize>) -> Option<Self> {
        if placements.len() != self.places.len() {
            return None;
        }
        let places = placements
            .iter()
            .map(|placement| Some((placement.clone(), Arc::clone(self.place(placement.device)?.1))))
            .collect::<Option<Vec<_>>>()?;
        for (placement, place) in &places {
            place.trim(placement.limit);
        }
        let (name, farewells) = (Arc::clone(&self.name), Mutex::default());
        let (version, keeps_state, stats) = (self.version, self.keeps_state, Arc::clone(&self.stats));
        Some(Self { name, version, allowed_sizes, keeps_state, stats, places, farewells })
    }

    /// The same weights on one of the devices, with a runner of its own: for warming, because those of a model that
    /// keeps state must not have run before the first request; and where sequences share one instance.
    ///
    /// # Errors
    /// When no runner can be made.
    pub(crate) fn with_own_runner(
        &self,
        device: usize,
        allowed_sizes: Vec<usize>,
    ) -> Result<Self, LoadError> {
        let mut places = Vec::new();
        if let Some((_, place)) = self.place(device)
            && let Some(module) = &place.module
        {
            let own = Place::new(device, Arc::clone(module), place.reaper.clone())?;
            places.push((Placement { device, limit: 1 }, Arc::new(own)));
        }
        let (name, farewells) = (Arc::clone(&self.name), Mutex::default());
        let (version, keeps_state, stats) = (self.version, self.keeps_state, Arc::clone(&self.stats));
        Ok(Self { name, version, allowed_sizes, keeps_state, stats, places, farewells })
    }

    /// How many rows a batch of so many is run with.
    pub(crate) fn padded(&self, rows: usize) -> usize {
        self.allowed_sizes.iter().copied().find(|size| *size >= rows).unwrap_or(rows)
    }

    /// The devices where it may run, by their indices.
    pub fn devices(&self) -> impl Iterator<Item = usize> {
        self.places.iter().map(|(placement, _)| placement.device)
    }

    /// Where it may run, and how many of its runs at once.
    pub fn placements(&self) -> Vec<Placement> {
        self.places.iter().map(|(placement, _)| placement.clone()).collect()
    }

    fn place(&self, device: usize) -> Option<(&Placement, &Arc<Place>)> {
        let is_here = |(placement, _): &&(Placement, _)| placement.device == device;
        self.places.iter().find(is_here).map(|(placement, place)| (placement, place))
    }

    /// A runner for the device; `None` where it may not run.
    pub(crate) fn lend(&self, device: usize) -> Option<Result<Lent<'_>, LoadError>> {
        let (placement, place) = self.place(device)?;
        Some(place.lend(placement.limit))
    }

    /// Drops `farewell` with this.
    pub(crate) fn keep(&self, farewell: Farewell) {
        self.farewells.lock().unwrap_or_else(PoisonError::into_inner).push(farewell);
    }
}

impl fmt::Debug for Executable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executable").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A version's weights on one device, and the runners that no worker uses now.
struct Place {
    device: usize,
    /// `None` only while it is dropped.
    module: Option<Arc<dyn Module>>,
    /// The one that was used last on top.
    idle: Mutex<Vec<Box<dyn Runner>>>,
    reaper: Reaper,
}

impl Place {
    fn new(device: usize, module: Arc<dyn Module>, reaper: Reaper) -> Result<Self, LoadError> {
        let idle = Mutex::new(vec![module.runner()?]);
        Ok(Self { device, module: Some(module), idle, reaper })
    }

    fn lend(&self, limit: usize) -> Result<Lent<'_>, LoadError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let runner = match (idle, &self.module) {
            (Some(runner), _) => runner,
            (None, Some(module)) => module.runner()?,
            (None, None) => return Err(LoadError::new("its weights are gone; this is a bug")),
        };
        Ok(Lent { place: self, limit, runner: Some(runner) })
    }

    /// Lets runners go that are idle and more than the limit: those that were used longest ago.
    fn trim(&self, limit: usize) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let excess = idle.len().saturating_sub(limit);
        if excess > 0 {
            let runners: Vec<_> = idle.drain(..excess).collect();
            drop(idle);
            self.reaper.free(self.device, runners);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let module = self.module.take();
        let idle = std::mem::take(self.idle.get_mut().unwrap_or_else(PoisonError::into_inner));
        self.reaper.free(self.device, (idle, module));
    }
}

/// A runner in use. Dropped without having been given back it is not used again: it panicked, and may be
/// in any state.
pub(crate) struct Lent<'a> {
    place: &'a Place,
    limit: usize,
    /// `None` only while it is dropped.
    runner: Option<Box<dyn Runner>>,
}

impl Lent<'_> {
    pub(crate) fn run(mut self, call: Call, done: Done) {
        if let Some(runner) = &mut self.runner {
            runner.run(call, done);
        }
        self.place.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(self.runner.take());
        self.place.trim(self.limit);
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(runner) = self.runner.take() {
            self.place.reaper.free(self.place.device, runner);
        }
    }
}
