//! What a run of a scripted model answers with.

use crate::{
    DataType,
    text::shape_text,
    value::{Arg, Output, Tensor},
};

/// The tensors that are arguments.
pub(super) fn tensors(arguments: &[Arg]) -> impl Iterator<Item = &Tensor> {
    arguments.iter().filter_map(|argument| match argument {
        Arg::Tensor(tensor) => Some(tensor),
        _ => None,
    })
}

/// Whether one of them has this number.
pub(super) fn holds(arguments: &[Arg], number: f32) -> bool {
    let is = |four: &[u8]| four == number.to_le_bytes();
    tensors(arguments).any(|tensor| tensor.bytes().chunks(4).any(is))
}

pub(super) fn value(value: f32) -> Output {
    tuple([Tensor::host(DataType::Fp32, vec![1], value.to_le_bytes().to_vec().into())])
}

/// All tensors of the arguments, without names.
pub(super) fn echo(arguments: Vec<Arg>) -> Output {
    tuple(arguments.into_iter().flat_map(|argument| match argument {
        Arg::Tensor(tensor) => vec![tensor],
        Arg::Tensors(tensors) => tensors,
        Arg::Dict(entries) => entries.into_iter().map(|(_, tensor)| tensor).collect(),
        Arg::Default | Arg::Strings(_) | Arg::Int(_) | Arg::Float(_) | Arg::Bool(_) | Arg::Str(_) => {
            Vec::new()
        }
    }))
}

/// The sum of the tensors, twice.
pub(super) fn sum(arguments: &[Arg]) -> Result<Output, String> {
    let mut all = tensors(arguments);
    let first = all.next().ok_or("a sum of no tensors")?.clone();
    let sum = all.try_fold(first, |sum, tensor| add(&sum, tensor))?;
    Ok(tuple([sum.clone(), sum]))
}

/// (x, x), with `until` (x, done, x).
pub(super) fn start(arguments: &[Arg], until: Option<f32>) -> Result<Output, String> {
    let x = tensors(arguments).next().ok_or("a start without a tensor")?;
    Ok(state(x.clone(), until, x.clone()))
}

/// (prev + 1, state + prev), with `until` (prev + 1, done, state + prev).
pub(super) fn step(arguments: &[Arg], until: Option<f32>) -> Result<Output, String> {
    let mut all = tensors(arguments);
    let (Some(prev), Some(last)) = (all.next(), all.next()) else {
        return Err("a step without two tensors".to_owned());
    };
    let next = floats(prev).map(|value| value + 1.0);
    Ok(state(made(prev, next), until, add(last, prev)?))
}

fn state(token: Tensor, until: Option<f32>, state: Tensor) -> Output {
    let Some(until) = until else { return tuple([token, state]) };
    let rows = token.shape.first().copied().unwrap_or(1);
    let row = token.elements().unwrap_or(0) / usize::try_from(rows).unwrap_or(1).max(1);
    let done: Vec<u8> = floats(&token).step_by(row.max(1)).map(|first| u8::from(first >= until)).collect();
    let done = Tensor::host(DataType::Bool, vec![rows, 1], done.into());
    tuple([token, done, state])
}

fn add(one: &Tensor, other: &Tensor) -> Result<Tensor, String> {
    let fp32 = |tensor: &Tensor| tensor.data_type == DataType::Fp32;
    if !fp32(one) || !fp32(other) || one.shape != other.shape {
        let text = |tensor: &Tensor| format!("{} {}", tensor.data_type, shape_text(&tensor.shape));
        return Err(format!("{} and {} cannot be added", text(one), text(other)));
    }
    Ok(made(one, floats(one).zip(floats(other)).map(|(one, other)| one + other)))
}

fn floats(tensor: &Tensor) -> impl Iterator<Item = f32> {
    tensor.bytes().as_chunks().0.iter().map(|four| f32::from_le_bytes(*four))
}

/// FP32 of the shape of another.
fn made(like: &Tensor, values: impl Iterator<Item = f32>) -> Tensor {
    let data: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
    Tensor::host(DataType::Fp32, like.shape.clone(), data.into())
}

fn tuple(tensors: impl IntoIterator<Item = Tensor>) -> Output {
    Output::Tuple(tensors.into_iter().map(|tensor| (None, Output::Tensor(tensor))).collect())
}
