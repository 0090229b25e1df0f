//! Who may be connected to the HTTP side: few at once, and whoever says nothing makes room for whoever comes.
//!
//! Health must answer whatever else is connected, so a new connection is closed only where all others are being
//! answered.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Instant,
};

use http_body::{Frame, SizeHint};
use tokio::sync::Notify;

/// Scrapers, probes and people are few.
pub(super) const MOST: usize = 64;

/// The connections that are open.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Arc<Mutex<Vec<Arc<State>>>>);

/// Of one connection, as long as this is kept.
#[derive(Debug)]
pub(super) struct Place {
    all: Places,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    /// Since when it says nothing; `None` while it is answered.
    silent: Mutex<Option<Instant>>,
    leave: Notify,
}

/// A request that is being answered, until this is dropped.
#[derive(Debug)]
pub(super) struct Asking(Arc<State>);

/// An answer that is being sent.
pub(super) struct Answer<B> {
    pub(super) body: B,
    pub(super) _asking: Asking,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Places {
    /// A place for one more: if there is none, that of the one that has been silent for longest.
    pub(super) fn enter(&self) -> Option<Place> {
        let mut open = lock(&self.0);
        if open.len() >= MOST {
            let silent = |state: &Arc<State>| *lock(&state.silent);
            let (_, index) =
                open.iter().enumerate().filter_map(|(index, state)| Some((silent(state)?, index))).min()?;
            open.swap_remove(index).leave.notify_one();
        }
        let state = Arc::new(State { silent: Mutex::new(Some(Instant::now())), leave: Notify::new() });
        open.push(Arc::clone(&state));
        Some(Place { all: self.clone(), state })
    }
}

impl Place {
    /// A request has come.
    pub(super) fn asks(&self) -> impl Fn() -> Asking + Send + use<> {
        let state = Arc::clone(&self.state);
        move || {
            *lock(&state.silent) = None;
            Asking(Arc::clone(&state))
        }
    }

    /// Until another takes it.
    pub(super) async fn is_taken(&self) {
        self.state.leave.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.all.0).retain(|open| !Arc::ptr_eq(open, &self.state));
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        *lock(&self.0.silent) = Some(Instant::now());
    }
}

impl<B: http_body::Body + Unpin> http_body::Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_has_been_silent_for_longest_makes_room_and_nobody_who_is_answered() {
        let places = Places::default();
        let mut all: Vec<Place> = (0..MOST).map(|_| places.enter().unwrap()).collect();
        let mut asking = vec![all[0].asks()()];
        drop(all[1].asks()());
        let next = places.enter().unwrap();
        all[2].is_taken().await;
        asking.push(next.asks()());
        asking.extend(all[3..].iter().map(|place| place.asks()()));
        let last = places.enter().unwrap();
        asking.push(last.asks()());
        all[1].is_taken().await;
        assert!(places.enter().is_none(), "all are being answered");
        drop(all.remove(0));
        assert!(places.enter().is_some());
    }
}
