//! What was traced and has not been sent yet. It has a bound; who finds it full does not wait, and is counted.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::sync::Notify;

use super::notes::Item;

/// How many spans are sent at once. So many of the largest stay below the 4 MiB that collectors take.
pub(crate) const BATCH: usize = 512;

/// What waits to be sent.
#[derive(Debug)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    /// How many spans may wait.
    bound: usize,
    /// Told when a whole batch waits: until then nobody has to wake.
    full: Notify,
    /// How many spans a collector has taken.
    pub(crate) exported: AtomicU64,
    /// How many are lost.
    pub(crate) dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    items: VecDeque<Item>,
    spans: usize,
    closed: bool,
}

impl Queue {
    pub(crate) fn new(bound: usize) -> Self {
        Self {
            waiting: Mutex::default(),
            bound,
            full: Notify::new(),
            exported: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// Puts it last, or counts it as lost if there is no room for it.
    pub(crate) fn offer(&self, item: Item) {
        let spans = item.spans();
        let mut waiting = self.waiting();
        if waiting.closed || waiting.spans + spans > self.bound {
            drop(waiting);
            self.lost(spans);
            return;
        }
        let before = waiting.spans;
        waiting.spans += spans;
        waiting.items.push_back(item);
        drop(waiting);
        let enough = BATCH.min(self.bound / 2);
        if before < enough && before + spans >= enough {
            self.full.notify_one();
        }
    }

    /// The first ones, as many as are sent at once.
    pub(crate) fn take(&self) -> Vec<Item> {
        let mut waiting = self.waiting();
        let (mut taken, mut spans) = (Vec::new(), 0);
        while let Some(item) = waiting.items.front() {
            let more = item.spans();
            if !taken.is_empty() && spans + more > BATCH {
                break;
            }
            spans += more;
            taken.extend(waiting.items.pop_front());
        }
        waiting.spans -= spans;
        taken
    }

    /// Whether as many wait as are sent at once.
    pub(crate) fn has_batch(&self) -> bool {
        self.waiting().spans >= BATCH
    }

    /// Waits until many wait.
    pub(crate) async fn filled(&self) {
        self.full.notified().await;
    }

    /// Takes no more.
    pub(crate) fn close(&self) {
        self.waiting().closed = true;
    }

    /// Counts spans that nobody will see.
    pub(crate) fn lost(&self, spans: usize) {
        self.dropped.fetch_add(spans as u64, Relaxed);
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::Ordering::Relaxed, time::Instant};

    use sconce_engine::Version;

    use super::{BATCH, Queue};
    use crate::trace::notes::{Item, Load};

    /// One span.
    fn item() -> Item {
        let now = Instant::now();
        Item::Load(Box::new(Load {
            model: "m".to_owned(),
            version: Version::new(1).expect("a version"),
            started: now,
            ended: now,
            steps: Vec::new(),
            outcome: "loaded",
            reason: None,
        }))
    }

    #[test]
    fn what_does_not_fit_is_counted_and_what_fits_comes_out_in_order() {
        let queue = Queue::new(BATCH + 10);
        for _ in 0..BATCH + 15 {
            queue.offer(item());
        }
        assert_eq!(queue.dropped.load(Relaxed), 5);
        assert!(queue.has_batch());
        assert_eq!(queue.take().len(), BATCH);
        assert!(!queue.has_batch());
        assert_eq!(queue.take().len(), 10);
        assert!(queue.take().is_empty());
        queue.offer(item());
        queue.close();
        queue.offer(item());
        assert_eq!(queue.take().len(), 1);
        assert_eq!(queue.dropped.load(Relaxed), 6);
    }

    #[tokio::test]
    async fn a_whole_batch_wakes_who_sends_it() {
        let queue = Queue::new(10_000);
        for _ in 0..BATCH {
            queue.offer(item());
        }
        queue.filled().await;
    }
}
