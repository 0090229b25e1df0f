//! The naming matrix of Triton's PyTorch backend, and what goes beyond it.

use std::{num::NonZeroU32, time::Duration};

use sconce_repository::{SequenceStrategy, Sequences};

use super::*;
use crate::{
    fixtures::{assert_sentence, bind, config, forward, named, optional, returning},
    schema::Return,
};
use ArgumentKind::{Bool, Dict, Float, Int, Other, Str, Strings, Tensor, Tensors};
use DataType::{Bytes, Fp32, Fp64, Int32, Int64};

/// A config of FP32 vectors with these names.
fn vectors(names: &[&str]) -> ModelConfig {
    config(0, names.iter().map(|name| named(name, Fp32, &[-1])).collect(), Vec::new())
}

/// The argument that each input of the config leads to.
fn argument_of_each(names: &[&str], arguments: &[(&str, ArgumentKind)]) -> Vec<usize> {
    let binding = bind(&vectors(names), &forward(arguments));
    assert_eq!(binding.inputs.iter().map(|slot| &*slot.name).collect::<Vec<_>>(), names);
    binding.inputs.iter().map(|slot| slot.place.argument()).collect()
}

fn places_of(config: &ModelConfig, arguments: &[(&str, ArgumentKind)]) -> Vec<Place> {
    bind(config, &forward(arguments)).inputs.into_iter().map(|slot| slot.place).collect()
}

#[track_caller]
fn assert_refused(config: &ModelConfig, arguments: &[(&str, ArgumentKind)], parts: &[&str]) {
    match Binding::new(config, &forward(arguments)) {
        Err(LoadError { reason: message, .. }) => assert_sentence(&message, parts),
        Ok(binding) => panic!("{parts:?} is expected, not {:?}", binding.inputs),
    }
}

const AB: [(&str, ArgumentKind); 2] = [("a", Tensor), ("b", Tensor)];

#[test]
fn names_of_arguments_in_any_order() {
    assert_eq!(argument_of_each(&["a", "b"], &AB), [0, 1]);
    assert_eq!(argument_of_each(&["b", "a"], &AB), [1, 0]);
}

#[test]
fn names_with_an_index_in_any_order() {
    assert_eq!(argument_of_each(&["INPUT__0", "INPUT__1"], &AB), [0, 1]);
    assert_eq!(argument_of_each(&["INPUT__1", "OTHER__0"], &AB), [1, 0]);
    // Digits only: a leading zero is as good, whatever else is no index, then the order counts.
    assert_eq!(argument_of_each(&["x__01", "x__00"], &AB), [1, 0]);
    for second in ["x__-0", "x__ 0", "x__", "x__0a", "x_0", "__x__0", "x__1__0", "x__\u{0661}"] {
        assert_eq!(argument_of_each(&["x__1", second], &AB), [0, 1], "{second}");
    }
}

#[test]
fn an_index_that_is_out_of_range_is_refused() {
    for name in ["x__2", "x__99", "x__18446744073709551615"] {
        assert_refused(&vectors(&["x__0", name]), &AB, &["expects 2 inputs, model provides 2", name]);
    }
    // More digits than any number has are no index: the order counts.
    assert_eq!(argument_of_each(&["x__1", "x__99999999999999999999"], &AB), [0, 1]);
}

#[test]
fn mixed_names_mean_the_order_of_the_config() {
    assert_eq!(argument_of_each(&["b", "INPUT__0"], &AB), [0, 1]);
    assert_eq!(argument_of_each(&["INPUT__1", "b"], &AB), [0, 1]);
    assert_eq!(argument_of_each(&["x", "y"], &AB), [0, 1]);
    assert_eq!(argument_of_each(&["b", "x"], &AB), [0, 1]);
}

#[test]
fn as_many_inputs_as_arguments() {
    for names in [&["a"][..], &["x"], &["x__0"]] {
        assert_refused(&vectors(names), &AB, &["expects 1 inputs, model provides 2", "`b`", "(a, b)"]);
    }
    assert_refused(&vectors(&["x", "y", "z"]), &AB, &["expects 3 inputs, model provides 2", "'z'"]);
    assert_refused(&vectors(&["x"]), &[], &["expects 1 inputs, model provides 0", "'x'"]);
}

#[test]
fn two_inputs_for_one_argument_are_refused() {
    assert_refused(&vectors(&["x__0", "y__0"]), &AB, &["`a`", "'y__0'"]);
    assert_refused(&vectors(&["xs", "xs__0"]), &[("xs", Tensors)], &["`xs`", "'xs__0'"]);
    assert_refused(&vectors(&["xs__0", "xs__00"]), &[("xs", Tensors)], &["`xs`", "'xs__00'"]);
}

#[test]
fn a_single_dict_takes_names_as_keys() {
    let key = |key: &str| Place::Key(0, key.into());
    let names = ["q", "INPUT__7", "d", "d.x"];
    assert_eq!(places_of(&vectors(&names), &[("d", Dict)]), names.map(key));
    let strings = config(0, vec![named("q", Bytes, &[1])], Vec::new());
    assert_refused(&strings, &[("d", Dict)], &["'q'", "BYTES", "`d`"]);
}

#[test]
fn elements_of_a_list() {
    let arguments = [("x", Tensor), ("ys", Tensors)];
    assert_eq!(
        places_of(&vectors(&["ys__1", "x", "ys__0"]), &arguments),
        [Place::Element(1, 1), Place::Argument(0), Place::Element(1, 0)]
    );
    // One that is named as the list or by its position is the list's only element.
    assert_eq!(places_of(&vectors(&["ys", "x"]), &arguments), [Place::Element(1, 0), Place::Argument(0)]);
    assert_eq!(
        places_of(&vectors(&["in__1", "in__0"]), &arguments),
        [Place::Element(1, 0), Place::Argument(0)]
    );
    assert_refused(&vectors(&["x", "ys__0", "ys__2"]), &arguments, &["`ys`", "`ys__1`"]);
    assert_refused(&vectors(&["x", "ys__1"]), &arguments, &["`ys`", "`ys__0`"]);
}

#[test]
fn keys_of_a_dict_beside_others() {
    let arguments = [("x", Tensor), ("d", Dict)];
    let key = |key: &str| Place::Key(1, key.into());
    assert_eq!(
        places_of(&vectors(&["d.q", "x", "d.p.r"]), &arguments),
        [key("q"), Place::Argument(0), key("p.r")]
    );
    for second in ["d", "y"] {
        assert_refused(&vectors(&["x", second]), &arguments, &["`d`", second, "`d.key`"]);
    }
    // A dot after what is no dict is part of a name.
    assert_refused(&vectors(&["d.q", "x.q"]), &arguments, &["'x.q'"]);
}

#[test]
fn what_has_a_default_may_be_left_out() {
    let arguments = [("x", Tensor), ("mask?", Tensor), ("k?", Int), ("xs?", Tensors), ("d?", Dict)];
    assert_eq!(argument_of_each(&["x"], &arguments), [0]);
    assert_eq!(argument_of_each(&["INPUT__0"], &arguments), [0]);
    assert_eq!(argument_of_each(&["mask", "x"], &arguments), [1, 0]);
    let with_k = config(0, vec![named("k", Int64, &[1]), named("x", Fp32, &[-1])], Vec::new());
    assert_eq!(places_of(&with_k, &arguments), [Place::Argument(2), Place::Argument(0)]);
}

#[test]
fn optional_in_the_config_needs_a_default_in_forward() {
    let sometimes = config(0, vec![named("x", Fp32, &[1]), optional(named("y", Fp32, &[1]))], Vec::new());
    let binding = bind(&sometimes, &forward(&[("x", Tensor), ("y?", Tensor)]));
    assert_eq!(binding.inputs.iter().map(|slot| slot.required).collect::<Vec<_>>(), [true, false]);
    assert_refused(&sometimes, &[("x", Tensor), ("y", Tensor)], &["'y'", "`y`", "no default"]);
    // What the config requires is required, default or not.
    let always = config(0, vec![named("x", Fp32, &[1]), named("y", Fp32, &[1])], Vec::new());
    assert!(bind(&always, &forward(&[("x", Tensor), ("y?", Tensor)])).inputs[1].required);
    // Elements and keys may be absent from a collection.
    let parts =
        config(0, vec![optional(named("xs__0", Fp32, &[1])), optional(named("d.k", Fp32, &[1]))], Vec::new());
    assert!(!bind(&parts, &forward(&[("xs", Tensors), ("d", Dict)])).inputs[0].required);
}

#[test]
fn dtypes_must_fit_their_arguments() {
    let all = DataType::ALL;
    let numbers: Vec<_> = all.into_iter().filter(|&data_type| data_type != Bytes).collect();
    let integers: Vec<_> = all.into_iter().filter(|data_type| data_type.name().contains("INT")).collect();
    let right = [
        (Tensor, numbers.clone()),
        (Tensors, numbers.clone()),
        (Dict, numbers),
        (Strings, vec![Bytes]),
        (Str, vec![Bytes]),
        (Int, integers),
        (Float, vec![Fp32, Fp64]),
        (Bool, vec![DataType::Bool]),
    ];
    for (kind, right) in right {
        for data_type in all {
            let config = config(0, vec![named("x", data_type, &[1])], Vec::new());
            let schema = [("x", kind.clone())];
            if right.contains(&data_type) {
                bind(&config, &forward(&schema));
            } else {
                assert_refused(&config, &schema, &["'x'", data_type.name(), takes(&kind)]);
            }
        }
    }
}

#[test]
fn a_type_that_cannot_be_sent_needs_a_default() {
    let tuple = || Other("Tuple[int, int]".to_owned());
    let needed = [("x", Tensor), ("t", tuple())];
    for config in [config(0, Vec::new(), Vec::new()), vectors(&["x"]), vectors(&["x", "t"])] {
        assert_refused(&config, &needed, &["`t`", "Tuple[int, int]", "List[Tensor]"]);
    }
    let defaulted = [("x", Tensor), ("t?", tuple())];
    assert_eq!(argument_of_each(&["x"], &defaulted), [0]);
    assert_eq!(bind(&config(0, Vec::new(), Vec::new()), &forward(&defaulted)).inputs.len(), 1);
    assert_refused(&vectors(&["x", "t"]), &defaulted, &["'t'", "Tuple[int, int]"]);
}

/// Name, dtype, shape and whether it is required, of each input.
fn shown(binding: &Binding) -> Vec<(String, DataType, Vec<i64>, bool)> {
    let rows = binding.input_info().into_iter().zip(&binding.inputs);
    rows.map(|(row, slot)| (row.name, row.data_type, row.shape, slot.required)).collect()
}

#[test]
fn without_a_config_the_schema_tells_the_inputs() {
    let mut schema = forward(&[
        ("x", Tensor),
        ("xs", Tensors),
        ("d", Dict),
        ("s", Strings),
        ("i?", Int),
        ("f", Float),
        ("b", Bool),
        ("t", Str),
        ("o?", Other("Device".to_owned())),
    ]);
    schema.arguments[2].keys = vec!["p".to_owned(), "q".to_owned()];
    let row = |name: &str, data_type, required| (name.to_owned(), data_type, vec![-1], required);
    assert_eq!(
        shown(&bind(&config(0, Vec::new(), Vec::new()), &schema)),
        [
            row("x", Fp32, true),
            row("xs__0", Fp32, false),
            row("d.p", Fp32, false),
            row("d.q", Fp32, false),
            row("s", Bytes, true),
            row("i", Int64, false),
            row("f", Fp64, true),
            row("b", DataType::Bool, true),
            row("t", Bytes, true),
        ]
    );
}

#[test]
fn without_a_config_lists_and_dicts_are_open() {
    let schema = forward(&[("x", Tensor), ("xs", Tensors), ("d", Dict)]);
    let open = bind(&config(0, Vec::new(), Vec::new()), &schema);
    assert_eq!(open.open_place("xs__12"), Some(Place::Element(1, 12)));
    assert_eq!(open.open_place("d.some.key"), Some(Place::Key(2, "some.key".into())));
    for name in ["x", "y", "x__0", "xs__", "xs__-1", "d", "dd.key", "", ".", "__"] {
        assert_eq!(open.open_place(name), None, "{name}");
    }
    let closed = bind(&vectors(&["x", "xs__0", "d.k"]), &schema);
    assert_eq!((closed.open_place("xs__1"), closed.open_place("d.l")), (None, None));
}

#[test]
fn without_a_config_a_single_dict_shows_and_takes_bare_keys() {
    let mut schema = forward(&[("d", Dict)]);
    schema.arguments[0].keys = vec!["p".to_owned()];
    let binding = bind(&config(0, Vec::new(), Vec::new()), &schema);
    assert_eq!(shown(&binding), [("p".to_owned(), Fp32, vec![-1], false)]);
    assert_eq!(binding.open_place("any.thing__0"), Some(Place::Key(0, "any.thing__0".into())));
}

#[test]
fn metadata_has_the_batch_dimension() {
    let io = || vec![named("x", Int32, &[3, -1])];
    let shapes = |max_batch_size| {
        let schema = Schema { returns: Return::Tensor, ..forward(&[("x", Tensor)]) };
        let binding = bind(&config(max_batch_size, io(), io()), &schema);
        let row = TensorInfo {
            name: "x".to_owned(),
            data_type: Int32,
            shape: binding.input_info()[0].shape.clone(),
        };
        assert_eq!((binding.input_info(), binding.output_info()), (vec![row.clone()], vec![row.clone()]));
        row.shape
    };
    assert_eq!(shapes(0), [3, -1]);
    assert_eq!(shapes(8), [-1, 3, -1]);
}

#[test]
fn sequences_leave_names_that_no_config_lists_as_they_are() {
    let sequences = Sequences {
        strategy: SequenceStrategy::Oldest { max_sequences: NonZeroU32::MIN },
        idle_timeout: Duration::from_secs(60),
        max_waiting: 0,
        controls: Vec::new(),
        states: Vec::new(),
    };
    let config = ModelConfig { sequences: Some(sequences), ..config(0, Vec::new(), Vec::new()) };
    let returns = Return::Tuple(vec![(None, Return::Tensor)]);
    let binding = bind(&config, &returning(&[("x", Tensor)], returns));
    assert_eq!(binding.input_info().into_iter().map(|info| info.name).collect::<Vec<_>>(), ["x"]);
    assert_eq!(binding.output_info().into_iter().map(|info| info.name).collect::<Vec<_>>(), ["OUTPUT__0"]);
}
