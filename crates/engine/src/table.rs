//! Name and version to a live version. One writer publishes whole tables; readers take a snapshot
//! without a lock, so a change is seen at once or not at all.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Instant, SystemTime},
};

use arc_swap::ArcSwap;
use sconce_repository::Version;
use tokio::sync::watch;

use crate::{Error, Result, model::LiveVersion, text::quote};

mod sequences;

/// Where a version is on its way. `L` is what serves, another in tests of the changes alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State<L = Arc<LiveVersion>> {
    /// Being verified, loaded or warmed.
    Loading,
    /// Serving.
    Ready(L),
    /// Taken out of service; what it has accepted is being answered, or its memory not yet free.
    Unloading,
    /// Not serving, for this reason.
    Unavailable(String),
}

impl<L> State<L> {
    /// Its name in the repository index.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Loading => "LOADING",
            Self::Ready(_) => "READY",
            Self::Unloading => "UNLOADING",
            Self::Unavailable(_) => "UNAVAILABLE",
        }
    }
}

/// The attempts to load one content of a version, all of which have failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Why the last one did, in one sentence.
    pub reason: String,
    /// In which step of loading.
    pub step: Step,
    /// How many there were.
    pub attempts: u32,
    /// When the last one was.
    pub last: SystemTime,
    /// When the next one is, if nothing changes before.
    pub next: Option<SystemTime>,
}

/// The steps of loading, as they are counted: a closed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Waiting for a copy to be complete.
    Copy,
    /// Reading it and comparing it with its checksums.
    Verify,
    /// Loading it, binding its names, placing it on its devices.
    Load,
    /// Running it before it serves.
    Warm,
}

impl Step {
    /// Its name, as a label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Verify => "verify",
            Self::Load => "load",
            Self::Warm => "warm",
        }
    }
}

/// What is known of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route<L = Arc<LiveVersion>> {
    /// Its versions, the chosen ones.
    pub versions: BTreeMap<Version, State<L>>,
    /// What failed last, also of versions of which an earlier content serves.
    pub failures: BTreeMap<Version, Failure>,
    /// Why the model as a whole cannot serve, or serves by an earlier configuration.
    pub problem: Option<String>,
    /// Nothing of it is to be served, because an operator said so, or has not asked for it.
    pub unloaded: bool,
}

impl<L> Default for Route<L> {
    fn default() -> Self {
        Self { versions: BTreeMap::new(), failures: BTreeMap::new(), problem: None, unloaded: false }
    }
}

impl<L> Route<L> {
    /// The highest version that serves.
    pub fn newest(&self) -> Option<&L> {
        self.versions.values().rev().find_map(|state| match state {
            State::Ready(live) => Some(live),
            State::Loading | State::Unloading | State::Unavailable(_) => None,
        })
    }
}

impl Route {
    /// Whether requests that name no version are answered: not where every run of the newest hangs.
    pub fn serves(&self) -> bool {
        self.newest().is_some_and(|live| live.stuck_by().is_none())
    }
}

/// One consistent view of everything.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// By name, in an order that listings keep.
    pub routes: BTreeMap<Arc<str>, Arc<Route>>,
    /// The first scan has been worked through.
    pub settled: bool,
    /// Ready only while every model serves, not once the first scan has been worked through.
    pub strict: bool,
    /// The server is going away: it is not ready, but answers whatever still reaches it.
    pub draining: bool,
    /// No device is left that could run anything.
    pub lost: bool,
    /// Connections are being told to go.
    pub leaving: bool,
    /// Versions that are in no route any more, where sequences or generations still go on, the latest last; and since when.
    pub retired: Vec<(Arc<LiveVersion>, Instant)>,
}

impl Snapshot {
    /// Whether the server may be sent traffic.
    ///
    /// A model that changes keeps serving what it has, so a roll-out, a failed one too, changes nothing
    /// here. `strict` asks for every model that is not unloaded on purpose.
    pub fn ready(&self) -> bool {
        let serves = |route: &Arc<Route>| route.unloaded || route.serves();
        self.settled && !self.draining && !self.lost && (!self.strict || self.routes.values().all(serves))
    }

    /// Whether a version of the model, or its newest, serves: one whose every run hangs does not.
    pub fn model_ready(&self, model: &str, version: Option<Version>) -> bool {
        !self.draining && self.find(model, version).is_ok_and(|live| live.stuck_by().is_none())
    }

    /// The live version that a request names.
    ///
    /// # Errors
    /// Which of the reasons it is that there is none.
    pub fn find(&self, model: &str, version: Option<Version>) -> Result<Arc<LiveVersion>> {
        let route = self.routes.get(model).ok_or_else(|| Error::ModelNotFound { model: quote(model) })?;
        let Some(version) = version else {
            return route.newest().cloned().ok_or_else(|| no_version(model, route));
        };
        let not_ready =
            |why: String| Error::NotReady { model: model.to_owned(), version: version.to_string(), why };
        match route.versions.get(&version) {
            Some(State::Ready(live)) => Ok(Arc::clone(live)),
            Some(State::Loading) => Err(not_ready("it is loading".to_owned())),
            Some(State::Unloading) => Err(not_ready("it is being unloaded".to_owned())),
            Some(State::Unavailable(reason)) => Err(not_ready(reason.clone())),
            None => Err(Error::VersionNotFound { model: model.to_owned(), version }),
        }
    }
}

fn no_version(model: &str, route: &Route) -> Error {
    if let Some((version, _)) = route.versions.iter().find(|(_, state)| matches!(state, State::Loading)) {
        let (model, version) = (model.to_owned(), version.to_string());
        return Error::NotReady { model, version, why: "it is loading".to_owned() };
    }
    let reason = route.problem.clone().or_else(|| {
        route.versions.iter().rev().find_map(|(version, state)| match state {
            State::Unavailable(reason) => Some(format!("version {version}: {reason}")),
            State::Loading | State::Unloading | State::Ready(_) => None,
        })
    });
    Error::NoVersion {
        model: model.to_owned(),
        why: reason.map(|why| format!(": {why}")).unwrap_or_default(),
    }
}

/// The published view, and the means to change it.
pub struct Table {
    current: ArcSwap<Snapshot>,
    /// Makes changes one after the other.
    writer: Mutex<()>,
    changed: watch::Sender<()>,
}

impl Default for Table {
    fn default() -> Self {
        Self { current: ArcSwap::default(), writer: Mutex::new(()), changed: watch::Sender::new(()) }
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("current", &self.current.load()).finish_non_exhaustive()
    }
}

impl Table {
    /// The view of this moment.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// The live version that a request names.
    ///
    /// # Errors
    /// As [`Snapshot::find`].
    pub fn get(&self, model: &str, version: Option<Version>) -> Result<Arc<LiveVersion>> {
        self.current.load().find(model, version)
    }

    /// Publishes a changed view: one pointer is swapped, whoever reads sees all of the change.
    pub fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        let _one_at_a_time = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Snapshot::clone(&self.current.load());
        change(&mut next);
        self.current.store(Arc::new(next));
        self.changed.send_replace(());
    }

    /// Tells of every change from now on.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
