//! What is remembered from look to look changes nothing in what is seen.

use std::{fs, os::unix::fs::symlink};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// Few enough that operations meet.
const PLACES: [&str; 14] = [
    "a",
    "a/1",
    "a/1/model.pt",
    "a/1/manifest.yaml",
    "a/1/extra",
    "a/2",
    "a/2/model.pt",
    "a/config.yaml",
    "a/config.pbtxt",
    "a/labels.txt",
    "b",
    "b/1",
    "..data",
    "..1",
];

/// Some are of one length, so that only content tells them apart.
const TEXTS: [&str; 8] = [
    "",
    "threads: 1\n",
    "threads: 2\n",
    "model_file: extra\n",
    "outputs: [{name: y, dtype: FP32, shape: [1], labels: labels.txt}]\n",
    "versions: {specific: [1, 7]}\n",
    "sha256: {model.pt: 0000000000000000000000000000000000000000000000000000000000000000, \
     extra: 0000000000000000000000000000000000000000000000000000000000000000}\n",
    "sha256: {model.pt: 1000000000000000000000000000000000000000000000000000000000000000, \
     other: 0000000000000000000000000000000000000000000000000000000000000000}\n",
];

#[derive(Clone, Debug)]
enum Change {
    Write(&'static str, &'static str),
    MakeDirectory(&'static str),
    Remove(&'static str),
    Rename(&'static str, &'static str),
    Link(&'static str, &'static str),
}

fn any_change() -> impl Strategy<Value = Change> {
    let place = || prop::sample::select(&PLACES[..]);
    let text = prop::sample::select(&TEXTS[..]);
    prop_oneof![
        4 => (place(), text).prop_map(|(place, text)| Change::Write(place, text)),
        2 => place().prop_map(Change::MakeDirectory),
        1 => place().prop_map(Change::Remove),
        1 => (place(), place()).prop_map(|(from, to)| Change::Rename(from, to)),
        1 => (place(), place()).prop_map(|(to, place)| Change::Link(to, place)),
    ]
}

/// What cannot be done is not done, as when a shell says so.
fn apply(root: &Path, change: &Change) {
    let at = |place: &str| root.join(place);
    _ = match change {
        Change::Write(place, text) => fs::write(at(place), text),
        Change::MakeDirectory(place) => fs::create_dir_all(at(place)),
        Change::Remove(place) => fs::remove_dir_all(at(place)).or_else(|_| fs::remove_file(at(place))),
        Change::Rename(from, to) => fs::rename(at(from), at(to)),
        Change::Link(to, place) => symlink(at(to), at(place)),
    };
}

fn scanner(root: &TempDir, confine: bool) -> Scanner {
    let mut scanner = Scanner::new(vec![root.path().to_owned()], confine);
    scanner.recent.settle = Duration::ZERO;
    scanner
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whoever_has_looked_before_sees_what_a_newcomer_sees(
        changes in prop::collection::vec(any_change(), 1..24),
        confine: bool,
    ) {
        let root = TempDir::new().unwrap();
        // So that many changes meet something.
        fs::create_dir_all(root.path().join("a/1")).unwrap();
        fs::write(root.path().join("a/1/model.pt"), "x").unwrap();
        let mut old = scanner(&root, confine);
        for change in &changes {
            apply(root.path(), change);
            prop_assert_eq!(old.look(), scanner(&root, confine).look());
        }
    }
}
