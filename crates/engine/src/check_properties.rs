//! Random signatures with random requests: what is right is taken as it is, one wrong thing is
//! refused, and nothing panics.

use std::collections::BTreeMap;

use proptest::{prelude::*, sample::Index};
use sconce_repository::TensorConfig;

use super::*;

/// An input of a config, where its name leads, and what is sent there.
#[derive(Clone, Debug)]
struct Part {
    config: TensorConfig,
    place: Place,
    optional: bool,
    data: Vec<u8>,
    /// Sizes of the variable dimensions.
    free: i64,
}

/// A signature and a right request for it.
#[derive(Clone, Debug)]
struct Case {
    max_batch_size: u32,
    batch: i64,
    arguments: Vec<(ArgumentKind, bool)>,
    parts: Vec<Part>,
    /// In which order the inputs are sent.
    order: Vec<usize>,
}

impl Case {
    fn binding(&self) -> Binding {
        let names: Vec<String> = self
            .arguments
            .iter()
            .enumerate()
            .map(|(at, (_, optional))| argument_name(at, *optional))
            .collect();
        let schema: Vec<(&str, ArgumentKind)> = names
            .iter()
            .zip(&self.arguments)
            .map(|(name, (kind, _))| (name.as_str(), kind.clone()))
            .collect();
        let inputs = self.parts.iter().map(|part| part.config.clone()).collect();
        bind(&config(self.max_batch_size, inputs, Vec::new()), &forward(&schema))
    }

    fn request(&self) -> Vec<Input> {
        self.order.iter().map(|&at| self.input(&self.parts[at])).collect()
    }

    fn input(&self, part: &Part) -> Input {
        let batch = (self.max_batch_size > 0).then_some(self.batch);
        let fill = |&dim: &i64| if dim == -1 { part.free } else { dim };
        let shape: Vec<i64> = batch.into_iter().chain(part.config.dims.iter().map(fill)).collect();
        let count: usize = shape.iter().map(|&dim| usize::try_from(dim).unwrap()).product();
        // Scalars say the same in each row.
        let scalar = matches!(self.arguments[part.place.argument()].0, Int | Float | Bool | Str);
        let mut data = Vec::new();
        for at in 0..count {
            let seed = &part.data[if scalar { 0 } else { at % part.data.len() }..];
            match part.config.data_type.size() {
                Some(size) => data.extend(seed.iter().chain(std::iter::repeat(&9)).take(size)),
                None => push_string(&mut data, &seed[..seed.len().min(3)]),
            }
        }
        input(&part.config.name, Tensor::host(part.config.data_type, shape, data.into()))
    }
}

fn argument_name(at: usize, optional: bool) -> String {
    format!("arg{at}{}", if optional { "?" } else { "" })
}

fn dtypes(kind: &ArgumentKind) -> Vec<DataType> {
    DataType::ALL.into_iter().filter(|&data_type| fits(kind, data_type)).collect()
}

/// One argument, with the parts of the request that it is made of.
fn an_argument(at: usize) -> impl Strategy<Value = (ArgumentKind, bool, Vec<Part>)> {
    let kind = prop::sample::select(vec![OneTensor, Tensors, Dict, Strings, Int, Float, Bool, Str]);
    (kind, any::<bool>(), 1usize..4).prop_flat_map(move |(kind, optional, elements)| {
        let name = argument_name(at, false);
        let places: Vec<(String, Place)> = match kind {
            Tensors => (0..elements).map(|e| (format!("{name}__{e}"), Place::Element(at, e))).collect(),
            Dict => (0..elements)
                .map(|e| (format!("{name}.k{e}"), Place::Key(at, format!("k{e}").into())))
                .collect(),
            _ => vec![(name, Place::Argument(at))],
        };
        let scalar = matches!(kind, Int | Float | Bool | Str);
        let dims = if scalar {
            Just(vec![1]).boxed()
        } else {
            prop::collection::vec(prop_oneof![Just(-1i64), 1i64..4], 0..3).boxed()
        };
        let parts: Vec<_> = places
            .into_iter()
            .map(|(name, place)| {
                let data = prop::collection::vec(0u8..2, 1..20);
                let types = prop::sample::select(dtypes(&kind));
                (types, dims.clone(), data, 1i64..4).prop_map(move |(data_type, dims, data, free)| {
                    let element = matches!(place, Place::Element(..));
                    let optional = optional && !element;
                    let config = TensorConfig { optional, ..named(&name, data_type, &dims) };
                    Part { config, place: place.clone(), optional, data, free }
                })
            })
            .collect();
        (Just(kind), Just(optional), parts)
    })
}

fn case() -> impl Strategy<Value = Case> {
    let arguments = (1usize..5).prop_flat_map(|count| (0..count).map(an_argument).collect::<Vec<_>>());
    (arguments, prop_oneof![Just(0u32), 1u32..9], any::<Index>())
        .prop_flat_map(|(arguments, max_batch_size, batch)| {
            let batch = 1 + batch.index(max_batch_size.max(1) as usize) as i64;
            let parts: Vec<Part> = arguments.iter().flat_map(|(_, _, parts)| parts.clone()).collect();
            let sent: Vec<usize> = (0..parts.len()).collect();
            let kinds: Vec<_> = arguments.into_iter().map(|(kind, optional, _)| (kind, optional)).collect();
            (Just(max_batch_size), Just(batch), Just(kinds), Just(parts), Just(sent).prop_shuffle())
        })
        .prop_map(|(max_batch_size, batch, arguments, mut parts, order)| {
            if let [(Dict, _)] = &arguments[..] {
                // Its keys are the names as they are.
                for part in &mut parts {
                    part.place = Place::Key(0, part.config.name.as_str().into());
                }
            }
            Case { max_batch_size, batch, arguments, parts, order }
        })
}

/// The bytes of each part that is in the call, by argument, element and key.
fn received(call: &Call) -> BTreeMap<(usize, String), (Vec<i64>, Vec<u8>)> {
    let mut received = BTreeMap::new();
    let mut put = |at, what: String, tensor: &Tensor| {
        received.insert((at, what), (tensor.shape.clone(), tensor.bytes().to_vec()));
    };
    for (at, argument) in call.arguments.iter().enumerate() {
        match argument {
            Arg::Tensor(tensor) => put(at, String::new(), tensor),
            Arg::Tensors(tensors) => {
                tensors.iter().enumerate().for_each(|(e, tensor)| put(at, e.to_string(), tensor));
            }
            Arg::Dict(entries) => entries.iter().for_each(|(key, tensor)| put(at, key.to_string(), tensor)),
            Arg::Default | Arg::Strings(_) | Arg::Int(_) | Arg::Float(_) | Arg::Bool(_) | Arg::Str(_) => {}
        }
    }
    received
}

/// Whether an argument that is no tensor says what was sent.
fn says(argument: &Arg, tensor: &Tensor) -> bool {
    let first = tensor
        .data_type
        .size()
        .map_or_else(|| strings(tensor.bytes()).next().unwrap_or_default(), |size| &tensor.bytes()[..size]);
    match argument {
        Arg::Strings(data) => data == tensor.bytes(),
        Arg::Str(text) => text == first,
        Arg::Int(value) => value.to_le_bytes().starts_with(first),
        Arg::Float(value) if first.len() == 8 => value.to_le_bytes() == first,
        Arg::Float(value) => (*value as f32).to_le_bytes() == first,
        Arg::Bool(value) => u8::from(*value) == first[0],
        Arg::Default | Arg::Tensor(_) | Arg::Tensors(_) | Arg::Dict(_) => false,
    }
}

/// One thing that makes a right request wrong.
#[derive(Clone, Debug)]
enum Mutation {
    Drop,
    Duplicate,
    Rename,
    Retype(Index),
    Redim(Index, i64),
    Cut(Index),
    Extend(Vec<u8>),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        Just(Mutation::Drop),
        Just(Mutation::Duplicate),
        Just(Mutation::Rename),
        any::<Index>().prop_map(Mutation::Retype),
        (any::<Index>(), -2i64..6).prop_map(|(at, dim)| Mutation::Redim(at, dim)),
        any::<Index>().prop_map(Mutation::Cut),
        prop::collection::vec(any::<u8>(), 1..9).prop_map(Mutation::Extend),
    ]
}

/// Applies it to one input; `None` where that would change nothing or leave it right.
fn mutate(case: &Case, mutation: &Mutation, at: usize) -> Option<Vec<Input>> {
    let mut request = case.request();
    let part = &case.parts[case.order[at]];
    let tensor = &mut request[at].tensor;
    let mut data = tensor.bytes().to_vec();
    match mutation {
        Mutation::Drop if part.optional => return None,
        Mutation::Drop => drop(request.remove(at)),
        Mutation::Duplicate => request.push(request[at].clone()),
        Mutation::Rename => request[at].name.push('x'),
        Mutation::Retype(to) => {
            let others: Vec<_> =
                DataType::ALL.into_iter().filter(|&other| other != tensor.data_type).collect();
            tensor.data_type = *to.get(&others);
        }
        Mutation::Redim(dim, to) => {
            let dim = (!tensor.shape.is_empty()).then(|| dim.index(tensor.shape.len()))?;
            if tensor.shape[dim] == *to {
                return None;
            }
            tensor.shape[dim] = *to;
        }
        Mutation::Cut(to) => {
            data.truncate(to.index(data.len()));
            tensor.value = Value::Host(data.into());
        }
        Mutation::Extend(more) => {
            data.extend(more);
            tensor.value = Value::Host(data.into());
        }
    }
    Some(request)
}

proptest! {
    #[test]
    fn what_is_right_arrives_under_its_name(case in case()) {
        let request = case.request();
        let checked = call(&case.binding(), request.clone());
        prop_assert!(checked.is_ok(), "{:?}", checked);
        let checked = checked.unwrap();
        prop_assert_eq!(checked.batch, (case.max_batch_size > 0).then_some(case.batch));
        let received = received(&checked.call);
        let mut tensors = 0;
        for (&at, input) in case.order.iter().zip(&request) {
            let place = &case.parts[at].place;
            let what = match place {
                Place::Argument(_) => String::new(),
                Place::Element(_, element) => element.to_string(),
                Place::Key(_, key) => key.to_string(),
            };
            if let Some((shape, data)) = received.get(&(place.argument(), what)) {
                prop_assert_eq!((shape, &data[..]), (&input.tensor.shape, input.tensor.bytes()));
                tensors += 1;
            } else {
                prop_assert!(says(&checked.call.arguments[place.argument()], &input.tensor), "{:?}", input);
            }
        }
        prop_assert_eq!(tensors, received.len(), "nothing that was not sent");
    }

    #[test]
    fn one_wrong_thing_is_refused(case in case(), mutation in mutation(), at in any::<Index>()) {
        let at = at.index(case.order.len());
        if let Some(request) = mutate(&case, &mutation, at) {
            let refused = call(&case.binding(), request);
            prop_assert!(matches!(refused, Err(Error::InvalidInput(_))), "{:?}", refused);
        }
    }

    #[test]
    fn nothing_panics(
        case in case(),
        closed in any::<bool>(),
        inputs in prop::collection::vec(
            (
                prop_oneof!["arg[0-4]", "arg[0-4]__[0-9]{1,3}", "arg[0-4]\\.k?[0-4]?", "\\PC{0,12}", any::<String>()],
                prop::sample::select(DataType::ALL.to_vec()),
                prop::collection::vec(prop_oneof![-1i64..4, any::<i64>()], 0..4),
                prop::collection::vec(any::<u8>(), 0..40),
            ),
            0..6,
        ),
    ) {
        let mut case = case;
        if !closed {
            case.parts.clear();
            case.max_batch_size = 0;
        }
        let inputs = inputs.into_iter().map(|(name, data_type, shape, data)| Input {
            name,
            tensor: Tensor::host(data_type, shape, data.into()),
        });
        if let Err(error) = call(&case.binding(), inputs.collect()) {
            prop_assert!(matches!(error, Error::InvalidInput(_)), "{:?}", error);
            prop_assert!(!error.to_string().contains(char::is_control), "{:?}", error);
        }
    }
}
