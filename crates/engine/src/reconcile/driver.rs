//! The thread that looks at the repositories, runs the machine and does what it says. It is the only
//! writer of routes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use sconce_repository::{Scanner, Version, Watch, Watcher, needs_polling};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::{
    Mode, Order, Refused, Settings,
    load::Loader,
    machine::{Action, Machine},
    model::{Moment, Waiting},
    plan::{Outcome, Task, TaskId, What},
};
use crate::{
    backend::Backend, background, model::LiveVersion, pool::Pool, reaper::Reaper, stats::LoadOutcome,
    table::Table, text::quote,
};

/// A change is looked at when nothing more has happened for so long,
const QUIET: Duration = Duration::from_millis(50);
/// or when it has been going on for so long.
const PATIENCE: Duration = Duration::from_millis(500);
/// A look without a cause, where the system tells of changes: nothing stays missed for longer.
const RESCAN: Duration = Duration::from_secs(60);
/// Between two turns that nothing from outside asks for.
const SHORTEST_TURN: Duration = Duration::from_millis(10);
/// Between two looks at the roots themselves: nothing tells that a volume was mounted over one.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// What the reconciler works with.
#[derive(Clone)]
pub struct Parts {
    /// Loads versions.
    pub backend: Arc<dyn Backend>,
    /// Runs them.
    pub pool: Pool,
    /// Lets them go.
    pub reaper: Reaper,
    /// Where they are published.
    pub table: Arc<Table>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

type Live = Arc<LiveVersion>;

/// What wakes the thread.
enum Event {
    /// Something may have changed on disk.
    Look,
    Finished {
        id: TaskId,
        outcomes: Vec<Outcome<Live>>,
        only_verify: bool,
    },
    Freed {
        model: Arc<str>,
        version: Version,
    },
    Order {
        model: String,
        order: Waiting,
    },
}

/// Makes the table follow the repositories, until the process ends. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Reconciler {
    events: Sender<Event>,
}

impl Reconciler {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(settings: Settings, parts: Parts) -> io::Result<Self> {
        let (events, received) = mpsc::channel();
        let mut driver = Driver::new(settings, parts, events.clone(), received);
        thread::Builder::new().name("reconcile".to_owned()).spawn(move || {
            if catch_unwind(AssertUnwindSafe(|| driver.run())).is_err() {
                error!("following the model repository panicked: what serves goes on, changes are not seen; this is a bug");
            }
        })?;
        Ok(Self { events })
    }

    /// Carries out an order, after those that came before it for the same model.
    ///
    /// # Errors
    /// Why it had not the effect that was asked for.
    pub async fn order(&self, model: String, order: Order) -> Result<(), Refused> {
        let (reply, outcome) = oneshot::channel();
        let gone =
            || Refused::NotNow("the model repository is not followed any more; see the log".to_owned());
        self.events.send(Event::Order { model, order: (order, reply) }).map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }
}

/// When something last happened on disk, as the watcher's thread tells it: it must not be held up, and a
/// storm of events must not become a queue of them.
#[derive(Debug)]
struct Bell {
    start: Instant,
    /// Microseconds from `start`.
    last: AtomicU64,
    rung: AtomicBool,
}

impl Bell {
    fn ring(&self, events: &Sender<Event>) {
        let now = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
        if !self.rung.swap(true, Ordering::AcqRel) {
            let _ = events.send(Event::Look);
        }
    }

    fn last(&self) -> Instant {
        self.start + Duration::from_micros(self.last.load(Ordering::Relaxed))
    }
}

struct Driver {
    settings: Settings,
    parts: Parts,
    events: Sender<Event>,
    received: Receiver<Event>,
    machine: Machine<Live>,
    scanner: Scanner,
    watcher: Option<Watcher>,
    loader: Arc<Loader>,
    bell: Arc<Bell>,
    /// Orders that came together: one look is enough for them.
    orders: Vec<(String, Waiting)>,
    /// Something has happened first then, and has not been looked at.
    unrest: Option<Instant>,
    last_look: Instant,
    last_turn: Instant,
    last_heartbeat: Instant,
    /// What was wrong at the last look, so that it is said once.
    said: BTreeSet<String>,
    /// The roots that were not there.
    away: BTreeSet<PathBuf>,
    trouble: Option<String>,
    /// The directories that are watched, and why the system tells nothing of some.
    watched: Watch,
    not_told: BTreeMap<PathBuf, String>,
}

impl Driver {
    fn new(settings: Settings, parts: Parts, events: Sender<Event>, received: Receiver<Event>) -> Self {
        let now = Instant::now();
        let bell = Arc::new(Bell { start: now, last: AtomicU64::new(0), rung: AtomicBool::new(false) });
        let watcher = matches!(settings.mode, Mode::Watch | Mode::Explicit { .. }).then(|| {
            let (bell, events) = (Arc::clone(&bell), events.clone());
            Watcher::new(move || bell.ring(&events))
        });
        Self {
            machine: Machine::new(&settings),
            scanner: Scanner::new(settings.roots.clone(), settings.confine_symlinks),
            watcher,
            loader: Arc::new(Loader::new(&parts)),
            settings,
            parts,
            events,
            received,
            bell,
            orders: Vec::new(),
            unrest: None,
            last_look: now,
            last_turn: now,
            last_heartbeat: now,
            said: BTreeSet::new(),
            away: BTreeSet::new(),
            trouble: None,
            watched: Watch::new(),
            not_told: BTreeMap::new(),
        }
    }

    fn run(&mut self) {
        self.look();
        loop {
            self.act();
            let event = match self.due() {
                None => self.received.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(due) => self.received.recv_timeout(due.saturating_duration_since(Instant::now())),
            };
            match event {
                Ok(event) => self.take(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // What else has come by now is one change.
            while let Ok(event) = self.received.try_recv() {
                self.take(event);
            }
            // What has been loaded does not wait for a look.
            self.act();
            // Whoever has just written a file and asks for it means the file as it is now.
            if !self.orders.is_empty() || self.wants_look() {
                self.look();
            }
            for (model, order) in std::mem::take(&mut self.orders) {
                self.machine.order(&model, order, moment());
            }
            self.machine.tick(moment());
            self.last_turn = Instant::now();
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Look => self.unrest = self.unrest.or(Some(Instant::now())),
            Event::Finished { id, outcomes, only_verify } => {
                self.machine.finished(id, outcomes, only_verify, moment());
            }
            Event::Freed { model, version } => self.machine.freed(&model, version, moment()),
            Event::Order { model, order } => self.orders.push((model, order)),
        }
    }

    /// When something is to be done though nothing comes.
    fn due(&self) -> Option<Instant> {
        let quiet = self.unrest.map(|since| (self.bell.last() + QUIET).min(since + PATIENCE));
        let follow = (self.settings.mode != Mode::Once)
            .then(|| (self.last_look + self.interval()).min(self.last_heartbeat + HEARTBEAT));
        // Should the machine ever ask for what is past, it may not take a whole core.
        let machine = self.machine.next().map(|due| due.max(self.last_turn + SHORTEST_TURN));
        [quiet, follow, machine].into_iter().flatten().min()
    }

    fn interval(&self) -> Duration {
        let told = self.watcher.is_some() && self.trouble.is_none();
        if told { RESCAN } else { self.settings.poll_interval }
    }

    fn wants_look(&mut self) -> bool {
        let now = Instant::now();
        let is_over = |since: Instant| now >= (self.bell.last() + QUIET).min(since + PATIENCE);
        if self.unrest.is_some_and(is_over) || self.machine.wants_look(now) {
            return true;
        }
        if self.settings.mode == Mode::Once {
            return false;
        }
        if now >= self.last_look + self.interval() {
            return true;
        }
        if now < self.last_heartbeat + HEARTBEAT {
            return false;
        }
        self.last_heartbeat = now;
        self.scanner.roots_changed()
    }

    fn look(&mut self) {
        self.unrest = None;
        // From here on an event means another look.
        self.bell.rung.store(false, Ordering::Release);
        let snapshot = self.scanner.look();
        self.last_look = Instant::now();
        if let Some(watcher) = &mut self.watcher {
            if watcher.set(&snapshot.watch) {
                // It may have changed before it was watched.
                self.bell.ring(&self.events);
            }
            if snapshot.watch != self.watched {
                self.not_told.retain(|dir, _| snapshot.watch.contains_key(dir));
                let new = snapshot.watch.keys().filter(|dir| !self.watched.contains_key(*dir));
                self.not_told.extend(new.filter_map(|dir| {
                    needs_polling(dir).map(|why| (dir.clone(), format!("{} {why}", shown(dir))))
                }));
                self.watched.clone_from(&snapshot.watch);
            }
            let trouble = watcher.trouble().or_else(|| self.not_told.values().next().cloned());
            if trouble != self.trouble {
                let every = humantime(self.settings.poll_interval);
                match &trouble {
                    Some(why) => {
                        warn!("the repository is looked at every {every} in place of being watched: {why}")
                    }
                    None => info!("the repository is watched"),
                }
                self.trouble = trouble;
            }
        }
        for root in snapshot.absent_roots.difference(&self.away) {
            let time = humantime(self.settings.missing_repository_timeout);
            warn!(
                "{} is not there: its models serve on, and are unloaded if it is not back in {time}",
                shown(root)
            );
        }
        for root in self.away.difference(&snapshot.absent_roots) {
            info!("{} is there again", shown(root));
        }
        self.away.clone_from(&snapshot.absent_roots);
        let problems: BTreeSet<String> = snapshot.problems.iter().map(ToString::to_string).collect();
        for problem in problems.difference(&self.said) {
            warn!("{problem}");
        }
        self.said = problems;
        self.loader.forget_others(&snapshot);
        let models = snapshot.models.iter().map(|(name, model)| (Arc::<str>::from(name.as_str()), model));
        let versions = models.flat_map(|(name, model)| {
            model.versions.keys().map(move |version| (Arc::clone(&name), *version))
        });
        self.parts.pool.stats().set_on_disk(versions);
        self.machine.seen(snapshot, moment());
    }

    fn act(&mut self) {
        for action in self.machine.take_actions() {
            match action {
                Action::Load(task) => self.load(task),
                Action::Publish(routes) => {
                    self.parts.table.change(|table| {
                        for (name, route) in routes {
                            table.set_route(&name, route);
                        }
                    });
                    self.parts.pool.stats().forget(&self.parts.table.snapshot());
                }
                Action::Retire { model, version, live } => {
                    let events = self.events.clone();
                    let freed = Box::new(move || {
                        let _ = events.send(Event::Freed { model, version });
                    });
                    self.parts.reaper.retire(live, self.settings.unload_timeout, freed);
                }
                Action::Failed { model, step } => {
                    self.parts.pool.stats().load(&model, LoadOutcome::Failed(step), None);
                }
                Action::Answer((reply, outcome)) => drop(reply.send(outcome)),
                Action::Settled => {
                    self.parts.table.change(|table| table.settled = true);
                    say_ready(&self.parts.table);
                }
            }
        }
    }

    /// A thread for each load: its niceness could not be taken back, and what libtorch keeps for it goes
    /// with it.
    fn load(&self, task: Task<Live>) {
        let (loader, events) = (Arc::clone(&self.loader), self.events.clone());
        let (id, only_verify) = (task.id, task.only_verify);
        let steps: Vec<bool> = task.steps.iter().map(|step| matches!(step.what, What::Keep)).collect();
        let outcomes = move |reason: &str| steps.iter().map(|keep| Outcome::none(*keep, reason)).collect();
        let panicked = outcomes.clone();
        let run = move || {
            background::lower_priority();
            let run = AssertUnwindSafe(|| loader.run(&task));
            let outcomes = catch_unwind(run)
                .unwrap_or_else(|_| panicked("loading it panicked; this is a bug, see the log"));
            let _ = events.send(Event::Finished { id, outcomes, only_verify });
        };
        if let Err(why) = thread::Builder::new().name("load".to_owned()).spawn(run) {
            let outcomes = outcomes(&format!("the system gives no thread to load it: {why}"));
            let _ = self.events.send(Event::Finished { id, outcomes, only_verify });
        }
    }
}

fn moment() -> Moment {
    Moment { now: Instant::now(), wall: SystemTime::now() }
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().escape_debug().to_string()
}

fn humantime(period: Duration) -> String {
    format!("{period:?}")
}

fn say_ready(table: &Table) {
    let snapshot = table.snapshot();
    let served: Vec<String> = snapshot
        .routes
        .iter()
        .filter(|(_, route)| route.newest().is_some())
        .map(|(name, _)| quote(name))
        .collect();
    let failed = snapshot.routes.values().filter(|route| route.newest().is_none() && !route.unloaded).count();
    let names = match served.len() {
        0..=20 => served.join(", "),
        more => format!("{}, and {} more", served[..20].join(", "), more - 20),
    };
    if snapshot.routes.is_empty() {
        warn!("ready, serving 0 models: the repositories have none, MODEL/VERSION/model.pt is looked for");
    } else if failed == 0 {
        info!("ready, serving {} models: {names}", served.len());
    } else {
        warn!("ready, serving {} models: {names}; {failed} cannot be served, see above", served.len());
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
