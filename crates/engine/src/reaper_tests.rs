//! The reaper on the fake backend: who frees what and when, and who is told.

use std::sync::mpsc;

use super::*;
use crate::{
    Error,
    fixtures::{House, config, request, value},
    scheduler::Placement,
};

/// Retires a version; what is received is how many modules were in memory, and how often memory had been
/// given back, when its caller was told.
fn retire(house: &House, live: Arc<LiveVersion>, bound: Duration) -> mpsc::Receiver<(usize, usize)> {
    let (sender, receiver) = mpsc::channel();
    let fake = Arc::clone(&house.fake);
    let freed = move || sender.send((fake.loaded(), fake.released().len())).unwrap();
    house.reaper.retire(live, bound, Box::new(freed));
    receiver
}

fn only_the_reaper() -> BTreeSet<String> {
    BTreeSet::from(["reaper".to_owned()])
}

/// A call on a task of its own, which holds the version as a server's task does. Its place in the queue
/// is taken when this returns.
async fn call(live: &Arc<LiveVersion>, sent: f32) -> tokio::task::JoinHandle<crate::Result<f32>> {
    let live = Arc::clone(live);
    let task = tokio::spawn(async move { live.infer(request(sent)).await.map(|answer| value(Ok(answer))) });
    // The runtime of these tests has one thread: the task runs until it waits.
    tokio::task::yield_now().await;
    task
}

#[tokio::test]
async fn a_worker_that_holds_weights_last_does_not_free_them() {
    let house = House::new(1, 1);
    let model = house.model("gate", config(0, Vec::new(), Vec::new()), &[(0, 1), (1, 1)]);
    let task = call(&model, 1.0).await;
    house.fake.wait_started(1);
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    drop(model);
    assert_eq!(house.fake.loaded(), 2, "its run is on");
    house.fake.open_gate();
    house.fake.wait_loaded(0);
    assert_eq!(house.fake.freed_on(), only_the_reaper());
    house.fake.wait_released(Device::Cpu);
    house.fake.wait_released(Device::Gpu(0));
}

#[tokio::test]
async fn a_runner_that_panicked_is_freed_by_the_reaper_too() {
    let house = House::new(2, 0);
    let model = house.on_cpu("panic");
    for _ in 0..3 {
        assert!(model.infer(request(1.0)).await.is_err());
    }
    drop(model);
    house.fake.wait_loaded(0);
    assert_eq!(house.fake.freed_on(), only_the_reaper());
}

#[tokio::test]
async fn a_retired_version_answers_all_that_it_has_accepted_and_then_is_freed() {
    let house = House::new(1, 0);
    let model = house.on_cpu("gate");
    let mut calls = Vec::new();
    for sent in 0..5 {
        calls.push(call(&model, sent as f32).await);
    }
    house.fake.wait_started(1);
    let freed = retire(&house, model, Duration::MAX);
    house.fake.open_gate();
    for (sent, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap(), Ok(sent as f32));
    }
    assert_eq!(freed.recv().unwrap(), (0, 1));
    assert_eq!(house.fake.freed_on(), only_the_reaper());
}

#[tokio::test]
async fn after_the_bound_what_waits_is_refused_and_what_runs_is_answered() {
    let house = House::new(1, 0);
    let model = house.on_cpu("gate");
    let (runs, waits) = (call(&model, 1.0).await, call(&model, 2.0).await);
    house.fake.wait_started(1);
    let late = Arc::clone(&model);
    let freed = retire(&house, model, Duration::from_millis(1));
    let why = "it was unloaded before it could answer".to_owned();
    let gone = Error::NotReady { model: "m".to_owned(), version: "1".to_owned(), why };
    assert_eq!(waits.await.unwrap(), Err(gone));
    // Whoever found it in the table just before is refused too.
    assert!(matches!(late.infer(request(3.0)).await, Err(Error::NotReady { .. })));
    drop(late);
    house.fake.open_gate();
    assert_eq!(runs.await.unwrap(), Ok(1.0));
    assert_eq!(freed.recv().unwrap(), (0, 1));
}

fn same_with(live: &LiveVersion, limit: usize) -> Arc<LiveVersion> {
    let binding = crate::binding::Binding::new(&live.config, &live.schema).unwrap();
    let config = Arc::clone(&live.config);
    Arc::new(live.reconfigured(config, binding, &[Placement { device: 0, limit }]).unwrap())
}

#[tokio::test]
async fn the_queue_of_a_version_that_is_reconfigured_stays_open_until_the_last_is_retired() {
    let house = House::new(1, 0);
    let first = house.on_cpu("gate");
    let mut calls = vec![call(&first, 0.0).await, call(&first, 1.0).await];
    house.fake.wait_started(1);
    let second = same_with(&first, 2);
    let first_freed = retire(&house, first, Duration::ZERO);
    let third = same_with(&second, 3);
    let second_freed = retire(&house, second, Duration::ZERO);
    // Nobody holds it, though the weights live on; and both bounds have passed by now.
    assert_eq!(second_freed.recv().unwrap().0, 1);
    calls.push(call(&third, 2.0).await);
    house.fake.open_gate();
    for (sent, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap(), Ok(sent as f32));
    }
    assert_eq!(first_freed.recv().unwrap().0, 1);
    let late = Arc::clone(&third);
    let third_freed = retire(&house, third, Duration::ZERO);
    while late.infer(request(3.0)).await.is_ok() {}
    drop(late);
    assert_eq!(third_freed.recv().unwrap().0, 0);
}

#[test]
fn a_backend_that_panics_does_not_end_the_reaper() {
    let house = House::new(1, 0);
    let (sender, receiver) = mpsc::channel();
    house.reaper.retire(house.on_cpu(""), Duration::ZERO, Box::new(|| panic!("for the test")));
    house.reaper.retire(house.on_cpu(""), Duration::ZERO, Box::new(move || sender.send(()).unwrap()));
    receiver.recv().unwrap();
}

#[test]
fn the_thread_ends_with_the_last_handle() {
    let fake = Arc::new(crate::fake::Fake::new(0));
    let watched = Arc::downgrade(&fake);
    drop(Reaper::start(fake).unwrap());
    while watched.strong_count() > 0 {
        thread::yield_now();
    }
}
