//! All models: looks, outcomes, orders and the time go in, actions come out.
//!
//! Pure, as the scheduler is: it reads no file, starts no thread and asks no clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use sconce_repository::{ModelConfig, ModelOnDisk, Snapshot, Version};
use tracing::{info, warn};

use super::{
    Mode, Settings,
    carry::Answer,
    model::{Model, Moment, Waiting, Work},
    order::{Order, Refused},
    plan::{Outcome, Plan, Task, TaskId, What},
};
use crate::{
    table::{Route, Step},
    text::quote,
};

/// A model or version that is not there is looked for again before it is believed: between the steps of
/// a replacement (`ln -sfn`, `mv` and `mv`) it is away for a moment.
const REMOVAL_GRACE: Duration = Duration::from_millis(200);
/// When to look again at a text file that was just written.
const SETTLE: Duration = Duration::from_millis(250);
/// After what waited for a version has been refused, how long its runs may go on before its memory is not
/// waited for.
const AFTER_UNLOAD: Duration = Duration::from_secs(1);
/// Orders that may wait for one model.
const MAX_ORDERS: usize = 1024;

/// What has to be done, in this order.
#[derive(Debug)]
pub(super) enum Action<L> {
    /// On a loader's thread.
    Load(Task<L>),
    /// All at once. `None`: the model is gone.
    Publish(Vec<(Arc<str>, Option<Route<L>>)>),
    /// It is out of service; say so when it is gone.
    Retire { model: Arc<str>, version: Version, live: L },
    /// Now that it is public.
    Answer(Answer),
    /// An attempt to load a version of it has not passed this step.
    Failed { model: Arc<str>, step: Step },
    /// The first look has been worked through.
    Settled,
}

/// The state of everything.
#[derive(Debug)]
pub(super) struct Machine<L> {
    mode: Mode,
    load_threads: usize,
    root_grace: Duration,
    unload_timeout: Duration,
    models: BTreeMap<Arc<str>, Model<L>>,
    /// Tasks that wait for a loader.
    pending: Vec<(Arc<str>, Task<L>)>,
    /// Tasks that loaders have.
    running: BTreeMap<TaskId, Arc<str>>,
    last_task: u64,
    /// Models of the first look that have not been worked through; `None` before it and after that.
    first: Option<BTreeSet<Arc<str>>>,
    looked: bool,
    changed: BTreeSet<Arc<str>>,
    retired: Vec<Action<L>>,
    answers: Vec<Answer>,
}

impl<L: Clone> Machine<L> {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            mode: settings.mode.clone(),
            load_threads: settings.load_threads.max(1),
            root_grace: settings.missing_repository_timeout,
            unload_timeout: settings.unload_timeout + AFTER_UNLOAD,
            models: BTreeMap::new(),
            pending: Vec::new(),
            running: BTreeMap::new(),
            last_task: 0,
            first: None,
            looked: false,
            changed: BTreeSet::new(),
            retired: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// What has to be done since this was last asked.
    pub(super) fn take_actions(&mut self) -> Vec<Action<L>> {
        let mut actions = self.start_tasks();
        if !self.changed.is_empty() {
            let changed = std::mem::take(&mut self.changed);
            for (name, model) in &mut self.models {
                let news = model.news.drain(..);
                actions.extend(news.map(|step| Action::Failed { model: Arc::clone(name), step }));
            }
            let rows = changed.into_iter().map(|name| {
                let route = self.models.get(&name).map(Model::route);
                (name, route)
            });
            // Before anything is retired: what serves is public first.
            actions.insert(0, Action::Publish(rows.collect()));
        }
        actions.append(&mut self.retired);
        actions.extend(self.answers.drain(..).map(Action::Answer));
        if self.first.as_ref().is_some_and(BTreeSet::is_empty) {
            self.first = None;
            actions.push(Action::Settled);
        }
        actions
    }

    /// When something is due though nothing happens: a look, another attempt, or the end of a wait.
    pub(super) fn next(&self) -> Option<Instant> {
        let looks = self.models.values().filter_map(|model| self.next_look(model));
        let others =
            self.models.values().flat_map(|model| [model.next_retry(), model.waits_until()]).flatten();
        looks.chain(others).min()
    }

    /// Whether that is a look.
    pub(super) fn wants_look(&self, now: Instant) -> bool {
        self.models.values().any(|model| self.next_look(model).is_some_and(|due| due <= now))
    }

    fn next_look(&self, model: &Model<L>) -> Option<Instant> {
        let gone = model.gone.map(|(since, root)| since + self.grace(root));
        let absent = model.absent.values().min().map(|since| *since + REMOVAL_GRACE);
        [gone, absent, model.settling].into_iter().flatten().min()
    }

    fn grace(&self, root: bool) -> Duration {
        if root { self.root_grace } else { REMOVAL_GRACE }
    }

    /// The time has come for something.
    pub(super) fn tick(&mut self, at: Moment) {
        let is_due = |due: Option<Instant>| due.is_some_and(|due| due <= at.now);
        let names: Vec<Arc<str>> = self.models.keys().cloned().collect();
        for name in names {
            let Some(model) = self.models.get_mut(&name) else { continue };
            if is_due(model.waits_until()) {
                warn!(model = %name, "its memory is not free in time: a run of it does not end; going on");
                model.work = Work::Nothing;
                self.answers.extend(model.answer_unload(false));
                self.advance(&name, at);
            } else if is_due(model.next_retry()) {
                self.advance(&name, at);
            }
        }
    }

    /// A look at everything.
    pub(super) fn seen(&mut self, snapshot: Snapshot, at: Moment) {
        let Snapshot { models: mut found, absent_roots, .. } = snapshot;
        let names: Vec<Arc<str>> = self.models.keys().cloned().collect();
        for name in names {
            let Some(model) = self.models.get_mut(&name) else { continue };
            let Some(disk) = &model.disk else { continue };
            let root = absent_roots.contains(&disk.root);
            // While its repository is away, another's model of that name does not take its place.
            let is_there = |found: &ModelOnDisk| !root || found.root == disk.root;
            if found.get(&*name).is_some_and(is_there) {
                continue;
            }
            let since = model.gone.filter(|gone| gone.1 == root).map_or(at.now, |gone| gone.0);
            model.gone = Some((since, root));
            // What is not there is in the middle of nothing else.
            model.settling = None;
            model.absent.clear();
            if at.now >= since + if root { self.root_grace } else { REMOVAL_GRACE } {
                info!(model = %name, "it is not in the repository any more");
                (model.disk, model.gone) = (None, None);
                self.disk_changed(&name, at);
            } else {
                found.remove(&*name);
            }
        }
        let first = !self.looked;
        if first {
            self.looked = true;
            self.first = Some(found.keys().map(|name| name.as_str().into()).collect());
        }
        for (name, disk) in found {
            self.seen_model(&name, disk, at);
        }
        if first {
            self.load_named(at);
        }
    }

    fn seen_model(&mut self, name: &str, mut disk: ModelOnDisk, at: Moment) {
        let (follows, retries) = (self.mode.follows() || self.mode == Mode::Once, self.mode.follows());
        let model =
            self.models.entry(name.into()).or_insert_with_key(|name| Model::new(name, follows, retries));
        let came_back = model.gone.take().is_some();
        if !disk.readable
            && let Some(before) = &model.disk
        {
            // What cannot be read at the moment has not been removed.
            disk.versions.clone_from(&before.versions);
        }
        let settled = model.settling.take().is_some() && !disk.settling;
        model.settling = disk.settling.then_some(at.now + SETTLE);
        let removed;
        if follows && model.wish.instead.is_none() {
            let versions = &disk.versions;
            model.absent.retain(|version, _| !versions.contains_key(version));
            for version in model.serving.keys().filter(|version| !versions.contains_key(version)) {
                model.absent.entry(*version).or_insert(at.now);
            }
            // The plan takes them out of service.
            removed = model.absent.values().any(|since| at.now >= *since + REMOVAL_GRACE);
            if removed {
                model.absent.clear();
            }
        } else {
            // What is missed does not matter any more.
            removed = !model.absent.is_empty();
            model.absent.clear();
        }
        let changed = model.disk.as_deref() != Some(&disk);
        let name = Arc::clone(&model.name);
        if changed {
            model.look_at_config(&disk);
            model.disk = Some(Arc::new(disk));
            if model.named && model.taken.is_none() {
                model.taken.clone_from(&model.disk);
            }
            self.disk_changed(&name, at);
        } else if removed || came_back || settled {
            self.advance(&name, at);
        }
    }

    /// What was found on disk is not what it was.
    fn disk_changed(&mut self, name: &Arc<str>, at: Moment) {
        let Some(model) = self.models.get_mut(name) else { return };
        if let Work::Task { id, steps, .. } = &model.work {
            if let Some(waits) = self.pending.iter().position(|(_, task)| task.id == *id) {
                self.pending.swap_remove(waits);
                model.work = Work::Nothing;
                model.fresh |= model.order.is_some();
            } else {
                let versions = model.source().map(|source| &source.versions);
                for step in steps.iter().filter(|step| matches!(step.what, What::Load { .. })) {
                    let now = versions.and_then(|versions| versions.get(&step.version));
                    step.stop.fetch_or(now != Some(&step.files), Ordering::Relaxed);
                }
            }
        }
        self.advance(name, at);
    }

    /// What is named at start, where nothing serves unless asked for.
    fn load_named(&mut self, at: Moment) {
        let Mode::Explicit { models, all } = self.mode.clone() else { return };
        let mut names: BTreeSet<Arc<str>> = models.iter().map(|name| name.as_str().into()).collect();
        if all {
            names.extend(self.models.keys().cloned());
        }
        // So far nothing was wanted, and all of it has been worked through.
        self.first = Some(names.clone());
        for name in names {
            let model = self
                .models
                .entry(Arc::clone(&name))
                .or_insert_with_key(|name| Model::new(name, false, false));
            model.named = true;
            if model.disk.is_none() {
                warn!(model = %name, "it is to be loaded at start, but it is not in the model repository; it is waited for");
            }
            model.wish.policy = true;
            model.taken.clone_from(&model.disk);
            self.advance(&name, at);
        }
    }

    /// An operator asks for something.
    pub(super) fn order(&mut self, name: &str, (order, reply): Waiting, at: Moment) {
        let known = self.models.contains_key(name);
        if !known && !matches!(order, Order::Load { instead: Some(_), .. }) {
            let outcome = match order {
                Order::Load { .. } => Err(not_found(name)),
                // As Triton does: what is not there is unloaded already.
                Order::Unload { .. } => Ok(()),
            };
            let _ = reply.send(outcome);
            return;
        }
        let (follows, retries) = (self.mode.follows(), self.mode.follows());
        let model =
            self.models.entry(name.into()).or_insert_with_key(|name| Model::new(name, follows, retries));
        // Whoever has gone may have left files behind that wait with the order.
        model.orders.retain(|(_, reply)| !reply.is_closed());
        if model.orders.len() >= MAX_ORDERS {
            let text = format!("{MAX_ORDERS} orders for model '{}' wait already; retry later", quote(name));
            let _ = reply.send(Err(Refused::NotNow(text)));
            return;
        }
        if let (Order::Unload { version: None }, None, Work::Task { steps, .. }) =
            (&order, &model.order, &model.work)
        {
            // Nobody needs what is being loaded.
            steps.iter().for_each(|step| step.stop.store(true, Ordering::Relaxed));
        }
        model.orders.push_back((order, reply));
        let name = Arc::clone(&model.name);
        self.advance(&name, at);
    }

    /// A loader is done.
    pub(super) fn finished(&mut self, id: TaskId, outcomes: Vec<Outcome<L>>, only_verify: bool, at: Moment) {
        let Some(name) = self.running.remove(&id) else { return };
        let until = at.now + self.unload_timeout;
        let Some(model) = self.models.get_mut(&name) else { return };
        let (retired, again) = if only_verify {
            // With room made, or nothing in the way any more, it is planned again and loaded.
            let passed =
                outcomes.iter().any(|outcome| matches!(outcome, Outcome::Verified | Outcome::Same(_)));
            (model.make_room(&outcomes, at, until), passed)
        } else {
            let finished = model.finish(outcomes, at);
            (finished.retired, finished.outdated)
        };
        model.fresh |= again && model.order.is_some();
        self.retire(&name, retired);
        self.advance(&name, at);
    }

    /// The memory of a version that was taken out of service is free.
    pub(super) fn freed(&mut self, name: &str, version: Version, at: Moment) {
        let Some(model) = self.models.get_mut(name) else { return };
        if let Some(count) = model.draining.get_mut(&version) {
            *count -= 1;
            if *count == 0 {
                model.draining.remove(&version);
            }
        }
        let name = Arc::clone(&model.name);
        self.changed.insert(Arc::clone(&name));
        if matches!(model.work, Work::Memory(_)) && model.draining.is_empty() {
            model.work = Work::Nothing;
            self.answers.extend(model.answer_unload(true));
            self.advance(&name, at);
        } else {
            self.forget_if_over(&name);
        }
    }

    /// Does whatever can be done for a model now.
    fn advance(&mut self, name: &Arc<str>, at: Moment) {
        self.changed.insert(Arc::clone(name));
        while self.turn(name, at) {}
        self.forget_if_over(name);
    }

    /// One step of that; whether there is another.
    fn turn(&mut self, name: &Arc<str>, at: Moment) -> bool {
        let (follows, until) = (self.mode.follows(), at.now + self.unload_timeout);
        let Some(model) = self.models.get_mut(name) else { return false };
        let begun = model.next_order(follows, until);
        let idle = matches!(model.work, Work::Nothing) && !model.waits();
        let planned = idle.then(|| {
            let first_try = model.try_order(follows);
            (model.plan(at.now, first_try), first_try)
        });
        self.answers.extend(begun.answers);
        self.retire(name, begun.retired);
        match planned {
            None => false,
            Some((Some((config, plan)), first_try)) if plan.has_work() => {
                self.begin(name, &config, plan, first_try)
            }
            Some((plan, _)) => self.rest(name, plan.map(|(_, plan)| plan).as_ref()),
        }
    }

    fn begin(&mut self, name: &Arc<str>, config: &Arc<ModelConfig>, plan: Plan<L>, first_try: bool) -> bool {
        let Some(model) = self.models.get_mut(name) else { return false };
        model.failed.retain(|version, _| plan.doubtful.contains(version));
        if !first_try && let Some(answer) = model.answer_load() {
            // More has changed since; the order was for what was there when it came.
            self.answers.push(answer);
            return true;
        }
        self.last_task += 1;
        let task = model.begin(TaskId(self.last_task), config, plan);
        self.pending.push((Arc::clone(name), task));
        false
    }

    /// Nothing has to be loaded: what is not wanted any more goes.
    fn rest(&mut self, name: &Arc<str>, plan: Option<&Plan<L>>) -> bool {
        let Some(model) = self.models.get_mut(name) else { return false };
        let retired = match plan {
            Some(plan) => {
                model.failed.retain(|version, _| plan.doubtful.contains(version));
                model.keep_only(plan.stays(), plan.wanted)
            }
            // Its configuration is wrong: what serves goes on, unless it was removed.
            None => {
                let there = model.source().map(|source| source.versions.keys().copied().collect());
                model.keep_only(there.unwrap_or_default(), model.wish.instead.is_some())
            }
        };
        let answer = model.answer_load();
        // Perhaps with another order, or by what was wished before this one.
        let more = answer.is_some() || matches!(model.work, Work::Nothing) && !model.orders.is_empty();
        self.answers.extend(answer);
        self.retire(name, retired);
        self.worked_through(name);
        more
    }

    fn worked_through(&mut self, name: &Arc<str>) {
        if let Some(first) = &mut self.first {
            first.remove(name);
        }
    }

    fn forget_if_over(&mut self, name: &Arc<str>) {
        if self.models.get(name).is_some_and(Model::is_over) {
            self.models.remove(name);
            self.worked_through(name);
        }
    }

    fn retire(&mut self, model: &Arc<str>, retired: Vec<(Version, L)>) {
        for (version, live) in retired {
            let replaced = self.models.get(model).is_some_and(|model| model.serving.contains_key(&version));
            if !replaced {
                info!(model = %model, %version, "out of service");
            }
            self.retired.push(Action::Retire { model: Arc::clone(model), version, live });
        }
    }

    /// Gives tasks to free loaders: what serves already before what does not, small before large.
    fn start_tasks(&mut self) -> Vec<Action<L>> {
        let mut started = Vec::new();
        while self.running.len() < self.load_threads {
            let key = |(name, task): &(Arc<str>, Task<L>)| {
                let size: u64 = task
                    .steps
                    .iter()
                    .filter(|step| matches!(step.what, What::Load { .. }))
                    .map(|step| step.files.size())
                    .sum();
                (task.newest.is_none(), size, Arc::clone(name))
            };
            let Some(next) = (0..self.pending.len()).min_by_key(|index| key(&self.pending[*index])) else {
                break;
            };
            let (name, task) = self.pending.swap_remove(next);
            self.running.insert(task.id, name);
            started.push(Action::Load(task));
        }
        started
    }
}

/// Triton's text.
pub(super) fn not_found(name: &str) -> Refused {
    Refused::NotFound(format!(
        "failed to load '{}', failed to poll from model repository: it is in none",
        quote(name)
    ))
}

#[cfg(test)]
#[path = "machine_properties.rs"]
mod properties;
#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
#[cfg(test)]
#[path = "machine_world.rs"]
mod world;
