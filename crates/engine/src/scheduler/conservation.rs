//! Whatever happens in whatever order, nothing is lost and no worker idles in vain.

use proptest::prelude::*;

use super::{
    tests::{Job, free, job, on, policy},
    *,
};

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
        let mut scheduler = tests::ready(workers);
        let models = models
            .iter()
            .map(|(class, limits)| {
                let limits = limits[..workers.len()].to_vec();
                (scheduler.add_model(policy(places(&limits), 5, *class)), *class, limits)
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
                let (key, class, known) = &mut self.models[pick % count];
                *known = limits[..self.workers.len()].to_vec();
                let started = self.scheduler.set_policy(*key, &policy(places(known), 5, *class), now);
                self.busy.extend(started);
            }
        }
    }

    fn end(&mut self, done: Dispatch<Job>, now: Instant) {
        let (worker, device) = (done.worker, done.device);
        drop(done);
        let waited = [Class::Traffic, Class::Background].map(|class| self.waits(class, device));
        let next = free(&mut self.scheduler, worker, now);
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
