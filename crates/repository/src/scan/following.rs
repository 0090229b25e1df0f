//! Every change on disk is told by one of the directories that a look says to watch: each step here
//! looks again only when it is woken.
//!
//! Roots lie one level below the directory of the test: what holds a root is watched too, and the
//! directory of all tests is never quiet.

use std::{
    fs,
    os::unix::fs::symlink,
    sync::mpsc::{Receiver, channel},
};

use super::{
    tests::{numbers, root},
    *,
};
use crate::Watcher;

/// Only turns a hang into a failure.
const LONG: Duration = Duration::from_secs(60);

/// Follows a root as a server does.
struct Follower {
    scanner: Scanner,
    snapshot: Snapshot,
}

impl Follower {
    fn new(path: PathBuf) -> Self {
        let mut scanner = Scanner::new(vec![path], false);
        scanner.recent.settle = Duration::ZERO;
        Self { snapshot: scanner.look(), scanner }
    }

    /// Makes a change and looks until it shows.
    #[track_caller]
    fn sees(&mut self, change: impl FnOnce(), shows: impl Fn(&Snapshot) -> bool) {
        assert!(!shows(&self.snapshot), "it shows before the change");
        let (wake, wakes) = channel();
        // New for each change, so that no earlier one can wake.
        let mut watcher = Watcher::new(move || _ = wake.send(()));
        watcher.set(&self.snapshot.watch);
        change();
        while !shows(&self.snapshot) {
            Self::wait(&wakes);
            loop {
                self.snapshot = self.scanner.look();
                if !watcher.set(&self.snapshot.watch) {
                    break;
                }
            }
        }
    }

    #[track_caller]
    fn wait(wakes: &Receiver<()>) {
        wakes.recv_timeout(LONG).expect("a watched directory tells of the change");
    }
}

fn wants(model: &'static str, versions: &'static [u64]) -> impl Fn(&Snapshot) -> bool {
    move |snapshot| snapshot.models.get(model).is_some_and(|model| numbers(&model.wanted) == versions)
}

/// The size of the only version's files.
fn holds(bytes: u64) -> impl Fn(&Snapshot) -> bool {
    move |snapshot| {
        let versions = snapshot.models.get("m").map(|model| model.versions.values());
        versions.into_iter().flatten().map(VersionOnDisk::size).eq([bytes])
    }
}

fn threads(number: u32) -> impl Fn(&Snapshot) -> bool {
    move |snapshot| {
        let config = snapshot.models.get("m").and_then(|model| model.config.as_ref().ok());
        config.and_then(|config| config.threads).is_some_and(|threads| threads.get() == number)
    }
}

/// Points a link elsewhere as careful tools do, by renaming another one over it.
fn repoint(link: &Path, target: &str) {
    let other = link.with_file_name("..swap");
    symlink(target, &other).unwrap();
    fs::rename(other, link).unwrap();
}

#[test]
fn versions_that_come_and_go_are_seen() {
    let root = root(&["root/m/1/model.pt=1"]);
    let at = |name: &str| root.path().join("root").join(name);
    let mut follower = Follower::new(root.path().join("root"));
    follower.sees(|| fs::write(at("m/1/model.pt"), "22").unwrap(), holds(2));
    fs::write(at("m/.new"), "333").unwrap();
    follower.sees(|| fs::rename(at("m/.new"), at("m/1/model.pt")).unwrap(), holds(3));
    fs::create_dir(at("m/.2.partial")).unwrap();
    follower.sees(|| fs::rename(at("m/.2.partial"), at("m/2")).unwrap(), wants("m", &[2]));
    follower.sees(|| fs::write(at("m/config.yaml"), "versions: all").unwrap(), wants("m", &[1, 2]));
    follower.sees(|| fs::remove_dir_all(at("m/1")).unwrap(), wants("m", &[2]));
    follower.sees(|| fs::remove_dir_all(at("m")).unwrap(), |seen| seen.models.is_empty());
    // Nothing speaks for a model in an empty directory, and still it is watched.
    follower.sees(|| fs::create_dir(at("m")).unwrap(), |seen| !seen.problems.is_empty());
    follower.sees(|| fs::create_dir(at("m/7")).unwrap(), wants("m", &[7]));
    follower.sees(|| fs::write(at("m/7/model.pt"), "4444").unwrap(), holds(4));
}

#[test]
fn a_swap_of_data_as_kubernetes_makes_it_is_seen() {
    let root = root(&["root/..2026_11_19/m/1/model.pt=1", "root/..2026_11_20/m/1/model.pt=22"]);
    let at = |name: &str| root.path().join("root").join(name);
    symlink("..2026_11_19", at("..data")).unwrap();
    symlink("..data/m", at("m")).unwrap();
    let mut follower = Follower::new(root.path().join("root"));
    follower.sees(|| repoint(&at("..data"), "..2026_11_20"), holds(2));
    follower.sees(|| fs::write(at("..2026_11_20/m/1/model.pt"), "333").unwrap(), holds(3));
}

#[test]
fn a_swap_below_a_model_is_seen() {
    // A configuration from a ConfigMap, and a root that git-sync re-points.
    let parent = root(&[
        "map/..1/config.yaml=threads: 1",
        "map/..2/config.yaml=threads: 2",
        "git/a/m/1/model.pt=1",
        "git/b/m/1/model.pt=22",
        "git/b/m/config.yaml=threads: 3",
    ]);
    symlink("..1", parent.path().join("map/..data")).unwrap();
    symlink("..data/config.yaml", parent.path().join("map/config.yaml")).unwrap();
    symlink("../../../map/config.yaml", parent.path().join("git/a/m/config.yaml")).unwrap();
    symlink("a", parent.path().join("git/current")).unwrap();
    symlink("git", parent.path().join("link")).unwrap();
    let mut follower = Follower::new(parent.path().join("link/current"));
    assert!(threads(1)(&follower.snapshot));
    follower.sees(|| repoint(&parent.path().join("map/..data"), "..2"), threads(2));
    follower.sees(|| repoint(&parent.path().join("git/current"), "b"), threads(3));
    fs::create_dir_all(parent.path().join("other/current/m/1")).unwrap();
    fs::write(parent.path().join("other/current/m/1/model.pt"), "4444").unwrap();
    follower.sees(|| repoint(&parent.path().join("link"), "other"), holds(4));
}

#[test]
fn links_to_versions_and_files_are_followed_as_they_move() {
    let root = root(&[
        "root/m/",
        "root/.store/a/model.pt=1",
        "root/.store/b/model.pt=22",
        "root/.blobs/x=333",
        "root/.blobs/y=4444",
    ]);
    let at = |name: &str| root.path().join("root").join(name);
    symlink("../.store/a", at("m/1")).unwrap();
    let mut follower = Follower::new(root.path().join("root"));
    follower.sees(|| repoint(&at("m/1"), "../.store/b"), holds(2));
    follower.sees(|| repoint(&at("m/1"), "../.store/c"), |seen| !seen.problems.is_empty());
    follower.sees(|| fs::rename(at(".store/a"), at(".store/c")).unwrap(), holds(1));

    fs::remove_file(at(".store/c/model.pt")).unwrap();
    follower.sees(|| symlink("../../.blobs/x", at(".store/c/model.pt")).unwrap(), holds(3));
    follower.sees(|| fs::write(at(".blobs/x"), "55555").unwrap(), holds(5));
    follower.sees(|| fs::rename(at(".blobs/y"), at(".blobs/x")).unwrap(), holds(4));
}

#[test]
fn what_a_configuration_or_a_manifest_names_is_watched() {
    let labels = "outputs: [{name: y, dtype: FP32, shape: [2], labels: names/en}]";
    let digest = "0".repeat(64);
    let manifest = format!("sha256: {{model.pt: {digest}, sub/data: {digest}}}");
    let root = root(&["root/m/1/model.pt=1"]);
    let at = |name: &str| root.path().join("root").join(name);
    fs::write(at("m/config.yaml"), labels).unwrap();
    fs::write(at("m/1/manifest.yaml"), &manifest).unwrap();
    let mut follower = Follower::new(root.path().join("root"));
    fs::create_dir(at(".names")).unwrap();
    fs::write(at(".names/en"), "a").unwrap();
    let is_good = |seen: &Snapshot| seen.models["m"].config.is_ok();
    follower.sees(|| fs::rename(at(".names"), at("m/names")).unwrap(), is_good);
    follower.sees(|| fs::remove_file(at("m/names/en")).unwrap(), |seen| !is_good(seen));

    let size = manifest.len() as u64;
    fs::create_dir(at("m/1/sub")).unwrap();
    follower.snapshot = follower.scanner.look();
    follower.sees(|| fs::write(at("m/1/sub/data"), "22").unwrap(), holds(size + 3));
    follower.sees(|| fs::write(at("m/1/sub/data"), "333").unwrap(), holds(size + 4));
}

#[test]
fn a_root_that_goes_and_comes_back_is_seen() {
    let parent = root(&["a/b/root/m/1/model.pt=1", "new/m/1/model.pt=22"]);
    let at = |name: &str| parent.path().join(name);
    let mut follower = Follower::new(at("a/b/root"));
    let is_absent = |seen: &Snapshot| seen.absent_roots.len() == 1;
    follower.sees(|| fs::rename(at("a/b/root"), at("old")).unwrap(), is_absent);
    follower.sees(|| fs::rename(at("new"), at("a/b/root")).unwrap(), holds(2));
    // Its parents go too, and come one by one.
    follower.sees(|| fs::remove_dir_all(at("a")).unwrap(), is_absent);
    let come_back = || {
        fs::create_dir(at("a")).unwrap();
        fs::create_dir(at("a/b")).unwrap();
        fs::rename(at("old"), at("a/b/root")).unwrap();
    };
    follower.sees(come_back, holds(1));
}
