//! What `shim/shim.h` declares, as Rust sees it.

use std::ffi::{c_char, c_void};

#[repr(C)]
pub(super) struct RawModule {
    _opaque: [u8; 0],
}
#[repr(C)]
pub(super) struct RawCall {
    _opaque: [u8; 0],
}
#[repr(C)]
pub(super) struct RawValue {
    _opaque: [u8; 0],
}

#[repr(C)]
pub(super) struct RawTensor {
    pub(super) handle: *mut c_void,
    pub(super) data: *const c_void,
    pub(super) bytes: usize,
    pub(super) dtype: i8,
    pub(super) dims: usize,
    pub(super) sizes: *const i64,
}

pub(super) type ErrorOut = *mut *mut c_char;

#[rustfmt::skip]
unsafe extern "C" {
    pub(super) fn sc_free(text: *mut c_char);
    pub(super) fn sc_torch_version() -> *const c_char;
    pub(super) fn sc_cpu_capability() -> *mut c_char;
    pub(super) fn sc_open_library(path: *const c_char, error: ErrorOut) -> i32;
    pub(super) fn sc_cuda_devices(library: *const c_char, why_none: ErrorOut) -> i32;
    pub(super) fn sc_init();
    pub(super) fn sc_exit(code: i32) -> !;
    pub(super) fn sc_enter_device(cuda_index: i32, error: ErrorOut) -> i32;
    pub(super) fn sc_set_threads(threads: i32);
    pub(super) fn sc_device_memory(cuda_index: i32, free: &mut u64, total: &mut u64, error: ErrorOut) -> i32;
    pub(super) fn sc_release_memory(cuda: bool, error: ErrorOut) -> i32;
    pub(super) fn sc_load(path: *const c_char, cuda: i32, inference: bool, generates: bool, module: *mut *mut RawModule, error: ErrorOut) -> i32;
    pub(super) fn sc_step(module: *const RawModule, step: *mut *mut RawModule, error: ErrorOut) -> i32;
    pub(super) fn sc_freeze(module: *const RawModule, optimize: bool, frozen: *mut *mut RawModule, error: ErrorOut) -> i32;
    pub(super) fn sc_schema(module: *const RawModule, schema: *mut *mut c_char, error: ErrorOut) -> i32;
    pub(super) fn sc_forks_write(module: *const RawModule, write: *mut bool, what: *mut *mut c_char, error: ErrorOut) -> i32;
    pub(super) fn sc_mutates(module: *const RawModule, attributes: *mut bool, inputs: *mut bool, what: *mut *mut c_char, error: ErrorOut) -> i32;
    pub(super) fn sc_copy(module: *const RawModule, copy: *mut *mut RawModule, error: ErrorOut) -> i32;
    pub(super) fn sc_module_free(module: *mut RawModule);
    pub(super) fn sc_wait(module: *const RawModule, error: ErrorOut) -> i32;
    pub(super) fn sc_host_buffer(bytes: usize, handle: *mut *mut c_void, data: *mut *mut c_void, error: ErrorOut) -> i32;
    pub(super) fn sc_call_new(module: *const RawModule) -> *mut RawCall;
    pub(super) fn sc_call_free(call: *mut RawCall);
    pub(super) fn sc_push_default(call: *mut RawCall, error: ErrorOut) -> i32;
    pub(super) fn sc_push_int(call: *mut RawCall, value: i64);
    pub(super) fn sc_push_float(call: *mut RawCall, value: f64);
    pub(super) fn sc_push_bool(call: *mut RawCall, value: bool);
    pub(super) fn sc_push_str(call: *mut RawCall, data: *const u8, size: usize, error: ErrorOut) -> i32;
    pub(super) fn sc_push_strings(call: *mut RawCall, data: *const *const u8, sizes: *const usize, count: usize, error: ErrorOut) -> i32;
    pub(super) fn sc_push_tensor(call: *mut RawCall, data: *const c_void, dtype: i8, sizes: *const i64, dims: usize, copy: bool, owner: *mut c_void, release: extern "C" fn(*mut c_void), error: ErrorOut) -> i32;
    pub(super) fn sc_push_kept(call: *mut RawCall, handle: *const c_void, copy: bool, error: ErrorOut) -> i32;
    pub(super) fn sc_fold_rows(call: *mut RawCall, count: usize, error: ErrorOut) -> i32;
    pub(super) fn sc_fold_list(call: *mut RawCall, count: usize, error: ErrorOut) -> i32;
    pub(super) fn sc_fold_dict(call: *mut RawCall, keys: *const *const u8, sizes: *const usize, count: usize, error: ErrorOut) -> i32;
    pub(super) fn sc_run(module: *const RawModule, call: *mut RawCall, inference: bool, optimized: bool, value: *mut *mut RawValue, error: ErrorOut) -> i32;
    pub(super) fn sc_value_kind(value: *const RawValue, kind: *mut i32, size: *mut usize, error: ErrorOut) -> i32;
    pub(super) fn sc_value_type(value: *const RawValue) -> *mut c_char;
    pub(super) fn sc_value_at(value: *const RawValue, index: usize, element: *mut *mut RawValue, name: *mut *mut c_char, error: ErrorOut) -> i32;
    pub(super) fn sc_value_string(value: *const RawValue, index: usize, data: *mut *const u8, size: *mut usize, error: ErrorOut) -> i32;
    pub(super) fn sc_value_tensor(value: *const RawValue, tensor: *mut RawTensor, error: ErrorOut) -> i32;
    pub(super) fn sc_value_keep(value: *const RawValue, module: *const RawModule, copy: bool, tensor: *mut RawTensor, error: ErrorOut) -> i32;
    pub(super) fn sc_kept_fetch(handle: *const c_void, tensor: *mut RawTensor, error: ErrorOut) -> i32;
    pub(super) fn sc_kept_split(handle: *const c_void, from: usize, rows: *const usize, count: usize, parts: *mut *mut c_void, error: ErrorOut) -> i32;
    pub(super) fn sc_value_free(value: *mut RawValue);
    pub(super) fn sc_tensor_free(handle: *mut c_void);
    #[cfg(feature = "define")]
    pub(super) fn sc_define(source: *const c_char, parameters: *const *const c_char, count: usize, frozen: bool, path: *const c_char, error: ErrorOut) -> i32;
}
