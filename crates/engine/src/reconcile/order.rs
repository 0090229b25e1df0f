//! What an operator may ask for beside the directory, and what comes of it.

use std::{collections::BTreeMap, sync::Arc};

use sconce_repository::{ModelOnDisk, Version};
use tempfile::TempDir;

/// One wish for one model.
#[derive(Debug)]
pub enum Order {
    /// Serve the model as its policy says, or this version too.
    Load {
        /// Only this version.
        version: Option<Version>,
        /// Instead of what its directory says.
        instead: Option<Override>,
    },
    /// Serve nothing of the model, or not this version.
    Unload {
        /// Only this version.
        version: Option<Version>,
    },
}

/// What is served instead of what a model's directory says.
#[derive(Clone, Debug)]
pub struct Override {
    /// The configuration and the files.
    pub disk: Arc<ModelOnDisk>,
    /// Where the files are, when they came with the order; removed when nobody needs them any more.
    pub directory: Option<Arc<TempDir>>,
}

/// Why an order had not the effect that was asked for. What served before serves on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no such model, or no such version.
    #[error("{0}")]
    NotFound(String),
    /// It did not pass.
    #[error("{0}")]
    Failed(String),
    /// The server does not take orders, or not now.
    #[error("{0}")]
    NotNow(String),
    /// The files that came with it are more than there is room for.
    #[error("{0}")]
    NoSpace(String),
    /// The files that came with it could not be written.
    #[error("{0}")]
    Unwritten(String),
}

/// What orders have made of a model; without one, what the mode says.
#[derive(Clone, Debug, Default)]
pub(super) struct Wish {
    /// Serve what the policy chooses.
    pub(super) policy: bool,
    /// Versions that are to serve whatever the policy says, and such that must not.
    pub(super) versions: BTreeMap<Version, bool>,
    /// Instead of what the directory says.
    pub(super) instead: Option<Override>,
    /// It was an order to unload, not the absence of one to load.
    pub(super) unloaded: bool,
    /// What the directory looked like when the last order came, if it was there: the wish lasts until
    /// that changes. `None` where no change ends it.
    pub(super) since: Option<Option<Arc<ModelOnDisk>>>,
}

impl Wish {
    /// As the mode has it.
    pub(super) fn none(follows: bool) -> Self {
        Self { policy: follows, ..Self::default() }
    }

    /// Takes an order in.
    pub(super) fn take(&mut self, order: &Order, disk: Option<&Arc<ModelOnDisk>>, follows: bool) {
        match order {
            Order::Load { version: None, instead } => {
                *self = Self { policy: true, instead: instead.clone(), ..Self::default() };
            }
            Order::Load { version: Some(version), instead } => {
                self.versions.insert(*version, true);
                self.unloaded = false;
                if instead.is_some() {
                    self.instead.clone_from(instead);
                }
            }
            Order::Unload { version: None } => *self = Self { unloaded: true, ..Self::default() },
            Order::Unload { version: Some(version) } => {
                self.versions.insert(*version, false);
            }
        }
        let as_usual = self.policy && self.versions.is_empty() && self.instead.is_none();
        self.since = (follows && !as_usual).then(|| disk.cloned());
    }
}
