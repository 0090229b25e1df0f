//! Answers that leave in the order in which their requests came.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{Result, observe::Run, reply::Reply, value::Output};

/// Holds answers back until those before them have left.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the next request that comes.
    next: u64,
    /// The number of the next request that may be answered.
    due: u64,
    /// Answers that wait for others; `None` for a request that will have none.
    held: BTreeMap<u64, Option<Held>>,
}

type Held = (Reply, Result<Output>, Option<Box<Run>>);

/// A request's place in the order. Dropped unanswered it holds nobody up.
#[derive(Debug)]
pub struct Ticket {
    gate: Arc<Gate>,
    number: u64,
    answered: bool,
}

impl Gate {
    /// The place behind all that have come.
    pub(crate) fn enter(self: &Arc<Self>) -> Ticket {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let number = state.next;
        state.next += 1;
        Ticket { gate: Arc::clone(self), number, answered: false }
    }

    fn leave(&self, number: u64, answer: Option<Held>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // An answer that nobody waits for is not kept until its turn comes.
        state.held.insert(number, answer.filter(|(reply, ..)| !reply.is_closed()));
        // Sent under the lock: two threads that answer at once would overtake each other.
        while let Some(answer) = {
            let due = state.due;
            state.held.remove(&due)
        } {
            state.due += 1;
            if let Some((reply, answer, run)) = answer {
                reply.finish(answer, run);
            }
        }
    }
}

impl Ticket {
    /// Answers when all before have been answered.
    pub(crate) fn answer(mut self, reply: Reply, answer: Result<Output>, run: Option<Box<Run>>) {
        self.answered = true;
        self.gate.leave(self.number, Some((reply, answer, run)));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.answered {
            self.gate.leave(self.number, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn answers_leave_in_order_and_nobody_who_left_is_waited_for() {
        let gate = Arc::new(Gate::default());
        let mut tickets: Vec<_> = (0..4).map(|_| Some(gate.enter())).collect();
        let (senders, mut receivers): (Vec<_>, Vec<_>) = (0..4).map(|_| oneshot::channel()).unzip();
        let mut senders: Vec<_> = senders.into_iter().map(Some).collect();
        let mut answer = |index: usize| {
            let (ticket, sender) = (tickets[index].take().unwrap(), senders[index].take().unwrap());
            ticket.answer(Reply::One(sender), Ok(Output::Other(index.to_string())), None);
        };
        answer(3);
        answer(1);
        assert!(receivers.iter_mut().all(|receiver| receiver.try_recv().is_err()), "0 has not been answered");
        answer(0);
        assert!(receivers[..2].iter_mut().all(|receiver| receiver.try_recv().is_ok()));
        assert!(receivers[3].try_recv().is_err(), "2 has not been answered");
        drop(tickets[2].take());
        assert!(receivers[3].try_recv().is_ok());
    }
}
