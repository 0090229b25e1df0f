//! Filled up, run together and cut back, every caller has what it would have had alone.

use std::time::Duration;

use proptest::prelude::*;
use sconce_repository::TensorConfig;

use super::*;
use crate::{
    DataType,
    batch::{alike, gather, scatter, tests::lend_odd, traits},
    binding::Binding,
    check::{self, Checked, Input},
    fixtures::{
        House, assert_invalid, assert_sentence, bind, config, forward, input, named, optional,
        reshaped as reshape_to, waiting,
    },
    model::Request,
    outputs,
    value::Output,
};
use DataType::{Bool, Fp32, Int16, Int64};

fn padded(tensor: TensorConfig, set: bool) -> TensorConfig {
    let filler = Filler::flag(tensor.data_type, set).unwrap();
    TensorConfig { padding: Some(Padding::Fill(filler)), ..tensor }
}

fn mask_of(tensor: TensorConfig, of: &str) -> TensorConfig {
    TensorConfig { padding: Some(Padding::MaskOf(of.to_owned())), optional: true, ..tensor }
}

fn cut_to(tensor: TensorConfig, of: &str) -> TensorConfig {
    TensorConfig { padding: Some(Padding::CutTo(of.to_owned())), ..tensor }
}

fn numbers(shape: &[i64], from: i16) -> Tensor {
    let count: i64 = shape.iter().product();
    let data: Vec<u8> = (from..).take(count as usize).flat_map(i16::to_le_bytes).collect();
    Tensor::host(Int16, shape.to_vec(), data.into())
}

/// `x`, which is filled up with 1, and its mask; `x` comes back as `y`.
fn binding(dims: &[i64], mask: &[i64]) -> Binding {
    let inputs = vec![padded(named("x", Int16, dims), true), mask_of(named("m", Int64, mask), "x")];
    let config = config(100, inputs, vec![cut_to(named("y", Int16, dims), "x")]);
    bind(&config, &forward(&[("x", ArgumentKind::Tensor), ("m", ArgumentKind::Tensor)]))
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

fn mask(call: &Call, index: usize) -> Vec<u8> {
    let tensor = tensor(call, index);
    tensor.bytes().chunks_exact(tensor.data_type.size().unwrap()).map(|element| element[0]).collect()
}

proptest! {
    #[test]
    fn each_gets_what_it_would_get_alone(
        shapes in prop::collection::vec((1i64..4, 0i64..5, 0i64..5), 1..6),
        variable in (any::<bool>(), any::<bool>()),
        more in 0usize..3,
    ) {
        // Dimensions around the variable ones, some of which are fixed to 2.
        let dim = |is_variable: bool| if is_variable { -1 } else { 2 };
        let dims = [3, dim(variable.0), dim(variable.1 || !variable.0), 2];
        let mask_dims: Vec<i64> = dims.iter().copied().filter(|dim| *dim == -1).collect();
        let binding = binding(&dims, &mask_dims);
        let all: Vec<Checked> = shapes.iter().enumerate().map(|(index, &(rows, one, other))| {
            let free = |dim: i64, size: i64| if dim == -1 { size } else { dim };
            let shape = [rows, 3, free(dims[1], one), free(dims[2], other), 2];
            asked(&binding, vec![input("x", numbers(&shape, 1000 * index as i16))])
        }).collect();
        let calls: Vec<&Call> = all.iter().map(|checked| &checked.call).collect();
        let rows: Vec<usize> = shapes.iter().map(|(rows, ..)| *rows as usize).collect();
        let key = |checked: &Checked| traits(&checked.call, checked.batch).key;
        for checked in &all {
            prop_assert!(alike(calls[0], &checked.call));
            prop_assert_eq!(key(&all[0]), key(checked));
        }
        let total = rows.iter().sum::<usize>() + more;
        let joined = gather(&calls, &rows, total, &mut lend_odd());
        tensor(&joined, 0).check().unwrap();
        tensor(&joined, 1).check().unwrap();
        prop_assert_eq!(tensor(&joined, 0).shape[0], total as i64);

        // What the mask leaves of `x` is what was sent, and all else is filled up.
        let sent: usize = all.iter().map(|checked| tensor(&checked.call, 1).elements().unwrap()).sum();
        prop_assert_eq!(mask(&joined, 1).iter().filter(|set| **set == 1).count(), sent);
        let each_is_its_own = Output::Tensor(tensor(&joined, 0).clone());
        let parts = scatter(&each_is_its_own, &rows, total).unwrap();
        for (part, checked) in parts.into_iter().zip(&all) {
            let named = outputs::name(&binding, part, &[], checked.batch, &checked.lengths).unwrap();
            let own = tensor(&checked.call, 0);
            prop_assert_eq!(&named[0].tensor.shape, &own.shape);
            prop_assert_eq!(named[0].tensor.bytes(), own.bytes());
        }
    }

    #[test]
    fn a_batch_is_never_much_larger_than_its_requests(
        lengths in prop::collection::vec((1usize..4, 0u64..40, 0u64..40), 1..40),
    ) {
        let dims = [-1, 2, -1];
        let binding = binding(&dims, &[-1, -1]);
        let mut company = Company::default();
        let (mut rows, mut own, mut longest) = (0, 0, (0, 0));
        for (count, one, other) in lengths {
            let shape = [count as i64, one as i64, 2, other as i64];
            let checked = asked(&binding, vec![input("x", numbers(&shape, 0))]);
            let extents = Extents::of(&checked.call, count).unwrap();
            let with = (one.max(longest.0), other.max(longest.1));
            let (all, sum) = (rows + count as u64, own + count as u64 * one * other);
            let joins = extents.join(&mut company);
            if rows == 0 {
                prop_assert!(joins);
            } else if joins {
                prop_assert!(with.0 * with.1 * all <= 2 * sum);
            }
            if joins {
                (rows, own, longest) = (all, sum, with);
            }
        }
    }
}

#[test]
fn whoever_asks_for_little_does_not_wait_for_much() {
    let binding = binding(&[-1], &[-1]);
    let joined = |lengths: &[i64]| {
        let mut company = Company::default();
        let join = |length: &i64| {
            let checked = asked(&binding, vec![input("x", numbers(&[1, *length], 0))]);
            Extents::of(&checked.call, 1).unwrap().join(&mut company)
        };
        lengths.iter().map(join).collect::<Vec<_>>()
    };
    assert_eq!(joined(&[3, 5, 8]), [true; 3]);
    assert_eq!(joined(&[100, 25, 24, 400, 401]), [true, true, false, false, false]);
    assert_eq!(joined(&[100, 400]), [true; 2], "one pair of four times the size");
    assert_eq!(joined(&[100, 100, 100, 400]), [true, true, true, false], "three would be filled up for one");
    assert_eq!(joined(&[0, 0, 1]), [true, true, false]);
}

#[test]
fn what_is_not_filled_up_must_still_agree() {
    let inputs = vec![padded(named("x", Int16, &[-1, 2]), false), named("z", Int16, &[-1])];
    let schema = forward(&[("x", ArgumentKind::Tensor), ("z", ArgumentKind::Tensor)]);
    let binding = bind(&config(4, inputs, vec![]), &schema);
    let call = |x: i64, z: i64| {
        asked(&binding, vec![input("x", numbers(&[1, x, 2], 0)), input("z", numbers(&[1, z], 0))])
    };
    let key = |checked: &Checked| traits(&checked.call, checked.batch).key;
    let (one, longer, other) = (call(3, 3), call(4, 3), call(3, 4));
    assert!(alike(&one.call, &longer.call) && key(&one) == key(&longer));
    assert!(!alike(&one.call, &other.call) && key(&one) != key(&other));
    // The rule is part of it: a request that was checked before a change is not filled up as after it.
    let mut changed = call(3, 3);
    changed.call.arguments[0] = Arg::Tensor(numbers(&[1, 3, 2], 0));
    assert!(!alike(&one.call, &changed.call));
}

#[test]
fn masks_are_made_where_they_are_not_sent_and_filled_up_where_they_are() {
    let binding = binding(&[-1], &[1, -1]);
    let alone = asked(&binding, vec![input("x", numbers(&[2, 3], 0))]);
    assert_eq!(tensor(&alone.call, 1).shape, [2, 1, 3]);
    assert_eq!(mask(&alone.call, 1), [1; 6]);
    let own = Tensor::host(
        Int64,
        vec![1, 1, 2],
        [1i64, 0].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>().into(),
    );
    let own = asked(&binding, vec![input("m", own), input("x", numbers(&[1, 2], 0))]);
    let joined = gather(&[&alone.call, &own.call], &[2, 1], 4, &mut |_| None);
    assert_eq!(tensor(&joined, 1).shape, [4, 1, 3]);
    assert_eq!(mask(&joined, 1), [1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]);
    let filled = i16::from_le_bytes(tensor(&joined, 0).bytes()[16..18].try_into().unwrap());
    assert_eq!(filled, 1, "the last element of the third row");
    let other = Tensor::host(Int64, vec![1, 1, 4], vec![1; 32].into());
    let answer = check::call(&binding, vec![input("x", numbers(&[1, 2], 0)), input("m", other)]);
    assert_invalid(answer, &["'m' is the mask of 'x' for model 'm'", "must be the same, [2], got [4]"]);
}

#[test]
fn lengths_are_those_that_the_model_sees() {
    let inputs = vec![
        padded(reshape_to(named("x", Int16, &[-1, 4]), &[2, -1, 2]), false),
        mask_of(named("m", Bool, &[-1]), "x"),
    ];
    let outputs = vec![cut_to(reshape_to(named("y", Int16, &[4, -1]), &[2, 2, -1]), "x")];
    let schema = forward(&[("x", ArgumentKind::Tensor), ("m", ArgumentKind::Tensor)]);
    let binding = bind(&config(4, inputs, outputs), &schema);
    let checked = asked(&binding, vec![input("x", numbers(&[1, 3, 4], 0))]);
    assert_eq!(
        (&tensor(&checked.call, 0).shape[..], mask(&checked.call, 1)),
        (&[1, 2, 3, 2][..], vec![1; 3])
    );
    let answer = |length: i64| {
        let output = Output::Tensor(numbers(&[1, 2, 2, length], 0));
        outputs::name(&binding, output, &[], checked.batch, &checked.lengths)
    };
    assert_eq!(answer(3).unwrap()[0].tensor.shape, [1, 4, 3]);
    let named = answer(5).unwrap();
    assert_eq!(named[0].tensor.shape, [1, 4, 3]);
    let expected: Vec<u8> =
        [0i16, 1, 2, 5, 6, 7, 10, 11, 12, 15, 16, 17].iter().flat_map(|n| n.to_le_bytes()).collect();
    assert_eq!(named[0].tensor.bytes(), expected);
    let short = answer(2).unwrap_err().to_string();
    assert_sentence(&short, &["'y' has shape [1,2,2,2]", "(`unpad`) it must have at least [1,2,2,3]"]);
}

#[test]
fn what_is_cut_at_its_end_only_is_not_copied() {
    let whole = numbers(&[1, 4, 2], 0);
    let part = cut(whole.clone(), &[-1, 2], &[3]).unwrap();
    assert_eq!((part.bytes().as_ptr(), part.bytes().len()), (whole.bytes().as_ptr(), 12));
    let same = cut(whole.clone(), &[-1, 2], &[4]).unwrap();
    assert_eq!(same.bytes().as_ptr(), whole.bytes().as_ptr());
    assert_eq!(cut(whole, &[-1, 2], &[0]).unwrap().bytes().len(), 0);
}

#[test]
fn an_input_that_is_left_out_is_not_followed() {
    let inputs = vec![
        optional(padded(named("x", Int16, &[-1]), false)),
        mask_of(named("m", Fp32, &[-1]), "x"),
        named("z", Int16, &[-1]),
    ];
    let arguments = [("x?", ArgumentKind::Tensor), ("m?", ArgumentKind::Tensor), ("z", ArgumentKind::Tensor)];
    let config = config(4, inputs, vec![cut_to(named("y", Int16, &[-1]), "x")]);
    let binding = bind(&config, &forward(&arguments));
    let checked = asked(&binding, vec![input("z", numbers(&[1, 3], 0))]);
    assert!(matches!(&checked.call.arguments[..], [Arg::Default, Arg::Default, Arg::Tensor(_)]));
    let output = Output::Tensor(numbers(&[1, 3], 0));
    let named = outputs::name(&binding, output, &[], checked.batch, &checked.lengths).unwrap();
    assert_eq!(named[0].tensor.shape, [1, 3]);
    // Then there is no mask either, which such an argument needs.
    let needs_mask = [("x?", ArgumentKind::Tensor), ("m", ArgumentKind::Tensor), ("z", ArgumentKind::Tensor)];
    let error = Binding::new(&config, &forward(&needs_mask)).unwrap_err().reason;
    assert_sentence(&error, &["'m' is the mask of 'x', which is optional", "`m` of forward has no default"]);
}

#[test]
fn only_tensors_of_forward_are_filled_up() {
    let inputs = vec![padded(named("n", Int64, &[-1]), false)];
    let error =
        Binding::new(&config(4, inputs, vec![]), &forward(&[("n", ArgumentKind::Int)])).unwrap_err().reason;
    assert_sentence(&error, &["input 'n' is filled up", "argument `n` of forward is no tensor"]);
}

#[test]
fn masks_find_their_places_in_lists_and_dicts() {
    let inputs =
        |x: &str, m: &str| vec![padded(named(x, Int16, &[-1]), false), mask_of(named(m, Bool, &[-1]), x)];
    let list = forward(&[("all", ArgumentKind::Tensors)]);
    let binding = bind(&config(4, inputs("all__0", "all__1"), vec![]), &list);
    let checked = asked(&binding, vec![input("all__0", numbers(&[1, 2], 0))]);
    let [Arg::Tensors(tensors)] = &checked.call.arguments[..] else { panic!("{checked:?}") };
    assert_eq!((tensors.len(), tensors[1].bytes()), (2, &[1, 1][..]));

    let dict = forward(&[("all", ArgumentKind::Dict)]);
    let binding = bind(&config(4, inputs("x", "m"), vec![]), &dict);
    let calls = [2, 3].map(|length| asked(&binding, vec![input("x", numbers(&[1, length], 0))]).call);
    let joined = gather(&[&calls[0], &calls[1]], &[1, 1], 2, &mut |_| None);
    let [Arg::Dict(entries)] = &joined.arguments[..] else { panic!("{joined:?}") };
    assert_eq!((&*entries[1].0, entries[1].1.bytes()), ("m", &[1, 1, 0, 1, 1, 1][..]));
}

#[tokio::test]
async fn requests_of_different_lengths_run_in_one_batch() {
    let house = House::new(1, 0);
    let inputs = vec![padded(named("x", Int16, &[-1]), true), mask_of(named("m", Bool, &[-1]), "x")];
    let outputs = vec![cut_to(named("y", Int16, &[-1]), "x"), named("m_of_all", Bool, &[-1])];
    let mut config = config(8, inputs, outputs);
    let batching = config.batching.as_mut().unwrap();
    batching.max_delay = Duration::from_secs(60);
    batching.preferred_sizes = vec![3];
    batching.allowed_sizes = vec![4, 8];
    // It gives back what it gets.
    let model = house.model("argument m tensor", config, &[(0, 1)]);
    let request = |length: i64| Request {
        inputs: vec![input("x", numbers(&[1, length], 10 * length as i16))],
        ..Request::default()
    };
    let mut calls = Vec::new();
    for length in [3, 40, 5] {
        calls.push((length, waiting(&model, request(length)).await));
    }
    // The others would be filled up for this one: it waits for some of about its length.
    let (_, longer) = calls.remove(1);
    calls.push((8, Box::pin(model.infer(request(8)))));
    // The last first: it is sent when it is waited for.
    for (length, call) in calls.into_iter().rev() {
        let named = call.await.unwrap();
        let sent = numbers(&[1, length], 10 * length as i16);
        assert_eq!((&named[0].tensor.shape, named[0].tensor.bytes()), (&sent.shape, sent.bytes()));
        let mask: Vec<u8> = (0..8).map(|at| u8::from(at < length)).collect();
        assert_eq!((&named[1].tensor.shape[..], named[1].tensor.bytes()), (&[1, 8][..], &mask[..]));
    }
    assert_eq!(house.fake.rows(), [4], "one run, of an allowed size");
    drop(longer);
}
