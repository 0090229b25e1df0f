//! What runs of a version cost, by size and by number of threads: measured before its first request, so
//! that the first decisions about it are no guesses.

use std::time::{Duration, Instant};

use sconce_repository::ModelConfig;

use crate::{batch, check::Checked, value::Call};

/// All measuring of one version on one device takes about so long; service refines what is left.
const LONGEST: Duration = Duration::from_secs(2);
/// The shortest of so many runs counts: the first ones of a size, and on another number of threads, compile.
const RUNS: usize = 4;
/// Where runs take long, so many must do.
const FEWEST_RUNS: usize = 3;
/// A batch that is twice as large but brings less than this, in rows per second, is large enough.
const BETTER: f64 = 1.05;
/// Batches are not made larger than this, in bytes.
const MAX_MADE: usize = 64 << 20;

/// What is measured.
pub(crate) struct Costing<'a> {
    call: &'a Call,
    rows: Option<i64>,
    traits: batch::Traits,
    /// The largest batch, in rows.
    max_rows: usize,
    threads: Vec<usize>,
}

impl<'a> Costing<'a> {
    /// Of this call on as many threads as there are cores, and on fewer.
    pub(crate) fn new(config: &ModelConfig, checked: &'a Checked, cores: usize) -> Self {
        let traits = batch::traits(&checked.call, checked.batch);
        let joins = config.batching.is_some() && traits.key.is_some();
        let max_rows = if joins { config.max_batch_size as usize } else { traits.rows };
        let threads = match config.threads {
            // Nothing is to be chosen.
            Some(threads) => vec![threads.get() as usize],
            None => {
                let fewer = std::iter::successors(Some(1), |threads| Some(threads * 2));
                fewer.take_while(|threads| *threads < cores).chain([cores.max(1)]).collect()
            }
        };
        Self { call: &checked.call, rows: checked.batch, traits, max_rows, threads }
    }

    /// Runs calls by `run`, which gives how long one took, or `None` when it is of no use to go on; tells
    /// `found` what was found: the size of a row as a power of two of bytes, rows, threads, time.
    pub(crate) fn measure(
        &self,
        run: impl Fn(Call, Option<i64>, usize) -> Option<Duration>,
        mut found: impl FnMut(u8, usize, usize, Duration),
    ) {
        // Where nothing is to be chosen there is nothing to learn.
        if self.threads.len() == 1 && self.max_rows <= self.traits.rows {
            return;
        }
        let share = LONGEST / u32::try_from(self.threads.len()).unwrap_or(u32::MAX);
        let row_bytes = (self.traits.bytes / self.traits.rows).max(1);
        for &threads in &self.threads {
            let end = Instant::now() + share;
            let (mut rows, mut best_rate) = (self.traits.rows, 0.0);
            while rows <= self.max_rows && rows.saturating_mul(row_bytes) <= MAX_MADE {
                let Some(took) = self.shortest(&run, rows, threads, end) else { break };
                found(row_bytes.ilog2() as u8, rows, threads, took);
                let rate = rows as f64 / took.as_secs_f64().max(1e-9);
                // None between is worth having where a larger one brings nothing, but requests may come that are
                // as large as the largest.
                let larger = if rate < best_rate * BETTER { self.max_rows } else { rows * 2 };
                let next = took.mul_f64(larger as f64 / rows as f64) * FEWEST_RUNS as u32;
                // Those runs must still fit.
                if larger <= rows || Instant::now() + next > end {
                    break;
                }
                rows = larger;
                best_rate = rate;
            }
        }
    }

    fn shortest(
        &self,
        run: &impl Fn(Call, Option<i64>, usize) -> Option<Duration>,
        rows: usize,
        threads: usize,
        end: Instant,
    ) -> Option<Duration> {
        let copies = rows / self.traits.rows;
        let mut shortest: Option<Duration> = None;
        for made in 1..=RUNS {
            let call = match copies {
                1 => self.call.clone(),
                _ => {
                    let of_each = vec![self.traits.rows; copies];
                    batch::gather(&vec![self.call; copies], &of_each, rows, &mut |_| None)
                }
            };
            let took = run(call, self.rows.map(|_| i64::try_from(rows).unwrap_or(i64::MAX)), threads)?;
            shortest = Some(shortest.map_or(took, |shortest| shortest.min(took)));
            if made >= FEWEST_RUNS && Instant::now() >= end {
                break;
            }
        }
        shortest
    }
}

#[cfg(test)]
#[path = "warm_costs_tests.rs"]
mod tests;
