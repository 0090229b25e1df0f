//! What the server adds to a request of a sequence, and takes from its answer.

use std::sync::Arc;

use bytes::Bytes;
use sconce_repository::{Control, ControlKind, SequenceState, Sequences, TensorConfig};

use super::book::SequenceId;
use crate::{
    DataType,
    backend::LoadError,
    binding::{InputSlot, Place},
    outputs::OutputSlot,
    schema::Return,
    text::{quote, shape_text},
    value::{Arg, Call, Kept, Output, Tensor, Value, element_count, push_string},
};

/// What the server adds, and where it goes.
#[derive(Debug)]
pub(crate) struct Plan {
    controls: Vec<(Place, Control)>,
    states: Vec<State>,
    keep: Option<Arc<[Kept]>>,
    /// Tensors have a batch dimension.
    batched: bool,
}

#[derive(Debug)]
struct State {
    place: Place,
    kept: Kept,
    /// With what a sequence begins.
    initial: Tensor,
    config: SequenceState,
}

/// Where in a sequence a request is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position<'a> {
    pub(super) id: &'a SequenceId,
    pub(super) start: bool,
    pub(super) end: bool,
    /// There is a request; not in a row that is only filled up.
    pub(super) ready: bool,
}

/// The inputs that the server makes, as the configuration would say them: controls, then states.
pub(crate) fn inputs(sequences: &Sequences) -> impl Iterator<Item = TensorConfig> {
    let controls = sequences.controls.iter().map(|control| tensor(&control.input, control.data_type, &[1]));
    let states = sequences.states.iter().map(|state| tensor(&state.input, state.data_type, &state.dims));
    controls.chain(states)
}

/// The outputs that the server keeps.
pub(crate) fn outputs(sequences: &Sequences) -> impl Iterator<Item = TensorConfig> {
    sequences.states.iter().map(|state| tensor(&state.output, state.data_type, &state.dims))
}

/// A tensor of the configuration that says no more than this.
pub(crate) fn tensor(name: &str, data_type: DataType, dims: &[i64]) -> TensorConfig {
    TensorConfig {
        name: name.to_owned(),
        data_type,
        dims: dims.to_vec(),
        reshape: None,
        optional: false,
        labels: None,
        padding: None,
    }
}

impl Plan {
    /// From the slots that [`inputs`] and [`outputs`] were given.
    ///
    /// # Errors
    /// One sentence: what cannot be a control or a state.
    pub(crate) fn new(
        sequences: &Sequences,
        inputs: Vec<InputSlot>,
        outputs: &[OutputSlot],
        returns: &Return,
        batched: bool,
    ) -> Result<Self, LoadError> {
        if let Some(slot) = inputs.iter().find(|slot| matches!(slot.place, Place::Element(..))) {
            return Err(LoadError::new(format!(
                "'{}' of the sequence leads to an element of a list argument of forward; give it an argument of its own",
                slot.name
            )));
        }
        let mut places = inputs.into_iter().map(|slot| slot.place);
        let controls: Vec<_> = places.by_ref().zip(&sequences.controls).collect();
        let controls = controls.into_iter().map(|(place, control)| (place, control.clone())).collect();
        let mut states = Vec::new();
        for ((place, config), output) in places.zip(&sequences.states).zip(outputs) {
            let kept = output.kept(returns)?;
            let initial = initial(config, batched)?;
            states.push(State { place, kept, initial, config: config.clone() });
        }
        let kept: Vec<Kept> = states.iter().map(|state| state.kept.clone()).collect();
        Ok(Self { controls, states, keep: (!kept.is_empty()).then(|| kept.into()), batched })
    }

    /// Adds controls and states to a call; `left` by the request before it, `None` where it is the first.
    pub(super) fn fill(&self, call: &mut Call, at: Position<'_>, left: Option<&[Tensor]>) {
        for (place, control) in &self.controls {
            put(call, place, self.control(control, at));
        }
        for (index, state) in self.states.iter().enumerate() {
            let tensor = left.and_then(|left| left.get(index)).unwrap_or(&state.initial);
            put(call, &state.place, tensor.clone());
        }
        call.keep.clone_from(&self.keep);
    }

    /// A row without a request, beside one with.
    pub(super) fn empty_row(&self, beside: &Call) -> Call {
        let zeros = |tensor: &Tensor| {
            let data = vec![0; tensor.bytes().len()];
            Tensor { value: Value::Host(Bytes::from(data)), ..tensor.clone() }
        };
        let empty = |argument: &Arg| match argument {
            Arg::Tensor(tensor) => Arg::Tensor(zeros(tensor)),
            Arg::Tensors(tensors) => Arg::Tensors(tensors.iter().map(zeros).collect()),
            Arg::Dict(entries) => {
                Arg::Dict(entries.iter().map(|(key, tensor)| (Arc::clone(key), zeros(tensor))).collect())
            }
            Arg::Strings(_) => Arg::Strings(Bytes::from_static(&[0; 4])),
            other => other.clone(),
        };
        let mut call = Call { arguments: beside.arguments.iter().map(empty).collect(), ..Call::default() };
        let id = match self.controls.iter().any(|(_, control)| control.data_type == DataType::Bytes) {
            true => SequenceId::Text("".into()),
            false => SequenceId::Number(0),
        };
        for (place, control) in &self.controls {
            let tensor = self.control(control, Position { id: &id, start: false, end: false, ready: false });
            put(&mut call, place, tensor);
        }
        for state in &self.states {
            put(&mut call, &state.place, state.initial.clone());
        }
        call.keep.clone_from(&self.keep);
        call
    }

    /// The same for a first request of so many rows, each of another sequence.
    pub(crate) fn fill_first(&self, call: &mut Call, rows: Option<i64>) {
        let rows = usize::try_from(rows.unwrap_or(1)).unwrap_or(1);
        let id = SequenceId::Number(1);
        let at = Position { id: &id, start: true, end: false, ready: true };
        let repeated = |mut tensor: Tensor| {
            if self.batched && rows > 1 {
                tensor.shape[0] = i64::try_from(rows).unwrap_or(i64::MAX);
                tensor.value = Value::Host(Bytes::from(tensor.bytes().repeat(rows)));
            }
            tensor
        };
        for (place, control) in &self.controls {
            put(call, place, repeated(self.control(control, at)));
        }
        for state in &self.states {
            put(call, &state.place, repeated(state.initial.clone()));
        }
        call.keep.clone_from(&self.keep);
    }

    fn control(&self, control: &Control, at: Position<'_>) -> Tensor {
        let data = match &control.kind {
            ControlKind::Start(flag) => if at.start { &flag.on } else { &flag.off }.clone(),
            ControlKind::End(flag) => if at.end { &flag.on } else { &flag.off }.clone(),
            ControlKind::Ready(flag) => if at.ready { &flag.on } else { &flag.off }.clone(),
            ControlKind::CorrelationId => correlation_id(at.id, control.data_type),
        };
        let shape = if self.batched { vec![1, 1] } else { vec![1] };
        Tensor::host(control.data_type, shape, data.into())
    }

    /// Whether an id can be told to the model.
    ///
    /// # Errors
    /// One sentence.
    pub(super) fn check_id(&self, id: &SequenceId) -> Result<(), String> {
        let kind = |(_, control): &&(Place, Control)| control.kind == ControlKind::CorrelationId;
        let Some((_, control)) = self.controls.iter().find(kind) else { return Ok(()) };
        let fits = match (id, control.data_type) {
            (SequenceId::Text(_), data_type) => data_type == DataType::Bytes,
            (SequenceId::Number(number), DataType::Int32) => i32::try_from(number.cast_signed()).is_ok(),
            (SequenceId::Number(number), DataType::Uint32) => u32::try_from(*number).is_ok(),
            (SequenceId::Number(_), DataType::Bytes) => false,
            (SequenceId::Number(_), _) => true,
        };
        if fits {
            return Ok(());
        }
        Err(format!(
            "sequence_id {} cannot be told to the model, whose input '{}' takes {}; send one that fits",
            id_text(id),
            control.input,
            control.data_type
        ))
    }

    /// What an answer leaves for the next request.
    ///
    /// # Errors
    /// One sentence, where it is not what the configuration says.
    pub(super) fn left(&self, output: &Output) -> Result<Vec<Tensor>, String> {
        self.states.iter().map(|state| state.left(output, self.batched)).collect()
    }
}

impl State {
    fn left(&self, output: &Output, batched: bool) -> Result<Tensor, String> {
        let name = &self.config.output;
        let Some(Output::Tensor(tensor)) = part(output, &self.kept) else {
            return Err(format!("state '{name}' is not in it, or is no tensor"));
        };
        let skip = usize::from(batched);
        let dims = &self.config.dims;
        let fits = tensor.shape.len() == dims.len() + skip
            && (!batched || tensor.shape[0] == 1)
            && tensor.shape.iter().skip(skip).zip(dims).all(|(got, dim)| got == dim || *dim == -1);
        if tensor.data_type != self.config.data_type || !fits {
            let expected: Vec<i64> = std::iter::repeat_n(1, skip).chain(dims.iter().copied()).collect();
            return Err(format!(
                "state '{name}' is {} {}, where its configuration says {} {}",
                tensor.data_type,
                shape_text(&tensor.shape),
                self.config.data_type,
                shape_text(&expected)
            ));
        }
        Ok(tensor.clone())
    }
}

/// A part at the top of an answer.
pub(crate) fn part<'a>(output: &'a Output, kept: &Kept) -> Option<&'a Output> {
    match (output, kept) {
        (Output::Tuple(fields), Kept::Index(index)) => fields.get(*index).map(|(_, field)| field),
        (Output::Tuple(fields), Kept::Name(name)) => {
            fields.iter().find(|(field, _)| field.as_deref() == Some(&**name)).map(|(_, field)| field)
        }
        (Output::Dict(entries), Kept::Name(name)) => {
            entries.iter().find(|(key, _)| **key == **name).map(|(_, entry)| entry)
        }
        (Output::List(elements), Kept::Index(index)) => elements.get(*index),
        (leaf, Kept::Index(0)) => Some(leaf),
        _ => None,
    }
}

fn put(call: &mut Call, place: &Place, tensor: Tensor) {
    let argument = match (&tensor.value, tensor.data_type) {
        (Value::Host(data), DataType::Bytes) => Arg::Strings(data.clone()),
        _ => Arg::Tensor(tensor.clone()),
    };
    match place {
        Place::Argument(index) | Place::Element(index, _) => call.arguments[*index] = argument,
        Place::Key(index, key) => match &mut call.arguments[*index] {
            Arg::Dict(entries) => match entries.iter_mut().find(|(own, _)| own == key) {
                Some((_, before)) => *before = tensor,
                None => entries.push((Arc::clone(key), tensor)),
            },
            other => *other = Arg::Dict(vec![(Arc::clone(key), tensor)]),
        },
    }
}

fn initial(config: &SequenceState, batched: bool) -> Result<Tensor, LoadError> {
    let shape: Vec<i64> =
        std::iter::repeat_n(1, usize::from(batched)).chain(config.initial_dims.iter().copied()).collect();
    let size =
        config.data_type.size().zip(element_count(&shape)).and_then(|(size, count)| size.checked_mul(count));
    let Some(size) = size else {
        return Err(LoadError::new(format!(
            "state '{}' cannot be {} {}; numbers and shapes that fit into memory can",
            config.input,
            config.data_type,
            shape_text(&shape)
        )));
    };
    let data = config.initial.as_ref().map_or_else(|| vec![0; size], |data| data.to_vec());
    Ok(Tensor::host(config.data_type, shape, data.into()))
}

fn correlation_id(id: &SequenceId, data_type: DataType) -> Vec<u8> {
    match id {
        SequenceId::Number(number) => number.to_le_bytes()[..data_type.size().unwrap_or(8).min(8)].to_vec(),
        SequenceId::Text(text) => {
            let mut data = Vec::new();
            push_string(&mut data, text.as_bytes());
            data
        }
    }
}

/// An id as it stands in messages.
pub(super) fn id_text(id: &SequenceId) -> String {
    match id {
        SequenceId::Number(number) => number.to_string(),
        SequenceId::Text(text) => format!("'{}'", quote(text)),
    }
}
