//! The C++ shim: declarations, and safe wrappers that own what it hands out.
#![allow(unsafe_code)] // the one place of the project where it is allowed

use std::{
    ffi::{CStr, CString, c_char, c_void},
    path::Path,
    ptr,
};

use bytes::Bytes;

use self::raw::*;
pub(crate) use memory::{HostBuffer, HostTensor, KeptTensor};

mod memory;
mod raw;

/// Takes a text over from the shim.
fn take_text(text: *mut c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the shim's texts end with a zero and are ours until sc_free.
    let copy = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: it came from the shim and is not used after this.
    unsafe { sc_free(text) };
    copy
}

/// Calls a function of the shim that can fail.
fn check(call: impl FnOnce(ErrorOut) -> i32) -> Result<(), String> {
    let mut error = ptr::null_mut();
    if call(&raw mut error) == 0 { Ok(()) } else { Err(take_text(error)) }
}

fn c_path(path: &Path) -> Result<CString, String> {
    CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| "the path has a zero byte in it".to_owned())
}

/// The libtorch that was compiled against, `2.11.0`.
pub(crate) fn version() -> String {
    // SAFETY: a constant of the shim.
    unsafe { CStr::from_ptr(sc_torch_version()) }.to_string_lossy().into_owned()
}

/// The instruction set that libtorch chose: `AVX2`, `AVX512`, `DEFAULT`.
pub(crate) fn cpu_capability() -> String {
    // SAFETY: the text is ours.
    take_text(unsafe { sc_cpu_capability() })
}

/// Process-wide settings, before anything runs.
pub(crate) fn init() {
    // SAFETY: no preconditions.
    unsafe { sc_init() }
}

/// Ends the process without running destructors: libtorch's must not run while workers are inside it.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: no preconditions.
    unsafe { sc_exit(code) }
}

/// Opens a shared library with custom operators, which register themselves.
///
/// # Errors
/// The loader's reason.
pub fn open_library(path: &Path) -> Result<(), String> {
    let path = c_path(path)?;
    // SAFETY: a valid path; the library's initialisers are trusted as the operator asked for it.
    check(|error| unsafe { sc_open_library(path.as_ptr(), error) })
}

/// Opens CUDA's half of libtorch and counts the GPUs; with the reason where there are none.
pub(crate) fn cuda_devices(library: &str) -> (u32, String) {
    let Ok(library) = CString::new(library) else { return (0, String::new()) };
    let mut why = ptr::null_mut();
    // SAFETY: valid texts, and `why` is ours afterwards.
    let count = unsafe { sc_cuda_devices(library.as_ptr(), &raw mut why) };
    (u32::try_from(count).unwrap_or(0), take_text(why))
}

/// Gives this thread a stream of its own on a GPU; -1 is the CPU.
pub(crate) fn enter_device(cuda_index: i32) -> Result<(), String> {
    // SAFETY: no pointers but the error's.
    check(|error| unsafe { sc_enter_device(cuda_index, error) })
}

/// Sets how many threads the operators called by this thread use.
pub(crate) fn set_threads(threads: usize) {
    // SAFETY: no preconditions.
    unsafe { sc_set_threads(i32::try_from(threads).unwrap_or(i32::MAX)) }
}

/// Bytes of a GPU that are free, and all that it has.
pub(crate) fn device_memory(cuda_index: i32) -> Result<(u64, u64), String> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: both numbers outlive the call, which writes nothing else but the error.
    check(|error| unsafe { sc_device_memory(cuda_index, &mut free, &mut total, error) })?;
    Ok((free, total))
}

/// Gives memory that has been freed back to the system; what the GPUs' allocator keeps too, if asked.
pub(crate) fn release_memory(cuda: bool) -> Result<(), String> {
    // SAFETY: no pointers but the error's.
    check(|error| unsafe { sc_release_memory(cuda, error) })
}

/// A module on a device.
pub(crate) struct Module(*mut RawModule);

// SAFETY: a TorchScript module that does not change its attributes may be run by any threads at once;
// one that does is never shared (each runner has a copy, and a runner has one user at a time).
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: made by the shim, freed once.
        unsafe { sc_module_free(self.0) }
    }
}

/// What a run changes besides making its outputs.
#[derive(Debug, Default)]
pub(crate) struct Mutates {
    pub(crate) attributes: bool,
    pub(crate) inputs: bool,
    /// The attribute or the operation that changes one.
    pub(crate) what: String,
}

impl Module {
    /// To be run by its `start` where it generates, else by its `forward`.
    pub(crate) fn load(
        path: &Path,
        cuda_index: i32,
        inference: bool,
        generates: bool,
    ) -> Result<Self, String> {
        let path = c_path(path)?;
        let mut module = ptr::null_mut();
        // SAFETY: valid pointers; on success `module` is set.
        check(|error| unsafe {
            sc_load(path.as_ptr(), cuda_index, inference, generates, &raw mut module, error)
        })?;
        Ok(Self(module))
    }

    /// The same, to be run by its `step`.
    pub(crate) fn step(&self) -> Result<Self, String> {
        let mut step = ptr::null_mut();
        // SAFETY: as in `load`.
        check(|error| unsafe { sc_step(self.0, &raw mut step, error) })?;
        Ok(Self(step))
    }

    pub(crate) fn freeze(&self, optimize: bool) -> Result<Self, String> {
        let mut frozen = ptr::null_mut();
        // SAFETY: as in `load`.
        check(|error| unsafe { sc_freeze(self.0, optimize, &raw mut frozen, error) })?;
        Ok(Self(frozen))
    }

    pub(crate) fn copy(&self) -> Result<Self, String> {
        let mut copy = ptr::null_mut();
        // SAFETY: as in `load`.
        check(|error| unsafe { sc_copy(self.0, &raw mut copy, error) })?;
        Ok(Self(copy))
    }

    pub(crate) fn schema(&self) -> Result<String, String> {
        let mut schema = ptr::null_mut();
        // SAFETY: as in `load`.
        check(|error| unsafe { sc_schema(self.0, &raw mut schema, error) })?;
        Ok(take_text(schema))
    }

    /// The attribute or operation by which a `torch.jit.fork` in a run changes the module.
    pub(crate) fn fork_writes(&self) -> Result<Option<String>, String> {
        let (mut write, mut what) = (false, ptr::null_mut());
        let out = (&raw mut write, &raw mut what);
        // SAFETY: valid pointers.
        check(|error| unsafe { sc_forks_write(self.0, out.0, out.1, error) })?;
        let what = take_text(what);
        Ok(write.then_some(what))
    }

    pub(crate) fn mutates(&self) -> Result<Mutates, String> {
        let (mut attributes, mut inputs, mut what) = (false, false, ptr::null_mut());
        let out = (&raw mut attributes, &raw mut inputs, &raw mut what);
        // SAFETY: valid pointers.
        check(|error| unsafe { sc_mutates(self.0, out.0, out.1, out.2, error) })?;
        Ok(Mutates { attributes, inputs, what: take_text(what) })
    }

    pub(crate) fn run(&self, call: Call<'_>, inference: bool, optimized: bool) -> Result<Value, String> {
        let mut value = ptr::null_mut();
        let raw = call.raw;
        std::mem::forget(call); // sc_run frees it
        // SAFETY: the call was made for this module and is not used after this.
        check(|error| unsafe { sc_run(self.0, raw, inference, optimized, &raw mut value, error) })?;
        Ok(Value(value))
    }

    /// Waits until its device has done what this thread has begun there.
    pub(crate) fn wait(&self) -> Result<(), String> {
        // SAFETY: a valid module.
        check(|error| unsafe { sc_wait(self.0, error) })
    }
}

/// The arguments of one call, pushed in order.
pub(crate) struct Call<'m> {
    raw: *mut RawCall,
    _module: &'m Module,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        // SAFETY: made by the shim, freed once.
        unsafe { sc_call_free(self.raw) }
    }
}

extern "C" fn release(owner: *mut c_void) {
    // SAFETY: `owner` is a boxed Bytes that `Call::tensor` gave away, and is released once.
    drop(unsafe { Box::from_raw(owner.cast::<Bytes>()) });
}

impl<'m> Call<'m> {
    pub(crate) fn new(module: &'m Module) -> Self {
        // SAFETY: the module outlives the call.
        Self { raw: unsafe { sc_call_new(module.0) }, _module: module }
    }

    pub(crate) fn default(&mut self) -> Result<(), String> {
        // SAFETY: a valid call.
        check(|error| unsafe { sc_push_default(self.raw, error) })
    }

    pub(crate) fn int(&mut self, value: i64) {
        // SAFETY: a valid call.
        unsafe { sc_push_int(self.raw, value) }
    }

    pub(crate) fn float(&mut self, value: f64) {
        // SAFETY: a valid call.
        unsafe { sc_push_float(self.raw, value) }
    }

    pub(crate) fn bool(&mut self, value: bool) {
        // SAFETY: a valid call.
        unsafe { sc_push_bool(self.raw, value) }
    }

    pub(crate) fn str(&mut self, value: &[u8]) -> Result<(), String> {
        // SAFETY: the bytes are copied.
        check(|error| unsafe { sc_push_str(self.raw, value.as_ptr(), value.len(), error) })
    }

    pub(crate) fn strings(&mut self, values: &[&[u8]]) -> Result<(), String> {
        let (data, sizes) = slices(values);
        // SAFETY: two arrays of the same length; the bytes are copied.
        check(|error| unsafe {
            sc_push_strings(self.raw, data.as_ptr(), sizes.as_ptr(), values.len(), error)
        })
    }

    /// A tensor that borrows `data` for as long as libtorch wants it, or copies it.
    ///
    /// The caller has checked that `data` is what dtype and shape say.
    pub(crate) fn tensor(&mut self, data: Bytes, dtype: i8, shape: &[i64], copy: bool) -> Result<(), String> {
        let at = data.as_ptr().cast::<c_void>();
        let owner = Box::into_raw(Box::new(data)).cast::<c_void>();
        // SAFETY: `at` stays valid until `release(owner)`: the boxed handle keeps the bytes alive. The
        // shim releases it when the tensor goes, and does not write: inputs that are written to are copied.
        check(|error| unsafe {
            let (sizes, dims) = (shape.as_ptr(), shape.len());
            sc_push_tensor(self.raw, at, dtype, sizes, dims, copy, owner, release, error)
        })
    }

    /// A tensor that stayed on the module's device.
    pub(crate) fn kept(&mut self, tensor: &KeptTensor, copy: bool) -> Result<(), String> {
        // SAFETY: a valid handle, of which the shim makes its own.
        check(|error| unsafe { sc_push_kept(self.raw, tensor.handle(), copy, error) })
    }

    /// The tensors that were pushed last, as one of all their rows.
    pub(crate) fn fold_rows(&mut self, count: usize) -> Result<(), String> {
        // SAFETY: `count` tensors have just been pushed.
        check(|error| unsafe { sc_fold_rows(self.raw, count, error) })
    }

    pub(crate) fn fold_list(&mut self, count: usize) -> Result<(), String> {
        // SAFETY: `count` tensors have just been pushed.
        check(|error| unsafe { sc_fold_list(self.raw, count, error) })
    }

    pub(crate) fn fold_dict(&mut self, keys: &[&[u8]]) -> Result<(), String> {
        let (data, sizes) = slices(keys);
        // SAFETY: a tensor has just been pushed for each key; the keys are copied.
        check(|error| unsafe { sc_fold_dict(self.raw, data.as_ptr(), sizes.as_ptr(), keys.len(), error) })
    }
}

fn slices(values: &[&[u8]]) -> (Vec<*const u8>, Vec<usize>) {
    values.iter().map(|value| (value.as_ptr(), value.len())).unzip()
}

/// What a run returned, or a part of it.
pub(crate) struct Value(*mut RawValue);

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: made by the shim, freed once.
        unsafe { sc_value_free(self.0) }
    }
}

/// What a value is.
pub(crate) enum Kind {
    Tensor,
    Strings,
    List,
    Tuple,
    Dict,
    Other,
}

impl Value {
    /// What it is, and how many elements it has.
    pub(crate) fn kind(&self) -> Result<(Kind, usize), String> {
        let (mut kind, mut size) = (0, 0);
        // SAFETY: valid pointers.
        check(|error| unsafe { sc_value_kind(self.0, &raw mut kind, &raw mut size, error) })?;
        let kind = match kind {
            0 => Kind::Tensor,
            1 => Kind::Strings,
            2 => Kind::List,
            3 => Kind::Tuple,
            4 => Kind::Dict,
            _ => Kind::Other,
        };
        Ok((kind, size))
    }

    pub(crate) fn type_name(&self) -> String {
        // SAFETY: a valid value; the text is ours.
        take_text(unsafe { sc_value_type(self.0) })
    }

    /// The n-th element, with its key or field name.
    pub(crate) fn at(&self, index: usize) -> Result<(Option<String>, Self), String> {
        let (mut element, mut name) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: valid pointers; on success `element` is set, and `name` where there is one.
        check(|error| unsafe { sc_value_at(self.0, index, &raw mut element, &raw mut name, error) })?;
        let name = (!name.is_null()).then(|| take_text(name));
        Ok((name, Self(element)))
    }

    /// The n-th string of [`Kind::Strings`].
    pub(crate) fn string(&self, index: usize) -> Result<&[u8], String> {
        let (mut data, mut size) = (ptr::null(), 0);
        // SAFETY: valid pointers; on success the string lives as long as the value.
        check(|error| unsafe { sc_value_string(self.0, index, &raw mut data, &raw mut size, error) })?;
        // SAFETY: as above; a std::string's data is never null.
        Ok(unsafe { std::slice::from_raw_parts(data, size) })
    }

    /// The tensor. `copy` where its memory may be written to while the answer is on its way.
    pub(crate) fn tensor(&self, copy: bool) -> Result<HostTensor, String> {
        // SAFETY: valid pointers; on success `raw` is filled, and its data is in host memory.
        memory::host(copy, |raw, error| unsafe { sc_value_tensor(self.0, raw, error) })
    }

    /// The tensor, to stay on the device of the module that made it, and a part of nothing else. It is there
    /// when the module's `wait` has returned.
    pub(crate) fn keep(&self, module: &Module, copy: bool) -> Result<KeptTensor, String> {
        // SAFETY: valid pointers; on success `raw` is filled.
        memory::kept(|raw, error| unsafe { sc_value_keep(self.0, module.0, copy, raw, error) })
    }
}

/// Compiles TorchScript source to a model file.
#[cfg(feature = "define")]
pub(crate) fn define(source: &str, parameters: &[&str], frozen: bool, path: &Path) -> Result<(), String> {
    let text = |text: &str| CString::new(text).map_err(|_| "a zero byte in the source".to_owned());
    let (source, path) = (text(source)?, c_path(path)?);
    let parameters = parameters.iter().map(|parameter| text(parameter)).collect::<Result<Vec<_>, _>>()?;
    let pointers: Vec<*const c_char> = parameters.iter().map(|parameter| parameter.as_ptr()).collect();
    // SAFETY: valid texts that outlive the call.
    check(|error| unsafe {
        sc_define(source.as_ptr(), pointers.as_ptr(), pointers.len(), frozen, path.as_ptr(), error)
    })
}
