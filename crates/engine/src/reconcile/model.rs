//! The state of one model: what is on disk, what serves, what failed, and how a finished load changes it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use sconce_repository::{
    Availability, ConfigError, Difference, Digest, ModelConfig, ModelOnDisk, Version, VersionOnDisk,
};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::{
    order::{Order, Refused, Wish},
    plan::{self, Known, NotPassed, Outcome, Plan, Task, TaskId, TaskStep, What},
};
use crate::table::{Failure, Step};
use crate::text::line;

/// Between the first two attempts at one content; twice as long after each.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// And never longer.
const LAST_RETRY: Duration = Duration::from_secs(300);
/// When to look again at a disk that was seen to change.
const AGAIN: Duration = Duration::from_millis(50);
/// After so many attempts at an incomplete copy nobody seems to be copying any more.
const WARN_INCOMPLETE: u32 = 5;

/// The moment of a step, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) now: Instant,
    pub(super) wall: SystemTime,
}

/// A version that serves.
#[derive(Clone, Debug)]
pub(super) struct Serving<L> {
    pub(super) live: L,
    /// The files as they were when this was loaded, or when they were last found to be the same.
    pub(super) files: VersionOnDisk,
    pub(super) digest: Digest,
    pub(super) config: Arc<ModelConfig>,
}

/// Attempts at one content of a version.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    pub(super) files: VersionOnDisk,
    pub(super) config: Arc<ModelConfig>,
    pub(super) digest: Option<Digest>,
    /// When it is tried again though nothing has changed.
    pub(super) retry: Option<Instant>,
    pub(super) shown: Failure,
}

/// What goes on with a model.
#[derive(Debug)]
pub(super) enum Work<L> {
    Nothing,
    /// A loader has its task, or will have.
    Task {
        id: TaskId,
        steps: Vec<TaskStep<L>>,
        count: usize,
        config: Arc<ModelConfig>,
    },
    /// What served has been taken out of service and its memory is awaited, until then.
    Memory(Instant),
}

/// An order and who waits for its outcome.
pub(super) type Waiting = (Order, oneshot::Sender<Result<(), Refused>>);

/// One model.
#[derive(Debug)]
pub(super) struct Model<L> {
    pub(super) name: Arc<str>,
    /// As the last look found it, and while it cannot be read, as the last one that could.
    pub(super) disk: Option<Arc<ModelOnDisk>>,
    /// Since when it is not there, and whether that is because its repository is not.
    pub(super) gone: Option<(Instant, bool)>,
    /// When to look again at text files that may be half written.
    pub(super) settling: Option<Instant>,
    /// Since when versions that serve are not there.
    pub(super) absent: BTreeMap<Version, Instant>,
    /// What serves is compared with this where changes on disk do not count until an operator says so.
    pub(super) taken: Option<Arc<ModelOnDisk>>,
    pub(super) wish: Wish,
    pub(super) serving: BTreeMap<Version, Serving<L>>,
    pub(super) failed: BTreeMap<Version, Failed>,
    /// How many of each version have been taken out of service and are not gone.
    pub(super) draining: BTreeMap<Version, usize>,
    pub(super) work: Work<L>,
    /// The order that is being carried out, and the next ones.
    pub(super) order: Option<Waiting>,
    pub(super) orders: VecDeque<Waiting>,
    /// The order that is being carried out has not been tried yet.
    pub(super) fresh: bool,
    /// What served went, so that what is being loaded has room.
    pub(super) made_room: bool,
    /// What is loaded next takes nobody's place: it has been verified.
    needs_no_room: bool,
    /// What was wished before the order that is being carried out, for when that fails.
    pub(super) wished: Option<Wish>,
    /// It was named to be loaded at start, and is waited for.
    pub(super) named: bool,
    /// The steps that attempts have not passed since this was last told.
    pub(super) news: Vec<Step>,
    /// What was said of its configuration last: what is wrong with it, or what has no effect.
    pub(super) said: Result<Vec<String>, ConfigError>,
    /// Whether failed loads are tried again without a change.
    pub(super) retries: bool,
}

/// What a finished task asks for.
#[derive(Debug, Default)]
pub(super) struct Finished<L> {
    /// Out of service, by version.
    pub(super) retired: Vec<(Version, L)>,
    /// What was loaded is not what is wanted any more: plan again.
    pub(super) outdated: bool,
}

impl<L: Clone> Model<L> {
    pub(super) fn new(name: &str, follows: bool, retries: bool) -> Self {
        Self {
            name: name.into(),
            disk: None,
            gone: None,
            settling: None,
            absent: BTreeMap::new(),
            taken: None,
            wish: Wish::none(follows),
            serving: BTreeMap::new(),
            failed: BTreeMap::new(),
            draining: BTreeMap::new(),
            work: Work::Nothing,
            order: None,
            orders: VecDeque::new(),
            fresh: false,
            made_room: false,
            needs_no_room: false,
            wished: None,
            named: false,
            news: Vec::new(),
            said: Ok(Vec::new()),
            retries,
        }
    }

    /// What is to be served.
    pub(super) fn source(&self) -> Option<&Arc<ModelOnDisk>> {
        let instead = self.wish.instead.as_ref().map(|instead| &instead.disk);
        instead.or(self.taken.as_ref()).or(self.disk.as_ref())
    }

    /// Whether it is not the time to compare: it may be in the middle of a change.
    pub(super) fn waits(&self) -> bool {
        self.settling.is_some() || self.gone.is_some() || !self.absent.is_empty()
    }

    /// By which configuration it is to be served; `None` while the one on disk is wrong.
    pub(super) fn config(&self) -> Option<Arc<ModelConfig>> {
        Some(Arc::new(self.source()?.config.as_ref().ok()?.clone()))
    }

    /// Compares what is wanted with what serves; `None` while the configuration is wrong.
    pub(super) fn plan(&self, now: Instant, force: bool) -> Option<(Arc<ModelConfig>, Plan<L>)> {
        let (source, config) = (self.source()?, self.config()?);
        let known = Known { serving: &self.serving, failed: &self.failed, now, force };
        let plan = plan::plan(source, &config, &self.wish, &known);
        Some((config, plan))
    }

    /// Takes the plan over as a task. With `availability: replace` the first task only verifies, when
    /// something has to go before anything can be loaded.
    pub(super) fn begin(&mut self, id: TaskId, config: &Arc<ModelConfig>, plan: Plan<L>) -> Task<L> {
        let Plan { steps, count, .. } = plan;
        let needs_none = std::mem::take(&mut self.needs_no_room);
        let only_verify = !needs_none
            && config.availability == Availability::Replace
            && !self.victims(&steps, count, |_| true).is_empty();
        let newest = self.serving.values().next_back().map(|serving| serving.live.clone());
        self.work = Work::Task { id, steps: steps.clone(), count, config: Arc::clone(config) };
        Task {
            id,
            model: Arc::clone(&self.name),
            config: Arc::clone(config),
            steps,
            count,
            only_verify,
            newest,
        }
    }

    /// What would not serve any more, or from other bytes, if what is loaded passed where `loads` says so.
    fn victims(
        &self,
        steps: &[TaskStep<L>],
        count: usize,
        loads: impl Fn(&TaskStep<L>) -> bool,
    ) -> BTreeSet<Version> {
        let loaded: BTreeSet<Version> = steps
            .iter()
            .filter(|step| matches!(step.what, What::Load { .. }) && loads(step))
            .map(|step| step.version)
            .collect();
        if loaded.is_empty() {
            return loaded;
        }
        let serves = |version: &Version| self.serving.contains_key(version);
        let selected = select(steps, count, |version| loaded.contains(&version) || serves(&version));
        let stays = |version: &Version| selected.contains(version) && !loaded.contains(version);
        self.serving.keys().copied().filter(|version| !stays(version)).collect()
    }

    /// A verified task whose versions need the place of what serves.
    pub(super) fn make_room(
        &mut self,
        outcomes: &[Outcome<L>],
        at: Moment,
        until: Instant,
    ) -> Vec<(Version, L)> {
        let Work::Task { steps, count, config, .. } = std::mem::replace(&mut self.work, Work::Nothing) else {
            return Vec::new();
        };
        self.record(&steps, outcomes, &config, at);
        for (step, outcome) in steps.iter().zip(outcomes) {
            if let Outcome::Same(digest) = outcome {
                self.found_same(step.version, step.files.clone(), *digest);
            }
        }
        let verified: BTreeSet<Version> = steps
            .iter()
            .zip(outcomes)
            .filter(|(step, outcome)| {
                matches!(outcome, Outcome::Verified) && self.is_wanted(step.version, &step.files, &config)
            })
            .map(|(step, _)| step.version)
            .collect();
        let victims = self.victims(&steps, count, |step| verified.contains(&step.version));
        let retired: Vec<_> = victims.into_iter().filter_map(|version| self.retire(version)).collect();
        if !retired.is_empty() {
            (self.work, self.made_room) = (Work::Memory(until), true);
        } else if !verified.is_empty() {
            // What needed room did not pass, and the rest needs none: it is not verified again and again.
            self.needs_no_room = true;
        }
        retired
    }

    /// A task is finished: what passed serves, what is not wanted any more does not.
    pub(super) fn finish(&mut self, outcomes: Vec<Outcome<L>>, at: Moment) -> Finished<L> {
        let mut finished = Finished { retired: Vec::new(), outdated: false };
        let Work::Task { steps, count, config, .. } = std::mem::replace(&mut self.work, Work::Nothing) else {
            return finished;
        };
        finished.outdated = self.config().is_none_or(|now| config.difference(&now) != Difference::None)
            || steps.iter().any(|step| step.stop.load(Ordering::Relaxed));
        self.record(&steps, &outcomes, &config, at);
        self.made_room = false;
        let copying = |outcome: &Outcome<L>| matches!(outcome, Outcome::Failed(not_passed) if not_passed.step == Step::Copy);
        let in_flux = outcomes.iter().any(copying);
        let passes: BTreeMap<Version, bool> = steps
            .iter()
            .zip(&outcomes)
            .map(|(step, outcome)| (step.version, outcome.passes(self.serving.contains_key(&step.version))))
            .collect();
        let mut selected = select(&steps, count, |version| passes.get(&version) == Some(&true));
        for (step, outcome) in steps.into_iter().zip(outcomes) {
            self.take(step, outcome, &config, &mut finished);
        }
        if finished.outdated {
            // It is planned again, and until then nothing is taken out of service.
            return finished;
        }
        selected.retain(|version| self.serving.contains_key(version));
        if selected.is_empty() && in_flux && !self.serving.is_empty() {
            // Nothing would be left, and the disk is not what it was at the last look: look again first.
            self.settling = Some(at.now + AGAIN);
            return finished;
        }
        finished.retired.extend(self.keep_only(selected, !passes.is_empty()));
        finished
    }

    /// Takes out of service what is not among these. When something is wanted and nothing of it passes,
    /// what serves goes on, as long as nobody removed it.
    pub(super) fn keep_only(&mut self, mut selected: BTreeSet<Version>, wanted: bool) -> Vec<(Version, L)> {
        if selected.is_empty() && wanted {
            let there = |version: &&Version| {
                [self.source(), self.disk.as_ref()]
                    .into_iter()
                    .flatten()
                    .any(|disk| disk.versions.contains_key(version))
                    && self.wish.versions.get(version) != Some(&false)
            };
            selected = self.serving.keys().filter(there).copied().collect();
        }
        let others: Vec<Version> =
            self.serving.keys().copied().filter(|version| !selected.contains(version)).collect();
        others.into_iter().filter_map(|version| self.retire(version)).collect()
    }

    /// Takes a version out of service.
    pub(super) fn retire(&mut self, version: Version) -> Option<(Version, L)> {
        let serving = self.serving.remove(&version)?;
        *self.draining.entry(version).or_default() += 1;
        Some((version, serving.live))
    }

    /// Puts one outcome into service.
    fn take(
        &mut self,
        step: TaskStep<L>,
        outcome: Outcome<L>,
        config: &Arc<ModelConfig>,
        finished: &mut Finished<L>,
    ) {
        let TaskStep { version, files, .. } = step;
        let (live, digest) = match outcome {
            Outcome::Loaded(live, digest) => (live, digest),
            Outcome::Rebound(live) => {
                let Some(digest) = self.serving.get(&version).map(|serving| serving.digest) else { return };
                info!(model = %self.name, %version, "its configuration has changed, and holds without loading it again");
                (live, digest)
            }
            Outcome::Same(digest) => return self.found_same(version, files, digest),
            Outcome::Untouched | Outcome::Verified | Outcome::StillBad | Outcome::Failed(_) => return,
        };
        if !self.is_wanted(version, &files, config) {
            *self.draining.entry(version).or_default() += 1;
            finished.retired.push((version, live));
            finished.outdated = true;
            return;
        }
        let serving = Serving { live, files, digest, config: Arc::clone(config) };
        if let Some(before) = self.serving.insert(version, serving) {
            *self.draining.entry(version).or_default() += 1;
            finished.retired.push((version, before.live));
        }
    }

    /// Only touched: the files are these now, and hold what serves.
    fn found_same(&mut self, version: Version, files: VersionOnDisk, digest: Digest) {
        if let Some(serving) = self.serving.get_mut(&version) {
            (serving.files, serving.digest) = (files, digest);
        }
    }

    /// Whether what was loaded is still what is there, so that nothing is published that was removed or
    /// replaced meanwhile.
    fn is_wanted(&self, version: Version, files: &VersionOnDisk, config: &ModelConfig) -> bool {
        self.source().is_some_and(|source| source.versions.get(&version) == Some(files))
            && self.config().is_some_and(|now| config.difference(&now) != Difference::Reload)
    }

    /// Keeps in mind what failed, and forgets it where it passed.
    fn record(
        &mut self,
        steps: &[TaskStep<L>],
        outcomes: &[Outcome<L>],
        config: &Arc<ModelConfig>,
        at: Moment,
    ) {
        for (step, outcome) in steps.iter().zip(outcomes) {
            match outcome {
                Outcome::Failed(not_passed) => self.record_failure(step, not_passed, config, at),
                Outcome::StillBad => {
                    if let Some(failed) = self.failed.get_mut(&step.version) {
                        failed.files = step.files.clone();
                    }
                }
                Outcome::Same(_) | Outcome::Rebound(_) | Outcome::Loaded(..) => {
                    self.failed.remove(&step.version);
                }
                Outcome::Untouched | Outcome::Verified => {}
            }
        }
    }

    fn record_failure(
        &mut self,
        step: &TaskStep<L>,
        not_passed: &NotPassed,
        config: &Arc<ModelConfig>,
        at: Moment,
    ) {
        let NotPassed { step: stage, reason, digest, for_good } = not_passed;
        let before = self.failed.get(&step.version).filter(|failed| {
            let same_bytes = digest.is_some() && failed.digest == *digest || failed.files == step.files;
            same_bytes && failed.config.difference(config) == Difference::None
        });
        let attempts = before.map_or(0, |failed| failed.shown.attempts).saturating_add(1);
        // What served had to go for it, and would again: it must change first.
        let had_to_go = self.made_room && matches!(stage, Step::Load | Step::Warm);
        let retries = self.retries && !had_to_go && !for_good;
        let delay = FIRST_RETRY.saturating_mul(1 << (attempts - 1).min(16)).min(LAST_RETRY);
        let next = retries.then_some(delay);
        self.log_failure(step.version, not_passed, attempts, next);
        let shown = Failure {
            reason: line(reason),
            step: *stage,
            attempts,
            last: at.wall,
            next: next.map(|delay| at.wall + delay),
        };
        let failed = Failed {
            files: step.files.clone(),
            config: Arc::clone(config),
            digest: *digest,
            retry: next.map(|delay| at.now + delay),
            shown,
        };
        self.failed.insert(step.version, failed);
    }

    /// A line for each attempt, but for a copy that is still going on: one when it is first seen, and one
    /// when nobody seems to be copying any more.
    fn log_failure(
        &mut self,
        version: Version,
        not_passed: &NotPassed,
        attempts: u32,
        next: Option<Duration>,
    ) {
        let (step, reason) = (&not_passed.step, line(&not_passed.reason));
        let (model, serves) = (&self.name, self.serving.contains_key(&version));
        let serves = if serves { ", its earlier content serves on" } else { "" };
        if *step == Step::Copy && attempts > WARN_INCOMPLETE {
            // Said already, and still so.
            self.news.push(*step);
            return;
        }
        if *step == Step::Copy && attempts < WARN_INCOMPLETE {
            let seen = self.failed.get(&version).is_some_and(|failed| failed.shown.step == Step::Copy);
            if !seen {
                info!(model = %model, %version, "waiting for it to be complete{serves}: {reason}");
            }
            return;
        }
        self.news.push(*step);
        let again_s = next.map(|delay| delay.as_secs());
        warn!(model = %model, %version, step = step.name(), attempts, again_s, "not served{serves}: {reason}");
    }

    /// When something that failed is to be tried again.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        let can = matches!(self.work, Work::Nothing) && !self.waits() && self.config().is_some();
        if !can {
            return None;
        }
        self.failed.values().filter_map(|failed| failed.retry).min()
    }

    /// Nothing is left of it.
    pub(super) fn is_over(&self) -> bool {
        let idle = matches!(self.work, Work::Nothing) && self.order.is_none() && self.orders.is_empty();
        idle && !self.named
            && self.disk.is_none()
            && self.wish.instead.is_none()
            && self.serving.is_empty()
            && self.draining.is_empty()
    }
}

/// The versions that serve if those pass: the first so many, and those that were asked for by number.
fn select<L>(steps: &[TaskStep<L>], count: usize, passes: impl Fn(Version) -> bool) -> BTreeSet<Version> {
    let mut left = count;
    let mut selected = BTreeSet::new();
    for step in steps.iter().filter(|step| passes(step.version)) {
        if step.forced || left > 0 {
            selected.insert(step.version);
        }
        left = left.saturating_sub(1);
    }
    selected
}
