//! Whether what waits is run now or waits for company.

use std::time::{Duration, Instant};

use super::{Policy, cost::Costs, queue::Head};

/// How much the last time between two requests counts against all before it.
const FRESH: f64 = 0.1;
/// So many requests in a row that found nothing else going on are those of one caller, who waits for each answer.
const ALONE: u32 = 16;
/// When nobody has come for so many times the usual, nobody is expected any more.
const PATIENCE: f64 = 3.0;

/// How quickly requests of a model come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    last: Option<Instant>,
    /// Seconds between two requests, usually.
    gap: Option<f64>,
    /// How many have found nothing else going on, since the last that found something.
    undisturbed: u32,
}

impl Pace {
    /// Seconds between two requests, usually.
    pub(super) fn gap(&self) -> Option<f64> {
        self.gap
    }

    /// Whether they come one by one, however soon after each other: no batch could be made of them.
    pub(super) fn is_alone(&self) -> bool {
        self.undisturbed >= ALONE
    }

    /// One has come; `quiet` when nothing else waited or ran, of any model.
    pub(super) fn arrived(&mut self, now: Instant, quiet: bool) {
        self.undisturbed = if quiet { self.undisturbed.saturating_add(1) } else { 0 };
        if let Some(last) = self.last {
            let gap = now.saturating_duration_since(last).as_secs_f64();
            self.gap = Some(self.gap.map_or(gap, |usual| usual + (gap - usual) * FRESH));
        }
        self.last = Some(now);
    }
}

/// What to do with what waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    /// To be run, as many rows as pay, or exactly so many where the configuration says so.
    Now { exactly: Option<usize> },
    /// To be looked at again then, or when another request comes.
    At(Instant),
}

/// Decides as Triton's dynamic batcher does where the configuration says how: a preferred size is run when
/// it is reached, anything else when the oldest request has waited `max_delay`.
/// Of `backlog` rows some may not be able to join the head: when they may be a batch themselves, they are not
/// held up by it.
pub(super) fn ready(
    policy: &Policy,
    head: &Head,
    backlog: usize,
    pace: &Pace,
    costs: &Costs,
    now: Instant,
) -> Ready {
    let asked = policy.max_delay > Duration::ZERO;
    let all = Ready::Now { exactly: asked.then_some(head.rows) };
    if head.rows >= policy.max_rows && policy.preferred.is_empty() {
        return all;
    }
    let enough = policy.preferred.first().copied().unwrap_or(policy.max_rows);
    if backlog.saturating_sub(head.rows) >= enough {
        return Ready::Now { exactly: Some(head.rows) };
    }
    if let Some(&size) = policy.preferred.iter().rev().find(|size| **size <= head.rows) {
        return Ready::Now { exactly: Some(size) };
    }
    let until = if asked {
        head.since.checked_add(policy.max_delay)
    } else {
        policy.latency_target.and_then(|target| pays_until(target, head, pace, costs))
    };
    match until {
        Some(until) if until > now => Ready::At(until),
        Some(_) | None => all,
    }
}

/// Until when it pays to wait for another request: as long as it is expected to come sooner than a run
/// of its own would take beside its rows, and the oldest is answered in time; `None` for not at all.
fn pays_until(target: Duration, head: &Head, pace: &Pace, costs: &Costs) -> Option<Instant> {
    let (last, gap) = (pace.last?, pace.gap?);
    let threads = head.threads.unwrap_or(1);
    let estimate = |rows| costs.estimate(head.size, rows, threads);
    let (one, now, more) = (estimate(1)?, estimate(head.rows)?, estimate(head.rows + 1)?);
    // What a request costs less in this batch than alone.
    let saved = one - (more - now).max(0.0);
    if gap >= saved {
        return None;
    }
    let in_time = target.checked_sub(Duration::from_secs_f64(more))?;
    let patience = Duration::from_secs_f64((gap * PATIENCE).min(target.as_secs_f64()));
    head.since.checked_add(in_time).into_iter().chain(last.checked_add(patience)).min()
}

#[cfg(test)]
#[path = "batching_tests.rs"]
mod tests;
