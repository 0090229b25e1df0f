//! One task on a thread of its own: each version is verified, loaded, bound and warmed, and nothing of it
//! is visible before all are done.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use sconce_repository::{Difference, Digest, Digests, ModelConfig, Snapshot, Version, VersionOnDisk, verify};
use tracing::info;

use super::{
    driver::Parts,
    place::place,
    plan::{NotPassed, Outcome, Task, TaskStep, What},
};
use crate::{
    backend::LoadError, binding::Binding, examples::Example, model::LiveVersion, observe::LoadRun,
    stats::LoadOutcome, table::Step, warm::warm,
};

type Live = Arc<LiveVersion>;

/// What loads.
pub(super) struct Loader {
    parts: Parts,
    digests: Digests,
    examples: Mutex<BTreeMap<Arc<str>, Vec<Example>>>,
}

/// When each step began and ended, as far as it came.
struct Steps {
    started: Instant,
    ended: Vec<(Step, Instant, Instant)>,
}

impl Steps {
    fn begin() -> Self {
        Self { started: Instant::now(), ended: Vec::new() }
    }

    /// This step has ended now; it began when the one before had.
    fn end(&mut self, step: Step) {
        let begun = self.ended.last().map_or(self.started, |(.., end)| *end);
        self.ended.push((step, begun, Instant::now()));
    }

    /// How long it took in all, up to the end of the last step.
    fn all(&self) -> Duration {
        self.ended.last().map_or(Duration::ZERO, |(.., end)| end.saturating_duration_since(self.started))
    }

    fn millis(&self, step: Step) -> u64 {
        let took = self.ended.iter().filter(|(ended, ..)| *ended == step);
        let took: Duration = took.map(|(_, begin, end)| end.saturating_duration_since(*begin)).sum();
        u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Loader {
    pub(super) fn new(parts: &Parts) -> Self {
        Self { parts: parts.clone(), digests: Digests::default(), examples: Mutex::default() }
    }

    /// Keeps in mind the digests of these files only, and what these models were asked.
    pub(super) fn forget_others(&self, snapshot: &Snapshot) {
        let versions = snapshot.models.values().flat_map(|model| model.versions.values());
        let stamps = versions.flat_map(|version| &version.files).filter_map(|file| file.stamp);
        self.digests.retain(&stamps.collect());
        let mut examples = self.examples.lock().unwrap_or_else(PoisonError::into_inner);
        examples.retain(|model, _| snapshot.models.contains_key(&**model));
    }

    /// One outcome for each step. Those that are not needed, because enough before them passed, are left
    /// untouched.
    pub(super) fn run(&self, task: &Task<Live>) -> Vec<Outcome<Live>> {
        self.parts.backend.enter_loader();
        self.examples(task);
        let mut left = task.count;
        let mut outcomes = Vec::with_capacity(task.steps.len());
        for step in &task.steps {
            let serves = !matches!(step.what, What::Load { serving: None, .. });
            if !step.forced && left == 0 || step.stop.load(Ordering::Relaxed) {
                outcomes.push(Outcome::Untouched);
                continue;
            }
            let mut steps = Steps::begin();
            let run = AssertUnwindSafe(|| self.step(task, step, &mut steps));
            let outcome = catch_unwind(run).unwrap_or_else(|_| {
                let reason = "the backend panicked while loading it; this is a bug, see the log".to_owned();
                Outcome::Failed(NotPassed { step: Step::Load, reason, digest: None, for_good: false })
            });
            self.tell(task, step.version, &outcome, &mut steps);
            let passes = outcome.passes(serves) || matches!(outcome, Outcome::Verified);
            left = left.saturating_sub(usize::from(passes));
            outcomes.push(outcome);
        }
        outcomes
    }

    /// Counts what came of an attempt, and tells whoever traces.
    fn tell(&self, task: &Task<Live>, version: Version, outcome: &Outcome<Live>, steps: &mut Steps) {
        let pool = &self.parts.pool;
        let (told, reason) = match outcome {
            Outcome::Loaded(..) => (LoadOutcome::Loaded, None),
            Outcome::Same(_) => (LoadOutcome::Unchanged, None),
            Outcome::Rebound(_) => (LoadOutcome::Rebound, None),
            Outcome::Failed(failed) => (LoadOutcome::Failed(failed.step), Some(&*failed.reason)),
            Outcome::Untouched | Outcome::Verified | Outcome::StillBad => return,
        };
        if let LoadOutcome::Failed(step) = told {
            steps.end(step);
        } else {
            let took = (told == LoadOutcome::Loaded).then(|| steps.all());
            // Failures are counted where it is known whether they are news.
            pool.stats().load(&task.model, told, took);
        }
        let (started, outcome, steps) = (steps.started, told.name(), &*steps.ended);
        pool.observer().load(&LoadRun { model: &task.model, version, started, steps, outcome, reason });
    }

    fn step(&self, task: &Task<Live>, step: &TaskStep<Live>, steps: &mut Steps) -> Outcome<Live> {
        let outcome = match &step.what {
            What::Keep => Ok(Outcome::Untouched),
            What::Rebind(_) if task.only_verify => Ok(Outcome::Untouched),
            What::Rebind(live) => match self.rebind(live, &task.config) {
                Ok(Some(live)) => Ok(Outcome::Rebound(live)),
                Ok(None) => self.load(task, step, None, None, steps),
                Err(error) => {
                    Err(NotPassed { step: Step::Load, reason: error.reason, digest: None, for_good: false })
                }
            },
            What::Load { serving, failed } => self.load(task, step, serving.as_ref(), *failed, steps),
        };
        outcome.unwrap_or_else(Outcome::Failed)
    }

    fn load(
        &self,
        task: &Task<Live>,
        step: &TaskStep<Live>,
        serving: Option<&(Live, Digest, Difference)>,
        failed: Option<Digest>,
        steps: &mut Steps,
    ) -> Result<Outcome<Live>, NotPassed> {
        let digest = self.digest(&step.files)?;
        if failed == Some(digest) {
            return Ok(Outcome::StillBad);
        }
        let not_passed = |step: Step| {
            move |error: LoadError| NotPassed {
                step: if error.waiting { Step::Copy } else { step },
                reason: error.reason,
                digest: Some(digest),
                for_good: error.hangs,
            }
        };
        match serving {
            Some((_, same, Difference::None)) if *same == digest => return Ok(Outcome::Same(digest)),
            // It is planned again, and then not verified again.
            Some((_, same, Difference::InPlace)) if *same == digest && task.only_verify => {
                return Ok(Outcome::Same(digest));
            }
            Some((live, same, Difference::InPlace)) if *same == digest => {
                if let Some(live) = self.rebind(live, &task.config).map_err(not_passed(Step::Load))? {
                    return Ok(Outcome::Rebound(live));
                }
            }
            _ => {}
        }
        self.parts.backend.verify(&step.files.model_file()).map_err(not_passed(Step::Verify))?;
        steps.end(Step::Verify);
        if task.only_verify {
            return Ok(Outcome::Verified);
        }
        let mut live = self.open(step, &task.config).map_err(not_passed(Step::Load))?;
        live.digest = Some(digest);
        // What was loaded must be what is there.
        if !step.files.is_as_seen() {
            let reason = "it was changed while it was being loaded".to_owned();
            return Err(NotPassed { step: Step::Copy, reason, digest: None, for_good: false });
        }
        steps.end(Step::Load);
        let examples = self.examples(task);
        // What it costs is much like what the version before it did, and service tells the rest.
        let known = task.newest.as_ref().inspect(|newest| live.inherit_costs(newest)).is_some();
        let warmed =
            warm(&self.parts.pool, &live, &examples, !known, &step.stop).map_err(not_passed(Step::Warm))?;
        if step.stop.load(Ordering::Relaxed) {
            // Perhaps not warm, and not wanted as it is: nothing that is not warm may serve.
            return Ok(Outcome::Untouched);
        }
        steps.end(Step::Warm);
        live.load_took = Some(steps.all());
        let runs = warmed.iter().map(|warmed| warmed.runs).sum();
        say_loaded(task, step, steps, digest, runs);
        Ok(Outcome::Loaded(Arc::new(live), digest))
    }

    /// What the model was asked last, by any version: the one before this may be gone, or have served nobody.
    fn examples(&self, task: &Task<Live>) -> Vec<Example> {
        let mut known = self.examples.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = task.newest.as_ref().map(|newest| newest.examples()).unwrap_or_default();
        if !newest.is_empty() {
            known.insert(Arc::clone(&task.model), newest);
        }
        known.get(&task.model).cloned().unwrap_or_default()
    }

    /// Which bytes a version is, when it is complete.
    fn digest(&self, files: &VersionOnDisk) -> Result<Digest, NotPassed> {
        let failed = |waiting: bool, reason: String| NotPassed {
            step: if waiting { Step::Copy } else { Step::Verify },
            reason,
            digest: None,
            for_good: false,
        };
        // Cheap, and answers for most copies that are still going on.
        self.parts
            .backend
            .precheck(&files.model_file())
            .map_err(|error| failed(error.waiting, error.reason))?;
        verify(files, &self.digests).map_err(|error| failed(error.waiting, error.reason))
    }

    /// Opens a version, binds its names, puts its weights on every device where it may run.
    fn open(&self, step: &TaskStep<Live>, config: &Arc<ModelConfig>) -> Result<LiveVersion, LoadError> {
        let Parts { backend, pool, reaper, .. } = &self.parts;
        let opened = backend.open(step.files.model_file(), config)?;
        LiveVersion::open(&*opened, config, step.version, place(config, pool)?, pool, reaper)
    }

    /// The same weights by another configuration; `None` when it names devices on which they are not.
    fn rebind(&self, live: &Live, config: &Arc<ModelConfig>) -> Result<Option<Live>, LoadError> {
        let binding = Binding::with_step(config, &live.schema, live.step_schema.as_deref())?;
        let placements = place(config, &self.parts.pool)?;
        Ok(live.reconfigured(Arc::clone(config), binding, &placements).map(Arc::new))
    }
}

fn say_loaded(task: &Task<Live>, step: &TaskStep<Live>, took: &Steps, digest: Digest, warm_runs: usize) {
    info!(
        model = %task.model,
        version = %step.version,
        took_ms = u64::try_from(took.all().as_millis()).unwrap_or(u64::MAX),
        verify_ms = took.millis(Step::Verify),
        load_ms = took.millis(Step::Load),
        warm_ms = took.millis(Step::Warm),
        warm_runs,
        sha256 = %&digest.to_string()[..12],
        "loaded"
    );
}
