//! What is remembered of runs, and what is chosen because of it.

use proptest::prelude::*;

use super::*;

fn room(rows: usize, cores: usize) -> Room {
    Room { least: 1, rows, backlog: rows, cores, all_cores: 2, runs: 2, shared: false }
}

/// Knows everything of a model exactly.
fn known(cost: impl Fn(usize, usize) -> f64) -> Costs {
    let mut costs = Costs::default();
    for threads in [1, 2] {
        for power in 0..7 {
            let rows = 1 << power;
            costs.record(6, rows, threads, Duration::from_secs_f64(cost(rows, threads) / 1e6));
        }
    }
    costs
}

#[test]
fn more_threads_and_larger_batches_are_chosen_where_they_pay() {
    let mlp = known(|rows, threads| (12 + 2 * rows) as f64 * if threads > 1 { 1.3 } else { 1.0 });
    let alone = mlp.best(6, &room(1, 2));
    assert_eq!((alone.rows, alone.threads), (1, 1));
    // Two workers share what is there: two batches of half of it are done sooner than one of all.
    let many = mlp.best(6, &room(64, 2));
    assert_eq!((many.rows, many.threads), (32, 1));
    let resnet = known(|rows, threads| {
        rows as f64 * if rows > 8 { 60.0 } else { 44.0 } / if threads > 1 { 2.2 } else { 1.0 }
    });
    let alone = resnet.best(6, &room(1, 2));
    assert_eq!((alone.rows, alone.threads), (1, 2));
    let many = resnet.best(6, &room(64, 2));
    assert!(many.rows <= 8 && many.threads == 2, "{many:?}");
    // Where only one core is free, one it is.
    assert_eq!(resnet.best(6, &room(64, 1)).threads, 1);
}

#[test]
fn no_batch_is_thought_of_that_is_smaller_than_the_request_that_comes_first() {
    // One row at a time would be done by two runs side by side, eight at once by one on both cores.
    let model = known(|rows, threads| match (rows, threads) {
        (8, 1) => 200.0,
        (rows, 1) => rows as f64 * 10.0,
        (rows, _) => rows as f64 * 9.0,
    });
    assert_eq!(model.best(6, &room(8, 2)).threads, 1);
    let eight = model.best(6, &Room { least: 8, ..room(8, 2) });
    assert_eq!((eight.rows, eight.threads), (8, 2));
}

#[test]
fn beside_other_models_batches_are_smaller_where_that_costs_little() {
    // A row takes 30 ms alone and 26.5 in a batch of 8.
    let model = known(|rows, _| rows as f64 * 26.0 + 4.0);
    let (mine, ours) = (room(8, 1), Room { shared: true, ..room(8, 1) });
    assert_eq!((model.best(6, &mine).rows, model.best(6, &ours).rows), (8, 1));
    // One run on all cores leaves a worker to the others, two runs side by side do not.
    let model = known(|rows, threads| rows as f64 * if threads > 1 { 20.0 } else { 36.0 } + 4.0);
    assert_eq!(
        (model.best(6, &room(8, 2)).threads, model.best(6, &Room { shared: true, ..room(8, 2) }).threads),
        (1, 2)
    );
    // Where a batch brings much, it is as large as ever.
    let model = known(|_, _| 30.0);
    assert_eq!((model.best(6, &mine).rows, model.best(6, &ours).rows), (8, 8));
}

#[test]
fn what_is_unknown_is_tried() {
    let mut costs = Costs::default();
    assert_eq!(costs.best(6, &room(5, 2)), Choice { rows: 1, threads: 2, takes: None, rate: 0.0 });
    costs.record(6, 1, 1, Duration::from_millis(10));
    let next = costs.best(6, &room(1, 2));
    assert_eq!(next.threads, 2, "it may be twice as fast");
    costs.record(6, 1, 2, Duration::from_millis(12));
    assert_eq!(costs.best(6, &room(1, 2)).threads, 1, "it is not");
    // Now and then it is tried again: perhaps something was in its way.
    let start = Instant::now();
    let tries = (0..2000).filter(|run| {
        let next = costs.next(6, &room(1, 2), start + Duration::from_millis(10 * run));
        costs.record(6, 1, next.threads, Duration::from_millis(if next.threads == 1 { 10 } else { 12 }));
        next.threads == 2
    });
    assert!((10..40).contains(&tries.count()), "one in fifty, one in a second");
}

#[test]
fn a_run_that_was_interrupted_changes_little_and_a_change_is_learned() {
    let mut costs = Costs::default();
    let mut record = |millis: u64| {
        costs.record(6, 1, 1, Duration::from_millis(millis));
        costs.estimate(6, 1, 1).unwrap()
    };
    record(10);
    assert!(record(5000) < 0.0145, "one wild run");
    let _ = (0..50).map(|_| record(10)).last();
    assert!((0.0099..0.0101).contains(&record(10)));
    let _ = (0..50).map(|_| record(20)).last();
    assert!((0.0198..0.0202).contains(&record(20)), "it has become slower");
}

proptest! {
    /// Whatever has been measured: what is chosen fits what there is, and lies between what is known where
    /// both sides are known.
    #[test]
    fn a_choice_fits_the_room(
        runs in prop::collection::vec((0u8..40, 1usize..200, 1usize..9, 1u64..1_000_000), 0..60),
        rows in 1usize..200, more in 0usize..1000, cores in 1usize..9, extra in 0usize..9, at_once in 1usize..9, size in 0u8..40,
    ) {
        let mut costs = Costs::default();
        for (size, rows, threads, micros) in runs {
            costs.record(size, rows, threads, Duration::from_micros(micros));
        }
        let room = Room { least: 1, rows, backlog: rows + more, cores, all_cores: cores + extra, runs: at_once, shared: false };
        for choice in [costs.best(size, &room), costs.next(size, &room, Instant::now())] {
            prop_assert!((1..=rows).contains(&choice.rows));
            prop_assert!((1..=cores).contains(&choice.threads));
            prop_assert!(choice.takes.is_none_or(|takes| takes > 0.0 && takes.is_finite()));
            prop_assert!(choice.rate >= 0.0 && choice.rate.is_finite());
        }
    }
}
