//! Names on the wire to arguments of `forward`: decided once, when a version is loaded.
//!
//! Where a config names inputs, Triton's PyTorch backend is followed: a single `Dict` argument takes
//! names as keys; else all names are names of arguments; else all are `NAME__<index>`; else the
//! order of the config is the order of the arguments. Beyond Triton, an element of a `List[Tensor]`
//! is `arg__0`, a key of a `Dict` beside other arguments is `arg.key`, scalars, strings and optional
//! arguments are served. Where no config names them, the schema's own names are used.

use std::{borrow::Cow, sync::Arc};

use sconce_repository::{DataType, ModelConfig, Padding, TensorConfig};

use crate::{
    backend::LoadError,
    generate,
    outputs::{self, OutputPlan},
    padding::{self, SlotPadding},
    ragged,
    schema::{Argument, ArgumentKind, Schema},
    sequence,
};

/// How requests become calls and outputs become answers.
#[derive(Debug)]
pub struct Binding {
    /// The model's name, for messages.
    pub model: Arc<str>,
    /// The largest first dimension; 0 where the model has no batch dimension.
    pub max_batch_size: u32,
    /// What may be sent by a known name.
    pub inputs: Vec<InputSlot>,
    /// What each argument of `forward` takes, in order.
    pub(crate) arguments: Vec<Argument>,
    /// Whether elements and keys that no slot names are taken too: there is no config.
    pub(crate) open: bool,
    pub(crate) outputs: OutputPlan,
    /// What the server adds to requests of a sequence, and takes from their answers.
    pub(crate) sequence: Option<sequence::Plan>,
    /// How answers are made step by step.
    pub(crate) generate: Option<generate::Plan>,
    /// What goes by requests and not by rows.
    pub(crate) ragged: Option<ragged::Plan>,
}

/// One name that a request may use for an input.
#[derive(Debug)]
pub struct InputSlot {
    /// The name.
    pub name: Arc<str>,
    /// What must be sent there, where a config says so.
    pub spec: Option<Spec>,
    /// Whether a request must have it.
    pub required: bool,
    pub(crate) place: Place,
    pub(crate) padding: Option<SlotPadding>,
}

/// What a config says of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// What an element is.
    pub data_type: DataType,
    /// The shape without the batch dimension, -1 for any size.
    pub dims: Vec<i64>,
    /// The shape that the model sees instead.
    pub reshape: Option<Vec<i64>>,
    /// Names of the classes of an output.
    pub labels: Option<Arc<[String]>>,
}

impl From<&TensorConfig> for Spec {
    fn from(config: &TensorConfig) -> Self {
        Self {
            data_type: config.data_type,
            dims: config.dims.clone(),
            reshape: config.reshape.clone(),
            labels: config.labels.as_ref().map(|labels| Arc::clone(&labels.lines)),
        }
    }
}

/// Where an input goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It is an argument.
    Argument(usize),
    /// It is an element of a list argument.
    Element(usize, usize),
    /// It is a key of a dict argument.
    Key(usize, Arc<str>),
}

impl Place {
    pub(crate) fn argument(&self) -> usize {
        match self {
            Self::Argument(index) | Self::Element(index, _) | Self::Key(index, _) => *index,
        }
    }
}

/// One row of the model's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its dtype; without a config FP32 for a tensor (any is taken), BYTES for strings, INT64, FP64,
    /// BOOL for scalars.
    pub data_type: DataType,
    /// Its shape with the batch dimension, -1 for any size.
    pub shape: Vec<i64>,
}

impl Binding {
    /// Matches a config with a schema.
    ///
    /// # Errors
    /// One sentence naming the input or output that does not fit and what would.
    pub fn new(config: &ModelConfig, schema: &Schema) -> Result<Self, LoadError> {
        Self::with_step(config, schema, None)
    }

    /// The same for a generating model: `schema` is that of `start`.
    ///
    /// # Errors
    /// As [`Binding::new`].
    pub fn with_step(
        config: &ModelConfig,
        schema: &Schema,
        step: Option<&Schema>,
    ) -> Result<Self, LoadError> {
        for argument in &schema.arguments {
            if let (ArgumentKind::Other(kind), false) = (&argument.kind, argument.optional) {
                return Err(LoadError::new(format!(
                    "argument `{}` of forward is a {kind}, which cannot be sent; Tensor, Optional[Tensor], List[Tensor], \
                     Dict[str, Tensor], List[str] and int, float, bool, str can",
                    argument.name
                )));
            }
        }
        let whole = with_server_tensors(config);
        let mut inputs =
            if whole.inputs.is_empty() { from_schema(schema) } else { from_config(&whole, schema)? };
        let mut outputs = outputs::plan(&whole, &schema.returns)?;
        // Without a list of inputs nothing is added to them.
        let mut made =
            if whole.inputs.is_empty() { Vec::new() } else { inputs.split_off(config.inputs.len()) };
        let own = made.split_off(config.batch_inputs.len().min(made.len()));
        let sequence = match &config.sequences {
            None => None,
            Some(sequences) => {
                let listed = !whole.outputs.is_empty();
                let kept = if listed { outputs.slots.split_off(config.outputs.len()) } else { Vec::new() };
                let batched = config.max_batch_size > 0;
                Some(sequence::Plan::new(sequences, own, &kept, &schema.returns, batched)?)
            }
        };
        let generate = match (&config.generate, step) {
            (Some(generate), Some(step)) => {
                let states = outputs.slots.split_off(config.outputs.len());
                let slots = (&*outputs.slots, &*states);
                Some(generate::Plan::new(config, generate, slots, &schema.returns, step)?)
            }
            (None, _) | (_, None) => None,
        };
        let ragged = ragged::Plan::new(config, schema, &inputs, made, &mut outputs)?;
        Ok(Self {
            model: config.name.as_str().into(),
            max_batch_size: config.max_batch_size,
            inputs,
            arguments: schema.arguments.clone(),
            open: config.inputs.is_empty(),
            outputs,
            sequence,
            generate,
            ragged,
        })
    }

    /// Names what a step of a generating model returns.
    pub(crate) fn of_step(config: &ModelConfig, step: &Schema, outputs: OutputPlan) -> Self {
        Self {
            model: config.name.as_str().into(),
            max_batch_size: config.max_batch_size,
            inputs: Vec::new(),
            arguments: step.arguments.clone(),
            open: false,
            outputs,
            sequence: None,
            generate: None,
            ragged: None,
        }
    }

    /// The inputs, as ModelMetadata shows them.
    pub fn input_info(&self) -> Vec<TensorInfo> {
        self.inputs
            .iter()
            .map(|slot| match &slot.spec {
                Some(spec) => self.info(&slot.name, spec),
                None => TensorInfo {
                    name: slot.name.to_string(),
                    data_type: default_type(&self.arguments[slot.place.argument()].kind),
                    shape: vec![-1],
                },
            })
            .collect()
    }

    /// The outputs, as ModelMetadata shows them; without a config only those that can be known.
    pub fn output_info(&self) -> Vec<TensorInfo> {
        self.outputs
            .slots
            .iter()
            .map(|slot| match &slot.spec {
                Some(spec) => self.info(&slot.name, spec),
                None => {
                    TensorInfo { name: slot.name.to_string(), data_type: slot.data_type, shape: vec![-1] }
                }
            })
            .collect()
    }

    fn info(&self, name: &str, spec: &Spec) -> TensorInfo {
        let batch = (self.max_batch_size > 0).then_some(-1);
        let shape = batch.into_iter().chain(spec.dims.iter().copied()).collect();
        TensorInfo { name: name.to_owned(), data_type: spec.data_type, shape }
    }

    /// Whether names go into the one dict argument as they are.
    pub(crate) fn sole_dict(arguments: &[Argument]) -> bool {
        matches!(arguments, [Argument { kind: ArgumentKind::Dict, .. }])
    }

    /// Where a name that no slot has would go, when there is no config.
    pub(crate) fn open_place(&self, name: &str) -> Option<Place> {
        if !self.open {
            return None;
        }
        if Self::sole_dict(&self.arguments) {
            return Some(Place::Key(0, name.into()));
        }
        by_name(&self.arguments, name).filter(|place| !matches!(place, Place::Argument(_)))
    }
}

/// With the inputs and outputs behind the others that are between the server and the model.
fn with_server_tensors(config: &ModelConfig) -> Cow<'_, ModelConfig> {
    let mut whole = generate::with_states(config).map_or(Cow::Borrowed(config), Cow::Owned);
    if !config.batch_inputs.is_empty() {
        let made =
            config.batch_inputs.iter().map(|input| sequence::tensor(&input.name, input.data_type, &[-1]));
        whole.to_mut().inputs.extend(made);
    }
    if let Some(sequences) = &config.sequences {
        let whole = whole.to_mut();
        whole.inputs.extend(sequence::inputs(sequences));
        whole.outputs.extend(sequence::outputs(sequences));
    }
    whole
}

/// The dtype shown for an argument whose dtype nobody has said.
fn default_type(kind: &ArgumentKind) -> DataType {
    match kind {
        ArgumentKind::Strings | ArgumentKind::Str => DataType::Bytes,
        ArgumentKind::Int => DataType::Int64,
        ArgumentKind::Float => DataType::Fp64,
        ArgumentKind::Bool => DataType::Bool,
        ArgumentKind::Tensor | ArgumentKind::Tensors | ArgumentKind::Dict | ArgumentKind::Other(_) => {
            DataType::Fp32
        }
    }
}

/// Slots from the schema alone: lists show their first element, dicts the keys that the code reads.
fn from_schema(schema: &Schema) -> Vec<InputSlot> {
    let sole = Binding::sole_dict(&schema.arguments);
    let mut slots = Vec::new();
    for (index, argument) in schema.arguments.iter().enumerate() {
        let name = &argument.name;
        let mut slot = |name: String, place, required| {
            slots.push(InputSlot { name: name.into(), spec: None, required, place, padding: None });
        };
        match argument.kind {
            ArgumentKind::Other(_) => {}
            ArgumentKind::Tensors => slot(format!("{name}__0"), Place::Element(index, 0), false),
            ArgumentKind::Dict => {
                for key in &argument.keys {
                    let shown = if sole { key.clone() } else { format!("{name}.{key}") };
                    // The code may look before it reads: the model itself says when a key is missing.
                    slot(shown, Place::Key(index, key.as_str().into()), false);
                }
            }
            ArgumentKind::Tensor
            | ArgumentKind::Strings
            | ArgumentKind::Int
            | ArgumentKind::Float
            | ArgumentKind::Bool
            | ArgumentKind::Str => slot(name.clone(), Place::Argument(index), !argument.optional),
        }
    }
    slots
}

fn from_config(config: &ModelConfig, schema: &Schema) -> Result<Vec<InputSlot>, LoadError> {
    let places = places(config, schema)?;
    let mut slots: Vec<InputSlot> = Vec::with_capacity(places.len());
    for (input, place) in config.inputs.iter().zip(places) {
        let argument = &schema.arguments[place.argument()];
        if slots.iter().any(|slot| slot.place == place) {
            return Err(LoadError::new(format!(
                "two inputs of the configuration lead to argument `{}` of forward; the second is '{}'",
                argument.name, input.name
            )));
        }
        if !fits(&argument.kind, input.data_type) {
            return Err(LoadError::new(format!(
                "input '{}' is {} in the configuration, but argument `{}` of forward takes {}",
                input.name,
                input.data_type,
                argument.name,
                takes(&argument.kind)
            )));
        }
        // A mask that is not sent is made.
        let is_mask = matches!(input.padding, Some(Padding::MaskOf(_)));
        if input.optional && !is_mask && matches!(place, Place::Argument(_)) && !argument.optional {
            return Err(LoadError::new(format!(
                "input '{}' is optional in the configuration, but argument `{}` of forward has no default and is \
                 not Optional",
                input.name, argument.name
            )));
        }
        let (name, spec) = (input.name.as_str().into(), Some(input.into()));
        slots.push(InputSlot { name, spec, required: !input.optional, place, padding: None });
    }
    padding::plan(config, schema, &mut slots)?;
    check_complete(config, schema, &slots)?;
    Ok(slots)
}

/// Every argument that must be given is given, lists without gaps.
fn check_complete(config: &ModelConfig, schema: &Schema, slots: &[InputSlot]) -> Result<(), LoadError> {
    for (index, argument) in schema.arguments.iter().enumerate() {
        let mut elements: Vec<usize> = slots
            .iter()
            .filter_map(|slot| match slot.place {
                Place::Element(list, element) if list == index => Some(element),
                Place::Element(..) | Place::Argument(_) | Place::Key(..) => None,
            })
            .collect();
        elements.sort_unstable();
        if let Some(gap) = (0..elements.len()).find(|&at| elements[at] != at) {
            return Err(LoadError::new(format!(
                "the configuration names elements of list argument `{}` but not `{}__{gap}`; elements are numbered \
                 from 0 without gaps",
                argument.name, argument.name
            )));
        }
        let given = slots.iter().any(|slot| slot.place.argument() == index);
        if !given && !argument.optional {
            return Err(LoadError::new(format!(
                "configuration expects {} inputs, model provides {}: no input leads to argument `{}` of forward, \
                 which has no default; forward takes ({})",
                config.inputs.len(),
                schema.arguments.len(),
                argument.name,
                schema.arguments.iter().map(|a| a.name.as_str()).collect::<Vec<_>>().join(", ")
            )));
        }
    }
    Ok(())
}

/// The place of each input of the config, by the first convention that all names follow.
fn places(config: &ModelConfig, schema: &Schema) -> Result<Vec<Place>, LoadError> {
    let arguments = &schema.arguments;
    if Binding::sole_dict(arguments) {
        return Ok(config.inputs.iter().map(|input| Place::Key(0, input.name.as_str().into())).collect());
    }
    let names = || config.inputs.iter().map(|input| input.name.as_str());
    if let Some(places) = names().map(|name| by_name(arguments, name)).collect() {
        return Ok(places);
    }
    let positions: Vec<usize> = match names().map(named_index).collect::<Option<_>>() {
        Some(positions) => positions,
        None => (0..config.inputs.len()).collect(),
    };
    let place = |(position, name): (usize, &str)| {
        let argument = arguments.get(position).ok_or_else(|| {
            LoadError::new(format!(
                "configuration expects {} inputs, model provides {}: input '{name}' would be argument {position} of \
                 forward, counted from 0",
                config.inputs.len(),
                arguments.len()
            ))
        })?;
        match argument.kind {
            ArgumentKind::Tensors => Ok(Place::Element(position, 0)),
            ArgumentKind::Dict => Err(LoadError::new(format!(
                "input '{name}' would be the whole dict argument `{0}` of forward; name its keys instead, as `{0}.key`, \
                 and all other inputs by their arguments' names",
                argument.name
            ))),
            ArgumentKind::Tensor
            | ArgumentKind::Strings
            | ArgumentKind::Int
            | ArgumentKind::Float
            | ArgumentKind::Bool
            | ArgumentKind::Str
            | ArgumentKind::Other(_) => Ok(Place::Argument(position)),
        }
    };
    positions.into_iter().zip(names()).map(place).collect()
}

/// A name as an argument, an element of a list argument or a key of a dict argument.
fn by_name(arguments: &[Argument], name: &str) -> Option<Place> {
    let find = |name: &str| arguments.iter().position(|argument| argument.name == name);
    if let Some(index) = find(name) {
        return match arguments[index].kind {
            ArgumentKind::Tensors => Some(Place::Element(index, 0)),
            ArgumentKind::Dict => None,
            ArgumentKind::Tensor
            | ArgumentKind::Strings
            | ArgumentKind::Int
            | ArgumentKind::Float
            | ArgumentKind::Bool
            | ArgumentKind::Str
            | ArgumentKind::Other(_) => Some(Place::Argument(index)),
        };
    }
    if let Some((list, tail)) = name.rsplit_once("__")
        && let Some(index) = find(list).filter(|&index| arguments[index].kind == ArgumentKind::Tensors)
    {
        return digits(tail).map(|element| Place::Element(index, element));
    }
    let (dict, key) = name.split_once('.')?;
    let index = find(dict).filter(|&index| arguments[index].kind == ArgumentKind::Dict)?;
    Some(Place::Key(index, key.into()))
}

/// Triton's `NAME__<index>`: what follows the first `__` is digits only.
pub(crate) fn named_index(name: &str) -> Option<usize> {
    digits(name.split_once("__")?.1)
}

fn digits(text: &str) -> Option<usize> {
    let all = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    all.then(|| text.parse().ok()).flatten()
}

/// Whether an argument can be made of a tensor of this dtype.
pub(crate) fn fits(kind: &ArgumentKind, data_type: DataType) -> bool {
    use DataType::{Bool, Bytes, Fp32, Fp64, Int8, Int16, Int32, Int64, Uint8, Uint16, Uint32, Uint64};
    match kind {
        ArgumentKind::Tensor | ArgumentKind::Tensors | ArgumentKind::Dict => data_type != Bytes,
        ArgumentKind::Strings | ArgumentKind::Str => data_type == Bytes,
        ArgumentKind::Int => {
            matches!(data_type, Int8 | Int16 | Int32 | Int64 | Uint8 | Uint16 | Uint32 | Uint64)
        }
        ArgumentKind::Float => matches!(data_type, Fp32 | Fp64),
        ArgumentKind::Bool => data_type == Bool,
        ArgumentKind::Other(_) => false,
    }
}

/// What an argument takes, for messages.
pub(crate) fn takes(kind: &ArgumentKind) -> &str {
    match kind {
        ArgumentKind::Tensor | ArgumentKind::Tensors | ArgumentKind::Dict => {
            "a tensor of any dtype but BYTES"
        }
        ArgumentKind::Strings | ArgumentKind::Str => "BYTES",
        ArgumentKind::Int => "an integer dtype",
        ArgumentKind::Float => "FP32 or FP64",
        ArgumentKind::Bool => "BOOL",
        ArgumentKind::Other(kind) => kind,
    }
}

#[cfg(test)]
#[path = "binding_tests.rs"]
mod tests;
