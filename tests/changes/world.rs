//! What may be served at each moment: a model of the repository in numbers, without a file.
//!
//! The server may see each state that the disk goes through, or miss it. So a model is not in one state but
//! in any of several, until all is at rest and the server says in which.

use std::collections::{BTreeMap, BTreeSet};

/// The versions that serve, and the content of each.
pub(super) type Serving = BTreeMap<u64, u32>;

/// What a configuration asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Config {
    Latest(usize),
    All,
    /// It cannot be read.
    Broken,
}

/// A model on disk. A version without a content is there and cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) there: bool,
    pub(super) config: Config,
    pub(super) versions: BTreeMap<u64, Option<u32>>,
}

/// A change of it.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// A version holds this, or nothing that can be served.
    Holds(u64, Option<u32>),
    Removed(u64),
    Config(Config),
    /// Everything at once.
    Whole(Disk),
}

impl Disk {
    pub(super) fn new(config: Config, versions: &[(u64, u32)]) -> Self {
        let versions = versions.iter().map(|(version, content)| (*version, Some(*content))).collect();
        Self { there: true, config, versions }
    }

    pub(super) fn take(&mut self, change: &Change) {
        match change {
            Change::Holds(version, content) => drop(self.versions.insert(*version, *content)),
            Change::Removed(version) => drop(self.versions.remove(version)),
            Change::Config(config) => self.config = *config,
            Change::Whole(disk) => self.clone_from(disk),
        }
    }
}

/// What serves in the end when this served before and the disk stays so. The rules of the README in twenty
/// lines: the highest that pass serve; what does not pass leaves its earlier content serving; what is removed
/// goes.
pub(super) fn settle(serving: &Serving, disk: &Disk) -> Serving {
    if !disk.there {
        return Serving::new();
    }
    let content_of = |version: &u64, on_disk: &Option<u32>| on_disk.or_else(|| serving.get(version).copied());
    let passing =
        disk.versions.iter().filter_map(|(version, on_disk)| Some((*version, content_of(version, on_disk)?)));
    match disk.config {
        Config::All => passing.collect(),
        Config::Latest(count) => passing.rev().take(count).collect(),
        Config::Broken => {
            let stays = |(version, _): &(&u64, &u32)| disk.versions.contains_key(version);
            serving.iter().filter(stays).map(|(version, content)| (*version, *content)).collect()
        }
    }
}

/// What a model may be serving.
#[derive(Debug)]
pub(super) struct Possible {
    pub(super) disk: Disk,
    /// Unloads what goes before it loads what comes.
    replaces: bool,
    /// By phase, all states since it began.
    phases: Vec<BTreeSet<Serving>>,
}

impl Possible {
    /// At rest.
    pub(super) fn new(disk: Disk, replaces: bool) -> Self {
        let serving = settle(&Serving::new(), &disk);
        Self { disk, replaces, phases: vec![BTreeSet::from([serving])] }
    }

    fn now(&mut self) -> &mut BTreeSet<Serving> {
        self.phases.last_mut().expect("a phase")
    }

    /// These changes are about to happen, one after the other.
    pub(super) fn change(&mut self, changes: &[Change]) {
        for change in changes {
            self.disk.take(change);
            let (disk, replaces) = (self.disk.clone(), self.replaces);
            let mut more = BTreeSet::new();
            for before in self.now().iter() {
                let after = settle(before, &disk);
                if replaces {
                    let stays =
                        before.iter().filter(|(version, content)| after.get(version) == Some(content));
                    more.insert(stays.map(|(version, content)| (*version, *content)).collect());
                }
                more.insert(after);
            }
            // From where something was unloaded for what does not come after all.
            let settled: Vec<Serving> = more.iter().map(|serving| settle(serving, &disk)).collect();
            more.extend(settled);
            self.now().extend(more);
        }
    }

    /// What may be serving when the server has seen all.
    pub(super) fn at_rest(&self) -> BTreeSet<Serving> {
        self.phases.last().expect("a phase").iter().map(|serving| settle(serving, &self.disk)).collect()
    }

    /// It is at rest and serves this: a new phase begins.
    pub(super) fn rest(&mut self, serving: Serving) {
        self.phases.push(BTreeSet::from([serving]));
    }

    /// Whether a request that came and was answered in these phases may have got this answer.
    pub(super) fn allows(
        &self,
        phases: std::ops::RangeInclusive<usize>,
        asked: Option<u64>,
        answer: (u64, u32),
    ) -> bool {
        let last = self.phases.len() - 1;
        let states = phases.filter(|phase| *phase <= last).flat_map(|phase| &self.phases[phase]);
        states.into_iter().any(|serving| {
            let chosen = match asked {
                Some(version) => serving.get_key_value(&version),
                None => serving.last_key_value(),
            };
            chosen == Some((&answer.0, &answer.1))
        })
    }
}

#[test]
fn the_rules_of_what_serves() {
    let serving = |pairs: &[(u64, u32)]| pairs.iter().copied().collect::<Serving>();
    let mut disk = Disk::new(Config::Latest(1), &[(1, 10), (2, 20)]);
    assert_eq!(settle(&serving(&[]), &disk), serving(&[(2, 20)]));
    disk.take(&Change::Holds(3, None));
    assert_eq!(settle(&serving(&[(2, 20)]), &disk), serving(&[(2, 20)]));
    disk.take(&Change::Holds(2, None));
    assert_eq!(settle(&serving(&[(2, 20)]), &disk), serving(&[(2, 20)]), "its earlier content serves on");
    assert_eq!(settle(&serving(&[]), &disk), serving(&[(1, 10)]), "after a restart");
    disk.take(&Change::Config(Config::Broken));
    disk.take(&Change::Removed(2));
    assert_eq!(settle(&serving(&[(1, 10), (2, 20)]), &disk), serving(&[(1, 10)]));
    disk.take(&Change::Config(Config::All));
    disk.take(&Change::Holds(2, Some(21)));
    assert_eq!(settle(&serving(&[(1, 10)]), &disk), serving(&[(1, 10), (2, 21)]));
    assert_eq!(settle(&serving(&[(1, 10)]), &Disk { there: false, ..disk }), serving(&[]));
}

#[test]
fn a_state_that_the_server_may_have_missed_is_allowed_and_another_is_not() {
    let mut possible = Possible::new(Disk::new(Config::Latest(1), &[(1, 10)]), false);
    possible.change(&[Change::Holds(2, Some(20))]);
    possible.change(&[Change::Holds(2, None)]);
    assert!(possible.allows(0..=0, None, (2, 20)) && possible.allows(0..=0, None, (1, 10)));
    assert!(!possible.allows(0..=0, None, (2, 10)) && !possible.allows(0..=0, Some(1), (2, 20)));
    assert_eq!(possible.at_rest(), BTreeSet::from([[(1, 10)].into(), [(2, 20)].into()]));
    possible.rest([(1, 10)].into());
    assert!(!possible.allows(1..=1, None, (2, 20)) && possible.allows(0..=1, None, (2, 20)));
    possible.change(&[Change::Removed(1), Change::Removed(2)]);
    assert_eq!(possible.at_rest(), BTreeSet::from([Serving::new()]));
}
