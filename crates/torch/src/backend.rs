//! libtorch as a backend: files opened, modules on devices, runners for workers.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use sconce_engine::{
    DataType, ModelConfig, archive,
    backend::{Backend, Device, HostBuffer, LoadError, Module, Opened, RunError, Runner, WorkerContext},
    reply::Done,
    schema::Schema,
    value::{Arg, Call, Output, Tensor, Value, push_string, strings},
};
use tracing::{debug, warn};

use crate::{ffi, message::first_line, schema};

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

    fn release_memory(&self, devices: &[Device]) {
        let gpu = devices.iter().any(|device| matches!(device, Device::Gpu(_)));
        if let Err(why) = ffi::release_memory(gpu) {
            warn!("memory that is not used any more could not be given back: {}", first_line(&why));
        }
    }

    fn open(&self, file: PathBuf, config: &ModelConfig) -> Result<Box<dyn Opened>, LoadError> {
        self.open_libraries(config)?;
        let device = if self.gpus > 0 { Device::Gpu(0) } else { Device::Cpu };
        let settings = Settings::from(config);
        let module = load(&file, device, settings)?;
        let schema = module.schema().map_err(|text| failed(&file, &text))?;
        let schema = schema::parse(&schema).map_err(|error| {
            LoadError::new(format!("the schema of its forward is not understood: {error}"))
        })?;
        let first = Mutex::new(Some((device, module)));
        Ok(Box::new(OpenFile { file, schema, settings, first }))
    }
}

fn unfit(error: &archive::ArchiveError) -> LoadError {
    LoadError { waiting: error.may_be_growing(), ..LoadError::new(error.to_string()) }
}

fn failed(file: &Path, text: &str) -> LoadError {
    debug!(file = %file.display(), "libtorch said: {text}");
    LoadError::new(format!("libtorch cannot load {}: {}", file.display(), first_line(text)))
}

fn load(file: &Path, device: Device, settings: Settings) -> Result<ffi::Module, LoadError> {
    ffi::Module::load(file, cuda_index(device), settings.inference).map_err(|text| failed(file, &text))
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
#[derive(Clone, Copy)]
struct Settings {
    inference: bool,
    optimized: bool,
    optimize: bool,
    stateful: bool,
}

impl From<&ModelConfig> for Settings {
    fn from(config: &ModelConfig) -> Self {
        Self {
            inference: config.inference_mode,
            optimized: config.optimized_execution,
            optimize: config.optimize,
            stateful: config.stateful,
        }
    }
}

struct OpenFile {
    file: PathBuf,
    schema: Schema,
    settings: Settings,
    /// What was loaded to learn the schema, for the first who wants it there.
    first: Mutex<Option<(Device, ffi::Module)>>,
}

impl Opened for OpenFile {
    fn schema(&self) -> &Schema {
        &self.schema
    }

    fn load(&self, device: Device) -> Result<Arc<dyn Module>, LoadError> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let module = match first {
            Some((on, module)) if on == device => module,
            Some(_) | None => load(&self.file, device, self.settings)?,
        };
        let (module, copy_inputs) = self.prepare(module)?;
        Ok(Arc::new(TorchModule { module: Arc::new(module), settings: self.settings, copy_inputs }))
    }
}

impl OpenFile {
    /// Freezes the module where it can be, and looks whether it may be shared.
    fn prepare(&self, module: ffi::Module) -> Result<(ffi::Module, bool), LoadError> {
        if self.settings.stateful {
            return Ok((module, true));
        }
        if let Some(what) = module.fork_writes().map_err(|text| failed(&self.file, &text))? {
            return Err(changes_itself(&what));
        }
        let module = match module.freeze(self.settings.optimize) {
            Ok(frozen) => frozen,
            Err(text) if self.settings.optimize => {
                return Err(LoadError::new(format!(
                    "`optimize: true` is not possible for {}: {}; leave it out",
                    self.file.display(),
                    first_line(&text)
                )));
            }
            // Freezing is an optimization; what cannot be frozen runs as it was saved.
            Err(text) => {
                debug!(file = %self.file.display(), "not frozen: {text}");
                module
            }
        };
        let mutates = module.mutates().map_err(|text| failed(&self.file, &text))?;
        if mutates.attributes {
            return Err(changes_itself(&mutates.what));
        }
        Ok((module, mutates.inputs))
    }
}

fn changes_itself(what: &str) -> LoadError {
    LoadError::new(format!(
        "forward changes the module's own attributes (`{what}`), so that answers would depend on earlier requests; \
         return the state instead, or set `stateful: true` in config.yaml to give each instance its own copy"
    ))
}

struct TorchModule {
    module: Arc<ffi::Module>,
    settings: Settings,
    /// `forward` writes to what it is given, which must not be the buffer that was received.
    copy_inputs: bool,
}

impl Module for TorchModule {
    fn runner(&self) -> Result<Box<dyn Runner>, LoadError> {
        let module = if self.settings.stateful {
            Arc::new(self.module.copy().map_err(|text| LoadError::new(first_line(&text)))?)
        } else {
            Arc::clone(&self.module)
        };
        Ok(Box::new(TorchRunner { module, settings: self.settings, copy_inputs: self.copy_inputs }))
    }
}

struct TorchRunner {
    module: Arc<ffi::Module>,
    settings: Settings,
    copy_inputs: bool,
}

impl Runner for TorchRunner {
    fn run(&mut self, call: Call, done: Done) {
        done.complete(self.run_one(call));
    }
}

impl TorchRunner {
    fn run_one(&self, call: Call) -> Result<Output, RunError> {
        let mut pushed = ffi::Call::new(&self.module);
        for argument in call.arguments {
            self.push(&mut pushed, argument).map_err(|text| RunError::Model(first_line(&text)))?;
        }
        let value =
            self.module.run(pushed, self.settings.inference, self.settings.optimized).map_err(|text| {
                debug!("forward threw: {text}");
                if is_fatal(&text) {
                    RunError::Device(first_line(&text))
                } else {
                    RunError::Model(first_line(&text))
                }
            })?;
        output(&value, self.settings.stateful)
    }

    fn push(&self, call: &mut ffi::Call<'_>, argument: Arg) -> Result<(), String> {
        match argument {
            Arg::Default => call.default()?,
            Arg::Int(value) => call.int(value),
            Arg::Float(value) => call.float(value),
            Arg::Bool(value) => call.bool(value),
            Arg::Str(value) => call.str(&value)?,
            Arg::Strings(data) => call.strings(&strings(&data).collect::<Vec<_>>())?,
            Arg::Tensor(tensor) => self.push_tensor(call, tensor)?,
            Arg::Tensors(tensors) => {
                let count = tensors.len();
                for tensor in tensors {
                    self.push_tensor(call, tensor)?;
                }
                call.fold_list(count)?;
            }
            Arg::Dict(entries) => {
                let (keys, tensors): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
                for tensor in tensors {
                    self.push_tensor(call, tensor)?;
                }
                call.fold_dict(&keys.iter().map(|key| key.as_bytes()).collect::<Vec<_>>())?;
            }
        }
        Ok(())
    }

    fn push_tensor(&self, call: &mut ffi::Call<'_>, tensor: Tensor) -> Result<(), String> {
        let dtype = scalar_type(tensor.data_type).ok_or("a tensor of BYTES")?;
        let Value::Host(data) = tensor.value else { return Err("a tensor of another backend".to_owned()) };
        let size = tensor.data_type.size().unwrap_or(1);
        let misaligned = data.as_ptr().align_offset(size) != 0;
        call.tensor(data, dtype, &tensor.shape, misaligned || self.copy_inputs)
    }
}

/// CUDA's errors after which no call on the device succeeds until the process ends, by their texts: those that
/// "leave the process in an inconsistent state" in the documentation of cudaError_t. Out of memory is none.
const FATAL: [&str; 12] = [
    "an illegal memory access was encountered",
    "device-side assert triggered",
    "unspecified launch failure",
    "uncorrectable ECC error encountered",
    "hardware stack error",
    "an illegal instruction was encountered",
    "misaligned address",
    "operation not supported on global/shared address space",
    "invalid program counter",
    "the launch timed out and was terminated",
    "uncorrectable NVLink error",
    "CUDA driver has been shut down",
];

/// Whether the device that said this is lost.
fn is_fatal(text: &str) -> bool {
    text.contains("CUDA") && FATAL.iter().any(|fatal| text.contains(fatal))
}

/// `copy` where the module may write to what it returned.
fn output(value: &ffi::Value, copy: bool) -> Result<Output, RunError> {
    let failed = |text: String| RunError::Output(first_line(&text));
    let (kind, size) = value.kind().map_err(failed)?;
    let elements = (0..size).map(|index| {
        let (name, element) = value.at(index).map_err(failed)?;
        Ok((name, output(&element, copy)?))
    });
    Ok(match kind {
        ffi::Kind::Tensor => Output::Tensor(host_tensor(value, copy)?),
        ffi::Kind::Strings => {
            let mut data = Vec::new();
            for index in 0..size {
                push_string(&mut data, value.string(index).map_err(failed)?);
            }
            let count = i64::try_from(size).unwrap_or(i64::MAX);
            Output::Strings(Tensor::host(DataType::Bytes, vec![count], Bytes::from(data)))
        }
        ffi::Kind::List => {
            let elements: Result<Vec<(Option<String>, Output)>, RunError> = elements.collect();
            Output::List(elements?.into_iter().map(|(_, element)| element).collect())
        }
        ffi::Kind::Tuple => Output::Tuple(elements.collect::<Result<_, _>>()?),
        ffi::Kind::Dict => {
            let elements: Result<Vec<(Option<String>, Output)>, RunError> = elements.collect();
            Output::Dict(
                elements?.into_iter().map(|(key, element)| (key.unwrap_or_default(), element)).collect(),
            )
        }
        ffi::Kind::Other => Output::Other(value.type_name()),
    })
}

fn host_tensor(value: &ffi::Value, copy: bool) -> Result<Tensor, RunError> {
    let tensor = value.tensor(copy).map_err(|text| RunError::Output(first_line(&text)))?;
    let data_type = data_type(tensor.dtype).ok_or_else(|| {
        RunError::Output(format!(
            "a tensor of libtorch's scalar type {}, which the protocol cannot carry; convert it in the model",
            tensor.dtype
        ))
    })?;
    Ok(Tensor::host(data_type, tensor.shape, tensor.data))
}

/// `c10::ScalarType` by number, and the protocol's dtype.
const TYPES: [(i8, DataType); 13] = [
    (0, DataType::Uint8),
    (1, DataType::Int8),
    (2, DataType::Int16),
    (3, DataType::Int32),
    (4, DataType::Int64),
    (5, DataType::Fp16),
    (6, DataType::Fp32),
    (7, DataType::Fp64),
    (11, DataType::Bool),
    (15, DataType::Bf16),
    (27, DataType::Uint16),
    (28, DataType::Uint32),
    (29, DataType::Uint64),
];

fn scalar_type(data_type: DataType) -> Option<i8> {
    TYPES.iter().find(|(_, known)| *known == data_type).map(|(number, _)| *number)
}

fn data_type(scalar_type: i8) -> Option<DataType> {
    TYPES.iter().find(|(number, _)| *number == scalar_type).map(|(_, known)| *known)
}

#[cfg(test)]
mod tests {
    use super::{Context, Torch, WorkerContext, is_fatal};

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

    #[test]
    fn only_what_loses_the_device_is_fatal() {
        let of_cuda =
            |what: &str| format!("CUDA error: {what}\nCUDA kernel errors might be asynchronously reported");
        assert!(is_fatal(&of_cuda("device-side assert triggered")));
        assert!(is_fatal(&of_cuda("an illegal memory access was encountered")));
        assert!(!is_fatal(&of_cuda("out of memory")));
        assert!(!is_fatal("CUDA out of memory. Tried to allocate 2.00 GiB"));
        assert!(!is_fatal("misaligned address of the house"), "a model's own words");
    }
}
