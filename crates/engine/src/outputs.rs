//! What `forward` returned, back to the names that clients know.
//!
//! The tree is flattened to leaves. A leaf's own name is `OUTPUT__<i>` for the i-th element at the
//! top, the field's name in a NamedTuple, the key in a dict; below that `name__<i>` for elements of
//! lists and `name.key` for keys. A config names leaves by key, by field, by Triton's `NAME__<i>`, by
//! their own names where there are collections in collections, or by order.

mod finish;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use sconce_repository::{ModelConfig, Padding};

use crate::{
    DataType, Error, Result,
    backend::LoadError,
    binding::{Binding, Spec, named_index},
    padding::{self, Lengths},
    schema::Return,
    text::{list_text, quote},
    value::{Kept, Output, Tensor},
};
use finish::finish;

/// How outputs get their names.
#[derive(Debug)]
pub(crate) struct OutputPlan {
    /// The outputs that are known before a run.
    pub(crate) slots: Vec<OutputSlot>,
    /// Whether there are others, known only from a run: there is no config.
    open: bool,
}

#[derive(Debug)]
pub(crate) struct OutputSlot {
    pub(crate) name: Arc<str>,
    pub(crate) spec: Option<Spec>,
    /// The slot of the input to whose lengths it is cut back.
    cut_to: Option<usize>,
    /// Its place among those that are scattered by the shapes of inputs.
    pub(crate) scattered: Option<usize>,
    /// The dtype to show where no config says one.
    pub(crate) data_type: DataType,
    leaf: Leaf,
}

/// Which leaf an output is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Leaf {
    /// The only or n-th element at the top, itself a leaf.
    Top(usize),
    /// The n-th leaf in order.
    Order(usize),
    /// The leaf of that name.
    Name(String),
}

impl OutputSlot {
    /// Where it is at the top of what `forward` returns; `None` where it is below the top.
    pub(crate) fn top(&self, returns: &Return) -> Option<Kept> {
        let is_top = |name: &str| match returns {
            Return::Tuple(fields) => fields.iter().any(|(field, _)| field.as_deref() == Some(name)),
            Return::Dict(_) | Return::Unknown => true,
            Return::Tensor | Return::Strings | Return::List(_) | Return::Other(_) => false,
        };
        match &self.leaf {
            Leaf::Top(index) => Some(Kept::Index(*index)),
            Leaf::Name(name) if is_top(name) => Some(Kept::Name(name.as_str().into())),
            Leaf::Order(_) | Leaf::Name(_) => None,
        }
    }

    /// The same, for what stays on its device.
    ///
    /// # Errors
    /// One sentence, where it is below the top.
    pub(crate) fn kept(&self, returns: &Return) -> std::result::Result<Kept, LoadError> {
        self.top(returns).ok_or_else(|| {
            LoadError::new(format!(
                "'{}' is kept between runs, so it has to be an element of what forward returns, not of a list, tuple or \
                 dict in that",
                self.name
            ))
        })
    }
}

impl Leaf {
    /// Whether it is what `forward` returns when that is one tensor.
    fn is_first(&self) -> bool {
        match self {
            Self::Top(index) | Self::Order(index) => *index == 0,
            Self::Name(name) => *name == top_name(None, 0),
        }
    }
}

/// An output that a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// For the classification extension: how many classes; 0 asks for the tensor itself.
    pub classes: u32,
}

/// One output of an answer.
#[derive(Clone, Debug)]
pub struct NamedOutput {
    /// Its name.
    pub name: Arc<str>,
    /// Its tensor, in host memory.
    pub tensor: Tensor,
}

/// Decides the names of the outputs of a version.
pub(crate) fn plan(config: &ModelConfig, returns: &Return) -> std::result::Result<OutputPlan, LoadError> {
    if let Some(kind) = returns.unserved() {
        return Err(LoadError::new(format!(
            "forward returns {kind}, which cannot be served; tensors, List[str], and tuples, lists and dicts of them \
             can"
        )));
    }
    if config.outputs.is_empty() {
        let slots = known_leaves(returns)
            .into_iter()
            .map(|(name, data_type)| OutputSlot {
                leaf: Leaf::Name(name.clone()),
                name: name.into(),
                spec: None,
                cut_to: None,
                scattered: None,
                data_type,
            })
            .collect();
        return Ok(OutputPlan { slots, open: true });
    }
    let names: Vec<&str> = config.outputs.iter().map(|output| output.name.as_str()).collect();
    let leaves = leaves(&names, returns)?;
    let slots = config
        .outputs
        .iter()
        .zip(leaves)
        .map(|(output, leaf)| OutputSlot {
            name: output.name.as_str().into(),
            spec: Some(output.into()),
            cut_to: match &output.padding {
                Some(Padding::CutTo(input)) => padding::position(config, input),
                Some(Padding::Fill(_) | Padding::MaskOf(_) | Padding::Ragged | Padding::ScatterLike(_))
                | None => None,
            },
            scattered: None,
            data_type: output.data_type,
            leaf,
        })
        .collect();
    Ok(OutputPlan { slots, open: false })
}

/// The leaf of each output of the config.
fn leaves(names: &[&str], returns: &Return) -> std::result::Result<Vec<Leaf>, LoadError> {
    let by_name = || names.iter().map(|&name| Leaf::Name(name.to_owned())).collect();
    if matches!(returns, Return::Dict(_)) {
        return Ok(by_name());
    }
    let top = match returns {
        Return::Tuple(fields) => {
            let named = |name: &&str| fields.iter().any(|(field, _)| field.as_deref() == Some(*name));
            if names.iter().all(named) {
                return Ok(by_name());
            }
            Some(fields.len())
        }
        Return::Tensor | Return::Strings => Some(1),
        Return::List(_) | Return::Dict(_) | Return::Other(_) | Return::Unknown => None,
    };
    // Without structure below the top an output is found by its index, else by its own name or by the
    // order of all leaves, whose number only a run may tell.
    let plain = |element: &Return| matches!(element, Return::Tensor | Return::Strings);
    let flat = match returns {
        Return::Tuple(fields) => fields.iter().all(|(_, field)| plain(field)),
        Return::List(element) => plain(element),
        Return::Tensor | Return::Strings | Return::Dict(_) | Return::Other(_) | Return::Unknown => true,
    };
    if !flat && names.iter().all(|name| is_leaf(returns, name)) {
        return Ok(by_name());
    }
    let indices: Option<Vec<usize>> = names.iter().map(|name| named_index(name)).collect();
    let leaves: Vec<Leaf> = match indices {
        Some(indices) => indices.into_iter().map(Leaf::Top).collect(),
        None if flat => (0..names.len()).map(Leaf::Top).collect(),
        None => (0..names.len()).map(Leaf::Order).collect(),
    };
    for (at, leaf) in leaves.iter().enumerate() {
        if let (Leaf::Top(index), Some(count)) = (leaf, top)
            && *index >= count
        {
            return Err(LoadError::new(format!(
                "output '{}' refers to an output index which doesn't exist. This model has {count} outputs",
                names[at]
            )));
        }
        if leaves[..at].contains(leaf) {
            return Err(LoadError::new(format!(
                "two outputs of the configuration lead to the same output of forward; the second is '{}'",
                names[at]
            )));
        }
    }
    Ok(leaves)
}

/// The leaves that can be known from the schema, with a dtype to show.
fn known_leaves(returns: &Return) -> Vec<(String, DataType)> {
    let mut found = Vec::new();
    match returns {
        Return::Tuple(fields) => {
            for (index, (field, element)) in fields.iter().enumerate() {
                collect_known(&top_name(field.as_deref(), index), element, &mut found);
            }
        }
        Return::Dict(keys) => found.extend(keys.iter().map(|key| (key.clone(), DataType::Fp32))),
        // Elements of a list at the top are OUTPUT__0, ...: how many is known only from a run.
        Return::List(_) => {}
        Return::Tensor | Return::Strings | Return::Other(_) | Return::Unknown => {
            collect_known(&top_name(None, 0), returns, &mut found);
        }
    }
    found
}

fn collect_known(name: &str, returns: &Return, found: &mut Vec<(String, DataType)>) {
    match returns {
        Return::Tensor => found.push((name.to_owned(), DataType::Fp32)),
        Return::Strings => found.push((name.to_owned(), DataType::Bytes)),
        Return::Dict(keys) => {
            found.extend(keys.iter().map(|key| (format!("{name}.{key}"), DataType::Fp32)));
        }
        Return::Tuple(fields) => {
            for (index, (field, element)) in fields.iter().enumerate() {
                collect_known(&below(name, field.as_deref(), index), element, found);
            }
        }
        Return::List(_) | Return::Other(_) | Return::Unknown => {}
    }
}

/// Whether a run can have a leaf of this name.
fn is_leaf(returns: &Return, name: &str) -> bool {
    match returns {
        Return::Tuple(fields) => fields
            .iter()
            .enumerate()
            .any(|(index, (field, element))| is_below(&top_name(field.as_deref(), index), element, name)),
        other => is_below("OUTPUT", other, name),
    }
}

fn is_below(prefix: &str, returns: &Return, name: &str) -> bool {
    let tail = name.strip_prefix(prefix);
    match returns {
        Return::Tensor | Return::Strings => tail == Some(""),
        Return::Dict(_) => tail.is_some_and(|tail| tail.starts_with('.')),
        Return::Tuple(fields) => fields.iter().enumerate().any(|(index, (field, element))| {
            is_below(&below(prefix, field.as_deref(), index), element, name)
        }),
        Return::List(element) => tail.and_then(|tail| tail.strip_prefix("__")).is_some_and(|tail| {
            let index = tail.split_once(|c: char| !c.is_ascii_digit()).map_or(tail, |(index, _)| index);
            index.parse().is_ok_and(|index| is_below(&below(prefix, None, index), element, name))
        }),
        Return::Other(_) | Return::Unknown => false,
    }
}

fn top_name(field: Option<&str>, index: usize) -> String {
    field.map_or_else(|| format!("OUTPUT__{index}"), str::to_owned)
}

fn below(name: &str, field: Option<&str>, index: usize) -> String {
    field.map_or_else(|| format!("{name}__{index}"), |field| format!("{name}.{field}"))
}

/// A leaf of what a run returned.
struct Found {
    name: String,
    /// Its index at the top, if it is a leaf there.
    top: Option<usize>,
    leaf: Output,
}

fn flatten(output: Output) -> Vec<Found> {
    let mut found = Vec::new();
    match output {
        Output::Tuple(fields) => {
            for (index, (field, element)) in fields.into_iter().enumerate() {
                collect(top_name(field.as_deref(), index), Some(index), element, &mut found);
            }
        }
        Output::List(elements) => {
            for (index, element) in elements.into_iter().enumerate() {
                collect(top_name(None, index), Some(index), element, &mut found);
            }
        }
        Output::Dict(entries) => {
            for (key, element) in entries {
                collect(key, None, element, &mut found);
            }
        }
        leaf @ (Output::Tensor(_) | Output::Strings(_) | Output::Other(_)) => {
            found.push(Found { name: top_name(None, 0), top: Some(0), leaf });
        }
    }
    found
}

fn collect(name: String, top: Option<usize>, output: Output, found: &mut Vec<Found>) {
    match output {
        Output::Tuple(fields) => {
            for (index, (field, element)) in fields.into_iter().enumerate() {
                collect(below(&name, field.as_deref(), index), None, element, found);
            }
        }
        Output::List(elements) => {
            for (index, element) in elements.into_iter().enumerate() {
                collect(below(&name, None, index), None, element, found);
            }
        }
        Output::Dict(entries) => {
            for (key, element) in entries {
                collect(below(&name, Some(&key), 0), None, element, found);
            }
        }
        leaf @ (Output::Tensor(_) | Output::Strings(_) | Output::Other(_)) => {
            found.push(Found { name, top, leaf });
        }
    }
}

/// Checks the names that a request asks for, before anything runs.
///
/// # Errors
/// [`Error::InvalidInput`] for an unknown or repeated name.
pub(crate) fn check_wanted(binding: &Binding, wanted: &[Wanted]) -> Result<()> {
    let mut seen = HashSet::new();
    for output in wanted {
        if !binding.outputs.open && !binding.outputs.slots.iter().any(|slot| *slot.name == *output.name) {
            return Err(unknown(binding, &output.name));
        }
        if !seen.insert(&output.name) {
            return Err(Error::invalid(format!(
                "output '{}' is requested more than once for model '{}'; request each output once",
                quote(&output.name),
                binding.model
            )));
        }
    }
    Ok(())
}

fn unknown(binding: &Binding, name: &str) -> Error {
    unexpected(binding, name, binding.outputs.slots.iter().map(|slot| &*slot.name))
}

fn unexpected<'a>(binding: &Binding, name: &str, there: impl Iterator<Item = &'a str>) -> Error {
    Error::invalid(format!(
        "unexpected inference output '{}' for model '{}'; its outputs are {}",
        quote(name),
        binding.model,
        list_text(there)
    ))
}

/// The outputs that a request asks for, or all of them, in the order of the request or the config.
///
/// # Errors
/// [`Error::Output`] where the model broke what its config promises, [`Error::InvalidInput`] for a
/// name that turns out not to be there.
pub(crate) fn name(
    binding: &Binding,
    output: Output,
    wanted: &[Wanted],
    batch: Option<i64>,
    lengths: &Lengths,
) -> Result<Vec<NamedOutput>> {
    let plan = &binding.outputs;
    let finish =
        |slot: Option<&OutputSlot>, name: &str, leaf| finish(binding, slot, name, leaf, batch, lengths);
    // The common case, without a detour: one tensor, one name.
    if let (Output::Tensor(_), [slot], true) = (&output, &*plan.slots, wanted.len() <= 1)
        && slot.leaf.is_first()
    {
        let tensor = finish(Some(slot), &slot.name, output)?;
        if wanted.first().is_none_or(|wanted| *wanted.name == *slot.name) {
            return Ok(vec![NamedOutput { name: Arc::clone(&slot.name), tensor }]);
        }
        return Err(unknown(binding, &wanted[0].name));
    }
    let leaves = flatten(output);
    let mut named = Vec::with_capacity(leaves.len());
    if plan.open {
        if wanted.is_empty() {
            for found in leaves {
                let tensor = finish(None, &found.name, found.leaf)?;
                named.push(NamedOutput { name: found.name.into(), tensor });
            }
            return Ok(named);
        }
        // By name: a dict may have as many keys as its caller cares to ask for.
        let mut by_name: HashMap<String, Found> =
            leaves.into_iter().map(|found| (found.name.clone(), found)).collect();
        for wanted in wanted {
            let Some(found) = by_name.remove(&wanted.name) else {
                let mut there: Vec<&str> = by_name.keys().map(String::as_str).collect();
                there.sort_unstable();
                return Err(unexpected(binding, &wanted.name, there.into_iter()));
            };
            let tensor = finish(None, &found.name, found.leaf)?;
            named.push(NamedOutput { name: found.name.into(), tensor });
        }
        return Ok(named);
    }
    let mut leaves: Vec<Option<Found>> = leaves.into_iter().map(Some).collect();
    let mut take = |slot: &OutputSlot| -> Result<NamedOutput> {
        let at = match &slot.leaf {
            Leaf::Order(index) => Some(*index).filter(|&index| index < leaves.len()),
            Leaf::Top(index) => position(&leaves, |found| found.top == Some(*index)),
            Leaf::Name(name) => position(&leaves, |found| found.name == *name),
        };
        let found = at.and_then(|at| leaves[at].take()).ok_or_else(|| absent(binding, slot, &leaves))?;
        let tensor = finish(Some(slot), &slot.name, found.leaf)?;
        Ok(NamedOutput { name: Arc::clone(&slot.name), tensor })
    };
    if wanted.is_empty() {
        return plan.slots.iter().map(take).collect();
    }
    for wanted in wanted {
        let slot = plan.slots.iter().find(|slot| *slot.name == *wanted.name);
        named.push(take(slot.ok_or_else(|| unknown(binding, &wanted.name))?)?);
    }
    Ok(named)
}

fn position(leaves: &[Option<Found>], is: impl Fn(&Found) -> bool) -> Option<usize> {
    leaves.iter().position(|found| found.as_ref().is_some_and(&is))
}

fn absent(binding: &Binding, slot: &OutputSlot, leaves: &[Option<Found>]) -> Error {
    let there = list_text(leaves.iter().flatten().map(|found| found.name.as_str()));
    broken(binding, format!("output '{}' of its configuration is not in it; it has {there}", slot.name))
}

fn broken(binding: &Binding, message: String) -> Error {
    Error::Output { model: binding.model.to_string(), message }
}

/// The labels of an output, for the classification extension.
pub(crate) fn labels<'a>(binding: &'a Binding, name: &str) -> Option<&'a Arc<[String]>> {
    binding.outputs.slots.iter().find(|slot| *slot.name == *name)?.spec.as_ref()?.labels.as_ref()
}

#[cfg(test)]
#[path = "outputs_tests.rs"]
mod tests;
