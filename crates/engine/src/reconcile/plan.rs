//! Which versions of a model are to serve, and what has to be done for each of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};

use sconce_repository::{
    Difference, Digest, ModelConfig, ModelOnDisk, Version, VersionOnDisk, VersionPolicy,
};

use super::{
    model::{Failed, Serving},
    order::Wish,
};
use crate::table::Step;

/// Names a task to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TaskId(pub(super) u64);

/// What a loader has to do for one model: all that becomes visible at once.
#[derive(Clone, Debug)]
pub(super) struct Task<L> {
    pub(super) id: TaskId,
    pub(super) model: Arc<str>,
    pub(super) config: Arc<ModelConfig>,
    /// The versions, in the order in which they are tried.
    pub(super) steps: Vec<TaskStep<L>>,
    /// How many of those that count are to serve; the others are not touched.
    pub(super) count: usize,
    /// Read and compare, but load nothing: what serves has to go first.
    pub(super) only_verify: bool,
    /// What serves now: new versions are warmed with what it was asked.
    pub(super) newest: Option<L>,
}

/// One version of a task.
#[derive(Clone, Debug)]
pub(super) struct TaskStep<L> {
    pub(super) version: Version,
    pub(super) files: VersionOnDisk,
    /// It was asked for by number, and is to serve also when enough others do.
    pub(super) forced: bool,
    pub(super) what: What<L>,
    /// Set when what is being loaded is not there any more as it was.
    pub(super) stop: Arc<AtomicBool>,
}

/// What has to be done for a version.
#[derive(Clone, Debug)]
pub(super) enum What<L> {
    /// Nothing: it serves, and goes on.
    Keep,
    /// It serves these bytes, and gets another configuration that needs no loading.
    Rebind(L),
    /// Load it, unless its bytes turn out to be known.
    Load {
        /// What serves under its number, the digest of that, and what the configuration changes.
        serving: Option<(L, Digest, Difference)>,
        /// The bytes that failed last, with this configuration, when it is not time to try them again.
        failed: Option<Digest>,
    },
}

/// What came of a step.
#[derive(Clone, Debug)]
pub(super) enum Outcome<L> {
    /// Nothing was done: it serves, or enough others do.
    Untouched,
    /// Its bytes are those that serve.
    Same(Digest),
    /// It serves with another configuration.
    Rebound(L),
    /// It is loaded and warm.
    Loaded(L, Digest),
    /// It could be loaded; asked for with [`Task::only_verify`].
    Verified,
    /// Its bytes are those that failed last.
    StillBad,
    /// It did not pass.
    Failed(NotPassed),
}

/// Why a version did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NotPassed {
    pub(super) step: Step,
    pub(super) reason: String,
    /// Its bytes, when they could be read.
    pub(super) digest: Option<Digest>,
    /// Another attempt would do harm.
    pub(super) for_good: bool,
}

impl<L> Outcome<L> {
    /// Nothing could be done, for this reason.
    pub(super) fn none(keep: bool, reason: &str) -> Self {
        if keep {
            return Self::Untouched;
        }
        Self::Failed(NotPassed { step: Step::Load, reason: reason.to_owned(), digest: None, for_good: false })
    }

    /// Whether the version can serve after it, given whether it does before.
    pub(super) fn passes(&self, serves: bool) -> bool {
        match self {
            Self::Same(_) | Self::Rebound(_) | Self::Loaded(..) => true,
            Self::Untouched | Self::Verified | Self::StillBad | Self::Failed(_) => serves,
        }
    }
}

/// The steps towards what is wanted.
#[derive(Debug)]
pub(super) struct Plan<L> {
    pub(super) steps: Vec<TaskStep<L>>,
    pub(super) count: usize,
    /// The versions whose failures count: thought of, and not serving just as they are to be.
    pub(super) doubtful: BTreeSet<Version>,
    /// Whether anything at all is to serve, though perhaps nothing of it is there or passes.
    pub(super) wanted: bool,
}

impl<L> Plan<L> {
    /// What serves and goes on, when there is no work.
    pub(super) fn stays(&self) -> BTreeSet<Version> {
        self.steps.iter().map(|step| step.version).collect()
    }

    /// Whether a loader has to do something.
    pub(super) fn has_work(&self) -> bool {
        self.steps.iter().any(|step| !matches!(step.what, What::Keep))
    }
}

/// What is known of a model's versions.
pub(super) struct Known<'a, L> {
    pub(super) serving: &'a BTreeMap<Version, Serving<L>>,
    pub(super) failed: &'a BTreeMap<Version, Failed>,
    pub(super) now: Instant,
    /// What failed is tried again although it is not time.
    pub(super) force: bool,
}

/// Compares what is on disk with what serves.
pub(super) fn plan<L: Clone>(
    source: &ModelOnDisk,
    config: &Arc<ModelConfig>,
    wish: &Wish,
    known: &Known<'_, L>,
) -> Plan<L> {
    let (candidates, count) = candidates(source, &config.version_policy, wish);
    let mut steps = Vec::new();
    let wanted = !candidates.is_empty() || wish.policy && !source.missing.is_empty();
    let mut doubtful = BTreeSet::new();
    let mut left = count;
    for (version, forced) in candidates {
        let Some(files) = source.versions.get(&version) else { continue };
        if !forced && left == 0 {
            continue;
        }
        if !is_as_wanted(version, files, config, known) {
            doubtful.insert(version);
        }
        let Some(what) = what(version, files, config, known) else { continue };
        // What has to pass first may fail, and then the next one is needed.
        if !matches!(what, What::Load { .. }) {
            left = left.saturating_sub(1);
        }
        steps.push(TaskStep { version, files: files.clone(), forced, what, stop: Arc::default() });
    }
    Plan { steps, count, doubtful, wanted }
}

/// Whether an operator wants nothing of what is there.
pub(super) fn wants_nothing(source: Option<&Arc<ModelOnDisk>>, wish: &Wish) -> bool {
    let asked = wish.versions.values().any(|wanted| *wanted);
    let refused = wish.versions.values().any(|wanted| !wanted);
    match source {
        _ if !wish.policy => !asked,
        Some(source) => source
            .config
            .as_ref()
            .is_ok_and(|config| refused && candidates(source, &config.version_policy, wish).0.is_empty()),
        None => false,
    }
}

/// The versions that may be served, in order of preference, each with whether it was asked for by number,
/// and how many are wanted. `latest: n` is the n highest that pass: a bad one holds back no good one.
fn candidates(source: &ModelOnDisk, policy: &VersionPolicy, wish: &Wish) -> (Vec<(Version, bool)>, usize) {
    let (mut chosen, count): (Vec<Version>, usize) = match policy {
        _ if !wish.policy => (Vec::new(), 0),
        VersionPolicy::Latest(count) => {
            (source.versions.keys().rev().copied().collect(), count.get() as usize)
        }
        VersionPolicy::All | VersionPolicy::Specific(_) => {
            let wanted = policy.select(source.versions.keys().copied());
            let count = wanted.len();
            (wanted, count)
        }
    };
    for (&version, &wanted) in &wish.versions {
        if !wanted {
            chosen.retain(|other| *other != version);
        } else if !chosen.contains(&version) {
            chosen.push(version);
        }
    }
    let forced = |version: &Version| wish.versions.contains_key(version);
    (chosen.into_iter().map(|version| (version, forced(&version))).collect(), count)
}

/// It serves these files by this configuration.
fn is_as_wanted<L>(
    version: Version,
    files: &VersionOnDisk,
    config: &ModelConfig,
    known: &Known<'_, L>,
) -> bool {
    known.serving.get(&version).is_some_and(|serving| {
        serving.files == *files && serving.config.difference(config) == Difference::None
    })
}

/// `None` when there is nothing to be had from this version now.
fn what<L: Clone>(
    version: Version,
    files: &VersionOnDisk,
    config: &Arc<ModelConfig>,
    known: &Known<'_, L>,
) -> Option<What<L>> {
    if is_as_wanted(version, files, config, known) {
        return Some(What::Keep);
    }
    let serving = known.serving.get(&version);
    let mut known_bad = None;
    if let Some(failed) = known.failed.get(&version) {
        let due = known.force || failed.retry.is_some_and(|retry| retry <= known.now);
        if !due && failed.config.difference(config) == Difference::None {
            if failed.files == *files {
                return serving.map(|_| What::Keep);
            }
            // Perhaps only touched: the digest will tell.
            known_bad = failed.digest;
        }
    }
    let difference = serving.map(|serving| serving.config.difference(config));
    if let (Some(serving), Some(Difference::InPlace)) = (serving, difference)
        && serving.files == *files
    {
        return Some(What::Rebind(serving.live.clone()));
    }
    let serving = serving
        .zip(difference)
        .map(|(serving, difference)| (serving.live.clone(), serving.digest, difference));
    Some(What::Load { serving, failed: known_bad })
}
