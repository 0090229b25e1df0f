//! What the table says of a model.

use std::sync::Arc;

use sconce_repository::ModelOnDisk;

use super::{
    model::{Model, Work},
    plan::{self, TaskStep, What},
};
use crate::table::{Route, State};

impl<L: Clone> Model<L> {
    /// What the table says of it.
    pub(super) fn route(&self) -> Route<L> {
        let mut route =
            Route { unloaded: plan::wants_nothing(self.source(), &self.wish), ..Route::default() };
        let source = self.source();
        let unavailable = |reason: String| State::Unavailable(reason);
        if let Some(source) = source.filter(|_| self.wish.policy) {
            for version in &source.missing {
                let dir = source.dir.display();
                let reason = format!(
                    "version {version} is chosen by the configuration, but {dir} has no directory '{version}'"
                );
                route.versions.insert(*version, unavailable(reason));
            }
        }
        if let Some(source) = source.filter(|_| self.wish.unloaded) {
            route
                .versions
                .extend(source.wanted.iter().map(|version| (*version, unavailable("unloaded".to_owned()))));
        }
        for (version, _) in self.wish.versions.iter().filter(|(_, wanted)| !**wanted) {
            route.versions.insert(*version, unavailable("unloaded".to_owned()));
        }
        for (version, failed) in &self.failed {
            route.versions.insert(*version, unavailable(failed.shown.reason.clone()));
            route.failures.insert(*version, failed.shown.clone());
        }
        route.versions.extend(self.draining.keys().map(|version| (*version, State::Unloading)));
        if let Work::Task { steps, .. } = &self.work {
            // What is tried again has failed, until it has not.
            let again = |step: &&TaskStep<L>| {
                self.failed.get(&step.version).is_some_and(|failed| failed.files == step.files)
            };
            let loads = steps.iter().filter(|step| matches!(step.what, What::Load { .. }));
            let loading = loads.filter(|step| !again(step));
            route.versions.extend(loading.map(|step| (step.version, State::Loading)));
        }
        let ready =
            self.serving.iter().map(|(version, serving)| (*version, State::Ready(serving.live.clone())));
        route.versions.extend(ready);
        route.problem = self.problem(source, route.versions.is_empty());
        route
    }

    fn problem(&self, source: Option<&Arc<ModelOnDisk>>, nothing: bool) -> Option<String> {
        let Some(source) = source else {
            return self.wish.policy.then(|| "it is not in the model repository".to_owned());
        };
        match &source.config {
            Err(error) => Some(error.to_string()),
            Ok(_) if nothing && self.wish.policy => {
                Some(format!("{} has no version directory (1, 2, ...) to serve", source.dir.display()))
            }
            Ok(_) => None,
        }
    }
}
