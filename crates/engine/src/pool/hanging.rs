//! Runs that do not end: others go on, and nobody waits for ever who need not.

use std::{task::Poll, time::Duration};

use sconce_repository::{Batching, ModelConfig};

use super::{
    tests::{batched, held, rows, values},
    *,
};
use crate::{
    Error,
    fixtures::{Answer, House, given_up, waiting},
    model::LiveVersion,
};

fn impatient(cores: usize) -> House {
    House::with(PoolSettings { hung_after: Duration::from_millis(1), ..PoolSettings::new(cores) }, 0)
}

/// Until so many runs are taken for hung.
async fn wait_hung(house: &House, count: usize) {
    let hangs = |worker: &WorkerStatus| worker.running.as_ref().is_some_and(|run| run.hung);
    while house.pool.status()[0].workers.iter().filter(|worker| hangs(worker)).count() < count {
        tokio::task::yield_now().await;
    }
}

fn not_ready(why: &str) -> Error {
    Error::NotReady { model: "m".to_owned(), version: "1".to_owned(), why: why.to_owned() }
}

/// Whether there is an answer by now.
async fn is_answered(call: &mut Answer<'_>) -> bool {
    std::future::poll_fn(|context| Poll::Ready(call.as_mut().poll(context).is_ready())).await
}

#[tokio::test]
async fn a_run_that_does_not_end_holds_up_nobody_else() {
    let house = House::with(PoolSettings { hung_after: Duration::from_millis(1), ..PoolSettings::new(1) }, 0);
    let bad = house.model("gate", batched(), &[(0, 1)]);
    let good = house.model("", batched(), &[(0, 1)]);
    let hangs = held(&house, &bad).await;
    assert_eq!(values(good.infer(rows(&[1.0])).await), [1.0], "another worker has taken its place");
    assert!(bad.stuck_by() == Some(Stuck::Runs) && good.stuck_by().is_none());
    let workers = &house.pool.status()[0].workers;
    assert_eq!(workers.len(), 2);
    assert!(workers[0].running.as_ref().is_some_and(|run| run.hung && &*run.model == "m"));
    // When it ends after all, it is answered, and all is as before.
    house.fake.open_gate();
    assert_eq!(values(hangs.await), [0.0]);
    while bad.stuck_by().is_some() {
        tokio::task::yield_now().await;
    }
    assert_eq!(values(bad.infer(rows(&[2.0])).await), [2.0]);
    assert!(bad.stuck_by().is_none());
}

#[tokio::test]
async fn what_waits_for_a_model_that_hangs_is_told_and_what_comes_is_too() {
    let house = impatient(1);
    let model = house.model("gate", batched(), &[(0, 1)]);
    let hangs = held(&house, &model).await;
    let waits = waiting(&model, rows(&[1.0])).await;
    assert_eq!(waits.await.unwrap_err(), not_ready(Stuck::Runs.why()));
    assert_eq!(model.infer(rows(&[2.0])).await.unwrap_err(), not_ready(Stuck::Runs.why()));
    assert_eq!((model.load().queued, model.load().running, model.load().hung), (0, 1, 1));
    house.fake.open_gate();
    assert_eq!(values(hangs.await), [0.0]);
}

#[tokio::test]
async fn when_a_model_that_hangs_is_unloaded_its_callers_are_answered() {
    let house = impatient(1);
    let model = house.model("gate", batched(), &[(0, 1)]);
    let hangs = held(&house, &model).await;
    wait_hung(&house, 1).await;
    model.registration().close();
    assert_eq!(hangs.await.unwrap_err(), not_ready("it was unloaded before it could answer"));
    assert_eq!(given_up(&model), [], "he has been told");
    let left = |model: &LiveVersion| house.pool.runs_left("m", model.version);
    assert_eq!(left(&model), ModelLoad { queued: 0, queued_bytes: 0, running: 1, hung: 1 });
    assert_eq!(house.pool.runs_left("another", model.version).running, 0);
    // One that is found to hang only later is no better off.
    let later = house.model("gate", batched(), &[(0, 1)]);
    let hangs = waiting(&later, rows(&[1.0])).await;
    house.fake.wait_started(2);
    later.registration().close();
    assert_eq!(hangs.await.unwrap_err(), not_ready("it was unloaded before it could answer"));
    assert_eq!(left(&later).hung, 2, "both are called the same");
    house.fake.open_gate();
    while left(&later).running > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn who_goes_away_answers_what_runs_and_what_waits() {
    let house = House::new(1, 0);
    let model = house.model("gate", batched(), &[(0, 1)]);
    let calls = [held(&house, &model).await, waiting(&model, rows(&[1.0])).await];
    drop(waiting(&model, rows(&[2.0])).await);
    assert_eq!(house.pool.abandon(), 3);
    assert_eq!(given_up(&model), [("cancelled", "queued", 1)]);
    for call in calls {
        let error = call.await.unwrap_err();
        assert_eq!(error, not_ready("the server is shutting down and had no more time to answer"));
    }
    // The run ends into nothing.
    house.fake.open_gate();
    house.pool.wait_idle();
    assert_eq!(house.pool.abandon(), 0);
}

#[tokio::test]
async fn who_leaves_the_queue_is_counted_also_when_its_version_goes_first() {
    let house = House::new(1, 0);
    let model = house.model("gate", batched(), &[(0, 1)]);
    let runs = held(&house, &model).await;
    drop(waiting(&model, rows(&[1.0])).await);
    model.registration().close();
    assert_eq!(given_up(&model), [("cancelled", "queued", 1)]);
    house.fake.open_gate();
    assert_eq!(values(runs.await), [0.0]);
}

#[tokio::test]
async fn who_leaves_a_run_that_hangs_is_counted_when_nobody_waits_for_it_any_more() {
    let house = impatient(1);
    let model = house.model("gate", batched(), &[(0, 1)]);
    let hangs = held(&house, &model).await;
    wait_hung(&house, 1).await;
    drop(hangs);
    model.registration().close();
    assert_eq!(given_up(&model), [("cancelled", "running", 1)]);
    house.fake.open_gate();
    house.pool.wait_idle();
    assert_eq!(given_up(&model), [("cancelled", "running", 1)], "once");
}

#[tokio::test]
async fn nobody_behind_a_run_that_hangs_keeps_the_order() {
    let house = impatient(2);
    let batching = Some(Batching { preserve_ordering: true, ..Batching::default() });
    let model = house.model("stall 13", ModelConfig { batching, ..batched() }, &[(0, 2)]);
    let mut hangs = waiting(&model, rows(&[13.0])).await;
    house.fake.wait_started(1);
    assert_eq!(values(model.infer(rows(&[1.0])).await), [1.0]);
    wait_hung(&house, 1).await; // Until then it is waited for.
    assert!(!is_answered(&mut hangs).await && model.stuck_by().is_none());
    house.fake.open_gate();
    assert_eq!(values(hangs.await), [13.0]);
}
