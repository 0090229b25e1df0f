//! An open loop: requests come when they come, however long the answers take.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::target::Target;
use crate::support::{Result, load::Outcome, report::percentile};

/// When requests come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrivals {
    /// A second, on average; the gaps are those of chance.
    pub(crate) rate: f64,
    /// Before anything counts.
    pub(crate) lead: Duration,
    pub(crate) window: Duration,
    /// Which chance.
    pub(crate) seed: u64,
}

/// What came of the requests of one window.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    /// Milliseconds of each answer, by gRPC's code.
    took: BTreeMap<u16, Vec<f64>>,
    /// Seconds.
    window: f64,
}

impl Outcomes {
    /// A second.
    pub(crate) fn rate(&self) -> f64 {
        self.took.values().map(Vec::len).sum::<usize>() as f64 / self.window
    }

    /// Good answers a second that took at most as long as this.
    pub(crate) fn in_time(&self, deadline: Duration) -> f64 {
        let limit = deadline.as_secs_f64() * 1e3;
        self.of(0).iter().filter(|took| **took <= limit).count() as f64 / self.window
    }

    /// Milliseconds of the good answers.
    pub(crate) fn percentile(&self, part: f64) -> f64 {
        percentile(self.of(0), part)
    }

    /// For each code but OK: its name, how many a second, and the 99th percentile in milliseconds.
    pub(crate) fn refusals(&self) -> Vec<(String, f64, f64)> {
        let refused = self.took.iter().filter(|(code, _)| **code != 0);
        refused
            .map(|(code, took)| (name(*code), took.len() as f64 / self.window, percentile(took, 0.99)))
            .collect()
    }

    fn of(&self, code: u16) -> &[f64] {
        self.took.get(&code).map(Vec::as_slice).unwrap_or_default()
    }
}

fn name(code: u16) -> String {
    match code {
        1 => "CANCELLED".to_owned(),
        4 => "DEADLINE_EXCEEDED".to_owned(),
        8 => "RESOURCE_EXHAUSTED".to_owned(),
        13 => "INTERNAL".to_owned(),
        14 => "UNAVAILABLE".to_owned(),
        other => format!("code {other}"),
    }
}

/// Sends requests as they come due, and waits for all answers. What comes due within the window counts, from
/// the moment it was due if the client was late to send it.
pub(crate) async fn run(target: &Target, arrivals: Arrivals) -> Result<Outcomes> {
    let mut outcomes = Outcomes { window: arrivals.window.as_secs_f64(), ..Outcomes::default() };
    let mut calls: JoinSet<Result<(bool, u16, Duration)>> = JoinSet::new();
    let begun = Instant::now();
    let (first, last) = (begun + arrivals.lead, begun + arrivals.lead + arrivals.window);
    let mut gaps = Gaps { state: arrivals.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, rate: arrivals.rate };
    let mut due = begun + gaps.next();
    let mut number = 0;
    while due < last {
        let mut start = due;
        if Instant::now() < due {
            tokio::time::sleep_until(due.into()).await;
            start = Instant::now();
        } else if number % 32 == 0 {
            // Behind: the answers that have come must be read too.
            tokio::task::yield_now().await;
        }
        let (question, body) = target.questions.next();
        let (questions, mut client) = (target.questions.clone(), target.client(number));
        let counts = due >= first;
        calls.spawn(async move {
            let Outcome { code, answer, .. } = client.attempt(body).await?;
            let took = start.elapsed();
            if code == 0 {
                questions.check(question, &answer)?;
            }
            Ok((counts, code, took))
        });
        number += 1;
        due += gaps.next();
        while let Some(ended) = calls.try_join_next() {
            outcomes.add(ended??);
        }
    }
    while let Some(ended) = calls.join_next().await {
        outcomes.add(ended??);
    }
    Ok(outcomes)
}

impl Outcomes {
    fn add(&mut self, (counts, code, took): (bool, u16, Duration)) {
        if counts {
            self.took.entry(code).or_default().push(took.as_secs_f64() * 1e3);
        }
    }
}

/// The gaps of a Poisson process, the same for the same seed.
struct Gaps {
    state: u64,
    rate: f64,
}

impl Gaps {
    fn next(&mut self) -> Duration {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        // Above 0, at most 1.
        let chance = ((self.state >> 11) + 1) as f64 / (1u64 << 53) as f64;
        Duration::from_secs_f64(-chance.ln() / self.rate)
    }
}
