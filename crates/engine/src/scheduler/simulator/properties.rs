//! What holds whatever comes.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
struct Sent {
    model: usize,
    after: u32,
    rows: usize,
    kind: u8,
    priority: u64,
    deadline: Option<u32>,
    timeout: Option<u32>,
}

fn sent() -> impl Strategy<Value = Sent> {
    let times =
        (0u32..3000, prop::option::weighted(0.2, 1u32..4000), prop::option::weighted(0.2, 1u32..4000));
    (0usize..4, times, 1usize..5, 0u8..3, 0u64..5).prop_map(
        |(model, (after, deadline, timeout), rows, kind, priority)| Sent {
            model,
            after,
            rows,
            kind,
            priority,
            deadline,
            timeout,
        },
    )
}

fn level() -> impl Strategy<Value = Level> {
    (1usize..20, prop::option::weighted(0.3, 1u64..4000), any::<bool>(), any::<bool>()).prop_map(
        |(limit, timeout, delays, own_timeout)| Level {
            limit,
            timeout: timeout.map(Duration::from_micros),
            delays,
            own_timeout,
        },
    )
}

fn policy(devices: usize) -> impl Strategy<Value = Policy> {
    let places = prop::collection::vec(1usize..3, devices);
    let levels = prop::collection::vec(level(), 1..4);
    let batching =
        (1usize..9, prop_oneof![Just(0u64), 1u64..3000], prop::collection::btree_set(2usize..8, 0..3));
    (
        places,
        levels,
        batching,
        0usize..3,
        prop::option::weighted(0.2, 1u64..5000),
        1u32..4,
        prop::option::weighted(0.2, 1usize..3),
    )
        .prop_map(|(limits, levels, (max_rows, delay, preferred), default, target, weight, threads)| {
            Policy {
                class: Class::Traffic,
                placements: limits
                    .into_iter()
                    .enumerate()
                    .map(|(device, limit)| Placement { device, limit })
                    .collect(),
                placed: true,
                default_priority: default.min(levels.len() - 1),
                levels,
                max_rows,
                max_delay: Duration::from_micros(delay),
                preferred: preferred.into_iter().filter(|size| *size <= max_rows).collect(),
                latency_target: target.map(Duration::from_micros),
                threads: threads.map(|_| 1),
                weight,
            }
        })
}

const COSTS: [Cost; 3] = [
    |rows, threads| (20.0 + 10.0 * rows as f64) / 1e6 * if threads > 1 { 1.3 } else { 1.0 },
    |rows, threads| (900.0 * rows as f64) / 1e6 / threads as f64,
    |rows, threads| {
        (50.0 + 300.0 * rows as f64 * if rows > 4 { 2.0 } else { 1.0 }) / 1e6 / (threads as f64).sqrt()
    },
];

fn world() -> impl Strategy<Value = (Vec<(usize, Option<usize>)>, Vec<Policy>)> {
    let device = prop_oneof![
        (1usize..4).prop_map(|cores| (cores, Some(cores))),
        (1usize..3).prop_map(|workers| (workers, None)),
    ];
    prop::collection::vec(device, 1..4).prop_flat_map(|devices| {
        let policies = prop::collection::vec(policy(devices.len()), 1..4);
        (Just(devices), policies)
    })
}

proptest! {
    /// Every request ends exactly once, in time; bounds, kinds, priorities and limits hold; no worker idles
    /// in vain. (What is checked after each event is in [`World::check`].)
    #[test]
    fn whatever_comes_every_request_ends_once_and_every_bound_holds(
        (devices, policies) in world(),
        requests in prop::collection::vec(sent(), 1..200),
    ) {
        let mut world = World::new(&devices);
        for (index, policy) in policies.iter().enumerate() {
            world.model(policy.clone(), COSTS[index % COSTS.len()]);
        }
        let mut after = 0.0;
        for sent in &requests {
            let model = sent.model % policies.len();
            after += f64::from(sent.after) / 1e7;
            world.send(model, after, |call| {
                call.rows = sent.rows.min(policies[model].max_rows);
                (call.kind, call.priority) = (Some(sent.kind), sent.priority);
                call.deadline = sent.deadline.map(|after| call.arrived + Duration::from_micros(after.into()));
                call.timeout = sent.timeout.map(|after| Duration::from_micros(after.into()));
            });
        }
        world.finish();
        for (id, end) in &world.ends {
            if let End::Died(Fate::TimedOut { waited }, at) = end {
                prop_assert!(*at <= world.now && *waited > Duration::ZERO, "{id}");
            }
        }
    }

    /// One request of each of many arrivals at once never makes a device more than one request busier than
    /// another that could have taken it.
    #[test]
    fn devices_are_balanced_within_one_request(gpus in 2usize..5, requests in 1usize..40, gap in 1u32..100) {
        let devices = vec![(2, None); gpus];
        let mut world = World::new(&devices);
        let placements = (0..gpus).map(|device| Placement { device, limit: 2 }).collect();
        let policy = Policy {
            class: Class::Traffic,
            placements,
            levels: vec![Level { limit: 1000, timeout: None, delays: false, own_timeout: false }],
            ..Policy::background(0)
        };
        let model = world.model(policy, |_, _| 1.0);
        for index in 0..requests.min(2 * gpus) {
            world.send(model, index as f64 * f64::from(gap) / 1e6, |_| ());
        }
        world.run(0.5);
        let loads: Vec<usize> = world.scheduler.load().iter().map(|device| device.in_flight).collect();
        prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1, "{loads:?}");
        world.finish();
    }
}
