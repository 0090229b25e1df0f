//! Several calls as one: which may be joined, and how their arguments and answers are.
//!
//! Calls may run together when every dimension but the first and those of what is filled up or ragged agrees, the same
//! optional arguments are there, and scalars are equal. Each tensor is copied once, into its place in the
//! batch; the parts of an answer are views. Tensors that stay on their device are joined there, by the backend,
//! and what stays of an answer is copied there for each.

use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::{Bytes, BytesMut};

use crate::{
    backend::HostBuffer,
    padding::{self, Joining},
    ragged,
    text::shape_text,
    value::{Arg, Call, Output, Tensor, Value, element_count, strings},
};

/// What the scheduler has to know of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Traits {
    /// Its first dimension.
    pub(crate) rows: usize,
    /// Bytes of its tensors.
    pub(crate) bytes: usize,
    /// Equal for calls that may run together; `None` for one that runs by itself.
    pub(crate) key: Option<u64>,
}

/// `rows` as the check of the request found them: `None` where the model has no batch dimension.
pub(crate) fn traits(call: &Call, rows: Option<i64>) -> Traits {
    let mut bytes = 0;
    let mut hasher = DefaultHasher::new();
    call.keep.hash(&mut hasher);
    let mut joins = rows.is_some();
    let rows = rows.and_then(|rows| usize::try_from(rows).ok()).unwrap_or(1).max(1);
    for argument in &call.arguments {
        std::mem::discriminant(argument).hash(&mut hasher);
        match argument {
            Arg::Default => {}
            Arg::Tensor(tensor) => joins &= hash_tensor(tensor, rows, &mut hasher, &mut bytes),
            Arg::Tensors(tensors) => {
                tensors.len().hash(&mut hasher);
                for tensor in tensors {
                    joins &= hash_tensor(tensor, rows, &mut hasher, &mut bytes);
                }
            }
            Arg::Dict(entries) => {
                entries.len().hash(&mut hasher);
                for (key, tensor) in entries {
                    key.hash(&mut hasher);
                    joins &= hash_tensor(tensor, rows, &mut hasher, &mut bytes);
                }
            }
            Arg::Strings(data) => {
                bytes += data.len();
                // As many elements as rows, else it is not known which belong to which row.
                joins = joins && strings(data).count() == rows;
            }
            Arg::Int(value) => value.hash(&mut hasher),
            Arg::Float(value) => value.to_bits().hash(&mut hasher),
            Arg::Bool(value) => value.hash(&mut hasher),
            Arg::Str(data) => {
                bytes += data.len();
                data.hash(&mut hasher);
            }
        }
    }
    Traits { rows, bytes, key: joins.then(|| hasher.finish()) }
}

fn hash_tensor(tensor: &Tensor, rows: usize, hasher: &mut DefaultHasher, bytes: &mut usize) -> bool {
    match &tensor.value {
        Value::Host(data) => *bytes += data.len(),
        // It is where it is needed, and may be joined with what comes from a request.
        Value::Device(_) if tensor.joining.is_none() => {}
        Value::Device(_) | Value::Joined(_) => return false,
    }
    tensor.data_type.hash(hasher);
    let Some((first, rest)) = tensor.shape.split_first() else { return false };
    match tensor.joining.as_deref() {
        None => rest.hash(hasher),
        Some(Joining::Pad(rule)) => {
            rest.len().hash(hasher);
            rule.fixed(&tensor.shape).for_each(|dim| dim.hash(hasher));
        }
        // It does not go by rows.
        Some(Joining::Ragged | Joining::Made(_)) => return true,
    }
    usize::try_from(*first).is_ok_and(|first| first == rows)
}

/// Whether calls of equal keys really are alike: a key is a hash.
pub(crate) fn alike(one: &Call, other: &Call) -> bool {
    one.keep == other.keep
        && one.arguments.len() == other.arguments.len()
        && one.arguments.iter().zip(&other.arguments).all(|(one, other)| match (one, other) {
            (Arg::Default, Arg::Default) | (Arg::Strings(_), Arg::Strings(_)) => true,
            (Arg::Tensor(one), Arg::Tensor(other)) => alike_tensors(one, other),
            (Arg::Tensors(one), Arg::Tensors(other)) => {
                one.len() == other.len()
                    && one.iter().zip(other).all(|(one, other)| alike_tensors(one, other))
            }
            (Arg::Dict(one), Arg::Dict(other)) => {
                one.len() == other.len()
                    && one
                        .iter()
                        .zip(other)
                        .all(|(one, other)| one.0 == other.0 && alike_tensors(&one.1, &other.1))
            }
            (Arg::Int(one), Arg::Int(other)) => one == other,
            (Arg::Float(one), Arg::Float(other)) => one.to_bits() == other.to_bits(),
            (Arg::Bool(one), Arg::Bool(other)) => one == other,
            (Arg::Str(one), Arg::Str(other)) => one == other,
            _ => false,
        })
}

fn alike_tensors(one: &Tensor, other: &Tensor) -> bool {
    one.data_type == other.data_type
        && one.shape.len() == other.shape.len()
        && one.joining == other.joining
        && match one.joining.as_deref() {
            None => one.shape.iter().skip(1).eq(other.shape.iter().skip(1)),
            Some(Joining::Pad(rule)) => rule.fixed(&one.shape).eq(rule.fixed(&other.shape)),
            Some(Joining::Ragged | Joining::Made(_)) => true,
        }
}

/// Lends memory for a tensor of so many bytes; `None` where any memory will do.
pub(crate) type Lend<'a> = dyn FnMut(usize) -> Option<Box<dyn HostBuffer>> + 'a;

/// A tensor's bytes while they are written, each once, from the first to the last.
pub(crate) enum Writer {
    Own(Vec<u8>),
    Lent(Lent),
}

pub(crate) struct Lent {
    buffer: Box<dyn HostBuffer>,
    written: usize,
}

impl Lent {
    /// The part that comes next.
    fn next(&mut self, bytes: usize) -> &mut [u8] {
        let from = self.written;
        self.written += bytes;
        &mut (*self.buffer).as_mut()[from..self.written]
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &(*self.buffer).as_ref()[..self.written]
    }
}

impl Writer {
    pub(crate) fn new(bytes: usize, lend: &mut Lend<'_>) -> Self {
        let lent = if bytes == 0 { None } else { lend(bytes) };
        match lent {
            Some(buffer) => Self::Lent(Lent { buffer, written: 0 }),
            None => Self::Own(Vec::with_capacity(bytes)),
        }
    }

    pub(crate) fn written(&self) -> usize {
        match self {
            Self::Own(data) => data.len(),
            Self::Lent(lent) => lent.written,
        }
    }

    pub(crate) fn put(&mut self, data: &[u8]) {
        match self {
            Self::Own(own) => own.extend_from_slice(data),
            Self::Lent(lent) => lent.next(data.len()).copy_from_slice(data),
        }
    }

    /// The same byte until so many have been written.
    pub(crate) fn fill(&mut self, until: usize, byte: u8) {
        match self {
            Self::Own(own) => own.resize(until.max(own.len()), byte),
            Self::Lent(lent) => lent.next(until.saturating_sub(lent.written)).fill(byte),
        }
    }

    pub(crate) fn finish(self) -> Bytes {
        match self {
            Self::Own(data) => Bytes::from(data),
            Self::Lent(lent) => Bytes::from_owner(lent),
        }
    }
}

/// One call of all rows of these, and behind them rows of zeros and empty strings until there are `total`.
/// The calls are alike, and there is at least one. Tensors are put into memory that `lend` gives, if it does.
pub(crate) fn gather(calls: &[&Call], rows: &[usize], total: usize, lend: &mut Lend<'_>) -> Call {
    let padding = total.saturating_sub(rows.iter().sum());
    let width = calls.first().map_or(0, |call| call.arguments.len());
    let arguments = (0..width).map(|index| {
        let all = || calls.iter().map(move |call| &call.arguments[index]);
        match &calls[0].arguments[index] {
            Arg::Tensor(first) => Arg::Tensor(join(first, all().filter_map(tensor_of), total, lend)),
            Arg::Tensors(first) => Arg::Tensors(
                (0..first.len())
                    .map(|at| join(&first[at], all().filter_map(|arg| element_of(arg, at)), total, lend))
                    .collect(),
            ),
            Arg::Dict(first) => {
                let entry = |(at, (key, tensor)): (usize, &(std::sync::Arc<str>, Tensor))| {
                    (
                        std::sync::Arc::clone(key),
                        join(tensor, all().filter_map(|arg| element_of(arg, at)), total, lend),
                    )
                };
                Arg::Dict(first.iter().enumerate().map(entry).collect())
            }
            Arg::Strings(_) => {
                let mut data = BytesMut::new();
                for argument in all() {
                    if let Arg::Strings(strings) = argument {
                        data.extend_from_slice(strings);
                    }
                }
                data.resize(data.len() + 4 * padding, 0);
                Arg::Strings(data.freeze())
            }
            scalar @ (Arg::Default | Arg::Int(_) | Arg::Float(_) | Arg::Bool(_) | Arg::Str(_)) => {
                scalar.clone()
            }
        }
    });
    Call { arguments: arguments.collect(), keep: calls[0].keep.clone(), shares: None }
}

fn tensor_of(argument: &Arg) -> Option<&Tensor> {
    match argument {
        Arg::Tensor(tensor) => Some(tensor),
        _ => None,
    }
}

fn element_of(argument: &Arg, index: usize) -> Option<&Tensor> {
    match argument {
        Arg::Tensors(tensors) => tensors.get(index),
        Arg::Dict(entries) => entries.get(index).map(|(_, tensor)| tensor),
        _ => None,
    }
}

/// Tensors below each other.
fn join<'a>(
    first: &Tensor,
    tensors: impl Iterator<Item = &'a Tensor> + Clone,
    total: usize,
    lend: &mut Lend<'_>,
) -> Tensor {
    match first.joining.as_deref() {
        None => {}
        Some(Joining::Pad(rule)) => return padding::join(rule, first, tensors, total, lend),
        Some(Joining::Ragged) => return ragged::join(first, tensors, lend),
        Some(Joining::Made(kind)) => return ragged::join_made(*kind, first, tensors),
    }
    if tensors.clone().any(|tensor| !matches!(tensor.value, Value::Host(_))) {
        return join_there(first, tensors, total);
    }
    let mut shape = first.shape.clone();
    let rows = usize::try_from(shape[0]).unwrap_or(1).max(1);
    let row = first.bytes().len() / rows;
    let mut data = Writer::new(row * total, lend);
    for tensor in tensors {
        data.put(tensor.bytes());
    }
    data.fill(row * total, 0);
    shape[0] = i64::try_from(total).unwrap_or(i64::MAX);
    Tensor::host(first.data_type, shape, data.finish())
}

/// Tensors of which some are on their device, where the backend will put them below each other.
fn join_there<'a>(first: &Tensor, tensors: impl Iterator<Item = &'a Tensor>, total: usize) -> Tensor {
    let mut parts: Vec<Tensor> = tensors.cloned().collect();
    let of_rows = |rows: i64| {
        let mut shape = first.shape.clone();
        shape[0] = rows;
        shape
    };
    let total = i64::try_from(total).unwrap_or(i64::MAX);
    let missing = total - parts.iter().map(|part| part.shape[0]).sum::<i64>();
    if missing > 0 {
        let shape = of_rows(missing);
        let bytes = element_count(&shape).unwrap_or(0) * first.data_type.size().unwrap_or(0);
        parts.push(Tensor::host(first.data_type, shape, Bytes::from(vec![0; bytes])));
    }
    let (data_type, shape) = (first.data_type, of_rows(total));
    Tensor { data_type, shape, value: Value::Joined(parts), joining: None }
}

/// The parts of a batch's answer, one for each number of rows; rows beyond them are dropped.
///
/// # Errors
/// One sentence, where the answer does not have as many rows as the batch.
pub(crate) fn scatter(output: &Output, rows: &[usize], total: usize) -> Result<Vec<Output>, String> {
    match output {
        Output::Tensor(tensor) => slices(tensor, rows, total),
        Output::Strings(tensor) => split_strings(tensor, rows, total),
        Output::List(_) | Output::Tuple(_) | Output::Dict(_) => {
            divide(output, rows.len(), |_, _, output| scatter(output, rows, total))
        }
        // It is refused for each request as it would be if the request ran alone.
        Output::Other(kind) => Ok(rows.iter().map(|_| Output::Other(kind.clone())).collect()),
    }
}

/// A collection for each of so many, of the parts of its elements; an element is told with its name and its
/// place, as far as it has them. What is no collection has no parts.
pub(crate) fn divide(
    output: &Output,
    count: usize,
    part: impl Fn(Option<&str>, Option<usize>, &Output) -> Result<Vec<Output>, String>,
) -> Result<Vec<Output>, String> {
    match output {
        Output::List(elements) => {
            let parts = elements.iter().enumerate().map(|(index, element)| part(None, Some(index), element));
            Ok(transpose(parts, count)?.into_iter().map(Output::List).collect())
        }
        Output::Tuple(elements) => {
            let parts = elements.iter().enumerate();
            let parts = parts.map(|(index, (name, element))| part(name.as_deref(), Some(index), element));
            let names = || elements.iter().map(|(name, _)| name.clone());
            let parts = transpose(parts, count)?;
            Ok(parts.into_iter().map(|part| Output::Tuple(names().zip(part).collect())).collect())
        }
        Output::Dict(entries) => {
            let parts = entries.iter().map(|(key, element)| part(Some(key), None, element));
            let keys = || entries.iter().map(|(key, _)| key.clone());
            let parts = transpose(parts, count)?;
            Ok(parts.into_iter().map(|part| Output::Dict(keys().zip(part).collect())).collect())
        }
        Output::Tensor(_) | Output::Strings(_) | Output::Other(_) => Err("no collection".to_owned()),
    }
}

/// From the parts of each element to the elements of each part.
fn transpose(
    elements: impl Iterator<Item = Result<Vec<Output>, String>>,
    count: usize,
) -> Result<Vec<Vec<Output>>, String> {
    let mut parts: Vec<Vec<Output>> = (0..count).map(|_| Vec::new()).collect();
    for element in elements {
        for (part, output) in parts.iter_mut().zip(element?) {
            part.push(output);
        }
    }
    Ok(parts)
}

fn slices(tensor: &Tensor, rows: &[usize], total: usize) -> Result<Vec<Output>, String> {
    let first = tensor.shape.first().and_then(|first| usize::try_from(*first).ok());
    if first != Some(total) || total == 0 {
        return Err(format!("a tensor of shape {} for a batch of {total}", shape_text(&tensor.shape)));
    }
    let values: Vec<Value> = match &tensor.value {
        Value::Host(data) => {
            let row = data.len() / total;
            let mut at = 0;
            let part = |&rows: &usize| {
                at += rows;
                Value::Host(data.slice((at - rows) * row..at * row))
            };
            rows.iter().map(part).collect()
        }
        value @ Value::Device(_) if rows == [total] => vec![value.clone()],
        Value::Device(kept) => kept.split(rows)?.into_iter().map(Value::Device).collect(),
        Value::Joined(_) => return Err("a tensor in parts".to_owned()),
    };
    let of_rows = |(value, &rows): (Value, &usize)| {
        let mut shape = tensor.shape.clone();
        shape[0] = i64::try_from(rows).unwrap_or(i64::MAX);
        Output::Tensor(Tensor { data_type: tensor.data_type, shape, value, joining: None })
    };
    Ok(values.into_iter().zip(rows).map(of_rows).collect())
}

fn split_strings(tensor: &Tensor, rows: &[usize], total: usize) -> Result<Vec<Output>, String> {
    let Value::Host(data) = &tensor.value else {
        return Err("a batch's answer stayed on its device".to_owned());
    };
    if tensor.shape != [i64::try_from(total).unwrap_or(i64::MAX)] {
        return Err(format!("strings of shape {} for a batch of {total}", shape_text(&tensor.shape)));
    }
    let mut lengths = strings(data).map(|element| 4 + element.len());
    let mut at = 0;
    let parts = rows.iter().map(|&rows| {
        let length: usize = lengths.by_ref().take(rows).sum();
        let part = data.slice(at..at + length);
        at += length;
        let shape = vec![i64::try_from(rows).unwrap_or(i64::MAX)];
        Output::Strings(Tensor::host(tensor.data_type, shape, part))
    });
    Ok(parts.collect())
}

#[cfg(test)]
#[path = "batch_tests.rs"]
pub(crate) mod tests;
