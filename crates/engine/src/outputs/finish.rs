//! One leaf of what `forward` returned, checked and in the shape that clients see.

use super::{OutputSlot, broken};
use crate::{
    Result,
    binding::{Binding, Spec},
    check::{reshaped, variable},
    padding::{self, Lengths},
    text::shape_text,
    value::{Output, Tensor, Value, element_count},
};

/// A leaf as a tensor with the shape that clients see, checked against the config.
pub(super) fn finish(
    binding: &Binding,
    slot: Option<&OutputSlot>,
    name: &str,
    leaf: Output,
    batch: Option<i64>,
    lengths: &Lengths,
) -> Result<Tensor> {
    let spec = slot.and_then(|slot| slot.spec.as_ref());
    let (mut tensor, strings) = match leaf {
        Output::Tensor(tensor) => (tensor, false),
        Output::Strings(tensor) => (tensor, true),
        Output::Other(kind) => {
            return Err(broken(
                binding,
                format!("output '{name}' is {kind}; a tensor or List[str] is expected"),
            ));
        }
        Output::List(_) | Output::Tuple(_) | Output::Dict(_) => {
            return Err(broken(binding, format!("output '{name}' is a collection")));
        }
    };
    fetch(binding, name, &mut tensor)?;
    let Some(spec) = spec else { return Ok(tensor) };
    if tensor.data_type != spec.data_type {
        return Err(broken(
            binding,
            format!("output '{name}' is {}, its configuration says {}", tensor.data_type, spec.data_type),
        ));
    }
    if strings {
        if let Some(shape) = shape_of_strings(&tensor, spec, batch) {
            tensor.shape = shape;
        }
        return Ok(tensor);
    }
    if let Some(shape) = slot.and_then(|slot| lengths.scattered(slot.scattered?)) {
        lay_out(binding, name, &mut tensor, shape)?;
    }
    let batched = usize::from(batch.is_some());
    let model_dims = spec.reshape.as_ref().unwrap_or(&spec.dims);
    let rest = tensor.shape.get(batched..).unwrap_or_default();
    let fits = tensor.shape.len() == model_dims.len() + batched
        && tensor.shape.first().copied().filter(|_| batched == 1) == batch
        && rest.iter().zip(model_dims).all(|(&got, &dim)| dim == -1 || got == dim);
    if !fits {
        let expected: Vec<i64> = batch.into_iter().chain(model_dims.iter().copied()).collect();
        let (got, expected) = (shape_text(&tensor.shape), shape_text(&expected));
        return Err(broken(
            binding,
            format!("output '{name}' has shape {got}, its configuration says {expected}"),
        ));
    }
    if let Some(lengths) = slot.and_then(|slot| lengths.of(slot.cut_to?)) {
        tensor = cut_back(binding, name, tensor, model_dims, lengths)?;
    }
    if spec.reshape.is_some() {
        let free = variable(model_dims, &tensor.shape[batched..]);
        tensor.shape = reshaped(&tensor.shape[..batched], &spec.dims, &free);
    }
    Ok(tensor)
}

/// One that is kept on its device for a later run, its caller has too.
fn fetch(binding: &Binding, name: &str, tensor: &mut Tensor) -> Result<()> {
    let data = match &tensor.value {
        Value::Host(_) => return Ok(()),
        Value::Device(kept) => kept.fetch(),
        Value::Joined(_) => Err("it is in parts".to_owned()),
    };
    let failed = |why| broken(binding, format!("output '{name}' cannot be fetched from its device: {why}"));
    tensor.value = Value::Host(data.map_err(failed)?);
    Ok(())
}

/// A request's share of an output, in the shape that follows from its input.
fn lay_out(binding: &Binding, name: &str, tensor: &mut Tensor, shape: &[i64]) -> Result<()> {
    if tensor.elements() == element_count(shape) {
        tensor.shape = shape.to_vec();
        return Ok(());
    }
    let (got, shape) = (shape_text(&tensor.shape), shape_text(shape));
    let message = format!(
        "output '{name}' has shape {got}, but as many elements as {shape} are the share of the request"
    );
    Err(broken(binding, message))
}

/// What stands beyond the lengths of the request was made of what it was filled up with.
fn cut_back(
    binding: &Binding,
    name: &str,
    tensor: Tensor,
    model_dims: &[i64],
    lengths: &[i64],
) -> Result<Tensor> {
    let got = shape_text(&tensor.shape);
    padding::cut(tensor, model_dims, lengths).map_err(|least| {
        let least = shape_text(&least);
        let message = format!(
            "output '{name}' has shape {got}, but to be cut back to its input (`unpad`) it must have at least {least}"
        );
        broken(binding, message)
    })
}

/// The config's dims for a `List[str]`, where the number of strings fits them: at most one dimension
/// is left to find.
fn shape_of_strings(tensor: &Tensor, spec: &Spec, batch: Option<i64>) -> Option<Vec<i64>> {
    let count = *tensor.shape.first()?;
    let mut shape: Vec<i64> = batch.into_iter().chain(spec.dims.iter().copied()).collect();
    let known =
        shape.iter().filter(|&&dim| dim != -1).try_fold(1i64, |product, &dim| product.checked_mul(dim))?;
    let mut free = shape.iter_mut().filter(|dim| **dim == -1);
    match (free.next(), free.next()) {
        (None, _) => (known == count).then_some(shape),
        (Some(dim), None) => {
            *dim = count.checked_div(known).filter(|size| size * known == count)?;
            Some(shape)
        }
        (Some(_), Some(_)) => None,
    }
}
