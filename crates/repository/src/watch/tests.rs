//! Real directories, real inotify: each change wakes, and what is no change does not.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use tempfile::TempDir;

use super::*;

/// Only turns a hang into a failure.
const LONG: Duration = Duration::from_secs(60);

struct Woken {
    watcher: Watcher,
    wakes: Receiver<()>,
}

impl Woken {
    fn new() -> Self {
        let (send, wakes) = channel();
        // A test that has ended listens no more.
        Self { watcher: Watcher::new(move || _ = send.send(())), wakes }
    }

    fn set(&mut self, dirs: &[&Path]) -> bool {
        let added = self.watcher.set(&dirs.iter().map(|dir| (dir.to_path_buf(), Interest::All)).collect());
        assert_eq!(self.watcher.trouble(), None);
        added
    }

    /// Proves that writes in this directory wake: more of them than there can be wakes from before.
    #[track_caller]
    fn is_woken_by_writes_in(&self, dir: &Path) {
        for number in 0..20 {
            fs::write(dir.join("model.pt"), [number]).unwrap();
            self.wakes.recv_timeout(LONG).expect("is woken");
        }
    }
}

#[test]
fn what_people_and_programs_do_wakes() {
    let root = TempDir::new().unwrap();
    let dir = root.path().join("m");
    fs::create_dir_all(dir.join("other")).unwrap();
    fs::write(dir.join("model.pt"), "old").unwrap();
    fs::write(root.path().join("staged"), "new").unwrap();
    symlink("other", dir.join("link")).unwrap();
    let changes: &[(&str, &dyn Fn())] = &[
        ("renamed into place", &|| fs::rename(root.path().join("staged"), dir.join("model.pt")).unwrap()),
        ("written in place", &|| fs::write(dir.join("model.pt"), "newer").unwrap()),
        ("link re-pointed", &|| {
            symlink("model.pt", dir.join("swap")).unwrap();
            fs::rename(dir.join("swap"), dir.join("link")).unwrap();
        }),
        ("deleted", &|| fs::remove_file(dir.join("model.pt")).unwrap()),
        ("directory made", &|| fs::create_dir(dir.join("7")).unwrap()),
        ("directory moved away", &|| fs::rename(&dir, root.path().join("away")).unwrap()),
    ];
    for (what, change) in changes {
        let mut woken = Woken::new();
        assert!(woken.set(&[&dir]), "{what}");
        change();
        assert!(woken.wakes.recv_timeout(LONG).is_ok(), "{what}");
    }
}

#[test]
fn reading_does_not_wake() {
    let root = TempDir::new().unwrap();
    fs::write(root.path().join("model.pt"), "bytes").unwrap();
    let inotify = inotify::init(CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&inotify, root.path(), ALL).unwrap();
    fs::read(root.path().join("model.pt")).unwrap();
    fs::read_dir(root.path()).unwrap().count();
    fs::write(root.path().join("written"), "").unwrap();
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut events = inotify::Reader::new(&inotify, &mut buffer);
    let first = events.next().unwrap();
    assert_eq!(first.file_name(), Some(c"written"), "events are told in order");
}

#[test]
fn where_only_names_count_what_is_written_does_not_wake() {
    let root = TempDir::new().unwrap();
    let log = root.path().join("server.log");
    fs::write(&log, "").unwrap();
    let Woken { mut watcher, wakes } = Woken::new();
    let for_what = |interest| Watch::from([(root.path().to_owned(), interest)]);
    assert!(watcher.set(&for_what(Interest::Names)));
    for line in 0..100 {
        fs::write(&log, [line]).unwrap();
        fs::set_permissions(&log, fs::Permissions::from_mode(0o600)).unwrap();
    }
    fs::create_dir(root.path().join("model")).unwrap();
    wakes.recv_timeout(LONG).expect("a name wakes");
    assert!(watcher.set(&for_what(Interest::All)), "for more than before");
    assert!(!watcher.set(&for_what(Interest::Names)), "for less than before");
    drop(watcher);
    assert_eq!(wakes.iter().count(), 0, "nothing else has");

    // The same directory for both, under two paths.
    let link = root.path().join("link");
    symlink(root.path(), &link).unwrap();
    for (one, two) in [(Interest::Names, Interest::All), (Interest::All, Interest::Names)] {
        let mut woken = Woken::new();
        woken.watcher.set(&Watch::from([(root.path().to_owned(), one), (link.clone(), two)]));
        woken.is_woken_by_writes_in(root.path());
    }
}

#[test]
fn a_queue_that_has_overflown_wakes() {
    assert!(tells_a_change(ReadFlags::QUEUE_OVERFLOW));
    assert!(tells_a_change(ReadFlags::UNMOUNT | ReadFlags::IGNORED));
    assert!(!tells_a_change(ReadFlags::IGNORED), "only that a watch has ended");
}

#[test]
fn only_what_was_not_watched_before_counts_as_added() {
    let root = TempDir::new().unwrap();
    let (one, two) = (root.path().join("one"), root.path().join("two"));
    fs::create_dir(&one).unwrap();
    let mut woken = Woken::new();
    assert!(!woken.set(&[]));
    assert!(woken.set(&[root.path(), &one, &two]));
    assert!(!woken.set(&[root.path(), &one, &two]), "two is not there");
    fs::create_dir(&two).unwrap();
    assert!(woken.set(&[root.path(), &one, &two]));
    assert!(!woken.set(&[&one]), "less is not more");
    assert!(woken.set(&[&one, &two]));
}

#[test]
fn another_directory_under_the_same_path_is_watched_again() {
    let root = TempDir::new().unwrap();
    let dir = root.path().join("m");
    let away = root.path().join("away");
    fs::create_dir(&dir).unwrap();
    let mut woken = Woken::new();
    woken.set(&[&dir]);

    fs::remove_dir(&dir).unwrap();
    fs::create_dir(&dir).unwrap();
    assert!(woken.set(&[&dir]), "deleted and made again");
    woken.is_woken_by_writes_in(&dir);

    fs::rename(&dir, &away).unwrap();
    symlink(&away, &dir).unwrap();
    assert!(!woken.set(&[&dir]), "the same directory through a link");
    let other = root.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::remove_file(&dir).unwrap();
    symlink(&other, &dir).unwrap();
    assert!(woken.set(&[&dir]), "the link leads elsewhere");
    woken.is_woken_by_writes_in(&other);
}

#[test]
fn one_directory_under_two_paths_stays_watched_until_both_are_gone() {
    let root = TempDir::new().unwrap();
    let (dir, link) = (root.path().join("m"), root.path().join("link"));
    fs::create_dir(&dir).unwrap();
    symlink(&dir, &link).unwrap();
    let mut woken = Woken::new();
    woken.set(&[&dir, &link]);
    woken.set(&[&link]);
    woken.is_woken_by_writes_in(&dir);
}

#[test]
fn what_is_watched_no_more_does_not_wake() {
    let root = TempDir::new().unwrap();
    let (one, two) = (root.path().join("one"), root.path().join("two"));
    fs::create_dir(&one).unwrap();
    fs::create_dir(&two).unwrap();
    let mut woken = Woken::new();
    woken.set(&[&one, &two]);
    woken.set(&[&two]);
    let watched: Vec<_> = woken.watcher.backend.as_ref().unwrap().watched.keys().collect();
    assert_eq!(watched, [&two]);
}

#[test]
fn a_watcher_that_was_dropped_calls_nobody() {
    let root = TempDir::new().unwrap();
    let mut woken = Woken::new();
    woken.set(&[root.path()]);
    let Woken { watcher, wakes } = woken;
    drop(watcher);
    while wakes.try_recv().is_ok() {}
    // The thread and with it the sender are gone, which no event can undo.
    assert_eq!(wakes.recv(), Err(std::sync::mpsc::RecvError));
}

#[test]
fn limits_are_told_as_trouble_and_what_has_gone_is_none() {
    let dir = Path::new("models/m");
    for gone in [Errno::NOENT, Errno::NOTDIR, Errno::ACCESS] {
        assert_eq!(no_watch(dir, gone), None);
    }
    let limit = no_watch(dir, Errno::NOSPC).unwrap();
    assert_eq!(limit, "the limit of inotify watches, fs.inotify.max_user_watches, is used up");
    assert!(no_watch(dir, Errno::IO).unwrap().starts_with("models/m cannot be watched: "));
    assert!(no_instance(Errno::MFILE).contains("fs.inotify.max_user_instances"));
}

#[test]
fn a_watcher_whose_thread_has_ended_says_so_and_starts_again() {
    let root = TempDir::new().unwrap();
    let mut woken = Woken::new();
    woken.set(&[root.path()]);
    woken.watcher.backend.as_ref().unwrap().state.broken.store(true, Ordering::Release);
    assert!(woken.watcher.trouble().unwrap().contains("stopped"));
    assert!(woken.set(&[root.path()]), "watched anew");
    woken.is_woken_by_writes_in(root.path());
}
