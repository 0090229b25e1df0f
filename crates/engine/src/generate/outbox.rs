//! Answers on their way to a caller who takes them one by one. When he does not, the next one is not made.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    task::{Context, Poll, Waker},
    time::Instant,
};

use super::Step;
use crate::{Result, outputs::NamedOutput, reply::Reply};

/// So many answers lie ready for a caller before his generation waits for him.
const READY: usize = 16;

/// An answer, and whether it is the last.
pub type Answer = (Result<Vec<NamedOutput>>, bool);

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Answer>,
    /// What goes on when there is room.
    parked: Option<Parked>,
    waker: Option<Waker>,
    /// The last answer has been put in.
    ended: bool,
    /// Nobody takes answers any more.
    closed: bool,
}

/// A step that waits for its caller to take answers: it takes no place from others meanwhile.
#[derive(Debug)]
struct Parked(Option<Step>);

impl Parked {
    fn new(step: Step) -> Self {
        step.generator.parked.fetch_add(1, Ordering::AcqRel);
        Self(Some(step))
    }

    fn into_step(mut self) -> Option<Step> {
        let mut step = self.0.take()?;
        step.generator.parked.fetch_sub(1, Ordering::AcqRel);
        // It waited for its caller until now, and waits for a worker from now on.
        let now = Instant::now();
        step.job.arrived = now;
        if let Reply::Generating(generation) = &mut step.job.reply {
            generation.tally.resumed(now);
        }
        Some(step)
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        if let Some(step) = &self.0 {
            step.generator.parked.fetch_sub(1, Ordering::AcqRel);
        }
    }
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

    /// Whether the last answer is in.
    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Whether an answer that is put in can still be taken out.
    pub(super) fn takes(&self) -> bool {
        let state = self.lock();
        !state.closed && !state.ended
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
                state.parked = next.map(Parked::new);
                None
            };
            (next, state.waker.take())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        next
    }

    /// There will be no more answers but this, whatever waits to be taken.
    pub(super) fn abandon(&self, error: crate::Error) {
        let parked = self.lock().parked.take();
        drop(self.put(Err(error), None));
        drop(parked);
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
        if let Some(step) = parked.and_then(Parked::into_step) {
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
