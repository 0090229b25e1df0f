//! Requests of different lengths as one batch: what is filled up, who may join, and what is cut back.
//!
//! An input may say what its variable dimensions are filled up with. Then they need not agree: the short
//! ones get as long as the longest of their batch, as long as that does not make much work of nothing. A
//! mask tells the model what was there, and outputs are cut back to what each request had.

use std::sync::Arc;

use bytes::Bytes;
use sconce_repository::{BatchInputKind, Filler, ModelConfig, Padding};

use crate::{
    Error, Result,
    backend::LoadError,
    batch::{Lend, Writer},
    binding::{InputSlot, Spec},
    check::{reshaped, variable},
    ragged,
    schema::{ArgumentKind, Schema},
    text::shape_text,
    value::{Arg, Call, Tensor, Value, element_count},
};

/// A batch is at most so many times as large as its requests were.
const MOST: u64 = 2;
/// A row is filled up to at most so many times its size: whoever asks for little is not to wait for much.
const MOST_ROW: u64 = 4;

/// How an input of several requests becomes one, where that is not row below row.
#[derive(Debug, PartialEq, Eq)]
pub enum Joining {
    /// Row below row, each filled up to the largest.
    Pad(PadRule),
    /// All elements in one dimension, request behind request.
    Ragged,
    /// The server has made it, and makes one for all.
    Made(BatchInputKind),
}

/// How a tensor is filled up.
#[derive(Debug, PartialEq, Eq)]
pub struct PadRule {
    /// The dimensions that may differ, ascending; never the first, which is the batch.
    axes: Vec<usize>,
    filler: Filler,
}

impl PadRule {
    /// These dimensions with this element.
    pub fn new(axes: Vec<usize>, filler: Filler) -> Self {
        Self { axes, filler }
    }

    /// The dimensions that others must have too, with their places.
    pub(crate) fn fixed<'a>(&'a self, shape: &'a [i64]) -> impl Iterator<Item = (usize, i64)> + 'a {
        shape.iter().copied().enumerate().skip(1).filter(|(axis, _)| !self.axes.contains(axis))
    }
}

/// How an input takes part.
#[derive(Debug)]
pub(crate) struct SlotPadding {
    pub(crate) rule: Arc<Joining>,
    /// Where it is the mask of another: which, and what says that there is an element.
    mask: Option<(usize, Filler)>,
}

/// What has to be known of a request to give its outputs the shapes that its inputs have.
#[derive(Clone, Debug, Default)]
pub struct Lengths {
    /// The variable dimensions of its inputs that are filled up, by slot.
    inputs: Vec<(usize, Vec<i64>)>,
    /// The shapes of the outputs that are scattered by those of inputs.
    scattered: Vec<Vec<i64>>,
}

impl Lengths {
    /// Those of an input of a request; nothing to note where it is not filled up.
    pub(crate) fn note(&mut self, index: usize, slot: &InputSlot, tensor: &Tensor) {
        if let (Some(_), Some(spec)) = (&slot.padding, &slot.spec) {
            self.inputs.push((index, variable(model_dims(spec), &tensor.shape[1..])));
        }
    }

    /// Those of the input in this slot, if it is there.
    pub(crate) fn of(&self, slot: usize) -> Option<&[i64]> {
        self.inputs.iter().find(|(index, _)| *index == slot).map(|(_, lengths)| &**lengths)
    }

    /// Notes the shapes of the outputs that are scattered.
    pub(crate) fn scatter(&mut self, shapes: Vec<Vec<i64>>) {
        self.scattered = shapes;
    }

    /// The shape of the n-th output that is scattered.
    pub(crate) fn scattered(&self, index: usize) -> Option<&[i64]> {
        self.scattered.get(index).map(|shape| &**shape)
    }
}

/// The shape that the model sees, without the batch.
fn model_dims(spec: &Spec) -> &[i64] {
    spec.reshape.as_ref().unwrap_or(&spec.dims)
}

/// The places of the variable dimensions, behind that of the batch.
fn axes(dims: &[i64]) -> Vec<usize> {
    dims.iter().enumerate().filter(|(_, dim)| **dim == -1).map(|(index, _)| index + 1).collect()
}

/// Decides how the inputs of a configuration take part.
///
/// # Errors
/// One sentence, where `forward` takes something there that cannot be filled up or made.
pub(crate) fn plan(
    config: &ModelConfig,
    schema: &Schema,
    slots: &mut [InputSlot],
) -> std::result::Result<(), LoadError> {
    for (index, input) in config.inputs.iter().enumerate() {
        let Some(padding @ (Padding::Fill(_) | Padding::MaskOf(_))) = &input.padding else { continue };
        let argument = &schema.arguments[slots[index].place.argument()];
        if !matches!(argument.kind, ArgumentKind::Tensor | ArgumentKind::Tensors | ArgumentKind::Dict) {
            return Err(LoadError::new(format!(
                "input '{}' is filled up with `pad` or `mask_of`, but argument `{}` of forward is no tensor; remove it",
                input.name, argument.name
            )));
        }
        let dims = input.reshape.as_ref().unwrap_or(&input.dims);
        let rule = |filler: &Filler| Arc::new(Joining::Pad(PadRule::new(axes(dims), filler.clone())));
        slots[index].padding = match padding {
            Padding::Fill(filler) => Some(SlotPadding { rule: rule(filler), mask: None }),
            Padding::MaskOf(of) => {
                let flags = [false, true].map(|set| Filler::flag(input.data_type, set));
                let [Some(zero), Some(one)] = flags else { continue };
                let mask = position(config, of).map(|of| (of, one));
                Some(SlotPadding { rule: rule(&zero), mask })
            }
            Padding::CutTo(_) | Padding::Ragged | Padding::ScatterLike(_) => None,
        };
        let is_left_out = |of: &str| config.inputs.iter().any(|input| input.name == of && input.optional);
        if let Padding::MaskOf(of) = padding
            && is_left_out(of)
            && !argument.optional
            && argument.kind == ArgumentKind::Tensor
        {
            return Err(LoadError::new(format!(
                "input '{}' is the mask of '{of}', which is optional, but argument `{}` of forward has no default and \
                 is not Optional",
                input.name, argument.name
            )));
        }
    }
    Ok(())
}

/// The input of this name.
pub(crate) fn position(config: &ModelConfig, name: &str) -> Option<usize> {
    config.inputs.iter().position(|input| input.name == name)
}

/// Checks the masks that were sent, and makes those that were not: with their slots.
///
/// # Errors
/// [`Error::InvalidInput`] for a mask of other lengths than its input.
pub(crate) fn masks(
    model: &str,
    slots: &[InputSlot],
    lengths: &Lengths,
    batch: Option<i64>,
) -> Result<Vec<(usize, Tensor)>> {
    let mut made = Vec::new();
    for (index, slot) in slots.iter().enumerate() {
        let Some(SlotPadding { rule, mask: Some((of, one)) }) = &slot.padding else { continue };
        let (Some(spec), Some(wanted)) = (&slot.spec, lengths.of(*of)) else { continue };
        match lengths.of(index) {
            None => {
                let shape = reshaped(batch.as_slice(), model_dims(spec), wanted);
                // It has no more elements than its input.
                let data = one.bytes().repeat(element_count(&shape).unwrap_or(0));
                let tensor = Tensor::host(spec.data_type, shape, Bytes::from(data));
                made.push((index, tensor.joined_by(Arc::clone(rule))));
            }
            Some(sent) if sent == wanted => {}
            Some(sent) => {
                return Err(Error::invalid(format!(
                    "input '{}' is the mask of '{}' for model '{model}': its variable dimensions must be the same, {}, \
                     got {}",
                    slot.name,
                    slots[*of].name,
                    shape_text(wanted),
                    shape_text(sent)
                )));
            }
        }
    }
    Ok(made)
}

/// What of a call decides how large a batch with it would be.
#[derive(Debug, Default)]
pub(crate) struct Extents {
    rows: u64,
    /// Of each tensor that is filled up: the bytes of a row for each element of its variable dimensions,
    /// and how many of those it has.
    tensors: Vec<(u64, usize)>,
    /// The variable dimensions of all of them, in turn.
    lengths: Vec<u64>,
    /// The largest number that adds up from request to request, and how large it may become.
    counted: Option<(u64, u64)>,
}

impl Extents {
    /// `None` where nothing does: every request carries this, and few models ask for it.
    pub(crate) fn of(call: &Call, rows: usize) -> Option<Box<Self>> {
        let mut extents = Self { rows: rows as u64, ..Self::default() };
        for argument in &call.arguments {
            match argument {
                Arg::Tensor(tensor) => extents.add(tensor),
                Arg::Tensors(tensors) => tensors.iter().for_each(|tensor| extents.add(tensor)),
                Arg::Dict(entries) => entries.iter().for_each(|(_, tensor)| extents.add(tensor)),
                Arg::Default | Arg::Strings(_) | Arg::Int(_) | Arg::Float(_) | Arg::Bool(_) | Arg::Str(_) => {
                }
            }
        }
        let decides = !extents.tensors.is_empty() || extents.counted.is_some();
        decides.then(|| Box::new(extents))
    }

    fn add(&mut self, tensor: &Tensor) {
        let rule = match tensor.joining.as_deref() {
            None | Some(Joining::Ragged) => return,
            Some(Joining::Made(kind)) => {
                let Some((number, most)) = ragged::counted(*kind, tensor) else { return };
                let (largest, least) = self.counted.unwrap_or((0, u64::MAX));
                self.counted = Some((largest.max(number), least.min(most)));
                return;
            }
            Some(Joining::Pad(rule)) => rule,
        };
        let size = |dim: i64| u64::try_from(dim).unwrap_or(0);
        let element = tensor.data_type.size().unwrap_or(1) as u64;
        let fixed = rule.fixed(&tensor.shape).map(|(_, dim)| size(dim));
        self.tensors.push((fixed.fold(element, u64::saturating_mul), rule.axes.len()));
        self.lengths.extend(rule.axes.iter().map(|axis| size(tensor.shape[*axis])));
    }

    /// Bytes of a row when the variable dimensions are these.
    fn row(&self, length: impl Fn(usize) -> u64) -> u64 {
        let mut next = 0;
        let bytes = |&(unit, axes): &(u64, usize)| {
            next += axes;
            (next - axes..next).map(&length).fold(unit, u64::saturating_mul)
        };
        self.tensors.iter().map(bytes).fold(0, u64::saturating_add)
    }

    /// Whether it may run together with these, to which it is alike; if so it is one of them now.
    pub(crate) fn join(&self, company: &mut Company) -> bool {
        let (number, most) = self.counted.unwrap_or((0, u64::MAX));
        let counted = company.counted.saturating_add(number);
        if company.rows > 0 && counted > most {
            return false;
        }
        let own = self.row(|index| self.lengths[index]);
        if company.rows == 0 {
            let bytes = own.saturating_mul(self.rows);
            *company = Company { longest: self.lengths.clone(), rows: self.rows, bytes, least: own, counted };
            return true;
        }
        let longest =
            |index: usize| self.lengths[index].max(company.longest.get(index).copied().unwrap_or(0));
        let padded = self.row(longest);
        let (rows, least) = (company.rows + self.rows, company.least.min(own));
        let bytes = company.bytes.saturating_add(own.saturating_mul(self.rows));
        if padded.saturating_mul(rows) > bytes.saturating_mul(MOST) || padded > least.saturating_mul(MOST_ROW)
        {
            return false;
        }
        for (longest, own) in company.longest.iter_mut().zip(&self.lengths) {
            *longest = (*longest).max(*own);
        }
        (company.rows, company.bytes, company.least, company.counted) = (rows, bytes, least, counted);
        true
    }
}

/// Those who are to run together, as far as it decides who else may.
#[derive(Clone, Debug, Default)]
pub struct Company {
    /// Of each variable dimension the largest.
    longest: Vec<u64>,
    rows: u64,
    /// Of all before they are filled up.
    bytes: u64,
    /// Of the smallest row.
    least: u64,
    /// What adds up, so far.
    counted: u64,
}

/// Tensors below each other, each filled up to the largest; behind them zeros until there are `total`
/// rows.
pub(crate) fn join<'a>(
    rule: &PadRule,
    first: &Tensor,
    tensors: impl Iterator<Item = &'a Tensor> + Clone,
    total: usize,
    lend: &mut Lend<'_>,
) -> Tensor {
    let mut shape = first.shape.clone();
    for tensor in tensors.clone() {
        shape.iter_mut().zip(&tensor.shape).for_each(|(largest, dim)| *largest = (*largest).max(*dim));
    }
    let (mut larger, filler) = (sizes(&shape), rule.filler.bytes());
    let row: usize = larger[1..].iter().product::<usize>() * filler.len();
    let mut data = Writer::new(row * total, lend);
    for tensor in tensors {
        let own = sizes(&tensor.shape);
        larger[0] = own[0];
        fill_up(&mut data, tensor.bytes(), &own, &larger, filler);
    }
    data.fill(row * total, 0);
    shape[0] = i64::try_from(total).unwrap_or(i64::MAX);
    Tensor::host(first.data_type, shape, data.finish())
}

fn sizes(shape: &[i64]) -> Vec<usize> {
    shape.iter().map(|dim| usize::try_from(*dim).unwrap_or(0)).collect()
}

/// Appends a part of a tensor of one shape as one of a larger shape. Every byte is written once.
fn fill_up(to: &mut Writer, data: &[u8], shape: &[usize], larger: &[usize], filler: &[u8]) {
    let (Some((count, rest)), Some((wanted, larger_rest))) = (shape.split_first(), larger.split_first())
    else {
        return to.put(data);
    };
    if rest == larger_rest {
        to.put(data);
    } else {
        let part = rest.iter().product::<usize>() * filler.len();
        for index in 0..*count {
            fill_up(to, &data[index * part..(index + 1) * part], rest, larger_rest, filler);
        }
    }
    let missing = wanted.saturating_sub(*count) * larger_rest.iter().product::<usize>();
    match filler.split_first() {
        // As for zeros, which are most.
        Some((byte, others)) if others.iter().all(|other| other == byte) => {
            to.fill(to.written() + missing * filler.len(), *byte);
        }
        _ => std::iter::repeat_n(filler, missing).for_each(|filler| to.put(filler)),
    }
}

/// An output whose variable dimensions are cut to these.
///
/// # Errors
/// With the shape that is expected at least, where it is smaller.
pub(crate) fn cut(tensor: Tensor, dims: &[i64], lengths: &[i64]) -> std::result::Result<Tensor, Vec<i64>> {
    let shape = reshaped(&tensor.shape[..1], dims, lengths);
    if shape == tensor.shape {
        return Ok(tensor);
    }
    let is_part = shape.iter().zip(&tensor.shape).all(|(part, whole)| part <= whole);
    let (Value::Host(data), true, Some(size)) = (&tensor.value, is_part, tensor.data_type.size()) else {
        return Err(shape);
    };
    let (whole, part) = (sizes(&tensor.shape), sizes(&shape));
    let axis = whole.iter().zip(&part).position(|(whole, part)| whole != part).unwrap_or(0);
    let inner: usize = part[axis..].iter().product::<usize>() * size;
    // What is cut at the end only is a view.
    let data = if whole[..axis].iter().all(|dim| *dim == 1) && whole[axis + 1..] == part[axis + 1..] {
        data.slice(..inner)
    } else {
        let mut kept = Vec::with_capacity(part.iter().product::<usize>() * size);
        keep(&mut kept, data, &whole, &part, size);
        Bytes::from(kept)
    };
    Ok(Tensor::host(tensor.data_type, shape, data))
}

/// Appends the beginning of each dimension.
fn keep(to: &mut Vec<u8>, data: &[u8], shape: &[usize], smaller: &[usize], size: usize) {
    let (Some((_, rest)), Some((wanted, smaller_rest))) = (shape.split_first(), smaller.split_first()) else {
        return to.extend_from_slice(data);
    };
    let part = rest.iter().product::<usize>() * size;
    if rest == smaller_rest {
        return to.extend_from_slice(&data[..wanted * part]);
    }
    for index in 0..*wanted {
        keep(to, &data[index * part..(index + 1) * part], rest, smaller_rest, size);
    }
}

#[cfg(test)]
#[path = "padding_tests.rs"]
mod tests;
