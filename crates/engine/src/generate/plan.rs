//! How answers are made from what `start` and `step` return.

use std::sync::Arc;

use sconce_repository::{Generate, ModelConfig};

use crate::{
    backend::LoadError,
    binding::Binding,
    outputs::{self, OutputSlot, Wanted},
    schema::{Argument, ArgumentKind, Return, Schema},
    sequence::{part, tensor},
    text::shape_text,
    value::{Arg, Call, Kept, Output},
};

/// Where in what a method returns its parts are.
#[derive(Debug)]
struct Parts {
    feed: Kept,
    flag: Option<Kept>,
    states: Arc<[Kept]>,
}

/// How a version's answers are made from what its methods return.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(super) config: Generate,
    /// What is sent where a request does not say it.
    pub(super) send: Vec<Wanted>,
    start: Parts,
    step: Parts,
    /// Names what `step` returns.
    pub(super) step_binding: Box<Binding>,
}

/// The configuration with the states as further outputs.
pub(crate) fn with_states(config: &ModelConfig) -> Option<ModelConfig> {
    let generate = config.generate.as_ref()?;
    let mut whole = config.clone();
    let state = |name: &String| tensor(name, crate::DataType::Fp32, &[-1]);
    whole.outputs.extend(generate.states.iter().map(state));
    Some(whole)
}

impl Plan {
    /// From what `start` returns, by the slots that [`with_states`] was given, and the schema of `step`.
    ///
    /// # Errors
    /// One sentence: how `step` differs from what the configuration says.
    pub(crate) fn new(
        config: &ModelConfig,
        generate: &Generate,
        (start, states): (&[OutputSlot], &[OutputSlot]),
        returns: &Return,
        step: &Schema,
    ) -> std::result::Result<Self, LoadError> {
        check_step(generate, step)?;
        let whole = with_states(config).unwrap_or_else(|| config.clone());
        let mut step_outputs = outputs::plan(&whole, &step.returns)?;
        let step_states = step_outputs.slots.split_off(config.outputs.len());
        let wanted = |name: &String| Wanted { name: name.clone(), classes: 0 };
        Ok(Self {
            send: generate.send.iter().map(wanted).collect(),
            start: Parts::new(generate, start, states, returns)?,
            step: Parts::new(generate, &step_outputs.slots, &step_states, &step.returns)?,
            step_binding: Box::new(Binding::of_step(config, step, step_outputs)),
            config: generate.clone(),
        })
    }

    /// Has the states kept on their device.
    pub(crate) fn keep(&self, call: &mut Call) {
        call.keep = (!self.start.states.is_empty()).then(|| Arc::clone(&self.start.states));
    }

    /// The call of `step` after this.
    ///
    /// # Errors
    /// One sentence, where a part is not there.
    pub(crate) fn next_call(
        &self,
        output: &Output,
        rows: Option<i64>,
        first: bool,
    ) -> std::result::Result<Call, String> {
        let parts = if first { &self.start } else { &self.step };
        let rows = rows.unwrap_or(1);
        let mut arguments = Vec::with_capacity(1 + parts.states.len());
        for (kept, name) in std::iter::once(&parts.feed)
            .chain(&*parts.states)
            .zip(std::iter::once(&self.config.feed).chain(&self.config.states))
        {
            match part(output, kept) {
                Some(Output::Tensor(tensor)) if tensor.shape.first() == Some(&rows) => {
                    arguments.push(Arg::Tensor(tensor.clone()));
                }
                Some(Output::Tensor(tensor)) => {
                    return Err(format!(
                        "'{name}' has shape {}, where {rows} is expected as the first dimension, the batch",
                        shape_text(&tensor.shape)
                    ));
                }
                _ => return Err(format!("'{name}' is not in it, or is no tensor")),
            }
        }
        arguments.resize(self.step_binding.arguments.len(), Arg::Default);
        let keep = (!self.step.states.is_empty()).then(|| Arc::clone(&self.step.states));
        Ok(Call { arguments, keep, shares: None })
    }

    /// Whether this answer is the last.
    pub(super) fn is_last(&self, output: &Output, first: bool) -> bool {
        let parts = if first { &self.start } else { &self.step };
        let bytes = |kept: &Kept| match part(output, kept) {
            Some(Output::Tensor(tensor)) => tensor.bytes().to_vec(),
            _ => Vec::new(),
        };
        let flag = parts.flag.as_ref().is_some_and(|flag| bytes(flag).iter().any(|byte| *byte != 0));
        flag || self.config.stop_value.as_ref().is_some_and(|value| bytes(&parts.feed) == *value)
    }
}

impl Parts {
    fn new(
        generate: &Generate,
        outputs: &[OutputSlot],
        states: &[OutputSlot],
        returns: &Return,
    ) -> std::result::Result<Self, LoadError> {
        let find = |name: &str| {
            let slot = outputs.iter().find(|slot| *slot.name == *name);
            slot.ok_or_else(|| LoadError::new(format!("its configuration has no output '{name}'")))?
                .kept(returns)
        };
        Ok(Self {
            feed: find(&generate.feed)?,
            flag: generate.stop_flag.as_deref().map(find).transpose()?,
            states: states.iter().map(|slot| slot.kept(returns)).collect::<std::result::Result<_, _>>()?,
        })
    }
}

fn check_step(generate: &Generate, step: &Schema) -> std::result::Result<(), LoadError> {
    let names: Vec<&str> =
        std::iter::once(&generate.feed).chain(&generate.states).map(String::as_str).collect();
    let fits = step.arguments.len() >= names.len()
        && step.arguments[..names.len()].iter().all(|argument| argument.kind == ArgumentKind::Tensor)
        && step.arguments[names.len()..].iter().all(|argument| argument.optional);
    if fits {
        return Ok(());
    }
    let kind = |argument: &Argument| match &argument.kind {
        ArgumentKind::Tensor => argument.name.clone(),
        other => format!("{}: {other:?}", argument.name),
    };
    let takes: Vec<String> = step.arguments.iter().map(kind).collect();
    Err(LoadError::new(format!(
        "step takes ({}), and by the configuration it is given {} tensors: {}",
        takes.join(", "),
        names.len(),
        names.join(", ")
    )))
}
