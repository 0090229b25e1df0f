//! From what waits to what runs.

use std::time::{Duration, Instant};

use super::{
    AT_ONCE, BACKGROUND_WAITS, CLOSE_BESIDE_OTHERS, Choice, Class, Costs, Dispatch, Head, MARGIN, ModelKey,
    ModelState, PATIENCE, Plan, Policy, QUICK, Queue, Ready, Room, Run, SELDOM, Scheduler, UNKNOWN,
    WORTH_HOLDING, Work, earliest, ready,
};

/// Whose turn it is: traffic before background work, then by the service that it has had.
type Turn = (u8, f64, ModelKey);

impl<W: Work> Scheduler<W> {
    /// What runs of the model cost on the device.
    pub(super) fn costs<'a>(&self, state: &'a ModelState<W>, device: usize) -> &'a Costs {
        &state.costs[self.devices.kind(device)]
    }

    /// Whether the run is over so soon, and requests come so seldom or one by one, that nothing is gained by
    /// another thread.
    pub(super) fn is_light(&self, dispatch: &Dispatch<W>) -> bool {
        let Some(state) = self.models.get(&dispatch.model) else { return false };
        let (ModelState { policy, queue, pace, .. }, costs) = (state, self.costs(state, dispatch.device));
        let [work] = &dispatch.batch[..] else { return false };
        let chooses = policy.class == Class::Traffic && policy.threads.is_none();
        if !chooses || dispatch.threads > 1 || !self.devices.is_processor(dispatch.device) || queue.len() > 0
        {
            return false;
        }
        let takes = costs.surely(work.size(), work.rows());
        let seldom = |takes: f64| pace.gap().is_some_and(|gap| gap > takes * SELDOM);
        takes.is_some_and(|takes| takes < AT_ONCE && (seldom(takes) || pace.is_alone()))
    }

    /// Gives the workers of a device what they may run, until none is idle or nothing is left for them.
    pub(super) fn fill(&mut self, device: usize, now: Instant) -> Vec<Dispatch<W>> {
        let mut dispatches = Vec::new();
        let mut after: Option<Turn> = None;
        while self.devices.has_room(device) {
            let Some((turn, placement, gives_way)) = self.next_for(device, after) else { break };
            let model = turn.2;
            match self.plan(model, placement, now) {
                Plan::Wait(until) => {
                    self.wake = earliest(self.wake, until);
                    after = Some(turn);
                }
                plan @ Plan::Run { .. } => {
                    // `None` when all that was taken was dead: then there is less to do, and it is asked again.
                    if let Some(dispatch) = self.dispatch(model, placement, &plan, now) {
                        let passed_over = self.devices.passed_over(device);
                        *passed_over = if gives_way { *passed_over + 1 } else { 0 };
                        dispatches.push(dispatch);
                        after = None;
                    }
                }
            }
        }
        dispatches
    }

    /// Binds the model's next batch to an idle worker, if there is one that may run it and it is time.
    pub(super) fn give_to_idle(&mut self, model: ModelKey, now: Instant) -> Option<Dispatch<W>> {
        let mut waits = Vec::new();
        loop {
            let placement = self.idle_place(model, &waits)?;
            match self.plan(model, placement, now) {
                Plan::Wait(until) => {
                    self.wake = earliest(self.wake, until);
                    waits.push(placement);
                }
                plan @ Plan::Run { .. } => {
                    if let Some(dispatch) = self.dispatch(model, placement, &plan, now) {
                        return Some(dispatch);
                    }
                }
            }
        }
    }

    /// The placement, but for those it waits for, on the eligible device that has room and the fewest requests
    /// in flight; `None` when nothing waits, too.
    fn idle_place(&mut self, model: ModelKey, waits: &[usize]) -> Option<usize> {
        let state = self.models.get(&model).filter(|state| state.queue.len() > 0)?;
        let count = state.policy.placements.len();
        let mut best: Option<(usize, usize)> = None;
        for offset in 0..count {
            let index = (self.turn + offset) % count;
            let placement = &state.policy.placements[index];
            let full =
                !self.devices.has_room(placement.device) || state.usage[index].running >= placement.limit;
            if full || waits.contains(&index) {
                continue;
            }
            let in_flight = self.devices.in_flight(placement.device);
            if best.is_none_or(|(fewest, _)| in_flight < fewest) {
                best = Some((in_flight, index));
            }
        }
        let (_, index) = best?;
        // The next search begins behind the device that was taken: equal ones take turns.
        self.turn = (index + 1) % count;
        Some(index)
    }

    /// The model that has had the least service of those which wait for this device, behind `after`: of
    /// traffic, unless background work has given way to enough of it. With its placement, and whether
    /// background work gives way to it.
    fn next_for(&mut self, device: usize, after: Option<Turn>) -> Option<(Turn, usize, bool)> {
        let turn_of_background = *self.devices.passed_over(device) >= BACKGROUND_WAITS;
        let mut best: Option<(Turn, usize)> = None;
        let mut background_waits = false;
        for &model in &self.waiting {
            let Some(state) = self.models.get(&model) else { continue };
            let places = &state.policy.placements;
            let Some(index) = places.iter().position(|placement| placement.device == device) else {
                continue;
            };
            if state.usage[index].running >= places[index].limit {
                continue;
            }
            let background = state.policy.class == Class::Background;
            background_waits |= background;
            let turn = (u8::from(background != turn_of_background), state.usage[index].served, model);
            if after.is_none_or(|after| turn > after) && best.is_none_or(|(best, _)| turn < best) {
                best = Some((turn, index));
            }
        }
        let (turn, index) = best?;
        let is_background = self.models[&turn.2].policy.class == Class::Background;
        Some((turn, index, background_waits && !is_background))
    }

    /// What to do with what waits for the model, on one of its devices where there is room.
    fn plan(&mut self, model: ModelKey, placement: usize, now: Instant) -> Plan {
        let Some(state) = self.models.get_mut(&model) else { return Plan::Wait(None) };
        let ModelState { policy, queue, costs, pace, usage, .. } = state;
        let device = policy.placements[placement].device;
        let costs = &mut costs[self.devices.kind(device)];
        // Looked at first, because it costs next to nothing and is most of what happens to quick models.
        let quick = quick(policy, queue, costs);
        let patience = |takes: f64| {
            let begun = self.devices.last_begun(device, model)?;
            begun.checked_add(PATIENCE + Duration::from_secs_f64(takes.min(3600.0)) * 3)
        };
        if let Some(until) = quick.and_then(patience)
            && until > now
        {
            return Plan::Wait(Some(until));
        }
        let Some(head) = queue.head(policy.max_rows) else { return Plan::Wait(None) };
        let exactly = match ready(policy, &head, queue.rows(), pace, costs, now) {
            Ready::Now { exactly } => exactly,
            Ready::At(until) => return Plan::Wait(Some(until)),
        };
        let size = head.size;
        let (place, usage) = (&policy.placements[placement], &usage[placement]);
        let (free, all) = (self.devices.free_cores(device), self.devices.cores(device));
        let runs = (place.limit - usage.running).min(self.devices.idle(device));
        let room = Room {
            least: head.least,
            rows: exactly.unwrap_or(head.rows),
            backlog: queue.rows(),
            cores: free,
            all_cores: all,
            runs,
            shared: self.devices.is_shared(device, model, now),
        };
        // A run that asks for threads, such as one that measures, does not take them from others.
        let asked = head.threads.map(|threads| threads.min(free));
        if let Some(threads) = asked.or(policy.threads) {
            let share = if policy.placed { (all / place.limit.max(1)).max(1) } else { all };
            let choice = costs.best(size, &Room { cores: 1, all_cores: 1, ..room });
            let limit = exactly.unwrap_or_else(|| in_time(queue, &head, choice.rows, threads, costs, now));
            let takes = costs.estimate(size, limit, threads);
            return Plan::Run { limit, threads, cores: threads.min(share).min(free), takes };
        }
        if let Some(takes) = quick {
            return Plan::Run { limit: policy.max_rows, threads: 1, cores: 1, takes: Some(takes) };
        }
        let Choice { rows, threads, takes, rate } = costs.next(size, &room, now);
        if free < all && self.devices.is_alone(device, model) {
            let whole =
                costs.best(size, &Room { cores: all, runs: runs + usage.running - usage.hung, ..room });
            // Its own runs are all that is in the way of a better one, and they end, as far as is known.
            let worth = if room.shared { CLOSE_BESIDE_OTHERS } else { WORTH_HOLDING };
            let better = whole.rate > rate * worth * all as f64 / free as f64;
            if whole.threads > free
                && better
                && let Some(until) = whole.takes.and_then(patience)
                && until > now
            {
                return Plan::Wait(Some(until));
            }
        }
        let limit = exactly.unwrap_or_else(|| in_time(queue, &head, rows, threads, costs, now));
        let takes = if limit == rows { takes } else { costs.estimate(size, limit, threads) };
        Plan::Run { limit, threads, cores: threads, takes }
    }

    /// Binds a batch to an idle worker of the placement's device; `None` when nothing of it is wanted.
    fn dispatch(
        &mut self,
        model: ModelKey,
        placement: usize,
        plan: &Plan,
        now: Instant,
    ) -> Option<Dispatch<W>> {
        let &Plan::Run { limit, threads, cores, takes } = plan else { return None };
        let state = self.models.get_mut(&model)?;
        let late = now + Duration::from_secs_f64(takes.unwrap_or(0.0).min(3600.0) * MARGIN);
        let before = state.queue.bytes();
        let batch = state.queue.take(limit, now, late, &mut self.dead);
        self.have_left(model, before);
        if batch.is_empty() {
            return None;
        }
        let state = self.models.get_mut(&model)?;
        // Background work is served beside the others and is no measure of their turn.
        if state.policy.class == Class::Traffic {
            let served = &mut self.served[state.policy.placements[placement].device];
            *served = served.max(state.usage[placement].served);
        }
        let charged = takes.unwrap_or(UNKNOWN);
        let share = cores as f64 / f64::from(state.policy.weight.max(1));
        let usage = &mut state.usage[placement];
        usage.served += charged * share;
        usage.running += 1;
        let rows = batch.iter().map(Work::rows).sum();
        // Shorter ones are filled up to the size of the largest.
        let size = batch.iter().map(Work::size).max().unwrap_or(0);
        let run = Run {
            model,
            size,
            rows,
            threads,
            cores,
            charged,
            began: now,
            share,
            crowded: false,
            hung: false,
        };
        let device = state.policy.placements[placement].device;
        let (worker, in_flight) = self.devices.begin(device, run, batch.len())?;
        Some(Dispatch { worker, device, model, batch, in_flight, threads, here: false })
    }
}

/// How long the next run takes, in seconds, where one worker is done with all that waits, and with a run that
/// it may be on, about as soon as another would be awake: that is left to the one. Its batches are larger
/// then, and no thread is woken that the connections need.
fn quick<W: Work>(policy: &Policy, queue: &Queue<W>, costs: &Costs) -> Option<f64> {
    let chooses = policy.threads.is_none() && policy.preferred.is_empty() && policy.latency_target.is_none();
    if !chooses || policy.max_delay > Duration::ZERO {
        return None;
    }
    let rows = queue.rows();
    let takes = costs.estimate(queue.front()?.size(), rows.min(policy.max_rows), 1)?;
    // Where the oldest and the newest cannot run together, hardly any can.
    let joins = queue.back().is_some_and(|back| queue.front().is_some_and(|front| front.joins_with(back)));
    let runs = 1 + if joins { rows.div_ceil(policy.max_rows) } else { queue.len() };
    (takes * (runs as f64) < QUICK).then_some(takes)
}

/// A run of at most so many rows, or of fewer where the deadlines are so near that fewer answer more in time.
fn in_time<W: Work>(
    queue: &Queue<W>,
    head: &Head,
    limit: usize,
    threads: usize,
    costs: &Costs,
    now: Instant,
) -> usize {
    let ends = |rows: usize| {
        let takes = costs.estimate(head.size, rows, threads)?.min(3600.0);
        Some((takes, now + Duration::from_secs_f64(takes * MARGIN)))
    };
    let hurries = ends(limit).is_some_and(|(_, end)| head.due.is_some_and(|due| due < end));
    if limit <= 1 || !hurries {
        return limit;
    }
    let company: Vec<(usize, Option<Instant>)> = queue.company().collect();
    let mut best = (0.0, limit);
    for rows in std::iter::successors(Some(limit), |rows| Some(rows / 2)).take_while(|rows| *rows > 0) {
        let Some((takes, end)) = ends(rows) else { break };
        let in_time = company.iter().filter(|(_, due)| due.is_none_or(|due| due >= end));
        let answered: usize = in_time.map(|(rows, _)| *rows).sum();
        let rate = answered.min(rows) as f64 / takes;
        if rate > best.0 {
            best = (rate, rows);
        }
    }
    best.1
}
