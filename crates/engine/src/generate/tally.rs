//! What is counted of a request with many answers.

use std::{sync::Arc, time::Instant};

use super::Beginning;
use crate::{
    outputs::NamedOutput,
    stats::{Reason, VersionStats, nanos},
};

/// What has been counted of one request so far.
#[derive(Debug)]
pub(super) struct Tally {
    stats: Arc<VersionStats>,
    /// All answers are one to its caller, by whom the request is counted.
    collected: bool,
    came: Instant,
    /// When its last answer was made, or when it came; or since when it waits for no more than a worker.
    last: Instant,
    /// How many answers it has had.
    made: u64,
}

impl Tally {
    pub(super) fn new(stats: &Arc<VersionStats>, request: &Beginning) -> Self {
        let (collected, came) = (request.collected, request.came);
        Self { stats: Arc::clone(stats), collected, came, last: came, made: 0 }
    }

    /// Its caller has taken answers, for which it has waited until now.
    pub(super) fn resumed(&mut self, now: Instant) {
        self.last = now;
    }

    /// An answer has been made.
    pub(super) fn made(&mut self, outputs: &[NamedOutput]) {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.last);
        let histogram =
            if self.made == 0 { &self.stats.first_response } else { &self.stats.response_interval };
        histogram.record(nanos(took), 1);
        self.stats.response(self.made, took, |counts, took| {
            counts.success += 1;
            counts.success_time += took;
        });
        self.stats.responses.add(1);
        if !self.collected {
            let bytes = outputs.iter().map(|output| output.tensor.bytes().len() as u64);
            self.stats.response_bytes.add(bytes.sum());
        }
        self.made += 1;
        self.last = now;
    }

    /// It has ended like this.
    pub(super) fn end(&mut self, reason: Reason) {
        if reason != Reason::Ok {
            self.stats.response(self.made, self.last.elapsed(), |counts, took| match reason {
                Reason::Cancelled => {
                    counts.cancel += 1;
                    counts.cancel_time += took;
                }
                _ => {
                    counts.fail += 1;
                    counts.fail_time += took;
                }
            });
        }
        if !self.collected {
            self.stats.ended(reason, self.came.elapsed(), 1);
        }
    }
}
