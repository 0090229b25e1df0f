//! Answers on their way to a caller who takes them one by one. When he does not, the next one is not made.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use super::Step;
use crate::{Result, outputs::NamedOutput};

/// So many answers lie ready for a caller before his generation waits for him.
const READY: usize = 16;

/// An answer, and whether it is the last.
pub type Answer = (Result<Vec<NamedOutput>>, bool);

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Answer>,
    /// What goes on when there is room.
    parked: Option<Step>,
    waker: Option<Waker>,
    /// The last answer has been put in.
    ended: bool,
    /// Nobody takes answers any more.
    closed: bool,
}

/// Where a generation puts its answers.
#[derive(Debug, Default)]
pub(crate) struct Outbox(Mutex<State>);

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody takes answers any more.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Puts an answer in. `next` comes back if it may go on at once.
    pub(super) fn put(&self, answer: Result<Vec<NamedOutput>>, next: Option<Step>) -> Option<Step> {
        let (next, waker) = {
            let mut state = self.lock();
            if state.closed || state.ended {
                return None;
            }
            state.ended = next.is_none();
            state.ready.push_back((answer, next.is_none()));
            let next = if state.ready.len() < READY {
                next
            } else {
                state.parked = next;
                None
            };
            (next, state.waker.take())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        next
    }

    /// The worker was lost: there will be no more answers.
    pub(super) fn abandon(&self, error: crate::Error) {
        drop(self.put(Err(error), None));
    }
}

/// The answers to one request, as they are made. Dropped, no more are.
#[derive(Debug)]
pub struct Answers(pub(super) Arc<Outbox>);

impl Answers {
    /// The next answer and whether it is the last; `None` after that.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Answer>> {
        let (answer, parked) = {
            let mut state = self.0.lock();
            match state.ready.pop_front() {
                Some(answer) => {
                    let room = state.ready.len() < READY / 2;
                    (answer, if room { state.parked.take() } else { None })
                }
                None if state.ended => return Poll::Ready(None),
                None => {
                    state.waker = Some(context.waker().clone());
                    return Poll::Pending;
                }
            }
        };
        if let Some(step) = parked {
            super::go_on(vec![step]);
        }
        Poll::Ready(Some(answer))
    }

    /// The same, to be awaited.
    pub async fn next(&mut self) -> Option<Answer> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        let left = {
            let mut state = self.0.lock();
            state.closed = true;
            (std::mem::take(&mut state.ready), state.parked.take())
        };
        // Out of the lock: what is parked looks into it when it goes.
        drop(left);
    }
}
