//! From what `forward` returns to the names and shapes that clients see.

use super::*;
use crate::{
    fixtures::{
        assert_invalid, assert_sentence, bind, config, floats, named, reshaped as reshape_to, returning,
        texts,
    },
    schema::ArgumentKind,
    value::Value,
};
use DataType::{Bytes, Fp32, Int64};
use sconce_repository::TensorConfig;

/// For a request of which nothing is filled up.
fn name(
    binding: &Binding,
    output: Output,
    wanted: &[Wanted],
    batch: Option<i64>,
) -> Result<Vec<NamedOutput>> {
    super::name(binding, output, wanted, batch, &Lengths::default())
}

fn bound(max_batch_size: u32, outputs: Vec<TensorConfig>, returns: Return) -> Binding {
    let inputs = vec![named("x", Fp32, &[-1])];
    bind(&config(max_batch_size, inputs, outputs), &returning(&[("x", ArgumentKind::Tensor)], returns))
}

/// With FP32 outputs of any vector shape.
fn by_names(names: &[&str], returns: Return) -> Binding {
    bound(0, names.iter().map(|name| named(name, Fp32, &[-1])).collect(), returns)
}

fn open(returns: Return) -> Binding {
    bound(0, Vec::new(), returns)
}

#[track_caller]
fn assert_not_bound(names: &[&str], returns: &Return, parts: &[&str]) {
    let outputs = names.iter().map(|name| named(name, Fp32, &[-1])).collect();
    match plan(&config(0, Vec::new(), outputs), returns) {
        Err(LoadError { reason: message, .. }) => assert_sentence(&message, parts),
        Ok(plan) => panic!("{parts:?} is expected, not {plan:?}"),
    }
}

#[track_caller]
fn assert_broken<T: std::fmt::Debug>(result: Result<T>, parts: &[&str]) {
    match result {
        Err(Error::Output { model, message }) if model == "m" => assert_sentence(&message, parts),
        other => panic!("Error::Output with {parts:?} is expected, not {other:?}"),
    }
}

/// A vector of one value, by which it is known again.
fn one(value: f32) -> Output {
    Output::Tensor(floats(&[1], &[value]))
}

fn tuple(elements: Vec<Output>) -> Output {
    Output::Tuple(elements.into_iter().map(|element| (None, element)).collect())
}

fn fields(elements: Vec<(&str, Output)>) -> Output {
    Output::Tuple(elements.into_iter().map(|(field, element)| (Some(field.to_owned()), element)).collect())
}

fn dict(entries: Vec<(&str, Output)>) -> Output {
    Output::Dict(entries.into_iter().map(|(key, element)| (key.to_owned(), element)).collect())
}

fn tuple_type(elements: Vec<Return>) -> Return {
    Return::Tuple(elements.into_iter().map(|element| (None, element)).collect())
}

fn fields_type(elements: Vec<(&str, Return)>) -> Return {
    Return::Tuple(elements.into_iter().map(|(field, element)| (Some(field.to_owned()), element)).collect())
}

fn wanted(names: &[&str]) -> Vec<Wanted> {
    names.iter().map(|name| Wanted { name: (*name).to_owned(), classes: 0 }).collect()
}

/// Names, each with the value of its tensor.
fn values(named: Result<Vec<NamedOutput>>) -> Vec<(String, f32)> {
    let value = |output: NamedOutput| {
        (output.name.to_string(), f32::from_le_bytes(output.tensor.bytes()[..4].try_into().unwrap()))
    };
    named.unwrap().into_iter().map(value).collect()
}

fn asked(binding: &Binding, output: Output, names: &[&str]) -> Vec<(String, f32)> {
    check_wanted(binding, &wanted(names)).unwrap();
    values(name(binding, output, &wanted(names), None))
}

fn rows(expected: &[(&str, f32)]) -> Vec<(String, f32)> {
    expected.iter().map(|&(name, value)| (name.to_owned(), value)).collect()
}

#[test]
fn without_a_config_the_structure_gives_the_names() {
    let unknown = open(Return::Unknown);
    for (output, expected) in [
        (one(1.0), &[("OUTPUT__0", 1.0)][..]),
        (tuple(vec![one(1.0), one(2.0)]), &[("OUTPUT__0", 1.0), ("OUTPUT__1", 2.0)]),
        (fields(vec![("mean", one(1.0)), ("std", one(2.0))]), &[("mean", 1.0), ("std", 2.0)]),
        (Output::List(vec![one(1.0), one(2.0)]), &[("OUTPUT__0", 1.0), ("OUTPUT__1", 2.0)]),
        (dict(vec![("b", one(1.0)), ("a", one(2.0))]), &[("b", 1.0), ("a", 2.0)]),
        (tuple(vec![]), &[]),
        (
            tuple(vec![
                one(1.0),
                Output::List(vec![one(2.0), tuple(vec![one(3.0)])]),
                dict(vec![("k", one(4.0)), ("l", Output::List(vec![one(5.0)]))]),
                fields(vec![("f", one(6.0))]),
            ]),
            &[
                ("OUTPUT__0", 1.0),
                ("OUTPUT__1__0", 2.0),
                ("OUTPUT__1__1__0", 3.0),
                ("OUTPUT__2.k", 4.0),
                ("OUTPUT__2.l__0", 5.0),
                ("OUTPUT__3.f", 6.0),
            ],
        ),
        (
            dict(vec![("a", Output::List(vec![one(1.0)])), ("b", dict(vec![("c", one(2.0))]))]),
            &[("a__0", 1.0), ("b.c", 2.0)],
        ),
    ] {
        assert_eq!(values(name(&unknown, output, &[], None)), rows(expected));
    }
}

#[test]
fn metadata_shows_what_the_schema_tells() {
    let nested = fields_type(vec![
        ("a", Return::Tensor),
        ("b", Return::Strings),
        ("c", Return::Dict(vec!["p".to_owned(), "q".to_owned()])),
        ("d", tuple_type(vec![Return::Tensor, Return::List(Box::new(Return::Tensor))])),
    ]);
    for (returns, expected) in [
        (Return::Tensor, &[("OUTPUT__0", Fp32)][..]),
        (Return::Strings, &[("OUTPUT__0", Bytes)]),
        (tuple_type(vec![Return::Tensor, Return::Strings]), &[("OUTPUT__0", Fp32), ("OUTPUT__1", Bytes)]),
        (Return::Dict(vec!["k".to_owned()]), &[("k", Fp32)]),
        (Return::List(Box::new(Return::Tensor)), &[]),
        (Return::Unknown, &[]),
        (nested, &[("a", Fp32), ("b", Bytes), ("c.p", Fp32), ("c.q", Fp32), ("d__0", Fp32)]),
    ] {
        let info = open(returns).output_info();
        let shown: Vec<_> = info.iter().map(|row| (row.name.as_str(), row.data_type)).collect();
        assert_eq!(shown, expected);
        assert!(info.iter().all(|row| row.shape == [-1]));
    }
}

#[test]
fn a_config_names_by_index() {
    let two = || tuple_type(vec![Return::Tensor, Return::Tensor]);
    let binding = by_names(&["y__1", "x__0"], two());
    let returned = || tuple(vec![one(0.0), one(1.0)]);
    assert_eq!(asked(&binding, returned(), &[]), rows(&[("y__1", 1.0), ("x__0", 0.0)]));
    // Fewer than there are.
    assert_eq!(asked(&by_names(&["y__1"], two()), returned(), &[]), rows(&[("y__1", 1.0)]));
    assert_not_bound(
        &["y__2"],
        &two(),
        &["output 'y__2' refers to an output index which doesn't exist", "has 2 outputs"],
    );
    assert_not_bound(&["y__1"], &Return::Tensor, &["This model has 1 outputs"]);
    assert_not_bound(&["x__0", "y__0"], &two(), &["two outputs", "'y__0'"]);
}

#[test]
fn a_config_names_by_order() {
    let two = || tuple_type(vec![Return::Tensor, Return::Tensor]);
    let returned = || tuple(vec![one(0.0), one(1.0)]);
    for names in [["b", "a"], ["OUTPUT__1", "a"], ["a", "OUTPUT__0"]] {
        let expected = rows(&[(names[0], 0.0), (names[1], 1.0)]);
        assert_eq!(asked(&by_names(&names, two()), returned(), &[]), expected);
    }
    assert_not_bound(&["a", "b", "c"], &two(), &["output 'c'", "has 2 outputs"]);
    assert_eq!(asked(&by_names(&["scores"], Return::Tensor), one(7.0), &[]), rows(&[("scores", 7.0)]));
    let nested = tuple_type(vec![Return::Tensor, Return::List(Box::new(Return::Tensor))]);
    let output = tuple(vec![one(0.0), Output::List(vec![one(1.0), one(2.0)])]);
    assert_eq!(
        asked(&by_names(&["a", "b", "c"], nested), output, &[]),
        rows(&[("a", 0.0), ("b", 1.0), ("c", 2.0)])
    );
}

#[test]
fn a_config_names_by_field_and_by_key() {
    let fields_of = || fields_type(vec![("mean", Return::Tensor), ("std", Return::Tensor)]);
    let returned = || fields(vec![("mean", one(0.0)), ("std", one(1.0))]);
    let both = rows(&[("std", 1.0), ("mean", 0.0)]);
    assert_eq!(asked(&by_names(&["std", "mean"], fields_of()), returned(), &[]), both);
    // A name that is no field: indices or the order, as in Triton.
    assert_eq!(asked(&by_names(&["x__1"], fields_of()), returned(), &[]), rows(&[("x__1", 1.0)]));
    let mixed = rows(&[("std", 0.0), ("other", 1.0)]);
    assert_eq!(asked(&by_names(&["std", "other"], fields_of()), returned(), &[]), mixed);

    let dict_of = Return::Dict(vec![]);
    let returned = dict(vec![("a", one(0.0)), ("b__0", one(1.0)), ("c", one(2.0))]);
    let some = rows(&[("b__0", 1.0), ("a", 0.0)]);
    assert_eq!(asked(&by_names(&["b__0", "a"], dict_of), returned, &[]), some);
}

#[test]
fn a_config_names_nested_leaves_by_their_own_names() {
    let nested = || tuple_type(vec![Return::Tensor, Return::Dict(vec!["p".to_owned(), "q".to_owned()])]);
    let returned = || tuple(vec![one(0.0), dict(vec![("p", one(1.0)), ("q", one(2.0))])]);
    let binding = by_names(&["OUTPUT__1.q", "OUTPUT__0"], nested());
    assert_eq!(asked(&binding, returned(), &[]), rows(&[("OUTPUT__1.q", 2.0), ("OUTPUT__0", 0.0)]));

    let list = || Return::List(Box::new(fields_type(vec![("a", Return::Tensor), ("b", Return::Tensor)])));
    let pair = |value: f32| fields(vec![("a", one(value)), ("b", one(value + 1.0))]);
    let returned = || Output::List(vec![pair(0.0), pair(2.0)]);
    let binding = by_names(&["OUTPUT__1.b", "OUTPUT__0.a"], list());
    assert_eq!(asked(&binding, returned(), &[]), rows(&[("OUTPUT__1.b", 3.0), ("OUTPUT__0.a", 0.0)]));
    // Another name among them: the order of the leaves.
    let binding = by_names(&["OUTPUT__1.b", "OUTPUT__1.c"], list());
    assert_eq!(asked(&binding, returned(), &[]), rows(&[("OUTPUT__1.b", 0.0), ("OUTPUT__1.c", 1.0)]));
}

#[test]
fn a_single_tensor_is_only_ever_the_first_output() {
    let binding = by_names(&["y__1"], Return::Unknown);
    assert_broken(name(&binding, one(0.0), &[], None), &["'y__1'", "OUTPUT__0"]);
    let binding = by_names(&["y__0"], Return::Unknown);
    assert_eq!(asked(&binding, one(3.0), &[]), rows(&[("y__0", 3.0)]));
}

#[test]
fn a_request_chooses_and_orders() {
    let returned = || tuple(vec![one(0.0), one(1.0), one(2.0)]);
    let three = || tuple_type(vec![Return::Tensor, Return::Tensor, Return::Tensor]);
    let expected = |names: [&str; 2]| rows(&[(names[0], 2.0), (names[1], 0.0)]);
    let configured = by_names(&["a", "b", "c"], three());
    assert_eq!(asked(&configured, returned(), &["c", "a"]), expected(["c", "a"]));
    let names = ["OUTPUT__2", "OUTPUT__0"];
    for binding in [open(three()), open(Return::Unknown)] {
        assert_eq!(asked(&binding, returned(), &names), expected(names));
    }
    assert_eq!(asked(&open(Return::Tensor), one(1.0), &["OUTPUT__0"]), rows(&[("OUTPUT__0", 1.0)]));
}

#[test]
fn unknown_and_repeated_outputs() {
    let unknown = &["unexpected inference output 'z\\n' for model 'm'"];
    let configured = by_names(&["a", "b"], tuple_type(vec![Return::Tensor, Return::Tensor]));
    assert_invalid(check_wanted(&configured, &wanted(&["a", "z\n"])), unknown);
    assert_invalid(
        check_wanted(&configured, &wanted(&["b", "a", "b"])),
        &["'b' is requested more than once", "'m'"],
    );
    // Without a config an output may turn out not to be there.
    for (binding, output) in
        [(open(Return::Unknown), tuple(vec![one(0.0)])), (open(Return::Tensor), one(0.0))]
    {
        assert_invalid(check_wanted(&binding, &wanted(&["x", "x"])), &["'x' is requested more than once"]);
        check_wanted(&binding, &wanted(&["z\n"])).unwrap();
        assert_invalid(name(&binding, output, &wanted(&["z\n"]), None), unknown);
    }
}

#[test]
fn a_model_that_breaks_its_promise() {
    let expect = |outputs: Vec<TensorConfig>, output: Output, parts: &[&str]| {
        assert_broken(name(&bound(0, outputs, Return::Unknown), output, &[], None), parts);
    };
    let tensor = |shape: &[i64]| Output::Tensor(crate::fixtures::zeros(Fp32, shape));
    let y = |dims: &[i64]| vec![named("y", Fp32, dims)];
    expect(vec![named("y", Int64, &[1])], one(0.0), &["'y' is FP32", "says INT64"]);
    expect(vec![named("y", Bytes, &[1])], one(0.0), &["'y' is FP32", "says BYTES"]);
    expect(y(&[1]), Output::Strings(texts(&[1], &["a"])), &["'y' is BYTES", "says FP32"]);
    expect(y(&[2, -1]), tensor(&[3, 1]), &["'y' has shape [3,1]", "says [2,-1]"]);
    expect(y(&[2, -1]), tensor(&[2]), &["shape [2]", "says [2,-1]"]);
    expect(y(&[1]), tensor(&[]), &["shape []", "says [1]"]);
    expect(y(&[1]), Output::Other("int".to_owned()), &["'y' is int", "tensor or List[str]"]);
    expect(y(&[1]), tuple(vec![]), &["'y'", "is not in it"]);
    let two = || vec![named("y", Fp32, &[1]), named("z", Fp32, &[1])];
    expect(two(), tuple(vec![one(0.0)]), &["'z'", "is not in it"]);
    expect(two(), tuple(vec![one(0.0), Output::List(vec![one(1.0)])]), &["'z'", "OUTPUT__1__0"]);
    let dict_of = bound(0, y(&[1]), Return::Dict(vec![]));
    assert_broken(name(&dict_of, dict(vec![("x", one(0.0))]), &[], None), &["'y'", "['x']"]);
    let device = Tensor { value: Value::Joined(Vec::new()), ..floats(&[1], &[0.0]) };
    expect(y(&[1]), Output::Tensor(device), &["'y' cannot be fetched", "in parts"]);
    assert_broken(
        name(&open(Return::Unknown), Output::Other("NoneType".to_owned()), &[], None),
        &["NoneType"],
    );
}

#[test]
fn what_a_request_does_not_want_is_not_looked_at() {
    let binding = bound(0, vec![named("a", Fp32, &[1]), named("b", Int64, &[1])], Return::Unknown);
    let output = tuple(vec![one(1.0), one(2.0)]);
    assert_eq!(asked(&binding, output, &["a"]), rows(&[("a", 1.0)]));
}

#[test]
fn the_batch_is_the_first_dimension() {
    let binding = bound(8, vec![named("y", Fp32, &[2])], Return::Tensor);
    let with = |shape: &[i64]| {
        let output = Output::Tensor(crate::fixtures::zeros(Fp32, shape));
        name(&binding, output, &[], Some(3)).map(|named| named[0].tensor.shape.clone())
    };
    assert_eq!(with(&[3, 2]), Ok(vec![3, 2]));
    for (shape, got) in
        [(&[2, 2][..], "[2,2]"), (&[2], "[2]"), (&[3, 3], "[3,3]"), (&[], "[]"), (&[3], "[3]")]
    {
        assert_broken(with(shape), &["'y' has shape", got, "says [3,2]"]);
    }
}

#[test]
fn reshape_is_undone() {
    let shape_of = |max_batch_size, dims: &[i64], reshape: &[i64], shape: &[i64]| {
        let binding =
            bound(max_batch_size, vec![reshape_to(named("y", Fp32, dims), reshape)], Return::Tensor);
        let batch = (max_batch_size > 0).then(|| shape[0]);
        let output = Output::Tensor(crate::fixtures::zeros(Fp32, shape));
        name(&binding, output, &[], batch).map(|named| named[0].tensor.shape.clone())
    };
    assert_eq!(shape_of(0, &[4, 3], &[12], &[12]), Ok(vec![4, 3]));
    assert_eq!(shape_of(4, &[4, 3], &[12], &[2, 12]), Ok(vec![2, 4, 3]));
    assert_eq!(shape_of(4, &[1], &[], &[2]), Ok(vec![2, 1]));
    assert_eq!(shape_of(0, &[1], &[], &[]), Ok(vec![1]));
    assert_eq!(shape_of(0, &[-1, 2, 2, -1], &[-1, 4, -1], &[5, 4, 0]), Ok(vec![5, 2, 2, 0]));
    assert_broken(shape_of(0, &[4, 3], &[12], &[4, 3]), &["shape [4,3]", "says [12]"]);
}

#[test]
fn strings_take_the_shape_of_the_config_where_they_fit() {
    let shape_of = |batch: Option<i64>, dims: &[i64], count: usize| {
        let binding =
            bound(if batch.is_some() { 8 } else { 0 }, vec![named("s", Bytes, dims)], Return::Strings);
        let tensor = texts(&[count as i64], &vec!["a"; count]);
        let named = name(&binding, Output::Strings(tensor), &[], batch).unwrap();
        assert_eq!(named[0].tensor.check(), Ok(()));
        named[0].tensor.shape.clone()
    };
    assert_eq!(shape_of(None, &[-1], 3), [3]);
    assert_eq!(shape_of(None, &[2, 3], 6), [2, 3]);
    assert_eq!(shape_of(None, &[2, -1], 6), [2, 3]);
    assert_eq!(shape_of(None, &[-1, 2], 0), [0, 2]);
    assert_eq!(shape_of(None, &[], 1), [0i64; 0]);
    assert_eq!(shape_of(Some(3), &[1], 3), [3, 1]);
    assert_eq!(shape_of(Some(3), &[-1], 6), [3, 2]);
    assert_eq!(shape_of(Some(1), &[-1], 0), [1, 0]);
    // Otherwise as it came.
    for (batch, dims, count) in [
        (None, &[2, 3][..], 5),
        (None, &[2, -1], 5),
        (None, &[-1, -1], 4),
        (None, &[3], 0),
        (Some(3), &[1], 4),
    ] {
        assert_eq!(shape_of(batch, dims, count), [count as i64], "{batch:?} {dims:?}");
    }
    assert_eq!(shape_of(None, &[1 << 40, 1 << 40], 2), [2]);
}

#[test]
fn what_the_wire_cannot_carry_is_refused_at_load() {
    let int = || Return::Other("int".to_owned());
    for returns in [int(), tuple_type(vec![Return::Tensor, int()]), Return::List(Box::new(int()))] {
        assert_not_bound(&[], &returns, &["forward returns int"]);
        assert_not_bound(&["y"], &returns, &["forward returns int"]);
    }
}

#[test]
fn what_is_kept_for_a_later_run_is_sent_too() {
    let kept = crate::batch::tests::there(floats(&[1, 2], &[1.0, 2.0]));
    let bound = bound(0, vec![named("y", Fp32, &[-1, 2])], Return::Tensor);
    let named = name(&bound, Output::Tensor(kept), &[], None).unwrap();
    assert_eq!(
        (&*named[0].tensor.shape, named[0].tensor.bytes()),
        (&[1, 2][..], floats(&[2], &[1.0, 2.0]).bytes())
    );
}
