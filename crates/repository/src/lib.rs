//! What is on disk: which models, which versions, how each is configured, and what is wrong with them.
//!
//! A repository is a directory of models, and there may be several of them:
//!
//! ```text
//! model_repository/            a root
//!   digits/                    a model; the directory's name is the model's name
//!     config.yaml              optional; or Triton's config.pbtxt, read as it is
//!     labels.txt               named by the config
//!     1/model.pt               a version: a directory named by a positive number
//!     2/model.pt
//! ```
//!
//! The parts, in reading order:
//!
//! - [`DataType`] (`dtype`): the element types of tensors, by their names on the wire.
//! - [`Version`], [`VersionPolicy`] (`version`): which directories are versions, and which are served.
//! - [`ModelConfig`] (`config`): both file formats become one checked value; nothing is checked again
//!   after that.
//! - [`archive`]: is a file a complete TorchScript archive?
//! - [`Stamp`] (`stamp`) and [`Digest`] (`digest`): has a file changed, and is its content another?
//! - [`VersionOnDisk`], [`verify()`] (`verify`): is a version complete, and which bytes is it? With a
//!   `manifest.yaml` (`manifest`), exactly those that it lists.
//! - [`Scanner`] (`scan`): looks at everything and returns a [`Snapshot`]; a bad model never hides a
//!   good one.
//! - [`Watcher`] (`watch`): says when to look again.
//!
//! This crate knows nothing of what is done with its answers: it must not know an
//! asynchronous runtime (tokio), the wire (tonic, the generated protocol types) or libtorch.

pub mod archive;
mod config;
mod digest;
mod dtype;
mod escape;
mod manifest;
mod regular;
mod scan;
mod stamp;
mod verify;
mod version;
mod watch;

pub use config::{
    Availability, BatchInput, BatchInputKind, Batching, ConfigError, ConfigSource, Control, ControlKind,
    Difference, Filler, Flag, Generate, InstanceGroup, InstanceKind, Labels, ModelConfig, OnTimeout, Padding,
    Place, QueuePolicy, Queueing, SequenceState, SequenceStrategy, Sequences, TensorConfig, Warmup,
    WarmupData, WarmupInput, WarmupSample, config_schema, nearest,
};
pub use digest::{Digest, Digests};
pub use dtype::DataType;
pub use manifest::{files_to_list, write_manifest};
pub use scan::{ModelOnDisk, Problem, Scanner, Snapshot, scan};
pub use stamp::Stamp;
pub use verify::{FileOnDisk, Unverified, VersionOnDisk, verify};
pub use version::{Version, VersionPolicy};
pub use watch::{Interest, Watch, Watcher, needs_polling};
