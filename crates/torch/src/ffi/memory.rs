//! Memory that the shim hands out: of tensors in host memory, of those that stay on their device, and
//! page-locked.

use std::{ffi::c_void, fmt, ptr};

use bytes::Bytes;

use super::{check, raw::*};

/// A tensor in host memory, contiguous.
pub(crate) struct HostTensor {
    pub(crate) dtype: i8,
    pub(crate) shape: Vec<i64>,
    pub(crate) data: Bytes,
}

/// Keeps a tensor alive while its bytes are on their way to the wire.
struct Owner {
    handle: *mut c_void,
    data: *const u8,
    bytes: usize,
}

// SAFETY: a tensor handle may move between threads; the data is only read, and nobody writes to it: a
// module that keeps state of its own has its outputs copied.
unsafe impl Send for Owner {}

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the handle keeps `bytes` bytes at `data` alive; there is at least one.
        unsafe { std::slice::from_raw_parts(self.data, self.bytes) }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // SAFETY: the handle is ours, freed once.
        unsafe { sc_tensor_free(self.handle) }
    }
}

/// Page-locked host memory.
pub(crate) struct HostBuffer {
    handle: *mut c_void,
    data: *mut u8,
    bytes: usize,
}

// SAFETY: a tensor handle may move between threads, and nobody else knows this memory.
unsafe impl Send for HostBuffer {}

impl HostBuffer {
    /// Of so many bytes, at least one.
    pub(crate) fn new(bytes: usize) -> Result<Self, String> {
        let (mut handle, mut data) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: valid pointers; on success both are set.
        check(|error| unsafe { sc_host_buffer(bytes, &raw mut handle, &raw mut data, error) })?;
        Ok(Self { handle, data: data.cast(), bytes })
    }
}

impl sconce_engine::backend::HostBuffer for HostBuffer {}

impl AsRef<[u8]> for HostBuffer {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the handle keeps `bytes` bytes at `data` alive; the system gave them out as zeros.
        unsafe { std::slice::from_raw_parts(self.data, self.bytes) }
    }
}

impl AsMut<[u8]> for HostBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and they are ours alone.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.bytes) }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        // SAFETY: the handle is ours, freed once.
        unsafe { sc_tensor_free(self.handle) }
    }
}

/// Below this many bytes a copy is cheaper than keeping the tensor until the answer is written.
const COPY_BELOW: usize = 4096;

/// Calls a function of the shim that describes a tensor.
fn described(call: impl FnOnce(*mut RawTensor, ErrorOut) -> i32) -> Result<RawTensor, String> {
    let mut raw = RawTensor {
        handle: ptr::null_mut(),
        data: ptr::null(),
        bytes: 0,
        dtype: 0,
        dims: 0,
        sizes: ptr::null(),
    };
    check(|error| call(&raw mut raw, error))?;
    Ok(raw)
}

/// Of a tensor whose handle is there still.
fn shape(raw: &RawTensor) -> Vec<i64> {
    if raw.dims == 0 {
        return Vec::new();
    }
    // SAFETY: `dims` sizes, alive as long as the handle.
    unsafe { std::slice::from_raw_parts(raw.sizes, raw.dims) }.to_vec()
}

/// What the shim describes, which is in host memory.
pub(super) fn host(
    copy: bool,
    call: impl FnOnce(*mut RawTensor, ErrorOut) -> i32,
) -> Result<HostTensor, String> {
    let raw = described(call)?;
    let owner = Owner { handle: raw.handle, data: raw.data.cast(), bytes: raw.bytes };
    let shape = shape(&raw);
    let data = if raw.bytes == 0 {
        Bytes::new()
    } else if copy || raw.bytes < COPY_BELOW {
        Bytes::copy_from_slice(owner.as_ref())
    } else {
        Bytes::from_owner(owner)
    };
    Ok(HostTensor { dtype: raw.dtype, shape, data })
}

/// A tensor that stays on its device.
pub(crate) struct KeptTensor {
    handle: *mut c_void,
    pub(crate) dtype: i8,
    pub(crate) shape: Vec<i64>,
}

// SAFETY: a tensor handle may move between threads.
unsafe impl Send for KeptTensor {}
// SAFETY: it is only read: runs that write to what they are given get a copy.
unsafe impl Sync for KeptTensor {}

/// What the shim describes, wherever it is.
pub(super) fn kept(call: impl FnOnce(*mut RawTensor, ErrorOut) -> i32) -> Result<KeptTensor, String> {
    let raw = described(call)?;
    Ok(KeptTensor { handle: raw.handle, dtype: raw.dtype, shape: shape(&raw) })
}

impl KeptTensor {
    pub(super) fn handle(&self) -> *const c_void {
        self.handle
    }

    /// Its elements in host memory.
    pub(crate) fn fetch(&self) -> Result<Bytes, String> {
        // SAFETY: a valid handle; on success `raw` is filled, and its data is in host memory.
        host(false, |raw, error| unsafe { sc_kept_fetch(self.handle, raw, error) }).map(|host| host.data)
    }

    /// Copies of so many rows each, one behind the other from a row on.
    pub(crate) fn split(&self, from: usize, rows: &[usize]) -> Result<Vec<Self>, String> {
        let mut handles = vec![ptr::null_mut(); rows.len()];
        // SAFETY: two arrays of the same length; on success every handle is set.
        check(|error| unsafe {
            sc_kept_split(self.handle, from, rows.as_ptr(), rows.len(), handles.as_mut_ptr(), error)
        })?;
        let part = |(handle, &rows): (*mut c_void, &usize)| {
            let mut shape = self.shape.clone();
            shape[0] = i64::try_from(rows).unwrap_or(i64::MAX);
            Self { handle, dtype: self.dtype, shape }
        };
        Ok(handles.into_iter().zip(rows).map(part).collect())
    }
}

impl fmt::Debug for KeptTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "libtorch's scalar type {} of shape {:?}", self.dtype, self.shape)
    }
}

impl Drop for KeptTensor {
    fn drop(&mut self) {
        // SAFETY: the handle is ours, freed once.
        unsafe { sc_tensor_free(self.handle) }
    }
}
