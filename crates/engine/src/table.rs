//! Name and version to a live version. One writer publishes whole tables; readers take a snapshot
//! without a lock, so a change is seen at once or not at all.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use sconce_repository::Version;
use tokio::sync::watch;

use crate::{Error, Result, model::LiveVersion, text::quote};

/// Where a version is on its way.
#[derive(Clone, Debug)]
pub enum State {
    /// Being verified, loaded or warmed.
    Loading,
    /// Serving.
    Ready(Arc<LiveVersion>),
    /// Not serving, for this reason.
    Unavailable(String),
}

impl State {
    /// Its name in the repository index.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Loading => "LOADING",
            Self::Ready(_) => "READY",
            Self::Unavailable(_) => "UNAVAILABLE",
        }
    }
}

/// What is known of one model.
#[derive(Clone, Debug, Default)]
pub struct Route {
    /// Its versions, the chosen ones.
    pub versions: BTreeMap<Version, State>,
    /// Why the model as a whole cannot serve, when that is so.
    pub problem: Option<String>,
}

impl Route {
    /// The highest version that serves.
    pub fn newest(&self) -> Option<&Arc<LiveVersion>> {
        self.versions.values().rev().find_map(|state| match state {
            State::Ready(live) => Some(live),
            State::Loading | State::Unavailable(_) => None,
        })
    }
}

/// One consistent view of everything.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// By name, in an order that listings keep.
    pub routes: BTreeMap<Arc<str>, Route>,
    /// The first scan has been worked through.
    pub settled: bool,
    /// The server is going away: it is not ready, but answers whatever still reaches it.
    pub draining: bool,
    /// Connections are being told to go.
    pub leaving: bool,
}

impl Snapshot {
    /// Whether the server may be sent traffic.
    pub fn ready(&self) -> bool {
        self.settled && !self.draining
    }

    /// Whether a version of the model, or its newest, serves.
    pub fn model_ready(&self, model: &str, version: Option<Version>) -> bool {
        !self.draining && self.find(model, version).is_ok()
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
            State::Loading | State::Ready(_) => None,
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
