//! libtorch as a backend: files opened, modules on devices, runners for workers.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use sconce_engine::{
    ModelConfig, archive,
    backend::{Backend, Device, DeviceMemory, HostBuffer, LoadError, Module, Opened, Runner, WorkerContext},
    schema::Schema,
};
use tracing::{debug, warn};

use crate::{ffi, message::first_line, run::TorchRunner, schema};

/// CUDA's half of libtorch: found beside the CPU's, or by the loader's own rules.
const CUDA_LIBRARY: &str = "libtorch_cuda.so";

/// libtorch.
#[derive(Debug)]
pub struct Torch {
    gpus: u32,
    why_no_gpu: String,
    /// Operator libraries that models asked for and that are open.
    libraries: Mutex<HashSet<PathBuf>>,
}

/// What is known of this libtorch, for `sconce version`.
#[derive(Clone, Debug)]
pub struct Info {
    /// Its version.
    pub version: String,
    /// The instruction set that it uses.
    pub cpu_capability: String,
    /// How many GPUs it found.
    pub gpus: u32,
    /// Why there are none.
    pub why_no_gpu: String,
}

impl Torch {
    /// Initialises libtorch and looks for GPUs.
    pub fn new() -> Self {
        ffi::init();
        let (gpus, why_no_gpu) = ffi::cuda_devices(CUDA_LIBRARY);
        Self { gpus, why_no_gpu: first_line(&why_no_gpu), libraries: Mutex::default() }
    }

    /// What is known of it.
    pub fn info(&self) -> Info {
        Info {
            version: ffi::version(),
            cpu_capability: ffi::cpu_capability(),
            gpus: self.gpus,
            why_no_gpu: self.why_no_gpu.clone(),
        }
    }

    pub(crate) fn open_file(&self, file: PathBuf, config: &ModelConfig) -> Result<OpenFile, LoadError> {
        self.open_libraries(config)?;
        let device = if self.gpus > 0 { Device::Gpu(0) } else { Device::Cpu };
        let settings = Settings::from(config);
        let module = load(&file, device, settings)?;
        let schema = schema_of(&file, &module)?;
        let step = if settings.generates {
            let step = module.step().map_err(|text| failed(&file, &text))?;
            Some(schema_of(&file, &step)?)
        } else {
            None
        };
        let first = Mutex::new(Some((device, module)));
        Ok(OpenFile { file, schema, step, settings, first })
    }

    fn open_libraries(&self, config: &ModelConfig) -> Result<(), LoadError> {
        let mut open = self.libraries.lock().unwrap_or_else(PoisonError::into_inner);
        for path in &config.op_libraries {
            if !open.contains(path) {
                ffi::open_library(path).map_err(|why| {
                    LoadError::new(format!("its operator library {} cannot be opened: {why}", path.display()))
                })?;
                open.insert(path.clone());
            }
        }
        Ok(())
    }
}

impl Default for Torch {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend for Torch {
    fn name(&self) -> String {
        format!("libtorch {}", ffi::version())
    }

    fn devices(&self) -> Vec<Device> {
        std::iter::once(Device::Cpu).chain((0..self.gpus).map(Device::Gpu)).collect()
    }

    fn enter_worker(&self, device: Device) -> Box<dyn WorkerContext> {
        if let Err(why) = ffi::enter_device(cuda_index(device)) {
            warn!(%device, "this worker shares the default stream: {}", first_line(&why));
        }
        Box::new(Context { threads: 0, pins: device != Device::Cpu })
    }

    fn enter_loader(&self) {
        ffi::set_threads(1);
    }

    fn precheck(&self, file: &Path) -> Result<(), LoadError> {
        archive::check(file).map_err(|error| unfit(&error))
    }

    fn verify(&self, file: &Path) -> Result<(), LoadError> {
        archive::verify(file).map_err(|error| unfit(&error))
    }

    fn memory(&self, device: Device) -> Option<DeviceMemory> {
        let Device::Gpu(index) = device else { return None };
        let (free, total) = ffi::device_memory(i32::try_from(index).ok()?).ok()?;
        Some(DeviceMemory { used: total.saturating_sub(free), total })
    }

    fn release_memory(&self, devices: &[Device]) {
        let gpu = devices.iter().any(|device| matches!(device, Device::Gpu(_)));
        if let Err(why) = ffi::release_memory(gpu) {
            warn!("memory that is not used any more could not be given back: {}", first_line(&why));
        }
    }

    fn open(&self, file: PathBuf, config: &ModelConfig) -> Result<Box<dyn Opened>, LoadError> {
        Ok(Box::new(self.open_file(file, config)?))
    }
}

/// Of the method that is run of it.
fn schema_of(file: &Path, module: &ffi::Module) -> Result<Schema, LoadError> {
    let schema = module.schema().map_err(|text| failed(file, &text))?;
    schema::parse(&schema).map_err(|error| {
        LoadError::new(format!("what its methods take and return is not understood: {error}"))
    })
}

fn unfit(error: &archive::ArchiveError) -> LoadError {
    LoadError { waiting: error.may_be_growing(), ..LoadError::new(error.to_string()) }
}

fn failed(file: &Path, text: &str) -> LoadError {
    debug!(file = %file.display(), "libtorch said: {text}");
    LoadError::new(format!("libtorch cannot load {}: {}", file.display(), first_line(text)))
}

fn load(file: &Path, device: Device, settings: Settings) -> Result<ffi::Module, LoadError> {
    let Settings { inference, generates, .. } = settings;
    ffi::Module::load(file, cuda_index(device), inference, generates).map_err(|text| failed(file, &text))
}

fn cuda_index(device: Device) -> i32 {
    match device {
        Device::Cpu => -1,
        Device::Gpu(index) => i32::try_from(index).unwrap_or(i32::MAX),
    }
}

struct Context {
    /// As it was set last: setting it again costs more than looking.
    threads: usize,
    /// Its device is a GPU, and memory could be page-locked until now.
    pins: bool,
}

impl WorkerContext for Context {
    fn set_threads(&mut self, threads: usize) {
        if self.threads != threads {
            self.threads = threads;
            ffi::set_threads(threads);
        }
    }

    fn host_buffer(&mut self, bytes: usize) -> Option<Box<dyn HostBuffer>> {
        if !self.pins {
            return None;
        }
        match ffi::HostBuffer::new(bytes) {
            Ok(buffer) => Some(Box::new(buffer)),
            Err(why) => {
                warn!("no memory can be page-locked, so copies to the GPU take longer: {}", first_line(&why));
                self.pins = false;
                None
            }
        }
    }
}

/// What a config says of how a model runs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Settings {
    pub(crate) inference: bool,
    pub(crate) optimized: bool,
    pub(crate) optimize: bool,
    pub(crate) stateful: bool,
    /// It is run by its `start` and `step`, not by its `forward`.
    pub(crate) generates: bool,
}

impl From<&ModelConfig> for Settings {
    fn from(config: &ModelConfig) -> Self {
        Self {
            inference: config.inference_mode,
            optimized: config.optimized_execution,
            optimize: config.optimize,
            stateful: config.stateful,
            generates: config.generate.is_some(),
        }
    }
}

pub(crate) struct OpenFile {
    file: PathBuf,
    schema: Schema,
    step: Option<Schema>,
    settings: Settings,
    /// What was loaded to learn the schema, for the first who wants it there.
    first: Mutex<Option<(Device, ffi::Module)>>,
}

impl Opened for OpenFile {
    fn schema(&self) -> &Schema {
        &self.schema
    }

    fn step_schema(&self) -> Option<&Schema> {
        self.step.as_ref()
    }

    fn load(&self, device: Device) -> Result<Arc<dyn Module>, LoadError> {
        Ok(Arc::new(self.load_module(device)?))
    }
}

impl OpenFile {
    pub(crate) fn load_module(&self, device: Device) -> Result<TorchModule, LoadError> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let module = match first {
            Some((on, module)) if on == device => module,
            Some(_) | None => load(&self.file, device, self.settings)?,
        };
        self.prepare(module)
    }

    /// Freezes the module where it can be, once for all its methods, and looks whether it may be shared.
    fn prepare(&self, module: ffi::Module) -> Result<TorchModule, LoadError> {
        let step = self.step_of(&module)?;
        let module = if self.settings.stateful {
            module
        } else {
            self.check_forks(&module, step.as_ref())?;
            self.frozen(module)?
        };
        let step = self.step_of(&module)?.map(|step| self.method("step", step, None)).transpose()?;
        let name = if self.settings.generates { "start" } else { "forward" };
        self.method(name, module, step.map(Arc::new))
    }

    fn failed(&self, text: &str) -> LoadError {
        failed(&self.file, text)
    }

    fn step_of(&self, module: &ffi::Module) -> Result<Option<ffi::Module>, LoadError> {
        let step = self.settings.generates.then(|| module.step()).transpose();
        step.map_err(|text| self.failed(&text))
    }

    /// Before it is frozen: that folds what forks change.
    fn check_forks(&self, module: &ffi::Module, step: Option<&ffi::Module>) -> Result<(), LoadError> {
        let first = if step.is_some() { "start" } else { "forward" };
        for (name, method) in [(first, Some(module)), ("step", step)] {
            let Some(method) = method else { continue };
            if let Some(what) = method.fork_writes().map_err(|text| self.failed(&text))? {
                return Err(changes_itself(name, &what));
            }
        }
        Ok(())
    }

    fn frozen(&self, module: ffi::Module) -> Result<ffi::Module, LoadError> {
        match module.freeze(self.settings.optimize) {
            Ok(frozen) => Ok(frozen),
            Err(text) if self.settings.optimize => Err(LoadError::new(format!(
                "`optimize: true` is not possible for {}: {}; leave it out",
                self.file.display(),
                first_line(&text)
            ))),
            // Freezing is an optimization; what cannot be frozen runs as it was saved.
            Err(text) => {
                debug!(file = %self.file.display(), "not frozen: {text}");
                Ok(module)
            }
        }
    }

    /// The module as it is run by this method of it.
    fn method(
        &self,
        name: &str,
        module: ffi::Module,
        step: Option<Arc<TorchModule>>,
    ) -> Result<TorchModule, LoadError> {
        let copy_inputs = if self.settings.stateful {
            true
        } else {
            let mutates = module.mutates().map_err(|text| self.failed(&text))?;
            if mutates.attributes {
                return Err(changes_itself(name, &mutates.what));
            }
            mutates.inputs
        };
        Ok(TorchModule { module: Arc::new(module), settings: self.settings, copy_inputs, step })
    }
}

fn changes_itself(method: &str, what: &str) -> LoadError {
    let advice = if method == "forward" {
        ", or set `stateful: true` in config.yaml to give each instance its own copy"
    } else {
        " as one of the `states` of `generate`"
    };
    LoadError::new(format!(
        "{method} changes the module's own attributes (`{what}`), so that answers would depend on earlier requests; \
         return the state instead{advice}"
    ))
}

pub(crate) struct TorchModule {
    module: Arc<ffi::Module>,
    settings: Settings,
    /// The method writes to what it is given, which must not be the buffer that was received, nor what is kept.
    copy_inputs: bool,
    pub(crate) step: Option<Arc<TorchModule>>,
}

impl TorchModule {
    pub(crate) fn torch_runner(&self) -> Result<TorchRunner, LoadError> {
        let module = if self.settings.stateful {
            Arc::new(self.module.copy().map_err(|text| LoadError::new(first_line(&text)))?)
        } else {
            Arc::clone(&self.module)
        };
        Ok(TorchRunner::new(module, self.settings, self.copy_inputs))
    }
}

impl Module for TorchModule {
    fn runner(&self) -> Result<Box<dyn Runner>, LoadError> {
        Ok(Box::new(self.torch_runner()?))
    }

    fn step(&self) -> Option<Arc<dyn Module>> {
        self.step.clone().map(|step| step as Arc<dyn Module>)
    }
}

#[cfg(test)]
mod tests {
    use super::{Context, Torch, WorkerContext};

    #[test]
    fn memory_is_page_locked_where_there_is_a_gpu() {
        let gpus = Torch::new().info().gpus;
        let mut context = Context { threads: 0, pins: true };
        match context.host_buffer(12) {
            Some(mut buffer) => {
                assert!(gpus > 0);
                (*buffer).as_mut().fill(7);
                assert_eq!((*buffer).as_ref(), [7; 12]);
            }
            None => {
                assert_eq!(gpus, 0, "a GPU is there, and no memory could be page-locked");
                assert!(!context.pins, "it is not tried again");
                eprintln!("skipped: page-locked memory, because there is no GPU");
            }
        }
        assert!(Context { threads: 0, pins: false }.host_buffer(12).is_none(), "the CPU needs none");
    }
}
