//! What is being served: values, backends, the scheduler, devices, the table of live versions, and
//! the loop that makes the table follow the directory.
//!
//! In reading order:
//! - [`value`]: tensors, and the calls and outputs that are made of them
//! - [`schema`]: what a model's `forward` takes and returns, as its backend tells it
//! - [`backend`]: the boundary with libtorch or any other runtime
//! - [`binding`]: names on the wire to arguments of `forward`, and its outputs back to names
//! - [`check`]: one request against one binding
//! - `batch`: several calls as one; [`padding`]: calls of different lengths; [`ragged`]: calls
//!   one behind the other
//! - [`reply`]: where answers go; `ordering`: in which order they leave
//! - [`examples`]: which shapes a version has served
//! - [`scheduler`]: which requests run next and where; a pure state machine
//! - `job`: one request on its way to a worker
//! - [`pool`]: the threads that drive the scheduler
//! - [`executable`]: a version's weights and runners, as the workers see them
//! - [`sequence`]: requests that hang together, one after the other
//! - [`generate`]: one request, many answers
//! - [`model`]: one live version, `infer`
//! - [`table`]: name and version to a live version; one writer, lock-free readers
//! - [`text`]: what stands in messages: escaped, cut, bounded
//! - [`warm`]: the first runs of a version, before its first request
//! - [`stats`]: what is counted of each version
//! - [`observe`]: when the stages of a request were, told to whoever traces
//! - [`reaper`]: frees what is not served any more
//! - [`reconcile`]: what is on disk becomes what is served
//! - [`fake`]: a scripted backend for tests and for builds without libtorch
//!
//! This crate knows nothing of gRPC, of protobuf or of libtorch.

pub mod backend;
mod background;
mod batch;
pub mod binding;
pub mod check;
mod classification;
mod error;
pub mod examples;
pub mod executable;
pub mod fake;
#[cfg(test)]
mod fixtures;
pub mod generate;
mod job;
pub mod model;
pub mod observe;
mod ordering;
mod outputs;
pub mod padding;
pub mod pool;
pub mod ragged;
pub mod reaper;
pub mod reconcile;
pub mod reply;
pub mod scheduler;
pub mod schema;
pub mod sequence;
pub mod stats;
pub mod table;
pub mod text;
pub mod value;
pub mod warm;
mod warm_costs;
mod warm_inputs;

pub use error::{Error, Result};
pub use sconce_repository::{DataType, ModelConfig, Version, archive};
