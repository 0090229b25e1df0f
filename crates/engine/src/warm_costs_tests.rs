//! Which runs are measured, and when it is enough.

use std::{cell::RefCell, collections::BTreeMap, num::NonZeroU32};

use bytes::Bytes;

use super::*;
use crate::{
    DataType,
    fixtures::{config, named},
    padding::Lengths,
    value::{Arg, Tensor},
};

fn checked(rows: i64) -> Checked {
    let data = Bytes::from(vec![0; 16 * rows as usize]);
    let tensor = Tensor::host(DataType::Fp32, vec![rows, 4], data);
    let call = Call { arguments: vec![Arg::Tensor(tensor)], ..Call::default() };
    Checked { call, batch: Some(rows), lengths: Lengths::default() }
}

/// What is found when a run costs `cost` microseconds.
fn found(
    config: &ModelConfig,
    cores: usize,
    cost: impl Fn(usize, usize) -> u64,
) -> BTreeMap<(usize, usize), u64> {
    let (checked, all) = (checked(1), RefCell::new(BTreeMap::new()));
    Costing::new(config, &checked, cores).measure(
        |call, rows, threads| {
            let Some(Arg::Tensor(tensor)) = call.arguments.first() else { panic!("a tensor") };
            assert_eq!((tensor.shape[0], tensor.bytes().len()), (rows.unwrap(), 16 * rows.unwrap() as usize));
            Some(Duration::from_micros(cost(rows.unwrap() as usize, threads)))
        },
        |size, rows, threads, took| {
            assert_eq!(size, 4);
            all.borrow_mut().insert((rows, threads), took.as_micros() as u64);
        },
    );
    all.into_inner()
}

#[test]
fn batches_grow_while_that_pays_on_each_number_of_threads() {
    let config = config(64, vec![named("x", DataType::Fp32, &[4])], vec![]);
    // On one thread a batch of 4 is as good as any, on two there is no end to it. The largest may come in any case.
    let found = found(&config, 2, |rows, threads| if threads == 1 { 100 * rows.max(4) as u64 } else { 100 });
    let keys: Vec<_> = found.keys().copied().collect();
    assert_eq!(
        keys,
        [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2), (16, 2), (32, 2), (64, 1), (64, 2)]
    );
}

#[test]
fn what_cannot_be_chosen_is_not_measured() {
    let mut config = config(8, vec![named("x", DataType::Fp32, &[4])], vec![]);
    config.threads = NonZeroU32::new(3);
    assert!(found(&config, 2, |_, _| 10).keys().all(|(_, threads)| *threads == 3));
    config.batching = None;
    assert_eq!(found(&config, 2, |_, _| 10), BTreeMap::new());
    config.threads = None;
    let keys: Vec<_> = found(&config, 4, |_, _| 10).into_keys().collect();
    assert_eq!(keys, [(1, 1), (1, 2), (1, 4)]);
}
