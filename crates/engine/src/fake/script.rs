//! A scripted model's file, read.

use std::time::Duration;

use crate::schema::{Argument, ArgumentKind, Return, Schema};

/// The first line of a script that has an `end`.
pub(super) const ENDS: &str = "fake ends";

#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) schema: Schema,
    pub(super) delay: Duration,
    pub(super) fail: Option<String>,
    pub(super) panic: bool,
    pub(super) gate: bool,
    pub(super) answer: Answer,
    pub(super) load_delay: Duration,
    pub(super) load_fail: Option<String>,
    pub(super) load_gate: bool,
    pub(super) poison: Option<f32>,
    pub(super) stall: Option<f32>,
    pub(super) lose: Option<f32>,
    pub(super) until: Option<f32>,
}

/// What a run answers with.
#[derive(Debug, Default)]
pub(super) enum Answer {
    /// Its tensor arguments.
    #[default]
    Echo,
    /// That one FP32.
    Value(f32),
    /// The sum of its tensor arguments, twice.
    Sum,
    /// Answers to go on from, with the schema of `step`.
    Generate(Schema),
}

impl Script {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines();
        if !lines.next().is_some_and(|first| first == "fake" || first == ENDS) {
            return Err("not a scripted model: its first line must be `fake`".to_owned());
        }
        let mut script = Self::default();
        script.schema.returns = Return::Unknown;
        for line in lines.filter(|line| !line.trim().is_empty()) {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "argument" => script.schema.arguments.push(argument(rest)?),
                "delay" => script.delay = millis(line, rest)?,
                "value" => script.answer = Answer::Value(number(line, rest)?),
                "sum" => script.answer = Answer::Sum,
                "generate" => script.answer = Answer::Generate(step()?),
                "until" => script.until = Some(number(line, rest)?),
                "load" => match rest.split_once(' ').unwrap_or((rest, "")) {
                    ("delay", time) => script.load_delay = millis(line, time)?,
                    ("fail", message) => script.load_fail = Some(message.to_owned()),
                    ("gate", "") => script.load_gate = true,
                    _ => return Err(format!("`{line}`: `load` and delay, fail or gate are expected")),
                },
                "end" => {}
                "fail" => script.fail = Some(rest.to_owned()),
                "panic" => script.panic = true,
                "poison" => script.poison = Some(number(line, rest)?),
                "stall" => script.stall = Some(number(line, rest)?),
                "lose" => script.lose = Some(number(line, rest)?),
                "gate" => script.gate = true,
                _ => return Err(format!("`{line}` is no line of a scripted model")),
            }
        }
        Ok(script)
    }
}

/// What `step` of a model that generates takes.
fn step() -> Result<Schema, String> {
    let arguments = vec![argument("prev tensor")?, argument("state tensor")?];
    Ok(Schema { arguments, returns: Return::Unknown })
}

fn number(line: &str, text: &str) -> Result<f32, String> {
    text.parse().map_err(|_| format!("`{line}`: a number is expected"))
}

fn millis(line: &str, text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_millis).map_err(|_| format!("`{line}`: milliseconds are expected"))
}

fn argument(text: &str) -> Result<Argument, String> {
    let mut words = text.split_whitespace();
    let (Some(name), Some(kind)) = (words.next(), words.next()) else {
        return Err(format!("`argument {text}`: a name and a kind are expected"));
    };
    let kind = match kind {
        "tensor" => ArgumentKind::Tensor,
        "tensors" => ArgumentKind::Tensors,
        "dict" => ArgumentKind::Dict,
        "strings" => ArgumentKind::Strings,
        "int" => ArgumentKind::Int,
        "float" => ArgumentKind::Float,
        "bool" => ArgumentKind::Bool,
        "str" => ArgumentKind::Str,
        other => ArgumentKind::Other(other.to_owned()),
    };
    Ok(Argument { name: name.to_owned(), kind, optional: words.next() == Some("optional"), keys: Vec::new() })
}
