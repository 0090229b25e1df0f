//! One live version: what a request meets once its name has been looked up.

use std::{sync::Arc, time::Instant};

use sconce_repository::{ModelConfig, Version};
use tokio::sync::oneshot;

use crate::{
    Error, Result,
    binding::Binding,
    check,
    classification::classify,
    outputs,
    pool::{Executable, Job, Pool},
    reply::Reply,
    scheduler::{ModelKey, Refusal},
};
pub use crate::{
    check::Input,
    outputs::{NamedOutput, Wanted},
};

/// How many requests may wait for a model. At 100 microseconds each that is a tenth of a second,
/// and whoever is behind a thousand others is better told than kept.
pub const QUEUE_LIMIT: usize = 1000;

/// A request for a version, as the wire gave it: not yet checked.
#[derive(Debug, Default)]
pub struct Request {
    /// The inputs, in any order.
    pub inputs: Vec<Input>,
    /// The outputs that are wanted; all of them when empty.
    pub outputs: Vec<Wanted>,
    /// When the answer is worth nothing any more.
    pub deadline: Option<Instant>,
}

/// A version that serves. Dropping the last handle lets its weights go.
#[derive(Debug)]
pub struct LiveVersion {
    /// The model's name.
    pub model: Arc<str>,
    /// The version.
    pub version: Version,
    /// Its configuration.
    pub config: Arc<ModelConfig>,
    /// Its names, types and shapes.
    pub binding: Binding,
    executable: Arc<Executable>,
    key: ModelKey,
    pool: Pool,
}

impl LiveVersion {
    /// Makes a loaded version known to the scheduler.
    pub fn new(
        version: Version,
        config: Arc<ModelConfig>,
        binding: Binding,
        executable: Executable,
        pool: Pool,
    ) -> Self {
        let key = pool.add(&executable, QUEUE_LIMIT);
        let model = Arc::clone(&binding.model);
        Self { model, version, config, binding, executable: Arc::new(executable), key, pool }
    }

    /// Answers one request: check, queue, wait, name the outputs.
    ///
    /// # Errors
    /// Every [`Error`] but those of looking a model up. A call that is dropped is forgotten by the
    /// queue; a run that has begun is finished and its outcome dropped.
    pub async fn infer(&self, request: Request) -> Result<Vec<NamedOutput>> {
        outputs::check_wanted(&self.binding, &request.outputs)?;
        let checked = check::call(&self.binding, request.inputs)?;
        if request.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(Error::DeadlineExceeded { stage: "before it was queued" });
        }
        let (sender, answer) = oneshot::channel();
        let job = Job {
            executable: Arc::clone(&self.executable),
            call: checked.call,
            reply: Reply::One(sender),
            deadline: request.deadline,
        };
        self.pool.submit(self.key, job).map_err(|refusal| self.refused(refusal))?;
        let expired = Error::DeadlineExceeded { stage: "while it was queued or running" };
        let answer = match request.deadline {
            None => answer.await,
            Some(deadline) => {
                tokio::time::timeout_at(deadline.into(), answer).await.map_err(|_| expired.clone())?
            }
        };
        // The queue drops what has expired, and may be earlier than the timer.
        let lost = |_| match request.deadline {
            Some(deadline) if deadline <= Instant::now() => expired,
            Some(_) | None => Error::WorkerLost { model: self.model.to_string() },
        };
        let output = answer.map_err(lost)??;
        let mut named = outputs::name(&self.binding, output, &request.outputs, checked.batch)?;
        for (output, wanted) in named.iter_mut().zip(&request.outputs) {
            if wanted.classes > 0 {
                let labels = outputs::labels(&self.binding, &output.name).map(|labels| &**labels);
                output.tensor =
                    classify(&output.name, &output.tensor, wanted.classes, labels, checked.batch.is_some())?;
            }
        }
        Ok(named)
    }

    fn refused(&self, refusal: Refusal) -> Error {
        let model = self.model.to_string();
        match refusal {
            Refusal::Full { limit } => Error::QueueFull { model, limit },
            Refusal::Gone => Error::NotReady {
                model,
                version: self.version.to_string(),
                why: "it is being unloaded".to_owned(),
            },
        }
    }
}

impl Drop for LiveVersion {
    fn drop(&mut self) {
        self.pool.remove(self.key);
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
