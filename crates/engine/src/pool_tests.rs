//! Batches, queues and devices over real threads.

use std::num::NonZeroU32;

use sconce_repository::{Batching, ModelConfig, OnTimeout, QueuePolicy, Queueing};

use super::*;
use crate::{
    DataType,
    fixtures::{Answer, House, config, floats, input, named, value, waiting},
    model::{LiveVersion, NamedOutput, Request},
};

/// A model that takes rows of one FP32 and gives them back, in batches of at most 8.
pub(super) fn batched() -> ModelConfig {
    let tensor = || vec![named("x", DataType::Fp32, &[1])];
    ModelConfig { outputs: vec![named("OUTPUT__0", DataType::Fp32, &[1])], ..config(8, tensor(), Vec::new()) }
}

pub(super) fn rows(values: &[f32]) -> Request {
    let shape = [values.len() as i64, 1];
    Request { inputs: vec![input("x", floats(&shape, values))], ..Request::default() }
}

pub(super) fn values(answer: crate::Result<Vec<NamedOutput>>) -> Vec<f32> {
    let tensor = &answer.unwrap()[0].tensor;
    tensor.bytes().chunks(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

/// A version on one worker, which is held up by a first request until the gate opens; and that request.
pub(super) async fn held<'a>(house: &House, model: &'a LiveVersion) -> Answer<'a> {
    let first = waiting(model, rows(&[0.0])).await;
    house.fake.wait_started(1);
    first
}

#[tokio::test]
async fn what_waits_is_joined_and_everyone_gets_his_own_rows() {
    let house = House::new(1, 0);
    let config = ModelConfig {
        batching: Some(Batching { preferred_sizes: vec![8], ..Batching::default() }),
        ..batched()
    };
    let model = house.model("gate", config, &[(0, 1)]);
    let first = held(&house, &model).await;
    let mut calls = Vec::new();
    for sent in [vec![1.0], vec![2.0, 3.0, 4.0], vec![5.0, 6.0], vec![7.0, 8.0]] {
        calls.push((waiting(&model, rows(&sent)).await, sent));
    }
    house.fake.open_gate();
    assert_eq!(values(first.await), [0.0]);
    for (call, sent) in calls {
        assert_eq!(values(call.await), sent);
    }
    assert_eq!(house.fake.rows(), [1, 8]);
}

#[tokio::test]
async fn a_batch_for_a_gpu_is_gathered_in_memory_that_the_gpu_reads_best() {
    let house = House::new(0, 1);
    let model = house.model("gate", batched(), &[(1, 1)]);
    let first = held(&house, &model).await;
    let mut calls = Vec::new();
    for sent in [1.0, 2.0, 3.0] {
        calls.push((waiting(&model, rows(&[sent])).await, sent));
    }
    house.fake.open_gate();
    assert_eq!(values(first.await), [0.0]);
    for (call, sent) in calls {
        assert_eq!(values(call.await), [sent]);
    }
    let joined = house.fake.rows().into_iter().filter(|rows| *rows > 1).map(|rows| rows as usize * 4);
    assert_eq!(house.fake.lent(), joined.collect::<Vec<_>>(), "one buffer a batch, none for who runs alone");
    assert!(!house.fake.lent().is_empty());
    house.fake.wait_given_back();
}

#[tokio::test]
async fn one_that_throws_fails_alone() {
    let house = House::new(1, 0);
    let model = house.model("gate\npoison 13", batched(), &[(0, 1)]);
    let first = held(&house, &model).await;
    let mut calls = Vec::new();
    for sent in 10..16 {
        calls.push((waiting(&model, rows(&[sent as f32])).await, sent));
    }
    house.fake.open_gate();
    first.await.unwrap();
    for (call, sent) in calls {
        match call.await {
            Ok(answer) => assert_eq!((values(Ok(answer)), sent == 13), (vec![sent as f32], false)),
            Err(error) => {
                assert_eq!((error.to_string(), sent), ("model 'm' failed: it is poison".to_owned(), 13))
            }
        }
    }
    let (runs, waited) = counted(&model);
    assert_eq!(waited, 7, "the run that it ends with counts, for each");
    let rows = |(rows, count): (&u64, &u64)| rows * count;
    assert!(runs.iter().map(rows).sum::<u64>() > 7, "the runs that failed are counted too: {runs:?}");
    assert_eq!(runs.values().sum::<u64>(), house.started() as u64);
}

#[tokio::test]
async fn a_batch_that_panics_is_tried_one_by_one() {
    let house = House::new(1, 0);
    let config = ModelConfig {
        batching: Some(Batching { preferred_sizes: vec![2], ..Batching::default() }),
        ..batched()
    };
    let model = house.model("gate\npanic", config, &[(0, 1)]);
    let calls = [
        held(&house, &model).await,
        waiting(&model, rows(&[1.0])).await,
        waiting(&model, rows(&[2.0])).await,
    ];
    house.fake.open_gate();
    for call in calls {
        assert!(matches!(call.await, Err(Error::WorkerLost { .. })));
    }
    assert_eq!(house.fake.rows(), [1, 2, 1, 1], "each was tried by itself");
    assert_eq!(counted(&model), ([(1, 3), (2, 1)].into(), 3), "runs of each size, and who waited");
}

/// How many runs of how many rows there were, and how often somebody waited for one that was his last.
fn counted(model: &LiveVersion) -> (std::collections::BTreeMap<u64, u64>, u64) {
    let stats = model.stats();
    let of = |histogram: &crate::stats::Histogram| histogram.total().0;
    let stages = [&stats.gather, &stats.forward, &stats.scatter].map(of);
    assert_eq!(stages, [of(&stats.queue); 3], "each stage counts the same requests");
    let runs: std::collections::BTreeMap<_, _> =
        stats.batches().into_iter().map(|(rows, counts)| (rows, counts.runs)).collect();
    assert_eq!(of(&stats.batch_rows), runs.values().sum::<u64>());
    (runs, of(&stats.queue))
}

#[tokio::test]
async fn a_model_whose_answers_cannot_be_taken_apart_is_run_one_by_one() {
    let house = House::new(1, 0);
    let config = ModelConfig {
        outputs: Vec::new(),
        batching: Some(Batching { preferred_sizes: vec![4], ..Batching::default() }),
        ..batched()
    };
    // It gives one row whatever it is given.
    let model = house.model("gate\nvalue 5", config, &[(0, 1)]);
    let first = held(&house, &model).await;
    let mut calls = Vec::new();
    for _ in 0..8 {
        calls.push(waiting(&model, rows(&[1.0])).await);
    }
    house.fake.open_gate();
    first.await.unwrap();
    for call in calls {
        assert_eq!(values(call.await), [5.0]);
    }
    assert_eq!(house.fake.rows()[..2], [1, 4], "it was tried");
    assert!(house.fake.rows()[2..].iter().all(|rows| *rows == 1), "and then not again");
}

#[tokio::test]
async fn one_that_was_filled_up_and_cannot_be_cut_back_runs_again_as_it_came() {
    let house = House::new(1, 0);
    let config = ModelConfig {
        outputs: Vec::new(),
        batching: Some(Batching { allowed_sizes: vec![4, 8], ..Batching::default() }),
        ..batched()
    };
    let model = house.model("value 5", config, &[(0, 1)]);
    assert_eq!(values(model.infer(rows(&[1.0])).await), [5.0]);
    assert_eq!(house.fake.rows(), [4, 1]);
    assert_eq!(counted(&model), ([(1, 1), (4, 1)].into(), 1));
}

#[tokio::test]
async fn a_batch_is_filled_up_to_a_size_that_is_allowed() {
    let house = House::new(1, 0);
    let config = ModelConfig {
        batching: Some(Batching { allowed_sizes: vec![4, 8], ..Batching::default() }),
        ..batched()
    };
    let model = house.model("", config, &[(0, 1)]);
    assert_eq!(values(model.infer(rows(&[1.0, 2.0, 3.0])).await), [1.0, 2.0, 3.0]);
    assert_eq!(values(model.infer(rows(&[1.0, 2.0, 3.0, 4.0, 5.0])).await), [1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(house.fake.rows(), [4, 8]);
}

#[tokio::test]
async fn the_policy_of_its_queue_decides_who_waits_and_for_how_long() {
    let house = House::new(1, 0);
    let high = QueuePolicy { max_size: NonZeroU32::new(2), ..QueuePolicy::default() };
    let low = QueuePolicy {
        timeout: Some(Duration::from_millis(1)),
        on_timeout: OnTimeout::Reject,
        ..QueuePolicy::default()
    };
    let queue = Queueing { levels: vec![high, low], default_priority: NonZeroU32::MIN };
    let model = house.model("gate", ModelConfig { queue, batching: None, ..batched() }, &[(0, 1)]);
    let first = held(&house, &model).await;
    let calls = [waiting(&model, rows(&[1.0])).await, waiting(&model, rows(&[2.0])).await];
    let full = model.infer(rows(&[3.0])).await.unwrap_err();
    assert!(matches!(full, Error::QueueFull { limit: 2, .. }), "{full}");
    // It is told at once, not when a worker is free.
    let late = model.infer(Request { priority: 2, ..rows(&[4.0]) }).await.unwrap_err();
    assert!(late.to_string().starts_with("Request timeout expired: it waited "), "{late}");
    house.fake.open_gate();
    first.await.unwrap();
    for call in calls {
        call.await.unwrap();
    }
}

#[tokio::test]
async fn a_request_may_state_its_own_timeout_where_nothing_else_is_said() {
    let house = House::new(1, 0);
    let model = house.model("gate", batched(), &[(0, 1)]);
    let first = held(&house, &model).await;
    let impatient = Request { timeout: Duration::from_millis(1), ..rows(&[4.0]) };
    assert!(matches!(model.infer(impatient).await, Err(Error::QueueTimeout { .. })));
    house.fake.open_gate();
    first.await.unwrap();
}

#[tokio::test]
async fn all_queues_together_have_a_bound() {
    let house = House::with(PoolSettings { queued_bytes: 10, ..PoolSettings::new(1) }, 0);
    let model = house.model("gate", batched(), &[(0, 1)]);
    let first = held(&house, &model).await;
    let second = waiting(&model, rows(&[1.0, 2.0])).await;
    let refused = model.infer(rows(&[3.0])).await.unwrap_err();
    assert!(matches!(refused, Error::QueuesFull { limit: 10, size: 4, .. }), "{refused}");
    drop(second);
    let third = waiting(&model, rows(&[3.0])).await;
    house.fake.open_gate();
    first.await.unwrap();
    assert_eq!(values(third.await), [3.0]);
}

#[tokio::test]
async fn answers_keep_the_order_of_their_requests_when_that_is_asked_for() {
    let house = House::new(2, 0);
    let batching = Some(Batching { preserve_ordering: true, ..Batching::default() });
    let model = house.model("gate", ModelConfig { batching, ..batched() }, &[(0, 2)]);
    let mut first = held(&house, &model).await;
    // It does not reach the gate: its caller has gone, and holds nobody up.
    drop(waiting(&model, rows(&[1.0])).await);
    let second = waiting(&model, rows(&[2.0])).await;
    house.fake.open_gate();
    assert_eq!(values(second.await), [2.0]);
    let answer = std::future::poll_fn(|context| {
        std::task::Poll::Ready(match first.as_mut().poll(context) {
            std::task::Poll::Ready(answer) => Some(answer),
            std::task::Poll::Pending => None,
        })
    })
    .await;
    assert_eq!(values(answer.expect("it was answered before the second")), [0.0]);
}

#[tokio::test]
async fn a_device_that_is_lost_takes_no_other_with_it() {
    let house = House::new(1, 2);
    let both = house.model("lose 666", batched(), &[(1, 2), (2, 2)]);
    let one = house.model("gate", batched(), &[(1, 2)]);
    let lost = both.infer(rows(&[666.0])).await.unwrap_err();
    assert!(lost.to_string().contains("its device has failed: an illegal memory access"), "{lost}");
    assert_eq!(counted(&both), ([(1, 1)].into(), 1));
    for sent in 0..20 {
        assert_eq!(values(both.infer(rows(&[sent as f32])).await), [sent as f32]);
    }
    let status = house.pool.status();
    assert_eq!(status.iter().map(|device| device.healthy).collect::<Vec<_>>(), [true, false, true]);
    assert!(matches!(one.infer(rows(&[1.0])).await, Err(Error::DeviceLost { .. })), "it has no other");
    assert!(house.pool.is_alive());
    both.infer(rows(&[666.0])).await.unwrap_err();
    assert!(!house.pool.is_alive(), "no GPU is left");
}

#[tokio::test]
async fn a_lone_run_has_all_cores_and_runs_side_by_side_share_them() {
    let house = House::new(4, 0);
    let model = house.model("gate", batched(), &[(0, 4)]);
    let mut calls = vec![held(&house, &model).await];
    calls.push(waiting(&model, rows(&[1.0])).await);
    house.fake.wait_started(2);
    house.fake.open_gate();
    for call in calls {
        value(call.await);
    }
    assert!(
        house.fake.threads().contains(&4) && house.fake.threads().contains(&1),
        "{:?}",
        house.fake.threads()
    );
}

#[tokio::test]
async fn a_quick_model_waits_for_a_run_that_stalls_only_for_a_moment() {
    let house = House::new(2, 0);
    let model = house.model("stall 13", batched(), &[(0, 2)]);
    for sent in 0..50 {
        model.infer(rows(&[100.0 + sent as f32])).await.unwrap();
    }
    // It may be run by the thread that brings it.
    let stalls = std::thread::spawn({
        let model = Arc::clone(&model);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        move || values(runtime.block_on(model.infer(rows(&[13.0]))))
    });
    house.fake.wait_started(51);
    // Neither is the stall over nor is it taken for a run that hangs.
    assert_eq!(values(model.infer(rows(&[1.0])).await), [1.0]);
    assert!(!stalls.is_finished());
    house.fake.open_gate();
    assert_eq!(stalls.join().unwrap(), [13.0]);
}
