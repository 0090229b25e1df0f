//! One run: arguments in, what it returned out, and what of it stays on its device.

use std::{any::Any, sync::Arc};

use bytes::Bytes;
use sconce_engine::{
    DataType,
    backend::{RunError, Runner},
    reply::Done,
    value::{Arg, Call, DeviceTensor, Kept, Output, Tensor, Value, push_string, strings},
};
use tracing::debug;

use crate::{backend::Settings, ffi, message::first_line};

/// Runs a method of a module.
pub(crate) struct TorchRunner {
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
    pub(crate) fn new(module: Arc<ffi::Module>, settings: Settings, copy_inputs: bool) -> Self {
        Self { module, settings, copy_inputs }
    }

    pub(crate) fn run_one(&self, call: Call) -> Result<Output, RunError> {
        // Others use what is kept, and its memory, on other streams; a tensor that is fetched is waited for.
        let waits = call.keep.is_some() || call.arguments.iter().any(is_kept);
        let mut pushed = ffi::Call::new(&self.module);
        for argument in call.arguments {
            self.push(&mut pushed, argument).map_err(|text| failure(&text, RunError::Model))?;
        }
        let value =
            self.module.run(pushed, self.settings.inference, self.settings.optimized).map_err(|text| {
                debug!("a run threw: {text}");
                failure(&text, RunError::Model)
            })?;
        let output = match &call.keep {
            Some(keep) => self.keeping(&value, keep),
            None => output(&value, self.settings.stateful),
        };
        if waits {
            self.module.wait().map_err(|text| failure(&text, RunError::Model))?;
        }
        output
    }

    fn push(&self, call: &mut ffi::Call<'_>, argument: Arg) -> Result<(), String> {
        match argument {
            Arg::Default => call.default()?,
            Arg::Int(value) => call.int(value),
            Arg::Float(value) => call.float(value),
            Arg::Bool(value) => call.bool(value),
            Arg::Str(value) => call.str(&value)?,
            Arg::Strings(data) => call.strings(&strings(&data).collect::<Vec<_>>())?,
            Arg::Tensor(tensor) => self.push_tensor(call, tensor, self.copy_inputs)?,
            Arg::Tensors(tensors) => {
                let count = tensors.len();
                for tensor in tensors {
                    self.push_tensor(call, tensor, self.copy_inputs)?;
                }
                call.fold_list(count)?;
            }
            Arg::Dict(entries) => {
                let (keys, tensors): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
                for tensor in tensors {
                    self.push_tensor(call, tensor, self.copy_inputs)?;
                }
                call.fold_dict(&keys.iter().map(|key| key.as_bytes()).collect::<Vec<_>>())?;
            }
        }
        Ok(())
    }

    fn push_tensor(&self, call: &mut ffi::Call<'_>, tensor: Tensor, copy: bool) -> Result<(), String> {
        let dtype = scalar_type(tensor.data_type).ok_or("a tensor of BYTES")?;
        match tensor.value {
            Value::Host(data) => {
                let size = tensor.data_type.size().unwrap_or(1);
                let misaligned = data.as_ptr().align_offset(size) != 0;
                call.tensor(data, dtype, &tensor.shape, misaligned || copy)
            }
            Value::Device(stays) => {
                let Some(Stays(kept)) = stays.as_any().downcast_ref() else {
                    return Err("a tensor of another backend".to_owned());
                };
                if (kept.dtype, &kept.shape) != (dtype, &tensor.shape) {
                    return Err(format!(
                        "{kept:?} that is said to be {} {:?}",
                        tensor.data_type, tensor.shape
                    ));
                }
                call.kept(kept, copy)
            }
            Value::Joined(parts) => {
                // libtorch would find a type for them all.
                if let Some(part) = parts.iter().find(|part| part.data_type != tensor.data_type) {
                    return Err(format!(
                        "a part that is {} of a tensor of {}",
                        part.data_type, tensor.data_type
                    ));
                }
                let count = parts.len();
                for part in parts {
                    self.push_tensor(call, part, copy && count == 1)?;
                }
                if count == 1 { Ok(()) } else { call.fold_rows(count) }
            }
        }
    }

    /// What it returned, of which some stays on its device.
    fn keeping(&self, value: &ffi::Value, keep: &[Kept]) -> Result<Output, RunError> {
        let mut left: Vec<&Kept> = keep.iter().collect();
        let mut part = |name: Option<&str>, place: Option<usize>, part: &ffi::Value| {
            let Some(kept) = left.iter().find(|kept| kept.is(name, place)).copied() else {
                return output(part, self.settings.stateful);
            };
            left.retain(|kept| !kept.is(name, place));
            self.stays(part, kept)
        };
        let (kind, _) = value.kind().map_err(|text| failure(&text, RunError::Output))?;
        let output = match kind {
            ffi::Kind::Tensor | ffi::Kind::Strings | ffi::Kind::Other => part(None, Some(0), value)?,
            ffi::Kind::List | ffi::Kind::Tuple | ffi::Kind::Dict => collection(value, &mut part)?,
        };
        left.first().map_or(Ok(output), |kept| Err(RunError::Output(kept.absent())))
    }

    fn stays(&self, value: &ffi::Value, kept: &Kept) -> Result<Output, RunError> {
        let failed = |text: String| failure(&text, RunError::Output);
        let (kind, _) = value.kind().map_err(failed)?;
        if !matches!(kind, ffi::Kind::Tensor) {
            return Err(RunError::Output(kept.no_tensor(&value.type_name())));
        }
        let tensor = value.keep(&self.module, self.settings.stateful).map_err(failed)?;
        let (data_type, shape) = (known(tensor.dtype)?, tensor.shape.clone());
        let value = Value::Device(Arc::new(Stays(tensor)));
        Ok(Output::Tensor(Tensor { data_type, shape, value, joining: None }))
    }
}

fn is_kept(argument: &Arg) -> bool {
    let on_device = |tensor: &Tensor| !matches!(tensor.value, Value::Host(_));
    match argument {
        Arg::Tensor(tensor) => on_device(tensor),
        Arg::Tensors(tensors) => tensors.iter().any(on_device),
        Arg::Dict(entries) => entries.iter().any(|(_, tensor)| on_device(tensor)),
        Arg::Default | Arg::Strings(_) | Arg::Int(_) | Arg::Float(_) | Arg::Bool(_) | Arg::Str(_) => false,
    }
}

/// A tensor that stays where it was made.
#[derive(Debug)]
struct Stays(ffi::KeptTensor);

impl DeviceTensor for Stays {
    fn rows(&self, from: usize, rows: usize) -> Result<Arc<dyn DeviceTensor>, String> {
        let mut parts = self.0.split(from, &[rows]).map_err(|text| first_line(&text))?;
        parts.pop().map(shared).ok_or_else(|| "no rows".to_owned())
    }

    fn split(&self, rows: &[usize]) -> Result<Vec<Arc<dyn DeviceTensor>>, String> {
        let parts = self.0.split(0, rows).map_err(|text| first_line(&text))?;
        Ok(parts.into_iter().map(shared).collect())
    }

    fn fetch(&self) -> Result<Bytes, String> {
        self.0.fetch().map_err(|text| first_line(&text))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn shared(tensor: ffi::KeptTensor) -> Arc<dyn DeviceTensor> {
    Arc::new(Stays(tensor))
}

/// What libtorch said, of a device that is lost or of this run only.
fn failure(text: &str, of_run: fn(String) -> RunError) -> RunError {
    if is_fatal(text) { RunError::Device(first_line(text)) } else { of_run(first_line(text)) }
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
    let failed = |text: String| failure(&text, RunError::Output);
    let (kind, size) = value.kind().map_err(failed)?;
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
        ffi::Kind::List | ffi::Kind::Tuple | ffi::Kind::Dict => {
            collection(value, &mut |_, _, element| output(element, copy))?
        }
        ffi::Kind::Other => Output::Other(value.type_name()),
    })
}

/// Makes something of an element, given its name and place.
type Each<'a> = dyn FnMut(Option<&str>, Option<usize>, &ffi::Value) -> Result<Output, RunError> + 'a;

/// A list, tuple or dict of what `each` makes.
fn collection(value: &ffi::Value, each: &mut Each<'_>) -> Result<Output, RunError> {
    let failed = |text: String| failure(&text, RunError::Output);
    let (kind, size) = value.kind().map_err(failed)?;
    let is_dict = matches!(kind, ffi::Kind::Dict);
    let mut elements = Vec::with_capacity(size);
    for index in 0..size {
        let (name, element) = value.at(index).map_err(failed)?;
        let element = each(name.as_deref(), (!is_dict).then_some(index), &element)?;
        elements.push((name, element));
    }
    Ok(match kind {
        ffi::Kind::Tuple => Output::Tuple(elements),
        ffi::Kind::Dict => {
            let entries = elements.into_iter().map(|(key, element)| (key.unwrap_or_default(), element));
            Output::Dict(entries.collect())
        }
        _ => Output::List(elements.into_iter().map(|(_, element)| element).collect()),
    })
}

fn host_tensor(value: &ffi::Value, copy: bool) -> Result<Tensor, RunError> {
    let tensor = value.tensor(copy).map_err(|text| failure(&text, RunError::Output))?;
    Ok(Tensor::host(known(tensor.dtype)?, tensor.shape, tensor.data))
}

/// The protocol's dtype of what a run returned.
fn known(scalar_type: i8) -> Result<DataType, RunError> {
    data_type(scalar_type).ok_or_else(|| {
        RunError::Output(format!(
            "a tensor of libtorch's scalar type {scalar_type}, which the protocol cannot carry; convert it in the \
             model"
        ))
    })
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
    use super::is_fatal;

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
