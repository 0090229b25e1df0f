//! The settings of Triton's PyTorch backend, which are strings under `parameters`.

use prost_reflect::DynamicMessage;

use super::{
    super::{
        Availability,
        error::Fault,
        raw::{RawConfig, RawWarmup},
    },
    batching, generate, padding, read, unserved,
};
use crate::escape::one_line;

/// Settings that cannot change an answer and are not needed here, and why.
const IGNORED: &[(&str, Kind, &str)] = &[
    (
        "ENABLE_WEIGHT_SHARING",
        Kind::Switch,
        "the runs on a device share the weights unless the model has state",
    ),
    ("ENABLE_CACHE_CLEANING", Kind::Switch, "the allocator keeps what it has freed for the next run"),
    ("INTER_OP_THREAD_COUNT", Kind::Number, "the runs of all models share the workers of a device"),
    ("ENABLE_JIT_EXECUTOR", Kind::Switch, "it would change every model in the process"),
    ("ENABLE_JIT_PROFILING", Kind::Switch, "it would change every model in the process"),
    ("ENABLE_TENSOR_FUSER", Kind::Switch, "it would change every model in the process"),
    ("DISABLE_CUDNN", Kind::Switch, "it would change every model in the process"),
];

/// Settings that others read.
const ELSEWHERE: [&[&str]; 3] = [&batching::PARAMETERS, &padding::PARAMETERS, &generate::PARAMETERS];

#[derive(Clone, Copy)]
enum Kind {
    Switch,
    Number,
}

/// Takes over the settings that are known; the others are noted.
pub(super) fn apply(
    message: &DynamicMessage,
    raw: &mut RawConfig,
    notes: &mut Vec<String>,
) -> Result<(), Fault> {
    for (key, parameter) in read::entries(message, "parameters") {
        let value = read::text(parameter, "string_value");
        match key {
            "DISABLE_OPTIMIZED_EXECUTION" => raw.optimized_execution = !switch(key, value)?,
            "INFERENCE_MODE" => raw.inference_mode = switch(key, value)?,
            // As in Triton, 0 leaves the choice to the server.
            "INTRA_OP_THREAD_COUNT" => raw.threads = Some(number(key, value)?).filter(|count| *count > 0),
            "AVAILABILITY" => raw.availability = availability(key, value)?,
            "WARMUP" => warmup(key, value, &mut raw.warmup)?,
            key if ELSEWHERE.iter().any(|keys| keys.contains(&key)) => {}
            _ => ignore(key, value, notes)?,
        }
    }
    Ok(())
}

/// The value of a parameter, if it is there.
pub(super) fn text<'a>(message: &'a DynamicMessage, key: &str) -> Option<&'a str> {
    let mut entries = read::entries(message, "parameters").into_iter();
    entries.find(|(name, _)| *name == key).map(|(_, parameter)| read::text(parameter, "string_value"))
}

fn availability(key: &str, value: &str) -> Result<Availability, Fault> {
    match value.to_ascii_lowercase().as_str() {
        "keep" => Ok(Availability::Keep),
        "replace" => Ok(Availability::Replace),
        _ => Err(neither(key, value, ["keep", "replace"])),
    }
}

/// Triton's schema has samples, but no word for doing nothing.
fn warmup(key: &str, value: &str, warmup: &mut RawWarmup) -> Result<(), Fault> {
    match value.to_ascii_lowercase().as_str() {
        "auto" => Ok(()),
        "off" => {
            *warmup = RawWarmup::Off;
            Ok(())
        }
        _ => Err(neither(key, value, ["auto", "off"])),
    }
}

/// The error of a value that is neither of two.
pub(super) fn neither(key: &str, value: &str, [one, other]: [&str; 2]) -> Fault {
    let shown = one_line(value);
    Fault::at(
        place(key),
        format!("`{shown}` is neither {one} nor {other}: write {{ string_value: \"{one}\" }} or \"{other}\""),
    )
}

fn ignore(key: &str, value: &str, notes: &mut Vec<String>) -> Result<(), Fault> {
    let field = place(key);
    let Some((_, kind, why)) = IGNORED.iter().find(|(name, ..)| *name == key) else {
        unserved::note(notes, &field, "there is no parameter of this name");
        return Ok(());
    };
    match kind {
        Kind::Switch => switch(key, value).map(|_| ())?,
        Kind::Number => number(key, value).map(|_| ())?,
    }
    unserved::note(notes, &field, why);
    Ok(())
}

/// Where a parameter stands.
pub(super) fn place(key: &str) -> String {
    format!("parameters[{}]", one_line(key))
}

/// A switch that is on or off.
pub(super) fn switch(key: &str, value: &str) -> Result<bool, Fault> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "on" | "1" => Ok(true),
        "false" | "off" | "0" => Ok(false),
        _ => Err(neither(key, value, ["true", "false"])),
    }
}

/// A whole number.
pub(super) fn number(key: &str, value: &str) -> Result<u32, Fault> {
    value.parse().map_err(|_| {
        let shown = one_line(value);
        Fault::at(
            place(key),
            format!("`{shown}` is not a whole number: write one such as {{ string_value: \"2\" }}"),
        )
    })
}
