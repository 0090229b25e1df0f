//! What is being served: values, backends, the scheduler, devices, the table of live versions, and
//! the loop that makes the table follow the directory.
//!
//! In reading order:
//! - [`value`]: tensors, and the calls and outputs that are made of them
//! - [`schema`]: what a model's `forward` takes and returns, as its backend tells it
//! - [`backend`]: the boundary with libtorch or any other runtime
//! - [`binding`]: names on the wire to arguments of `forward`, and its outputs back to names
//! - [`check`]: one request against one binding
//! - [`reply`]: where answers go
//! - [`examples`]: which shapes a version has served
//! - [`scheduler`]: which request runs next and where; a pure state machine
//! - [`pool`]: the threads that drive it
//! - [`executable`]: a version's weights and runners, as the workers see them
//! - [`model`]: one live version, `infer`
//! - [`table`]: name and version to a live version; one writer, lock-free readers
//! - [`text`]: what stands in messages: escaped, cut, bounded
//! - [`warm`]: the first runs of a version, before its first request
//! - [`reaper`]: frees what is not served any more
//! - [`reconcile`]: what is on disk becomes what is served
//! - [`fake`]: a scripted backend for tests and for builds without libtorch
//!
//! This crate knows nothing of gRPC, of protobuf or of libtorch.

pub mod backend;
mod background;
pub mod binding;
pub mod check;
mod classification;
mod error;
pub mod examples;
pub mod executable;
pub mod fake;
#[cfg(test)]
mod fixtures;
pub mod model;
mod outputs;
pub mod pool;
pub mod reaper;
pub mod reconcile;
pub mod reply;
pub mod scheduler;
pub mod schema;
pub mod table;
pub mod text;
pub mod value;
pub mod warm;
mod warm_inputs;

pub use error::{Error, Result};
pub use sconce_repository::{DataType, ModelConfig, Version, archive};
