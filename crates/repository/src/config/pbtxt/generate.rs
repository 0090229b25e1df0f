//! The parameters that say how a model answers one request many times, for which Triton's schema has no
//! fields: `GENERATE_STATES` and what belongs to it.

use prost_reflect::DynamicMessage;

use super::{
    super::{
        check::TRITON,
        error::Fault,
        raw::{RawConfig, RawGenerate, RawNumber, RawStop, max_steps},
    },
    parameters,
};
use crate::escape::one_line;

/// Parameters that are read here.
pub(super) const PARAMETERS: [&str; 7] = [STATES, FEED, SEND, STOP_FLAG, STOP_VALUE, MAX_STEPS, COLLECT];

const STATES: &str = "GENERATE_STATES";
const FEED: &str = "GENERATE_FEED";
const SEND: &str = "GENERATE_SEND";
const STOP_FLAG: &str = "GENERATE_STOP_FLAG";
const STOP_VALUE: &str = "GENERATE_STOP_VALUE";
const MAX_STEPS: &str = "GENERATE_MAX_STEPS";
const COLLECT: &str = "GENERATE_COLLECT";

/// Whether it is the configuration of a model that generates.
pub(super) fn is_there(message: &DynamicMessage) -> bool {
    parameters::text(message, STATES).is_some()
}

/// Takes over what the parameters say.
pub(super) fn apply(message: &DynamicMessage, raw: &mut RawConfig) -> Result<(), Fault> {
    let text = |key| parameters::text(message, key);
    let Some(states) = text(STATES) else {
        return match PARAMETERS.into_iter().find(|key| text(key).is_some()) {
            None => Ok(()),
            Some(key) => Err(Fault::at(
                parameters::place(key),
                format!(
                    "only a model that generates has this, and {STATES} makes it one: write it too, empty if there \
                     are no states"
                ),
            )),
        };
    };
    let value = text(STOP_VALUE).map(|value| {
        RawNumber::parse(value).ok_or_else(|| {
            let shown = one_line(value);
            let message = format!("`{shown}` is not a number: write one such as {{ string_value: \"0\" }}");
            Fault::at(TRITON.generate.stop_value, message)
        })
    });
    let value = value.transpose()?;
    let flag = text(STOP_FLAG).map(str::to_owned);
    let steps = text(MAX_STEPS).map(|steps| parameters::number(MAX_STEPS, steps));
    let collect = text(COLLECT).map(|collect| parameters::switch(COLLECT, collect));
    raw.generate = Some(RawGenerate {
        states: names(states),
        feed: text(FEED).map(str::to_owned),
        send: text(SEND).map(names),
        stop: (flag.is_some() || value.is_some()).then_some(RawStop { flag, value }),
        max_steps: steps.transpose()?.unwrap_or_else(max_steps),
        collect: collect.transpose()?.unwrap_or_default(),
    });
    Ok(())
}

/// Names with commas between them; nothing is no name.
fn names(text: &str) -> Vec<String> {
    if text.trim().is_empty() {
        return Vec::new();
    }
    text.split(',').map(|name| name.trim().to_owned()).collect()
}

#[cfg(test)]
#[path = "generate_tests.rs"]
mod tests;
