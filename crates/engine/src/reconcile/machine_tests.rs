//! The machine, one situation at a time.

use std::time::Duration;

use super::{
    world::{CONTENTS, OnDisk, POLICIES, THREADS, World, model_on_disk, version},
    *,
};
use crate::{reconcile::Override, table::Step};

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
fn a_change_after_a_change_leaves_no_gap() {
    let mut world = World::new(Mode::Watch);
    world.write("a", 3, 3);
    world.look();
    world.finish(0);
    // Only an older one is left, and while it loads that is replaced too: 3 comes back.
    world.disk.get_mut("a").unwrap().versions.remove(&3);
    world.write("a", 1, 1);
    world.look();
    world.pass(Duration::from_millis(250));
    assert_eq!(world.loading.len(), 1);
    world.write("a", 1, 2);
    world.write("a", 3, 3);
    world.finish_failing(Step::Copy, false);
    assert_eq!(world.serving("a"), [(3, 3)], "until the disk has been looked at again");
    world.quiet();
    assert_eq!(world.serving("a"), [(3, 3)]);
    // And when it does not come back, it goes in the end.
    world.disk.get_mut("a").unwrap().versions.remove(&3);
    world.write("a", 1, 5);
    world.quiet();
    assert_eq!(world.serving("a"), []);
}

#[test]
fn a_copy_that_goes_on_for_long_is_counted_as_often_as_it_is_tried() {
    let mut world = World::new(Mode::Watch);
    world.write("a", 1, 1);
    world.look();
    for _ in 0..4 {
        world.finish_failing(Step::Copy, false);
        world.pass(Duration::from_secs(3600));
    }
    assert_eq!(world.failed, [], "it may just be under way");
    for count in 1..4 {
        world.finish_failing(Step::Copy, false);
        world.pass(Duration::from_secs(3600));
        assert_eq!(world.failed, vec![Step::Copy; count]);
    }
}

#[test]
fn touching_a_file_loads_nothing() {
    let mut world = World::new(Mode::Watch);
    world.write("a", 1, 1);
    world.look();
    world.finish(0);
    // The same bytes under another stamp.
    world.write("a", 1, 1 + CONTENTS / 2);
    world.quiet();
    world.pass(Duration::from_secs(100));
    assert!(world.loading.is_empty());
    assert_eq!((world.made.len(), world.serving("a")), (1, vec![(1, 1)]));
}

#[test]
fn a_change_in_place_that_fails_is_not_tried_without_end() {
    let mut world = World::new(Mode::Watch);
    world.write("a", 1, 1);
    world.look();
    world.finish(0);
    world.disk.get_mut("a").unwrap().policy = "versions: {latest: 2}";
    world.look();
    world.finish_failing(Step::Load, false);
    assert!(world.loading.is_empty());
    assert_eq!(world.serving("a"), [(1, 1)]);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.loading.len(), 1);
}

#[test]
fn what_hangs_while_it_is_warmed_is_not_tried_again_until_it_changes() {
    let mut world = World::new(Mode::Watch);
    world.write("a", 1, 1);
    world.look();
    world.finish_failing(Step::Warm, true);
    world.pass(Duration::from_secs(3600));
    assert!(world.loading.is_empty());
    world.write("a", 1, 2);
    world.look();
    assert_eq!(world.loading.len(), 1);
}

#[test]
fn what_is_pointed_back_has_not_failed() {
    let mut world = World::new(Mode::Watch);
    world.write("a", 1, 1);
    world.look();
    world.finish(0);
    world.write("a", 1, 5);
    world.look();
    world.finish(0);
    assert_eq!(world.table["a"].failures.len(), 1);
    world.write("a", 1, 1);
    world.look();
    assert!(world.table["a"].failures.is_empty() && world.loading.is_empty());
    world.pass(Duration::from_secs(100));
}

/// An order for other files than those of the directory.
fn instead(name: &str, number: u64, content: usize) -> Order {
    let on_disk = OnDisk { policy: POLICIES[0], broken: false, versions: [(number, content)].into() };
    let disk = Arc::new(model_on_disk(name, &on_disk));
    Order::Load { version: None, instead: Some(Override { disk, directory: None }) }
}

#[test]
fn an_override_that_fails_leaves_what_serves() {
    let mut world = World::new(Mode::Watch);
    world.write("a", 2, 2);
    world.look();
    world.finish(0);
    world.order("a", instead("a", 1, 5));
    world.finish(0);
    assert!(matches!(world.last_answer(), Some(Err(Refused::Failed(_)))));
    assert_eq!(world.states("a"), [(2, "READY")]);
    world.quiet();
    assert_eq!(world.states("a"), [(2, "READY")]);
    // One that passes is served until the directory changes.
    world.order("a", instead("a", 1, 6));
    world.quiet();
    assert_eq!((world.last_answer(), world.serving("a")), (Some(Ok(())), vec![(1, 6)]));
    world.write("a", 3, 3);
    world.quiet();
    assert_eq!(world.serving("a"), [(3, 3)]);
}

#[test]
fn an_override_takes_the_place_of_what_was_just_deleted() {
    let mut world = World::new(Mode::Watch);
    world.write("a", 1, 1);
    world.write("a", 2, 2);
    world.look();
    world.finish(0);
    world.disk.get_mut("a").unwrap().versions.remove(&2);
    world.order("a", instead("a", 1, 6));
    world.quiet();
    assert_eq!((world.last_answer(), world.serving("a")), (Some(Ok(())), vec![(1, 6)]));
}

#[test]
fn with_replace_a_version_that_does_not_load_is_tried_once() {
    let mut world = World::new(Mode::Watch);
    world.write("a", 1, 1);
    world.disk.get_mut("a").unwrap().policy = POLICIES[4];
    world.look();
    world.finish(0);
    world.write("a", 3, 8);
    world.quiet();
    assert_eq!(world.states("a"), [(1, "READY"), (3, "UNAVAILABLE")]);
    let retired = world.ever_retired.len();
    for _ in 0..20 {
        world.pass(Duration::from_secs(400));
        assert!(world.loading.is_empty());
    }
    assert_eq!(world.ever_retired.len(), retired);
    world.write("a", 3, 9);
    world.quiet();
    assert_eq!(world.serving("a"), [(3, 9)]);
}

#[test]
fn a_policy_that_changes_during_a_load_holds_when_it_ends() {
    let mut world = World::new(Mode::Watch);
    world.write("a", 2, 2);
    world.look();
    world.finish(0);
    world.write("a", 3, 3);
    world.look();
    world.disk.get_mut("a").unwrap().policy = "versions: all";
    world.look();
    world.finish(0);
    assert_eq!(world.serving("a"), [(2, 2), (3, 3)]);
    assert!(world.ever_retired.is_empty());
}

#[test]
fn while_a_configuration_is_broken_what_serves_goes_on() {
    let mut world = World::new(Mode::Watch);
    world.write("a", 1, 1);
    world.write("a", 2, 2);
    world.look();
    world.finish(0);
    world.disk.get_mut("a").unwrap().broken = true;
    world.quiet();
    assert_eq!(world.serving("a"), [(2, 2)]);
    assert!(world.table["a"].problem.as_ref().unwrap().contains("broken"));
}

#[test]
fn an_unload_does_not_wait_for_a_load() {
    let mut world = World::new(Mode::Watch);
    world.write("a", 1, 1);
    world.look();
    world.order("a", Order::Unload { version: None });
    assert!(world.loading[0].steps[0].stop.load(Ordering::Relaxed));
}

#[test]
fn a_model_named_at_start_is_waited_for() {
    let mut world = World::new(Mode::Explicit { models: vec!["a".to_owned()], all: false });
    world.look();
    assert!(world.settled && !world.table["a"].unloaded);
    world.write("a", 1, 1);
    world.quiet();
    assert_eq!(world.serving("a"), [(1, 1)]);
    world.write("a", 2, 2);
    world.quiet();
    assert_eq!(world.serving("a"), [(1, 1)], "later changes count when they are asked for");
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
    // Asking for one that serves anyway adds none.
    world.write("a", 4, 4);
    world.quiet();
    world.order("a", Order::Load { version: Some(version(4)), instead: None });
    world.quiet();
    assert_eq!((world.last_answer(), world.serving("a")), (Some(Ok(())), vec![(4, 4)]));
    world.order("a", Order::Load { version: Some(version(9)), instead: None });
    assert!(
        matches!(world.last_answer(), Some(Err(Refused::NotFound(text))) if text.contains("no version 9"))
    );
}

#[test]
fn what_is_named_at_start_is_waited_for() {
    let named = Mode::Explicit { models: vec!["a".to_owned(), "nobody".to_owned()], all: false };
    let mut world = World::new(named);
    world.write("a", 1, 1);
    world.write("b", 1, 1);
    world.look();
    assert!(!world.settled && world.loading.len() == 1);
    world.finish(0);
    assert!(world.settled);
    assert_eq!((world.serving("a"), world.serving("b")), (vec![(1, 1)], Vec::new()));
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
