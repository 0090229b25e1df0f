//! One behind the other in a batch, every request has what it would have alone.

use std::time::Duration;

use proptest::prelude::*;
use sconce_repository::{BatchInput, TensorConfig};

use super::*;
use crate::{
    batch::{alike, gather, tests::lend_odd, traits},
    binding::Binding,
    check::{self, Checked, Input},
    fixtures::{
        House, assert_invalid, assert_sentence, bind, config, forward, input, named, optional, reshaped,
        waiting,
    },
    model::Request,
    outputs,
    padding::{Company, Extents},
    value::Arg,
};
use DataType::{Fp32, Int16, Int32, Int64};

fn ragged(tensor: TensorConfig) -> TensorConfig {
    TensorConfig { padding: Some(Padding::Ragged), ..tensor }
}

fn like(tensor: TensorConfig, source: &str) -> TensorConfig {
    TensorConfig { padding: Some(Padding::ScatterLike(source.to_owned())), ..tensor }
}

fn made(name: &str, data_type: DataType, kind: BatchInputKind) -> BatchInput {
    BatchInput { name: name.to_owned(), data_type, kind, source: "x".to_owned() }
}

/// One of each kind, named as in `config.yaml` but for the end.
fn all_made(data_type: DataType) -> Vec<BatchInput> {
    let names = ["counts", "ends", "offsets", "longest", "shapes", "flat_shapes"];
    names.into_iter().zip(BatchInputKind::ALL).map(|(name, kind)| made(name, data_type, kind)).collect()
}

const ARGUMENTS: [(&str, ArgumentKind); 8] = [
    ("x", ArgumentKind::Tensor),
    ("row", ArgumentKind::Tensor),
    ("counts", ArgumentKind::Tensor),
    ("ends", ArgumentKind::Tensor),
    ("offsets", ArgumentKind::Tensor),
    ("longest", ArgumentKind::Tensor),
    ("shapes", ArgumentKind::Tensor),
    ("flat_shapes", ArgumentKind::Tensor),
];

fn numbers(shape: &[i64], from: i16) -> Tensor {
    let count: i64 = shape.iter().product();
    let data: Vec<u8> = (from..).take(count as usize).flat_map(i16::to_le_bytes).collect();
    Tensor::host(Int16, shape.to_vec(), data.into())
}

/// Of `x`, which is ragged and comes back as `y`, and a `row` that is not, and comes back as `z`.
fn binding(data_type: DataType) -> Binding {
    let inputs = vec![ragged(named("x", Int16, &[-1, 3, -1])), named("row", Int16, &[2])];
    let outputs = vec![like(named("y", Int16, &[-1, 3, -1]), "x"), named("z", Int16, &[2])];
    let config = ModelConfig { batch_inputs: all_made(data_type), ..config(100, inputs, outputs) };
    bind(&config, &forward(&ARGUMENTS))
}

fn asked(binding: &Binding, tensors: Vec<Input>) -> Checked {
    check::call(binding, tensors).unwrap()
}

fn tensor(call: &Call, index: usize) -> &Tensor {
    match &call.arguments[index] {
        Arg::Tensor(tensor) => tensor,
        other => panic!("{other:?}"),
    }
}

/// An argument that the server has made, and its shape.
fn told(call: &Call, index: usize) -> (Vec<i64>, Vec<i64>) {
    let tensor = tensor(call, index);
    tensor.check().unwrap();
    let size = tensor.data_type.size().unwrap();
    let number = |bytes: &[u8]| match tensor.data_type {
        Fp32 => f32::from_le_bytes(bytes.try_into().unwrap()) as i64,
        Int32 => i32::from_le_bytes(bytes.try_into().unwrap()).into(),
        _ => i64::from_le_bytes(bytes.try_into().unwrap()),
    };
    (tensor.shape.clone(), tensor.bytes().chunks_exact(size).map(number).collect())
}

fn size(shape: &[i64]) -> i64 {
    shape.iter().product()
}

proptest! {
    #[test]
    fn each_gets_what_it_would_get_alone(
        requests in prop::collection::vec((1i64..4, 0i64..5, 0i64..5), 1..6),
        data_type in prop::sample::select(vec![Int32, Int64, Fp32]),
    ) {
        let binding = binding(data_type);
        let shapes: Vec<[i64; 4]> = requests.iter().map(|&(rows, one, other)| [rows, one, 3, other]).collect();
        let all: Vec<Checked> = shapes.iter().enumerate().map(|(index, shape)| {
            let from = 1000 * index as i16;
            asked(&binding, vec![input("row", numbers(&[shape[0], 2], from)), input("x", numbers(shape, from))])
        }).collect();
        let calls: Vec<&Call> = all.iter().map(|checked| &checked.call).collect();
        let rows: Vec<usize> = shapes.iter().map(|shape| shape[0] as usize).collect();
        for checked in &all {
            prop_assert!(alike(calls[0], &checked.call));
            let key = |checked: &Checked| traits(&checked.call, checked.batch).key;
            prop_assert!(key(checked).is_some() && key(&all[0]) == key(checked));
        }
        let joined = gather(&calls, &rows, rows.iter().sum(), &mut lend_odd());

        // What the model gets of one request, it gets of many in the same layout.
        for (call, shapes) in calls.iter().zip(&shapes).map(|(call, shape)| (*call, std::slice::from_ref(shape))).chain([(&joined, &shapes[..])]) {
            let counts: Vec<i64> = shapes.iter().map(|shape| size(shape)).collect();
            let ends: Vec<i64> = counts.iter().scan(0, |end, count| { *end += count; Some(*end) }).collect();
            let each = counts.len() as i64;
            tensor(call, 0).check().unwrap();
            prop_assert_eq!(&tensor(call, 0).shape, &vec![ends[ends.len() - 1]]);
            prop_assert_eq!(told(call, 2), (vec![each], counts.clone()));
            prop_assert_eq!(told(call, 3), (vec![each], ends.clone()));
            let offsets: Vec<i64> = [0].into_iter().chain(ends).collect();
            prop_assert_eq!(told(call, 4), (vec![each + 1], offsets));
            let longest = counts.iter().copied().max().unwrap();
            prop_assert_eq!(told(call, 5), (vec![longest], vec![0; longest as usize]));
            let rows: i64 = shapes.iter().map(|shape| shape[0]).sum();
            let items: Vec<i64> =
                shapes.iter().flat_map(|shape| shape[1..].repeat(shape[0] as usize)).collect();
            prop_assert_eq!(told(call, 6), (vec![rows, 3], items.clone()));
            prop_assert_eq!(told(call, 7), (vec![3 * rows], items));
        }

        // A model that gives back what it gets: each has its own.
        let both = |call: &Call| {
            Output::Tuple([0, 1].map(|index| (None, Output::Tensor(tensor(call, index).clone()))).into())
        };
        let shares: Vec<&Shares> = calls.iter().filter_map(|call| call.shares.as_deref()).collect();
        prop_assert_eq!(shares.len(), calls.len());
        let parts = scatter(&both(&joined), &shares, &rows, rows.iter().sum()).unwrap();
        for ((index, shape), (part, checked)) in shapes.iter().enumerate().zip(parts.into_iter().zip(&all)) {
            for output in [part, both(&checked.call)] {
                let named = outputs::name(&binding, output, &[], checked.batch, &checked.lengths).unwrap();
                let from = 1000 * index as i16;
                for (output, sent) in named.iter().zip([numbers(shape, from), numbers(&[shape[0], 2], from)]) {
                    prop_assert_eq!(&output.tensor.shape, &sent.shape);
                    prop_assert_eq!(output.tensor.bytes(), sent.bytes());
                }
            }
        }
    }
}

#[test]
fn what_the_server_makes_is_no_input_of_clients() {
    let binding = binding(Int32);
    let shown: Vec<_> = binding.input_info().into_iter().map(|info| (info.name, info.shape)).collect();
    assert_eq!(shown, [("x".to_owned(), vec![-1, -1, 3, -1]), ("row".to_owned(), vec![-1, 2])]);
    let counts = Tensor::host(Int32, vec![1], vec![0; 4].into());
    let sent = vec![
        input("x", numbers(&[1, 1, 3, 1], 0)),
        input("row", numbers(&[1, 2], 0)),
        input("counts", counts),
    ];
    assert_invalid(
        check::call(&binding, sent),
        &["unexpected inference input 'counts'", "its inputs are ['x','row']"],
    );
}

#[test]
fn a_number_that_does_not_fit_its_type_is_refused_and_no_batch_exceeds_it() {
    let inputs = || vec![ragged(named("x", DataType::Uint8, &[-1]))];
    let one = |data_type, kind| {
        let batch_inputs = vec![made("n", data_type, kind)];
        let config = ModelConfig { batch_inputs, ..config(100, inputs(), vec![]) };
        bind(&config, &forward(&[("x", ArgumentKind::Tensor), ("n", ArgumentKind::Tensor)]))
    };
    let bytes = bytes::Bytes::from(vec![0; (1 << 24) + 1]);
    let sent = |count: i64| {
        vec![input("x", Tensor::host(DataType::Uint8, vec![1, count], bytes.slice(..count as usize)))]
    };
    let ends = one(Fp32, BatchInputKind::Ends);
    let message =
        ["input 'n' of model 'm' is made as FP32 of a tensor of shape [1,16777217]", "up to 16777216 only"];
    assert_invalid(check::call(&ends, sent((1 << 24) + 1)), &message);
    assert!(check::call(&one(Int32, BatchInputKind::Ends), sent((1 << 24) + 1)).is_ok());
    let joins = |binding: &Binding, counts: &[i64]| {
        let mut company = Company::default();
        let join = |count: &i64| {
            let extents = Extents::of(&asked(binding, sent(*count)).call, 1);
            extents.is_none_or(|extents| extents.join(&mut company))
        };
        counts.iter().map(join).collect::<Vec<_>>()
    };
    let counts = [1 << 24, 1, 0, 5];
    assert_eq!(joins(&ends, &counts), [true, false, true, false]);
    // The numbers of each request do not add up.
    assert_eq!(joins(&one(Fp32, BatchInputKind::Counts), &counts), [true; 4]);
}

#[test]
fn shapes_are_those_that_the_model_sees() {
    let inputs = vec![ragged(reshaped(named("x", Int16, &[-1, 4]), &[2, -1, 2]))];
    let outputs = vec![like(reshaped(named("y", Int16, &[2, 3, -1]), &[6, -1]), "x")];
    let batch_inputs = vec![made("shapes", Int64, BatchInputKind::Shapes)];
    let config = ModelConfig { batch_inputs, ..config(4, inputs, outputs) };
    let binding = bind(&config, &forward(&[("x", ArgumentKind::Tensor), ("shapes", ArgumentKind::Tensor)]));
    let checked = asked(&binding, vec![input("x", numbers(&[1, 3, 4], 0))]);
    assert_eq!(tensor(&checked.call, 0).shape, [12]);
    assert_eq!(told(&checked.call, 1), (vec![1, 3], vec![2, 3, 2]));
    let answer = |count: i64| {
        let output = Output::Tensor(numbers(&[count], 0));
        outputs::name(&binding, output, &[], checked.batch, &checked.lengths)
    };
    assert_eq!(answer(18).unwrap()[0].tensor.shape, [1, 2, 3, 3]);
    let short = answer(17).unwrap_err().to_string();
    assert_sentence(
        &short,
        &["'y' has shape [17], but as many elements as [1,6,3] are the share of the request"],
    );
}

#[test]
fn an_answer_that_is_not_as_large_as_the_requests_share_is_no_answer() {
    let binding = binding(Int32);
    let sent = |rows| vec![input("row", numbers(&[rows, 2], 0)), input("x", numbers(&[rows, 1, 3, 1], 0))];
    let calls = [1, 2].map(|rows| asked(&binding, sent(rows)).call);
    let shares: Vec<&Shares> = calls.iter().filter_map(|call| call.shares.as_deref()).collect();
    let scattered =
        |y: Output, z: Output| scatter(&Output::Tuple(vec![(None, y), (None, z)]), &shares, &[1, 2], 3);
    let z = Output::Tensor(numbers(&[3, 2], 0));
    assert!(scattered(Output::Tensor(numbers(&[3, 3], 0)), z.clone()).is_ok(), "in any shape");
    for (y, z, why) in [
        (
            Output::Tensor(numbers(&[8], 0)),
            z.clone(),
            "a tensor of shape [8] for requests that share 9 elements",
        ),
        (Output::Other("int".to_owned()), z.clone(), "no tensor"),
        (
            Output::Tensor(numbers(&[9], 0)),
            Output::Tensor(numbers(&[2, 2], 0)),
            "of shape [2,2] for a batch of 3",
        ),
    ] {
        let error = scattered(y, z).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn an_input_that_may_be_left_out_can_be_ragged() {
    let inputs = vec![optional(ragged(named("x", Int16, &[-1]))), named("row", Int16, &[2])];
    let arguments = [("x?", ArgumentKind::Tensor), ("row", ArgumentKind::Tensor)];
    let binding = bind(&config(4, inputs, vec![]), &forward(&arguments));
    let without = asked(&binding, vec![input("row", numbers(&[1, 2], 0))]);
    assert!(matches!(without.call.arguments[0], Arg::Default));
    let with = asked(&binding, vec![input("row", numbers(&[1, 2], 0)), input("x", numbers(&[1, 5], 0))]);
    assert_eq!(tensor(&with.call, 0).shape, [5]);
    assert!(!alike(&with.call, &without.call));
}

#[test]
fn only_tensors_at_the_top_of_forward_are_ragged_made_or_scattered() {
    let inputs = || vec![ragged(named("x", Int64, &[-1]))];
    let fails = |config: &ModelConfig, schema: &Schema| Binding::new(config, schema).unwrap_err().reason;
    let error = fails(&config(4, inputs(), vec![]), &forward(&[("x", ArgumentKind::Int)]));
    assert_sentence(&error, &["input 'x' is ragged, but argument `x` of forward is no tensor"]);
    let batch_inputs = vec![made("n", Int32, BatchInputKind::Counts)];
    let counted = ModelConfig { batch_inputs, ..config(4, inputs(), vec![]) };
    let error = fails(&counted, &forward(&[("x", ArgumentKind::Tensor), ("n", ArgumentKind::Int)]));
    assert_sentence(&error, &["input 'n' is made by the server, but argument `n` of forward is no tensor"]);
    let error = fails(&counted, &forward(&[("x", ArgumentKind::Tensor)]));
    assert_sentence(&error, &["expects 2 inputs, model provides 1"]);
    let deep = Return::Tuple(vec![(None, Return::List(Box::new(Return::Tensor)))]);
    let scattered = config(4, inputs(), vec![like(named("y", Int64, &[-1]), "x")]);
    let schema = Schema { returns: deep, ..forward(&[("x", ArgumentKind::Tensor)]) };
    assert_sentence(&fails(&scattered, &schema), &["'y' is scattered", "an element of what forward returns"]);
}

#[test]
fn what_is_made_finds_its_place_in_lists_and_dicts() {
    let of = |x: &str, name: &str| {
        let batch_inputs =
            vec![BatchInput { source: x.to_owned(), ..made(name, Int32, BatchInputKind::Ends) }];
        ModelConfig { batch_inputs, ..config(4, vec![ragged(named(x, Int16, &[-1]))], vec![]) }
    };
    let list = bind(&of("all__0", "all__1"), &forward(&[("all", ArgumentKind::Tensors)]));
    let checked = asked(&list, vec![input("all__0", numbers(&[1, 2], 0))]);
    let [Arg::Tensors(tensors)] = &checked.call.arguments[..] else { panic!("{checked:?}") };
    assert_eq!((tensors.len(), tensors[1].bytes()), (2, &[2, 0, 0, 0][..]));

    let dict = bind(&of("x", "ends"), &forward(&[("all", ArgumentKind::Dict)]));
    let calls = [2, 3].map(|length| asked(&dict, vec![input("x", numbers(&[1, length], 0))]).call);
    let joined = gather(&[&calls[0], &calls[1]], &[1, 1], 2, &mut |_| None);
    let [Arg::Dict(entries)] = &joined.arguments[..] else { panic!("{joined:?}") };
    assert_eq!((&*entries[1].0, entries[1].1.bytes()), ("ends", &[2, 0, 0, 0, 5, 0, 0, 0][..]));
}

#[tokio::test]
async fn requests_of_any_length_run_in_one_batch() {
    let house = House::new(1, 0);
    let inputs = vec![ragged(named("x", Int16, &[-1]))];
    let outputs = vec![like(named("y", Int16, &[-1]), "x"), named("end", Int32, &[])];
    let mut config = config(8, inputs, outputs);
    config.batch_inputs = vec![made("n", Int32, BatchInputKind::Ends)];
    let batching = config.batching.as_mut().unwrap();
    (batching.max_delay, batching.preferred_sizes) = (Duration::from_secs(60), vec![3]);
    // It gives back what it gets.
    let model = house.model("argument n tensor", config, &[(0, 1)]);
    let request = |length: i64| Request {
        inputs: vec![input("x", numbers(&[1, length], 10 * length as i16))],
        ..Request::default()
    };
    let mut calls = Vec::new();
    for (length, end) in [(3, 3), (400, 403)] {
        calls.push((length, end, waiting(&model, request(length)).await));
    }
    calls.push((0, 403, Box::pin(model.infer(request(0)))));
    // The last first: it is sent when it is waited for.
    for (length, end, call) in calls.into_iter().rev() {
        let named = call.await.unwrap();
        let sent = numbers(&[1, length], 10 * length as i16);
        assert_eq!((&named[0].tensor.shape, named[0].tensor.bytes()), (&sent.shape, sent.bytes()));
        assert_eq!(named[1].tensor.bytes(), i32::to_le_bytes(end));
    }
    assert_eq!(house.fake.rows(), [403], "one run of all elements");
}
