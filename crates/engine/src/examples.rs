//! Which shapes a version has served: what its successor is warmed with where no configuration tells.
//!
//! Only shapes, and the values of scalars, which choose paths through a model: nothing of what clients
//! sent in tensors and strings is kept.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;

use crate::{DataType, binding::Binding, check::Input, schema::ArgumentKind, value::element_count};

/// The first request, and then each of so many, is looked at: shapes that matter come often.
const EACH: u64 = 1024;
/// Different ones that are kept.
const KEPT: usize = 4;
/// One with more inputs or longer names than any model that we know of is not kept.
const MAX_INPUTS: usize = 256;
const MAX_NAMES: usize = 16 << 10;
/// Nor is one that would be large to make again.
const MAX_BYTES: usize = 64 << 20;
/// The largest scalar, one element for each row of a batch.
const MAX_SCALAR: usize = 4096;

/// A request that was answered, without its contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    pub(crate) inputs: Vec<ExampleInput>,
}

/// An input of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExampleInput {
    pub(crate) name: String,
    pub(crate) data_type: DataType,
    pub(crate) shape: Vec<i64>,
    /// The elements, where it is an `int`, `float` or `bool` of `forward`.
    pub(crate) scalar: Option<Bytes>,
}

impl Example {
    /// `None` where it would be too large to keep or to make again.
    pub(crate) fn of(binding: &Binding, inputs: &[Input]) -> Option<Self> {
        let names: usize = inputs.iter().map(|input| input.name.len()).sum();
        if inputs.len() > MAX_INPUTS || names > MAX_NAMES {
            return None;
        }
        let mut bytes = 0usize;
        let mut kept = Vec::with_capacity(inputs.len());
        for Input { name, tensor } in inputs {
            let size = tensor.data_type.size().unwrap_or(4);
            bytes = bytes.checked_add(element_count(&tensor.shape)?.checked_mul(size)?)?;
            let scalar = is_scalar(binding, name).then(|| tensor.bytes());
            if bytes > MAX_BYTES || scalar.is_some_and(|data| data.len() > MAX_SCALAR) {
                return None;
            }
            kept.push(ExampleInput {
                name: name.clone(),
                data_type: tensor.data_type,
                shape: tensor.shape.clone(),
                // A copy: the tensor is a view of all that was received.
                scalar: scalar.map(Bytes::copy_from_slice),
            });
        }
        Some(Self { inputs: kept })
    }
}

fn is_scalar(binding: &Binding, name: &str) -> bool {
    let slot = binding.inputs.iter().find(|slot| *slot.name == *name);
    let kind = slot.map(|slot| &binding.arguments[slot.place.argument()].kind);
    matches!(kind, Some(ArgumentKind::Int | ArgumentKind::Float | ArgumentKind::Bool))
}

/// What a version has served.
#[derive(Debug, Default)]
pub(crate) struct Examples {
    served: AtomicU64,
    kept: Mutex<Vec<Example>>,
}

impl Examples {
    /// Whether the next request is to be looked at.
    pub(crate) fn due(&self) -> bool {
        self.served.load(Ordering::Relaxed).is_multiple_of(EACH)
    }

    /// Counts a request that was answered, and keeps it if it was looked at and is a new one.
    pub(crate) fn served(&self, example: Option<Example>) {
        self.served.fetch_add(1, Ordering::Relaxed);
        let Some(example) = example else { return };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // What was seen last stays longest: traffic changes.
        kept.retain(|known| *known != example);
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push(example);
    }

    pub(crate) fn list(&self) -> Vec<Example> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
#[path = "examples_tests.rs"]
mod tests;
