//! The scheduler, driven by hand: no threads, no clock.

use std::{cell::Cell, rc::Rc, time::Duration};

use super::*;

#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) id: usize,
    pub(super) rows: usize,
    /// Jobs of the same kind may run together; none with itself where it has none.
    pub(super) kind: Option<u8>,
    pub(super) priority: u64,
    pub(super) deadline: Option<Instant>,
    pub(super) timeout: Option<Duration>,
    pub(super) arrived: Instant,
    pub(super) cancelled: Rc<Cell<bool>>,
}

impl Work for Job {
    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
    fn is_cancelled(&self) -> bool {
        self.cancelled.get()
    }
    fn rows(&self) -> usize {
        self.rows
    }
    fn bytes(&self) -> usize {
        self.rows * 100
    }
    fn size(&self) -> u8 {
        6
    }
    fn joins(&self) -> bool {
        self.kind.is_some()
    }
    fn joins_with(&self, other: &Self) -> bool {
        self.kind == other.kind
    }
    fn priority(&self) -> u64 {
        self.priority
    }
    fn timeout(&self) -> Option<Duration> {
        self.timeout
    }
    fn threads(&self) -> Option<usize> {
        None
    }
}

pub(super) fn job(id: usize) -> Job {
    let (arrived, cancelled) = (Instant::now(), Rc::default());
    Job { id, rows: 1, kind: Some(0), priority: 0, deadline: None, timeout: None, arrived, cancelled }
}

pub(super) fn on(devices: &[(usize, usize)]) -> Vec<Placement> {
    devices.iter().map(|&(device, limit)| Placement { device, limit }).collect()
}

fn level(limit: usize) -> Level {
    Level { limit, timeout: None, delays: false, own_timeout: false }
}

/// One request at a time, at most `limit` wait.
pub(super) fn policy(placements: Vec<Placement>, limit: usize, class: Class) -> Policy {
    Policy {
        class,
        placements,
        placed: false,
        levels: vec![level(limit)],
        threads: None,
        ..Policy::background(0)
    }
}

/// A scheduler of such devices, which are no processors, whose workers have all reported.
pub(super) fn ready(workers: &[usize]) -> Scheduler<Job> {
    let devices: Vec<_> = workers.iter().map(|&workers| (workers, None)).collect();
    reported(Scheduler::new(&devices, usize::MAX))
}

/// A processor with so many cores and workers.
fn processor(cores: usize) -> Scheduler<Job> {
    reported(Scheduler::new(&[(cores, Some(cores))], usize::MAX))
}

fn reported(mut scheduler: Scheduler<Job>) -> Scheduler<Job> {
    for worker in 0..scheduler.worker_count() {
        assert!(scheduler.worker_ready(worker, Instant::now()).is_empty());
    }
    scheduler
}

/// What the worker that becomes free gets.
pub(super) fn free(
    scheduler: &mut Scheduler<Job>,
    worker: WorkerIndex,
    now: Instant,
) -> Option<Dispatch<Job>> {
    let mut dispatches = scheduler.worker_free(worker, None, now);
    assert!(dispatches.len() <= 1, "one worker has become free");
    dispatches.pop()
}

#[test]
fn goes_to_the_device_with_the_fewest_in_flight_and_ties_rotate() {
    let now = Instant::now();
    let mut scheduler = ready(&[2, 2, 2]);
    let model = scheduler.add_model(policy(on(&[(0, 2), (1, 2), (2, 2)]), 10, Class::Traffic));
    let mut held = Vec::new();
    for id in 0..6 {
        held.push(scheduler.arrive(model, job(id), now).unwrap().unwrap());
    }
    let devices: Vec<_> = held.iter().map(|dispatch| dispatch.device).collect();
    assert_eq!(devices, [0, 1, 2, 0, 1, 2]);
    assert!(scheduler.arrive(model, job(6), now).unwrap().is_none(), "all workers are busy");
    // A device whose work is unfinished is counted even though its worker is free.
    let first = held.remove(0);
    let next = free(&mut scheduler, first.worker, now).unwrap();
    assert_eq!((next.device, next.batch[0].id, scheduler.load()[0].in_flight), (0, 6, 3));
}

#[test]
fn a_full_queue_is_an_answer_and_the_dead_make_room() {
    let now = Instant::now();
    let mut scheduler = ready(&[1]);
    let model = scheduler.add_model(policy(on(&[(0, 1)]), 2, Class::Traffic));
    let running = scheduler.arrive(model, job(0), now).unwrap().unwrap();
    let leaving = job(1);
    assert!(scheduler.arrive(model, leaving.clone(), now).unwrap().is_none());
    let expiring = Job { deadline: Some(now + Duration::from_secs(1)), ..job(2) };
    assert!(scheduler.arrive(model, expiring, now).unwrap().is_none());
    let (refused, why) = scheduler.arrive(model, job(3), now).unwrap_err();
    assert_eq!((refused.id, why), (3, Refusal::Full { limit: 2, priority: None, retry_after: None }));
    leaving.cancelled.set(true);
    assert!(scheduler.arrive(model, job(4), now).unwrap().is_none());
    // The expired one is skipped, the one that was let in instead runs.
    let next = free(&mut scheduler, running.worker, now + Duration::from_secs(2)).unwrap();
    assert_eq!(next.batch[0].id, 4);
}

#[test]
fn a_limit_holds_even_while_workers_are_idle() {
    let now = Instant::now();
    let mut scheduler = ready(&[4]);
    let model = scheduler.add_model(policy(on(&[(0, 1)]), 10, Class::Traffic));
    let first = scheduler.arrive(model, job(0), now).unwrap().unwrap();
    assert!(scheduler.arrive(model, job(1), now).unwrap().is_none());
    assert_eq!((scheduler.queued(model), scheduler.running(model)), (1, 1));
    assert_eq!(free(&mut scheduler, first.worker, now).unwrap().batch[0].id, 1);
}

#[test]
fn beside_a_saturating_model_another_waits_for_one_run() {
    let now = Instant::now();
    let mut scheduler = ready(&[1]);
    let greedy = scheduler.add_model(policy(on(&[(0, 1)]), 1000, Class::Traffic));
    let modest = scheduler.add_model(policy(on(&[(0, 1)]), 1000, Class::Traffic));
    let mut running = scheduler.arrive(greedy, job(0), now).unwrap().unwrap();
    for id in 1..500 {
        assert!(scheduler.arrive(greedy, job(id), now).unwrap().is_none());
    }
    for _ in 0..300 {
        running = free(&mut scheduler, running.worker, now).unwrap();
    }
    assert!(scheduler.arrive(modest, job(1000), now).unwrap().is_none());
    let next = free(&mut scheduler, running.worker, now).unwrap();
    assert_eq!(next.model, modest);
}

#[test]
fn a_removed_model_gives_back_what_waits_and_refuses_what_comes() {
    let now = Instant::now();
    let mut scheduler = ready(&[1]);
    let model = scheduler.add_model(policy(on(&[(0, 1)]), 10, Class::Traffic));
    let running = scheduler.arrive(model, job(0), now).unwrap().unwrap();
    assert!(scheduler.arrive(model, job(1), now).unwrap().is_none());
    let left: Vec<_> = scheduler.remove_model(model).iter().map(|job| job.id).collect();
    assert_eq!(left, [1]);
    assert_eq!(scheduler.arrive(model, job(2), now).unwrap_err().1, Refusal::Gone);
    assert!(free(&mut scheduler, running.worker, now).is_none());
}

#[test]
fn a_run_that_outlives_its_model_does_not_count_for_the_next_one() {
    let now = Instant::now();
    let mut scheduler = ready(&[2]);
    let old = scheduler.add_model(policy(on(&[(0, 1)]), 10, Class::Traffic));
    let outliving = scheduler.arrive(old, job(0), now).unwrap().unwrap();
    assert!(scheduler.remove_model(old).is_empty());
    let new = scheduler.add_model(policy(on(&[(0, 1)]), 10, Class::Traffic));
    assert_ne!(old, new);
    let running = scheduler.arrive(new, job(1), now).unwrap().unwrap();
    assert!(scheduler.arrive(new, job(2), now).unwrap().is_none());
    assert!(free(&mut scheduler, outliving.worker, now).is_none(), "the new model's limit is 1");
    assert_eq!(free(&mut scheduler, running.worker, now).unwrap().batch[0].id, 2);
}

/// Runs of `model` and of whatever else waits, in the order in which one worker takes them.
fn order(scheduler: &mut Scheduler<Job>, mut run: Dispatch<Job>, count: usize) -> Vec<ModelKey> {
    let mut models = Vec::new();
    for _ in 0..count {
        let worker = run.worker;
        drop(run);
        run = free(scheduler, worker, Instant::now()).unwrap();
        models.push(run.model);
    }
    models
}

#[test]
fn background_gives_way_to_traffic_but_not_for_good() {
    let now = Instant::now();
    let mut scheduler = ready(&[1]);
    let traffic = scheduler.add_model(policy(on(&[(0, 1)]), 1000, Class::Traffic));
    let other = scheduler.add_model(policy(on(&[(0, 1)]), 1000, Class::Traffic));
    let background = scheduler.add_model(policy(on(&[(0, 1)]), 1000, Class::Background));
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
    let background = scheduler.add_model(policy(on(&[(0, 1)]), 10, Class::Background));
    let traffic = scheduler.add_model(policy(on(&[(0, 2)]), 10, Class::Traffic));
    let warming = scheduler.arrive(background, job(0), now).unwrap().unwrap();
    let run = scheduler.arrive(traffic, job(1), now).unwrap().unwrap();
    assert_eq!((warming.worker, run.worker, scheduler.load()[0].in_flight), (1, 0, 2));
}

fn ids(dispatches: &[Dispatch<Job>]) -> Vec<usize> {
    dispatches.iter().map(|dispatch| dispatch.batch[0].id).collect()
}

#[test]
fn a_limit_that_grows_is_used_at_once_and_one_that_shrinks_lets_runs_end() {
    let now = Instant::now();
    let mut scheduler = ready(&[4]);
    let model = scheduler.add_model(policy(on(&[(0, 1)]), 10, Class::Traffic));
    let first = scheduler.arrive(model, job(0), now).unwrap().unwrap();
    for id in 1..6 {
        assert!(scheduler.arrive(model, job(id), now).unwrap().is_none());
    }
    let more = scheduler.set_policy(model, &policy(on(&[(0, 3)]), 10, Class::Traffic), now);
    assert_eq!((ids(&more), scheduler.running(model)), (vec![1, 2], 3));
    assert!(scheduler.set_policy(model, &policy(on(&[(0, 1)]), 10, Class::Traffic), now).is_empty());
    assert!(free(&mut scheduler, first.worker, now).is_none());
    assert!(free(&mut scheduler, more[0].worker, now).is_none());
    let next = free(&mut scheduler, more[1].worker, now).unwrap();
    assert_eq!((next.batch[0].id, scheduler.running(model), scheduler.queued(model)), (3, 1, 2));
}

#[test]
fn runs_on_a_device_that_was_taken_away_count_when_it_is_given_back() {
    let now = Instant::now();
    let mut scheduler = ready(&[2, 1]);
    let model = scheduler.add_model(policy(on(&[(0, 1)]), 10, Class::Traffic));
    let run = scheduler.arrive(model, job(0), now).unwrap().unwrap();
    assert!(scheduler.arrive(model, job(1), now).unwrap().is_none());
    let moved = scheduler.set_policy(model, &policy(on(&[(1, 1)]), 10, Class::Traffic), now);
    assert_eq!((moved[0].device, moved[0].batch[0].id), (1, 1));
    assert!(scheduler.arrive(model, job(2), now).unwrap().is_none());
    assert!(scheduler.set_policy(model, &policy(on(&[(0, 1), (1, 1)]), 10, Class::Traffic), now).is_empty());
    assert_eq!(free(&mut scheduler, run.worker, now).unwrap().batch[0].id, 2);
}

/// A run of `model` takes half as long on two threads, and a batch is as many times longer as it has rows.
fn teach(scheduler: &mut Scheduler<Job>, model: ModelKey) {
    for (rows, threads, millis) in [(1, 1, 20), (1, 2, 8), (8, 1, 160), (8, 2, 64)] {
        scheduler.seed(model, 0, (6, rows, threads), Duration::from_millis(millis));
    }
}

#[test]
fn a_model_waits_for_its_own_run_on_all_cores_and_no_other_does() {
    let now = Instant::now();
    let mut scheduler = processor(2);
    let model = scheduler.add_model(policy(on(&[(0, 2)]), 10, Class::Traffic));
    let other = scheduler.add_model(policy(on(&[(0, 2)]), 10, Class::Traffic));
    teach(&mut scheduler, model);
    let wide = scheduler.arrive(model, job(0), now).unwrap().unwrap();
    assert_eq!(wide.threads, 2);
    assert!(scheduler.arrive(model, job(1), now).unwrap().is_none(), "soon it has all cores too");
    let beside = scheduler.arrive(other, job(2), now).unwrap().unwrap();
    assert_eq!(beside.threads, 1, "all cores are in use");
    assert!(free(&mut scheduler, beside.worker, now).is_none_or(|next| next.model == model));
    let next = free(&mut scheduler, wide.worker, now).unwrap();
    assert_eq!((next.batch[0].id, next.threads), (1, 2));
}

#[test]
fn what_one_worker_is_soon_done_with_wakes_no_other() {
    let now = Instant::now();
    let mut scheduler = processor(2);
    let batched = Policy { max_rows: 8, ..policy(on(&[(0, 2)]), 100, Class::Traffic) };
    let model = scheduler.add_model(batched);
    for rows in [1, 2, 4, 8] {
        scheduler.seed(model, 0, (6, rows, 1), Duration::from_micros(30 + 2 * rows as u64));
        scheduler.seed(model, 0, (6, rows, 2), Duration::from_micros(50 + 2 * rows as u64));
    }
    let first = scheduler.arrive(model, job(0), now).unwrap().unwrap();
    for id in 1..=8 {
        assert!(scheduler.arrive(model, job(id), now).unwrap().is_none(), "{id}");
    }
    // More than that is worth another worker.
    let others: Vec<_> = (9..80).filter_map(|id| scheduler.arrive(model, job(id), now).unwrap()).collect();
    assert_eq!(others.len(), 1);
    assert!(free(&mut scheduler, first.worker, now).unwrap().batch.len() > 1);
}

#[test]
fn what_the_configuration_says_of_threads_holds() {
    let now = Instant::now();
    let mut scheduler = processor(2);
    let said = Policy { threads: Some(2), placed: true, ..policy(on(&[(0, 2)]), 10, Class::Traffic) };
    let model = scheduler.add_model(said);
    teach(&mut scheduler, model);
    let runs = [0, 1].map(|id| scheduler.arrive(model, job(id), now).unwrap().unwrap().threads);
    assert_eq!(runs, [2, 2]);
}

#[test]
fn a_failed_device_gives_back_what_only_it_could_run() {
    let now = Instant::now();
    let mut scheduler = ready(&[1, 1]);
    let here = scheduler.add_model(policy(on(&[(0, 1)]), 10, Class::Traffic));
    let both = scheduler.add_model(policy(on(&[(0, 1), (1, 1)]), 10, Class::Traffic));
    let runs: Vec<_> = (0..2).map(|id| scheduler.arrive(both, job(id), now).unwrap().unwrap()).collect();
    for (id, model) in [(2, here), (3, both), (4, here)] {
        assert!(scheduler.arrive(model, job(id), now).unwrap().is_none());
    }
    let stranded: Vec<_> = scheduler.fail_device(0).iter().map(|job| job.id).collect();
    assert_eq!(stranded, [2, 4]);
    assert_eq!(scheduler.arrive(here, job(5), now).unwrap_err().1, Refusal::NoDevice);
    let [failed, well] = [0, 1].map(|device| runs.iter().find(|run| run.device == device).unwrap().worker);
    assert!(free(&mut scheduler, failed, now).is_none());
    assert_eq!(free(&mut scheduler, well, now).unwrap().batch[0].id, 3);
}

#[test]
fn a_full_queue_is_not_looked_through_for_each_that_is_refused() {
    let now = Instant::now();
    let mut scheduler = ready(&[1]);
    let model = scheduler.add_model(policy(on(&[(0, 1)]), 400, Class::Traffic));
    let _running = scheduler.arrive(model, job(0), now).unwrap().unwrap();
    let waiting: Vec<_> = (1..=400).map(job).collect();
    for job in &waiting {
        assert!(scheduler.arrive(model, job.clone(), now).unwrap().is_none());
    }
    waiting.iter().for_each(|job| job.cancelled.set(true));
    let refused = (0..100).take_while(|id| scheduler.arrive(model, job(1000 + id), now).is_err()).count();
    assert_eq!(refused, 6, "400 places are looked at by the seventh");
    assert_eq!(scheduler.take_dead().len(), 400);
}

#[test]
fn a_batch_is_made_smaller_where_a_large_one_would_be_late_for_all() {
    let now = Instant::now();
    let mut scheduler = ready(&[1]);
    let batched = Policy { max_rows: 8, ..policy(on(&[(0, 1)]), 100, Class::Traffic) };
    let model = scheduler.add_model(batched);
    for (rows, millis) in [(1, 10), (2, 16), (4, 28), (8, 52)] {
        scheduler.seed(model, 0, (6, rows, 1), Duration::from_millis(millis));
    }
    let running = scheduler.arrive(model, job(0), now).unwrap().unwrap();
    let due = |id, millis| Job { deadline: Some(now + Duration::from_millis(millis)), ..job(id) };
    for id in 1..=8 {
        assert!(scheduler.arrive(model, due(id, 40), now).unwrap().is_none());
    }
    let small = free(&mut scheduler, running.worker, now).unwrap();
    assert_eq!(small.batch.len(), 4);
    assert!(scheduler.take_dead().is_empty(), "the others may yet be in time");
    // Where there are enough others, those that only a small batch could save do not make all batches small.
    for id in 9..=16 {
        assert!(scheduler.arrive(model, due(id, 400), now).unwrap().is_none());
    }
    let large = free(&mut scheduler, small.worker, now + Duration::from_millis(25)).unwrap();
    assert_eq!(large.batch.iter().map(|job| job.id).collect::<Vec<_>>(), (9..=16).collect::<Vec<_>>());
    assert_eq!(scheduler.take_dead().len(), 4);
}

#[test]
fn what_runs_cost_on_one_kind_of_device_says_nothing_of_another() {
    let now = Instant::now();
    let mut scheduler = reported(Scheduler::new(&[(1, Some(1)), (1, None)], usize::MAX));
    let batched = Policy { max_rows: 8, ..policy(on(&[(0, 1), (1, 1)]), 100, Class::Traffic) };
    let model = scheduler.add_model(batched);
    for rows in [1, 2, 4, 8] {
        // The processor does them one by one, the other all at once.
        scheduler.seed(model, 0, (6, rows, 1), Duration::from_millis(20 * rows as u64));
        scheduler.seed(model, 1, (6, rows, 1), Duration::from_millis(5));
    }
    let runs: Vec<_> = (0..2).map(|id| scheduler.arrive(model, job(id), now).unwrap().unwrap()).collect();
    for id in 2..18 {
        assert!(scheduler.arrive(model, job(id), now).unwrap().is_none());
    }
    for run in runs {
        let rows = if run.device == 0 { 1 } else { 8 };
        assert_eq!(free(&mut scheduler, run.worker, now).unwrap().batch.len(), rows);
    }
}

#[test]
fn short_runs_of_one_who_is_alone_are_made_where_his_requests_are_and_of_two_by_a_worker() {
    let mut scheduler = processor(2);
    let model = scheduler.add_model(policy(on(&[(0, 2)]), 10, Class::Traffic));
    let (run, pause) = (Duration::from_micros(40), Duration::from_micros(50));
    let mut now = Instant::now();
    // He comes back so soon that a batch could be made, if there were others.
    let asks = |scheduler: &mut Scheduler<Job>, now: &mut Instant, company: bool| {
        let first = scheduler.arrive(model, job(0), *now).unwrap().unwrap();
        if company {
            assert!(
                scheduler.arrive(model, job(1), *now + run / 2).unwrap().is_none(),
                "it is left to the worker"
            );
        }
        *now += run;
        let next = scheduler.worker_free(first.worker, Some(run), *now);
        assert_eq!(next.len(), usize::from(company));
        for dispatch in next {
            assert!(!dispatch.here, "a worker is awake already");
            *now += run;
            scheduler.worker_free(dispatch.worker, Some(run), *now);
        }
        *now += pause;
        first.here
    };
    assert!(!asks(&mut scheduler, &mut now, false), "nothing is known of him, nor of what runs take");
    for _ in 0..40 {
        asks(&mut scheduler, &mut now, false);
    }
    assert!(asks(&mut scheduler, &mut now, false));
    assert!(asks(&mut scheduler, &mut now, true), "nobody had come yet");
    for count in 0..100 {
        assert!(!asks(&mut scheduler, &mut now, count % 10 == 0), "{count}: he is not alone");
    }
    // Another model's requests are company, too.
    for _ in 0..40 {
        asks(&mut scheduler, &mut now, false);
    }
    assert!(asks(&mut scheduler, &mut now, false));
    let other = scheduler.add_model(policy(on(&[(0, 2)]), 10, Class::Traffic));
    let long = scheduler.arrive(other, job(2), now).unwrap().unwrap();
    assert!(!asks(&mut scheduler, &mut now, false));
    scheduler.worker_free(long.worker, None, now);
    assert!(!asks(&mut scheduler, &mut now, false));
}
