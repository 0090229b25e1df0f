//! One request against one binding: every way in which it can be wrong is found here, before it is
//! queued, and named in one sentence. Where Triton has a text for it, the text is Triton's.

use std::{collections::HashSet, sync::Arc};

use crate::{
    DataType, Error, Result,
    binding::{Binding, InputSlot, Place, Spec, fits, takes},
    padding::{self, Lengths},
    ragged::Shapes,
    schema::ArgumentKind,
    text::{list_text, quote, shape_text},
    value::{Arg, Call, Tensor, Value, strings},
};

/// An input as the request names it.
#[derive(Clone, Debug)]
pub struct Input {
    /// Its name.
    pub name: String,
    /// Its tensor.
    pub tensor: Tensor,
}

/// A call, and the batch size that all its inputs agree on.
#[derive(Debug)]
pub struct Checked {
    /// The arguments of `forward`.
    pub call: Call,
    /// The first dimension; `None` where the model has no batch dimension.
    pub batch: Option<i64>,
    /// How long its inputs are that are filled up.
    pub lengths: Lengths,
}

/// Makes the call that a request asks for.
///
/// # Errors
/// [`Error::InvalidInput`], naming the input, what was expected and what was sent.
pub fn call(binding: &Binding, inputs: Vec<Input>) -> Result<Checked> {
    let mut arguments: Vec<Arg> = binding.arguments.iter().map(|_| Arg::Default).collect();
    let mut seen = vec![false; binding.inputs.len()];
    let mut lists: Vec<(usize, usize, Tensor)> = Vec::new();
    let (mut batch, mut lengths) = (None, Lengths::default());
    let (sent, mut shapes) = (inputs.len(), Shapes::default());
    // Names that no slot has.
    let mut others: HashSet<String> = HashSet::new();
    for (position, Input { name, mut tensor }) in inputs.into_iter().enumerate() {
        // Most clients send the inputs in the order of the metadata.
        let index = match binding.inputs.get(position) {
            Some(slot) if *slot.name == *name => Some(position),
            _ => binding.inputs.iter().position(|slot| *slot.name == *name),
        };
        let duplicate = match index {
            Some(index) => std::mem::replace(&mut seen[index], true),
            None => others.contains(&name),
        };
        if duplicate {
            return Err(Error::invalid(format!(
                "input '{}' is given more than once for model '{}'; give each input once",
                quote(&name),
                binding.model
            )));
        }
        let slot = index.map(|index| &binding.inputs[index]);
        let place = match slot {
            Some(slot) => slot.place.clone(),
            None => binding.open_place(&name).ok_or_else(|| unexpected(binding, &name))?,
        };
        check_tensor(binding, slot, &place, &name, &mut tensor, &mut batch)?;
        if let (Some(index), Some(slot)) = (index, slot) {
            lengths.note(index, slot, &tensor);
            tensor.joining = slot.padding.as_ref().map(|padding| Arc::clone(&padding.rule));
            if let Some(ragged) = &binding.ragged {
                ragged.take(index, &mut tensor, &mut shapes);
            }
        }
        put(binding, place, &name, tensor, &mut arguments, &mut lists)?;
        if slot.is_none() {
            others.insert(name);
        }
    }
    check_complete(binding, &seen, sent)?;
    for (index, tensor) in padding::masks(&binding.model, &binding.inputs, &lengths, batch)? {
        let slot = &binding.inputs[index];
        put(binding, slot.place.clone(), &slot.name, tensor, &mut arguments, &mut lists)?;
    }
    for made in binding.ragged.iter().flat_map(|ragged| ragged.make(&binding.model, &shapes)) {
        let (place, name, tensor) = made?;
        put(binding, place.clone(), name, tensor, &mut arguments, &mut lists)?;
    }
    gather_lists(binding, lists, &mut arguments)?;
    fill_empty_collections(binding, &mut arguments);
    let mut call = Call { arguments, ..Call::default() };
    if let Some(ragged) = &binding.ragged {
        ragged.share(&shapes, &mut call, &mut lengths);
    }
    Ok(Checked { call, batch, lengths })
}

/// Puts a tensor where it belongs.
fn put(
    binding: &Binding,
    place: Place,
    name: &str,
    tensor: Tensor,
    arguments: &mut [Arg],
    lists: &mut Vec<(usize, usize, Tensor)>,
) -> Result<()> {
    match place {
        Place::Argument(index) => {
            arguments[index] = argument(binding, &binding.arguments[index].kind, name, tensor)?;
        }
        Place::Element(index, element) => lists.push((index, element, tensor)),
        Place::Key(index, key) => match &mut arguments[index] {
            Arg::Dict(entries) => entries.push((key, tensor)),
            other => *other = Arg::Dict(vec![(key, tensor)]),
        },
    }
    Ok(())
}

fn unexpected(binding: &Binding, name: &str) -> Error {
    Error::invalid(format!(
        "unexpected inference input '{}' for model '{}'; its inputs are {}",
        quote(name),
        binding.model,
        list_text(binding.inputs.iter().map(|slot| &*slot.name))
    ))
}

/// dtype, byte size, shape and batch of one input; afterwards it has the shape that the model sees.
fn check_tensor(
    binding: &Binding,
    slot: Option<&InputSlot>,
    place: &Place,
    name: &str,
    tensor: &mut Tensor,
    batch: &mut Option<i64>,
) -> Result<()> {
    let model = &binding.model;
    let spec = slot.and_then(|slot| slot.spec.as_ref());
    if let Some(spec) = spec {
        if tensor.data_type != spec.data_type {
            return Err(Error::invalid(format!(
                "inference input '{name}' data-type is '{}', but model '{model}' expects '{}'",
                tensor.data_type, spec.data_type
            )));
        }
        check_shape(binding, spec, name, tensor, batch)?;
    } else {
        let kind = &binding.arguments[place.argument()].kind;
        if !fits(kind, tensor.data_type) {
            return Err(Error::invalid(format!(
                "inference input '{}' data-type is '{}', but model '{model}' expects {}",
                quote(name),
                tensor.data_type,
                takes(kind)
            )));
        }
    }
    tensor
        .check()
        .map_err(|why| Error::invalid(format!("{why}, for input '{}' of model '{model}'", quote(name))))?;
    // Only now: the byte size was checked against the shape that was sent.
    if let Some((spec, reshape)) = spec.and_then(|spec| Some((spec, spec.reshape.as_ref()?))) {
        let batched = usize::from(binding.max_batch_size > 0);
        let free = variable(&spec.dims, &tensor.shape[batched..]);
        tensor.shape = reshaped(&tensor.shape[..batched], reshape, &free);
    }
    Ok(())
}

fn check_shape(
    binding: &Binding,
    spec: &Spec,
    name: &str,
    tensor: &Tensor,
    batch: &mut Option<i64>,
) -> Result<()> {
    let batched = usize::from(binding.max_batch_size > 0);
    let fits = tensor.shape.len() == spec.dims.len() + batched
        && tensor
            .shape
            .iter()
            .skip(batched)
            .zip(&spec.dims)
            .all(|(&got, &dim)| got == dim || (dim == -1 && got >= 0));
    if !fits {
        let expected: Vec<i64> = std::iter::repeat_n(-1, batched).chain(spec.dims.iter().copied()).collect();
        return Err(Error::invalid(format!(
            "unexpected shape for input '{name}' for model '{}'. Expected {}, got {}",
            binding.model,
            shape_text(&expected),
            shape_text(&tensor.shape)
        )));
    }
    if batched == 0 {
        return Ok(());
    }
    let size = tensor.shape[0];
    if size < 1 || size > i64::from(binding.max_batch_size) {
        return Err(Error::invalid(format!(
            "inference request batch-size must be <= {} for '{}' and at least 1, but the first dimension of input \
             '{name}' is {size}",
            binding.max_batch_size, binding.model
        )));
    }
    match *batch {
        Some(other) if other != size => Err(Error::invalid(format!(
            "input '{name}' batch size does not match other inputs for '{}': its first dimension is {size}, theirs \
             is {other}",
            binding.model
        ))),
        Some(_) | None => {
            *batch = Some(size);
            Ok(())
        }
    }
}

/// The sizes that stand where `dims` is variable.
pub(crate) fn variable(dims: &[i64], shape: &[i64]) -> Vec<i64> {
    dims.iter().zip(shape).filter(|(dim, _)| **dim == -1).map(|(_, &size)| size).collect()
}

/// `batch` and `target`, whose variable dimensions are `free` in turn.
pub(crate) fn reshaped(batch: &[i64], target: &[i64], free: &[i64]) -> Vec<i64> {
    let mut free = free.iter();
    let fill = |&dim: &i64| if dim == -1 { free.next().copied().unwrap_or(-1) } else { dim };
    batch.iter().copied().chain(target.iter().map(fill).collect::<Vec<_>>()).collect()
}

/// A whole argument out of its tensor.
fn argument(binding: &Binding, kind: &ArgumentKind, name: &str, tensor: Tensor) -> Result<Arg> {
    Ok(match kind {
        ArgumentKind::Tensor => Arg::Tensor(tensor),
        ArgumentKind::Strings => match tensor.value {
            Value::Host(data) => Arg::Strings(data),
            Value::Device(_) | Value::Joined(_) => Arg::Default,
        },
        ArgumentKind::Int => {
            let bytes = scalar(binding, name, &tensor)?;
            Arg::Int(integer(bytes, tensor.data_type).ok_or_else(|| {
                Error::invalid(format!(
                    "input '{}' of model '{}' is an int argument of forward, which holds at most {}",
                    quote(name),
                    binding.model,
                    i64::MAX
                ))
            })?)
        }
        ArgumentKind::Float => Arg::Float(float(scalar(binding, name, &tensor)?)),
        ArgumentKind::Bool => Arg::Bool(scalar(binding, name, &tensor)?.iter().any(|&byte| byte != 0)),
        ArgumentKind::Str => Arg::Str(scalar(binding, name, &tensor)?.to_vec().into()),
        // Lists and dicts are gathered from their elements, others have no place.
        ArgumentKind::Tensors | ArgumentKind::Dict | ArgumentKind::Other(_) => Arg::Default,
    })
}

/// The one element of a scalar. With a batch dimension every row must say the same: `forward` runs
/// once for all of them.
fn scalar<'a>(binding: &Binding, name: &str, tensor: &'a Tensor) -> Result<&'a [u8]> {
    let data = tensor.bytes();
    let mut elements: Box<dyn Iterator<Item = &'a [u8]>> = match tensor.data_type.size() {
        Some(size) => Box::new(data.chunks_exact(size)),
        None => Box::new(strings(data)),
    };
    let batched = binding.max_batch_size > 0;
    let rows =
        if batched { tensor.shape.first().and_then(|&rows| usize::try_from(rows).ok()) } else { Some(1) };
    match elements.next() {
        Some(first) if tensor.elements() == rows && elements.all(|element| element == first) => Ok(first),
        Some(_) | None => Err(Error::invalid(format!(
            "input '{}' of model '{}' is a scalar argument of forward: one element{} is expected, got {}",
            quote(name),
            binding.model,
            if batched { " per row of the batch, in all of them the same," } else { "" },
            if tensor.elements() == rows { "different ones".to_owned() } else { shape_text(&tensor.shape) }
        ))),
    }
}

/// Widens a little-endian integer; `None` for a UINT64 above `i64::MAX`.
fn integer(bytes: &[u8], data_type: DataType) -> Option<i64> {
    let signed = matches!(data_type, DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64);
    let negative = signed && bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut wide = if negative { [0xff; 8] } else { [0; 8] };
    for (to, from) in wide.iter_mut().zip(bytes) {
        *to = *from;
    }
    let wide = i64::from_le_bytes(wide);
    (signed || wide >= 0).then_some(wide)
}

fn float(bytes: &[u8]) -> f64 {
    if let Ok(bytes) = bytes.try_into() {
        return f64::from_le_bytes(bytes);
    }
    bytes.try_into().map_or(f64::NAN, |bytes| f64::from(f32::from_le_bytes(bytes)))
}

fn check_complete(binding: &Binding, seen: &[bool], sent: usize) -> Result<()> {
    let missing: Vec<&str> = binding
        .inputs
        .iter()
        .zip(seen)
        .filter(|(slot, seen)| slot.required && !**seen)
        .map(|(slot, _)| &*slot.name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let got: Vec<&str> =
        binding.inputs.iter().zip(seen).filter(|(_, seen)| **seen).map(|(slot, _)| &*slot.name).collect();
    Err(Error::invalid(format!(
        "expected {} inputs but got {sent} inputs for model '{}'. Got input(s) {}, but missing required input(s) {}. \
         Please provide all required input(s).",
        binding.inputs.len(),
        binding.model,
        list_text(got.into_iter()),
        list_text(missing.into_iter())
    )))
}

/// Puts elements into their lists; they may come in any order but without gaps.
fn gather_lists(
    binding: &Binding,
    mut lists: Vec<(usize, usize, Tensor)>,
    arguments: &mut [Arg],
) -> Result<()> {
    lists.sort_by_key(|&(argument, element, _)| (argument, element));
    for (index, element, tensor) in lists {
        if !matches!(arguments[index], Arg::Tensors(_)) {
            arguments[index] = Arg::Tensors(Vec::new());
        }
        let Arg::Tensors(tensors) = &mut arguments[index] else { continue };
        if tensors.len() != element {
            let name = &binding.arguments[index].name;
            if element < tensors.len() {
                return Err(Error::invalid(format!(
                    "list element '{name}__{element}' is given more than once for model '{}', under several names; \
                     give each element once",
                    binding.model
                )));
            }
            return Err(Error::invalid(format!(
                "missing list element '{name}__{}' for model '{}': elements are numbered from 0 without gaps and \
                 '{name}__{element}' was given",
                tensors.len(),
                binding.model
            )));
        }
        tensors.push(tensor);
    }
    Ok(())
}

/// A list or dict that must be given but has no elements in the request is an empty one.
fn fill_empty_collections(binding: &Binding, arguments: &mut [Arg]) {
    for (argument, slot) in arguments.iter_mut().zip(&binding.arguments) {
        if matches!(argument, Arg::Default) && !slot.optional {
            match slot.kind {
                ArgumentKind::Tensors => *argument = Arg::Tensors(Vec::new()),
                ArgumentKind::Dict => *argument = Arg::Dict(Vec::new()),
                ArgumentKind::Tensor
                | ArgumentKind::Strings
                | ArgumentKind::Int
                | ArgumentKind::Float
                | ArgumentKind::Bool
                | ArgumentKind::Str
                | ArgumentKind::Other(_) => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
