//! Requests of different shapes one behind the other, for models that take them so: what such a model gets beside
//! the elements, and how its outputs are divided.
//!
//! A call of one request is made as the model would get it alone: its ragged inputs in one dimension, and what the
//! server makes of their shapes. Several such calls are joined to one of the same layout.

use std::sync::Arc;

use sconce_repository::{BatchInputKind, ModelConfig, Padding};

use crate::{
    DataType, Error, Result,
    backend::LoadError,
    batch::{self, Lend, Writer, divide},
    binding::{InputSlot, Place},
    outputs::OutputPlan,
    padding::{self, Joining, Lengths},
    schema::{ArgumentKind, Return, Schema},
    text::shape_text,
    value::{Call, Kept, Output, Tensor, Value, element_count},
};

/// Up to here FP32 has every whole number.
const MOST_FP32: u64 = 1 << 24;

/// What of a version's inputs and outputs goes by requests and not by rows.
#[derive(Debug)]
pub(crate) struct Plan {
    /// By slot of an input, what is done with it.
    inputs: Vec<Taken>,
    made: Vec<Made>,
    scattered: Vec<Scattered>,
    /// Where the scattered outputs are in what the model returns.
    kept: Arc<[Kept]>,
    ragged: Arc<Joining>,
}

/// What is done with an input of a request.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    /// The model gets it in one dimension.
    ragged: bool,
    /// Its shape is needed.
    source: bool,
}

/// An input that the server makes.
#[derive(Debug)]
struct Made {
    name: Arc<str>,
    place: Place,
    data_type: DataType,
    kind: BatchInputKind,
    source: usize,
    joining: Arc<Joining>,
}

/// An output of which each request gets as much as follows from the shape of an input.
#[derive(Debug)]
struct Scattered {
    /// Its shape but for the batch.
    dims: Vec<i64>,
    source: usize,
}

/// The shapes of a request's inputs that are needed, by slot.
#[derive(Debug, Default)]
pub(crate) struct Shapes(Vec<(usize, Vec<i64>)>);

impl Shapes {
    fn of(&self, slot: usize) -> Option<&[i64]> {
        self.0.iter().find(|(index, _)| *index == slot).map(|(_, shape)| &**shape)
    }
}

/// How much of the outputs that are scattered a request gets.
#[derive(Clone, Debug)]
pub struct Shares {
    outputs: Arc<[Kept]>,
    /// Elements of each of them.
    elements: Vec<usize>,
}

impl Plan {
    /// From the slots of the inputs that clients send and of those that the server makes; `None` where everything
    /// goes by rows.
    ///
    /// # Errors
    /// One sentence: what `forward` takes or returns that cannot be ragged.
    pub(crate) fn new(
        config: &ModelConfig,
        schema: &Schema,
        slots: &[InputSlot],
        made: Vec<InputSlot>,
        outputs: &mut OutputPlan,
    ) -> std::result::Result<Option<Self>, LoadError> {
        let mut inputs = vec![Taken::default(); slots.len()];
        for (index, input) in config.inputs.iter().enumerate() {
            if input.padding == Some(Padding::Ragged) {
                check_tensor(&slots[index], schema, "is ragged")?;
                inputs[index].ragged = true;
            }
        }
        let mut source = |name: &str| {
            let source = padding::position(config, name);
            let unknown =
                || LoadError::new(format!("there is no input '{name}' of which something could be told"));
            let source = source.filter(|index| *index < slots.len()).ok_or_else(unknown)?;
            inputs[source].source = true;
            Ok::<usize, LoadError>(source)
        };
        let mut all = Vec::with_capacity(made.len());
        for (slot, input) in made.into_iter().zip(&config.batch_inputs) {
            check_tensor(&slot, schema, "is made by the server")?;
            all.push(Made {
                name: slot.name,
                place: slot.place,
                data_type: input.data_type,
                kind: input.kind,
                source: source(&input.source)?,
                joining: Arc::new(Joining::Made(input.kind)),
            });
        }
        let (mut scattered, mut kept) = (Vec::new(), Vec::new());
        for (output, slot) in config.outputs.iter().zip(&mut outputs.slots) {
            let Some(Padding::ScatterLike(input)) = &output.padding else { continue };
            slot.scattered = Some(scattered.len());
            kept.push(top(slot, &schema.returns)?);
            let dims = output.reshape.as_ref().unwrap_or(&output.dims).clone();
            scattered.push(Scattered { dims, source: source(input)? });
        }
        let is_by_rows = all.is_empty() && scattered.is_empty() && !inputs.iter().any(|input| input.ragged);
        let ragged = Arc::new(Joining::Ragged);
        let plan = Self { inputs, made: all, scattered, kept: kept.into(), ragged };
        Ok((!is_by_rows).then_some(plan))
    }

    /// Takes an input of a request, as the model sees it, in one dimension if it is ragged.
    pub(crate) fn take(&self, index: usize, tensor: &mut Tensor, shapes: &mut Shapes) {
        let Some(Taken { ragged, source }) = self.inputs.get(index).copied() else { return };
        if source {
            shapes.0.push((index, tensor.shape.clone()));
        }
        if ragged {
            let count = tensor.elements().unwrap_or(0);
            tensor.shape = vec![i64::try_from(count).unwrap_or(i64::MAX)];
            tensor.joining = Some(Arc::clone(&self.ragged));
        }
    }

    /// What the server makes of the shapes of a request: where it belongs, its name, and it.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a number that does not fit its type.
    pub(crate) fn make<'a>(
        &'a self,
        model: &str,
        shapes: &'a Shapes,
    ) -> impl Iterator<Item = Result<(&'a Place, &'a str, Tensor)>> {
        let make = move |made: &'a Made| {
            let shape = shapes.of(made.source)?;
            let too_large = |most: u64| {
                Error::invalid(format!(
                    "input '{}' of model '{model}' is made as {} of a tensor of shape {}, and it can tell numbers up to {most} \
                     only; send a smaller one",
                    made.name,
                    made.data_type,
                    shape_text(shape)
                ))
            };
            let tensor = made.of(shape).map_err(too_large);
            Some(tensor.map(|tensor| (&made.place, &*made.name, tensor)))
        };
        self.made.iter().filter_map(make)
    }

    /// Notes how much of the scattered outputs a request of these shapes gets.
    pub(crate) fn share(&self, shapes: &Shapes, call: &mut Call, lengths: &mut Lengths) {
        if self.scattered.is_empty() {
            return;
        }
        let shape = |scattered: &Scattered| {
            let shape = shapes.of(scattered.source).unwrap_or_default();
            let (batch, rest) = shape.split_at(shape.len().min(1));
            let own =
                |(at, dim): (usize, &i64)| if *dim == -1 { rest.get(at).copied().unwrap_or(0) } else { *dim };
            batch.iter().copied().chain(scattered.dims.iter().enumerate().map(own)).collect::<Vec<i64>>()
        };
        let shapes: Vec<Vec<i64>> = self.scattered.iter().map(shape).collect();
        let elements = shapes.iter().map(|shape| element_count(shape).unwrap_or(usize::MAX)).collect();
        call.shares = Some(Box::new(Shares { outputs: Arc::clone(&self.kept), elements }));
        lengths.scatter(shapes);
    }
}

/// Only tensors are joined.
fn check_tensor(slot: &InputSlot, schema: &Schema, what: &str) -> std::result::Result<(), LoadError> {
    let argument = &schema.arguments[slot.place.argument()];
    if matches!(argument.kind, ArgumentKind::Tensor | ArgumentKind::Tensors | ArgumentKind::Dict) {
        return Ok(());
    }
    Err(LoadError::new(format!(
        "input '{}' {what}, but argument `{}` of forward is no tensor; make it one",
        slot.name, argument.name
    )))
}

fn top(slot: &crate::outputs::OutputSlot, returns: &Return) -> std::result::Result<Kept, LoadError> {
    slot.top(returns).ok_or_else(|| {
        LoadError::new(format!(
            "output '{}' is scattered by the shape of an input, so it has to be an element of what forward returns, not of \
             a list, tuple or dict in that",
            slot.name
        ))
    })
}

impl Made {
    /// For a request whose source has this shape.
    ///
    /// # Errors
    /// The largest number that it can tell.
    fn of(&self, shape: &[i64]) -> std::result::Result<Tensor, u64> {
        let number = |number: u64| {
            let most = most(self.data_type);
            if number <= most { Ok(bytes(self.data_type, number)) } else { Err(most) }
        };
        let count = element_count(shape).unwrap_or(0) as u64;
        let (own, data) = match self.kind {
            BatchInputKind::Counts | BatchInputKind::Ends => (vec![1], number(count)?),
            BatchInputKind::Offsets => (vec![2], [number(0)?, number(count)?].concat()),
            BatchInputKind::Longest => {
                let size = self.data_type.size().unwrap_or(0);
                (
                    vec![i64::try_from(count).unwrap_or(i64::MAX)],
                    vec![0; element_count(shape).unwrap_or(0) * size],
                )
            }
            BatchInputKind::Shapes | BatchInputKind::FlatShapes => {
                let (rows, dims) = (shape.first().copied().unwrap_or(0), &shape[shape.len().min(1)..]);
                let row: Vec<Vec<u8>> = dims
                    .iter()
                    .map(|dim| number(dim.unsigned_abs()))
                    .collect::<std::result::Result<_, _>>()?;
                let width = i64::try_from(dims.len()).unwrap_or(i64::MAX);
                let own = match self.kind {
                    BatchInputKind::Shapes => vec![rows, width],
                    _ => vec![rows.saturating_mul(width)],
                };
                (own, row.concat().repeat(usize::try_from(rows).unwrap_or(0)))
            }
        };
        let tensor = Tensor::host(self.data_type, own, data.into());
        Ok(tensor.joined_by(Arc::clone(&self.joining)))
    }
}

/// The largest whole number up to which a type has all.
fn most(data_type: DataType) -> u64 {
    match data_type {
        DataType::Fp32 => MOST_FP32,
        DataType::Int32 => i32::MAX.unsigned_abs().into(),
        _ => i64::MAX.unsigned_abs(),
    }
}

/// A number that fits, as an element.
fn bytes(data_type: DataType, number: u64) -> Vec<u8> {
    match data_type {
        DataType::Fp32 => (number as f32).to_le_bytes().to_vec(),
        DataType::Int32 => i32::try_from(number).unwrap_or(i32::MAX).to_le_bytes().to_vec(),
        _ => i64::try_from(number).unwrap_or(i64::MAX).to_le_bytes().to_vec(),
    }
}

/// The number that stands last.
fn last(tensor: &Tensor) -> u64 {
    let data = tensor.bytes();
    let number = match tensor.data_type {
        DataType::Fp32 => data.last_chunk().map(|bytes| f32::from_le_bytes(*bytes) as u64),
        DataType::Int32 => data.last_chunk().map(|bytes| i32::from_le_bytes(*bytes).unsigned_abs().into()),
        _ => data.last_chunk().map(|bytes| i64::from_le_bytes(*bytes).unsigned_abs()),
    };
    number.unwrap_or(0)
}

/// A number that adds up from request to request, and the largest that it may become.
pub(crate) fn counted(kind: BatchInputKind, tensor: &Tensor) -> Option<(u64, u64)> {
    let adds_up = matches!(kind, BatchInputKind::Ends | BatchInputKind::Offsets);
    adds_up.then(|| (last(tensor), most(tensor.data_type)))
}

/// All elements one behind the other.
pub(crate) fn join<'a>(
    first: &Tensor,
    tensors: impl Iterator<Item = &'a Tensor> + Clone,
    lend: &mut Lend<'_>,
) -> Tensor {
    let mut data = Writer::new(tensors.clone().map(|tensor| tensor.bytes().len()).sum(), lend);
    let mut count = 0;
    for tensor in tensors {
        data.put(tensor.bytes());
        count += tensor.shape.first().copied().unwrap_or(0);
    }
    Tensor::host(first.data_type, vec![count], data.finish())
}

/// What the server has made for each request, as one for all.
pub(crate) fn join_made<'a>(
    kind: BatchInputKind,
    first: &Tensor,
    tensors: impl Iterator<Item = &'a Tensor> + Clone,
) -> Tensor {
    let data_type = first.data_type;
    match kind {
        BatchInputKind::Longest => {
            let longest = tensors.max_by_key(|tensor| tensor.shape.first().copied()).unwrap_or(first).clone();
            Tensor { joining: None, ..longest }
        }
        BatchInputKind::Ends | BatchInputKind::Offsets => {
            let (mut end, mut numbers) = (0, Vec::new());
            if kind == BatchInputKind::Offsets {
                numbers.push(0);
            }
            for tensor in tensors {
                end += last(tensor);
                numbers.push(end);
            }
            let data: Vec<u8> = numbers.iter().flat_map(|number| bytes(data_type, *number)).collect();
            Tensor::host(data_type, vec![i64::try_from(numbers.len()).unwrap_or(i64::MAX)], data.into())
        }
        BatchInputKind::Counts | BatchInputKind::Shapes | BatchInputKind::FlatShapes => {
            let mut joined = join(first, tensors, &mut |_| None);
            joined.shape.extend(first.shape.iter().skip(1));
            joined
        }
    }
}

/// The parts of a batch's answer, of calls that say which of its outputs they share by elements; the others are
/// divided by rows.
///
/// # Errors
/// One sentence, where there is not as much as they share.
pub(crate) fn scatter(
    output: &Output,
    shares: &[&Shares],
    rows: &[usize],
    total: usize,
) -> std::result::Result<Vec<Output>, String> {
    let outputs = shares.first().map_or(&[][..], |shares| &shares.outputs);
    let part = |name: Option<&str>, place: Option<usize>, output: &Output| match outputs
        .iter()
        .position(|kept| kept.is(name, place))
    {
        Some(index) => cut(output, shares.iter().map(|shares| shares.elements[index])),
        None => batch::scatter(output, rows, total),
    };
    match output {
        Output::List(_) | Output::Tuple(_) | Output::Dict(_) => divide(output, rows.len(), part),
        leaf @ (Output::Tensor(_) | Output::Strings(_) | Output::Other(_)) => part(None, Some(0), leaf),
    }
}

/// So many elements for each, in one dimension.
fn cut(
    output: &Output,
    elements: impl Iterator<Item = usize> + Clone,
) -> std::result::Result<Vec<Output>, String> {
    let Output::Tensor(tensor) = output else { return Err("no tensor where one is shared".to_owned()) };
    let (Value::Host(data), Some(size)) = (&tensor.value, tensor.data_type.size()) else {
        return Err("a shared tensor that is not in memory".to_owned());
    };
    let wanted = elements.clone().fold(0usize, usize::saturating_add);
    if tensor.elements() != Some(wanted) {
        let shape = shape_text(&tensor.shape);
        return Err(format!("a tensor of shape {shape} for requests that share {wanted} elements"));
    }
    let mut at = 0;
    let part = |count: usize| {
        at += count * size;
        let shape = vec![i64::try_from(count).unwrap_or(i64::MAX)];
        Output::Tensor(Tensor::host(tensor.data_type, shape, data.slice(at - count * size..at)))
    };
    Ok(elements.map(part).collect())
}

#[cfg(test)]
#[path = "ragged_tests.rs"]
mod tests;
