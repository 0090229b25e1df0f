//! What is said of sequences, to checked values.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use super::{
    Batching, Control, ControlKind, Filler, Flag, SequenceState, SequenceStrategy, Sequences, TensorConfig,
    check::{Words as AllWords, number},
    check_scheduling::{MAX_DELAY, at_most},
    error::Fault,
    files::{self, MAX_INITIAL_BYTES},
    padding::Number,
    raw::{
        RawBatching, RawControl, RawControlKind, RawDuration, RawInitial, RawNumber, RawSequence, RawState,
        RawStrategy,
    },
    shape,
    warmup::elements,
};
use crate::{DataType, escape::one_line};

/// More at once than this is a slip: each may have a state in memory.
const MAX_SEQUENCES: u32 = 1_000_000;

/// For each instance, where nothing is said.
const DEFAULT_SEQUENCES: u32 = 1024;

/// Whoever comes back later begins anew.
const MAX_IDLE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A state of zeros is made where the model runs; one that is larger than this is a typing error.
const MAX_ZEROS_BYTES: u64 = 1 << 30;

/// The names of fields in one of the formats, as [`super::check::Words`].
#[derive(Debug)]
pub(super) struct Words {
    pub(super) sequence: &'static str,
    pub(super) max_sequences: &'static str,
    pub(super) max_waiting: &'static str,
    pub(super) idle_timeout: &'static str,
    pub(super) max_delay: &'static str,
    pub(super) control: fn(usize, RawControlKind) -> String,
    pub(super) control_values: &'static str,
    pub(super) states: &'static str,
    pub(super) input: &'static str,
    pub(super) output: &'static str,
    pub(super) initial: &'static str,
    pub(super) initial_file: &'static str,
    pub(super) initial_shape: &'static str,
}

/// The words of `config.yaml`.
pub(super) const YAML: Words = Words {
    sequence: "sequence",
    max_sequences: "sequence.max_sequences",
    max_waiting: "sequence.max_waiting",
    idle_timeout: "sequence.idle_timeout",
    max_delay: "sequence.max_delay",
    control: |_, kind| format!("sequence.controls.{}", kind.name()),
    control_values: "values",
    states: "sequence.states",
    input: "input",
    output: "output",
    initial: "initial",
    initial_file: "initial.file",
    initial_shape: "initial_shape",
};

/// The words of `config.pbtxt`.
pub(super) const TRITON: Words = Words {
    sequence: "sequence_batching",
    max_sequences: "sequence_batching.oldest.max_candidate_sequences",
    max_waiting: "sequence_batching",
    idle_timeout: "sequence_batching.max_sequence_idle_microseconds",
    max_delay: "sequence_batching.direct.max_queue_delay_microseconds",
    control: |index, _| format!("sequence_batching.control_input[{index}]"),
    control_values: "control[0]",
    states: "sequence_batching.state",
    input: "input_name",
    output: "output_name",
    initial: "initial_state[0]",
    initial_file: "initial_state[0].data_file",
    initial_shape: "initial_state[0].dims",
};

/// What the sequences must fit.
pub(super) struct Model<'a> {
    /// The directory of the model.
    pub(super) dir: &'a Path,
    pub(super) inputs: &'a [TensorConfig],
    pub(super) outputs: &'a [TensorConfig],
}

/// Checks what is said of sequences, and reads the files with which they begin.
pub(super) fn check(raw: RawSequence, model: &Model<'_>, words: &AllWords) -> Result<Sequences, Fault> {
    let own = &words.sequence;
    let strategy = strategy(&raw, words)?;
    let RawDuration(idle_timeout) = raw.idle_timeout;
    if idle_timeout.is_zero() {
        let zero = "every sequence would be forgotten at once: write a length of time such as 60s";
        return Err(Fault::at(own.idle_timeout, zero));
    }
    at_most(idle_timeout, MAX_IDLE, own.idle_timeout, words.scheduling.time)?;
    if raw.max_waiting > MAX_SEQUENCES {
        let message = format!("a number from 0 to {MAX_SEQUENCES} is expected, not {}", raw.max_waiting);
        return Err(Fault::at(own.max_waiting, message));
    }
    check_listed(&raw, model, words)?;

    let mut inputs: BTreeSet<String> = model.inputs.iter().map(|input| input.name.clone()).collect();
    let mut outputs: BTreeSet<String> = model.outputs.iter().map(|output| output.name.clone()).collect();
    let control = |(index, (kind, raw))| {
        let control = control(kind, raw, &(own.control)(index, kind), words)?;
        check_name(&control.input, &mut inputs, model.inputs, words.inputs, &(own.control)(index, kind))?;
        Ok(control)
    };
    let controls = raw.controls.0.into_iter().enumerate().map(control).collect::<Result<_, _>>()?;
    let state = |(index, raw): (usize, RawState)| {
        let key = format!("{}[{index}]", own.states);
        let place = |field| format!("{key}.{field}");
        check_name(&raw.input, &mut inputs, model.inputs, words.inputs, &place(own.input))?;
        check_name(&raw.output, &mut outputs, model.outputs, words.outputs, &place(own.output))?;
        state(raw, model.dir, &key, words)
    };
    let states = raw.states.into_iter().enumerate().map(state).collect::<Result<_, _>>()?;
    Ok(Sequences { strategy, idle_timeout, max_waiting: raw.max_waiting, controls, states })
}

fn strategy(raw: &RawSequence, words: &AllWords) -> Result<SequenceStrategy, Fault> {
    let own = &words.sequence;
    match raw.strategy {
        RawStrategy::Oldest if raw.max_delay.is_some() => {
            let message = format!(
                "only the strategy `direct` waits by this: leave it out, or write `{}` instead",
                words.scheduling.max_delay
            );
            Err(Fault::at(own.max_delay, message))
        }
        RawStrategy::Oldest => {
            let count = raw.max_sequences.unwrap_or(DEFAULT_SEQUENCES);
            let max_sequences = number(count, MAX_SEQUENCES, own.max_sequences)?;
            Ok(SequenceStrategy::Oldest { max_sequences })
        }
        RawStrategy::Direct if raw.max_sequences.is_some() => Err(Fault::at(
            own.max_sequences,
            "with the strategy `direct` as many sequences go on at once as there are rows (max_batch_size for each \
             instance): leave it out, or choose `oldest`",
        )),
        RawStrategy::Direct => {
            let RawDuration(max_delay) = raw.max_delay.unwrap_or_default();
            at_most(max_delay, MAX_DELAY, own.max_delay, words.scheduling.time)?;
            Ok(SequenceStrategy::Direct { max_delay })
        }
    }
}

/// With `direct`, batches follow from the rows of sequences, and nothing else may be said of them.
pub(super) fn direct_batching(
    raw: &RawBatching,
    max_batch_size: u32,
    max_delay: Duration,
    words: &AllWords,
) -> Result<Option<Batching>, Fault> {
    match raw {
        RawBatching::Auto => Ok((max_batch_size > 0).then(|| Batching { max_delay, ..Batching::default() })),
        RawBatching::Off | RawBatching::Fields(_) => {
            Err(Fault::at(words.scheduling.batching, direct_rows(words)))
        }
    }
}

/// Why batches of rows that belong to sequences cannot be made in another way, and what to do.
pub(super) fn direct_rows(words: &AllWords) -> String {
    format!(
        "with the strategy `direct` each sequence has a row of its own, and batches follow from that: leave this out \
         (`{}` says how long a run waits for more rows), or choose the strategy `oldest`",
        words.sequence.max_delay
    )
}

/// What the signature of the model would tell cannot be told apart from controls and states.
fn check_listed(raw: &RawSequence, model: &Model<'_>, words: &AllWords) -> Result<(), Fault> {
    let (states, controls) = (!raw.states.is_empty(), !raw.controls.0.is_empty());
    let missing = [
        ((states || controls) && model.inputs.is_empty(), words.inputs, "send"),
        (states && model.outputs.is_empty(), words.outputs, "get"),
    ];
    match missing.into_iter().find(|(missing, ..)| *missing) {
        None => Ok(()),
        Some((_, list, what)) => Err(Fault::at(
            list,
            format!(
                "is missing: beside the controls and states of `{}` list what clients {what}, so that each name finds \
                 its place in the model",
                words.sequence.sequence
            ),
        )),
    }
}

/// Takes a name that no other has.
fn check_name(
    name: &str,
    taken: &mut BTreeSet<String>,
    listed: &[TensorConfig],
    list: &str,
    key: &str,
) -> Result<(), Fault> {
    if name.is_empty() {
        return Err(Fault::at(key, "is empty or missing: write the name that the model knows"));
    }
    if taken.insert(name.to_owned()) {
        return Ok(());
    }
    let shown = one_line(name);
    Err(Fault::at(
        key,
        if listed.iter().any(|tensor| tensor.name == name) {
            format!("`{shown}` is listed in `{list}` too: remove it there, clients do not see it")
        } else {
            format!("`{shown}` is already the name of another one: names must differ")
        },
    ))
}

fn control(kind: RawControlKind, raw: RawControl, key: &str, words: &AllWords) -> Result<Control, Fault> {
    use DataType::{Bool, Bytes, Fp32, Int32, Int64, Uint32, Uint64};
    let RawControl(raw) = raw;
    let values_key = format!("{key}.{}", words.sequence.control_values);
    if kind == RawControlKind::CorrelationId {
        let data_type = control_type(raw.dtype, &[Int64, Int32, Uint32, Uint64, Bytes], key, words)?;
        if raw.values.is_some() {
            return Err(Fault::at(values_key, "an id is no yes or no, so it has no values: leave them out"));
        }
        return Ok(Control { input: raw.name, kind: ControlKind::CorrelationId, data_type });
    }
    let data_type = control_type(raw.dtype, &[Bool, Int32, Fp32], key, words)?;
    let [off, on] = values(raw.values, data_type, &values_key)?;
    let flag = Flag { off: element(data_type, off, &values_key)?, on: element(data_type, on, &values_key)? };
    let kind = match kind {
        RawControlKind::Start => ControlKind::Start(flag),
        RawControlKind::End => ControlKind::End(flag),
        RawControlKind::Ready | RawControlKind::CorrelationId => ControlKind::Ready(flag),
    };
    Ok(Control { input: raw.name, kind, data_type })
}

/// The type that is written, which must be one of these, or the first of them.
fn control_type(
    written: Option<DataType>,
    possible: &[DataType],
    key: &str,
    words: &AllWords,
) -> Result<DataType, Fault> {
    let data_type = written.unwrap_or(possible[0]);
    if possible.contains(&data_type) {
        return Ok(data_type);
    }
    let names: Vec<_> = possible.iter().map(|data_type| data_type.name()).collect();
    Err(Fault::at(
        format!("{key}.{}", words.data_type),
        format!("{data_type} cannot be here: write one of {}", names.join(", ")),
    ))
}

fn values(written: Option<Vec<RawNumber>>, data_type: DataType, key: &str) -> Result<[Number; 2], Fault> {
    let Some(written) = written else {
        return Ok(match data_type {
            DataType::Bool => [false, true].map(Number::Bool),
            _ => [0, 1].map(Number::Integer),
        });
    };
    match written[..] {
        [RawNumber(off), RawNumber(on)] => Ok([off, on]),
        _ => {
            let count = written.len();
            Err(Fault::at(key, format!("two values are expected, for no and for yes, not {count}")))
        }
    }
}

fn element(data_type: DataType, number: Number, key: &str) -> Result<Vec<u8>, Fault> {
    let filler = Filler::new(data_type, number).map_err(|why| Fault::at(key, why))?;
    Ok(filler.bytes().to_vec())
}

fn state(raw: RawState, dir: &Path, key: &str, words: &AllWords) -> Result<SequenceState, Fault> {
    let own = &words.sequence;
    let Some(size) = raw.dtype.size() else {
        let message = "BYTES cannot be kept, only tensors of numbers can: encode it as UINT8";
        return Err(Fault::at(format!("{key}.{}", words.data_type), message));
    };
    shape::check(&raw.shape, &format!("{key}.{}", words.shape))?;
    let (file_shape, initial_key) = match &raw.initial {
        RawInitial::File(file) => (file.shape.clone(), format!("{key}.{}.shape", own.initial)),
        RawInitial::Zeros | RawInitial::Number(_) => (None, String::new()),
    };
    let initial_dims = match (file_shape, raw.initial_shape) {
        (Some(_), Some(_)) => {
            let message = format!("is said by `{}` too: leave one of the two out", own.initial_shape);
            return Err(Fault::at(initial_key, message));
        }
        (Some(written), None) => initial_dims(written, &raw.shape, &initial_key, words)?,
        (None, Some(written)) => {
            initial_dims(written, &raw.shape, &format!("{key}.{}", own.initial_shape), words)?
        }
        // As in Triton.
        (None, None) => raw.shape.iter().map(|dim| if *dim == -1 { 1 } else { *dim }).collect(),
    };
    let count = elements(&initial_dims).and_then(|count| count.checked_mul(size as u64));
    let (initial, initial_file) = initial(raw.initial, raw.dtype, count, dir, key, words)?;
    Ok(SequenceState {
        input: raw.input,
        output: raw.output,
        data_type: raw.dtype,
        dims: raw.shape,
        initial_dims,
        initial,
        initial_file,
    })
}

/// The shape with which a sequence begins, which must be one of the state.
fn initial_dims(written: Vec<i64>, dims: &[i64], key: &str, words: &AllWords) -> Result<Vec<i64>, Fault> {
    if let Some((index, dim)) = written.iter().enumerate().find(|(_, dim)| **dim < 0) {
        let message =
            format!("{dim} is not a size: write how large this dimension is when a sequence begins");
        return Err(Fault::at(format!("{key}[{index}]"), message));
    }
    let fits = |(dim, size): (&i64, &i64)| *dim == -1 || dim == size;
    if written.len() == dims.len() && dims.iter().zip(&written).all(fits) {
        return Ok(written);
    }
    Err(Fault::at(key, format!("{written:?} does not fit {dims:?}, the `{}` of the state", words.shape)))
}

/// Elements, unless they are zeros, and the file that they are from, if they are.
type Initial = (Option<Arc<[u8]>>, Option<String>);

/// What a sequence begins with, which takes so many bytes.
fn initial(
    raw: RawInitial,
    data_type: DataType,
    bytes: Option<u64>,
    dir: &Path,
    key: &str,
    words: &AllWords,
) -> Result<Initial, Fault> {
    let bytes = bytes.unwrap_or(u64::MAX);
    let key_of = |field: &str| format!("{key}.{field}");
    let limit = if matches!(raw, RawInitial::Zeros) { MAX_ZEROS_BYTES } else { MAX_INITIAL_BYTES };
    if bytes > limit {
        let message = format!("more than {limit} bytes are too many to begin with: lower the shape");
        return Err(Fault::at(key_of(words.sequence.initial), message));
    }
    match raw {
        RawInitial::Zeros => Ok((None, None)),
        RawInitial::Number(RawNumber(number)) => {
            let element = element(data_type, number, &key_of(words.sequence.initial))?;
            let zeros = element.iter().all(|byte| *byte == 0);
            let count = usize::try_from(bytes).unwrap_or_default() / element.len();
            Ok(((!zeros).then(|| element.repeat(count).into()), None))
        }
        RawInitial::File(file) => {
            let key = key_of(words.sequence.initial_file);
            let data = files::read_initial_state(dir, &file.file, &key)?;
            if data.len() as u64 != bytes {
                let message = format!(
                    "`{}` has {} bytes, but the data type and the shape with which a sequence begins take {bytes}",
                    one_line(&file.file),
                    data.len()
                );
                return Err(Fault::at(key, message));
            }
            Ok((Some(data.into()), Some(file.file)))
        }
    }
}

#[cfg(test)]
#[path = "check_sequence_tests.rs"]
mod tests;
