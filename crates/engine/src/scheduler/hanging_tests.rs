//! Runs that are not expected to end, driven by hand.

use std::time::Duration;

use super::*;
use crate::scheduler::{
    Class, Fate, Refusal,
    tests::{Job, free, job, on, policy, ready},
};

#[test]
fn a_model_that_hangs_takes_nothing_in_and_its_workers_are_not_doubled_when_they_come_back() {
    let now = Instant::now();
    let mut scheduler = ready(&[1]);
    let bad = scheduler.add_model(policy(on(&[(0, 1)]), 10, Class::Traffic));
    let good = scheduler.add_model(policy(on(&[(0, 5)]), 10, Class::Traffic));
    let hang = |scheduler: &mut Scheduler<Job>, substitute: Substitute| {
        let run = scheduler.arrive(bad, job(0), now).unwrap().unwrap();
        assert!(scheduler.arrive(bad, job(1), now).unwrap().is_none());
        assert!(scheduler.arrive(good, job(2), now).unwrap().is_none());
        let before = now.checked_sub(Duration::from_nanos(1)).unwrap();
        assert!(scheduler.hangs(run.worker, before, now).is_none(), "that was another");
        let hang = scheduler.hangs(run.worker, now, now).unwrap();
        assert!(scheduler.hangs(run.worker, now, now).is_none(), "it is known");
        assert_eq!(hang.substitute, substitute);
        assert_eq!(refused(scheduler), [1]);
        assert!(scheduler.stuck_by(bad) == Some(Stuck::Runs) && scheduler.stuck_by(good).is_none());
        assert_eq!(scheduler.arrive(bad, job(3), now).unwrap_err().1, Refusal::Stuck(Stuck::Runs));
        assert_eq!((scheduler.running(bad), scheduler.hung(bad)), (1, 1));
        let next = match substitute {
            Substitute::New(worker, _) => scheduler.worker_ready(worker, now),
            Substitute::Known | Substitute::Nobody | Substitute::Unneeded => hang.dispatches,
        };
        assert_eq!(next[0].batch[0].id, 2);
        assert!(free(scheduler, next[0].worker, now).is_none());
        assert!(free(scheduler, run.worker, now).is_none());
        assert_eq!(
            (scheduler.running(bad), scheduler.hung(bad), scheduler.stuck_by(bad).is_some()),
            (0, 0, false)
        );
        let load = &scheduler.load()[0];
        assert_eq!((load.workers, load.idle), (1, 1), "one place, one worker");
    };
    hang(&mut scheduler, Substitute::New(1, 0));
    for _ in 0..5 {
        hang(&mut scheduler, Substitute::Known);
    }
}

#[test]
fn when_too_many_hang_the_device_has_nobody_left() {
    let now = Instant::now();
    let mut scheduler = ready(&[1]);
    let model = scheduler.add_model(policy(on(&[(0, 5)]), 10, Class::Traffic));
    let first = scheduler.arrive(model, job(0), now).unwrap().unwrap();
    assert_eq!(scheduler.hangs(first.worker, now, now).unwrap().substitute, Substitute::New(1, 0));
    assert!(scheduler.worker_ready(1, now).is_empty());
    let second = scheduler.arrive(model, job(1), now).unwrap().unwrap();
    assert!(scheduler.arrive(model, job(2), now).unwrap().is_none());
    assert_eq!(scheduler.hangs(second.worker, now, now).unwrap().substitute, Substitute::Nobody);
    assert_eq!((scheduler.load()[0].workers, refused(&mut scheduler)), (0, vec![2]));
    assert_eq!(scheduler.arrive(model, job(3), now).unwrap_err().1, Refusal::Stuck(Stuck::Workers));
    assert!(free(&mut scheduler, first.worker, now).is_none());
    assert_eq!(scheduler.load()[0].workers, 1, "who comes back is welcome");
    assert_eq!(scheduler.arrive(model, job(4), now).unwrap().unwrap().worker, first.worker);
}

/// Those that have been refused because their model is stuck.
fn refused(scheduler: &mut Scheduler<Job>) -> Vec<usize> {
    let stuck = |(job, fate): (Job, Fate)| matches!(fate, Fate::Stuck(_)).then_some(job.id);
    scheduler.take_dead().into_iter().filter_map(stuck).collect()
}

#[test]
fn nobody_waits_for_a_model_that_gets_stuck_by_a_change_or_a_failure() {
    let now = Instant::now();
    // Two runs, one of which hangs; then it may only have one.
    let mut scheduler = ready(&[2]);
    let model = scheduler.add_model(policy(on(&[(0, 2)]), 10, Class::Traffic));
    let runs = [0, 1].map(|id| scheduler.arrive(model, job(id), now).unwrap().unwrap());
    assert!(scheduler.arrive(model, job(2), now).unwrap().is_none());
    assert!(scheduler.hangs(runs[0].worker, now, now).is_some());
    assert!(refused(&mut scheduler).is_empty(), "the other ends");
    assert!(scheduler.set_policy(model, &policy(on(&[(0, 1)]), 10, Class::Traffic), now).is_empty());
    assert_eq!(refused(&mut scheduler), [2]);
    assert!(scheduler.again(model, vec![job(3)], now).unwrap().is_empty());
    assert_eq!(refused(&mut scheduler), [3]);
    // It hangs on one device, and the other fails.
    let mut scheduler = ready(&[1, 1]);
    let model = scheduler.add_model(policy(on(&[(0, 1), (1, 1)]), 10, Class::Traffic));
    let runs = [0, 1].map(|id| scheduler.arrive(model, job(id), now).unwrap().unwrap());
    assert!(scheduler.arrive(model, job(2), now).unwrap().is_none());
    let hangs = runs.iter().find(|run| run.device == 0).unwrap();
    assert!(scheduler.hangs(hangs.worker, now, now).is_some());
    assert!(scheduler.fail_device(1).is_empty());
    assert_eq!(refused(&mut scheduler), [2]);
}

#[test]
fn a_substitute_that_cannot_be_started_leaves_its_place_to_who_comes_back() {
    let now = Instant::now();
    let mut scheduler = ready(&[1]);
    let model = scheduler.add_model(policy(on(&[(0, 1)]), 10, Class::Traffic));
    let run = scheduler.arrive(model, job(0), now).unwrap().unwrap();
    assert_eq!(scheduler.hangs(run.worker, now, now).unwrap().substitute, Substitute::New(1, 0));
    scheduler.not_started(1);
    assert_eq!(scheduler.load()[0].workers, 0);
    assert!(free(&mut scheduler, run.worker, now).is_none());
    assert_eq!(scheduler.arrive(model, job(1), now).unwrap().unwrap().worker, run.worker);
}
