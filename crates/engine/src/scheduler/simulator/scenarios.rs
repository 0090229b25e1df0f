//! What the defaults are worth, against formulas of models that were measured.

use super::*;

/// A small MLP: batches are cheap, threads are a loss.
const MLP: Cost = |rows, threads| (12.0 + 2.0 * rows as f64) * if threads > 1 { 1.35 } else { 1.0 } / 1e6;
/// ResNet-18: best at 8 rows, and better on two threads than two at once on one.
const RESNET: Cost = |rows, threads| {
    let row = if rows <= 8 { 44.0 } else { 50.0 };
    (3.0 + row * rows as f64) / 1e3 / if threads > 1 { 2.2 } else { 1.0 }
};
/// A text encoder: two runs on one thread each are better than one on two.
const ENCODER: Cost = |rows, threads| (4.0 + 31.0 * rows as f64) / 1e3 / if threads > 1 { 1.8 } else { 1.0 };

fn policy(limit: usize, threads: Option<usize>) -> Policy {
    Policy {
        class: Class::Traffic,
        placements: vec![Placement { device: 0, limit }],
        placed: threads.is_some(),
        levels: vec![Level { limit: 4096, timeout: None, delays: false, own_timeout: false }],
        max_rows: 64,
        threads,
        ..Policy::background(0)
    }
}

/// Answers per second and the median latency, after a time to learn.
fn measured(policy: Policy, cost: Cost, in_flight: usize) -> (f64, f64) {
    let mut world = World::new(&[(2, Some(2))]);
    world.closed_loop = true;
    let model = world.model(policy, cost);
    (0..in_flight).for_each(|_| world.send(model, 0.0, |_| ()));
    let run = cost(8, 1) * 100.0;
    world.run(run);
    let (before, latencies) = (world.models[model].answered, world.models[model].latencies.len());
    world.run(run * 4.0);
    let mut last = world.models[model].latencies[latencies..].to_vec();
    last.sort_by(f64::total_cmp);
    ((world.models[model].answered - before) as f64 / (run * 4.0), last[last.len() / 2])
}

#[test]
fn the_default_is_as_good_as_the_best_that_could_be_configured() {
    // What the MLP does with fewer in flight is not worth waking a second worker for.
    for (name, cost, in_flight) in [("mlp", MLP, 1024), ("resnet", RESNET, 64), ("encoder", ENCODER, 64)] {
        let tuned: Vec<_> = [(1, 1), (1, 2), (2, 1), (2, 2)]
            .map(|(limit, threads)| {
                let policy = || policy(limit, Some(threads));
                (measured(policy(), cost, in_flight).0, measured(policy(), cost, 1).1)
            })
            .to_vec();
        let most = tuned.iter().map(|(rate, _)| *rate).fold(0.0, f64::max);
        let least = tuned.iter().map(|(_, latency)| *latency).fold(f64::MAX, f64::min);
        let (rate, _) = measured(policy(2, None), cost, in_flight);
        let (_, latency) = measured(policy(2, None), cost, 1);
        assert!(rate >= most * 0.95, "{name}: {rate} of {most} answers per second");
        assert!(latency <= least / 0.95, "{name}: {latency} where {least} seconds are possible");
    }
}

#[test]
fn at_twice_the_capacity_most_of_it_is_answered_in_time() {
    let (capacity, _) = measured(policy(2, None), RESNET, 64);
    let mut world = World::new(&[(2, Some(2))]);
    let model = world.model(policy(2, None), RESNET);
    let seconds = 60.0;
    let count = (capacity * 2.0 * seconds) as usize;
    for index in 0..count {
        let after = index as f64 / (capacity * 2.0);
        world.send(model, after, |call| call.deadline = Some(call.arrived + Duration::from_secs(2)));
    }
    world.finish();
    let in_time = world.models[model].latencies.iter().filter(|latency| **latency <= 2.0).count();
    let goodput = in_time as f64 / seconds;
    assert!(goodput >= capacity * 0.9, "{goodput} of {capacity} per second");
    let late = world.models[model].latencies.len() - in_time;
    assert!(late * 50 < count, "{late} were run for nothing");
}

#[test]
fn beside_a_saturating_model_another_waits_for_a_batch_at_most() {
    let mut world = World::new(&[(2, Some(2))]);
    let greedy = world.model(policy(2, None), RESNET);
    let modest = world.model(policy(2, None), MLP);
    for index in 0..20_000 {
        world.send(greedy, index as f64 / 2000.0, |_| ());
    }
    for index in 0..900 {
        world.send(modest, 5.0 + index as f64 / 100.0, |_| ());
    }
    world.run(60.0);
    let mut latencies = world.models[modest].latencies.clone();
    assert_eq!(latencies.len(), 900);
    latencies.sort_by(f64::total_cmp);
    let p99 = latencies[latencies.len() * 99 / 100];
    // Where no worker is left one batch has to end first: the largest that pays on one thread.
    assert!(p99 <= 3.0 * MLP(1, 1) + RESNET(16, 1), "{p99} s");
}

#[test]
fn models_share_a_device_by_their_weights() {
    let mut world = World::new(&[(1, None)]);
    let weights = [1, 3];
    let models = weights.map(|weight| world.model(Policy { weight, max_rows: 1, ..policy(1, None) }, RESNET));
    for index in 0..4000 {
        for model in models {
            world.send(model, index as f64 / 1000.0, |_| ());
        }
    }
    world.run(30.0);
    let [one, three] = models.map(|model| world.models[model].answered as f64);
    assert!((2.8..3.2).contains(&(three / one)), "{one} and {three}");
}

#[test]
fn a_delayed_batch_is_run_when_it_is_full_or_when_it_is_time() {
    let mut world = World::new(&[(1, None)]);
    let delay = Duration::from_millis(10);
    let batching = Policy { max_delay: delay, max_rows: 4, ..policy(1, None) };
    let model = world.model(batching, |_, _| 0.001);
    (0..3).for_each(|_| world.send(model, 0.0, |_| ()));
    world.run(0.009);
    assert_eq!(world.models[model].answered, 0, "it waits for company");
    world.run(0.0025);
    assert_eq!(world.models[model].answered, 3, "it has waited long enough");
    (0..5).for_each(|_| world.send(model, 0.0, |_| ()));
    world.run(0.0015);
    assert_eq!(world.models[model].answered, 7, "four are enough, one waits");
    world.finish();
    assert_eq!(world.models[model].answered, 8);
}

#[test]
fn a_latency_target_waits_while_that_pays() {
    let answered_by = |gap: f64| {
        let mut world = World::new(&[(1, None)]);
        let target = Some(Duration::from_millis(50));
        let model = world.model(Policy { latency_target: target, ..policy(1, None) }, |rows, _| {
            0.004 + 0.0001 * rows as f64
        });
        for index in 0..2000 {
            world.send(model, index as f64 * gap, |_| ());
        }
        world.finish();
        let worst = world.models[model].latencies.iter().copied().fold(0.0, f64::max);
        assert!(worst <= 0.055, "{worst} s");
        let mut all = world.models[model].latencies.clone();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let (quick, slow) = (answered_by(0.0005), answered_by(0.1));
    assert!(slow <= 0.0042, "alone nobody waits: {slow} s");
    assert!(quick > 0.01, "in company it pays to wait: {quick} s");
}
