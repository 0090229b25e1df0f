//! What changes from look to look, and what is remembered in between.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    time::SystemTime,
};

use tempfile::TempDir;

use super::{
    tests::{numbers, problems, root},
    *,
};
use crate::{ConfigError, Digests, verify};

/// Half a minute of an editor would still be settling.
const HOUR: Duration = Duration::from_secs(3600);

/// Nothing is ever settling.
fn calm(root: &TempDir) -> Scanner {
    let mut scanner = Scanner::new(vec![root.path().to_owned()], false);
    scanner.recent.settle = Duration::ZERO;
    scanner
}

fn confined(root: &Path) -> Snapshot {
    Scanner::new(vec![root.to_owned()], true).look()
}

fn threads(snapshot: &Snapshot) -> Option<u32> {
    snapshot.models["m"].config.as_ref().unwrap().threads.map(std::num::NonZeroU32::get)
}

fn version(snapshot: &Snapshot, number: u64) -> &VersionOnDisk {
    &snapshot.models["m"].versions[&Version::new(number).unwrap()]
}

#[test]
fn a_second_write_in_the_same_tick_is_seen() {
    let root = root(&["m/1/", "m/config.yaml=threads: 1"]);
    let mut scanner = calm(&root);
    for number in (1..10).cycle().take(500) {
        fs::write(root.path().join("m/config.yaml"), format!("threads: {number}")).unwrap();
        assert_eq!(threads(&scanner.look()), Some(number));
    }
}

#[test]
fn what_is_half_written_does_not_replace_what_is_at_rest() {
    let root = root(&["m/1/", "m/config.yaml=threads: 1"]);
    let config = root.path().join("m/config.yaml");
    let mut scanner = calm(&root);
    let first = scanner.look();
    assert!(!first.models["m"].settling);

    scanner.recent.settle = HOUR;
    fs::write(&config, "threads: 2\ninpu").unwrap();
    for _ in 0..2 {
        let half = scanner.look();
        assert!(half.models["m"].settling);
        assert_eq!(half.models["m"].config, first.models["m"].config);
    }
    fs::write(&config, "threads: 2\n").unwrap();
    assert_eq!(threads(&scanner.look()), Some(1), "written a moment ago");
    scanner.recent.settle = Duration::ZERO;
    let last = scanner.look();
    assert_eq!((threads(&last), last.models["m"].settling), (Some(2), false));
}

#[test]
fn an_empty_file_is_taken_for_half_written_for_longer() {
    let root = root(&["m/1/", "m/config.yaml=threads: 1"]);
    let config = root.path().join("m/config.yaml");
    let mut scanner = calm(&root);
    scanner.look();
    let write = |text: &str| {
        fs::write(&config, text).unwrap();
        let file = File::options().write(true).open(&config).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(900)).unwrap();
    };
    scanner.recent.settle = Duration::from_secs(100);
    write("");
    let emptied = scanner.look();
    assert_eq!((threads(&emptied), emptied.models["m"].settling), (Some(1), true));
    write("threads: 2");
    assert_eq!(threads(&scanner.look()), Some(2), "it is old enough");
    scanner.recent.settle = Duration::from_secs(10);
    write("");
    assert_eq!(threads(&scanner.look()), None, "it is old enough to be meant");
}

#[test]
fn a_file_that_an_editor_replaces_is_not_gone() {
    let root = root(&["m/1/", "m/config.yaml=threads: 1"]);
    let (config, backup) = (root.path().join("m/config.yaml"), root.path().join("m/config.yaml~"));
    let mut scanner = calm(&root);
    scanner.look();
    scanner.recent.settle = HOUR;
    fs::rename(&config, &backup).unwrap();
    let between = scanner.look();
    assert_eq!((threads(&between), between.models["m"].settling), (Some(1), true));
    scanner.recent.settle = Duration::ZERO;
    assert_eq!(threads(&scanner.look()), None, "it is really gone");
}

#[test]
fn what_was_there_at_the_first_look_is_taken_as_it_is() {
    let root = root(&["m/1/", "m/config.yaml=threads: 3", "old/1/"]);
    let mut scanner = Scanner::new(vec![root.path().to_owned()], false);
    scanner.recent.settle = HOUR;
    let snapshot = scanner.look();
    assert_eq!((threads(&snapshot), snapshot.models["m"].settling), (Some(3), true));
    assert!(!snapshot.models["old"].settling, "it has no text file");
}

#[test]
fn a_text_file_comes_to_rest_whatever_its_date() {
    let root = root(&["m/1/", "m/config.yaml=threads: 3"]);
    let config = File::options().write(true).open(root.path().join("m/config.yaml")).unwrap();
    config.set_modified(SystemTime::now() + HOUR).unwrap();
    let mut scanner = Scanner::new(vec![root.path().to_owned()], false);
    assert!(scanner.look().models["m"].settling);
    assert!(!scanner.models.values().any(ModelCache::is_trusted), "a date in the future tells nothing");
    while scanner.look().models["m"].settling {
        std::thread::yield_now();
    }
    assert_eq!(threads(&scanner.look()), Some(3));
    assert!(scanner.models.values().all(ModelCache::is_trusted), "it is not read at each look");
}

#[test]
fn labels_are_a_part_of_the_configuration() {
    let text = "outputs: [{name: y, dtype: FP32, shape: [2], labels: names/en.txt}]";
    let root = root(&["m/1/", &format!("m/config.yaml={text}")]);
    let mut scanner = calm(&root);
    assert!(scanner.look().models["m"].config.is_err(), "there are no labels yet");
    fs::create_dir(root.path().join("m/names")).unwrap();
    for labels in ["cat\ndog", "cow\npig"] {
        fs::write(root.path().join("m/names/en.txt"), labels).unwrap();
        let snapshot = scanner.look();
        let outputs = &snapshot.models["m"].config.as_ref().unwrap().outputs;
        assert_eq!(outputs[0].labels.as_ref().unwrap().lines.join("\n"), labels);
        assert!(snapshot.watch.contains_key(&root.path().join("m/names")));
    }
}

#[test]
fn a_version_is_its_model_and_its_manifest_and_what_that_lists() {
    let digest = "0".repeat(64);
    let listing = format!("sha256: {{extra/b: {digest}, net.pt: {digest}, a: {digest}}}");
    let root = root(&["m/config.yaml=model_file: net.pt", "m/1/net.pt=12345", "m/1/extra/b=1", "m/2/"]);
    fs::write(root.path().join("m/1/manifest.yaml"), &listing).unwrap();
    let mut scanner = calm(&root);
    for _ in 0..2 {
        let snapshot = scanner.look();
        let found = version(&snapshot, 1);
        let names: Vec<&str> = found.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["net.pt", "manifest.yaml", "extra/b", "a"]);
        let there: Vec<bool> = found.files.iter().map(|file| file.stamp.is_some()).collect();
        assert_eq!(there, [true, true, true, false]);
        assert_eq!(found.size(), 5 + 1 + listing.len() as u64);
        assert_eq!(found.model_file(), root.path().join("m/1/net.pt"));
        assert!(found.is_as_seen());
        assert_eq!(version(&snapshot, 2).files.len(), 1);
        assert!(snapshot.watch.contains_key(&root.path().join("m/1/extra")));
    }
    let before = scanner.look();
    fs::write(root.path().join("m/1/a"), "").unwrap();
    assert!(!version(&before, 1).is_as_seen(), "what was absent is there");
    let before = scanner.look();
    fs::write(root.path().join("m/2/manifest.yaml"), "").unwrap();
    assert!(!version(&before, 2).is_as_seen(), "there is a manifest now");
}

#[test]
fn a_volume_that_is_not_mounted_is_absent_and_not_empty() {
    let parent = root(&["root/m/1/"]);
    let (path, away) = (parent.path().join("root"), parent.path().join("away"));
    let mut scanner = Scanner::new(vec![path.clone()], false);
    assert_eq!(scanner.look().models.len(), 1);
    assert!(!scanner.roots_changed());

    fs::rename(&path, &away).unwrap();
    assert!(scanner.roots_changed(), "it has gone");
    assert!(scanner.look().absent_roots.contains(&path));
    assert!(!scanner.roots_changed());

    fs::create_dir(&path).unwrap();
    assert!(scanner.roots_changed(), "another has come");
    for _ in 0..3 {
        let unmounted = scanner.look();
        assert!(unmounted.absent_roots.contains(&path), "the empty mount point");
        let told = problems(&parent, &unmounted);
        assert!(told[0].starts_with("root: is empty and not the directory that held models"), "{told:?}");
    }
    fs::remove_dir(&path).unwrap();
    fs::rename(&away, &path).unwrap();
    let back = scanner.look();
    assert_eq!((back.models.len(), back.absent_roots.len()), (1, 0));
}

#[test]
fn a_root_that_was_emptied_or_replaced_is_what_it_is_now() {
    let parent = root(&["root/m/1/", "new/n/1/"]);
    let path = parent.path().join("root");
    let mut scanner = Scanner::new(vec![path.clone()], false);
    scanner.look();
    fs::rename(&path, parent.path().join("old")).unwrap();
    fs::rename(parent.path().join("new"), &path).unwrap();
    let replaced = scanner.look();
    assert_eq!(replaced.models.keys().collect::<Vec<_>>(), ["n"]);
    assert_eq!(replaced.absent_roots.len(), 0);

    fs::remove_dir_all(path.join("n")).unwrap();
    let emptied = scanner.look();
    assert_eq!((emptied.models.len(), emptied.absent_roots.len()), (0, 0));
    fs::remove_dir(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(scanner.look().absent_roots.len(), 0, "there was nothing before");
}

#[test]
fn links_that_lead_out_are_refused_when_they_are_confined() {
    let outside = root(&["m/1/model.pt=x", "1/model.pt=x", "config.yaml=threads: 1", "labels/en=a"]);
    let out = |name: &str| outside.path().join(name);
    let root = root(&["m/1/", "m/2/model.pt=x", "c/1/", "l/1/", "inner/4/model.pt=x"]);
    let here = |name: &str| root.path().join(name);
    symlink(out("m"), here("linked")).unwrap();
    symlink(out("1"), here("m/3")).unwrap();
    symlink(out("1/model.pt"), here("m/1/model.pt")).unwrap();
    symlink("../inner/4", here("m/4")).unwrap();
    symlink(out("config.yaml"), here("c/config.yaml")).unwrap();
    symlink(out("labels"), here("l/labels")).unwrap();
    let text = "outputs: [{name: y, dtype: FP32, shape: [2], labels: labels/en}]";
    fs::write(here("l/config.yaml"), text).unwrap();

    // A root that is itself reached through a link is where that leads.
    let elsewhere = TempDir::new().unwrap();
    let link = elsewhere.path().join("root");
    symlink(root.path(), &link).unwrap();
    for path in [root.path(), &link] {
        let snapshot = confined(path);
        assert_eq!(snapshot.models.keys().collect::<Vec<_>>(), ["c", "inner", "l", "m"]);
        let told: Vec<_> = snapshot.problems.iter().map(|problem| problem.path.clone()).collect();
        assert_eq!(told, [path.join("linked"), path.join("m/3")]);
        assert!(snapshot.problems[0].message.starts_with("ignored: it leads out of the repository, to "));
        for model in ["c", "l"] {
            let error = snapshot.models[model].config.as_ref().unwrap_err();
            assert!(matches!(error, ConfigError::Unreadable { .. }), "{error}");
            assert!(error.to_string().contains("leads out of the repository"), "{error}");
        }
        let refused = verify(version(&snapshot, 1), &Digests::default()).unwrap_err();
        assert!(!refused.waiting && refused.reason.contains("without --confine-symlinks"), "{refused}");
        for good in [2, 4] {
            assert_eq!(verify(version(&snapshot, good), &Digests::default()).err(), None);
        }
    }
    let free = scan(&[root.path().to_owned()]);
    assert_eq!(free.models.len(), 5);
    assert_eq!(numbers(&free.models["m"].wanted), [4]);
    assert!(free.models.values().all(|model| model.config.is_ok()));
}

#[test]
fn loops_of_links_end() {
    let root = root(&["m/1/model.pt"]);
    symlink("b", root.path().join("a")).unwrap();
    symlink("a", root.path().join("b")).unwrap();
    symlink("3", root.path().join("m/3")).unwrap();
    symlink("..", root.path().join("m/4")).unwrap();
    symlink("config.yaml", root.path().join("m/config.yaml")).unwrap();
    fs::create_dir(root.path().join("m/5")).unwrap();
    symlink("model.pt", root.path().join("m/5/model.pt")).unwrap();
    for confine in [false, true] {
        let snapshot = Scanner::new(vec![root.path().to_owned()], confine).look();
        let told = problems(&root, &snapshot);
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(snapshot.models["m"].config.is_err());
        assert_eq!(version(&snapshot, 5).files[0].stamp, None);
        assert_eq!(version(&snapshot, 4).files[0].stamp, None, "a directory above without a model");
    }
}

#[test]
fn a_model_that_cannot_be_read_is_kept() {
    if rustix::process::geteuid().is_root() {
        println!("skipped: root may read every directory");
        return;
    }
    use std::os::unix::fs::PermissionsExt as _;
    let root = root(&["m/1/model.pt=x"]);
    let mut scanner = calm(&root);
    assert!(scanner.look().models["m"].readable);
    fs::set_permissions(root.path().join("m"), fs::Permissions::from_mode(0o000)).unwrap();
    let model = &scanner.look().models["m"];
    assert!(!model.readable && model.config.is_err());
    fs::set_permissions(root.path().join("m"), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(scanner.look().models["m"].readable);
}

/// The time of a look at many models, for a release build:
/// `cargo test --release -p sconce-repository -- --ignored --nocapture look_at_a_thousand`.
#[test]
#[ignore = "a measurement"]
fn look_at_a_thousand_models() {
    let root = TempDir::new().unwrap();
    for model in 0..1000 {
        for version in 1..=3 {
            let dir = root.path().join(format!("model{model}/{version}"));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("model.pt"), "x").unwrap();
        }
        let config = "inputs: [{name: x, dtype: FP32, shape: [-1, 3]}]\nversions: all\n";
        fs::write(root.path().join(format!("model{model}/config.yaml")), config).unwrap();
    }
    let mut scanner = Scanner::new(vec![root.path().to_owned()], false);
    for number in 0..12 {
        let started = std::time::Instant::now();
        let snapshot = scanner.look();
        println!("look {number}: {:?}, {} directories to watch", started.elapsed(), snapshot.watch.len());
        while number == 0 && scanner.look().models.values().any(|model| model.settling) {}
    }
    let mut watcher = crate::Watcher::new(|| {});
    let watch = scanner.look().watch;
    for _ in 0..3 {
        let started = std::time::Instant::now();
        watcher.set(&watch);
        println!("set {} watches: {:?}", watch.len(), started.elapsed());
    }
}
