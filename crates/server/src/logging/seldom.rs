//! Lines on what may go on for long: one stands for as long as nothing else is to be said.

use std::time::{Duration, Instant};

/// When something was said last.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Option<Instant>);

impl Seldom {
    /// Whether it may be said again, so long after the last time; then it is taken to be said.
    pub(crate) fn may_be_said(&mut self, after: Duration) -> bool {
        let may = self.0.is_none_or(|last| last.elapsed() >= after);
        if may {
            self.0 = Some(Instant::now());
        }
        may
    }
}
