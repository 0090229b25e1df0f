//! Joined and taken apart again, every caller has its own.

use proptest::prelude::*;

use std::{any::Any, sync::Arc};

use super::*;
use crate::{
    DataType,
    value::{DeviceTensor, Kept, push_string},
};

fn tensor(rows: usize, row: &[i64], seed: u8) -> Tensor {
    let shape: Vec<i64> = std::iter::once(rows as i64).chain(row.iter().copied()).collect();
    let bytes = shape.iter().product::<i64>() as usize;
    let data: Vec<u8> = (0..bytes).map(|at| (at as u8).wrapping_mul(7).wrapping_add(seed)).collect();
    Tensor::host(DataType::Uint8, shape, data.into())
}

/// Bytes of so many rows that are somewhere else.
#[derive(Debug)]
struct There {
    rows: usize,
    data: Bytes,
}

impl DeviceTensor for There {
    fn rows(&self, from: usize, rows: usize) -> Result<Arc<dyn DeviceTensor>, String> {
        let row = self.data.len() / self.rows;
        let data = Bytes::copy_from_slice(&self.data[from * row..(from + rows) * row]);
        Ok(Arc::new(Self { rows, data }))
    }
    fn fetch(&self) -> Result<Bytes, String> {
        Ok(self.data.clone())
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The same tensor, on a device.
pub(crate) fn there(tensor: Tensor) -> Tensor {
    let (rows, data) = (tensor.shape[0] as usize, tensor.bytes().to_vec().into());
    Tensor { value: Value::Device(Arc::new(There { rows, data })), ..tensor }
}

/// All of them, wherever its parts are.
fn elements(tensor: &Tensor) -> Vec<u8> {
    match &tensor.value {
        Value::Host(data) => data.to_vec(),
        Value::Device(kept) => kept.fetch().unwrap().to_vec(),
        Value::Joined(parts) => parts.iter().flat_map(elements).collect(),
    }
}

fn words(rows: usize, seed: u8) -> Bytes {
    let mut data = Vec::new();
    for row in 0..rows {
        push_string(&mut data, &vec![seed; (seed as usize + row) % 5]);
    }
    data.into()
}

/// Lends memory for every other tensor, in which something was before.
pub(crate) fn lend_odd() -> impl FnMut(usize) -> Option<Box<dyn HostBuffer>> {
    struct Used(Vec<u8>);
    impl HostBuffer for Used {}
    impl AsRef<[u8]> for Used {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl AsMut<[u8]> for Used {
        fn as_mut(&mut self) -> &mut [u8] {
            &mut self.0
        }
    }
    let mut asked = 0;
    move |bytes| {
        asked += 1;
        (asked % 2 == 1).then(|| Box::new(Used(vec![0xa5; bytes + asked % 3])) as Box<dyn HostBuffer>)
    }
}

/// A call with an argument of each kind.
fn call(rows: usize, row: &[i64], seed: u8) -> Call {
    let key = |name: &str| name.into();
    Call {
        arguments: vec![
            Arg::Tensor(tensor(rows, row, seed)),
            Arg::Tensors(vec![tensor(rows, &[2], seed), tensor(rows, &[], seed)]),
            Arg::Dict(vec![(key("a"), tensor(rows, &[3], seed)), (key("b"), tensor(rows, row, seed))]),
            Arg::Strings(words(rows, seed)),
            Arg::Int(3),
            Arg::Float(0.5),
            Arg::Bool(true),
            Arg::Str(Bytes::from_static(b"mode")),
            Arg::Default,
        ],
        ..Call::default()
    }
}

/// What a model returns that gives back what it was given.
fn echo(call: &Call) -> Output {
    let tensor = |tensor: &Tensor| Output::Tensor(tensor.clone());
    Output::Tuple(
        call.arguments
            .iter()
            .filter_map(|argument| match argument {
                Arg::Tensor(one) => Some((None, tensor(one))),
                Arg::Tensors(all) => {
                    Some((Some("list".to_owned()), Output::List(all.iter().map(tensor).collect())))
                }
                Arg::Dict(all) => {
                    let entries = all.iter().map(|(key, one)| (key.to_string(), tensor(one)));
                    Some((None, Output::Dict(entries.collect())))
                }
                Arg::Strings(data) => {
                    let count = strings(data).count() as i64;
                    Some((None, Output::Strings(Tensor::host(DataType::Bytes, vec![count], data.clone()))))
                }
                Arg::Int(_) | Arg::Float(_) | Arg::Bool(_) | Arg::Str(_) | Arg::Default => None,
            })
            .collect(),
    )
}

fn shown(output: &Output) -> String {
    match output {
        Output::Tensor(tensor) | Output::Strings(tensor) => {
            format!("{:?} {:?}", tensor.shape, elements(tensor))
        }
        Output::List(all) => all.iter().map(shown).collect(),
        Output::Tuple(all) => all.iter().map(|(name, one)| format!("{name:?}={}", shown(one))).collect(),
        Output::Dict(all) => all.iter().map(|(name, one)| format!("{name}={}", shown(one))).collect(),
        Output::Other(kind) => kind.clone(),
    }
}

proptest! {
    #[test]
    fn each_gets_its_own(rows in prop::collection::vec(1usize..5, 1..6), row in prop::collection::vec(0i64..4, 0..3), padding in 0usize..5) {
        let calls: Vec<Call> =
            rows.iter().enumerate().map(|(seed, rows)| call(*rows, &row, seed as u8 + 1)).collect();
        for other in &calls {
            prop_assert!(alike(&calls[0], other));
            prop_assert_eq!(traits(&calls[0], Some(rows[0] as i64)).key, traits(other, Some(other_rows(other))).key);
        }
        let total = rows.iter().sum::<usize>() + padding;
        let joined = gather(&calls.iter().collect::<Vec<_>>(), &rows, total, &mut lend_odd());
        prop_assert_eq!(traits(&joined, Some(total as i64)).rows, total);
        prop_assert!(traits(&joined, Some(total as i64)).key.is_some());
        let parts = scatter(&echo(&joined), &rows, total).unwrap();
        prop_assert_eq!(parts.len(), calls.len());
        for (part, call) in parts.iter().zip(&calls) {
            prop_assert_eq!(shown(part), shown(&echo(call)));
        }
    }
}

proptest! {
    #[test]
    fn what_stays_on_its_device_is_joined_there(
        states in prop::collection::vec((1usize..4, any::<bool>()), 1..6),
        row in prop::collection::vec(0i64..4, 0..3),
        padding in 0usize..4,
    ) {
        let kept = |(seed, (rows, on_device)): (usize, &(usize, bool))| {
            let state = tensor(*rows, &row, seed as u8 + 1);
            let state = if *on_device { there(state) } else { state };
            let input = Arg::Tensor(tensor(*rows, &[2], seed as u8));
            Call { arguments: vec![input, Arg::Tensor(state)], keep: Some([Kept::Index(1)].into()), shares: None }
        };
        let calls: Vec<Call> = states.iter().enumerate().map(kept).collect();
        let rows: Vec<usize> = states.iter().map(|(rows, _)| *rows).collect();
        let key = traits(&calls[0], Some(rows[0] as i64)).key;
        prop_assert!(key.is_some());
        for (call, rows) in calls.iter().zip(&rows) {
            prop_assert!(alike(&calls[0], call));
            prop_assert_eq!(traits(call, Some(*rows as i64)).key, key);
        }
        let sum: usize = rows.iter().sum();
        let total = sum + padding;
        let joined = gather(&calls.iter().collect::<Vec<_>>(), &rows, total, &mut lend_odd());
        prop_assert_eq!(joined.keep.as_deref(), calls[0].keep.as_deref());
        let Arg::Tensor(state) = &joined.arguments[1] else { panic!("{joined:?}") };
        prop_assert_eq!((state.shape[0] as usize, &state.shape[1..]), (total, &row[..]));
        match &state.value {
            Value::Joined(parts) => {
                let together: i64 = parts.iter().map(|part| part.shape[0]).sum();
                prop_assert_eq!((parts.len(), together as usize), (calls.len() + usize::from(padding > 0), total));
                for part in parts {
                    prop_assert_eq!(elements(part).len() as i64, part.shape.iter().product::<i64>());
                }
            }
            _ => prop_assert!(states.iter().all(|(_, on_device)| !on_device)),
        }
        let one_by_one: Vec<u8> = calls.iter().flat_map(|call| match &call.arguments[1] {
            Arg::Tensor(tensor) => elements(tensor),
            other => panic!("{other:?}"),
        }).collect();
        prop_assert_eq!(&elements(state)[..one_by_one.len()], &one_by_one[..]);
        prop_assert!(elements(state)[one_by_one.len()..].iter().all(|byte| *byte == 0));
        // What a backend would have kept of it.
        let Arg::Tensor(elsewhere) = joined.arguments[0].clone() else { panic!("{joined:?}") };
        let whole = Tensor::host(state.data_type, state.shape.clone(), elements(state).into());
        let answer = Output::Tuple(vec![(None, Output::Tensor(elsewhere)), (None, Output::Tensor(there(whole)))]);
        for (part, call) in scatter(&answer, &rows, total).unwrap().iter().zip(&calls) {
            let Output::Tuple(part) = part else { panic!("{part:?}") };
            let (Output::Tensor(output), Arg::Tensor(input)) = (&part[0].1, &call.arguments[0]) else {
                panic!("{part:?}")
            };
            prop_assert_eq!((&output.shape, output.bytes()), (&input.shape, input.bytes()));
            let Output::Tensor(kept) = &part[1].1 else { panic!("{part:?}") };
            prop_assert!(matches!(kept.value, Value::Device(_)));
            let Arg::Tensor(state) = &call.arguments[1] else { panic!("{call:?}") };
            prop_assert_eq!((&kept.shape, elements(kept)), (&state.shape, elements(state)));
        }
    }
}

#[test]
fn who_has_all_rows_has_the_tensor_itself() {
    let kept = there(tensor(3, &[2], 1));
    let parts = scatter(&Output::Tensor(kept.clone()), &[3], 3).unwrap();
    let [Output::Tensor(Tensor { value: Value::Device(part), .. })] = &parts[..] else { panic!("{parts:?}") };
    let Value::Device(kept) = kept.value else { panic!() };
    assert!(Arc::ptr_eq(part, &kept));
}

#[test]
fn what_is_on_a_device_counts_no_bytes_and_must_have_the_rows() {
    let state = |rows| Call { arguments: vec![Arg::Tensor(there(tensor(rows, &[3], 1)))], ..Call::default() };
    let two = traits(&state(2), Some(2));
    assert_eq!((two.bytes, two.rows), (0, 2));
    assert!(two.key.is_some());
    assert_eq!(traits(&state(1), Some(2)).key, None);
    let joined = Tensor { value: Value::Joined(vec![tensor(2, &[3], 1)]), ..tensor(2, &[3], 1) };
    let joined = Call { arguments: vec![Arg::Tensor(joined)], ..Call::default() };
    assert_eq!(traits(&joined, Some(2)).key, None, "it has been a batch already");
}

#[test]
fn who_keeps_something_else_is_not_joined() {
    let keeping = |keep: &[Kept]| Call { keep: Some(keep.into()), ..call(2, &[3], 1) };
    let one = keeping(&[Kept::Index(1)]);
    for other in [call(2, &[3], 1), keeping(&[Kept::Index(2)]), keeping(&[Kept::Name("state".into())])] {
        assert!(!alike(&one, &other));
        assert_ne!(traits(&one, Some(2)).key, traits(&other, Some(2)).key);
    }
    assert!(alike(&one, &keeping(&[Kept::Index(1)])));
}

fn other_rows(call: &Call) -> i64 {
    match &call.arguments[0] {
        Arg::Tensor(tensor) => tensor.shape[0],
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_differs_in_more_than_its_rows_is_not_joined() {
    let one = call(2, &[3], 1);
    let changes: [fn(&mut Vec<Arg>); 8] = [
        |args| args[0] = Arg::Tensor(tensor(2, &[4], 1)),
        |args| args[0] = Arg::Tensor(Tensor { data_type: DataType::Int8, ..tensor(2, &[3], 1) }),
        |args| args[0] = Arg::Default,
        |args| args[1] = Arg::Tensors(vec![tensor(2, &[2], 1)]),
        |args| args[2] = Arg::Dict(vec![("a".into(), tensor(2, &[3], 1)), ("c".into(), tensor(2, &[3], 1))]),
        |args| args[4] = Arg::Int(4),
        |args| args[5] = Arg::Float(-0.5),
        |args| args[7] = Arg::Str(Bytes::from_static(b"node")),
    ];
    for (index, change) in changes.iter().enumerate() {
        let mut other = one.clone();
        change(&mut other.arguments);
        assert!(!alike(&one, &other), "{index}");
        assert_ne!(traits(&one, Some(2)).key, traits(&other, Some(2)).key, "{index}");
    }
}

#[test]
fn what_has_no_rows_runs_alone() {
    assert_eq!(traits(&call(2, &[3], 1), None).key, None, "its model has no batch dimension");
    let mut odd = call(2, &[3], 1);
    odd.arguments[3] = Arg::Strings(words(3, 1));
    assert_eq!(traits(&odd, Some(2)).key, None, "three strings for two rows");
    let traits = traits(&call(2, &[3], 1), Some(2));
    assert_eq!((traits.rows, traits.bytes), (2, 6 + 4 + 2 + 6 + 6 + words(2, 1).len() + 4));
}

#[test]
fn an_answer_of_other_rows_than_the_batch_is_refused() {
    for (output, says) in [
        (Output::Tensor(tensor(3, &[2], 1)), "shape [3,2] for a batch of 4"),
        (Output::Tensor(Tensor::host(DataType::Uint8, vec![], vec![1].into())), "shape [] for a batch of 4"),
        (Output::Tuple(vec![(None, Output::Tensor(tensor(5, &[], 1)))]), "shape [5] for a batch of 4"),
        (
            Output::Strings(Tensor::host(DataType::Bytes, vec![1], words(1, 1))),
            "strings of shape [1] for a batch of 4",
        ),
    ] {
        assert!(scatter(&output, &[1, 3], 4).unwrap_err().contains(says), "{says}");
    }
}
