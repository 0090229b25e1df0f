//! The fields of `sequence_batching`.

use std::time::Duration;

use prost_reflect::DynamicMessage;

use super::{
    super::{
        check::TRITON,
        check_sequence::direct_rows,
        error::Fault,
        raw::{
            RawBatching, RawConfig, RawControl, RawControlFields, RawControlKind, RawControls, RawDuration,
            RawInitial, RawInitialFile, RawNumber, RawSequence, RawState, RawStrategy,
        },
    },
    batching, data_type, parameters, read, unserved,
};
use crate::DataType;

/// As in Triton, where there is no limit but that of the server.
const MAX_WAITING: u32 = 2048;

/// As in Triton.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// The message that says how sequences are batched, the oldest first.
pub(super) fn oldest(message: &DynamicMessage) -> Option<&DynamicMessage> {
    read::message(message, "sequence_batching").and_then(|sequence| read::message(sequence, "oldest"))
}

/// Takes over what is said of sequences; what is said of batches is known already.
pub(super) fn apply(
    message: &DynamicMessage,
    raw: &mut RawConfig,
    notes: &mut Vec<String>,
) -> Result<(), Fault> {
    let Some(sequence) = read::message(message, "sequence_batching") else { return Ok(()) };
    if read::flag(sequence, "iterative_sequence") {
        return Err(Fault::at(
            "sequence_batching.iterative_sequence",
            "requests that are run again until they are done are not served: remove it; a model that answers step by \
             step has the parameter GENERATE_STATES",
        ));
    }
    let idle = u64::try_from(read::number(sequence, "max_sequence_idle_microseconds")).unwrap_or_default();
    let mut found = RawSequence {
        strategy: RawStrategy::Direct,
        max_waiting: MAX_WAITING,
        idle_timeout: RawDuration(if idle == 0 { IDLE_TIMEOUT } else { Duration::from_micros(idle) }),
        controls: controls(sequence)?,
        states: states(sequence, notes)?,
        ..RawSequence::default()
    };
    if let Some(oldest) = read::message(sequence, "oldest") {
        let key = TRITON.sequence.max_sequences;
        let count = super::unsigned(read::number(oldest, "max_candidate_sequences"), key)?;
        // As in Triton, nothing means as many as rows.
        let rows = raw.max_batch_size.max(1);
        found.strategy = RawStrategy::Oldest;
        found.max_sequences = Some(if count == 0 { rows } else { count });
    } else {
        check_direct(message)?;
        raw.batching = RawBatching::Auto;
        let direct = read::message(sequence, "direct");
        found.max_delay =
            direct.and_then(|direct| batching::microseconds(direct, "max_queue_delay_microseconds"));
        if direct.is_some_and(|direct| read::is_set(direct, "minimum_slot_utilization")) {
            unserved::note(
                notes,
                "sequence_batching.direct.minimum_slot_utilization",
                "a run waits for more rows until max_queue_delay_microseconds have passed",
            );
        }
    }
    raw.sequence = Some(found);
    Ok(())
}

/// Rows that belong to sequences are not joined in another way.
fn check_direct(message: &DynamicMessage) -> Result<(), Fault> {
    // As is the default.
    let says = |text: &str| !text.eq_ignore_ascii_case("auto");
    let written = batching::JOINING.into_iter().find(|key| parameters::text(message, key).is_some_and(says));
    match written {
        Some(key) => Err(Fault::at(parameters::place(key), direct_rows(&TRITON))),
        None => Ok(()),
    }
}

fn controls(sequence: &DynamicMessage) -> Result<RawControls, Fault> {
    let mut controls: Vec<(RawControlKind, RawControl)> = Vec::new();
    for (index, input) in read::messages(sequence, "control_input").into_iter().enumerate() {
        let key = format!("sequence_batching.control_input[{index}]");
        let [control] = read::messages(input, "control")[..] else {
            return Err(Fault::at(
                format!("{key}.control"),
                "one control is expected for each input: write `control [{ kind: CONTROL_SEQUENCE_START \
                 bool_false_true: [ false, true ] }]`",
            ));
        };
        let (kind, fields) = control_fields(control, &format!("{key}.control[0]"))?;
        if controls.iter().any(|(known, _)| *known == kind) {
            return Err(Fault::at(
                format!("{key}.control[0].kind"),
                "another input has this control already: keep one of them",
            ));
        }
        let name = read::text(input, "name").to_owned();
        controls.push((kind, RawControl(RawControlFields { name, ..fields })));
    }
    Ok(RawControls(controls))
}

/// What a control is but for the name of its input.
fn control_fields(control: &DynamicMessage, key: &str) -> Result<(RawControlKind, RawControlFields), Fault> {
    let number = read::number(control, "kind");
    let kind = match read::enum_name(control, "kind", number).as_deref() {
        Some("CONTROL_SEQUENCE_START") => RawControlKind::Start,
        Some("CONTROL_SEQUENCE_READY") => RawControlKind::Ready,
        Some("CONTROL_SEQUENCE_END") => RawControlKind::End,
        Some("CONTROL_SEQUENCE_CORRID") => RawControlKind::CorrelationId,
        _ => {
            let message =
                format!("there is no control of number {number}: write one such as CONTROL_SEQUENCE_START");
            return Err(Fault::at(format!("{key}.kind"), message));
        }
    };
    let written: Vec<_> = [
        ("int32_false_true", DataType::Int32),
        ("fp32_false_true", DataType::Fp32),
        ("bool_false_true", DataType::Bool),
    ]
    .into_iter()
    .map(|(field, data_type)| (field, data_type, read::values(control, field)))
    .filter(|(.., values)| !values.is_empty())
    .collect();
    let typed = read::number(control, "data_type") != 0;
    let (dtype, values) = match (&written[..], kind) {
        ([], RawControlKind::CorrelationId) => (data_type(control, key)?, None),
        ([(field, ..), ..], RawControlKind::CorrelationId) => {
            let message = "an id is no yes or no: give its data_type instead";
            return Err(Fault::at(format!("{key}.{field}"), message));
        }
        ([(_, data_type, values)], _) if !typed => (*data_type, Some(values.clone())),
        ([_], _) => {
            let message =
                "the values say the type already, and only CONTROL_SEQUENCE_CORRID has this: remove it";
            return Err(Fault::at(format!("{key}.data_type"), message));
        }
        _ => {
            return Err(Fault::at(
                key,
                "one of int32_false_true, fp32_false_true and bool_false_true is expected, with the values for no and \
                 yes, such as `int32_false_true: [ 0, 1 ]`",
            ));
        }
    };
    let values = values.map(|values| values.into_iter().map(RawNumber).collect());
    Ok((kind, RawControlFields { name: String::new(), dtype: Some(dtype), values }))
}

fn states(sequence: &DynamicMessage, notes: &mut Vec<String>) -> Result<Vec<RawState>, Fault> {
    let mut states = Vec::new();
    for (index, message) in read::messages(sequence, "state").into_iter().enumerate() {
        let key = format!("sequence_batching.state[{index}]");
        for field in ["use_same_buffer_for_input_output", "use_growable_memory"] {
            if read::flag(message, field) {
                let why = "the server chooses where the tensors that it keeps lie";
                unserved::note(notes, &format!("{key}.{field}"), why);
            }
        }
        states.push(state(message, &key)?);
    }
    Ok(states)
}

fn state(message: &DynamicMessage, key: &str) -> Result<RawState, Fault> {
    let dtype = data_type(message, key)?;
    let shape = read::numbers(message, "dims");
    if shape.is_empty() {
        return Err(Fault::at(
            format!("{key}.dims"),
            "is missing: write the shape without the batch dimension, such as `dims: [ 1 ]`",
        ));
    }
    let (initial, initial_shape) = match read::messages(message, "initial_state")[..] {
        [] => (RawInitial::Zeros, None),
        [initial] => (
            initial_state(initial, dtype, &format!("{key}.initial_state[0]"))?,
            Some(read::numbers(initial, "dims")),
        ),
        _ => {
            let message = "a sequence begins in one way: keep one initial_state";
            return Err(Fault::at(format!("{key}.initial_state"), message));
        }
    };
    Ok(RawState {
        input: read::text(message, "input_name").to_owned(),
        output: read::text(message, "output_name").to_owned(),
        dtype,
        shape,
        initial,
        initial_shape,
    })
}

fn initial_state(message: &DynamicMessage, of_state: DataType, key: &str) -> Result<RawInitial, Fault> {
    let data_type = data_type(message, key)?;
    if data_type != of_state {
        return Err(Fault::at(
            format!("{key}.data_type"),
            format!("{data_type} differs from {of_state}, the type of the state: write the same"),
        ));
    }
    // As in Triton, the field that is there decides, whatever its value.
    if read::is_set(message, "zero_data") {
        Ok(RawInitial::Zeros)
    } else if read::is_set(message, "data_file") {
        let file = read::text(message, "data_file").to_owned();
        Ok(RawInitial::File(RawInitialFile { file, shape: None }))
    } else {
        Err(Fault::at(key, "has no data: write `zero_data: true` or `data_file: \"x.bin\"`"))
    }
}

#[cfg(test)]
#[path = "sequence_tests.rs"]
mod tests;
