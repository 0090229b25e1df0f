//! Which requests are traced that no caller traces: a part of them, by chance or in turn, and how many.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// Of how many requests one is traced.
#[derive(Debug)]
pub(crate) enum Rate {
    /// This part of all, by chance: whether a trace is kept follows from its id, as OpenTelemetry has it.
    Ratio(f64),
    /// One in so many, in turn, as Triton has it; none if it is 0.
    Every { rate: u32, seen: AtomicU64 },
}

impl Rate {
    pub(crate) fn every(rate: u32) -> Self {
        Self::Every { rate, seen: AtomicU64::new(0) }
    }

    /// Whether the trace with this id, which begins here, is one of them.
    pub(crate) fn takes(&self, trace_id: u128) -> bool {
        match self {
            Self::Ratio(ratio) if *ratio >= 1.0 => true,
            Self::Ratio(ratio) => {
                let low = u64::try_from(trace_id & u128::from(u64::MAX)).unwrap_or_default();
                ((low >> 1) as f64) < ratio * (1u64 << 63) as f64
            }
            Self::Every { rate: 0, .. } => false,
            Self::Every { rate, seen } => (seen.fetch_add(1, Relaxed) + 1) % u64::from(*rate) == 0,
        }
    }

    /// As Triton's clients are told: one in so many, 0 for none.
    pub(crate) fn as_triton(&self) -> u32 {
        match self {
            Self::Ratio(ratio) if *ratio <= 0.0 => 0,
            Self::Ratio(ratio) => (1.0 / ratio).round().clamp(1.0, f64::from(u32::MAX)) as u32,
            Self::Every { rate, .. } => *rate,
        }
    }
}

/// How many more requests may be traced because of their rate.
#[derive(Debug)]
pub(crate) struct Count(AtomicI64);

impl Count {
    /// Without a bound if it is negative.
    pub(crate) fn new(count: i64) -> Self {
        Self(AtomicI64::new(count))
    }

    /// Takes one, if there is one.
    pub(crate) fn take(&self) -> bool {
        let less = |left: i64| match left {
            0 => None,
            left if left < 0 => Some(left),
            left => Some(left - 1),
        };
        self.0.fetch_update(Relaxed, Relaxed, less).is_ok()
    }

    /// How many are left, -1 for no bound.
    pub(crate) fn left(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Count, Rate};

    #[test]
    fn one_in_so_many_is_taken_in_turn() {
        let rate = Rate::every(3);
        let taken: Vec<bool> = (0..7).map(|id| rate.takes(id)).collect();
        assert_eq!(taken, [false, false, true, false, false, true, false]);
        assert!((0..100).all(|id| !Rate::every(0).takes(id)));
        assert!((0..100).all(|id| Rate::every(1).takes(id)));
    }

    #[test]
    fn a_count_is_used_up_and_a_negative_one_never() {
        let count = Count::new(2);
        assert_eq!([count.take(), count.take(), count.take()], [true, true, false]);
        assert_eq!(count.left(), 0);
        let endless = Count::new(-1);
        assert!((0..100).all(|_| endless.take()));
        assert_eq!(endless.left(), -1);
    }

    #[test]
    fn clients_are_told_one_in_how_many() {
        let told = [(1.0, 1), (0.5, 2), (0.3, 3), (0.001, 1000), (0.0, 0), (1e-30, u32::MAX)];
        for (ratio, expected) in told {
            assert_eq!(Rate::Ratio(ratio).as_triton(), expected, "{ratio}");
        }
        assert_eq!(Rate::every(7).as_triton(), 7);
    }

    proptest! {
        #[test]
        fn what_a_ratio_takes_a_larger_one_takes_too(id: u128, a in 0.0..=1.0, b in 0.0..=1.0) {
            let (less, more) = if a < b { (a, b) } else { (b, a) };
            prop_assert!(!Rate::Ratio(less).takes(id) || Rate::Ratio(more).takes(id));
            prop_assert!(Rate::Ratio(1.0).takes(id) && !Rate::Ratio(0.0).takes(id));
        }
    }
}
