//! The schema of `forward` as the shim tells it: JSON, read once per load.

use sconce_engine::schema::{Argument, ArgumentKind, Return, Schema};
use serde::Deserialize;

#[derive(Deserialize)]
struct RawSchema {
    arguments: Vec<RawArgument>,
    returns: RawReturn,
}

#[derive(Deserialize)]
struct RawArgument {
    name: String,
    kind: String,
    r#type: String,
    optional: bool,
    keys: Vec<String>,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum RawReturn {
    Tensor,
    Strings,
    List { element: Box<RawReturn> },
    Tuple { fields: Vec<(Option<String>, RawReturn)> },
    Dict { keys: Vec<String> },
    Unknown,
    Other { r#type: String },
}

/// Reads the shim's JSON.
pub(crate) fn parse(json: &str) -> Result<Schema, serde_json::Error> {
    let raw: RawSchema = serde_json::from_str(json)?;
    Ok(Schema { arguments: raw.arguments.into_iter().map(argument).collect(), returns: returns(raw.returns) })
}

fn argument(raw: RawArgument) -> Argument {
    let kind = match raw.kind.as_str() {
        "tensor" => ArgumentKind::Tensor,
        "tensors" => ArgumentKind::Tensors,
        "dict" => ArgumentKind::Dict,
        "strings" => ArgumentKind::Strings,
        "int" => ArgumentKind::Int,
        "float" => ArgumentKind::Float,
        "bool" => ArgumentKind::Bool,
        "str" => ArgumentKind::Str,
        _ => ArgumentKind::Other(raw.r#type),
    };
    Argument { name: raw.name, kind, optional: raw.optional, keys: raw.keys }
}

fn returns(raw: RawReturn) -> Return {
    match raw {
        RawReturn::Tensor => Return::Tensor,
        RawReturn::Strings => Return::Strings,
        RawReturn::List { element } => Return::List(Box::new(returns(*element))),
        RawReturn::Tuple { fields } => {
            Return::Tuple(fields.into_iter().map(|(name, field)| (name, returns(field))).collect())
        }
        RawReturn::Dict { keys } => Return::Dict(keys),
        RawReturn::Unknown => Return::Unknown,
        RawReturn::Other { r#type } => Return::Other(r#type),
    }
}
