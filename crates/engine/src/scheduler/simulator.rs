//! The scheduler under virtual time: requests arrive by a plan, runs take as long as a formula says, and
//! after every event it is checked that nothing is lost, that bounds hold and that nobody waits in vain.

mod properties;
mod scenarios;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use super::{
    tests::{Job as Call, job},
    *,
};

/// How long a run of so many rows on so many threads takes, in seconds.
pub(super) type Cost = fn(usize, usize) -> f64;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Answered(Instant),
    Refused,
    Died(Fate, Instant),
}

pub(super) struct Model {
    key: ModelKey,
    policy: Policy,
    cost: Cost,
    /// In virtual time at the end of each run.
    answered: usize,
    /// How long each took that was answered, in seconds.
    latencies: Vec<f64>,
}

enum Event {
    Arrives(usize, Call),
    Ends(WorkerIndex),
    Ticks,
}

/// The virtual world.
pub(super) struct World {
    scheduler: Scheduler<Call>,
    devices: Vec<(usize, Option<usize>)>,
    models: Vec<Model>,
    now: Instant,
    /// By time, then in the order in which they were planned.
    plan: BinaryHeap<Reverse<(Instant, usize)>>,
    events: BTreeMap<usize, Event>,
    planned: usize,
    next_tick: Option<Instant>,
    /// With when each began and when it ends.
    runs: BTreeMap<WorkerIndex, (Dispatch<Call>, Instant, Instant)>,
    /// Requests that wait, by model.
    waiting: Vec<BTreeMap<usize, Call>>,
    ends: BTreeMap<usize, End>,
    sent: usize,
    /// Whoever is answered sends the next at once.
    closed_loop: bool,
}

impl World {
    pub(super) fn new(devices: &[(usize, Option<usize>)]) -> Self {
        let start = Instant::now();
        let mut scheduler = Scheduler::new(devices, usize::MAX);
        for worker in 0..scheduler.worker_count() {
            assert!(scheduler.worker_ready(worker, start).is_empty());
        }
        Self {
            scheduler,
            devices: devices.to_vec(),
            models: Vec::new(),
            now: start,
            plan: BinaryHeap::new(),
            events: BTreeMap::new(),
            planned: 0,
            next_tick: None,
            runs: BTreeMap::new(),
            waiting: Vec::new(),
            ends: BTreeMap::new(),
            sent: 0,
            closed_loop: false,
        }
    }

    pub(super) fn model(&mut self, policy: Policy, cost: Cost) -> usize {
        let key = self.scheduler.add_model(policy.clone());
        self.models.push(Model { key, policy, cost, answered: 0, latencies: Vec::new() });
        self.waiting.push(BTreeMap::new());
        self.models.len() - 1
    }

    fn at(&mut self, at: Instant, event: Event) {
        self.plan.push(Reverse((at, self.planned)));
        self.events.insert(self.planned, event);
        self.planned += 1;
    }

    /// A request of the model arrives after so many seconds.
    pub(super) fn send(&mut self, model: usize, after: f64, change: impl FnOnce(&mut Call)) {
        let arrived = self.now + Duration::from_secs_f64(after);
        let mut call = Call { arrived, ..job(self.sent) };
        self.sent += 1;
        change(&mut call);
        self.at(arrived, Event::Arrives(model, call));
    }

    /// Lets so many seconds pass.
    pub(super) fn run(&mut self, seconds: f64) {
        let end = self.now + Duration::from_secs_f64(seconds);
        while let Some(Reverse((at, number))) =
            self.plan.peek().copied().filter(|Reverse((at, _))| *at <= end)
        {
            self.plan.pop();
            assert!(at >= self.now, "time goes forward");
            self.now = at;
            let event = self.events.remove(&number).expect("a planned event");
            self.take(event);
            self.check();
        }
        self.now = end;
    }

    /// Until nothing is left to happen.
    pub(super) fn finish(&mut self) {
        while !self.plan.is_empty() {
            self.run(60.0);
        }
        assert_eq!(self.ends.len(), self.sent, "every request has come to an end");
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Arrives(model, call) => {
                let id = call.id;
                self.waiting[model].insert(id, call.clone());
                match self.scheduler.arrive(self.models[model].key, call, self.now) {
                    Ok(dispatch) => self.begin(dispatch.into_iter().collect()),
                    Err((call, _)) => {
                        self.waiting[model].remove(&call.id);
                        self.end(call.id, End::Refused);
                    }
                }
            }
            Event::Ends(worker) => self.finish_run(worker),
            Event::Ticks => {
                if self.next_tick.is_some_and(|tick| tick <= self.now) {
                    self.next_tick = None;
                }
                let dispatches = self.scheduler.tick(self.now);
                self.begin(dispatches);
            }
        }
        self.bury();
        if let Some(wake) = self.scheduler.wake()
            && self.next_tick.is_none_or(|tick| wake < tick)
        {
            assert!(wake >= self.now || self.next_tick.is_none(), "it is never too late already");
            self.next_tick = Some(wake.max(self.now));
            self.at(wake.max(self.now), Event::Ticks);
        }
    }

    fn bury(&mut self) {
        for (call, fate) in self.scheduler.take_dead() {
            let model = self.waiting.iter().position(|waiting| waiting.contains_key(&call.id));
            self.waiting[model.expect("it waited")].remove(&call.id);
            self.end(call.id, End::Died(fate, self.now));
        }
    }

    fn finish_run(&mut self, worker: WorkerIndex) {
        if self.runs.get(&worker).is_none_or(|(_, _, ends)| *ends > self.now) {
            // Others have come beside it since that was planned.
            return;
        }
        let (dispatch, began, _) = self.runs.remove(&worker).expect("a run that ends");
        let (before, after) =
            (self.slowness(dispatch.device, dispatch.threads), self.slowness(dispatch.device, 0));
        self.rescale(dispatch.device, after / before);
        let model = self.models.iter().position(|model| model.key == dispatch.model).expect("its model");
        for call in &dispatch.batch {
            self.end(call.id, End::Answered(self.now));
            let latency = self.now.saturating_duration_since(call.arrived).as_secs_f64();
            self.models[model].answered += call.rows;
            self.models[model].latencies.push(latency);
        }
        let answered = dispatch.batch.len();
        drop(dispatch);
        let dispatches = self.scheduler.worker_free(worker, Some(self.now - began), self.now);
        self.begin(dispatches);
        if self.closed_loop {
            (0..answered).for_each(|_| self.send(model, 0.0, |_| ()));
        }
    }

    fn end(&mut self, id: usize, end: End) {
        assert!(self.ends.insert(id, end).is_none(), "request {id} ends once");
    }

    fn begin(&mut self, dispatches: Vec<Dispatch<Call>>) {
        self.bury();
        for dispatch in dispatches {
            let model = self.models.iter().position(|model| model.key == dispatch.model).expect("its model");
            self.check_batch(model, &dispatch);
            let rows = dispatch.batch.iter().map(|call| call.rows).sum();
            let takes = (self.models[model].cost)(rows, dispatch.threads).max(1e-9);
            let (device, before) = (dispatch.device, self.slowness(dispatch.device, 0));
            let after = self.slowness(device, dispatch.threads);
            self.rescale(device, after / before);
            let takes = takes * after;
            for call in &dispatch.batch {
                assert!(self.waiting[model].remove(&call.id).is_some(), "it waited");
            }
            let worker = dispatch.worker;
            let ends = self.now + Duration::from_secs_f64(takes);
            self.at(ends, Event::Ends(worker));
            assert!(self.runs.insert(worker, (dispatch, self.now, ends)).is_none(), "one run at a time");
        }
    }

    /// How much slower than alone a run is beside runs that want so many more cores: they share them.
    fn slowness(&self, device: usize, threads: usize) -> f64 {
        let here = self.runs.values().filter(|(run, ..)| run.device == device);
        let wanted = threads + here.map(|(run, ..)| run.threads).sum::<usize>();
        self.devices[device].1.map_or(1.0, |cores| (wanted as f64 / cores as f64).max(1.0))
    }

    /// The runs on a device take so many times what was left of them.
    fn rescale(&mut self, device: usize, factor: f64) {
        if factor == 1.0 {
            return;
        }
        let (now, mut plans) = (self.now, Vec::new());
        for (worker, (run, _, ends)) in &mut self.runs {
            if run.device == device {
                *ends = now + ends.saturating_duration_since(now).mul_f64(factor);
                plans.push((*ends, *worker));
            }
        }
        for (ends, worker) in plans {
            self.at(ends, Event::Ends(worker));
        }
    }

    /// A batch that begins is one that may.
    fn check_batch(&self, model: usize, dispatch: &Dispatch<Call>) {
        let policy = &self.models[model].policy;
        let rows: usize = dispatch.batch.iter().map(|call| call.rows).sum();
        assert!(!dispatch.batch.is_empty());
        assert!(rows <= policy.max_rows || dispatch.batch.len() == 1, "no batch is too large");
        assert!(dispatch.batch.iter().all(|call| call.kind == dispatch.batch[0].kind), "all are of one kind");
        let (_, cores) = self.devices[dispatch.device];
        assert!((1..=cores.unwrap_or(1)).contains(&dispatch.threads));
        // Of the same kind and priority the oldest go first; of all, the highest priority.
        let level = |call: &Call| match usize::try_from(call.priority) {
            Ok(priority) if (1..=policy.levels.len()).contains(&priority) => priority - 1,
            _ => policy.default_priority,
        };
        let highest = level(&dispatch.batch[0]);
        for waiting in self.waiting[model].values() {
            let in_batch = dispatch.batch.iter().any(|call| call.id == waiting.id);
            let too_long = policy.levels[level(waiting)].delays && waiting.timeout.is_some();
            let late = waiting.deadline.is_some();
            if !in_batch && !too_long && !late {
                assert!(level(waiting) >= highest, "no lower priority goes before a higher one");
            }
        }
        for call in &dispatch.batch {
            assert!(
                call.deadline.is_none_or(|deadline| deadline > self.now),
                "what has expired does not run"
            );
            let level = &policy.levels[level(call)];
            if let (true, false, Some(timeout)) = (level.own_timeout, level.delays, call.timeout) {
                assert!(self.now <= call.arrived + timeout, "what has waited too long does not run");
            }
        }
    }

    /// What must be true between any two events.
    fn check(&self) {
        let busy = |device: usize| self.runs.values().filter(|(run, ..)| run.device == device).count();
        for (model, waiting) in self.models.iter().zip(&self.waiting) {
            assert_eq!(self.scheduler.queued(model.key), waiting.len(), "nothing is lost");
            let limit: usize = model.policy.levels.iter().map(|level| level.limit).sum();
            assert!(waiting.len() <= limit, "the queue has its bound");
            for placement in &model.policy.placements {
                let here = |run: &Dispatch<Call>| run.model == model.key && run.device == placement.device;
                let running = self.runs.values().filter(|(run, ..)| here(run)).count();
                assert!(running <= placement.limit, "a limit holds");
                let (workers, cores) = self.devices[placement.device];
                let idle = workers - busy(placement.device);
                let waits_for_company = model.policy.max_delay > Duration::ZERO
                    || !model.policy.preferred.is_empty()
                    || model.policy.latency_target.is_some();
                // Only for runs of its own, which end: on a processor that it is to have for itself, or where
                // all is done soon.
                let rows: usize = waiting.values().map(|call| call.rows).sum();
                let runs = 1 + rows.div_ceil(model.policy.max_rows);
                let soon = runs as f64 * (model.cost)(rows.min(model.policy.max_rows), 1) < 2.0 * QUICK;
                let holds = running > 0 && (cores.is_some_and(|cores| cores > 1) || soon);
                if idle > 0 && running < placement.limit && !waits_for_company && !holds {
                    assert!(waiting.is_empty(), "no worker idles while something waits that it may run");
                }
            }
        }
    }
}
