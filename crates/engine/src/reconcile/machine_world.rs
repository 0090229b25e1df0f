//! A disk that exists only in numbers, a clock that is moved by hand, and whoever does what the machine
//! says: loaders, the reaper, the table.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{Duration, Instant, SystemTime},
};

use sconce_repository::{
    ConfigError, Difference, Digest, FileOnDisk, ModelConfig, Stamp, VersionOnDisk, VersionPolicy, scan,
};
use tokio::sync::oneshot;

use super::*;
use crate::{
    reconcile::plan::NotPassed,
    table::{State, Step},
};

/// What a version holds. Every fifth is bad.
pub(super) type Content = usize;

pub(super) const CONTENTS: usize = 80;

pub(super) fn is_good(content: Content) -> bool {
    !bytes(content).is_multiple_of(5) && !fails_late(content)
}

/// It verifies, and does not load.
fn fails_late(content: Content) -> bool {
    bytes(content) % 11 == 8
}

/// What it holds: each comes twice, once touched, so that the stamp is another and the bytes are the same.
pub(super) fn bytes(content: Content) -> usize {
    content % (CONTENTS / 2)
}

/// Files to take stamps and digests from, one for each content, and configurations by their text.
struct Shelf {
    stamps: Vec<Stamp>,
    digests: Vec<Digest>,
    configs: BTreeMap<&'static str, ModelConfig>,
}

pub(super) const POLICIES: [&str; 5] = [
    "versions: {latest: 1}",
    "versions: {latest: 2}",
    "versions: all",
    "versions: {specific: [2, 3]}",
    "{versions: {latest: 1}, availability: replace}",
];

fn shelf() -> &'static Shelf {
    static SHELF: OnceLock<Shelf> = OnceLock::new();
    SHELF.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let digests = sconce_repository::Digests::default();
        let files: Vec<PathBuf> = (0..CONTENTS).map(|content| dir.path().join(content.to_string())).collect();
        for (content, file) in files.iter().enumerate() {
            std::fs::write(file, bytes(content).to_string()).unwrap();
        }
        let mut configs = BTreeMap::new();
        for policy in POLICIES {
            let model = dir.path().join("root/m");
            std::fs::create_dir_all(model.join("1")).unwrap();
            std::fs::write(model.join("config.yaml"), policy).unwrap();
            let config = scan(&[dir.path().join("root")]).models["m"].config.clone().unwrap();
            configs.insert(policy, config);
        }
        Shelf {
            stamps: files.iter().map(|file| Stamp::of(file).unwrap()).collect(),
            digests: files.iter().map(|file| digests.of(file).unwrap().1).collect(),
            configs,
        }
    })
}

#[derive(Clone, Debug)]
pub(super) struct OnDisk {
    pub(super) policy: &'static str,
    /// Its configuration cannot be read.
    pub(super) broken: bool,
    pub(super) versions: BTreeMap<u64, Content>,
}

/// A disk, the machine, and who does what it says: loaders, the reaper, the table.
pub(super) struct World {
    pub(super) machine: Machine<usize>,
    pub(super) now: Instant,
    pub(super) disk: BTreeMap<&'static str, OnDisk>,
    pub(super) root_is_there: bool,
    /// Handed to loaders and not finished.
    pub(super) loading: VecDeque<Task<usize>>,
    /// What each live version was made from; its index is its handle.
    pub(super) made: Vec<Content>,
    /// Out of service and not freed.
    pub(super) retired: VecDeque<(Arc<str>, Version, usize)>,
    pub(super) ever_retired: BTreeSet<usize>,
    pub(super) table: BTreeMap<Arc<str>, Route<usize>>,
    pub(super) settled: bool,
    /// The steps that attempts did not pass, as they are counted.
    pub(super) failed: Vec<Step>,
    pub(super) answers: Vec<oneshot::Receiver<std::result::Result<(), Refused>>>,
}

pub(super) const THREADS: usize = 2;

pub(super) fn version(number: u64) -> Version {
    Version::new(number).unwrap()
}

impl World {
    pub(super) fn new(mode: Mode) -> Self {
        let settings = Settings {
            roots: Vec::new(),
            confine_symlinks: false,
            mode,
            poll_interval: Duration::from_secs(5),
            load_threads: THREADS,
            missing_repository_timeout: Duration::from_secs(60),
            unload_timeout: Duration::from_secs(30),
        };
        Self {
            machine: Machine::new(&settings),
            now: Instant::now(),
            disk: BTreeMap::new(),
            root_is_there: true,
            loading: VecDeque::new(),
            made: Vec::new(),
            retired: VecDeque::new(),
            ever_retired: BTreeSet::new(),
            table: BTreeMap::new(),
            settled: false,
            failed: Vec::new(),
            answers: Vec::new(),
        }
    }

    fn at(&self) -> Moment {
        Moment { now: self.now, wall: SystemTime::UNIX_EPOCH }
    }

    pub(super) fn write(&mut self, model: &'static str, number: u64, content: Content) {
        let on_disk = self.disk.entry(model).or_insert(OnDisk {
            policy: POLICIES[0],
            broken: false,
            versions: BTreeMap::new(),
        });
        on_disk.versions.insert(number, content);
    }

    pub(super) fn look(&mut self) {
        let mut snapshot = Snapshot::default();
        if self.root_is_there {
            for (name, on_disk) in &self.disk {
                snapshot.models.insert((*name).to_owned(), model_on_disk(name, on_disk));
            }
        } else {
            snapshot.absent_roots.insert(PathBuf::from("/root"));
        }
        let at = self.at();
        self.machine.seen(snapshot, at);
        self.act();
    }

    /// Does what the machine says, and checks what it may never do.
    fn act(&mut self) {
        for action in self.machine.take_actions() {
            match action {
                Action::Load(task) => self.loading.push_back(task),
                Action::Publish(rows) => {
                    for (name, route) in rows {
                        match route {
                            Some(route) => drop(self.table.insert(name, route)),
                            None => drop(self.table.remove(&name)),
                        }
                    }
                }
                Action::Retire { model, version, live } => {
                    assert!(self.ever_retired.insert(live), "{model} {version} is retired twice");
                    self.retired.push_back((model, version, live));
                }
                Action::Failed { step, .. } => self.failed.push(step),
                Action::Answer((reply, outcome)) => drop(reply.send(outcome)),
                Action::Settled => {
                    assert!(!self.settled, "settled twice");
                    self.settled = true;
                }
            }
        }
        assert!(self.loading.len() <= THREADS);
        for route in self.table.values() {
            for state in route.versions.values() {
                if let State::Ready(live) = state {
                    assert!(is_good(self.made[*live]), "what cannot be loaded serves");
                    assert!(!self.ever_retired.contains(live), "what is out of service is in the table");
                }
            }
        }
    }

    /// A loader finishes, as the real one does.
    pub(super) fn finish(&mut self, index: usize) {
        let Some(task) = self.loading.remove(index % self.loading.len().max(1)) else { return };
        let mut left = task.count;
        let mut outcomes = Vec::new();
        for step in &task.steps {
            let serves = !matches!(step.what, What::Load { serving: None, .. });
            if !step.forced && left == 0 {
                outcomes.push(Outcome::Untouched);
                continue;
            }
            let outcome = self.outcome(step, task.only_verify);
            left = left
                .saturating_sub(usize::from(outcome.passes(serves) || matches!(outcome, Outcome::Verified)));
            outcomes.push(outcome);
        }
        let at = self.at();
        self.machine.finished(task.id, outcomes, task.only_verify, at);
        self.act();
    }

    /// A loader has no luck with anything, in this step.
    pub(super) fn finish_failing(&mut self, step: Step, for_good: bool) {
        let Some(task) = self.loading.pop_front() else { return };
        let failed = || NotPassed { step, reason: "no luck".to_owned(), digest: None, for_good };
        let outcomes = task.steps.iter().map(|_| Outcome::Failed(failed())).collect();
        let at = self.at();
        self.machine.finished(task.id, outcomes, task.only_verify, at);
        self.act();
    }

    fn outcome(
        &mut self,
        step: &crate::reconcile::plan::TaskStep<usize>,
        only_verify: bool,
    ) -> Outcome<usize> {
        let stamp = step.files.files[0].stamp.unwrap();
        let content = shelf().stamps.iter().position(|other| *other == stamp).unwrap();
        let digest = shelf().digests[content];
        match &step.what {
            What::Keep => Outcome::Untouched,
            What::Rebind(_) if only_verify => Outcome::Untouched,
            What::Rebind(_) => Outcome::Rebound(self.make(content)),
            What::Load { serving: Some((_, same, difference)), .. }
                if *same == digest
                    && (*difference == Difference::None
                        || *difference == Difference::InPlace && only_verify) =>
            {
                Outcome::Same(digest)
            }
            What::Load { serving: Some((_, same, Difference::InPlace)), .. } if *same == digest => {
                Outcome::Rebound(self.make(content))
            }
            What::Load { failed: Some(bad), .. } if *bad == digest => Outcome::StillBad,
            What::Load { .. } if !(is_good(content) || only_verify && fails_late(content)) => {
                Outcome::Failed(NotPassed {
                    step: if fails_late(content) { Step::Load } else { Step::Verify },
                    reason: "bad".to_owned(),
                    digest: Some(digest),
                    for_good: false,
                })
            }
            What::Load { .. } if only_verify => Outcome::Verified,
            What::Load { .. } => Outcome::Loaded(self.make(content), digest),
        }
    }

    fn make(&mut self, content: Content) -> usize {
        self.made.push(content);
        self.made.len() - 1
    }

    pub(super) fn free(&mut self) {
        if let Some((model, version, _)) = self.retired.pop_front() {
            let at = self.at();
            self.machine.freed(&model, version, at);
            self.act();
        }
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        let at = self.at();
        if self.machine.wants_look(self.now) {
            self.look();
        }
        self.machine.tick(at);
        self.act();
        assert!(self.machine.next().is_none_or(|due| due > self.now), "what is due has not been done");
    }

    pub(super) fn order(&mut self, model: &str, order: Order) {
        let (reply, answer) = oneshot::channel();
        self.look();
        let at = self.at();
        self.machine.order(model, (order, reply), at);
        self.answers.push(answer);
        self.act();
    }

    /// Lets everything happen that happens by itself, until nothing does.
    pub(super) fn quiet(&mut self) {
        for _ in 0..200 {
            self.look();
            let mut loads = 0;
            while !self.loading.is_empty() {
                self.finish(0);
                loads += 1;
                assert!(loads < 1000, "it comes to rest");
            }
            while !self.retired.is_empty() {
                self.free();
            }
            self.pass(Duration::from_millis(250));
        }
        // A little time after the last attempt, so that no retry is in progress.
        while !self.loading.is_empty() || !self.retired.is_empty() {
            self.finish(0);
            self.free();
        }
    }

    /// What serves of a model: version and content.
    pub(super) fn serving(&self, model: &str) -> Vec<(u64, Content)> {
        let route = self.table.get(model);
        let versions = route.into_iter().flat_map(|route| &route.versions);
        versions
            .filter_map(|(version, state)| match state {
                State::Ready(live) => Some((version.get(), bytes(self.made[*live]))),
                State::Loading | State::Unloading | State::Unavailable(_) => None,
            })
            .collect()
    }

    pub(super) fn states(&self, model: &str) -> Vec<(u64, &'static str)> {
        self.table[model].versions.iter().map(|(version, state)| (version.get(), state.name())).collect()
    }

    pub(super) fn last_answer(&mut self) -> Option<std::result::Result<(), Refused>> {
        self.answers.last_mut().unwrap().try_recv().ok()
    }
}

pub(super) fn model_on_disk(name: &str, on_disk: &OnDisk) -> ModelOnDisk {
    let config = shelf().configs[on_disk.policy].clone();
    let dir = Path::new("/root").join(name);
    let versions: BTreeMap<Version, VersionOnDisk> = on_disk
        .versions
        .iter()
        .map(|(number, content)| {
            let file = FileOnDisk { name: "model.pt".to_owned(), stamp: Some(shelf().stamps[*content]) };
            (
                version(*number),
                VersionOnDisk { dir: dir.join(number.to_string()), files: vec![file], refused: None },
            )
        })
        .collect();
    let wanted = config.version_policy.select(versions.keys().copied());
    let missing = match &config.version_policy {
        VersionPolicy::Specific(asked) => {
            asked.iter().copied().filter(|version| !versions.contains_key(version)).collect()
        }
        _ => Vec::new(),
    };
    ModelOnDisk {
        name: name.to_owned(),
        dir,
        root: PathBuf::from("/root"),
        config: if on_disk.broken { Err(broken()) } else { Ok(config) },
        versions,
        wanted,
        missing,
        readable: true,
        settling: false,
    }
}

fn broken() -> ConfigError {
    ConfigError::Unreadable { file: PathBuf::from("config.yaml"), reason: "broken".to_owned() }
}
