//! Batches in which each sequence has its row, and rows without a request are filled up: for models that keep
//! state of their own by row.

use std::{sync::Arc, time::Instant};

use super::{Pending, Prepared, Sequencer};
use crate::{
    Error, Result, batch,
    job::{Job, Waiter},
    observe::{Run, TraceContext},
    reply::Reply,
    value::{Call, Output},
};

/// The requests of one batch.
pub(super) struct Batch {
    requests: Vec<Prepared>,
}

/// Requests of one lane that may run together, and others of it after them.
pub(super) fn batches(requests: Vec<Prepared>) -> impl Iterator<Item = (usize, Batch)> {
    let mut batches: Vec<(usize, Batch)> = Vec::new();
    for request in requests {
        let fits = |(lane, batch): &&mut (usize, Batch)| {
            *lane == request.lane && batch::alike(&batch.requests[0].request.call, &request.request.call)
        };
        match batches.iter_mut().find(fits) {
            Some((_, batch)) => batch.requests.push(request),
            None => batches.push((request.lane, Batch { requests: vec![request] })),
        }
    }
    batches.into_iter()
}

impl Batch {
    /// As one request, which runs by itself.
    pub(super) fn job(mut self, sequencer: &Arc<Sequencer>, lane: usize) -> Job {
        self.requests.sort_by_key(|request| request.row);
        let total = self.requests.last().map_or(1, |request| request.row + 1);
        let empty = sequencer.plan().empty_row(&self.requests[0].request.call);
        let mut calls: Vec<&Call> = vec![&empty; total];
        for request in &self.requests {
            calls[request.row] = &request.request.call;
        }
        let call = batch::gather(&calls, &vec![1; total], total, &mut |_| None);
        let arrived = self.requests.iter().map(|request| request.request.arrived).min();
        let told = self.requests.iter().any(|request| request.request.told);
        let requests = self.requests.into_iter().map(Row::new).collect();
        let reply = Reply::Rows(Rows { model: Arc::clone(&sequencer.binding.model), total, requests });
        let executable = Arc::clone(&sequencer.lanes[lane].executable);
        let arrived = arrived.unwrap_or_else(Instant::now);
        let mut job = Job::new(executable, call, i64::try_from(total).ok(), reply, arrived).alone();
        job.told = told;
        job
    }
}

/// The way back to those whose requests are rows of a batch.
#[derive(Debug)]
pub struct Rows {
    model: Arc<str>,
    total: usize,
    requests: Vec<Row>,
}

/// The way back to one of them, and what is told of it.
#[derive(Debug)]
struct Row {
    row: usize,
    reply: Reply,
    arrived: Instant,
    deadline: Option<Instant>,
    trace: Option<Box<TraceContext>>,
    told: bool,
}

impl Row {
    fn new(request: Prepared) -> Self {
        let Pending { reply, arrived, deadline, trace, told, .. } = request.request;
        Self { row: request.row, reply, arrived, deadline, trace, told }
    }

    fn finish(self, answer: Result<Output>, run: Option<&Run>) {
        let run = run.filter(|_| self.told).map(|run| Box::new(Run { arrived: self.arrived, ..*run }));
        self.reply.finish(answer, run);
    }
}

impl Rows {
    /// Whether nobody waits any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.requests.iter().all(|request| request.reply.is_closed())
    }

    /// Those who wait for it.
    pub(crate) fn waiters(&self) -> impl Iterator<Item = Waiter<'_>> {
        self.requests.iter().map(|request| Waiter {
            reply: &request.reply,
            arrived: request.arrived,
            deadline: request.deadline,
            trace: request.trace.as_deref(),
        })
    }

    pub(crate) fn leave_order(self) -> Self {
        let leave = |request: Row| Row { reply: request.reply.leave_order(), ..request };
        Self { requests: self.requests.into_iter().map(leave).collect(), ..self }
    }

    /// Gives each his row.
    pub(crate) fn answer(self, answer: Result<Output>, run: Option<&Run>) {
        let parts = answer.and_then(|output| {
            batch::scatter(&output, &vec![1; self.total], self.total)
                .map_err(|message| Error::Output { model: self.model.to_string(), message })
        });
        match parts {
            Ok(parts) => {
                let mut parts: Vec<Option<Output>> = parts.into_iter().map(Some).collect();
                for request in self.requests {
                    if let Some(part) = parts.get_mut(request.row).and_then(Option::take) {
                        request.finish(Ok(part), run);
                    }
                }
            }
            Err(error) => {
                self.requests.into_iter().for_each(|request| request.finish(Err(error.clone()), run));
            }
        }
    }
}
