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

/// Runs of `model` and of whatever else waits, in the order in which one worker takes them.
fn order(scheduler: &mut Scheduler<Job>, mut run: Dispatch<Job>, count: usize) -> Vec<ModelKey> {
    let mut models = Vec::new();
    for _ in 0..count {
        let (worker, model) = (run.worker, run.model);
        drop(run);
        run = scheduler.worker_free(worker, model, Instant::now()).unwrap();
        models.push(run.model);
    }
    models
}

#[test]
fn background_gives_way_to_traffic_but_not_for_good() {
    let now = Instant::now();
    let mut scheduler = ready(&[1]);
    let traffic = scheduler.add_model(on(&[(0, 1)]), 1000, Class::Traffic);
    let other = scheduler.add_model(on(&[(0, 1)]), 1000, Class::Traffic);
    let background = scheduler.add_model(on(&[(0, 1)]), 1000, Class::Background);
    let first = scheduler.arrive(traffic, job(0), now).unwrap().unwrap();
    for id in 1..100 {
        for model in [traffic, other, background] {
            assert!(scheduler.arrive(model, job(id), now).unwrap().is_none());
        }
    }
    let taken = order(&mut scheduler, first, 27);
    let turns: Vec<usize> = (0..27).filter(|&at| taken[at] == background).collect();
    assert_eq!(turns, [8, 17, 26], "one after each eight of others");
    // It has not taken turns from one more than from the other.
    let of = |model| taken.iter().filter(|&&taken| taken == model).count();
    assert_eq!((of(traffic), of(other)), (12, 12));
}

#[test]
fn background_runs_at_once_where_a_worker_is_idle_and_counts_as_in_flight() {
    let now = Instant::now();
    let mut scheduler = ready(&[2]);
    let background = scheduler.add_model(on(&[(0, 1)]), 10, Class::Background);
    let traffic = scheduler.add_model(on(&[(0, 2)]), 10, Class::Traffic);
    let warming = scheduler.arrive(background, job(0), now).unwrap().unwrap();
    let run = scheduler.arrive(traffic, job(1), now).unwrap().unwrap();
    assert_eq!((warming.concurrency, run.concurrency), (1, 2));
}

fn ids(dispatches: &[Dispatch<Job>]) -> Vec<usize> {
    dispatches.iter().map(|dispatch| dispatch.batch[0].id).collect()
}

#[test]
fn a_limit_that_grows_is_used_at_once_and_one_that_shrinks_lets_runs_end() {
    let now = Instant::now();
    let mut scheduler = ready(&[4]);
    let model = scheduler.add_model(on(&[(0, 1)]), 10, Class::Traffic);
    let first = scheduler.arrive(model, job(0), now).unwrap().unwrap();
    for id in 1..6 {
        assert!(scheduler.arrive(model, job(id), now).unwrap().is_none());
    }
    let more = scheduler.set_placements(model, &on(&[(0, 3)]), now);
    assert_eq!((ids(&more), scheduler.running(model)), (vec![1, 2], 3));
    assert!(scheduler.set_placements(model, &on(&[(0, 1)]), now).is_empty());
    assert!(scheduler.worker_free(first.worker, model, now).is_none());
    assert!(scheduler.worker_free(more[0].worker, model, now).is_none());
    let next = scheduler.worker_free(more[1].worker, model, now).unwrap();
    assert_eq!((next.batch[0].id, scheduler.running(model), scheduler.queued(model)), (3, 1, 2));
}

#[test]
fn runs_on_a_device_that_was_taken_away_count_when_it_is_given_back() {
    let now = Instant::now();
    let mut scheduler = ready(&[2, 1]);
    let model = scheduler.add_model(on(&[(0, 1)]), 10, Class::Traffic);
    let run = scheduler.arrive(model, job(0), now).unwrap().unwrap();
    assert!(scheduler.arrive(model, job(1), now).unwrap().is_none());
    let moved = scheduler.set_placements(model, &on(&[(1, 1)]), now);
    assert_eq!((moved[0].device, moved[0].batch[0].id), (1, 1));
    assert!(scheduler.arrive(model, job(2), now).unwrap().is_none());
    assert!(scheduler.set_placements(model, &on(&[(0, 1), (1, 1)]), now).is_empty());
    assert_eq!(scheduler.worker_free(run.worker, model, now).unwrap().batch[0].id, 2);
}

/// What may happen to a scheduler.
#[derive(Clone, Debug)]
enum Step {
    Arrives(usize),
    Ends(usize),
    /// Other limits for a model, one per device.
    Changes(usize, Vec<usize>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0usize..8).prop_map(Step::Arrives),
        8 => (0usize..8).prop_map(Step::Ends),
        1 => (0usize..8, prop::collection::vec(0usize..3, 3)).prop_map(|(model, limits)| Step::Changes(model, limits)),
    ]
}

/// A scheduler beside a plain account of what must be true of it.
struct Account {
    scheduler: Scheduler<Job>,
    workers: Vec<usize>,
    models: Vec<(ModelKey, Class, Vec<usize>)>,
    busy: Vec<Dispatch<Job>>,
    accepted: usize,
    ran: usize,
    /// Runs of traffic that began on a device, by a worker that had become free, while background work
    /// that might run there waited.
    passed_over: Vec<usize>,
}

impl Account {
    fn new(workers: &[usize], models: &[(Class, Vec<usize>)]) -> Self {
        let mut scheduler = ready(workers);
        let models = models
            .iter()
            .map(|(class, limits)| {
                let limits = limits[..workers.len()].to_vec();
                (scheduler.add_model(places(&limits), 5, *class), *class, limits)
            })
            .collect();
        let passed_over = vec![0; workers.len()];
        Self {
            scheduler,
            workers: workers.to_vec(),
            models,
            busy: Vec::new(),
            accepted: 0,
            ran: 0,
            passed_over,
        }
    }

    fn here(&self, model: ModelKey, device: usize) -> usize {
        self.busy.iter().filter(|run| run.model == model && run.device == device).count()
    }

    /// Whether a request of this class waits that might run on the device.
    fn waits(&self, class: Class, device: usize) -> bool {
        self.models.iter().any(|(key, of, limits)| {
            *of == class && self.scheduler.queued(*key) > 0 && self.here(*key, device) < limits[device]
        })
    }

    fn class(&self, model: ModelKey) -> Class {
        self.models.iter().find(|(key, ..)| *key == model).unwrap().1
    }

    fn take(&mut self, id: usize, step: Step) {
        let now = Instant::now();
        match step {
            Step::Arrives(pick) => {
                let key = self.models[pick % self.models.len()].0;
                if let Ok(dispatch) = self.scheduler.arrive(key, job(id), now) {
                    self.accepted += 1;
                    self.busy.extend(dispatch);
                }
            }
            Step::Ends(_) if self.busy.is_empty() => {}
            Step::Ends(pick) => {
                let done = self.busy.remove(pick % self.busy.len());
                self.ran += 1;
                self.end(done, now);
            }
            Step::Changes(pick, limits) => {
                let count = self.models.len();
                let (key, _, known) = &mut self.models[pick % count];
                *known = limits[..self.workers.len()].to_vec();
                let started = self.scheduler.set_placements(*key, &places(known), now);
                self.busy.extend(started);
            }
        }
    }

    fn end(&mut self, done: Dispatch<Job>, now: Instant) {
        let (worker, model, device) = (done.worker, done.model, done.device);
        drop(done);
        let waited = [Class::Traffic, Class::Background].map(|class| self.waits(class, device));
        let next = self.scheduler.worker_free(worker, model, now);
        match (next.as_ref().map(|next| self.class(next.model)), waited) {
            (Some(Class::Traffic), [_, true]) => self.passed_over[device] += 1,
            (Some(Class::Background), [true, _]) => {
                assert_eq!(self.passed_over[device], BACKGROUND_WAITS as usize, "a turn comes after so many");
                self.passed_over[device] = 0;
            }
            (Some(_), _) => self.passed_over[device] = 0,
            (None, waited) => assert_eq!(waited, [false, false], "a free worker takes what waits"),
        }
        assert!(self.passed_over[device] <= BACKGROUND_WAITS as usize, "background is not starved");
        self.busy.extend(next);
    }

    fn check(&self, before: &[usize]) {
        let waiting: usize = self.models.iter().map(|(key, ..)| self.scheduler.queued(*key)).sum();
        assert_eq!(self.accepted, self.ran + self.busy.len() + waiting, "nothing is lost");
        for (at, (key, _, limits)) in self.models.iter().enumerate() {
            let mut running = 0;
            for device in 0..self.workers.len() {
                let here = self.here(*key, device);
                running += here;
                let kept = here <= limits[device] || here <= before[at * self.workers.len() + device];
                assert!(kept, "no run begins above the limit");
                let idle = self.workers[device] - self.busy.iter().filter(|run| run.device == device).count();
                let served = idle == 0 || here >= limits[device] || self.scheduler.queued(*key) == 0;
                assert!(served, "no worker idles while something waits that it may run");
            }
            assert_eq!(self.scheduler.running(*key), running, "runs are counted");
        }
    }

    /// Runs by model and device.
    fn running(&self) -> Vec<usize> {
        let devices = 0..self.workers.len();
        self.models
            .iter()
            .flat_map(|(key, ..)| devices.clone().map(|device| self.here(*key, device)))
            .collect()
    }
}

fn places(limits: &[usize]) -> Vec<Placement> {
    let places: Vec<_> = limits.iter().copied().enumerate().filter(|&(_, limit)| limit > 0).collect();
    on(&places)
}

proptest! {
    /// Whatever happens in whatever order, also while limits change: nothing is lost, nothing runs
    /// twice, no limit is broken, no worker idles while something waits that it may run, and background
    /// work runs before traffic that waits when its turn has come and never else.
    #[test]
    fn work_is_conserved(
        workers in prop::collection::vec(1usize..3, 1..4),
        models in prop::collection::vec(
            (prop_oneof![2 => Just(Class::Traffic), 1 => Just(Class::Background)], prop::collection::vec(0usize..3, 3)),
            1..5,
        ),
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let mut account = Account::new(&workers, &models);
        for (id, step) in steps.into_iter().enumerate() {
            let before = account.running();
            account.take(id, step);
            account.check(&before);
        }
    }
}
