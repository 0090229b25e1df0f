//! Sequences and generations go on where they began, also when that is out of service.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sconce_repository::Version;

use super::{Route, Snapshot, State, Table};
use crate::{Result, model::LiveVersion, sequence::InSequence};

/// A request that found a version in service may begin a sequence there so much later.
const GRACE: Duration = Duration::from_secs(1);

impl Route {
    fn ready(&self) -> impl DoubleEndedIterator<Item = &Arc<LiveVersion>> {
        self.versions.values().filter_map(|state| match state {
            State::Ready(live) => Some(live),
            State::Loading | State::Unloading | State::Unavailable(_) => None,
        })
    }
}

impl Snapshot {
    /// The live version that a request of a sequence is for: the one where that goes on.
    ///
    /// # Errors
    /// As [`Snapshot::find`].
    pub fn find_in_sequence(
        &self,
        model: &str,
        version: Option<Version>,
        at: &InSequence,
    ) -> Result<Arc<LiveVersion>> {
        if !at.start {
            let chosen = |live: &&Arc<LiveVersion>| version.is_none_or(|version| live.version == version);
            let routed = self.routes.get(model).into_iter().flat_map(|route| route.ready().rev());
            let retired = self.retired.iter().rev().map(|(live, _)| live);
            let retired = retired.filter(|live| *live.model == *model);
            if let Some(live) = routed.chain(retired).filter(chosen).find(|live| live.holds(&at.id)) {
                return Ok(Arc::clone(live));
            }
        }
        self.find(model, version)
    }

    /// The version that is in no route any more, where something goes on.
    pub fn retired(&self, model: &str, version: Version) -> Option<&Arc<LiveVersion>> {
        let retired = self.retired.iter().rev().map(|(live, _)| live);
        retired.filter(|live| *live.model == *model).find(|live| live.version == version)
    }

    /// Puts another route, or none, in the place of a model's. Where it has sequences, they go on.
    pub fn set_route(&mut self, name: &Arc<str>, route: Option<Route>) {
        let before = match route {
            Some(route) => self.routes.insert(Arc::clone(name), Arc::new(route)),
            None => self.routes.remove(name),
        };
        let Some(before) = before else { return };
        let after = self.routes.get(name);
        let goes_on = |live: &Arc<LiveVersion>| {
            after.is_some_and(|route| route.ready().any(|new| Arc::ptr_eq(new, live)))
        };
        let now = Instant::now();
        let many = |live: &Arc<LiveVersion>| live.sequences().is_some() || live.generates();
        let gone = before.ready().filter(|live| many(live) && !goes_on(live));
        self.retired.extend(gone.map(|live| (Arc::clone(live), now)));
    }
}

impl Table {
    /// Ends all sequences and generations at once, because the server goes away.
    pub fn abandon(&self) {
        let snapshot = self.snapshot();
        let routed = snapshot.routes.values().flat_map(|route| route.ready());
        routed.chain(snapshot.retired.iter().map(|(live, _)| live)).for_each(|live| live.abandon());
    }

    /// Ends the sequences that have been idle for too long, and lets versions go where no more go on.
    pub fn sweep_sequences(&self) {
        let snapshot = self.snapshot();
        let routed = snapshot.routes.values().flat_map(|route| route.ready());
        routed.chain(snapshot.retired.iter().map(|(live, _)| live)).for_each(|live| live.sweep());
        let is_over = |(live, since): &(Arc<LiveVersion>, Instant)| {
            since.elapsed() >= GRACE
                && [live.sequences(), live.generations()].iter().all(|count| count.unwrap_or(0) == 0)
        };
        if snapshot.retired.iter().any(is_over) {
            self.change(|snapshot| snapshot.retired.retain(|retired| !is_over(retired)));
        }
    }
}
