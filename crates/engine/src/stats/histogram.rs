//! How often a number was at most this large.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::nanos;

/// Microseconds of models of some microseconds, and seconds of large ones.
const DURATIONS: [u64; 15] = [
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    2_500_000_000,
    10_000_000_000,
];
/// Milliseconds: a model of a few bytes, and one of many gigabytes from a slow disk.
const LOADS: [u64; 13] =
    [10, 30, 100, 300, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000];
/// Rows of a batch.
const ROWS: [u64; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

/// The upper bounds of a histogram's buckets, ascending; what is larger than all of them has a bucket of its own.
#[derive(Clone, Debug)]
pub struct Buckets(Arc<[u64]>);

impl Buckets {
    /// For durations of requests, in nanoseconds.
    pub fn durations() -> Self {
        Self(DURATIONS.into())
    }

    /// For durations of loads, in nanoseconds.
    pub fn loads() -> Self {
        Self(LOADS.map(|millis| millis * 1_000_000).into())
    }

    /// For rows of batches.
    pub fn rows() -> Self {
        Self(ROWS.into())
    }

    /// These durations; sorted, each once.
    pub fn of(durations: &[Duration]) -> Self {
        let mut bounds: Vec<u64> = durations.iter().map(|bound| nanos(*bound)).collect();
        bounds.sort_unstable();
        bounds.dedup();
        Self(bounds.into())
    }

    /// An empty histogram with these buckets.
    pub fn histogram(&self) -> Histogram {
        let counts = (0..=self.0.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { bounds: self.clone(), counts, sum: AtomicU64::new(0) }
    }
}

/// How often a number was in each of its buckets, and their sum.
#[derive(Debug)]
pub struct Histogram {
    bounds: Buckets,
    /// One more than there are bounds.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

/// What a histogram has counted at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramCounts {
    /// For each bound, how many numbers were at most that large.
    pub buckets: Vec<(u64, u64)>,
    /// How many there were.
    pub count: u64,
    /// Their sum.
    pub sum: u64,
}

impl Histogram {
    /// The number was there so often.
    pub fn record(&self, value: u64, times: u64) {
        let bucket = self.bounds.0.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(times, Ordering::Relaxed);
        self.sum.fetch_add(value.saturating_mul(times), Ordering::Relaxed);
    }

    /// What has been counted.
    pub fn counts(&self) -> HistogramCounts {
        let mut count = 0;
        let mut buckets = Vec::with_capacity(self.bounds.0.len());
        for (bound, own) in self.bounds.0.iter().zip(&self.counts) {
            count += own.load(Ordering::Relaxed);
            buckets.push((*bound, count));
        }
        count += self.counts[self.bounds.0.len()].load(Ordering::Relaxed);
        HistogramCounts { buckets, count, sum: self.sum.load(Ordering::Relaxed) }
    }

    /// How many numbers there were, and their sum.
    pub fn total(&self) -> (u64, u64) {
        let count = self.counts.iter().map(|own| own.load(Ordering::Relaxed)).sum();
        (count, self.sum.load(Ordering::Relaxed))
    }
}
