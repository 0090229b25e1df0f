//! libtorch behind the engine's backend traits.
//!
//! - [`backend`](mod@crate): [`Torch`], and its modules
//! - `run`: one run of a module, and what stays on its device
//! - `ffi`: the C++ shim around libtorch; the only `unsafe` of the project
//! - `schema`: the schema of `forward` as the shim tells it
//! - `message`: one line out of what libtorch says when it throws
//! - `define`: TorchScript source to a model file, for tests and samples
//!
//! This crate knows nothing of tokio, of gRPC or of where a repository keeps its files.

mod backend;
#[cfg(feature = "define")]
mod define;
mod ffi;
mod message;
mod run;
mod schema;

pub use backend::{Info, Torch};
#[cfg(feature = "define")]
pub use define::{define, define_frozen};
pub use ffi::{exit_now, open_library};

#[cfg(test)]
#[cfg(feature = "define")]
mod kept_tests;
