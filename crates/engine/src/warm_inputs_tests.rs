//! What versions are warmed with, where the configuration tells it and where it does not.

use std::{collections::BTreeMap, fs, num::NonZeroU32};

use proptest::prelude::*;
use sconce_repository::{ModelConfig, WarmupInput};

use super::*;
use crate::fixtures::{bind, config, forward, named, optional, reshaped};

fn shapes(trial: &Trial) -> Vec<(&str, DataType, &[i64])> {
    trial.inputs.iter().map(|input| (&*input.name, input.tensor.data_type, &*input.tensor.shape)).collect()
}

#[test]
fn a_configuration_that_states_every_shape_is_enough() {
    let inputs =
        vec![named("x", DataType::Fp32, &[3, 2]), reshaped(named("ids", DataType::Int64, &[4]), &[2, 2])];
    let schema = forward(&[("x", ArgumentKind::Tensor), ("ids", ArgumentKind::Tensor)]);
    let trial = from_binding(&bind(&config(8, inputs.clone(), Vec::new()), &schema)).unwrap();
    assert_eq!(shapes(&trial), [("x", DataType::Fp32, &[1, 3, 2][..]), ("ids", DataType::Int64, &[1, 4])]);
    assert!(trial.advice.is_some());
    assert!(trial.inputs[0].tensor.bytes().chunks(4).any(|element| element != [0; 4]));
    assert!(trial.inputs[1].tensor.bytes().iter().all(|&byte| byte == 0), "an index that every table has");
    let trial = from_binding(&bind(&config(0, inputs, Vec::new()), &schema)).unwrap();
    assert_eq!(shapes(&trial), [("x", DataType::Fp32, &[3, 2][..]), ("ids", DataType::Int64, &[4])]);
}

#[test]
fn nothing_is_made_where_a_shape_is_free_or_too_large_or_there_is_no_configuration() {
    let schema = forward(&[("x", ArgumentKind::Tensor)]);
    for inputs in
        [vec![], vec![named("x", DataType::Fp32, &[-1, 2])], vec![named("x", DataType::Fp32, &[1 << 27])]]
    {
        assert!(from_binding(&bind(&config(8, inputs, Vec::new()), &schema)).is_none());
    }
}

#[test]
fn a_model_that_may_want_certain_values_is_not_judged_by_made_up_ones() {
    for (kind, input) in [
        (ArgumentKind::Int, named("x", DataType::Int64, &[1])),
        (ArgumentKind::Strings, named("x", DataType::Bytes, &[1])),
        (ArgumentKind::Str, named("x", DataType::Bytes, &[1])),
    ] {
        let binding = bind(&config(0, vec![input], Vec::new()), &forward(&[("x", kind.clone())]));
        assert!(from_binding(&binding).unwrap().advice.is_none(), "{kind:?}");
    }
    let inputs = vec![named("x", DataType::Fp32, &[1]), optional(named("mask", DataType::Fp32, &[1]))];
    let schema = forward(&[("x", ArgumentKind::Tensor), ("mask?", ArgumentKind::Tensor)]);
    let trial = from_binding(&bind(&config(0, inputs, Vec::new()), &schema)).unwrap();
    assert_eq!((trial.inputs.len(), trial.advice), (2, None));
}

fn sample(data: WarmupData, data_type: DataType) -> WarmupSample {
    let input = WarmupInput { data_type, dims: vec![2], data };
    WarmupSample {
        name: "s".to_owned(),
        batch_size: 3,
        count: NonZeroU32::new(5).unwrap(),
        inputs: BTreeMap::from([("x".to_owned(), input)]),
    }
}

#[test]
fn samples_say_what_is_sent() {
    let trial = from_sample(&sample(WarmupData::Zero, DataType::Fp32)).unwrap();
    assert_eq!((shapes(&trial), trial.at_least), (vec![("x", DataType::Fp32, &[3, 2][..])], 5));
    assert!(trial.inputs[0].tensor.bytes().iter().all(|&byte| byte == 0));
    let trial = from_sample(&sample(WarmupData::Random, DataType::Uint8)).unwrap();
    assert!(trial.inputs[0].tensor.bytes().iter().all(|&byte| byte <= 1));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("row");
    fs::write(&file, [7, 9]).unwrap();
    let trial = from_sample(&sample(WarmupData::File(file.clone()), DataType::Uint8)).unwrap();
    assert_eq!(trial.inputs[0].tensor.bytes(), [7, 9, 7, 9, 7, 9]);
    fs::remove_file(&file).unwrap();
    let Err(error) = from_sample(&sample(WarmupData::File(file), DataType::Uint8)) else {
        panic!("a file that has gone is refused")
    };
    crate::fixtures::assert_sentence(&error.reason, &["warm-up sample 's'", "row"]);
}

#[test]
fn scalars_of_an_example_have_their_values() {
    let scalar = ExampleInput {
        name: "k".to_owned(),
        data_type: DataType::Uint8,
        shape: vec![1],
        scalar: Some(vec![7].into()),
    };
    let tensor = ExampleInput { name: "x".to_owned(), scalar: None, ..scalar.clone() };
    let trial = from_example(&Example { inputs: vec![scalar, tensor] });
    let sent: Vec<_> = trial.inputs.iter().map(|input| input.tensor.bytes()).collect();
    assert_eq!((sent, trial.advice), (vec![&[7][..], &[0]], None));
}

/// The element as a number, of the floating types.
fn number(data_type: DataType, bytes: &[u8]) -> Option<f64> {
    match data_type {
        DataType::Fp16 => Some(f16::from_le_bytes(bytes.try_into().unwrap()).to_f64()),
        DataType::Bf16 => Some(bf16::from_le_bytes(bytes.try_into().unwrap()).to_f64()),
        DataType::Fp32 => Some(f64::from(f32::from_le_bytes(bytes.try_into().unwrap()))),
        DataType::Fp64 => Some(f64::from_le_bytes(bytes.try_into().unwrap())),
        _ => None,
    }
}

proptest! {
    #[test]
    fn what_is_made_is_valid_and_the_same_each_time(shape in prop::collection::vec(0i64..9, 0..4)) {
        for data_type in DataType::ALL {
            for fill in [Fill::Zeros, Fill::Harmless, Fill::Any] {
                let tensor = made(data_type, &shape, fill).unwrap();
                prop_assert_eq!(tensor.check(), Ok(()));
                let again = made(data_type, &shape, fill).unwrap();
                prop_assert_eq!(tensor.bytes(), again.bytes());
                for element in tensor.bytes().chunks(data_type.size().unwrap_or(4)) {
                    let number = number(data_type, element);
                    prop_assert!(number.is_none_or(|number| (0.0..1.0).contains(&number)), "{:?}", number);
                }
            }
        }
    }
}

#[test]
fn a_configuration_may_turn_it_off() {
    let house = crate::fixtures::House::new(1, 0);
    let inputs = vec![named("x", DataType::Fp32, &[1])];
    let auto = config(0, inputs, Vec::new());
    for (warmup, count) in [(Warmup::Off, 0), (Warmup::Auto, 1)] {
        let live = house.model("", ModelConfig { warmup, ..auto.clone() }, &[(0, 1)]);
        assert_eq!(trials(&live, &[]).unwrap().len(), count);
    }
}
