//! Who may be connected to the HTTP side: few at once, and whoever says nothing makes room for whoever comes.
//!
//! Health must answer whatever else is connected, so a new connection is closed only where all others are being
//! answered.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

/// Scrapers, probes and people are few.
pub(super) const MOST: usize = 64;

/// The connections that are open.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<Vec<Arc<Place>>>);

/// Of one connection.
#[derive(Debug)]
pub(super) struct Place {
    /// Since when it says nothing; `None` while it is answered.
    silent: Mutex<Option<Instant>>,
    leave: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Places {
    /// A place for one more: if there is none, that of the one that has been silent for longest.
    pub(super) fn enter(&self) -> Option<Arc<Place>> {
        let mut open = lock(&self.0);
        if open.len() >= MOST {
            let silent = |place: &Arc<Place>| *lock(&place.silent);
            let (_, index) =
                open.iter().enumerate().filter_map(|(index, place)| Some((silent(place)?, index))).min()?;
            open.swap_remove(index).leave.notify_one();
        }
        let place = Arc::new(Place { silent: Mutex::new(Some(Instant::now())), leave: Notify::new() });
        open.push(Arc::clone(&place));
        Some(place)
    }

    /// It is closed.
    pub(super) fn exit(&self, place: &Arc<Place>) {
        lock(&self.0).retain(|open| !Arc::ptr_eq(open, place));
    }
}

impl Place {
    /// A request has come.
    pub(super) fn begin(&self) {
        *lock(&self.silent) = None;
    }

    /// It has its answer.
    pub(super) fn end(&self) {
        *lock(&self.silent) = Some(Instant::now());
    }

    /// Until another takes it.
    pub(super) async fn is_taken(&self) {
        self.leave.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_has_been_silent_for_longest_makes_room_and_nobody_who_is_answered() {
        let places = Places::default();
        let all: Vec<Arc<Place>> = (0..MOST).map(|_| places.enter().unwrap()).collect();
        all[0].begin();
        all[1].begin();
        all[1].end();
        let next = places.enter().unwrap();
        all[2].is_taken().await;
        next.begin();
        all[3..].iter().for_each(|place| place.begin());
        places.enter().unwrap().begin();
        all[1].is_taken().await;
        assert!(places.enter().is_none(), "all are being answered");
        places.exit(&all[0]);
        assert!(places.enter().is_some());
    }
}
