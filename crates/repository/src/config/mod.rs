//! How a model is to be served: one checked value, whichever file it came from.
//!
//! - `raw`: what a file says, as it was written; this is the format of `config.yaml`.
//! - `yaml` and `pbtxt`: read a file of either format into `raw`.
//! - `check`: the one way from `raw` to [`ModelConfig`], with `check_warmup`, `check_scheduling`,
//!   `check_sequence`, `check_generate`, `shape` and `files` for its details.
//! - `warmup`: what a version is run with before it serves.
//! - `scheduling`: how requests wait, and how they are joined into batches.
//! - `stateful`: how requests hang together, and answers that are made step by step.
//! - `padding`: how tensors of different lengths become one, with `check_padding` for its rules.
//! - `ragged`: what the server makes of a batch of different shapes, with `check_ragged` for its rules.
//! - `difference`: what a change of it asks for.
//! - `error` and `hint`: what was wrong, and what was meant.

mod check;
mod check_generate;
mod check_padding;
mod check_ragged;
mod check_scheduling;
mod check_sequence;
mod check_warmup;
mod difference;
mod error;
mod files;
mod hint;
mod padding;
mod pbtxt;
mod ragged;
mod raw;
mod scheduling;
mod shape;
mod stateful;
mod warmup;
mod yaml;

use std::{
    fs, io,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{DataType, VersionPolicy};

pub use difference::Difference;
use error::Fault;
pub use error::{ConfigError, Place};
pub(crate) use files::{read as read_text, recording};
pub use hint::nearest;
pub use padding::{Filler, Padding};
pub use ragged::{BatchInput, BatchInputKind};
use raw::RawConfig;
pub use scheduling::{Batching, OnTimeout, QueuePolicy, Queueing};
pub use stateful::{Control, ControlKind, Flag, Generate, SequenceState, SequenceStrategy, Sequences};
pub use warmup::{Warmup, WarmupData, WarmupInput, WarmupSample};

/// The checked configuration of a model.
///
/// Whoever holds one may rely on what the fields say: names are unique, shapes are valid, a reshape
/// fits its shape, files that are named by the config were there and have been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelConfig {
    /// The name of the model, always that of its directory.
    pub name: String,
    /// The largest batch that the model may be given; 0 when its shapes have no batch dimension.
    pub max_batch_size: u32,
    /// The inputs that clients send; empty when the TorchScript schema is to tell them.
    pub inputs: Vec<TensorConfig>,
    /// The inputs that the server makes of a batch, behind those that clients send.
    pub batch_inputs: Vec<BatchInput>,
    /// The outputs that clients get; empty when the TorchScript schema is to tell them.
    pub outputs: Vec<TensorConfig>,
    /// Which versions are served.
    pub version_policy: VersionPolicy,
    /// Where the model may run and how many of its runs at once; empty for the default placement.
    pub instances: Vec<InstanceGroup>,
    /// How requests are joined into batches; `None` runs each on its own.
    pub batching: Option<Batching>,
    /// How requests wait.
    pub queue: Queueing,
    /// The model's share of a device beside others that compete for it: one of weight 2 gets twice the
    /// time of one of weight 1.
    pub weight: NonZeroU32,
    /// What is done first when a version takes the place of another.
    pub availability: Availability,
    /// What a version is run with before it serves.
    pub warmup: Warmup,
    /// The name of the file in each version's directory, `model.pt` unless the config says otherwise.
    pub model_file: String,
    /// Threads for the operators of one run (intra-op); `None` leaves the choice to the server.
    pub threads: Option<NonZeroU32>,
    /// Whether the module may be rewritten for inference after it has been loaded.
    pub optimize: bool,
    /// Whether the model runs in libtorch's inference mode.
    pub inference_mode: bool,
    /// Whether TorchScript's executor may optimize while it runs; the opposite of Triton's
    /// `DISABLE_OPTIMIZED_EXECUTION`.
    pub optimized_execution: bool,
    /// Whether `forward` may change the module's own attributes.
    pub stateful: bool,
    /// Requests that hang together, where they do.
    pub sequences: Option<Sequences>,
    /// Answers that are made step by step, where they are. Never together with `sequences`.
    pub generate: Option<Generate>,
    /// Shared libraries with custom operators, to be opened before the model; absolute paths.
    pub op_libraries: Vec<PathBuf>,
    /// Where the configuration came from.
    pub source: ConfigSource,
    /// Fields that were read but have no effect, one sentence each.
    pub notes: Vec<String>,
}

/// Where a configuration came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    /// There is no file: every field has its default.
    Default,
    /// This `config.yaml`.
    Yaml(PathBuf),
    /// Triton's format.
    Pbtxt {
        /// This `config.pbtxt`.
        path: PathBuf,
        /// The file as a serialized `inference.ModelConfig` with its `name` filled in, so that the
        /// ModelConfig RPC can show fields that are not interpreted here; equal files have equal bytes.
        message: Vec<u8>,
    },
    /// Triton's format, in a request to load the model.
    Override {
        /// As that of [`ConfigSource::Pbtxt`].
        message: Vec<u8>,
    },
}

impl ConfigSource {
    /// The configuration as a serialized `inference.ModelConfig` with its `name` filled in, where it
    /// was written in Triton's format.
    pub fn message(&self) -> Option<&[u8]> {
        match self {
            Self::Pbtxt { message, .. } | Self::Override { message } => Some(message),
            Self::Default | Self::Yaml(_) => None,
        }
    }
}

/// What is done first when a version takes the place of another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// The new version is loaded before the old one is unloaded: there is always one that serves, and
    /// for a while the weights of both are held.
    #[default]
    Keep,
    /// The old version is unloaded before the new one is loaded, for devices that hold one copy of the
    /// weights; nothing serves in between.
    Replace,
}

/// One input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorConfig {
    /// The name that clients use.
    pub name: String,
    /// The type of the elements.
    pub data_type: DataType,
    /// The shape that clients see, without the batch dimension; -1 is any size, all others are >= 1.
    pub dims: Vec<i64>,
    /// The shape that the model sees instead of `dims`, with as many elements; empty for a scalar.
    pub reshape: Option<Vec<i64>>,
    /// Whether a request may leave this input out; never set on an output.
    pub optional: bool,
    /// Names for the classes of this output; never set on an input.
    pub labels: Option<Labels>,
    /// How it takes part when requests of different lengths run in one batch.
    pub padding: Option<Padding>,
}

/// Names for the classes of an output, by index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// The file that they were read from, relative to the model's directory.
    pub file: String,
    /// Line `n` names class `n`, both counted from 0.
    pub lines: Arc<[String]>,
}

/// Devices on which a model may run, and how many of its runs at once on each of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceGroup {
    /// The kind of device.
    pub kind: InstanceKind,
    /// How many runs at once, on each device of the group.
    pub count: NonZeroU32,
    /// The GPUs by index; empty means every GPU.
    pub gpus: Vec<u32>,
}

/// The kind of device of an [`InstanceGroup`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InstanceKind {
    /// The GPUs where there are any, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// GPUs only.
    Gpu,
}

/// The JSON Schema of `config.yaml`, for editors and for the documentation.
pub fn config_schema() -> serde_json::Value {
    schemars::schema_for!(RawConfig).into()
}

impl ModelConfig {
    /// Reads the configuration that came with a request to load the model `name`, whose directory is
    /// `dir`, instead of the one on disk: Triton's `ModelConfig` in protobuf's JSON. It is checked as
    /// `config.pbtxt` is, and must not name libraries with operators.
    ///
    /// # Errors
    ///
    /// One sentence about the first thing that is wrong.
    pub fn from_json(json: &str, dir: &Path, name: &str) -> Result<Self, ConfigError> {
        if json.len() as u64 > files::MAX_CONFIG_BYTES {
            let message = format!("it is larger than {} bytes", files::MAX_CONFIG_BYTES);
            return Err(ConfigError::Override { place: Place::default(), message });
        }
        let (config, message) = pbtxt::load_json(json, dir, name)
            .map_err(|fault| ConfigError::Override { place: fault.place, message: fault.message })?;
        Ok(Self { source: ConfigSource::Override { message }, ..config })
    }
}

/// The names in a model's directory that [`load`] looks at.
pub(crate) const NAMES: [&str; 3] = ["config.yaml", "config.yml", "config.pbtxt"];

/// Reads the configuration of the model whose directory is `dir`; no file at all means the defaults.
pub(crate) fn load(dir: &Path, name: &str) -> Result<ModelConfig, ConfigError> {
    let [yaml, misnamed, pbtxt] = NAMES.map(|name| dir.join(name));
    if present(&misnamed) {
        return Err(ConfigError::Misnamed { file: misnamed });
    }
    match (present(&yaml), present(&pbtxt)) {
        (true, true) => Err(ConfigError::TwoFormats { dir: dir.to_owned() }),
        (true, false) => {
            let config = read(&yaml, |text| from_yaml(text, dir, name))?;
            Ok(ModelConfig { source: ConfigSource::Yaml(yaml), ..config })
        }
        (false, true) => {
            let (config, message) = read(&pbtxt, |text| pbtxt::load(text, dir, name))?;
            Ok(ModelConfig { source: ConfigSource::Pbtxt { path: pbtxt, message }, ..config })
        }
        (false, false) => {
            check::check(RawConfig::default(), dir, name, &check::YAML).map_err(|fault| fault.in_file(dir))
        }
    }
}

/// A link that leads nowhere is present too: it is an error to be shown, not a model without a config.
fn present(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(_) => true,
        Err(err) => !matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    }
}

fn read<T>(file: &Path, parse: impl FnOnce(&str) -> Result<T, Fault>) -> Result<T, ConfigError> {
    let text = files::read_config(file)
        .map_err(|reason| ConfigError::Unreadable { file: file.to_owned(), reason })?;
    parse(&text).map_err(|fault| fault.in_file(file))
}

fn from_yaml(text: &str, dir: &Path, name: &str) -> Result<ModelConfig, Fault> {
    check::check(yaml::parse(text)?, dir, name, &check::YAML).map_err(|fault| yaml::placed(fault, text))
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
