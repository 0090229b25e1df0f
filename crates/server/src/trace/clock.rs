//! Points in time of the process, as they are told to others.

use std::time::{Instant, SystemTime};

/// What times are told by: points of one clock, told in another.
#[derive(Clone, Copy)]
pub(crate) struct Clock(Instant, SystemTime);

impl Clock {
    pub(crate) fn now() -> Self {
        Self(Instant::now(), SystemTime::now())
    }

    pub(crate) fn tell(self, at: Instant) -> SystemTime {
        match self.0.checked_duration_since(at) {
            Some(ago) => self.1 - ago,
            None => self.1 + at.duration_since(self.0),
        }
    }
}

/// From when to when, in order, and within what it is a part of.
#[derive(Clone, Copy)]
pub(crate) struct Period(pub(crate) Instant, pub(crate) Instant);

impl Period {
    pub(crate) fn part(self, start: Instant, end: Instant) -> Self {
        let start = start.clamp(self.0, self.1);
        Self(start, end.clamp(start, self.1))
    }
}
