//! Warming on the fake backend: what is run, where, how often, and what a failure means.

use std::{collections::BTreeMap, num::NonZeroU32};

use proptest::prelude::*;
use sconce_repository::{ModelConfig, Warmup, WarmupData, WarmupInput, WarmupSample};

use super::*;
use crate::{
    DataType,
    fixtures::{House, assert_sentence, config, named, request, value, waiting},
};

/// A model that takes `x` as FP32 of one element.
fn fixed() -> ModelConfig {
    config(0, vec![named("x", DataType::Fp32, &[1])], Vec::new())
}

fn with_sample(count: u32) -> ModelConfig {
    let input = WarmupInput { data_type: DataType::Fp32, dims: vec![1], data: WarmupData::Random };
    let sample = WarmupSample {
        name: "first".to_owned(),
        batch_size: 0,
        count: NonZeroU32::new(count).unwrap(),
        inputs: BTreeMap::from([("x".to_owned(), input)]),
    };
    ModelConfig { warmup: Warmup::Samples(vec![sample]), ..fixed() }
}

fn warmed(
    house: &House,
    live: &LiveVersion,
    examples: &[Example],
) -> std::result::Result<Vec<Warmed>, LoadError> {
    warm(&house.pool, live, examples, false, &AtomicBool::new(false))
}

#[track_caller]
fn assert_refused(result: std::result::Result<Vec<Warmed>, LoadError>, parts: &[&str]) {
    let error = result.expect_err("the version is refused");
    assert!(!error.waiting);
    assert_sentence(&error.reason, parts);
}

#[test]
fn it_runs_on_each_device_one_run_at_a_time_on_one_thread() {
    let house = House::new(4, 2);
    let live = house.model("", fixed(), &[(0, 4), (1, 2), (2, 2)]);
    let done = warmed(&house, &live, &[]).unwrap();
    let devices: Vec<_> = done.iter().map(|warmed| warmed.device).collect();
    assert_eq!(devices, house.pool.devices());
    for Warmed { device, runs, .. } in done {
        assert!((ALIKE..=MOST_RUNS).contains(&runs), "{runs}");
        assert_eq!(house.fake.started()[&device], runs);
    }
    assert_eq!((house.fake.most_at_once(), house.fake.threads()), (1, [1].into()));
}

#[test]
fn a_sample_is_run_as_often_as_it_says() {
    let house = House::new(1, 0);
    let live = house.model("", with_sample(33), &[(0, 1)]);
    let done = warmed(&house, &live, &[]).unwrap();
    assert_eq!((done[0].runs, house.started()), (33, 33));
}

#[test]
fn a_version_that_fails_on_what_it_ought_to_answer_is_refused() {
    let house = House::new(1, 0);
    let live = house.model("fail the matrix is singular", with_sample(1), &[(0, 1)]);
    let parts = ["on cpu", "warm-up sample 'first'", "the matrix is singular", "correct the sample"];
    assert_refused(warmed(&house, &live, &[]), &parts);
    assert_eq!(house.started(), 1);
    let live = house.model("fail the matrix is singular", fixed(), &[(0, 1)]);
    let parts =
        ["input made from its configuration", "the matrix is singular", "`warmup: off` in config.yaml"];
    assert_refused(warmed(&house, &live, &[]), &parts);
    let live = house.model("panic", fixed(), &[(0, 1)]);
    assert_refused(warmed(&house, &live, &[]), &["stopped without an answer"]);
}

#[test]
fn an_answer_that_its_configuration_does_not_promise_is_a_failure() {
    let house = House::new(1, 0);
    for outputs in [named("y", DataType::Fp32, &[2]), named("y", DataType::Int64, &[1])] {
        let live = house.model("", ModelConfig { outputs: vec![outputs], ..fixed() }, &[(0, 1)]);
        assert_refused(warmed(&house, &live, &[]), &["output 'y'", "its configuration says"]);
    }
}

#[tokio::test]
async fn without_stated_shapes_it_runs_what_the_version_before_it_has_served() {
    let house = House::new(1, 0);
    let unstated = || config(0, Vec::new(), Vec::new());
    let old = house.model("", unstated(), &[(0, 1)]);
    assert_eq!(value(old.infer(request(1.0)).await), 1.0);
    let examples = old.examples();
    let new = house.model("", unstated(), &[(0, 1)]);
    assert_eq!(warmed(&house, &new, &[]), Ok(Vec::new()));
    assert_eq!(house.started(), 1, "nothing is known of its shapes");
    assert_eq!(warmed(&house, &new, &examples).unwrap().len(), 1);
    // The new version may take other shapes: that it fails on the old ones says nothing.
    let started = house.started();
    let other = house.model("fail I take images", unstated(), &[(0, 1)]);
    assert_eq!(warmed(&house, &other, &examples), Ok(Vec::new()));
    assert_eq!(house.started(), started + 1);
    // Nor that it takes other names.
    let renamed = config(0, vec![named("image", DataType::Fp32, &[-1])], Vec::new());
    let renamed = house.model("", renamed, &[(0, 1)]);
    assert_eq!(warmed(&house, &renamed, &examples), Ok(Vec::new()));
}

#[test]
fn it_ends_when_nobody_wants_the_version_any_more() {
    let house = House::new(1, 0);
    let live = house.model("gate", with_sample(20), &[(0, 1)]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let warming = scope.spawn(|| warm(&house.pool, &live, &[], false, &stop));
        house.fake.wait_started(1);
        stop.store(true, Ordering::Relaxed);
        assert_eq!(warming.join().unwrap(), Ok(Vec::new()));
    });
    house.fake.open_gate();
    house.pool.wait_idle();
    assert_eq!(house.started(), 1);
}

#[tokio::test]
async fn requests_that_wait_go_first() {
    let house = House::new(1, 0);
    // Slow, so that runs out of turn would be seen.
    let serving = house.on_cpu("gate\ndelay 20");
    let mut calls = Vec::new();
    for sent in 0..5 {
        calls.push(waiting(&serving, request(sent as f32)).await);
    }
    house.fake.wait_started(1);
    let fresh = house.model("fail for the test", with_sample(1), &[(0, 1)]);
    thread::scope(|scope| {
        let warming = scope.spawn(|| (warmed(&house, &fresh, &[]), house.started()));
        house.pool.wait_queued(5);
        house.fake.open_gate();
        let (refused, started) = warming.join().unwrap();
        assert_refused(refused, &["for the test"]);
        assert_eq!(started, 6, "it began when all five had");
    });
    for (sent, call) in calls.into_iter().enumerate() {
        assert_eq!(value(call.await), sent as f32);
    }
}

#[test]
fn its_runner_is_freed_by_the_reaper_and_the_version_stays() {
    let house = House::new(1, 0);
    let live = house.model("", fixed(), &[(0, 1)]);
    warmed(&house, &live, &[]).unwrap();
    house.fake.wait_released(Device::Cpu);
    assert_eq!((house.fake.loaded(), house.fake.freed_on().len()), (1, 0));
}

proptest! {
    #[test]
    fn runs_are_alike_within_a_tenth(took in prop::collection::vec(90u64..110, 0..=ALIKE)) {
        let durations: Vec<_> = took.iter().map(|&millis| Duration::from_millis(millis)).collect();
        let within = took.iter().all(|a| took.iter().all(|b| a * 10 <= b * 11));
        prop_assert_eq!(alike(&durations), took.len() == ALIKE && within);
    }
}
