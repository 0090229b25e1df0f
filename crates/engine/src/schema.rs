//! What a model's `forward`, or another method of it, takes and returns, as its backend tells it.

/// The schema of a method, without `self`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Schema {
    /// Its arguments, in order.
    pub arguments: Vec<Argument>,
    /// What it returns.
    pub returns: Return,
}

/// One argument of `forward`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Its name in the source.
    pub name: String,
    /// What it takes.
    pub kind: ArgumentKind,
    /// It may be left out: it has a default, or its type is `Optional`.
    pub optional: bool,
    /// For a dict: the keys that the code reads by a constant, where it could be seen.
    pub keys: Vec<String>,
}

/// What an argument takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArgumentKind {
    /// `Tensor`.
    Tensor,
    /// `List[Tensor]`.
    Tensors,
    /// `Dict[str, Tensor]`.
    Dict,
    /// `List[str]`.
    Strings,
    /// `int`.
    Int,
    /// `float`.
    Float,
    /// `bool`.
    Bool,
    /// `str`.
    Str,
    /// Anything else, by the name of its type: the wire has no form for it.
    Other(String),
}

/// What `forward` returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Return {
    /// A tensor.
    Tensor,
    /// `List[str]`.
    Strings,
    /// A list of something, of any length.
    List(Box<Return>),
    /// A dict with string keys; the keys where the code builds it from constants.
    Dict(Vec<String>),
    /// A tuple, with the field's name where it is a NamedTuple.
    Tuple(Vec<(Option<String>, Return)>),
    /// Anything else, by the name of its type.
    Other(String),
    /// Known only when it has been run.
    Unknown,
}

impl Default for Return {
    fn default() -> Self {
        Self::Tuple(Vec::new())
    }
}

impl Return {
    /// The first type in it that the wire cannot carry.
    pub fn unserved(&self) -> Option<&str> {
        match self {
            Self::Other(name) => Some(name),
            Self::List(element) => element.unserved(),
            Self::Tuple(elements) => elements.iter().find_map(|(_, element)| element.unserved()),
            Self::Tensor | Self::Strings | Self::Dict(_) | Self::Unknown => None,
        }
    }
}
