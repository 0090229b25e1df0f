//! The scheduler, driven by hand: no threads, no clock.

use std::{cell::Cell, rc::Rc, time::Duration};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug, Default)]
struct Job {
    id: usize,
    deadline: Option<Instant>,
    cancelled: Rc<Cell<bool>>,
}

impl Work for Job {
    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
    fn is_cancelled(&self) -> bool {
        self.cancelled.get()
    }
}

fn job(id: usize) -> Job {
    Job { id, ..Job::default() }
}

fn on(devices: &[(usize, usize)]) -> Vec<Placement> {
    devices.iter().map(|&(device, limit)| Placement { device, limit }).collect()
}

/// A scheduler whose workers have all reported.
fn ready(workers: &[usize]) -> Scheduler<Job> {
    let mut scheduler = Scheduler::new(workers);
    for worker in 0..workers.iter().sum() {
        assert!(scheduler.worker_ready(worker, Instant::now()).is_none());
    }
    scheduler
}

#[test]
fn goes_to_the_device_with_the_fewest_in_flight_and_ties_rotate() {
    let now = Instant::now();
    let mut scheduler = ready(&[2, 2, 2]);
    let model = scheduler.add_model(on(&[(0, 2), (1, 2), (2, 2)]), 10, Class::Traffic);
    let mut held = Vec::new();
    for id in 0..6 {
        held.push(scheduler.arrive(model, job(id), now).unwrap().unwrap());
    }
    let devices: Vec<_> = held.iter().map(|dispatch| dispatch.device).collect();
    assert_eq!(devices, [0, 1, 2, 0, 1, 2]);
    assert!(scheduler.arrive(model, job(6), now).unwrap().is_none(), "all workers are busy");
    // A device whose work is unfinished is counted even though its worker is free.
    let first = held.remove(0);
    let next = scheduler.worker_free(first.worker, model, now).unwrap();
    assert_eq!((next.device, next.batch[0].id, next.concurrency), (0, 6, 3));
}

#[test]
fn a_full_queue_is_an_answer_and_the_dead_make_room() {
    let now = Instant::now();
    let mut scheduler = ready(&[1]);
    let model = scheduler.add_model(on(&[(0, 1)]), 2, Class::Traffic);
    let running = scheduler.arrive(model, job(0), now).unwrap().unwrap();
    let leaving = job(1);
    assert!(scheduler.arrive(model, leaving.clone(), now).unwrap().is_none());
    let expiring = Job { id: 2, deadline: Some(now + Duration::from_secs(1)), ..Job::default() };
    assert!(scheduler.arrive(model, expiring, now).unwrap().is_none());
    let (refused, why) = scheduler.arrive(model, job(3), now).unwrap_err();
    assert_eq!((refused.id, why), (3, Refusal::Full { limit: 2 }));
    leaving.cancelled.set(true);
    assert!(scheduler.arrive(model, job(4), now).unwrap().is_none());
    // The expired one is skipped, the one that was let in instead runs.
    let next = scheduler.worker_free(running.worker, model, now + Duration::from_secs(2)).unwrap();
    assert_eq!(next.batch[0].id, 4);
}

#[test]
fn a_limit_holds_even_while_workers_are_idle() {
    let now = Instant::now();
    let mut scheduler = ready(&[4]);
    let model = scheduler.add_model(on(&[(0, 1)]), 10, Class::Traffic);
    let first = scheduler.arrive(model, job(0), now).unwrap().unwrap();
    assert!(scheduler.arrive(model, job(1), now).unwrap().is_none());
    assert_eq!((scheduler.queued(model), scheduler.running(model)), (1, 1));
    assert_eq!(scheduler.worker_free(first.worker, model, now).unwrap().batch[0].id, 1);
}

#[test]
fn beside_a_saturating_model_another_waits_for_one_run() {
    let now = Instant::now();
    let mut scheduler = ready(&[1]);
    let greedy = scheduler.add_model(on(&[(0, 1)]), 1000, Class::Traffic);
    let modest = scheduler.add_model(on(&[(0, 1)]), 1000, Class::Traffic);
    let mut running = scheduler.arrive(greedy, job(0), now).unwrap().unwrap();
    for id in 1..500 {
        assert!(scheduler.arrive(greedy, job(id), now).unwrap().is_none());
    }
    for _ in 0..300 {
        running = scheduler.worker_free(running.worker, running.model, now).unwrap();
    }
    assert!(scheduler.arrive(modest, job(1000), now).unwrap().is_none());
    let next = scheduler.worker_free(running.worker, running.model, now).unwrap();
    assert_eq!(next.model, modest);
}

#[test]
fn a_removed_model_gives_back_what_waits_and_refuses_what_comes() {
    let now = Instant::now();
    let mut scheduler = ready(&[1]);
    let model = scheduler.add_model(on(&[(0, 1)]), 10, Class::Traffic);
    let running = scheduler.arrive(model, job(0), now).unwrap().unwrap();
    assert!(scheduler.arrive(model, job(1), now).unwrap().is_none());
    let left: Vec<_> = scheduler.remove_model(model).iter().map(|job| job.id).collect();
    assert_eq!(left, [1]);
    assert_eq!(scheduler.arrive(model, job(2), now).unwrap_err().1, Refusal::Gone);
    assert!(scheduler.worker_free(running.worker, model, now).is_none());
}

#[test]
fn a_run_that_outlives_its_model_does_not_count_for_the_next_one() {
    let now = Instant::now();
    let mut scheduler = ready(&[2]);
    let old = scheduler.add_model(on(&[(0, 1)]), 10, Class::Traffic);
    let outliving = scheduler.arrive(old, job(0), now).unwrap().unwrap();
    assert!(scheduler.remove_model(old).is_empty());
    let new = scheduler.add_model(on(&[(0, 1)]), 10, Class::Traffic);
    assert_ne!(old, new);
    let running = scheduler.arrive(new, job(1), now).unwrap().unwrap();
    assert!(scheduler.arrive(new, job(2), now).unwrap().is_none());
    assert!(scheduler.worker_free(outliving.worker, old, now).is_none(), "the new model's limit is 1");
    assert_eq!(scheduler.worker_free(running.worker, new, now).unwrap().batch[0].id, 2);
}

proptest! {
    /// Whatever happens in whatever order: nothing is lost, nothing runs twice, no limit is
    /// broken, and no worker idles while something that it may run waits.
    #[test]
    fn work_is_conserved(
        workers in prop::collection::vec(1usize..3, 1..4),
        limits in prop::collection::vec(prop::collection::vec(0usize..3, 3), 1..4),
        steps in prop::collection::vec((any::<bool>(), 0usize..8), 1..200),
    ) {
        let now = Instant::now();
        let mut scheduler = ready(&workers);
        let models: Vec<_> = limits.iter().map(|limits| {
            let places: Vec<_> = limits.iter().take(workers.len()).copied().enumerate().filter(|&(_, limit)| limit > 0).collect();
            (scheduler.add_model(on(&places), 5, Class::Traffic), places)
        }).collect();
        let (mut accepted, mut ran, mut busy) = (0usize, 0usize, Vec::<Dispatch<Job>>::new());
        for (id, (arrives, pick)) in steps.into_iter().enumerate() {
            let dispatch = if arrives {
                match scheduler.arrive(models[pick % models.len()].0, job(id), now) {
                    Ok(dispatch) => { accepted += 1; dispatch }
                    Err(_) => None,
                }
            } else if busy.is_empty() { None } else {
                let done = busy.remove(pick % busy.len());
                ran += 1;
                let (worker, model) = (done.worker, done.model);
                drop(done);
                scheduler.worker_free(worker, model, now)
            };
            busy.extend(dispatch);
            let waiting: usize = models.iter().map(|(key, _)| scheduler.queued(*key)).sum();
            prop_assert_eq!(accepted, ran + busy.len() + waiting);
            for (key, places) in &models {
                for &(device, limit) in places {
                    let here = busy.iter().filter(|run| run.model == *key && run.device == device).count();
                    prop_assert!(here <= limit);
                    let idle = workers[device] - busy.iter().filter(|run| run.device == device).count();
                    prop_assert!(idle == 0 || here == limit || scheduler.queued(*key) == 0);
                }
            }
        }
    }
}
