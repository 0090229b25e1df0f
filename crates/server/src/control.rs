//! Loading and unloading by request: what its parameters say, and what came of it.

use std::{collections::HashMap, sync::Arc, time::Instant};

use bytes::Bytes;
use sconce_engine::{
    Version,
    reconcile::{Mode, Order, Override, Overrides, Reconciler},
    text::quote,
};
use sconce_proto::inference::{
    ModelRepositoryParameter, RepositoryModelLoadRequest, RepositoryModelUnloadRequest,
    model_repository_parameter::ParameterChoice,
};
use tokio::{sync::Semaphore, task::JoinError};
use tonic::Status;

use crate::{from_proto, status::Codes};

/// The longest name of a model; file systems allow less, most of them 255 bytes.
const MAX_NAME: usize = 1024;
/// Requests whose files are being written at once; the others wait.
const WRITERS: usize = 2;
/// The name of a parameter that carries a file begins with this.
const FILE: &str = "file:";

type Answer<T> = Result<T, Box<Status>>;
type Parameters = HashMap<String, ModelRepositoryParameter>;

/// Takes orders for models.
#[derive(Debug)]
pub(crate) struct Control {
    reconciler: Reconciler,
    overrides: Arc<Overrides>,
    writers: Arc<Semaphore>,
    takes_orders: bool,
    codes: Codes,
}

/// What the parameters of a load say.
#[derive(Debug, Default)]
struct Load {
    version: Option<Version>,
    config: Option<String>,
    /// By version and path, as they were sent.
    files: Vec<(String, Bytes)>,
}

impl Control {
    pub(crate) fn new(reconciler: Reconciler, overrides: Arc<Overrides>, mode: &Mode, codes: Codes) -> Self {
        let writers = Arc::new(Semaphore::new(WRITERS));
        Self { reconciler, overrides, writers, takes_orders: *mode != Mode::Once, codes }
    }

    /// Loads a model, and returns when it serves or is known not to. `held` are the bytes of the request,
    /// which are let go of as soon as its files are written: loading may take long.
    pub(crate) async fn load(
        &self,
        request: RepositoryModelLoadRequest,
        deadline: Option<Instant>,
        held: Bytes,
    ) -> Answer<()> {
        self.check(&request.repository_name, &request.model_name)?;
        let name = request.model_name;
        let Load { version, config, files } = load_parameters(request.parameters)?;
        let load = async {
            let instead = match (&config, files.is_empty()) {
                (None, true) => {
                    drop(held);
                    None
                }
                _ => Some(self.prepare(name.clone(), config, files, held).await?),
            };
            self.order(name.clone(), Order::Load { version, instead }).await
        };
        within(deadline, load, "load", &name).await
    }

    /// Unloads a model, and returns when its memory is free.
    pub(crate) async fn unload(
        &self,
        request: RepositoryModelUnloadRequest,
        deadline: Option<Instant>,
    ) -> Answer<()> {
        self.check(&request.repository_name, &request.model_name)?;
        let name = request.model_name;
        let version = unload_parameters(request.parameters)?;
        let unload = self.order(name.clone(), Order::Unload { version });
        within(deadline, unload, "unload", &name).await
    }

    /// What is wrong with any order.
    fn check(&self, repository: &str, model: &str) -> Answer<()> {
        if !repository.is_empty() {
            return Err(Box::new(Status::unimplemented(
                "'repository_name' is not served: leave it empty, a model is found by its own name",
            )));
        }
        if !self.takes_orders {
            return Err(Box::new(Status::unavailable(
                "explicit model load / unload is not allowed if polling is enabled or changes are not followed: \
                 serve with --model-control-mode explicit, watch or poll",
            )));
        }
        if !is_model_name(model) {
            return Err(invalid(format!(
                "'{}' cannot be the name of a model: the name of a directory in the repository is expected, \
                 without '/', control characters and a leading dot",
                quote(model)
            )));
        }
        Ok(())
    }

    /// Makes what is served instead of what the directory says: that reads and writes files.
    async fn prepare(
        &self,
        name: String,
        config: Option<String>,
        files: Vec<(String, Bytes)>,
        held: Bytes,
    ) -> Answer<Override> {
        // It fails only when it is closed, which nobody does.
        let turn = Arc::clone(&self.writers).acquire_owned().await.ok();
        let overrides = Arc::clone(&self.overrides);
        let prepared = tokio::task::spawn_blocking(move || {
            let _until_written = (turn, held);
            overrides.prepare(&name, config.as_deref(), &files)
        });
        prepared.await.map_err(|error| unprepared(&error))?.map_err(|refused| self.codes.of_refused(&refused))
    }

    async fn order(&self, name: String, order: Order) -> Answer<()> {
        self.reconciler.order(name, order).await.map_err(|refused| self.codes.of_refused(&refused))
    }
}

/// Why nothing came of preparing a load.
fn unprepared(error: &JoinError) -> Box<Status> {
    Box::new(match error.is_panic() {
        true => Status::internal(
            "what came with the load could not be prepared: the server panicked, which is a bug; report it with its log",
        ),
        false => Status::unavailable("the server is shutting down"),
    })
}

/// Binds the caller, not what it has set going.
async fn within(
    deadline: Option<Instant>,
    order: impl Future<Output = Answer<()>>,
    what: &str,
    name: &str,
) -> Answer<()> {
    let Some(deadline) = deadline else { return order.await };
    tokio::time::timeout_at(deadline.into(), order).await.unwrap_or_else(|_| {
        Err(Box::new(Status::deadline_exceeded(format!(
            "Deadline Exceeded: the {what} of model '{}' took longer; if it has begun it goes on, and RepositoryIndex tells what came of it",
            quote(name)
        ))))
    })
}

/// Whether a model can have this name: that of a directory which is not hidden.
pub(crate) fn is_model_name(name: &str) -> bool {
    let plain = |char: char| char != '/' && !char.is_control();
    !name.is_empty() && name.len() <= MAX_NAME && !name.starts_with('.') && name.chars().all(plain)
}

fn load_parameters(parameters: Parameters) -> Answer<Load> {
    let mut load = Load::default();
    for (name, parameter) in parameters {
        match (name.as_str(), parameter.parameter_choice) {
            ("config", Some(ParameterChoice::StringParam(json))) => load.config = Some(json),
            ("config", _) => return Err(wrong_kind(&name, "a string (string_param) of JSON")),
            ("version", choice) => load.version = version(choice)?,
            (_, Some(ParameterChoice::BytesParam(data))) if name.starts_with(FILE) => {
                load.files.push((name[FILE.len()..].to_owned(), data));
            }
            _ if name.starts_with(FILE) => {
                return Err(wrong_kind(&name, "the bytes of the file (bytes_param)"));
            }
            _ => return Err(unknown(&name, "a load", "config, file:<version>/<path> and version")),
        }
    }
    Ok(load)
}

fn unload_parameters(parameters: Parameters) -> Answer<Option<Version>> {
    let mut only = None;
    for (name, parameter) in parameters {
        match (name.as_str(), parameter.parameter_choice) {
            // No model depends on another: there are no ensembles.
            ("unload_dependents", Some(ParameterChoice::BoolParam(_))) => {}
            ("unload_dependents", _) => return Err(wrong_kind(&name, "a boolean (bool_param)")),
            ("version", choice) => only = version(choice)?,
            _ => return Err(unknown(&name, "an unload", "unload_dependents and version")),
        }
    }
    Ok(only)
}

fn version(choice: Option<ParameterChoice>) -> Answer<Option<Version>> {
    let text = match choice {
        Some(ParameterChoice::StringParam(text)) if !text.is_empty() => text,
        Some(ParameterChoice::Int64Param(number)) => number.to_string(),
        _ => return Err(wrong_kind("version", "an integer (int64_param), or the same as a string")),
    };
    from_proto::version(&text)
}

fn wrong_kind(name: &str, expected: &str) -> Box<Status> {
    invalid(format!("parameter '{}' must be {expected}", quote(name)))
}

fn unknown(name: &str, what: &str, known: &str) -> Box<Status> {
    invalid(format!("unknown parameter '{}': {what} takes {known}", quote(name)))
}

fn invalid(message: String) -> Box<Status> {
    Box::new(Status::invalid_argument(message))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_no_shutdown() {
        let panicked = tokio::spawn(async { panic!("on purpose") }).await.unwrap_err();
        assert_eq!(unprepared(&panicked).code(), Code::Internal);
        let task = tokio::spawn(std::future::pending::<()>());
        task.abort();
        assert_eq!(unprepared(&task.await.unwrap_err()).code(), Code::Unavailable);
    }
}
