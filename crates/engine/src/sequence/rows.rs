//! Batches in which each sequence has its row, and rows without a request are filled up: for models that keep
//! state of their own by row.

use std::{mem, sync::Arc, time::Instant};

use super::{Prepared, Sequencer};
use crate::{
    Error, Result, batch,
    job::Job,
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
        let traced =
            self.requests.iter().filter_map(|request| request.request.trace.as_deref().copied()).collect();
        let told = self.requests.iter().any(|request| request.request.told);
        let replies = self.requests.into_iter().map(|request| (request.row, request.request.reply)).collect();
        let reply = Reply::Rows(Rows { model: Arc::clone(&sequencer.binding.model), total, replies, traced });
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
    replies: Vec<(usize, Reply)>,
    traced: Vec<TraceContext>,
}

impl Rows {
    /// Whether nobody waits any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.replies.iter().all(|(_, reply)| reply.is_closed())
    }

    /// The places of those that are traced.
    pub(crate) fn traced(&self) -> &[TraceContext] {
        &self.traced
    }

    pub(crate) fn leave_order(mut self) -> Self {
        let replies = mem::take(&mut self.replies).into_iter();
        self.replies = replies.map(|(row, reply)| (row, reply.leave_order())).collect();
        self
    }

    /// Gives each his row.
    pub(crate) fn answer(self, answer: Result<Output>, run: Option<&Run>) {
        let own = |run: Option<&Run>| run.map(|run| Box::new(*run));
        let parts = answer.and_then(|output| {
            batch::scatter(&output, &vec![1; self.total], self.total)
                .map_err(|message| Error::Output { model: self.model.to_string(), message })
        });
        match parts {
            Ok(parts) => {
                let mut parts: Vec<Option<Output>> = parts.into_iter().map(Some).collect();
                for (row, reply) in self.replies {
                    if let Some(part) = parts.get_mut(row).and_then(Option::take) {
                        reply.finish(Ok(part), own(run));
                    }
                }
            }
            Err(error) => {
                self.replies.into_iter().for_each(|(_, reply)| reply.finish(Err(error.clone()), own(run)))
            }
        }
    }
}
