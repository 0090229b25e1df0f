//! Tensors, and the calls and outputs that are made of them.

use std::{any::Any, fmt, sync::Arc};

use bytes::Bytes;

use crate::{DataType, padding::Joining, ragged::Shares, text::shape_text};

/// A tensor: element type, shape (row-major) and its elements.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// What an element is.
    pub data_type: DataType,
    /// Sizes of the dimensions, outermost first; empty for a scalar.
    pub shape: Vec<i64>,
    /// The elements.
    pub value: Value,
    /// How an input is joined with those of other requests, where that is not row below row.
    pub joining: Option<Arc<Joining>>,
}

/// As many as libtorch can reduce over.
pub const MAX_DIMENSIONS: usize = 64;

/// Where a tensor's elements are.
#[derive(Clone)]
pub enum Value {
    /// In host memory as the protocol carries them: little-endian, row-major, without gaps;
    /// BYTES as a `u32` length before each element.
    Host(Bytes),
    /// On the device that made them, opaque to all but the backend that did.
    Device(Arc<dyn DeviceTensor>),
    /// These below each other: one tensor by the time the model sees it. Their rows, the first dimension, add
    /// up to its own; all else of them agrees with it.
    Joined(Vec<Tensor>),
}

/// A tensor that a backend keeps on the device that made it.
pub trait DeviceTensor: Send + Sync + fmt::Debug {
    /// A copy of some of its rows, the first dimension, there.
    ///
    /// # Errors
    /// The backend's reason.
    fn rows(&self, from: usize, rows: usize) -> Result<Arc<dyn DeviceTensor>, String>;
    /// Copies of so many rows each, one behind the other, there.
    ///
    /// # Errors
    /// The backend's reason.
    fn split(&self, rows: &[usize]) -> Result<Vec<Arc<dyn DeviceTensor>>, String> {
        let mut next = 0;
        let part = |&rows: &usize| {
            next += rows;
            self.rows(next - rows, rows)
        };
        rows.iter().map(part).collect()
    }
    /// Its elements in host memory, as [`Value::Host`].
    ///
    /// # Errors
    /// The backend's reason.
    fn fetch(&self) -> Result<Bytes, String>;
    /// For the backend to find its own again.
    fn as_any(&self) -> &dyn Any;
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(bytes) => write!(f, "Host({} bytes)", bytes.len()),
            Self::Device(tensor) => write!(f, "Device({tensor:?})"),
            Self::Joined(parts) => f.debug_tuple("Joined").field(parts).finish(),
        }
    }
}

impl Tensor {
    /// A tensor in host memory, unchecked; requests are checked in [`Tensor::check`].
    pub fn host(data_type: DataType, shape: Vec<i64>, data: Bytes) -> Self {
        Self { data_type, shape, value: Value::Host(data), joining: None }
    }

    /// The same, to be joined so.
    #[must_use]
    pub fn joined_by(self, joining: Arc<Joining>) -> Self {
        Self { joining: Some(joining), ..self }
    }

    /// The elements in host memory; empty for a value that stays on its device.
    pub fn bytes(&self) -> &[u8] {
        match &self.value {
            Value::Host(bytes) => bytes,
            Value::Device(_) | Value::Joined(_) => &[],
        }
    }

    /// How many elements the shape has; `None` for a negative dimension or more than fit an `i64`.
    pub fn elements(&self) -> Option<usize> {
        element_count(&self.shape)
    }

    /// Whether the bytes are what dtype and shape say, in one sentence if not.
    pub fn check(&self) -> Result<(), String> {
        let count = self.elements().ok_or_else(|| {
            format!(
                "shape {} is not valid: at most {MAX_DIMENSIONS} dimensions of 0 or more are expected, whose product fits \
                 63 bits",
                shape_text(&self.shape)
            )
        })?;
        let Value::Host(data) = &self.value else { return Ok(()) };
        match self.data_type.size() {
            Some(size) => {
                let expected = count
                    .checked_mul(size)
                    .ok_or_else(|| format!("shape {} is larger than memory", shape_text(&self.shape)))?;
                if data.len() == expected {
                    return Ok(());
                }
                Err(format!(
                    "unexpected byte size {}: {expected} bytes ({count} elements) are expected for {} {}, and {} whole \
                     elements were sent",
                    data.len(),
                    self.data_type,
                    shape_text(&self.shape),
                    data.len() / size
                ))
            }
            None => check_strings(data, count),
        }
    }
}

/// The number of elements of a shape; `None` where it is no shape, or one that libtorch could not
/// stride: the dimensions beside a zero must multiply to something that fits, too.
pub fn element_count(shape: &[i64]) -> Option<usize> {
    if shape.len() > MAX_DIMENSIONS || shape.iter().any(|&dim| dim < 0) {
        return None;
    }
    let count = shape.iter().try_fold(1i64, |product, &dim| product.checked_mul(dim.max(1)))?;
    if shape.contains(&0) { Some(0) } else { usize::try_from(count).ok() }
}

/// The elements of a BYTES tensor. Stops at the first length that leads out of the data.
pub fn strings(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = data;
    std::iter::from_fn(move || {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let (element, tail) = tail.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        rest = tail;
        Some(element)
    })
}

/// Appends one element to the wire form of a BYTES tensor.
///
/// # Panics
/// On an element of 4 GiB or more, which no message can carry.
pub fn push_string(data: &mut Vec<u8>, element: &[u8]) {
    let length = u32::try_from(element.len()).expect("elements are smaller than a message");
    data.extend_from_slice(&length.to_le_bytes());
    data.extend_from_slice(element);
}

fn check_strings(data: &[u8], expected: usize) -> Result<(), String> {
    let (mut count, mut used) = (0usize, 0usize);
    for element in strings(data) {
        count += 1;
        used += 4 + element.len();
    }
    if used != data.len() {
        return Err(format!(
            "truncated BYTES: element {count} (a 4-byte little-endian length and its bytes) leads past the \
             {} bytes that were sent",
            data.len()
        ));
    }
    if count != expected {
        return Err(format!("BYTES with {count} elements were sent where the shape has {expected}"));
    }
    Ok(())
}

/// One call of `forward` or another method: its arguments in the order of its schema.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// One per argument of the schema.
    pub arguments: Vec<Arg>,
    /// Which parts of what it returns stay on the device, as [`Value::Device`].
    pub keep: Option<Arc<[Kept]>>,
    /// How much of its outputs is the request's, where that does not follow from its rows.
    pub shares: Option<Box<Shares>>,
}

/// A part at the top of what a call returns.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kept {
    /// The n-th element of a tuple or list; 0 where it is one tensor.
    Index(usize),
    /// The key of a dict, or the field of a NamedTuple.
    Name(Arc<str>),
}

impl Kept {
    /// Whether it is the part with this name and place, as far as it has them: a dict's have no place.
    pub fn is(&self, name: Option<&str>, place: Option<usize>) -> bool {
        match self {
            Self::Index(wanted) => place == Some(*wanted),
            Self::Name(wanted) => name == Some(&**wanted),
        }
    }

    /// Why it cannot stay on the device, where it is no tensor.
    pub fn no_tensor(&self, kind: &str) -> String {
        format!("{self} of what it returned is {kind}; a tensor is expected, to be kept for the next run")
    }

    /// Why it cannot stay on the device, where it is not there.
    pub fn absent(&self) -> String {
        format!("{self} is not in what it returned; a tensor is expected, to be kept for the next run")
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "element {index}"),
            Self::Name(name) => write!(f, "`{name}`"),
        }
    }
}

/// One argument of a call.
#[derive(Clone, Debug)]
pub enum Arg {
    /// Left out: the default that the schema states, or `None` where it is optional.
    Default,
    /// A tensor.
    Tensor(Tensor),
    /// `List[Tensor]`.
    Tensors(Vec<Tensor>),
    /// `Dict[str, Tensor]`, in the order of the request.
    Dict(Vec<(Arc<str>, Tensor)>),
    /// `List[str]`: BYTES in wire form.
    Strings(Bytes),
    /// `int`.
    Int(i64),
    /// `float`.
    Float(f64),
    /// `bool`.
    Bool(bool),
    /// `str`.
    Str(Bytes),
}

/// What `forward` returned, as a tree.
#[derive(Clone, Debug)]
pub enum Output {
    /// A tensor.
    Tensor(Tensor),
    /// `List[str]`: BYTES in wire form, of one dimension.
    Strings(Tensor),
    /// A list.
    List(Vec<Output>),
    /// A tuple, with the field's name where it is a NamedTuple.
    Tuple(Vec<(Option<String>, Output)>),
    /// A dict with string keys.
    Dict(Vec<(String, Output)>),
    /// Anything else, by the name of its type.
    Other(String),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_must_agree() {
        let tensor = |shape: &[i64], bytes: usize| {
            Tensor::host(DataType::Fp32, shape.to_vec(), vec![0; bytes].into()).check()
        };
        assert_eq!(tensor(&[2, 3], 24), Ok(()));
        assert_eq!(tensor(&[], 4), Ok(()));
        assert_eq!(tensor(&[0, 1 << 40], 0), Ok(()));
        assert!(tensor(&[2, 3], 23).unwrap_err().contains("24 bytes (6 elements) are expected"));
        assert!(tensor(&[-1, 3], 12).unwrap_err().contains("not valid"));
        assert!(tensor(&[i64::MAX, 2], 8).unwrap_err().contains("not valid"));
        assert!(tensor(&[i64::MAX], 8).unwrap_err().contains("larger than memory"));
    }

    proptest! {
        #[test]
        fn strings_survive_the_wire_form(elements in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..20)) {
            let mut data = Vec::new();
            for element in &elements {
                push_string(&mut data, element);
            }
            prop_assert_eq!(strings(&data).map(<[u8]>::to_vec).collect::<Vec<_>>(), elements.clone());
            let count = elements.len() as i64;
            prop_assert_eq!(Tensor::host(DataType::Bytes, vec![count], data.clone().into()).check(), Ok(()));
            prop_assert!(Tensor::host(DataType::Bytes, vec![count + 1], data.clone().into()).check().is_err());
            // Cut anywhere, it is refused.
            if let Some(last) = data.len().checked_sub(1) {
                prop_assert!(Tensor::host(DataType::Bytes, vec![count], data[..last].to_vec().into()).check().is_err());
            }
        }

        #[test]
        fn no_bytes_can_panic(data in prop::collection::vec(any::<u8>(), 0..64), shape in prop::collection::vec(any::<i64>(), 0..5)) {
            for data_type in DataType::ALL {
                let _ = Tensor::host(data_type, shape.clone(), data.clone().into()).check();
            }
        }
    }
}
