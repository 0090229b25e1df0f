//! The boundary with libtorch or any other runtime.
//!
//! A backend opens a version's file and tells its schema; a module is its weights on one device; a
//! runner is what a worker runs. The engine never asks how.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use sconce_repository::ModelConfig;

use crate::{reply::Done, schema::Schema, value::Call};

/// A device: a processor with memory of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Device {
    /// The processor cores that this process may use.
    Cpu,
    /// A GPU, by its index.
    Gpu(u32),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu(index) => write!(f, "gpu:{index}"),
        }
    }
}

/// Memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// In use, by any process.
    pub used: u64,
    /// All that there is.
    pub total: u64,
}

/// Why a version cannot be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct LoadError {
    /// One sentence.
    pub reason: String,
    /// A copy that is still going on explains it, so that waiting may help.
    pub waiting: bool,
    /// It has left a run behind that does not end: another attempt would leave another.
    pub hangs: bool,
}

impl LoadError {
    /// For good, as far as can be known.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), waiting: false, hangs: false }
    }

    /// Perhaps only until a copy is complete.
    pub fn waiting(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), waiting: true, hangs: false }
    }
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The model threw; its own message, one line.
    #[error("{0}")]
    Model(String),
    /// It was given or returned something that it cannot be asked for; one line.
    #[error("{0}")]
    Output(String),
    /// The device can run nothing any more, whatever it is given; one line.
    #[error("{0}")]
    Device(String),
}

/// A runtime that runs models.
pub trait Backend: Send + Sync {
    /// Its name and version, for people.
    fn name(&self) -> String;
    /// The devices that it found, the CPU first.
    fn devices(&self) -> Vec<Device>;
    /// Called once on each new worker thread, before anything runs there.
    fn enter_worker(&self, device: Device) -> Box<dyn WorkerContext>;
    /// Called once on each thread that loads, before anything is opened there: what the runtime does on
    /// it stays on it, so that loading takes no more than one core from traffic.
    fn enter_loader(&self);
    /// Whether the file can be a complete one: only what can be told without reading all of it.
    ///
    /// # Errors
    /// As [`Backend::open`].
    fn precheck(&self, file: &Path) -> Result<(), LoadError>;
    /// Whether every byte of the file is the one that was written: reads all of it.
    ///
    /// # Errors
    /// As [`Backend::open`].
    fn verify(&self, file: &Path) -> Result<(), LoadError>;
    /// Gives memory back to the system that the runtime keeps for later, after something has been freed
    /// on these devices.
    fn release_memory(&self, devices: &[Device]);
    /// How much memory the device has and how much of it is in use; `None` where it has none of its own.
    fn memory(&self, _device: Device) -> Option<DeviceMemory> {
        None
    }
    /// Reads the version's file and tells what it takes and returns.
    ///
    /// # Errors
    /// One sentence: what is wrong with the file, what was expected, what to do.
    fn open(&self, file: PathBuf, config: &ModelConfig) -> Result<Box<dyn Opened>, LoadError>;
}

/// What a backend keeps per worker thread (a stream, a thread count). Dropped with the thread.
pub trait WorkerContext {
    /// Sets how many threads the next run may use.
    fn set_threads(&mut self, threads: usize);

    /// Host memory of so many bytes (at least one) for a tensor of the next run, where the device reads some
    /// memory sooner than other: page-locked for a GPU. `None` where any does, or where there is none left.
    fn host_buffer(&mut self, bytes: usize) -> Option<Box<dyn HostBuffer>>;
}

/// Host memory that a backend lends for a tensor. It is written once, and dropped when its tensor is.
pub trait HostBuffer: AsRef<[u8]> + AsMut<[u8]> + Send {}

/// A version's file, open.
pub trait Opened: Send {
    /// What `forward` takes and returns; `start`, where the configuration says that the model generates.
    fn schema(&self) -> &Schema;
    /// What `step` takes and returns; `None` where the model does not generate.
    fn step_schema(&self) -> Option<&Schema> {
        None
    }
    /// Its weights on `device`. One copy serves all workers of the device.
    ///
    /// # Errors
    /// One sentence.
    fn load(&self, device: Device) -> Result<Arc<dyn Module>, LoadError>;
}

/// A version's weights on one device.
pub trait Module: Send + Sync {
    /// What one worker at a time runs. Cheap, unless the model keeps state of its own.
    ///
    /// # Errors
    /// One sentence.
    fn runner(&self) -> Result<Box<dyn Runner>, LoadError>;
    /// The same weights, with runners that run `step`; `None` where the model does not generate.
    fn step(&self) -> Option<Arc<dyn Module>> {
        None
    }
}

/// Makes runs, one at a time.
pub trait Runner: Send {
    /// Runs `call`, which may be several requests' joined, and completes `done`, here or later on a thread
    /// of its own, but not before the device has finished with the outputs, those that stay on it too: who
    /// uses them next may have another stream.
    fn run(&mut self, call: Call, done: Done);
}
