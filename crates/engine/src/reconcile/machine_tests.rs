//! The machine against a disk that exists only in numbers, with a clock that is moved by hand.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{Duration, Instant, SystemTime},
};

use proptest::prelude::*;
use sconce_repository::{
    Difference, Digest, FileOnDisk, ModelConfig, Stamp, VersionOnDisk, VersionPolicy, scan,
};
use tokio::sync::oneshot;

use super::*;
use crate::{
    reconcile::plan::NotPassed,
    table::{State, Step},
};

/// What a version holds. Every fifth is bad.
type Content = usize;

const CONTENTS: usize = 40;

fn is_good(content: Content) -> bool {
    !content.is_multiple_of(5)
}

/// Files to take stamps and digests from, one for each content, and configurations by their text.
struct Shelf {
    stamps: Vec<Stamp>,
    digests: Vec<Digest>,
    configs: BTreeMap<&'static str, ModelConfig>,
}

const POLICIES: [&str; 5] = [
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
            std::fs::write(file, content.to_string()).unwrap();
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
struct OnDisk {
    policy: &'static str,
    versions: BTreeMap<u64, Content>,
}

/// A disk, the machine, and who does what it says: loaders, the reaper, the table.
struct World {
    machine: Machine<usize>,
    now: Instant,
    disk: BTreeMap<&'static str, OnDisk>,
    root_is_there: bool,
    /// Handed to loaders and not finished.
    loading: VecDeque<Task<usize>>,
    /// What each live version was made from; its index is its handle.
    made: Vec<Content>,
    /// Out of service and not freed.
    retired: VecDeque<(Arc<str>, Version, usize)>,
    ever_retired: BTreeSet<usize>,
    table: BTreeMap<Arc<str>, Route<usize>>,
    settled: bool,
    answers: Vec<oneshot::Receiver<std::result::Result<(), Refused>>>,
}

const THREADS: usize = 2;

fn version(number: u64) -> Version {
    Version::new(number).unwrap()
}

impl World {
    fn new(mode: Mode) -> Self {
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
            answers: Vec::new(),
        }
    }

    fn at(&self) -> Moment {
        Moment { now: self.now, wall: SystemTime::UNIX_EPOCH }
    }

    fn write(&mut self, model: &'static str, number: u64, content: Content) {
        let on_disk =
            self.disk.entry(model).or_insert(OnDisk { policy: POLICIES[0], versions: BTreeMap::new() });
        on_disk.versions.insert(number, content);
    }

    fn look(&mut self) {
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
    fn finish(&mut self, index: usize) {
        let Some(task) = self.loading.remove(index % self.loading.len().max(1)) else { return };
        let mut left = task.count;
        let mut outcomes = Vec::new();
        for step in &task.steps {
            let serves = !matches!(step.what, What::Load { serving: None, .. });
            if step.counted && left == 0 {
                outcomes.push(Outcome::Untouched);
                continue;
            }
            let outcome = self.outcome(step, task.only_verify);
            left -=
                usize::from(step.counted && (outcome.passes(serves) || matches!(outcome, Outcome::Verified)));
            outcomes.push(outcome);
        }
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
            What::Load { .. } if !is_good(content) => Outcome::Failed(NotPassed {
                step: Step::Load,
                reason: "bad".to_owned(),
                digest: Some(digest),
            }),
            What::Load { .. } if only_verify => Outcome::Verified,
            What::Load { .. } => Outcome::Loaded(self.make(content), digest),
        }
    }

    fn make(&mut self, content: Content) -> usize {
        self.made.push(content);
        self.made.len() - 1
    }

    fn free(&mut self) {
        if let Some((model, version, _)) = self.retired.pop_front() {
            let at = self.at();
            self.machine.freed(&model, version, at);
            self.act();
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let at = self.at();
        if self.machine.wants_look(self.now) {
            self.look();
        }
        self.machine.tick(at);
        self.act();
    }

    fn order(&mut self, model: &str, order: Order) {
        let (reply, answer) = oneshot::channel();
        self.look();
        let at = self.at();
        self.machine.order(model, (order, reply), at);
        self.answers.push(answer);
        self.act();
    }

    /// Lets everything happen that happens by itself, until nothing does.
    fn quiet(&mut self) {
        for _ in 0..200 {
            self.look();
            while !self.loading.is_empty() {
                self.finish(0);
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
    fn serving(&self, model: &str) -> Vec<(u64, Content)> {
        let route = self.table.get(model);
        let versions = route.into_iter().flat_map(|route| &route.versions);
        versions
            .filter_map(|(version, state)| match state {
                State::Ready(live) => Some((version.get(), self.made[*live])),
                State::Loading | State::Unloading | State::Unavailable(_) => None,
            })
            .collect()
    }

    fn states(&self, model: &str) -> Vec<(u64, &'static str)> {
        self.table[model].versions.iter().map(|(version, state)| (version.get(), state.name())).collect()
    }

    fn last_answer(&mut self) -> Option<std::result::Result<(), Refused>> {
        self.answers.last_mut().unwrap().try_recv().ok()
    }
}

fn model_on_disk(name: &str, on_disk: &OnDisk) -> ModelOnDisk {
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
        config: Ok(config),
        versions,
        wanted,
        missing,
        readable: true,
        settling: false,
    }
}

/// What ought to serve in the end, when nothing serves that is not on disk.
fn expected(on_disk: &OnDisk) -> Vec<(u64, Content)> {
    let good = on_disk
        .versions
        .iter()
        .map(|(number, content)| (*number, *content))
        .filter(|(_, content)| is_good(*content));
    let mut good: Vec<(u64, Content)> = good.collect();
    let latest = |good: Vec<(u64, Content)>, count: usize| {
        let skip = good.len().saturating_sub(count);
        good.into_iter().skip(skip).collect()
    };
    match on_disk.policy {
        "versions: all" => good,
        "versions: {latest: 2}" => latest(good, 2),
        "versions: {specific: [2, 3]}" => {
            good.retain(|(number, _)| [2, 3].contains(number));
            good
        }
        _ => latest(good, 1),
    }
}

#[derive(Clone, Copy, Debug)]
enum Deed {
    Write(&'static str, u64, Content),
    Delete(&'static str, u64),
    DeleteModel(&'static str),
    Policy(&'static str, usize),
    Root(bool),
    Look,
    Finish(usize),
    Free,
    Pass(u64),
    Load(&'static str, Option<u64>),
    Unload(&'static str, Option<u64>),
}

fn deeds(orders: bool) -> impl Strategy<Value = Vec<Deed>> {
    let model = || prop_oneof![Just("a"), Just("b")];
    let number = || 1u64..5;
    let disk = prop_oneof![
        6 => (model(), number(), 0..CONTENTS).prop_map(|(model, number, content)| Deed::Write(model, number, content)),
        2 => (model(), number()).prop_map(|(model, number)| Deed::Delete(model, number)),
        1 => model().prop_map(Deed::DeleteModel),
        2 => (model(), 0..POLICIES.len()).prop_map(|(model, policy)| Deed::Policy(model, policy)),
        1 => any::<bool>().prop_map(Deed::Root),
    ];
    let world = prop_oneof![
        6 => Just(Deed::Look),
        6 => (0usize..2).prop_map(Deed::Finish),
        4 => Just(Deed::Free),
        4 => (0u64..2000).prop_map(Deed::Pass),
    ];
    let wishes = prop_oneof![
        (model(), prop::option::of(number())).prop_map(|(model, number)| Deed::Load(model, number)),
        (model(), prop::option::of(number())).prop_map(|(model, number)| Deed::Unload(model, number)),
    ];
    let weight = u32::from(orders) * 2;
    prop::collection::vec(prop_oneof![4 => disk, 6 => world, weight => wishes], 1..80)
}

fn carry_out(world: &mut World, deed: Deed) {
    match deed {
        Deed::Write(model, number, content) => world.write(model, number, content),
        Deed::Delete(model, number) => {
            if let Some(on_disk) = world.disk.get_mut(model) {
                on_disk.versions.remove(&number);
            }
        }
        Deed::DeleteModel(model) => drop(world.disk.remove(model)),
        Deed::Policy(model, policy) => {
            if let Some(on_disk) = world.disk.get_mut(model) {
                on_disk.policy = POLICIES[policy];
            }
        }
        Deed::Root(there) => world.root_is_there = there,
        Deed::Look => world.look(),
        Deed::Finish(index) => world.finish(index),
        Deed::Free => world.free(),
        Deed::Pass(millis) => world.pass(Duration::from_millis(millis)),
        Deed::Load(model, number) => {
            world.order(model, Order::Load { version: number.map(version), instead: None });
        }
        Deed::Unload(model, number) => world.order(model, Order::Unload { version: number.map(version) }),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever happens in whatever order, in the end what is on disk is what serves.
    #[test]
    fn in_the_end_the_directory_is_served(deeds in deeds(false)) {
        let mut world = World::new(Mode::Watch);
        for deed in deeds {
            carry_out(&mut world, deed);
        }
        world.root_is_there = true;
        world.quiet();
        prop_assert!(world.settled);
        for (name, on_disk) in world.disk.clone() {
            let expected = expected(&on_disk);
            let serving = world.serving(name);
            if expected.is_empty() {
                // Nothing passes: what served before may go on.
                prop_assert!(serving.iter().all(|(number, _)| on_disk.versions.contains_key(number)), "{name}: {serving:?}");
            } else if serving != expected {
                // A version may go on with an earlier content while its new one is bad.
                for (number, content) in &serving {
                    let there = on_disk.versions.get(number);
                    prop_assert!(there == Some(content) || there.is_some_and(|new| !is_good(*new)), "{name}: {serving:?}, expected {expected:?}");
                }
                prop_assert!(!serving.is_empty());
            }
        }
        for name in world.table.keys() {
            prop_assert!(world.disk.contains_key(&**name), "{name} is shown though it is gone");
        }
        // What was loaded serves or has been let go, and nothing is kept beside that.
        let serving: usize = world.disk.keys().map(|name| world.serving(name).len()).sum();
        prop_assert_eq!(world.made.len(), serving + world.ever_retired.len());
    }

    /// A model whose version 1 is good and never touched serves at every moment, whatever comes and goes
    /// beside it, also while its repository is away.
    #[test]
    fn what_has_a_good_version_always_serves(deeds in deeds(false)) {
        let mut world = World::new(Mode::Watch);
        world.write("a", 1, 1);
        world.look();
        world.finish(0);
        let mut away = Duration::ZERO;
        for deed in deeds {
            match deed {
                Deed::Write("a", 1, _) | Deed::Delete("a", 1) | Deed::DeleteModel("a") => continue,
                // The only one that may choose none of what is there, and the one that asks for a gap.
                Deed::Policy("a", 3 | 4) => continue,
                Deed::Pass(millis) if !world.root_is_there => away += Duration::from_millis(millis),
                _ => {}
            }
            if away > Duration::from_secs(50) {
                world.root_is_there = true;
                world.look();
                away = Duration::ZERO;
            }
            carry_out(&mut world, deed);
            prop_assert!(!world.serving("a").is_empty());
        }
    }

    /// Every order is answered, once, and nothing that must not happen does.
    #[test]
    fn every_order_is_answered(deeds in deeds(true), explicit in any::<bool>()) {
        let mode = if explicit { Mode::Explicit { models: vec!["a".to_owned()], all: false } } else { Mode::Watch };
        let mut world = World::new(mode);
        for deed in deeds {
            carry_out(&mut world, deed);
        }
        world.root_is_there = true;
        world.quiet();
        for (index, answer) in world.answers.iter_mut().enumerate() {
            prop_assert!(answer.try_recv().is_ok(), "order {index} has no answer");
        }
        let lives: BTreeSet<usize> = (0..world.made.len()).filter(|live| !world.ever_retired.contains(live)).collect();
        let shown: BTreeSet<usize> = world.table.values().flat_map(|route| route.versions.values()).filter_map(|state| match state {
            State::Ready(live) => Some(*live),
            _ => None,
        }).collect();
        prop_assert_eq!(lives, shown);
    }
}

#[test]
fn versions_of_one_change_appear_together() {
    let mut world = World::new(Mode::Watch);
    world.write("a", 1, 1);
    world.disk.get_mut("a").unwrap().policy = "versions: all";
    world.look();
    world.finish(0);
    assert_eq!(world.serving("a"), [(1, 1)]);
    world.write("a", 2, 2);
    world.write("a", 3, 3);
    world.look();
    assert_eq!(world.states("a"), [(1, "READY"), (2, "LOADING"), (3, "LOADING")]);
    world.finish(0);
    assert_eq!(world.serving("a"), [(1, 1), (2, 2), (3, 3)]);
}

#[test]
fn roll_back_and_roll_forward() {
    let mut world = World::new(Mode::Watch);
    world.write("a", 1, 1);
    world.look();
    world.finish(0);
    world.write("a", 2, 5);
    world.look();
    assert_eq!(
        world.states("a"),
        [(1, "READY"), (2, "LOADING")],
        "the old one serves while the new one loads"
    );
    world.finish(0);
    assert_eq!(world.states("a"), [(1, "READY"), (2, "UNAVAILABLE")], "and after it has failed");
    assert_eq!(world.table["a"].failures[&version(2)].attempts, 1);
    // Not tried again while nothing has changed and it is not time,
    world.look();
    assert!(world.loading.is_empty());
    // then with growing distance,
    world.pass(Duration::from_secs(1));
    world.finish(0);
    assert_eq!(world.table["a"].failures[&version(2)].attempts, 2);
    world.pass(Duration::from_secs(1));
    assert!(world.loading.is_empty());
    world.pass(Duration::from_secs(1));
    assert_eq!(world.loading.len(), 1);
    world.finish(0);
    // and at once when its bytes are others.
    world.write("a", 2, 6);
    world.look();
    world.finish(0);
    assert_eq!((world.states("a"), world.serving("a")), (vec![(1, "UNLOADING"), (2, "READY")], vec![(2, 6)]));
    assert!(world.table["a"].failures.is_empty());
    world.free();
    assert_eq!(world.states("a"), [(2, "READY")]);
    // Deleting it brings the older one back before it goes.
    world.disk.get_mut("a").unwrap().versions.remove(&2);
    world.look();
    assert_eq!(world.serving("a"), [(2, 6)], "it may only be away for a moment");
    world.pass(Duration::from_millis(250));
    assert_eq!(world.serving("a"), [(2, 6)], "until the older one has been loaded");
    world.finish(0);
    assert_eq!(world.serving("a"), [(1, 1)]);
}

#[test]
fn touching_a_file_loads_nothing() {
    let mut world = World::new(Mode::Watch);
    world.write("a", 1, 1);
    world.look();
    world.finish(0);
    world.look();
    world.pass(Duration::from_secs(100));
    assert!(world.loading.is_empty());
    assert_eq!(world.made.len(), 1);
}

#[test]
fn with_replace_the_old_one_goes_before_the_new_one_comes() {
    let mut world = World::new(Mode::Watch);
    world.write("a", 1, 1);
    world.disk.get_mut("a").unwrap().policy = POLICIES[4];
    world.look();
    world.finish(0);
    assert_eq!(world.serving("a"), [(1, 1)]);
    // A bad one does not get that far.
    world.write("a", 2, 5);
    world.look();
    world.finish(0);
    assert_eq!(world.serving("a"), [(1, 1)]);
    world.write("a", 2, 2);
    world.look();
    assert!(world.loading[0].only_verify);
    assert_eq!(world.serving("a"), [(1, 1)], "it is verified first");
    world.finish(0);
    assert_eq!(world.serving("a"), [], "then there is room");
    assert!(world.loading.is_empty(), "and the memory is waited for");
    world.free();
    assert!(!world.loading[0].only_verify);
    world.finish(0);
    assert_eq!(world.serving("a"), [(2, 2)]);
}

#[test]
fn a_repository_that_is_away_unloads_nothing_for_a_time() {
    let mut world = World::new(Mode::Watch);
    world.write("a", 1, 1);
    world.look();
    world.finish(0);
    world.root_is_there = false;
    world.look();
    world.pass(Duration::from_secs(59));
    world.look();
    assert_eq!(world.serving("a"), [(1, 1)]);
    world.root_is_there = true;
    world.look();
    world.root_is_there = false;
    world.look();
    world.pass(Duration::from_secs(59));
    world.look();
    assert_eq!(world.serving("a"), [(1, 1)], "the time begins anew");
    world.pass(Duration::from_secs(2));
    assert_eq!(world.serving("a"), []);
    world.free();
    assert!(world.table.is_empty());
}

#[test]
fn an_order_lasts_until_the_directory_changes() {
    let mut world = World::new(Mode::Watch);
    world.write("a", 1, 1);
    world.write("a", 2, 2);
    world.look();
    world.finish(0);
    world.order("a", Order::Unload { version: None });
    assert_eq!(world.serving("a"), []);
    assert_eq!(world.last_answer(), None, "its memory is not free");
    world.free();
    assert_eq!(world.last_answer(), Some(Ok(())));
    assert!(world.table["a"].unloaded);
    assert_eq!(world.states("a"), [(2, "UNAVAILABLE")]);
    world.quiet();
    assert_eq!(world.serving("a"), [], "it stays unloaded");
    world.write("a", 3, 3);
    world.quiet();
    assert_eq!(world.serving("a"), [(3, 3)]);
    // One version more, and one less.
    world.order("a", Order::Load { version: Some(version(1)), instead: None });
    world.finish(0);
    assert_eq!((world.last_answer(), world.serving("a")), (Some(Ok(())), vec![(1, 1), (3, 3)]));
    world.order("a", Order::Unload { version: Some(version(3)) });
    world.quiet();
    assert_eq!(world.serving("a"), [(1, 1), (2, 2)], "the next one takes its place");
    world.order("a", Order::Load { version: Some(version(9)), instead: None });
    assert!(
        matches!(world.last_answer(), Some(Err(Refused::NotFound(text))) if text.contains("no version 9"))
    );
}

#[test]
fn contradictory_orders_are_carried_out_in_turn() {
    let mut world = World::new(Mode::Explicit { models: Vec::new(), all: false });
    world.write("a", 1, 1);
    world.write("b", 1, 5);
    world.look();
    assert!(world.settled && world.loading.is_empty());
    world.order("a", Order::Load { version: None, instead: None });
    world.order("a", Order::Unload { version: None });
    world.order("a", Order::Load { version: None, instead: None });
    world.finish(0);
    assert_eq!(world.serving("a"), []);
    world.free();
    world.finish(0);
    assert_eq!(world.serving("a"), [(1, 1)]);
    for answer in &mut world.answers {
        assert_eq!(answer.try_recv(), Ok(Ok(())));
    }
    world.order("b", Order::Load { version: None, instead: None });
    world.finish(0);
    assert!(
        matches!(world.last_answer(), Some(Err(Refused::Failed(text))) if text.contains("version 1 is at UNAVAILABLE state: bad"))
    );
    // What changes on disk does not count until somebody asks.
    world.write("a", 2, 2);
    world.quiet();
    assert_eq!(world.serving("a"), [(1, 1)]);
    world.order("a", Order::Load { version: None, instead: None });
    world.quiet();
    assert_eq!(world.serving("a"), [(2, 2)]);
    world.order("nobody", Order::Load { version: None, instead: None });
    assert!(matches!(world.last_answer(), Some(Err(Refused::NotFound(_)))));
    world.order("nobody", Order::Unload { version: None });
    assert_eq!(world.last_answer(), Some(Ok(())));
}

#[test]
fn small_and_serving_models_are_loaded_first() {
    let mut world = World::new(Mode::Watch);
    world.write("b", 1, 1);
    world.look();
    world.finish(0);
    for (name, content) in [("c", 2), ("d", 3), ("e", 4)] {
        world.write(name, 1, content);
    }
    world.look();
    world.write("b", 2, 6);
    world.look();
    assert_eq!(world.loading.len(), THREADS);
    world.finish(0);
    assert_eq!(&*world.loading.back().unwrap().model, "b", "it served before");
}
