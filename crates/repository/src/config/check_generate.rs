//! What is said of answers that are made step by step, to checked values.

use std::collections::BTreeSet;

use super::{
    Filler, Generate, Padding, TensorConfig,
    check::{Words as AllWords, number},
    error::Fault,
    raw::{RawGenerate, RawNumber, RawStop},
};
use crate::{DataType, escape::one_line};

/// More answers than this to one request are a slip.
const MAX_STEPS: u32 = 1_000_000;

/// The names of fields in one of the formats, as [`super::check::Words`].
#[derive(Debug)]
pub(super) struct Words {
    pub(super) generate: &'static str,
    pub(super) states: &'static str,
    pub(super) feed: &'static str,
    pub(super) send: &'static str,
    pub(super) stop: &'static str,
    pub(super) stop_flag: &'static str,
    pub(super) stop_value: &'static str,
    pub(super) max_steps: &'static str,
    pub(super) collect: &'static str,
}

/// The words of `config.yaml`.
pub(super) const YAML: Words = Words {
    generate: "generate",
    states: "generate.states",
    feed: "generate.feed",
    send: "generate.send",
    stop: "generate.stop",
    stop_flag: "generate.stop.flag",
    stop_value: "generate.stop.value",
    max_steps: "generate.max_steps",
    collect: "generate.collect",
};

/// The words of `config.pbtxt`, where it is said with parameters.
pub(super) const TRITON: Words = Words {
    generate: "parameters[GENERATE_STATES]",
    states: "parameters[GENERATE_STATES]",
    feed: "parameters[GENERATE_FEED]",
    send: "parameters[GENERATE_SEND]",
    stop: "parameters[GENERATE_STOP_FLAG]",
    stop_flag: "parameters[GENERATE_STOP_FLAG]",
    stop_value: "parameters[GENERATE_STOP_VALUE]",
    max_steps: "parameters[GENERATE_MAX_STEPS]",
    collect: "parameters[GENERATE_COLLECT]",
};

/// What the answers must fit.
pub(super) struct Model<'a> {
    pub(super) max_batch_size: u32,
    pub(super) stateful: bool,
    pub(super) has_sequences: bool,
    pub(super) inputs: &'a [TensorConfig],
    pub(super) outputs: &'a [TensorConfig],
}

/// Checks what is said of answers that are made step by step.
pub(super) fn check(raw: RawGenerate, model: &Model<'_>, words: &AllWords) -> Result<Generate, Fault> {
    let own = &words.generate;
    check_model(model, words)?;
    check_states(&raw.states, model.outputs, words)?;
    let stop = stop(raw.stop, own)?;
    let stop_flag = stop.flag.map(|name| {
        let output = output(&name, model, own.stop_flag, words)?;
        check_flag(output, own.stop_flag, words)?;
        Ok(name)
    });
    let stop_flag = stop_flag.transpose()?;

    let first = || model.outputs.first().map(|output| output.name.clone()).unwrap_or_default();
    let feed = raw.feed.unwrap_or_else(first);
    let fed = output(&feed, model, own.feed, words)?;
    if fed.data_type == DataType::Bytes {
        let message = format!(
            "output '{}' is BYTES, and only a tensor of numbers can go from one step to the next: name another",
            one_line(&feed)
        );
        return Err(Fault::at(own.feed, message));
    }
    let stop_value = stop.value.map(|number| stop_value(number, fed, own.stop_value, words)).transpose()?;

    let all = || {
        let names = model.outputs.iter().map(|output| output.name.clone());
        names.filter(|name| Some(name) != stop_flag.as_ref()).collect()
    };
    let send = raw.send.unwrap_or_else(all);
    check_send(&send, raw.collect, model, words)?;
    let max_steps = number(raw.max_steps, MAX_STEPS, own.max_steps)?;
    Ok(Generate { states: raw.states, feed, send, stop_flag, stop_value, max_steps, collect: raw.collect })
}

fn check_model(model: &Model<'_>, words: &AllWords) -> Result<(), Fault> {
    let fault = |key: &str, message: &str| Err(Fault::at(key, message));
    let generate = words.generate.generate;
    if model.has_sequences {
        let message = format!(
            "a model either generates or has sequences (`{}`), not both: leave one of them out",
            words.sequence.sequence
        );
        return fault(generate, &message);
    }
    if model.stateful {
        return fault(
            generate,
            "what a generating model keeps goes from step to step as `states`, and not in the module: leave `stateful` \
             out",
        );
    }
    if model.max_batch_size == 0 {
        return fault(
            generate,
            "the first dimension of everything that goes from step to step is the batch: let max_batch_size be 1 or \
             more",
        );
    }
    for (missing, list, what) in [
        (model.inputs.is_empty(), words.inputs, "what `start` takes"),
        (model.outputs.is_empty(), words.outputs, "what `start` and `step` return before the states"),
    ] {
        if missing {
            return fault(list, &format!("is missing: a model that generates lists {what}"));
        }
    }
    let cut = |output: &&TensorConfig| matches!(output.padding, Some(Padding::CutTo(_)));
    match model.outputs.iter().find(cut) {
        None => Ok(()),
        Some(output) => Err(Fault::at(
            generate,
            format!(
                "output '{}' is cut back to an input (`{}`), which only the first step has: leave that out",
                one_line(&output.name),
                words.unpad
            ),
        )),
    }
}

/// Where an entry of a list stands; in Triton's format the list is one text.
fn place(list: &str, index: usize) -> String {
    if list.starts_with("parameters[") { list.to_owned() } else { format!("{list}[{index}]") }
}

fn check_states(states: &[String], outputs: &[TensorConfig], words: &AllWords) -> Result<(), Fault> {
    let mut seen = BTreeSet::new();
    for (index, state) in states.iter().enumerate() {
        let shown = one_line(state);
        let fault = |message: String| Err(Fault::at(place(words.generate.states, index), message));
        if state.is_empty() {
            return fault("a name is expected, not nothing".to_owned());
        }
        if outputs.iter().any(|output| output.name == *state) {
            return fault(format!(
                "`{shown}` is one of `{}` too: states are what is returned behind those, so name it in one place only",
                words.outputs
            ));
        }
        if !seen.insert(state) {
            return fault(format!("`{shown}` is listed twice: names must differ"));
        }
    }
    Ok(())
}

fn stop(raw: Option<RawStop>, own: &Words) -> Result<RawStop, Fault> {
    match raw {
        Some(RawStop { flag: None, value: None }) => Err(Fault::at(
            own.stop,
            "says nothing: name a BOOL output as `flag`, write a `value`, or leave `stop` out",
        )),
        raw => Ok(raw.unwrap_or_default()),
    }
}

fn output<'a>(name: &str, model: &Model<'a>, key: &str, words: &AllWords) -> Result<&'a TensorConfig, Fault> {
    let found = model.outputs.iter().find(|output| output.name == name);
    found.ok_or_else(|| {
        let names: Vec<_> = model.outputs.iter().map(|output| one_line(&output.name)).collect();
        let names: Vec<_> = names.iter().map(|name| &**name).collect();
        let message = format!(
            "there is no output '{}' in `{}`: expected {}",
            one_line(name),
            words.outputs,
            super::hint::one_of(&names)
        );
        Fault::at(key, message)
    })
}

/// Whether each row has one element.
fn is_single(output: &TensorConfig) -> bool {
    output.dims.iter().all(|dim| *dim == 1)
}

fn check_flag(output: &TensorConfig, key: &str, words: &AllWords) -> Result<(), Fault> {
    let name = one_line(&output.name);
    if output.data_type != DataType::Bool {
        let message = format!("output '{name}' is {}, and a flag is BOOL: name another", output.data_type);
        return Err(Fault::at(key, message));
    }
    if !is_single(output) {
        let message = format!(
            "output '{name}' has the {} {:?}, and a flag has one element for each row: let it be [1]",
            words.shape, output.dims
        );
        return Err(Fault::at(key, message));
    }
    Ok(())
}

fn stop_value(
    RawNumber(number): RawNumber,
    fed: &TensorConfig,
    key: &str,
    words: &AllWords,
) -> Result<Vec<u8>, Fault> {
    let name = one_line(&fed.name);
    if !is_single(fed) {
        let message = format!(
            "output '{name}', which is fed to the next step, has the {} {:?}, and one element for each row is \
             compared: let it be [1], or stop by a flag",
            words.shape, fed.dims
        );
        return Err(Fault::at(key, message));
    }
    let filler = Filler::new(fed.data_type, number)
        .map_err(|why| Fault::at(key, format!("output '{name}', which is fed to the next step: {why}")))?;
    Ok(filler.bytes().to_vec())
}

fn check_send(send: &[String], collect: bool, model: &Model<'_>, words: &AllWords) -> Result<(), Fault> {
    let key = words.generate.send;
    if send.is_empty() {
        return Err(Fault::at(key, "nothing would be sent: name at least one output"));
    }
    let mut seen = BTreeSet::new();
    for (index, name) in send.iter().enumerate() {
        let output = output(name, model, &place(key, index), words)?;
        if !seen.insert(name) {
            let message = format!("`{}` is listed twice: list it once", one_line(name));
            return Err(Fault::at(place(key, index), message));
        }
        if collect && output.dims.is_empty() && output.data_type != DataType::Bytes {
            let message = format!(
                "the answers of output '{}' cannot be joined, because it has no dimension beside the batch: let its {} \
                 be [1]",
                one_line(name),
                words.shape
            );
            return Err(Fault::at(words.generate.collect, message));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "check_generate_tests.rs"]
mod tests;
