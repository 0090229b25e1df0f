//! Live versions over real threads: the right answer for each caller, and every way to get none.

use std::{collections::BTreeMap, time::Duration};

use sconce_repository::{InstanceGroup, InstanceKind, Labels, TensorConfig};

use super::*;
use crate::{
    DataType,
    backend::Device,
    fixtures::{
        Answer, House, assert_invalid, config, floats, given_up, input, named, request, value, waiting, zeros,
    },
    value::strings,
};

fn due(value: f32, after: Duration) -> Request {
    Request { deadline: Some(Instant::now() + after), ..request(value) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_many_callers_gets_its_own_answer() {
    let house = House::new(3, 2);
    let model = house.model("", config(0, Vec::new(), Vec::new()), &[(0, 3), (1, 2), (2, 2)]);
    let callers: Vec<_> = (0..600)
        .map(|caller| {
            let model = Arc::clone(&model);
            tokio::spawn(async move {
                for turn in 0..3 {
                    let sent = (caller * 3 + turn) as f32;
                    assert_eq!(value(model.infer(request(sent)).await), sent);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(house.started(), 1800);
}

#[tokio::test]
async fn a_full_queue_is_an_answer() {
    let house = House::new(1, 0);
    let model = house.on_cpu("gate");
    let mut calls = vec![waiting(&model, request(0.0)).await];
    for sent in 1..=QUEUE_LIMIT {
        calls.push(waiting(&model, request(sent as f32)).await);
    }
    let full =
        Error::QueueFull { model: "m".to_owned(), limit: QUEUE_LIMIT, priority: None, retry_after: None };
    assert_eq!(model.infer(request(-1.0)).await.unwrap_err(), full);
    // Whoever leaves makes room: in a queue as long as this one, at the next look.
    drop(calls.pop());
    house.pool.sweep();
    calls.push(waiting(&model, request(QUEUE_LIMIT as f32)).await);
    house.fake.open_gate();
    for (sent, call) in calls.into_iter().enumerate() {
        assert_eq!(value(call.await), sent as f32);
    }
}

#[tokio::test]
async fn what_has_expired_is_not_run() {
    let house = House::new(1, 0);
    let model = house.on_cpu("gate");
    let late = model.infer(due(0.0, Duration::ZERO)).await.unwrap_err();
    assert_eq!(late, Error::DeadlineExceeded { stage: "passed before it was queued" });
    let held = waiting(&model, request(1.0)).await;
    let late = model.infer(due(2.0, Duration::from_millis(5))).await.unwrap_err();
    assert_eq!(late, Error::DeadlineExceeded { stage: "passed while it was queued or running" });
    let patient = waiting(&model, due(3.0, Duration::from_secs(600))).await;
    house.fake.open_gate();
    assert_eq!((value(held.await), value(patient.await)), (1.0, 3.0));
    assert_eq!(house.started(), 2);
}

#[tokio::test]
async fn a_deadline_binds_while_the_model_runs() {
    let house = House::new(1, 0);
    let model = house.on_cpu("gate");
    let call = waiting(&model, due(1.0, Duration::from_millis(5))).await;
    house.fake.wait_started(1);
    assert!(matches!(call.await, Err(Error::DeadlineExceeded { .. })));
    house.fake.open_gate();
    assert_eq!(value(model.infer(request(2.0)).await), 2.0);
}

/// The queue may find out before the caller's timer does.
#[tokio::test]
async fn a_call_that_the_queue_drops_has_expired_and_is_not_lost() {
    let house = House::new(1, 0);
    let model = house.on_cpu("gate");
    let held = waiting(&model, request(1.0)).await;
    let deadline = Instant::now() + Duration::from_millis(5);
    let call = waiting(&model, Request { deadline: Some(deadline), ..request(2.0) }).await;
    // On this thread, so that its timer cannot fire.
    while Instant::now() < deadline {
        std::hint::spin_loop();
    }
    house.pool.sweep();
    assert_eq!(given_up(&model), [("deadline", "queued", 1)]);
    let late = call.await.unwrap_err();
    assert_eq!(late, Error::DeadlineExceeded { stage: "passed while it was queued or running" });
    house.fake.open_gate();
    assert_eq!(value(held.await), 1.0);
}

#[tokio::test]
async fn a_dropped_call_is_skipped_in_the_queue() {
    let house = House::new(1, 0);
    let model = house.on_cpu("gate");
    let held = waiting(&model, request(1.0)).await;
    let dropped = waiting(&model, request(2.0)).await;
    let next = waiting(&model, request(3.0)).await;
    drop(dropped);
    house.fake.open_gate();
    assert_eq!((value(held.await), value(next.await)), (1.0, 3.0));
    assert_eq!(house.started(), 2);
    assert_eq!(given_up(&model), [("cancelled", "queued", 1)]);
}

#[tokio::test]
async fn a_dropped_call_that_runs_is_finished_and_forgotten() {
    let house = House::new(1, 0);
    let model = house.on_cpu("gate");
    let dropped = waiting(&model, request(1.0)).await;
    house.fake.wait_started(1);
    drop(dropped);
    let next = waiting(&model, request(2.0)).await;
    house.fake.open_gate();
    assert_eq!(value(next.await), 2.0);
    assert_eq!((house.started(), house.fake.most_at_once()), (2, 1));
}

#[tokio::test]
async fn a_panic_costs_one_answer_and_no_worker() {
    let house = House::new(1, 0);
    let (bad, good) = (house.on_cpu("panic"), house.on_cpu(""));
    for sent in [1.0, 2.0, 3.0] {
        assert_eq!(bad.infer(request(sent)).await.unwrap_err(), Error::WorkerLost { model: "m".to_owned() });
        assert_eq!(value(good.infer(request(sent)).await), sent);
    }
}

#[tokio::test]
async fn a_model_that_throws_is_quoted() {
    let house = House::new(1, 0);
    let model = house.on_cpu("fail index 7 is out of range");
    let message = "index 7 is out of range".to_owned();
    assert_eq!(model.infer(request(1.0)).await.unwrap_err(), Error::Model { model: "m".to_owned(), message });
}

#[tokio::test]
async fn a_wrong_request_is_refused_before_it_is_queued() {
    let house = House::new(1, 0);
    let model = house.on_cpu("gate");
    assert_invalid(model.infer(Request::default()).await, &["missing required input(s) ['x']"]);
    let wanted = Wanted { name: "y".to_owned(), classes: 0 };
    let twice = Request { outputs: vec![wanted.clone(), wanted], ..request(1.0) };
    assert_invalid(model.infer(twice).await, &["'y' is requested more than once"]);
    assert_eq!(house.started(), 0);
}

fn devices(counts: &[(Device, usize)]) -> BTreeMap<Device, usize> {
    counts.iter().copied().collect()
}

#[tokio::test]
async fn the_load_spreads_by_runs_in_flight_of_all_models() {
    use Device::Gpu;
    let house = House::new(1, 3);
    let unbatched = || config(0, Vec::new(), Vec::new());
    let pinned = house.model("gate", unbatched(), &[(2, 2)]);
    let spread = house.model("gate", unbatched(), &[(1, 2), (2, 2), (3, 2)]);
    let mut calls = vec![waiting(&pinned, request(0.0)).await];
    for (at, expected) in [
        (2, devices(&[(Gpu(0), 1), (Gpu(1), 1), (Gpu(2), 1)])),
        (5, devices(&[(Gpu(0), 2), (Gpu(1), 2), (Gpu(2), 2)])),
    ] {
        while calls.len() <= at {
            calls.push(waiting(&spread, request(calls.len() as f32)).await);
        }
        house.fake.wait_started(at + 1);
        assert_eq!(house.fake.started(), expected);
    }
    // All workers are busy: it waits, and is answered by whichever is free first.
    calls.push(waiting(&spread, request(6.0)).await);
    house.fake.open_gate();
    for (sent, call) in calls.into_iter().enumerate() {
        assert_eq!(value(call.await), sent as f32);
    }
}

#[tokio::test]
async fn instances_are_a_limit() {
    for limit in [1, 3] {
        let house = House::new(4, 0);
        let model = house.model("gate", config(0, Vec::new(), Vec::new()), &[(0, limit)]);
        let mut calls = Vec::new();
        for sent in 0..20 {
            calls.push(waiting(&model, request(sent as f32)).await);
        }
        house.fake.wait_started(limit);
        // The worker that is left is there for others.
        let other = house.on_cpu("").infer(due(-1.0, Duration::from_secs(60))).await;
        assert_eq!(value(other), -1.0);
        house.fake.open_gate();
        for (sent, call) in calls.into_iter().enumerate() {
            assert_eq!(value(call.await), sent as f32);
        }
        assert!(house.fake.most_at_once() <= limit + 1, "{}", house.fake.most_at_once());
    }
}

#[tokio::test]
async fn a_version_that_goes_while_its_run_is_on_leaves_the_worker_well() {
    let house = House::new(1, 0);
    let (model, other) = (house.on_cpu("gate"), house.on_cpu(""));
    drop(waiting(&model, request(1.0)).await);
    house.fake.wait_started(1);
    drop(model);
    let next = waiting(&other, request(2.0)).await;
    house.fake.open_gate();
    assert_eq!(value(next.await), 2.0);
}

#[tokio::test]
async fn classes_by_request() {
    let house = House::new(1, 0);
    let labels =
        Labels { file: "labels.txt".to_owned(), lines: ["cat", "dog"].map(str::to_owned).to_vec().into() };
    let scores = TensorConfig { labels: Some(labels), ..named("scores", DataType::Fp32, &[3]) };
    let group = InstanceGroup { kind: InstanceKind::Cpu, count: std::num::NonZeroU32::MIN, gpus: Vec::new() };
    let config = ModelConfig {
        instances: vec![group],
        ..config(4, vec![named("x", DataType::Fp32, &[3])], vec![scores])
    };
    let model = house.model("", config, &[(0, 1)]);
    let ask = |classes| Request {
        inputs: vec![input("x", floats(&[2, 3], &[0.5, 2.0, 1.0, 3.0, 0.0, 9.0]))],
        outputs: vec![Wanted { name: "scores".to_owned(), classes }],
        ..Request::default()
    };
    let top = model.infer(ask(2)).await.unwrap().remove(0).tensor;
    let shown: Vec<_> = strings(top.bytes()).map(|text| std::str::from_utf8(text).unwrap()).collect();
    assert_eq!((top.data_type, &top.shape[..]), (DataType::Bytes, &[2, 2][..]));
    assert_eq!(shown, ["2.000000:1:dog", "1.000000:2", "9.000000:2", "3.000000:0:cat"]);
    let whole = model.infer(ask(0)).await.unwrap().remove(0).tensor;
    assert_eq!((whole.data_type, &whole.shape[..]), (DataType::Fp32, &[2, 3][..]));
    let wrong = Request { inputs: vec![input("x", zeros(DataType::Fp32, &[5, 3]))], ..ask(2) };
    assert_invalid(model.infer(wrong).await, &["batch-size must be <= 4"]);
}

#[tokio::test]
async fn other_limits_take_effect_at_once_and_nobody_who_waits_notices() {
    let house = House::new(4, 0);
    let old = house.model("gate", config(0, Vec::new(), Vec::new()), &[(0, 1)]);
    let mut calls: Vec<Answer<'_>> = Vec::new();
    for sent in 0..6 {
        calls.push(waiting(&old, request(sent as f32)).await);
    }
    house.fake.wait_started(1);
    let changed = ModelConfig { threads: std::num::NonZeroU32::new(3), ..(*old.config).clone() };
    let binding = Binding::new(&changed, &old.schema).unwrap();
    let new = old.reconfigured(Arc::new(changed), binding, &[Placement { device: 0, limit: 3 }]).unwrap();
    house.fake.wait_started(3);
    assert_eq!((house.started(), house.fake.loaded_ever()), (3, 1));
    house.fake.open_gate();
    for (sent, call) in calls.into_iter().enumerate() {
        assert_eq!(value(call.await), sent as f32);
    }
    // The old one goes, the queue and the weights stay.
    drop(old);
    assert_eq!(value(new.infer(request(7.0)).await), 7.0);
    assert_eq!(new.executable().placements(), [Placement { device: 0, limit: 3 }]);
    assert!(house.fake.threads().contains(&3));
    drop(new);
    house.fake.wait_loaded(0);
}

#[tokio::test]
async fn other_devices_need_a_load() {
    let house = House::new(1, 1);
    let live = house.model("", config(0, Vec::new(), Vec::new()), &[(0, 1)]);
    for places in [&[(1, 1)][..], &[(0, 1), (1, 1)], &[]] {
        let binding = Binding::new(&live.config, &live.schema).unwrap();
        let places: Vec<_> = places.iter().map(|&(device, limit)| Placement { device, limit }).collect();
        assert!(live.reconfigured(Arc::clone(&live.config), binding, &places).is_none(), "{places:?}");
    }
    assert_eq!(value(live.infer(request(1.0)).await), 1.0);
}
