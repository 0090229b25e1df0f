//! How many bytes of requests may be in memory, over all connections.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tonic::Status;

/// A number of bytes that requests share.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicUsize,
    limit: usize,
    /// What it is for and what to do, after "the server's budget of N bytes for ".
    purpose: &'static str,
}

impl Budget {
    pub(crate) fn new(limit: usize, purpose: &'static str) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit, purpose })
    }

    /// How many bytes are taken, and how many may be.
    pub(crate) fn usage(&self) -> (usize, usize) {
        (self.used.load(Ordering::Relaxed), self.limit)
    }

    /// Nothing yet; grows as bytes come.
    pub(crate) fn reserve(self: &Arc<Self>) -> Reservation {
        Reservation { budget: Arc::clone(self), bytes: 0 }
    }
}

/// A part of the budget, given back when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Reservation {
    /// Another of the same budget, empty.
    pub(crate) fn renew(&self) -> Self {
        self.budget.reserve()
    }

    /// Takes so many bytes more, or none.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), Box<Status>> {
        let before = self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.budget.limit {
            self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Box::new(Status::resource_exhausted(format!(
                "the server's budget of {} bytes for {}",
                self.budget.limit, self.budget.purpose
            ))));
        }
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A message over the limit for one.
pub(super) fn too_large(how: &str, limit: usize) -> Box<Status> {
    Box::new(Status::resource_exhausted(format!(
        "the message {how} the limit of {limit} bytes; send less at once or raise --max-message-size"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_given_back() {
        let budget = Budget::new(100, "tests");
        let mut first = budget.reserve();
        first.grow(60).unwrap();
        let mut second = budget.reserve();
        assert!(second.grow(41).is_err());
        second.grow(40).unwrap();
        assert!(first.grow(1).is_err());
        drop(second);
        first.grow(40).unwrap();
        drop(first);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }
}
