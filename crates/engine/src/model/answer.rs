//! A request's way through a version: check, queue, wait, name the outputs; and what is counted of it.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot::{self, error::RecvError};

use super::{LiveVersion, Request, refused};
use crate::{
    Error, Result, check,
    check::Input,
    classification::classify_wanted,
    examples::Example,
    generate::{Answers, Beginning, Generator, collect},
    observe::{Run, TraceContext},
    outputs::{self, NamedOutput, Wanted},
    padding::Lengths,
    pool::Job,
    reply::{Answer, Reply},
    sequence::{InSequence, Pending},
    stats::{Cause, Reason, VersionStats},
};

/// A request that is counted when it ends, as it may by being dropped: then its caller has gone, or time is up.
struct Counted<'a> {
    stats: &'a VersionStats,
    came: Instant,
    deadline: Option<Instant>,
    over: bool,
}

impl<'a> Counted<'a> {
    fn new(stats: &'a VersionStats, request: &Request) -> Self {
        stats
            .request_bytes
            .add(request.inputs.iter().map(|input: &Input| input.tensor.bytes().len() as u64).sum());
        let came = Instant::now();
        stats.came(came);
        Self { stats, came, deadline: request.deadline, over: false }
    }

    fn end(mut self, outcome: &Result<Vec<NamedOutput>>, rows: u64) {
        self.over = true;
        let reason = match outcome {
            Ok(outputs) => {
                let bytes = outputs.iter().map(|output| output.tensor.bytes().len() as u64).sum();
                self.stats.response_bytes.add(bytes);
                Reason::Ok
            }
            Err(error) => Reason::from(error),
        };
        self.stats.ended(reason, self.came.elapsed(), rows);
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.stats.ended(Cause::of(self.deadline).into(), self.came.elapsed(), 0);
        }
    }
}

const EXPIRED: Error = Error::DeadlineExceeded { stage: "passed while it was queued or running" };

/// What a request's end needs, however it ends.
struct Ending<'a> {
    counted: Counted<'a>,
    id: String,
    trace: Option<Box<TraceContext>>,
}

impl<'a> Ending<'a> {
    /// Of a request that begins.
    fn new(stats: &'a VersionStats, request: &mut Request) -> Self {
        let (id, trace) = (mem::take(&mut request.id), request.trace.clone());
        Self { counted: Counted::new(stats, request), id, trace }
    }
}

/// A request that is queued or runs, and what its answer needs.
struct Waiting {
    answer: oneshot::Receiver<Answer>,
    wanted: Vec<Wanted>,
    batch: Option<i64>,
    lengths: Lengths,
    example: Option<Example>,
}

impl Waiting {
    fn rows(&self) -> u64 {
        self.batch.map_or(1, i64::unsigned_abs)
    }
}

/// A request that has been asked.
enum Asked<'a> {
    One((Ending<'a>, Result<Waiting>)),
    Many(Pin<Box<dyn Future<Output = Result<Vec<NamedOutput>>> + Send + 'a>>),
}

impl LiveVersion {
    /// Answers one request: check, queue, wait, name the outputs.
    ///
    /// # Errors
    /// Every [`Error`] but those of looking a model up. A call that is dropped is forgotten by the
    /// queue; a run that has begun is finished and its outcome dropped.
    pub async fn infer(&self, request: Request) -> Result<Vec<NamedOutput>> {
        self.infer_seen(request, &mut None).await
    }

    /// The same, and tells which run it was that answered, where the request wants to know.
    ///
    /// What can be done at once is done by the call itself: the future that it returns has only what is needed to
    /// wait, because futures are moved about.
    ///
    /// # Errors
    /// As [`LiveVersion::infer`].
    pub fn infer_seen<'a>(
        &'a self,
        request: Request,
        run: &'a mut Option<Box<Run>>,
    ) -> impl Future<Output = Result<Vec<NamedOutput>>> + Send + 'a {
        let asked = match &self.generator {
            Some(generator) => Asked::Many(Box::pin(self.collected(generator, request))),
            None => Asked::One(self.ask(request)),
        };
        async move {
            let (request, mut waiting) = match asked {
                Asked::Many(all) => return all.await,
                Asked::One((request, Err(error))) => return self.ended(request, Err(error), 0),
                Asked::One((request, Ok(waiting))) => (request, waiting),
            };
            let answer = match request.counted.deadline {
                None => (&mut waiting.answer).await,
                Some(deadline) => match tokio::time::timeout_at(deadline.into(), &mut waiting.answer).await {
                    Ok(answer) => answer,
                    Err(_) => return self.ended(request, Err(EXPIRED), waiting.rows()),
                },
            };
            let rows = waiting.rows();
            let outcome = self.named(waiting, answer, request.counted.deadline, run);
            self.ended(request, outcome, rows)
        }
    }

    /// Counts and logs how a request has ended.
    fn ended(
        &self,
        request: Ending<'_>,
        outcome: Result<Vec<NamedOutput>>,
        rows: u64,
    ) -> Result<Vec<NamedOutput>> {
        request.counted.end(&outcome, rows);
        if let Err(error) = &outcome {
            self.failures.note(&self.executable, (&request.id, request.trace.as_deref()), error);
        }
        outcome
    }

    /// Counts a request for it that was refused before it could be asked.
    pub fn refused(&self) {
        self.stats().ended(Reason::InvalidInput, Duration::ZERO, 0);
    }

    /// What is counted of it.
    pub fn stats(&self) -> &VersionStats {
        &self.executable.stats
    }

    pub(crate) fn generator(&self) -> Option<&Arc<Generator>> {
        self.generator.as_ref()
    }

    /// Whether it makes many answers of a request, so that [`LiveVersion::generate`] is for it.
    pub fn generates(&self) -> bool {
        self.generator.is_some()
    }

    /// Begins to answer a request with as many answers as it takes.
    ///
    /// # Errors
    /// As [`LiveVersion::infer`], for what is wrong before anything runs; all else comes as an answer.
    pub fn generate(&self, request: Request) -> Result<Answers> {
        let Some(generator) = &self.generator else {
            let model = &self.model;
            return Err(Error::invalid(format!("model '{model}' makes one answer of a request")));
        };
        let mut counted = Counted::new(self.stats(), &request);
        match self.begin(generator, request, counted.came, false) {
            Ok(answers) => {
                // It is counted when it ends, by its tally.
                counted.over = true;
                Ok(answers)
            }
            Err(error) => {
                counted.end(&Err(error.clone()), 0);
                Err(error)
            }
        }
    }

    fn begin(
        &self,
        generator: &Arc<Generator>,
        request: Request,
        came: Instant,
        collected: bool,
    ) -> Result<Answers> {
        outputs::check_wanted(&self.binding, &request.outputs)?;
        let example = self.examples.due().then(|| Example::of(&self.binding, &request.inputs)).flatten();
        let checked = check::call(&self.binding, request.inputs)?;
        if checked.batch.is_some_and(|rows| rows != 1) {
            return Err(Error::invalid(format!(
                "inference request to model '{}' must specify batch-size 1, because each row would have as many answers as \
                 it takes; send a request for each",
                self.model
            )));
        }
        if request.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(Error::DeadlineExceeded { stage: "passed before it was queued" });
        }
        let beginning = Beginning {
            wanted: request.outputs,
            rows: checked.batch,
            lengths: checked.lengths,
            deadline: request.deadline,
            priority: request.priority,
            timeout: Some(request.timeout).filter(|timeout| !timeout.is_zero()),
            max_steps: request.max_steps,
            collected,
            id: request.id,
            trace: request.trace,
            held: request.held,
            came,
        };
        let answers = generator.begin(checked.call, beginning)?;
        self.examples.served(example);
        Ok(answers)
    }

    /// All answers to a request as one.
    async fn collected(&self, generator: &Arc<Generator>, mut request: Request) -> Result<Vec<NamedOutput>> {
        let ending = Ending::new(self.stats(), &mut request);
        let outcome = self.collect(generator, request, ending.counted.came).await;
        self.ended(ending, outcome, 1)
    }

    async fn collect(
        &self,
        generator: &Arc<Generator>,
        request: Request,
        came: Instant,
    ) -> Result<Vec<NamedOutput>> {
        if let Some(wanted) = request.outputs.iter().find(|wanted| wanted.classes > 0) {
            return Err(Error::invalid(format!(
                "output '{}' cannot be classified in a collected answer of model '{}'; ask for it on a stream \
                 (ModelStreamInfer)",
                wanted.name, self.model
            )));
        }
        let deadline = request.deadline;
        let collected = collect(&self.model, self.begin(generator, request, came, true)?);
        let late = Error::DeadlineExceeded { stage: "passed while answers were being made" };
        match deadline {
            None => collected.await,
            Some(deadline) => tokio::time::timeout_at(deadline.into(), collected).await.unwrap_or(Err(late)),
        }
    }

    /// Checks a request and puts it into the queue; or runs it here and now.
    fn ask(&self, mut request: Request) -> (Ending<'_>, Result<Waiting>) {
        let ending = Ending::new(self.stats(), &mut request);
        let waiting = self.submit(request, ending.counted.came);
        (ending, waiting)
    }

    fn submit(&self, request: Request, came: Instant) -> Result<Waiting> {
        outputs::check_wanted(&self.binding, &request.outputs)?;
        let example = self.examples.due().then(|| Example::of(&self.binding, &request.inputs)).flatten();
        let checked = check::call(&self.binding, request.inputs)?;
        if request.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(Error::DeadlineExceeded { stage: "passed before it was queued" });
        }
        let (sender, answer) = oneshot::channel();
        let reply = match &self.gate {
            Some(gate) => Reply::Ordered(gate.enter(), Box::new(Reply::One(sender))),
            None => Reply::One(sender),
        };
        let timeout = Some(request.timeout).filter(|timeout| !timeout.is_zero());
        let (batch, deadline, priority) = (checked.batch, request.deadline, request.priority);
        if let Some(sequencer) = &self.sequencer {
            let at = self.in_sequence(request.sequence, batch)?;
            let (call, arrived, trace, told) = (checked.call, came, request.trace, request.told);
            let pending =
                Pending { call, rows: batch, reply, deadline, priority, timeout, arrived, trace, told };
            sequencer.submit(&at, pending);
        } else {
            let mut job = Job::new(Arc::clone(&self.executable), checked.call, batch, reply, came);
            (job.deadline, job.priority, job.timeout) = (deadline, priority, timeout);
            (job.trace, job.told) = (request.trace, request.told);
            let refused = |refusal| refused(&self.model, self.version, refusal);
            self.registration.submit(job).map_err(refused)?;
        }
        Ok(Waiting { answer, wanted: request.outputs, batch, lengths: checked.lengths, example })
    }

    /// Gives the outputs their names.
    fn named(
        &self,
        waiting: Waiting,
        answer: std::result::Result<Answer, RecvError>,
        deadline: Option<Instant>,
        run: &mut Option<Box<Run>>,
    ) -> Result<Vec<NamedOutput>> {
        // The queue drops what has expired, and may be earlier than the timer.
        let lost = |_| match deadline {
            Some(deadline) if deadline <= Instant::now() => EXPIRED,
            Some(_) | None => Error::WorkerLost { model: self.model.to_string() },
        };
        let Waiting { wanted, batch, lengths, example, .. } = waiting;
        let (output, by) = answer.map_err(lost)?;
        *run = by;
        let mut named = outputs::name(&self.binding, output?, &wanted, batch, &lengths)?;
        classify_wanted(&self.binding, &mut named, &wanted, batch.is_some())?;
        self.examples.served(example);
        Ok(named)
    }

    /// The place in a sequence that a request must have, and its one row. The texts are Triton's.
    fn in_sequence(&self, at: Option<InSequence>, rows: Option<i64>) -> Result<InSequence> {
        let model = &self.model;
        let at = at.ok_or_else(|| {
            Error::invalid(format!(
                "inference request to model '{model}' must specify a non-zero or non-empty correlation ID (the request \
                 parameter sequence_id)"
            ))
        })?;
        if rows.is_some_and(|rows| rows != 1) {
            return Err(Error::invalid(format!(
                "inference request to model '{model}' must specify batch-size 1 due to requirements of sequence batcher"
            )));
        }
        Ok(at)
    }
}
